"""From raw text to scrubbed text: the one door.

What cannot be searched is quarantined: left out and counted, never passed on. Only `scrub`
makes a `ScrubbedText`, so a text that skipped it does not type-check further down, and
cannot be built by hand either.
"""

from __future__ import annotations

import functools
import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import InitVar, dataclass, field
from pathlib import Path
from typing import Final, Protocol

import orjson

from discreet.common.corpus import RawText
from discreet.common.site import Action, ScrubConfig
from discreet.privacy.detect import (
    DetectionError,
    Detector,
    Failure,
    Span,
    check_entities,
    engine_version,
    presidio_detector,
    search,
)
from discreet.privacy.replace import replace
from discreet.privacy.seal import KEY_BYTES, derived_key

_MADE_BY_SCRUB: Final = object()


@dataclass(frozen=True, slots=True)
class ScrubbedText:
    """A text whose personal data was replaced. Made by `scrub` only.

    Attributes:
        text: The text after replacing.
        label: Its class, as in the corpus.
        owner: Whose text it is, as in the corpus.
        row: Its 0-based number in the corpus.
    """

    text: str = field(repr=False)
    label: str | None
    owner: str | None
    row: int
    token: InitVar[object]

    def __post_init__(self, token: object) -> None:
        if token is not _MADE_BY_SCRUB:
            raise TypeError("a ScrubbedText is made by discreet.privacy.scrub.scrub only")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one text.

    Attributes:
        text: The scrubbed text; none if it was dropped by the policy or quarantined.
        failure: Why it was quarantined; none if it was searched to its end.
        entities: (kind, number of places replaced), sorted.
        masked_chars: Characters of the raw text that were replaced.
    """

    text: str | None = field(repr=False)
    failure: Failure | None = None
    entities: tuple[tuple[str, int], ...] = ()
    masked_chars: int = 0


@dataclass(slots=True)
class ScrubReport:
    """Counts over many texts. No value, no place and no hash of either.

    Attributes:
        is_enabled: False if texts were passed on unsearched, because the site's settings
            say that they were scrubbed before.
        num_in: Texts that came in.
        num_out: Texts that were passed on.
        dropped: Texts that the policy drops.
        quarantined: Texts that could not be searched; left out.
        reused: Texts found in the store and not searched again, of all that came in.
        failures: Why -> number of quarantined texts.
        entities: Kind -> number of places replaced.
        masked_chars: Characters replaced.
        total_chars: Characters of all texts that came in.
    """

    is_enabled: bool = True
    num_in: int = 0
    num_out: int = 0
    dropped: int = 0
    quarantined: int = 0
    reused: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    entities: Counter[str] = field(default_factory=Counter)
    masked_chars: int = 0
    total_chars: int = 0

    def count(self, raw: str, outcome: Outcome) -> None:
        """Count one text and what became of it."""
        self.num_in += 1
        self.total_chars += len(raw)
        self.entities.update(dict(outcome.entities))
        self.masked_chars += outcome.masked_chars
        if outcome.text is not None:
            self.num_out += 1
        elif outcome.failure is not None:
            self.quarantined += 1
            self.failures[outcome.failure.value] += 1
        else:
            self.dropped += 1

    def add(self, other: ScrubReport) -> None:
        """Add another report's counts: a simulation's total over its sites."""
        self.is_enabled = self.is_enabled and other.is_enabled
        self.num_in += other.num_in
        self.num_out += other.num_out
        self.dropped += other.dropped
        self.quarantined += other.quarantined
        self.reused += other.reused
        self.failures.update(other.failures)
        self.entities.update(other.entities)
        self.masked_chars += other.masked_chars
        self.total_chars += other.total_chars


class OutcomeSource(Protocol):
    """What can say what becomes of a text: a `Scrubber`, or a store of outcomes."""

    @property
    def is_enabled(self) -> bool:
        """False if it passes every text on unsearched."""

    def outcome(self, text: str) -> Outcome:
        """What becomes of one text."""


class Scrubber:
    """Searches texts and replaces what is found, by one site's policy and key.

    Args:
        config: The policy.
        key: The site's key (32 bytes) for pseudonyms; without it they are placeholders.
        detector: What searches; none takes Presidio's, loaded at the first text.

    Raises:
        ConfigError: If the policy names a kind that nothing finds.
    """

    def __init__(
        self, config: ScrubConfig, key: bytes | None, detector: Detector | None = None
    ) -> None:
        if key is not None and len(key) != KEY_BYTES:
            raise ValueError(f"key must hold {KEY_BYTES} bytes, got {len(key)}")
        check_entities(config, None if detector is None else detector.entities)
        self._config = config
        self._key = key
        self._detector = detector

    @property
    def is_enabled(self) -> bool:
        """False if texts pass as they are."""
        return self._config.enabled

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that decides the outcome of a text, in hexadecimal.

        The same text, under the same fingerprint, has the same outcome. Takes in the
        settings, the versions, the rules and which key it is (not the key).
        """
        config = self._config
        content = {
            "schema": 1,
            "detector": engine_version() if self._detector is None else self._detector.version,
            "replace": _replace_version(),
            "policy": config.model_dump(mode="json", exclude={"workers", "encrypt"}),
            "key": None if self._key is None else derived_key(self._key, "key id").hex()[:16],
        }
        return hashlib.sha256(orjson.dumps(content, option=orjson.OPT_SORT_KEYS)).hexdigest()

    def scrub_text(self, text: str) -> str | None:
        """The text with personal data replaced; none if it must not be used."""
        return self.outcome(text).text

    def outcome(self, text: str) -> Outcome:
        """What becomes of one text; a text that cannot be searched is quarantined."""
        if not self._config.enabled:
            return Outcome(text)
        if self._detector is None:
            self._detector = presidio_detector(self._config)
        return self.apply(text, search(self._detector, text))

    def apply(self, text: str, spans: Sequence[Span] | Failure) -> Outcome:
        """What becomes of a text that was searched already.

        Args:
            text: The text that was searched.
            spans: What was found, or why the search failed.
        """
        if isinstance(spans, Failure):
            return Outcome(None, spans)
        try:
            new = replace(text, spans, config=self._config, key=self._key)
        except DetectionError as error:
            return Outcome(None, error.failure)
        return Outcome(new.text, None, tuple(sorted(new.entities.items())), new.masked_chars)


@functools.cache
def _replace_version() -> str:
    rules = Path(__file__).with_name("replace.py").read_bytes()
    return hashlib.sha256(rules).hexdigest()[:16]


def scrub(
    texts: Iterable[RawText], scrubber: OutcomeSource, report: ScrubReport | None = None
) -> Iterator[ScrubbedText]:
    """Scrub texts, in their order; those dropped or quarantined are left out.

    Args:
        texts: What the corpus and the cleaning gave.
        scrubber: A `Scrubber`, or a store that knows the outcomes.
        report: Counts are added to it.
    """
    counts = report if report is not None else ScrubReport()
    counts.is_enabled = counts.is_enabled and scrubber.is_enabled
    for raw in texts:
        outcome = scrubber.outcome(raw.text)
        counts.count(raw.text, outcome)
        if outcome.text is not None:
            yield ScrubbedText(outcome.text, raw.label, raw.owner, raw.row, _MADE_BY_SCRUB)


def public_policy(config: ScrubConfig) -> ScrubConfig:
    """A policy for text that must keep its place: what would drop a record is a placeholder.

    Without a key its pseudonyms are placeholders too.
    """

    def shown(action: Action) -> Action:
        return "placeholder" if action == "drop" else action

    entities = {entity: shown(action) for entity, action in config.entities.items()}
    return config.model_copy(update={"default": shown(config.default), "entities": entities})


def public_scrub(text: str, config: ScrubConfig) -> str:
    """Scrub one text that is public, or that its owner wants labelled.

    The model learned from scrubbed text, so it is asked about scrubbed text. No key is
    used: pseudonyms and dropped records become placeholders.

    Returns:
        The scrubbed text; empty if it could not be searched.
    """
    scrubber = _public_scrubber(config.model_dump_json())
    return scrubber.scrub_text(text) or ""


@functools.lru_cache(maxsize=8)
def _public_scrubber(config_json: str) -> Scrubber:
    return Scrubber(public_policy(ScrubConfig.model_validate_json(config_json)), None)

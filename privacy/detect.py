"""Finding personal data: what a detector is, and the door to Presidio's.

Nothing here loads Presidio: a store that is already filled must open without it. The engine
itself stands in `discreet.privacy.detect_engine` and is imported by `presidio_detector`.

Patterns find what has a format (addresses, numbers, cards). Names and places have none and
are not found here; scrubbing is a second line behind differential privacy, not the guarantee.
"""

from __future__ import annotations

import difflib
import functools
import hashlib
import importlib.metadata
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from discreet.common.errors import ConfigError, DataError
from discreet.common.site import ScrubConfig

MAX_TEXT_CHARS = 1_000_000
"""Longer texts are refused: this is some twenty seconds of searching on one core."""

MAX_TEXT_SECONDS = 60.0
"""A text that takes longer is given up: some are a hundred times slower than prose."""

_EVERYWHERE = (
    "CREDIT_CARD",
    "CRYPTO",
    "DATE_TIME",
    "EMAIL_ADDRESS",
    "IBAN_CODE",
    "IP_ADDRESS",
    "MAC_ADDRESS",
    "MEDICAL_LICENSE",
    "PHONE_NUMBER",
    "URL",
    "UUID",
)
_ENGLISH = (
    "UK_NHS",
    "US_BANK_NUMBER",
    "US_DRIVER_LICENSE",
    "US_ITIN",
    "US_PASSPORT",
    "US_SSN",
)

# Presidio's own list of what it supports cannot be trusted: with a blank pipeline it still
# names PERSON and LOCATION. This table is held against the loaded recognizers by a test.
_ENTITIES = {"en": tuple(sorted(_EVERYWHERE + _ENGLISH)), "zh": _EVERYWHERE}

_RULE_FILES = ("detect.py", "detect_engine.py", "detect_pieces.py")
_ENGINE_PACKAGES = ("phonenumbers", "presidio-analyzer", "regex", "spacy", "tldextract")


class Failure(StrEnum):
    """Why nothing is known about a text. It is left out, and counted under this name."""

    TOO_LONG = "too long"
    NOT_UNICODE = "not valid unicode"
    RECOGNIZER = "a recognizer failed"
    TOO_SLOW = "took too long"
    WORKER = "the worker died or hung"


class DetectionError(DataError):
    """A text could not be searched to its end, so nothing is known about it.

    Attributes:
        failure: Why. The message never holds a part of the text.
    """

    def __init__(self, failure: Failure, detail: str = "") -> None:
        super().__init__(f"{failure}: {detail}" if detail else str(failure))
        self.failure = failure


@dataclass(frozen=True, slots=True, order=True)
class Span:
    """Where personal data stands in a text, and of what kind it is.

    Attributes:
        start: First character, counted from 0.
        end: The character after the last one.
        entity: Kind, such as `PHONE_NUMBER`.
        score: How sure the recognizer is, 0 to 1.
    """

    start: int
    end: int
    entity: str
    score: float


class Detector(Protocol):
    """Finds personal data in one text.

    Attributes:
        version: Changes whenever the same text might give other spans.
        entities: The kinds it can find.
    """

    version: str
    entities: tuple[str, ...]

    def detect(self, text: str) -> list[Span]:
        """The spans of `text`; they may overlap.

        Raises:
            DetectionError: If the text could not be searched to its end.
        """


def refusal_of(text: str) -> Failure | None:
    """Why no detector should be given this text: too long, or half characters in it."""
    if len(text) > MAX_TEXT_CHARS:
        return Failure.TOO_LONG
    # Lone surrogates: what no file and no pipe can hold.
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        return Failure.NOT_UNICODE
    return None


def search(detector: Detector, text: str) -> list[Span] | Failure:
    """What a detector finds, or why it did not; never an exception that may hold the text."""
    if refusal := refusal_of(text):
        return refusal
    try:
        return detector.detect(text)
    except DetectionError as error:
        return error.failure
    except Exception:
        return Failure.RECOGNIZER


def known_entities(languages: Sequence[str]) -> tuple[str, ...]:
    """The kinds that the embedded recognizers of these languages find, sorted."""
    return tuple(sorted({entity for language in languages for entity in _ENTITIES[language]}))


def check_entities(config: ScrubConfig, known: Sequence[str] | None = None) -> None:
    """Refuse a policy for a kind that nothing finds.

    Presidio ignores an unknown name with a warning; whoever wrote `PHONE: mask` believes
    that telephone numbers are masked.

    Args:
        config: The policy.
        known: The kinds that the detector finds; none takes the embedded recognizers'.

    Raises:
        ConfigError: One line per unknown kind, with the nearest known one.
    """
    kinds = known_entities(config.languages) if known is None else known
    unknown = [entity for entity in config.entities if entity not in kinds]
    if unknown:
        raise ConfigError("\n".join(_unknown_entity(entity, kinds) for entity in unknown))


def _unknown_entity(entity: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(entity.upper(), known, n=1, cutoff=0.5)
    advice = f"did you mean {near[0]}?" if near else "remove it."
    return (
        f"scrub.entities.{entity}: must be a kind that a recognizer finds, got {entity}: "
        f"{advice} Known: {', '.join(known)}"
    )


@functools.cache
def engine_version() -> str:
    """What decides the spans besides the settings: library versions and our own rules.

    Read without loading the libraries: this names the store's files, and a filled store
    opens in milliseconds.
    """
    packages = [f"{name} {importlib.metadata.version(name)}" for name in _ENGINE_PACKAGES]
    # The rules' own source is hashed: a number that someone must remember to raise would
    # one day serve text that was scrubbed by older rules.
    rules = hashlib.sha256()
    for name in _RULE_FILES:
        rules.update(Path(__file__).with_name(name).read_bytes())
    return ", ".join([*packages, f"rules {rules.hexdigest()[:16]}"])


def presidio_detector(config: ScrubConfig) -> Detector:
    """The embedded detector: Presidio's pattern recognizers, without any download or look-up.

    Loading takes about one second of CPU; `ScrubPool` keeps that out of this process.

    Args:
        config: Languages, threshold and the kinds that have a policy of their own.

    Raises:
        ConfigError: If the policy names a kind that nothing finds.
    """
    check_entities(config)
    from discreet.privacy.detect_engine import PresidioDetector

    return PresidioDetector(config.languages, config.threshold)

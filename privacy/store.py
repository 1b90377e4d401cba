"""The scrubbed store: what was scrubbed once is not scrubbed again.

Outcomes are kept by content and policy, so new rows in a corpus cost only themselves, and a
second run neither searches nor loads Presidio. Labels and owners are not kept: they come
from the corpus each time. Work is written down every few seconds, so that a killed run goes
on where it was.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from discreet.common.corpus import RawText
from discreet.common.site import ScrubConfig
from discreet.privacy.scrub import (
    Outcome,
    ScrubbedText,
    Scrubber,
    ScrubReport,
    public_policy,
    scrub,
)
from discreet.privacy.scrub_pool import ScrubPool
from discreet.privacy.seal import derived_key, site_key
from discreet.privacy.store_segments import KEY_BYTES, Segments

# A chunk is what one worker searches at a time: a tenth of a second of usual texts.
_CHUNK_TEXTS = 64
# Few texts are shared out among the workers, but not so thin that one is started for nothing.
_LEAST_CHUNK_TEXTS = 16
_CHUNK_CHARS = 100_000
# A killed run loses the segment it was filling: some seconds of work.
_SEGMENT_TEXTS = 1_000
# Raw texts held at once.
_BLOCK_TEXTS = 20_000


class ScrubbedStore:
    """Scrubbed texts on disk, private to the site's user.

    Args:
        folder: Where; made if missing, mode 0700, files 0600.
        config: The policy.
        state_dir: Where the site's key is, or will be made; none takes the folder's parent.
        is_public: The texts are public: no key is used, so pseudonyms are placeholders.

    Raises:
        ConfigError: If the policy names a kind that nothing finds.
        DataError: If the folder or the key cannot be used.
    """

    def __init__(
        self,
        folder: Path,
        config: ScrubConfig,
        *,
        state_dir: Path | None = None,
        is_public: bool = False,
    ) -> None:
        self._folder = folder
        self._config = config
        self._key = None if is_public else site_key(state_dir or folder.parent)
        self._scrubber = Scrubber(config, self._key)

    @property
    def fingerprint(self) -> str:
        """What names the policy; see `Scrubber.fingerprint`."""
        return self._scrubber.fingerprint

    def scrub_all(
        self,
        texts: Iterable[RawText],
        *,
        pool: ScrubPool | None = None,
        on_progress: Callable[[int], None] | None = None,
        report: ScrubReport | None = None,
    ) -> list[ScrubbedText]:
        """Scrub texts, taking from the store what it has and adding what it has not.

        Args:
            texts: The corpus; read in blocks.
            pool: Workers to share with other stores; none starts its own (`scrub.workers`
                of them) and ends them.
            on_progress: Called with the number of texts done so far.
            report: Counts are added to it.

        Returns:
            The scrubbed texts in the order of `texts`, without those that were dropped or
            quarantined.

        Raises:
            DataError: If a file of the store is damaged.
            WorkerError: If workers cannot be started or kept alive.
        """
        if not self._config.enabled:
            return list(scrub(texts, self._scrubber, report))
        counts = report if report is not None else ScrubReport()
        outcomes = _Outcomes(self._key, self._segments())
        scrubbed: list[ScrubbedText] = []
        num_done = 0
        with contextlib.ExitStack() as stack:
            workers = pool or stack.enter_context(ScrubPool(self._config.workers))
            rows = iter(texts)
            while block := list(itertools.islice(rows, _BLOCK_TEXTS)):
                for num_new, is_reused in self._fill(outcomes, block, workers):
                    counts.reused += num_new if is_reused else 0
                    num_done += num_new
                    if on_progress is not None:
                        on_progress(num_done)
                scrubbed.extend(scrub(block, outcomes, counts))
        return scrubbed

    def _segments(self) -> Segments:
        is_sealed = self._config.encrypt and self._key is not None
        seal_key = derived_key(self._key, "store") if is_sealed and self._key else None
        return Segments(self._folder, self.fingerprint, seal_key)

    def _fill(
        self, outcomes: _Outcomes, block: Sequence[RawText], pool: ScrubPool
    ) -> Iterator[tuple[int, bool]]:
        """Find the outcomes that are missing; gives (number of texts done, were they there)."""
        keys = [outcomes.key_of(raw.text) for raw in block]
        missing = {
            key: raw.text for key, raw in zip(keys, block, strict=True) if not outcomes.has(key)
        }
        repeats = Counter(key for key in keys if key in missing)
        yield len(block) - repeats.total(), True
        chunks = list(_chunks_of(missing, pool.num_workers))
        try:
            found = pool.detect(self._config, ([missing[key] for key in c] for c in chunks))
            for chunk, answers in zip(chunks, found, strict=True):
                for key, spans in zip(chunk, answers, strict=True):
                    outcomes.add(key, self._scrubber.apply(missing[key], spans))
                yield sum(repeats[key] for key in chunk), False
        finally:
            # Also after Ctrl-C: what is done need not be done again.
            outcomes.flush()


def _chunks_of(missing: Mapping[bytes, str], num_workers: int) -> Iterator[list[bytes]]:
    """The keys of texts, few enough at a time that a worker answers soon."""
    fair_share = -(-len(missing) // num_workers)
    size = min(_CHUNK_TEXTS, max(_LEAST_CHUNK_TEXTS, fair_share))
    chunk: list[bytes] = []
    num_chars = 0
    for key, text in missing.items():
        chunk.append(key)
        num_chars += len(text)
        if len(chunk) == size or num_chars >= _CHUNK_CHARS:
            yield chunk
            chunk, num_chars = [], 0
    if chunk:
        yield chunk


class _Outcomes:
    """What became of texts, by key; an `OutcomeSource` for `scrub`."""

    is_enabled = True

    def __init__(self, key: bytes | None, segments: Segments) -> None:
        # Keyed, so that nobody who gets hold of the files can test whether a certain text is
        # in the corpus.
        self._salt = b"" if key is None else derived_key(key, "store keys")
        self._segments = segments
        self._known = segments.load()
        self._fresh: list[tuple[bytes, Outcome]] = []

    def key_of(self, text: str) -> bytes:
        """The key of a text: a keyed hash."""
        content = text.encode("utf-8", "surrogatepass")
        return hashlib.blake2b(content, key=self._salt, digest_size=KEY_BYTES).digest()

    def has(self, key: bytes) -> bool:
        """Whether the outcome is known."""
        return key in self._known

    def outcome(self, text: str) -> Outcome:
        """The outcome of a text that is known."""
        return self._known[self.key_of(text)]

    def add(self, key: bytes, outcome: Outcome) -> None:
        """Learn an outcome; written to disk with the next segment."""
        self._known[key] = outcome
        self._fresh.append((key, outcome))
        if len(self._fresh) >= _SEGMENT_TEXTS:
            self.flush()

    def flush(self) -> None:
        """Write what was learned since the last segment."""
        self._segments.write(self._fresh)
        self._fresh = []


def public_scrub_all(
    texts: Sequence[str],
    config: ScrubConfig,
    *,
    cache_dir: Path | None,
    pool: ScrubPool | None = None,
) -> list[str]:
    """`public_scrub` for many texts, in worker processes.

    Args:
        texts: Public texts, such as the server's test split.
        config: The policy; see `public_policy` for what differs.
        cache_dir: A folder for a store of them, so that the next run need not scrub them
            again; none keeps nothing.
        pool: Workers to share; none starts its own and ends them.

    Returns:
        One scrubbed text for each text, in order; empty where it could not be searched.
    """
    with contextlib.ExitStack() as stack:
        folder = cache_dir or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        store = ScrubbedStore(folder, public_policy(config), is_public=True)
        raw = [RawText(text, None, None, row) for row, text in enumerate(texts)]
        scrubbed = {text.row: text.text for text in store.scrub_all(raw, pool=pool)}
    return [scrubbed.get(row, "") for row in range(len(texts))]

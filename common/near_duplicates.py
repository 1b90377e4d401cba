"""Finds exact and near repeats of texts among those seen before.

Repeats multiply one person's influence: privacy of one example says little about a text
that stands in the data twenty times.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Final

import numpy as np
import numpy.typing as npt

SHINGLE_CHARS: Final = 4
"""Texts are compared as sets of runs of so many characters."""

MIN_CHARS: Final = 20
"""Shorter texts are compared as wholes: one letter can make all the difference."""

NUM_PERMUTATIONS: Final = 128
"""Standard error of an estimated similarity of 0.9 is 0.027."""

_BATCH_SHINGLES: Final = 4096
_MULTIPLIER: Final = np.uint64(0x9E3779B97F4A7C15)
_RECALL: Final = 0.97


def normal_form(text: str) -> str:
    """What two texts are compared by: no difference in case or white space."""
    return " ".join(text.casefold().split())


class ExactDuplicates:
    """The texts seen so far, as 16 bytes each (some 100 bytes of memory).

    What is left is the set of different pairs of text and label. One text more adds at most one
    pair, so the privacy of one text after this step is that of one before it. To compare
    more loosely would break that: a text could then take another one's place.
    """

    def __init__(self) -> None:
        self._seen: set[bytes] = set()

    def is_repeat(self, text: str, label: str | None) -> bool:
        """Whether the very text was seen before with the same label; remembers it."""
        # Lengths first, so that no text and label run into another pair's bytes.
        begin = "" if label is None else f"{len(label)}:{label}"
        digest = _digest(f"{begin}\n{text}")
        if digest in self._seen:
            return True
        self._seen.add(digest)
        return False


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


def text_digest(text: str) -> bytes:
    """16 bytes that two texts share only if they are equal but for case and white space."""
    return _digest(normal_form(text))


class NearDuplicates:
    """The texts seen so far, by MinHash signatures (some 6 kB of memory each).

    Args:
        threshold: Jaccard similarity from which two texts are near-duplicates, > 0 and <= 1.

    Source:
        A. Broder (1997), On the resemblance and containment of documents.
    """

    def __init__(self, threshold: float) -> None:
        # Takes more than half a second to load, with SciPy behind it.
        from datasketch import MinHash, MinHashLSH  # type: ignore[import-untyped]

        self._threshold = threshold
        self._same: set[bytes] = set()
        self._index = MinHashLSH(
            threshold=threshold, num_perm=NUM_PERMUTATIONS, params=_bands(threshold)
        )
        self._signatures: list[npt.NDArray[np.uint32]] = []
        self._empty = MinHash(num_perm=NUM_PERMUTATIONS, hashfunc=int)

    def is_repeat(self, text: str) -> bool:
        """Whether the text is much like one seen before; remembers it if it is not.

        Texts shorter than `MIN_CHARS` are like only those that differ in case and white
        space alone.
        """
        normal = normal_form(text)
        digest = _digest(normal)
        if digest in self._same:
            return True
        if len(normal) >= MIN_CHARS and self._is_like_another(normal):
            return True
        self._same.add(digest)
        return False

    def _is_like_another(self, normal: str) -> bool:
        signature = self._empty.copy()
        for batch in _shingle_batches(normal):
            signature.update_batch(batch)
        values = signature.hashvalues.astype(np.uint32)
        for key in self._index.query(signature):
            # The index proposes; the whole signature decides.
            if np.mean(values == self._signatures[key]) >= self._threshold:
                return True
        self._index.insert(len(self._signatures), signature)
        self._signatures.append(values)
        return False


def _bands(threshold: float) -> tuple[int, int]:
    """(bands, rows of each): the fewest bands that find a pair at the threshold nearly always.

    A pair of similarity s meets in a band of r rows with chance s^r, in one of b with
    1 - (1 - s^r)^b. Fewer bands propose fewer pairs and take less memory.
    """
    for rows in (32, 16, 8, 4, 2):
        bands = NUM_PERMUTATIONS // rows
        if 1 - (1 - threshold**rows) ** bands >= _RECALL:
            return bands, rows
    return NUM_PERMUTATIONS, 1


def _shingle_batches(text: str) -> Iterator[list[int]]:
    """32-bit hashes of the different shingles of a text, some thousand at a time."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    length = len(codes) - SHINGLE_CHARS + 1
    hashes = np.zeros(length, dtype=np.uint64)
    # Wraps around at 2^64, which is what a polynomial hash wants.
    for offset in range(SHINGLE_CHARS):
        hashes = (hashes + codes[offset : offset + length]) * _MULTIPLIER
        hashes ^= hashes >> np.uint64(29)
    different = np.unique(hashes >> np.uint64(32))
    for begin in range(0, len(different), _BATCH_SHINGLES):
        yield different[begin : begin + _BATCH_SHINGLES].tolist()

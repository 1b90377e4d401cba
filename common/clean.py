"""Cleans texts before they are scrubbed: mends each, leaves out boilerplate and repeats.

With the defaults one text more in the data is at most one text more after cleaning: a text is
mended by itself, and of equal texts with equal labels one stands. `boilerplate` and
`duplicates: near` do not keep that: one text more can then change or drop others, and the privacy
guarantee is about the data set after cleaning.
Source: Debenedetti et al. (2023), Privacy Side Channels in Machine Learning Systems,
https://arxiv.org/abs/2309.05610.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from typing import Final

from discreet.common.corpus import RawText
from discreet.common.mend import even_space, mend
from discreet.common.near_duplicates import ExactDuplicates, NearDuplicates, text_digest
from discreet.common.site import CleanConfig

BOILERPLATE_MIN_CHARS: Final = 20
"""Shorter lines ("Best regards,") are never boilerplate."""

BOILERPLATE_MIN_DOCUMENTS: Final = 10
"""A line in fewer documents is never boilerplate."""

BOILERPLATE_SHARE: Final = 0.05
"""Share of the documents from which a line is boilerplate."""

WINDOW_DOCUMENTS: Final = 10_000
"""Boilerplate is learned from so many documents at the start, which wait in memory meanwhile."""

WINDOW_CHARS: Final = 64 << 20
"""The documents that wait hold at most about so many characters."""


@dataclass(slots=True)
class CleanReport:
    """What cleaning did, counted while texts are taken.

    Attributes:
        num_in: Texts that came in.
        num_out: Texts given out.
        repaired: Texts whose Unicode was repaired.
        html: Texts taken out of HTML.
        boilerplate_lines: Lines left out of texts.
        exact_duplicates: Texts left out as repeats.
        near_duplicates: Texts left out as near-repeats.
        too_short: Texts left out as shorter than `min_chars`.
        cut: Texts cut to `max_chars`.
    """

    num_in: int = 0
    num_out: int = 0
    repaired: int = 0
    html: int = 0
    boilerplate_lines: int = 0
    exact_duplicates: int = 0
    near_duplicates: int = 0
    too_short: int = 0
    cut: int = 0


def clean_text(text: str, config: CleanConfig) -> str:
    """Mend one text by itself, as `clean` does; neither boilerplate nor repeats are looked for.

    Args:
        text: Any text.
        config: What to mend.

    Returns:
        The mended text, at most `config.max_chars` long, which can be empty.
    """
    return mend(text, config).text


def clean(
    texts: Iterable[RawText], config: CleanConfig, report: CleanReport | None = None
) -> Iterator[RawText]:
    """Clean a stream of texts; those left keep their order, labels and row numbers.

    Of repeats the first stands: of equal texts with equal labels under `duplicates: exact`, of
    like texts whatever their labels under `near`. Boilerplate is learned from the first
    `WINDOW_DOCUMENTS` texts. Memory beyond them: for each text kept, some 100 bytes with
    `duplicates: exact`, some 6 kB with `near`.

    Args:
        texts: The texts of one site.
        config: What to do.
        report: Is filled while texts are taken.

    Yields:
        The cleaned texts.
    """
    report = CleanReport() if report is None else report
    cleaned = _mended(texts, config, report)
    if config.boilerplate:
        cleaned = _without_boilerplate(cleaned, report)
    for text in _without_repeats(_long_enough(cleaned, config, report), config, report):
        report.num_out += 1
        yield text


def _mended(
    texts: Iterable[RawText], config: CleanConfig, report: CleanReport
) -> Iterator[RawText]:
    for text in texts:
        mended = mend(text.text, config)
        report.num_in += 1
        report.repaired += mended.is_repaired
        report.html += mended.was_html
        report.cut += mended.is_cut
        yield text if mended.text == text.text else replace(text, text=mended.text)


def _long_enough(
    texts: Iterable[RawText], config: CleanConfig, report: CleanReport
) -> Iterator[RawText]:
    for text in texts:
        if len(text.text) < config.min_chars:
            report.too_short += 1
        else:
            yield text


def _without_repeats(
    texts: Iterable[RawText], config: CleanConfig, report: CleanReport
) -> Iterator[RawText]:
    if config.duplicates == "none":
        yield from texts
        return
    exact = ExactDuplicates()
    near = NearDuplicates(config.near_threshold) if config.duplicates == "near" else None
    for text in texts:
        # An empty text repeats nobody: `min_chars: 0` asked for it.
        if text.text and exact.is_repeat(text.text, text.label):
            report.exact_duplicates += 1
        elif text.text and near is not None and near.is_repeat(text.text):
            report.near_duplicates += 1
        else:
            yield text


def _without_boilerplate(texts: Iterator[RawText], report: CleanReport) -> Iterator[RawText]:
    # Counting all texts would need all of them twice: a second reading, or memory
    # without bound. A line in a twentieth of all texts shows among the first ten thousand.
    window = _window(texts)
    boilerplate = _boilerplate_of(window)
    for text in chain(window, texts):
        if not boilerplate or "\n" not in text.text:
            yield text
            continue
        lines = text.text.split("\n")
        kept = [line for line in lines if line not in boilerplate]
        report.boilerplate_lines += len(lines) - len(kept)
        yield replace(text, text=even_space("\n".join(kept))) if len(kept) < len(lines) else text


def _window(texts: Iterator[RawText]) -> list[RawText]:
    window: list[RawText] = []
    num_chars = 0
    while len(window) < WINDOW_DOCUMENTS and num_chars < WINDOW_CHARS:
        text = next(texts, None)
        if text is None:
            break
        window.append(text)
        num_chars += len(text.text)
    return window


def _boilerplate_of(window: list[RawText]) -> frozenset[str]:
    """Lines that stand in very many different texts. A text of one line has no boilerplate."""
    # A text sent a hundred times is a repeat, and must not make its own lines boilerplate.
    different = {text_digest(text.text): text.text for text in window}
    counts: Counter[str] = Counter()
    for document in different.values():
        if "\n" in document:
            lines = set(document.split("\n"))
            counts.update(line for line in lines if len(line) >= BOILERPLATE_MIN_CHARS)
    least = max(BOILERPLATE_MIN_DOCUMENTS, math.ceil(BOILERPLATE_SHARE * len(different)))
    return frozenset(line for line, num in counts.items() if num >= least)

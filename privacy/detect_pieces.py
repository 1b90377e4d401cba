"""Cutting a long text into pieces without losing what stands at the cut.

Presidio's time grows faster than the text (a linear token search per hit), so a text is
searched in pieces. Each piece is looked at through a window that is wider on both sides:
an entity at a cut is whole in at least one window. What is longer than the window shows as
a span that touches its edge; it is stretched to the next white space, so that a too long
address is covered to its end rather than cut in two.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from discreet.privacy.detect import Span

PIECE_CHARS = 10_000
OVERLAP_CHARS = 500

_SPACE = re.compile(r"\s")


@dataclass(frozen=True, slots=True)
class Piece:
    """One part of a text and the wider window it is searched through.

    Attributes:
        start: First character of the piece; the pieces of a text meet without a gap.
        end: The character after its last one.
        left: First character of the window, at most `start`.
        right: The character after the window, at least `end`.
    """

    start: int
    end: int
    left: int
    right: int


def pieces_of(text: str) -> list[Piece]:
    """The pieces of a text, in order: one for a text of up to `PIECE_CHARS`."""
    cuts = [0]
    while len(text) - cuts[-1] > PIECE_CHARS:
        cuts.append(_next_cut(text, cuts[-1]))
    cuts.append(len(text))
    return [
        Piece(start, end, max(0, start - OVERLAP_CHARS), min(len(text), end + OVERLAP_CHARS))
        for start, end in itertools.pairwise(cuts)
    ]


def _next_cut(text: str, start: int) -> int:
    """After the last paragraph, line or word of the piece's second half, or at its limit."""
    end = start + PIECE_CHARS
    for mark in ("\n\n", "\n", " "):
        found = text.rfind(mark, start + PIECE_CHARS // 2, end)
        if found >= 0:
            return found + len(mark)
    return end


def from_window(text: str, piece: Piece, spans: Iterable[Span]) -> Iterator[Span]:
    """Spans of a window, moved to where they stand in the text.

    A span that touches an edge inside the text may be the cut half of something. At the
    left edge it is skipped: the piece before sees it from its beginning. At the right edge
    the piece in which it begins stretches it to the next white space.

    Args:
        text: The whole text.
        piece: The piece whose window was searched.
        spans: What was found, counted from the window's first character.
    """
    for span in spans:
        start, end = span.start + piece.left, span.end + piece.left
        if start == piece.left > 0:
            continue
        if end == piece.right < len(text):
            if start >= piece.end:
                continue
            space = _SPACE.search(text, end)
            end = space.start() if space else len(text)
        yield Span(start, end, span.entity, span.score)

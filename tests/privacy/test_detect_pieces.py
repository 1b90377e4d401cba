"""Long texts in pieces: nothing is lost at a cut."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from discreet.privacy.detect import Span
from discreet.privacy.detect_pieces import (
    OVERLAP_CHARS,
    PIECE_CHARS,
    Piece,
    from_window,
    pieces_of,
)

NUMBER = re.compile(r"(?<!\d)\d{16}(?!\d)")


def search_in_pieces(text: str, pattern: re.Pattern[str]) -> set[tuple[int, int]]:
    found = set()
    for piece in pieces_of(text):
        window = text[piece.left : piece.right]
        spans = [Span(m.start(), m.end(), "X", 1.0) for m in pattern.finditer(window)]
        found |= {(span.start, span.end) for span in from_window(text, piece, spans)}
    return found


@pytest.mark.parametrize("length", [0, 1, PIECE_CHARS])
def test_short_text_is_one_piece(length: int) -> None:
    assert pieces_of("x" * length) == [Piece(0, length, 0, length)]


@given(
    words=st.lists(st.sampled_from(["a", "bb\n", "c\n\n", "d" * 700, "。中文"]), max_size=60),
    repeats=st.integers(1, 200),
)
@settings(max_examples=40)
def test_pieces_meet_without_gap_and_are_bounded(words: list[str], repeats: int) -> None:
    text = " ".join(words * repeats)

    pieces = pieces_of(text)

    assert pieces[0].start == 0
    assert pieces[-1].end == len(text)
    assert all(before.end == after.start for before, after in pairwise(pieces))
    assert all(piece.end - piece.start <= PIECE_CHARS for piece in pieces)
    assert all(piece.end - piece.start >= PIECE_CHARS // 2 for piece in pieces[:-1])
    assert all(piece.left <= piece.start and piece.right >= piece.end for piece in pieces)


@pytest.mark.parametrize("mark", ["\n\n", "\n", " "])
def test_a_piece_ends_after_a_paragraph_a_line_or_a_word(mark: str) -> None:
    text = "x" * 8_000 + mark + "x" * 8_000

    assert pieces_of(text)[0].end == 8_000 + len(mark)


def test_a_paragraph_is_a_better_border_than_a_later_word() -> None:
    text = "x" * 6_000 + "\n\n" + "x" * 3_000 + " " + "x" * 3_000

    assert pieces_of(text)[0].end == 6_002


@given(
    positions=st.lists(st.integers(0, 45_000), min_size=1, max_size=20),
    filler=st.sampled_from(["x", "x ", "word and ", "中"]),
)
@settings(max_examples=60)
def test_pieces_find_what_the_whole_text_holds(positions: list[int], filler: str) -> None:
    text = (filler * 50_000)[:45_000]
    for position in sorted(positions, reverse=True):
        text = text[:position] + "4111111111111111" + text[position:]

    whole = {match.span() for match in NUMBER.finditer(text)}

    assert search_in_pieces(text, NUMBER) == whole


@pytest.mark.parametrize("tail", ["", " the end"])
def test_what_is_longer_than_a_window_is_covered_to_the_next_white_space(tail: str) -> None:
    address = "https://example.org/" + "a" * (3 * PIECE_CHARS)
    text = "x " * 100 + address + tail

    found = search_in_pieces(text, re.compile(r"https://\S+"))

    assert (200, 200 + len(address)) in found


def test_half_of_an_entity_at_a_left_edge_is_left_to_the_piece_before() -> None:
    text = "1" * 3 * PIECE_CHARS
    second = pieces_of(text)[1]

    assert second.left == PIECE_CHARS - OVERLAP_CHARS
    assert list(from_window(text, second, [Span(0, 16, "X", 1.0)])) == []


def test_half_of_an_entity_at_a_right_edge_is_left_to_the_piece_after() -> None:
    text = "1" * 3 * PIECE_CHARS
    first = pieces_of(text)[0]
    edge = first.right - first.left

    assert list(from_window(text, first, [Span(edge - 16, edge, "X", 1.0)])) == []

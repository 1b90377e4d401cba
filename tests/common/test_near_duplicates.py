"""Near-duplicates are found by the similarity of their 4-grams."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from discreet.common.near_duplicates import ExactDuplicates, NearDuplicates


def _jaccard(one: str, other: str) -> float:
    """By its definition, on sets of strings."""
    first, second = ({t[i : i + 4] for i in range(len(t) - 3)} for t in (one, other))
    return len(first & second) / len(first | second)


def _changed(text: str, num_changes: int, draw: random.Random) -> str:
    letters = list(text)
    for place in draw.sample(range(len(letters)), num_changes):
        letters[place] = draw.choice("0123456789")
    return "".join(letters)


@pytest.mark.parametrize("threshold", [0.5, 0.7, 0.9])
def test_pairs_far_from_the_threshold_fall_on_the_right_side(threshold: float) -> None:
    draw = random.Random(7)
    wrong = num_pairs = 0
    for _ in range(200):
        text = "".join(draw.choice("abcdefghijklmnopqrstuvwxyz ") for _ in range(300))
        other = _changed(text, draw.choice([1, 3, 8, 20, 40, 100]), draw)
        similarity = _jaccard(text.strip(), other.strip())
        # Four standard errors of 128 permutations: sqrt(s (1 - s) / 128) each.
        if abs(similarity - threshold) < 4 * (threshold * (1 - threshold) / 128) ** 0.5:
            continue
        near = NearDuplicates(threshold)
        near.is_repeat(text)
        wrong += near.is_repeat(other) != (similarity >= threshold)
        num_pairs += 1

    assert num_pairs > 90
    assert wrong <= 1


@settings(max_examples=50, deadline=None)
@given(text=st.text(min_size=30, max_size=200).filter(lambda t: len(" ".join(t.split())) >= 40))
@pytest.mark.parametrize("threshold", [0.01, 0.5, 0.9, 1.0])
def test_the_same_text_is_always_a_repeat(threshold: float, text: str) -> None:
    near = NearDuplicates(threshold)

    assert not near.is_repeat(text)
    assert near.is_repeat(text)


def test_a_text_of_many_shingles_is_compared_whole() -> None:
    draw = random.Random(1)
    text = "".join(draw.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(50_000))
    near = NearDuplicates(0.9)

    assert not near.is_repeat(text)
    assert near.is_repeat(text + " and an end")
    assert not near.is_repeat(text[:10_000])


@pytest.mark.parametrize("text", ["", "abc", "short text", "\ud800" * 30])
def test_texts_too_short_to_compare_and_lone_surrogates_do_no_harm(text: str) -> None:
    assert not NearDuplicates(0.9).is_repeat(text)
    assert not ExactDuplicates().is_repeat(text, None)


def test_exact_repeats_are_pairs_of_text_and_label() -> None:
    seen = ExactDuplicates()

    repeats = [
        seen.is_repeat(text, label)
        for text, label in [
            ("a", "x"),
            ("a", "y"),
            ("a", None),
            ("a", "x"),
            ("x\na", ""),
            ("a", ""),
        ]
    ]

    assert repeats == [False, False, False, True, False, False]

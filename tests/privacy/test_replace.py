"""Replacing: every policy, and no character of a find left behind."""

from __future__ import annotations

import hashlib
import hmac
import math
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from discreet.common.site import Action, ScrubConfig
from discreet.privacy.detect import DetectionError, Span
from discreet.privacy.replace import MASK, join_overlaps, pseudonym, replace

KEY = bytes(range(32))
KINDS = ("PHONE_NUMBER", "URL", "EMAIL_ADDRESS")

spans_in_20_chars = st.lists(
    st.builds(
        lambda start, length, kind, score: Span(start, min(20, start + length), kind, score),
        st.integers(0, 19),
        st.integers(1, 20),
        st.sampled_from(KINDS),
        st.floats(0, 1),
    ),
    max_size=8,
)
actions = st.sampled_from(["placeholder", "mask", "pseudonym", "keep"])


def test_placeholder_names_the_kind() -> None:
    new = replace("call 555 now", [Span(5, 8, "PHONE_NUMBER", 1.0)], config=ScrubConfig(), key=None)

    assert new.text == "call <PHONE_NUMBER> now"
    assert new.entities == Counter(PHONE_NUMBER=1)
    assert new.masked_chars == 3


@pytest.mark.parametrize("length", [1, 4, 300])
def test_a_mask_does_not_tell_the_length(length: int) -> None:
    text = f"[{'7' * length}]"
    config = ScrubConfig(default="mask")

    new = replace(text, [Span(1, 1 + length, "URL", 1.0)], config=config, key=KEY)

    assert new.text == f"[{MASK}]" == "[****]"


def test_keep_leaves_the_text_and_counts_nothing() -> None:
    config = ScrubConfig(entities={"URL": "keep"})

    new = replace("see x.org", [Span(4, 9, "URL", 1.0)], config=config, key=KEY)

    assert new.text == "see x.org"
    assert new.entities == Counter()
    assert new.masked_chars == 0


def test_drop_drops_the_record_and_counts_why() -> None:
    config = ScrubConfig(entities={"US_SSN": "drop"})
    spans = [Span(0, 3, "US_SSN", 0.8), Span(8, 11, "US_SSN", 0.8), Span(4, 7, "URL", 0.9)]

    new = replace("123 abc 456", spans, config=config, key=KEY)

    assert new.text is None
    assert new.entities == Counter(US_SSN=2)


def test_a_longer_find_does_not_save_a_record_that_must_go() -> None:
    config = ScrubConfig(entities={"US_SSN": "drop"})
    spans = [Span(0, 20, "URL", 1.0), Span(5, 9, "US_SSN", 0.4)]

    assert replace("x" * 20, spans, config=config, key=KEY).text is None


def test_a_kept_find_does_not_save_what_overlaps_it() -> None:
    config = ScrubConfig(entities={"URL": "keep"})
    spans = [Span(0, 20, "URL", 1.0), Span(15, 18, "EMAIL_ADDRESS", 0.4)]

    new = replace("x" * 15 + "SEC" + "xx", spans, config=config, key=KEY)

    assert new.text == "x" * 15 + "<EMAIL_ADDRESS>" + "xx"


@pytest.mark.parametrize(
    ("spans", "winner"),
    [
        ([Span(0, 5, "URL", 0.9), Span(2, 9, "EMAIL_ADDRESS", 0.1)], "EMAIL_ADDRESS"),
        ([Span(0, 5, "URL", 0.9), Span(0, 5, "EMAIL_ADDRESS", 0.8)], "URL"),
        ([Span(0, 5, "URL", 0.9), Span(0, 5, "EMAIL_ADDRESS", 0.9)], "EMAIL_ADDRESS"),
    ],
    ids=["longest", "best score", "first name"],
)
def test_the_longest_then_the_surest_then_the_first_name_wins(
    spans: list[Span], winner: str
) -> None:
    (found,) = join_overlaps(spans)

    assert found.winner.entity == winner
    assert (found.start, found.end) == (0, max(span.end for span in spans))


def test_finds_side_by_side_stay_two() -> None:
    assert len(join_overlaps([Span(0, 3, "URL", 1.0), Span(3, 6, "URL", 1.0)])) == 2


@given(spans=spans_in_20_chars, chosen=st.tuples(actions, actions, actions))
def test_no_character_of_a_find_is_left(spans: list[Span], chosen: tuple[Action, ...]) -> None:
    text = "abcdefghijklmnopqrst"
    entities = dict(zip(KINDS, chosen, strict=True))
    config = ScrubConfig(entities=entities)
    covered = {
        place
        for span in spans
        if entities[span.entity] != "keep"
        for place in range(span.start, span.end)
    }

    new = replace(text, spans, config=config, key=None)

    assert new.text is not None
    # Without a key all stand-ins are upper case or stars, so the rest is what was left.
    left = [character for character in new.text if character.islower()]
    assert left == [text[place] for place in range(20) if place not in covered]
    assert new.masked_chars == len(covered)


@given(spans=spans_in_20_chars, seed=st.randoms(use_true_random=False))
def test_the_order_of_finds_does_not_matter(spans: list[Span], seed: object) -> None:
    shuffled = list(spans)
    seed.shuffle(shuffled)  # type: ignore[attr-defined]
    config = ScrubConfig(default="pseudonym")

    assert replace("x" * 20, spans, config=config, key=KEY) == replace(
        "x" * 20, shuffled, config=config, key=KEY
    )


@given(spans=spans_in_20_chars)
def test_joined_finds_are_in_order_and_do_not_overlap(spans: list[Span]) -> None:
    joined = join_overlaps(spans)

    assert all(before.end <= after.start for before, after in pairwise(joined))


@pytest.mark.parametrize(
    "span",
    [
        Span(-1, 3, "URL", 1.0),
        Span(3, 3, "URL", 1.0),
        Span(4, 3, "URL", 1.0),
        Span(3, 11, "URL", 1.0),
        Span(0, 3, "URL", math.nan),
    ],
    ids=["before", "empty", "backwards", "after", "nan"],
)
def test_a_find_outside_the_text_is_refused(span: Span) -> None:
    with pytest.raises(DetectionError, match="does not lie within"):
        replace("ten chars!", [span], config=ScrubConfig(), key=None)


def test_what_looks_like_a_placeholder_already_is_text_like_any_other() -> None:
    text = "<PHONE_NUMBER> or 555"

    new = replace(text, [Span(18, 21, "PHONE_NUMBER", 1.0)], config=ScrubConfig(), key=None)

    assert new.text == "<PHONE_NUMBER> or <PHONE_NUMBER>"


def test_a_pseudonym_is_the_hmac_sha256_of_kind_and_value() -> None:
    # RFC 2104 by Python's own hmac: HMAC-SHA256(key, kind NUL value), first six digits.
    expected = hmac.new(KEY, b"URL\0x.org", hashlib.sha256).hexdigest()[:6]

    assert pseudonym("x.org", "URL", key=KEY) == f"<URL_{expected}>"


@pytest.mark.parametrize(
    ("one", "other", "entity"),
    [
        ("Bob@Example.org", "bob@example.ORG", "EMAIL_ADDRESS"),
        ("+1 (984) 182-0190", "+1-984-182-0190", "PHONE_NUMBER"),
        ("４１１１ 1111 1111 1111", "4111-1111-1111-1111", "CREDIT_CARD"),
        (" x.org", "x.org", "URL"),
    ],
)
def test_the_same_value_written_otherwise_has_the_same_pseudonym(
    one: str, other: str, entity: str
) -> None:
    assert pseudonym(one, entity, key=KEY) == pseudonym(other, entity, key=KEY)


def test_dots_in_an_address_are_not_a_matter_of_taste() -> None:
    one, other = (pseudonym(v, "EMAIL_ADDRESS", key=KEY) for v in ("a.b@x.org", "ab@x.org"))

    assert one != other


def test_another_key_or_kind_gives_another_pseudonym() -> None:
    names = {
        pseudonym("5551234", "PHONE_NUMBER", key=KEY),
        pseudonym("5551234", "PHONE_NUMBER", key=bytes(32)),
        pseudonym("5551234", "US_BANK_NUMBER", key=KEY)[-8:],
    }

    assert len(names) == 3


def test_pseudonym_without_a_key_is_a_placeholder() -> None:
    config = ScrubConfig(default="pseudonym")
    spans = [Span(0, 5, "URL", 1.0)]

    assert replace("x.org", spans, config=config, key=None).text == "<URL>"
    assert replace("x.org", spans, config=config, key=KEY).text == pseudonym(
        "x.org", "URL", key=KEY
    )

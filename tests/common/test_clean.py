"""What cleaning leaves out of a corpus, and what it counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from discreet.common import clean as clean_module
from discreet.common.clean import CleanReport, clean
from discreet.common.corpus import RawText, read_corpus
from discreet.common.site import CleanConfig, CorpusConfig

FOOTER = "This message is confidential and meant for its receiver."
LONG = "The committee met on Tuesday to talk about the new library and its opening hours in spring"


def _raw(*texts: str) -> list[RawText]:
    return [RawText(text, f"label{i}", None, i) for i, text in enumerate(texts)]


def _clean(texts: list[RawText], **config: object) -> tuple[list[RawText], CleanReport]:
    report = CleanReport()
    settings_ = {"boilerplate": True, "duplicates": "near"} | config
    cleaned = list(clean(texts, CleanConfig.model_validate(settings_), report))
    return cleaned, report


def test_labels_owners_and_row_numbers_stay_with_their_texts() -> None:
    texts = [RawText("  one ", "a", "x", 3), RawText("two", None, None, 7)]

    cleaned, _ = _clean(texts)

    assert cleaned == [RawText("one", "a", "x", 3), RawText("two", None, None, 7)]


def test_equal_texts_with_equal_labels_go_and_the_first_stands() -> None:
    texts = [
        RawText("Hello  you", "a", None, 0),
        RawText("Hello you ", "a", None, 1),
        RawText("Hello you", "b", None, 2),
        RawText("hello you", "a", None, 3),
        RawText("Hello you", None, None, 4),
    ]

    cleaned, report = _clean(texts, duplicates="exact")

    assert [t.row for t in cleaned] == [0, 2, 3, 4]
    assert (report.num_in, report.num_out, report.exact_duplicates) == (5, 4, 1)


def test_under_near_case_and_label_make_no_difference_even_in_short_texts() -> None:
    cleaned, report = _clean(_raw("Hello  you", "hello you", "other", "HELLO\nYOU"))

    assert [(t.text, t.label) for t in cleaned] == [("Hello you", "label0"), ("other", "label2")]
    assert (report.near_duplicates, report.exact_duplicates) == (2, 0)


@settings(max_examples=200, deadline=None)
@given(
    pairs=st.lists(
        st.tuples(st.sampled_from(["a", "A", " a", "a b", "<p>a</p>", ""]), st.sampled_from("xy")),
        min_size=1,
        max_size=12,
    ),
    place=st.integers(0, 11),
)
def test_with_the_defaults_one_text_more_is_at_most_one_text_more_after_cleaning(
    pairs: list[tuple[str, str]], place: int
) -> None:
    texts = [RawText(text, label, None, row) for row, (text, label) in enumerate(pairs)]
    fewer = [text for text in texts if text.row != place % len(texts)]

    after, before = (
        Counter((t.text, t.label) for t in clean(some, CleanConfig())) for some in (texts, fewer)
    )

    assert before - after == Counter()
    assert (after - before).total() <= 1


def test_near_repeats_go_and_different_texts_stay() -> None:
    texts = _raw(LONG, LONG + "!", LONG.replace("Tuesday", "Friday at the old school"), "short")

    cleaned, report = _clean(texts)

    assert [t.row for t in cleaned] == [0, 2, 3]
    assert (report.near_duplicates, report.exact_duplicates) == (1, 0)


def test_exact_only_keeps_near_repeats_and_none_keeps_all() -> None:
    texts = [RawText(t, "a", None, i) for i, t in enumerate([LONG, LONG + "!", LONG])]

    assert [t.row for t in _clean(texts, duplicates="exact")[0]] == [0, 1]
    assert [t.row for t in _clean(texts, duplicates="none")[0]] == [0, 1, 2]


def test_short_texts_are_near_repeats_of_nothing() -> None:
    texts = _raw("call me at 5pm", "call me at 6pm")

    assert len(_clean(texts)[0]) == 2


def test_too_short_texts_go_and_long_ones_are_cut() -> None:
    cleaned, report = _clean(_raw("ab", "abc", "abcdefgh", " "), min_chars=3, max_chars=5)

    assert [t.text for t in cleaned] == ["abc", "abcde"]
    assert (report.too_short, report.cut) == (2, 1)


def test_empty_texts_stay_where_asked_for() -> None:
    cleaned, report = _clean(_raw("", " "), min_chars=0)

    assert [t.text for t in cleaned] == ["", ""]
    assert report.exact_duplicates == 0


def test_repairs_and_html_are_counted_by_text() -> None:
    cleaned, report = _clean(_raw("schÃ¶n", "<p>Hi <b>you</b></p>", "good"))

    assert [t.text for t in cleaned] == ["schön", "Hi you", "good"]
    assert (report.repaired, report.html) == (1, 1)


def test_a_line_in_very_many_documents_is_left_out_of_all() -> None:
    texts = _raw(*(f"Letter number {i * i} about things\n{FOOTER}" for i in range(10)))

    cleaned, report = _clean(texts, duplicates="exact")

    assert [t.text for t in cleaned] == [f"Letter number {i * i} about things" for i in range(10)]
    assert report.boilerplate_lines == 10


@pytest.mark.parametrize(
    ("num_with", "num_without", "line"),
    [
        (9, 0, FOOTER),  # in fewer than ten documents
        (10, 191, FOOTER),  # in less than a twentieth of them
        (20, 0, "Best regards, Ann"),  # shorter than twenty characters
    ],
)
def test_a_line_that_is_rarer_or_shorter_stays(num_with: int, num_without: int, line: str) -> None:
    texts = _raw(
        *(f"Letter {i}\n{line}" for i in range(num_with)),
        *(f"Note {i}" for i in range(num_without)),
    )

    cleaned, report = _clean(texts, duplicates="none")

    assert report.boilerplate_lines == 0
    assert cleaned == texts


def test_a_message_of_one_line_sent_often_is_a_repeat_and_no_boilerplate() -> None:
    texts = _raw(*[FOOTER] * 50)

    cleaned, report = _clean(texts)

    assert [t.text for t in cleaned] == [FOOTER]
    assert (report.boilerplate_lines, report.near_duplicates) == (0, 49)


def test_repeats_of_a_letter_do_not_make_its_lines_boilerplate() -> None:
    texts = _raw(*[f"Dear all, this is the letter\n{FOOTER}"] * 50)

    cleaned, report = _clean(texts)

    assert [t.text for t in cleaned] == [texts[0].text]
    assert report.boilerplate_lines == 0


def test_texts_that_differ_in_boilerplate_alone_are_repeats_after_it() -> None:
    other = "Sent from my telephone, excuse the brevity"
    letters = [f"Letter number {i * i} about things\n{FOOTER}\n{other}" for i in range(10)]
    texts = _raw(*letters, "Same words in both\n" + FOOTER, "Same words in both\n" + other)
    texts[-1] = replace(texts[-1], label=texts[-2].label)

    cleaned, report = _clean(texts, duplicates="exact")

    assert [t.text for t in cleaned][10:] == ["Same words in both"]
    assert report.exact_duplicates == 1


def test_boilerplate_can_be_left_in() -> None:
    texts = _raw(*(f"Letter {i}\n{FOOTER}" for i in range(20)))

    assert _clean(texts, boilerplate=False, duplicates="none")[0] == texts


def test_boilerplate_learned_from_the_window_goes_from_later_texts_too(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(clean_module, "WINDOW_DOCUMENTS", 20)
    texts = _raw(*(f"Letter number {i * i}\n{FOOTER}" for i in range(30)))

    cleaned, report = _clean(texts, duplicates="none")

    assert report.boilerplate_lines == 30
    assert cleaned[-1].text == "Letter number 841"


def test_no_more_than_the_window_is_taken_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clean_module, "WINDOW_DOCUMENTS", 5)
    taken: list[int] = []

    def source() -> Iterator[RawText]:
        for text in _raw(*(f"text {i}" for i in range(100))):
            taken.append(text.row)
            yield text

    next(clean(source(), CleanConfig(boilerplate=True)))

    assert len(taken) == 5


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(st.text(max_size=30), max_size=20),
    duplicates=st.sampled_from(["none", "exact", "near"]),
    boilerplate=st.booleans(),
    min_chars=st.integers(0, 5),
)
def test_order_is_kept_and_every_text_is_accounted_for(
    texts: list[str], duplicates: str, boilerplate: bool, min_chars: int
) -> None:
    cleaned, report = _clean(
        _raw(*texts), duplicates=duplicates, boilerplate=boilerplate, min_chars=min_chars
    )

    rows = [text.row for text in cleaned]
    assert rows == sorted(set(rows))
    left_out = report.exact_duplicates + report.near_duplicates + report.too_short
    assert report.num_out + left_out == report.num_in == len(texts)
    assert all(len(text.text) >= min_chars for text in cleaned)


def test_five_thousand_messages_lose_their_repeats() -> None:
    texts = list(read_corpus(CorpusConfig(path="embedded:sms_spam")))

    _, report = _clean(texts)

    assert report.num_in == 5574
    assert 5000 < report.num_out < 5200  # SOURCES.md: 403 exact repeats

"""The one door from raw to scrubbed text."""

from __future__ import annotations

import copy
import dataclasses
import pickle
import re
from collections import Counter
from pathlib import Path

import pytest

from discreet.common.corpus import RawText
from discreet.common.errors import ConfigError
from discreet.common.site import ScrubConfig
from discreet.privacy import scrub as scrub_module
from discreet.privacy.detect import DetectionError, Failure, Span
from discreet.privacy.scrub import (
    Outcome,
    ScrubbedText,
    Scrubber,
    ScrubReport,
    public_policy,
    public_scrub,
    scrub,
)

KEY = bytes(range(32))
ROOMS = ("client", "common", "deploy", "privacy", "server", "tests")


class DigitDetector:
    """Finds runs of digits; fails at some words."""

    version = "digits 1"
    entities = ("DIGITS",)

    def detect(self, text: str) -> list[Span]:
        if "boom" in text:
            raise RuntimeError(f"cannot search {text}")
        if "giveup" in text:
            raise DetectionError(Failure.RECOGNIZER)
        if "liar" in text:
            return [Span(0, len(text) + 1, "DIGITS", 1.0)]
        return [Span(m.start(), m.end(), "DIGITS", 1.0) for m in re.finditer(r"\d+", text)]


def raw(*texts: str) -> list[RawText]:
    return [RawText(text, f"label{row}", f"owner{row}", row) for row, text in enumerate(texts)]


def digits(config: ScrubConfig | None = None, key: bytes | None = None) -> Scrubber:
    return Scrubber(config or ScrubConfig(), key, DigitDetector())


def test_scrub_replaces_and_keeps_everything_else_in_order() -> None:
    out = list(scrub(raw("call 555", "no digits", "1 and 22"), digits()))

    assert [text.text for text in out] == ["call <DIGITS>", "no digits", "<DIGITS> and <DIGITS>"]
    assert [(t.label, t.owner, t.row) for t in out] == [
        ("label0", "owner0", 0),
        ("label1", "owner1", 1),
        ("label2", "owner2", 2),
    ]


def test_scrub_streams() -> None:
    def endless() -> object:
        row = 0
        while True:
            yield RawText(f"text {row}", None, None, row)
            row += 1

    out = scrub(endless(), digits())  # type: ignore[arg-type]

    assert [next(out).row for _ in range(3)] == [0, 1, 2]


@pytest.mark.parametrize("bad", ["boom 123", "giveup 123", "liar 123", "half \ud83d 123"])
def test_a_text_that_cannot_be_searched_is_quarantined_never_passed_on(bad: str) -> None:
    report = ScrubReport()

    out = list(scrub(raw("fine", bad, "fine too"), digits(), report))

    assert [text.row for text in out] == [0, 2]
    assert (report.num_in, report.num_out, report.quarantined, report.dropped) == (3, 2, 1, 0)
    assert sum(report.failures.values()) == 1


def test_a_text_of_10_mb_is_quarantined_and_counted() -> None:
    report = ScrubReport()

    out = list(scrub(raw("x" * 10_000_000), digits(), report))

    assert out == []
    assert report.failures == Counter({"too long": 1})


def test_a_dropped_record_is_counted_apart_from_a_quarantined_one() -> None:
    report = ScrubReport()
    config = ScrubConfig(entities={"DIGITS": "drop"})

    out = list(scrub(raw("a 1", "b"), digits(config), report))

    assert [text.text for text in out] == ["b"]
    assert (report.dropped, report.quarantined) == (1, 0)
    assert report.entities == Counter(DIGITS=1)


def test_the_report_counts_kinds_and_characters_and_holds_no_value() -> None:
    report = ScrubReport()

    list(scrub(raw("call 5551234 or 12", "x"), digits(), report))

    assert report.entities == Counter(DIGITS=2)
    assert (report.masked_chars, report.total_chars) == (9, 19)
    assert "555" not in repr(report)


def test_reports_add_up() -> None:
    one, other, both = ScrubReport(reused=1), ScrubReport(), ScrubReport(reused=1)
    config = ScrubConfig(default="drop")
    list(scrub(raw("a 1", "boom"), digits(), one))
    list(scrub(raw("b 22", "c"), digits(config), other))
    list(scrub(raw("a 1", "boom"), digits(), both))
    list(scrub(raw("b 22", "c"), digits(config), both))

    one.add(other)

    assert one == both


def test_adding_a_report_of_unsearched_texts_says_so() -> None:
    total = ScrubReport()

    total.add(ScrubReport(is_enabled=False))
    total.add(ScrubReport())

    assert not total.is_enabled


def test_switched_off_passes_texts_on_and_the_report_says_so() -> None:
    report = ScrubReport()

    out = list(scrub(raw("call 555"), digits(ScrubConfig(enabled=False)), report))

    assert out[0].text == "call 555"
    assert report.is_enabled is False


def test_scrub_text_gives_none_for_what_must_not_be_used() -> None:
    assert digits().scrub_text("call 555") == "call <DIGITS>"
    assert digits().scrub_text("boom") is None
    assert digits(ScrubConfig(default="drop")).scrub_text("555") is None


def test_pseudonyms_are_consistent_inside_a_site_and_differ_between_sites() -> None:
    config = ScrubConfig(default="pseudonym")
    here, there = digits(config, KEY), digits(config, bytes(32))

    assert here.scrub_text("555 is 555") == " is ".join([str(here.scrub_text("555"))] * 2)
    assert here.scrub_text("555") != there.scrub_text("555")
    assert re.fullmatch(r"<DIGITS_[0-9a-f]{6}>", str(here.scrub_text("555")))


def test_a_key_of_the_wrong_length_is_refused_and_not_shown() -> None:
    with pytest.raises(ValueError, match="key must hold 32 bytes, got 5") as caught:
        Scrubber(ScrubConfig(), b"short")

    assert "short" not in str(caught.value)


def test_no_repr_shows_key_or_text() -> None:
    scrubber = digits(key=b"k" * 32)
    (text,) = scrub(raw("my text"), scrubber)

    assert "kkk" not in repr(scrubber)
    assert "my text" not in repr(text)
    assert "my text" not in repr(scrubber.outcome("my text"))


def test_unknown_entity_is_refused_before_any_text() -> None:
    with pytest.raises(ConfigError, match="PHONE_NUMBER"):
        Scrubber(ScrubConfig(entities={"PHONE_NUMBR": "mask"}), None)
    with pytest.raises(ConfigError, match="DIGITS"):
        Scrubber(ScrubConfig(entities={"DIGIT": "mask"}), None, DigitDetector())


@pytest.mark.parametrize(
    "change",
    [
        {"threshold": 0.5},
        {"languages": ("zh",)},
        {"default": "mask"},
        {"entities": {"URL": "keep"}},
        {"enabled": False},
    ],
)
def test_fingerprint_changes_with_every_setting_that_changes_texts(
    change: dict[str, object],
) -> None:
    base = Scrubber(ScrubConfig(), KEY).fingerprint

    assert Scrubber(ScrubConfig().model_copy(update=change), KEY).fingerprint != base


def test_fingerprint_changes_with_the_key_and_the_detector_and_with_nothing_else() -> None:
    base = Scrubber(ScrubConfig(), KEY).fingerprint

    assert Scrubber(ScrubConfig(), bytes(32)).fingerprint != base
    assert Scrubber(ScrubConfig(), None).fingerprint != base
    assert digits(key=KEY).fingerprint != base
    assert Scrubber(ScrubConfig(workers=3, encrypt=True), KEY).fingerprint == base


def test_fingerprint_does_not_depend_on_the_order_of_the_policy() -> None:
    one = ScrubConfig(entities={"URL": "keep", "UUID": "drop"})
    other = ScrubConfig(entities={"UUID": "drop", "URL": "keep"})

    assert Scrubber(one, KEY).fingerprint == Scrubber(other, KEY).fingerprint


@pytest.mark.parametrize("token", [None, object(), "token"])
def test_a_scrubbed_text_cannot_be_built_by_hand(token: object) -> None:
    with pytest.raises(TypeError, match=r"made by discreet\.privacy\.scrub\.scrub only"):
        ScrubbedText("raw", None, None, 0, token)


def test_a_scrubbed_text_cannot_be_given_another_text() -> None:
    (text,) = scrub(raw("fine"), digits())

    with pytest.raises((TypeError, ValueError)):
        dataclasses.replace(text, text="raw 555")
    with pytest.raises(dataclasses.FrozenInstanceError):
        text.text = "raw 555"  # type: ignore[misc]


def test_a_scrubbed_text_survives_a_trip_between_processes() -> None:
    (text,) = scrub(raw("call 555"), digits())

    assert pickle.loads(pickle.dumps(text)) == text == copy.copy(text)  # noqa: S301


def test_nothing_in_the_house_makes_a_scrubbed_text_but_scrub() -> None:
    root = Path(scrub_module.__file__).parents[1]
    files = [path for room in ROOMS for path in sorted((root / room).rglob("*.py"))]
    maker = re.compile(r"\bScrubbedText\(|_MADE_BY_SCRUB|ScrubbedText\.__new__")

    makers = {path.name for path in files if maker.search(path.read_text(encoding="utf-8"))}

    assert files
    assert makers - {Path(__file__).name} == {"scrub.py"}


def test_public_text_keeps_its_place_where_a_record_would_drop() -> None:
    config = ScrubConfig(default="drop", entities={"URL": "drop", "UUID": "mask"})

    policy = public_policy(config)

    assert policy.default == "placeholder"
    assert policy.entities == {"URL": "placeholder", "UUID": "mask"}


@pytest.mark.parametrize("default", ["placeholder", "pseudonym", "drop"])
def test_public_scrub_gives_placeholders_because_it_has_no_key(default: str) -> None:
    config = ScrubConfig.model_validate({"default": default})

    assert public_scrub("write to anna@example.org", config) == "write to <EMAIL_ADDRESS>"


def test_public_scrub_passes_nothing_on_that_it_could_not_search() -> None:
    assert public_scrub("half a character \ud83d", ScrubConfig()) == ""


def test_an_outcome_without_text_and_failure_is_a_drop() -> None:
    report = ScrubReport()

    report.count("abc", Outcome(None))

    assert (report.num_in, report.dropped) == (1, 1)

"""The door of detection: policies, refusals and versions, without loading Presidio."""

from __future__ import annotations

import re

import pytest

from discreet.common.errors import ConfigError, InputError
from discreet.common.site import ScrubConfig
from discreet.privacy.detect import (
    MAX_TEXT_CHARS,
    DetectionError,
    Failure,
    Span,
    check_entities,
    engine_version,
    known_entities,
    presidio_detector,
    refusal_of,
    search,
)


class StubDetector:
    """Finds nothing, or fails as told."""

    version = "stub 1"
    entities = ("NAME",)

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.num_calls = 0

    def detect(self, text: str) -> list[Span]:
        self.num_calls += 1
        if self.error is not None:
            raise self.error
        return [Span(0, len(text), "NAME", 1.0)]


def test_entity_that_nothing_finds_is_refused_with_the_nearest_known_one() -> None:
    config = ScrubConfig(entities={"PHONE": "mask", "URL": "keep"})

    with pytest.raises(ConfigError, match=r"scrub\.entities\.PHONE: .*did you mean PHONE_NUMBER\?"):
        check_entities(config)


def test_every_unknown_entity_has_its_line() -> None:
    config = ScrubConfig(entities={"emailaddress": "mask", "QQQQ": "drop"})

    with pytest.raises(ConfigError) as caught:
        check_entities(config)

    first, second = str(caught.value).splitlines()
    assert "did you mean EMAIL_ADDRESS?" in first
    assert "remove it" in second


def test_names_of_persons_are_not_promised_because_no_pattern_finds_them() -> None:
    with pytest.raises(ConfigError, match="PERSON"):
        presidio_detector(ScrubConfig(entities={"PERSON": "pseudonym"}))


def test_entity_of_one_language_is_refused_for_another() -> None:
    check_entities(ScrubConfig(languages=("en",), entities={"US_SSN": "drop"}))

    with pytest.raises(ConfigError, match="US_SSN"):
        check_entities(ScrubConfig(languages=("zh",), entities={"US_SSN": "drop"}))


def test_a_detector_of_ones_own_says_what_it_knows() -> None:
    check_entities(ScrubConfig(entities={"NAME": "mask"}), known=("NAME",))


def test_several_languages_know_the_union() -> None:
    assert known_entities(("en", "zh")) == known_entities(("en",))
    assert set(known_entities(("zh",))) < set(known_entities(("en",)))


@pytest.mark.parametrize(
    ("text", "failure"),
    [
        ("", None),
        ("x" * MAX_TEXT_CHARS, None),
        ("x" * (MAX_TEXT_CHARS + 1), Failure.TOO_LONG),
        ("x" * 10_000_000, Failure.TOO_LONG),
        ("good \U0001f600 and 中文", None),
        ("half a character \ud83d", Failure.NOT_UNICODE),
    ],
    ids=["empty", "longest", "too long", "10 MB", "unicode", "surrogate"],
)
def test_texts_that_no_detector_should_be_given_are_refused(
    text: str, failure: Failure | None
) -> None:
    assert refusal_of(text) is failure


def test_search_gives_what_the_detector_finds() -> None:
    assert search(StubDetector(), "abc") == [Span(0, 3, "NAME", 1.0)]


def test_search_does_not_hand_a_refused_text_to_the_detector() -> None:
    detector = StubDetector()

    assert search(detector, "\udfff") is Failure.NOT_UNICODE
    assert detector.num_calls == 0


@pytest.mark.parametrize(
    ("error", "failure"),
    [
        (DetectionError(Failure.TOO_LONG), Failure.TOO_LONG),
        (ValueError("the secret 12345"), Failure.RECOGNIZER),
        (MemoryError(), Failure.RECOGNIZER),
    ],
)
def test_search_turns_exceptions_into_failures(error: Exception, failure: Failure) -> None:
    assert search(StubDetector(error), "text") is failure


def test_search_lets_ctrl_c_through() -> None:
    class Interrupted(StubDetector):
        def detect(self, text: str) -> list[Span]:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(Interrupted(), "text")


def test_detection_error_is_an_input_error_with_its_failure() -> None:
    error = DetectionError(Failure.RECOGNIZER, "ValueError")

    assert isinstance(error, InputError)
    assert str(error) == "a recognizer failed: ValueError"
    assert error.failure is Failure.RECOGNIZER


def test_engine_version_names_every_library_that_decides_spans_and_our_rules() -> None:
    version = engine_version()

    for package in ("phonenumbers", "presidio-analyzer 2.2.", "regex", "spacy", "tldextract"):
        assert package in version
    assert re.search(r"rules [0-9a-f]{16}$", version)

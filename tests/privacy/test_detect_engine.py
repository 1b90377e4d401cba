"""Presidio's engine: offline, complete, silent about the text, and failing closed."""

from __future__ import annotations

import io
import logging
import subprocess
import sys
import time
import warnings

import pytest
import regex

from discreet.common.site import ScrubConfig
from discreet.privacy import detect_engine
from discreet.privacy.detect import (
    MAX_TEXT_CHARS,
    DetectionError,
    Failure,
    Span,
    known_entities,
    presidio_detector,
)
from discreet.privacy.detect_engine import PresidioDetector

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    from presidio_analyzer import Pattern, PatternRecognizer, RecognizerRegistry, pattern_recognizer
    from presidio_analyzer.predefined_recognizers.generic import iban_recognizer

# Invented values; the card, IBAN and SSN are the usual documentation examples.
VALUES = {
    "EMAIL_ADDRESS": "write to anna.beispiel@example.org today",
    "PHONE_NUMBER": "call me on +1-202-555-0143 later",
    "CREDIT_CARD": "my card 4111 1111 1111 1111 is lost",
    "IBAN_CODE": "pay to DE89370400440532013000 please",
    "IP_ADDRESS": "the host is 203.0.113.77 now",
    "URL": "see https://example.org/a/b?c=1 for more",
    "US_SSN": "her social security number: 536-90-4399",
    "MAC_ADDRESS": "device 00:1B:44:11:3A:B7 is down",
    "UUID": "request 123e4567-e89b-12d3-a456-426614174000 failed",
    "CRYPTO": "send to 16Yeky6GMjeNkAiNcBY7ZhrLoMSgg1BoyZ wallet",
    "US_DRIVER_LICENSE": "driver license H12234567 was issued",
}


@pytest.fixture(scope="module")
def detector() -> PresidioDetector:
    found = presidio_detector(ScrubConfig())
    assert isinstance(found, PresidioDetector)
    return found


@pytest.mark.parametrize("entity", VALUES)
def test_every_kind_with_a_format_is_found(detector: PresidioDetector, entity: str) -> None:
    assert entity in {span.entity for span in detector.detect(VALUES[entity])}


@pytest.mark.parametrize("text", ["", " ", "\n\n", "nothing to see here", "\0", "🙂🙂"])
def test_text_without_personal_data_has_no_spans(detector: PresidioDetector, text: str) -> None:
    assert detector.detect(text) == []


def test_spans_are_sorted_and_each_stands_once(detector: PresidioDetector) -> None:
    spans = detector.detect(" ".join(VALUES.values()))

    places = [(span.start, span.end, span.entity) for span in spans]
    assert places == sorted(set(places))


@pytest.mark.parametrize("language", ["en", "zh"])
def test_the_table_of_known_kinds_is_what_the_recognizers_find(language: str) -> None:
    found = PresidioDetector((language,), 0.35)

    loaded = {kind for r in found._engine.registry.recognizers for kind in r.supported_entities}

    assert tuple(sorted(loaded)) == known_entities((language,)) == found.entities


def test_the_recognizers_are_presidios_own_default_ones(detector: PresidioDetector) -> None:
    default = RecognizerRegistry(supported_languages=["en"])
    default.load_predefined_recognizers(languages=["en"])

    expected = {type(r).__name__ for r in default.recognizers} - {"SpacyRecognizer"}
    names = [type(r).__name__ for r in detector._engine.registry.recognizers]

    assert {name.strip("_").removeprefix("Offline") for name in names} == expected


def test_context_words_lift_a_weak_pattern_over_the_threshold(detector: PresidioDetector) -> None:
    def has_passport(text: str) -> bool:
        return "US_PASSPORT" in {span.entity for span in detector.detect(text)}

    assert has_passport("my passport number is 912803456")
    assert not has_passport("the total number is 912803456")


@pytest.mark.parametrize("domain", ["corp.local", "mail.internal", "host.lan"])
def test_addresses_of_private_networks_are_found(detector: PresidioDetector, domain: str) -> None:
    spans = detector.detect(f"write to anna@{domain} today")

    assert ("EMAIL_ADDRESS", 9, 14 + len(domain)) in {(s.entity, s.start, s.end) for s in spans}


@pytest.mark.parametrize(
    "text",
    [
        "卡号4111111111111111请查收",
        "card ４１１１１１１１１１１１１１１１ here",
        "card ٤١١١١١١١١١١١١١١١ here",
        "card 4111‑1111‑1111‑1111 here",
        "card 4111\u20091111\u20091111\u20091111 here",
    ],
    ids=["glued to Chinese", "full-width", "Arabic-Indic", "odd hyphen", "thin space"],
)
def test_a_card_in_odd_characters_is_found_whole(detector: PresidioDetector, text: str) -> None:
    first = next(i for i, c in enumerate(text) if c.isdigit())
    last = max(i for i, c in enumerate(text) if c.isdigit())

    spans = detector.detect(text)

    assert any(s.start <= first and s.end > last and s.entity == "CREDIT_CARD" for s in spans)


def test_plain_characters_only_ever_add_finds(detector: PresidioDetector) -> None:
    # An address in an international domain is lost in plain characters, not in the text.
    spans = detector.detect("邮箱 张三@例子.中国 联系")

    assert "EMAIL_ADDRESS" in {span.entity for span in spans}


@pytest.mark.parametrize(
    "number",
    ["555-0143", "(202) 555 0143", "0171 555 0143", "+44 20 7946 0018", "1.202.555.0143"],
)
def test_telephone_numbers_are_found_however_written(
    detector: PresidioDetector, number: str
) -> None:
    text = f"ring {number} at once"
    digits = [place for place, character in enumerate(text) if character.isdigit()]

    found = [span for span in detector.detect(text) if span.entity == "PHONE_NUMBER"]

    assert any(span.start <= digits[0] and span.end > digits[-1] for span in found)


@pytest.mark.parametrize("text", ["it costs 100 or 99.50", "at 10 30 in room 4711", "in 2024"])
def test_prices_hours_and_years_are_no_telephone_numbers(
    detector: PresidioDetector, text: str
) -> None:
    longer = f"{text}, call +1-202-555-0143"

    assert "PHONE_NUMBER" not in {span.entity for span in detector.detect(text)}
    places = [s.start for s in detector.detect(longer) if s.entity == "PHONE_NUMBER"]
    assert places == [longer.index("+")]


def test_both_languages_run_on_every_text() -> None:
    both = PresidioDetector(("en", "zh"), 0.35)

    found = {span.entity for span in both.detect(VALUES["US_SSN"] + " 邮箱a@example.org联系")}

    assert {"US_SSN", "EMAIL_ADDRESS"} <= found


def test_the_threshold_cuts_what_is_unsure() -> None:
    strict = PresidioDetector(("en",), 0.9)

    assert strict.detect(VALUES["PHONE_NUMBER"]) == []


@pytest.mark.parametrize("filler", ["word and ", "x"], ids=["prose", "one run"])
def test_what_stands_at_a_cut_of_a_long_text_is_found(
    detector: PresidioDetector, filler: str
) -> None:
    for shift in range(9_980, 10_021, 8):
        text = (filler * 20_000)[:shift] + " 4111111111111111 " + (filler * 20_000)[:5_000]

        places = {(s.start, s.end) for s in detector.detect(text) if s.entity == "CREDIT_CARD"}

        assert (shift + 1, shift + 17) in places


def test_a_text_of_10_mb_is_refused_at_once(detector: PresidioDetector) -> None:
    with pytest.raises(DetectionError, match="too long") as caught:
        detector.detect("x" * (MAX_TEXT_CHARS + 1))

    assert caught.value.failure is Failure.TOO_LONG


def test_a_text_that_takes_too_long_is_given_up(
    detector: PresidioDetector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(detect_engine, "MAX_TEXT_SECONDS", -1.0)

    with pytest.raises(DetectionError, match="took too long"):
        detector.detect("one word")


def test_a_line_of_dots_costs_little_more_than_prose(detector: PresidioDetector) -> None:
    address = "https://example.org/a" + "." * 20
    text = "chapter one " + "." * 3_000 + " 12 see " + address
    start = time.process_time()

    (span,) = detector.detect(text)

    # Guards against growth with the length: unguarded, it takes an hour.
    assert time.process_time() - start < 60
    assert (span.entity, text[span.start : span.end]) == ("URL", address)


def test_memory_of_words_does_not_grow_with_the_corpus(detector: PresidioDetector) -> None:
    strings = detector._nlp.pipelines["en"].vocab.strings
    before = len(strings)

    for number in range(50):
        detector.detect(f"word{number}x other{number}y")

    assert len(strings) - before < 10


class SlowRecognizer(PatternRecognizer):
    """Its pattern never ends in useful time."""

    def __init__(self) -> None:
        super().__init__(
            supported_entity="URL", patterns=[Pattern("slow", r"(?:a|b|ab)*[cd]", 0.9)], name="Slow"
        )


def test_a_pattern_that_takes_too_long_is_a_failure_not_a_skip(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    slow = PresidioDetector(("en",), 0.35)
    slow._engine.registry.add_recognizer(SlowRecognizer())
    monkeypatch.setattr(pattern_recognizer, "REGEX_TIMEOUT_SECONDS", 0.05)

    with pytest.raises(DetectionError, match="a recognizer failed"):
        slow.detect("ab" * 400)


def test_an_iban_pattern_that_takes_too_long_is_a_failure(
    detector: PresidioDetector, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_slow(*args: object, **kwargs: object) -> None:
        raise TimeoutError

    monkeypatch.setattr(iban_recognizer.re, "finditer", too_slow)
    assert regex.finditer is too_slow

    with pytest.raises(DetectionError):
        detector.detect(VALUES["IBAN_CODE"])


def test_failing_does_not_depend_on_how_logging_is_set_up(
    detector: PresidioDetector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pattern_recognizer, "REGEX_TIMEOUT_SECONDS", 0.05)
    slow = PresidioDetector(("en",), 0.35)
    slow._engine.registry.add_recognizer(SlowRecognizer())
    logging.disable(logging.CRITICAL)

    try:
        with pytest.raises(DetectionError):
            slow.detect("ab" * 400)
    finally:
        logging.disable(logging.NOTSET)


def test_a_warning_outside_of_detection_is_no_failure() -> None:
    logging.getLogger("presidio-analyzer").warning("nothing is being searched")


def test_an_exception_of_a_recognizer_carries_no_text(
    detector: PresidioDetector, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise ValueError(f"did not find {args[0]}")

    monkeypatch.setattr(detector._engine, "analyze", fail)

    with pytest.raises(DetectionError) as caught:
        detector.detect("SECRET-VALUE")

    assert str(caught.value) == "a recognizer failed: ValueError"
    assert caught.value.__cause__ is None
    assert caught.value.__context__ is None


def test_no_word_of_a_text_reaches_the_log(detector: PresidioDetector) -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)

    try:
        detector.detect("My passport SECRETWORD number is 912803456, a@secretword.example.org")
    finally:
        root.removeHandler(handler)
        root.setLevel(level)

    assert "secretword" not in stream.getvalue().lower()
    assert "912803456" not in stream.getvalue()


def test_nothing_is_looked_up_at_import_or_at_the_first_address() -> None:
    # In a process of its own, because the import is part of what is tested.
    program = """
import socket, sys
calls = []
def blocked(*args, **kwargs):
    calls.append(1)
    raise OSError("no network")
socket.socket.connect = socket.socket.connect_ex = blocked
socket.getaddrinfo = socket.gethostbyname = socket.create_connection = blocked
from discreet.common.site import ScrubConfig
from discreet.privacy.detect import presidio_detector
detector = presidio_detector(ScrubConfig(languages=("en", "zh")))
spans = detector.detect("write to anna@example.co.uk or anna@corp.local, https://example.org")
assert {"EMAIL_ADDRESS", "URL"} <= {span.entity for span in spans}, spans
assert not calls, calls
print("done")
"""
    environment = {"PATH": "", "HOME": "/nonexistent", "LANG": "C.UTF-8"}
    result = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=environment,
    )

    assert result.stdout.strip() == "done", result.stderr


def test_span_order_is_by_place() -> None:
    assert sorted([Span(4, 5, "A", 1.0), Span(1, 9, "B", 0.2)])[0].start == 1

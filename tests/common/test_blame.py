"""A log line about a bug names no value."""

from discreet.common.blame import place_of


def test_a_bug_is_named_by_class_and_line_and_never_by_its_message() -> None:
    try:
        int("a private text")
    except ValueError as error:
        place = place_of(error)

    assert place.startswith("ValueError at test_blame.py:")
    assert "private" not in place


def test_an_error_that_was_never_raised_has_no_place() -> None:
    assert place_of(KeyError("a private text")) == "KeyError at unknown place"

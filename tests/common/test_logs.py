"""A log line is one line of public words, whatever goes wrong."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from datetime import datetime

import pytest

from discreet.common.logs import LogStyle, configure_logs

STYLES: list[LogStyle] = ["text", "json"]


@pytest.fixture(autouse=True)
def _logger_as_before() -> Iterator[None]:
    logger = logging.getLogger("discreet")
    before = (logger.handlers, logger.level, logger.propagate)
    yield
    logger.handlers, logger.level, logger.propagate = before


def written(style: LogStyle) -> io.StringIO:
    file = io.StringIO()
    configure_logs(style, file=file)
    return file


def test_a_json_line_has_time_level_logger_and_message() -> None:
    file = written("json")

    logging.getLogger("discreet.server.link").warning("site %s left", "north")

    line = json.loads(file.getvalue())
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "warning",
        "logger": "discreet.server.link",
        "message": "site north left",
    }


def test_the_time_is_one_that_programs_read() -> None:
    file = written("json")

    logging.getLogger("discreet.x").info("here")

    time = datetime.fromisoformat(json.loads(file.getvalue())["time"])
    assert time.utcoffset() is not None


def test_a_text_line_has_time_level_and_message() -> None:
    file = written("text")

    logging.getLogger("discreet.x").info("round %d", 3)

    assert file.getvalue().rstrip().endswith("Z info: round 3")


@pytest.mark.parametrize("style", STYLES)
def test_an_exception_is_told_by_class_and_place_and_never_by_its_words(style: LogStyle) -> None:
    file = written(style)

    try:
        raise ValueError("a sentence of somebody's letter")
    except ValueError:
        logging.getLogger("discreet.x").exception("it failed")

    assert "somebody" not in file.getvalue()
    assert "ValueError at test_logs.py:" in file.getvalue()


@pytest.mark.parametrize("style", STYLES)
def test_a_name_with_line_breaks_makes_no_second_line(style: LogStyle) -> None:
    file = written(style)

    logging.getLogger("discreet.x").info("site %s", "north\n2026 error: forged")

    assert file.getvalue().count("\n") == 1


@pytest.mark.parametrize("style", STYLES)
def test_what_is_below_info_and_other_libraries_are_left_out(style: LogStyle) -> None:
    file = written(style)

    logging.getLogger("discreet.x").debug("detail")
    logging.getLogger("flwr").warning("of another house")

    assert file.getvalue() == ""


def test_configured_twice_a_line_is_written_once() -> None:
    first, second = written("text"), written("text")

    logging.getLogger("discreet.x").info("here")

    assert first.getvalue() == ""
    assert second.getvalue().count("here") == 1

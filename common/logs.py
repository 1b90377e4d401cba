"""Log lines for people or for programs: time, level, place, message, and nothing else.

The message of an exception may quote what it choked on, so an exception stands in a line by
its class and place alone.
"""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime
from typing import Literal, TextIO

import orjson

from discreet.common.blame import place_of

LogStyle = Literal["text", "json"]
"""How a line is written."""


class _JsonLines(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        content = {
            "time": _time_of(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if error := _error_of(record):
            content["error"] = error
        return orjson.dumps(content).decode()


class _TextLines(logging.Formatter):
    """Time, level and message."""

    def format(self, record: logging.LogRecord) -> str:
        error = _error_of(record)
        line = f"{_time_of(record)} {record.levelname.lower()}: {record.getMessage()}"
        # One record is one line, whatever a name holds.
        return f"{line} ({error})".replace("\n", " ") if error else line.replace("\n", " ")


def configure_logs(style: LogStyle, *, file: TextIO | None = None) -> None:
    """Write this program's log lines from level INFO on, in one style.

    Args:
        style: `text` for people, `json` for programs.
        file: Where to write; none takes standard error.
    """
    handler = logging.StreamHandler(file or sys.stderr)
    handler.setFormatter(_JsonLines() if style == "json" else _TextLines())
    logger = logging.getLogger("discreet")
    logger.handlers = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False


def _time_of(record: logging.LogRecord) -> str:
    time = datetime.fromtimestamp(record.created, UTC)
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _error_of(record: logging.LogRecord) -> str | None:
    error = record.exc_info[1] if record.exc_info else None
    return place_of(error) if error else None

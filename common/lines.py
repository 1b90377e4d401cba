"""Text lines of a byte stream, one at a time, in bounded memory.

A line longer than the bound is a bad line, not an exhausted machine; bytes that do not fit the
encoding make their line bad and leave the others alone.
"""

from __future__ import annotations

import io
from typing import BinaryIO, Final

from discreet.common.encoding import BROKEN, BROKEN_HANDLER

MAX_LINE_CHARS: Final = 64 << 20
"""A longer line is a bad row: 64 Mi characters, far more than any text, far less than a machine."""


class BadLineError(Exception):
    """A line that cannot be used. The message is the reason and holds nothing of the line."""


class Lines:
    """The lines of a stream. Iteration goes on after a `BadLineError`.

    Attributes:
        number: Lines read so far, so the 1-based number of the last line.
    """

    def __init__(self, stream: BinaryIO, encoding: str, max_chars: int = MAX_LINE_CHARS) -> None:
        # newline="" ends lines at \n, \r\n and \r but leaves the ends as they are, which the
        # csv module needs inside quotes.
        self._text = io.TextIOWrapper(stream, encoding=encoding, errors=BROKEN_HANDLER, newline="")
        self._encoding = encoding
        self._max_chars = max_chars
        self.number = 0

    def __iter__(self) -> Lines:
        """The lines themselves."""
        return self

    def __next__(self) -> str:
        """The next line, with its end.

        Raises:
            BadLineError: If it is too long or holds bytes that do not fit the encoding.
        """
        line = self._text.readline(self._max_chars)
        if not line:
            raise StopIteration
        self.number += 1
        if len(line) >= self._max_chars and not line.endswith(("\n", "\r")):
            self._skip_rest()
            raise BadLineError(f"longer than {self._max_chars:,} characters")
        if BROKEN in line:
            raise BadLineError(f"bytes that are not {self._encoding}")
        # A mark at the start of the text is no part of it (the codec has taken some, not all).
        return line.removeprefix("\ufeff") if self.number == 1 else line

    def _skip_rest(self) -> None:
        part = self._text.readline(self._max_chars)
        while len(part) >= self._max_chars and not part.endswith(("\n", "\r")):
            part = self._text.readline(self._max_chars)

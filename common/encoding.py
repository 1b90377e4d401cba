"""Finds the character encoding of a text file, and refuses rather than guess.

UTF-8 is taken when the bytes are UTF-8, UTF-16 and UTF-32 when a byte-order mark says so. Anything
else needs `encoding:` in the settings: a wrong guess would turn every name in the text into letters
that the scrubber does not know.
"""

from __future__ import annotations

import codecs
from typing import Final

from discreet.common.errors import DataError

SAMPLE_BYTES: Final = 1 << 20
"""How much of a file is looked at before it is read."""

BROKEN: Final = "\udcff"
"""Stands for bytes that do not fit the encoding. No decoder makes this lone surrogate, so
finding it in a line proves that the line is broken."""

BROKEN_HANDLER: Final = "discreet-broken"
"""Name of the error handler that puts `BROKEN` in place of bytes that do not fit."""

_BYTE_ORDER_MARKS: Final = (
    # UTF-32 first: its little-endian mark begins with that of UTF-16.
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)

_SIGNATURES: Final = (
    (b"\x1f\x8b", "gzip, whose name must end in .gz"),
    (b"\x28\xb5\x2f\xfd", "Zstandard, whose name must end in .zst"),
    (b"\xfd7zXZ\x00", "xz, whose name must end in .xz"),
    (b"PAR1", "Parquet, whose name must end in .parquet"),
    (b"PK\x03\x04", "a zip archive or an office document"),
    (b"%PDF-", "PDF"),
    (b"SQLite format 3\x00", "an SQLite database"),
    (b"\x89PNG", "an image"),
    (b"\xff\xd8\xff", "an image"),
)

# Python's own forms of text, which read backslashes and dashes as characters.
_NOT_FOR_FILES: Final = frozenset(
    ["idna", "punycode", "raw-unicode-escape", "undefined", "unicode-escape", "unicode_escape"]
)


def _mark_broken(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return BROKEN, error.end


codecs.register_error(BROKEN_HANDLER, _mark_broken)


def find_encoding(sample: bytes, name: str, wanted: str | None = None) -> str:
    """The encoding of a text file.

    Args:
        sample: The first `SAMPLE_BYTES` of the file, decompressed.
        name: What the file is called in messages.
        wanted: The `encoding:` of the settings; None finds it.

    Returns:
        A name that Python's codecs know.

    Raises:
        DataError: If the file is binary, if the encoding cannot be told for sure, or if
            `wanted` is unknown.
    """
    _refuse_known_binary(sample, name)
    if wanted is not None:
        encoding = _checked(wanted)
    else:
        encoding = _marked(sample) or _utf8_or_refuse(sample, name)
    if _looks_binary(_decode(sample, encoding)):
        raise DataError(
            f"{name}: must be text, but holds NUL or many control characters as {encoding}: it is "
            f"binary{_without_mark_hint(sample)}"
        )
    return encoding


def _decode(sample: bytes, encoding: str) -> str:
    decoder = codecs.getincrementaldecoder(encoding)(BROKEN_HANDLER)
    # A full sample may end inside a character, which is no fault of the file.
    return decoder.decode(sample, final=len(sample) < SAMPLE_BYTES)


def _checked(wanted: str) -> str:
    try:
        if codecs.lookup(wanted).name in _NOT_FOR_FILES:
            raise LookupError
        b"text".decode(wanted, "ignore")  # refuses codecs that make no text, such as hex
        codecs.getincrementaldecoder(wanted)(BROKEN_HANDLER).decode(b"\xff\xfe", final=True)
    except (LookupError, ValueError) as error:
        raise DataError(
            f"encoding: must be a text encoding that Python knows, got {wanted!r}: "
            f"usual ones are utf-8, utf-16-le, gb18030, cp1252, latin-1"
        ) from error
    return wanted


def _marked(sample: bytes) -> str | None:
    for mark, encoding in _BYTE_ORDER_MARKS:
        if sample.startswith(mark):
            return encoding
    return None


def _utf8_or_refuse(sample: bytes, name: str) -> str:
    if b"\x00" in sample:  # told apart from a wrong encoding: NUL is binary or unmarked UTF-16
        return "utf-8"
    text = _decode(sample, "utf-8")
    num_broken = text.count(BROKEN)
    # One damaged row in a UTF-8 file is a bad row. In a file of another encoding, hardly any
    # character outside ASCII happens to be UTF-8.
    if num_broken:
        num_foreign = sum(1 for char in text if char > "\x7f") - num_broken
        if num_foreign < 10 * num_broken:
            raise DataError(
                f"{name}: must be UTF-8, or UTF-16 with a byte-order mark, but is neither"
                f"{_evidence(sample)}: set encoding: to what it is, or convert the file"
            )
    return "utf-8"


def _evidence(sample: bytes) -> str:
    from charset_normalizer import from_bytes

    best = from_bytes(sample[: 1 << 16]).best()
    return f" (it looks like {best.encoding}, which may be wrong)" if best else ""


def _looks_binary(text: str) -> bool:
    if "\x00" in text:
        return True
    # Escape sequences and form feeds stand in real text; a twentieth of it is no text.
    controls = sum(1 for char in text if char < " " and char not in "\t\n\r\f\x1b")
    return 20 * (controls + text.count(BROKEN)) > max(len(text), 20)


def _refuse_known_binary(sample: bytes, name: str) -> None:
    for signature, what in _SIGNATURES:
        if sample.startswith(signature):
            raise DataError(f"{name}: must be text, but it is {what}")


def _without_mark_hint(sample: bytes) -> str:
    even, odd = sample[0::2].count(0), sample[1::2].count(0)
    if 3 * odd >= len(sample[1::2]) > 0 and even == 0:
        return ", or UTF-16 without a byte-order mark: then set encoding: utf-16-le"
    if 3 * even >= len(sample[0::2]) > 0 and odd == 0:
        return ", or UTF-16 without a byte-order mark: then set encoding: utf-16-be"
    return ""

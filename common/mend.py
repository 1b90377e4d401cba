"""Mends one text: broken Unicode, HTML, control characters, white space, length.

Ordinary text comes out as it went in: curly quotes, ligatures, full-width characters and
emoji stay. What is invisible goes, since a zero-width space inside a telephone number
would hide it from the scrubber.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from dataclasses import dataclass
from html.entities import html5
from typing import Final

from discreet.common.html import html_to_text, looks_like_html
from discreet.common.site import CleanConfig

_MAX_PASSES: Final = 8
"""Repairs can uncover one another (`&amp;lt;`); each pass shortens the text, a few are enough."""

# Of a text far longer than `max_chars` only the beginning is mended: repairs take some seconds
# for ten million characters, nearly all of which would be cut off.
_MIN_LOOKED_AT: Final = 1 << 20
_LOOKED_AT_FACTOR: Final = 8

# Nothing in such a text is ever repaired: most text takes this way.
_UNSUSPICIOUS: Final = re.compile(r"[^&<\x00-\x08\x0b-\x1f\x7f-\U0010ffff]*\Z")
_ENTITY: Final = re.compile(
    r"&(?:#([0-9]{1,7})|#[xX]([0-9a-fA-F]{1,6})|([a-zA-Z][a-zA-Z0-9]{1,31}));"
)
# In one step: an ampersand escaped a million times would otherwise take a million passes.
_NESTED_AMPERSAND: Final = re.compile(r"&(?:amp;)+")
_TERMINAL_ESCAPE: Final = re.compile("\x1b\\[[0-9;]*[a-zA-Z]")
_INVISIBLE: Final = re.compile(
    # Control characters but tab and line ends; soft hyphen, zero-width space, directional
    # marks, word joiner, byte-order mark. The zero-width joiners stay: they shape
    # Persian, Hindi and emoji.
    "[\x00-\x08\x0e-\x1f\x7f-\x84\x86-\x9f\u00ad\u200b\u200e\u200f\u202a-\u202e"
    "\u2060-\u206f\ufeff\ufff9-\ufffb]+"
)
_LINE_END: Final = re.compile("\r\n?|[\x0b\x0c\x85\u2028\u2029]")
_UNEVEN_SPACE: Final = re.compile(r"\s\s|[^\S ]")
_SPACES: Final = re.compile(r"[^\S\n]+")
_SPACED_LINE_END: Final = re.compile(r" ?\n ?")
_BLANK_LINES: Final = re.compile(r"\n{3,}")


@dataclass(frozen=True, slots=True)
class Mended:
    """A mended text and what was done to it.

    Attributes:
        text: The text.
        is_repaired: Whether its Unicode or entities were repaired or invisible characters removed.
        was_html: Whether text was taken out of HTML.
        is_cut: Whether it was longer than `max_chars`.
    """

    text: str
    is_repaired: bool = False
    was_html: bool = False
    is_cut: bool = False


def mend(text: str, config: CleanConfig) -> Mended:
    """Mend one text; in time linear in its length, and mending again changes nothing.

    Args:
        text: Any text.
        config: What to mend; `max_chars` bounds the result.

    Returns:
        The mended text, with one space between words, at most one blank line
        between lines and none at the ends.
    """
    looked_at = max(_MIN_LOOKED_AT, _LOOKED_AT_FACTOR * config.max_chars)
    begin = Mended(text[:looked_at], is_cut=len(text) > looked_at)
    if _UNSUSPICIOUS.match(begin.text):
        return _cut(Mended(even_space(begin.text), is_cut=begin.is_cut), config)
    prepared = _prepared(begin, config)
    mended = prepared
    for _ in range(_MAX_PASSES):
        mended = _cut(_repaired(prepared, config), config)
        again = _prepared(mended, config)
        # Then the next pass would give this text once more.
        if again.text == prepared.text:
            break
        prepared = again
    return mended


def _prepared(mended: Mended, config: CleanConfig) -> Mended:
    """The quick steps, so that the slow repair mostly runs once."""
    text, was_html, is_repaired = mended.text, mended.was_html, mended.is_repaired
    if config.html and looks_like_html(text):
        text = html_to_text(text)
        was_html = True
    if config.unicode:
        visible = _INVISIBLE.sub("", _TERMINAL_ESCAPE.sub("", _unescaped(text)))
        is_repaired = is_repaired or visible != text
        text = visible
    return Mended(even_space(text), is_repaired, was_html, mended.is_cut)


def _repaired(mended: Mended, config: CleanConfig) -> Mended:
    if not config.unicode or mended.text.isascii():
        return mended
    text = even_space(_INVISIBLE.sub("", _composed(_without_mojibake(mended.text))))
    is_repaired = mended.is_repaired or text != mended.text
    return Mended(text, is_repaired, mended.was_html, mended.is_cut)


def _cut(mended: Mended, config: CleanConfig) -> Mended:
    if len(mended.text) <= config.max_chars:
        return mended
    text = mended.text[: config.max_chars].rstrip()
    return Mended(text, mended.is_repaired, mended.was_html, is_cut=True)


def even_space(text: str) -> str:
    """One space between words, one kind of line end, at most one blank line, none at the ends."""
    text = text.strip()
    if not _UNEVEN_SPACE.search(text):
        return text
    text = _SPACES.sub(" ", _LINE_END.sub("\n", text))
    return _BLANK_LINES.sub("\n\n", _SPACED_LINE_END.sub("\n", text)).strip()


def _unescaped(text: str) -> str:
    """Decode entities that end in `;`: `&#64;` would hide an e-mail address from the scrubber.

    Not `html.unescape`, which reads `&notes` as a sign for "not" and "es".
    """
    if "&" not in text:
        return text
    return _ENTITY.sub(_character, _NESTED_AMPERSAND.sub("&", text))


def _character(entity: re.Match[str]) -> str:
    decimal, hexadecimal, name = entity.groups()
    if name is not None:
        return html5.get(f"{name};", entity[0])
    number = int(decimal) if decimal is not None else int(hexadecimal, 16)
    is_character = 0 < number <= 0x10FFFF and not 0xD800 <= number <= 0xDFFF
    return chr(number) if is_character else entity[0]


def _without_mojibake(text: str) -> str:
    import ftfy

    # Left out: what changes good text (quotes, ligatures, full-width forms, which
    # are proper Chinese punctuation) and what is done here in linear time (entities:
    # ftfy's loop takes one pass for each level of `&amp;amp;`).
    config = ftfy.TextFixerConfig(
        unescape_html=False,
        fix_latin_ligatures=False,
        fix_character_width=False,
        uncurl_quotes=False,
        fix_line_breaks=False,
        remove_terminal_escapes=False,
        remove_control_chars=False,
        normalization=None,
        explain=False,
    )
    return ftfy.fix_text(text, config)


def _composed(text: str) -> str:
    """NFC, with at most 30 accents on a letter: CPython sorts a run of them in quadratic time.

    Source:
        Unicode Standard Annex 15, section 13, Stream-Safe Text Format.
    """
    return unicodedata.normalize("NFC", _long_accents().sub(r"\1", text))


@functools.cache
def _long_accents() -> re.Pattern[str]:
    first, last = 0x300, 0x1E94A  # the range in which Unicode has combining characters
    accents = "".join(chr(n) for n in range(first, last + 1) if unicodedata.combining(chr(n)))
    return re.compile(f"([{accents}]{{30}})[{accents}]+")

"""Takes the text out of HTML, where a document is HTML.

Attributes, comments, scripts and navigation are left out; a block element begins a new line, so
that words of two paragraphs do not run together.

The parser (lexbor) follows the standard, by which an element in a deep nest looks at all that are
open around it, and every paragraph opens anew all formatting that was left open: 1 MB of `<div>`
takes it 100 seconds. So formatting is taken out first, which changes no text, and a document
of very many tags is stripped without a tree, in one pass.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from typing import Final

from selectolax.lexbor import LexborHTMLParser, LexborNode

_TAGS: Final = (
    "a|article|b|blockquote|body|br|button|center|code|dd|div|dl|dt|em|font|footer|form|h[1-6]|"
    "head|header|hr|html|i|iframe|img|input|label|li|link|main|meta|nav|ol|p|pre|script|section|"
    "small|span|strong|style|sub|sup|table|tbody|td|th|thead|title|tr|u|ul"
)
# The bound keeps the search linear in a text of many "<a " without an end.
_TAG: Final = re.compile(rf"<(/?)(?:{_TAGS})(?:\s[^<>]{{0,2000}})?(/?)>", re.IGNORECASE)
_VOID: Final = re.compile(r"<(?:br|hr|img)\b", re.IGNORECASE)
_WHOLE_PAGE: Final = re.compile(
    r"\s{0,100}(?:<\?xml[^>]{0,200}>\s{0,100})?<(?:!doctype\s+html|html)\b", re.I
)

_FORMATTING: Final = "a|b|big|code|em|font|i|nobr|s|small|strike|strong|tt|u"
_FORMATTING_TAG: Final = re.compile(
    # Possessive, so that a tag without an end is given up at once.
    rf"""</?(?:{_FORMATTING})"""
    r"""(?:[\s/](?:[^<>"']++|"[^"<]{0,2000}"|'[^'<]{0,2000}'){0,200}+)?>""",
    re.I,
)
_FORMATTING_START: Final = re.compile(rf"<(?:{_FORMATTING})[\s/>]", re.I)
_START: Final = re.compile("<[a-zA-Z]")
_MAX_TAGS: Final = 20_000
_MAX_FORMATTING: Final = 64

_DROPPED: Final = frozenset(
    ["script", "style", "nav", "noscript", "template", "svg", "iframe", "object", "select", "math"]
)
_DROPPED_MARK: Final = re.compile(rf"<!--|-->|</?(?:{'|'.join(sorted(_DROPPED))})\b", re.I)
_ANY_TAG: Final = re.compile("</?([a-zA-Z][^\\s/<>]{0,50})[^<>]{0,5000}>|<![^<>]{0,5000}>")
_BLOCK_NAMES: Final = (
    "address|article|aside|blockquote|body|br|caption|dd|details|dialog|div|dl|dt|fieldset|"
    "figcaption|figure|footer|form|h1|h2|h3|h4|h5|h6|header|hr|html|legend|li|main|ol|option|"
    "p|pre|section|summary|table|tbody|td|tfoot|th|thead|title|tr|ul"
)
_BLOCKS: Final = frozenset(_BLOCK_NAMES.split("|"))


def looks_like_html(text: str) -> bool:
    """Whether a document is HTML, and not prose or code with an angle bracket in it.

    It is where it begins as a page, or where it has two known tags, one of which
    closes an element or stands for itself (`<br>`, `<img ...>`).
    """
    if "<" not in text:
        return False
    if _WHOLE_PAGE.match(text):
        return True
    has_end = False
    for num_tags, tag in enumerate(_TAG.finditer(text), start=1):
        has_end = has_end or bool(tag[1] or tag[2] or _VOID.match(tag[0]))
        if num_tags >= 2 and has_end:
            return True
    return False


def html_to_text(document: str) -> str:
    """The text of an HTML document, one line for each block.

    Args:
        document: HTML, whole or a fragment, well formed or not.

    Returns:
        Its text, entities decoded. White space is not normalised.
    """
    plainer = _FORMATTING_TAG.sub("", document)
    if _has_more(_START, plainer, _MAX_TAGS) or _has_more(
        _FORMATTING_START, plainer, _MAX_FORMATTING
    ):
        return _strip_tags(plainer)
    root = LexborHTMLParser(plainer).root
    return "".join(_parts(root)) if root else ""


def _has_more(pattern: re.Pattern[str], text: str, limit: int) -> bool:
    return any(number > limit for number, _ in enumerate(pattern.finditer(text), start=1))


def _parts(root: LexborNode) -> Iterator[str]:
    # A stack of ours, not recursion: a document can nest deeper than Python calls.
    open_nodes: list[tuple[LexborNode, bool]] = []
    in_pre = False
    node: LexborNode | None = root
    while node is not None:
        child = None
        if node.tag == "-text":
            yield _flowed(node.text_content or "", in_pre)
        elif node.tag not in _DROPPED:
            yield _break(node)
            child = node.first_child
        if child is not None:
            open_nodes.append((node, in_pre))
            in_pre = in_pre or node.tag == "pre"
            node = child
            continue
        following = node.next
        while following is None and open_nodes:
            parent, in_pre = open_nodes.pop()
            yield _break(parent)
            following = parent.next
        node = following


def _break(node: LexborNode) -> str:
    return "\n" if node.tag in _BLOCKS else ""


def _flowed(text: str, in_pre: bool) -> str:
    """Line ends in the source of a paragraph are spaces on the page."""
    return text if in_pre else text.replace("\r", " ").replace("\n", " ")


def _strip_tags(document: str) -> str:
    """As `html_to_text` without a tree: in time linear in the document, whatever it holds."""
    kept = _ANY_TAG.sub(_tag_break, "".join(_outside_dropped(document)))
    return html.unescape(kept)


def _tag_break(tag: re.Match[str]) -> str:
    return "\n" if (tag[1] or "").lower() in _BLOCKS else ""


def _outside_dropped(document: str) -> Iterator[str]:
    """The stretches that are neither in a comment nor in a dropped element."""
    begin = 0
    end_mark = ""
    for mark in _DROPPED_MARK.finditer(document):
        found = mark[0].lower()
        if not end_mark:
            if found == "-->" or found.startswith("</"):
                continue
            yield document[begin : mark.start()]
            end_mark = "-->" if found == "<!--" else f"</{found[1:]}"
        elif found == end_mark:
            # What is left of the closing tag begins without its angle bracket and name.
            begin = document.find(">", mark.end() - 1) + 1 or len(document)
            end_mark = ""
    if not end_mark:
        yield document[begin:]

"""HTML is recognised with care and becomes readable text."""

from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from discreet.common.html import html_to_text, looks_like_html

PAGE = """<!DOCTYPE html><html><head><title>Title</title><style>p {color: red}</style>
<script>if (1 < 2) { alert("</b>") }</script></head><body><nav><a href="/">Home</a></nav>
<!-- a secret comment --><h1>Head</h1><p>First
paragraph with <b>bo</b>ld &amp; <a title="a > b" href='mailto:x@example.com'>link</a></p>
<div>one</div>two<br>three<ul><li>a<li>b</ul><pre>kept
line</pre></body></html>"""
LINES = "Title Head First|paragraph with bold & link one two three a b kept line"


@pytest.mark.parametrize(
    "text",
    [
        "I <3 you",
        "a<b and c>d",
        "<John> hi <Ann>",
        "<b>",
        "if x < 3: y > 4",
        "<#> &lt;p&gt;",
        "std::vector<int> a; map<string, p> b",
        "",
    ],
)
def test_text_with_angle_brackets_is_not_html(text: str) -> None:
    assert not looks_like_html(text)


@pytest.mark.parametrize(
    "text",
    [PAGE, "use <b>bold</b>", "one<br>two<br/>", "\n <HTML lang=en>x", "<p class='a'>x</p>"],
)
def test_pages_and_fragments_are_html(text: str) -> None:
    assert looks_like_html(text)


def _words(text: str) -> list[str]:
    return [word for line in text.split("\n") for word in line.split()]


def test_text_of_a_page_has_no_script_style_navigation_comment_or_attribute() -> None:
    assert _words(html_to_text(PAGE)) == LINES.replace("|", " ").split()


def test_blocks_begin_new_lines_and_inline_elements_do_not() -> None:
    lines = [line.strip() for line in html_to_text(PAGE).split("\n") if line.strip()]

    assert lines[:6] == ["Title", "Head", "First paragraph with bold & link", "one", "two", "three"]
    assert lines[6:] == ["a", "b", "kept", "line"]


def test_a_document_of_very_many_tags_gives_the_same_words() -> None:
    # 20,000 is the number from which no tree is built.
    many = PAGE.replace("</body>", "<span>x</span>" * 20_001 + "</body>")

    assert _words(html_to_text(many)) == [*_words(html_to_text(PAGE)), "x" * 20_001]


@pytest.mark.parametrize(
    "document",
    [
        "<div>" * 400_000,
        "<p>" + "".join(f"<font id={i}>" for i in range(2000)) + "</p>" + "<p>x</p>" * 200_000,
        "<script>" * 200_000,
        "<a href='" * 200_000,
        "<" * 2_000_000,
        "<a " + '"" ' * 700_000,
        "<table>x" * 200_000,
    ],
)
def test_hostile_nesting_takes_no_long_time(document: str) -> None:
    begin = time.process_time()

    html_to_text(document)
    looks_like_html(document)

    assert time.process_time() - begin < 10  # seconds; the bare parser takes 100 and more


@given(st.text(alphabet="<>/abpdiv!-'\"= \n&;script", max_size=200))
def test_any_text_can_be_taken_for_html(text: str) -> None:
    assert isinstance(html_to_text(text), str)
    assert isinstance(looks_like_html(text), bool)

"""Encodings are found where the bytes prove them, and refused where they do not."""

from __future__ import annotations

import codecs
from pathlib import Path

import pytest

from discreet.common.corpus import CorpusReport, RawText, read_corpus
from discreet.common.encoding import SAMPLE_BYTES, find_encoding
from discreet.common.errors import DataError
from discreet.common.site import CorpusConfig

LINES = "Schöne Grüße aus Köln\n你好，世界\nplain\n"
CHINESE = "我们今天去公园散步，天气很好，大家都很高兴。\n" * 40
GERMAN = "Schöne Grüße aus Köln, für später übrig und höflich.\n" * 40


def _read(path: Path, encoding: str | None = None) -> tuple[list[RawText], CorpusReport]:
    report = CorpusReport()
    config = CorpusConfig(path=str(path), label_field=None, encoding=encoding)
    return list(read_corpus(config, report)), report


@pytest.mark.parametrize(
    "content",
    [
        LINES.encode(),
        codecs.BOM_UTF8 + LINES.encode(),
        LINES.encode("utf-16"),
        codecs.BOM_UTF16_BE + LINES.encode("utf-16-be"),
        codecs.BOM_UTF32_LE + LINES.encode("utf-32-le"),
    ],
)
def test_utf8_and_marked_utf16_and_utf32_are_found(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(content)

    texts, _ = _read(path)

    assert [text.text for text in texts] == LINES.splitlines()


@pytest.mark.parametrize(
    ("encoding", "text"),
    [("gb18030", CHINESE), ("latin-1", GERMAN), ("utf-16-le", GERMAN), ("utf-8", GERMAN)],
)
def test_an_encoding_that_is_set_is_used(tmp_path: Path, encoding: str, text: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(text.encode(encoding))

    texts, report = _read(path, encoding)

    assert [text.text for text in texts] == text.splitlines()
    assert report.num_bad == 0


def test_a_byte_order_mark_is_no_text_whatever_the_setting(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(codecs.BOM_UTF16_LE + "one\n".encode("utf-16-le"))

    assert _read(path, "utf-16-le")[0][0].text == "one"


@pytest.mark.parametrize(
    ("encoding", "text", "evidence"),
    [("gb18030", CHINESE, "it looks like gb"), ("cp1252", GERMAN, "it looks like")],
)
def test_another_encoding_is_refused_with_what_it_looks_like(
    tmp_path: Path, encoding: str, text: str, evidence: str
) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(text.encode(encoding))

    with pytest.raises(DataError, match=f"must be UTF-8.*{evidence}.*set encoding:"):
        _read(path)


def test_one_damaged_line_in_a_utf8_file_is_a_bad_row(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(CHINESE.encode() + b"caf\xe9\n" + b"last\n")

    texts, report = _read(path)

    assert texts[-1].text == "last"
    assert report.bad_rows == {"bytes that are not utf-8": 1}
    assert report.examples[0].line == 41


def test_a_line_that_is_not_ascii_far_behind_the_sample_is_not_guessed_at(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"plain text\n" * (SAMPLE_BYTES // 11 + 1) + b"caf\xe9\n")

    _, report = _read(path)

    assert report.bad_rows == {"bytes that are not utf-8": 1}


def test_a_sample_that_ends_inside_a_character_is_still_utf8() -> None:
    sample = ("a" + "你" * SAMPLE_BYTES).encode()[:SAMPLE_BYTES]

    assert find_encoding(sample, "a.txt") == "utf-8"


@pytest.mark.parametrize(
    "bad", ["klingon", "rot13", "base64", "hex", "utf\x00", "undefined", "unicode_escape"]
)
def test_an_unknown_encoding_is_refused_with_usual_ones(tmp_path: Path, bad: str) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"text\n")

    with pytest.raises(DataError, match="encoding: must be a text encoding"):
        _read(path, bad)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"MZ\x00\x00\x01binary", "it is binary"),
        (bytes(range(1, 32)) * 9, "it is binary"),
        (b"\x1f\x8b\x08\x00abc", "gzip, whose name must end in .gz"),
        (b"\x28\xb5\x2f\xfdabc", "Zstandard, whose name must end in .zst"),
        (b"PAR1abc", "Parquet, whose name must end in .parquet"),
        (b"PK\x03\x04abc", "zip"),
        (b"%PDF-1.7 abc", "PDF"),
        (b"\x89PNG\r\n", "image"),
        ("text".encode("utf-16-le"), "set encoding: utf-16-le"),
        ("text".encode("utf-16-be"), "set encoding: utf-16-be"),
        (codecs.BOM_UTF16_LE + b"\x00\x00\x01\x00" * 40, "it is binary"),
    ],
)
def test_binary_files_are_refused_with_what_they_are(content: bytes, what: str) -> None:
    with pytest.raises(DataError, match=what):
        find_encoding(content, "a.txt")


def test_binary_is_refused_under_a_set_encoding_too() -> None:
    with pytest.raises(DataError, match="it is binary"):
        find_encoding(b"ab\x00\x01\x02", "a.txt", "latin-1")

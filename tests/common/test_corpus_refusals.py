"""What `read_corpus` counts as bad, and what it refuses."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from discreet.common import formats, lines
from discreet.common.corpus import CorpusReport, RawText, read_corpus
from discreet.common.errors import DataError
from discreet.common.site import CorpusConfig

ROWS = [
    {"text": 'Good "morning", all', "label": "ham", "who": "a"},
    {"text": "Schöne Grüße, 你好", "label": "ham", "who": "b"},
    {"text": "Win a prize", "label": "spam", "who": "a"},
]


def _jsonl(rows: list[dict[str, str]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


def _csv(rows: list[dict[str, str]]) -> bytes:
    quoted = [[v.replace('"', '""') for v in row.values()] for row in rows]
    body = "".join(",".join(f'"{v}"' for v in row) + "\r\n" for row in quoted)
    return f"text,label,who\r\n{body}".encode()


def _tsv(rows: list[dict[str, str]]) -> bytes:
    return "\n".join(["text\tlabel\twho", *("\t".join(r.values()) for r in rows)]).encode()


def _parquet(rows: list[dict[str, str]]) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink, row_group_size=2)
    return sink.getvalue()


WRITERS = {".jsonl": _jsonl, ".csv": _csv, ".tsv": _tsv, ".parquet": _parquet}
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".zst": zstandard.ZstdCompressor().compress,
    ".xz": lzma.compress,
}


def _config(path: Path, **settings_: object) -> CorpusConfig:
    return CorpusConfig.model_validate({"path": str(path), **settings_})


def _texts(path: Path, **settings_: object) -> list[RawText]:
    return list(read_corpus(_config(path, **settings_)))


def _write(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("setting", [{}, {"label_field": None, "owner_field": "who"}])
def test_fields_of_plain_text_are_refused(tmp_path: Path, setting: dict[str, object]) -> None:
    path = _write(tmp_path / "a.txt", "line\n")

    with pytest.raises(DataError, match="plain text"):
        _texts(path, **setting)


def test_bad_rows_are_counted_by_reason_with_file_and_line_and_never_their_text(
    tmp_path: Path,
) -> None:
    private = "SECRETWORD"
    bad = [
        f'{{"text": "{private}", "label": ',
        f'["{private}"]',
        f'{{"label": "{private}"}}',
        f'{{"text": ["{private}"], "label": "a"}}',
        f'{{"text": "{private}"}}',
        f'{{"text": "{private}", "label": " "}}',
        f'{{"text": "{private}", "label": 1.5}}',
        f'{{"text": "{private}", "label": null}}',
    ]
    path = _write(tmp_path / "a.jsonl", "\n".join(['{"text": "good", "label": "a"}', *bad]))
    report = CorpusReport()

    texts = list(read_corpus(_config(path), report))

    assert texts == [RawText("good", "a", None, 0)]
    assert (report.num_rows, report.num_kept, report.num_bad) == (9, 1, 8)
    assert report.bad_rows == {
        "not valid JSON": 1,
        "not a JSON object": 1,
        "field 'text' is missing": 1,
        "field 'text' is not a string": 1,
        "field 'label' is missing": 1,
        "field 'label' is empty or not a string or whole number": 2,
        "field 'label' is null": 1,
    }
    assert [e.line for e in report.examples] == list(range(2, 10))
    assert all(e.file == str(path) for e in report.examples)
    assert private not in str(report)


def test_strict_stops_at_the_first_bad_row_naming_file_line_and_reason(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.jsonl", '{"text": "a", "label": "b"}\n\n{"text": "SECRET"\n')

    with pytest.raises(DataError, match=r"a\.jsonl:3: not valid JSON") as caught:
        _texts(path, strict=True)

    assert "SECRET" not in str(caught.value)


def test_at_most_twenty_bad_rows_are_named_but_all_are_counted(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.jsonl", '{"text": "a", "label": "b"}\n' + "x\n" * 50)
    report = CorpusReport()

    list(read_corpus(_config(path), report))

    assert (len(report.examples), report.num_bad) == (20, 50)


def test_where_that_leaves_nothing_is_an_error(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.jsonl", '{"text": "x", "label": "a", "split": "train"}')

    with pytest.raises(DataError, match=r"where leaves out all 1 rows.*'split'"):
        _texts(path, where={"split": "dev"})


@pytest.mark.parametrize("ending", [".csv", ".tsv", ".parquet", ".jsonl"])
@pytest.mark.parametrize(
    ("setting", "field"),
    [({"text_field": "body"}, "body"), ({"label_field": "class"}, "class")],
)
def test_a_missing_field_names_the_fields_there_are_and_no_value(
    tmp_path: Path, ending: str, setting: dict[str, str], field: str
) -> None:
    path = _write(tmp_path / f"a{ending}", WRITERS[ending](ROWS))

    with pytest.raises(DataError, match=rf"'{field}'.*fields are 'text', 'label', 'who'") as caught:
        _texts(path, **setting)

    assert "prize" not in str(caught.value)


def test_a_table_without_header_does_not_show_its_first_row(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.csv", "Call Ann on 0700 900123,+44 700\nb,c\n")

    with pytest.raises(DataError, match="2 more that are not shown") as caught:
        _texts(path)

    assert "Ann" not in str(caught.value)
    assert "44" not in str(caught.value)


def test_a_field_twice_in_the_header_is_refused(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.csv", "text,text,label\na,b,c\n")

    with pytest.raises(DataError, match="'text' twice"):
        _texts(path)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("missing.jsonl", "no such file"),
        ("*.nothing", "no file matches"),
        ("empty_dir", "must hold files that end in"),
        ("empty.jsonl", "is empty"),
        ("empty.csv", "is empty"),
        ("empty.txt", "is empty"),
        ("blank.jsonl", "is empty"),
        ("header.csv", "is empty"),
        ("a.docx", "must end in"),
        ("broken.jsonl", "no row of 2 can be used"),
        ("broken.parquet", "must be Parquet"),
        ("text.jsonl.gz", "cannot be read"),
        ("text.jsonl.xz", "cannot be read"),
        ("text.jsonl.zst", "cannot be read"),
        ("fifo.jsonl", "neither"),
    ],
)
def test_unusable_paths_are_refused_with_one_clear_line(
    tmp_path: Path, name: str, problem: str
) -> None:
    (tmp_path / "empty_dir").mkdir()
    for file, content in {
        "empty.jsonl": "",
        "empty.csv": "",
        "empty.txt": "",
        "blank.jsonl": "\n \n",
        "header.csv": "text,label\n",
        "a.docx": "x",
        "broken.jsonl": "x\ny\n",
        "broken.parquet": "PAR1 but no more",
        "text.jsonl.gz": "not packed",
        "text.jsonl.xz": "not packed",
        "text.jsonl.zst": "not packed",
    }.items():
        _write(tmp_path / file, content)
    os.mkfifo(tmp_path / "fifo.jsonl")

    with pytest.raises(DataError, match=problem) as caught:
        _texts(tmp_path / name, label_field=None if name.endswith("txt") else "label")

    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


@pytest.mark.parametrize("compression", [".gz", ".zst", ".xz"])
def test_a_packed_file_that_is_cut_off_is_refused_and_not_just_shorter(
    tmp_path: Path, compression: str
) -> None:
    whole = PACKERS[compression](_jsonl([{**ROWS[0], "who": os.urandom(99).hex()}] * 9000))
    path = _write(tmp_path / f"a.jsonl{compression}", whole[:-12])

    with pytest.raises(DataError, match="cut off, damaged"):
        _texts(path)


def test_a_file_without_permission_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _write(tmp_path / "a.jsonl", "x")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)

    with pytest.raises(DataError, match="Permission denied"):
        _texts(path)


@pytest.mark.parametrize(
    ("ending", "header", "good"),
    [
        (".jsonl", "", '{"text": "ok"}'),
        (".csv", "text,label\n", "ok,a"),
        (".tsv", "text\tlabel\n", "ok\ta"),
        (".txt", "", "ok"),
    ],
)
def test_a_line_beyond_the_bound_is_a_bad_row_and_the_next_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str, header: str, good: str
) -> None:
    monkeypatch.setattr(lines.Lines.__init__, "__defaults__", (100,))
    path = _write(tmp_path / f"a{ending}", f"{header}{'x' * 1234}\n{good}\n")
    report = CorpusReport()

    texts = list(read_corpus(_config(path, label_field=None), report))

    assert [t.text for t in texts] == ["ok"]
    assert report.bad_rows == {"longer than 100 characters": 1}


def test_a_quote_that_is_never_closed_does_not_take_the_file_into_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(formats, "MAX_LINE_CHARS", 1000)
    path = _write(tmp_path / "a.csv", 'text,label\ngood,a\n"open,b\n' + "row,a\n" * 5000)
    report = CorpusReport()

    texts = list(read_corpus(_config(path), report))

    assert texts[0].text == "good"
    assert sum(r for reason, r in report.bad_rows.items() if "quote" in reason) == 1


def test_an_owner_that_is_missing_makes_the_row_bad(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.csv", "text,label,who\nx,a,ann\ny,a,\n")
    report = CorpusReport()

    texts = list(read_corpus(_config(path, owner_field="who"), report))

    assert [t.owner for t in texts] == ["ann"]
    assert report.num_bad == 1
    with pytest.raises(DataError, match=r"'author' .owner_field"):
        _texts(path, owner_field="author")
    with pytest.raises(DataError, match=r"'split' .where"):
        _texts(path, where={"split": "train"})


def test_a_header_that_cannot_be_read_stops_without_showing_it(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.csv", '"SECRET"x,label\na,b\n')

    with pytest.raises(DataError, match=r"a\.csv:1: the header line") as caught:
        _texts(path)

    assert "SECRET" not in str(caught.value)


def test_a_wrong_setting_is_found_before_the_end_of_a_long_file(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.jsonl", '{"body": "x"}\n' * 30_000)

    with pytest.raises(DataError, match="no row of 10,000"):
        _texts(path)


def test_invalid_utf8_in_a_parquet_column_makes_that_row_bad(tmp_path: Path) -> None:
    text = pa.array([b"good", b"\xff\xfe", b"fine"], pa.binary()).view(pa.string())
    table = pa.table({"text": text, "label": pa.array([1, 2, 3])})
    pq.write_table(table, tmp_path / "a.parquet", use_dictionary=False)
    report = CorpusReport()

    texts = list(read_corpus(_config(tmp_path / "a.parquet"), report))

    assert [(t.text, t.label) for t in texts] == [("good", "1"), ("fine", "3")]
    assert [(bad.line, bad.reason) for bad in report.examples] == [
        (2, "field 'text' is not a string")
    ]


@settings(max_examples=60, deadline=None)
@given(
    content=st.one_of(
        st.binary(max_size=300), st.text(max_size=100).map(lambda t: t.encode("utf-8", "replace"))
    ),
    ending=st.sampled_from([".jsonl", ".csv", ".tsv", ".txt", ".parquet", ".jsonl.gz", ".csv.zst"]),
)
def test_arbitrary_bytes_end_in_texts_or_a_data_error(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, ending: str
) -> None:
    path = _write(tmp_path_factory.mktemp("any") / f"a{ending}", content)
    config = _config(path, label_field=None)

    try:
        texts = list(read_corpus(config))
    except DataError as error:
        assert str(path) in str(error)  # noqa: PT017 - either outcome is right
    else:
        assert texts

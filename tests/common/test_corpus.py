"""What `read_corpus` promises about formats, files, labels and memory."""

from __future__ import annotations

import gzip
import io
import json
import lzma
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from discreet.common.corpus import CorpusReport, RawText, read_corpus
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


@pytest.mark.parametrize("compression", PACKERS)
@pytest.mark.parametrize("ending", WRITERS)
def test_every_format_reads_the_same_in_every_compression(
    tmp_path: Path, ending: str, compression: str
) -> None:
    content = PACKERS[compression](WRITERS[ending](ROWS))
    path = _write(tmp_path / f"rows{ending}{compression}", content)

    texts = _texts(path, owner_field="who")

    assert texts == [RawText(r["text"], r["label"], r["who"], i) for i, r in enumerate(ROWS)]


@pytest.mark.parametrize("compression", PACKERS)
def test_plain_text_is_one_text_a_line_without_labels(tmp_path: Path, compression: str) -> None:
    content = PACKERS[compression]("first line\r\n\n  \nsecond «line»\n".encode())
    path = _write(tmp_path / f"a.txt{compression}", content)

    texts = _texts(path, label_field=None)

    assert [(t.text, t.label, t.row) for t in texts] == [
        ("first line", None, 0),
        ("second «line»", None, 1),
    ]


def test_a_folder_is_read_whole_and_sorted_without_hidden_or_unknown_files(tmp_path: Path) -> None:
    _write(tmp_path / "b.jsonl", '{"text": "3", "label": "x"}\n')
    _write(tmp_path / "a" / "z.jsonl.gz", gzip.compress(b'{"text": "1", "label": "x"}'))
    _write(tmp_path / "a.csv", "text,label\n2,x\n")
    _write(tmp_path / "README.md", "not read")
    _write(tmp_path / ".hidden.jsonl", "broken")
    _write(tmp_path / ".git" / "x.jsonl", "broken")
    report = CorpusReport()

    texts = list(read_corpus(_config(tmp_path), report))

    assert [t.text for t in texts] == ["1", "2", "3"]
    assert [t.row for t in texts] == [0, 1, 2]
    assert (report.num_files, report.num_rows, report.num_kept) == (3, 3, 3)


def test_a_glob_reads_what_matches_in_sorted_order(tmp_path: Path) -> None:
    for name in ("part-2", "part-1", "other"):
        _write(tmp_path / f"{name}.txt", f"{name}\n")

    texts = _texts(tmp_path / "part-*.txt", label_field=None)

    assert [t.text for t in texts] == ["part-1", "part-2"]


def test_a_file_whose_name_looks_like_a_glob_is_that_file(tmp_path: Path) -> None:
    path = _write(tmp_path / "a[1].txt", "yes\n")

    assert [t.text for t in _texts(path, label_field=None)] == ["yes"]


def test_format_setting_wins_over_the_ending(tmp_path: Path) -> None:
    path = _write(tmp_path / "SMSCollection.gz", gzip.compress(b"label\ttext\nham\thello\n"))

    assert _texts(path, format="tsv") == [RawText("hello", "ham", None, 0)]


def test_csv_keeps_line_ends_inside_quotes_and_reports_the_first_line(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.csv", 'text,label\n"one\r\ntwo\n",a\nx,y,z\n"th""ree",b\n')
    report = CorpusReport()

    texts = list(read_corpus(_config(path), report))

    assert [(t.text, t.row) for t in texts] == [("one\r\ntwo\n", 0), ('th"ree', 2)]
    assert [(bad.line, bad.reason) for bad in report.examples] == [
        (5, "more fields than the header")
    ]


def test_tsv_takes_lone_quotes_as_characters_and_unwraps_wrapped_fields(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.tsv", 'label\ttext\na\t"Hi" she said\nb\t"say ""hi"""\nc\t"\n')

    assert [t.text for t in _texts(path)] == ['"Hi" she said', 'say "hi"', '"']


@pytest.mark.parametrize(
    ("value", "label"),
    [('"a b "', "a b"), ("1", "1"), ("2.0", "2"), ("true", "true"), ("-3", "-3")],
)
def test_labels_become_strings(tmp_path: Path, value: str, label: str) -> None:
    path = _write(tmp_path / "a.jsonl", f'{{"text": "x", "label": {value}}}')

    assert _texts(path)[0].label == label


def test_where_keeps_rows_whose_fields_have_the_value(tmp_path: Path) -> None:
    rows = [{"text": f"t{i}", "label": "a", "split": s} for i, s in enumerate(["train", "test", 1])]
    path = _write(tmp_path / "a.jsonl", "\n".join(json.dumps(row) for row in rows))
    report = CorpusReport()

    kept = list(read_corpus(_config(path, where={"split": "test"}), report))

    assert [(t.text, t.row) for t in kept] == [("t1", 1)]
    assert (report.num_rows, report.num_kept, report.num_filtered, report.num_bad) == (3, 1, 2, 0)
    assert [t.text for t in _texts(path, where={"split": "1"})] == ["t2"]


def test_a_text_of_ten_million_characters_is_read_from_every_format(tmp_path: Path) -> None:
    text = "word " * 2_000_000
    for ending, write in WRITERS.items():
        path = _write(tmp_path / f"big{ending}", write([{**ROWS[0], "text": text}]))

        assert len(_texts(path)[0].text) == len(text)


@pytest.mark.parametrize("ending", [".jsonl.gz", ".csv.gz", ".parquet"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, ending: str) -> None:
    rows = [{"text": f"{i} " + "x" * 1000, "label": "a", "who": "b"} for i in range(30_000)]
    path = tmp_path / f"a{ending}"
    if ending == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        _write(path, gzip.compress(WRITERS[ending.removesuffix(".gz")](rows), 1))
    del rows
    tracemalloc.start()

    num = sum(1 for _ in read_corpus(_config(path)))

    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert num == 30_000
    assert peak < 16 << 20  # the file holds 30 MB; the rest is the sample and one batch


def test_a_parquet_row_group_is_never_in_memory_whole(tmp_path: Path) -> None:
    rows = [{"text": f"{i} " + "x" * 2000, "label": "a"} for i in range(30_000)]
    table = pa.Table.from_pylist(rows)
    pq.write_table(table, tmp_path / "a.parquet", use_dictionary=False, compression="none")
    before = pa.total_allocated_bytes()
    peak = 0

    for text in read_corpus(_config(tmp_path / "a.parquet")):
        if text.row % 500 == 0:
            peak = max(peak, pa.total_allocated_bytes() - before)

    assert peak < 16 << 20  # bytes; the one row group holds 60 MB


@settings(max_examples=60, deadline=None)
@given(
    texts=st.lists(
        st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=40).filter(
            lambda t: bool(t.strip())
        ),
        min_size=1,
        max_size=5,
    )
)
def test_json_lines_give_back_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str]
) -> None:
    rows = [{"text": text, "label": "a"} for text in texts]
    path = _write(tmp_path_factory.mktemp("same") / "a.jsonl", _jsonl(rows))

    assert [t.text for t in _texts(path)] == texts

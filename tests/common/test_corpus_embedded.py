"""The texts that are shipped: that they are what SOURCES.md says they are."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from collections import Counter
from pathlib import Path

import pytest

from discreet.common.corpus import CorpusReport, embedded_names, embedded_path, read_corpus
from discreet.common.errors import DataError
from discreet.common.site import CorpusConfig

ROOT = Path(__file__).parents[2]
COLLECTED = ROOT.parent / "shared" / "data"


def _rows(path: Path) -> list[dict[str, str]]:
    with gzip.open(path, "rt", encoding="utf-8") as stream:
        return [json.loads(line) for line in stream]


def test_sources_account_for_every_shipped_file_by_its_hash() -> None:
    sources = (ROOT / "common" / "data" / "SOURCES.md").read_text(encoding="utf-8")
    stated = dict(re.findall(r"\*\*File\*\*: `(\w+)\.jsonl\.gz`.*sha256 `([0-9a-f]{64})`", sources))

    found = {
        name: hashlib.sha256(embedded_path(name).read_bytes()).hexdigest()
        for name in embedded_names()
    }

    assert found == stated
    assert sorted(found) == ["banking77", "sms_spam"]


@pytest.mark.parametrize("name", ["sms_spam", "banking77"])
def test_shipped_files_carry_no_time_stamp(name: str) -> None:
    # RFC 1952, section 2.3: bytes 4 to 7 are MTIME, 0 for none.
    assert embedded_path(name).read_bytes()[4:8] == bytes(4)


@pytest.mark.parametrize(
    ("name", "split", "num_rows", "num_labels"),
    [
        ("sms_spam", "train", 4521, 2),
        ("sms_spam", "test", 1053, 2),
        ("banking77", "train", 10_003, 77),
        ("banking77", "test", 3080, 77),
    ],
)
def test_splits_have_the_published_sizes(
    name: str, split: str, num_rows: int, num_labels: int
) -> None:
    report = CorpusReport()
    config = CorpusConfig(path=f"embedded:{name}", where={"split": split})

    labels = Counter(text.label for text in read_corpus(config, report))

    assert (report.num_kept, len(labels)) == (num_rows, num_labels)
    assert report.bad_rows == {}


def test_an_unknown_embedded_corpus_names_those_there_are() -> None:
    with pytest.raises(DataError, match="banking77, sms_spam"):
        embedded_path("enron")
    with pytest.raises(DataError, match="banking77, sms_spam"):
        read_corpus(CorpusConfig(path="embedded:../secrets"))


def test_shipped_rows_are_the_collected_ones() -> None:
    if not COLLECTED.is_dir():
        pytest.skip("the collected data sets are not beside this checkout")
    banking = [
        {**row, "split": split}
        for split in ("train", "test")
        for row in _rows(COLLECTED / "banking77" / f"{split}.jsonl.gz")
    ]

    assert _rows(embedded_path("banking77")) == banking
    assert _rows(embedded_path("sms_spam")) == _rows(COLLECTED / "sms_spam" / "all.jsonl.gz")

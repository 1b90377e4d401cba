"""The fingerprint of a source changes when the text or its reading does, and only then."""

from __future__ import annotations

from pathlib import Path

import pytest

from discreet.client.source import corpus_fingerprint, corpus_source
from discreet.common.errors import DataError
from discreet.common.site import CorpusConfig

ROWS = '{"text": "soup at noon", "label": "ham"}\n{"text": "win a prize", "label": "spam"}\n'


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "texts.jsonl"
    path.write_text(ROWS, encoding="utf-8")
    return path


def test_the_same_content_and_settings_have_the_same_fingerprint(corpus: Path) -> None:
    before = corpus_fingerprint(CorpusConfig(path=str(corpus)))
    corpus.write_text(ROWS, encoding="utf-8")

    assert corpus_fingerprint(CorpusConfig(path=str(corpus))) == before


def test_one_changed_byte_changes_it(corpus: Path) -> None:
    before = corpus_fingerprint(CorpusConfig(path=str(corpus)))
    corpus.write_text(ROWS.replace("soup", "soap"), encoding="utf-8")

    assert corpus_fingerprint(CorpusConfig(path=str(corpus))) != before


@pytest.mark.parametrize(
    "setting",
    [
        {"text_field": "body"},
        {"label_field": "class"},
        {"owner_field": "author"},
        {"where": {"split": "train"}},
        {"encoding": "latin-1"},
        {"strict": True},
    ],
)
def test_another_way_of_reading_changes_it(corpus: Path, setting: dict[str, object]) -> None:
    plain = CorpusConfig(path=str(corpus))
    other = CorpusConfig.model_validate({"path": str(corpus), **setting})

    assert corpus_fingerprint(other) != corpus_fingerprint(plain)


def test_a_further_file_in_the_folder_changes_it(corpus: Path) -> None:
    config = CorpusConfig(path=str(corpus.parent))
    before = corpus_fingerprint(config)
    (corpus.parent / "more.jsonl").write_text(ROWS, encoding="utf-8")

    assert corpus_fingerprint(config) != before


def test_a_source_can_be_read_more_than_once(corpus: Path) -> None:
    source = corpus_source(CorpusConfig(path=str(corpus)))

    first, second = list(source.read()), list(source.read())

    assert [row.text for row in first] == ["soup at noon", "win a prize"]
    assert first == second


def test_a_missing_file_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"missing\.jsonl"):
        corpus_source(CorpusConfig(path=str(tmp_path / "missing.jsonl")))

"""The embedded tokenizer can be made again, from public text alone."""

import gzip
import hashlib
import importlib.metadata
import json
from pathlib import Path

import pytest

from discreet.common.errors import DataError
from discreet.common.tokens import EMBEDDED_PATH
from discreet.deploy import make_tokenizer
from discreet.deploy.make_tokenizer import (
    LONGEST_TOKEN,
    MASK,
    PLACEHOLDERS,
    SOURCES,
    Source,
    main,
    read_source,
    train,
    without_addressee,
)

SOURCES_DIR = Path(__file__).resolve().parents[3] / "shared" / "data"
PROVENANCE = json.loads(EMBEDDED_PATH.with_suffix(".provenance.json").read_bytes())

TEXTS = ["The cat sat on the mat.", "The dog sat on the log.", "明月 明月", "call 0123 now"] * 5


@pytest.fixture
def source_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with one invented set, which takes the place of the public ones."""
    content = gzip.compress(b"".join(json.dumps({"text": t}).encode() + b"\n" for t in TEXTS))
    (tmp_path / "set.jsonl.gz").write_bytes(content)
    source = Source(
        file="set.jsonl.gz",
        sha256=hashlib.sha256(content).hexdigest(),
        field="text",
        max_chars=10_000,
        licence="CC0-1.0",
        attribution="invented",
    )
    monkeypatch.setattr(make_tokenizer, "SOURCES", (source,))
    return tmp_path


def test_the_shipped_file_hashes_to_what_its_provenance_says() -> None:
    assert hashlib.sha256(EMBEDDED_PATH.read_bytes()).hexdigest() == PROVENANCE["sha256"]


def test_the_provenance_names_every_source_with_licence_and_hash() -> None:
    assert [s["file"] for s in PROVENANCE["sources"]] == [s.file for s in SOURCES]
    assert [s["sha256"] for s in PROVENANCE["sources"]] == [s.sha256 for s in SOURCES]
    assert all(s["licence"] and s["attribution"] for s in PROVENANCE["sources"])


def test_no_demonstration_text_is_a_source() -> None:
    assert not [s.file for s in SOURCES if "sms_spam" in s.file or "banking77" in s.file]


def test_the_shipped_file_is_made_again_byte_for_byte(tmp_path: Path) -> None:
    if not all((SOURCES_DIR / source.file).is_file() for source in SOURCES):
        pytest.skip(f"needs the public sets of make_tokenizer.SOURCES in {SOURCES_DIR}")
    if importlib.metadata.version("tokenizers") != PROVENANCE["tokenizers_version"]:
        pytest.skip(f"needs tokenizers {PROVENANCE['tokenizers_version']}, which made the file")
    out = tmp_path / "tokenizer.json"

    main([str(SOURCES_DIR), str(out)])

    assert out.read_bytes() == EMBEDDED_PATH.read_bytes()
    provenance = out.with_suffix(".provenance.json").read_bytes()
    assert provenance == EMBEDDED_PATH.with_suffix(".provenance.json").read_bytes()


def test_the_shipped_vocabulary_has_the_reserved_tokens_and_no_number() -> None:
    vocabulary = json.loads(EMBEDDED_PATH.read_bytes())["model"]["vocab"]
    added = {t["content"]: t for t in json.loads(EMBEDDED_PATH.read_bytes())["added_tokens"]}

    assert (vocabulary["<pad>"], vocabulary["<empty>"]) == (0, 1)
    assert {t for t, entry in added.items() if not entry["special"]} == {MASK, *PLACEHOLDERS}
    assert not [t for t in vocabulary if sum(c.isdecimal() for c in t) > 1]
    assert max(len(t) for t in vocabulary) <= LONGEST_TOKEN


def test_two_makings_give_the_same_bytes(source_dir: Path, tmp_path: Path) -> None:
    main([str(source_dir), str(tmp_path / "a.json")])
    main([str(source_dir), str(tmp_path / "b.json")])

    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    provenance = json.loads((tmp_path / "a.provenance.json").read_bytes())
    assert provenance["sha256"] == hashlib.sha256((tmp_path / "a.json").read_bytes()).hexdigest()


def test_a_vocabulary_is_no_larger_than_asked() -> None:
    tokenizer = train(iter(TEXTS), vocabulary_size=300)

    assert tokenizer.get_vocab_size() == 300


def test_a_source_with_another_hash_is_refused(source_dir: Path) -> None:
    (source_dir / "set.jsonl.gz").write_bytes(b"else")

    with pytest.raises(DataError, match=r"set.jsonl.gz: must hash to [0-9a-f]{64}, got"):
        main([str(source_dir), str(source_dir / "out.json")])

    assert not (source_dir / "out.json").exists()


def test_a_missing_source_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"messages.jsonl.gz: must be there"):
        read_source(SOURCES[0], tmp_path)


def test_a_source_is_thinned_evenly_to_its_share(source_dir: Path) -> None:
    (source,) = make_tokenizer.SOURCES
    share = Source(
        file=source.file,
        sha256=source.sha256,
        field="text",
        max_chars=sum(map(len, TEXTS)) // 4,
        licence=source.licence,
        attribution=source.attribution,
    )

    texts = read_source(share, source_dir)

    assert texts == TEXTS[::4]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("somebody: try again", "try again"),
        ("some_body, try again", "try again"),
        ("try again: now", "try again: now"),
        ("alone", "alone"),
    ],
)
def test_the_addressee_of_a_chat_line_is_left_out(text: str, expected: str) -> None:
    assert without_addressee(text) == expected

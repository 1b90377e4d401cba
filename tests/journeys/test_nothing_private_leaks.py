"""What is private stays in the site's own folder: planted words are looked for everywhere else.

Each canary is a word that stands nowhere but in one text, one owner or one label.
"""

from __future__ import annotations

import stat
from pathlib import Path

import pyarrow.parquet as pq  # type: ignore[import-untyped]
import pytest
from tiny_runs import rows, simulate, start, write_rows, write_run

IN_TEXT, IN_OWNER, IN_LABEL = "zyxwtext", "zyxwowner", "zyxwlabel"
IN_EMAIL = "zyxwmail@example.org"
CANARIES = (IN_TEXT, IN_OWNER, IN_LABEL, "zyxwmail")


def planted(num: int = 24) -> list[dict[str, str]]:
    return [
        {
            "text": f"{row['text']} {IN_TEXT}{i} write to {IN_EMAIL}",
            "label": row["label"],
            "author": f"{IN_OWNER} {i % 3}",
        }
        for i, row in enumerate(rows(num))
    ]


def private_run(folder: Path, **sections: object) -> Path:
    """Sites are dealt by author; everything is scrubbed."""
    write_rows(folder / "private.jsonl", planted())
    write_rows(folder / "public.jsonl", rows(8))
    return write_run(
        folder,
        **{
            "training": {"rounds": 2},
            "evaluation": {"data": {"path": "public.jsonl"}, "scrub": {"workers": 1}},
            "simulation": {
                "data": {"path": "private.jsonl"},
                "num_sites": None,
                "partition": {"kind": "field", "field": "author"},
                "scrub": {"enabled": True, "workers": 1},
            },
            **sections,
        },
    )


def found_in(words: str | bytes) -> list[str]:
    content = words.encode() if isinstance(words, str) else words
    return [canary for canary in CANARIES if canary.encode() in content.lower()]


def is_store(path: Path) -> bool:
    return "store" in path.parts


def leaks(folder: Path) -> dict[str, list[str]]:
    """Files outside the sites' own stores, and all names, that hold a canary."""
    leaking = {}
    for path in folder.rglob("*"):
        found = found_in(str(path.relative_to(folder)))
        if path.is_file() and not is_store(path):
            found += found_in(path.read_bytes())
        if found:
            leaking[str(path)] = found
    return leaking


@pytest.mark.parametrize("style", [[], ["--json"]])
def test_no_private_word_leaves_the_sites(tmp_path: Path, style: list[str]) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    run_dir = tmp_path / "out"

    process = start(private_run(tmp_path), "--out", run_dir, *style, env={"TMPDIR": str(temporary)})
    stdout, stderr = process.communicate(timeout=120)

    assert process.returncode == 0, stderr
    assert stderr == ""
    assert found_in(stdout) == []
    assert leaks(run_dir) == {}
    assert leaks(temporary) == {}
    written = {path.name.partition(".")[0] for path in run_dir.rglob("*") if path.is_file()}
    assert {"report", "events", "model", "plan", "ledger", "outbox"} <= written


def test_what_a_site_keeps_is_its_owners_alone_and_scrubbed(tmp_path: Path) -> None:
    run_dir = tmp_path / "out"
    result = simulate(private_run(tmp_path), "--out", run_dir, "--quiet")
    assert result.exit_code == 0, result.output

    sites = sorted((run_dir / "sites").glob("site-*"))
    kept = [path for site in sites for path in (site, *site.rglob("*"))]

    assert len(sites) == 3
    assert {stat.S_IMODE(path.stat().st_mode) for path in kept if path.is_dir()} == {0o700}
    assert {stat.S_IMODE(path.stat().st_mode) for path in kept if path.is_file()} == {0o600}
    stores = [path for path in kept if path.suffix == ".parquet"]
    content = [str(pq.ParquetFile(path).read().to_pydict()).lower() for path in stores]
    # An ordinary word is kept, for it is learned from; what was found to be personal is not.
    assert any(IN_TEXT in words for words in content)
    assert not any("zyxwmail" in words for words in content)
    assert not any(IN_OWNER in words for words in content)


def test_an_encrypted_store_shows_nothing_at_all(tmp_path: Path) -> None:
    run_file, run_dir = private_run(tmp_path), tmp_path / "out"
    result = simulate(run_file, "--out", run_dir, "--set", "simulation.scrub.encrypt=true")
    assert result.exit_code == 0, result.output

    files = [path for path in (run_dir / "sites").rglob("*") if path.is_file()]

    assert not [path for path in files if path.suffix == ".parquet" and "public" not in path.parts]
    assert [path for path in files if found_in(path.read_bytes())] == []


@pytest.mark.parametrize(
    "change",
    [
        {"task": {"labels": ["spam", "eggs"]}},
        {"simulation": {"data": {"path": "private.jsonl", "text_field": "body"}}},
        {"simulation": {"data": {"path": "private.jsonl", "strict": True}}},
        {"simulation": {"data": {"path": "private.jsonl", "where": {"split": "train"}}}},
    ],
    ids=["labels", "field", "strict", "where"],
)
def test_an_error_does_not_quote_what_it_choked_on(
    tmp_path: Path, change: dict[str, object]
) -> None:
    run_file = private_run(tmp_path, **change)
    broken: list[dict[str, object]] = [
        {"text": f"{IN_TEXT} soup", "label": IN_LABEL},
        {"text": 7, "label": IN_LABEL},
        {"text": IN_TEXT, "label": [IN_LABEL]},
        {"body": IN_TEXT},
    ]
    write_rows(tmp_path / "private.jsonl", broken)
    with (tmp_path / "private.jsonl").open("ab") as file:
        file.write(f'{{"text": "{IN_TEXT}", "label"\n'.encode())

    result = simulate(run_file, "--out", tmp_path / "out")

    assert result.exit_code == 2, result.output
    assert found_in(result.output) == []
    assert leaks(tmp_path / "out") == {}


def test_a_bug_in_a_site_shows_its_class_and_place_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def choke(*_: object) -> object:
        raise ValueError(f"could not make sense of {IN_TEXT}")

    monkeypatch.setattr("discreet.client.runtime.train_round", choke)

    result = simulate(write_run(tmp_path), "--out", tmp_path / "out")

    assert result.exit_code == 3
    assert "3 refused: internal" in result.stderr
    assert "ValueError at test_nothing_private_leaks.py" in caplog.text
    assert found_in(result.output + caplog.text) == []
    assert leaks(tmp_path / "out") == {}

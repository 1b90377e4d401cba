"""Runs of a second or so: an invented corpus, a plan for it, and the command itself."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import orjson
from click.testing import CliRunner, Result

from discreet.deploy.cli import cli

COMMAND = (sys.executable, "-m", "discreet.deploy.cli")

_WORDS = {
    "ham": "we meet at noon and eat soup with the others near the old lake",
    "spam": "win a free prize now and claim the cash reward with one short call",
}


def rows(num: int = 24) -> list[dict[str, str]]:
    """Texts of two labels by four authors, all different."""
    labels = ("ham", "spam")
    return [
        {
            "text": f"{_WORDS[labels[i % 2]]} {i}",
            "label": labels[i % 2],
            "author": f"author {i % 4}",
        }
        for i in range(num)
    ]


def write_rows(path: Path, content: Sequence[Mapping[str, object]]) -> Path:
    """A corpus of JSON lines."""
    path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in content))
    return path


def write_run(folder: Path, **sections: object) -> Path:
    """RUN.yaml in a folder, beside a corpus `texts.jsonl` if there is none yet.

    `training={...}` and the like add to or replace the settings of a section; a `model` is
    replaced whole.
    """
    if not (folder / "texts.jsonl").exists():
        write_rows(folder / "texts.jsonl", rows())
    content: dict[str, object] = {
        "name": "tiny",
        "task": {"labels": ["ham", "spam"]},
        "model": {"kind": "linear", "buckets": 64},
        "tokens": {"max_tokens": 16},
        "privacy": {"unit": "example", "epsilon": 8.0, "delta": 1e-5},
        "training": {
            "rounds": 2,
            "sample_rate": 1.0,
            "expected_batch_size": 8,
            "learning_rate": 1.0,
        },
        "simulation": {
            "data": {"path": "texts.jsonl"},
            "num_sites": 3,
            "scrub": {"enabled": False},
        },
    }
    for name, given in sections.items():
        known = content.get(name)
        is_added_to = name != "model" and isinstance(known, dict) and isinstance(given, Mapping)
        content[name] = {**known, **given} if is_added_to else given
    path = folder / "run.yaml"
    path.write_bytes(orjson.dumps(content))  # JSON is YAML.
    return path


def simulate(*arguments: str | Path) -> Result:
    """`discreet simulate` in this process: imports are paid for once."""
    return CliRunner().invoke(cli, ["simulate", *map(str, arguments)])


def start(*arguments: str | Path, env: Mapping[str, str] | None = None) -> subprocess.Popen[str]:
    """`discreet simulate` as a process of its own."""
    return subprocess.Popen(
        [*COMMAND, "simulate", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(env or {})},
    )


def report_of(run_dir: Path) -> dict[str, object]:
    """`report.json` of a run."""
    content: dict[str, object] = orjson.loads((run_dir / "report.json").read_bytes())
    return content

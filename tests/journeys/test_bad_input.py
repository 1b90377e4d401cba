"""Bad input ends with exit code 2 and one clear line: what is wrong, where, and what to do."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
from tiny_runs import report_of, rows, simulate, start, write_rows, write_run


def line_of(folder: Path, *arguments: str | Path) -> str:
    """The one line that a refused run prints; nothing else is printed."""
    run_file = folder / "run.yaml"
    result = simulate(run_file, "--out", folder / "out", *arguments)
    assert result.exit_code == 2, result.output
    return only_line(result.stderr)


def only_line(stderr: str) -> str:
    (line,) = stderr.splitlines()
    assert line.startswith("error: ")
    return line


def with_rows(folder: Path, content: list[dict[str, str]], **sections: object) -> Path:
    write_rows(folder / "texts.jsonl", content)
    write_run(folder, **sections)
    return folder


# the corpus


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    write_run(tmp_path, simulation={"data": {"path": "elsewhere.jsonl"}})

    assert str(tmp_path / "elsewhere.jsonl") in line_of(tmp_path)


def test_a_missing_plan_is_named(tmp_path: Path) -> None:
    assert "run.yaml" in line_of(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\n\n\n"])
def test_an_empty_file_is_named(tmp_path: Path, content: bytes) -> None:
    write_run(tmp_path)
    (tmp_path / "texts.jsonl").write_bytes(content)

    line = line_of(tmp_path)

    assert str(tmp_path / "texts.jsonl") in line
    assert "empty" in line or "no " in line


@pytest.mark.parametrize("setting", ["text_field", "label_field"])
def test_a_wrong_field_is_named_with_the_fields_that_there_are(
    tmp_path: Path, setting: str
) -> None:
    write_run(tmp_path, simulation={"data": {"path": "texts.jsonl", setting: "message"}})

    line = line_of(tmp_path)

    assert str(tmp_path / "texts.jsonl") in line
    assert "'message' is missing" in line
    assert "'text', 'label', 'author'" in line


def test_a_wrong_field_to_deal_by_is_named(tmp_path: Path) -> None:
    write_run(
        tmp_path,
        simulation={"partition": {"kind": "field", "field": "writer"}, "num_sites": None},
    )

    line = line_of(tmp_path)

    assert "field" in line
    assert "writer" in line or "simulation.partition.field" in line


@pytest.mark.parametrize("name", ["texts.jsonl", "texts.csv", "texts.txt", "texts.parquet"])
def test_a_binary_file_is_named_whatever_it_calls_itself(tmp_path: Path, name: str) -> None:
    write_run(tmp_path, simulation={"data": {"path": name}})
    (tmp_path / name).write_bytes(random.Random(5).randbytes(20_000))

    assert str(tmp_path / name) in line_of(tmp_path)


def test_one_label_in_the_data_is_not_enough(tmp_path: Path) -> None:
    hams = [row for row in rows() if row["label"] == "ham"]

    line = line_of(with_rows(tmp_path, hams))

    assert "simulation.data" in line
    assert "2 different labels" in line


def test_more_classes_than_the_plan_are_counted_and_not_named(tmp_path: Path) -> None:
    canary = "zyxwvut-canary"
    content = [*rows(), {"text": "soup", "label": canary}]

    line = line_of(with_rows(tmp_path, content))

    assert "task.labels" in line
    assert "1 of 25 rows" in line
    assert canary not in line


@pytest.mark.parametrize(("num_sites", "num_rows"), [(24, 24), (30, 24), (13, 24)])
def test_a_site_with_no_text_or_one_is_refused(
    tmp_path: Path, num_sites: int, num_rows: int
) -> None:
    with_rows(tmp_path, rows(num_rows), simulation={"num_sites": num_sites})

    line = line_of(tmp_path)

    assert "site-00" in line
    assert "at least 2 texts" in line
    assert "fewer sites" in line


def test_a_site_with_too_few_texts_is_refused_again_when_the_run_is_resumed(
    tmp_path: Path,
) -> None:
    with_rows(tmp_path, rows(24), simulation={"num_sites": 24})
    first = line_of(tmp_path)

    result = simulate("--resume", tmp_path / "out")

    assert result.exit_code == 2
    assert only_line(result.stderr) == first


# a text of 10 MB


@pytest.mark.parametrize("kind", ["words", "one word", "html", "lines"])
def test_a_text_of_10_mb_is_taken_or_refused_in_bounded_time(tmp_path: Path, kind: str) -> None:
    part = {"words": "soup at noon ", "one word": "x", "html": "<p><b>soup", "lines": "soup\n"}
    size = 10_000_000
    text = (part[kind] * (size // len(part[kind]) + 1))[:size]
    with_rows(tmp_path, [*rows(), {"text": text, "label": "ham"}])
    started = time.monotonic()

    result = simulate(tmp_path / "run.yaml", "--out", tmp_path / "out", "--quiet")

    assert result.exit_code in {0, 2}, result.output
    assert result.exit_code == 0 or "texts.jsonl" in only_line(result.stderr)
    # Guards against growth with the length, not against a slow machine.
    assert time.monotonic() - started < 300


def test_a_text_of_10_mb_is_scrubbed_too(tmp_path: Path) -> None:
    text = "soup at noon, call +44 20 7946 0958 then " * 250_000
    with_rows(
        tmp_path,
        [*rows(), {"text": text, "label": "ham"}],
        simulation={"scrub": {"enabled": True, "workers": 2}},
    )

    result = simulate(tmp_path / "run.yaml", "--out", tmp_path / "out", "--quiet")

    assert result.exit_code == 0, result.output
    scrub = report_of(tmp_path / "out")["scrub"]
    assert isinstance(scrub, dict)
    assert scrub["num_in"] == 25


# the plan


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"task": {"labels": ["ham"]}}, ["task.labels", "2"]),
        ({"task": {"labels": ["ham", "ham"]}}, ["task", "different"]),
        ({"training": {"learning_rate": 0}}, ["training.learning_rate", "> 0"]),
        ({"training": {"rounds": 0}}, ["training.rounds"]),
        ({"training": {"sample_rate": 1.5}}, ["training.sample_rate", "<= 1"]),
        ({"training": {"round": 3}}, ["training.round", "rounds"]),
        ({"privacy": {"delta": 0}}, ["privacy.delta", "> 0"]),
        ({"privacy": {"delta": 1}}, ["privacy.delta", "< 1"]),
        ({"privacy": {"epsilon": 1e-9, "delta": 1e-15}}, ["privacy.epsilon", "fewer steps"]),
        ({"privacy": {"noise_multiplier": 0.01}}, ["privacy.noise_multiplier", "at least"]),
        ({"privacy": "full"}, ["privacy"]),
        ({"model": {"kind": "linaer"}}, ["model", "linear"]),
        ({"simulation": {"num_sites": 0}}, ["simulation.num_sites"]),
        ({"simulation": {"num_sites": None}}, ["simulation.num_sites"]),
        ({"simulation": {"sites": {"site-0009": {}}}}, ["simulation.sites", "site-0002"]),
        ({"simulation": None}, ["simulation"]),
        ({"federatoin": {}}, ["federatoin", "federation"]),
        ({"tokens": {"path": "nowhere.json"}}, ["nowhere.json"]),
        ({"evaluation": {"data": {"path": "nowhere.jsonl"}}}, ["nowhere.jsonl"]),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_wrong_setting_is_named_with_what_it_must_be(
    tmp_path: Path, section: dict[str, object], words: list[str]
) -> None:
    write_run(tmp_path, **section)

    line = line_of(tmp_path)

    assert [word for word in words if word not in line] == []


@pytest.mark.parametrize(
    "setting",
    [
        "training.learning_rate=.nan",
        "training.learning_rate=nan",
        "training.learning_rate=.inf",
        "privacy.epsilon=.nan",
        "privacy.clipping_norm=-.inf",
        "federation.server_momentum=.nan",
        "simulation.clean.near_threshold=.nan",
    ],
)
def test_what_is_not_a_number_is_refused(tmp_path: Path, setting: str) -> None:
    write_run(tmp_path)

    assert setting.partition("=")[0] in line_of(tmp_path, "--set", setting)


def test_all_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    write_run(tmp_path, training={"learning_rate": -1, "rounds": 0}, privacy={"delta": 0})

    result = simulate(tmp_path / "run.yaml", "--out", tmp_path / "out")

    assert result.exit_code == 2
    assert len(result.stderr.splitlines()) == 3


# the run folder


def test_a_folder_that_is_not_empty_is_not_written_to(tmp_path: Path) -> None:
    write_run(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine", encoding="utf-8")

    line = line_of(tmp_path)

    assert "--out" in line
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("exists", [True, False])
def test_there_must_be_a_run_to_resume(tmp_path: Path, exists: bool) -> None:
    folder = tmp_path / "nothing"
    if exists:
        folder.mkdir()

    result = simulate("--resume", folder)

    assert result.exit_code == 2
    assert str(folder) in only_line(result.stderr)


@pytest.mark.parametrize("what", ["json", "tensors", "plan", "ledger", "store"])
def test_a_damaged_run_is_not_resumed_and_the_file_is_named(tmp_path: Path, what: str) -> None:
    run_dir = tmp_path / "out"
    write_run(tmp_path)
    assert simulate(tmp_path / "run.yaml", "--out", run_dir, "--quiet").exit_code == 0
    path = {
        "json": run_dir / "checkpoint" / "round-000002.json",
        "tensors": next(run_dir.glob("checkpoint/round-000002-*.safetensors")),
        "plan": run_dir / "plan.yaml",
        "ledger": run_dir / "sites" / "site-0001" / "ledger.sqlite",
        "store": next(run_dir.glob("sites/site-0001/store/prepared-*")),
    }[what]
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 3] + b"\0\xff{")

    result = simulate("--resume", run_dir)

    assert result.exit_code == 2, result.output
    assert path.name in only_line(result.stderr)


# as a person meets it


def test_the_process_itself_ends_with_2_and_one_line_and_no_traceback(tmp_path: Path) -> None:
    write_run(tmp_path, privacy={"delta": 0})

    process = start(tmp_path / "run.yaml", "--out", tmp_path / "out")
    stdout, stderr = process.communicate(timeout=60)

    assert process.returncode == 2
    assert stdout == ""
    assert "privacy.delta" in only_line(stderr)


def test_the_process_itself_names_the_site_that_has_too_little(tmp_path: Path) -> None:
    with_rows(tmp_path, rows(24), simulation={"num_sites": 24})

    process = start(tmp_path / "run.yaml", "--out", tmp_path / "out", "--quiet")
    stdout, stderr = process.communicate(timeout=60)

    assert process.returncode == 2
    assert stdout == ""
    assert "site-0000" in only_line(stderr)

"""The finished model labels texts, one line for each, cleaned and scrubbed as it learned them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from tiny_runs import rows, simulate, write_rows, write_run

from discreet.deploy.cli import cli

HAM, SPAM = "we meet at noon and eat soup", "win a free prize now and claim the cash"


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    run_file = write_run(
        folder,
        training={"rounds": 4, "learning_rate": 20.0},
        evaluation={"data": {"path": "texts.jsonl"}},
    )
    result = simulate(run_file, "--out", folder / "out", "--quiet")
    assert result.exit_code == 0, result.output
    return folder / "out"


def predicted(*arguments: str | Path, text: str | None = None) -> Result:
    result = CliRunner().invoke(cli, ["predict", *map(str, arguments)], input=text)
    assert result.exit_code == 0, result.output
    return result


def test_standard_input_is_labelled_line_by_line(run_dir: Path) -> None:
    result = predicted(run_dir, text=f"{SPAM}\n{HAM}\n\n{SPAM}")

    labels = [line.split("\t")[0] for line in result.stdout.splitlines()]
    assert [labels[0], labels[1], labels[3]] == ["spam", "ham", "spam"]
    assert len(labels) == 4


def test_probabilities_are_at_least_that_of_a_guess(run_dir: Path) -> None:
    result = predicted(run_dir, "--json", text=f"{SPAM}\n{HAM}\n")

    answers = [json.loads(line) for line in result.stdout.splitlines()]
    assert [answer["label"] for answer in answers] == ["spam", "ham"]
    assert all(0.5 <= answer["probability"] <= 1 for answer in answers)


@pytest.mark.parametrize("name", ["texts.txt", "texts.jsonl"])
def test_a_file_is_labelled_as_standard_input_is(run_dir: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.endswith("jsonl"):
        write_rows(path, [{"text": text} for text in (SPAM, HAM)])
    else:
        path.write_text(f"{SPAM}\n{HAM}\n", encoding="utf-8")

    from_file = predicted(run_dir, path)

    assert from_file.stdout == predicted(run_dir, text=f"{SPAM}\n{HAM}\n").stdout


def test_the_texts_it_learned_from_get_their_labels(run_dir: Path, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "texts.jsonl", rows())

    result = predicted(run_dir, path)

    labels = [line.split("\t")[0] for line in result.stdout.splitlines()]
    assert labels == [row["label"] for row in rows()]


def test_personal_data_in_a_new_text_does_not_change_its_label(run_dir: Path) -> None:
    first = predicted(run_dir, text=f"{HAM} call +44 20 7946 0958\n")
    second = predicted(run_dir, text=f"{HAM} call +44 20 7946 0123\n")

    assert first.stdout == second.stdout


def test_a_copy_of_the_model_folder_is_enough(run_dir: Path, tmp_path: Path) -> None:
    copy = tmp_path / "elsewhere"
    copy.mkdir()
    for path in (run_dir / "model").iterdir():
        (copy / path.name).write_bytes(path.read_bytes())

    assert predicted(copy, text=HAM).stdout == predicted(run_dir, text=HAM).stdout


def test_a_run_that_has_no_model_yet_is_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(cli, ["predict", str(tmp_path)], input=HAM)

    assert result.exit_code == 2
    assert str(tmp_path) in result.stderr
    assert "finish the run" in result.stderr

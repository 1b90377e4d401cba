"""`discreet predict`: one line out for each text in, and no text in an error."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import CliRunner, Result

from discreet.deploy.cli import cli


def discreet(*arguments: str, text: str | None = None) -> Result:
    return CliRunner().invoke(cli, arguments, input=text)


class _Predictor:
    """Stands for the model: the label is the text's length."""

    def predict(self, texts: list[str]) -> list[tuple[str, float]]:
        return [(str(len(text)), 0.5) for text in texts]


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    module = ModuleType("discreet.server.predict")
    module.load_predictor = lambda run_dir: _Predictor()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "discreet.server.predict", module)
    return tmp_path


def test_predict_labels_each_line_in_order(model: Path) -> None:
    path = model / "texts.txt"
    path.write_bytes("\ufeffab\r\n\nabc\nünï".encode())

    result = discreet("predict", str(model), str(path))

    assert result.exit_code == 0, result.output
    assert result.stdout == "2\t0.5000\n0\t0.5000\n3\t0.5000\n3\t0.5000\n"


def test_predict_reads_standard_input(model: Path) -> None:
    result = discreet("predict", str(model), "--json", text="four\n")

    assert json.loads(result.stdout) == {"label": "4", "probability": 0.5}


def test_predict_labels_more_texts_than_fit_at_once(model: Path) -> None:
    result = discreet("predict", str(model), text="a\n" * 1000)

    assert result.stdout == "1\t0.5000\n" * 1000


def test_predict_reads_a_field_of_json_lines(model: Path) -> None:
    path = model / "texts.jsonl"
    path.write_text('{"body": "abc"}\n{"body": ""}\n', encoding="utf-8")

    result = discreet("predict", str(model), str(path), "--text-field", "body")

    assert result.stdout == "3\t0.5000\n0\t0.5000\n"


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("t.txt", b"ok\n\xff\xfe\n", "t.txt:2: must be UTF-8 text: convert the file"),
        ("t.txt", b"PK\x03\x04\x00", "t.txt:1: must be text, got binary data"),
        ("t.jsonl", b'{"text": "secret words"\n', "t.jsonl:1: must be a JSON object"),
        ("t.jsonl", b'{"body": "secret words"}\n', "must have text in its field `text`"),
        ("t.jsonl", b'["secret words"]\n', "must have text in its field `text`"),
        ("t.jsonl", b'{"text": 3}\n', "must have text in its field `text`"),
        ("t.jsonl", b"\n", "t.jsonl:1: must be a JSON object"),
    ],
)
def test_predict_names_a_bad_line_and_never_its_text(
    model: Path, name: str, data: bytes, message: str
) -> None:
    path = model / name
    path.write_bytes(data)

    result = discreet("predict", str(model), str(path))

    assert result.exit_code == 2
    assert message in result.stderr
    assert "secret" not in result.stderr
    assert result.stderr.count("\n") == 1


def test_predict_of_a_missing_file_is_one_line(model: Path) -> None:
    result = discreet("predict", str(model), str(model / "absent.txt"))

    assert result.exit_code == 2
    assert "absent.txt: cannot be read (no such file or directory)" in result.stderr

"""What the README shows works as it stands there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from discreet.common.config import load_plan, load_site
from discreet.deploy.cli import cli

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = sorted((ROOT / "deploy" / "examples").glob("*.yaml"))


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def commands() -> list[str]:
    lines = [line.partition("#")[0].strip() for block in blocks("") for line in block.splitlines()]
    lines = [part.strip() for line in lines for part in line.split(" | ")]
    return [line for line in lines if line.startswith(("make ", ".venv/bin/discreet "))]


def targets() -> set[str]:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    return set(re.findall(r"^(\w+):", makefile, flags=re.MULTILINE))


def test_the_plan_and_the_site_are_accepted(tmp_path: Path) -> None:
    plan_text, site_text = blocks("yaml")
    (tmp_path / "run.yaml").write_text(plan_text, encoding="utf-8")
    (tmp_path / "site.yaml").write_text(site_text, encoding="utf-8")

    plan, site = load_plan(tmp_path / "run.yaml"), load_site(tmp_path / "site.yaml")

    assert plan.is_private
    assert plan.simulation is not None
    assert site.policy.epsilon >= 8


def test_both_versions_of_yaml_read_the_plan_alike_but_for_its_numbers() -> None:
    # Another reader of 1.1 takes 1e-5 for a text: nothing else may differ.
    content = yaml.safe_load(blocks("yaml")[0])

    assert content["task"]["labels"] == ["billing", "technical", "other"]


@pytest.mark.parametrize("command", commands())
def test_every_command_exists_with_its_options(command: str) -> None:
    program, *arguments = shlex.split(command)
    if program == "make":
        assert set(arguments) <= targets()
        return

    path = arguments[: 2 if arguments[0] == "certs" else 1]
    shown = CliRunner().invoke(cli, [*path, "--help"])

    assert shown.exit_code == 0
    assert [a for a in arguments if a.startswith("--") and a not in shown.stdout] == []


def test_the_first_screen_holds_the_two_commands() -> None:
    first = README.splitlines()[:30]

    assert "make demo" in first
    assert "make test" in first


def test_ci_runs_the_test_command_of_the_readme_last() -> None:
    lines = (ROOT / ".ci" / "run").read_text(encoding="utf-8").split("\n")

    assert [line for line in lines if line][-1] == "make test"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_plan_is_accepted(path: Path) -> None:
    plan = load_plan(path)

    assert plan.simulation is not None
    assert plan.evaluation is not None


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_no_example_plan_is_without_privacy(path: Path) -> None:
    assert load_plan(path).is_private

"""The command line: what it prints, where, and with which exit code.

The run itself is replaced here: `tests/journeys/` walks the whole house.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import pytest
from click.testing import CliRunner, Result

from discreet.common.config import load_plan
from discreet.common.errors import BudgetExceededError, DataError, UnreachableError
from discreet.common.plan import Plan
from discreet.deploy.cli import cli
from discreet.deploy.progress import Progress
from discreet.server.history import Guarantee, PlanSummary, RoundRecord, RunSummary, ScrubSummary

RUN = """
name: my run/1
task: {labels: [ham, spam]}
model: {kind: linear}
privacy: {unit: example, epsilon: 8, delta: 1e-5}
training: {rounds: 2, sample_rate: 0.1, expected_batch_size: 10, learning_rate: 1}
simulation: {data: {path: texts.jsonl}}
"""

SUMMARY = RunSummary(
    run="1",
    plan=PlanSummary(fingerprint="0" * 64, content={}),
    guarantee=Guarantee("example", "add or remove one", 7.5, 1e-5, 8.0, "All of it.", ()),
    sites=(),
    rounds=(),
    final={"accuracy": 0.97},
    scrub=ScrubSummary(),
    versions={},
    is_finished=True,
)

ROUND = RoundRecord(
    round=1, sites_asked=2, sites=2, epsilon_max=7.5, seconds=0.5, bytes_up=1, bytes_down=1
)


@dataclass(frozen=True)
class Options:
    """Stands for the options of the real run."""

    state_dir: Path | None
    resume: bool


@dataclass
class Runs:
    """Stands for the real run and keeps what it was called with."""

    plan: Plan | None = None
    run_dir: Path | None = None
    options: Options | None = None
    behave: Callable[[], None] = lambda: None

    def simulate(
        self, plan: Plan, run_dir: Path, *, options: Options, progress: Progress
    ) -> RunSummary:
        self.plan, self.run_dir, self.options = plan, run_dir, options
        progress.start("training", 1)
        self.behave()
        progress.round_done(ROUND, 1)
        progress.advance()
        progress.finish()
        return SUMMARY


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Runs:
    made = Runs()
    module = ModuleType("discreet.deploy.simulate")
    module.simulate = made.simulate  # type: ignore[attr-defined]
    module.SimulateOptions = Options  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "discreet.deploy.simulate", module)
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text(RUN, encoding="utf-8")
    return made


def discreet(*arguments: str, text: str | bytes | None = None) -> Result:
    return CliRunner().invoke(cli, arguments, input=text)


def raising(error: BaseException) -> Callable[[], None]:
    def behave() -> None:
        raise error

    return behave


# simulate


def test_a_run_gets_the_plan_and_the_folder(runs: Runs) -> None:
    result = discreet("simulate", "run.yaml", "--out", "out")

    assert result.exit_code == 0, result.output
    assert runs.plan == load_plan(Path("run.yaml"))
    assert runs.run_dir == Path("out")
    assert runs.options == Options(state_dir=None, resume=False)


def test_the_plan_lies_in_the_folder_before_the_run_begins(runs: Runs) -> None:
    found: list[Plan] = []
    runs.behave = lambda: found.append(load_plan(Path("out/plan.yaml")))

    discreet("simulate", "run.yaml", "--out", "out", "--set", "training.rounds=5")

    assert found == [runs.plan]
    assert found[0].training.rounds == 5


def test_without_a_folder_one_is_made_from_the_name_and_the_time(runs: Runs) -> None:
    discreet("simulate", "run.yaml")

    assert runs.run_dir is not None
    assert runs.run_dir.parent == Path("runs")
    assert runs.run_dir.match("runs/my-run-1-????????-??????")


def test_two_runs_in_one_second_do_not_share_a_folder(runs: Runs) -> None:
    folders = set()
    for _ in range(3):
        assert discreet("simulate", "run.yaml").exit_code == 0
        folders.add(runs.run_dir)

    assert len(folders) == 3


def test_without_a_file_the_embedded_demo_runs(runs: Runs) -> None:
    result = discreet("simulate")

    assert result.exit_code == 0, result.output
    assert runs.plan is not None
    assert runs.plan.task.labels == ("ham", "spam")


def test_a_folder_with_files_is_refused_and_left_alone(runs: Runs) -> None:
    Path("out").mkdir()
    Path("out/mine.txt").write_text("kept", encoding="utf-8")

    result = discreet("simulate", "run.yaml", "--out", "out")

    assert result.exit_code == 2
    assert "--out out: must be new or empty" in result.stderr
    assert "--resume out" in result.stderr
    assert [path.name for path in Path("out").iterdir()] == ["mine.txt"]


def test_a_folder_that_cannot_be_made_is_one_line(runs: Runs) -> None:
    result = discreet("simulate", "run.yaml", "--out", "run.yaml/below")

    assert result.exit_code == 2
    assert result.stderr.startswith("error: --out run.yaml/below: must be a folder to write in")
    assert result.stderr.count("\n") == 1


def test_a_wrong_plan_is_refused_before_a_folder_is_made(runs: Runs) -> None:
    result = discreet("simulate", "run.yaml", "--set", "training.learning_rate=.nan")

    assert result.exit_code == 2
    assert result.stderr == (
        "error: run.yaml: training.learning_rate: must be a finite number > 0, got nan: change it "
        "(step size of the optimizer)\n"
    )
    assert result.stdout == ""
    assert not Path("runs").exists()
    assert runs.plan is None


def test_each_wrong_setting_is_a_line_of_its_own(runs: Runs) -> None:
    result = discreet("simulate", "run.yaml", "--set", "privacy.delta=0", "--set", "name=1")

    assert result.exit_code == 2
    lines = result.stderr.splitlines()
    assert [line.split(": ")[2] for line in lines] == ["name", "privacy.delta"]
    assert all(line.startswith("error: ") for line in lines)


def test_a_plan_without_a_simulation_cannot_be_simulated(runs: Runs) -> None:
    result = discreet("simulate", "run.yaml", "--set", "simulation=null")

    assert result.exit_code == 2
    assert "simulation: is required to simulate" in result.stderr


@pytest.mark.parametrize("name", ["absent.yaml", "."])
def test_a_file_that_is_none_is_one_line(runs: Runs, name: str) -> None:
    result = discreet("simulate", name)

    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith(f"error: {name}: ")


# resume


def test_resume_takes_the_plan_from_the_folder(runs: Runs) -> None:
    discreet("simulate", "run.yaml", "--out", "out", "--set", "training.rounds=7")
    Path("run.yaml").unlink()
    begun = runs.plan

    result = discreet("simulate", "--resume", "out", "--state", "kept")

    assert result.exit_code == 0, result.output
    assert runs.plan == begun
    assert runs.run_dir == Path("out")
    assert runs.options == Options(state_dir=Path("kept"), resume=True)


@pytest.mark.parametrize("extra", [["run.yaml"], ["--out", "x"], ["--set", "training.rounds=1"]])
def test_resume_takes_nothing_that_would_change_the_run(runs: Runs, extra: list[str]) -> None:
    discreet("simulate", "run.yaml", "--out", "out")

    result = discreet("simulate", "--resume", "out", *extra)

    assert result.exit_code == 2
    assert "--resume takes the plan from the run folder" in result.stderr


def test_resume_of_what_is_no_run_is_one_line(runs: Runs) -> None:
    result = discreet("simulate", "--resume", ".")

    assert result.exit_code == 2
    assert result.stderr == "error: .: must be the folder of a run, got none with a plan.yaml\n"


def test_ctrl_c_says_how_to_go_on(runs: Runs) -> None:
    runs.behave = raising(KeyboardInterrupt())

    result = discreet("simulate", "run.yaml", "--out", "my out", "--state", "kept")

    assert result.exit_code == 130
    assert result.stderr == (
        "error: stopped: `discreet simulate --resume 'my out' --state kept` goes on\n"
    )


# errors


@pytest.mark.parametrize(
    ("error", "exit_code"),
    [
        (DataError("texts.jsonl: is empty"), 2),
        (BudgetExceededError("the ceiling is 8"), 3),
        (UnreachableError("no answer"), 4),
    ],
)
def test_our_errors_are_one_line_and_an_exit_code(
    runs: Runs, error: Exception, exit_code: int
) -> None:
    runs.behave = raising(error)

    result = discreet("simulate", "run.yaml")

    assert result.exit_code == exit_code
    assert result.stderr == f"error: {error}\n"


def test_a_bug_keeps_its_traceback(runs: Runs) -> None:
    runs.behave = raising(ZeroDivisionError("a bug"))

    result = discreet("simulate", "run.yaml")

    assert result.exit_code == 1
    assert isinstance(result.exception, ZeroDivisionError)


# what is shown


def test_a_round_and_the_report_are_printed_once(runs: Runs) -> None:
    result = discreet("simulate", "run.yaml", "--out", "out")

    assert result.stdout.count("round 1/1") == 1
    assert result.stdout.count("out/report.html") == 1
    assert result.stderr == ""


def test_quiet_prints_the_path_of_the_report_alone(runs: Runs) -> None:
    result = discreet("simulate", "run.yaml", "--out", "out", "--quiet")

    assert result.stdout == "out/report.html\n"
    assert result.stderr == ""


def test_json_prints_objects_alone(runs: Runs) -> None:
    result = discreet("simulate", "run.yaml", "--out", "out", "--json")

    events = [json.loads(line)["event"] for line in result.stdout.splitlines()]
    assert events == ["start", "round", "finish", "done"]


@pytest.mark.parametrize("style", [[], ["--quiet"], ["--json"]])
def test_without_privacy_every_style_says_so(runs: Runs, style: list[str]) -> None:
    result = discreet("simulate", "run.yaml", "--set", "privacy=none", *style)

    assert result.exit_code == 0
    assert "warning: privacy: none" in result.stderr


# schema, version, help


@pytest.mark.parametrize("kind", ["run", "site"])
def test_schema_names_and_explains_every_setting(kind: str) -> None:
    result = discreet("schema", kind)

    schema = json.loads(result.stdout)
    sections = [schema, *schema["$defs"].values()]
    settings = [s for section in sections for s in section["properties"].values()]
    assert len(settings) > 20
    assert all(setting["description"] for setting in settings)
    assert all(section["additionalProperties"] is False for section in sections)


def test_schema_is_that_of_a_run_unless_told() -> None:
    assert discreet("schema").stdout == discreet("schema", "run").stdout


def test_version_is_that_of_the_package() -> None:
    assert discreet("--version").stdout.startswith("discreet 0.")


@pytest.mark.parametrize(
    "arguments", [["nothing"], ["schema", "plan"], ["simulate", "--colour"], ["predict"]]
)
def test_wrong_usage_exits_2_without_a_traceback(arguments: list[str]) -> None:
    result = discreet(*arguments)

    assert result.exit_code == 2
    assert "Usage:" in result.stderr
    assert "Traceback" not in result.stderr


def test_help_loads_nothing_heavy() -> None:
    program = (
        "import sys, discreet.deploy.cli as c\n"
        "try: c.main()\n"
        "except SystemExit as end: assert not end.code\n"
        "heavy = {'torch', 'flwr', 'numpy', 'opacus', 'pydantic', 'rich', 'spacy', 'yaml'}\n"
        "sys.exit(str(sorted(heavy & set(sys.modules))) if heavy & set(sys.modules) else 0)\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", program, "--help"], capture_output=True, text=True, check=False
    )

    assert done.returncode == 0, done.stderr
    assert "simulate" in done.stdout


def test_the_command_is_installed_and_exits_with_our_codes(tmp_path: Path) -> None:
    command = Path(sys.executable).parent / "discreet"

    done = subprocess.run(
        [command, "simulate", "absent.yaml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 2
    assert done.stderr == "error: absent.yaml: there is no such file: check the path\n"

"""A run that is stopped anywhere can be gone on with, and a ledger never counts too little."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from pathlib import Path

import orjson
import pytest
from tiny_runs import report_of, rows, simulate, start, write_rows, write_run

from discreet.common.config import load_plan
from discreet.privacy.ledger import Ledger
from discreet.privacy.mechanism import planned_epsilon
from discreet.server.checkpoint import load_checkpoint

ROUNDS = 80
NUM_KILLS = 3
DELTA = 1e-5
ROOMY = {"epsilon": 100.0, "delta": DELTA}
SITES = [f"site-{number:04d}" for number in range(3)]


def long_run(folder: Path) -> Path:
    """Rounds enough to be stopped between them, under a ceiling that is not in the way."""
    return write_run(folder, training={"rounds": ROUNDS}, simulation={"policy": ROOMY})


def slow_scrub(folder: Path) -> Path:
    """Texts enough that scrubbing takes a while."""
    write_rows(folder / "texts.jsonl", rows(1500))
    return write_run(folder, simulation={"scrub": {"enabled": True, "workers": 1}})


def wait_for(process: subprocess.Popen[str], event: str, *, times: int = 1) -> None:
    """Read the process' events until one has come so many times."""
    assert process.stdout is not None
    for line in process.stdout:
        times -= orjson.loads(line)["event"] == event
        if times == 0:
            return
    raise AssertionError(f"it ended before: {process.communicate()[1]}")


def ledger_of(state_dir: Path, site: str) -> Ledger:
    return Ledger.open(state_dir / site / "ledger.sqlite", data_set=site)


def children_of(process: subprocess.Popen[str]) -> list[Path]:
    # Listed for each thread: those of a pool start the workers.
    lists = Path(f"/proc/{process.pid}/task").glob("*/children")
    numbers = [number for path in lists for number in path.read_text(encoding="ascii").split()]
    return [Path("/proc") / number for number in numbers]


def is_alive(child: Path) -> bool:
    try:
        state = (child / "stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def assert_resume_finishes(run_dir: Path, *, rounds: int) -> dict[str, object]:
    result = simulate("--resume", run_dir, "--quiet")
    assert result.exit_code == 0, result.output
    report = report_of(run_dir)
    assert report["is_finished"] is True
    numbers = [record["round"] for record in report["rounds"]]  # type: ignore[attr-defined]
    assert numbers == list(range(1, rounds + 1))
    return report


def test_ctrl_c_while_scrubbing_says_how_to_go_on_and_going_on_finishes(tmp_path: Path) -> None:
    run_dir = tmp_path / "out"
    process = start(slow_scrub(tmp_path), "--out", run_dir, "--json")
    wait_for(process, "progress")
    workers = children_of(process)

    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)

    assert process.returncode == 130
    assert stderr == f"error: stopped: `discreet simulate --resume {run_dir}` goes on\n"
    assert workers
    assert not any(map(is_alive, workers))
    assert_resume_finishes(run_dir, rounds=2)


def test_ctrl_c_while_training_leaves_a_report_and_says_how_to_go_on(tmp_path: Path) -> None:
    run_dir = tmp_path / "out"
    state_dir = tmp_path / "state of the sites"
    process = start(long_run(tmp_path), "--out", run_dir, "--state", state_dir, "--json")
    wait_for(process, "round", times=3)

    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=30)

    assert process.returncode == 130
    words = f"discreet simulate --resume {run_dir} --state '{state_dir}'"
    assert stderr == f"error: stopped: `{words}` goes on\n"
    result = simulate("--resume", run_dir, "--state", state_dir, "--quiet")
    assert result.exit_code == 0, result.output
    report = report_of(run_dir)
    assert report["is_finished"] is True
    # Nothing was debited twice: a site sends the same update for the same round again.
    for site in SITES:
        with ledger_of(state_dir, site) as ledger:
            assert len(ledger.entries()) == ROUNDS


def test_a_kill_at_any_time_loses_at_most_a_round_and_never_a_debit(tmp_path: Path) -> None:
    run_dir = tmp_path / "out"
    arguments: list[str | Path] = [long_run(tmp_path), "--out", run_dir]
    generator = random.Random()
    for _ in range(NUM_KILLS):
        process = start(*arguments, "--json")
        wait_for(process, "round")
        time.sleep(generator.uniform(0.0, 0.05))
        process.kill()
        process.communicate(timeout=30)
        assert process.returncode == -signal.SIGKILL
        arguments = ["--resume", run_dir]

    report = assert_resume_finishes(run_dir, rounds=ROUNDS)

    spent = {s["name"]: s["epsilon"] for s in report["sites"]}  # type: ignore[attr-defined]
    released = planned_epsilon(load_plan(run_dir / "plan.yaml"), ROUNDS)
    for site in SITES:
        with ledger_of(run_dir / "sites", site) as ledger:
            ledger.verify()
            entries = ledger.entries()
            assert {entry.run for entry in entries} == {report["run"]}
            assert {entry.round_number for entry in entries} == set(range(1, ROUNDS + 1))
            # A kill between debit and update costs that round once more, for each kill.
            assert ROUNDS <= len(entries) <= ROUNDS + NUM_KILLS
            assert spent[site] == pytest.approx(ledger.epsilon(DELTA))
            assert ledger.epsilon(DELTA) >= released * (1 - 1e-9)


def test_a_kill_while_scrubbing_leaves_no_process_and_no_raw_text(tmp_path: Path) -> None:
    run_dir = tmp_path / "out"
    run_file = slow_scrub(tmp_path)
    canary = "zyxwvut@example.org"
    content = [row | {"text": f"{row['text']} {canary}"} for row in rows(1500)]
    write_rows(tmp_path / "texts.jsonl", content)
    process = start(run_file, "--out", run_dir, "--json")
    wait_for(process, "progress")
    workers = children_of(process)

    process.kill()
    process.communicate(timeout=30)

    deadline = time.monotonic() + 10
    while any(map(is_alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert workers
    assert not any(map(is_alive, workers))
    files = [path for path in run_dir.rglob("*") if path.is_file()]
    assert not any(canary.encode() in path.read_bytes() for path in files)
    assert_resume_finishes(run_dir, rounds=2)


def test_a_run_that_was_killed_before_its_report_gets_one(tmp_path: Path) -> None:
    run_dir = tmp_path / "out"
    run_file = write_run(tmp_path)
    simulate(run_file, "--out", run_dir, "--quiet")
    for name in ("report.json", "report.html", "model/model.safetensors"):
        (run_dir / name).unlink()

    assert_resume_finishes(run_dir, rounds=2)

    assert (run_dir / "model" / "model.safetensors").is_file()
    with ledger_of(run_dir / "sites", SITES[0]) as ledger:
        assert len(ledger.entries()) == 2


def test_a_finished_run_that_is_resumed_stays_as_it_is(tmp_path: Path) -> None:
    run_dir = tmp_path / "out"
    simulate(write_run(tmp_path), "--out", run_dir, "--quiet")
    before, weights = report_of(run_dir), (run_dir / "model" / "model.safetensors").read_bytes()

    assert assert_resume_finishes(run_dir, rounds=2) == before
    assert (run_dir / "model" / "model.safetensors").read_bytes() == weights


def test_a_run_that_is_resumed_goes_on_with_the_same_numbers(tmp_path: Path) -> None:
    plain = {"privacy": "none", "training": {"rounds": 6, "sample_rate": 0.5}}
    run_file = write_run(tmp_path, federation={"aggregation": "fedadam"}, **plain)
    simulate(run_file, "--out", tmp_path / "whole", "--quiet")
    simulate(run_file, "--out", tmp_path / "parts", "--quiet")
    # As a kill in round 6 leaves it: the last checkpoint is that of round 5.
    (tmp_path / "parts" / "checkpoint" / "round-000006.json").unlink()

    assert_resume_finishes(tmp_path / "parts", rounds=6)

    whole, parts = (
        (tmp_path / name / "model" / "model.safetensors").read_bytes()
        for name in ("whole", "parts")
    )
    assert whole == parts


def test_a_site_whose_ceiling_ends_half_way_stops_and_the_others_go_on(tmp_path: Path) -> None:
    rounds = 6
    plan = load_plan(write_run(tmp_path, training={"rounds": rounds}))
    small = {"epsilon": planned_epsilon(plan, 3) * 1.001, "delta": DELTA}
    run_file = write_run(
        tmp_path,
        training={"rounds": rounds},
        simulation={"sites": {"site-0001": {"policy": small}}},
    )

    result = simulate(run_file, "--out", tmp_path / "out")

    assert result.exit_code == 0, result.output
    assert "budget in round 4" in result.stdout
    report = report_of(tmp_path / "out")
    sites = {site["name"]: site for site in report["sites"]}  # type: ignore[attr-defined]
    assert (sites["site-0001"]["refused"], sites["site-0001"]["refused_round"]) == ("budget", 4)
    assert [sites[name]["rounds"] for name in SITES] == [6, 3, 6]
    assert sites["site-0001"]["epsilon"] <= small["epsilon"]
    taken = [record["sites"] for record in report["rounds"]]  # type: ignore[attr-defined]
    assert taken == [3, 3, 3, 2, 2, 2]
    assert report["is_finished"] is True


def test_ledgers_carry_over_to_the_next_run_which_nobody_joins(tmp_path: Path) -> None:
    run_file, state_dir = write_run(tmp_path), tmp_path / "state"
    first = simulate(run_file, "--out", tmp_path / "first", "--state", state_dir, "--quiet")
    assert first.exit_code == 0, first.output

    second = simulate(run_file, "--out", tmp_path / "second", "--state", state_dir)

    assert second.exit_code == 3
    (line,) = second.stderr.splitlines()
    assert "no site took part (3 refused: budget)" in line
    assert str(tmp_path / "second" / "report.html") in line
    report = report_of(tmp_path / "second")
    assert [site["refused"] for site in report["sites"]] == ["budget"] * 3  # type: ignore[attr-defined]
    assert report["is_finished"] is False
    for site in SITES:
        with ledger_of(state_dir, site) as ledger:
            ledger.verify()
            assert len(ledger.entries()) == 2


def test_a_second_run_under_a_higher_ceiling_adds_to_the_first(tmp_path: Path) -> None:
    run_file = write_run(tmp_path, simulation={"policy": ROOMY})
    for name in ("first", "second"):
        arguments = ["--out", tmp_path / name, "--state", tmp_path / "state", "--quiet"]
        assert simulate(run_file, *arguments).exit_code == 0

    first, second = (report_of(tmp_path / name) for name in ("first", "second"))

    assert second["sites"][0]["epsilon"] > first["sites"][0]["epsilon"]  # type: ignore[index]
    assert second["run"] != first["run"]


def test_a_run_that_kept_its_ledgers_elsewhere_does_not_go_on_without_them(
    tmp_path: Path,
) -> None:
    # New ledgers would begin at 0, and the report would state less than was spent.
    run_dir, state_dir = tmp_path / "out", tmp_path / "state"
    simulate(write_run(tmp_path), "--out", run_dir, "--state", state_dir, "--quiet")
    (run_dir / "checkpoint" / "round-000002.json").unlink()

    result = simulate("--resume", run_dir)

    assert result.exit_code == 2
    (line,) = result.stderr.splitlines()
    assert "--state" in line
    assert "site-0000 took part in 1 rounds and its ledger has 0" in line
    assert simulate("--resume", run_dir, "--state", state_dir, "--quiet").exit_code == 0
    for site in report_of(run_dir)["sites"]:  # type: ignore[attr-defined]
        assert 7.9 < site["epsilon"] <= 8.0


def test_the_plan_of_a_run_cannot_be_exchanged_under_it(tmp_path: Path) -> None:
    run_dir = tmp_path / "out"
    simulate(write_run(tmp_path), "--out", run_dir, "--quiet")
    plan_file = run_dir / "plan.yaml"
    content = plan_file.read_text(encoding="utf-8").replace("rounds: 2", "rounds: 3")
    plan_file.write_text(content, encoding="utf-8")

    result = simulate("--resume", run_dir)

    assert result.exit_code == 2
    assert "must be the one that the run was started with" in result.stderr
    checkpoint = load_checkpoint(run_dir)
    assert checkpoint is not None
    assert checkpoint.round == 2

"""A simulation as a function: what it tells while it goes, what it gives, what it leaves."""

from __future__ import annotations

import signal
import sys
import threading
from pathlib import Path

import orjson
import pytest

from discreet.common.errors import ConfigError, DataError, RefusalCode, RefusedError
from discreet.common.plan import Plan
from discreet.deploy.progress import QuietProgress
from discreet.deploy.simulate import SimulateOptions, simulate
from discreet.server.history import RoundRecord, RunSummary, load_summary

LABELS = ["ham", "spam"]
TEXTS = [{"text": f"{LABELS[i % 2]} number {i}", "label": LABELS[i % 2]} for i in range(24)]


class Told(QuietProgress):
    """A progress that remembers, and may press Ctrl-C after a round."""

    def __init__(self, interrupt_after: int = 0) -> None:
        super().__init__(sys.stdout)
        self.interrupt_after = interrupt_after
        self.phases: list[tuple[str, int]] = []
        self.advanced: list[int] = []
        self.rounds: list[int] = []

    def start(self, phase: str, total: int) -> None:
        self.phases.append((phase, total))
        self.advanced.append(0)

    def advance(self, num: int = 1) -> None:
        self.advanced[-1] += num

    def round_done(self, record: RoundRecord, total_rounds: int) -> None:
        self.rounds.append(record.round)
        if record.round == self.interrupt_after:
            signal.raise_signal(signal.SIGINT)


def plan_of(folder: Path, *, rounds: int = 3, **sections: object) -> Plan:
    path = folder / "texts.jsonl"
    path.write_bytes(b"\n".join(map(orjson.dumps, TEXTS)))
    simulation = sections.pop("simulation", {})
    assert isinstance(simulation, dict)
    return Plan.model_validate(
        {
            "name": "test",
            "task": {"labels": LABELS},
            "model": {"kind": "linear", "buckets": 32},
            "tokens": {"max_tokens": 8},
            "privacy": {"unit": "example", "epsilon": 8.0, "delta": 1e-5},
            "training": {
                "rounds": rounds,
                "sample_rate": 1.0,
                "expected_batch_size": 8,
                "learning_rate": 1.0,
            },
            "simulation": {
                "data": {"path": str(path)},
                "num_sites": 3,
                "scrub": {"enabled": False},
                **simulation,
            },
            **sections,
        }
    )


def run(
    plan: Plan, run_dir: Path, progress: Told | None = None, *, resume: bool = False
) -> RunSummary:
    options = SimulateOptions(resume=resume)
    return simulate(plan, run_dir, options=options, progress=progress or Told())


def test_phases_follow_each_other_and_every_round_is_told_once(tmp_path: Path) -> None:
    progress = Told()

    run(plan_of(tmp_path), tmp_path / "run", progress)

    assert progress.phases == [("scrubbing", 24), ("training", 3)]
    assert progress.advanced == [24, 3]
    assert progress.rounds == [1, 2, 3]


def test_what_is_given_back_is_what_lies_in_the_folder(tmp_path: Path) -> None:
    summary = run(plan_of(tmp_path), tmp_path / "run")

    assert summary == load_summary(tmp_path / "run")
    assert summary.is_finished
    names = {path.name for path in (tmp_path / "run").iterdir()}
    assert {"report.json", "report.html", "model", "checkpoint", "tensorboard", "sites"} <= names


def test_every_sites_ledger_stands_in_the_summary_beside_its_ceiling(tmp_path: Path) -> None:
    summary = run(plan_of(tmp_path), tmp_path / "run")

    assert [site.name for site in summary.sites] == ["site-0000", "site-0001", "site-0002"]
    for site in summary.sites:
        assert (site.ceiling, site.delta, site.rounds) == (8.0, 1e-5, 3)
        assert site.epsilon is not None
        assert 7.9 < site.epsilon <= 8.0


def test_without_privacy_there_is_no_epsilon_and_no_guarantee(tmp_path: Path) -> None:
    summary = run(plan_of(tmp_path, privacy="none"), tmp_path / "run")

    assert {site.epsilon for site in summary.sites} == {None}
    assert {record.epsilon_max for record in summary.rounds} == {None}
    assert summary.guarantee.epsilon is None


def test_a_plan_that_no_noise_satisfies_fails_before_any_work(tmp_path: Path) -> None:
    plan = plan_of(tmp_path, privacy={"unit": "example", "epsilon": 1e-9, "delta": 1e-15})

    with pytest.raises(ConfigError, match=r"privacy\.epsilon"):
        run(plan, tmp_path / "run")

    assert not (tmp_path / "run").exists()


def test_only_the_cohort_is_asked_in_a_round(tmp_path: Path) -> None:
    summary = run(plan_of(tmp_path, federation={"cohort_size": 2}), tmp_path / "run")

    assert [record.sites_asked for record in summary.rounds] == [2, 2, 2]
    assert sum(site.rounds for site in summary.sites) == 6


def test_the_public_split_is_scored_each_round(tmp_path: Path) -> None:
    data = {"path": str(tmp_path / "texts.jsonl")}
    plan = plan_of(tmp_path, evaluation={"data": data, "scrub": {"enabled": False}})

    summary = run(plan, tmp_path / "run")

    assert all(record.accuracy is not None for record in summary.rounds)
    assert {score.label: score.num_examples for score in summary.classes} == {
        "ham": 12,
        "spam": 12,
    }
    assert summary.final["accuracy"] == summary.rounds[-1].accuracy


def test_sites_may_keep_their_state_elsewhere(tmp_path: Path) -> None:
    options = SimulateOptions(state_dir=tmp_path / "state")

    simulate(plan_of(tmp_path), tmp_path / "run", options=options, progress=Told())

    assert not (tmp_path / "run" / "sites").exists()
    assert (tmp_path / "state" / "site-0002" / "ledger.sqlite").is_file()


# Ctrl-C


def test_ctrl_c_ends_in_good_order_with_a_report_and_the_run_can_be_gone_on_with(
    tmp_path: Path,
) -> None:
    plan = plan_of(tmp_path, rounds=5)

    with pytest.raises(KeyboardInterrupt):
        run(plan, tmp_path / "run", Told(interrupt_after=2))

    assert len(load_summary(tmp_path / "run").rounds) == 2
    assert not load_summary(tmp_path / "run").is_finished
    progress = Told()
    summary = run(plan, tmp_path / "run", progress, resume=True)
    assert progress.phases == [("training", 5)]
    assert (progress.advanced, progress.rounds) == ([5], [3, 4, 5])
    assert summary.is_finished
    assert [record.round for record in summary.rounds] == [1, 2, 3, 4, 5]


def test_ctrl_c_after_the_last_round_loses_nothing(tmp_path: Path) -> None:
    summary = run(plan_of(tmp_path), tmp_path / "run", Told(interrupt_after=3))

    assert summary.is_finished


@pytest.mark.parametrize("interrupt_after", [0, 1])
def test_the_signal_is_afterwards_handled_as_before(tmp_path: Path, interrupt_after: int) -> None:
    before = signal.getsignal(signal.SIGINT)
    try:
        run(plan_of(tmp_path), tmp_path / "run", Told(interrupt_after))
    except KeyboardInterrupt:
        assert interrupt_after

    assert signal.getsignal(signal.SIGINT) is before


def test_it_runs_in_another_thread_too(tmp_path: Path) -> None:
    summaries: list[RunSummary] = []
    plan = plan_of(tmp_path)
    thread = threading.Thread(target=lambda: summaries.append(run(plan, tmp_path / "run")))

    thread.start()
    thread.join()

    assert summaries[0].is_finished


# resuming


def test_there_must_be_a_folder_to_go_on_with(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no run to go on with"):
        run(plan_of(tmp_path), tmp_path / "nowhere", resume=True)


def test_a_run_that_was_stopped_before_its_first_round_starts(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()

    assert run(plan_of(tmp_path), tmp_path / "run", resume=True).is_finished


def test_another_plan_is_refused(tmp_path: Path) -> None:
    run(plan_of(tmp_path), tmp_path / "run")

    with pytest.raises(ConfigError, match="the one that the run was started with"):
        run(plan_of(tmp_path, rounds=4), tmp_path / "run", resume=True)


# refusals


def test_a_run_that_no_site_joins_is_refused_and_still_has_its_report(tmp_path: Path) -> None:
    policy = {"epsilon": 8.0, "delta": 1e-5, "max_rounds": 2}

    with pytest.raises(RefusedError, match=r"no site took part \(3 refused: policy\)") as caught:
        run(plan_of(tmp_path, simulation={"policy": policy}), tmp_path / "run")

    assert caught.value.code == RefusalCode.POLICY
    assert {site.refused for site in load_summary(tmp_path / "run").sites} == {"policy"}


def test_sites_that_refuse_do_not_stop_the_others(tmp_path: Path) -> None:
    override = {"policy": {"epsilon": 8.0, "delta": 1e-5, "models": ["lstm"]}}
    plan = plan_of(tmp_path, simulation={"sites": {"site-0000": override}})

    summary = run(plan, tmp_path / "run")

    assert summary.is_finished
    assert [site.refused for site in summary.sites] == ["policy", None, None]
    assert [site.rounds for site in summary.sites] == [0, 3, 3]
    assert summary.sites[0].epsilon == 0.0

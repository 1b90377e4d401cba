"""The rounds of a run: recorded, stopped, killed, resumed."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from scripted_sites import Answer, ScriptedGrid, answer_with, fails, refuses, sends, update_of

from discreet.common.errors import ConfigError, RefusalCode
from discreet.common.plan import Plan
from discreet.common.scores import ClassScores, Scores
from discreet.common.update import ClippedUpdate, Weights
from discreet.common.wire import encode_update, read_task, reply_content
from discreet.privacy.mechanism import planned_epsilon
from discreet.server.app import make_server_app
from discreet.server.checkpoint import Checkpoint, load_checkpoint
from discreet.server.history import RoundRecord
from discreet.server.loop import RunSetup, run_rounds

# isort: split
from flwr.app import Context, Message, RecordDict

MakePlan = Callable[..., Plan]
PRIVATE = {"unit": "example", "epsilon": 8.0, "delta": 1e-5}


def _setup(run_dir: Path, plan: Plan, weights: Weights) -> RunSetup:
    return RunSetup(plan, "run-1", run_dir, weights, site_name=lambda node: f"site-{node}")


def _drifts(message: Message) -> Message:
    """An update that depends on the weights, so that order and state matter."""
    weights = read_task(message.content).weights
    update = ClippedUpdate({name: 0.5 * torch.cos(3 * t + 0.1) for name, t in weights.items()})
    return Message(reply_content(encode_update(update, dtype="float32")), reply_to=message)


def test_rounds_are_recorded_in_order(
    tmp_path: Path, make_plan: MakePlan, start_weights: Weights
) -> None:
    told: list[RoundRecord] = []
    setup = replace(_setup(tmp_path, make_plan(), start_weights), on_round=told.append)

    state = run_rounds(ScriptedGrid({2: sends(1.0), 3: fails}), setup)

    assert [record.round for record in state.records] == [1, 2, 3]
    assert state.records == tuple(told)
    assert all((r.sites_asked, r.sites) == (2, 1) for r in state.records)
    assert state.records[0].failed == {"site-3": "error"}
    assert state.records[0].seconds > 0
    assert state.records[0].epsilon_max is None
    torch.testing.assert_close(state.weights["w"], torch.full((2, 3), 1.5))


def test_a_round_is_on_disk_before_anybody_hears_of_it(
    tmp_path: Path, make_plan: MakePlan, start_weights: Weights
) -> None:
    on_disk: list[int] = []

    def note(record: RoundRecord) -> None:
        saved = load_checkpoint(tmp_path)
        on_disk.append(saved.round if saved else -1)

    setup = replace(_setup(tmp_path, make_plan(), start_weights), on_round=note)
    run_rounds(ScriptedGrid({2: sends(1.0)}), setup)

    assert on_disk == [1, 2, 3]


def test_rounds_agree_with_federated_averaging_written_by_hand(
    tmp_path: Path, make_plan: MakePlan, start_weights: Weights
) -> None:
    plan = make_plan(rounds=4, server_learning_rate=0.7)

    state = run_rounds(
        ScriptedGrid({2: _drifts, 3: sends(0.25)}), _setup(tmp_path, plan, start_weights)
    )

    expected = {name: t.double() for name, t in start_weights.items()}
    for _ in range(4):
        for name, fixed in update_of(0.25).items():
            drift = 0.5 * torch.cos(3 * expected[name] + 0.1)
            expected[name] = expected[name] + 0.7 * (drift + fixed.double()) / 2
    for name, tensor in state.weights.items():
        torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("aggregation", ["fedavg", "fedavgm", "fedadam"])
@pytest.mark.parametrize("stopped_after", [0, 1, 3])
def test_a_resumed_run_ends_with_the_same_bits(
    aggregation: str,
    stopped_after: int,
    tmp_path: Path,
    make_plan: MakePlan,
    start_weights: Weights,
) -> None:
    plan = make_plan(rounds=5, aggregation=aggregation)
    grid = ScriptedGrid({2: _drifts, 3: sends(0.25)})
    whole = run_rounds(grid, _setup(tmp_path / "whole", plan, start_weights))
    setup = _setup(tmp_path / "parts", plan, start_weights)
    done: list[RoundRecord] = []
    stopping = replace(setup, on_round=done.append, should_stop=lambda: len(done) >= stopped_after)
    stopped = run_rounds(grid, stopping)
    assert stopped.round == stopped_after

    resumed = run_rounds(grid, replace(setup, resume=load_checkpoint(tmp_path / "parts")))

    assert all(torch.equal(resumed.weights[n], t) for n, t in whole.weights.items())
    assert resumed.sites == whole.sites
    assert resumed.started == stopped.started
    same = [replace(record, seconds=0.0) for record in whole.records]
    assert [replace(record, seconds=0.0) for record in resumed.records] == same


def test_a_resumed_run_keeps_its_identity(
    tmp_path: Path, make_plan: MakePlan, start_weights: Weights
) -> None:
    runs: list[str] = []

    def look(message: Message) -> Message:
        runs.append(read_task(message.content).run)
        return sends(1.0)(message)

    setup = _setup(tmp_path, make_plan(rounds=1), start_weights)
    run_rounds(ScriptedGrid({2: look}), replace(setup, should_stop=lambda: True))
    run_rounds(
        ScriptedGrid({2: look}), replace(setup, run="other", resume=load_checkpoint(tmp_path))
    )

    assert runs == ["run-1"]


def test_resuming_with_another_plan_is_refused(
    tmp_path: Path, make_plan: MakePlan, start_weights: Weights
) -> None:
    run_rounds(ScriptedGrid({2: fails}), _setup(tmp_path, make_plan(), start_weights))
    other = _setup(tmp_path, make_plan(rounds=9), start_weights)

    with pytest.raises(ConfigError, match="start a new run"):
        run_rounds(ScriptedGrid({2: fails}), replace(other, resume=load_checkpoint(tmp_path)))


def test_epsilon_counts_every_round_that_may_have_cost_something(
    tmp_path: Path, make_plan: MakePlan, start_weights: Weights
) -> None:
    plan = make_plan(privacy=PRIVATE, rounds=3)
    # Site 3 loses its updates and site 4 diverges: both have touched their text.
    answers: dict[int, Answer] = {
        2: refuses(RefusalCode.BUDGET),
        3: fails,
        4: refuses(RefusalCode.DIVERGED),
    }

    state = run_rounds(ScriptedGrid(answers), _setup(tmp_path, plan, start_weights))

    assert state.sites["site-2"].charged == ()
    assert state.sites["site-3"].charged == (1, 2, 3)
    assert state.sites["site-4"].charged == (1, 2, 3)
    assert [r.epsilon_max for r in state.records] == [planned_epsilon(plan, n) for n in (1, 2, 3)]


def test_a_round_broken_off_and_done_again_is_charged_once(
    tmp_path: Path, make_plan: MakePlan, start_weights: Weights
) -> None:
    plan = make_plan(privacy=PRIVATE, rounds=3)
    setup = _setup(tmp_path, plan, start_weights)

    def breaks_off(message: Message) -> Message:
        if read_task(message.content).round_number == 2:
            raise KeyboardInterrupt
        return sends(1.0)(message)

    with pytest.raises(KeyboardInterrupt):
        run_rounds(ScriptedGrid({2: sends(1.0), 3: breaks_off}), setup)
    state = run_rounds(
        ScriptedGrid({2: sends(1.0), 3: sends(1.0)}),
        replace(setup, resume=load_checkpoint(tmp_path)),
    )

    assert state.round == 3
    assert state.sites["site-2"].charged == (1, 2, 3)
    assert state.records[-1].epsilon_max == planned_epsilon(plan, 3)


def test_a_run_goes_on_without_who_refused_and_says_when(
    tmp_path: Path, make_plan: MakePlan, start_weights: Weights
) -> None:
    def runs_dry(message: Message) -> Message:
        number = read_task(message.content).round_number
        return (refuses(RefusalCode.BUDGET) if number == 2 else sends(1.0))(message)

    state = run_rounds(
        ScriptedGrid({2: runs_dry, 3: sends(1.0)}), _setup(tmp_path, make_plan(), start_weights)
    )

    assert [record.sites for record in state.records] == [2, 1, 1]
    assert state.sites["site-2"].refused == "budget"
    assert state.sites["site-2"].refused_round == 2
    assert state.sites["site-2"].rounds == 1


def test_a_run_ends_early_once_everybody_has_refused_for_good(
    tmp_path: Path, make_plan: MakePlan, start_weights: Weights
) -> None:
    grid = ScriptedGrid({2: refuses(RefusalCode.BUDGET), 3: refuses(RefusalCode.PLAN)})

    state = run_rounds(grid, _setup(tmp_path, make_plan(rounds=50), start_weights))

    assert state.round == 1
    assert state.records[0].refused == {"site-2": "budget", "site-3": "plan"}
    assert all(torch.equal(state.weights[n], t) for n, t in start_weights.items())


def test_scores_are_those_of_the_new_weights(
    tmp_path: Path, make_plan: MakePlan, start_weights: Weights
) -> None:
    def score(weights: Weights) -> Scores:
        accuracy = float(weights["w"].mean()) / 10
        classes = tuple(ClassScores(n, 0.1, 0.2, 0.3, 4) for n in range(2))
        return Scores(math.nan, accuracy, 0.1, 0.2, 0.3, classes)

    setup = replace(_setup(tmp_path, make_plan(), start_weights), evaluate=score)
    state = run_rounds(ScriptedGrid({2: sends(1.0)}), setup)

    assert [record.accuracy for record in state.records] == pytest.approx([0.1, 0.2, 0.3])
    assert [c.label for c in state.records[0].classes] == ["ham", "spam"]
    # Weights that diverged have no loss to show.
    assert state.records[0].loss is None


def test_the_server_app_runs_the_rounds(
    tmp_path: Path, make_plan: MakePlan, start_weights: Weights
) -> None:
    ends: list[Checkpoint] = []
    app = make_server_app(_setup(tmp_path, make_plan(), start_weights), ends.append)

    app(
        ScriptedGrid({2: sends(1.0)}),
        Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={}),
    )

    assert [state.round for state in ends] == [3]


def test_an_unreadable_reply_does_not_end_the_run(
    tmp_path: Path, make_plan: MakePlan, start_weights: Weights
) -> None:
    state = run_rounds(
        ScriptedGrid({2: answer_with(RecordDict()), 3: sends(1.0)}),
        _setup(tmp_path, make_plan(), start_weights),
    )

    assert [record.sites for record in state.records] == [1, 1, 1]

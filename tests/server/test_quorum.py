"""A server waits for its quorum, asks again for what was lost, and never counts too little."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from scripted_sites import Answer, ScriptedGrid, fails, refuses, sends

from discreet.common.errors import RefusalCode, UnreachableError
from discreet.common.plan import Plan
from discreet.common.update import Weights
from discreet.server.checkpoint import load_checkpoint
from discreet.server.loop import MAX_ATTEMPTS, RunSetup, run_rounds

# isort: split
from flwr.app import Message

MakePlan = Callable[..., Plan]
PRIVATE = {"unit": "example", "epsilon": 8.0, "delta": 1e-5}


def _setup(run_dir: Path, plan: Plan, weights: Weights) -> RunSetup:
    """A server that waits for a second, and longer than any test takes."""
    return RunSetup(
        plan, "run-1", run_dir, weights, site_name=lambda node: f"site-{node}", wait_seconds=5.0
    )


def _answers_from_attempt(number: int, answer: Answer) -> Answer:
    """Lost until the site has been asked so often."""
    asked = 0

    def reply(message: Message) -> Message | None:
        nonlocal asked
        asked += 1
        return answer(message) if asked >= number else fails(message)

    return reply


def test_a_round_begins_when_the_quorum_is_there(
    tmp_path: Path, make_plan: MakePlan, start_weights: Weights
) -> None:
    grid = ScriptedGrid({2: sends(1.0)})
    told: list[int] = []

    def come(num_sites: int) -> None:
        told.append(num_sites)
        grid.answers[3] = sends(1.0)

    setup = _setup(tmp_path, make_plan(rounds=1, min_sites=2), start_weights)
    state = run_rounds(grid, replace(setup, on_wait=come))

    assert told == [1]
    assert state.records[0].sites == 2


def test_without_a_quorum_in_time_the_run_ends_with_code_4_and_says_what_was_missing(
    tmp_path: Path, make_plan: MakePlan, start_weights: Weights
) -> None:
    setup = replace(_setup(tmp_path, make_plan(min_sites=3), start_weights), wait_seconds=0.1)
    started = time.monotonic()

    with pytest.raises(UnreachableError, match=r"min_sites is 3.*0\.1 s\) 1 were there") as caught:
        run_rounds(ScriptedGrid({2: sends(1.0)}), setup)

    assert caught.value.exit_code == 4
    assert 0.1 <= time.monotonic() - started < 5
    assert load_checkpoint(tmp_path) is not None


def test_a_stop_ends_the_wait(tmp_path: Path, make_plan: MakePlan, start_weights: Weights) -> None:
    looks: list[int] = []
    setup = _setup(tmp_path, make_plan(min_sites=2), start_weights)
    stopping = replace(setup, on_wait=looks.append, should_stop=lambda: len(looks) >= 2)

    with pytest.raises(KeyboardInterrupt):
        run_rounds(ScriptedGrid({2: sends(1.0)}), stopping)


def test_a_round_that_lost_a_site_is_asked_again_and_uses_all(
    tmp_path: Path, make_plan: MakePlan, start_weights: Weights
) -> None:
    grid = ScriptedGrid({2: sends(1.0), 3: _answers_from_attempt(2, sends(0.5))})

    state = run_rounds(grid, _setup(tmp_path, make_plan(rounds=1, min_sites=2), start_weights))

    assert grid.asked == [2, 3, 2, 3]
    assert [record.sites for record in state.records] == [2]
    assert state.records[0].failed == {}


def test_an_attempt_in_vain_leaves_the_weights_and_the_optimizer_as_they_are(
    tmp_path: Path, make_plan: MakePlan, start_weights: Weights
) -> None:
    plan = make_plan(rounds=2, min_sites=2, aggregation="fedavgm")
    whole = run_rounds(
        ScriptedGrid({2: sends(1.0), 3: sends(0.5)}),
        _setup(tmp_path / "whole", plan, start_weights),
    )

    lossy = run_rounds(
        ScriptedGrid({2: sends(1.0), 3: _answers_from_attempt(3, sends(0.5))}),
        _setup(tmp_path / "lossy", plan, start_weights),
    )

    assert all(torch.equal(lossy.weights[name], t) for name, t in whole.weights.items())


def test_a_round_is_not_asked_for_ever(
    tmp_path: Path, make_plan: MakePlan, start_weights: Weights
) -> None:
    grid = ScriptedGrid({2: sends(1.0), 3: fails})
    setup = _setup(tmp_path, make_plan(min_sites=2), start_weights)

    with pytest.raises(UnreachableError, match="go on with --resume"):
        run_rounds(grid, setup)

    assert grid.asked == [2, 3] * MAX_ATTEMPTS
    resumed = load_checkpoint(tmp_path)
    assert resumed is not None
    assert resumed.round == 0


def test_above_the_quorum_nobody_is_waited_for(
    tmp_path: Path, make_plan: MakePlan, start_weights: Weights
) -> None:
    grid = ScriptedGrid({2: sends(1.0), 3: fails})

    state = run_rounds(grid, _setup(tmp_path, make_plan(rounds=1, min_sites=1), start_weights))

    assert grid.asked == [2, 3]
    assert state.records[0].failed == {"site-3": "error"}


def test_updates_below_the_quorum_are_not_used_where_asking_again_is_in_vain(
    tmp_path: Path, make_plan: MakePlan, start_weights: Weights
) -> None:
    grid = ScriptedGrid({2: sends(1.0), 3: refuses(RefusalCode.DATA)})

    state = run_rounds(grid, _setup(tmp_path, make_plan(rounds=1, min_sites=2), start_weights))

    assert grid.asked == [2, 3]
    assert all(torch.equal(state.weights[name], t) for name, t in start_weights.items())


def test_every_attempt_that_a_site_may_have_paid_is_counted(
    tmp_path: Path, make_plan: MakePlan, start_weights: Weights
) -> None:
    plan = make_plan(privacy=PRIVATE, rounds=1, min_sites=2)
    grid = ScriptedGrid({2: sends(1.0), 3: _answers_from_attempt(3, sends(0.5))})

    state = run_rounds(grid, _setup(tmp_path, plan, start_weights))

    # Site 2 has sent one update three times; site 3 may have trained three times.
    assert state.sites["site-2"].charged == (1,)
    assert state.sites["site-3"].charged == (1, 1, 1)


def test_who_was_asked_before_the_server_was_killed_is_charged_also_if_it_never_comes_back(
    tmp_path: Path, make_plan: MakePlan, start_weights: Weights
) -> None:
    plan = make_plan(privacy=PRIVATE, rounds=2, min_sites=1)
    setup = _setup(tmp_path, plan, start_weights)

    def is_killed(message: Message) -> Message:
        raise SystemExit

    with pytest.raises(SystemExit):
        run_rounds(ScriptedGrid({2: sends(1.0), 3: is_killed}), setup)
    state = run_rounds(
        ScriptedGrid({2: sends(1.0)}), replace(setup, resume=load_checkpoint(tmp_path))
    )

    assert state.sites["site-2"].charged == (1, 2)
    assert state.sites["site-3"].charged == (1,)


def test_a_site_that_was_here_may_come_back_before_the_run_counts_as_refused_by_all(
    tmp_path: Path, make_plan: MakePlan, start_weights: Weights
) -> None:
    grid = ScriptedGrid({2: refuses(RefusalCode.BUDGET), 3: sends(1.0)})

    def go(record: object) -> None:
        grid.answers.pop(3, None)

    def come_back(num_sites: int) -> None:
        grid.answers[3] = sends(1.0)

    setup = _setup(tmp_path, make_plan(rounds=2, min_sites=1), start_weights)
    state = run_rounds(grid, replace(setup, on_round=go, on_wait=come_back))

    assert [record.sites for record in state.records] == [1, 1]


@pytest.mark.parametrize(("oversample", "num_asked"), [(1.0, 2), (1.5, 3), (2.0, 4), (10.0, 5)])
def test_more_sites_are_asked_than_are_used_and_the_first_to_answer_are(
    oversample: float,
    num_asked: int,
    tmp_path: Path,
    make_plan: MakePlan,
    start_weights: Weights,
) -> None:
    plan = make_plan(rounds=1, cohort_size=2, oversample=oversample)
    grid = ScriptedGrid({node: sends(1.0) for node in range(2, 7)})

    state = run_rounds(grid, _setup(tmp_path, plan, start_weights))

    record = state.records[0]
    assert (record.sites_asked, record.sites) == (num_asked, 2)
    assert list(record.failed.values()) == ["surplus"] * (num_asked - 2)
    # Two updates of 1 over a divisor of 2: no more than the divisor counts.
    torch.testing.assert_close(state.weights["w"], start_weights["w"] + 1.0)
    assert sum(len(site.charged) for site in state.sites.values()) == num_asked


def test_the_order_of_the_sum_is_that_of_the_names(
    tmp_path: Path, make_plan: MakePlan, start_weights: Weights
) -> None:
    names = {9: "site-0000", 5: "site-0002", 7: "site-0010", 2: "site-0001"}
    grid = ScriptedGrid({node: sends(1.0) for node in names})
    setup = _setup(tmp_path, make_plan(rounds=1), start_weights)

    run_rounds(grid, replace(setup, site_name=names.__getitem__))

    assert [names[node] for node in grid.asked] == sorted(names.values())

"""What enters the mean, what is left out and how it is counted, and what is held in memory."""

from __future__ import annotations

import gc
import struct
import weakref
from collections.abc import Callable, Iterable, Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_sites import (
    Answer,
    ScriptedGrid,
    answer_with,
    fails,
    refuses,
    sends,
    stays_silent,
    update_of,
)

from discreet.common.errors import RefusalCode
from discreet.common.plan import Plan
from discreet.common.update import ClippedUpdate, Weights
from discreet.common.wire import (
    PROTOCOL_VERSION,
    encode_tensors,
    encode_update,
    read_task,
    reply_content,
    tensors_sha256,
)
from discreet.server.history import FailureCause
from discreet.server.optimizer import ServerOptimizer
from discreet.server.strategy import StrategySetup, StreamingFedAvg

# isort: split
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

MakePlan = Callable[..., Plan]


def _strategy(plan: Plan, weights: Weights) -> StreamingFedAvg:
    setup = StrategySetup(plan, "run-1", lambda node: f"site-{node}")
    return StreamingFedAvg(setup, weights, ServerOptimizer(plan.federation))


def _round(strategy: StreamingFedAvg, grid: ScriptedGrid, number: int = 1) -> None:
    messages = strategy.configure_train(number, strategy.current_arrays(), ConfigRecord(), grid)
    strategy.aggregate_train(number, grid.send_and_receive(messages))


def test_a_round_adds_the_mean_of_the_updates(make_plan: MakePlan, start_weights: Weights) -> None:
    strategy = _strategy(make_plan(), start_weights)

    _round(strategy, ScriptedGrid({2: sends(1.0), 3: sends(2.0), 4: sends(6.0)}))

    torch.testing.assert_close(strategy.weights["w"], torch.full((2, 3), 3.0))
    torch.testing.assert_close(strategy.weights["b"], torch.full((3,), -2.0))
    assert strategy.tally.taken == ["site-2", "site-3", "site-4"]


def test_sites_get_the_run_the_round_the_plan_and_the_weights(
    make_plan: MakePlan, start_weights: Weights
) -> None:
    plan = make_plan()
    tasks = []

    def look(message: Message) -> None:
        tasks.append(read_task(message.content))

    strategy = _strategy(plan, start_weights)
    _round(strategy, ScriptedGrid({2: look, 3: look}), number=7)

    assert [(task.run, task.round_number) for task in tasks] == [("run-1", 7)] * 2
    assert tasks[0].plan_json == plan.shared_json()
    torch.testing.assert_close(dict(tasks[1].weights), dict(start_weights))


def _with_tensors(**tensors: torch.Tensor) -> Answer:
    return answer_with(reply_content(encode_update(ClippedUpdate(tensors), dtype="float32")))


def _answers_with_a_wrong_hash(message: Message) -> Message:
    content = reply_content(encode_update(update_of(1.0), dtype="float32"))
    content.config_records["reply"]["sha256"] = "0" * 64
    return Message(content, reply_to=message)


def _answers_with_a_hostile_header(message: Message) -> Message:
    # NumPy reads the header as a Python expression: this one exhausts its parser.
    header = b"-" * 9000 + b"1\n"
    data = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header
    arrays = ArrayRecord({"w": Array("float32", (2, 3), "numpy.ndarray", data)})
    reply = {"version": PROTOCOL_VERSION, "code": "", "sha256": tensors_sha256(arrays)}
    return Message(RecordDict({"reply": ConfigRecord(reply), "update": arrays}), reply_to=message)


def _answers_an_older_round(message: Message) -> Message:
    older = Message(RecordDict(), message.metadata.dst_node_id, "train", group_id="0")
    return Message(reply_content(encode_update(update_of(1.0), dtype="float32")), reply_to=older)


LEFT_OUT: dict[str, tuple[Answer, FailureCause]] = {
    "an error": (fails, FailureCause.ERROR),
    "silence": (stays_silent, FailureCause.NO_REPLY),
    "an older round": (_answers_an_older_round, FailureCause.STALE),
    "nothing inside": (answer_with(RecordDict()), FailureCause.UNREADABLE),
    "a wrong hash": (_answers_with_a_wrong_hash, FailureCause.UNREADABLE),
    "a hostile header": (_answers_with_a_hostile_header, FailureCause.UNREADABLE),
    "a missing name": (_with_tensors(w=torch.zeros(2, 3)), FailureCause.MISMATCH),
    "another name": (
        _with_tensors(w=torch.zeros(2, 3), b=torch.zeros(3), c=torch.zeros(1)),
        FailureCause.MISMATCH,
    ),
    "a wrong shape": (
        _with_tensors(w=torch.zeros(3, 2), b=torch.zeros(3)),
        FailureCause.MISMATCH,
    ),
    "another number format": (sends(1.0, dtype="bfloat16"), FailureCause.MISMATCH),
    "NaN": (
        _with_tensors(w=torch.full((2, 3), torch.nan), b=torch.zeros(3)),
        FailureCause.NON_FINITE,
    ),
    "infinity": (
        _with_tensors(w=torch.zeros(2, 3), b=torch.full((3,), -torch.inf)),
        FailureCause.NON_FINITE,
    ),
    # 9 numbers of 34 have the norm 102; the bound is 100.
    "a norm over the bound": (sends(34.0), FailureCause.OVER_BOUND),
}


@pytest.mark.parametrize("case", LEFT_OUT)
def test_a_bad_answer_is_left_out_and_counted(
    case: str, make_plan: MakePlan, start_weights: Weights
) -> None:
    answer, cause = LEFT_OUT[case]
    strategy = _strategy(make_plan(), start_weights)

    _round(strategy, ScriptedGrid({2: sends(1.0), 3: answer, 4: sends(2.0), 5: sends(1.0)}))

    assert strategy.tally.failed == {"site-3": cause}
    # The divisor stays 4: who drops out does not change the weight of the others.
    torch.testing.assert_close(strategy.weights["w"], torch.full((2, 3), 1.0))


@pytest.mark.parametrize("code", RefusalCode)
def test_a_refusal_is_counted_by_its_code(
    code: RefusalCode, make_plan: MakePlan, start_weights: Weights
) -> None:
    strategy = _strategy(make_plan(), start_weights)

    _round(strategy, ScriptedGrid({2: sends(4.0), 3: refuses(code)}))

    assert strategy.tally.refused == {"site-3": code}
    torch.testing.assert_close(strategy.weights["w"], torch.full((2, 3), 2.0))


@settings(deadline=None, max_examples=30)
@given(present=st.lists(st.booleans(), min_size=1, max_size=8))
def test_dropouts_never_change_the_weight_of_the_others(
    present: list[bool], make_plan: MakePlan
) -> None:
    strategy = _strategy(make_plan(), Weights({"w": torch.zeros(2, 3), "b": torch.zeros(3)}))
    answers = {2 + i: sends(1.0) if there else stays_silent for i, there in enumerate(present)}

    _round(strategy, ScriptedGrid(answers))

    share = sum(present) / len(present)
    torch.testing.assert_close(strategy.weights["w"], torch.full((2, 3), share))


def test_nobody_answering_leaves_weights_and_momentum(
    make_plan: MakePlan, start_weights: Weights
) -> None:
    strategy = _strategy(make_plan(aggregation="fedavgm"), start_weights)
    _round(strategy, ScriptedGrid({2: sends(1.0)}))
    weights, state = strategy.weights, {n: t.clone() for n, t in strategy.optimizer.state().items()}

    _round(strategy, ScriptedGrid({2: fails}), number=2)

    torch.testing.assert_close(dict(strategy.weights), dict(weights), rtol=0, atol=0)
    torch.testing.assert_close(strategy.optimizer.state(), state, rtol=0, atol=0)
    assert strategy.tally.taken == []


@pytest.mark.parametrize("code", [RefusalCode.BUDGET, RefusalCode.POLICY, RefusalCode.PLAN])
def test_who_refused_for_good_is_not_asked_again(
    code: RefusalCode, make_plan: MakePlan, start_weights: Weights
) -> None:
    strategy = _strategy(make_plan(), start_weights)
    grid = ScriptedGrid({2: sends(1.0), 3: refuses(code)})

    _round(strategy, grid)
    _round(strategy, grid, number=2)

    assert grid.asked == [2, 3, 2]
    # Two rounds of 1.0 / 2: the divisor is still both sites.
    torch.testing.assert_close(strategy.weights["w"], torch.full((2, 3), 1.0))
    assert not strategy.has_nobody(grid)


@pytest.mark.parametrize("code", [RefusalCode.DATA, RefusalCode.DIVERGED, RefusalCode.INTERNAL])
def test_who_may_come_back_is_asked_again(
    code: RefusalCode, make_plan: MakePlan, start_weights: Weights
) -> None:
    strategy = _strategy(make_plan(), start_weights)
    grid = ScriptedGrid({2: refuses(code)})

    _round(strategy, grid)
    _round(strategy, grid, number=2)

    assert grid.asked == [2, 2]


def test_nobody_is_left_once_all_have_refused(make_plan: MakePlan, start_weights: Weights) -> None:
    strategy = _strategy(make_plan(), start_weights)
    grid = ScriptedGrid({2: refuses(RefusalCode.BUDGET), 3: sends(1.0)})
    _round(strategy, grid)
    assert not strategy.has_nobody(grid)

    grid.answers[3] = refuses(RefusalCode.POLICY)
    _round(strategy, grid, number=2)

    assert strategy.has_nobody(grid)


def test_a_cohort_is_drawn_anew_each_round_and_is_the_divisor(
    make_plan: MakePlan, start_weights: Weights
) -> None:
    strategy = _strategy(make_plan(cohort_size=4), start_weights)
    grid = ScriptedGrid({node: sends(1.0) for node in range(2, 42)})

    for number in range(1, 6):
        _round(strategy, grid, number)

    cohorts = [tuple(grid.asked[i : i + 4]) for i in range(0, 20, 4)]
    assert all(len(set(cohort)) == 4 and list(cohort) == sorted(cohort) for cohort in cohorts)
    # Five draws of 4 out of 40 that are all alike happen once in 7e19 runs.
    assert len(set(cohorts)) > 1
    torch.testing.assert_close(strategy.weights["w"], torch.full((2, 3), 5.0))


def test_a_cohort_larger_than_the_federation_asks_all_and_keeps_its_divisor(
    make_plan: MakePlan, start_weights: Weights
) -> None:
    strategy = _strategy(make_plan(cohort_size=10), start_weights)

    _round(strategy, ScriptedGrid({2: sends(5.0), 3: sends(5.0)}))

    torch.testing.assert_close(strategy.weights["w"], torch.full((2, 3), 1.0))


def test_declared_sizes_weigh_where_the_plan_says_so(
    make_plan: MakePlan, start_weights: Weights
) -> None:
    strategy = _strategy(make_plan(weights="declared"), start_weights)
    answers = {2: sends(1.0, num_examples=30), 3: sends(5.0, num_examples=10), 4: sends(9.0)}

    _round(strategy, ScriptedGrid(answers))

    torch.testing.assert_close(strategy.weights["w"], torch.full((2, 3), 2.0))
    assert strategy.tally.failed == {"site-4": FailureCause.UNREADABLE}


def test_declared_sizes_are_ignored_under_uniform_weights(
    make_plan: MakePlan, start_weights: Weights
) -> None:
    strategy = _strategy(make_plan(), start_weights)

    _round(strategy, ScriptedGrid({2: sends(1.0, num_examples=10**9), 3: sends(3.0)}))

    torch.testing.assert_close(strategy.weights["w"], torch.full((2, 3), 2.0))


def test_a_second_answer_and_a_stranger_do_not_count(
    make_plan: MakePlan, start_weights: Weights
) -> None:
    strategy = _strategy(make_plan(), start_weights)
    grid = ScriptedGrid({2: sends(1.0)})
    messages = strategy.configure_train(1, strategy.current_arrays(), ConfigRecord(), grid)
    first = list(grid.send_and_receive(messages))
    stranger = Message(RecordDict(), 99, "train", group_id="1")

    strategy.aggregate_train(1, [*first, *first, sends(1.0)(stranger)])

    torch.testing.assert_close(strategy.weights["w"], torch.full((2, 3), 1.0))
    assert strategy.tally.failed == {"site-99": FailureCause.NOT_ASKED}


def test_bfloat16_updates_are_taken_where_the_plan_says_so(
    make_plan: MakePlan, start_weights: Weights
) -> None:
    strategy = _strategy(make_plan(update_dtype="bfloat16"), start_weights)

    _round(strategy, ScriptedGrid({2: sends(1.0, dtype="bfloat16")}))

    assert strategy.weights["w"].dtype == torch.float32
    torch.testing.assert_close(strategy.weights["w"], torch.full((2, 3), 1.0))


def test_bytes_are_those_of_the_tensors(make_plan: MakePlan, start_weights: Weights) -> None:
    strategy = _strategy(make_plan(), start_weights)

    _round(strategy, ScriptedGrid({2: sends(1.0), 3: stays_silent}))

    # 9 float32 numbers and a NumPy header of up to 128 bytes for each of 2 tensors.
    assert 36 < strategy.tally.bytes_up <= 36 + 256
    assert strategy.tally.bytes_down == 2 * strategy.tally.bytes_up


def test_at_most_two_replies_are_alive_at_a_time(
    make_plan: MakePlan, start_weights: Weights
) -> None:
    alive: weakref.WeakSet[Message] = weakref.WeakSet()
    peak = 0

    def counted(replies: Iterable[Message]) -> Iterator[Message]:
        nonlocal peak
        for reply in replies:
            alive.add(reply)
            gc.collect()
            peak = max(peak, len(alive))
            yield reply
            del reply

    strategy = _strategy(make_plan(), start_weights)
    grid = ScriptedGrid(dict.fromkeys(range(2, 12), _fresh))
    messages = strategy.configure_train(1, strategy.current_arrays(), ConfigRecord(), grid)

    strategy.aggregate_train(1, counted(grid.send_and_receive(messages)))

    assert len(strategy.tally.taken) == 10
    assert peak <= 2


def _fresh(message: Message) -> Message:
    return Message(reply_content(encode_update(update_of(1.0), dtype="float32")), reply_to=message)


def test_flowers_own_loop_runs_the_strategy(make_plan: MakePlan, start_weights: Weights) -> None:
    strategy = _strategy(make_plan(), Weights({"w": torch.zeros(2, 3), "b": torch.zeros(3)}))

    result = strategy.start(
        ScriptedGrid({2: sends(1.0), 3: sends(3.0)}),
        initial_arrays=encode_tensors(start_weights),
        num_rounds=2,
    )

    torch.testing.assert_close(strategy.weights["w"], torch.full((2, 3), 4.0))
    torch.testing.assert_close(strategy.weights["b"], torch.full((3,), -3.0))
    assert len(result.arrays) == 2

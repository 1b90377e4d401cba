"""A site at work: what it answers, what it debits, and what it never says."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from site_parts import (
    moved,
    plan_of,
    prepared,
    runtime_of,
    site_of,
    start_weights,
    task_of,
    texts,
)

from discreet.client import runtime as runtime_module
from discreet.client.outbox import Outbox
from discreet.client.prepare import PreparedTexts
from discreet.client.runtime import LEDGER_FILE, Answer, SiteRuntime, encode_texts
from discreet.common.corpus import RawText
from discreet.common.errors import DataError, RefusalCode
from discreet.common.update import Update
from discreet.common.wire import decode_tensors, encode_tensors
from discreet.privacy.clip import norm_of
from discreet.privacy.ledger import Ledger
from discreet.privacy.mechanism import planned_epsilon

CANARY = "zyxwvut-canary"


def update_of(answer: Answer) -> Update:
    return Update(decode_tensors(answer.kept.arrays))


def same(one: Answer, other: Answer) -> bool:
    first, second = update_of(one), update_of(other)
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


def answer_of(runtime: SiteRuntime, **task: object) -> Answer:
    plan = plan_of()
    answer = runtime.answer(task_of(plan, **task))  # type: ignore[arg-type]
    assert isinstance(answer, Answer)
    return answer


def test_a_site_answers_with_an_update_of_the_plans_model(tmp_path: Path) -> None:
    runtime, plan = runtime_of(site_of(tmp_path)), plan_of()

    answer = answer_of(runtime)

    update, shapes = update_of(answer), {n: t.shape for n, t in start_weights(plan).items()}
    assert {name: tensor.shape for name, tensor in update.items()} == shapes
    assert {tensor.dtype for tensor in update.values()} == {torch.float32}
    assert 0 < norm_of(update) <= plan.federation.update_clipping_norm * (1 + 1e-6)


def test_the_number_of_its_texts_is_sent_only_where_plan_and_policy_ask(tmp_path: Path) -> None:
    declared = plan_of(federation={"weights": "declared"})
    willing = runtime_of(site_of(tmp_path / "willing", allow_declared_size=True))
    unwilling = runtime_of(site_of(tmp_path / "unwilling"))

    asked, not_asked = willing.answer(task_of(declared)), willing.answer(task_of(plan_of()))

    assert isinstance(asked, Answer)
    assert asked.num_examples == 12
    assert isinstance(not_asked, Answer)
    assert not_asked.num_examples is None
    assert unwilling.answer(task_of(declared)) == RefusalCode.POLICY


def test_a_round_that_is_asked_for_twice_is_one_debit_and_the_same_update(tmp_path: Path) -> None:
    runtime = runtime_of(site_of(tmp_path))

    first, second = answer_of(runtime), answer_of(runtime)

    assert same(first, second)
    assert len(runtime.ledger.entries()) == 1


def test_also_after_the_site_was_started_anew(tmp_path: Path) -> None:
    site = site_of(tmp_path)
    before = runtime_of(site)
    first = answer_of(before)
    before.close()

    after = runtime_of(site)
    second = answer_of(after)

    assert same(first, second)
    assert len(after.ledger.entries()) == 1


@pytest.mark.parametrize(
    "other",
    [{"round_number": 2}, {"run": "another run"}, {"weights": moved(start_weights(plan_of()))}],
)
def test_anything_else_is_another_release_and_another_debit(
    tmp_path: Path, other: dict[str, object]
) -> None:
    runtime = runtime_of(site_of(tmp_path))
    first = answer_of(runtime)

    second = answer_of(runtime, **other)

    assert not same(first, second)
    assert len(runtime.ledger.entries()) == 2


def test_a_torn_outbox_costs_another_debit_and_sends_other_noise(tmp_path: Path) -> None:
    site = site_of(tmp_path)
    runtime = runtime_of(site)
    first = answer_of(runtime)
    kept = site.state_dir / "outbox.bin"
    kept.write_bytes(kept.read_bytes()[:-1])

    second = answer_of(runtime)

    assert not same(first, second)
    assert len(runtime.ledger.entries()) == 2


def test_a_spent_budget_is_refused_and_the_ledger_stays_as_it_is(tmp_path: Path) -> None:
    plan = plan_of()
    ceiling = planned_epsilon(plan, 1)
    runtime = runtime_of(site_of(tmp_path, epsilon=ceiling))
    answer_of(runtime)
    head = runtime.ledger.head

    answer = runtime.answer(task_of(plan, round_number=2))

    assert answer == RefusalCode.BUDGET
    assert runtime.ledger.head == head
    assert runtime.ledger.epsilon(1e-5) <= ceiling


def test_a_round_that_was_paid_for_is_answered_again_though_the_budget_is_spent(
    tmp_path: Path,
) -> None:
    runtime = runtime_of(site_of(tmp_path, epsilon=planned_epsilon(plan_of(), 1)))
    first = answer_of(runtime)
    runtime.answer(task_of(plan_of(), round_number=2))

    assert same(answer_of(runtime), first)


def test_the_ceiling_holds_over_runs_and_restarts(tmp_path: Path) -> None:
    site, plan = site_of(tmp_path), plan_of()
    for number in range(1, 5):
        runtime = runtime_of(site)
        assert isinstance(runtime.answer(task_of(plan, round_number=number)), Answer)
        runtime.close()

    answer = runtime_of(site).answer(task_of(plan, run="a second run"))

    assert answer == RefusalCode.BUDGET


def test_what_the_policy_refuses_is_not_debited_and_the_texts_are_not_asked_for(
    tmp_path: Path,
) -> None:
    def texts_of() -> PreparedTexts:
        raise AssertionError("the text was asked for")

    runtime = SiteRuntime(site_of(tmp_path, max_rounds=1), texts_of)

    assert runtime.answer(task_of(plan_of())) == RefusalCode.POLICY
    assert runtime.ledger.entries() == []


def test_without_privacy_only_where_the_policy_says_so_and_never_with_privacy_again(
    tmp_path: Path,
) -> None:
    plain = plan_of(privacy="none")
    assert runtime_of(site_of(tmp_path / "no")).answer(task_of(plain)) == RefusalCode.POLICY
    runtime = runtime_of(site_of(tmp_path / "yes", allow_without_privacy=True))

    assert isinstance(runtime.answer(task_of(plain)), Answer)
    assert runtime.answer(task_of(plan_of())) == RefusalCode.BUDGET


@pytest.mark.parametrize("label", [CANARY, None])
def test_a_label_that_the_plan_has_not_is_refused_before_anything_is_debited(
    tmp_path: Path, label: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    runtime = runtime_of(site_of(tmp_path), [*texts(), RawText("soup", label, None, 12)])

    assert runtime.answer(task_of(plan_of())) == RefusalCode.DATA
    assert runtime.ledger.entries() == []
    assert "task.labels: must hold the label of every text" in caplog.text
    assert "13" not in caplog.messages[-1]
    assert CANARY not in caplog.text


def test_text_that_cannot_be_prepared_is_refused_as_data(tmp_path: Path) -> None:
    def fail() -> PreparedTexts:
        raise DataError("the file is gone")

    runtime = SiteRuntime(site_of(tmp_path), fail)

    assert runtime.answer(task_of(plan_of())) == RefusalCode.DATA


def test_training_that_diverges_is_refused_as_such_and_stays_debited(tmp_path: Path) -> None:
    runtime = runtime_of(site_of(tmp_path))
    plan = plan_of(training={"learning_rate": 3e38, "steps_per_round": 4})

    assert runtime.answer(task_of(plan)) == RefusalCode.DIVERGED
    assert len(runtime.ledger.entries()) == 1


def test_weights_of_nan_are_refused(tmp_path: Path) -> None:
    runtime, plan = runtime_of(site_of(tmp_path)), plan_of()
    weights = start_weights(plan)
    for tensor in weights.values():
        tensor.fill_(float("nan"))

    assert runtime.answer(task_of(plan, weights=weights)) == RefusalCode.DIVERGED


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    small = start_weights(plan_of(model={"kind": "linear", "buckets": 16}))
    runtime = runtime_of(site_of(tmp_path))

    assert runtime.answer(task_of(plan_of(), weights=small)) == RefusalCode.DATA


@pytest.mark.parametrize("plan_json", [b"", b"{}", b"\xff", b'{"name": "x", "new": 1}', b"[" * 999])
def test_a_plan_that_is_none_is_refused_as_plan(tmp_path: Path, plan_json: bytes) -> None:
    runtime = runtime_of(site_of(tmp_path))
    task = replace(task_of(plan_of()), plan_json=plan_json)

    assert runtime.answer(task) == RefusalCode.PLAN
    assert runtime.ledger.entries() == []


def test_a_broken_ledger_trains_nothing(tmp_path: Path) -> None:
    site = site_of(tmp_path)
    runtime = runtime_of(site)
    answer_of(runtime)
    runtime.close()
    (site.state_dir / LEDGER_FILE).write_bytes(b"not a ledger")

    assert isinstance(runtime.answer(task_of(plan_of(), round_number=2)), RefusalCode)


def test_a_closed_site_opens_its_ledger_again(tmp_path: Path) -> None:
    runtime = runtime_of(site_of(tmp_path))
    answer_of(runtime)

    runtime.close()

    assert len(runtime.ledger.entries()) == 1


def test_a_kept_update_over_the_bound_is_not_sent(tmp_path: Path) -> None:
    runtime = runtime_of(site_of(tmp_path))
    kept = answer_of(runtime).kept
    outbox = Outbox(runtime.site.state_dir / "outbox.bin")
    key = (runtime.site.state_dir / "outbox.bin").read_bytes()[:32]
    large = encode_tensors({n: t * 1e6 + 1e6 for n, t in decode_tensors(kept.arrays).items()})
    outbox.save(large, key="planted")
    planted = (runtime.site.state_dir / "outbox.bin").read_bytes()
    (runtime.site.state_dir / "outbox.bin").write_bytes(key + planted[32:])

    assert isinstance(runtime.answer(task_of(plan_of())), RefusalCode)


def test_a_bug_is_told_by_class_and_place_and_never_by_its_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def choke(*_: object) -> object:
        raise KeyError(CANARY)

    monkeypatch.setattr(runtime_module, "train_round", choke)

    answer = runtime_of(site_of(tmp_path)).answer(task_of(plan_of()))

    assert answer == RefusalCode.INTERNAL
    assert "KeyError at test_runtime.py" in caplog.text
    assert CANARY not in caplog.text
    assert caplog.records[-1].exc_info is None


def test_nothing_of_a_text_is_logged_whatever_happens(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    rows = [RawText(f"{CANARY} {row.text}", row.label, CANARY, row.row) for row in texts()]
    runtime = runtime_of(site_of(tmp_path, epsilon=planned_epsilon(plan_of(), 1)), rows)

    runtime.answer(task_of(plan_of()))
    runtime.answer(task_of(plan_of(), round_number=2))
    runtime.answer(task_of(plan_of(training={"learning_rate": 3e38}), round_number=3))

    assert "refuses (budget)" in caplog.text
    assert CANARY not in caplog.text


def test_texts_are_encoded_once_a_plan(tmp_path: Path) -> None:
    asked: list[None] = []

    def texts_of() -> PreparedTexts:
        asked.append(None)
        return prepared(texts())

    runtime = SiteRuntime(site_of(tmp_path), texts_of)
    for number in (1, 2):
        runtime.answer(task_of(plan_of(), round_number=number))

    assert len(asked) == 1


def test_two_sites_with_one_plan_do_not_mix_their_updates(tmp_path: Path) -> None:
    plan = plan_of(privacy="none")
    hams = [row for row in texts(24) if row.label == "ham"]
    spams = [row for row in texts(24) if row.label == "spam"]
    alone = runtime_of(site_of(tmp_path / "a", allow_without_privacy=True), hams)
    expected = alone.answer(task_of(plan))
    first = runtime_of(site_of(tmp_path / "b", allow_without_privacy=True), spams)
    second = runtime_of(site_of(tmp_path / "c", allow_without_privacy=True), hams)

    first.answer(task_of(plan))
    answer = second.answer(task_of(plan))

    assert isinstance(expected, Answer)
    assert isinstance(answer, Answer)
    assert same(expected, answer)


def test_labels_are_numbered_as_the_plan_lists_them() -> None:
    rows = [RawText("b", "spam", None, 0), RawText("a", "ham", None, 1)]

    assert encode_texts(prepared(rows), plan_of()).labels.tolist() == [1, 0]


def test_how_many_texts_lack_a_label_is_told_to_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [RawText(f"text {n}", "other", None, n) for n in range(137)]
    runtime = runtime_of(site_of(tmp_path), rows)

    assert runtime.answer(task_of(plan_of())) == RefusalCode.DATA
    assert "task.labels" in caplog.text
    assert "137" not in caplog.text


def test_the_ledger_lies_in_the_sites_folder_under_its_name(tmp_path: Path) -> None:
    site = site_of(tmp_path)
    answer_of(runtime_of(site))

    with Ledger.open(site.state_dir / "ledger.sqlite", data_set="site-0000") as ledger:
        ledger.verify()
        assert len(ledger.entries()) == 1

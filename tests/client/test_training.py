"""One round at one site: debited before the text is touched, and clipped."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from site_parts import moved, plan_of, prepared, runtime_of, site_of, start_weights, task_of, texts

from discreet.client import runtime as runtime_module
from discreet.client.runtime import Answer, encode_texts
from discreet.client.training import (
    Round,
    debit_round,
    new_model,
    randomness_for,
    train_round,
)
from discreet.common.errors import BudgetExceededError, DataError, NonFiniteUpdateError, RefusalCode
from discreet.common.models import weights_of
from discreet.common.plan import Plan
from discreet.common.update import ClippedUpdate, Weights
from discreet.privacy.clip import norm_of
from discreet.privacy.ledger import Ceiling, Ledger
from discreet.privacy.mechanism import mechanism_of, planned_epsilon
from discreet.privacy.randomness import InsecureRandomness, SecureRandomness

CEILING = Ceiling(epsilon=8.0, delta=1e-5)
VOCABULARY = 8192


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger.open(tmp_path / "ledger.sqlite", data_set="site-0000")


def trained(
    plan: Plan, weights: Weights, site: str = "site-0000", number: int = 1
) -> ClippedUpdate:
    model = new_model(plan, VOCABULARY)
    examples = encode_texts(prepared(texts()), plan)
    randomness = randomness_for(plan, site, Round("run", number))
    return train_round(model, weights, examples, plan, randomness)


def test_a_round_is_debited_as_the_mechanism_that_runs_it(ledger: Ledger) -> None:
    plan = plan_of(training={"steps_per_round": 3, "sample_rate": 0.5})

    epsilon = debit_round(ledger, plan, Round("run", 1), CEILING)

    (entry,) = ledger.entries()
    assert (entry.run, entry.round_number) == ("run", 1)
    assert entry.event == mechanism_of(plan).event(3)
    assert epsilon == pytest.approx(planned_epsilon(plan, 1))


def test_all_rounds_of_a_plan_just_reach_its_epsilon(ledger: Ledger) -> None:
    plan = plan_of()
    for number in range(1, 5):
        spent = debit_round(ledger, plan, Round("run", number), CEILING)

    assert 7.9 < spent <= 8.0
    with pytest.raises(BudgetExceededError):
        debit_round(ledger, plan, Round("run", 5), CEILING)


def test_a_round_without_privacy_makes_epsilon_infinite(ledger: Ledger) -> None:
    assert debit_round(ledger, plan_of(privacy="none"), Round("run", 1), CEILING) == math.inf


def test_the_debit_is_on_disk_when_training_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site, plan = site_of(tmp_path), plan_of()
    seen: list[int] = []

    def look(*_: object) -> ClippedUpdate:
        with Ledger.open(site.state_dir / "ledger.sqlite", data_set=site.name) as other:
            seen.append(len(other.entries()))
        raise RuntimeError("the power is cut")

    monkeypatch.setattr(runtime_module, "train_round", look)
    answer = runtime_of(site).answer(task_of(plan))

    assert seen == [1]
    assert answer == RefusalCode.INTERNAL


def test_a_round_whose_training_fails_stays_debited_and_costs_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime, plan = runtime_of(site_of(tmp_path)), plan_of()
    with monkeypatch.context() as broken:
        broken.setattr(runtime_module, "train_round", lambda *_: 1 // 0)
        runtime.answer(task_of(plan))

    answer = runtime.answer(task_of(plan))

    assert isinstance(answer, Answer)
    assert [entry.round_number for entry in runtime.ledger.entries()] == [1, 1]
    assert runtime.ledger.epsilon(1e-5) == pytest.approx(planned_epsilon(plan, 2))


@pytest.mark.parametrize("privacy", ["none", {"epsilon": 8.0}])
def test_an_update_is_within_the_bound_of_the_plan(privacy: object) -> None:
    plan = plan_of(
        privacy=privacy,  # type: ignore[arg-type]
        training={"learning_rate": 50.0},
        federation={"update_clipping_norm": 0.25},
    )

    update = trained(plan, start_weights(plan))

    # It learns fast enough to pass the bound, so the bound is what it has.
    assert norm_of(update) == pytest.approx(0.25, rel=1e-5)
    assert norm_of(update) <= 0.25 * (1 + 1e-6)


def test_a_model_that_was_used_before_starts_from_the_weights_it_is_given() -> None:
    plan = plan_of(privacy="none")
    model, examples = new_model(plan, VOCABULARY), encode_texts(prepared(texts()), plan)
    start = start_weights(plan)
    first = train_round(model, start, examples, plan, InsecureRandomness(1))
    train_round(model, moved(start), examples, plan, InsecureRandomness(2))

    again = train_round(model, start, examples, plan, InsecureRandomness(1))

    assert all(torch.equal(again[name], first[name]) for name in first)


def test_the_weights_of_the_task_are_left_as_they_are() -> None:
    plan = plan_of()
    start = start_weights(plan)
    before = {name: tensor.clone() for name, tensor in start.items()}

    trained(plan, start)

    assert all(torch.equal(start[name], before[name]) for name in before)


def test_weights_of_another_model_are_refused() -> None:
    with pytest.raises(DataError):
        trained(plan_of(), start_weights(plan_of(model={"kind": "linear", "buckets": 16})))


def test_training_that_diverges_is_refused_not_repaired() -> None:
    plan = plan_of(privacy="none", training={"learning_rate": 3e38, "steps_per_round": 4})

    with pytest.raises(NonFiniteUpdateError, match="learning_rate"):
        trained(plan, start_weights(plan))


def test_noise_comes_from_the_system_whatever_the_seed() -> None:
    plan = plan_of(training={"seed": 7})
    start = start_weights(plan)
    torch.manual_seed(0)
    first = trained(plan, start)
    torch.manual_seed(0)
    second = trained(plan, start)

    assert isinstance(randomness_for(plan, "site-0000", Round("run", 1)), SecureRandomness)
    assert any(not torch.equal(first[name], second[name]) for name in first)


def test_without_privacy_a_round_can_be_repeated_and_sites_sample_apart() -> None:
    plan = plan_of(privacy="none", training={"sample_rate": 0.5})
    start = start_weights(plan)

    def drawn(site: str, number: int) -> list[int]:
        chosen = randomness_for(plan, site, Round("run", number)).bernoulli(64, 0.5)
        return list(chosen.tolist())

    first, again = trained(plan, start), trained(plan, start)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert drawn("a", 1) == drawn("a", 1)
    assert drawn("a", 1) != drawn("b", 1)
    assert drawn("a", 1) != drawn("a", 2)


def test_the_seed_gives_the_same_model_on_both_sides() -> None:
    plan, other = plan_of(training={"seed": 5}), plan_of(training={"seed": 6})
    kind = {"kind": "bag", "width": 4}
    plan, other = (Plan.model_validate(p.model_dump() | {"model": kind}) for p in (plan, other))

    first, second = weights_of(new_model(plan, 99)), weights_of(new_model(plan, 99))

    assert all(torch.equal(first[name], second[name]) for name in first)
    different = weights_of(new_model(other, 99))
    assert any(not torch.equal(first[name], different[name]) for name in first)

"""A run that never happened: for the tests of summaries and reports."""

from __future__ import annotations

from discreet.common.plan import Plan
from discreet.common.update import Weights
from discreet.server.checkpoint import Checkpoint
from discreet.server.history import (
    LabelScores,
    RoundRecord,
    RunSummary,
    ScrubSummary,
    SiteBudget,
    SiteRecord,
)
from discreet.server.summary import summarise

SCRUB = ScrubSummary({"PHONE_NUMBER": 12, "IP_ADDRESS": "<5"}, num_in=100, num_out=98)
NORTH, SOUTH = "north <b>", "south"
"""The first name tries to be HTML."""


def plan_of(*, is_private: bool = True, rounds: int = 4) -> Plan:
    return Plan.model_validate(
        {
            "name": "A run & its <name>",
            "task": {"labels": ["ham", "spam"]},
            "model": {"kind": "linear", "buckets": 64},
            "privacy": {"unit": "example", "epsilon": 8.0, "delta": 1e-5} if is_private else "none",
            "training": {
                "rounds": rounds,
                "sample_rate": 0.1,
                "expected_batch_size": 8,
                "learning_rate": 1.0,
            },
        }
    )


def state_of(plan: Plan, *, num_rounds: int = 4) -> Checkpoint:
    """North takes part in every round; south stops after the second."""
    records = tuple(
        RoundRecord(
            round=number,
            sites_asked=2 if number <= 3 else 1,
            sites=2 if number <= 2 else 1,
            epsilon_max=0.5 * number if plan.is_private else None,
            seconds=0.25,
            bytes_up=2600,
            bytes_down=2700,
            refused={SOUTH: "budget"} if number == 3 else {},
            loss=0.5 / number,
            accuracy=0.9 + number / 100,
            precision=0.8,
            recall=0.7,
            f1=0.75,
            classes=(
                LabelScores("ham", 0.9, 0.8, 0.85, 87),
                LabelScores("spam", 0.7, 0.6, 0.65, 13),
            ),
        )
        for number in range(1, num_rounds + 1)
    )
    sites = {
        SOUTH: SiteRecord(SOUTH, 2, (1, 2), "budget", 3),
        NORTH: SiteRecord(NORTH, num_rounds, tuple(range(1, num_rounds + 1))),
    }
    return Checkpoint(
        run="run-1",
        plan_fingerprint=plan.fingerprint,
        round=num_rounds,
        weights=Weights({}),
        optimizer_state={},
        records=records,
        sites=sites,
        started="2026-01-02T03:04:05+00:00",
    )


def summary_of(*, is_private: bool = True) -> RunSummary:
    plan = plan_of(is_private=is_private)
    budgets = {NORTH: SiteBudget(5.5, 8.0, 1e-5), SOUTH: SiteBudget(2.5, 3.0, 1e-6)}
    return summarise(plan, state_of(plan), budgets=budgets if is_private else None, scrub=SCRUB)

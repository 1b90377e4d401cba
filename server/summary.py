"""From the state at the end of a run to the summary that every report is made from."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version

from discreet.common.plan import Plan
from discreet.server.checkpoint import Checkpoint
from discreet.server.guarantee import guarantee_of
from discreet.server.history import (
    PlanSummary,
    RunSummary,
    ScrubSummary,
    SiteBudget,
    SiteRecord,
    SiteSummary,
    final_metrics,
)
from discreet.server.spent import SpentEpsilon

LIBRARIES = (
    "discreet",
    "torch",
    "flwr",
    "opacus",
    "dp-accounting",
    "presidio-analyzer",
    "spacy",
    "tokenizers",
    "numpy",
)
"""Libraries whose version can change a result."""


def summarise(
    plan: Plan,
    state: Checkpoint,
    *,
    budgets: Mapping[str, SiteBudget] | None = None,
    scrub: ScrubSummary | None = None,
) -> RunSummary:
    """Everything a report needs, of a run that ended or was stopped.

    Args:
        plan: The plan.
        state: The run after its last round.
        budgets: Site name -> what its own ledger says. In simulation only: a server does
            not see ledgers. It also names the sites that were never asked.
        scrub: What scrubbing found, where the sites told it.
    """
    epsilon = SpentEpsilon(plan)
    records = dict(state.sites)
    for name in budgets or {}:
        records.setdefault(name, SiteRecord(name))
    sites = tuple(
        _site(records[name], (budgets or {}).get(name), epsilon, state.round)
        for name in sorted(records)
    )
    planned = epsilon.after(plan.training.rounds) if plan.is_private else None
    measured = [record for record in state.records if record.classes]
    return RunSummary(
        run=state.run,
        plan=PlanSummary(plan.fingerprint, plan.model_dump(mode="json")),
        guarantee=guarantee_of(plan, sites, planned),
        sites=sites,
        rounds=state.records,
        final=final_metrics(state.records),
        scrub=scrub or ScrubSummary(),
        versions=library_versions(),
        is_finished=state.round >= plan.training.rounds,
        classes=measured[-1].classes if measured else (),
        started=state.started,
    )


def library_versions() -> dict[str, str]:
    """Library -> its version; those that are not installed are left out."""
    versions = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def _site(
    record: SiteRecord, budget: SiteBudget | None, epsilon: SpentEpsilon, last_round: int
) -> SiteSummary:
    privacy = epsilon.plan.privacy
    if privacy == "none":
        spent, delta = None, None
    elif budget is not None:
        spent, delta = budget.epsilon, budget.delta
    else:
        spent, delta = epsilon.after(len(record.charged)), privacy.delta
    return SiteSummary(
        name=record.name,
        epsilon=spent,
        ceiling=budget.ceiling if budget else None,
        delta=delta,
        rounds=record.rounds,
        refused=record.refused,
        refused_round=record.refused_round,
        epsilon_by_round=epsilon.by_round(record, last_round),
    )

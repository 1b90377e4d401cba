"""What a run leaves behind in numbers: one record a round, one summary a site, one report.

`RunSummary` is `report.json`: its field names are a stable interface that people script
against, so a change of one is a change of `SCHEMA`. Everything here is public or differs
from public numbers only in simulation, where all of it lies on one machine.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TypeVar

import orjson
from pydantic import JsonValue, TypeAdapter, ValidationError

from discreet.common.errors import DataError

SCHEMA = 1
"""Version of `report.json`."""

T = TypeVar("T")


class FailureCause(StrEnum):
    """Why the server left a reply out. Says nothing about the site's text."""

    ERROR = "error"
    LOST = "lost"
    NO_REPLY = "no_reply"
    NOT_ASKED = "not_asked"
    REPEATED = "repeated"
    STALE = "stale"
    UNREADABLE = "unreadable"
    MISMATCH = "mismatch"
    NON_FINITE = "non_finite"
    OVER_BOUND = "over_bound"
    SURPLUS = "surplus"


@dataclass(frozen=True, slots=True)
class LabelScores:
    """How well one class is told from the others, on the public split.

    Attributes:
        label: The class.
        precision: Share of what was given this label that has it, 0 to 1.
        recall: Share of what has this label that was given it, 0 to 1.
        f1: Harmonic mean of the two.
        num_examples: Examples of the split that have this label.
    """

    label: str
    precision: float
    recall: float
    f1: float
    num_examples: int


@dataclass(frozen=True, slots=True)
class RoundRecord:
    """One round.

    Attributes:
        round: Its number, from 1.
        sites_asked: Sites that were sent the model.
        sites: Sites whose update was taken.
        refused: Site name -> the code it sent in place of an update.
        failed: Site name -> why the server left its reply out.
        loss: Cross-entropy on the public split, nats; none if it was not measured.
        accuracy: Share labelled rightly, 0 to 1.
        precision: Mean over classes.
        recall: Mean over classes.
        f1: Mean over classes.
        epsilon_max: Largest epsilon any site has spent in this run; none without privacy.
        seconds: Wall clock of the round.
        bytes_up: Bytes of the updates received.
        bytes_down: Bytes of the weights sent.
        classes: Scores of each class.
    """

    round: int
    sites_asked: int
    sites: int
    epsilon_max: float | None
    seconds: float
    bytes_up: int
    bytes_down: int
    refused: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)
    loss: float | None = None
    accuracy: float | None = None
    precision: float | None = None
    recall: float | None = None
    f1: float | None = None
    classes: tuple[LabelScores, ...] = ()


@dataclass(frozen=True, slots=True)
class SiteRecord:
    """What the server knows of one site's part in the run.

    Attributes:
        name: The site.
        rounds: Rounds in which its update was taken.
        charged: Numbers of the rounds that may have cost it privacy: an update that was lost
            or left out was paid for all the same. In order; again, where it was asked again.
        refused: Why it stopped, none if its update was taken since or it never refused.
        refused_round: When it stopped.
    """

    name: str
    rounds: int = 0
    charged: tuple[int, ...] = ()
    refused: str | None = None
    refused_round: int | None = None


@dataclass(frozen=True, slots=True)
class SiteBudget:
    """What a site's own ledger says; the server sees it in simulation only.

    Attributes:
        epsilon: Spent on this data set over all runs so far.
        ceiling: The most that the site's policy lets it spend.
        delta: The delta of both.
    """

    epsilon: float
    ceiling: float
    delta: float


@dataclass(frozen=True, slots=True)
class SiteSummary:
    """One site, at the end of the run.

    Attributes:
        name: The site.
        epsilon: What it spent: of its ledger where that is known, else of this run alone;
            none without privacy.
        ceiling: Its own ceiling on epsilon, where known.
        delta: The delta of both; none without privacy.
        rounds: Rounds in which its update was taken.
        refused: Why it stopped, or none.
        refused_round: When it stopped, or none.
        epsilon_by_round: Epsilon spent in this run after each round, from the first.
    """

    name: str
    epsilon: float | None
    ceiling: float | None
    delta: float | None
    rounds: int
    refused: str | None = None
    refused_round: int | None = None
    epsilon_by_round: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class PlanSummary:
    """The plan of a run.

    Attributes:
        fingerprint: SHA-256 of the part that the sites agreed to.
        content: The whole plan.
    """

    fingerprint: str
    content: dict[str, JsonValue]


@dataclass(frozen=True, slots=True)
class Guarantee:
    """The privacy guarantee, whole.

    Attributes:
        unit: What neighbouring data sets differ in; `none` without privacy.
        relation: How they differ.
        epsilon: Largest epsilon of any site so far; none without privacy.
        delta: The chance that the bound fails; none without privacy.
        planned_epsilon: Epsilon of the plan, run to its end; none without privacy.
        statement: All of it in plain words, one paragraph each.
        not_protected: What the guarantee does not cover, one item each.
    """

    unit: str
    relation: str
    epsilon: float | None
    delta: float | None
    planned_epsilon: float | None
    statement: str
    not_protected: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ScrubSummary:
    """What scrubbing found, summed over the sites that told it.

    Attributes:
        entities: Kind -> number found; a cell may be text where a site hides small counts.
        num_in: Texts that went in; none where unknown.
        num_out: Texts that came out; none where unknown.
    """

    entities: dict[str, int | str] = field(default_factory=dict)
    num_in: int | None = None
    num_out: int | None = None


@dataclass(frozen=True, slots=True)
class RunSummary:
    """`report.json`.

    Attributes:
        run: Identity of the run.
        plan: What was planned.
        guarantee: What holds for the texts.
        sites: Every site that was asked.
        rounds: Every round.
        final: Metric name -> value of the last weights; empty if not measured.
        scrub: What scrubbing found.
        versions: Library -> version.
        is_finished: Whether all rounds of the plan were run.
        classes: Scores of each class at the end.
        started: When, ISO 8601 in UTC.
        schema: Version of this file.
    """

    run: str
    plan: PlanSummary
    guarantee: Guarantee
    sites: tuple[SiteSummary, ...]
    rounds: tuple[RoundRecord, ...]
    final: dict[str, float]
    scrub: ScrubSummary
    versions: dict[str, str]
    is_finished: bool
    classes: tuple[LabelScores, ...] = ()
    started: str | None = None
    schema: int = SCHEMA


def to_json(value: object) -> bytes:
    """A dataclass of this module as indented JSON; NaN and infinity become null."""
    return orjson.dumps(value, option=orjson.OPT_INDENT_2)


def read_json(kind: type[T], data: bytes, source: Path) -> T:
    """A dataclass of this module back from JSON.

    Args:
        kind: The dataclass.
        data: What `to_json` made.
        source: Where it was read, for the error.

    Raises:
        DataError: If the JSON is not one, naming the first field that is wrong.
    """
    try:
        return TypeAdapter(kind).validate_json(data)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise DataError(f"{source}: {where}: {first['msg']}: it is damaged or foreign") from None


def load_summary(run_dir: Path) -> RunSummary:
    """The report of a run folder.

    Raises:
        DataError: If there is none, or it is of another schema or damaged.
    """
    path = run_dir / "report.json"
    if not path.is_file():
        raise DataError(f"{path}: there is no report: name the folder of a finished run")
    summary = read_json(RunSummary, path.read_bytes(), path)
    if summary.schema != SCHEMA:
        raise DataError(
            f"{path}: schema must be {SCHEMA}, got {summary.schema}: use the program that wrote it"
        )
    return summary


def final_metrics(records: tuple[RoundRecord, ...]) -> dict[str, float]:
    """Metric name -> value of the last round that was measured; empty if none was."""
    for record in reversed(records):
        if record.loss is not None or record.accuracy is not None:
            named = {
                "loss": record.loss,
                "accuracy": record.accuracy,
                "precision": record.precision,
                "recall": record.recall,
                "f1": record.f1,
            }
            return {name: value for name, value in named.items() if value is not None}
    return {}

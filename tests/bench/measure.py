"""What a benchmark is: a value beside what it is measured against, in the same run."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured figure.

    Attributes:
        name: `area.name`.
        value: Median of the runs.
        unit: Of the value.
        aim: What it is to be at most, in words.
        reference: Median of what it is measured against, in the same unit, or none.
        ratio: Median of the ratios run by run, or none.
        runs: Every value.
    """

    name: str
    value: float
    unit: str
    aim: str
    reference: float | None = None
    ratio: float | None = None
    runs: list[float] = field(default_factory=list)


def figure(name: str, runs: Sequence[float], *, unit: str, aim: str) -> Figure:
    """A figure that stands for itself."""
    return Figure(name, statistics.median(runs), unit, aim, runs=list(runs))


def compared(
    name: str, runs: Sequence[float], references: Sequence[float], *, unit: str, aim: str
) -> Figure:
    """A figure beside its reference, each run paired with the reference measured next to it."""
    ratios = [run / reference for run, reference in zip(runs, references, strict=True)]
    return Figure(
        name,
        statistics.median(runs),
        unit,
        aim,
        reference=statistics.median(references),
        ratio=statistics.median(ratios),
        runs=list(runs),
    )

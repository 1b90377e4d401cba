"""How well a model does on texts with known classes. Free of torch: reports read it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ClassScores:
    """Scores of one class; a ratio without a denominator is 0.

    Attributes:
        label: Number of the class in `task.labels`.
        precision: Of the texts given this class, the share that has it.
        recall: Of the texts that have this class, the share given it.
        f1: Harmonic mean of the two.
        support: Number of texts that have this class.
    """

    label: int
    precision: float
    recall: float
    f1: float
    support: int


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores over all texts.

    Attributes:
        loss: Mean cross-entropy in nats.
        accuracy: Share of texts that got their class.
        precision: Unweighted mean over all classes of the task.
        recall: Unweighted mean over all classes of the task.
        f1: Unweighted mean over all classes of the task.
        per_class: One entry for each class, in the order of `task.labels`.
    """

    loss: float
    accuracy: float
    precision: float
    recall: float
    f1: float
    per_class: tuple[ClassScores, ...]

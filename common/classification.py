"""The task: which class a text has. Its loss, its scores, and labels for new texts."""

from __future__ import annotations

import torch
from torch.nn import functional

from discreet.common.errors import DataError
from discreet.common.scores import ClassScores, Scores
from discreet.common.tokens import Examples

BATCH_SIZE = 256
"""Texts that are scored at once; changes speed and memory alone."""


def per_example_loss(model: torch.nn.Module, examples: Examples) -> torch.Tensor:
    """Cross-entropy [B] in nats of each example alone; labels must be known.

    The mean over a batch is not taken: it would tie an example's gradient to its batch.
    """
    logits = model(examples.tokens, examples.lengths)
    return functional.cross_entropy(logits, examples.labels, reduction="none")


def predict(model: torch.nn.Module, examples: Examples) -> tuple[torch.Tensor, torch.Tensor]:
    """The most probable class int64 [N] of each text, and all probabilities [N, C]."""
    probabilities = _logits_of(model, examples).softmax(1)
    return probabilities.argmax(1), probabilities


def evaluate(model: torch.nn.Module, examples: Examples, num_labels: int) -> Scores:
    """Score the model on examples with known labels.

    Raises:
        DataError: If there are no examples, or a label is not in 0 .. `num_labels` - 1.
    """
    labels = examples.labels
    if not len(labels) or int(labels.min()) < 0 or int(labels.max()) >= num_labels:
        raise DataError(
            f"evaluation.data: must hold at least one text, all with labels of the plan, got "
            f"{len(labels)} texts or a label outside of 0 .. {num_labels - 1}: check label_field"
        )
    logits = _logits_of(model, examples)
    loss = functional.cross_entropy(logits, labels)
    return scores_of(labels, logits.argmax(1), num_labels=num_labels, loss=float(loss))


def scores_of(
    labels: torch.Tensor, predicted: torch.Tensor, *, num_labels: int, loss: float
) -> Scores:
    """Scores of predicted classes int64 [N] against true ones int64 [N], N >= 1."""
    right = torch.bincount(labels[labels == predicted], minlength=num_labels).tolist()
    given = torch.bincount(predicted, minlength=num_labels).tolist()
    there = torch.bincount(labels, minlength=num_labels).tolist()
    per_class = tuple(
        ClassScores(
            label=label,
            precision=_ratio(right[label], given[label]),
            recall=_ratio(right[label], there[label]),
            # 2 P R / (P + R), written so that it is defined where P or R is not.
            f1=_ratio(2 * right[label], given[label] + there[label]),
            support=there[label],
        )
        for label in range(num_labels)
    )
    return Scores(
        loss=loss,
        accuracy=sum(right) / len(labels),
        precision=sum(c.precision for c in per_class) / num_labels,
        recall=sum(c.recall for c in per_class) / num_labels,
        f1=sum(c.f1 for c in per_class) / num_labels,
        per_class=per_class,
    )


def _logits_of(model: torch.nn.Module, examples: Examples) -> torch.Tensor:
    # Texts of like length stand together, so that little padding is computed.
    order = examples.lengths.argsort(stable=True)
    with torch.no_grad():
        logits = [
            model(batch.tokens, batch.lengths)
            for batch in (examples.select(part) for part in torch.split(order, BATCH_SIZE))
        ]
    return torch.cat(logits)[order.argsort()]


def _ratio(numerator: float, denominator: float) -> float:
    return numerator / denominator if denominator else 0.0

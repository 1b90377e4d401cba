"""The server's public split, read and scrubbed once, and weights scored on it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from discreet.common.classification import evaluate
from discreet.common.clean import clean_text
from discreet.common.corpus import read_corpus
from discreet.common.errors import DataError
from discreet.common.models import load_weights
from discreet.common.plan import EvaluationConfig, Plan
from discreet.common.scores import Scores
from discreet.common.tokens import Examples, Tokenizer
from discreet.common.update import Weights
from discreet.privacy.store import public_scrub_all
from discreet.server.predict import plain_model


class Evaluator:
    """Scores weights on the public split of a plan.

    Attributes:
        num_examples: Texts in the split.
    """

    def __init__(self, plan: Plan, tokenizer: Tokenizer, examples: Examples) -> None:
        self.num_examples = len(examples)
        self._num_labels = len(plan.task.labels)
        self._examples = examples
        self._model = plain_model(plan, tokenizer)

    def __call__(self, weights: Weights) -> Scores:
        """Loss, accuracy, precision, recall and F1 of these weights."""
        load_weights(self._model, weights)
        return evaluate(self._model, self._examples, self._num_labels)


def public_examples(
    evaluation: EvaluationConfig,
    labels: Sequence[str],
    tokenizer: Tokenizer,
    *,
    cache_dir: Path | None = None,
) -> Examples:
    """Read, clean, scrub and encode the public split.

    Args:
        evaluation: Where it is and how it is treated: as the sites treat theirs.
        labels: The class names of the plan, in order.
        tokenizer: The plan's.
        cache_dir: Keeps the scrubbed texts, so that the next run need not scrub them again.

    Raises:
        DataError: If there is no text, or a text has no label or one that the plan lacks.
    """
    number_of = {label: number for number, label in enumerate(labels)}
    texts: list[str] = []
    numbers: list[int] = []
    num_unknown = 0
    for raw in read_corpus(evaluation.data):
        if raw.label is None or raw.label not in number_of:
            num_unknown += 1
            continue
        text = clean_text(raw.text, evaluation.clean)
        if len(text) >= evaluation.clean.min_chars:
            texts.append(text)
            numbers.append(number_of[raw.label])
    if num_unknown:
        raise DataError(
            f"evaluation.data: every text must have one of the plan's labels "
            f"({_few(labels)}), got {num_unknown} without or with another: correct "
            "evaluation.data.label_field or task.labels"
        )
    if not texts:
        raise DataError(
            f"evaluation.data: must hold at least one text, got none from {evaluation.data.path}: "
            "correct evaluation.data.path or evaluation.data.where"
        )
    scrubbed = public_scrub_all(texts, evaluation.scrub, cache_dir=cache_dir)
    return tokenizer.encode(scrubbed, numbers)


def _few(labels: Sequence[str]) -> str:
    shown = ", ".join(labels[:8])
    return shown if len(labels) <= 8 else f"{shown} and {len(labels) - 8} more"

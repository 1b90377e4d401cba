"""Loss, scores and labels, against figures worked out by hand."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from discreet.common.classification import (
    BATCH_SIZE,
    evaluate,
    per_example_loss,
    predict,
    scores_of,
)
from discreet.common.errors import DataError
from discreet.common.layers import TextModel
from discreet.common.scores import ClassScores
from discreet.common.tokens import Examples


class FirstToken(TextModel):
    """Logits that the first token of a text names: class `token` gets log 3, others 0."""

    def __init__(self, num_labels: int) -> None:
        super().__init__()
        self.num_labels = num_labels

    def forward(self, tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        return math.log(3) * torch.nn.functional.one_hot(tokens[:, 0], self.num_labels).float()


def examples_that(predict_labels: list[int], true_labels: list[int]) -> Examples:
    """Texts for which `FirstToken` says `predict_labels`; their lengths differ."""
    tokens = torch.zeros(len(predict_labels), 7, dtype=torch.int64)
    tokens[:, 0] = torch.tensor(predict_labels)
    lengths = 1 + torch.arange(len(predict_labels)) * 5 % 7
    return Examples(tokens, lengths, torch.tensor(true_labels))


def test_the_loss_is_the_cross_entropy_of_each_example_alone() -> None:
    losses = per_example_loss(FirstToken(2), examples_that([0, 1], [0, 0]))

    # Probabilities 3/4 and 1/4.
    torch.testing.assert_close(losses, torch.tensor([math.log(4 / 3), math.log(4)]))


def test_probabilities_and_the_most_probable_class_are_predicted() -> None:
    labels, probabilities = predict(FirstToken(2), examples_that([1, 0], [-1, -1]))

    assert labels.tolist() == [1, 0]
    torch.testing.assert_close(probabilities, torch.tensor([[0.25, 0.75], [0.75, 0.25]]))


def test_predictions_stand_in_the_order_of_the_texts_over_many_batches() -> None:
    expected = [i % 3 for i in range(2 * BATCH_SIZE + 5)]

    labels, _ = predict(FirstToken(3), examples_that(expected, [0] * len(expected)))

    assert labels.tolist() == expected


def test_predicting_builds_no_gradient() -> None:
    model = torch.nn.Linear(1, 2)

    class Wrapped(TextModel):
        def forward(self, tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = model(tokens[:, :1].float())
            return logits

    _, probabilities = predict(Wrapped(), examples_that([0], [0]))

    assert not probabilities.requires_grad


def test_scores_of_a_worked_example() -> None:
    # Three classes, 6 texts. Class 0: given 3 times, 2 right, there 2 times; class 1: given
    # 2, 1 right, there 3; class 2: given 1, 0 right, there 1.
    scores = evaluate(
        FirstToken(3), examples_that([0, 0, 0, 1, 1, 2], [0, 0, 1, 1, 2, 1]), num_labels=3
    )

    assert scores.per_class == (
        ClassScores(label=0, precision=2 / 3, recall=1.0, f1=4 / 5, support=2),
        ClassScores(label=1, precision=1 / 2, recall=1 / 3, f1=2 / 5, support=3),
        ClassScores(label=2, precision=0.0, recall=0.0, f1=0.0, support=1),
    )
    assert scores.accuracy == 3 / 6
    assert scores.precision == pytest.approx((2 / 3 + 1 / 2) / 3)
    assert scores.recall == pytest.approx((1 + 1 / 3) / 3)
    assert scores.f1 == pytest.approx((4 / 5 + 2 / 5) / 3)
    # Right with 3/5, wrong with 1/5.
    assert scores.loss == pytest.approx((3 * math.log(5 / 3) + 3 * math.log(5)) / 6)


def test_a_class_that_is_neither_there_nor_given_scores_zero_and_counts_in_the_mean() -> None:
    scores = evaluate(FirstToken(3), examples_that([0, 1], [0, 1]), num_labels=3)

    assert scores.per_class[2] == ClassScores(label=2, precision=0, recall=0, f1=0, support=0)
    assert scores.f1 == pytest.approx(2 / 3)


def test_all_right_scores_one() -> None:
    scores = evaluate(FirstToken(2), examples_that([0, 1, 1], [0, 1, 1]), num_labels=2)

    assert (scores.accuracy, scores.precision, scores.recall, scores.f1) == (1, 1, 1, 1)


@pytest.mark.parametrize("labels", [[], [0, -1], [0, 2]])
def test_texts_without_usable_labels_are_refused(labels: list[int]) -> None:
    examples = examples_that([0] * len(labels), labels)

    with pytest.raises(DataError, match=r"evaluation.data: must hold at least one text"):
        evaluate(FirstToken(2), examples, num_labels=2)


@settings(max_examples=50, deadline=None)
@given(pairs=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=40))
def test_scores_keep_their_bounds_and_relations(pairs: list[tuple[int, int]]) -> None:
    given_labels, true_labels = zip(*pairs, strict=True)

    scores = scores_of(
        torch.tensor(true_labels), torch.tensor(given_labels), num_labels=4, loss=0.0
    )

    assert sum(c.support for c in scores.per_class) == len(pairs)
    # Accuracy is the mean of the recalls, weighted by support.
    weighted = sum(c.recall * c.support for c in scores.per_class) / len(pairs)
    assert scores.accuracy == pytest.approx(weighted)
    for c in scores.per_class:
        assert min(c.precision, c.recall) - 1e-9 <= c.f1 <= max(c.precision, c.recall) + 1e-9

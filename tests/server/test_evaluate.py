"""The public split, and the finished model on new texts: both as the sites treat theirs."""

from __future__ import annotations

from pathlib import Path

import orjson
import pytest
import torch

from discreet.common.errors import DataError
from discreet.common.models import weights_of
from discreet.common.plan import EvaluationConfig, Plan, TokensConfig
from discreet.common.tokens import Tokenizer
from discreet.common.update import Weights
from discreet.server import evaluate as evaluate_module
from discreet.server import predict as predict_module
from discreet.server.evaluate import Evaluator, public_examples
from discreet.server.predict import (
    Predictor,
    load_predictor,
    plain_model,
    save_model,
    treatment_of,
)

ROWS = [
    {"text": "win a prize now", "label": "spam"},
    {"text": "see you at noon", "label": "ham"},
    {"text": "prize prize prize", "label": "spam"},
]


def _plan(**more: object) -> Plan:
    return Plan.model_validate(
        {
            "name": "test",
            "task": {"labels": ["ham", "spam"]},
            "model": {"kind": "bag", "width": 4},
            "privacy": "none",
            "training": {
                "rounds": 1,
                "sample_rate": 0.5,
                "expected_batch_size": 2,
                "learning_rate": 1.0,
            },
            **more,
        }
    )


def _evaluation(folder: Path, rows: list[dict[str, str]]) -> EvaluationConfig:
    path = folder / "test.jsonl"
    path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    return EvaluationConfig.model_validate(
        {"data": {"path": str(path)}, "scrub": {"enabled": False}}
    )


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.load(TokensConfig())


def _biased(plan: Plan, tokenizer: Tokenizer) -> Weights:
    """Weights that call everything spam."""
    weights = {
        name: torch.zeros_like(t) for name, t in weights_of(plain_model(plan, tokenizer)).items()
    }
    bias = next(name for name, t in weights.items() if t.shape == (2,))
    weights[bias] = torch.tensor([0.0, 2.0])
    return Weights(weights)


def test_scores_are_those_of_the_given_weights(tmp_path: Path, tokenizer: Tokenizer) -> None:
    plan = _plan()
    examples = public_examples(_evaluation(tmp_path, ROWS), plan.task.labels, tokenizer)

    evaluator = Evaluator(plan, tokenizer, examples)
    scores = evaluator(_biased(plan, tokenizer))

    # By hand: always "spam", at probability e^2 / (1 + e^2) = 0.8808.
    assert evaluator.num_examples == 3
    assert scores.accuracy == pytest.approx(2 / 3)
    assert scores.recall == pytest.approx(0.5)
    assert scores.loss == pytest.approx((2 * 0.126928 + 2.126928) / 3, rel=1e-4)


def test_labels_outside_the_plan_are_counted_and_never_shown(
    tmp_path: Path, tokenizer: Tokenizer
) -> None:
    rows = [*ROWS, {"text": "my secret", "label": "smut"}, {"text": "another", "label": "Ham"}]

    with pytest.raises(DataError, match=r"\(ham, spam\), got 2 without or with another") as caught:
        public_examples(_evaluation(tmp_path, rows), ("ham", "spam"), tokenizer)

    assert "secret" not in str(caught.value)
    assert "smut" not in str(caught.value)


def test_many_labels_are_not_all_listed(tmp_path: Path, tokenizer: Tokenizer) -> None:
    labels = tuple(f"class-{n}" for n in range(77))

    with pytest.raises(DataError, match="class-7 and 69 more"):
        public_examples(_evaluation(tmp_path, ROWS), labels, tokenizer)


def test_a_split_without_texts_is_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    evaluation = _evaluation(tmp_path, [{"text": "   ", "label": "ham"}])

    with pytest.raises(DataError, match=r"at least one text|evaluation|no text|empty"):
        public_examples(evaluation, ("ham", "spam"), tokenizer)


def test_the_split_is_cleaned_and_scrubbed_before_it_is_encoded(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def note(texts: list[str], config: object, *, cache_dir: object) -> list[str]:
        seen.extend(texts)
        return ["<SCRUBBED>"] * len(texts)

    monkeypatch.setattr(evaluate_module, "public_scrub_all", note)
    rows = [{"text": "call\u0007 me  please", "label": "ham"}]

    examples = public_examples(_evaluation(tmp_path, rows), ("ham", "spam"), tokenizer)

    assert "\u0007" not in seen[0]
    assert torch.equal(examples.tokens, tokenizer.encode(["<SCRUBBED>"]).tokens)


def test_a_saved_model_predicts_as_it_did(tmp_path: Path, tokenizer: Tokenizer) -> None:
    plan = _plan(evaluation={"data": {"path": "x.jsonl"}, "scrub": {"enabled": False}})
    weights = weights_of(plain_model(plan, tokenizer))
    texts = [row["text"] for row in ROWS] + [""]

    folder = save_model(tmp_path, plan, tokenizer, weights)

    expected = Predictor(plan, tokenizer, weights).predict(texts)
    assert load_predictor(tmp_path).predict(texts) == expected
    assert load_predictor(folder).predict(texts) == expected
    assert {path.name for path in folder.iterdir()} == {
        "model.safetensors",
        "tokenizer.json",
        "plan.json",
    }


def test_predictions_are_labels_with_probabilities(tokenizer: Tokenizer) -> None:
    plan = _plan(evaluation={"data": {"path": "x.jsonl"}, "scrub": {"enabled": False}})

    predictions = Predictor(plan, tokenizer, _biased(plan, tokenizer)).predict(["a", "b"])

    assert [label for label, _ in predictions] == ["spam", "spam"]
    assert [p for _, p in predictions] == pytest.approx([0.880797] * 2, rel=1e-5)
    assert Predictor(plan, tokenizer, _biased(plan, tokenizer)).predict([]) == []


def test_new_texts_are_cleaned_and_scrubbed_as_the_plan_says(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str, object]] = []

    def note(text: str, config: object) -> str:
        seen.append((text, config))
        return text

    monkeypatch.setattr(predict_module, "public_scrub", note)
    plan = _plan(simulation={"data": {"path": "x.jsonl"}, "scrub": {"default": "mask"}})

    Predictor(plan, tokenizer, _biased(plan, tokenizer)).predict(["call\u0007 me"])

    assert plan.simulation is not None
    assert seen[0][1] == plan.simulation.scrub
    assert "\u0007" not in seen[0][0]


def test_the_public_splits_treatment_comes_before_the_simulations() -> None:
    plan = _plan(
        evaluation={"data": {"path": "x.jsonl"}, "scrub": {"default": "mask"}},
        simulation={"data": {"path": "x.jsonl"}},
    )

    assert treatment_of(plan)[1].default == "mask"
    assert treatment_of(_plan())[1].default == "placeholder"


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="must be the folder of a finished run"):
        load_predictor(tmp_path)


def test_damaged_weights_are_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    plan = _plan()
    folder = save_model(tmp_path, plan, tokenizer, _biased(plan, tokenizer))
    (folder / "model.safetensors").write_bytes(b"not tensors")

    with pytest.raises(DataError, match="is damaged"):
        load_predictor(tmp_path)


def test_weights_of_another_plan_are_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    plan = _plan()
    save_model(tmp_path, plan, tokenizer, Weights({"w": torch.zeros(2)}))

    with pytest.raises(DataError, match="trained under the same plan"):
        load_predictor(tmp_path)

"""The finished model in its folder, and labels for new texts with it.

    RUN_DIR/model/model.safetensors   the weights
    RUN_DIR/model/tokenizer.json      the tokenizer
    RUN_DIR/model/plan.json           the plan: which model, which labels, how text is treated

The folder stands alone: it can be copied elsewhere. A new text is cleaned and scrubbed as
the texts were that the model learned from, or it would meet what it never saw.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from discreet.common.classification import predict
from discreet.common.clean import clean_text
from discreet.common.config import plan_from_json
from discreet.common.errors import DataError
from discreet.common.layers import TextModel
from discreet.common.models import build_model, load_weights
from discreet.common.plan import Plan
from discreet.common.site import CleanConfig, ScrubConfig
from discreet.common.tokens import Tokenizer
from discreet.common.update import Weights
from discreet.privacy.scrub import public_scrub
from discreet.server.checkpoint import put_in_place

MODEL_DIR = "model"
"""The folder of the finished model in a run folder."""


class Predictor:
    """Labels texts with a finished model.

    Attributes:
        labels: The class names, in the order of the model's outputs.
    """

    def __init__(self, plan: Plan, tokenizer: Tokenizer, weights: Weights) -> None:
        self.labels = plan.task.labels
        self._tokenizer = tokenizer
        self._clean, self._scrub = treatment_of(plan)
        self._model = plain_model(plan, tokenizer)
        load_weights(self._model, weights)

    def predict(self, texts: Sequence[str]) -> list[tuple[str, float]]:
        """The most probable label of each text and its probability, 0 to 1, in order."""
        if not texts:
            return []
        cleaned = (clean_text(text, self._clean) for text in texts)
        scrubbed = [public_scrub(text, self._scrub) for text in cleaned]
        numbers, probabilities = predict(self._model, self._tokenizer.encode(scrubbed))
        best = probabilities.gather(1, numbers[:, None])[:, 0]
        return [
            (self.labels[number], probability)
            for number, probability in zip(numbers.tolist(), best.tolist(), strict=True)
        ]


def plain_model(plan: Plan, tokenizer: Tokenizer) -> TextModel:
    """The plan's model before training, for use and not for training."""
    model = build_model(
        plan.model,
        vocabulary_size=tokenizer.vocabulary_size,
        num_labels=len(plan.task.labels),
        max_tokens=plan.tokens.max_tokens,
        seed=plan.training.seed,
    )
    return model.eval()


def treatment_of(plan: Plan) -> tuple[CleanConfig, ScrubConfig]:
    """How a text is cleaned and scrubbed before the model sees it.

    The sites' own settings are theirs; the plan says how the public split is treated "as the
    sites do", or else what a simulation's sites do.
    """
    source = plan.evaluation or plan.simulation
    return (CleanConfig(), ScrubConfig()) if source is None else (source.clean, source.scrub)


def save_model(run_dir: Path, plan: Plan, tokenizer: Tokenizer, weights: Weights) -> Path:
    """Write the model folder; the weights come last, so that a kill leaves none or all.

    Returns:
        The folder.
    """
    from safetensors.torch import save_file

    folder = run_dir / MODEL_DIR
    folder.mkdir(parents=True, exist_ok=True)
    aside = folder / "part"
    tokenizer.save(aside)
    put_in_place(aside, folder / "tokenizer.json")
    aside.write_text(plan.model_dump_json(indent=2), encoding="utf-8")
    put_in_place(aside, folder / "plan.json")
    save_file({name: tensor.contiguous() for name, tensor in weights.items()}, aside)
    put_in_place(aside, folder / "model.safetensors")
    return folder


def load_predictor(run_dir: Path) -> Predictor:
    """The finished model of a run folder, or of a copy of its `model` folder.

    Raises:
        DataError: If it holds no finished model, or one that its plan does not fit.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = run_dir / MODEL_DIR if (run_dir / MODEL_DIR).is_dir() else run_dir
    weights_path = folder / "model.safetensors"
    if not weights_path.is_file() or not (folder / "plan.json").is_file():
        raise DataError(
            f"{run_dir}: must be the folder of a finished run, got none with "
            f"{MODEL_DIR}/model.safetensors: finish the run, or name another folder"
        )
    plan = plan_from_json((folder / "plan.json").read_bytes())
    tokens = plan.tokens.model_copy(update={"path": folder / "tokenizer.json"})
    try:
        weights: dict[str, torch.Tensor] = load_file(weights_path)
    except SafetensorError:
        raise DataError(f"{weights_path}: is damaged: restore it, or run again") from None
    return Predictor(plan, Tokenizer.load(tokens), Weights(weights))

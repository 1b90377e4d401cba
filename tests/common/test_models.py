"""What every kind of model promises, its start, and its weights by name."""

import subprocess
import sys
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from discreet.common.errors import DataError
from discreet.common.layers import ModelSize, TextModel
from discreet.common.model_linear import LinearClassifier
from discreet.common.models import MODELS, build_model, load_weights, weight_shapes, weights_of
from discreet.common.plan import (
    BagModel,
    LinearModel,
    ModelConfig,
    RecurrentModel,
    TransformerModel,
)
from discreet.common.update import Weights

CONFIGS: list[ModelConfig] = [
    LinearModel(buckets=64, ngrams=3),
    BagModel(width=8),
    RecurrentModel(kind="lstm", width=6, hidden=5, layers=2),
    RecurrentModel(kind="gru", width=6, hidden=5, layers=2),
    TransformerModel(kind="transformer", width=8, heads=2, layers=2),
]
every_kind = pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.kind)


def small_model(config: ModelConfig, seed: int = 7) -> TextModel:
    """A model for 50 tokens and 3 classes, none of its weights zero."""
    model = build_model(config, vocabulary_size=50, num_labels=3, max_tokens=40, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model


def rows_of(lengths: list[int], seed: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Random tokens, with zeros behind each length."""
    generator = torch.Generator().manual_seed(seed)
    longest = max(lengths)
    tokens = torch.randint(1, 50, (len(lengths), longest), generator=generator)
    counts = torch.tensor(lengths)
    tokens[torch.arange(longest) >= counts[:, None]] = 0
    return tokens, counts


def gradient_of(model: TextModel, losses: torch.Tensor) -> torch.Tensor:
    """The gradient of the summed losses, as one vector."""
    gradients = torch.autograd.grad(losses.sum(), list(model.parameters()))
    return torch.cat([g.flatten() for g in gradients])


# What every kind promises


def test_the_table_holds_every_kind_that_a_plan_can_name() -> None:
    assert {config.kind for config in CONFIGS} == set(MODELS)


@every_kind
def test_logits_have_one_row_a_text_and_one_column_a_class(config: ModelConfig) -> None:
    tokens, lengths = rows_of([4, 1, 9])

    logits = small_model(config)(tokens, lengths)

    assert logits.shape == (3, 3)
    assert logits.dtype == torch.float32


@every_kind
def test_a_batch_without_texts_gives_no_logits(config: ModelConfig) -> None:
    tokens, lengths = torch.zeros(0, 1, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)

    logits = small_model(config)(tokens, lengths)

    assert logits.shape == (0, 3)


@every_kind
@settings(max_examples=20, deadline=None)
@given(length=st.integers(1, 12), padding=st.integers(0, 28), filler=st.integers(0, 49))
def test_padding_changes_neither_logits_nor_gradient(
    config: ModelConfig, length: int, padding: int, filler: int
) -> None:
    model = small_model(config)
    tokens, lengths = rows_of([length])
    padded = functional.pad(tokens, (0, padding), value=filler)

    bare_logits, padded_logits = model(tokens, lengths), model(padded, lengths)

    torch.testing.assert_close(padded_logits, bare_logits, rtol=0, atol=2e-6)
    bare = gradient_of(model, functional.cross_entropy(bare_logits, torch.tensor([1])))
    with_padding = gradient_of(model, functional.cross_entropy(padded_logits, torch.tensor([1])))
    torch.testing.assert_close(with_padding, bare, rtol=0, atol=2e-6)


@every_kind
def test_padding_gets_exactly_no_gradient(config: ModelConfig) -> None:
    model = small_model(config)
    (embedding,) = [m for n, m in model.named_modules() if n in {"embedding", "weights"}]
    outputs: list[torch.Tensor] = []
    embedding.register_forward_hook(lambda _m, _i, output: outputs.append(output))
    tokens, lengths = rows_of([4, 9])

    logits = model(tokens, lengths)

    (gradient,) = torch.autograd.grad(logits.square().sum(), outputs)
    # The short text has at most 4 n-grams of each of 3 lengths, or 4 tokens; the linear
    # model's last row is its bias, which every text meets.
    behind, bias = (12, 1) if isinstance(model, LinearClassifier) else (4, 0)
    assert torch.count_nonzero(gradient[0, behind : gradient.shape[1] - bias]) == 0
    assert torch.count_nonzero(gradient[0, :4]) > 0


@every_kind
@settings(max_examples=20, deadline=None)
@given(mates=st.lists(st.integers(1, 30), max_size=5), place=st.integers(0, 5))
def test_logits_do_not_depend_on_batch_mates(
    config: ModelConfig, mates: list[int], place: int
) -> None:
    model = small_model(config)
    tokens, lengths = rows_of([6], seed=1)
    others, other_lengths = rows_of([*mates, 1], seed=2)
    width = max(others.shape[1], 6)
    place = min(place, len(others))
    alone = functional.pad(tokens, (0, width - 6))
    rows = functional.pad(others, (0, width - others.shape[1]))
    batch = torch.cat([rows[:place], alone, rows[place:]])
    counts = torch.cat([other_lengths[:place], lengths, other_lengths[place:]])

    together = model(batch, counts)

    torch.testing.assert_close(together[place], model(tokens, lengths)[0], rtol=0, atol=2e-6)


@every_kind
def test_the_gradient_of_a_batch_is_the_sum_over_its_texts(config: ModelConfig) -> None:
    model = small_model(config)
    tokens, lengths = rows_of([3, 8, 1, 5])
    labels = torch.tensor([0, 1, 2, 1])

    whole = gradient_of(
        model, functional.cross_entropy(model(tokens, lengths), labels, reduction="none")
    )

    one_by_one = [
        gradient_of(model, functional.cross_entropy(model(t[None], n[None]), y[None]))
        for t, n, y in zip(tokens, lengths, labels, strict=True)
    ]
    torch.testing.assert_close(whole, torch.stack(one_by_one).sum(0), rtol=1e-4, atol=1e-5)


@every_kind
def test_only_layers_known_to_the_clipper_hold_weights(config: ModelConfig) -> None:
    model = small_model(config)

    owners = {type(m) for m in model.modules() if list(m.parameters(recurse=False))}

    assert owners <= {nn.Linear, nn.Embedding, nn.LayerNorm}
    assert list(model.buffers()) == []


@every_kind
def test_every_weight_takes_part(config: ModelConfig) -> None:
    model = small_model(config)
    tokens, lengths = rows_of([9, 30])

    losses = functional.cross_entropy(model(tokens, lengths), torch.tensor([0, 1]))
    losses.backward()  # type: ignore[no-untyped-call]

    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.count_nonzero(parameter.grad) > 0, name


@every_kind
def test_a_text_as_long_as_max_tokens_is_taken(config: ModelConfig) -> None:
    tokens, lengths = rows_of([40])

    assert torch.isfinite(small_model(config)(tokens, lengths)).all()


def test_a_base_model_has_no_forward() -> None:
    with pytest.raises(NotImplementedError):
        TextModel()(torch.zeros(1, 1), torch.ones(1))


def test_size_is_what_a_model_is_made_for() -> None:
    size = ModelSize(vocabulary_size=11, num_labels=4, max_tokens=6)

    model = MODELS["transformer"](TransformerModel(kind="transformer", width=4, heads=1), size)

    assert weight_shapes(model)["embedding.weight"] == (11, 4)
    assert weight_shapes(model)["positions.weight"] == (6, 4)
    assert weight_shapes(model)["head.weight"] == (4, 4)


# The start


@every_kind
def test_a_seed_decides_the_weights_and_leaves_global_randomness_alone(config: ModelConfig) -> None:
    before = torch.get_rng_state()

    torch.manual_seed(1)
    first = weights_of(small_model(config))
    torch.manual_seed(2)
    between = torch.get_rng_state()
    second = weights_of(small_model(config))

    assert torch.equal(torch.get_rng_state(), between)
    assert all(torch.equal(first[name], second[name]) for name in first)
    torch.set_rng_state(before)


@pytest.mark.parametrize("config", CONFIGS[1:], ids=lambda config: config.kind)
def test_another_seed_gives_other_weights(config: ModelConfig) -> None:
    sizes = {"vocabulary_size": 50, "num_labels": 3, "max_tokens": 40}

    first = build_model(config, **sizes, seed=1).state_dict()
    second = build_model(config, **sizes, seed=2).state_dict()

    assert not torch.equal(first["embedding.weight"], second["embedding.weight"])


def test_the_weights_are_the_same_in_another_process() -> None:
    script = (
        "from discreet.common.models import build_model;"
        "from discreet.common.plan import RecurrentModel;"
        "m = build_model(RecurrentModel(kind='gru'), vocabulary_size=9, num_labels=2,"
        " max_tokens=4, seed=5);"
        "print([p.tolist() for p in m.state_dict().values()])"
    )

    config = RecurrentModel(kind="gru")
    here = build_model(config, vocabulary_size=9, num_labels=2, max_tokens=4, seed=5)
    there = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)

    assert there.stdout.decode().strip() == str([p.tolist() for p in here.state_dict().values()])


def test_the_linear_model_starts_at_zero() -> None:
    model = build_model(LinearModel(), vocabulary_size=9, num_labels=2, max_tokens=4, seed=5)

    assert all(torch.count_nonzero(w) == 0 for w in weights_of(model).values())


@every_kind
def test_the_start_is_finite_and_of_usual_size(config: ModelConfig) -> None:
    model = build_model(config, vocabulary_size=50, num_labels=3, max_tokens=40, seed=0)

    for name, weight in weights_of(model).items():
        assert weight.abs().max() < 6, name


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("lstm", [0, 0, 1, 1, 0, 0, 0, 0]), ("gru", [0, 0, 2, 2, 0, 0])],
)
def test_a_recurrent_layer_starts_by_keeping_what_it_has_met(
    kind: Literal["lstm", "gru"], expected: list[float]
) -> None:
    # The gates in the order of torch's own layers: the second is the one that keeps.
    config = RecurrentModel(kind=kind, width=3, hidden=2, layers=2)

    model = build_model(config, vocabulary_size=9, num_labels=2, max_tokens=4, seed=0)

    assert model.state_dict()["layers.0.inputs.bias"].tolist() == expected
    assert model.state_dict()["layers.1.inputs.bias"].tolist() == expected


# Weights by name


@every_kind
def test_weights_go_from_one_model_to_another_by_name(config: ModelConfig) -> None:
    source, target = small_model(config, seed=1), small_model(config, seed=2)
    tokens, lengths = rows_of([5, 2])

    load_weights(target, Weights(dict(reversed(weights_of(source).items()))))

    assert torch.equal(target(tokens, lengths), source(tokens, lengths))


@every_kind
def test_weights_are_copies_in_both_directions(config: ModelConfig) -> None:
    model = small_model(config)
    weights = weights_of(model)
    load_weights(model, weights)

    for weight in weights.values():
        weight.zero_()

    assert all(torch.count_nonzero(p) > 0 for p in model.parameters())
    assert not any(w.requires_grad for w in weights.values())


def test_frozen_weights_are_not_exchanged() -> None:
    model = small_model(BagModel(width=4))
    model.get_parameter("embedding.weight").requires_grad_(False)

    assert set(weights_of(model)) == {"head.weight", "head.bias"}
    assert weight_shapes(model) == {"head.weight": (3, 4), "head.bias": (3,)}


def test_weights_with_other_names_are_refused() -> None:
    model = small_model(BagModel(width=4))
    weights = weights_of(model)
    weights["tail.bias"] = weights.pop("head.bias")

    with pytest.raises(DataError, match=r"\['head.bias'\] are missing and \['tail.bias'\] are unk"):
        load_weights(model, weights)


@pytest.mark.parametrize("wrong", [torch.zeros(4), torch.zeros(3, dtype=torch.float64)])
def test_weights_of_another_shape_or_format_are_refused_and_none_is_loaded(
    wrong: torch.Tensor,
) -> None:
    model = small_model(BagModel(width=4))
    before = weights_of(model)
    weights = Weights({name: torch.zeros_like(w) for name, w in before.items()})
    weights["head.bias"] = wrong

    with pytest.raises(DataError, match=r"weights head.bias must be torch.float32 \(3,\), got"):
        load_weights(model, weights)

    assert all(torch.equal(w, before[name]) for name, w in weights_of(model).items())

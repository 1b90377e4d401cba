"""Each kind of model against a second implementation."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from discreet.common.layers import TextModel, masked_mean
from discreet.common.model_linear import distinct_ngrams
from discreet.common.model_recurrent import GRULayer, LSTMLayer
from discreet.common.model_transformer import Block
from discreet.common.models import build_model
from discreet.common.plan import LinearModel, ModelConfig, RecurrentModel, TransformerModel


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


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


# Linear: hashed n-grams


def test_ngrams_of_a_text_are_counted_once() -> None:
    tokens = torch.tensor([[5, 5, 5, 7]])

    _, rarities = distinct_ngrams(tokens, torch.tensor([4]), ngrams=2, num_buckets=2**20)

    # Distinct: 5, 7, (5, 5), (5, 7); each as rare as its rarest token, log(2 + its number).
    expected = torch.tensor([0.0, 0.0, 0.0, 7.0, 7.0, 9.0, 9.0])
    expected[3:] = expected[3:].log()
    assert torch.allclose(rarities.sort().values[0], expected)


def test_order_of_tokens_tells_ngrams_apart() -> None:
    lengths = torch.tensor([2, 2])

    buckets, counts = distinct_ngrams(
        torch.tensor([[3, 4], [4, 3]]), lengths, ngrams=2, num_buckets=2**20
    )

    first, second = (set(row[c > 0].tolist()) for row, c in zip(buckets, counts, strict=True))
    assert len(first & second) == 2
    assert len(first ^ second) == 2


def test_the_hash_is_a_constant_of_the_product() -> None:
    # Worked out with Python integers modulo 2^64, as the weights of trained models rely on it.
    def bucket(ngram: list[int], num_buckets: int) -> int:
        value = 0
        for n, token in enumerate(ngram, start=1):
            value = (value * 6364136223846793005 + (token + n) * -7046029254386353131) % 2**64
        signed = value - 2**64 if value >= 2**63 else value
        mixed = ((signed ^ (signed >> 29)) * 6364136223846793005) % 2**64
        return (mixed >> 32) % 2**31 % num_buckets

    buckets, counts = distinct_ngrams(
        torch.tensor([[11, 8000, 2]]), torch.tensor([3]), ngrams=3, num_buckets=1000
    )

    text = [11, 8000, 2]
    expected = {bucket(text[i : i + n], 1000) for n in (1, 2, 3) for i in range(4 - n)}
    assert set(buckets[0][counts[0] > 0].tolist()) == expected


def test_the_hash_spreads_the_vocabulary_evenly() -> None:
    tokens = torch.arange(8192)[:, None]

    buckets, _ = distinct_ngrams(
        tokens, torch.ones(8192, dtype=torch.int64), ngrams=1, num_buckets=2**14
    )

    # Balls into bins: m (1 - (1 - 1/m)^n) = 6446 buckets are hit, with deviation under 40.
    assert abs(len(buckets.unique()) - 6446) < 160


@settings(max_examples=30, deadline=None)
@given(lengths=st.lists(st.integers(1, 12), min_size=1, max_size=5), seed=st.integers(0, 99))
def test_a_text_is_a_vector_of_length_one(lengths: list[int], seed: int) -> None:
    model = build_model(
        LinearModel(buckets=16, ngrams=2), vocabulary_size=50, num_labels=2, max_tokens=40, seed=0
    )

    for tokens, count in zip(*rows_of(lengths, seed), strict=True):
        logits = model(tokens[None], count[None])
        # The gradient of one logit is the text's vector, in that logit's column.
        (gradient,) = torch.autograd.grad(logits[0, 0], list(model.parameters()))
        assert float(gradient.norm()) == pytest.approx(1, abs=1e-5)


# Recurrent, attention, mean: against torch's own


@pytest.mark.parametrize("length", [1, 2, 9])
def test_an_lstm_layer_is_torchs_lstm(length: int) -> None:
    theirs = nn.LSTM(4, 3, batch_first=True)
    ours = LSTMLayer(4, 3)
    with torch.no_grad():
        ours.inputs.weight.copy_(theirs.weight_ih_l0)
        ours.inputs.bias.copy_(theirs.bias_ih_l0 + theirs.bias_hh_l0)
        ours.recurrent.weight.copy_(theirs.weight_hh_l0)
    sequence = torch.randn(5, length, 4)

    torch.testing.assert_close(ours(sequence), theirs(sequence)[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("length", [1, 2, 9])
def test_a_gru_layer_is_torchs_gru(length: int) -> None:
    theirs = nn.GRU(4, 3, batch_first=True)
    ours = GRULayer(4, 3)
    with torch.no_grad():
        ours.inputs.weight.copy_(theirs.weight_ih_l0)
        ours.inputs.bias.copy_(theirs.bias_ih_l0)
        ours.recurrent.weight.copy_(theirs.weight_hh_l0)
        ours.recurrent.bias.copy_(theirs.bias_hh_l0)
    sequence = torch.randn(5, length, 4)

    torch.testing.assert_close(ours(sequence), theirs(sequence)[0], rtol=0, atol=1e-6)


def test_an_lstm_with_torchs_weights_reads_the_state_that_packing_would() -> None:
    model = small_model(RecurrentModel(kind="lstm", width=6, hidden=5))
    state = model.state_dict()
    theirs = nn.LSTM(6, 5, batch_first=True)
    with torch.no_grad():
        theirs.weight_ih_l0.copy_(state["layers.0.inputs.weight"])
        theirs.bias_ih_l0.copy_(state["layers.0.inputs.bias"])
        theirs.weight_hh_l0.copy_(state["layers.0.recurrent.weight"])
        theirs.bias_hh_l0.zero_()
    tokens, lengths = rows_of([3, 9, 1])
    embedded = functional.embedding(tokens, state["embedding.weight"])
    packed = nn.utils.rnn.pack_padded_sequence(
        embedded, lengths, batch_first=True, enforce_sorted=False
    )

    _, (last, _) = theirs(packed)

    expected = functional.linear(last[0], state["head.weight"], state["head.bias"])
    torch.testing.assert_close(model(tokens, lengths), expected, rtol=0, atol=1e-6)


def test_a_block_is_torchs_pre_norm_encoder_layer() -> None:
    theirs = nn.TransformerEncoderLayer(
        8, 2, dim_feedforward=32, dropout=0, activation="gelu", batch_first=True, norm_first=True
    )
    ours = Block(8, 2)
    pairs = {
        "attention_norm": theirs.norm1,
        "attention_out": theirs.self_attn.out_proj,
        "feed_norm": theirs.norm2,
        "feed_in": theirs.linear1,
        "feed_out": theirs.linear2,
    }
    for name, module in pairs.items():
        ours.get_submodule(name).load_state_dict(module.state_dict())
    ours.queries_keys_values.load_state_dict(
        {"weight": theirs.self_attn.in_proj_weight, "bias": theirs.self_attn.in_proj_bias}
    )
    states = torch.randn(2, 5, 8)
    mask = torch.tensor([[True] * 5, [True] * 3 + [False] * 2])

    expected = theirs(states, src_key_padding_mask=~mask)

    torch.testing.assert_close(ours(states, mask), expected, rtol=0, atol=1e-5)


def test_the_masked_mean_is_the_mean_of_the_real_states() -> None:
    states = torch.tensor([[[1.0, 2.0], [3.0, 4.0], [99.0, 99.0]], [[5.0, 6.0]] * 3])

    mean = masked_mean(states, torch.tensor([2, 3]))

    torch.testing.assert_close(mean, torch.tensor([[2.0, 3.0], [5.0, 6.0]]))


def test_a_transformer_tells_the_order_of_tokens() -> None:
    model = small_model(TransformerModel(kind="transformer", width=8, heads=2))
    lengths = torch.tensor([3])

    forwards = model(torch.tensor([[1, 2, 3]]), lengths)

    assert not torch.allclose(forwards, model(torch.tensor([[3, 2, 1]]), lengths), atol=1e-4)

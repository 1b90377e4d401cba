from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from discreet.privacy.clipper import PerExampleClipper

WIDTH = 6
Loop = Callable[[nn.Module, Callable[[int], torch.Tensor], int, float], list[torch.Tensor]]


@pytest.fixture(autouse=True)
def _float64() -> object:
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class Tokens(nn.Module):
    """Embeds tokens, runs a body [B, T, WIDTH] > [B, ..., WIDTH], pools, gives 3 numbers."""

    def __init__(self, body: nn.Module, pool: str = "mean", padding_idx: int | None = 0) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, WIDTH, padding_idx=padding_idx)
        self.body = body
        self.head = nn.Linear(WIDTH, 3)
        self.pool = pool

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        states = self.body(self.embedding(tokens)).flatten(1, -2)
        pooled = states.sum(1) if self.pool == "sum" else states.mean(1)
        out: torch.Tensor = self.head(pooled)
        return out


class ByHand(nn.Module):
    """An Elman network: two linear layers, called once a step."""

    def __init__(self, hidden: int = WIDTH) -> None:
        super().__init__()
        self.inputs = nn.Linear(WIDTH, hidden)
        self.recurrent = nn.Linear(hidden, hidden)
        self.out = nn.Linear(hidden, WIDTH, bias=False)

    def forward(self, sequence: torch.Tensor) -> torch.Tensor:
        state = sequence.new_zeros(len(sequence), self.recurrent.in_features)
        states = []
        for step in sequence.unbind(1):
            state = torch.tanh(self.inputs(step) + self.recurrent(state))
            states.append(self.out(state))
        return torch.stack(states, 1)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.projections = nn.Linear(WIDTH, 3 * WIDTH)
        self.out = nn.Linear(WIDTH, WIDTH)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        parts = self.projections(self.norm(states)).unflatten(-1, (3, 2, WIDTH // 2))
        read = functional.scaled_dot_product_attention(*parts.permute(2, 0, 3, 1, 4).unbind())
        added: torch.Tensor = states + self.out(read.transpose(1, 2).flatten(2))
        return added


class First(nn.Module):
    """The first output of a recurrent layer of Opacus."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, sequence: torch.Tensor) -> torch.Tensor:
        states: torch.Tensor = self.layer(sequence)[0]
        return states


class Channels(nn.Module):
    """A layer that wants [B, WIDTH, T]."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, sequence: torch.Tensor) -> torch.Tensor:
        states: torch.Tensor = self.layer(sequence.mT)
        return states.mT


class Twice(nn.Module):
    """One layer, called on all positions and again on the first alone."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, sequence: torch.Tensor) -> torch.Tensor:
        states: torch.Tensor = self.layer(torch.relu(self.layer(sequence)))
        return states + self.layer(sequence[:, 0])[:, None]


class Lambda(nn.Module):
    def __init__(self, body: Callable[..., torch.Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.layers = nn.ModuleDict(layers)

    def forward(self, sequence: torch.Tensor) -> torch.Tensor:
        return self.body(sequence, **self.layers)


def opacus_recurrent(kind: str) -> nn.Module:
    from opacus.layers import DPGRU, DPLSTM

    both = {"lstm": DPLSTM, "gru": DPGRU}[kind](
        WIDTH, WIDTH // 2, num_layers=2, bidirectional=True, batch_first=True
    )
    return First(both)


def frozen(layer: nn.Module, *names: str) -> nn.Module:
    for name in names:
        getattr(layer, name).requires_grad_(False)
    return layer


def in_place(sequence: torch.Tensor, layer: nn.Module) -> torch.Tensor:
    states: torch.Tensor = layer(sequence[:, 0]).relu_()
    return states[:, None]


def checkpointed(sequence: torch.Tensor, layer: nn.Module) -> torch.Tensor:
    states = checkpoint(layer, sequence, use_reentrant=False)
    assert isinstance(states, torch.Tensor)
    return states


BODIES: dict[str, Callable[[], nn.Module]] = {
    "nothing": nn.Identity,
    "narrow": lambda: nn.Sequential(nn.Linear(WIDTH, 2), nn.Tanh(), nn.Linear(2, WIDTH)),
    "wide": lambda: nn.Sequential(nn.Linear(WIDTH, 90), nn.Tanh(), nn.Linear(90, WIDTH)),
    "wide square": lambda: nn.Sequential(
        nn.Linear(WIDTH, 40), nn.Tanh(), nn.Linear(40, 40), nn.Tanh(), nn.Linear(40, WIDTH)
    ),
    "recurrent by hand": ByHand,
    "wide recurrent by hand": lambda: ByHand(40),
    "opacus lstm": lambda: opacus_recurrent("lstm"),
    "opacus gru": lambda: opacus_recurrent("gru"),
    "attention": Attention,
    "layer called twice": lambda: Twice(nn.Linear(WIDTH, WIDTH)),
    "norm called twice": lambda: Twice(nn.LayerNorm(WIDTH)),
    "opacus sampler called twice": lambda: Twice(nn.RMSNorm(WIDTH)),
    "norm without bias": lambda: nn.LayerNorm(WIDTH, bias=False),
    "norm without trained weight": lambda: frozen(nn.LayerNorm(WIDTH), "weight"),
    "norm over two dimensions": lambda: Lambda(
        lambda s, n: n(s.unflatten(-1, (2, 3))).flatten(2), n=nn.LayerNorm((2, 3))
    ),
    "root mean square norm": lambda: nn.RMSNorm(WIDTH),
    "group norm": lambda: Channels(nn.GroupNorm(2, WIDTH)),
    "instance norm": lambda: Lambda(
        # Twice as many places, because one alone has no variance.
        lambda s, n: n(torch.cat([s, s.square()], 1).mT).mT,
        n=nn.InstanceNorm1d(WIDTH, affine=True),
    ),
    "convolution": lambda: Channels(nn.Conv1d(WIDTH, WIDTH, 3, padding="same")),
    "trained bias alone": lambda: frozen(nn.Linear(WIDTH, WIDTH), "weight"),
    "trained weight alone": lambda: frozen(nn.Linear(WIDTH, WIDTH), "bias"),
    "frozen layer": lambda: frozen(nn.Linear(WIDTH, WIDTH), "weight", "bias"),
    "layer that is not called": lambda: Lambda(lambda s, n: s, n=nn.Linear(2, 2)),
    "call that is not used": lambda: Lambda(lambda s, n: (n(s), s)[1], n=nn.Linear(WIDTH, 2)),
    "output changed in place": lambda: Lambda(in_place, layer=nn.Linear(WIDTH, WIDTH)),
    "checkpointed": lambda: Lambda(checkpointed, layer=ByHand()),
}


def clipped_grads(
    model: nn.Module, losses: Callable[[], torch.Tensor], bound: float
) -> list[torch.Tensor]:
    model.zero_grad(set_to_none=True)
    with PerExampleClipper(model, bound) as clipper:
        clipper.backward(losses())
    grads = [p.grad for p in model.parameters() if p.requires_grad]
    assert all(g is not None for g in grads)
    return [g for g in grads if g is not None]


def cross_entropy(model: nn.Module, tokens: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(model(tokens), labels, reduction="none")


def some_tokens(num_examples: int, num_tokens: int) -> torch.Tensor:
    # 11 tokens and up to 24 places: each row repeats some, and each but one ends in padding.
    tokens = torch.randint(1, 11, (num_examples, num_tokens))
    for row in range(1, num_examples):
        tokens[row, max(1, num_tokens - row) :] = 0
    return tokens


@pytest.mark.parametrize("num_tokens", [1, 5, 24])
@pytest.mark.parametrize("pool", ["mean", "sum"])
@pytest.mark.parametrize("name", BODIES)
def test_clipped_sum_is_that_of_a_loop(
    name: str, pool: str, num_tokens: int, clipped_sum_by_loop: Loop
) -> None:
    model = Tokens(BODIES[name](), pool)
    tokens, labels = some_tokens(5, num_tokens), torch.randint(0, 3, (5,))
    bound = 0.3

    found = clipped_grads(model, lambda: cross_entropy(model, tokens, labels), bound)

    rows = lambda i: cross_entropy(model, tokens[i : i + 1], labels[i : i + 1])  # noqa: E731
    for ours, loop in zip(found, clipped_sum_by_loop(model, rows, 5, bound), strict=True):
        torch.testing.assert_close(ours, loop, rtol=1e-10, atol=1e-12)


class Scaled(nn.Module):
    """A layer of one's own: rows of a table, times a gain, plus a shift."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.randn(11, WIDTH))
        self.gain = nn.Parameter(torch.randn(WIDTH))
        self.shift = nn.Parameter(torch.randn(WIDTH), requires_grad=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.table[tokens] * self.gain + self.shift


def scaled_grad_sampler(
    layer: Scaled, activations: list[torch.Tensor], backprops: torch.Tensor
) -> dict[torch.Tensor, torch.Tensor]:
    return {
        layer.gain: (layer.table[activations[0]] * backprops).sum(1),
        layer.shift: backprops.sum(1),
    }


def test_a_layer_with_a_grad_sampler_of_its_own_is_taken(
    monkeypatch: pytest.MonkeyPatch, clipped_sum_by_loop: Loop
) -> None:
    from opacus.grad_sample import GradSampleHooks

    monkeypatch.setitem(GradSampleHooks.GRAD_SAMPLERS, Scaled, scaled_grad_sampler)
    model, tokens = Scaled(), some_tokens(5, 7)

    found = clipped_grads(model, lambda: model(tokens).sum((1, 2)), 0.3)

    loop = clipped_sum_by_loop(model, lambda i: model(tokens[i : i + 1]).sum((1, 2)), 5, 0.3)
    torch.testing.assert_close(found, loop, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("bound", [1e-9, 0.1, 1e9])
@pytest.mark.parametrize("num_examples", [1, 4])
def test_clipped_sum_of_vectors_is_that_of_a_loop(
    num_examples: int, bound: float, clipped_sum_by_loop: Loop
) -> None:
    model = nn.Sequential(nn.Linear(4, 9), nn.Tanh(), nn.Linear(9, 2))
    inputs = torch.randn(num_examples, 4)

    found = clipped_grads(model, lambda: model(inputs).square().sum(1), bound)

    rows = lambda i: model(inputs[i : i + 1]).square().sum(1)  # noqa: E731
    loop = clipped_sum_by_loop(model, rows, num_examples, bound)
    for ours, theirs in zip(found, loop, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-15)


def test_the_padding_row_gets_no_gradient_and_any_other_does() -> None:
    tokens, labels = some_tokens(5, 6), torch.randint(0, 3, (5,))
    padded = Tokens(nn.Identity(), padding_idx=0)
    model = Tokens(nn.Identity(), padding_idx=None)

    with_padding = clipped_grads(padded, lambda: cross_entropy(padded, tokens, labels), 1.0)
    without = clipped_grads(model, lambda: cross_entropy(model, tokens, labels), 1.0)

    assert not with_padding[0][0].any()
    assert without[0][0].any()


def test_batches_add_up() -> None:
    model = Tokens(Attention())
    tokens, labels = some_tokens(7, 5), torch.randint(0, 3, (7,))
    whole = clipped_grads(model, lambda: cross_entropy(model, tokens, labels), 0.1)
    whole = [g.clone() for g in whole]
    model.zero_grad()

    with PerExampleClipper(model, 0.1) as clipper:
        for part in (slice(0, 3), slice(3, 4), slice(4, 7)):
            clipper.backward(cross_entropy(model, tokens[part], labels[part]))

    for parameter, expected in zip(model.parameters(), whole, strict=True):
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-12, atol=1e-14)


def test_an_empty_batch_adds_zeros() -> None:
    model = nn.Sequential(nn.Linear(4, 9), nn.Linear(9, 2))

    found = clipped_grads(model, lambda: model(torch.zeros(0, 4)).sum(1), 1.0)

    assert [g.shape for g in found] == [p.shape for p in model.parameters()]
    assert not any(g.any() for g in found)


def test_an_empty_batch_leaves_gradients_that_are_there() -> None:
    model = nn.Linear(2, 1)
    with PerExampleClipper(model, 1.0) as clipper:
        clipper.backward(model(torch.ones(1, 2))[:, 0])
        before = model.weight.grad.clone()

        clipper.backward(model(torch.zeros(0, 2))[:, 0])

    assert torch.equal(model.weight.grad, before)


def test_a_gradient_of_zero_stays_zero() -> None:
    model = nn.Linear(2, 1, bias=False)

    found = clipped_grads(model, lambda: model(torch.zeros(3, 2))[:, 0], 1.0)

    assert not found[0].any()


def test_a_known_gradient_is_cut_to_the_bound() -> None:
    # d(w x)/dw = x: norms 5 and 0.5, so the first is scaled by 1/5 and the second is kept.
    model = nn.Linear(2, 1, bias=False)
    inputs = torch.tensor([[3.0, 4.0], [0.3, 0.4]])

    found = clipped_grads(model, lambda: model(inputs)[:, 0], 1.0)

    torch.testing.assert_close(found[0], torch.tensor([[0.9, 1.2]]), rtol=1e-12, atol=0)


def test_a_forward_pass_without_backward_is_forgotten() -> None:
    model = Tokens(ByHand())
    tokens, labels = some_tokens(5, 4), torch.randint(0, 3, (5,))
    expected = clipped_grads(model, lambda: cross_entropy(model, tokens, labels), 0.1)

    def with_another_before() -> torch.Tensor:
        model(some_tokens(2, 3))
        return cross_entropy(model, tokens, labels)

    found = clipped_grads(model, with_another_before, 0.1)

    for ours, theirs in zip(found, expected, strict=True):
        assert torch.equal(ours, theirs)


def test_evaluation_without_gradients_keeps_nothing() -> None:
    model = Tokens(ByHand())
    with PerExampleClipper(model, 0.1) as clipper, torch.no_grad():
        model(some_tokens(2, 3))

        assert not any(layer.records for layer in clipper._layers)


def test_closing_leaves_the_model_as_it_was() -> None:
    model = nn.Linear(2, 1)

    with PerExampleClipper(model, 1.0):
        assert model._forward_hooks

    assert not model._forward_hooks


def test_autograd_computes_no_weight_gradient() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    asked: list[str] = []
    for name, parameter in model.named_parameters():
        parameter.register_hook(lambda _, name=name: asked.append(name))

    clipped_grads(model, lambda: model(torch.randn(5, 3)).sum(1), 1.0)

    assert asked == []


def test_norms_are_taken_in_float32_under_bfloat16(clipped_sum_by_loop: Loop) -> None:
    model = Tokens(Attention()).float()
    tokens, labels = some_tokens(6, 9), torch.randint(0, 3, (6,))

    def losses() -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return cross_entropy(model, tokens, labels)

    with torch.autocast("cpu", torch.bfloat16):
        found = clipped_grads(model, losses, 0.1)

    rows = lambda i: cross_entropy(model, tokens[i : i + 1], labels[i : i + 1])  # noqa: E731
    loop = clipped_sum_by_loop(model, rows, 6, 0.1)
    ours, theirs = (torch.cat([g.flatten() for g in grads]) for grads in (found, loop))
    assert {g.dtype for g in found} == {torch.float32}
    # bfloat16 has 8 bits: the gradients are near the exact ones, and the bound holds exactly.
    assert (ours - theirs).norm() < 0.05 * theirs.norm()

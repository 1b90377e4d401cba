from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional

from discreet.common.plan import TrainingConfig
from discreet.common.tokens import Examples
from discreet.privacy.clipper import PerExampleClipper, UnsupportedModelError
from discreet.privacy.dpsgd import PrivateOptimizer, TrainingSetup, run_steps
from discreet.privacy.mechanism import DpSgdMechanism
from discreet.privacy.randomness import InsecureRandomness, Randomness, SecureRandomness

Loop = Callable[[nn.Module, Callable[[int], torch.Tensor], int, float], list[torch.Tensor]]


class Silent(InsecureRandomness):
    """Samples like its base, and adds no noise."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__(seed)
        self.num_adds = 0

    def add_normal(self, target: torch.Tensor, stddev: float) -> None:
        self.num_adds += 1


class Everyone(Silent):
    """Chooses every example at each step."""

    def bernoulli(self, num: int, rate: float) -> torch.Tensor:
        return torch.arange(num)


class Nobody(SecureRandomness):
    """Chooses no example at any step, and adds real noise."""

    def bernoulli(self, num: int, rate: float) -> torch.Tensor:
        return torch.empty(0, dtype=torch.int64)


class Model(nn.Module):
    def __init__(self, width: int = 4, rows: int = 9) -> None:
        super().__init__()
        self.embedding = nn.Embedding(rows, width)
        self.head = nn.Linear(width, 2)

    def forward(self, examples: Examples) -> torch.Tensor:
        out: torch.Tensor = self.head(self.embedding(examples.tokens).sum(1))
        return out


def per_example_loss(model: nn.Module, examples: Examples) -> torch.Tensor:
    return functional.cross_entropy(model(examples), examples.labels, reduction="none")


def some_examples(num: int, seed: int = 0) -> Examples:
    generator = torch.Generator().manual_seed(seed)
    return Examples(
        torch.randint(0, 9, (num, 3), generator=generator),
        torch.full((num,), 3),
        torch.randint(0, 2, (num,), generator=generator),
    )


def some_model(seed: int = 0, **sizes: int) -> Model:
    torch.manual_seed(seed)
    return Model(**sizes)


def config(**changes: object) -> TrainingConfig:
    settings: dict[str, object] = {
        "rounds": 1,
        "sample_rate": 0.5,
        "expected_batch_size": 4.0,
        "learning_rate": 0.1,
    }
    return TrainingConfig.model_validate(settings | changes)


def setup(
    randomness: Randomness, *, clipping_norm: float = 0.5, noise: float = 1.0, **changes: object
) -> TrainingSetup:
    training = config(**changes)
    mechanism = DpSgdMechanism(
        training.sample_rate, training.expected_batch_size, clipping_norm, noise
    )
    return TrainingSetup(mechanism, training, randomness)


def flat(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


OPTIMIZERS: dict[str, tuple[dict[str, object], Callable[..., torch.optim.Optimizer]]] = {
    "sgd": ({}, lambda p: torch.optim.SGD(p, 0.1)),
    "sgd with momentum and decay": (
        {"momentum": 0.9, "weight_decay": 0.01},
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=0.01),
    ),
    "adam": (
        {"optimizer": "adam", "weight_decay": 0.01},
        lambda p: torch.optim.Adam(p, 0.1, weight_decay=0.01),
    ),
    "adamw": (
        {"optimizer": "adamw", "weight_decay": 0.01},
        lambda p: torch.optim.AdamW(p, 0.1, weight_decay=0.01),
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_without_noise_a_step_is_torchs_own_on_the_clipped_sum_over_the_divisor(
    name: str, clipped_sum_by_loop: Loop
) -> None:
    changes, make = OPTIMIZERS[name]
    # float64, because Adam turns the sign of a rounding error into a whole step.
    examples, model, reference = some_examples(6), some_model().double(), some_model().double()

    run_steps(model, examples, per_example_loss, num_steps=3, setup=setup(Everyone(), **changes))

    optimizer = make(reference.parameters())
    for _ in range(3):
        rows = lambda i: per_example_loss(reference, examples.select(torch.tensor([i])))  # noqa: E731
        total = clipped_sum_by_loop(reference, rows, 6, 0.5)
        for parameter, summed in zip(reference.parameters(), total, strict=True):
            parameter.grad = summed / 4.0
        optimizer.step()
    torch.testing.assert_close(flat(model), flat(reference), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_without_privacy_a_step_is_torchs_own_on_the_sum_over_the_divisor(name: str) -> None:
    changes, make = OPTIMIZERS[name]
    # float64, because Adam turns the sign of a rounding error into a whole step.
    examples, model, reference = some_examples(6), some_model().double(), some_model().double()
    plain = TrainingSetup(None, config(**changes), Everyone())

    run_steps(model, examples, per_example_loss, num_steps=3, setup=plain)

    optimizer = make(reference.parameters())
    for _ in range(3):
        optimizer.zero_grad()
        (per_example_loss(reference, examples).sum() / 4.0).backward()
        optimizer.step()
    torch.testing.assert_close(flat(model), flat(reference), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("is_private", [True, False])
def test_parts_that_fit_into_memory_make_one_step(is_private: bool) -> None:
    examples, models = some_examples(7), [some_model(), some_model()]

    for model, size in zip(models, (1000, 3), strict=True):
        whole = setup(Everyone(), physical_batch_size=size)
        run = whole if is_private else TrainingSetup(None, whole.optimizer, Everyone())
        run_steps(model, examples, per_example_loss, num_steps=2, setup=run)

    torch.testing.assert_close(flat(models[0]), flat(models[1]), rtol=1e-5, atol=1e-6)


def test_private_and_plain_training_sample_alike() -> None:
    examples, models = some_examples(40), [some_model(), some_model()]
    private = setup(Silent(3), clipping_norm=1e6, sample_rate=0.3)

    run_steps(models[0], examples, per_example_loss, num_steps=4, setup=private)
    plain = TrainingSetup(None, private.optimizer, Silent(3))
    run_steps(models[1], examples, per_example_loss, num_steps=4, setup=plain)

    torch.testing.assert_close(flat(models[0]), flat(models[1]), rtol=1e-5, atol=1e-6)


def test_the_divisor_is_the_public_one_whatever_the_number_of_examples() -> None:
    # One linear weight and the loss w * 1: each gradient is 1, so a step is -rate * num / 4.
    for num in (1, 4, 9):
        model = nn.Linear(1, 1, bias=False)
        before = flat(model)
        ones = Examples(torch.ones(num, 1, dtype=torch.int64), torch.ones(num), torch.zeros(num))

        run_steps(
            model,
            ones,
            lambda m, batch: m(batch.tokens.float())[:, 0],
            num_steps=1,
            setup=setup(Everyone(), clipping_norm=1.0),
        )

        torch.testing.assert_close(flat(model), before - 0.1 * num / 4)


def test_an_empty_sample_is_a_step_of_noise_alone_with_the_stated_deviation() -> None:
    # 90,000 weights: the standard deviation of a step is rate * noise * bound / divisor, and
    # its estimate is off by 1 / sqrt(2 n) = 0.24 %; 5 times that is allowed.
    model = some_model(width=100, rows=900)
    before = flat(model)

    run_steps(
        model,
        some_examples(5),
        per_example_loss,
        num_steps=1,
        setup=setup(Nobody(), clipping_norm=0.5, noise=3.0),
    )

    moved = (flat(model) - before) / (0.1 * 3.0 * 0.5 / 4.0)
    assert float(moved.std()) == pytest.approx(1, abs=5 / math.sqrt(2 * len(moved)))
    assert float(moved.mean()) == pytest.approx(0, abs=5 / math.sqrt(len(moved)))
    # Kolmogorov and Smirnov's distance from the normal law, at a chance of about 1e-6.
    drawn = moved.double().sort().values
    steps = torch.arange(1, len(drawn) + 1) / len(drawn)
    distance = (torch.special.ndtr(drawn) - steps).abs().max()
    assert float(distance) < 2.7 / math.sqrt(len(drawn))


@pytest.mark.parametrize("is_private", [True, False])
def test_no_examples_at_all_is_no_error(is_private: bool) -> None:
    model = some_model()
    private = setup(Silent())
    run = private if is_private else TrainingSetup(None, private.optimizer, Silent())
    before = flat(model)

    run_steps(model, some_examples(0), per_example_loss, num_steps=2, setup=run)

    assert torch.equal(flat(model), before)


@pytest.mark.parametrize("is_private", [True, False])
def test_momentum_goes_on_through_an_empty_sample(is_private: bool) -> None:
    class Once(Silent):
        def bernoulli(self, num: int, rate: float) -> torch.Tensor:
            self.num_calls = getattr(self, "num_calls", 0) + 1
            return torch.arange(num if self.num_calls == 1 else 0)

    models = [some_model(), some_model()]

    for model, num_steps in zip(models, (1, 2), strict=True):
        private = setup(Once(), momentum=0.5)
        run = private if is_private else TrainingSetup(None, private.optimizer, Once())
        run_steps(model, some_examples(4), per_example_loss, num_steps=num_steps, setup=run)

    # The second step moves by half of the first.
    one, two = (flat(model) - flat(some_model()) for model in models)
    torch.testing.assert_close(two, 1.5 * one)


def test_noise_is_added_once_a_step_to_each_parameter() -> None:
    randomness = Everyone()

    run_steps(
        some_model(),
        some_examples(7),
        per_example_loss,
        num_steps=3,
        setup=setup(randomness, physical_batch_size=2),
    )

    assert randomness.num_adds == 3 * len(list(Model().parameters()))


def test_torchs_seed_does_not_move_the_noise() -> None:
    found = []
    for _ in range(2):
        model = some_model(seed=5)
        torch.manual_seed(7)
        run_steps(
            model, some_examples(5), per_example_loss, num_steps=1, setup=setup(SecureRandomness())
        )
        found.append(flat(model))

    assert not torch.equal(*found)


@pytest.mark.parametrize("is_private", [True, False])
def test_the_model_is_left_without_gradients_and_hooks_in_its_own_mode(is_private: bool) -> None:
    model = some_model().eval()
    private = setup(Everyone())
    modes: list[bool] = []

    def loss(net: nn.Module, examples: Examples) -> torch.Tensor:
        modes.append(net.training)
        return per_example_loss(net, examples)

    run = private if is_private else TrainingSetup(None, private.optimizer, Everyone())
    run_steps(model, some_examples(5), loss, num_steps=1, setup=run)

    assert modes == [True]
    assert not model.training
    assert all(p.grad is None for p in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())


def test_frozen_parameters_do_not_move() -> None:
    model = some_model()
    model.embedding.requires_grad_(False)
    before = model.embedding.weight.clone()

    run_steps(
        model, some_examples(5), per_example_loss, num_steps=2, setup=setup(SecureRandomness())
    )

    assert torch.equal(model.embedding.weight, before)
    assert model.embedding.weight.grad is None


@pytest.mark.parametrize("is_private", [True, False])
@pytest.mark.parametrize(
    "reduce", [torch.mean, lambda losses: losses[:1], lambda losses: losses[:, None]]
)
def test_a_loss_that_is_not_one_number_for_each_example_is_refused(
    reduce: Callable[[torch.Tensor], torch.Tensor], is_private: bool
) -> None:
    model = some_model()
    before = flat(model)
    private = setup(Everyone())
    run = private if is_private else TrainingSetup(None, private.optimizer, Everyone())

    with pytest.raises(UnsupportedModelError, match="one number for each of 5 examples"):
        run_steps(
            model,
            some_examples(5),
            lambda m, e: reduce(per_example_loss(m, e)),
            num_steps=1,
            setup=run,
        )

    assert torch.equal(flat(model), before)
    assert not any(module._forward_hooks for module in model.modules())


def test_an_example_with_a_bad_loss_moves_nothing_but_by_its_absence() -> None:
    examples, models = some_examples(5), [some_model(), some_model()]

    def loss(net: nn.Module, batch: Examples) -> torch.Tensor:
        losses = per_example_loss(net, batch)
        return torch.where(batch.lengths == 99, losses * float("nan"), losses)

    marked = Examples(examples.tokens, examples.lengths.clone(), examples.labels)
    marked.lengths[4] = 99
    run_steps(models[0], marked, loss, num_steps=1, setup=setup(Everyone()))
    others = examples.select(torch.arange(4))
    run_steps(models[1], others, loss, num_steps=1, setup=setup(Everyone()))

    torch.testing.assert_close(flat(models[0]), flat(models[1]))


def private_optimizer(model: nn.Module, randomness: Randomness | None = None) -> PrivateOptimizer:
    return PrivateOptimizer(
        torch.optim.SGD(model.parameters(), 0.1),
        DpSgdMechanism(0.5, 4.0, 0.5, 1.0),
        randomness or Silent(),
    )


def test_a_second_step_without_clearing_is_refused() -> None:
    model = some_model()
    optimizer = private_optimizer(model)
    optimizer.step()

    with pytest.raises(ValueError, match="zero_grad"):
        optimizer.step()

    optimizer.zero_grad()
    optimizer.step()


@pytest.mark.parametrize("set_to_none", [True, False])
def test_skipped_steps_add_up_as_opacus_batch_memory_manager_wants(set_to_none: bool) -> None:
    examples, skipping, whole = some_examples(6), some_model(), some_model()
    optimizers = private_optimizer(skipping), private_optimizer(whole)

    # As `opacus.utils.batch_memory_manager` does: of three physical batches the last one steps.
    with PerExampleClipper(skipping, 0.5) as clipper:
        for number, part in enumerate(torch.arange(6).split(2)):
            optimizers[0].signal_skip_step(do_skip=number < 2)
            clipper.backward(per_example_loss(skipping, examples.select(part)))
            optimizers[0].step()
            optimizers[0].zero_grad(set_to_none)
    with PerExampleClipper(whole, 0.5) as clipper:
        clipper.backward(per_example_loss(whole, examples))
        optimizers[1].step()

    torch.testing.assert_close(flat(skipping), flat(whole), rtol=1e-5, atol=1e-6)


def test_the_step_hook_of_opacus_runs_once_a_step() -> None:
    model = some_model()
    optimizer = private_optimizer(model)
    seen: list[float] = []
    optimizer.attach_step_hook(lambda o: seen.append(o.noise_multiplier))

    optimizer.step()

    assert seen == [1.0]

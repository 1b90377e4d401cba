"""Private training steps: sample, clip each example's gradient, add noise, step.

One step of `run_steps` is one event of the mechanism: a Poisson sample of the examples, the
sum of their clipped gradients, noise on the sum, a division by a public constant. An empty
sample is a step of noise alone. What torch's optimizer makes of the result, momentum and
weight decay included, is post-processing and costs no privacy.

Opacus' optimizer is the base of ours, so that what is built on its steps, skipped steps and
step hooks goes on working. Its engine, its loader and its noise are not used.

Source:
    Abadi et al. (2016), https://arxiv.org/abs/1607.00133, Algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from opacus.optimizers import (  # type: ignore[import-untyped]
    DPOptimizerFastGradientClipping,
)
from torch import nn

from discreet.common.plan import TrainingConfig
from discreet.common.tokens import Examples
from discreet.privacy.clipper import PerExampleClipper, UnsupportedModelError
from discreet.privacy.mechanism import DpSgdMechanism
from discreet.privacy.randomness import Randomness

Loss = Callable[[nn.Module, Examples], torch.Tensor]
"""Per-example losses [B] of a model on B examples; each depends on its example alone."""


@dataclass(frozen=True, slots=True)
class TrainingSetup:
    """How a site trains.

    Attributes:
        mechanism: What makes training private; none trains without privacy, with the sampling
            and the divisor of the plan, for comparison.
        optimizer: The optimizer and its settings.
        randomness: Where samples and noise come from.
    """

    mechanism: DpSgdMechanism | None
    optimizer: TrainingConfig
    randomness: Randomness


class PrivateOptimizer(DPOptimizerFastGradientClipping):  # type: ignore[misc]
    """Adds noise to summed clipped gradients, divides by a public constant, and steps.

    The gradients are those that `PerExampleClipper.backward` leaves. No gradient at all is an
    empty batch: the step is then noise alone.

    Args:
        optimizer: The torch optimizer that steps.
        mechanism: Bound, noise and divisor.
        randomness: Where noise comes from; no torch generator is asked.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, mechanism: DpSgdMechanism, randomness: Randomness
    ) -> None:
        super().__init__(
            optimizer,
            noise_multiplier=mechanism.noise_multiplier,
            max_grad_norm=mechanism.clipping_norm,
            expected_batch_size=mechanism.divisor,
        )
        self._mechanism = mechanism
        self._randomness = randomness
        self._is_released = False

    def accumulate(self) -> None:
        """Move `.grad` into the sum of this step; Opacus' own copies it.

        Raises:
            ValueError: If the sum has been released: without `zero_grad` after a step, the
                next one would hold its gradient twice under the noise of one.
        """
        if self._is_released:
            raise ValueError("zero_grad must be called between two steps")
        for parameter in self.params:
            gradient, parameter.grad = parameter.grad, None
            if gradient is None:
                gradient = torch.zeros_like(parameter)
            if parameter.summed_grad is None:
                parameter.summed_grad = gradient
            else:
                parameter.summed_grad.add_(gradient)

    def add_noise(self) -> None:
        """Put the noisy sum into `.grad`."""
        self._is_released = True
        for parameter in self.params:
            parameter.grad = parameter.summed_grad
            self._mechanism.add_noise(parameter.grad, self._randomness)

    def zero_grad(self, set_to_none: bool = False) -> None:
        """Forget the gradients, and the sum unless a step was skipped to add more to it."""
        super().zero_grad(set_to_none)
        self._is_released = False


def run_steps(
    model: nn.Module,
    examples: Examples,
    loss: Loss,
    *,
    num_steps: int,
    setup: TrainingSetup,
) -> None:
    """Train a model in place for a fixed number of steps, whatever the number of examples.

    Args:
        model: In training mode while it runs, and as it was afterwards.
        examples: N examples, N may be 0.
        loss: Losses [B] of B examples, each of its own example alone.
        num_steps: Optimizer steps.
        setup: How.

    Raises:
        UnsupportedModelError: If the gradient of one example cannot be told for this model or
            this loss, and training is private.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = _optimizer_of(parameters, setup)
    # Zeros, not none: torch's optimizers leave out what has no gradient, and an empty sample
    # is a step like any other.
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    was_training = model.training
    model.train()
    try:
        with _backward_of(model, setup) as backward:
            for _ in range(num_steps):
                for batch in _batches(examples, setup):
                    backward(_checked(loss(model, batch), len(batch)))
                optimizer.step()
                optimizer.zero_grad(set_to_none=False)
    finally:
        optimizer.zero_grad(set_to_none=True)
        model.train(was_training)


def _batches(examples: Examples, setup: TrainingSetup) -> Iterator[Examples]:
    """A Poisson sample of the examples, in parts that fit into memory; none if it is empty."""
    if setup.mechanism is None:
        index = setup.randomness.bernoulli(len(examples), setup.optimizer.sample_rate)
    else:
        index = setup.mechanism.sample(len(examples), setup.randomness)
    if len(index):
        for part in index.split(setup.optimizer.physical_batch_size):
            yield examples.select(part)


@contextmanager
def _backward_of(
    model: nn.Module, setup: TrainingSetup
) -> Iterator[Callable[[torch.Tensor], None]]:
    """What adds the gradients of losses [B] to the parameters' `.grad`."""
    if setup.mechanism is None:
        divisor = setup.optimizer.expected_batch_size
        yield lambda losses: (losses.sum() / divisor).backward()
    else:
        with PerExampleClipper(model, setup.mechanism.clipping_norm) as clipper:
            yield clipper.backward


def _checked(losses: torch.Tensor, num_examples: int) -> torch.Tensor:
    if losses.shape != (num_examples,):
        raise UnsupportedModelError(
            f"the loss must give one number for each of {num_examples} examples, got shape "
            f"{tuple(losses.shape)}: reduce within each example, never over the batch"
        )
    return losses


def _optimizer_of(
    parameters: list[nn.Parameter], setup: TrainingSetup
) -> torch.optim.Optimizer | PrivateOptimizer:
    optimizer = _torch_optimizer(parameters, setup.optimizer)
    if setup.mechanism is None:
        return optimizer
    return PrivateOptimizer(optimizer, setup.mechanism, setup.randomness)


def _torch_optimizer(
    parameters: list[nn.Parameter], config: TrainingConfig
) -> torch.optim.Optimizer:
    rate, decay = config.learning_rate, config.weight_decay
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, rate, momentum=config.momentum, weight_decay=decay)
    if config.optimizer == "adam":
        return torch.optim.Adam(parameters, rate, weight_decay=decay)
    return torch.optim.AdamW(parameters, rate, weight_decay=decay)

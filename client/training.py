"""One round at one site: debit, train, clip. In that order, and nothing else.

The ledger is debited before the text is touched, so a crash can only over-count.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass

from discreet.common.classification import per_example_loss
from discreet.common.layers import TextModel
from discreet.common.models import build_model, load_weights, weights_of
from discreet.common.plan import Plan
from discreet.common.tokens import Examples
from discreet.common.update import ClippedUpdate, Weights, subtract
from discreet.privacy.clip import clip_update
from discreet.privacy.dpsgd import TrainingSetup, run_steps
from discreet.privacy.ledger import Ceiling, Ledger
from discreet.privacy.mechanism import mechanism_of
from discreet.privacy.randomness import InsecureRandomness, Randomness, SecureRandomness


@dataclass(frozen=True, slots=True)
class Round:
    """Which round of which run.

    Attributes:
        run: Identifier of the run.
        number: Round of the run, from 1.
    """

    run: str
    number: int


def debit_round(ledger: Ledger, plan: Plan, asked: Round, ceiling: Ceiling) -> float:
    """Write one round of the plan into the ledger and return epsilon after it.

    Raises:
        BudgetExceededError: If the round would pass the ceiling; nothing is written.
    """
    if not plan.is_private:
        ledger.debit_without_privacy(run=asked.run, round_number=asked.number)
        return ledger.epsilon(ceiling.delta)
    event = mechanism_of(plan).event(plan.training.steps_per_round)
    return ledger.debit(event, run=asked.run, round_number=asked.number, ceiling=ceiling)


def train_round(
    model: TextModel, weights: Weights, examples: Examples, plan: Plan, randomness: Randomness
) -> ClippedUpdate:
    """Train a debited round and clip what it changed.

    Args:
        model: A model of the plan's kind; its weights are replaced.
        weights: The weights that the round begins with.
        examples: The site's examples.
        plan: The plan.
        randomness: Source of sampling and noise.

    Raises:
        NonFiniteUpdateError: If training diverged.
    """
    load_weights(model, weights)
    setup = TrainingSetup(
        mechanism=mechanism_of(plan) if plan.is_private else None,
        optimizer=plan.training,
        randomness=randomness,
    )
    run_steps(
        model, examples, per_example_loss, num_steps=plan.training.steps_per_round, setup=setup
    )
    update = subtract(weights_of(model), weights)
    clipped, _ = clip_update(update, plan.federation.update_clipping_norm)
    return clipped


def randomness_for(plan: Plan, site: str, asked: Round) -> Randomness:
    """The source of sampling and noise: the operating system's, whatever the plan's seed.

    Without privacy there is no noise, and sampling is seeded so that a run can be repeated.
    """
    if plan.is_private:
        return _secure_randomness()
    return InsecureRandomness(_seed(plan.training.seed, site, asked.number))


@functools.cache
def _secure_randomness() -> SecureRandomness:
    # One a process: it may be shared by threads, and takes a new key after a fork.
    return SecureRandomness()


def new_model(plan: Plan, vocabulary_size: int) -> TextModel:
    """A model of the plan with the weights that its seed gives: the same on both sides."""
    return build_model(
        plan.model,
        vocabulary_size=vocabulary_size,
        num_labels=len(plan.task.labels),
        max_tokens=plan.tokens.max_tokens,
        seed=plan.training.seed,
    )


def _seed(seed: int, site: str, round_number: int) -> int:
    digest = hashlib.sha256(f"{seed}/{site}/{round_number}".encode()).digest()
    return int.from_bytes(digest[:7], "big")

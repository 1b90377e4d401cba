"""Without noise, the whole house computes what a loop of thirty lines computes.

The loop below is written from the papers, in plain torch, with its own sum, its own SGD and
its own momentum. It shares with the program the model, the tokens and the seeded sampler.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import simulate, write_run
from torch.nn import functional

from discreet.client.prepare import prepare
from discreet.client.runtime import encode_texts, load_tokenizer
from discreet.common.config import load_plan
from discreet.common.models import build_model
from discreet.common.plan import Plan
from discreet.common.tokens import Examples
from discreet.deploy.sites import SimulatedSites
from discreet.privacy.randomness import InsecureRandomness

Named = dict[str, torch.Tensor]

NUM_SITES = 3
ROUNDS = 2
RATE = 0.6
DIVISOR = 5.0
LEARNING_RATE = 0.7
STEPS = 2
MODELS = [
    {"kind": "linear", "buckets": 64},
    {"kind": "bag", "width": 8},
    {"kind": "gru", "width": 6, "hidden": 5},
]


def written_plan(folder: Path, **sections: object) -> Path:
    return write_run(
        folder,
        privacy="none",
        training={
            "rounds": ROUNDS,
            "steps_per_round": STEPS,
            "sample_rate": RATE,
            "expected_batch_size": DIVISOR,
            "learning_rate": LEARNING_RATE,
            "seed": 11,
        },
        **sections,
    )


def sites_of(plan: Plan, run_dir: Path) -> list[Examples]:
    sites = SimulatedSites(plan, run_dir / "sites")
    return [
        encode_texts(prepare(site, sites.source(i)), plan) for i, site in enumerate(sites.sites)
    ]


def sampler(site: int, round_number: int) -> InsecureRandomness:
    name = f"11/site-{site:04d}/{round_number}"
    return InsecureRandomness(int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "big"))


def local_update(model: torch.nn.Module, start: Named, examples: Examples, seed: int) -> Named:
    """Two steps of SGD on Poisson samples; the sum of the losses over a public divisor."""
    site, round_number = divmod(seed, 100)
    random = sampler(site, round_number)
    weights = {name: tensor.clone().requires_grad_() for name, tensor in start.items()}
    for _ in range(STEPS):
        chosen = random.bernoulli(len(examples), RATE)
        if not len(chosen):
            continue
        batch = examples.select(chosen)
        logits = torch.func.functional_call(model, weights, (batch.tokens, batch.lengths))
        loss = functional.cross_entropy(logits, batch.labels, reduction="sum") / DIVISOR
        gradients = torch.autograd.grad(loss, list(weights.values()))
        weights = {
            name: (weight - LEARNING_RATE * gradient).detach().requires_grad_()
            for (name, weight), gradient in zip(weights.items(), gradients, strict=True)
        }
    return {name: (weights[name] - start[name]).detach() for name in start}


def by_hand(plan: Plan, examples: list[Examples], *, momentum: float, dtype: torch.dtype) -> Named:
    """McMahan et al. (2017), Algorithm 1; with momentum, Hsu et al. (2019), section 4.3."""
    model = build_model(
        plan.model,
        vocabulary_size=load_tokenizer(plan).vocabulary_size,
        num_labels=2,
        max_tokens=16,
        seed=11,
    )
    weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    velocity = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for round_number in range(1, ROUNDS + 1):
        updates = [
            local_update(model, weights, own, 100 * site + round_number)
            for site, own in enumerate(examples)
        ]
        for name, weight in weights.items():
            mean = sum(update[name].to(dtype).float() for update in updates) / NUM_SITES
            velocity[name] = momentum * velocity[name] + mean
            weights[name] = weight + velocity[name]
    return weights


def by_program(run_file: Path, run_dir: Path) -> Named:
    result = simulate(run_file, "--out", run_dir, "--quiet")
    assert result.exit_code == 0, result.stderr
    weights: Named = load_file(run_dir / "model" / "model.safetensors")
    return weights


def distance(first: Named, second: Named) -> float:
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)


@pytest.mark.parametrize("model", MODELS, ids=lambda model: str(model["kind"]))
@pytest.mark.parametrize(("aggregation", "momentum"), [("fedavg", 0.0), ("fedavgm", 0.9)])
def test_without_noise_the_weights_are_those_of_the_loop(
    tmp_path: Path, model: dict[str, object], aggregation: str, momentum: float
) -> None:
    run_file = written_plan(tmp_path, model=model, federation={"aggregation": aggregation})
    plan = load_plan(run_file)

    found = by_program(run_file, tmp_path / "run")

    examples = sites_of(plan, tmp_path / "run")
    expected = by_hand(plan, examples, momentum=momentum, dtype=torch.float32)
    # float32 sums in another order: differences of a few units in the last place.
    assert distance(found, expected) < 1e-6
    # The loop moved at all, by far more than that.
    start = by_hand(
        plan, [e.select(torch.arange(0)) for e in examples], momentum=0, dtype=torch.float32
    )
    assert distance(found, start) > 1e-2


def test_updates_in_bfloat16_are_rounded_once_on_the_way_and_summed_in_float32(
    tmp_path: Path,
) -> None:
    run_file = written_plan(tmp_path, federation={"update_dtype": "bfloat16"})
    plan = load_plan(run_file)

    found = by_program(run_file, tmp_path / "run")

    examples = sites_of(plan, tmp_path / "run")
    rounded = by_hand(plan, examples, momentum=0.0, dtype=torch.bfloat16)
    exact = by_hand(plan, examples, momentum=0.0, dtype=torch.float32)
    # A number next to the border of two bfloat16 may fall on either side: 2^-8 of an update.
    assert distance(found, rounded) < 1e-3
    assert 0 < distance(found, exact) < 1e-2


def test_the_bound_on_an_update_holds_for_each_site_before_the_mean(tmp_path: Path) -> None:
    run_file = written_plan(tmp_path, federation={"update_clipping_norm": 1e-3})
    plan = load_plan(run_file)

    found = by_program(run_file, tmp_path / "run")

    start = by_hand(
        plan,
        [e.select(torch.arange(0)) for e in sites_of(plan, tmp_path / "run")],
        momentum=0.0,
        dtype=torch.float32,
    )
    moved = sum(float((found[name] - start[name]).square().sum()) for name in found) ** 0.5
    assert 1e-4 < moved <= ROUNDS * 1e-3 * (1 + 1e-4)


@pytest.mark.parametrize("max_threads", [1, 2])
def test_the_number_of_threads_does_not_change_a_bit(tmp_path: Path, max_threads: int) -> None:
    run_file = written_plan(tmp_path)
    serial = by_program(run_file, tmp_path / "serial")

    arguments = ["--set", f"simulation.max_threads={max_threads}", "--quiet"]
    result = simulate(run_file, "--out", tmp_path / "threads", *arguments)

    assert result.exit_code == 0
    threaded = load_file(tmp_path / "threads" / "model" / "model.safetensors")
    assert all(torch.equal(serial[name], threaded[name]) for name in serial)

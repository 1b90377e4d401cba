"""A simulated round against a bare Python loop that does the same mathematics.

The task is that of a bag of embeddings with 16,390 parameters, 64 short texts a site, 4 steps
of 16 expected texts. The bare loop samples, clips, adds noise, steps, clips the update and
sums; the simulation does the same behind Flower's apps, messages, hashes, a ledger on disk
for every site and a checkpoint.

Run as a child: `simulation.py SITES DIR` prints CPU-seconds of rounds, both ways in turn.
"""

from __future__ import annotations

import itertools
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from measure import Figure, compared, figure

_TEXTS, _ROUNDS = 64, 6
_WORDS = [
    "the",
    "bill",
    "late",
    "card",
    "again",
    "when",
    "money",
    "order",
    "parcel",
    "lost",
    "help",
    "please",
    "refund",
    "charge",
    "app",
]


def figures() -> Iterator[Figure]:
    """CPU ratio at 10, 100 and 1,000 sites; seconds to the first round; peak memory."""
    with tempfile.TemporaryDirectory() as folder:
        for num_sites in (10, 100, 1000):
            measured = _child(str(num_sites), str(Path(folder) / str(num_sites)))
            yield compared(
                f"simulation.round_{num_sites}_sites",
                measured["simulated"],
                measured["bare"],
                unit="CPU s",
                aim="at most 1.15 times the bare loop at 100 sites",
            )
        yield from _first_round(Path(folder) / "100")


def _first_round(folder: Path) -> Iterator[Figure]:
    seconds, peaks = [], []
    for attempt in range(5):
        command = [sys.executable, "-m", "discreet.deploy.cli", "simulate", "--json"]
        command += [str(folder / "plan.yaml"), "--state", str(folder / "state")]
        started = time.perf_counter()
        with subprocess.Popen(
            [*command, "--out", str(folder / f"first-{attempt}")], stdout=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if '"round"' in line:
                    seconds.append(time.perf_counter() - started)
                    break
            process.stdout.read()
            _, _, usage = os.wait4(process.pid, 0)
            process.returncode = 0
        peaks.append(usage.ru_maxrss / 1024)
    yield figure(
        "simulation.first_round",
        seconds,
        unit="s from the start of the process, 100 prepared sites",
        aim="under 3 s",
    )
    yield figure("simulation.peak_memory", peaks, unit="MB, 100 prepared sites", aim="under 400 MB")


def _child(*arguments: str) -> dict[str, list[float]]:
    command = [sys.executable, __file__, *arguments]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    result: dict[str, list[float]] = json.loads(output.splitlines()[-1])
    return result


def _write_plan(folder: Path, num_sites: int) -> Path:
    generator = random.Random(0)
    folder.mkdir(parents=True)
    with (folder / "texts.jsonl").open("w") as file:
        for i in range(num_sites * _TEXTS):
            words = [generator.choice(_WORDS) for _ in range(generator.randint(5, 25))]
            row = {"text": " ".join(words), "label": ("yes", "no")[i % 2]}
            file.write(json.dumps(row) + "\n")
    plan = {
        "name": "bench",
        "task": {"labels": ["yes", "no"]},
        "model": {"kind": "bag", "width": 2},
        "privacy": {"unit": "example", "epsilon": 8.0, "delta": 1e-5},
        "training": {
            "rounds": _ROUNDS,
            "steps_per_round": 4,
            "sample_rate": 0.25,
            "expected_batch_size": 16,
            "learning_rate": 0.1,
        },
        "simulation": {
            "data": {"path": "texts.jsonl"},
            "num_sites": num_sites,
            "clean": {"duplicates": "none", "boilerplate": False},
            "policy": {"epsilon": 1e6, "delta": 1e-5},
        },
    }
    path = folder / "plan.yaml"
    path.write_text(json.dumps(plan))
    return path


class _Stopwatch:
    """A progress that notes the CPU time at the end of each round."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def start(self, phase: str, total: int) -> None:
        """Nothing."""

    def advance(self, num: int = 1) -> None:
        """Nothing."""

    def finish(self) -> None:
        """Nothing."""

    def round_done(self, record: object, total_rounds: int) -> None:
        """Note the time."""
        self.times.append(time.process_time())

    def done(self, summary: object, report_path: Path) -> None:
        """Nothing."""


def _measure(num_sites: int, folder: Path) -> dict[str, list[float]]:
    import torch

    from discreet.common.config import load_plan
    from discreet.deploy.simulate import SimulateOptions, simulate

    torch.set_num_threads(1)
    plan = load_plan(_write_plan(folder, num_sites))
    watch = _Stopwatch()
    options = SimulateOptions(state_dir=folder / "state", resume=False)
    simulate(plan, folder / "run", options=options, progress=watch)
    times = watch.times
    simulated = [after - before for before, after in itertools.pairwise(times)]
    return {"simulated": simulated, "bare": _bare_loop(folder, num_sites, len(simulated))}


def _bare_loop(folder: Path, num_sites: int, num_rounds: int) -> list[float]:
    from discreet.client.runtime import load_tokenizer
    from discreet.client.training import new_model
    from discreet.common.classification import per_example_loss
    from discreet.common.config import load_plan
    from discreet.common.models import load_weights, weights_of
    from discreet.common.update import apply_update, subtract
    from discreet.privacy.clip import clip_update
    from discreet.privacy.dpsgd import TrainingSetup, run_steps
    from discreet.privacy.mechanism import mechanism_of
    from discreet.privacy.randomness import SecureRandomness

    plan = load_plan(folder / "plan.yaml")
    rows = [json.loads(line) for line in (folder / "texts.jsonl").open()]
    labels = [plan.task.labels.index(row["label"]) for row in rows]
    tokenizer = load_tokenizer(plan)
    sites = [
        tokenizer.encode([row["text"] for row in rows[i::num_sites]], labels[i::num_sites])
        for i in range(num_sites)
    ]
    model = new_model(plan, tokenizer.vocabulary_size)
    weights = weights_of(model)
    setup = TrainingSetup(mechanism_of(plan), plan.training, SecureRandomness())
    seconds = []
    for _ in range(num_rounds + 1):
        started = time.process_time()
        total = None
        for examples in sites:
            load_weights(model, weights)
            run_steps(model, examples, per_example_loss, num_steps=4, setup=setup)
            update, _ = clip_update(subtract(weights_of(model), weights), 10.0)
            if total is None:
                total = update
            else:
                for name, tensor in update.items():
                    total[name].add_(tensor)
        weights = apply_update(weights, total, 1 / num_sites)
        seconds.append(time.process_time() - started)
    return seconds[1:]


if __name__ == "__main__":
    print(json.dumps(_measure(int(sys.argv[1]), Path(sys.argv[2]))))

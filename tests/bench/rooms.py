"""Single steps of the way, in CPU-seconds: cleaning, scrubbing again, accounting, noise, debits.

Run as a child, so that no other benchmark's memory or threads are in the figures.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from measure import Figure, compared, figure

_REPEATS = 5


def figures() -> Iterator[Figure]:
    """Seconds of each step; noise against torch's own generator in the same run."""
    command = [sys.executable, __file__]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    measured: dict[str, list[float]] = json.loads(output.splitlines()[-1])
    for name, unit, aim in (
        ("clean_5574_texts", "CPU s", "under 2 s"),
        ("scrub_5574_texts_again", "CPU s", "under 0.3 s, without Presidio"),
        ("account_60_rounds", "CPU s, sample rate 0.064, noise 1", "under 2 s"),
        ("debit", "CPU s, one round at one site", "under 0.0005 s"),
    ):
        yield figure(f"rooms.{name}", measured[name], unit=unit, aim=aim)
    yield compared(
        "rooms.noise_1e6",
        measured["noise"],
        measured["torch_randn"],
        unit="CPU s",
        aim="at most 3 times torch.randn",
    )


def _timed(function: Callable[[], object]) -> list[float]:
    runs = []
    for _ in range(_REPEATS + 1):
        started = time.process_time()
        function()
        runs.append(time.process_time() - started)
    return runs[1:]


def _measure(folder: Path) -> dict[str, list[float]]:
    import torch

    from discreet.common.clean import clean
    from discreet.common.corpus import read_corpus
    from discreet.common.site import CleanConfig, CorpusConfig, ScrubConfig
    from discreet.privacy.accountant import epsilon_of
    from discreet.privacy.events import DpSgdEvent
    from discreet.privacy.ledger import Ceiling, Ledger
    from discreet.privacy.randomness import SecureRandomness
    from discreet.privacy.store import ScrubbedStore

    torch.set_num_threads(1)
    texts = list(read_corpus(CorpusConfig(path="embedded:sms_spam")))
    store = ScrubbedStore(folder / "store", ScrubConfig())
    store.scrub_all(texts)
    rates = iter(0.064 + i * 1e-6 for i in range(_REPEATS + 1))
    ledger = Ledger.open(folder / "ledger", data_set="bench")
    ceiling, event = Ceiling(epsilon=1e6, delta=1e-5), DpSgdEvent(1.0, 30.0, 2)
    rounds = iter(range(1, 1_000_000))

    def account() -> None:
        rate = next(rates)  # A new one each time: what was composed once is remembered.
        for num in range(1, 61):
            epsilon_of([DpSgdEvent(rate, 1.0, num)], 1e-5)

    def debit() -> None:
        ledger.debit(event, run="bench", round_number=next(rounds), ceiling=ceiling)

    randomness = SecureRandomness()
    return {
        "clean_5574_texts": _timed(lambda: list(clean(texts, CleanConfig()))),
        "scrub_5574_texts_again": _timed(
            lambda: ScrubbedStore(folder / "store", ScrubConfig()).scrub_all(texts)
        ),
        "account_60_rounds": _timed(account),
        "debit": _timed(debit),
        "noise": _timed(lambda: randomness.normal(1_000_000)),
        "torch_randn": _timed(lambda: torch.randn(1_000_000)),
    }


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        print(json.dumps(_measure(Path(name))))

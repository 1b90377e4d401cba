"""Streaming aggregation of large updates against the plain torch sum, and its memory.

Run as a child: `aggregation.py time` prints seconds, `aggregation.py memory N` the growth of
the peak resident size in MB while N updates are averaged.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Iterator

from measure import Figure, compared, figure

_TENSORS, _ROWS, _COLUMNS = 50, 500, 1000
_NUM_UPDATES, _REPEATS = 8, 7


def figures() -> Iterator[Figure]:
    """Seconds for 8 updates of 100 MB, and peak memory at 2, 8 and 32 updates."""
    timed = _child("time")
    for name, key in (("streaming_sum", "sum"), ("streaming_sum_with_checks", "checked")):
        yield compared(
            f"aggregation.{name}",
            timed[key],
            timed["plain"],
            unit="CPU s",
            aim="at most 1.5 times the plain torch sum",
        )
    for num in (2, 8, 32):
        grown = _child("memory", str(num))["grown"]
        yield figure(
            f"aggregation.memory_{num}_updates",
            grown,
            unit="MB",
            aim="the same at 2 and at 32 updates of 100 MB",
        )


def _child(*arguments: str) -> dict[str, list[float]]:
    command = [sys.executable, __file__, *arguments]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    result: dict[str, list[float]] = json.loads(output.splitlines()[-1])
    return result


def _update(seed: int) -> dict[str, object]:
    import torch

    generator = torch.Generator().manual_seed(seed)
    return {f"layer{i}": torch.randn(_ROWS, _COLUMNS, generator=generator) for i in range(_TENSORS)}


def _time() -> dict[str, list[float]]:
    import torch

    from discreet.common.update import ClippedUpdate, Update
    from discreet.privacy.clip import check_clipped
    from discreet.server.aggregate import StreamingMean

    updates = [_update(seed) for seed in range(_NUM_UPDATES)]

    def plain() -> None:
        total = {name: tensor.clone() for name, tensor in updates[0].items()}
        for update in updates[1:]:
            torch._foreach_add_(list(total.values()), list(update.values()))

    def streamed() -> None:
        mean = StreamingMean(float(_NUM_UPDATES))
        for update in updates:
            mean.add(ClippedUpdate(update))
        mean.result()

    def checked() -> None:
        mean = StreamingMean(float(_NUM_UPDATES))
        for update in updates:
            mean.add(check_clipped(Update(update), 1e6))
        mean.result()

    runs: dict[str, list[float]] = {"plain": [], "sum": [], "checked": []}
    for _ in range(_REPEATS):
        for name, function in (("plain", plain), ("sum", streamed), ("checked", checked)):
            started = time.process_time()
            function()
            runs[name].append(time.process_time() - started)
    return {name: values[1:] for name, values in runs.items()}


def _memory(num: int) -> dict[str, list[float]]:
    from discreet.server.aggregate import StreamingMean

    before = _peak_mb()
    mean = StreamingMean(float(num))
    for seed in range(num):
        mean.add(_update(seed))
    mean.result()
    return {"grown": [_peak_mb() - before]}


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    result = _time() if sys.argv[1] == "time" else _memory(int(sys.argv[2]))
    print(json.dumps(result))

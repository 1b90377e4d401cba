"""Worker processes: order, deaths, hangs and an end that is clean.

Most tests run the real worker's protocol around a stub detector, which starts in a tenth of
the time; its words make it die, hang or fail.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError

import pytest

from discreet.common.site import ScrubConfig
from discreet.privacy import scrub_pool
from discreet.privacy.detect import Failure, Span
from discreet.privacy.scrub_pool import ScrubPool, WorkerError

STUB = r"""
import os, re, sys, time
from discreet.privacy import scrub_worker
from discreet.privacy.detect import Span
MODE = sys.argv[1] if len(sys.argv) > 1 else ""
class Stub:
    version, entities = "stub", ("DIGITS",)
    def detect(self, text):
        if MODE == "mortal" or "die" in text: os._exit(9)
        if "hang" in text: time.sleep(600)
        if "slow" in text: time.sleep(0.2)
        if "boom" in text: raise RuntimeError(text)
        return [Span(m.start(), m.end(), "DIGITS", 1.0) for m in re.finditer(r"\d+", text)]
def make(config):
    if MODE == "unmade": raise ImportError("no such library")
    if MODE == "stillborn": os._exit(9)
    return Stub()
scrub_worker.presidio_detector = make
scrub_worker.main()
"""

CONFIG = ScrubConfig()


@pytest.fixture(autouse=True)
def stub_worker(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    mode = getattr(request, "param", "")
    monkeypatch.setattr(scrub_pool, "_COMMAND", (sys.executable, "-P", "-c", STUB, mode))


@pytest.fixture
def pool() -> Iterator[ScrubPool]:
    with ScrubPool(2, patience_seconds=10) as pool:
        yield pool


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def pids_of(pool: ScrubPool) -> list[int]:
    return [worker._process.pid for worker in pool._all]


def test_results_come_in_the_order_of_the_texts(pool: ScrubPool) -> None:
    chunks = [[f"{'slow ' if row % 3 == 0 else ''}{'x' * row} 7"] for row in range(12)]

    found = list(pool.detect(CONFIG, chunks))

    places = [[(span.start, span.end) for span in spans] for (spans,) in found]  # type: ignore[union-attr]
    assert places == [[(len(text) - 1, len(text))] for (text,) in chunks]


def test_no_worker_is_started_before_there_is_something_to_search(pool: ScrubPool) -> None:
    assert list(pool.detect(CONFIG, [])) == []
    assert list(pool.detect(CONFIG, [[], ["\ud83d"]])) == [[], [Failure.NOT_UNICODE]]
    assert pids_of(pool) == []


def test_workers_are_shared_by_calls_and_never_more_than_asked_for(pool: ScrubPool) -> None:
    for _ in range(3):
        list(pool.detect(CONFIG, [["slow 1"]] * 6))
        assert len(pids_of(pool)) <= 2
    first = set(pids_of(pool))

    list(pool.detect(ScrubConfig(threshold=0.9), [["1"]]))

    assert set(pids_of(pool)) == first


def test_chunks_are_read_only_as_far_ahead_as_keeps_workers_busy(pool: ScrubPool) -> None:
    read = []

    def chunks() -> Iterator[list[str]]:
        for row in range(100):
            read.append(row)
            yield ["1"]

    results = pool.detect(CONFIG, chunks())
    next(results)
    num_read = len(read)
    results.close()  # type: ignore[attr-defined]

    assert num_read == 4


def test_texts_that_cannot_be_searched_do_not_touch_their_neighbours(pool: ScrubPool) -> None:
    chunk = ["1", "boom", "x" * 2_000_000, "half \ud83d", "2"]

    (found,) = pool.detect(CONFIG, [chunk])

    assert found == [
        [Span(0, 1, "DIGITS", 1.0)],
        Failure.RECOGNIZER,
        Failure.TOO_LONG,
        Failure.NOT_UNICODE,
        [Span(0, 1, "DIGITS", 1.0)],
    ]


def test_a_text_that_kills_its_worker_is_quarantined_alone(pool: ScrubPool) -> None:
    found = list(pool.detect(CONFIG, [["1", "die", "2"], ["3"]]))

    one = [Span(0, 1, "DIGITS", 1.0)]
    assert found == [[one, Failure.WORKER, one], [one]]


def test_a_text_that_hangs_is_quarantined_alone() -> None:
    with ScrubPool(1, patience_seconds=1.5) as pool:
        found = list(pool.detect(CONFIG, [["1", "hang"]]))

    assert found == [[[Span(0, 1, "DIGITS", 1.0)], Failure.WORKER]]


@pytest.mark.parametrize("stub_worker", ["mortal"], indirect=True)
def test_workers_that_all_die_are_no_fault_of_the_texts(pool: ScrubPool) -> None:
    with pytest.raises(WorkerError, match="died in a row"):
        list(pool.detect(CONFIG, [["a"] * 30]))


@pytest.mark.parametrize(
    ("stub_worker", "message"),
    [("unmade", "ImportError: no such library"), ("stillborn", "it ended before it began")],
    indirect=["stub_worker"],
)
def test_a_worker_that_cannot_start_says_why(pool: ScrubPool, message: str) -> None:
    with pytest.raises(WorkerError, match=message):
        list(pool.detect(CONFIG, [["secret"]]))


def test_the_end_leaves_no_process(pool: ScrubPool) -> None:
    list(pool.detect(CONFIG, [["slow"], ["slow"]]))
    pids = pids_of(pool)
    assert pids

    pool.close()

    assert not any(is_alive(pid) for pid in pids)


def test_closing_in_the_middle_of_a_search_returns_at_once() -> None:
    pool = ScrubPool(2)
    results = pool.detect(CONFIG, [["1"], ["hang"], ["hang"]])
    next(results)
    start = time.monotonic()

    pool.close()

    # The worker would hang for ever.
    assert time.monotonic() - start < 60
    with pytest.raises((WorkerError, CancelledError)):
        list(results)


def test_a_closed_pool_starts_nothing() -> None:
    pool = ScrubPool(1)
    pool.close()

    with pytest.raises(WorkerError, match="were ended"):
        pool._search(CONFIG, ["1"])


def test_a_killed_parent_leaves_no_orphan() -> None:
    program = f"""
import sys, time
from discreet.privacy import scrub_pool
from discreet.common.site import ScrubConfig
scrub_pool._COMMAND = (sys.executable, "-P", "-c", {STUB!r})
pool = scrub_pool.ScrubPool(1)
list(pool.detect(ScrubConfig(), [["1"]]))
print(*[w._process.pid for w in pool._all], flush=True)
time.sleep(600)
"""
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())

    parent.kill()
    parent.wait()
    parent.stdout.close()

    for _ in range(100):
        if not is_alive(pid) or is_zombie(pid):
            break
        time.sleep(0.1)
    else:
        pytest.fail("the worker outlived its parent")


def is_zombie(pid: int) -> bool:
    # Where no init process collects orphans, an ended one stays in the table.
    with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:  # noqa: PTH123
        return file.read().rpartition(")")[2].split()[0] == "Z"


def test_a_request_too_big_for_a_dead_workers_pipe_is_no_crash(pool: ScrubPool) -> None:
    list(pool.detect(CONFIG, [["1"]]))
    (worker,) = pool._all
    worker.kill()
    worker._process.wait()

    (found,) = pool.detect(CONFIG, [["x" * 500_000 + " 1"]])

    assert found == [Failure.WORKER] or found == [[Span(500_001, 500_002, "DIGITS", 1.0)]]


def test_by_default_there_is_a_worker_for_each_core(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 2, 5}, raising=False)
    assert ScrubPool().num_workers == 3

    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    assert ScrubPool().num_workers == 7

    monkeypatch.setattr(os, "cpu_count", lambda: None)
    assert ScrubPool().num_workers == 1


def test_threads_end_with_the_pool() -> None:
    with ScrubPool(2) as pool:
        list(pool.detect(CONFIG, [["1"], ["2"]]))

    assert not [t for t in threading.enumerate() if t.name.startswith("scrub")]

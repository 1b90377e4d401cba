"""Worker processes that search texts, shared by as many stores as there are.

All searching is done in workers, even of few texts: measured on two cores, Presidio costs
2.3 s of CPU and 170 MB more in a process that can import torch, and this process goes on to
train. A worker starts in about 1 s of CPU and 120 MB, and gives both back at the end. None
is started before there is something to search.

A worker that dies or hangs takes no text with it: its texts are searched again one by one,
and the one that does it again is quarantined.
"""

from __future__ import annotations

import contextlib
import os
import queue
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import BinaryIO, cast

import orjson

from discreet.common.errors import DiscreetError
from discreet.common.site import ScrubConfig
from discreet.privacy.detect import Failure, Span, refusal_of
from discreet.privacy.scrub_worker import read_frame, write_frame

_COMMAND = (sys.executable, "-P", "-m", "discreet.privacy.scrub_worker")

# Twice what the detector allows itself for one text: past it, it hangs.
_PATIENCE_SECONDS = 120.0

# After this many dead workers without one answer it is not the texts.
_MAX_DEATHS = 10


class WorkerError(DiscreetError):
    """Workers cannot be started or kept alive; the message holds no text."""


class _Worker:
    """One child process and its two pipes."""

    def __init__(self) -> None:
        # Its own session: Ctrl-C goes to the parent alone, which then ends it. Its errors
        # are not shown, because a foreign library's could hold text.
        self._process = subprocess.Popen(  # noqa: S603
            _COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        )
        self._requests = cast(BinaryIO, self._process.stdin)
        self._replies = cast(BinaryIO, self._process.stdout)

    def ask(self, request: bytes, *, patience_seconds: float) -> bytes | None:
        """The reply; none if the worker died, or was killed for taking too long."""
        alarm = threading.Timer(patience_seconds, self._process.kill)
        alarm.daemon = True
        alarm.start()
        try:
            write_frame(self._requests, request)
            return read_frame(self._replies)
        except (OSError, ValueError):  # A broken pipe, or one that `stop` closed meanwhile.
            return None
        finally:
            alarm.cancel()

    def kill(self) -> None:
        """End it at once; who waits for its reply gets none."""
        self._process.kill()

    def stop(self) -> int:
        """End it and give back its exit code."""
        self._process.kill()
        code = self._process.wait()
        self._replies.close()
        with contextlib.suppress(OSError):  # Part of a request was still in the buffer.
            self._requests.close()
        return code


class ScrubPool:
    """Worker processes that search texts; use as a context manager.

    Args:
        workers: Processes at most; none takes the number of cores that this one may use.
        patience_seconds: How long one request may take before its worker is killed.
    """

    def __init__(
        self, workers: int | None = None, *, patience_seconds: float = _PATIENCE_SECONDS
    ) -> None:
        self.num_workers = workers or _num_cores()
        self._patience_seconds = patience_seconds
        self._idle: queue.LifoQueue[_Worker] = queue.LifoQueue()
        self._all: set[_Worker] = set()
        self._lock = threading.Lock()
        self._is_closed = False
        self._deaths = 0
        self._threads = ThreadPoolExecutor(self.num_workers, thread_name_prefix="scrub")

    def __enter__(self) -> ScrubPool:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all workers now; what they were searching is lost, and nothing else."""
        with self._lock:
            self._is_closed = True
            workers = list(self._all)
        for worker in workers:
            worker.kill()
        self._threads.shutdown(wait=True, cancel_futures=True)
        for worker in workers:
            worker.stop()

    def detect(
        self, config: ScrubConfig, chunks: Iterable[Sequence[str]]
    ) -> Iterator[list[list[Span] | Failure]]:
        """Search chunks of texts side by side; the results come in the order of the chunks.

        Args:
            config: What to search for.
            chunks: Texts, so few at a time that a worker answers in seconds. Read only as
                far ahead as keeps every worker busy.

        Returns:
            For each chunk a list with, for each text, its spans or why there are none.

        Raises:
            WorkerError: If workers cannot be started or kept alive.
        """
        waiting: deque[Future[list[list[Span] | Failure]]] = deque()
        try:
            for chunk in chunks:
                waiting.append(self._threads.submit(self._search, config, chunk))
                if len(waiting) >= 2 * self.num_workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

    def _search(self, config: ScrubConfig, texts: Sequence[str]) -> list[list[Span] | Failure]:
        refused = {row: why for row, text in enumerate(texts) if (why := refusal_of(text))}
        sound = [text for row, text in enumerate(texts) if row not in refused]
        found = iter(self._search_sound(config, sound))
        return [refused[row] if row in refused else next(found) for row in range(len(texts))]

    def _search_sound(
        self, config: ScrubConfig, texts: Sequence[str]
    ) -> list[list[Span] | Failure]:
        if not texts:
            return []
        found = self._ask(config, texts)
        if found is not None:
            return found
        if len(texts) == 1:
            return [Failure.WORKER]
        return [self._search_sound(config, [text])[0] for text in texts]

    def _ask(self, config: ScrubConfig, texts: Sequence[str]) -> list[list[Span] | Failure] | None:
        """Spans or failures of some texts; none if the worker did not live to tell."""
        settings = config.model_dump(mode="json")
        try:
            worker = self._idle.get_nowait()
        except queue.Empty:
            worker = self._start(settings)
        request = orjson.dumps({"config": settings, "texts": texts})
        reply = worker.ask(request, patience_seconds=self._patience_seconds)
        if reply is None:
            self._bury(worker)
            return None
        self._idle.put(worker)
        self._deaths = 0
        answer = orjson.loads(reply)
        return [_from_json(spans) for spans in answer["spans"]]

    def _start(self, settings: dict[str, object]) -> _Worker:
        """A new worker with its engine loaded: from here on a death is a text's fault."""
        with self._lock:
            if self._is_closed:
                raise WorkerError("the scrubbing workers were ended")
            worker = _Worker()
            self._all.add(worker)
        request = orjson.dumps({"config": settings, "texts": []})
        reply = worker.ask(request, patience_seconds=self._patience_seconds)
        answer = {"error": "it ended before it began"} if reply is None else orjson.loads(reply)
        if "error" in answer:
            self._bury(worker)
            raise WorkerError(
                f"a scrubbing worker could not start: {answer['error']}: check the installation "
                "and that there are about 150 MB of memory for each of scrub.workers"
            )
        return worker

    def _bury(self, worker: _Worker) -> None:
        with self._lock:
            self._all.discard(worker)
            self._deaths += 1
            is_hopeless = self._deaths > _MAX_DEATHS
            is_closed = self._is_closed
        worker.stop()
        if is_closed:
            # Killed by `close`, not by its text: that must not be quarantined for it.
            raise WorkerError("the scrubbing workers were ended")
        if is_hopeless:
            raise WorkerError(
                f"{self._deaths} scrubbing workers died in a row: check that there are about "
                "150 MB of memory for each of scrub.workers"
            )


def _from_json(spans: list[tuple[int, int, str, float]] | str) -> list[Span] | Failure:
    return Failure(spans) if isinstance(spans, str) else [Span(*span) for span in spans]


def _num_cores() -> int:
    # What this process may use, which in a container is often less than the machine has.
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1

"""The part of an agent that works: one thread, warm for the agent's whole life.

Connections come and go beside it. A job is kept until the server has said that it has the
reply, so that a broken connection never costs a training, only the chunk in flight.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from typing import TypeVar

import grpc

from discreet.client.transfer import (
    DamagedBlobError,
    Download,
    InterruptedTransferError,
    Link,
    upload,
)
from discreet.common import link_pb2 as pb
from discreet.common.blame import place_of
from discreet.common.blobs import Blob
from discreet.common.errors import DataError
from discreet.common.link_content import SERVER_NODE, decode_content, encode_content

# isort: split
# After `link_content`, which turns Flower's telemetry off before Flower is imported.
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.supercore.task_identity import TaskIdentity

_log = logging.getLogger(__name__)
_T = TypeVar("_T")

_FIRST_PAUSE_SECONDS = 0.1
_LONGEST_PAUSE_SECONDS = 5.0
_MAX_DAMAGED = 3
_APP_RUN = 1


class AgentEventKind(StrEnum):
    """What an agent may tell."""

    CONNECTED = "connected"
    DISCONNECTED = "disconnected"
    WORKING = "working"
    SENT = "sent"
    LATE = "late"
    FAILED = "failed"
    INSECURE = "insecure"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class AgentEvent:
    """Something that an operator may want to see.

    Attributes:
        kind: What.
        text: The group (round) of a task, or a reason in public words.
    """

    kind: AgentEventKind
    text: str = ""


@dataclass(slots=True, eq=False)
class _Job:
    offer: pb.Offer
    downloads: list[Download] = field(default_factory=list)
    outcome: tuple[pb.Result, list[Blob]] | None = None
    is_running: bool = False
    is_withdrawn: bool = False
    is_sent: bool = False


class _UnwantedError(Exception):
    """The server does not want the job's reply any more."""


class _TransferError(Exception):
    """Blobs cannot be moved undamaged, or the server refuses them for good."""


class Worker:
    """Does jobs, one after another.

    Args:
        app: The Flower client app.
        name: The site.
        on_event: Told what happens, from the worker's thread.
    """

    def __init__(self, app: ClientApp, name: str, on_event: Callable[[AgentEvent], None]) -> None:
        self._app, self._name, self._on_event = app, name, on_event
        self._changed = threading.Condition()
        self._link: Link | None = None
        self._jobs: dict[bytes, _Job] = {}
        self._context: Context | None = None
        self._is_stopping = False
        # Held while a blob moves: who says goodbye waits for the chunk in flight.
        self.moving = threading.Lock()
        self._thread = threading.Thread(target=self._run, name=f"worker {name}", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End after the chunk in flight; a training under way is left behind."""
        with self._changed:
            self._is_stopping = True
            self._changed.notify_all()

    def connect(self, link: Link) -> None:
        """Go on over this connection."""
        with self._changed:
            self._link = link
            self._changed.notify_all()

    def disconnect(self, link: Link) -> None:
        """This connection is broken."""
        with self._changed:
            if self._link is link:
                self._link = None

    def offer(self, offer: pb.Offer) -> None:
        """Take a task, or send its reply again if it is done."""
        with self._changed:
            known = self._jobs.get(offer.task_id)
            if known is not None and not known.is_withdrawn:
                known.is_sent = False
            else:
                for old in [job for job in self._jobs.values() if job.is_sent]:
                    del self._jobs[old.offer.task_id]
                self._jobs[offer.task_id] = _Job(offer)
            self._changed.notify_all()

    def withdraw(self, task_id: bytes) -> None:
        """Give a task up, and say so once nothing is at work on it."""
        with self._changed:
            job = self._jobs.get(task_id)
            if job is not None and job.is_running:
                job.is_withdrawn = True
                self._changed.notify_all()
                return
            self._jobs.pop(task_id, None)
            self._say_free(task_id)

    def receipt(self, receipt: pb.Receipt) -> None:
        """The server has a reply, or does not want it."""
        with self._changed:
            job = self._jobs.get(receipt.task_id)
            if job is None or not job.is_sent:
                return
            del self._jobs[receipt.task_id]
        kind = AgentEventKind.SENT if receipt.is_taken else AgentEventKind.LATE
        self._on_event(AgentEvent(kind, job.offer.group))

    def _run(self) -> None:
        TaskIdentity.task_id = TaskIdentity.run_id = _APP_RUN
        TaskIdentity.node_id = SERVER_NODE
        while (job := self._next()) is not None:
            try:
                self._do(job)
            except InterruptedTransferError:
                pass
            except _UnwantedError:
                self._give_up(job)
            job.is_running = False

    def _next(self) -> _Job | None:
        with self._changed:
            while not self._is_stopping:
                job = next((job for job in self._jobs.values() if not job.is_sent), None)
                if job is not None and self._link is not None:
                    job.is_running = True
                    return job
                self._changed.wait()
        return None

    def _do(self, job: _Job) -> None:
        try:
            if job.outcome is None:
                message = self._fetch(job)
                self._on_event(AgentEvent(AgentEventKind.WORKING, job.offer.group))
                job.outcome = self._answer(job, message)
            self._deliver(job, *job.outcome)
        except _TransferError:
            job.outcome = (_failure(job, pb.FAILURE_TRANSFER), [])
            self._deliver(job, *job.outcome)

    def _fetch(self, job: _Job) -> RecordDict:
        offer = job.offer
        if not job.downloads:
            job.downloads = [Download(ref) for ref in offer.content.blobs]
        wanted = partial(self._is_wanted, job)
        files = {
            download.ref.sha256: self._retry(job, partial(download.run, is_wanted=wanted))
            for download in job.downloads
        }
        job.downloads = []
        try:
            return decode_content(offer.content, files.__getitem__)
        except DataError as error:
            raise _TransferError from error

    def _answer(self, job: _Job, content: RecordDict) -> tuple[pb.Result, list[Blob]]:
        link = self._wait_for_link(job)
        message = Message(content, link.node_id, job.offer.message_type, group_id=job.offer.group)
        message.metadata.__dict__["_message_id"] = job.offer.task_id.hex()
        if self._context is None:
            config: dict[str, str | int | float | bool] = {"site": self._name}
            self._context = Context(_APP_RUN, link.node_id, config, RecordDict(), {})
        try:
            reply = self._app(message, self._context)
            if reply.has_error():
                return _failure(job, pb.FAILURE_RAISED), []
            encoded, blobs = encode_content(reply.content)
        except Exception as error:
            # What went wrong inside a site stays there: the server learns that it failed.
            _log.error("site %s: the client app failed: %s", self._name, place_of(error))
            self._on_event(AgentEvent(AgentEventKind.FAILED, job.offer.group))
            return _failure(job, pb.FAILURE_RAISED), []
        return pb.Result(task_id=job.offer.task_id, content=encoded), blobs

    def _deliver(self, job: _Job, result: pb.Result, blobs: list[Blob]) -> None:
        task_id, wanted = job.offer.task_id, partial(self._is_wanted, job)
        for blob in blobs:
            self._retry(job, partial(upload, blob=blob, task_id=task_id, is_wanted=wanted))
        while True:
            link = self._wait_for_link(job)
            with self._changed:
                # On a stream that has ended meanwhile it would be lost.
                if self._link is link:
                    link.outgoing.put(pb.ClientFrame(result=result))
                    job.is_sent = True
                    return

    def _give_up(self, job: _Job) -> None:
        with self._changed:
            if self._jobs.get(job.offer.task_id) is job:
                del self._jobs[job.offer.task_id]
            self._say_free(job.offer.task_id)
        self._on_event(AgentEvent(AgentEventKind.LATE, job.offer.group))

    def _say_free(self, task_id: bytes) -> None:
        if self._link is not None:
            result = pb.Result(task_id=task_id, failure=pb.FAILURE_WITHDRAWN)
            self._link.outgoing.put(pb.ClientFrame(result=result))

    def _is_wanted(self, job: _Job) -> bool:
        return not (self._is_stopping or job.is_withdrawn)

    def _wait_for_link(self, job: _Job) -> Link:
        with self._changed:
            while self._is_wanted(job):
                if self._link is not None:
                    return self._link
                self._changed.wait()
        if self._is_stopping:
            raise InterruptedTransferError
        raise _UnwantedError

    def _retry(self, job: _Job, move: Callable[[Link], _T]) -> _T:
        """Move a blob over whatever connection there is, until it is moved."""
        num_damaged = 0
        pause = _FIRST_PAUSE_SECONDS
        while True:
            link = self._wait_for_link(job)
            try:
                with self.moving:
                    return move(link)
            except InterruptedTransferError:
                if not self._is_stopping:
                    raise _UnwantedError from None
                raise
            except DamagedBlobError:
                num_damaged += 1
            except grpc.RpcError as error:
                num_damaged += _weigh(error)
            if num_damaged >= _MAX_DAMAGED:
                raise _TransferError
            self._rest(job, link, pause)
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    def _rest(self, job: _Job, tried: Link, seconds: float) -> None:
        """Wait, but not if there is another connection by now."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._link is not tried or not self._is_wanted(job), seconds
            )


def _weigh(error: grpc.RpcError) -> int:
    """1 if a blob came damaged, 0 if trying again may help.

    Raises:
        _UnwantedError: If the server does not want it.
        _TransferError: If the server will never take it.
    """
    code = error.code()
    if code is grpc.StatusCode.FAILED_PRECONDITION:
        raise _UnwantedError
    if code is grpc.StatusCode.INVALID_ARGUMENT:
        raise _TransferError
    return int(code is grpc.StatusCode.DATA_LOSS)


def _failure(job: _Job, failure: pb.Failure) -> pb.Result:
    return pb.Result(task_id=job.offer.task_id, failure=failure)

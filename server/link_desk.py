"""Who is here and what is asked of whom: the link's state, between its two threads.

The gRPC service runs in an event loop of its own and the Flower grid in the thread of the run.
Both come here. A task is open until its reply is in, its site is lost, or it is withdrawn; it
is never open again after that. What a client sends is looked up, never believed: a reply
belongs to the site whose stream it came through, and counts for an open task of that site alone.
"""

from __future__ import annotations

import asyncio
import logging
import math
import secrets
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum

from discreet.common import link_pb2 as pb
from discreet.common.errors import DataError
from discreet.common.link_content import (
    PROTOCOL_VERSION,
    check_blobs,
    node_id_of,
    version_text,
)
from discreet.server.link_spool import Spool

_log = logging.getLogger(__name__)

_FAREWELL_SECONDS = 5.0
"""For a client to read its last frames; then its call is cut off."""


class LinkCause(StrEnum):
    """Why a task ended without a reply. Stands in the reason of Flower's error replies."""

    LOST = "lost"
    LEFT = "left"
    REVOKED = "revoked"
    RAISED = "raised"
    TRANSFER = "transfer"
    UNREADABLE = "unreadable"


class NotAdmittedError(Exception):
    """A client is not let in.

    Attributes:
        farewell: What it is told.
    """

    def __init__(self, reason: pb.Reason, text: str) -> None:
        super().__init__(text)
        self.farewell = farewell_of(reason, text)


def farewell_of(reason: pb.Reason, text: str) -> pb.ServerFrame:
    """The last frame of a stream."""
    return pb.ServerFrame(farewell=pb.Farewell(reason=reason, text=text))


@dataclass(slots=True, eq=False)
class Session:
    """One open stream.

    Attributes:
        name: The site.
        serial: Serial number of its certificate; 0 without TLS.
        instance: The client's process.
        loop: The event loop that serves it.
        token: What its other calls carry.
        outgoing: Frames to send; None ends the stream.
        last_seen: When something came from it last, by the monotonic clock.
        is_closed: Whether its stream has been ended.
        handler: What serves the stream.
    """

    name: str
    serial: int
    instance: bytes
    loop: asyncio.AbstractEventLoop
    token: str = field(default_factory=lambda: secrets.token_hex(16))
    outgoing: asyncio.Queue[pb.ServerFrame | None] = field(default_factory=asyncio.Queue)
    last_seen: float = field(default_factory=time.monotonic)
    is_closed: bool = False
    handler: asyncio.Task[object] | None = None

    def send(self, frame: pb.ServerFrame | None) -> None:
        """Send a frame; from any thread, in order."""
        if self.loop.is_closed():
            return
        self.loop.call_soon_threadsafe(self.outgoing.put_nowait, frame)

    def close(self, farewell: pb.ServerFrame | None = None) -> None:
        """End the stream, with a last frame."""
        if not self.is_closed:
            self.is_closed = True
            if farewell is not None:
                self.send(farewell)
            self.send(None)
            if self.handler is not None and not self.loop.is_closed():
                # One that does not read would else be held for as long as it likes.
                self.loop.call_soon_threadsafe(self._cut_off_soon, self.handler)

    def _cut_off_soon(self, handler: asyncio.Task[object]) -> None:
        self.loop.call_later(_FAREWELL_SECONDS, handler.cancel)


@dataclass(slots=True, eq=False)
class Task:
    """What is asked of one site.

    Attributes:
        id: Hash of all that is asked, 16 bytes.
        site: Whom.
        offer: The frame that asks.
        posted: When, by the monotonic clock.
        deadline: Until when a reply counts, by the same clock.
        result: The reply, once it is in.
        cause: Why there will be none.
    """

    id: bytes
    site: str
    offer: pb.Offer
    posted: float = field(default_factory=time.monotonic)
    deadline: float = math.inf
    result: pb.Result | None = None
    cause: LinkCause | None = None

    @property
    def is_open(self) -> bool:
        """Whether a reply would still count."""
        is_settled = self.result is not None or self.cause is not None
        return not is_settled and time.monotonic() <= self.deadline


class Desk:
    """The state; every method may be called from any thread.

    Args:
        spool: Where replies are kept.
        lost_seconds: After so long without a sign of life a client counts as lost.
        heartbeat_seconds: How often a client gives one.

    Attributes:
        changed: Held while the state changes, and told when it has.
        refused: How many uploads, replies and clients were refused, by a public word.
        bytes_in: Bytes of blobs received.
        bytes_out: Bytes of blobs sent.
    """

    def __init__(self, spool: Spool, *, lost_seconds: float, heartbeat_seconds: float) -> None:
        self.spool = spool
        self.changed = threading.Condition()
        self.refused: Counter[str] = Counter()
        self.bytes_in = self.bytes_out = 0
        self._lost_seconds = lost_seconds
        self._heartbeat_seconds = heartbeat_seconds
        self._sessions: dict[str, Session] = {}
        self._by_token: dict[str, Session] = {}
        self._tasks: dict[bytes, Task] = {}
        self._gone: dict[str, float] = {}
        # What a client may still be at work on after the server took it back: it is busy.
        self._owed: dict[str, tuple[bytes, set[bytes]]] = {}

    def admit(self, hello: pb.Hello, session: Session) -> None:
        """Let a client in; the newest with an identity wins.

        Raises:
            NotAdmittedError: If it speaks another version.
        """
        if hello.protocol_version != PROTOCOL_VERSION:
            self.refused["version"] += 1
            text = version_text(hello.protocol_version, of="client")
            _log.warning("site %s is not let in: %s", session.name, text)
            raise NotAdmittedError(pb.REASON_VERSION, text)
        with self.changed:
            old = self._sessions.get(session.name)
            if old is not None:
                self._replace(old, session)
            self._sessions[session.name] = self._by_token[session.token] = session
            self._gone.pop(session.name, None)
            welcome = pb.Welcome(
                protocol_version=PROTOCOL_VERSION,
                session=session.token,
                node_id=node_id_of(session.name),
                heartbeat_seconds=self._heartbeat_seconds,
            )
            session.send(pb.ServerFrame(welcome=welcome))
            self._remind(session)
            self.changed.notify_all()
        _log.info("site %s attends", session.name)

    def leave(self, session: Session, *, cause: LinkCause | None = None) -> None:
        """A stream has ended; with a cause the site is not waited for."""
        with self.changed:
            session.close()
            self._by_token.pop(session.token, None)
            if self._sessions.get(session.name) is not session:
                return
            del self._sessions[session.name]
            self._gone[session.name] = time.monotonic()
            if cause is not None:
                self._fail_tasks(session.name, cause)
            self.changed.notify_all()
        _log.info("site %s does not attend any more (%s)", session.name, cause or "broken stream")

    def session_of(self, token: str) -> Session | None:
        """The open stream that a call belongs to."""
        with self.changed:
            return self._by_token.get(token)

    def sessions(self) -> list[Session]:
        """All open streams."""
        with self.changed:
            return list(self._sessions.values())

    def tasks(self) -> list[Task]:
        """All tasks that have not been taken back."""
        with self.changed:
            return list(self._tasks.values())

    def free_sites(self) -> list[str]:
        """Names of the sites that are here and not at work on what was taken back."""
        with self.changed:
            return [name for name in self._sessions if not self._is_busy(name)]

    def open_task(self, session: Session, task_id: bytes) -> Task | None:
        """An open task of this session's site."""
        with self.changed:
            task = self._tasks.get(task_id)
            is_live = self._sessions.get(session.name) is session
            return task if task and is_live and task.site == session.name and task.is_open else None

    def post(self, task: Task) -> Task:
        """Ask, or find what was asked before.

        Returns:
            The task that waits: this one, or an equal one with its reply.
        """
        with self.changed:
            known = self._tasks.get(task.id)
            if known is not None and (known.is_open or known.result is not None):
                return known
            self._tasks[task.id] = task
            kept = self.spool.task(task.id).load_result()
            if kept is not None:
                # The server was killed after this reply came in: it is not asked for again.
                task.result = pb.Result.FromString(kept)
            elif session := self._sessions.get(task.site):
                session.send(pb.ServerFrame(offer=task.offer))
            return task

    def withdraw(self, task: Task) -> None:
        """Take a task back: a reply to it is late from now on."""
        with self.changed:
            if self._tasks.get(task.id) is not task:
                return
            del self._tasks[task.id]
            session = self._sessions.get(task.site)
            is_unfinished = task.result is None and task.cause in {None, LinkCause.LOST}
            if is_unfinished and session is not None:
                owed = self._owed.setdefault(task.site, (session.instance, set()))
                owed[1].add(task.id)
                session.send(_withdraw(task.id))

    def take(self, session: Session, result: pb.Result) -> bool:
        """Take a reply, or refuse it.

        Returns:
            Whether it counts. The same reply counts once, however often it comes.
        """
        with self.changed:
            session.last_seen = time.monotonic()
            self._free(session, result.task_id)
            task = self._tasks.get(result.task_id)
            if task is not None and task.site == session.name and task.result is not None:
                return True
            task = self.open_task(session, result.task_id)
            if task is None:
                # That a client has given up what was taken back is no reply.
                self.refused["late"] += result.failure != pb.FAILURE_WITHDRAWN
                return False
            if result.WhichOneof("outcome") == "content":
                if not self._is_whole(task, result.content):
                    self.refused["incomplete"] += 1
                    task.cause = LinkCause.TRANSFER
                else:
                    self.spool.task(task.id).save_result(result.SerializeToString())
                    task.result = result
            elif result.failure == pb.FAILURE_TRANSFER:
                task.cause = LinkCause.TRANSFER
            else:
                task.cause = LinkCause.RAISED
            self.changed.notify_all()
            return task.result is not None

    def sweep(self) -> None:
        """Give up on clients that have given no sign of life for too long."""
        now = time.monotonic()
        for session in self.sessions():
            if now - session.last_seen > self._lost_seconds:
                session.close(farewell_of(pb.REASON_SILENT, "no heartbeat came in time"))
                self.leave(session, cause=LinkCause.LOST)
        with self.changed:
            for task in self._tasks.values():
                if task.site in self._sessions or not task.is_open:
                    continue
                if now - max(task.posted, self._gone.get(task.site, 0)) > self._lost_seconds:
                    self._fail_tasks(task.site, LinkCause.LOST)

    def _replace(self, old: Session, new: Session) -> None:
        self._by_token.pop(old.token, None)
        if old.instance == new.instance:
            old.close()
            return
        # The old one is told, so that it ends and the two do not take turns for ever.
        _log.warning("site %s: a second agent has come and replaces the first", old.name)
        text = f"another agent attends as {old.name!r}: stop one of the two"
        old.close(farewell_of(pb.REASON_REPLACED, text))

    def _remind(self, session: Session) -> None:
        """Ask again what is open, after a reconnect, and take back what was withdrawn."""
        owed = self._owed.get(session.name)
        if owed is not None and owed[0] != session.instance:
            del self._owed[session.name]  # a new process is at work on nothing
        elif owed is not None:
            for task_id in owed[1]:
                session.send(_withdraw(task_id))
        for task in self._tasks.values():
            if task.site == session.name and task.is_open:
                session.send(pb.ServerFrame(offer=task.offer))

    def _is_busy(self, name: str) -> bool:
        owed = self._owed.get(name)
        return owed is not None and bool(owed[1])

    def _free(self, session: Session, task_id: bytes) -> None:
        owed = self._owed.get(session.name)
        if owed is not None and owed[0] == session.instance and task_id in owed[1]:
            owed[1].discard(task_id)
            self.changed.notify_all()

    def _is_whole(self, task: Task, content: pb.Content) -> bool:
        folder = self.spool.task(task.id)
        try:
            check_blobs(content.blobs, task.offer.upload_limit)
        except DataError:
            return False
        return all(folder.has(ref.sha256, ref.size) for ref in content.blobs)

    def _fail_tasks(self, name: str, cause: LinkCause) -> None:
        for task in self._tasks.values():
            if task.site == name and task.is_open:
                task.cause = cause
                _log.warning("site %s: no reply (%s)", name, cause)
        self.changed.notify_all()


def _withdraw(task_id: bytes) -> pb.ServerFrame:
    return pb.ServerFrame(withdraw=pb.Withdraw(task_id=task_id))

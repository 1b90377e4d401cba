"""A Flower `Grid` over the link: nodes are sites, messages go out as tasks.

Replies are handed out in the order of the messages, so that the same replies give the same sum
bit for bit, or as they come. Either way they wait on disk and are decoded one at a time.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

from discreet.common import link_pb2 as pb
from discreet.common.blobs import Blob, pack
from discreet.common.errors import DataError
from discreet.common.link_content import SERVER_NODE, decode_content, encode_content, node_id_of
from discreet.common.wire import TensorRecord
from discreet.server.link_desk import Desk, LinkCause, Task

# isort: split
# After `wire`, which turns Flower's telemetry off before Flower is imported.
from flwr.app import Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

UPLOAD_SLACK_BYTES = 1 << 20
"""What a reply's blobs may have beyond those of the message: names and headers of tensors."""

_GLANCE_SECONDS = 0.2
_NODE_UNAVAILABLE = 5
_APP_RAISED = 2
_ID_BYTES = 16


@dataclass(frozen=True, slots=True)
class SiteView:
    """One site, for those who look on.

    Attributes:
        name: The site.
        state: `idle`, `working`, or `busy` with what was taken back.
        silent_seconds: Since something came from it.
    """

    name: str
    state: str
    silent_seconds: float


@dataclass(frozen=True, slots=True)
class LinkView:
    """The link, for those who look on: public numbers only.

    Attributes:
        sites: Those who attend, by name.
        bytes_in: Bytes of blobs received.
        bytes_out: Bytes of blobs sent.
        refused: Clients, replies and uploads that were refused, by a public word.
    """

    sites: tuple[SiteView, ...]
    bytes_in: int
    bytes_out: int
    refused: dict[str, int]


@dataclass(slots=True, eq=False)
class _Sent:
    """A message on its way: what a reply to it needs, without its tensors."""

    message: Message
    task: Task


class LinkGrid(Grid):
    """Sites that attend over gRPC.

    Args:
        desk: The link's state.
        should_stop: Asked while waiting; true ends the wait with KeyboardInterrupt.

    Attributes:
        ordered: Whether replies come in the order of the messages; else as they arrive.
    """

    def __init__(self, desk: Desk, should_stop: Callable[[], bool], *, ordered: bool) -> None:
        self.ordered = ordered
        self._desk = desk
        self._should_stop = should_stop
        self._names: dict[int, str] = {}
        self._pushed: dict[str, _Sent] = {}
        self._run = Run.create_empty(1)
        # Flower's messages read the identity of the process they are made in.
        TaskIdentity.task_id = TaskIdentity.run_id = 1
        TaskIdentity.node_id = SERVER_NODE

    @property
    def names(self) -> dict[int, str]:
        """Node id -> site name, of all sites that have been here."""
        self._learn(session.name for session in self._desk.sessions())
        return dict(self._names)

    def site_name(self, node_id: int) -> str:
        """The site that a node stands for."""
        return self._names.get(node_id) or self.names.get(node_id, str(node_id))

    def set_run(self, run: Run) -> None:
        """Set the Flower run; only its number is used."""
        self._run = run

    @property
    def run(self) -> Run:
        """The Flower run."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Make a message to one node, as Flower does."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> list[int]:
        """Sites that attend now, by name; not those still at work on what was taken back."""
        names = sorted(self._desk.free_sites())
        self._learn(names)
        return [node_id_of(name) for name in names]

    def wait_for_sites(self, num_sites: int, timeout: float | None = None) -> bool:
        """Wait until so many sites attend and are free.

        Returns:
            Whether they are here; false after `timeout` seconds.
        """
        return self._wait_for(lambda: len(self._desk.free_sites()) >= num_sites, _until(timeout))

    def view(self) -> LinkView:
        """The link as it is now."""
        now = time.monotonic()
        states = dict.fromkeys((s.name for s in self._desk.sessions()), "busy")
        states.update(dict.fromkeys(self._desk.free_sites(), "idle"))
        states.update({task.site: "working" for task in self._desk.tasks() if task.is_open})
        sites = tuple(
            SiteView(session.name, states.get(session.name, "idle"), now - session.last_seen)
            for session in sorted(self._desk.sessions(), key=lambda s: s.name)
        )
        desk = self._desk
        return LinkView(sites, desk.bytes_in, desk.bytes_out, dict(desk.refused))

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Ask, and do not wait."""
        sent = self._send(messages, math.inf)
        self._pushed.update({item.message.metadata.message_id: item for item in sent})
        return [item.message.metadata.message_id for item in sent]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """The replies that are in, of those asked for; each is handed out once."""
        listed = [i for i in message_ids if i in self._pushed and _is_settled(self._pushed[i])]
        return [self._reply(self._pushed.pop(i)) for i in listed]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        """Ask at once, and yield replies until all are in or the time is over.

        A site that is lost gives an error reply whose reason is a `LinkCause`; one that is late
        gives none. What is still open when the caller stops is taken back: a reply to it is
        refused, and its site is not asked again before it has said that it is free.

        Args:
            messages: To the sites; made one by one, and dropped once sent.
            timeout: In seconds; none waits for all.

        Raises:
            KeyboardInterrupt: When told to stop.
        """
        deadline = _until(timeout)
        sent = self._send(messages, deadline)
        self._forget([item.task for item in sent])
        return self._replies(sent, deadline)

    def _replies(self, sent: list[_Sent], deadline: float) -> Iterator[Message]:
        waiting = list(sent)
        try:
            while waiting:
                candidates = waiting[:1] if self.ordered else waiting
                self._wait_for(partial(_any_settled, candidates), deadline)
                settled = next(filter(_is_settled, candidates), None)
                if settled is None:
                    # Time is over; in order, later ones may still have come before that.
                    settled = next(filter(_is_settled, waiting), None)
                    if settled is None:
                        return
                waiting.remove(settled)
                yield self._reply(settled)
        finally:
            for item in sent:
                self._desk.withdraw(item.task)

    def _send(self, messages: Iterable[Message], deadline: float) -> list[_Sent]:
        packed: dict[int, tuple[TensorRecord, Blob]] = {}

        def blob_of(arrays: TensorRecord) -> Blob:
            # One record goes to many sites: it is hashed and kept once.
            if id(arrays) not in packed:
                blob = pack(arrays.items())
                self._desk.spool.offer(blob)
                packed[id(arrays)] = (arrays, blob)
            return packed[id(arrays)][1]

        return [self._post(message, blob_of, deadline) for message in messages]

    def _post(
        self, message: Message, blob_of: Callable[[TensorRecord], Blob], deadline: float
    ) -> _Sent:
        metadata = message.metadata
        content, blobs = encode_content(message.content, blob_of)
        site = self.site_name(metadata.dst_node_id)
        offer = pb.Offer(message_type=metadata.message_type, group=metadata.group_id)
        offer.content.CopyFrom(content)
        offer.upload_limit = sum(blob.size for blob in blobs) + UPLOAD_SLACK_BYTES
        named = offer.SerializeToString(deterministic=True) + b"\0" + site.encode()
        offer.task_id = hashlib.sha256(named).digest()[:_ID_BYTES]
        task = self._desk.post(Task(offer.task_id, site, offer))
        task.deadline = deadline
        kept = Message(
            RecordDict(), metadata.dst_node_id, metadata.message_type, group_id=metadata.group_id
        )
        message_id = offer.task_id.hex()
        for each in (message, kept):
            each.metadata.__dict__["_message_id"] = message_id
        return _Sent(kept, task)

    def _reply(self, sent: _Sent) -> Message:
        task = sent.task
        if task.result is None:
            is_gone = task.cause in {LinkCause.LOST, LinkCause.LEFT, LinkCause.REVOKED}
            code = _NODE_UNAVAILABLE if is_gone else _APP_RAISED
            return Message(Error(code, str(task.cause)), reply_to=sent.message)
        try:
            content = decode_content(task.result.content, self._desk.spool.task(task.id).open)
        except (DataError, OSError):
            return Message(Error(0, str(LinkCause.UNREADABLE)), reply_to=sent.message)
        return Message(content, reply_to=sent.message)

    def _forget(self, tasks: list[Task]) -> None:
        kept = [*tasks, *(item.task for item in self._pushed.values())]
        blobs = {ref.sha256 for task in kept for ref in task.offer.content.blobs}
        self._desk.spool.forget_all_but({task.id for task in kept}, blobs)

    def _learn(self, names: Iterable[str]) -> None:
        self._names.update({node_id_of(name): name for name in names})

    def _wait_for(self, is_true: Callable[[], bool], deadline: float) -> bool:
        with self._desk.changed:
            while not is_true():
                if self._should_stop():
                    raise KeyboardInterrupt
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                self._desk.changed.wait(min(left, _GLANCE_SECONDS))
        return True


def _is_settled(sent: _Sent) -> bool:
    return sent.task.result is not None or sent.task.cause is not None


def _any_settled(sent: Iterable[_Sent]) -> bool:
    return any(map(_is_settled, sent))


def _until(timeout: float | None) -> float:
    return math.inf if timeout is None else time.monotonic() + timeout

"""A Flower `Grid` inside this process: every site is a node, its app is called directly.

Messages are made as Flower makes them and handed over without a network, a queue or a copy:
tensors in a message are immutable bytes. Replies come in the order of the messages, one at a
time, so that a streaming strategy holds one update. Sites run in threads where that pays.
"""

from __future__ import annotations

import itertools
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from discreet.common.blame import place_of

_log = logging.getLogger(__name__)

_THREADS_PAY_SECONDS = 0.02
"""A task shorter than this spends its time in the interpreter, which runs one thread at once."""

_SERVER_NODE = 1


class LocalGrid(Grid):
    """Runs one `ClientApp` for many sites in this process.

    Args:
        app: The client app of all sites.
        sites: Site names; node ids are 2, 3, ... in this order.
        max_threads: Sites at work at once; none finds out whether threads pay.
        should_stop: Asked before each site's task; true ends the round with KeyboardInterrupt.
    """

    def __init__(
        self,
        app: ClientApp,
        sites: list[str],
        *,
        max_threads: int | None = None,
        should_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self._app = app
        self._names = dict(enumerate(sites, start=_SERVER_NODE + 1))
        self._max_threads = max_threads
        self._should_stop = should_stop
        self._counter = itertools.count(1)
        self._replies: dict[str, Message] = {}
        self._run = Run.create_empty(1)
        # Flower's messages read the identity of the process they are made in.
        TaskIdentity.task_id = TaskIdentity.run_id = 1
        TaskIdentity.node_id = _SERVER_NODE

    @property
    def names(self) -> dict[int, str]:
        """Node id -> site name."""
        return self._names

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
        """The ids of all sites."""
        return list(self._names)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Run the sites now and keep their replies for `pull_messages`."""
        identifiers = []
        for message, reply in self._run_all(messages):
            self._replies[message.metadata.message_id] = reply
            identifiers.append(message.metadata.message_id)
        return identifiers

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Hand out replies that `push_messages` kept."""
        return [self._replies.pop(i) for i in message_ids if i in self._replies]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        """Run the sites and yield each reply as its turn comes.

        `timeout` is not used: a site in this process cannot be left behind.
        """
        return (reply for _, reply in self._run_all(messages))

    def _run_all(self, messages: Iterable[Message]) -> Iterator[tuple[Message, Message]]:
        pending = iter(messages)
        threads = self._max_threads
        if threads is None:
            first = next(pending, None)
            if first is None:
                return
            started = time.perf_counter()
            yield first, self._run_one(first)
            pays = time.perf_counter() - started >= _THREADS_PAY_SECONDS
            threads = (os.cpu_count() or 1) if pays else 1
        if threads == 1:
            yield from ((message, self._run_one(message)) for message in pending)
        else:
            yield from self._run_in_threads(pending, threads)

    def _run_in_threads(
        self, messages: Iterator[Message], threads: int
    ) -> Iterator[tuple[Message, Message]]:
        queue: deque[tuple[Message, Future[Message]]] = deque()
        with ThreadPoolExecutor(threads) as pool:
            try:
                for message in messages:
                    queue.append((message, pool.submit(self._run_one, message)))
                    # One more than there are threads, so that none waits for the server.
                    if len(queue) > threads:
                        done, future = queue.popleft()
                        yield done, future.result()
                while queue:
                    done, future = queue.popleft()
                    yield done, future.result()
            finally:
                for _, future in queue:
                    future.cancel()

    def _run_one(self, message: Message) -> Message:
        if self._should_stop():
            raise KeyboardInterrupt
        node = message.metadata.dst_node_id
        message.metadata.__dict__["_message_id"] = str(next(self._counter))
        context = Context(
            run_id=1,
            node_id=node,
            node_config={"site": self._names[node]},
            state=RecordDict(),
            run_config={},
        )
        try:
            return self._app(message, context)
        except Exception as error:
            # What went wrong inside a site stays there: the server learns that it failed.
            _log.error("%s failed: %s", self._names[node], place_of(error))
            return Message(Error(code=0), reply_to=message)

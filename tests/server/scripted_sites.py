"""A grid whose sites answer as a test says."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator

import torch

from discreet.common.errors import RefusalCode
from discreet.common.update import ClippedUpdate
from discreet.common.wire import encode_update, refusal_content, reply_content

# isort: split
from flwr.app import Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

Answer = Callable[[Message], Message | None]


class ScriptedGrid(Grid):
    """Node id -> how it answers; an answer of None is a site that never replies.

    Attributes:
        asked: Node ids of all messages, in order.
    """

    def __init__(self, answers: dict[int, Answer]) -> None:
        self.answers = answers
        self.asked: list[int] = []
        self._numbers = itertools.count(1)
        TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1

    def set_run(self, run: Run) -> None:
        raise NotImplementedError

    @property
    def run(self) -> Run:
        raise NotImplementedError

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        raise NotImplementedError

    def get_node_ids(self) -> list[int]:
        return list(self.answers)

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        raise NotImplementedError

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        raise NotImplementedError

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterator[Message]:
        for message in messages:
            self.asked.append(message.metadata.dst_node_id)
            message.metadata.__dict__["_message_id"] = str(next(self._numbers))
            reply = self.answers[message.metadata.dst_node_id](message)
            if reply is not None:
                yield reply
            # Else the generator itself would hold the last reply.
            del reply


def answer_with(content: RecordDict) -> Answer:
    return lambda message: Message(content, reply_to=message)


def update_of(value: float) -> ClippedUpdate:
    return ClippedUpdate({"w": torch.full((2, 3), value), "b": torch.full((3,), -value)})


def sends(value: float, *, dtype: str = "float32", num_examples: int | None = None) -> Answer:
    return answer_with(
        reply_content(encode_update(update_of(value), dtype=dtype), num_examples=num_examples)
    )


def refuses(code: RefusalCode) -> Answer:
    return answer_with(refusal_content(code))


def fails(message: Message) -> Message:
    return Message(Error(1, "a sentence of somebody's letter"), reply_to=message)


def stays_silent(message: Message) -> None:
    return None

"""The Flower client app: one answer to one message, the same in every engine."""

from __future__ import annotations

from collections.abc import Callable

from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from discreet.client.runtime import SiteRuntime
from discreet.common.errors import DataError, RefusalCode
from discreet.common.wire import (
    TrainTask,
    over_content,
    read_over,
    read_task,
    refusal_content,
    reply_content,
)


def _ignore(run: str, is_finished: bool) -> None:
    pass


def make_client_app(
    runtime_of: Callable[[Context], SiteRuntime], on_over: Callable[[str, bool], None] = _ignore
) -> ClientApp:
    """A client app whose site is found by the node's context.

    Args:
        runtime_of: Gives the site that a node stands for.
        on_over: Told that a run is over: its identity, and whether all its rounds were run.
    """
    app = ClientApp()
    last: list[tuple[object, object, TrainTask]] = []

    def task_of(content: RecordDict) -> TrainTask:
        # In one process every site of a round is handed the same records: read once.
        records = content.get("task"), content.get("weights")
        known = last[0] if last else (None, None, None)
        if known[2] is not None and known[0] is records[0] and known[1] is records[1]:
            return known[2]
        task = read_task(content)
        last[:] = [(*records, task)]
        return task

    @app.train()
    def train(message: Message, context: Context) -> Message:
        """Answer with an update, or with the code of a refusal."""
        try:
            task = task_of(message.content)
        except DataError:
            return Message(refusal_content(RefusalCode.PLAN), reply_to=message)
        answer = runtime_of(context).answer(task)
        if isinstance(answer, RefusalCode):
            return Message(refusal_content(answer), reply_to=message)
        kept, size = answer.kept, answer.num_examples
        content = reply_content(kept.arrays, sha256=kept.sha256, num_examples=size)
        return Message(content, reply_to=message)

    @app.query()
    def over(message: Message, context: Context) -> Message:
        """Hear that a run is over. The answer says no more than that it was heard."""
        told = read_over(message.content)
        if told is not None:
            on_over(*told)
        return Message(over_content(*(told or ("", False))), reply_to=message)

    return app

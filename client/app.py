"""The Flower client app: one answer to one message, the same in every engine."""

from __future__ import annotations

from collections.abc import Callable

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from discreet.client.runtime import SiteRuntime
from discreet.common.errors import DataError, RefusalCode
from discreet.common.wire import read_task, refusal_content, reply_content


def make_client_app(runtime_of: Callable[[Context], SiteRuntime]) -> ClientApp:
    """A client app whose site is found by the node's context.

    Args:
        runtime_of: Gives the site that a node stands for.
    """
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        """Answer with an update, or with the code of a refusal."""
        try:
            task = read_task(message.content)
        except DataError:
            return Message(refusal_content(RefusalCode.PLAN), reply_to=message)
        answer = runtime_of(context).answer(task)
        if isinstance(answer, RefusalCode):
            return Message(refusal_content(answer), reply_to=message)
        content = reply_content(answer.update, dtype=answer.dtype, num_examples=answer.num_examples)
        return Message(content, reply_to=message)

    return app

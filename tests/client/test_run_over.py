"""A client hears the end of a run, answers nothing of its own, and opens no text for it."""

from __future__ import annotations

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from discreet.client.app import make_client_app
from discreet.client.runtime import SiteRuntime
from discreet.common.wire import over_content, read_over


@pytest.fixture(autouse=True)
def _identity() -> None:
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1


def asked(content: RecordDict) -> tuple[list[tuple[str, bool]], Message]:
    heard: list[tuple[str, bool]] = []

    def runtime_of(context: Context) -> SiteRuntime:
        raise AssertionError("the site was opened")

    app = make_client_app(runtime_of, lambda run, is_finished: heard.append((run, is_finished)))
    message = Message(content, 2, "query", group_id="over")
    message.metadata.__dict__["_message_id"] = "1"
    context = Context(run_id=1, node_id=2, node_config={}, state=RecordDict(), run_config={})
    return heard, app(message, context)


@pytest.mark.parametrize("is_finished", [True, False])
def test_the_end_of_a_run_is_heard_and_repeated_back(is_finished: bool) -> None:
    heard, reply = asked(over_content("ab12", is_finished))

    assert heard == [("ab12", is_finished)]
    assert read_over(reply.content) == ("ab12", is_finished)


def test_another_question_is_not_taken_for_the_end_and_is_answered_with_nothing() -> None:
    heard, reply = asked(RecordDict({"loss": ConfigRecord({"of": "every text"})}))

    assert heard == []
    assert read_over(reply.content) == ("", False)
    assert list(reply.content) == ["over"]

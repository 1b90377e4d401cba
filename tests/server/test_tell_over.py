"""The end of a run is told to every site that is there, and nobody is waited for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from scripted_sites import ScriptedGrid, fails, sends, stays_silent

from discreet.common.plan import Plan
from discreet.common.update import Weights
from discreet.common.wire import over_content, read_over, train_content
from discreet.server.app import run_server_app, tell_over
from discreet.server.loop import RunSetup

# isort: split
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, RecordDict

MakePlan = Callable[..., Plan]


def test_every_site_hears_which_run_is_over_and_how(
    tmp_path: Path, make_plan: MakePlan, start_weights: Weights
) -> None:
    heard: list[tuple[int, str, object]] = []

    def listen(message: Message) -> Message | None:
        if message.metadata.message_type != MessageType.QUERY:
            return sends(1.0)(message)
        node, kind = message.metadata.dst_node_id, message.metadata.message_type
        heard.append((node, kind, read_over(message.content)))
        return stays_silent(message) if node == 2 else fails(message)

    grid = ScriptedGrid({2: listen, 3: listen})
    state = run_server_app(grid, RunSetup(make_plan(rounds=1), "run-1", tmp_path, start_weights))
    tell_over(grid, state, is_finished=True)

    assert heard == [(2, "query", ("run-1", True)), (3, "query", ("run-1", True))]


@pytest.mark.parametrize("is_finished", [True, False])
def test_what_is_said_is_what_is_read(is_finished: bool) -> None:
    assert read_over(over_content("ab12", is_finished)) == ("ab12", is_finished)


@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({"over": ArrayRecord()}),
        RecordDict({"over": ConfigRecord({"version": 99, "run": "x", "finished": True})}),
        RecordDict({"over": ConfigRecord({"version": 1, "run": 3, "finished": True})}),
        RecordDict({"over": ConfigRecord({"version": 1, "run": "x", "finished": "yes"})}),
        train_content(ArrayRecord(), run="x", round_number=1, plan_json=b"{}"),
    ],
)
def test_another_message_is_no_end(content: RecordDict) -> None:
    assert read_over(content) is None

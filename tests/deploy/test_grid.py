"""The in-process grid is a Flower grid: order, laziness, failures, threads."""

import threading
import time
from collections.abc import Iterator

import pytest
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.supercore.run import Run

from discreet.deploy.grid import LocalGrid


def echo_app(seconds: float = 0.0) -> ClientApp:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        time.sleep(seconds)
        site = str(context.node_config["site"])
        if message.content["task"]["fail"] == site:
            raise ValueError(f"a text of {site}")
        answer = ConfigRecord({"site": site, "thread": threading.get_ident()})
        return Message(RecordDict({"answer": answer}), reply_to=message)

    return app


def messages(grid: LocalGrid, fail: str = "") -> Iterator[Message]:
    for node in grid.get_node_ids():
        content = RecordDict({"task": ConfigRecord({"fail": fail})})
        yield grid.create_message(content, "train", node, "1")


def sites(num: int) -> list[str]:
    return [f"site-{i}" for i in range(num)]


@pytest.mark.parametrize("max_threads", [1, 3, None])
def test_each_site_answers_once_in_the_order_of_the_messages(max_threads: int | None) -> None:
    grid = LocalGrid(echo_app(), sites(7), max_threads=max_threads)

    replies = list(grid.send_and_receive(messages(grid)))

    assert [reply.content["answer"]["site"] for reply in replies] == sites(7)
    assert [reply.metadata.src_node_id for reply in replies] == grid.get_node_ids()


def test_a_site_runs_only_when_its_reply_is_asked_for() -> None:
    ran: list[str] = []
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        ran.append(str(context.node_config["site"]))
        return Message(RecordDict({"m": MetricRecord({"x": 1})}), reply_to=message)

    grid = LocalGrid(app, sites(3), max_threads=1)

    replies = iter(grid.send_and_receive(messages(grid)))
    next(replies)

    assert ran == ["site-0"]


def test_threads_are_used_for_slow_sites() -> None:
    grid = LocalGrid(echo_app(seconds=0.03), sites(6), max_threads=2)

    replies = list(grid.send_and_receive(messages(grid)))

    assert len({reply.content["answer"]["thread"] for reply in replies}) == 2


def test_fast_sites_stay_in_one_thread() -> None:
    grid = LocalGrid(echo_app(), sites(6))

    replies = list(grid.send_and_receive(messages(grid)))

    assert {reply.content["answer"]["thread"] for reply in replies} == {threading.get_ident()}


@pytest.mark.parametrize("max_threads", [1, 2])
def test_what_went_wrong_inside_a_site_does_not_leave_it(max_threads: int) -> None:
    grid = LocalGrid(echo_app(), sites(3), max_threads=max_threads)

    replies = list(grid.send_and_receive(messages(grid, fail="site-1")))

    assert [reply.has_error() for reply in replies] == [False, True, False]
    assert replies[1].error.reason is None


@pytest.mark.parametrize("max_threads", [1, 2])
def test_a_stop_ends_the_round_between_two_sites(max_threads: int) -> None:
    answered: list[Message] = []
    grid = LocalGrid(
        echo_app(), sites(9), max_threads=max_threads, should_stop=lambda: len(answered) >= 2
    )

    with pytest.raises(KeyboardInterrupt):
        answered.extend(grid.send_and_receive(messages(grid)))

    assert 2 <= len(answered) <= 2 + max_threads + 1


def test_pushed_messages_can_be_pulled_once() -> None:
    grid = LocalGrid(echo_app(), sites(2))

    identifiers = grid.push_messages(messages(grid))

    assert len(grid.pull_messages(identifiers)) == 2
    assert grid.pull_messages(identifiers) == []


def test_a_grid_without_messages_has_no_replies() -> None:
    grid = LocalGrid(echo_app(), [])

    assert list(grid.send_and_receive([])) == []


def test_the_run_can_be_set() -> None:
    grid = LocalGrid(echo_app(), [])

    grid.set_run(Run.create_empty(5))

    assert grid.run.run_id == 5
    assert grid.names == {}

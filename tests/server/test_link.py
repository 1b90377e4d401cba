"""Server and clients over real sockets: rounds, causes, identities, restarts."""

import threading
import time
from pathlib import Path

import grpc
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from link_parts import (
    WAIT,
    RawClient,
    Running,
    asks,
    echo_app,
    federation,
    replies_of,
    serving,
    until,
    weights,
)

from discreet.client.link import Agent, AgentOptions, NotAdmittedError, ReplacedError
from discreet.client.link_worker import AgentEventKind
from discreet.common import link_pb2 as pb
from discreet.common.errors import ConfigError
from discreet.common.link_content import node_id_of
from discreet.common.wire import decode_tensors, encode_tensors


def site_of(reply: Message) -> str:
    return str(reply.content["reply"]["site"])


def test_each_site_answers_with_its_own_reply_in_the_order_of_the_messages(tmp_path: Path) -> None:
    with federation(tmp_path, "c", "a", "b") as (server, _):
        replies = replies_of(server.grid)

        assert [site_of(reply) for reply in replies] == ["a", "b", "c"]
        nodes = [reply.metadata.src_node_id for reply in replies]
        assert nodes == server.grid.get_node_ids() == [node_id_of(name) for name in "abc"]
        assert [server.grid.site_name(node) for node in nodes] == ["a", "b", "c"]
        assert {reply.metadata.group_id for reply in replies} == {"1"}


def test_tensors_cross_both_ways_unchanged(tmp_path: Path) -> None:
    tensors = {"w": torch.randn(700, 900), "h": torch.randn(5).bfloat16(), "e": torch.zeros(0, 2)}

    with federation(tmp_path, "a") as (server, _):
        asked = asks(server.grid, encode_tensors(tensors))
        (reply,) = server.grid.send_and_receive(asked, timeout=WAIT)

    update = reply.content["update"]
    assert isinstance(update, ArrayRecord)
    read = decode_tensors(update)
    assert read.keys() == tensors.keys()
    assert all(torch.equal(read[name], tensors[name]) for name in tensors)


def test_unordered_replies_come_as_they_arrive(tmp_path: Path) -> None:
    first_may_go = threading.Event()

    with federation(tmp_path, "b", ordered=False) as (server, _):
        slow = Running(server.address, "a", app=echo_app(lambda m: first_may_go.wait(WAIT)))
        assert server.grid.wait_for_sites(2, WAIT)

        replies = iter(server.grid.send_and_receive(asks(server.grid, weights()), timeout=WAIT))
        first = site_of(next(replies))
        first_may_go.set()

        assert (first, site_of(next(replies))) == ("b", "a")
        slow.stop()


def test_what_went_wrong_inside_a_site_does_not_leave_it(tmp_path: Path) -> None:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        raise ValueError("a sentence of somebody's letter")

    with federation(tmp_path, "a", app=app) as (server, agents):
        (reply,) = replies_of(server.grid)

        assert reply.error.reason == "raised"
        until(lambda: bool(agents["a"].told(AgentEventKind.FAILED)))
        assert "letter" not in str(agents["a"].events)


def test_a_site_that_failed_is_asked_in_the_next_round(tmp_path: Path) -> None:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        raise ValueError

    with federation(tmp_path, "a", app=app) as (server, _):
        rounds = [replies_of(server.grid, str(number)) for number in range(5)]

        assert [len(replies) for replies in rounds] == [1] * 5
        assert server.grid.view().refused == {}


def test_a_site_stays_warm_from_round_to_round(tmp_path: Path) -> None:
    threads: set[int] = set()

    app = echo_app(lambda message: threads.add(threading.get_ident()))
    with federation(tmp_path, "a", app=app) as (server, _):
        for number in range(5):
            replies_of(server.grid, str(number))

    assert len(threads) == 1


def test_many_rounds_leave_no_files_of_earlier_ones(tmp_path: Path) -> None:
    with federation(tmp_path, "a", "b") as (server, _):
        for number in range(4):
            arrays = weights(value=float(number))
            list(server.grid.send_and_receive(asks(server.grid, arrays, str(number)), timeout=WAIT))

    assert len(list((tmp_path / "link" / "up").iterdir())) == 2
    assert len(list((tmp_path / "link" / "down").iterdir())) == 1


def test_a_client_whose_stream_breaks_is_lost_and_the_round_goes_on(tmp_path: Path) -> None:
    with federation(tmp_path, "a", lost_seconds=1.0) as (server, _):
        gone = RawClient(server.address, "b").attend()
        replies = server.grid.send_and_receive(asks(server.grid, weights()), timeout=WAIT)
        gone.offer()
        gone.close()

        first, second = replies

        assert site_of(first) == "a"
        assert second.error.reason == "lost"


def test_a_client_without_heartbeat_is_lost(tmp_path: Path) -> None:
    with serving(tmp_path, lost_seconds=1.0) as server:
        silent = RawClient(server.address, "a").attend()

        (reply,) = replies_of(server.grid)

        assert reply.error.reason == "lost"
        assert server.grid.get_node_ids() == []
        silent.close()


def test_a_client_that_says_goodbye_is_not_waited_for(tmp_path: Path) -> None:
    with serving(tmp_path, lost_seconds=60.0) as server:
        client = RawClient(server.address, "a").attend()
        replies = server.grid.send_and_receive(asks(server.grid, weights()), timeout=WAIT)
        client.offer()
        client.outgoing.put(pb.ClientFrame(goodbye=pb.Goodbye()))

        (reply,) = replies

        assert reply.error.reason == "left"
        client.close()


def test_a_long_task_does_not_starve_the_heartbeat(tmp_path: Path) -> None:
    app = echo_app(lambda message: time.sleep(2.5))

    with federation(tmp_path, "a", app=app, lost_seconds=1.0) as (server, _):
        (reply,) = replies_of(server.grid)

    assert site_of(reply) == "a"


def test_a_hung_client_costs_one_deadline_and_is_not_asked_again(tmp_path: Path) -> None:
    may_go = threading.Event()

    with federation(tmp_path, "a") as (server, _):
        hung = Running(server.address, "b", app=echo_app(lambda m: may_go.wait(WAIT)))
        assert server.grid.wait_for_sites(2, WAIT)
        first = replies_of(server.grid, "1", timeout=0.5)
        started = time.monotonic()
        second = replies_of(server.grid, "2", timeout=WAIT)
        seconds = time.monotonic() - started
        states = {site.name: site.state for site in server.grid.view().sites}
        may_go.set()
        assert server.grid.wait_for_sites(2, WAIT)
        third = replies_of(server.grid, "3")
        hung.stop()

    assert [site_of(reply) for reply in first] == ["a"]
    assert [site_of(reply) for reply in second] == ["a"]
    assert seconds < WAIT / 2
    assert states == {"a": "idle", "b": "busy"}
    assert [site_of(reply) for reply in third] == ["a", "b"]
    assert hung.told(AgentEventKind.LATE) == ["1"]


def test_a_caller_that_stops_early_takes_the_rest_back(tmp_path: Path) -> None:
    may_go = threading.Event()
    app = echo_app(lambda message: may_go.wait(WAIT))

    with federation(tmp_path, "b", ordered=False) as (server, _):
        slow = Running(server.address, "a", app=app)
        assert server.grid.wait_for_sites(2, WAIT)
        for reply in server.grid.send_and_receive(asks(server.grid, weights()), timeout=WAIT):
            assert site_of(reply) == "b"
            break
        may_go.set()

        until(lambda: slow.told(AgentEventKind.LATE) == ["1"])

        assert server.grid.wait_for_sites(2, WAIT)
        slow.stop()


def test_a_second_agent_replaces_the_first_which_ends_with_an_error(tmp_path: Path) -> None:
    with federation(tmp_path, "a") as (server, agents):
        second = Running(server.address, "a")

        error = agents["a"].ended()

        assert isinstance(error, ReplacedError)
        assert "another agent attends as 'a'" in str(error)
        assert error.exit_code == 2
        assert [site_of(reply) for reply in replies_of(server.grid)] == ["a"]
        assert second.thread.is_alive()
        second.stop()


def test_a_client_that_restarts_at_once_is_let_in_and_given_its_task_again(tmp_path: Path) -> None:
    with serving(tmp_path, lost_seconds=30.0) as server:
        killed = RawClient(server.address, "a").attend()
        replies = server.grid.send_and_receive(asks(server.grid, weights()), timeout=WAIT)
        killed.offer()
        killed.close()
        again = Running(server.address, "a")

        (reply,) = replies

        assert site_of(reply) == "a"
        again.stop()


def test_another_protocol_version_is_one_clear_line_on_both_sides(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with serving(tmp_path) as server:
        client = RawClient(server.address, "a", version=99).attend()
        client.close()

    assert client.first is not None
    text = client.first.farewell.text
    assert client.first.farewell.reason == pb.REASON_VERSION
    assert text == (
        "protocol version must be 1, the client has 99: "
        "install the same version of discreet on both sides"
    )
    assert [r.message for r in caplog.records].count(f"site a is not let in: {text}") == 1


def test_an_agent_that_is_refused_for_its_version_ends_with_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("discreet.client.link.PROTOCOL_VERSION", 99)

    with serving(tmp_path) as server:
        error = Running(server.address, "a").ended()

    assert isinstance(error, ConfigError)
    assert error.exit_code == 2
    assert "\n" not in str(error)


def test_a_site_that_is_not_allowed_ends_with_exit_code_3(tmp_path: Path) -> None:
    with serving(tmp_path, site_allowed=lambda name, serial: name != "b") as server:
        error = Running(server.address, "b").ended()

    assert isinstance(error, NotAdmittedError)
    assert error.exit_code == 3
    assert "ask the operator" in str(error)


def test_a_list_of_sites_that_cannot_be_read_lets_nobody_in(tmp_path: Path) -> None:
    def broken(name: str, serial: int) -> bool:
        raise OSError("the disk is gone")

    with serving(tmp_path, site_allowed=broken) as server:
        error = Running(server.address, "a").ended()

    assert isinstance(error, NotAdmittedError)


def test_a_revoked_site_is_cut_off_while_its_stream_is_open(tmp_path: Path) -> None:
    revoked: set[str] = set()
    may_go = threading.Event()
    app = echo_app(lambda message: may_go.wait(WAIT))

    with serving(tmp_path, site_allowed=lambda name, serial: name not in revoked) as server:
        client = Running(server.address, "a", app=app)
        assert server.grid.wait_for_sites(1, WAIT)
        replies = server.grid.send_and_receive(asks(server.grid, weights()), timeout=WAIT)
        revoked.add("a")

        (reply,) = replies

        assert reply.error.reason == "revoked"
        assert isinstance(client.ended(), NotAdmittedError)
        assert server.grid.get_node_ids() == []
        may_go.set()


def test_a_restarted_server_does_not_ask_again_for_a_reply_that_is_in(tmp_path: Path) -> None:
    asked: list[str] = []
    app = echo_app(lambda message: asked.append(message.metadata.group_id))
    with federation(tmp_path, "a", app=app) as (server, _):
        (before,) = replies_of(server.grid, "7")

    with federation(tmp_path, "a", app=app) as (server, _):
        (after,) = replies_of(server.grid, "7")

    assert asked == ["7"]
    assert after.content["reply"] == before.content["reply"]
    assert after.content["update"]["w"].data == before.content["update"]["w"].data


def test_agents_come_back_to_a_restarted_server_with_the_work_they_have_done(
    tmp_path: Path,
) -> None:
    asked: list[str] = []
    working, may_go = threading.Event(), threading.Event()

    def train(message: Message) -> None:
        asked.append(message.metadata.group_id)
        working.set()
        may_go.wait(WAIT)

    with serving(tmp_path) as server:
        address = server.address
        client = Running(address, "a", app=echo_app(train))
        assert server.grid.wait_for_sites(1, WAIT)
        server.grid.push_messages(asks(server.grid, weights(), "7"))
        assert working.wait(WAIT)
    with serving(tmp_path, bind=address) as server:
        assert server.grid.wait_for_sites(1, WAIT)
        replies = server.grid.send_and_receive(asks(server.grid, weights(), "7"), timeout=WAIT)
        may_go.set()
        (reply,) = replies
        client.stop()

    assert site_of(reply) == "a"
    assert asked == ["7"]


def test_pushed_messages_can_be_pulled_once(tmp_path: Path) -> None:
    with federation(tmp_path, "a", "b") as (server, _):
        identifiers = server.grid.push_messages(asks(server.grid, weights()))
        pulled: list[Message] = []

        until(lambda: pulled.extend(server.grid.pull_messages(identifiers)) or len(pulled) == 2)

        assert {site_of(reply) for reply in pulled} == {"a", "b"}
        assert server.grid.pull_messages(identifiers) == []


def test_a_stop_ends_the_wait(tmp_path: Path) -> None:
    is_stopped = threading.Event()

    with serving(tmp_path, should_stop=is_stopped.is_set) as server:
        client = RawClient(server.address, "a").attend()
        replies = server.grid.send_and_receive(asks(server.grid, weights()), timeout=None)
        is_stopped.set()

        with pytest.raises(KeyboardInterrupt):
            next(iter(replies))
        client.close()


def test_waiting_for_sites_that_do_not_come_ends(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        assert not server.grid.wait_for_sites(1, 0.1)
        assert list(server.grid.send_and_receive([], timeout=1)) == []


@pytest.mark.parametrize("bind", ["0.0.0.0:0", "[::]:0", "example.org:1"])
def test_without_tls_both_sides_keep_to_this_machine_unless_told(tmp_path: Path, bind: str) -> None:
    with pytest.raises(ConfigError, match="--insecure"):
        serving(tmp_path, bind=bind)
    with pytest.raises(ConfigError, match="--insecure"):
        Agent(AgentOptions(bind, "a", echo_app()))

    serving(tmp_path, bind=bind, insecure=True)
    Agent(AgentOptions(bind, "a", echo_app(), insecure=True))


def test_an_address_in_use_is_one_clear_line(tmp_path: Path) -> None:
    with (
        serving(tmp_path) as server,
        pytest.raises(ConfigError, match="is a server running there already"),
    ):
        serving(tmp_path, bind=server.address).__enter__()


def test_health_and_reflection_answer(tmp_path: Path) -> None:
    with serving(tmp_path) as server, grpc.insecure_channel(server.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest(service="discreet.link.v1.Federation")
        status = health.Check(request, timeout=WAIT).status
        asked = reflection_pb2.ServerReflectionRequest(list_services="")
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        (answer,) = stub.ServerReflectionInfo(iter([asked]), timeout=WAIT)

    assert status == health_pb2.HealthCheckResponse.SERVING
    names = {service.name for service in answer.list_services_response.service}
    assert "discreet.link.v1.Federation" in names


def test_an_agent_without_a_server_dials_for_ever_and_stops_at_once(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        address = server.address
    client = Running(address, "a")
    until(lambda: len(client.told(AgentEventKind.DISCONNECTED)) >= 2)

    started = time.monotonic()
    client.stop()

    assert time.monotonic() - started < 2
    assert client.error is None


def test_an_agent_that_is_told_to_stop_says_goodbye_though_it_is_at_work(tmp_path: Path) -> None:
    working, may_go = threading.Event(), threading.Event()

    def train(message: Message) -> None:
        working.set()
        may_go.wait(WAIT)

    with federation(tmp_path, "a", app=echo_app(train), lost_seconds=60.0) as (server, agents):
        replies = server.grid.send_and_receive(asks(server.grid, weights()), timeout=WAIT)
        assert working.wait(WAIT)
        agents["a"].stop()

        (reply,) = replies

        assert agents["a"].error is None
        assert reply.error.reason == "left"
        may_go.set()


def test_records_other_than_tensors_alone_cross_too(tmp_path: Path) -> None:
    app = ClientApp()

    @app.query()
    def query(message: Message, context: Context) -> Message:
        answer = ConfigRecord({"asked": message.content["q"]["text"]})
        return Message(RecordDict({"a": answer}), reply_to=message)

    with federation(tmp_path, "a", app=app) as (server, _):
        (node,) = server.grid.get_node_ids()
        content = RecordDict({"q": ConfigRecord({"text": "how many?"})})
        message = server.grid.create_message(content, "query", node, "1")
        (reply,) = server.grid.send_and_receive([message], timeout=WAIT)

    assert reply.content["a"]["asked"] == "how many?"

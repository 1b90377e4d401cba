"""Clients that lie, strangers on the port, and networks that break: refused, and nothing else."""

import hashlib
import itertools
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from flwr.app import Message
from link_parts import (
    WAIT,
    RawClient,
    Running,
    asks,
    federation,
    replies_of,
    serving,
    until,
    weights,
)

from discreet.common import link_pb2 as pb
from discreet.common.blobs import CHUNK_BYTES, Blob, pack
from discreet.server.link import LinkServer
from discreet.server.link_grid import UPLOAD_SLACK_BYTES

Asked = tuple[LinkServer, RawClient, pb.Offer, Iterator[Message]]


@pytest.fixture
def asked(tmp_path: Path) -> Iterator[Asked]:
    """A server that waits for the reply of one client without manners."""
    with serving(tmp_path, lost_seconds=WAIT) as server:
        client = RawClient(server.address, "a").attend()
        replies = iter(server.grid.send_and_receive(asks(server.grid, weights()), timeout=WAIT))
        yield server, client, client.offer(), replies
        client.close()


def header(offer: pb.Offer, content: bytes, **other: object) -> pb.UploadFrame:
    fields = {
        "task_id": offer.task_id,
        "sha256": hashlib.sha256(content).digest(),
        "size": len(content),
        "offset": 0,
        **other,
    }
    return pb.UploadFrame(header=pb.UploadHeader(**fields))  # type: ignore[arg-type]


def chunk(offset: int, data: bytes) -> pb.UploadFrame:
    return pb.UploadFrame(chunk=pb.UploadChunk(offset=offset, data=data))


def refused(client: RawClient, *frames: pb.UploadFrame) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as error:
        client.upload(*frames)
    code: grpc.StatusCode = error.value.code()
    return code


def good(value: float = 2.0) -> bytes:
    blob: Blob = pack(weights(value=value).items())
    return b"".join(blob.buffers)


def reply_with(offer: pb.Offer, content: bytes) -> pb.Result:
    ref = pb.BlobRef(record="update", sha256=hashlib.sha256(content).digest(), size=len(content))
    return pb.Result(task_id=offer.task_id, content=pb.Content(blobs=[ref]))


def test_an_upload_that_is_as_announced_is_taken(asked: Asked) -> None:
    _, client, offer, replies = asked

    client.upload(header(offer, good()), chunk(0, good()[:7]), chunk(7, good()[7:]))
    receipt = client.send(reply_with(offer, good()))

    assert receipt.is_taken
    assert next(replies).content["update"]["w"].data == weights(value=2.0)["w"].data


def test_a_wrong_hash_is_refused_and_nothing_of_it_is_kept(asked: Asked) -> None:
    _, client, offer, _ = asked
    sha256 = hashlib.sha256(b"another").digest()

    code = refused(client, header(offer, good(), sha256=sha256), chunk(0, good()))

    query = pb.UploadQuery(task_id=offer.task_id, sha256=sha256)
    assert code is grpc.StatusCode.DATA_LOSS
    assert client.stub.UploadOffset(query, metadata=client.metadata).received == 0
    assert not client.send(reply_with(offer, good())).is_taken


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        ([(5, b"x")], grpc.StatusCode.OUT_OF_RANGE),
        ([(0, b"0123"), (8, b"89"), (4, b"4567")], grpc.StatusCode.OUT_OF_RANGE),
        ([(0, b"0123"), (0, b"0123")], grpc.StatusCode.OUT_OF_RANGE),
        ([(0, b"0123456789x")], grpc.StatusCode.INVALID_ARGUMENT),
        ([(0, b"0123")], grpc.StatusCode.OUT_OF_RANGE),
    ],
    ids=["gap", "reordered", "repeated", "too long", "too short"],
)
def test_chunks_that_do_not_follow_each_other_are_refused(
    asked: Asked, frames: list[tuple[int, bytes]], expected: grpc.StatusCode
) -> None:
    _, client, offer, _ = asked

    code = refused(client, header(offer, b"0123456789"), *(chunk(*frame) for frame in frames))

    assert code is expected


def test_an_upload_beyond_the_size_of_the_model_is_refused_before_a_byte_of_it(
    asked: Asked, tmp_path: Path
) -> None:
    _, client, offer, _ = asked
    limit = sum(ref.size for ref in offer.content.blobs) + UPLOAD_SLACK_BYTES

    code = refused(client, header(offer, b"x", size=limit + 1), chunk(0, b"x"))

    assert offer.upload_limit == limit
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert not list((tmp_path / "link" / "up").rglob("*.part"))


def test_many_small_uploads_together_are_bounded_too(asked: Asked) -> None:
    _, client, offer, _ = asked
    content = [os.urandom(400_000) for _ in range(4)]

    for each in content[:2]:
        client.upload(header(offer, each), chunk(0, each))

    assert refused(client, header(offer, content[2]), chunk(0, content[2])) is (
        grpc.StatusCode.INVALID_ARGUMENT
    )


def test_a_client_has_one_unfinished_upload_on_disk(asked: Asked, tmp_path: Path) -> None:
    _, client, offer, _ = asked

    for content in (b"first upload", b"second upload"):
        refused(client, header(offer, content), chunk(0, content[:3]))

    assert len(list((tmp_path / "link" / "up").rglob("*.part"))) == 1


@pytest.mark.parametrize(
    "frames",
    [
        [],
        [chunk(0, b"no header")],
        [pb.UploadFrame()],
        [pb.UploadFrame(header=pb.UploadHeader())],
        [pb.UploadFrame(header=pb.UploadHeader(task_id=b"../../../etc", sha256=b"/etc/passwd"))],
    ],
)
def test_uploads_of_garbage_are_refused(asked: Asked, frames: list[pb.UploadFrame]) -> None:
    _, client, _, _ = asked

    assert refused(client, *frames) in {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.FAILED_PRECONDITION,
    }


@pytest.mark.parametrize("sha256", [b"", b"../result", bytes(31), bytes(33)])
def test_a_name_that_is_no_hash_is_refused(asked: Asked, sha256: bytes) -> None:
    _, client, offer, _ = asked

    code = refused(client, header(offer, b"x", sha256=sha256), chunk(0, b"x"))

    assert code is grpc.StatusCode.INVALID_ARGUMENT
    query = pb.UploadQuery(task_id=offer.task_id, sha256=sha256)
    with pytest.raises(grpc.RpcError):
        client.stub.UploadOffset(query, metadata=client.metadata)


def test_an_update_that_is_no_blob_is_an_error_reply_and_ends_nothing(asked: Asked) -> None:
    server, client, offer, replies = asked
    garbage = os.urandom(1000)

    client.upload(header(offer, garbage), chunk(0, garbage))
    client.send(reply_with(offer, garbage))

    assert next(replies).error.reason == "unreadable"
    assert server.grid.get_node_ids()


@pytest.mark.parametrize(
    "content",
    [
        pb.Content(blobs=[pb.BlobRef(record="u", sha256=bytes(32), size=10)]),
        pb.Content(blobs=[pb.BlobRef(record="u", sha256=bytes(32), size=1 << 60)]),
        pb.Content(blobs=[pb.BlobRef(record="u", sha256=b"../result", size=1)]),
    ],
    ids=["never uploaded", "too large", "no hash"],
)
def test_a_reply_without_its_blobs_is_refused(asked: Asked, content: pb.Content) -> None:
    _, client, offer, replies = asked

    receipt = client.send(pb.Result(task_id=offer.task_id, content=content))

    assert not receipt.is_taken
    assert next(replies).error.reason == "transfer"


def test_a_reply_that_comes_twice_counts_once(asked: Asked) -> None:
    _, client, offer, replies = asked
    client.upload(header(offer, good()), chunk(0, good()))

    receipts = [client.send(reply_with(offer, good())) for _ in range(2)]
    other = pb.Result(task_id=offer.task_id, failure=pb.FAILURE_RAISED)
    client.send(other)

    assert [receipt.is_taken for receipt in receipts] == [True, True]
    assert [reply.has_error() for reply in replies] == [False]


def test_a_late_update_is_refused(tmp_path: Path) -> None:
    with serving(tmp_path, lost_seconds=WAIT) as server:
        client = RawClient(server.address, "a").attend()
        replies = server.grid.send_and_receive(asks(server.grid, weights()), timeout=0.2)
        offer = client.offer()
        assert list(replies) == []

        code = refused(client, header(offer, good()), chunk(0, good()))
        receipt = client.send(reply_with(offer, good()))

        assert code is grpc.StatusCode.FAILED_PRECONDITION
        assert not receipt.is_taken
        request = pb.DownloadRequest(sha256=offer.content.blobs[0].sha256)
        with pytest.raises(grpc.RpcError) as error:
            list(client.stub.Download(request, metadata=client.metadata))
        assert error.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        assert server.grid.view().refused["late"] >= 3
        client.close()


def test_one_site_cannot_touch_what_another_was_asked(asked: Asked) -> None:
    server, client, offer, replies = asked
    thief = RawClient(server.address, "thief").attend()

    code = refused(thief, header(offer, good(9.0)), chunk(0, good(9.0)))
    receipt = thief.send(pb.Result(task_id=offer.task_id, failure=pb.FAILURE_RAISED))
    request = pb.DownloadRequest(sha256=offer.content.blobs[0].sha256)
    with pytest.raises(grpc.RpcError) as error:
        list(thief.stub.Download(request, metadata=thief.metadata))
    client.upload(header(offer, good()), chunk(0, good()))
    client.send(reply_with(offer, good()))

    assert code is grpc.StatusCode.FAILED_PRECONDITION
    assert not receipt.is_taken
    assert error.value.code() is grpc.StatusCode.FAILED_PRECONDITION
    assert not next(replies).has_error()
    thief.close()


@pytest.mark.parametrize("session", ["", "0" * 32, "\N{BULLET}".encode().hex()])
def test_calls_without_a_stream_are_refused(asked: Asked, session: str) -> None:
    _, client, offer, _ = asked
    client.session = session

    assert refused(client, header(offer, good()), chunk(0, good())) is (
        grpc.StatusCode.UNAUTHENTICATED
    )


def test_a_replaced_agents_uploads_are_refused(asked: Asked) -> None:
    server, client, offer, _ = asked
    newer = Running(server.address, "a")

    while (frame := client.next()) is not None:
        last = frame

    assert last.farewell.reason == pb.REASON_REPLACED
    assert refused(client, header(offer, good()), chunk(0, good())) is (
        grpc.StatusCode.UNAUTHENTICATED
    )
    newer.stop()


def test_a_site_revoked_in_the_middle_of_an_upload_is_refused_at_the_next_chunk(
    tmp_path: Path,
) -> None:
    revoked: set[str] = set()
    with serving(tmp_path, site_allowed=lambda name, serial: name not in revoked) as server:
        client = RawClient(server.address, "a").attend()
        server.grid.push_messages(asks(server.grid, weights()))
        offer = client.offer()

        def frames() -> Iterator[pb.UploadFrame]:
            yield header(offer, good())
            yield chunk(0, good()[:5])
            revoked.add("a")
            until(lambda: not server.grid.view().sites)
            yield chunk(5, good()[5:])

        with pytest.raises(grpc.RpcError) as error:
            client.stub.Upload(frames(), metadata=client.metadata, timeout=WAIT)
        assert error.value.code() in {
            grpc.StatusCode.FAILED_PRECONDITION,
            grpc.StatusCode.UNAUTHENTICATED,
        }
        client.close()


@pytest.mark.parametrize("name", ["", " a", "a\nb", "x" * 201, "\x1b[2J"])
def test_names_that_would_not_fit_a_log_line_are_refused(tmp_path: Path, name: str) -> None:
    with serving(tmp_path) as server:
        client = RawClient(server.address, name).attend()

        assert client.first is not None
        assert client.first.farewell.reason == pb.REASON_NAME
        assert server.grid.get_node_ids() == []
        client.close()


def test_a_stream_that_does_not_begin_with_a_hello_is_ended(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        client = RawClient(server.address, "a")
        client.outgoing.get()
        client.outgoing.put(pb.ClientFrame(heartbeat=pb.Heartbeat()))

        client.attend()

        assert client.first is not None
        assert client.first.WhichOneof("frame") == "farewell"
        client.close()


def test_garbage_and_half_open_connections_disturb_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with federation(tmp_path, "a", "b") as (server, _):
        host, _, port = server.address.rpartition(":")
        half_open = [socket.create_connection((host, int(port))) for _ in range(20)]
        for each in half_open[:10]:
            each.sendall(os.urandom(4096))

        replies = replies_of(server.grid)

        assert [reply.has_error() for reply in replies] == [False, False]
        for each in half_open:
            each.close()
    assert [r for r in caplog.records if r.levelno >= logging.ERROR] == []


def test_bytes_that_are_no_protobuf_end_the_call_alone(tmp_path: Path) -> None:
    with federation(tmp_path, "a") as (server, _), grpc.insecure_channel(server.address) as channel:
        for method in ("Attend", "Upload"):
            call = channel.stream_stream(f"/discreet.link.v1.Federation/{method}")
            with pytest.raises(grpc.RpcError):
                list(call(iter([b"\xff" * 100]), timeout=WAIT))

        (reply,) = replies_of(server.grid)

        assert not reply.has_error()


def test_frames_beyond_the_limit_are_refused(asked: Asked) -> None:
    _, client, offer, _ = asked
    data = bytes(5 * CHUNK_BYTES)

    code = refused(client, header(offer, data, size=5), chunk(0, data))

    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_a_client_that_does_not_read_what_it_is_sent_is_not_listened_to(tmp_path: Path) -> None:
    with serving(tmp_path, lost_seconds=1.0) as server:
        client = RawClient(server.address, "flood")
        result = pb.Result(task_id=os.urandom(1000), failure=pb.FAILURE_RAISED)
        client.outgoing = itertools.repeat(pb.ClientFrame(result=result))  # type: ignore[assignment]
        hello = pb.ClientFrame(hello=pb.Hello(protocol_version=1, name="flood"))
        client.call = client.stub.Attend(itertools.chain([hello], client.outgoing))
        until(lambda: bool(server.grid.view().sites))
        (session,) = server.grid._desk.sessions()
        longest = 0

        while server.grid.view().sites:
            longest = max(longest, session.outgoing.qsize())
            time.sleep(0.01)

        assert longest < 200
        client.call.cancel()
        client.channel.close()


def test_a_full_disk_refuses_the_upload_and_the_site_tries_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from discreet.server import link_spool

    is_full = threading.Event()
    is_full.set()
    write = link_spool._write_all

    def write_if_room(file: object, buffer: bytes) -> None:
        if is_full.is_set():
            raise OSError(28, "No space left on device")
        write(file, buffer)  # type: ignore[arg-type]

    with federation(tmp_path, "a") as (server, _):
        arrays = weights()
        server.grid._desk.spool.offer(pack(arrays.items()))
        monkeypatch.setattr(link_spool, "_write_all", write_if_room)
        replies = server.grid.send_and_receive(asks(server.grid, arrays), timeout=WAIT)
        until(lambda: server.grid.view().refused.get("disk", 0) > 0)
        is_full.clear()

        (reply,) = replies

        assert not reply.has_error()


def test_a_flood_of_clients_that_come_and_go_leaves_nothing(tmp_path: Path) -> None:
    with serving(tmp_path) as server:
        clients = [RawClient(server.address, f"site-{i}").attend() for i in range(30)]
        for client in clients:
            client.close()

        until(lambda: not server.grid.view().sites)

        started = time.monotonic()
    assert time.monotonic() - started < 5

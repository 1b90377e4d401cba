"""A connection that breaks in the middle costs the chunk in flight, and nothing more."""

import hashlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "server"))

from link_parts import (
    WAIT,
    Authority,
    Proxy,
    Running,
    asks,
    echo_app,
    serving,
    until,
)

from discreet.client.link_worker import AgentEventKind
from discreet.client.transfer import DamagedBlobError, Download, Link
from discreet.common import link_pb2 as pb
from discreet.common.wire import encode_tensors, tensors_sha256

MB = 1 << 20


@pytest.mark.parametrize("way", ["up", "down"])
def test_a_connection_cut_in_the_middle_of_a_transfer_goes_on_where_it_broke(
    tmp_path: Path, way: str
) -> None:
    arrays = encode_tensors({"w": torch.randn(5 * MB)})  # 20 MB
    asked: list[str] = []
    app = echo_app(lambda message: asked.append(message.metadata.group_id))
    with serving(tmp_path, lost_seconds=WAIT) as server:
        proxy = Proxy(server.address, **{way: 12 * MB})
        client = Running(proxy.address, "a", app=app)
        assert server.grid.wait_for_sites(1, WAIT)

        (reply,) = server.grid.send_and_receive(asks(server.grid, arrays), timeout=WAIT)

        client.stop()
        proxy.close()

    assert proxy.num_cuts == 1
    assert len(client.told(AgentEventKind.CONNECTED)) == 2
    assert asked == ["1"]
    assert tensors_sha256(reply.content["update"]) == tensors_sha256(arrays)
    # Without resuming, the 12 MB before the cut would have been sent once more.
    assert proxy.passed[way] < 29 * MB


@pytest.mark.parametrize("is_tls", [False, True])
@pytest.mark.parametrize("way", ["up", "down"])
def test_bytes_that_change_on_the_way_are_sent_again(
    tmp_path: Path, way: str, is_tls: bool
) -> None:
    arrays = encode_tensors({"w": torch.randn(2 * MB)})  # 8 MB
    authority = Authority()
    options = {"bind": "localhost:0", "tls": authority.server()} if is_tls else {}
    with serving(tmp_path, lost_seconds=WAIT, **options) as server:
        proxy = Proxy(server.address, **{way: 3 * MB}, damages=True)
        address = proxy.address.replace("127.0.0.1", "localhost")
        client = Running(address, "a", tls=authority.site("a") if is_tls else None)
        assert server.grid.wait_for_sites(1, WAIT)

        (reply,) = server.grid.send_and_receive(asks(server.grid, arrays), timeout=WAIT)

        client.stop()
        proxy.close()

    assert proxy.num_cuts == 1
    assert tensors_sha256(reply.content["update"]) == tensors_sha256(arrays)


def test_a_connection_cut_again_and_again_is_worn_down(tmp_path: Path) -> None:
    arrays = encode_tensors({"w": torch.randn(2 * MB)})
    with serving(tmp_path, lost_seconds=WAIT) as server:
        proxy = Proxy(server.address)
        client = Running(proxy.address, "a")
        assert server.grid.wait_for_sites(1, WAIT)
        for number in range(4):
            replies = server.grid.send_and_receive(
                asks(server.grid, arrays, str(number)), timeout=WAIT
            )
            passed = proxy.passed["up"]
            until(lambda before=passed: proxy.passed["up"] > before + MB)
            proxy.cut()

            (reply,) = replies

            assert tensors_sha256(reply.content["update"]) == tensors_sha256(arrays)
            assert server.grid.wait_for_sites(1, WAIT)
        client.stop()
        proxy.close()


class FakeStub:
    """Gives these chunks, from any offset."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.offsets: list[int] = []

    def Download(self, request: pb.DownloadRequest, metadata: object) -> "FakeCall":  # noqa: N802
        self.offsets.append(request.offset)
        return FakeCall([self.content[i : i + 4] for i in range(request.offset, 20, 4)])


class FakeCall(list[bytes]):
    def __iter__(self) -> Iterator[pb.Chunk]:  # type: ignore[override]
        return (pb.Chunk(data=data) for data in list.__iter__(self))

    def cancel(self) -> None:
        pass


def link_to(content: bytes) -> tuple[Link, FakeStub]:
    import queue

    stub = FakeStub(content)
    return Link(stub, stub.Download, "session", 7, queue.SimpleQueue()), stub


def ref_of(content: bytes) -> pb.BlobRef:
    return pb.BlobRef(sha256=hashlib.sha256(content).digest(), size=len(content))


def test_a_damaged_download_is_thrown_away_whole() -> None:
    right = bytes(range(20))
    download = Download(ref_of(right))
    wrong, _ = link_to(b"x" + right[1:])

    with pytest.raises(DamagedBlobError):
        download.run(wrong, lambda: True)
    link, stub = link_to(right)
    file = download.run(link, lambda: True)

    assert stub.offsets == [0]
    assert file.read() == right


def test_a_download_longer_than_announced_is_refused_at_once() -> None:
    download = Download(ref_of(bytes(10)))
    link, _ = link_to(bytes(20))

    with pytest.raises(DamagedBlobError):
        download.run(link, lambda: True)

    assert download.received == 0


def test_a_download_that_is_whole_is_not_asked_for_again() -> None:
    right = bytes(range(20))
    download = Download(ref_of(right))
    link, stub = link_to(right)
    download.run(link, lambda: True)

    again = download.run(link, lambda: True)

    assert again.read() == right
    assert stub.offsets == [0]


def test_a_stop_in_the_middle_of_an_upload_keeps_what_came_for_the_next_time(
    tmp_path: Path,
) -> None:
    arrays = encode_tensors({"w": torch.randn(16 * MB)})  # 64 MB
    with serving(tmp_path, lost_seconds=WAIT) as server:
        proxy = Proxy(server.address)
        client = Running(proxy.address, "a")
        assert server.grid.wait_for_sites(1, WAIT)
        replies = server.grid.send_and_receive(asks(server.grid, arrays), timeout=WAIT)
        until(lambda: proxy.passed["up"] > 4 * MB)
        client.stop()
        (first,) = replies
        (part,) = (tmp_path / "link" / "up").rglob("*.part")
        num_kept = part.stat().st_size
        passed = proxy.passed["up"]
        again = Running(proxy.address, "a")
        assert server.grid.wait_for_sites(1, WAIT)

        (second,) = server.grid.send_and_receive(asks(server.grid, arrays), timeout=WAIT)

        again.stop()
        proxy.close()

    assert client.error is None
    assert first.error.reason == "left"
    assert 0 < num_kept < 64 * MB
    assert tensors_sha256(second.content["update"]) == tensors_sha256(arrays)
    assert proxy.passed["up"] - passed < 64 * MB - num_kept + MB

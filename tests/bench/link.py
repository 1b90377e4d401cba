"""The gRPC link on loopback, under mutual TLS, with clients in processes of their own.

Run as a child: `link.py rounds` prints the times of rounds and of uploads, `link.py memory N`
the memory of a server with N clients in MB, `link.py idle N` what N clients that do nothing cost
it (300 in the table; 1,000 and more by hand). Its own children are `site`, `crowd` and `raw`.

Memory is read from /proc: Linux alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from measure import Figure, compared, figure

if TYPE_CHECKING:
    import torch
    from flwr.app import ArrayRecord, Message

    from discreet.server.link import LinkServer
    from discreet.server.link_grid import LinkGrid

_TENSORS, _NUMBERS = 50, 500_000
_MODEL_BYTES = _TENSORS * _NUMBERS * 4
_MODEL_MB = _MODEL_BYTES / 1e6
_EMPTY_ROUNDS, _MODEL_ROUNDS, _UPLOADS, _MEMORY_ROUNDS = 100, 7, 7, 3
_NUM_IDLE, _SETTLE_SECONDS, _IDLE_SECONDS = 300, 5.0, 20.0
_HEARTBEAT_SECONDS = 10.0
_WAIT_SECONDS = 90.0
_GLANCE_SECONDS = 0.001
_PIECE_BYTES = 1_000_000


def figures() -> Iterator[Figure]:
    """Times of a round, upload rate, memory at 1 and 8 clients, cost of idle clients."""
    yield from _round_figures(_child("rounds"))
    for num in (1, 8):
        yield from _memory_figures(num, _child("memory", str(num)))
    idle = _child("idle", str(_NUM_IDLE))
    name = f"link.idle_{_NUM_IDLE}_clients"
    yield figure(f"{name}_memory", idle["kb"], unit="KB of the server a client", aim="none set")
    yield figure(f"{name}_cpu", idle["cpu"], unit="% of one core, server", aim="none set")


def _round_figures(measured: dict[str, list[float]]) -> Iterator[Figure]:
    yield figure(
        "link.empty_round", measured["empty"], unit="ms, 2 clients, 4 numbers", aim="at most 20 ms"
    )
    yield figure(
        "link.model_round",
        measured["model"],
        unit=f"s, 2 clients, {_MODEL_MB:.0f} MB both ways",
        aim="at most 1.5 s",
    )
    yield compared(
        "link.upload",
        measured["upload"],
        measured["raw"],
        unit="MB/s, with SHA-256 and disk",
        aim="at least half of a raw TLS socket",
    )


def _memory_figures(num: int, measured: dict[str, list[float]]) -> Iterator[Figure]:
    bound = 2.5 * _MODEL_MB + 200
    for kind, aim in (
        ("memory", f"at most {bound:.0f} MB, the same at 1 and at 8 clients"),
        ("memory_averaging", "the same at 1 and at 8; weights and sum come on top"),
        ("memory_before", "none: what the libraries take before the first message"),
    ):
        yield compared(
            f"link.{kind}_{num}_clients",
            measured[kind],
            [_MODEL_MB],
            unit="MB, peak of the server",
            aim=aim,
        )


def _child(*arguments: str) -> dict[str, list[float]]:
    output = subprocess.run(_command(*arguments), check=True, stdout=subprocess.PIPE).stdout
    result: dict[str, list[float]] = json.loads(output.splitlines()[-1])
    return result


def _command(*arguments: str) -> list[str]:
    return [sys.executable, __file__, *arguments]


def _names(num: int) -> list[str]:
    return [f"site-{i}" for i in range(num)]


@contextlib.contextmanager
def _serving(folder: Path, names: Sequence[str]) -> Iterator[LinkServer]:
    """A server as `discreet server` sets it up, and certificates for it and for the sites."""
    from discreet.client.enrol import write_request
    from discreet.common.tls import CA_CERTIFICATE, SITE_CERTIFICATE, load_server_tls
    from discreet.deploy.authority import Authority
    from discreet.server.link import LinkOptions, LinkServer

    authority = Authority.init(folder / "certs", ["localhost"])
    for name in names:
        request = write_request(folder / name, name).read_bytes()
        (folder / name / SITE_CERTIFICATE).write_bytes(authority.sign(request, name))
        (folder / name / CA_CERTIFICATE).write_bytes(authority.ca_pem)
    options = LinkOptions(
        bind="localhost:0",
        spool_dir=folder / "link",
        tls=load_server_tls(folder / "certs"),
        site_allowed=authority.site_allowed,
        heartbeat_seconds=_HEARTBEAT_SECONDS,
    )
    with LinkServer(options) as server:
        yield server


@contextlib.contextmanager
def _running(commands: Iterable[list[str]]) -> Iterator[None]:
    processes = [subprocess.Popen(command) for command in commands]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.wait()


@contextlib.contextmanager
def _federation(folder: Path, num_sites: int) -> Iterator[LinkGrid]:
    """A server here and an agent for each site in a process of its own."""
    names = _names(num_sites)
    with _serving(folder, names) as server:
        commands = [_command("site", server.address, str(folder / name)) for name in names]
        with _running(commands):
            assert server.grid.wait_for_sites(num_sites, _WAIT_SECONDS)
            yield server.grid


def _model() -> dict[str, torch.Tensor]:
    import torch

    return {f"layer{i}": torch.randn(_NUMBERS) for i in range(_TENSORS)}


def _next_weights(tensors: dict[str, torch.Tensor], round_number: int) -> ArrayRecord:
    """Weights as they change from round to round: the same twice are kept on disk once."""
    from discreet.common.wire import encode_tensors

    next(iter(tensors.values()))[0] = round_number
    return encode_tensors(tensors)


def _messages(arrays: ArrayRecord, nodes: Iterable[int], group: str) -> list[Message]:
    from flwr.app import ConfigRecord, Message, RecordDict

    task = ConfigRecord({"round": group})
    return [
        Message(RecordDict({"task": task, "weights": arrays}), node, "train", group_id=group)
        for node in nodes
    ]


def _replies(grid: LinkGrid, arrays: ArrayRecord, group: str) -> Iterator[Message]:
    nodes = grid.get_node_ids()
    num = 0
    for reply in grid.send_and_receive(_messages(arrays, nodes, group), timeout=_WAIT_SECONDS):
        assert not reply.has_error(), reply.error
        yield reply
        num += 1
        del reply  # Else it would live on while the grid makes the next one.
    assert num == len(nodes)


def _round_seconds(grid: LinkGrid, arrays: ArrayRecord, group: str) -> float:
    started = time.perf_counter()
    for reply in _replies(grid, arrays, group):
        del reply
    return time.perf_counter() - started


def _rounds(folder: Path) -> dict[str, list[float]]:
    import torch

    torch.set_num_threads(1)
    small, large = {"w": torch.zeros(4)}, _model()
    runs: dict[str, list[float]] = {"empty": [], "model": [], "upload": [], "raw": []}
    with _federation(folder, 2) as grid:
        # The first of each is left out.
        for i in range(_EMPTY_ROUNDS + 1):
            seconds = _round_seconds(grid, _next_weights(small, i), f"empty-{i}")
            runs["empty"].append(1e3 * seconds)
        for i in range(_MODEL_ROUNDS + 1):
            runs["model"].append(_round_seconds(grid, _next_weights(large, i), f"model-{i}"))
        for i in range(_UPLOADS + 1):
            runs["upload"].append(_upload_rate(grid, _next_weights(large, i), f"upload-{i}"))
            runs["raw"].append(_raw_rate(folder))
    return {name: values[1:] for name, values in runs.items()}


def _upload_rate(grid: LinkGrid, arrays: ArrayRecord, group: str) -> float:
    """MB/s of one client's upload, from its first bytes until its reply counts."""
    before = grid.view().bytes_in
    asked = _messages(arrays, grid.get_node_ids()[:1], group)
    replies = grid.send_and_receive(asked, timeout=_WAIT_SECONDS)
    while (first := grid.view().bytes_in) == before:
        time.sleep(_GLANCE_SECONDS)
    started = time.perf_counter()
    while any(site.state == "working" for site in grid.view().sites):
        time.sleep(_GLANCE_SECONDS)
    seconds = time.perf_counter() - started
    num_bytes = grid.view().bytes_in - first
    assert [reply.has_error() for reply in replies] == [False]
    return num_bytes / 1e6 / seconds


def _raw_rate(folder: Path) -> float:
    """MB/s that a plain TLS socket takes from a process, with the same certificates."""
    certs = folder / "certs"
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(certs / "ca.crt"))
    context.load_cert_chain(certs / "server.crt", certs / "server.key")
    context.verify_mode = ssl.CERT_REQUIRED
    buffer = bytearray(_PIECE_BYTES)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        with _running([_command("raw", str(port), str(folder / _names(1)[0]))]):
            plain, _ = listener.accept()
            with context.wrap_socket(plain, server_side=True) as connection:
                first = num = connection.recv_into(buffer)
                started = time.perf_counter()
                while num < _MODEL_BYTES:
                    got = connection.recv_into(buffer)
                    assert got > 0, "the sender has ended too early"
                    num += got
                return (num - first) / 1e6 / (time.perf_counter() - started)


def _send_raw(port: str, folder: Path) -> None:
    context = ssl.create_default_context(cafile=str(folder / "ca.crt"))
    context.load_cert_chain(folder / "site.crt", folder / "site.key")
    piece = bytes(_PIECE_BYTES)
    with (
        socket.create_connection(("127.0.0.1", int(port))) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as connection,
    ):
        for _ in range(_MODEL_BYTES // _PIECE_BYTES):
            connection.sendall(piece)
        # Ends when the reader does, who may have all only now.
        connection.recv(1)


def _memory(folder: Path, num_sites: int) -> dict[str, list[float]]:
    """Peaks with the record that is sent and one reply alone, then with weights and a sum."""
    import torch

    from discreet.common.update import ClippedUpdate
    from discreet.common.wire import decode_tensors, encode_tensors, num_bytes
    from discreet.server.aggregate import StreamingMean

    torch.set_num_threads(1)
    with _federation(folder, num_sites) as grid:
        before = _memory_mb("VmRSS")
        arrays = encode_tensors(_model())
        for i in range(_MEMORY_ROUNDS):
            _round_seconds(grid, arrays, f"memory-{i}")
        link = _memory_mb("VmHWM")
        weights = decode_tensors(arrays)
        for i in range(_MEMORY_ROUNDS):
            mean = StreamingMean(float(num_sites))
            for reply in _replies(grid, arrays, f"averaging-{i}"):
                num_bytes(reply.content)  # As the strategy counts what came.
                mean.add(
                    ClippedUpdate(decode_tensors(cast("ArrayRecord", reply.content["update"])))
                )
                del reply
            mean.result()
        assert len(weights) == len(arrays)  # They are held until here, as a run does.
        averaging = _memory_mb("VmHWM")
    return {"memory_before": [before], "memory": [link], "memory_averaging": [averaging]}


def _idle(folder: Path, num: int) -> dict[str, list[float]]:
    with _serving(folder, _names(num)) as server:
        before = _memory_mb("VmRSS")
        with _running([_command("crowd", server.address, str(folder), str(num))]):
            assert server.grid.wait_for_sites(num, _WAIT_SECONDS)
            time.sleep(_SETTLE_SECONDS)
            started, cpu = time.perf_counter(), time.process_time()
            time.sleep(_IDLE_SECONDS)
            share = (time.process_time() - cpu) / (time.perf_counter() - started)
            assert len(server.grid.get_node_ids()) == num
            grown = _memory_mb("VmRSS") - before
    return {"kb": [1e3 * grown / num], "cpu": [100 * share]}


def _memory_mb(key: str) -> float:
    """VmRSS, or VmHWM for the peak; the latter, unlike `getrusage`, begins anew at an exec."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise AssertionError(f"/proc/self/status has no {key}")


def _attend(address: str, folder: Path) -> None:
    """An agent that sends the weights back."""
    import torch
    from flwr.app import ConfigRecord, Context, Message, RecordDict
    from flwr.clientapp import ClientApp

    from discreet.client.link import Agent, AgentOptions
    from discreet.common.tls import load_client_tls

    torch.set_num_threads(1)
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        reply = ConfigRecord({"site": str(context.node_config["site"])})
        content = RecordDict({"reply": reply, "update": message.content["weights"]})
        return Message(content, reply_to=message)

    Agent(AgentOptions(address, folder.name, app, tls=load_client_tls(folder))).run()


async def _crowd(address: str, folder: Path, num: int) -> None:
    """Clients that say hello and then their heartbeat: one connection each, in one process."""
    async with asyncio.TaskGroup() as group:
        for i, name in enumerate(_names(num)):
            group.create_task(_idle_client(address, folder / name, i / num))


async def _idle_client(address: str, folder: Path, phase: float) -> None:
    import grpc
    import grpc.aio

    from discreet.common import link_pb2 as pb
    from discreet.common import link_pb2_grpc
    from discreet.common.link_content import PROTOCOL_VERSION
    from discreet.common.tls import load_client_tls

    tls = load_client_tls(folder)
    credentials = grpc.ssl_channel_credentials(tls.ca_pem, tls.key_pem, tls.cert_pem)
    # Those of an agent, in `discreet.client.link`.
    options = (
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.use_local_subchannel_pool", 1),
    )
    hello = pb.Hello(protocol_version=PROTOCOL_VERSION, name=folder.name, instance=b"idle")

    async def frames() -> AsyncIterator[pb.ClientFrame]:
        yield pb.ClientFrame(hello=hello)
        await asyncio.sleep(phase * _HEARTBEAT_SECONDS)
        while True:
            yield pb.ClientFrame(heartbeat=pb.Heartbeat())
            await asyncio.sleep(_HEARTBEAT_SECONDS)

    async with grpc.aio.secure_channel(address, credentials, options) as channel:
        async for _ in link_pb2_grpc.FederationStub(channel).Attend(frames()):
            pass


def _measure(kind: str, *numbers: str) -> dict[str, list[float]]:
    with tempfile.TemporaryDirectory() as name:
        if kind == "rounds":
            return _rounds(Path(name))
        measure = {"memory": _memory, "idle": _idle}[kind]
        return measure(Path(name), int(numbers[0]))


def main(kind: str, *rest: str) -> None:
    """Be one of the children named above."""
    if kind == "site":
        _attend(rest[0], Path(rest[1]))
    elif kind == "crowd":
        asyncio.run(_crowd(rest[0], Path(rest[1]), int(rest[2])))
    elif kind == "raw":
        _send_raw(rest[0], Path(rest[1]))
    else:
        print(json.dumps(_measure(kind, *rest)))


if __name__ == "__main__":
    main(*sys.argv[1:])

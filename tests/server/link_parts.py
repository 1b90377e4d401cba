"""Clients, certificates and a faulty network for the tests of the link."""

from __future__ import annotations

import contextlib
import datetime
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import torch
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from discreet.client.link import Agent, AgentEvent, AgentEventKind, AgentOptions
from discreet.common import link_pb2 as pb
from discreet.common import link_pb2_grpc
from discreet.common.link_content import PROTOCOL_VERSION, SESSION_KEY
from discreet.common.tls import ClientTls, ServerTls
from discreet.common.wire import TensorRecord, encode_tensors
from discreet.server.link import LinkOptions, LinkServer
from discreet.server.link_grid import LinkGrid

WAIT = 20.0
"""Longer than anything here takes, so that a test fails and does not hang."""


def echo_app(before: Callable[[Message], None] = lambda message: None) -> ClientApp:
    """Sends the weights back, and who it is."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        before(message)
        reply = ConfigRecord({"site": str(context.node_config["site"])})
        content = RecordDict({"reply": reply, "update": message.content["weights"]})
        return Message(content, reply_to=message)

    return app


class Running:
    """An agent in a thread.

    Attributes:
        events: What it told.
        error: What its `run` raised.
    """

    def __init__(
        self,
        address: str,
        name: str,
        *,
        app: ClientApp | None = None,
        tls: ClientTls | None = None,
    ) -> None:
        self.events: list[AgentEvent] = []
        self.error: BaseException | None = None
        self.agent = Agent(
            AgentOptions(
                address,
                name,
                app or echo_app(),
                tls=tls,
                on_event=self.events.append,
                first_pause_seconds=0.1,
                longest_pause_seconds=0.3,
            )
        )
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.agent.run()
        except BaseException as error:
            self.error = error

    def stop(self) -> None:
        self.agent.stop()
        self.thread.join(WAIT)
        assert not self.thread.is_alive()

    def ended(self) -> BaseException | None:
        """What `run` raised, once it has returned."""
        self.thread.join(WAIT)
        assert not self.thread.is_alive()
        return self.error

    def told(self, kind: AgentEventKind) -> list[str]:
        return [event.text for event in self.events if event.kind is kind]


@contextlib.contextmanager
def federation(
    folder: Path, *names: str, app: ClientApp | None = None, **options: object
) -> Iterator[tuple[LinkServer, dict[str, Running]]]:
    """A server, and agents that attend."""
    agents: dict[str, Running] = {}
    with serving(folder, **options) as server:
        try:
            for name in names:
                agents[name] = Running(server.address, name, app=app)
            assert server.grid.wait_for_sites(len(names), WAIT)
            yield server, agents
        finally:
            for running in agents.values():
                running.stop()


def serving(folder: Path, **options: object) -> LinkServer:
    settings = {"bind": "127.0.0.1:0", "heartbeat_seconds": 0.3, "lost_seconds": 2.0, **options}
    return LinkServer(LinkOptions(spool_dir=folder / "link", **settings))  # type: ignore[arg-type]


def weights(num: int = 4, value: float = 1.0) -> TensorRecord:
    return encode_tensors({"w": torch.full((num,), value), "b": torch.full((3,), -value)})


def asks(grid: LinkGrid, arrays: TensorRecord, group: str = "1") -> Iterator[Message]:
    task = ConfigRecord({"round": int(group)})
    for node in grid.get_node_ids():
        content = RecordDict({"task": task, "weights": arrays})
        yield grid.create_message(content, "train", node, group)


def replies_of(grid: LinkGrid, group: str = "1", timeout: float = WAIT) -> list[Message]:
    return list(grid.send_and_receive(asks(grid, weights(), group), timeout=timeout))


def until(is_true: Callable[[], bool], seconds: float = WAIT) -> None:
    end = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.01)


class RawClient:
    """A client without manners: speaks the protocol frame by frame.

    Attributes:
        received: Frames from the server, as they come; None is the end of the stream.
    """

    def __init__(self, address: str, name: str, *, version: int = PROTOCOL_VERSION) -> None:
        self.channel = grpc.insecure_channel(address, (("grpc.use_local_subchannel_pool", 1),))
        self.stub = link_pb2_grpc.FederationStub(self.channel)
        self.outgoing: queue.SimpleQueue[pb.ClientFrame | None] = queue.SimpleQueue()
        self.received: queue.SimpleQueue[pb.ServerFrame | None] = queue.SimpleQueue()
        self.session = ""
        hello = pb.Hello(protocol_version=version, name=name, instance=name.encode())
        self.outgoing.put(pb.ClientFrame(hello=hello))

    def attend(self) -> RawClient:
        """Open the stream and wait for the first frame."""
        self.call = self.stub.Attend(iter(self.outgoing.get, None))
        threading.Thread(target=self._read, daemon=True).start()
        frame = self.next()
        self.first = frame
        if frame is not None and frame.WhichOneof("frame") == "welcome":
            self.session = frame.welcome.session
        return self

    def _read(self) -> None:
        with contextlib.suppress(grpc.RpcError):
            for frame in self.call:
                self.received.put(frame)
        self.received.put(None)

    def next(self) -> pb.ServerFrame | None:
        return self.received.get(timeout=WAIT)

    def offer(self) -> pb.Offer:
        """The next task."""
        while (frame := self.next()) is not None:
            if frame.WhichOneof("frame") == "offer":
                return frame.offer
        raise AssertionError("the stream ended")

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        return ((SESSION_KEY, self.session),)

    def upload(self, *frames: pb.UploadFrame) -> pb.UploadReply:
        return self.stub.Upload(iter(frames), metadata=self.metadata, timeout=WAIT)

    def send(self, result: pb.Result) -> pb.Receipt:
        self.outgoing.put(pb.ClientFrame(result=result))
        while (frame := self.next()) is not None:
            if frame.WhichOneof("frame") == "receipt":
                return frame.receipt
        raise AssertionError("the stream ended")

    def close(self) -> None:
        self.outgoing.put(None)
        self.call.cancel()
        self.channel.close()


class Proxy:
    """A network that can be cut: passes bytes on, so many in each direction, then breaks.

    With `damages` it changes one byte there instead, and goes on.

    Attributes:
        address: What to dial.
        num_cuts: Connections that were cut so far.
    """

    def __init__(
        self,
        target: str,
        *,
        up: int | None = None,
        down: int | None = None,
        damages: bool = False,
    ) -> None:
        self._damages = damages
        self._target = target.rpartition(":")
        self._left = {"up": up, "down": down}
        self._sockets: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.num_cuts = 0
        self.passed = {"up": 0, "down": 0}
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Break every connection."""
        for each in self._sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        self._sockets.clear()

    def close(self) -> None:
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection((self._target[0], int(self._target[2])))
                self._sockets += [near, far]
                for way, a, b in (("up", near, far), ("down", far, near)):
                    threading.Thread(target=self._pass, args=(way, a, b), daemon=True).start()

    def _pass(self, way: str, source: socket.socket, sink: socket.socket) -> None:
        with contextlib.suppress(OSError), source, sink:
            while data := source.recv(1 << 16):
                self.passed[way] += len(data)
                left = self._left[way]
                if left is not None:
                    self._left[way] = left = left - len(data)
                    if left <= 0:
                        self._left[way] = None  # once
                        self.num_cuts += 1
                        if not self._damages:
                            self.cut()
                            return
                        data = data[:-1] + bytes([data[-1] ^ 0xFF])
                sink.sendall(data)


class Authority:
    """A certificate authority made for one test."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test authority")])
        self.certificate = self._sign(self._name, self._key.public_key(), is_authority=True)
        self.pem = self.certificate.public_bytes(serialization.Encoding.PEM)

    def server(self) -> ServerTls:
        return ServerTls(self.pem, *self._issue("server", "localhost"))

    def site(self, name: str, *, days: int = 1) -> ClientTls:
        return ClientTls(self.pem, *self._issue(name, None, days=days))

    def _issue(self, name: str, host: str | None, *, days: int = 1) -> tuple[bytes, bytes]:
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        signed = self._sign(subject, key.public_key(), host=host, days=days)
        private = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        return signed.public_bytes(serialization.Encoding.PEM), private

    def _sign(
        self,
        subject: x509.Name,
        key: ec.EllipticCurvePublicKey,
        *,
        host: str | None = None,
        is_authority: bool = False,
        days: int = 1,
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=3))
            .not_valid_after(now + datetime.timedelta(days=days))
            .add_extension(x509.BasicConstraints(is_authority, None), critical=True)
        )
        if host is not None:
            builder = builder.add_extension(
                x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False
            )
        return builder.sign(self._key, hashes.SHA256())

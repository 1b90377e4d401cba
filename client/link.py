"""The client's end of the link: an agent that dials out, attends, and comes back for ever.

One thread reads the stream (the one that calls `run`), one of gRPC's writes it and keeps up the
heartbeat, one works. A long training therefore never starves the heartbeat, and a broken
connection never touches a training.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import random
import secrets
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import grpc

from discreet.client.link_worker import AgentEvent, AgentEventKind, Worker
from discreet.client.transfer import Link, upload_call
from discreet.common import link_pb2 as pb
from discreet.common import link_pb2_grpc
from discreet.common.errors import ConfigError, DiscreetError, InputError
from discreet.common.link_content import (
    MAX_MESSAGE_BYTES,
    PROTOCOL_VERSION,
    is_loopback,
    version_text,
)
from discreet.common.tls import ClientTls

# isort: split
# After `link_content`, which turns Flower's telemetry off before Flower is imported.
from flwr.clientapp import ClientApp

_log = logging.getLogger(__name__)

_GOODBYE_SECONDS = 10.0
_HEARTBEAT_SECONDS = 10.0
_CHANNEL_OPTIONS = (
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # Routers with address translation forget a connection that is silent for a minute or so.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    # One connection for each agent, whoever else dials from this process.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
)


class ReplacedError(InputError):
    """Another agent attends with this identity."""


class NotAdmittedError(DiscreetError):
    """The server does not let this site in, or has cut it off."""

    exit_code = 3


def _ignore(event: AgentEvent) -> None:
    pass


@dataclass(frozen=True, slots=True)
class AgentOptions:
    """How a client takes part.

    Attributes:
        server: HOST:PORT to dial.
        name: The site; under TLS the name in its certificate.
        app: The Flower client app that answers tasks.
        tls: Mutual TLS; none dials this machine alone.
        on_event: Told what happens, from any thread.
        insecure: Dial without TLS beyond this machine.
        first_pause_seconds: Before the first attempt to come back; doubled with each.
        longest_pause_seconds: Between two attempts.
    """

    server: str
    name: str
    app: ClientApp
    tls: ClientTls | None = None
    on_event: Callable[[AgentEvent], None] = _ignore
    insecure: bool = False
    first_pause_seconds: float = 0.5
    longest_pause_seconds: float = 30.0


class Agent:
    """A client of a federation."""

    def __init__(self, options: AgentOptions) -> None:
        """Prepare to dial.

        Raises:
            ConfigError: If there is no TLS and the server is not on this machine.
        """
        if options.tls is None and not options.insecure and not is_loopback(options.server):
            raise ConfigError(
                f"server must be on this machine without TLS, got {options.server}: set certs "
                "in SITE.yaml, or give --insecure if the network is trusted"
            )
        self._options = options
        self._instance = secrets.token_bytes(16)
        self._worker = Worker(options.app, options.name, options.on_event)
        # Queues that a signal handler may use: unlike events, they cannot lock themselves.
        self._stops: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._pauses: queue.SimpleQueue[None] = queue.SimpleQueue()
        self._outgoing: queue.SimpleQueue[pb.ClientFrame | None] = queue.SimpleQueue()
        self._call: grpc.Call | None = None
        self._heartbeat_seconds = _HEARTBEAT_SECONDS
        self._is_stopping = False
        self._is_welcome = False

    def run(self) -> None:
        """Attend until `stop`; a lost server is dialled again for ever.

        Raises:
            ConfigError: If the server speaks another version, or this site's name is not its
                certificate's.
            NotAdmittedError: If the site is not allowed, or not any more.
            ReplacedError: If another agent with this identity has come.
        """
        if self._options.tls is None:
            self._tell(AgentEventKind.INSECURE, "the connection is not encrypted")
        self._worker.start()
        threading.Thread(target=self._close_in_time, name="closer", daemon=True).start()
        pause = self._options.first_pause_seconds
        try:
            while not self._is_stopping:
                self._is_welcome = False
                why = self._attend()
                if self._is_stopping:
                    break
                if self._is_welcome:
                    pause = self._options.first_pause_seconds
                self._tell(AgentEventKind.DISCONNECTED, why)
                # A random pause, so that a thousand clients do not come back as one.
                self._wait(random.uniform(0.5, 1.0) * pause)
                pause = min(2 * pause, self._options.longest_pause_seconds)
        finally:
            self._worker.stop()
            self._stops.put(None)
        self._tell(AgentEventKind.STOPPED)

    def stop(self) -> None:
        """Finish the chunk in flight, say goodbye, and let `run` return. Safe in a handler."""
        self._is_stopping = True
        self._stops.put(None)
        self._pauses.put(None)
        self._outgoing.put(None)

    def _attend(self) -> str:
        """One connection, from the hello to its end; why it ended, in public words."""
        outgoing: queue.SimpleQueue[pb.ClientFrame | None] = queue.SimpleQueue()
        self._outgoing = outgoing
        if self._is_stopping:
            return ""
        with _channel(self._options) as channel:
            stub = link_pb2_grpc.FederationStub(channel)  # type: ignore[no-untyped-call]
            self._call = call = stub.Attend(self._frames(outgoing))
            link: Link | None = None
            try:
                for frame in call:
                    if frame.WhichOneof("frame") == "welcome":
                        link = self._connect(frame.welcome, channel, outgoing)
                    elif frame.WhichOneof("frame") == "farewell":
                        return _bid(frame.farewell)
                    else:
                        self._handle(frame)
            except grpc.RpcError as error:
                return _explain(error)
            finally:
                outgoing.put(None)
                if link is not None:
                    self._worker.disconnect(link)
                call.cancel()
        return "the server has ended the stream"

    def _frames(
        self, outgoing: queue.SimpleQueue[pb.ClientFrame | None]
    ) -> Iterator[pb.ClientFrame]:
        """What the stream sends; gRPC asks for it in a thread of its own."""
        hello = pb.Hello(
            protocol_version=PROTOCOL_VERSION,
            name=self._options.name,
            program_version=_program_version(),
            instance=self._instance,
        )
        yield pb.ClientFrame(hello=hello)
        while True:
            try:
                frame = outgoing.get(timeout=self._heartbeat_seconds)
            except queue.Empty:
                frame = pb.ClientFrame(heartbeat=pb.Heartbeat())
            if frame is None:
                break
            yield frame
        if self._is_stopping and self._is_welcome:
            self._worker.stop()
            if self._worker.moving.acquire(timeout=_GOODBYE_SECONDS / 2):
                self._worker.moving.release()
            yield pb.ClientFrame(goodbye=pb.Goodbye())

    def _connect(
        self,
        welcome: pb.Welcome,
        channel: grpc.Channel,
        outgoing: queue.SimpleQueue[pb.ClientFrame | None],
    ) -> Link:
        if welcome.protocol_version != PROTOCOL_VERSION:
            raise ConfigError(version_text(welcome.protocol_version, of="server"))
        self._heartbeat_seconds = welcome.heartbeat_seconds
        # At once, because the first wait began before the server had said how long it may be.
        outgoing.put(pb.ClientFrame(heartbeat=pb.Heartbeat()))
        stub = link_pb2_grpc.FederationStub(channel)  # type: ignore[no-untyped-call]
        link = Link(stub, upload_call(channel), welcome.session, welcome.node_id, outgoing)
        self._is_welcome = True
        self._tell(AgentEventKind.CONNECTED, self._options.server)
        self._worker.connect(link)
        return link

    def _handle(self, frame: pb.ServerFrame) -> None:
        match frame.WhichOneof("frame"):
            case "offer":
                self._worker.offer(frame.offer)
            case "withdraw":
                self._worker.withdraw(frame.withdraw.task_id)
            case "receipt":
                self._worker.receipt(frame.receipt)

    def _close_in_time(self) -> None:
        """Cut the call off if a goodbye does not end it; a server may be hung."""
        self._stops.get()
        if self._is_welcome:
            with contextlib.suppress(queue.Empty):
                self._stops.get(timeout=_GOODBYE_SECONDS)
        if self._call is not None:
            self._call.cancel()

    def _wait(self, seconds: float) -> None:
        with contextlib.suppress(queue.Empty):
            self._pauses.get(timeout=seconds)

    def _tell(self, kind: AgentEventKind, text: str = "") -> None:
        _log.info("%s: %s %s", self._options.name, kind, text)
        self._options.on_event(AgentEvent(kind, text))


def _channel(options: AgentOptions) -> grpc.Channel:
    # A proxy that the environment names stands on the way out, never on this machine.
    use_proxy = int(not is_loopback(options.server))
    settings = (*_CHANNEL_OPTIONS, ("grpc.enable_http_proxy", use_proxy))
    if options.tls is None:
        return grpc.insecure_channel(options.server, settings)
    tls = options.tls
    credentials = grpc.ssl_channel_credentials(tls.ca_pem, tls.key_pem, tls.cert_pem)
    return grpc.secure_channel(options.server, credentials, settings)


def _bid(farewell: pb.Farewell) -> str:
    """Why the server ends the stream, if this agent may come back.

    Raises:
        DiscreetError: If it must not.
    """
    match farewell.reason:
        case pb.REASON_VERSION | pb.REASON_NAME:
            raise ConfigError(farewell.text)
        case pb.REASON_NOT_ALLOWED:
            raise NotAdmittedError(farewell.text)
        case pb.REASON_REPLACED:
            raise ReplacedError(farewell.text)
    return farewell.text


def _explain(error: grpc.RpcError) -> str:
    code = error.code()
    if code is grpc.StatusCode.UNIMPLEMENTED:
        raise ConfigError(
            "the server does not speak this protocol: check the address, and install the same "
            "version of discreet on both sides"
        ) from error
    return f"{code.name.lower()}: {error.details()}"


def _program_version() -> str:
    try:
        return version("discreet")
    except PackageNotFoundError:
        return "unknown"

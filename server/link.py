"""The server's end of the link: a gRPC server in a thread of its own, and a grid before it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from discreet.common import link_pb2 as pb
from discreet.common import link_pb2_grpc
from discreet.common.errors import ConfigError
from discreet.common.link_content import MAX_MESSAGE_BYTES, SERVICE, is_loopback
from discreet.common.tls import ServerTls
from discreet.server.link_desk import Desk, farewell_of
from discreet.server.link_grid import LinkGrid
from discreet.server.link_service import (
    EnrolmentService,
    FederationService,
    SignSite,
    SiteAllowed,
)
from discreet.server.link_spool import Spool

_log = logging.getLogger(__name__)

_STOP_SECONDS = 1.0
_CHANNEL_OPTIONS = (
    # Else two servers would share one port without a word.
    ("grpc.so_reuseport", 0),
    ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
    # Clients ping every 30 s, so that routers with address translation keep the way open.
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 20_000),
)


def _never() -> bool:
    return False


@dataclass(frozen=True, slots=True)
class LinkOptions:
    """How a server listens.

    Attributes:
        bind: HOST:PORT; port 0 takes a free one.
        spool_dir: Where uploads wait; a folder of the run.
        tls: Mutual TLS; none listens on this machine alone.
        site_allowed: Asked with a site's name and its certificate's serial number (0 without
            TLS): at the hello, at each call, and every second while a stream is open.
        enrol: Given a join token and a signing request, the certificate; none enrols nobody.
        enrol_bind: HOST:PORT of enrolment.
        insecure: Listen without TLS beyond this machine.
        ordered: Whether replies come in the order of the messages.
        heartbeat_seconds: How often clients give a sign of life.
        lost_seconds: After so long without one, or with a broken stream, a client is lost.
        should_stop: Asked while the grid waits; true ends the wait with KeyboardInterrupt.
    """

    bind: str
    spool_dir: Path
    tls: ServerTls | None = None
    site_allowed: SiteAllowed = lambda name, serial: True
    enrol: SignSite | None = None
    enrol_bind: str | None = None
    insecure: bool = False
    ordered: bool = True
    heartbeat_seconds: float = 10.0
    lost_seconds: float = 30.0
    should_stop: Callable[[], bool] = _never


class LinkServer:
    """A server that listens while the context is open.

    Attributes:
        grid: The Flower grid of the sites that attend.
        address: HOST:PORT that clients dial.
        enrol_address: HOST:PORT of enrolment, or none.
    """

    def __init__(self, options: LinkOptions) -> None:
        """Prepare to listen.

        Raises:
            ConfigError: If there is no TLS and the address is not of this machine alone.
        """
        if options.tls is None and not options.insecure and not is_loopback(options.bind):
            raise ConfigError(
                f"--bind must be an address of this machine alone without TLS, got {options.bind}: "
                "give --certs, or --insecure if the network is trusted"
            )
        if options.enrol is not None and (options.tls is None or options.enrol_bind is None):
            raise ConfigError("enrolment needs TLS and an address of its own")
        self._options = options
        self._desk = Desk(
            Spool(options.spool_dir),
            lost_seconds=options.lost_seconds,
            heartbeat_seconds=options.heartbeat_seconds,
        )
        self.grid = LinkGrid(self._desk, options.should_stop, ordered=options.ordered)
        self.address = options.bind
        self.enrol_address: str | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._is_ending: asyncio.Event | None = None
        self._error: BaseException | None = None
        self._is_up = threading.Event()
        self._thread = threading.Thread(target=self._run, name="link", daemon=True)

    def __enter__(self) -> Self:
        """Listen.

        Raises:
            ConfigError: If an address cannot be listened on.
        """
        self._thread.start()
        self._is_up.wait()
        if self._error is not None:
            self._thread.join()
            raise self._error
        _log.info("the server listens on %s", self.address)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Tell the clients, and stop."""
        if self._loop is not None and self._is_ending is not None:
            with contextlib.suppress(RuntimeError):  # the loop may have ended by itself
                self._loop.call_soon_threadsafe(self._is_ending.set)
        self._thread.join()

    def _run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:
            self._error = error
        finally:
            self._is_up.set()

    async def _serve(self) -> None:
        options = self._options
        self._loop, self._is_ending = asyncio.get_running_loop(), asyncio.Event()
        service = FederationService(
            self._desk, options.site_allowed, is_tls=options.tls is not None
        )
        servers = [await self._server(service)]
        self.address = _listen(servers[0], options.bind, _credentials(options.tls, mutual=True))
        if options.enrol is not None and options.enrol_bind is not None:
            servers.append(await self._server(EnrolmentService(options.enrol)))
            credentials = _credentials(options.tls, mutual=False)
            self.enrol_address = _listen(servers[1], options.enrol_bind, credentials)
        for server in servers:
            await server.start()
        watch = asyncio.create_task(service.watch())
        self._is_up.set()
        await self._is_ending.wait()
        watch.cancel()
        for session in self._desk.sessions():
            session.close(farewell_of(pb.REASON_CLOSING, "the server ends"))
        for server in servers:
            await server.stop(_STOP_SECONDS)

    async def _server(self, service: link_pb2_grpc.FederationServicer) -> grpc.aio.Server:
        server = grpc.aio.server(options=_CHANNEL_OPTIONS)
        add = link_pb2_grpc.add_FederationServicer_to_server
        add(service, server)  # type: ignore[no-untyped-call]
        if isinstance(service, FederationService):
            server.add_registered_method_handlers(SERVICE, service.quick_handlers())
        health_service = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(health_service, server)
        serving = health_pb2.HealthCheckResponse.SERVING
        for name in ("", SERVICE):
            await health_service.set(name, serving)
        names = (SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME)
        reflection.enable_server_reflection(names, server)
        return server


def _credentials(tls: ServerTls | None, *, mutual: bool) -> grpc.ServerCredentials | None:
    if tls is None:
        return None
    return grpc.ssl_server_credentials(
        [(tls.key_pem, tls.cert_pem)],
        root_certificates=tls.ca_pem if mutual else None,
        require_client_auth=mutual,
    )


def _listen(server: grpc.aio.Server, bind: str, credentials: grpc.ServerCredentials | None) -> str:
    try:
        if credentials is None:
            port = server.add_insecure_port(bind)
        else:
            port = server.add_secure_port(bind, credentials)
    except RuntimeError:
        port = 0
    if port == 0:
        raise ConfigError(
            f"--bind must be a free address of this machine, got {bind}: is a server running "
            "there already?"
        )
    return f"{bind.rpartition(':')[0]}:{port}"

"""A gRPC server on loopback that tells callers who they are, as the real one learns it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc

from discreet.client.enrol import accept, write_request
from discreet.common.certificates import make_request, read_certificate
from discreet.common.tls import ClientTls, ServerTls, peer_of
from discreet.deploy.authority import Authority

METHOD = "/test.Echo/Who"

Allowed = Callable[[str, int], bool]


@contextmanager
def echo_server(tls: ServerTls, allowed: Allowed) -> Iterator[int]:
    """Answers with the caller's name; refuses who is not allowed. Yields the port."""

    def who(request: bytes, context: grpc.ServicerContext) -> bytes:
        peer = peer_of(context.auth_context())
        if peer is None or not allowed(peer.name, peer.serial):
            context.abort(grpc.StatusCode.PERMISSION_DENIED, "revoked or unknown")
        return peer.name.encode()

    handler = grpc.method_handlers_generic_handler(
        "test.Echo", {"Who": grpc.unary_unary_rpc_method_handler(who)}
    )
    credentials = grpc.ssl_server_credentials(
        [(tls.key_pem, tls.cert_pem)], root_certificates=tls.ca_pem, require_client_auth=True
    )
    server = grpc.server(ThreadPoolExecutor(2), handlers=[handler])
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    try:
        yield port
    finally:
        server.stop(None).wait()


def ask(port: int, tls: ClientTls | None, *, ca_pem: bytes = b"", host: str = "127.0.0.1") -> str:
    """Who the server says that the caller is; without `tls`, no certificate is shown."""
    with channel(port, tls, ca_pem=ca_pem, host=host) as opened:
        return who(opened)


def channel(
    port: int, tls: ClientTls | None, *, ca_pem: bytes = b"", host: str = "127.0.0.1"
) -> grpc.Channel:
    if tls is None:
        credentials = grpc.ssl_channel_credentials(root_certificates=ca_pem)
    else:
        credentials = grpc.ssl_channel_credentials(
            root_certificates=ca_pem or tls.ca_pem,
            private_key=tls.key_pem,
            certificate_chain=tls.cert_pem,
        )
    return grpc.secure_channel(f"{host}:{port}", credentials)


def who(opened: grpc.Channel) -> str:
    answer = opened.unary_unary(METHOD)(b"", timeout=10)
    assert isinstance(answer, bytes)
    return answer.decode()


def join_by_hand(authority: Authority, folder: Path, name: str) -> Path:
    """A site's folder, by request, signature and answer."""
    request = write_request(folder, name).read_bytes()
    answer = folder.with_suffix(".answer")
    answer.write_bytes(authority.sign(request, name) + authority.ca_pem)
    accept(folder, answer, name=name)
    return folder


def unchecked_tls(authority: Authority, key: bytes, name: str) -> tuple[ClientTls, int]:
    """A site's side that no check of ours has seen: hostile or careless sites have none."""
    pem = authority.sign(make_request(key, name), name)
    return ClientTls(authority.ca_pem, pem, key), read_certificate(pem, "it").serial_number

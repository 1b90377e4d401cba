"""Mutual TLS: who may come in, and as whom."""

import socket
import ssl
from pathlib import Path

import grpc
import pytest
from link_parts import WAIT, Authority, Running, replies_of, serving, until

from discreet.client.link import NotAdmittedError
from discreet.client.link_worker import AgentEventKind
from discreet.common import link_pb2 as pb
from discreet.common import link_pb2_grpc
from discreet.common.errors import ConfigError, RefusalCode, RefusedError
from discreet.common.tls import ClientTls, peer_of
from discreet.server.link import LinkServer


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


def tls_server(folder: Path, authority: Authority, **options: object) -> LinkServer:
    return serving(folder, bind="localhost:0", tls=authority.server(), **options)


def test_a_round_crosses_mutual_tls_and_serials_are_asked_about(
    tmp_path: Path, authority: Authority
) -> None:
    seen: set[tuple[str, int]] = set()

    def allowed(name: str, serial: int) -> bool:
        seen.add((name, serial))
        return True

    tls = authority.site("a")
    with tls_server(tmp_path, authority, site_allowed=allowed) as server:
        client = Running(server.address, "a", tls=tls)
        assert server.grid.wait_for_sites(1, WAIT)

        (reply,) = replies_of(server.grid)
        client.stop()

    peer = peer_of({"x509_pem_cert": [tls.cert_pem]})
    assert peer is not None
    assert reply.content["reply"]["site"] == "a"
    assert seen == {("a", peer.serial)}


def test_a_name_that_is_not_the_certificates_is_refused(
    tmp_path: Path, authority: Authority
) -> None:
    with tls_server(tmp_path, authority) as server:
        error = Running(server.address, "b", tls=authority.site("a")).ended()

    assert isinstance(error, ConfigError)
    assert "must be the one in the certificate, got 'b'" in str(error)


@pytest.mark.parametrize("kind", ["none", "another authority's", "expired"])
def test_without_a_valid_certificate_nobody_comes_in(
    tmp_path: Path, authority: Authority, kind: str
) -> None:
    other = Authority().site("a")
    tls = {
        "none": None,
        "another authority's": ClientTls(authority.pem, other.cert_pem, other.key_pem),
        "expired": authority.site("a", days=-1),
    }[kind]
    with tls_server(tmp_path, authority) as server:
        client = Running(server.address, "a", tls=tls)

        until(lambda: len(client.told(AgentEventKind.DISCONNECTED)) >= 2)

        assert server.grid.get_node_ids() == []
        assert client.told(AgentEventKind.CONNECTED) == []
        client.stop()


def test_a_server_of_another_authority_is_not_spoken_to(
    tmp_path: Path, authority: Authority
) -> None:
    with tls_server(tmp_path, Authority()) as server:
        client = Running(server.address, "a", tls=authority.site("a"))

        until(lambda: len(client.told(AgentEventKind.DISCONNECTED)) >= 2)

        assert client.told(AgentEventKind.CONNECTED) == []
        client.stop()


def test_a_revoked_certificate_is_cut_off_and_a_renewed_one_is_let_in(
    tmp_path: Path, authority: Authority
) -> None:
    revoked: set[int] = set()
    old, new = authority.site("a"), authority.site("a")
    options = {"site_allowed": lambda name, serial: serial not in revoked}
    with tls_server(tmp_path, authority, **options) as server:
        client = Running(server.address, "a", tls=old)
        assert server.grid.wait_for_sites(1, WAIT)
        peer = peer_of({"x509_pem_cert": [old.cert_pem]})
        assert peer is not None
        revoked.add(peer.serial)

        error = client.ended()
        renewed = Running(server.address, "a", tls=new)

        assert isinstance(error, NotAdmittedError)
        assert server.grid.wait_for_sites(1, WAIT)
        renewed.stop()


def test_a_session_cannot_be_used_with_another_sites_certificate(
    tmp_path: Path, authority: Authority
) -> None:
    with tls_server(tmp_path, authority) as server:
        client = Running(server.address, "a", tls=authority.site("a"))
        assert server.grid.wait_for_sites(1, WAIT)
        (session,) = server.grid._desk.sessions()
        thief = authority.site("thief")
        credentials = grpc.ssl_channel_credentials(thief.ca_pem, thief.key_pem, thief.cert_pem)
        with grpc.secure_channel(server.address, credentials) as channel:
            stub = link_pb2_grpc.FederationStub(channel)
            metadata = (("discreet-session", session.token),)
            with pytest.raises(grpc.RpcError) as error:
                stub.UploadOffset(pb.UploadQuery(task_id=bytes(16)), metadata=metadata)
        client.stop()

    assert error.value.code() is grpc.StatusCode.UNAUTHENTICATED


def test_enrolment_needs_no_certificate_and_serves_nothing_else(
    tmp_path: Path, authority: Authority
) -> None:
    def enrol(token: str, request: bytes) -> bytes:
        if not token.startswith("good"):
            raise RefusedError(RefusalCode.POLICY, "the join token is not valid")
        return b"certificate for " + request

    good = pb.EnrolRequest(**{"token": "good", "signing_request": b"me"})
    guess = pb.EnrolRequest(**{"token": "guess"})
    with tls_server(tmp_path, authority, enrol=enrol, enrol_bind="localhost:0") as server:
        assert server.enrol_address is not None
        credentials = grpc.ssl_channel_credentials(authority.pem)
        with grpc.secure_channel(server.enrol_address, credentials) as channel:
            stub = link_pb2_grpc.FederationStub(channel)
            reply = stub.Enrol(good, timeout=WAIT)
            with pytest.raises(grpc.RpcError) as guessed:
                stub.Enrol(guess, timeout=WAIT)
            with pytest.raises(grpc.RpcError) as too_long:
                stub.Enrol(pb.EnrolRequest(signing_request=bytes(1 << 20)), timeout=WAIT)
            with pytest.raises(grpc.RpcError) as elsewhere:
                list(stub.Attend(iter([pb.ClientFrame()]), timeout=WAIT))

    assert reply.certificate == b"certificate for me"
    assert guessed.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert guessed.value.details() == "the join token is not valid"
    assert too_long.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert elsewhere.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_enrolment_without_tls_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="enrolment needs TLS"):
        serving(tmp_path, enrol=lambda token, request: b"", enrol_bind="127.0.0.1:0")


def test_a_plain_connection_to_the_tls_port_disturbs_nobody(
    tmp_path: Path, authority: Authority
) -> None:
    with tls_server(tmp_path, authority) as server:
        port = int(server.address.rpartition(":")[2])
        with socket.create_connection(("localhost", port)) as plain:
            plain.sendall(b"GET / HTTP/1.1\r\n\r\n")
        context = ssl.create_default_context(cadata=authority.pem.decode())
        with socket.create_connection(("localhost", port)) as half_open:
            client = Running(server.address, "a", tls=authority.site("a"))
            assert server.grid.wait_for_sites(1, WAIT)
            (reply,) = replies_of(server.grid)
            client.stop()
            half_open.close()

    assert context.verify_mode is ssl.CERT_REQUIRED
    assert not reply.has_error()

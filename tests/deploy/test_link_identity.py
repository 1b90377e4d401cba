"""Who gets through to the federation's own service, by the operator's certificates."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from queue import Queue

import grpc
import pytest
from tls_echo import channel, join_by_hand, unchecked_tls

from discreet.client.enrol import enrol
from discreet.common import link_pb2 as pb
from discreet.common import link_pb2_grpc
from discreet.common.certificates import make_key
from discreet.common.errors import RefusedError
from discreet.common.link_content import PROTOCOL_VERSION
from discreet.common.tls import ClientTls, load_client_tls, load_server_tls
from discreet.deploy.authority import Authority
from discreet.deploy.health import probe
from discreet.server.link import LinkOptions, LinkServer


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.init(tmp_path / "certs", ["localhost", "127.0.0.1"])


@pytest.fixture
def server(authority: Authority, tmp_path: Path) -> Iterator[LinkServer]:
    options = LinkOptions(
        bind="127.0.0.1:0",
        spool_dir=tmp_path / "link",
        tls=load_server_tls(tmp_path / "certs"),
        site_allowed=authority.site_allowed,
        enrol=authority.enrol,
        enrol_bind="127.0.0.1:0",
    )
    with LinkServer(options) as server:
        yield server


@pytest.fixture
def north(authority: Authority, tmp_path: Path) -> ClientTls:
    return load_client_tls(join_by_hand(authority, tmp_path / "north", "north"), "north")


class Caller:
    """A stream by hand, as a hostile client would open it."""

    def __init__(self, server: LinkServer, tls: ClientTls | None, ca_pem: bytes = b"") -> None:
        port = int(server.address.rpartition(":")[2])
        self._channel = channel(port, tls, ca_pem=ca_pem)
        self._frames: Queue[pb.ClientFrame | None] = Queue()
        stub = link_pb2_grpc.FederationStub(self._channel)
        self._answers = stub.Attend(iter(self._frames.get, None), timeout=20)

    def __enter__(self) -> Caller:
        return self

    def __exit__(self, *_: object) -> None:
        self._frames.put(None)
        self._channel.close()

    def hello(self, name: str) -> pb.ServerFrame:
        version = PROTOCOL_VERSION
        hello = pb.Hello(protocol_version=version, name=name, instance=b"1" * 16)
        self._frames.put(pb.ClientFrame(hello=hello))
        return self.next()

    def next(self) -> pb.ServerFrame:
        frame = next(self._answers)
        assert isinstance(frame, pb.ServerFrame)
        return frame


def reason(frame: pb.ServerFrame) -> int:
    assert frame.WhichOneof("frame") == "farewell"
    return frame.farewell.reason


def test_a_signed_site_is_welcome_under_its_own_name(server: LinkServer, north: ClientTls) -> None:
    with Caller(server, north) as caller:
        assert caller.hello("north").WhichOneof("frame") == "welcome"


def test_a_site_under_another_site_s_name_is_sent_away(
    server: LinkServer, north: ClientTls, authority: Authority, tmp_path: Path
) -> None:
    join_by_hand(authority, tmp_path / "south", "south")

    with Caller(server, north) as caller:
        assert reason(caller.hello("south")) == pb.REASON_NAME


def test_a_revoked_site_is_sent_away(
    server: LinkServer, north: ClientTls, authority: Authority
) -> None:
    authority.revoke("north")

    with Caller(server, north) as caller:
        assert reason(caller.hello("north")) == pb.REASON_NOT_ALLOWED


def test_a_site_is_cut_off_while_its_stream_is_open(
    server: LinkServer, north: ClientTls, authority: Authority
) -> None:
    with Caller(server, north) as caller:
        caller.hello("north")
        assert len(list(server.grid.get_node_ids())) == 1

        authority.revoke("north")
        begin = time.monotonic()

        assert reason(caller.next()) == pb.REASON_NOT_ALLOWED
        assert time.monotonic() - begin < 5
    assert list(server.grid.get_node_ids()) == []


@pytest.mark.parametrize("kind", ["none", "another authority's", "expired", "stolen"])
def test_who_has_no_good_certificate_never_gets_to_say_hello(
    kind: str, server: LinkServer, authority: Authority, north: ClientTls, tmp_path: Path
) -> None:
    tls: ClientTls | None = None
    if kind == "another authority's":
        other = Authority.init(tmp_path / "other", ["localhost"])
        tls, _ = unchecked_tls(other, make_key(), "north")
    elif kind == "expired":
        moment = datetime.now(UTC).replace(microsecond=0) - timedelta(days=366)
        tls, _ = unchecked_tls(Authority(tmp_path / "certs", lambda: moment), make_key(), "old")
    elif kind == "stolen":
        tls = ClientTls(north.ca_pem, north.cert_pem, make_key())

    with (
        Caller(server, tls, authority.ca_pem) as caller,
        pytest.raises((grpc.RpcError, StopIteration)),
    ):
        caller.hello("north")


def test_the_server_s_own_certificate_is_no_site(server: LinkServer, tmp_path: Path) -> None:
    tls = load_server_tls(tmp_path / "certs")

    with Caller(server, ClientTls(tls.ca_pem, tls.cert_pem, tls.key_pem)) as caller:
        assert reason(caller.hello("localhost")) == pb.REASON_NOT_ALLOWED


def test_a_token_enrols_once_at_the_real_port(
    server: LinkServer, authority: Authority, tmp_path: Path
) -> None:
    assert server.enrol_address is not None
    token = authority.token("north")

    enrol(tmp_path / "north", "north", server=server.enrol_address, token=token)

    with Caller(server, load_client_tls(tmp_path / "north", "north")) as caller:
        assert caller.hello("north").WhichOneof("frame") == "welcome"
    with pytest.raises(RefusedError, match="the join token was used"):
        enrol(tmp_path / "thief", "north", server=server.enrol_address, token=token)


def test_at_the_enrolment_port_nothing_else_is_to_be_had(
    server: LinkServer, authority: Authority
) -> None:
    assert server.enrol_address is not None
    credentials = grpc.ssl_channel_credentials(authority.ca_pem)
    hello = pb.ClientFrame(hello=pb.Hello(protocol_version=PROTOCOL_VERSION, name="north"))

    with grpc.secure_channel(server.enrol_address, credentials) as opened:
        stub = link_pb2_grpc.FederationStub(opened)
        with pytest.raises(grpc.RpcError) as error:
            next(stub.Attend(iter([hello]), timeout=10))

    assert error.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_a_real_server_is_healthy_to_itself_and_to_its_sites(
    server: LinkServer, north: ClientTls, tmp_path: Path
) -> None:
    probe(server.address, load_server_tls(tmp_path / "certs"))
    probe(server.address, north)

"""Who gets through a real TLS handshake and the check behind it, and who does not."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from tls_echo import ask, channel, echo_server, join_by_hand, unchecked_tls, who

from discreet.common.certificates import make_key, make_request
from discreet.common.tls import ClientTls, ServerTls, load_client_tls, load_server_tls
from discreet.deploy.authority import Authority

DENIED = grpc.StatusCode.PERMISSION_DENIED
NO_HANDSHAKE = grpc.StatusCode.UNAVAILABLE


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.init(tmp_path / "certs", ["localhost", "127.0.0.1"])


@pytest.fixture
def port(authority: Authority, tmp_path: Path) -> Iterator[int]:
    with echo_server(load_server_tls(tmp_path / "certs"), authority.site_allowed) as port:
        yield port


@pytest.fixture
def north(authority: Authority, tmp_path: Path) -> ClientTls:
    return load_client_tls(join_by_hand(authority, tmp_path / "north", "north"), "north")


def refusal(port: int, tls: ClientTls | None, *, ca_pem: bytes = b"") -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as error:
        ask(port, tls, ca_pem=ca_pem)
    assert isinstance(error.value, grpc.Call)
    return error.value.code()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_signed_site_gets_in_under_its_own_name(port: int, north: ClientTls, host: str) -> None:
    assert ask(port, north, host=host) == "north"


def test_a_name_beyond_ascii_arrives_as_it_is(
    port: int, authority: Authority, tmp_path: Path
) -> None:
    tls = load_client_tls(join_by_hand(authority, tmp_path / "site", "北京协和"))

    assert ask(port, tls) == "北京协和"


def test_no_certificate_is_no_handshake(port: int, authority: Authority) -> None:
    assert refusal(port, None, ca_pem=authority.ca_pem) is NO_HANDSHAKE


def test_plain_text_is_no_handshake(port: int) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as opened, pytest.raises(grpc.RpcError):
        who(opened)


def test_another_authority_s_site_is_no_handshake(
    port: int, authority: Authority, tmp_path: Path
) -> None:
    other = Authority.init(tmp_path / "other", ["localhost"])
    tls, _ = unchecked_tls(other, make_key(), "north")

    assert refusal(port, tls, ca_pem=authority.ca_pem) is NO_HANDSHAKE


def test_a_certificate_shown_without_its_key_is_no_handshake(port: int, north: ClientTls) -> None:
    stolen = ClientTls(north.ca_pem, north.cert_pem, make_key())

    with pytest.raises(grpc.RpcError):
        ask(port, stolen)


def test_an_expired_site_is_no_handshake(tmp_path: Path, authority: Authority, port: int) -> None:
    moment = datetime.now(UTC).replace(microsecond=0) - timedelta(days=366)
    past = Authority(tmp_path / "certs", lambda: moment)
    expired, _ = unchecked_tls(past, make_key(), "old")

    assert refusal(port, expired) is NO_HANDSHAKE


@pytest.mark.parametrize("hours", [23, -23])
def test_a_site_signed_by_a_clock_that_is_off_by_almost_a_day_gets_in(
    hours: int, tmp_path: Path, authority: Authority, port: int
) -> None:
    moment = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=hours)
    off = Authority(tmp_path / "certs", lambda: moment)
    tls, _ = unchecked_tls(off, make_key(), "far")

    assert ask(port, tls) == "far"


def test_a_revoked_site_is_refused_at_once_on_an_open_connection(
    port: int, authority: Authority, north: ClientTls, tmp_path: Path
) -> None:
    south = load_client_tls(join_by_hand(authority, tmp_path / "south", "south"))
    with channel(port, north) as opened:
        assert who(opened) == "north"

        authority.revoke("north")

        with pytest.raises(grpc.RpcError) as error:
            who(opened)
    assert error.value.code() is DENIED
    assert refusal(port, north) is DENIED
    assert ask(port, south) == "south"


def test_a_renewed_site_gets_in_and_its_revoked_certificate_does_not(
    port: int, authority: Authority, north: ClientTls
) -> None:
    authority.revoke("north")

    renewed, _ = unchecked_tls(authority, make_key(), "north")

    assert ask(port, renewed) == "north"
    assert refusal(port, north) is DENIED


def test_a_certificate_that_is_not_in_the_register_is_refused(
    port: int, authority: Authority, tmp_path: Path
) -> None:
    # As if the authority's key had been used elsewhere, or an old backup been restored.
    register = tmp_path / "certs" / "register.json"
    before = register.read_bytes()
    unknown, _ = unchecked_tls(authority, make_key(), "north")
    register.write_bytes(before)

    assert refusal(port, unknown) is DENIED


def test_without_a_register_nobody_gets_in(port: int, north: ClientTls, tmp_path: Path) -> None:
    assert ask(port, north) == "north"

    (tmp_path / "certs" / "register.json").unlink()

    assert refusal(port, north) is DENIED


def test_a_site_cannot_pass_for_the_server(
    authority: Authority, north: ClientTls, tmp_path: Path
) -> None:
    # Its certificate could name any host: it is its kind that a client refuses.
    key = make_key()
    posing = authority.sign(make_request(key, "localhost"), "localhost")
    tls = ServerTls(authority.ca_pem, posing, key)

    with echo_server(tls, authority.site_allowed) as port:
        assert refusal(port, north) is NO_HANDSHAKE


def test_the_server_s_certificate_is_no_site(port: int, tmp_path: Path) -> None:
    tls = load_server_tls(tmp_path / "certs")

    assert refusal(port, ClientTls(tls.ca_pem, tls.cert_pem, tls.key_pem)) is DENIED


def test_a_server_under_a_name_that_it_has_no_certificate_for_is_refused(
    authority: Authority, north: ClientTls, tmp_path: Path
) -> None:
    authority.renew_server(["elsewhere.example.org"])

    with echo_server(load_server_tls(tmp_path / "certs"), authority.site_allowed) as port:
        assert refusal(port, north) is NO_HANDSHAKE


def test_another_authority_s_server_is_refused(north: ClientTls, tmp_path: Path) -> None:
    other = Authority.init(tmp_path / "other", ["localhost", "127.0.0.1"])

    with echo_server(load_server_tls(tmp_path / "other"), other.site_allowed) as port:
        assert refusal(port, north) is NO_HANDSHAKE

"""How a site gets its certificate: by a join token over TLS, or by a request carried by hand."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import pytest

from discreet.client.enrol import accept, enrol, request_fingerprint, write_request
from discreet.common import link_pb2, link_pb2_grpc
from discreet.common.certificates import make_key, make_request
from discreet.common.errors import DataError, DiscreetError, RefusedError, UnreachableError
from discreet.common.tls import load_client_tls, load_server_tls
from discreet.deploy.authority import Authority

Enrol = Callable[[str, bytes], bytes]


class Service(link_pb2_grpc.FederationServicer):
    """Enrols as the server does, and keeps what it was sent."""

    def __init__(self, enrol: Enrol) -> None:
        self.enrol = enrol
        self.received: list[bytes] = []

    def Enrol(  # noqa: N802
        self, request: link_pb2.EnrolRequest, context: grpc.ServicerContext
    ) -> link_pb2.EnrolReply:
        self.received.append(request.SerializeToString())
        try:
            certificate = self.enrol(request.token, request.signing_request)
        except DiscreetError as error:
            context.abort(grpc.StatusCode.PERMISSION_DENIED, str(error))
        return link_pb2.EnrolReply(certificate=certificate)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.init(tmp_path / "certs", ["localhost", "127.0.0.1"])


@pytest.fixture
def service(authority: Authority) -> Service:
    return Service(authority.enrol)


@pytest.fixture
def address(service: Service, tmp_path: Path, authority: Authority) -> Iterator[str]:
    tls = load_server_tls(tmp_path / "certs")
    server = grpc.server(ThreadPoolExecutor(2))
    link_pb2_grpc.add_FederationServicer_to_server(service, server)
    credentials = grpc.ssl_server_credentials([(tls.key_pem, tls.cert_pem)])
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


@pytest.fixture
def site_dir(tmp_path: Path) -> Path:
    return tmp_path / "north"


def test_a_site_with_a_token_gets_all_that_it_needs(
    address: str, authority: Authority, site_dir: Path
) -> None:
    enrol(site_dir, "north", server=address, token=authority.token("north") + "\n")

    tls = load_client_tls(site_dir, "north")
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in site_dir.iterdir()}
    assert tls.name == "north"
    assert modes == {"ca.crt": 0o600, "site.crt": 0o600, "site.key": 0o600}
    assert stat.S_IMODE(site_dir.stat().st_mode) == 0o700


def test_the_private_key_never_leaves_the_folder(
    address: str, service: Service, authority: Authority, site_dir: Path, tmp_path: Path
) -> None:
    enrol(site_dir, "north", server=address, token=authority.token("north"))

    pem = (site_dir / "site.key").read_bytes()
    body = b"".join(pem.splitlines()[1:-1])
    seen = b"".join(service.received)
    assert b"PRIVATE" not in seen
    assert body[:40] not in seen
    for path in (tmp_path / "certs").rglob("*"):
        assert path.is_dir() or pem not in path.read_bytes()


def test_a_server_of_another_authority_is_never_told_the_secret(
    address: str, service: Service, tmp_path: Path, site_dir: Path
) -> None:
    other = Authority.init(tmp_path / "other", ["localhost", "127.0.0.1"])

    with pytest.raises(UnreachableError, match="no server of this federation answers"):
        enrol(site_dir, "north", server=address, token=other.token("north"))

    assert service.received == []


def test_nobody_there_is_unreachable(authority: Authority, site_dir: Path) -> None:
    with pytest.raises(UnreachableError, match=r"127\.0\.0\.1:1:") as error:
        enrol(site_dir, "north", server="127.0.0.1:1", token=authority.token("north"))

    assert error.value.exit_code == 4


def test_a_refusal_says_what_the_server_said(
    address: str, authority: Authority, site_dir: Path, tmp_path: Path
) -> None:
    token = authority.token("north")
    enrol(site_dir, "north", server=address, token=token)

    with pytest.raises(RefusedError, match="refuses: the join token was used") as error:
        enrol(tmp_path / "thief", "north", server=address, token=token)

    assert error.value.exit_code == 3
    assert not (tmp_path / "thief" / "site.crt").exists()


def test_a_token_for_another_site_is_refused(
    address: str, authority: Authority, site_dir: Path
) -> None:
    with pytest.raises(RefusedError, match="must be for the site 'south', is for 'north'"):
        enrol(site_dir, "north", server=address, token=authority.token("south"))


def test_an_enrolment_that_broke_off_is_tried_again_with_the_same_token(
    address: str, authority: Authority, site_dir: Path
) -> None:
    token = authority.token("north")
    first = enrol(site_dir, "north", server=address, token=token).read_bytes()
    (site_dir / "site.crt").unlink()

    assert enrol(site_dir, "north", server=address, token=token).read_bytes() == first


@pytest.mark.parametrize("answer", [b"", b"garbage", b"\x00" * 1000])
def test_an_answer_that_is_no_certificate_is_not_kept(
    answer: bytes, address: str, service: Service, authority: Authority, site_dir: Path
) -> None:
    service.enrol = lambda token, request: answer

    with pytest.raises(DataError, match="must be a certificate"):
        enrol(site_dir, "north", server=address, token=authority.token("north"))

    assert not (site_dir / "site.crt").exists()


def test_an_answer_for_another_key_or_name_is_not_kept(
    address: str, service: Service, authority: Authority, site_dir: Path
) -> None:
    token = authority.token("north")
    service.enrol = lambda _, request: authority.sign(make_request(make_key(), "a"), "a")
    with pytest.raises(DataError, match="must be for the key in"):
        enrol(site_dir, "north", server=address, token=token)

    key = (site_dir / "site.key").read_bytes()
    service.enrol = lambda _, request: authority.sign(make_request(key, "b"), "b")
    with pytest.raises(DataError, match="must be for the site 'north', is for 'b'"):
        enrol(site_dir, "north", server=address, token=token)

    assert not (site_dir / "site.crt").exists()


def test_an_answer_of_another_authority_is_not_kept(
    address: str, service: Service, authority: Authority, site_dir: Path, tmp_path: Path
) -> None:
    other = Authority.init(tmp_path / "other", ["localhost"])
    service.enrol = lambda _, request: other.sign(request, "north")

    with pytest.raises(DataError, match="must be signed by the authority"):
        enrol(site_dir, "north", server=address, token=authority.token("north"))


def test_the_server_s_words_are_shown_on_one_line(
    address: str, service: Service, authority: Authority, site_dir: Path
) -> None:
    def refuse(token: str, request: bytes) -> bytes:
        raise DataError("a\nb\x1b[2J" + "x" * 1000)

    service.enrol = refuse

    with pytest.raises(RefusedError) as error:
        enrol(site_dir, "north", server=address, token=authority.token("north"))

    assert str(error.value).isprintable()
    assert len(str(error.value)) < 400


def test_a_certificate_is_renewed_with_the_same_key_or_a_new_one(
    address: str, authority: Authority, site_dir: Path
) -> None:
    first = enrol(site_dir, "north", server=address, token=authority.token("north")).read_bytes()

    for is_new_key in (False, True):
        if is_new_key:
            (site_dir / "site.key").unlink()
        token = authority.token("north", renew=True)
        renewed = enrol(site_dir, "north", server=address, token=token).read_bytes()

        assert renewed != first
        assert load_client_tls(site_dir, "north").cert_pem == renewed


def test_a_folder_of_another_federation_is_left_alone(
    address: str, authority: Authority, site_dir: Path, tmp_path: Path
) -> None:
    enrol(site_dir, "north", server=address, token=authority.token("north"))
    other = Authority.init(tmp_path / "other", ["localhost"])
    before = {p.name: p.read_bytes() for p in site_dir.iterdir()}

    with pytest.raises(DataError, match="authority of another federation: use another folder"):
        enrol(site_dir, "north", server=address, token=other.token("north"))

    assert {p.name: p.read_bytes() for p in site_dir.iterdir()} == before


def test_a_request_goes_by_hand_and_the_answer_comes_back(
    authority: Authority, site_dir: Path, tmp_path: Path
) -> None:
    request = write_request(site_dir, "north")
    answer = tmp_path / "north.crt"
    answer.write_bytes(authority.sign(request.read_bytes(), "north") + authority.ca_pem)

    path = accept(site_dir, answer, name="north")

    assert path == site_dir / "site.crt"
    assert load_client_tls(site_dir, "north").ca_pem == authority.ca_pem
    assert [e.key for e in authority.certificates()][-1] == request_fingerprint(request)


def test_a_site_keeps_its_key_from_request_to_request(site_dir: Path) -> None:
    first = request_fingerprint(write_request(site_dir, "north"))

    assert request_fingerprint(write_request(site_dir, "north")) == first


@pytest.mark.parametrize("content", [b"", b"garbage"])
def test_an_answer_by_hand_must_be_whole(content: bytes, site_dir: Path, tmp_path: Path) -> None:
    write_request(site_dir, "north")
    (tmp_path / "answer").write_bytes(content)

    with pytest.raises(DataError, match=r"must hold the two certificates .*, holds 0"):
        accept(site_dir, tmp_path / "answer", name="north")


def test_an_answer_without_the_authority_is_not_whole(
    authority: Authority, site_dir: Path, tmp_path: Path
) -> None:
    request = write_request(site_dir, "north")
    (tmp_path / "answer").write_bytes(authority.sign(request.read_bytes(), "north"))

    with pytest.raises(DataError, match="holds 1"):
        accept(site_dir, tmp_path / "answer", name="north")


def test_a_key_that_others_may_read_is_not_used(site_dir: Path) -> None:
    write_request(site_dir, "north")
    (site_dir / "site.key").chmod(0o644)

    with pytest.raises(DataError, match="chmod 600"):
        write_request(site_dir, "north")


def test_a_folder_of_other_files_that_is_open_to_others_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    tmp_path.chmod(0o755)

    with pytest.raises(DataError, match="chmod 700"):
        write_request(tmp_path, "north")

    assert not (tmp_path / "site.key").exists()


@pytest.mark.parametrize("name", ["", "a\nb", "x" * 65])
def test_a_name_that_cannot_be_signed_makes_no_key(name: str, site_dir: Path) -> None:
    with pytest.raises(DataError, match="site name: must be"):
        write_request(site_dir, name)

    assert not site_dir.exists()

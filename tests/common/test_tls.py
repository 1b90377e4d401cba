"""Reading keys and certificates from a folder."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from discreet.client.enrol import accept, write_request
from discreet.common.certificates import make_key, read_certificate
from discreet.common.errors import DataError
from discreet.common.tls import (
    Peer,
    check_key_folder,
    load_client_tls,
    load_server_tls,
    peer_of,
    read_private_key,
    read_public,
)
from discreet.deploy.authority import Authority


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority.init(tmp_path / "certs", ["localhost"])


@pytest.fixture
def site_dir(tmp_path: Path, authority: Authority) -> Path:
    return make_site(authority, tmp_path / "north", "north")


def make_site(authority: Authority, folder: Path, name: str) -> Path:
    request = write_request(folder, name).read_bytes()
    answer = folder.with_suffix(".answer")
    answer.write_bytes(authority.sign(request, name) + authority.ca_pem)
    accept(folder, answer, name=name)
    return folder


def test_a_site_s_folder_loads(site_dir: Path) -> None:
    tls = load_client_tls(site_dir, "north")

    assert tls.name == "north"
    assert tls.key_pem == (site_dir / "site.key").read_bytes()


def test_a_private_key_is_in_no_repr(site_dir: Path, tmp_path: Path) -> None:
    assert "PRIVATE" not in repr(load_client_tls(site_dir))
    assert "PRIVATE" not in repr(load_server_tls(tmp_path / "certs"))


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o644, 0o620, 0o601, 0o777])
def test_a_key_that_is_not_its_owner_s_alone_is_refused(mode: int, site_dir: Path) -> None:
    key = site_dir / "site.key"
    key.chmod(mode)

    with pytest.raises(DataError) as error:
        load_client_tls(site_dir)

    assert f"is mode {mode:04o}: run `chmod 600 {key}`" in str(error.value)


@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_a_key_of_its_owner_alone_is_read(mode: int, tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(b"key")
    path.chmod(mode)

    assert read_private_key(path) == b"key"


def test_the_mode_that_counts_is_that_of_the_file_behind_a_link(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_bytes(b"key")
    path.chmod(0o644)
    (tmp_path / "link").symlink_to(path)

    with pytest.raises(DataError, match="chmod 600"):
        read_private_key(tmp_path / "link")


@pytest.mark.parametrize("missing", ["ca.crt", "site.crt", "site.key"])
def test_a_missing_file_says_how_to_get_it(missing: str, site_dir: Path) -> None:
    (site_dir / missing).unlink()

    with pytest.raises(DataError, match=f"{missing}: no such file.*discreet certs request"):
        load_client_tls(site_dir)


def test_a_folder_in_place_of_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        read_private_key(tmp_path)
    with pytest.raises(DataError, match="cannot be read"):
        read_public(tmp_path)


def test_a_huge_file_is_refused_and_not_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "big"
    with path.open("wb") as file:
        file.truncate(1 << 34)

    with pytest.raises(DataError, match="must be PEM of a few KiB"):
        read_public(path)


def test_a_certificate_of_another_key_is_refused(site_dir: Path) -> None:
    (site_dir / "site.key").write_bytes(make_key())

    with pytest.raises(DataError, match=r"site\.crt: must be for the key in .*site\.key"):
        load_client_tls(site_dir)


def test_a_certificate_of_another_authority_is_refused(site_dir: Path, tmp_path: Path) -> None:
    other = Authority.init(tmp_path / "other", ["localhost"])
    (site_dir / "ca.crt").write_bytes(other.ca_pem)

    with pytest.raises(DataError, match=r"must be signed by the authority in ca\.crt"):
        load_client_tls(site_dir)


def test_a_certificate_for_another_site_is_refused(site_dir: Path) -> None:
    with pytest.raises(DataError, match=r"for the site 'south', is for 'north'.*SITE\.yaml"):
        load_client_tls(site_dir, "south")


def test_an_expired_certificate_says_when_and_what_to_do(tmp_path: Path) -> None:
    long_ago = datetime.now(UTC) - timedelta(days=400)
    Authority.init(tmp_path / "old", ["localhost"], clock=lambda: long_ago)

    with pytest.raises(DataError, match=r"server\.crt: expired on .*renew it"):
        load_server_tls(tmp_path / "old")


@pytest.mark.parametrize("hours", [23, -23])
def test_a_clock_that_is_off_by_almost_a_day_does_not_matter(hours: int, tmp_path: Path) -> None:
    moment = datetime.now(UTC) + timedelta(hours=hours)
    Authority.init(tmp_path / "certs", ["localhost"], clock=lambda: moment)

    assert load_server_tls(tmp_path / "certs").cert_pem


def test_a_clock_that_is_off_by_more_is_named_as_the_cause(tmp_path: Path) -> None:
    moment = datetime.now(UTC) + timedelta(days=3)
    Authority.init(tmp_path / "certs", ["localhost"], clock=lambda: moment)

    with pytest.raises(DataError, match="set its clock"):
        load_server_tls(tmp_path / "certs")


def test_a_peer_is_the_name_and_the_number_of_its_certificate(site_dir: Path) -> None:
    pem = (site_dir / "site.crt").read_bytes()

    peer = peer_of({"x509_pem_cert": [pem]})

    serial = read_certificate(pem, "site.crt").serial_number
    assert peer == Peer("north", serial)


@pytest.mark.parametrize("context", [{}, {"x509_pem_cert": []}, {"x509_pem_cert": [b"garbage"]}])
def test_without_a_certificate_there_is_no_peer(context: dict[str, list[bytes]]) -> None:
    assert peer_of(context) is None


def test_a_folder_that_is_new_empty_or_closed_may_hold_keys(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    (closed / "file").write_text("")

    check_key_folder(tmp_path / "new")
    check_key_folder(closed)


def test_a_file_in_place_of_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "file").chmod(0o644)

    with pytest.raises(DataError, match="must be a folder of this user"):
        check_key_folder(tmp_path / "file")

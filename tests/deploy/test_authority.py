"""The operator's authority: what it signs, for whom, and what revoking does."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from discreet.common.certificates import make_key, make_request, read_certificate
from discreet.common.errors import DataError
from discreet.common.tls import load_server_tls
from discreet.deploy.authority import Authority

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)


class Clock:
    """Stands at one moment until it is moved."""

    def __init__(self, now: datetime = NOW) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def authority(tmp_path: Path, clock: Clock) -> Authority:
    return Authority.init(tmp_path / "certs", ["localhost", "127.0.0.1"], clock=clock)


def request_for(name: str, key: bytes | None = None) -> bytes:
    return make_request(key or make_key(), name)


def signed(authority: Authority, name: str, key: bytes | None = None) -> x509.Certificate:
    return read_certificate(authority.sign(request_for(name, key), name), "signed")


def test_every_file_is_for_its_owner_alone(authority: Authority, tmp_path: Path) -> None:
    authority.sign(request_for("north"), "north")
    authority.token("south")

    folder = tmp_path / "certs"
    paths = [folder, *folder.rglob("*")]

    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in paths}
    assert {n for n, mode in modes.items() if mode not in {0o600, 0o700}} == set()
    assert modes["ca.key"] == modes["server.key"] == modes["register.json"] == 0o600
    assert modes["certs"] == 0o700


def test_what_init_wrote_loads_as_the_server_s_side(tmp_path: Path) -> None:
    Authority.init(tmp_path, ["localhost"])

    tls = load_server_tls(tmp_path)

    assert tls.ca_pem == (tmp_path / "ca.crt").read_bytes()
    assert "PRIVATE" not in repr(tls)


def test_the_server_s_certificate_holds_all_its_names(tmp_path: Path) -> None:
    names = ["fed.example.org", "10.0.0.5", "::1"]
    Authority.init(tmp_path, names)

    certificate = read_certificate((tmp_path / "server.crt").read_bytes(), "server.crt")

    extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert [str(each.value) for each in extension.value] == names


@pytest.mark.parametrize("name", ["", "https://a.org", "a.org:443", "a b", "a*b", "北京"])
def test_a_server_name_that_nobody_can_dial_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="must be a host name or an IP address"):
        Authority.init(tmp_path / "certs", [name])

    assert not (tmp_path / "certs" / "ca.crt").exists()


def test_an_authority_without_a_server_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="--name: give at least one"):
        Authority.init(tmp_path / "certs", [])


def test_an_authority_is_never_written_over(authority: Authority, tmp_path: Path) -> None:
    before = (tmp_path / "certs" / "ca.key").read_bytes()

    with pytest.raises(DataError, match="holds an authority already"):
        Authority.init(tmp_path / "certs", ["localhost"])

    assert (tmp_path / "certs" / "ca.key").read_bytes() == before


def test_a_folder_of_other_things_is_not_closed_to_others(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    tmp_path.chmod(0o755)

    with pytest.raises(DataError, match="chmod 700"):
        Authority.init(tmp_path, ["localhost"])

    assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o755


def test_a_folder_without_an_authority_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="discreet certs init"):
        Authority(tmp_path)


@pytest.mark.parametrize("content", ["", "{", '{"version": 2}', '{"certificates": [1]}'])
def test_a_damaged_register_is_refused(content: str, authority: Authority, tmp_path: Path) -> None:
    (tmp_path / "certs" / "register.json").write_text(content)

    with pytest.raises(DataError, match=r"register\.json.*damaged"):
        Authority(tmp_path / "certs")


def test_an_authority_key_that_others_may_read_is_refused(
    authority: Authority, tmp_path: Path
) -> None:
    (tmp_path / "certs" / "ca.key").chmod(0o640)

    with pytest.raises(DataError, match=r"chmod 600 .*ca\.key"):
        authority.sign(request_for("north"), "north")


def test_signing_needs_the_authority_s_key_and_checking_does_not(
    authority: Authority, tmp_path: Path
) -> None:
    serial = signed(authority, "north").serial_number
    (tmp_path / "certs" / "ca.key").unlink()

    opened = Authority(tmp_path / "certs", Clock())

    assert opened.site_allowed("north", serial)
    with pytest.raises(DataError, match=r"ca\.key: no such file"):
        opened.sign(request_for("south"), "south")


def test_a_site_s_certificate_says_who_it_is_and_can_be_nothing_else(authority: Authority) -> None:
    certificate = signed(authority, "north")

    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    uses = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert certificate.subject.rfc4514_string() == "CN=north"
    assert not constraints.ca
    assert list(uses) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    certificate.verify_directly_issued_by(authority.certificate)


def test_a_certificate_is_valid_from_a_day_ago_for_a_year(authority: Authority) -> None:
    certificate = signed(authority, "north")

    assert certificate.not_valid_before_utc == NOW - timedelta(days=1)
    assert certificate.not_valid_after_utc == NOW + timedelta(days=365)


def test_no_certificate_outlives_the_authority(authority: Authority, clock: Clock) -> None:
    ends = authority.certificate.not_valid_after_utc
    clock.now = ends - timedelta(days=30)

    certificate = signed(authority, "north")

    assert certificate.not_valid_after_utc == ends
    clock.now = ends + timedelta(days=1)
    with pytest.raises(DataError, match="the authority has expired"):
        signed(authority, "south")


def test_a_request_for_another_name_is_refused(authority: Authority) -> None:
    with pytest.raises(DataError, match="must be for the site 'north', is for 'south'"):
        authority.sign(request_for("south"), "north")


def test_a_request_cannot_ask_for_extensions(authority: Authority) -> None:
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "north")])
    builder = x509.CertificateSigningRequestBuilder().subject_name(name)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=3), critical=True)
    request = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    certificate = read_certificate(authority.sign(request, "north"), "signed")

    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value
    assert not constraints.ca


def test_a_name_has_one_live_certificate_unless_renewed(authority: Authority) -> None:
    first = signed(authority, "north")

    with pytest.raises(DataError, match=r"has a certificate until 2027-03-01.*--renew"):
        authority.sign(request_for("north"), "north")

    second = authority.sign(request_for("north"), "north", renew=True)
    serial = read_certificate(second, "second").serial_number
    assert authority.site_allowed("north", first.serial_number)
    assert authority.site_allowed("north", serial)


@pytest.mark.parametrize("how", ["revoked", "expired"])
def test_a_name_is_free_again_once_its_certificate_is_worth_nothing(
    how: str, authority: Authority, clock: Clock
) -> None:
    signed(authority, "north")
    if how == "revoked":
        authority.revoke("north")
    else:
        clock.now += timedelta(days=366)

    again = signed(authority, "north")

    assert authority.site_allowed("north", again.serial_number)


def test_a_revoked_key_is_never_signed_again(authority: Authority) -> None:
    key = make_key()
    signed(authority, "north", key)
    authority.revoke("north")

    with pytest.raises(DataError, match=r"the key was revoked: delete site\.key"):
        signed(authority, "north", key)


def test_two_sites_never_share_a_key(authority: Authority) -> None:
    key = make_key()
    signed(authority, "north", key)

    with pytest.raises(DataError, match="the key is another's"):
        signed(authority, "south", key)


def test_revoking_shuts_out_that_site_alone_and_at_once(authority: Authority) -> None:
    north, south = signed(authority, "north"), signed(authority, "south")

    revoked = authority.revoke("north")

    assert [entry.serial for entry in revoked] == [f"{north.serial_number:x}"]
    assert not authority.site_allowed("north", north.serial_number)
    assert authority.site_allowed("south", south.serial_number)


def test_revoking_takes_all_certificates_of_the_name(authority: Authority) -> None:
    signed(authority, "north")
    authority.sign(request_for("north"), "north", renew=True)

    assert len(authority.revoke("north")) == 2


def test_revoking_who_has_no_certificate_names_who_has(authority: Authority) -> None:
    signed(authority, "south")

    with pytest.raises(DataError, match="no live certificate: the sites that have one are south"):
        authority.revoke("north")


def test_the_server_cannot_be_revoked_as_a_site(authority: Authority) -> None:
    with pytest.raises(DataError, match="no live certificate"):
        authority.revoke("localhost")


def test_another_process_s_revocation_counts(authority: Authority, tmp_path: Path) -> None:
    serial = signed(authority, "north").serial_number
    assert authority.site_allowed("north", serial)
    program = (
        "import sys; from pathlib import Path; from discreet.deploy.authority import Authority\n"
        "Authority(Path(sys.argv[1])).revoke('north')"
    )

    subprocess.run([sys.executable, "-c", program, str(tmp_path / "certs")], check=True, timeout=60)

    assert not authority.site_allowed("north", serial)


def test_signing_at_once_from_many_sides_loses_nothing(authority: Authority) -> None:
    names = [f"site {n}" for n in range(16)]

    with ThreadPoolExecutor(8) as pool:
        serials = list(pool.map(lambda n: signed(authority, n).serial_number, names))

    assert [authority.site_allowed(n, s) for n, s in zip(names, serials, strict=True)] == [
        True
    ] * 16


def test_renewing_the_server_keeps_its_names_and_the_sites(
    authority: Authority, tmp_path: Path
) -> None:
    serial = signed(authority, "north").serial_number
    before = (tmp_path / "certs" / "server.crt").read_bytes()

    names = authority.renew_server()

    assert names == ("localhost", "127.0.0.1")
    assert (tmp_path / "certs" / "server.crt").read_bytes() != before
    assert authority.site_allowed("north", serial)


def test_renewing_the_server_can_change_its_names(authority: Authority) -> None:
    authority.renew_server(["fed.example.org"])

    assert authority.renew_server() == ("fed.example.org",)


def test_the_register_holds_no_key_and_no_secret(authority: Authority, tmp_path: Path) -> None:
    signed(authority, "north")
    secret = authority.token("south").split(".")[1]

    folder = tmp_path / "certs"

    assert secret not in (folder / "tokens.json").read_text()
    assert "PRIVATE" not in (folder / "register.json").read_text()
    assert json.loads((folder / "register.json").read_text())["version"] == 1


def test_a_key_and_a_certificate_of_two_authorities_sign_nothing(
    authority: Authority, tmp_path: Path
) -> None:
    (tmp_path / "certs" / "ca.key").write_bytes(make_key())

    with pytest.raises(DataError, match=r"ca\.crt: must be for the key in ca\.key"):
        authority.sign(request_for("north"), "north")

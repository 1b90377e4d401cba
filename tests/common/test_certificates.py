"""Keys, requests and names."""

from __future__ import annotations

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given, settings
from hypothesis import strategies as st

from discreet.common.certificates import (
    check_name,
    common_name,
    fingerprint,
    fingerprint_of_key,
    load_key,
    make_key,
    make_request,
    read_certificate,
    read_request,
)
from discreet.common.errors import DataError

PEM, PKCS8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
PLAIN = serialization.NoEncryption()


def rsa_key() -> bytes:
    return rsa.generate_private_key(65537, 2048).private_bytes(PEM, PKCS8, PLAIN)


def p384_key() -> bytes:
    return ec.generate_private_key(ec.SECP384R1()).private_bytes(PEM, PKCS8, PLAIN)


def names(*values: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, value) for value in values])


def test_a_request_holds_the_name_and_the_public_key_alone() -> None:
    key = make_key()

    request = read_request(make_request(key, "north"), "request")

    assert request.subject.rfc4514_string() == "CN=north"
    assert fingerprint(request.public_key()) == fingerprint_of_key(key, "key")
    assert list(request.extensions) == []
    assert b"PRIVATE" not in make_request(key, "north")


def test_every_key_is_new() -> None:
    assert make_key() != make_key()


@pytest.mark.parametrize("name", ["north", "St. Mary's", "北京协和", "x" * 64, "a_b-c.d 1"])
def test_plain_names_are_taken(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["", " ", "a ", "a\tb", "a\0", "a\u200b", "a\u202eb", "x" * 65, "京" * 22, "ﬁn", "\ud800"],
)
def test_names_that_deceive_or_do_not_fit_are_refused(name: str) -> None:
    with pytest.raises(DataError, match="site name: must be 1 to 64 bytes"):
        check_name(name)


@settings(max_examples=50, deadline=None)
@given(st.text(min_size=1, max_size=70))
def test_a_name_that_is_taken_comes_back_from_a_request_unchanged(name: str) -> None:
    try:
        request = make_request(KEY, name)
    except DataError:
        return

    assert common_name(read_request(request, "request")) == name


KEY = make_key()


@pytest.mark.parametrize("pem", [b"", b"secret words", b"-----BEGIN PRIVATE KEY-----\nsecret\n"])
def test_what_is_no_key_is_refused_without_being_quoted(pem: bytes) -> None:
    with pytest.raises(DataError, match=r"site\.key: must be an ECDSA P-256") as error:
        load_key(pem, "site.key")

    assert "secret" not in str(error.value)
    assert error.value.__cause__ is None


@pytest.mark.parametrize("make", [rsa_key, p384_key])
def test_other_kinds_of_key_are_refused(make: object) -> None:
    assert callable(make)

    with pytest.raises(DataError, match="must be an ECDSA P-256 private key"):
        load_key(make(), "site.key")


@given(st.binary(max_size=400))
def test_garbage_is_never_a_request_or_a_certificate(garbage: bytes) -> None:
    with pytest.raises(DataError, match="must be a signing request"):
        read_request(garbage, "it")
    with pytest.raises(DataError, match="must be a certificate"):
        read_certificate(garbage, "it")


def test_a_request_signed_with_another_key_is_refused() -> None:
    der = x509.load_pem_x509_csr(make_request(KEY, "north")).public_bytes(
        serialization.Encoding.DER
    )
    broken = x509.load_der_x509_csr(der[:-1] + bytes([der[-1] ^ 1]))

    with pytest.raises(DataError, match="must be signed with the ECDSA P-256 key"):
        read_request(broken.public_bytes(PEM), "request")


@pytest.mark.parametrize("make", [rsa_key, p384_key])
def test_a_request_for_another_kind_of_key_is_refused(make: object) -> None:
    assert callable(make)
    key = serialization.load_pem_private_key(make(), None)
    assert isinstance(key, rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey)
    builder = x509.CertificateSigningRequestBuilder().subject_name(names("north"))
    request = builder.sign(key, hashes.SHA256()).public_bytes(PEM)

    with pytest.raises(DataError, match="must be signed with the ECDSA P-256 key"):
        read_request(request, "request")


@pytest.mark.parametrize("subject", [names(), names("north", "south")])
def test_a_request_has_exactly_one_name(subject: x509.Name) -> None:
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    request = builder.sign(load_key(KEY, "key"), hashes.SHA256()).public_bytes(PEM)

    with pytest.raises(DataError, match="exactly one common name"):
        read_request(request, "request")

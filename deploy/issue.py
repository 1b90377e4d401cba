"""Makes certificates: the authority's own, the server's and the sites'.

Every certificate is valid from one day before it is made. A site whose clock is off by up to a
day then still connects: with clocks alone to blame, a handshake fails without a useful word.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from discreet.common.certificates import load_key, read_certificate
from discreet.common.errors import DataError

CLOCK_SKEW: Final = timedelta(days=1)
"""How far a clock may be behind when a certificate is new."""

VALIDITY: Final = timedelta(days=365)
"""How long a server's or a site's certificate is valid."""

CA_VALIDITY: Final = timedelta(days=3650)
"""How long the authority is valid; no certificate outlives it."""

_CA_NAME: Final = "discreet federation"


@dataclass(frozen=True, slots=True)
class Issuer:
    """The authority's certificate and key.

    Attributes:
        certificate: Its certificate.
        key: Its private key.
    """

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def make_authority(key_pem: bytes, now: datetime) -> bytes:
    """The authority's own certificate (PEM): it can sign leaves and no other authority."""
    key = load_key(key_pem, "the authority's key")
    name = _subject(_CA_NAME)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + CA_VALIDITY)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def issuer_of(ca_pem: bytes, key_pem: bytes) -> Issuer:
    """The authority, from its two files.

    Raises:
        DataError: If they are damaged or do not belong together.
    """
    certificate = read_certificate(ca_pem, "ca.crt")
    key = load_key(key_pem, "ca.key")
    if certificate.public_key() != key.public_key():
        raise DataError("ca.crt: must be for the key in ca.key, is for another: restore a backup")
    return Issuer(certificate, key)


def issue_server(
    issuer: Issuer, public_key: CertificatePublicKeyTypes, *, names: Sequence[str], now: datetime
) -> x509.Certificate:
    """A certificate with which a server is known under all `names`: host names or addresses.

    It may also dial: a mutual TLS port can be asked for its health from the server's own machine.
    It is no site's all the same, by the register.

    Raises:
        DataError: If a name is neither.
    """
    alternatives = x509.SubjectAlternativeName([_host(name) for name in names])
    builder = _leaf(issuer, public_key, name=names[0], now=now)
    builder = builder.add_extension(alternatives, critical=False)
    return _sign(builder, issuer, ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)


def issue_site(
    issuer: Issuer, public_key: CertificatePublicKeyTypes, *, name: str, now: datetime
) -> x509.Certificate:
    """A certificate with which a site is known as `name`.

    It cannot be used by a server, so that no site can pass for the server of another.
    """
    builder = _leaf(issuer, public_key, name=name, now=now)
    return _sign(builder, issuer, ExtendedKeyUsageOID.CLIENT_AUTH)


def server_names(certificate: x509.Certificate) -> list[str]:
    """The host names and addresses of a server's certificate, in their order."""
    extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    return [str(each.value) for each in extension.value]


def pem_of(certificate: x509.Certificate) -> bytes:
    """A certificate as PEM."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def _leaf(
    issuer: Issuer, public_key: CertificatePublicKeyTypes, *, name: str, now: datetime
) -> x509.CertificateBuilder:
    ends = min(now + VALIDITY, issuer.certificate.not_valid_after_utc)
    if ends <= now:
        raise DataError("ca.crt: the authority has expired: make a new one with `certs init`")
    identifier = issuer.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    authority = x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier.value)
    # Nothing of a request but its key goes in: a site cannot ask for extensions.
    return (
        x509.CertificateBuilder()
        .subject_name(_subject(name))
        .issuer_name(issuer.certificate.subject)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(ends)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs=False), critical=True)
        .add_extension(authority, critical=False)
    )


def _sign(
    builder: x509.CertificateBuilder, issuer: Issuer, *uses: x509.ObjectIdentifier
) -> x509.Certificate:
    builder = builder.add_extension(x509.ExtendedKeyUsage(uses), critical=False)
    return builder.sign(issuer.key, hashes.SHA256())


def _subject(name: str) -> x509.Name:
    # A common name holds 64 characters; a longer host name stands whole among the alternatives.
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name[:64])])


def _usage(*, signs: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs,
        key_cert_sign=signs,
        crl_sign=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _host(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    is_plain = name.isascii() and name.isprintable() and not set(name) & set(" /:@*,;\\\"'")
    if is_plain and 1 <= len(name) <= 253:
        return x509.DNSName(name)
    raise DataError(
        f"--name {name!r:.100}: must be a host name or an IP address, without port and scheme, "
        "as sites dial it: --name federation.example.org --name 10.0.0.5"
    )

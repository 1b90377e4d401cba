"""Keys, signing requests and the names in certificates: ECDSA P-256 and PEM throughout.

Both ends need these: a site makes its key and its request, the operator's authority reads them.
A certificate's common name is a site's identity in a federation.
"""

from __future__ import annotations

import hashlib
import unicodedata
from typing import Final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import (
    CertificatePublicKeyTypes,
    PublicKeyTypes,
)
from cryptography.x509.oid import NameOID

from discreet.common.errors import DataError

MAX_NAME: Final = 64
"""Bytes of a name in UTF-8: what X.509 allows in a common name."""

_PARSE_ERRORS: Final = (ValueError, TypeError, UnsupportedAlgorithm, x509.InvalidVersion)


def check_name(name: str) -> str:
    """A name that two people read alike, or an error.

    Control and zero-width characters, outer blanks and compatibility forms are refused: with
    them one site could look like another in a list or a log.

    Raises:
        DataError: Saying what a name must be.
    """
    is_plain = name.isprintable() and unicodedata.normalize("NFKC", name).strip() == name
    if not is_plain or not 1 <= len(name.encode("utf-8", "surrogatepass")) <= MAX_NAME:
        raise DataError(
            f"site name: must be 1 to {MAX_NAME} bytes of printable text without blanks around "
            f"it, got {name!r:.100}: choose another"
        )
    return name


def make_key() -> bytes:
    """A new private key, as PEM (PKCS 8, not encrypted: keep it in a file of mode 0600)."""
    return ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


def load_key(pem: bytes, source: str) -> ec.EllipticCurvePrivateKey:
    """Parse a private key.

    Raises:
        DataError: If it is not a P-256 key in PEM; the message never holds any of it.
    """
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except _PARSE_ERRORS:
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not _is_p256(key.public_key()):
        # From None: what the parser says could quote the file.
        raise DataError(f"{source}: must be an ECDSA P-256 private key in PEM") from None
    return key


def make_request(key_pem: bytes, name: str) -> bytes:
    """A signing request (PEM) for a name, signed with the key, which stays where it is.

    Raises:
        DataError: If the name or the key is not fit.
    """
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, check_name(name))])
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    request = builder.sign(load_key(key_pem, "the private key"), hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM)


def read_request(pem: bytes, source: str) -> x509.CertificateSigningRequest:
    """Parse a signing request whose sender holds the key that it is for.

    Raises:
        DataError: If it is damaged, badly signed, of another kind of key, or has not exactly one
            name.
    """
    try:
        request = x509.load_pem_x509_csr(pem)
        is_signed = request.is_signature_valid
        public_key = request.public_key()
    except _PARSE_ERRORS as error:
        raise DataError(f"{source}: must be a signing request in PEM: send it again") from error
    if not is_signed or not _is_p256(public_key):
        raise DataError(f"{source}: must be signed with the ECDSA P-256 key it is for")
    check_name(common_name(request))
    return request


def read_certificate(pem: bytes, source: str) -> x509.Certificate:
    """Parse the first certificate of a PEM file.

    Raises:
        DataError: If there is none.
    """
    try:
        return x509.load_pem_x509_certificate(pem)
    except _PARSE_ERRORS as error:
        raise DataError(f"{source}: must be a certificate in PEM") from error


def common_name(signed: x509.Certificate | x509.CertificateSigningRequest) -> str:
    """The one common name of a certificate or a request.

    Raises:
        DataError: If there is none, or more than one.
    """
    names = signed.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    if len(names) != 1 or not isinstance(names[0].value, str):
        raise DataError(f"a certificate must hold exactly one common name, holds {len(names)}")
    return names[0].value


def fingerprint(public_key: PublicKeyTypes | CertificatePublicKeyTypes) -> str:
    """SHA-256 of a public key in its standard form, as 64 hexadecimal digits."""
    content = public_key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return hashlib.sha256(content).hexdigest()


def fingerprint_of_key(key_pem: bytes, source: str) -> str:
    """The fingerprint of the public half of a private key.

    Raises:
        DataError: If it is no P-256 key.
    """
    return fingerprint(load_key(key_pem, source).public_key())


def fingerprint_of_certificate(certificate: x509.Certificate) -> str:
    """SHA-256 of a whole certificate, as 64 hexadecimal digits: what two people compare aloud."""
    return certificate.fingerprint(hashes.SHA256()).hex()


def _is_p256(public_key: PublicKeyTypes) -> bool:
    return isinstance(public_key, ec.EllipticCurvePublicKey) and isinstance(
        public_key.curve, ec.SECP256R1
    )

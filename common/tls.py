"""What a TLS connection needs, read from a folder and checked before anything is dialled.

The operator's folder holds `ca.crt`, `server.crt` and `server.key`; a site's holds `ca.crt`,
`site.crt` and `site.key`. A private key that others may read is refused: it is no secret. Whoever
reads a certificate wrongly dated, of another key or of another authority is told so here, in
words, and not by a handshake that fails without a reason.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from discreet.common.certificates import (
    common_name,
    fingerprint,
    fingerprint_of_key,
    read_certificate,
)
from discreet.common.errors import DataError

CA_CERTIFICATE: Final = "ca.crt"
SERVER_CERTIFICATE: Final = "server.crt"
SERVER_KEY: Final = "server.key"
SITE_CERTIFICATE: Final = "site.crt"
SITE_KEY: Final = "site.key"

_MAX_BYTES: Final = 1 << 20


@dataclass(frozen=True, slots=True)
class ServerTls:
    """The server's side of mutual TLS, as PEM.

    Attributes:
        ca_pem: The authority that signs sites.
        cert_pem: The server's certificate.
        key_pem: Its private key; never in a `repr`.
    """

    ca_pem: bytes
    cert_pem: bytes
    key_pem: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class ClientTls:
    """A site's side of mutual TLS, as PEM.

    Attributes:
        ca_pem: The authority that signs the server.
        cert_pem: The site's certificate.
        key_pem: Its private key; never in a `repr`.
    """

    ca_pem: bytes
    cert_pem: bytes
    key_pem: bytes = field(repr=False)

    @property
    def name(self) -> str:
        """The site's name, as the operator signed it."""
        return common_name(read_certificate(self.cert_pem, SITE_CERTIFICATE))


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end of a connection.

    Attributes:
        name: The site's name, as the operator signed it.
        serial: The number of its certificate: what is revoked is a certificate, not a name.
    """

    name: str
    serial: int


def load_server_tls(folder: Path) -> ServerTls:
    """Read the server's certificate and key.

    Raises:
        DataError: If a file is missing or damaged, the key may be read by others, or the
            certificate is expired, of another key or of another authority.
    """
    return ServerTls(*_load(folder, SERVER_CERTIFICATE, SERVER_KEY))


def load_client_tls(folder: Path, name: str | None = None) -> ClientTls:
    """Read a site's certificate and key.

    Args:
        folder: Where they are.
        name: The site's name in SITE.yaml; the certificate must be for it.

    Raises:
        DataError: As for the server, or if the certificate is for another name.
    """
    tls = ClientTls(*_load(folder, SITE_CERTIFICATE, SITE_KEY))
    if name is not None and tls.name != name:
        raise DataError(
            f"{folder / SITE_CERTIFICATE}: must be for the site {name!r}, is for {tls.name!r}: "
            "change `name` in SITE.yaml, or name the folder of this site's certificate"
        )
    return tls


def read_private_key(path: Path) -> bytes:
    """Read a private key that only its owner may read.

    Raises:
        DataError: If it is missing, or its mode lets others read it.
    """
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode & 0o777
            if mode & 0o077:
                raise DataError(
                    f"{path}: must be readable by its owner alone, is mode {mode:04o}: "
                    f"run `chmod 600 {path}`"
                )
            return file.read(_MAX_BYTES)
    except OSError as error:
        raise _unreadable(path, error) from error


def read_public(path: Path) -> bytes:
    """Read a certificate or a request: anyone may have it.

    Raises:
        DataError: If it cannot be read, or is far too long.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise _unreadable(path, error) from error
    if len(content) > _MAX_BYTES:
        raise DataError(f"{path}: must be PEM of a few KiB, is over {_MAX_BYTES} bytes")
    return content


def check_key_folder(folder: Path) -> None:
    """Refuse a folder that is in use and open to others.

    Keys are put, and modes set, only where that surprises nobody.

    Raises:
        DataError: If it holds files and its mode lets others in.
    """
    try:
        mode = folder.stat().st_mode & 0o777
        is_open = bool(mode & 0o077) and any(folder.iterdir())
    except FileNotFoundError:
        return
    except OSError as error:
        raise DataError(f"{folder}: must be a folder of this user: {error.strerror}") from error
    if is_open:
        raise DataError(
            f"{folder}: must be closed to others, is mode {mode:04o} and holds files: name a new "
            f"folder, or run `chmod 700 {folder}`"
        )


def peer_of(auth_context: Mapping[str, Iterable[bytes]]) -> Peer | None:
    """Who a gRPC call comes from: pass `context.auth_context()`.

    Returns:
        The peer; None without a client certificate, or with one that has no single name.
    """
    pem = next(iter(auth_context.get("x509_pem_cert", ())), None)
    if pem is None:
        return None
    try:
        certificate = read_certificate(pem, "the peer's certificate")
        return Peer(common_name(certificate), certificate.serial_number)
    except DataError:
        return None


def check_chain(certificate: x509.Certificate, ca: x509.Certificate, source: str) -> None:
    """Refuse a certificate that this authority did not sign, or that is not valid now.

    Raises:
        DataError: Saying which, and what to do.
    """
    try:
        certificate.verify_directly_issued_by(ca)
    except (ValueError, TypeError, InvalidSignature) as error:
        raise DataError(
            f"{source}: must be signed by the authority in {CA_CERTIFICATE}, is signed by "
            "another: the folder mixes two federations; request a certificate again"
        ) from error
    now = datetime.now(UTC)
    if now > certificate.not_valid_after_utc:
        raise DataError(
            f"{source}: expired on {certificate.not_valid_after_utc:%Y-%m-%d}: renew it "
            "(`discreet certs --help`), or set this machine's clock if it is wrong"
        )
    if now < certificate.not_valid_before_utc:
        raise DataError(
            f"{source}: is valid from {certificate.not_valid_before_utc:%Y-%m-%d} and this "
            f"machine says {now:%Y-%m-%d}: set its clock"
        )


def _load(folder: Path, certificate_name: str, key_name: str) -> tuple[bytes, bytes, bytes]:
    ca_path, path, key_path = folder / CA_CERTIFICATE, folder / certificate_name, folder / key_name
    key_pem = read_private_key(key_path)
    ca_pem, pem = read_public(ca_path), read_public(path)
    ca, certificate = read_certificate(ca_pem, str(ca_path)), read_certificate(pem, str(path))
    if fingerprint_of_key(key_pem, str(key_path)) != fingerprint(certificate.public_key()):
        raise DataError(f"{path}: must be for the key in {key_path}, is for another key")
    check_chain(certificate, ca, str(path))
    return ca_pem, pem, key_pem


def _unreadable(path: Path, error: OSError) -> DataError:
    if isinstance(error, FileNotFoundError):
        return DataError(
            f"{path}: no such file: the operator makes an authority with `discreet certs init`, "
            "a site gets its certificate with `discreet certs request`"
        )
    return DataError(f"{path}: cannot be read: {error.strerror}")

"""How a site becomes known to a federation: its own key, and a certificate for it.

The key is made here, in a file of mode 0600, and never leaves the folder: what is sent is a
signing request. Either the server signs it at once against a join token, or a person carries the
request to the operator and the answer back.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from discreet.common.certificates import (
    check_name,
    common_name,
    fingerprint,
    fingerprint_of_key,
    make_key,
    make_request,
    read_certificate,
    read_request,
)
from discreet.common.errors import DataError, RefusalCode, RefusedError, UnreachableError
from discreet.common.join import parse_join_token
from discreet.common.tls import (
    CA_CERTIFICATE,
    SITE_CERTIFICATE,
    SITE_KEY,
    check_chain,
    check_key_folder,
    read_private_key,
    read_public,
)
from discreet.privacy.seal import private_folder, write_private

SITE_REQUEST: Final = "site.csr"

ENROL_SECONDS: Final = 30.0
"""How long the server may take to answer."""


def write_request(folder: Path, name: str) -> Path:
    """Make the site's key, unless it has one, and write a signing request for it.

    Args:
        folder: The site's folder of keys; made with mode 0700.
        name: The site's name.

    Returns:
        The request's path: `site.csr`, for the operator.

    Raises:
        DataError: If the name is not fit, or the folder cannot be written or is not private.
    """
    request = _request(folder, name)
    path = folder / SITE_REQUEST
    _write(path, request)
    return path


def accept(folder: Path, answer: Path, *, name: str) -> Path:
    """Take the operator's answer: the site's certificate, then the authority's.

    Returns:
        The certificate's path.

    Raises:
        DataError: If the answer is not for this site's key and name, or not whole.
    """
    try:
        certificates = x509.load_pem_x509_certificates(read_public(answer))
    except ValueError:
        certificates = []
    if len(certificates) != 2:
        raise DataError(
            f"{answer}: must hold the two certificates that `discreet certs sign` wrote, "
            f"holds {len(certificates)}: ask the operator to send the file again"
        )
    leaf, ca = (each.public_bytes(serialization.Encoding.PEM) for each in certificates)
    return _install(folder, leaf, ca, name=name)


def enrol(folder: Path, name: str, *, server: str, token: str) -> Path:
    """Get a certificate from the server, against a join token.

    A connection that breaks may be tried again with the same token and folder.

    Args:
        folder: The site's folder of keys; made with mode 0700.
        name: The site's name; the token must be for it.
        server: HOST:PORT at which the server enrols.
        token: The line that the operator handed over.

    Returns:
        The certificate's path.

    Raises:
        DataError: If the token or the folder is not fit, or the answer is not for this site.
        RefusedError: If the server refuses the token.
        UnreachableError: If no server of this federation answers.
    """
    join = parse_join_token(token)
    _refuse_other_federation(folder, join.ca_pem)
    leaf = _ask(server, join.ca_pem, join.secret, _request(folder, name))
    return _install(folder, leaf, join.ca_pem, name=name)


def request_fingerprint(path: Path) -> str:
    """SHA-256 of the key in a request: what site and operator compare over another channel.

    Raises:
        DataError: If it is no request.
    """
    return fingerprint(read_request(read_public(path), str(path)).public_key())


def _request(folder: Path, name: str) -> bytes:
    check_name(name)
    check_key_folder(folder)
    private_folder(folder)
    path = folder / SITE_KEY
    if not path.exists():
        _write(path, make_key())
    return make_request(read_private_key(path), name)


def _ask(server: str, ca_pem: bytes, secret: str, request: bytes) -> bytes:
    import grpc

    from discreet.common import link_pb2, link_pb2_grpc

    credentials = grpc.ssl_channel_credentials(root_certificates=ca_pem)
    with grpc.secure_channel(server, credentials) as channel:
        stub = link_pb2_grpc.FederationStub(channel)  # type: ignore[no-untyped-call]
        message = link_pb2.EnrolRequest(token=secret, signing_request=request)
        try:
            reply = stub.Enrol(message, timeout=ENROL_SECONDS)
        except grpc.RpcError as error:
            raise _explained(server, error) from None
    return bytes(reply.certificate)


def _explained(server: str, error: object) -> Exception:
    import grpc

    code = error.code() if isinstance(error, grpc.Call) else None
    detail = str(error.details()) if isinstance(error, grpc.Call) else str(error)
    shown = "".join(c if c.isprintable() else " " for c in detail)[:300]
    if code in {grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNAUTHENTICATED}:
        return RefusedError(RefusalCode.POLICY, f"{server} refuses: {shown}")
    return UnreachableError(
        f"{server}: no server of this federation answers there ({shown}): check the address, "
        "that it enrols, and that the name dialled is one of `discreet certs init --name`"
    )


def _install(folder: Path, leaf_pem: bytes, ca_pem: bytes, *, name: str) -> Path:
    path = folder / SITE_CERTIFICATE
    _refuse_other_federation(folder, ca_pem)
    leaf = read_certificate(leaf_pem, "the certificate received")
    ca = read_certificate(ca_pem, "the authority received")
    key_path = folder / SITE_KEY
    if fingerprint(leaf.public_key()) != fingerprint_of_key(
        read_private_key(key_path), str(key_path)
    ):
        raise DataError(f"the certificate received: must be for the key in {key_path}, is not")
    if common_name(leaf) != name:
        raise DataError(
            f"the certificate received: must be for the site {name!r}, is for {common_name(leaf)!r}"
        )
    check_chain(leaf, ca, "the certificate received")
    _write(folder / CA_CERTIFICATE, ca_pem)
    _write(path, leaf_pem)
    return path


def _refuse_other_federation(folder: Path, ca_pem: bytes) -> None:
    path = folder / CA_CERTIFICATE
    if path.exists() and read_certificate(read_public(path), str(path)) != read_certificate(
        ca_pem, "the authority received"
    ):
        raise DataError(
            f"{path}: is the authority of another federation: use another folder for this one"
        )


def _write(path: Path, content: bytes) -> None:
    try:
        write_private(path, content)
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror}") from error

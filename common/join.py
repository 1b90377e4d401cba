"""A join token: one line that the operator hands to one site, in private.

It holds a secret and the authority's certificate. With the certificate the site knows the right
server before it tells it the secret; a token without one would have to be told to whoever
answers. Only the secret is ever sent, and only inside TLS.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import secrets
from dataclasses import dataclass, field
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from discreet.common.errors import DataError

SECRET_BYTES: Final = 32
"""Of a token's secret: 256 bits cannot be guessed, however often one may try."""

_MARK: Final = "discreet-join-1"


@dataclass(frozen=True, slots=True)
class JoinToken:
    """What a join token says.

    Attributes:
        secret: What the server is told, once; never in a `repr`.
        ca_pem: The authority that the server's certificate must be from.
    """

    secret: str = field(repr=False)
    ca_pem: bytes

    def line(self) -> str:
        """The token as one line of letters, digits, `-`, `_` and `.`."""
        certificate = x509.load_pem_x509_certificate(self.ca_pem)
        der = certificate.public_bytes(serialization.Encoding.DER)
        return f"{_MARK}.{self.secret}.{_encode(der)}"


def new_secret() -> str:
    """A secret of 32 random bytes, as 43 characters."""
    return _encode(secrets.token_bytes(SECRET_BYTES))


def hash_of(secret: str) -> str:
    """What the server keeps of a secret: SHA-256, as 64 hexadecimal digits.

    No slow hash is needed: the secret is random, so trying all of them is out of reach.
    """
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).hexdigest()


def parse_join_token(line: str) -> JoinToken:
    """Read a token as the operator sent it; blanks and line breaks in it do not matter.

    Raises:
        DataError: If it is not whole. The message holds nothing of it.
    """
    mark, *parts = "".join(line.split()).split(".")
    try:
        secret, der = parts
        if mark != _MARK or len(_decode(secret)) != SECRET_BYTES:
            raise ValueError
        ca = x509.load_der_x509_certificate(_decode(der))
    except (ValueError, binascii.Error):
        raise DataError(
            f"join token: must be the whole line that `discreet certs token` printed, which "
            f"begins with {_MARK}: copy it again"
        ) from None
    return JoinToken(secret, ca.public_bytes(serialization.Encoding.PEM))


def _encode(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    return base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)

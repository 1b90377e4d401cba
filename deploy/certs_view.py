"""What `discreet certs show` shows: public fields only, never a key or a token's hash."""

from __future__ import annotations

from datetime import datetime
from typing import Final, TypedDict

from discreet.deploy.authority import Authority
from discreet.deploy.register import IssuedCertificate, State, utc_now

SCHEMA: Final = 1
"""Version of the JSON object."""


class CertificateView(TypedDict):
    """A certificate, for scripts; times are ISO 8601 in UTC."""

    name: str
    kind: str
    serial: str
    not_after: str
    state: State
    revoked: bool
    revoked_at: str | None


class TokenView(TypedDict):
    """An open join token, for scripts."""

    name: str
    expires_at: str


class AuthorityView(TypedDict):
    """All of an authority, for scripts."""

    schema: int
    fingerprint: str
    not_after: str
    certificates: list[CertificateView]
    tokens: list[TokenView]


def as_object(authority: Authority, now: datetime | None = None) -> AuthorityView:
    """The authority as one object for JSON."""
    return AuthorityView(
        schema=SCHEMA,
        fingerprint=authority.fingerprint,
        not_after=authority.certificate.not_valid_after_utc.isoformat(),
        certificates=[_view(entry, now or utc_now()) for entry in authority.certificates()],
        tokens=[
            TokenView(name=token.name, expires_at=token.expires_at.isoformat())
            for token in authority.tokens()
        ],
    )


def as_table(authority: Authority, now: datetime | None = None) -> list[str]:
    """The authority as lines for a person."""
    view = as_object(authority, now)
    rows = [("name", "kind", "state", "until", "serial")]
    for each in view["certificates"]:
        until = each["not_after"][:10]
        rows.append((each["name"], each["kind"], each["state"], until, each["serial"]))
    for token in view["tokens"]:
        rows.append((token["name"], "token", "open", token["expires_at"][:16], "-"))
    widths = [max(len(row[column]) for row in rows) for column in range(5)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    return [f"authority {view['fingerprint']} until {view['not_after'][:10]}", *lines]


def _view(entry: IssuedCertificate, now: datetime) -> CertificateView:
    return CertificateView(
        name=entry.name,
        kind=entry.kind,
        serial=entry.serial,
        not_after=entry.not_after.isoformat(),
        state=entry.state(now),
        revoked=entry.revoked_at is not None,
        revoked_at=entry.revoked_at.isoformat() if entry.revoked_at else None,
    )

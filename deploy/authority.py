"""The operator's certificate authority: who may take part in a federation.

A folder holds it: `ca.crt` and `ca.key`, `server.crt` and `server.key`, the register of what was
issued and revoked, and the join tokens' hashes. The private key of a site is never here: a site
makes it and sends a request. The server needs `ca.key` only to enrol sites by token; an operator
who signs on another machine leaves it there.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Final, Literal

from cryptography import x509

from discreet.common.certificates import (
    check_name,
    common_name,
    fingerprint,
    fingerprint_of_certificate,
    load_key,
    make_key,
    read_certificate,
    read_request,
)
from discreet.common.errors import DataError
from discreet.common.join import JoinToken, hash_of, new_secret
from discreet.common.tls import (
    CA_CERTIFICATE,
    SERVER_CERTIFICATE,
    SERVER_KEY,
    check_key_folder,
    read_private_key,
    read_public,
)
from discreet.deploy.issue import (
    Issuer,
    issue_server,
    issue_site,
    issuer_of,
    make_authority,
    pem_of,
    server_names,
)
from discreet.deploy.register import (
    Clock,
    IssuedCertificate,
    Register,
    SiteCheck,
    TokenRecord,
    Tokens,
    locked,
    utc_now,
    write_file,
)
from discreet.deploy.token_file import MAX_HOURS, TokenFile, refused
from discreet.privacy.seal import private_folder

CA_KEY: Final = "ca.key"
"""The one file that must never leave the operator."""

REGISTER: Final = "register.json"
"""Which certificates there are, and which are revoked: what `SiteCheck` reads."""

ISSUED_DIR: Final = "issued"
"""Certificates of sites, by serial number: a site that lost an answer gets the same again."""

_LOG: Final = logging.getLogger(__name__)
_TOKENS: Final = "tokens.json"
_MAX_REQUEST_BYTES: Final = 1 << 14


class Authority:
    """Signs, enrols and revokes. Safe under several processes at once."""

    def __init__(self, folder: Path, clock: Clock = utc_now) -> None:
        """Open an authority.

        Raises:
            DataError: If there is none in the folder, or its register is damaged.
        """
        self._folder = folder
        self._clock = clock
        self.ca_pem = read_public(folder / CA_CERTIFICATE)
        self.certificate = read_certificate(self.ca_pem, str(folder / CA_CERTIFICATE))
        self._tokens = TokenFile(folder / _TOKENS, clock)
        self.certificates()
        self.site_allowed = SiteCheck(folder / REGISTER, clock)

    @classmethod
    def init(cls, folder: Path, names: Sequence[str], *, clock: Clock = utc_now) -> Authority:
        """Make an authority and the server's certificate.

        Args:
            folder: Where; made with mode 0700.
            names: Host names and addresses that sites dial; at least one.
            clock: Tells the time.

        Raises:
            DataError: If there is an authority already, or a name is not fit.
        """
        check_key_folder(folder)
        private_folder(folder)
        with locked(folder):
            if (folder / CA_CERTIFICATE).exists():
                raise DataError(
                    f"{folder}: holds an authority already: name another folder, or renew the "
                    "server's certificate with --renew"
                )
            key_pem = make_key()
            ca_pem = make_authority(key_pem, clock())
            # Names are tried before anything is written.
            _issue_server(issuer_of(ca_pem, key_pem), make_key(), names, clock)
            write_file(folder / CA_KEY, key_pem)
            Register().write(folder / REGISTER)
            Tokens().write(folder / _TOKENS)
            # Last: from here on there is an authority.
            write_file(folder / CA_CERTIFICATE, ca_pem)
        authority = cls(folder, clock)
        authority.renew_server(names)
        return authority

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the authority's certificate, in hexadecimal."""
        return fingerprint_of_certificate(self.certificate)

    def certificates(self) -> tuple[IssuedCertificate, ...]:
        """All certificates that were issued, oldest first.

        Raises:
            DataError: If the register is missing or damaged.
        """
        return Register.read(self._folder / REGISTER).certificates

    def tokens(self) -> tuple[TokenRecord, ...]:
        """The join tokens that can still be used."""
        return self._tokens.open()

    def renew_server(self, names: Sequence[str] = ()) -> tuple[str, ...]:
        """Make the server a new key and certificate.

        Args:
            names: Its names; none keeps those of the present certificate.

        Returns:
            The names.
        """
        path = self._folder / SERVER_CERTIFICATE
        with locked(self._folder):
            if not names:
                names = server_names(read_certificate(read_public(path), str(path)))
            key_pem = make_key()
            certificate = _issue_server(self._issuer(), key_pem, names, self._clock)
            self._register(_entry(certificate, "server", names[0]))
            write_file(self._folder / SERVER_KEY, key_pem)
            write_file(path, pem_of(certificate))
        return tuple(names)

    def sign(self, request: bytes, name: str, *, renew: bool = False) -> bytes:
        """Sign a site's request.

        Args:
            request: The request, PEM.
            name: The site that the operator means; the request must be for the same.
            renew: Sign although the name has a live certificate, which stays live.

        Returns:
            The certificate, PEM.

        Raises:
            DataError: If the request is not fit or for another name, the name has a live
                certificate, or the key was revoked.
        """
        wanted = _checked_request(request, name)
        with locked(self._folder):
            self._refuse_unfit(name, fingerprint(wanted.public_key()), renew=renew)
            return self._sign(wanted, name)

    def token(self, name: str, *, hours: float = 24.0, renew: bool = False) -> str:
        """Make a join token for one site. It is shown once; only its hash is kept.

        Args:
            name: The site.
            hours: How long it may be used.
            renew: Let it replace a live certificate.

        Returns:
            One line to hand to the site, in private.

        Raises:
            DataError: If the name or the time is not fit, or the name has a live certificate.
        """
        check_name(name)
        if not 0 < hours <= MAX_HOURS:
            raise DataError(f"--hours: must be > 0 and <= {MAX_HOURS}, got {hours:g}")
        secret = new_secret()
        with locked(self._folder):
            self._issuer()  # Without the key, a token could never be used here.
            self._refuse_unfit(name, None, renew=renew)
            ends = self._clock() + timedelta(hours=hours)
            record = TokenRecord(hash=hash_of(secret), name=name, expires_at=ends, renew=renew)
            self._tokens.add(record)
        return JoinToken(secret, self.ca_pem).line()

    def enrol(self, token: str, request: bytes) -> bytes:
        """Sign a request against a join token, once.

        A token used again with the same key gets the same certificate again, so that a site
        whose connection broke is not locked out; with any other key it is refused.

        Args:
            token: The secret of the token.
            request: The request, PEM.

        Returns:
            The certificate, PEM.

        Raises:
            RefusedError: If the token is unknown, used, expired or for another site, or the
                request is not fit. What it says may be sent to the site.
        """
        try:
            with locked(self._folder):
                return self._enrol(token, request)
        except DataError as error:
            # It names folders of this machine: that is for the operator's log.
            _LOG.error("a site cannot be enrolled: %s", error)
            raise refused("the server cannot enrol now: its operator's log says why") from error

    def revoke(self, name: str) -> list[IssuedCertificate]:
        """Revoke all live certificates and unused tokens of a site, at once.

        Returns:
            The certificates that were live.

        Raises:
            DataError: If there is nothing to revoke.
        """
        now = self._clock()
        with locked(self._folder):
            before = self.certificates()
            live = [e for e in before if e.name == name and _is_live_site(e, now)]
            if not self._tokens.drop(name) and not live:
                names = sorted({e.name for e in before if _is_live_site(e, now)})
                raise DataError(
                    f"{name!r:.100}: has no live certificate: the sites that have one are "
                    f"{', '.join(names) or 'none'}"
                )
            revoked = {e.serial: e.model_copy(update={"revoked_at": now}) for e in live}
            after = tuple(revoked.get(entry.serial, entry) for entry in before)
            Register(certificates=after).write(self._folder / REGISTER)
        return live

    def _enrol(self, token: str, request: bytes) -> bytes:
        record = self._tokens.find(token)
        try:
            wanted = _checked_request(request, record.name)
        except DataError as error:
            raise refused(str(error)) from error
        key = fingerprint(wanted.public_key())
        if record.used_by is not None:
            return self._issued_again(record, key)
        reason = self._why_unfit(record.name, key, renew=record.renew)
        if reason is not None:
            raise refused(reason)
        # Used up before it is worth anything: a kill in between leaves a spent token.
        self._tokens.change(record, used_by=key)
        pem = self._sign(wanted, record.name)
        serial = f"{read_certificate(pem, 'the certificate').serial_number:x}"
        self._tokens.change(record, used_by=key, serial=serial)
        return pem

    def _issuer(self) -> Issuer:
        return issuer_of(self.ca_pem, read_private_key(self._folder / CA_KEY))

    def _refuse_unfit(self, name: str, key: str | None, *, renew: bool) -> None:
        reason = self._why_unfit(name, key, renew=renew)
        if reason is not None:
            raise DataError(reason)

    def _why_unfit(self, name: str, key: str | None, *, renew: bool) -> str | None:
        """Why a name, or a key by its fingerprint, must not be signed; None if it may be."""
        now = self._clock()
        for entry in self.certificates():
            is_same = entry.name == name and entry.kind == "site"
            if is_same and not renew and entry.state(now) == "valid":
                return (
                    f"{name!r}: has a certificate until {entry.not_after:%Y-%m-%d}: the operator "
                    "revokes it with `discreet certs revoke`, or makes one more with --renew"
                )
            if entry.key == key and (entry.revoked_at is not None or not is_same):
                state = "was revoked" if is_same else "is another's"
                return f"the key {state}: delete site.key at the site and request again"
        return None

    def _sign(self, wanted: x509.CertificateSigningRequest, name: str) -> bytes:
        issuer, now = self._issuer(), self._clock()
        certificate = issue_site(issuer, wanted.public_key(), name=name, now=now)
        entry = _entry(certificate, "site", name)
        private_folder(self._folder / ISSUED_DIR)
        write_file(self._issued_path(entry.serial), pem_of(certificate))
        self._register(entry)
        return pem_of(certificate)

    def _issued_path(self, serial: str) -> Path:
        return self._folder / ISSUED_DIR / f"{serial}.crt"

    def _issued_again(self, record: TokenRecord, key: str) -> bytes:
        now, serial = self._clock(), record.serial
        live = {e.serial for e in self.certificates() if _is_live_site(e, now)}
        # No serial: the server died between the two writes.
        if record.used_by != key or serial is None or serial not in live:
            raise refused("the join token was used: ask the operator for another")
        return read_public(self._issued_path(serial))

    def _register(self, entry: IssuedCertificate) -> None:
        after = (*self.certificates(), entry)
        Register(certificates=after).write(self._folder / REGISTER)


def _checked_request(pem: bytes, name: str) -> x509.CertificateSigningRequest:
    if len(pem) > _MAX_REQUEST_BYTES:
        raise DataError(f"the request: must be at most {_MAX_REQUEST_BYTES} bytes, is {len(pem)}")
    request = read_request(pem, "the request")
    if common_name(request) != name:
        raise DataError(
            f"the request: must be for the site {name!r:.100}, is for {common_name(request)!r}: "
            "a name is signed for nobody else"
        )
    return request


def _issue_server(
    issuer: Issuer, key_pem: bytes, names: Sequence[str], clock: Clock
) -> x509.Certificate:
    if not names:
        raise DataError("--name: give at least one host name or address of the server")
    public_key = load_key(key_pem, SERVER_KEY).public_key()
    return issue_server(issuer, public_key, names=names, now=clock())


def _entry(
    certificate: x509.Certificate, kind: Literal["server", "site"], name: str
) -> IssuedCertificate:
    return IssuedCertificate(
        serial=f"{certificate.serial_number:x}",
        kind=kind,
        name=name,
        key=fingerprint(certificate.public_key()),
        not_after=certificate.not_valid_after_utc,
    )


def _is_live_site(entry: IssuedCertificate, now: datetime) -> bool:
    return entry.kind == "site" and entry.state(now) == "valid"

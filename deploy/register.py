"""The register: which certificates were issued, and which of them are revoked.

One file is both lists, so that they cannot disagree. A certificate that is not in it is refused
like a revoked one: the authority's key alone, used elsewhere, lets nobody in.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError

from discreet.common.errors import DataError
from discreet.privacy.seal import write_private

Clock = Callable[[], datetime]
"""Tells the time, with its zone."""

State = Literal["valid", "expired", "revoked"]

_LOG = logging.getLogger(__name__)


def utc_now() -> datetime:
    """The time now, in whole seconds: certificates know no fractions."""
    return datetime.now(UTC).replace(microsecond=0)


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class IssuedCertificate(_Record):
    """One certificate.

    Attributes:
        serial: Its number, in hexadecimal.
        kind: Whose it is.
        name: The site's name, or the server's first one.
        key: Fingerprint of its public key.
        not_after: Until when it is valid.
        revoked_at: When it was revoked; None if it was not.
    """

    serial: str = Field(pattern=r"^[0-9a-f]{1,40}$")
    kind: Literal["server", "site"]
    name: str
    key: str
    not_after: AwareDatetime
    revoked_at: AwareDatetime | None = None

    def state(self, now: datetime) -> State:
        """What it is worth at a moment."""
        if self.revoked_at is not None:
            return "revoked"
        return "valid" if now <= self.not_after else "expired"


class TokenRecord(_Record):
    """One join token, without its secret.

    Attributes:
        hash: SHA-256 of the secret.
        name: The site that it was made for.
        expires_at: Until when it may be used.
        renew: Whether it may be used although the name has a live certificate.
        used_by: Fingerprint of the key that it was used with; None while unused.
        serial: The certificate made with it.
    """

    hash: str
    name: str
    expires_at: AwareDatetime
    renew: bool = False
    used_by: str | None = None
    serial: str | None = None


class _File(_Record):
    # `schema` would hide a method of pydantic's.
    version: Literal[1] = 1

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read it whole.

        Raises:
            DataError: If it is missing or damaged.
        """
        try:
            return cls.model_validate_json(path.read_bytes())
        except OSError as error:
            raise DataError(
                f"{path}: cannot be read ({error.strerror}): without it nobody is let in; "
                "restore it, or make an authority with `discreet certs init`"
            ) from error
        except ValidationError as error:
            raise DataError(
                f"{path}: must be the file that `discreet certs` wrote, is damaged: restore it "
                "from a backup; until then nobody is let in"
            ) from error

    def write(self, path: Path) -> None:
        """Write it whole or not at all, mode 0600."""
        write_file(path, self.model_dump_json(indent=1).encode() + b"\n")


class Register(_File):
    """All certificates, oldest first."""

    certificates: tuple[IssuedCertificate, ...] = ()


class Tokens(_File):
    """The join tokens that are not yet forgotten."""

    tokens: tuple[TokenRecord, ...] = ()


def write_file(path: Path, content: bytes) -> None:
    """Write a private file whole or not at all; a power cut after that does not undo it.

    Raises:
        DataError: If it cannot be written.
    """
    try:
        write_private(path, content)
        # The new name too must be on the disk: a revocation is not to be forgotten.
        handle = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        raise DataError(f"{path}: cannot be written: {error.strerror}") from error


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes from changing the folder: the server enrols while a person revokes.

    Raises:
        DataError: If the folder cannot be written, or is another user's.
    """
    try:
        owner = folder.stat().st_uid
        if owner != os.geteuid():
            # A file written by root is one that the server may not read: all would be shut out.
            raise DataError(
                f"{folder}: belongs to user {owner}, this is user {os.geteuid()}: run the command "
                "as the user that the server runs as"
            )
        handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise DataError(
            f"{folder}: cannot be written ({error.strerror}): make an authority with "
            "`discreet certs init`, or name its folder with --certs"
        ) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


class SiteCheck:
    """Tells whether a site is let in, by the register as it is on the disk at that moment.

    Each question costs one look at the file's time, size and number; the file is read again
    when one of them has changed. A revocation thus takes effect with the next question: ask at
    every call and for every task, not only when a site connects.
    """

    def __init__(self, path: Path, clock: Clock = utc_now) -> None:
        self._path = path
        self._clock = clock
        # One attribute, replaced whole: questions may come from several threads.
        self._read: tuple[tuple[int, int, int], dict[str, IssuedCertificate]] | None = None
        self._is_told = False

    def __call__(self, name: str, serial: int) -> bool:
        """Whether the certificate with this number is this site's, and live.

        False if the register cannot be read: who cannot be looked up is not let in.
        """
        try:
            entry = self._certificates().get(f"{serial:x}")
        except DataError as error:
            # Once, and not each second for each site.
            if not self._is_told:
                _LOG.error("nobody is let in: %s", error)
            self._is_told = True
            return False
        self._is_told = False
        if entry is None or entry.kind != "site" or entry.name != name:
            return False
        return entry.state(self._clock()) == "valid"

    def _certificates(self) -> dict[str, IssuedCertificate]:
        try:
            stat = self._path.stat()
        except OSError as error:
            self._read = None
            raise DataError(f"{self._path}: cannot be read: {error.strerror}") from error
        # The inode too: each version is a new file, even within one tick of the clock.
        mark = (stat.st_mtime_ns, stat.st_size, stat.st_ino)
        read = self._read
        if read is None or read[0] != mark:
            # The mark is older than what is read, so that a change in between is read again.
            certificates = Register.read(self._path).certificates
            read = self._read = (mark, {each.serial: each for each in certificates})
        return read[1]

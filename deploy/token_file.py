"""The join tokens of an authority: kept as hashes, each for one site, one use and some hours."""

from __future__ import annotations

from datetime import timedelta
from hmac import compare_digest
from pathlib import Path
from typing import Final

from discreet.common.errors import RefusalCode, RefusedError
from discreet.common.join import hash_of
from discreet.deploy.register import Clock, TokenRecord, Tokens

MAX_HOURS: Final = 24 * 30
"""The longest that a token may be used, and that an expired one is remembered."""


class TokenFile:
    """The tokens' file. Whoever calls holds the folder's lock."""

    def __init__(self, path: Path, clock: Clock) -> None:
        self._path = path
        self._clock = clock

    def open(self) -> tuple[TokenRecord, ...]:
        """The tokens that can still be used, oldest first."""
        now = self._clock()
        return tuple(t for t in self._read() if t.used_by is None and now <= t.expires_at)

    def add(self, record: TokenRecord) -> None:
        """Keep one more."""
        self._write((*self._read(), record))

    def find(self, secret: str) -> TokenRecord:
        """The token with this secret.

        Raises:
            RefusedError: If there is none, or its time is over.
        """
        wanted = hash_of(secret)
        found = None
        for record in self._read():
            # In constant time, and all of them: how long it takes tells nothing about a hash.
            if compare_digest(record.hash, wanted):
                found = record
        if found is None:
            raise refused("the join token is not known here: ask the operator for another")
        if self._clock() > found.expires_at:
            raise refused("the join token has expired: ask the operator for another")
        return found

    def change(self, record: TokenRecord, **fields: str) -> None:
        """Write a token anew, with other values of some fields."""
        changed = record.model_copy(update=fields)
        self._write(tuple(changed if t.hash == record.hash else t for t in self._read()))

    def drop(self, name: str) -> int:
        """Forget all tokens of a site.

        Returns:
            How many of them could still have been used.
        """
        num_open = sum(token.name == name for token in self.open())
        self._write(tuple(token for token in self._read() if token.name != name))
        return num_open

    def _read(self) -> tuple[TokenRecord, ...]:
        return Tokens.read(self._path).tokens

    def _write(self, tokens: tuple[TokenRecord, ...]) -> None:
        # Expired ones are kept a while, so that their owner is told so, and then forgotten.
        oldest = self._clock() - timedelta(hours=MAX_HOURS)
        kept = tuple(token for token in tokens if token.expires_at > oldest)
        Tokens(tokens=kept).write(self._path)


def refused(message: str) -> RefusedError:
    """A refusal that may be sent to whoever asked to join."""
    return RefusedError(RefusalCode.POLICY, message)

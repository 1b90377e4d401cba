"""The last update of a site, kept until the next: a round asked for twice is answered once.

What is kept has left the site or is about to: it is clipped and noised, no text is in it.
The file carries its own hash, so that a torn one is told and counts as none: the site then
trains again, and that is debited again.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from discreet.common.errors import DataError
from discreet.common.wire import TensorRecord, pack_arrays, tensors_sha256, unpack_arrays

_KEY_BYTES = 32


@dataclass(frozen=True, slots=True)
class KeptUpdate:
    """A clipped update as it crosses the wire.

    Attributes:
        arrays: The update, encoded.
        sha256: Hash of it, as the wire states it.
    """

    arrays: TensorRecord
    sha256: str


class Outbox:
    """A file that holds at most one update.

    Args:
        path: The file; readable by its owner alone. Its folder is made if missing.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def save(self, arrays: TensorRecord, *, key: str) -> KeptUpdate:
        """Keep an update under a key that names run, round and starting weights."""
        digest = tensors_sha256(arrays)
        content = b"".join((_digest(key), bytes.fromhex(digest), pack_arrays(arrays)))
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle = os.open(self._path, os.O_WRONLY | os.O_CREAT, 0o600)
        try:
            # Written over: an update is as long as the one before it, and its blocks are there.
            os.ftruncate(handle, os.write(handle, content))
        finally:
            os.close(handle)
        return KeptUpdate(arrays, digest)

    def load(self, *, key: str) -> KeptUpdate | None:
        """The update that was kept under this very key, or none."""
        try:
            with self._path.open("rb") as file:
                # Nearly always another round's: then the update itself is not read.
                if file.read(_KEY_BYTES) != _digest(key):
                    return None
                digest, packed = file.read(_KEY_BYTES).hex(), file.read()
            arrays = unpack_arrays(packed)
        except (FileNotFoundError, DataError):
            return None
        return KeptUpdate(arrays, digest) if tensors_sha256(arrays) == digest else None


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()

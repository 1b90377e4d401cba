"""What the link keeps on disk: blobs that clients fetch, and what they have sent so far.

    RUN_DIR/link/down/SHA256                 a record of tensors that open tasks refer to
    RUN_DIR/link/up/TASK/SHA256.part         an upload on its way
    RUN_DIR/link/up/TASK/SHA256              an upload that has come whole, its hash checked
    RUN_DIR/link/up/TASK/result              a reply that is in: it counts once

A task's name is a hash of all that was asked of whom, so that a server which is killed and asks
the same again finds the replies that are in. Files are not synced one by one: after a loss of
power a torn one is told by its tensors' own hash, and the site sends it again.
"""

from __future__ import annotations

import hashlib
import shutil
import threading
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from discreet.common.blobs import HASH_BYTES, Blob
from discreet.common.errors import DataError

_READ_BYTES: Final = 1 << 20


class OrderError(Exception):
    """A chunk does not begin where the last one ended."""


class DamagedError(Exception):
    """A blob's bytes do not have the hash that it was announced with."""


class SupersededError(Exception):
    """Another upload of the same blob has begun: this one is of a broken connection."""


class IncomingBlob:
    """One blob on its way in. Calls may come from any thread, one after another.

    Attributes:
        received: Bytes that are on disk.
    """

    def __init__(self, path: Path, *, sha256: bytes, size: int, offset: int) -> None:
        self._path, self._sha256, self._size = path, sha256, size
        self._lock = threading.Lock()
        self._digest = hashlib.sha256()
        self._file = path.with_suffix(".part").open("ab+", buffering=0)
        try:
            self._begin_at(offset)
        except BaseException:
            self._file.close()
            raise
        self.received = offset

    def _begin_at(self, offset: int) -> None:
        there = self._file.seek(0, 2)
        if offset > there:
            raise OrderError(f"an upload must go on at byte {there} or before, not at {offset}")
        self._file.truncate(offset)
        self._file.seek(0)
        # The hash of what came over an earlier connection; it is read from disk, so that a
        # server that was restarted can go on too.
        while piece := self._file.read(_READ_BYTES):
            self._digest.update(piece)

    def write(self, offset: int, data: bytes) -> None:
        """Take the next bytes.

        Raises:
            OrderError: If they do not follow those before.
            DataError: If they go beyond the size that was announced.
            SupersededError: If this upload is not the current one any more.
        """
        with self._lock:
            if self._file.closed:
                raise SupersededError
            if offset != self.received:
                raise OrderError(f"the next chunk must begin at {self.received}, not at {offset}")
            if offset + len(data) > self._size:
                raise DataError("an upload is longer than announced")
            _write_all(self._file, data)
            self._digest.update(data)
            self.received += len(data)

    def finish(self) -> None:
        """Put the blob in its place.

        Raises:
            OrderError: If bytes are missing.
            DamagedError: If the hash is another one; what came is thrown away.
            SupersededError: If this upload is not the current one any more.
        """
        with self._lock:
            if self._file.closed:
                raise SupersededError
            part = self._path.with_suffix(".part")
            if self.received != self._size:
                raise OrderError(f"{self._size - self.received} bytes are missing")
            self._file.close()
            if self._digest.digest() != self._sha256:
                part.unlink()
                raise DamagedError
            part.replace(self._path)

    def close(self) -> None:
        """Stop writing; what came is kept."""
        with self._lock:
            self._file.close()


@dataclass(frozen=True, slots=True)
class TaskFolder:
    """What has come for one task.

    Attributes:
        path: The folder; made when something comes.
    """

    path: Path

    def received(self, sha256: bytes) -> int:
        """Bytes of a blob that are here."""
        whole = self.path / sha256.hex()
        for path in (whole, whole.with_suffix(".part")):
            if path.is_file():
                return path.stat().st_size
        return 0

    def has(self, sha256: bytes, size: int) -> bool:
        """Whether a blob is here, whole."""
        path = self.path / sha256.hex()
        return path.is_file() and path.stat().st_size == size

    def begin(self, sha256: bytes, *, size: int, offset: int, limit: int) -> IncomingBlob:
        """Begin or go on with an upload.

        Raises:
            DataError: If hash or size are not allowed.
            OrderError: If bytes before `offset` are missing.
        """
        if len(sha256) != HASH_BYTES:
            raise DataError("a blob must be named by 32 bytes")
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        name = sha256.hex()
        others = 0
        for path in self.path.iterdir():
            if path.suffix == ".part" and path.stem != name:
                path.unlink()  # a client sends one blob at a time: this one was given up
            elif path.name != name and not path.suffix:
                others += path.stat().st_size
        if others + size > limit:
            raise DataError(f"an upload must have at most {limit} bytes, got {others + size}")
        return IncomingBlob(self.path / name, sha256=sha256, size=size, offset=offset)

    def open(self, sha256: bytes) -> BinaryIO:
        """A blob that is whole."""
        return (self.path / sha256.hex()).open("rb")

    def save_result(self, result: bytes) -> None:
        """Keep a reply: from now on the task is answered."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        part = self.path / "result.part"
        part.write_bytes(result)
        part.replace(self.path / "result")

    def load_result(self) -> bytes | None:
        """The reply that is in, or none."""
        try:
            return (self.path / "result").read_bytes()
        except FileNotFoundError:
            return None


class Spool:
    """The link's folder.

    Args:
        folder: Made if missing, for its owner alone.
    """

    def __init__(self, folder: Path) -> None:
        self._up, self._down = folder / "up", folder / "down"
        for path in (folder, self._up, self._down):
            path.mkdir(mode=0o700, parents=True, exist_ok=True)

    def task(self, task_id: bytes) -> TaskFolder:
        """The folder of a task."""
        return TaskFolder(self._up / task_id.hex())

    def offer(self, blob: Blob) -> None:
        """Keep a blob for clients to fetch; many tasks share one file.

        Raises:
            DataError: If the disk does not take it.
        """
        path = self._down / blob.sha256.hex()
        if path.is_file() and path.stat().st_size == blob.size:
            return
        part = path.with_suffix(".part")
        try:
            with part.open("wb", buffering=0) as file:
                for buffer in blob.buffers:
                    _write_all(file, buffer)
            part.replace(path)
        except OSError as error:
            raise DataError(
                f"{self._down}: the weights cannot be kept ({error.strerror}): make room on the "
                "disk, then go on with --resume"
            ) from error

    def open_offer(self, sha256: bytes) -> BinaryIO:
        """A blob that `offer` kept."""
        return (self._down / sha256.hex()).open("rb", buffering=0)

    def forget_all_but(self, tasks: Collection[bytes], blobs: Collection[bytes]) -> None:
        """Delete what no open task refers to."""
        names = {task.hex() for task in tasks}
        for path in self._up.iterdir():
            if path.name not in names:
                shutil.rmtree(path, ignore_errors=True)
        names = {blob.hex() for blob in blobs}
        for path in self._down.iterdir():
            if path.name not in names:
                path.unlink(missing_ok=True)


def _write_all(file: BinaryIO, buffer: bytes) -> None:
    view = memoryview(buffer)
    while view:
        view = view[file.write(view) :]

"""Blobs: the tensors of one record as bytes, named by their SHA-256, moved in chunks.

The bytes are those of `discreet.common.wire.pack_arrays`: a line of JSON, then the tensors end
to end. Here they are never put together into one string: a blob is made as a list of buffers
that the record already holds, and read back tensor by tensor, so that no side needs room for a
second copy of a model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO, Final, Protocol

import orjson

from discreet.common.errors import DataError

CHUNK_BYTES: Final = 1 << 20
"""Of a blob that travel in one message: large enough to be fast, small enough to share."""

HASH_BYTES: Final = 32
"""Length of a blob's name."""

_MAX_HEADER_BYTES = 4 << 20


class ArrayLike(Protocol):
    """What a blob is made of: Flower's `Array`, without naming it."""

    dtype: str
    shape: tuple[int, ...]
    stype: str
    data: bytes


@dataclass(frozen=True, slots=True)
class PackedArray:
    """One tensor as it lies in a blob; the names are those of Flower's `Array`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    stype: str
    data: bytes


@dataclass(frozen=True, slots=True)
class Blob:
    """Bytes that are not in one piece.

    Attributes:
        buffers: The bytes, in order.
        size: How many there are.
        sha256: Hash of them, 32 bytes: the blob's name.
    """

    buffers: tuple[bytes, ...]
    size: int
    sha256: bytes

    @classmethod
    def of(cls, buffers: Iterable[bytes]) -> Blob:
        """Name and measure buffers; they are kept, not copied."""
        kept = tuple(buffers)
        digest = hashlib.sha256()
        for buffer in kept:
            digest.update(buffer)
        return cls(kept, sum(map(len, kept)), digest.digest())

    def chunks(self, offset: int = 0, size: int = CHUNK_BYTES) -> Iterator[bytes]:
        """The bytes from `offset` on, `size` at a time; the last chunk may be shorter."""
        pieces: list[memoryview] = []
        room = size
        for buffer in self.buffers:
            view = memoryview(buffer)
            skipped = min(offset, len(view))
            offset -= skipped
            view = view[skipped:]
            while len(view) >= room:
                yield b"".join((*pieces, view[:room]))
                view, pieces, room = view[room:], [], size
            if view:
                pieces.append(view)
                room -= len(view)
        if pieces:
            yield b"".join(pieces)


def pack(arrays: Iterable[tuple[str, ArrayLike]]) -> Blob:
    """Named tensors as a blob: the same bytes as `wire.pack_arrays`, without joining them."""
    listed = list(arrays)
    header = [[name, a.dtype, a.shape, a.stype, len(a.data)] for name, a in listed]
    return Blob.of((orjson.dumps(header) + b"\n", *(a.data for _, a in listed)))


def unpack(file: BinaryIO, size: int) -> Iterator[PackedArray]:
    """The tensors of a blob, one by one.

    Nothing is read or allocated before the header's sizes add up to what there is, so that a
    stranger's header cannot ask for memory.

    Args:
        file: The blob, at its start.
        size: Its length in bytes.

    Raises:
        DataError: If it is not what `pack` made.
    """
    line = file.readline(_MAX_HEADER_BYTES)
    try:
        header = [_checked(*entry) for entry in orjson.loads(line)]
    except (TypeError, ValueError) as error:
        raise DataError("a blob has no header: it was damaged") from error
    if not line.endswith(b"\n") or len(line) + sum(num for *_, num in header) != size:
        raise DataError("a blob is not as long as its header says: it was damaged")
    for name, dtype, shape, stype, num in header:
        data = file.read(num)
        if len(data) != num:
            raise DataError("a blob ends too early: it was damaged")
        yield PackedArray(name, dtype, shape, stype, data)


def _checked(
    name: object, dtype: object, shape: object, stype: object, num: object
) -> tuple[str, str, tuple[int, ...], str, int]:
    if not (isinstance(name, str) and isinstance(dtype, str) and isinstance(stype, str)):
        raise TypeError("name, dtype and stype are texts")
    if not (isinstance(shape, list) and all(type(n) is int and n >= 0 for n in shape)):
        raise TypeError("a shape is a list of lengths")
    if type(num) is not int or num < 0:
        raise TypeError("a size is a number of bytes")
    return name, dtype, tuple(shape), stype, num

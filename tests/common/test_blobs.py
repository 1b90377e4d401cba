"""Blobs: made without a copy, cut anywhere, and never trusted."""

import hashlib
import io

import orjson
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from discreet.common.blobs import Blob, pack, unpack
from discreet.common.errors import DataError
from discreet.common.wire import encode_tensors, pack_arrays

TENSORS = {
    "w": torch.arange(12, dtype=torch.float32).reshape(3, 4),
    "empty": torch.zeros(0, 2),
    "scalar": torch.tensor(2.5, dtype=torch.float64),
    "half": torch.ones(5, dtype=torch.bfloat16),
}


def packed() -> bytes:
    return pack_arrays(encode_tensors(TENSORS))


def test_a_blob_has_the_bytes_of_packed_arrays_and_their_hash() -> None:
    blob = pack(encode_tensors(TENSORS).items())

    assert b"".join(blob.buffers) == packed()
    assert blob.size == len(packed())
    assert blob.sha256 == hashlib.sha256(packed()).digest()


def test_a_blob_keeps_the_records_own_buffers() -> None:
    arrays = encode_tensors(TENSORS)

    blob = pack(arrays.items())

    assert blob.buffers[1] is arrays["w"].data


def test_unpacking_gives_every_tensor_as_it_was() -> None:
    arrays = encode_tensors(TENSORS)

    read = list(unpack(io.BytesIO(packed()), len(packed())))

    assert [p.name for p in read] == list(TENSORS)
    for one in read:
        same = arrays[one.name]
        assert (one.dtype, one.shape, one.stype) == (same.dtype, same.shape, same.stype)
        assert one.data == same.data


@given(
    buffers=st.lists(st.binary(max_size=20), max_size=6),
    offset=st.integers(0, 150),
    size=st.integers(1, 9),
)
def test_chunks_from_any_offset_are_the_rest_of_the_bytes(
    buffers: list[bytes], offset: int, size: int
) -> None:
    whole = b"".join(buffers)

    chunks = list(Blob.of(buffers).chunks(offset, size))

    assert b"".join(chunks) == whole[offset:]
    assert all(len(chunk) == size for chunk in chunks[:-1])
    assert all(chunks)


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"[",
        b"{}x",
        b"null",
        b"[1]",
        b'[["w"]]',
        b'[["w","float32",[2],"numpy.ndarray",-1]]',
        b'[["w","float32",[-2],"numpy.ndarray",4]]',
        b'[["w","float32",[2.5],"numpy.ndarray",4]]',
        b'[["w","float32",[true],"numpy.ndarray",4]]',
        b'[[7,"float32",[2],"numpy.ndarray",4]]',
        b'[["w","float32",[2],"numpy.ndarray",999999999999999]]',
        b'[["w","float32",[2],"numpy.ndarray",3]]',
        b"[" * 100_000,
    ],
)
def test_a_strangers_header_is_refused_before_anything_is_read(header: bytes) -> None:
    content = header + b"\nabcd"

    with pytest.raises(DataError, match="damaged"):
        list(unpack(io.BytesIO(content), len(content)))


def test_a_blob_that_is_shorter_than_it_was_measured_is_refused() -> None:
    content = orjson.dumps([["w", "float32", [2], "numpy.ndarray", 8]]) + b"\n" + bytes(8)

    with pytest.raises(DataError, match="ends too early"):
        list(unpack(io.BytesIO(content[:-1]), len(content)))


@given(st.binary(max_size=200))
def test_garbage_is_refused_as_damaged(content: bytes) -> None:
    with pytest.raises(DataError):
        list(unpack(io.BytesIO(b"x" + content), len(content) + 1))

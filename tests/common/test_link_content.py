"""Records cross the link as they are, whatever Flower strategy made them."""

import io
from typing import BinaryIO

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from discreet.common import link_pb2 as pb
from discreet.common.blobs import Blob, pack
from discreet.common.errors import DataError
from discreet.common.link_content import (
    check_blobs,
    decode_content,
    download_chunk_bytes,
    encode_content,
    is_loopback,
    node_id_of,
    upload_frame_bytes,
)
from discreet.common.wire import encode_tensors, tensors_sha256


def carried(content: RecordDict) -> RecordDict:
    message, blobs = encode_content(content)
    files = {blob.sha256: b"".join(blob.buffers) for blob in blobs}
    message = pb.Content.FromString(message.SerializeToString())
    return decode_content(message, lambda sha256: io.BytesIO(files[sha256]))


def no_blob(sha256: bytes) -> BinaryIO:
    raise AssertionError("no blob was asked for")


def test_all_kinds_of_records_come_out_as_they_went_in() -> None:
    content = RecordDict(
        {
            "task": ConfigRecord(
                {"i": -7, "f": 0.1, "s": "é\n", "b": b"\0\xff", "t": True, "l": [1, 2], "e": []}
            ),
            "flags": ConfigRecord({"flags": [True, False], "names": ["a", ""], "raw": [b"x"]}),
            "metrics": MetricRecord({"loss": 0.5, "steps": 3, "curve": [1.0, 0.5]}),
            "weights": encode_tensors({"w": torch.randn(3, 2), "h": torch.ones(2).bfloat16()}),
        }
    )

    read = carried(content)

    assert dict(read.config_records) == dict(content.config_records)
    assert dict(read.metric_records) == dict(content.metric_records)
    assert type(read["task"]["t"]) is bool
    weights = read["weights"]
    assert isinstance(weights, ArrayRecord)
    assert tensors_sha256(weights) == tensors_sha256(content.array_records["weights"])


@given(st.floats() | st.integers(-(2**63), 2**63 - 1) | st.text() | st.binary() | st.booleans())
def test_every_value_crosses_unchanged(value: float | str | bytes | bool) -> None:
    read = carried(RecordDict({"c": ConfigRecord({"v": value})}))["c"]["v"]

    assert type(read) is type(value)
    assert repr(read) == repr(value)  # NaN is not equal to itself


def test_one_record_for_many_sites_is_packed_once() -> None:
    arrays = encode_tensors({"w": torch.ones(2)})
    packed: list[Blob] = []

    def blob_of(record: ArrayRecord) -> Blob:
        if not packed:
            packed.append(pack(record.items()))
        return packed[0]

    for _ in range(2):
        _, blobs = encode_content(RecordDict({"w": arrays}), blob_of)
        assert blobs == packed


@pytest.mark.parametrize(
    "record",
    [
        pb.Record(name="x"),
        pb.Record(name="x", kind=pb.KIND_CONFIG, fields=[pb.Field(name="f")]),
        pb.Record(
            name="x",
            kind=pb.KIND_METRIC,
            fields=[pb.Field(name="f", value=pb.Value(text="not a number"))],
        ),
        pb.Record(
            name="x",
            kind=pb.KIND_CONFIG,
            fields=[
                pb.Field(
                    name="f",
                    value=pb.Value(
                        list=pb.Values(values=[pb.Value(integer=1), pb.Value(text="a")])
                    ),
                )
            ],
        ),
        pb.Record(
            name="x",
            kind=pb.KIND_CONFIG,
            fields=[
                pb.Field(
                    name="f",
                    value=pb.Value(list=pb.Values(values=[pb.Value(list=pb.Values())])),
                )
            ],
        ),
    ],
)
def test_a_record_that_flower_cannot_hold_is_refused(record: pb.Record) -> None:
    with pytest.raises(DataError):
        decode_content(pb.Content(records=[record]), no_blob)


def test_blobs_beyond_the_limit_or_without_a_name_are_refused() -> None:
    good = pb.BlobRef(record="w", sha256=bytes(32), size=50)

    check_blobs([good, good], limit=100)

    with pytest.raises(DataError, match="at most 99 bytes, got 100"):
        check_blobs([good, good], limit=99)
    with pytest.raises(DataError, match="32 bytes"):
        check_blobs([pb.BlobRef(record="w", sha256=b"../../x", size=1)], limit=100)


def test_a_site_has_the_same_node_id_everywhere() -> None:
    names = [f"site-{i:04}" for i in range(1000)]

    ids = {node_id_of(name) for name in names}

    assert len(ids) == len(names)
    assert all(1 < node < 2**63 for node in ids)
    assert node_id_of("site-0000") == node_id_of("site-0000")


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("127.0.0.1:80", True),
        ("localhost:80", True),
        ("[::1]:80", True),
        ("unix:/tmp/x", True),
        ("0.0.0.0:80", False),
        ("[::]:80", False),
        ("example.org:80", False),
        ("localhost.example.org:80", False),
        ("127.example.org:80", False),
    ],
)
def test_only_this_machines_own_addresses_are_loopback(address: str, expected: bool) -> None:
    assert is_loopback(address) is expected


@given(offset=st.integers(0, 2**63), data=st.binary(max_size=300))
def test_frames_made_by_hand_are_what_protobuf_reads(offset: int, data: bytes) -> None:
    frame = pb.UploadFrame.FromString(upload_frame_bytes(offset, data))
    chunk = pb.Chunk.FromString(download_chunk_bytes(data))

    assert frame == pb.UploadFrame(chunk=pb.UploadChunk(offset=offset, data=data))
    assert chunk == pb.Chunk(data=data)

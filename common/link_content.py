"""What both sides of the link agree on: versions, limits, and records as protobuf.

A Flower `RecordDict` crosses the link in two parts: config and metric records in a `Content`
message, each array record as a blob that the message names by hash, size and record.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Callable, Iterable, Sequence
from typing import BinaryIO, Final, cast

from google.protobuf.message import Message

from discreet.common import link_pb2 as pb
from discreet.common.blobs import HASH_BYTES, Blob, pack, unpack
from discreet.common.errors import DataError
from discreet.common.wire import TensorRecord

# isort: split
# After `wire`, which turns Flower's telemetry off before Flower is imported.
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.app.typing import ConfigRecordValues, MetricRecordValues

PROTOCOL_VERSION: Final = 1
"""Of the link; raised whenever a field changes its meaning. Both sides refuse another one."""

SERVICE: Final = pb.DESCRIPTOR.services_by_name["Federation"].full_name
"""Name of the service."""

SESSION_KEY: Final = "discreet-session"
"""Metadata that ties a call to the stream that its client holds open."""

MAX_MESSAGE_BYTES: Final = 4 << 20
"""Of one protobuf message; blobs travel in chunks and never come near."""

SERVER_NODE: Final = 1
"""Flower's node id of the server."""

_Scalar = int | float | str | bytes | bool


def version_text(theirs: int, *, of: str) -> str:
    """The one line that both sides write when their versions differ."""
    return (
        f"protocol version must be {PROTOCOL_VERSION}, the {of} has {theirs}: "
        "install the same version of discreet on both sides"
    )


def node_id_of(name: str) -> int:
    """The Flower node id of a site: the same on both sides, in every run, after every restart."""
    # 62 bits: positive as a signed number, and above the ids that the server takes.
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) >> 2 | 1 << 32


def is_loopback(address: str) -> bool:
    """Whether HOST:PORT is on this machine alone, as far as its text tells."""
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or address.startswith("unix:")


def encode_content(
    content: RecordDict, blob_of: Callable[[TensorRecord], Blob] | None = None
) -> tuple[pb.Content, list[Blob]]:
    """Split records into a message and blobs.

    Args:
        content: The records.
        blob_of: Packs an array record; by default anew each time.
    """
    message, blobs = pb.Content(), []
    for name, record in content.items():
        if isinstance(record, ArrayRecord):
            blob = blob_of(record) if blob_of else pack(record.items())
            message.blobs.add(record=name, sha256=blob.sha256, size=blob.size)
            blobs.append(blob)
        else:
            kind = pb.KIND_CONFIG if isinstance(record, ConfigRecord) else pb.KIND_METRIC
            entry = message.records.add(name=name, kind=kind)
            for key, value in record.items():
                entry.fields.add(name=key, value=_encode_value(value))
    return message, blobs


def decode_content(message: pb.Content, open_blob: Callable[[bytes], BinaryIO]) -> RecordDict:
    """Put together what `encode_content` split.

    Args:
        message: The records that are small, and the names of the blobs.
        open_blob: Opens a blob by its SHA-256.

    Raises:
        DataError: If records or blobs are not what `encode_content` made.
    """
    content = RecordDict()
    try:
        for entry in message.records:
            fields = {field.name: _decode_value(field.value) for field in entry.fields}
            if entry.kind == pb.KIND_CONFIG:
                content[entry.name] = ConfigRecord(cast(dict[str, ConfigRecordValues], fields))
            elif entry.kind == pb.KIND_METRIC:
                content[entry.name] = MetricRecord(cast(dict[str, MetricRecordValues], fields))
            else:
                raise DataError("a record is of no known kind")
    except (TypeError, ValueError) as error:
        raise DataError("a record holds a value that Flower's records cannot") from error
    for ref in message.blobs:
        with open_blob(ref.sha256) as file:
            content[ref.record] = _read_arrays(file, ref.size)
    return content


def upload_frame_bytes(offset: int, data: bytes) -> bytes:
    """An `UploadFrame` with one chunk, as protobuf writes it.

    By hand, because protobuf copies its bytes fields three times on the way out: that costs
    more than all the rest of an upload.
    """
    head = b"\x08" + _varint(offset) + b"\x12" + _varint(len(data))
    return b"".join((b"\x12", _varint(len(head) + len(data)), head, data))


def download_chunk_bytes(data: bytes) -> bytes:
    """A `Chunk`, as protobuf writes it; by hand for the same reason."""
    return b"".join((b"\x0a", _varint(len(data)), data))


def serialize(message: bytes | Message) -> bytes:
    """A message as bytes, whether it is already or not."""
    return message if isinstance(message, bytes) else message.SerializeToString()


def check_blobs(refs: Iterable[pb.BlobRef], limit: int) -> None:
    """Refuse references that name no hash, or more bytes than there may be.

    Raises:
        DataError: Saying which.
    """
    total = 0
    for ref in refs:
        if len(ref.sha256) != HASH_BYTES:
            raise DataError("a blob must be named by 32 bytes")
        total += ref.size
    if total > limit:
        raise DataError(f"blobs must have at most {limit} bytes, got {total}")


def _varint(number: int) -> bytes:
    digits = bytearray()
    while number > 0x7F:
        digits.append(number & 0x7F | 0x80)
        number >>= 7
    digits.append(number)
    return bytes(digits)


def _read_arrays(file: BinaryIO, size: int) -> ArrayRecord:
    record = ArrayRecord()
    for packed in unpack(file, size):
        record[packed.name] = Array(packed.dtype, packed.shape, packed.stype, packed.data)
    return record


def _encode_value(value: _Scalar | Sequence[_Scalar]) -> pb.Value:
    match value:
        case bool():  # before int, of which it is a kind
            return pb.Value(flag=value)
        case int():
            return pb.Value(integer=value)
        case float():
            return pb.Value(real=value)
        case str():
            return pb.Value(text=value)
        case bytes():
            return pb.Value(raw=value)
        case _:
            return pb.Value(list=pb.Values(values=[_encode_value(item) for item in value]))


def _decode_value(message: pb.Value) -> _Scalar | list[_Scalar]:
    kind = message.WhichOneof("value")
    if kind is None:
        raise DataError("a field has no value")
    if kind != "list":
        return getattr(message, kind)  # type: ignore[no-any-return]
    items = [_decode_value(item) for item in message.list.values]
    if any(isinstance(item, list) for item in items):
        raise DataError("a list may not hold lists")
    return items  # type: ignore[return-value]

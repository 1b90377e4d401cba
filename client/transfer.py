"""Blobs down and up over one connection, going on where an earlier one broke."""

from __future__ import annotations

import hashlib
import io
import queue
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

import grpc

from discreet.common import link_pb2 as pb
from discreet.common import link_pb2_grpc
from discreet.common.blobs import CHUNK_BYTES, Blob
from discreet.common.link_content import SERVICE, SESSION_KEY, serialize, upload_frame_bytes

_QUERY_SECONDS = 60.0


class DamagedBlobError(Exception):
    """What came is not what was announced."""


class InterruptedTransferError(Exception):
    """The transfer is not wanted any more; it ended after the chunk in flight."""


@dataclass(frozen=True, slots=True)
class Link:
    """An open stream, and what its other calls need.

    Attributes:
        stub: The service.
        upload: Its `Upload`, for frames that may be bytes already.
        session: The stream's token.
        node_id: Flower's id of this site.
        outgoing: Frames to send on the stream; None ends it.
    """

    stub: link_pb2_grpc.FederationStub
    upload: grpc.StreamUnaryMultiCallable[pb.UploadFrame | bytes, pb.UploadReply]
    session: str
    node_id: int
    outgoing: queue.SimpleQueue[pb.ClientFrame | None]

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What goes with each call."""
        return ((SESSION_KEY, self.session),)


def upload_call(
    channel: grpc.Channel,
) -> grpc.StreamUnaryMultiCallable[pb.UploadFrame | bytes, pb.UploadReply]:
    """The service's `Upload`, for frames that may be bytes already."""
    return channel.stream_unary(
        f"/{SERVICE}/Upload",
        request_serializer=serialize,
        response_deserializer=pb.UploadReply.FromString,
    )


@dataclass(slots=True)
class Download:
    """A blob on its way in; what has come is kept from one connection to the next.

    Attributes:
        ref: Hash and size.
        received: Bytes that have come.
    """

    ref: pb.BlobRef
    received: int = 0
    _file: io.BytesIO = field(default_factory=io.BytesIO)
    _digest: hashlib._Hash = field(default_factory=hashlib.sha256)

    def run(self, link: Link, is_wanted: Callable[[], bool]) -> BinaryIO:
        """Fetch what is missing.

        Raises:
            DamagedBlobError: If it has another hash or length; nothing of it is kept.
            InterruptedTransferError: If it is not wanted any more.
            grpc.RpcError: If the connection breaks; `run` on another one goes on.
        """
        if self.received < self.ref.size:
            # A call that ends too early, without an error, is told by the length below.
            request = pb.DownloadRequest(sha256=self.ref.sha256, offset=self.received)
            call = link.stub.Download(request, metadata=link.metadata)
            try:
                for chunk in call:
                    self._take(chunk.data)
                    if not is_wanted():
                        raise InterruptedTransferError
            finally:
                call.cancel()
        if self._digest.digest() != self.ref.sha256 or self.received != self.ref.size:
            self._start_again()
            raise DamagedBlobError
        self._file.seek(0)
        return self._file

    def _take(self, data: bytes) -> None:
        self.received += len(data)
        if self.received > self.ref.size:
            self._start_again()
            raise DamagedBlobError
        # While the next chunk is on its way.
        self._digest.update(data)
        self._file.write(data)

    def _start_again(self) -> None:
        self._file, self._digest = io.BytesIO(), hashlib.sha256()
        self.received = 0


def upload(link: Link, *, task_id: bytes, blob: Blob, is_wanted: Callable[[], bool]) -> None:
    """Send a blob, from the first byte on that the server lacks.

    Raises:
        InterruptedTransferError: If it is not wanted any more.
        grpc.RpcError: If the connection breaks or the server refuses it.
    """
    start = 0
    if blob.size > CHUNK_BYTES:  # a single chunk is sent sooner than it is asked about
        query = pb.UploadQuery(task_id=task_id, sha256=blob.sha256)
        state = link.stub.UploadOffset(query, metadata=link.metadata, timeout=_QUERY_SECONDS)
        # A part that is longer than the blob is another's: the server cuts it off.
        start = min(state.received, blob.size)
    header = pb.UploadHeader(task_id=task_id, sha256=blob.sha256, size=blob.size, offset=start)

    def frames() -> Iterator[pb.UploadFrame | bytes]:
        yield pb.UploadFrame(header=header)
        offset = start
        for data in blob.chunks(start):
            if not is_wanted():
                return
            yield upload_frame_bytes(offset, data)
            offset += len(data)

    try:
        link.upload(frames(), metadata=link.metadata)
    finally:
        if not is_wanted():
            raise InterruptedTransferError

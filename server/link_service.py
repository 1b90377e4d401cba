"""The gRPC service: streams, transfers, enrolment. Runs in the event loop of `LinkServer`.

Every call but enrolment belongs to an open stream: it carries the stream's token, and under TLS
the same certificate. A site that is not allowed any more, or whose stream has ended, is refused
at the next chunk.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from functools import partial
from typing import NoReturn, TypeVar

import grpc
from google.protobuf.message import Message
from grpc.aio import ServicerContext as Context

from discreet.common import link_pb2 as pb
from discreet.common import link_pb2_grpc
from discreet.common.blobs import CHUNK_BYTES, HASH_BYTES
from discreet.common.errors import DataError, DiscreetError, RefusedError
from discreet.common.link_content import SESSION_KEY, download_chunk_bytes, serialize
from discreet.common.tls import Peer, peer_of
from discreet.server.link_desk import Desk, LinkCause, NotAdmittedError, Session, Task, farewell_of
from discreet.server.link_spool import DamagedError, IncomingBlob, OrderError, SupersededError

_log = logging.getLogger(__name__)

_HELLO_SECONDS = 10.0
_SHORT_BYTES = 1 << 16
_MAX_QUEUED = 100
_PATIENCE_SECONDS = 0.1
_MAX_REQUEST_BYTES = 1 << 16

_Q = TypeVar("_Q")
_A = TypeVar("_A")

SiteAllowed = Callable[[str, int], bool]
SignSite = Callable[[str, bytes], bytes]


class FederationService(link_pb2_grpc.FederationServicer):
    """Everything but enrolment.

    Args:
        desk: The state.
        site_allowed: Given a site's name and its certificate's serial number.
        is_tls: Whether clients show certificates.
    """

    def __init__(self, desk: Desk, site_allowed: SiteAllowed, *, is_tls: bool) -> None:
        self._desk = desk
        self._site_allowed = site_allowed
        self._is_tls = is_tls
        self._uploads: dict[tuple[bytes, bytes], IncomingBlob] = {}
        self._turn = asyncio.Lock()

    def quick_handlers(
        self,
    ) -> dict[str, grpc.RpcMethodHandler[pb.DownloadRequest, bytes | Message]]:
        """Handlers in the place of generated ones: `Download` gives bytes, not messages."""
        download = grpc.unary_stream_rpc_method_handler(
            self.Download,
            request_deserializer=pb.DownloadRequest.FromString,
            response_serializer=serialize,
        )
        return {"Download": download}

    async def Attend(  # noqa: N802
        self,
        frames: AsyncIterator[pb.ClientFrame],
        context: Context[pb.ClientFrame, pb.ServerFrame],
    ) -> AsyncIterator[pb.ServerFrame]:
        """Hold a client's stream open: what it sends is read beside what it is sent."""
        try:
            session = await self._admit(frames, context)
        except NotAdmittedError as error:
            yield error.farewell
            return
        reader = asyncio.create_task(self._read(session, frames))
        try:
            while (frame := await session.outgoing.get()) is not None:
                yield frame
        finally:
            reader.cancel()
            self._desk.leave(session)

    async def Download(  # noqa: N802
        self, request: pb.DownloadRequest, context: Context[pb.DownloadRequest, bytes]
    ) -> AsyncIterator[bytes]:
        """Send a blob that an open task refers to. All clients read one file."""
        session = await self._session(context)
        wanted = (
            task
            for task in self._desk.tasks()
            if task.site == session.name
            and any(ref.sha256 == request.sha256 for ref in task.offer.content.blobs)
        )
        if next(wanted, None) is None:
            await self._refuse(context, grpc.StatusCode.FAILED_PRECONDITION, "late")
        with self._desk.spool.open_offer(request.sha256) as file:
            file.seek(request.offset)
            while data := file.read(CHUNK_BYTES):
                await self._check_open(session, context)
                yield download_chunk_bytes(data)
                session.last_seen = time.monotonic()
                self._desk.bytes_out += len(data)

    async def UploadOffset(  # noqa: N802
        self, request: pb.UploadQuery, context: Context[pb.UploadQuery, pb.UploadState]
    ) -> pb.UploadState:
        """Say how much of an upload has come."""
        session = await self._session(context)
        task = await self._open_task(session, request.task_id, context)
        if len(request.sha256) != HASH_BYTES:
            await self._refuse(context, grpc.StatusCode.INVALID_ARGUMENT, "bad_upload")
        folder = self._desk.spool.task(task.id)
        return pb.UploadState(received=folder.received(request.sha256))

    async def Upload(  # noqa: N802
        self,
        frames: AsyncIterator[pb.UploadFrame],
        context: Context[pb.UploadFrame, pb.UploadReply],
    ) -> pb.UploadReply:
        """Take a blob; what has come is kept whatever happens."""
        session = await self._session(context)
        header = await self._header(frames, context)
        task = await self._open_task(session, header.task_id, context)
        try:
            upload = await self._begin(task, header)
            if upload is None:
                return pb.UploadReply(received=header.size)
            try:
                await self._receive(upload, frames, (session, task, context))
                await asyncio.to_thread(upload.finish)
            finally:
                self._end(upload, task, header)
        except OrderError as error:
            await self._refuse(context, grpc.StatusCode.OUT_OF_RANGE, "order", str(error))
        except DataError as error:
            await self._refuse(context, grpc.StatusCode.INVALID_ARGUMENT, "bad_upload", str(error))
        except DamagedError:
            await self._refuse(context, grpc.StatusCode.DATA_LOSS, "damaged")
        except SupersededError:
            await self._refuse(context, grpc.StatusCode.ABORTED, "superseded")
        except OSError as error:
            _log.error("an upload cannot be kept: %s", error.strerror)
            await self._refuse(context, grpc.StatusCode.RESOURCE_EXHAUSTED, "disk")
        return pb.UploadReply(received=upload.received)

    async def watch(self) -> None:
        """Once a second: cut off who is not allowed any more, give up on who is silent."""
        while True:
            await asyncio.sleep(1.0)
            sessions = self._desk.sessions()
            revoked = await asyncio.to_thread(
                lambda listed: [s for s in listed if not self._is_allowed(s.name, s.serial)],
                sessions,
            )
            for session in revoked:
                self._cut_off(session)
            self._desk.sweep()

    async def _admit(
        self, frames: AsyncIterator[pb.ClientFrame], context: Context[_Q, _A]
    ) -> Session:
        try:
            first = await asyncio.wait_for(anext(frames), _HELLO_SECONDS)
        except (TimeoutError, StopAsyncIteration) as error:
            raise NotAdmittedError(pb.REASON_SILENT, "no hello came") from error
        if first.WhichOneof("frame") != "hello":
            raise NotAdmittedError(pb.REASON_VERSION, "the first frame must be a hello")
        hello = first.hello
        peer = self._peer(hello.name, context)
        if peer is None:
            self._desk.refused["name"] += 1
            _log.warning("a client is not let in: its name is not its certificate's")
            raise NotAdmittedError(
                pb.REASON_NAME,
                f"the name must be the one in the certificate, got {hello.name[:200]!r}: "
                "change the name in SITE.yaml, or use this site's own certificate",
            )
        if not await asyncio.to_thread(self._is_allowed, peer.name, peer.serial):
            self._desk.refused["not_allowed"] += 1
            _log.warning("site %s is not let in: it is not allowed", peer.name)
            raise NotAdmittedError(pb.REASON_NOT_ALLOWED, _not_allowed(peer.name))
        loop = asyncio.get_running_loop()
        session = Session(peer.name, peer.serial, hello.instance, loop)
        session.handler = asyncio.current_task()
        self._desk.admit(hello, session)
        return session

    def _peer(self, name: str, context: Context[_Q, _A]) -> Peer | None:
        if not self._is_tls:
            # One line of a log is one line, whatever a stranger calls itself.
            is_name = 0 < len(name) <= 200 and name.isprintable() and name == name.strip()
            return Peer(name, 0) if is_name else None
        peer = peer_of(context.auth_context())
        return peer if peer is not None and peer.name == name else None

    def _is_allowed(self, name: str, serial: int) -> bool:
        try:
            return self._site_allowed(name, serial)
        except Exception:
            # A list that cannot be read lets nobody in.
            _log.exception("the list of sites cannot be read: nobody is let in")
            return False

    async def _read(self, session: Session, frames: AsyncIterator[pb.ClientFrame]) -> None:
        try:
            async for frame in frames:
                session.last_seen = time.monotonic()
                match frame.WhichOneof("frame"):
                    case "heartbeat":
                        pass
                    case "result":
                        self._take(session, frame.result)
                    case "goodbye":
                        self._desk.leave(session, cause=LinkCause.LEFT)
                        return
                    case _:
                        break
                while session.outgoing.qsize() > _MAX_QUEUED:
                    # Who does not read what it is sent is not listened to.
                    await asyncio.sleep(_PATIENCE_SECONDS)
        except OSError as error:
            _log.error("a reply cannot be kept: %s", error.strerror)
        finally:
            session.close()

    def _take(self, session: Session, result: pb.Result) -> None:
        is_taken = self._desk.take(session, result)
        receipt = pb.Receipt(task_id=result.task_id, is_taken=is_taken)
        session.send(pb.ServerFrame(receipt=receipt))

    def _cut_off(self, session: Session) -> None:
        self._desk.refused["not_allowed"] += 1
        _log.warning("site %s is cut off: it is not allowed any more", session.name)
        session.close(farewell_of(pb.REASON_NOT_ALLOWED, _not_allowed(session.name)))
        self._desk.leave(session, cause=LinkCause.REVOKED)

    async def _session(self, context: Context[_Q, _A]) -> Session:
        metadata = dict(context.invocation_metadata() or ())
        session = self._desk.session_of(str(metadata.get(SESSION_KEY, "")))
        if session is None or self._peer(session.name, context) != Peer(
            session.name, session.serial
        ):
            await self._refuse(context, grpc.StatusCode.UNAUTHENTICATED, "no_session")
        if not await asyncio.to_thread(self._is_allowed, session.name, session.serial):
            self._cut_off(session)
            await self._refuse(context, grpc.StatusCode.PERMISSION_DENIED, "not_allowed")
        session.last_seen = time.monotonic()
        return session

    async def _open_task(self, session: Session, task_id: bytes, context: Context[_Q, _A]) -> Task:
        await self._check_open(session, context)
        task = self._desk.open_task(session, task_id)
        if task is None:
            await self._refuse(context, grpc.StatusCode.FAILED_PRECONDITION, "late")
        return task

    async def _header(
        self, frames: AsyncIterator[pb.UploadFrame], context: Context[_Q, _A]
    ) -> pb.UploadHeader:
        first = await anext(frames, None)
        if first is None or first.WhichOneof("frame") != "header":
            await self._refuse(context, grpc.StatusCode.INVALID_ARGUMENT, "bad_upload")
        return first.header

    async def _begin(self, task: Task, header: pb.UploadHeader) -> IncomingBlob | None:
        """The upload, or none if the blob is here already."""
        folder = self._desk.spool.task(task.id)
        if len(header.sha256) == HASH_BYTES and folder.has(header.sha256, header.size):
            return None
        key = (task.id, header.sha256)
        async with self._turn:  # else two could begin to write one file
            if (old := self._uploads.pop(key, None)) is not None:
                old.close()  # its connection is broken, though nobody has told it yet
            begin = partial(folder.begin, header.sha256, size=header.size, offset=header.offset)
            begun = asyncio.ensure_future(asyncio.to_thread(begin, limit=task.offer.upload_limit))
            try:
                upload = await asyncio.shield(begun)
            except asyncio.CancelledError:
                begun.add_done_callback(_close_begun)  # the connection broke meanwhile
                raise
            self._uploads[key] = upload
        return upload

    def _end(self, upload: IncomingBlob, task: Task, header: pb.UploadHeader) -> None:
        upload.close()
        key = (task.id, header.sha256)
        if self._uploads.get(key) is upload:
            del self._uploads[key]

    async def _receive(
        self,
        upload: IncomingBlob,
        frames: AsyncIterator[pb.UploadFrame],
        whose: tuple[Session, Task, Context[_Q, _A]],
    ) -> None:
        session, task, context = whose
        loop = asyncio.get_running_loop()
        written: asyncio.Future[None] | None = None
        try:
            async for frame in frames:
                chunk = frame.chunk
                session.last_seen = time.monotonic()
                await self._open_task(session, task.id, context)
                if written is not None:
                    await written
                    written = None
                self._desk.bytes_in += len(chunk.data)
                if len(chunk.data) <= _SHORT_BYTES:
                    upload.write(chunk.offset, chunk.data)
                else:
                    # Hashed and written while the next chunk is on its way.
                    written = loop.run_in_executor(None, upload.write, chunk.offset, chunk.data)
            if written is not None:
                await written
        finally:
            if written is not None:
                written.cancel()  # else nobody would ask what became of it

    async def _check_open(self, session: Session, context: Context[_Q, _A]) -> None:
        if session.is_closed:
            await self._refuse(context, grpc.StatusCode.UNAUTHENTICATED, "no_session")

    async def _refuse(
        self, context: Context[_Q, _A], code: grpc.StatusCode, word: str, text: str = ""
    ) -> NoReturn:
        self._desk.refused[word] += 1
        await context.abort(code, text or word)
        raise AssertionError("abort raises")


class EnrolmentService(link_pb2_grpc.FederationServicer):
    """Enrolment alone: on its own port, since who enrols has no certificate yet.

    Args:
        enrol: Given a join token and a signing request, the certificate.
    """

    def __init__(self, enrol: SignSite) -> None:
        self._enrol = enrol
        # Signing is costly, and strangers may ask.
        self._turns = asyncio.Semaphore(2)

    async def Enrol(  # noqa: N802
        self, request: pb.EnrolRequest, context: Context[pb.EnrolRequest, pb.EnrolReply]
    ) -> pb.EnrolReply:
        """Sign a site's certificate for a join token."""
        if len(request.signing_request) > _MAX_REQUEST_BYTES:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "the request is too long")
        async with self._turns:
            try:
                certificate = await asyncio.to_thread(
                    self._enrol, request.token, request.signing_request
                )
            except RefusedError as error:
                _log.warning("a site is not enrolled: %s", error)
                await context.abort(grpc.StatusCode.PERMISSION_DENIED, str(error))
            except DiscreetError as error:
                # It may name files of this machine: who asks is a stranger.
                _log.warning("a site is not enrolled: %s", error)
                text = "the request was not accepted: the server's log says why"
                await context.abort(grpc.StatusCode.INVALID_ARGUMENT, text)
        _log.info("a site is enrolled")
        return pb.EnrolReply(certificate=certificate)


def _close_begun(begun: asyncio.Future[IncomingBlob]) -> None:
    if not begun.cancelled() and begun.exception() is None:
        begun.result().close()


def _not_allowed(name: str) -> str:
    return (
        f"the site {name[:200]!r} is not allowed here, or its certificate was revoked: "
        "ask the operator of the server"
    )

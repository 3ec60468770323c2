"""One request as the handlers see it, and the ways to answer it."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from aiohttp import web
from multidict import MultiMapping

from compatd import tasks
from compatd.errors import (
    Cancelled,
    Conflict,
    EngineError,
    Forbidden,
    InvalidParameter,
    NotFound,
    NotModified,
    SystemFailure,
    TooManyRequests,
    Unauthorized,
    Unavailable,
    Unsupported,
)
from compatd.routes.backends import Backends
from compatd.wire import json, versions
from compatd.wire.operations import Operation
from compatd.wire.types.images import ErrorDetail, Progress

T = TypeVar("T")

log = logging.getLogger(__name__)

JSON = "application/json"

# moby daemon/server/httpstatus/status.go
STATUSES: tuple[tuple[type[EngineError], int], ...] = (
    (NotFound, 404),
    (InvalidParameter, 400),
    (Conflict, 409),
    (NotModified, 304),
    (Unauthorized, 401),
    (Forbidden, 403),
    (TooManyRequests, 429),
    (Unavailable, 503),
    (Unsupported, 501),
    (Cancelled, 499),
    (SystemFailure, 500),
)


def status_of(error: EngineError) -> int:
    """The HTTP status of a kind of failure."""
    return next((status for kind, status in STATUSES if isinstance(error, kind)), 500)


@dataclass(slots=True, kw_only=True)
class Call:
    """A request whose operation is known. ``path`` holds the path's parameters, decoded."""

    request: web.BaseRequest
    operation: Operation
    version: tuple[int, int]
    path: Mapping[str, str]
    query: MultiMapping[str]
    headers: Mapping[str, str]  # those that every answer carries

    @property
    def reference(self) -> str:
        """The container, image, network, volume or exec that the path names."""
        return next(iter(self.path.values()))

    def json(self, value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
        """``value`` as JSON, in the shape that the client's API version has."""
        document = versions.downgrade(self.operation.id, self.version, value)
        return web.Response(
            body=json.encode(document),
            status=status,
            headers={**self.headers, **(headers or {}), "Content-Type": JSON},
        )

    def empty(self, status: int, headers: Mapping[str, str] | None = None) -> web.Response:
        """No body."""
        return web.Response(status=status, headers={**self.headers, **(headers or {})})

    async def send_continue(self) -> None:
        """Tell a client that asked whether to send its body."""
        if self.request.headers.get("Expect", "").lower() == "100-continue":
            await self.request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            self.request.writer.output_size = 0

    async def stream(self, content_type: str, headers: Mapping[str, str] | None = None) -> web.StreamResponse:
        """Send the head of a chunked answer now."""
        response = web.StreamResponse(headers={**self.headers, **(headers or {}), "Content-Type": content_type})
        if self.request.version >= (1, 1):
            response.enable_chunked_encoding()
        await response.prepare(self.request)
        return response

    def chunked(self, body: bytes, content_type: str) -> web.Response:
        """The same as a ``stream`` of all of ``body``."""
        response = web.Response(body=body, headers={**self.headers, "Content-Type": content_type})
        if self.request.version >= (1, 1):
            response.enable_chunked_encoding()
        return response

    async def stream_progress(self, records: AsyncIterator[Progress], *, at_once: bool = False) -> web.StreamResponse:
        """A stream of progress records. What goes wrong before the first one is raised, unless the head is to be sent
        ``at_once``; later it is the last record."""
        async with _closing(records):
            first = None if at_once else await anext(records, None)
            response = await self.stream(JSON)
            try:
                if first is not None:
                    await response.write(_line(first))
                if first is not None or at_once:
                    async for record in records:
                        await response.write(_line(record))
            except EngineError as error:
                text = str(error)
                await response.write(_line(Progress(error_detail=ErrorDetail(message=text), error=text)))
            await response.write_eof()
            return response

    async def stream_bytes(
        self, chunks: AsyncIterator[bytes], content_type: str, headers: Mapping[str, str] | None = None
    ) -> web.StreamResponse:
        """A stream of bytes. What goes wrong before the first one is raised; later the connection breaks off."""
        async with _closing(chunks):
            first = await anext(chunks, None)
            response = await self.stream(content_type, headers)
            try:
                if first is not None:
                    await response.write(first)
                    async for chunk in chunks:
                        await response.write(chunk)
            except EngineError as error:
                # The status is spent: an unfinished chunked body is the only way left to say that this is not all.
                raise BrokenOff(str(error)) from error
            await response.write_eof()
            return response


class BrokenOff(Exception):
    """A body ended early; the connection has to be closed without the mark of its end."""


def _line(record: Progress) -> bytes:
    # Docker's stream formatter ends records with CR LF, and is the one place where it escapes what means something in
    # HTML. Outside of strings JSON has none of these.
    line = json.encode(record)[:-1]
    for letter in (b"<", b">", b"&"):
        line = line.replace(letter, b"\\u%04x" % ord(letter))
    return line + b"\r\n"


@contextlib.asynccontextmanager
async def _closing(iterator: AsyncIterator[Any]) -> AsyncGenerator[None]:
    try:
        yield
    finally:
        close = getattr(iterator, "aclose", None)
        if close is not None:
            await close()


async def finish(call: Call, work: Awaitable[T]) -> T:
    """Await ``work`` to its end even when the client hangs up meanwhile: it changes state."""
    abandoned = False

    async def run() -> tuple[T | None, Exception | None]:
        try:
            return await work, None
        except Exception as error:
            if abandoned and not isinstance(error, EngineError):
                log.exception("%s failed after its client had gone", call.operation.id)
            return None, error

    task = tasks.spawn(run(), name=call.operation.id)
    try:
        value, error = await asyncio.shield(task)
    except asyncio.CancelledError:
        abandoned = True
        raise
    if error is not None:
        raise error
    return cast(T, value)


Handler = Callable[[Backends, Call], Awaitable[web.StreamResponse]]

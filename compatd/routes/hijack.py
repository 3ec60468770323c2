"""Taking a client's socket away from the HTTP server.

A hijacked connection belongs to whoever speaks the stream: the shim of the container, in another process. So the head
of the answer is written, the descriptor is duplicated, and the server's transport is aborted: it closes its own
descriptor without shutting the connection down, and the client notices nothing, even when this process dies.

Over TLS a descriptor is worth nothing without the session's keys: there the socket is one end of a pair, and the engine
relays between the other and the client for as long as both are there (``routes.tls``).
"""

import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from email.utils import formatdate
from http import HTTPStatus

from aiohttp import web
from aiohttp.abc import AbstractStreamWriter

from compatd import tasks
from compatd.routes.call import Call
from compatd.routes.protocol import Protocol
from compatd.wire.streams import RAW_STREAM, ClientSocket

log = logging.getLogger(__name__)

Take = Callable[[ClientSocket], Awaitable[None]]


class Taken(web.StreamResponse):
    """The answer of a handler whose connection is gone: there is nothing left to send."""

    async def prepare(self, request: web.BaseRequest) -> AbstractStreamWriter | None:
        return None

    async def write_eof(self, data: bytes = b"") -> None:
        return None

    @property
    def keep_alive(self) -> bool | None:
        return False


class _Tail:
    """Stands in for the parser of the server's protocol: gets what follows on the connection."""

    def __init__(self) -> None:
        self.data = bytearray()

    def feed_data(self, data: bytes) -> tuple[bool, bytes]:
        self.data += data
        return False, b""

    def feed_eof(self) -> None:
        return None


def upgrade_head(call: Call, content_type: str, headers: Mapping[str, str] | None = None) -> bytes:
    """The head of an attach or exec stream: 101 for clients that asked for an upgrade, or else 200, which ends when
    the connection does (moby daemon/server/router/container, postContainersAttach)."""
    further = headers or {}
    if "Upgrade" in call.request.headers:
        return _head(
            101, {"Content-Type": content_type, "Connection": "Upgrade", "Upgrade": "tcp", **further}, "UPGRADED"
        )
    return _head(200, {"Content-Type": content_type, **further})


def refusal(status: int, text: str) -> bytes:
    """The whole answer of an attach that cannot be: Docker reports what prevents it in the stream itself, without any
    other header (moby daemon/server/router/container, postContainersAttach)."""
    return _head(status, {"Content-Type": RAW_STREAM}) + text.encode() + b"\r\n"


def chunked_head(call: Call) -> bytes:
    """The head of a JSON answer whose chunks the holder writes."""
    return _head(
        200,
        {
            **call.headers,
            "Content-Type": "application/json",
            "Date": formatdate(usegmt=True),
            "Transfer-Encoding": "chunked",
            "Connection": "close",
        },
    )


def _head(status: int, headers: Mapping[str, str], reason: str = "") -> bytes:
    lines = [f"HTTP/1.1 {status} {reason or HTTPStatus(status).phrase}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


async def take_over(call: Call, head: bytes, take: Take) -> web.StreamResponse:
    """Send ``head``, take the client's socket, and have ``take`` called with it, as a task of its own: the handler
    ends, and with it everything that the server knows of the connection. ``take`` owns the socket from then on.
    """
    request = call.request
    transport = request.transport
    if transport is None:
        raise ConnectionResetError("the client has gone")
    tail = _Tail()
    if isinstance(request.protocol, Protocol):
        tail.data += request.protocol.take_beyond()
    request.protocol.set_parser(tail)  # type: ignore[arg-type]  # only feed_data and feed_eof are called
    transport.pause_reading()
    # With a high-water mark of zero, drain waits until the kernel has it all.
    transport.set_write_buffer_limits(high=0)
    transport.write(head)
    await request.writer.drain()
    if transport.is_closing():
        raise ConnectionResetError("the client has gone")
    fd = os.dup(transport.get_extra_info("socket").fileno())
    tasks.detach(_taken(ClientSocket(fd=fd, head=bytes(tail.data)), take), name=call.operation.id)
    transport.abort()
    return Taken()


async def _taken(client: ClientSocket, take: Take) -> None:
    try:
        await take(client)
    except Exception:
        log.exception("a connection that was taken over is lost")

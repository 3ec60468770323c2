"""The HTTP protocol of one connection: aiohttp's, but for reads that are answered at once (``routes.reads``), and for
what comes after a request that asks for an upgrade.

aiohttp's compiled parser knows no upgrade but to websockets: it drops what follows any other such request in the same
packet, and takes what comes later for the next request. A client that types ahead would lose its input. So the bytes
beyond such a request are kept from the parser until the handler has decided.
"""

import re
import select
from asyncio import BaseTransport, get_running_loop
from collections.abc import Callable, Coroutine
from typing import Any

from aiohttp import web

from compatd.routes import reads

_UPGRADE = re.compile(rb"\r\nupgrade:[ \t]*(tcp|h2c)[ \t]*\r\n", re.IGNORECASE)
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,9})[ \t]*\r\n", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding:", re.IGNORECASE)
# A client that sends more than this before it is answered waits.
_AHEAD_BYTES = 64 * 1024
# A client that will send no more may still read: so long an answer has to begin and end, unless an upgrade comes of it.
_HALF_CLOSED_S = 1.0


Answer = Callable[[web.BaseRequest], Coroutine[Any, Any, web.StreamResponse]]


class Protocol(web.RequestHandler):
    """One connection. ``beyond`` is what came after the request that asked for an upgrade, ``None`` if none did."""

    __slots__ = ("_answer", "_awaited_bytes", "_torn", "_transport", "beyond")

    beyond: bytearray | None
    _awaited_bytes: int

    def __init__(self, *args: object, answer: Answer, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self.beyond = None
        self._awaited_bytes = 0
        self._answer = answer
        self._torn = False  # the parser may have a part of a request

    def data_received(self, data: bytes) -> None:
        """Called by the transport."""
        if self.beyond is None:
            if not self._torn and (read := reads.parse(data)) is not None and self._answer_at_once(*read):
                return
            self._torn = self._torn or not _is_whole(data)
            end = _end_of_upgrade(data)
            if end is None:
                super().data_received(data)
                return
            self.beyond = bytearray()
            self._awaited_bytes = end
        request, rest = data[: self._awaited_bytes], data[self._awaited_bytes :]
        self._awaited_bytes -= len(request)
        self.beyond += rest
        if len(self.beyond) > _AHEAD_BYTES and self.transport is not None:
            self.transport.pause_reading()
        if request:
            super().data_received(request)

    def _answer_at_once(self, method: str, target: str) -> bool:
        """Whether it has been: nothing else is being answered on the connection, and the answer is there."""
        transport, waiter = self.transport, self._waiter
        if transport is None or waiter is None or waiter.done() or transport.get_write_buffer_size():
            return False
        answer = reads.run(self._answer(reads.request_of(self, method, target)), method)
        if answer is None:
            return False
        transport.write(answer)
        self._next_keepalive_close_time = get_running_loop().time() + self._keepalive_timeout
        return True

    def eof_received(self) -> bool:  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        """Called by the transport; whether the connection stays open (asyncio.Protocol; aiohttp never has it so)."""
        super().eof_received()
        transport = self.transport
        if transport is None or (sock := transport.get_extra_info("socket")) is None:
            return False
        poll = select.poll()
        poll.register(sock.fileno(), 0)
        if poll.poll(0):
            return False
        if self.beyond is None:
            # As a shell has it that pipes a request in. What streams for ever ends with it (Go's net/http cancels the
            # request), since nobody would tell when the client leaves.
            get_running_loop().call_later(_HALF_CLOSED_S, self._close_half_closed, transport)
        return True

    def _close_half_closed(self, transport: BaseTransport) -> None:
        if self.transport is transport:
            transport.close()

    def take_beyond(self) -> bytes:
        """What came after the request; from now on the connection is read as usual."""
        kept, self.beyond = self.beyond, None
        return bytes(kept or b"")

    def give_back(self) -> None:
        """No upgrade happened: what came after the request is the next one."""
        if self.beyond is None:
            return
        paused = len(self.beyond) > _AHEAD_BYTES
        if kept := self.take_beyond():
            super().data_received(kept)
        if paused and self.transport is not None:
            self.transport.resume_reading()


def _end_of_upgrade(data: bytes) -> int | None:
    """How long the request is that ``data`` begins with, if it asks for an upgrade and comes in one packet."""
    if not data.startswith(b"POST ") or (end := data.find(b"\r\n\r\n")) < 0:
        return None
    head = data[: end + 2]
    if not _UPGRADE.search(head) or _CHUNKED.search(head):
        return None
    length = _LENGTH.search(head)
    return end + 4 + (int(length[1]) if length else 0)


def _is_whole(data: bytes) -> bool:
    """Whether ``data`` is one request, from its first byte to its last."""
    head, _, body = data.partition(b"\r\n\r\n")
    head += b"\r\n"
    length = _LENGTH.search(head)
    return len(body) == (int(length[1]) if length else 0) and not _CHUNKED.search(head) and b"\r\n\r\n" in data

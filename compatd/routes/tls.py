"""TLS in front of the HTTP server: connections are decrypted here and go on over a socket pair.

So the server and whoever takes a connection over from it see a plain socket, which a client can close halfway: the
end of its input (close_notify) is the end of what can be read there, while output goes on. asyncio's own TLS takes
that for the end of the connection, and ``docker run -i`` would lose its output.
"""

import asyncio
import contextlib
import errno
import logging
import socket
import ssl
from collections.abc import Callable

from compatd import tasks

log = logging.getLogger(__name__)

READ_BYTES = 128 * 1024
# A client that connects has to show who it is within this time.
HANDSHAKE_S = 30.0
LINGER_S = 2.0
# When there are no descriptors left, connecting clients wait.
EXHAUSTED_S = 0.5

# Go net/http, (*conn).serve
_NO_TLS = b"HTTP/1.0 400 Bad Request\r\n\r\nClient sent an HTTP request to an HTTPS server.\n"
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


async def serve(listener: socket.socket, context: ssl.SSLContext, connect: Callable[[], asyncio.Protocol]) -> None:
    """Accept clients until cancelled, and close ``listener``. Each client has a ``connect()`` to talk to."""
    loop = asyncio.get_running_loop()
    listener.setblocking(False)
    with listener:
        while True:
            try:
                client, _ = await loop.sock_accept(listener)
            except OSError as error:
                if error.errno in _EXHAUSTED:
                    log.warning("a client has to wait: %s", error)
                    await asyncio.sleep(EXHAUSTED_S)
                continue
            client.setblocking(False)
            tasks.detach(_Front(client, context).run(connect), name="TLS client")


class _Front:
    """One client's connection. Owns the client's socket and one end of the pair."""

    def __init__(self, client: socket.socket, context: ssl.SSLContext) -> None:
        self._loop = asyncio.get_running_loop()
        self._client = client
        self._arrived, self._leaving = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._arrived, self._leaving, server_side=True)
        self._sending = asyncio.Lock()  # records have to leave in the order in which they were made

    async def run(self, connect: Callable[[], asyncio.Protocol]) -> None:
        """Until both sides have closed, or the client has gone."""
        with self._client:
            try:
                async with asyncio.timeout(HANDSHAKE_S):
                    await self._shake_hands()
            except (OSError, TimeoutError) as error:  # SSLError is an OSError
                log.info("TLS handshake: %s", error)
                return
            ours, theirs = socket.socketpair()
            with ours:
                ours.setblocking(False)
                await self._loop.connect_accepted_socket(connect, theirs)
                reading = tasks.spawn(self._inward(ours), name="TLS inward")
                writing = tasks.spawn(self._outward(ours), name="TLS outward")
                try:
                    await asyncio.wait({reading, writing}, return_when=asyncio.FIRST_COMPLETED)
                    # Closing with input unread would reset the connection, and lose output on its way.
                    await asyncio.wait({reading}, timeout=LINGER_S)
                finally:
                    for task in (reading, writing):
                        task.cancel()
                    await asyncio.wait({reading, writing})

    async def _shake_hands(self) -> None:
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._flush()
                await self._receive()
            except ssl.SSLError as error:
                await self._flush()  # the alert that tells the client why
                if error.reason == "HTTP_REQUEST":
                    await self._loop.sock_sendall(self._client, _NO_TLS)
                raise
            else:
                await self._flush()
                return

    async def _receive(self) -> None:
        data = await self._loop.sock_recv(self._client, READ_BYTES)
        if not data:
            raise ConnectionResetError("the client has gone")
        self._arrived.write(data)

    async def _flush(self) -> None:
        async with self._sending:
            if data := self._leaving.read():
                await self._loop.sock_sendall(self._client, data)

    async def _inward(self, ours: socket.socket) -> None:
        """Ends when the client's connection has, however much of it is of use."""
        try:
            while data := await self._read():
                await self._loop.sock_sendall(ours, data)
            ours.shutdown(socket.SHUT_WR)
        except OSError as error:
            log.debug("no more input from a TLS client: %s", error)
        with contextlib.suppress(OSError):
            while await self._loop.sock_recv(self._client, READ_BYTES):
                pass

    async def _read(self) -> bytes:
        while True:
            try:
                return self._tls.read(READ_BYTES)
            except ssl.SSLWantReadError:
                await self._flush()  # an answer to a change of keys
                await self._receive()
            except ssl.SSLZeroReturnError:
                return b""

    async def _outward(self, ours: socket.socket) -> None:
        try:
            while data := await self._loop.sock_recv(ours, READ_BYTES):
                self._tls.write(data)
                await self._flush()
            with contextlib.suppress(ssl.SSLError):  # the client has not closed yet, and need not
                self._tls.unwrap()
            await self._flush()
            self._client.shutdown(socket.SHUT_WR)
        except OSError as error:
            log.debug("a TLS client has gone: %s", error)

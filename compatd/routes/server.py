"""The HTTP server: aiohttp on sockets that were bound before."""

import asyncio
import logging
import ssl
from collections.abc import Sequence
from socket import socket

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from compatd import tasks
from compatd.routes import tls
from compatd.routes.backends import Backends
from compatd.routes.dispatch import Dispatcher
from compatd.routes.protocol import Protocol

log = logging.getLogger(__name__)


def _is_ours(record: logging.LogRecord) -> bool:
    """Whether a record tells of something that is wrong with the engine; a client that speaks no HTTP, or that has
    gone, is not."""
    return not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError | ConnectionError))


log.addFilter(_is_ours)

# Go's limit for the whole head is 1 MiB; filters and build arguments travel in the request line.
HEAD_LIMIT_BYTES = 1024 * 1024
# Uploads come in pieces of up to twice this.
READ_BUFFER_BYTES = 256 * 1024
# A connection that asks for nothing is closed after this long.
IDLE_S = 3600.0
# How long a body that nobody wanted is read on, so that the client gets its answer.
LINGER_S = 2.0
BACKLOG = 4096


class Server:
    """The engine's API on a number of sockets."""

    def __init__(
        self, web_server: web.Server, servers: list[asyncio.Server], tls_servers: list[asyncio.Task[None]]
    ) -> None:
        self._web_server = web_server
        self._servers = servers
        self._tls_servers = tls_servers

    async def close(self, *, timeout_s: float = 0.25) -> None:
        """Accept nothing more, cancel what runs, close every connection. Hijacked ones are no longer ours."""
        for server in self._servers:
            server.close()
        for task in self._tls_servers:
            task.cancel()
        await self._web_server.shutdown(timeout_s)


async def serve(backends: Backends, sockets: Sequence[tuple[socket, ssl.SSLContext | None]]) -> Server:
    """Answer the Engine API on listening ``sockets``, each with or without TLS, until ``Server.close``."""
    loop = asyncio.get_running_loop()
    dispatcher = Dispatcher(backends)
    web_server = web.Server(dispatcher, handler_cancellation=True)

    def connect() -> Protocol:
        return Protocol(
            web_server,
            answer=dispatcher.dispatch,
            loop=loop,
            access_log=None,
            auto_decompress=False,  # Docker looks at no Content-Encoding, and bodies could grow without bound
            logger=log,
            keepalive_timeout=IDLE_S,
            lingering_time=LINGER_S,
            max_line_size=HEAD_LIMIT_BYTES,
            max_field_size=HEAD_LIMIT_BYTES,
            read_bufsize=READ_BUFFER_BYTES,
        )

    servers: list[asyncio.Server] = []
    tls_servers: list[asyncio.Task[None]] = []
    for sock, context in sockets:
        if context is None:
            servers.append(await loop.create_server(connect, sock=sock, backlog=BACKLOG))
        else:
            sock.listen(BACKLOG)
            tls_servers.append(tasks.spawn(tls.serve(sock, context, connect), name="TLS server"))
    return Server(web_server, servers, tls_servers)

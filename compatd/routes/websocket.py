"""Attach by a websocket: what ``POST …/attach`` is for clients that cannot take a connection over, browsers for one.

Frames have to be made and taken apart, so this engine relays; such a client goes when the engine goes, while the
container stays. Output is never multiplexed: stdout and stderr are told apart by asking for one of them alone
(moby daemon/server/router/container, wsContainersAttach).
"""

import asyncio
import logging
import socket

from aiohttp import WSMsgType, web

from compatd import tasks
from compatd.core.containers import LogRequest
from compatd.routes import detach_keys, params
from compatd.routes.backends import Backends
from compatd.routes.call import Call
from compatd.shim.spec import Attach
from compatd.wire.streams import ClientSocket

log = logging.getLogger(__name__)

# A client's message is taken as a whole.
MESSAGE_BYTES = 16 * 1024 * 1024
READ_BYTES = 32 * 1024
# How long a client has to answer our closing.
CLOSE_S = 1.0

_BINARY_SINCE = (1, 28)  # before, output came in text frames
_CHOICE_SINCE = (1, 42)  # before, all three streams were attached


async def attach(backends: Backends, call: Call) -> web.StreamResponse:
    """Answer ``ContainerAttachWebsocket``; returns when either side has closed."""
    keys = detach_keys.parse(params.text(call, "detachKeys"))
    container = backends.containers.check_attach(call.reference)
    chosen = call.version >= _CHOICE_SINCE
    stdin, stdout, stderr = (params.boolean(call, name) if chosen else True for name in ("stdin", "stdout", "stderr"))
    client = web.WebSocketResponse(
        timeout=CLOSE_S, autoclose=False, compress=False, max_msg_size=MESSAGE_BYTES, decode_text=False
    )
    client.headers.update(call.headers)
    try:
        await client.prepare(call.request)
    except web.HTTPBadRequest:
        response = web.Response(status=400, text="not websocket protocol")
        response.force_close()
        return response
    kind = WSMsgType.BINARY if call.version >= _BINARY_SINCE else WSMsgType.TEXT
    if params.boolean(call, "logs") and (stdout or stderr):
        request = LogRequest(stdout=stdout, stderr=stderr, multiplexed=False)
        async for chunk in backends.containers.logs(container.id, request)[1]:
            await client.send_frame(chunk, kind)
    if params.boolean(call, "stream") and (stdin or stdout or stderr):
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        with ours:
            wanted = Attach(fd=0, stdin=stdin, stdout=stdout, stderr=stderr, framed=False)
            if container.record.config.tty:
                wanted["detach_keys"] = keys
            await backends.containers.attach(container, wanted, ClientSocket(fd=theirs.detach()))
            await _relay(client, ours, kind)
    await client.close()
    return client


async def _relay(client: web.WebSocketResponse, stream: socket.socket, kind: WSMsgType) -> None:
    """Until the stream has ended, or the client has gone."""
    loop = asyncio.get_running_loop()

    async def inward() -> None:
        try:
            async for message in client:
                if message.type is WSMsgType.ERROR:
                    break
                await loop.sock_sendall(stream, message.data)
            stream.shutdown(socket.SHUT_WR)
        except OSError:
            log.debug("the container takes no more input")

    reading = tasks.spawn(inward(), name="websocket inward")
    try:
        while data := await loop.sock_recv(stream, READ_BYTES):
            await client.send_frame(data, kind)
    except ConnectionError:
        log.debug("a websocket's client has gone")
    finally:
        reading.cancel()
        await asyncio.wait({reading})

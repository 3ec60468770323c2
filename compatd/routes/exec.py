"""Execs: further processes in running containers."""

import asyncio

from aiohttp import web

from compatd.errors import EngineError, InvalidParameter, SystemFailure
from compatd.routes import detach_keys, hijack, params
from compatd.routes.backends import Backends
from compatd.routes.call import Call, Handler, finish
from compatd.routes.containers import attach_document, stream_type
from compatd.wire import versions
from compatd.wire.streams import ClientSocket, frame
from compatd.wire.types.containers import ExecCreateRequest, ExecCreateResponse, ExecStartRequest


async def create(backends: Backends, call: Call) -> web.StreamResponse:
    request = await params.body(call, ExecCreateRequest)
    request = versions.upgrade(call.operation.id, call.version, request)
    try:
        keys = bytes(detach_keys.parse(request.detach_keys)) if request.detach_keys else b""
    except InvalidParameter as error:
        raise SystemFailure(f"Invalid escape keys ({request.detach_keys}) provided") from error
    made = await backends.execs.create(call.reference, request, keys)
    return call.json(ExecCreateResponse(id=made.id), 201)


async def start(backends: Backends, call: Call) -> web.StreamResponse:
    request = await params.body(call, ExecStartRequest)
    exec = backends.execs.check_start(call.reference)
    console_size = request.console_size if request.tty and call.version >= (1, 42) else None
    if request.detach:
        await finish(call, backends.execs.start(exec, None, None, console_size))
        return call.empty(200)
    wanted = exec.request
    keys = list(exec.detach_keys) or detach_keys.DEFAULT if wanted.tty else None

    async def take(client: ClientSocket) -> None:
        document = attach_document(
            client, stdin=wanted.attach_stdin, stdout=wanted.attach_stdout, stderr=wanted.attach_stderr, keys=keys
        )
        # Not the exec's own terminal decides this, but what the client expects (moby container router, exec.go).
        document["framed"] = not request.tty
        try:
            await backends.execs.start(exec, document, client, console_size)
        except EngineError as error:
            # The head has promised a stream: what went wrong is said there (moby container router, exec.go).
            text = f"{error}\r\n".encode()
            with client.duplicate() as connection:
                client.close()
                await asyncio.get_running_loop().sock_sendall(connection, text if request.tty else frame(1, text))

    head = hijack.upgrade_head(call, stream_type(call, tty=request.tty), call.headers)
    return await hijack.take_over(call, head, take)


async def resize(backends: Backends, call: Call) -> web.StreamResponse:
    height, width = params.terminal_size(call, "h", "height"), params.terminal_size(call, "w", "width")
    await backends.execs.resize(call.reference, height, width)
    return call.empty(200)


async def inspect(backends: Backends, call: Call) -> web.StreamResponse:
    return call.json(await backends.execs.inspect(call.reference))


HANDLERS: dict[str, Handler] = {
    "ContainerExec": create,
    "ExecStart": start,
    "ExecResize": resize,
    "ExecInspect": inspect,
}

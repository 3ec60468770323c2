"""Containers: HTTP in, services out."""

import asyncio
import base64
import codecs
import logging

import msgspec
from aiohttp import web

from compatd.core.containers import LogRequest
from compatd.errors import EngineError, InvalidParameter
from compatd.routes import compatibility, detach_keys, hijack, params, websocket
from compatd.routes.backends import Backends
from compatd.routes.call import Call, Handler, finish, status_of
from compatd.shim.spec import Attach
from compatd.wire import json, versions
from compatd.wire.parameters import CommitParameters
from compatd.wire.streams import MULTIPLEXED_STREAM, RAW_STREAM, ClientSocket
from compatd.wire.types.containers import (
    ContainerConfig,
    ContainerCreateRequest,
    IdResponse,
    PathStat,
    UpdateRequest,
    WaitResponse,
)

log = logging.getLogger(__name__)

PATH_STAT_HEADER = "X-Docker-Container-Path-Stat"


async def listing(backends: Backends, call: Call) -> web.StreamResponse:
    filters = params.filters(call)
    found = await backends.containers.listing(
        filters,
        all=params.boolean(call, "all"),
        limit=params.number(call, "limit"),
        size=params.boolean(call, "size"),
    )
    return call.json(found)


async def create(backends: Backends, call: Call) -> web.StreamResponse:
    request = await params.body(call, ContainerCreateRequest, required=True)
    if (reason := versions.refusal(call.operation.id, call.version, request)) is not None:
        raise InvalidParameter(reason)
    request = versions.upgrade(call.operation.id, call.version, request)
    mode = request.host_config.network_mode if request.host_config is not None else ""
    if call.version < (1, 44) and request.mac_address and mode.partition(":")[0] in ("host", "none", "container"):
        raise InvalidParameter("conflicting options: mac-address and the network mode")
    networks = request.networking_config.endpoints_config if request.networking_config else {}
    if call.version < (1, 44) and len(networks) > 1:
        raise InvalidParameter(f"Container cannot be created with multiple network endpoints: {', '.join(networks)}")
    request, warnings = compatibility.migrate(request, call.version)
    platform = params.text(call, "platform") if call.version >= (1, 41) else ""
    created = await finish(
        call,
        backends.containers.create(
            params.text(call, "name") or None,
            request,
            platform or None,
            recursive_readonly=call.version >= (1, 44),
        ),
    )
    return call.json(msgspec.structs.replace(created, warnings=[*created.warnings, *warnings]), 201)


async def inspect(backends: Backends, call: Call) -> web.StreamResponse:
    return call.json(await backends.containers.inspect(call.reference, size=params.boolean(call, "size")))


async def start(backends: Backends, call: Call) -> web.StreamResponse:
    await finish(call, backends.containers.start(call.reference))
    return call.empty(204)


async def stop(backends: Backends, call: Call) -> web.StreamResponse:
    timeout_s, signal = params.timeout_s(call), _stop_signal(call)
    await finish(call, backends.containers.stop(call.reference, timeout_s=timeout_s, signal=signal))
    return call.empty(204)


async def restart(backends: Backends, call: Call) -> web.StreamResponse:
    timeout_s, signal = params.timeout_s(call), _stop_signal(call)
    await finish(call, backends.containers.restart(call.reference, timeout_s=timeout_s, signal=signal))
    return call.empty(204)


def _stop_signal(call: Call) -> str | None:
    return (params.text(call, "signal") or None) if call.version >= (1, 42) else None


async def kill(backends: Backends, call: Call) -> web.StreamResponse:
    await finish(call, backends.containers.kill(call.reference, params.text(call, "signal") or None))
    return call.empty(204)


async def update(backends: Backends, call: Call) -> web.StreamResponse:
    request = versions.upgrade(call.operation.id, call.version, await params.body(call, UpdateRequest))
    return call.json(await finish(call, backends.updates.update(call.reference, request)))


async def pause(backends: Backends, call: Call) -> web.StreamResponse:
    await finish(call, backends.containers.pause(call.reference))
    return call.empty(204)


async def unpause(backends: Backends, call: Call) -> web.StreamResponse:
    await finish(call, backends.containers.unpause(call.reference))
    return call.empty(204)


async def rename(backends: Backends, call: Call) -> web.StreamResponse:
    await finish(call, backends.containers.rename(call.reference, params.text(call, "name")))
    return call.empty(204)


async def remove(backends: Backends, call: Call) -> web.StreamResponse:
    await finish(
        call,
        backends.containers.remove(
            call.reference,
            force=params.boolean(call, "force"),
            volumes=params.boolean(call, "v"),
            link=params.boolean(call, "link"),
        ),
    )
    return call.empty(204)


async def prune(backends: Backends, call: Call) -> web.StreamResponse:
    return call.json(await finish(call, backends.containers.prune(params.filters(call))))


async def resize(backends: Backends, call: Call) -> web.StreamResponse:
    height, width = params.terminal_size(call, "h", "height"), params.terminal_size(call, "w", "width")
    await backends.containers.resize(call.reference, height, width)
    return call.empty(200)


async def top(backends: Backends, call: Call) -> web.StreamResponse:
    return call.json(await backends.containers.top(call.reference, params.text(call, "ps_args") or "-ef"))


async def wait(backends: Backends, call: Call) -> web.StreamResponse:
    # Before 1.30 there were no conditions, and "removed" came with 1.34.
    condition = params.text(call, "condition") if call.version >= (1, 30) else ""
    container, exit_code = backends.containers.check_wait(call.reference, condition)
    if exit_code is not None:
        response = await call.stream("application/json")
        await response.write(json.encode(WaitResponse(status_code=exit_code)))
        await response.write_eof()
        return response

    async def take(client: ClientSocket) -> None:
        await backends.containers.wait(container, condition, client)

    return await hijack.take_over(call, hijack.chunked_head(call), take)


async def attach(backends: Backends, call: Call) -> web.StreamResponse:
    try:
        keys = detach_keys.parse(params.text(call, "detachKeys"))
        container = backends.containers.check_attach(call.reference)
    except EngineError as error:

        async def close(client: ClientSocket) -> None:
            client.close()

        return await hijack.take_over(call, hijack.refusal(status_of(error), str(error)), close)
    stdin, stdout, stderr = (params.boolean(call, name) for name in ("stdin", "stdout", "stderr"))
    tty = container.record.config.tty
    past = None
    # Before the first start there is none, and looking for it could take until after the end.
    if params.boolean(call, "logs") and (stdout or stderr) and container.record.started_ns:
        _, past = backends.containers.logs(container.id, LogRequest(stdout=stdout, stderr=stderr))

    async def take(client: ClientSocket) -> None:
        try:
            if past is not None:
                with client.duplicate() as connection:
                    async for chunk in past:
                        await asyncio.get_running_loop().sock_sendall(connection, chunk)
        except (EngineError, OSError) as error:
            log.debug("attach of %s ended early: %s", container.id, error)
            client.close()
            return
        wanted = None
        if params.boolean(call, "stream") and (stdin or stdout or stderr):
            wanted = attach_document(client, stdin=stdin, stdout=stdout, stderr=stderr, keys=keys if tty else None)
        await backends.containers.attach(container, wanted, client)

    return await hijack.take_over(call, hijack.upgrade_head(call, stream_type(call, tty=tty)), take)


def stream_type(call: Call, *, tty: bool) -> str:
    """The content type of a stream: older clients, and those that did not ask for an upgrade, know but one."""
    known = call.version >= (1, 42) and "Upgrade" in call.request.headers
    return MULTIPLEXED_STREAM if known and not tty else RAW_STREAM


def attach_document(client: ClientSocket, *, stdin: bool, stdout: bool, stderr: bool, keys: list[int] | None) -> Attach:
    """What the shim is told about a client; the number of its descriptor is filled in by who passes it."""
    document = Attach(fd=0, stdin=stdin, stdout=stdout, stderr=stderr)
    if client.head:
        document["head"] = base64.b64encode(client.head).decode()
    if keys is not None:
        document["detach_keys"] = keys
    return document


async def logs(backends: Backends, call: Call) -> web.StreamResponse:
    if not (params.boolean(call, "stdout") or params.boolean(call, "stderr")):
        raise InvalidParameter("Bad parameters: you must choose at least one stream")
    tail = params.text(call, "tail")
    request = LogRequest(
        stdout=params.boolean(call, "stdout"),
        stderr=params.boolean(call, "stderr"),
        follow=params.boolean(call, "follow"),
        timestamps=params.boolean(call, "timestamps"),
        details=params.boolean(call, "details"),
        since_ns=params.timestamp_ns(params.text(call, "since")) or 0,
        until_ns=params.timestamp_ns(params.text(call, "until")) or 0,
        # Docker takes whatever is no number, "all" for one, as everything.
        tail=int(tail) if tail.isascii() and tail.isdecimal() and len(tail) < 10 else None,
    )
    tty, chunks = backends.containers.logs(call.reference, request)
    multiplexed = call.version >= (1, 42) and not tty
    content_type = MULTIPLEXED_STREAM if multiplexed else RAW_STREAM
    read: list[bytes] = []
    if request.tail is not None and not request.follow:
        async for chunk in chunks:
            read.append(chunk)
            if len(read) > 1:
                break
        else:  # a short answer leaves in one packet
            return call.chunked(b"".join(read), content_type)
    response = await call.stream(content_type)
    for chunk in read:
        await response.write(chunk)
    async for chunk in chunks:
        await response.write(chunk)
    await response.write_eof()
    return response


async def archive_head(backends: Backends, call: Call) -> web.StreamResponse:
    return call.empty(200, _path_stat(await backends.archives.stat(call.reference, _path(call))))


async def archive_get(backends: Backends, call: Call) -> web.StreamResponse:
    stat, chunks = await backends.archives.get(call.reference, _path(call))
    return await call.stream_bytes(chunks, "application/x-tar", _path_stat(stat))


async def archive_put(backends: Backends, call: Call) -> web.StreamResponse:
    await backends.archives.put(
        call.reference,
        _path(call),
        params.chunks(call),
        no_overwrite_dir_non_dir=params.boolean(call, "noOverwriteDirNonDir"),
        copy_uid_gid=params.boolean(call, "copyUIDGID"),
    )
    return call.empty(200)


async def commit(backends: Backends, call: Call) -> web.StreamResponse:
    config = await params.body(call, ContainerConfig)
    parameters = CommitParameters(
        container=params.text(call, "container"),
        repo=params.text(call, "repo"),
        tag=params.text(call, "tag"),
        author=params.text(call, "author"),
        comment=params.text(call, "comment"),
        pause=params.boolean(call, "pause", default=True) or not params.text(call, "pause"),
        changes=call.query.getall("changes", []),
    )
    # A document without any of a configuration's fields counts as none.
    given = None if config == ContainerConfig() else config
    return call.json(IdResponse(id=await finish(call, backends.commits.commit(parameters, given))), 201)


async def changes(backends: Backends, call: Call) -> web.StreamResponse:
    # moby answers null, not an empty list, for a container that has changed nothing.
    return call.json(await backends.archives.changes(call.reference) or None)


async def export(backends: Backends, call: Call) -> web.StreamResponse:
    return await call.stream_bytes(backends.archives.export(call.reference), "application/octet-stream")


async def stats(backends: Backends, call: Call) -> web.StreamResponse:
    stream = params.boolean(call, "stream", default=True)
    samples = backends.statistics.samples(
        call.reference, stream=stream, one_shot=params.boolean(call, "one-shot") and call.version >= (1, 41)
    )
    response = await call.stream("application/json")
    async for sample in samples:
        await response.write(json.encode(versions.downgrade(call.operation.id, call.version, sample)))
    await response.write_eof()
    return response


def _path(call: Call) -> str:
    path = params.text(call, "path")
    if not path:
        # moby's own spelling
        raise InvalidParameter("bad parameter: pathcannot be empty")
    return path


def _path_stat(stat: PathStat) -> dict[str, str]:
    return {PATH_STAT_HEADER: codecs.encode(json.encode(stat)[:-1], "base64").decode().replace("\n", "")}


HANDLERS: dict[str, Handler] = {
    "ContainerList": listing,
    "ContainerCreate": create,
    "ContainerInspect": inspect,
    "ContainerStart": start,
    "ContainerStop": stop,
    "ContainerRestart": restart,
    "ContainerKill": kill,
    "ContainerUpdate": update,
    "ContainerPause": pause,
    "ContainerUnpause": unpause,
    "ContainerRename": rename,
    "ContainerDelete": remove,
    "ContainerPrune": prune,
    "ContainerResize": resize,
    "ContainerTop": top,
    "ContainerWait": wait,
    "ContainerAttach": attach,
    "ContainerAttachWebsocket": websocket.attach,
    "ContainerLogs": logs,
    "ImageCommit": commit,
    "ContainerChanges": changes,
    "ContainerExport": export,
    "ContainerStats": stats,
    "ContainerArchiveInfo": archive_head,
    "ContainerArchive": archive_get,
    "PutContainerArchive": archive_put,
}

"""Volumes."""

from aiohttp import web

from compatd.routes import params
from compatd.routes.backends import Backends
from compatd.routes.call import Call, Handler, finish
from compatd.wire.types.volumes import VolumeCreateRequest


async def listing(backends: Backends, call: Call) -> web.StreamResponse:
    return call.json(backends.volumes.listing(params.filters(call)))


async def inspect(backends: Backends, call: Call) -> web.StreamResponse:
    return call.json(backends.volumes.inspect(call.reference))


async def create(backends: Backends, call: Call) -> web.StreamResponse:
    request = await params.body(call, VolumeCreateRequest)
    return call.json(await finish(call, backends.volumes.create(request)), 201)


async def remove(backends: Backends, call: Call) -> web.StreamResponse:
    await finish(call, backends.volumes.remove(call.reference, force=params.boolean(call, "force")))
    return call.empty(204)


async def prune(backends: Backends, call: Call) -> web.StreamResponse:
    pruned = backends.volumes.prune(params.filters(call), anonymous_only=call.version >= (1, 42))
    return call.json(await finish(call, pruned))


HANDLERS: dict[str, Handler] = {
    "VolumeList": listing,
    "VolumeInspect": inspect,
    "VolumeCreate": create,
    "VolumeDelete": remove,
    "VolumePrune": prune,
}

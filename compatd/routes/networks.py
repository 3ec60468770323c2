"""Networks."""

from aiohttp import web

from compatd.errors import InvalidParameter, NotFound
from compatd.routes import params
from compatd.routes.backends import Backends
from compatd.routes.call import Call, Handler, finish
from compatd.wire.types.networks import NetworkConnect, NetworkCreateRequest, NetworkDisconnect

_BOOLEANS = ("1", "t", "T", "TRUE", "true", "True", "0", "f", "F", "FALSE", "false", "False")


async def listing(backends: Backends, call: Call) -> web.StreamResponse:
    return call.json(backends.networks.listing(params.filters(call)))


async def inspect(backends: Backends, call: Call) -> web.StreamResponse:
    verbose = params.text(call, "verbose")
    if verbose and verbose not in _BOOLEANS:
        raise InvalidParameter(
            f'invalid value for verbose: {verbose}: strconv.ParseBool: parsing "{verbose}": invalid syntax'
        )
    network = backends.networks.inspect(call.reference)
    if params.text(call, "scope") not in ("", network.scope):
        raise NotFound(f"network {call.reference} not found")
    return call.json(network)


async def create(backends: Backends, call: Call) -> web.StreamResponse:
    request = await params.body(call, NetworkCreateRequest, required=True)
    return call.json(await finish(call, backends.networks.create(request)), 201)


async def remove(backends: Backends, call: Call) -> web.StreamResponse:
    await finish(call, backends.networks.remove(call.reference))
    return call.empty(204)


async def connect(backends: Backends, call: Call) -> web.StreamResponse:
    request = await params.body(call, NetworkConnect, required=True)
    await finish(call, backends.connections.connect(call.reference, request))
    return call.empty(200)


async def disconnect(backends: Backends, call: Call) -> web.StreamResponse:
    request = await params.body(call, NetworkDisconnect, required=True)
    await finish(call, backends.connections.disconnect(call.reference, request))
    return call.empty(200)


async def prune(backends: Backends, call: Call) -> web.StreamResponse:
    return call.json(await finish(call, backends.networks.prune(params.filters(call))))


HANDLERS: dict[str, Handler] = {
    "NetworkList": listing,
    "NetworkInspect": inspect,
    "NetworkCreate": create,
    "NetworkDelete": remove,
    "NetworkConnect": connect,
    "NetworkDisconnect": disconnect,
    "NetworkPrune": prune,
}

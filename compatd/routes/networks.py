"""Networks."""

from aiohttp import web

from compatd.errors import InvalidParameter, NotFound
from compatd.routes import params
from compatd.routes.backends import Backends
from compatd.routes.call import Call, Handler

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


async def prune(backends: Backends, call: Call) -> web.StreamResponse:
    return call.json(backends.networks.prune(params.filters(call)))


HANDLERS: dict[str, Handler] = {"NetworkList": listing, "NetworkInspect": inspect, "NetworkPrune": prune}

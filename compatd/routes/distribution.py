"""What registries hold."""

from aiohttp import web

from compatd.errors import Unsupported
from compatd.routes import params
from compatd.routes.backends import Backends
from compatd.routes.call import Call, Handler


async def inspect(backends: Backends, call: Call) -> web.StreamResponse:
    if backends.distribution is None:
        raise Unsupported("looking at a registry's manifest is not supported by this engine")
    return call.json(await backends.distribution.inspect(call.reference, params.auth(call)))


HANDLERS: dict[str, Handler] = {"DistributionInspect": inspect}

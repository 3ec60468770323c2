"""The engine itself: ping, version, info, disk use, logins."""

from aiohttp import web

from compatd.errors import InvalidParameter
from compatd.routes import params
from compatd.routes.backends import Backends
from compatd.routes.call import Call, Handler
from compatd.wire.types.system import AuthConfig

# Which builder clients are told to use: 1 is the classic one, 2 BuildKit's gRPC.
BUILDER_VERSION = "1"

DISK_USAGE_KINDS = ("container", "image", "volume", "build-cache")


async def ping(backends: Backends, call: Call) -> web.StreamResponse:
    headers = {
        **call.headers,
        "Builder-Version": BUILDER_VERSION,
        "Cache-Control": "no-cache, no-store, must-revalidate",
        "Pragma": "no-cache",
        "Swarm": "inactive",
        "Content-Type": "text/plain; charset=utf-8",
    }
    return web.Response(body=b"" if call.request.method == "HEAD" else b"OK", headers=headers)


async def version(backends: Backends, call: Call) -> web.StreamResponse:
    return call.json(backends.system.version())


async def info(backends: Backends, call: Call) -> web.StreamResponse:
    return call.json(backends.system.info())


async def disk_usage(backends: Backends, call: Call) -> web.StreamResponse:
    kinds = frozenset(call.query.getall("type", []) if call.version >= (1, 42) else [])
    for kind in sorted(kinds):
        if kind not in DISK_USAGE_KINDS:
            raise InvalidParameter(f"unknown object type: {kind}")
    return call.json(await backends.system.disk_usage(kinds))


async def auth(backends: Backends, call: Call) -> web.StreamResponse:
    return call.json(await backends.logins.login(await params.body(call, AuthConfig)))


async def plugin_list(backends: Backends, call: Call) -> web.StreamResponse:
    params.filters(call)
    return call.json([])


HANDLERS: dict[str, Handler] = {
    "SystemPing": ping,
    "SystemPingHead": ping,
    "SystemVersion": version,
    "SystemInfo": info,
    "SystemDataUsage": disk_usage,
    "SystemAuth": auth,
    "PluginList": plugin_list,
}

"""From a request to its handler, and from what the handler raises to an answer: once, for every operation.

Order of checks as in moby (daemon/server): method OPTIONS, path cleaning, route, API version, operation. The router is
built from ``wire.operations``: static paths by lookup, others by what stands before and after the one parameter.
"""

import asyncio
import logging
import posixpath
import re
from collections.abc import Mapping
from urllib.parse import quote, unquote

from aiohttp import web

from compatd.errors import EngineError
from compatd.routes import build, containers, distribution, events, exec, images, networks, system, volumes
from compatd.routes.backends import Backends
from compatd.routes.call import BrokenOff, Call, Handler, status_of
from compatd.routes.protocol import Protocol
from compatd.wire import json, versions
from compatd.wire.operations import OPERATIONS, Operation

log = logging.getLogger(__name__)

# The product speaks for itself in GET /version; this is the engine whose behaviour clients get.
SERVER = "Docker/28.5.2 (linux)"

HANDLERS: Mapping[str, Handler] = {
    **system.HANDLERS,
    **containers.HANDLERS,
    **exec.HANDLERS,
    **images.HANDLERS,
    **build.HANDLERS,
    **networks.HANDLERS,
    **volumes.HANDLERS,
    **events.HANDLERS,
    **distribution.HANDLERS,
}

# What a swarm's operations say on a node that is in none, which this one always is.
NO_SWARM = (
    'This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node to swarm'
    " and try again."
)
NOT_IN_SWARM = "This node is not part of a swarm"
_SWARM = ("/swarm", "/nodes", "/services", "/tasks", "/secrets", "/configs")

_VERSION = re.compile("/v([0-9.]+)(/.*)")


class Router:
    """Which operation a method and a path mean."""

    def __init__(self) -> None:
        self._static: dict[tuple[str, str], Operation] = {}
        self._dynamic: list[tuple[str, str, str, str, Operation]] = []
        for operation in OPERATIONS:
            prefix, brace, rest = operation.path.partition("{")
            if not brace:
                self._static[operation.method, operation.path] = operation
                continue
            name, _, suffix = rest.partition("}")
            self._dynamic.append((operation.method, prefix, suffix, name, operation))
        # The most specific first: what comes after the parameter may itself look like a part of it.
        self._dynamic.sort(key=lambda route: (-len(route[1]), -len(route[2])))

    def find(self, method: str, path: str) -> tuple[Operation, dict[str, str]] | None:
        """The operation, and the value of its parameter. Names of images contain slashes."""
        if (operation := self._static.get((method, path))) is not None:
            return operation, {}
        for its_method, prefix, suffix, name, operation in self._dynamic:
            if its_method == method and path.startswith(prefix) and path.endswith(suffix):
                value = path[len(prefix) : len(path) - len(suffix)]
                if value and len(prefix) + len(suffix) < len(path):
                    return operation, {name: value}
        return None


def _error(message: str, status: int, headers: Mapping[str, str], *, plain: bool = False) -> web.Response:
    if plain:
        return web.Response(
            body=message.encode() + b"\n",
            status=status,
            headers={**headers, "Content-Type": "text/plain; charset=utf-8", "X-Content-Type-Options": "nosniff"},
        )
    return web.Response(
        body=json.encode({"message": message}), status=status, headers={**headers, "Content-Type": "application/json"}
    )


class Dispatcher:
    """Answers requests. One per engine."""

    def __init__(self, backends: Backends) -> None:
        self._backends = backends
        self._router = Router()
        self._base = {"Server": SERVER}
        self._headers = {
            "Api-Version": versions.show(versions.MAXIMUM),
            "Docker-Experimental": "false",
            "Ostype": "linux",
            "Server": SERVER,
        }
        self._refused = {name: value for name, value in self._headers.items() if name != "Docker-Experimental"}

    async def __call__(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer ``request``: never raises but when there is nobody left to answer."""
        response = await self.dispatch(request)
        if isinstance(request.protocol, Protocol):
            request.protocol.give_back()
        return response

    async def dispatch(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answer ``request``, of which nothing but its head has been read."""
        if request.method == "OPTIONS":
            return web.Response(headers=self._base)
        path = unquote(request.rel_url.raw_path, errors="surrogateescape")
        if (clean := _clean(path)) != path:
            location = quote(clean, errors="surrogateescape")
            if request.query_string:
                location += f"?{request.query_string}"
            return web.Response(status=301, headers={**self._base, "Location": location})
        match = _VERSION.fullmatch(path)
        wanted, bare = match.groups() if match else ("", path)
        found = self._router.find(request.method, bare)
        if found is None or "\0" in bare:
            return _error("page not found", 404, self._base)
        operation, parameters = found
        version = _parse_version(wanted) if wanted else versions.MAXIMUM
        if version is None:
            return _error("page not found", 404, self._base)
        if version < versions.MINIMUM:
            return _error(
                f"client version {wanted} is too old. Minimum supported API version is"
                f" {versions.show(versions.MINIMUM)}, please upgrade your client to a newer version",
                400,
                self._refused,
                plain=True,
            )
        if version > versions.MAXIMUM:
            return _error(
                f"client version {wanted} is too new. Maximum supported API version is"
                f" {versions.show(versions.MAXIMUM)}",
                400,
                self._refused,
            )
        call = Call(
            request=request,
            operation=operation,
            version=version,
            path=parameters,
            query=request.query,
            headers=self._headers,
        )
        return await self._answer(call, HANDLERS.get(operation.id))

    async def _answer(self, call: Call, handler: Handler | None) -> web.StreamResponse:
        operation = call.operation
        request = call.request
        if handler is None or not operation.present:
            if operation.path.startswith(_SWARM) and operation.id not in ("SwarmInit", "SwarmJoin"):
                return _error(NOT_IN_SWARM if operation.id == "SwarmLeave" else NO_SWARM, 503, self._headers)
            return _error(_absent(operation), 501, self._headers)
        log.debug("%s %s", request.method, request.rel_url)
        try:
            return await handler(self._backends, call)
        except EngineError as error:
            status = status_of(error)
            if status >= 500:
                log.warning("%s %s: %s", request.method, request.rel_url.path, error)
            if status == 304:
                return call.empty(304)
            return _error(str(error), status, self._headers)
        except BrokenOff as error:
            log.warning("%s %s broke off: %s", request.method, request.rel_url.path, error)
            if request.transport is not None:
                request.transport.abort()
            raise ConnectionResetError from error
        except (ConnectionError, asyncio.CancelledError):
            raise
        except Exception:
            log.exception("unexpected failure of %s %s", request.method, request.rel_url.path)
            if request.writer.output_size > 0:
                if request.transport is not None:
                    request.transport.abort()
                raise ConnectionResetError from None
            return _error("internal error: see the engine's log", 500, self._headers)


def _absent(operation: Operation) -> str:
    return f"{operation.method} {operation.path} ({operation.id}) is not supported by this engine"


def _clean(path: str) -> str:
    """The path without empty, ``.`` and ``..`` parts; a slash at the end stays (gorilla/mux, cleanPath)."""
    if "//" not in path and "/." not in path and path.startswith("/"):
        return path
    clean = posixpath.normpath("/" + path)
    # POSIX lets two leading slashes mean something of their own.
    clean = "/" + clean.lstrip("/")
    return clean + "/" if path.endswith("/") and clean != "/" else clean


def _parse_version(text: str) -> tuple[int, int] | None:
    """Major and minor of ``1.51``; ``None`` when it is no version."""
    major, _, minor = text.partition(".")
    minor = minor.partition(".")[0]
    if not major or len(major) > 4 or len(minor) > 4:
        return None
    return int(major), int(minor or 0)

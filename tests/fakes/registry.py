"""A registry that lies on request: wrong bytes, bodies cut short, silence, redirects without end, tokens.

It speaks just enough of the distribution API for a pull, from blobs and manifests which the test puts in.
A `Fault` is attached to whatever path contains its key; everything else is served honestly.
"""

import asyncio
import base64
import contextlib
import functools
import gzip
import hashlib
import io
import json
import re
import ssl
import tarfile
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from aiohttp import web

MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
CONFIG = "application/vnd.docker.container.image.v1+json"
LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"

Fault = Callable[[web.Request, "Blob"], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class Blob:
    data: bytes
    media_type: str = "application/octet-stream"

    @property
    def digest(self) -> str:
        return digest(self.data)


def digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


@functools.cache
def compressed(data: bytes) -> bytes:
    return gzip.compress(data, 1, mtime=0)


def layer_tar(files: Mapping[str, bytes]) -> bytes:
    """An uncompressed layer holding ``files``."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            member.mode = 0o755
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


@dataclass
class LyingRegistry:
    """Serve on a free loopback port for as long as the ``async with`` block lasts."""

    faults: dict[str, Fault] = field(default_factory=dict[str, Fault])
    realm: str = ""
    """Token server to send clients to: "" means no authentication, "basic" means HTTP basic, "self" our own /token."""
    user: str = ""
    password: str = ""
    """Empty: the token server gives tokens to anybody."""
    blobs: dict[str, Blob] = field(default_factory=dict[str, Blob])
    manifests: dict[tuple[str, str], Blob] = field(default_factory=dict[tuple[str, str], Blob])
    seen: list[tuple[str, str, dict[str, str]]] = field(default_factory=list[tuple[str, str, dict[str, str]]])
    """(method, path with query, headers) of every request."""
    port: int = 0
    tls: ssl.SSLContext | None = None
    _runner: web.AppRunner | None = None

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.port}"

    # what the test puts in

    def add_blob(self, data: bytes, media_type: str = "application/octet-stream") -> dict[str, Any]:
        """Keep a blob; its descriptor."""
        blob = Blob(data, media_type)
        self.blobs[blob.digest] = blob
        return {"mediaType": media_type, "digest": blob.digest, "size": len(data)}

    def add_manifest(self, name: str, tag: str, document: Any, media_type: str = MANIFEST) -> dict[str, Any]:
        """Keep a manifest, a document or ready bytes, under its tag and its digest; its descriptor."""
        data = document if isinstance(document, bytes) else json.dumps(document).encode()
        blob = Blob(data, media_type)
        self.manifests[name, tag] = self.manifests[name, blob.digest] = blob
        return {"mediaType": media_type, "digest": blob.digest, "size": len(data)}

    def add_image(
        self,
        name: str,
        tag: str,
        layers: list[bytes],
        *,
        compress: Callable[[bytes], bytes] = compressed,
        layer_type: str = LAYER,
        **config: Any,
    ) -> dict[str, Any]:
        """Keep an image with these uncompressed layers; the manifest's descriptor."""
        document = {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Cmd": ["/hello"]},
            "rootfs": {"type": "layers", "diff_ids": [digest(layer) for layer in layers]},
            **config,
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": self.add_blob(json.dumps(document).encode(), CONFIG),
            "layers": [self.add_blob(compress(layer), layer_type) for layer in layers],
        }
        return self.add_manifest(name, tag, manifest)

    # serving

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, ssl_context=self.tls)
        await site.start()
        self.port = self._runner.addresses[0][1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    def requests(self, part: str, method: str = "GET") -> list[dict[str, str]]:
        """Headers of the requests whose path contains ``part``."""
        return [headers for verb, path, headers in self.seen if part in path and verb == method]

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        self.seen.append((request.method, request.path_qs, dict(request.headers)))
        blob = self._find(request.path)
        for part, fault in self.faults.items():
            if part in request.path_qs:
                return await fault(request, blob or Blob(b""))
        if request.path == "/token":
            return self._token(request)
        if not self._authorized(request):
            return self._challenge(request)
        if request.path == "/v2/":
            return web.json_response({})
        if (tags := re.fullmatch("/v2/(.+)/tags/list", request.path)) is not None:
            names = [tag for name, tag in self.manifests if name == tags[1] and ":" not in tag]
            if not names:
                return error_reply(404, "NAME_UNKNOWN", "repository name not known to registry")
            return web.json_response({"name": tags[1], "tags": names})
        if blob is None:
            code = "BLOB_UNKNOWN" if "/blobs/" in request.path else "MANIFEST_UNKNOWN"
            return error_reply(404, code, code.lower().replace("_", " "))
        return await honest(request, blob)

    def _find(self, path: str) -> Blob | None:
        match = re.fullmatch("/v2/(.+)/(manifests|blobs)/([^/]+)", path)
        if match is None:
            return None
        name, kind, reference = match.groups()
        return self.blobs.get(reference) if kind == "blobs" else self.manifests.get((name, reference))

    def _token(self, request: web.Request) -> web.Response:
        if self.password and request.headers.get("Authorization") != self._basic():
            return web.json_response({"details": "incorrect username or password"}, status=401)
        return web.json_response({"token": f"token-{len(self.seen)}", "expires_in": 300})

    def _basic(self) -> str:
        return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()

    def _authorized(self, request: web.Request) -> bool:
        given = request.headers.get("Authorization", "")
        return not self.realm or (
            given == self._basic() if self.realm == "basic" else given.startswith("Bearer token-")
        )

    def _challenge(self, request: web.Request) -> web.Response:
        if self.realm == "basic":
            challenge = 'Basic realm="lies"'
        else:
            realm = f"http://{self.host}/token" if self.realm == "self" else self.realm
            challenge = f'Bearer realm="{realm}",service="lies"'
            if (match := re.fullmatch("/v2/(.+)/(?:manifests|blobs|tags)/.*", request.path)) is not None:
                challenge += f',scope="repository:{match[1]}:pull"'
        reply = error_reply(401, "UNAUTHORIZED", "authentication required")
        reply.headers["WWW-Authenticate"] = challenge
        return reply


def error_reply(status: int, code: str, message: str) -> web.Response:
    """With a detail, as real registries send it: without one, clients show the code alone."""
    return web.json_response({"errors": [{"code": code, "message": message, "detail": {}}]}, status=status)


# the honest answer, and the lies


async def honest(request: web.Request, blob: Blob) -> web.StreamResponse:
    headers = {"Content-Type": blob.media_type, "Docker-Content-Digest": blob.digest, "Accept-Ranges": "bytes"}
    if (wanted := re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", ""))) is not None:
        start, size = int(wanted[1]), len(blob.data)
        headers["Content-Range"] = f"bytes {start}-{size - 1}/{size}"
        return web.Response(status=206, body=blob.data[start:], headers=headers)
    return web.Response(body=blob.data, headers=headers)


def serving(data: bytes, media_type: str | None = None) -> Fault:
    """Other bytes than the digest says, under an honest-looking head."""

    async def fault(request: web.Request, blob: Blob) -> web.StreamResponse:
        headers = {"Content-Type": media_type or blob.media_type, "Docker-Content-Digest": blob.digest}
        return web.Response(body=data, headers=headers)

    return fault


def failing(
    status: int, body: bytes = b"", content_type: str = "text/plain", headers: Mapping[str, str] | None = None
) -> Fault:
    async def fault(request: web.Request, blob: Blob) -> web.StreamResponse:
        return web.Response(status=status, body=body, content_type=content_type, headers=headers)

    return fault


def error(code: str, status: int, message: str = "") -> Fault:
    """The error reply of a registry."""

    async def fault(request: web.Request, blob: Blob) -> web.StreamResponse:
        return error_reply(status, code, message or code.lower().replace("_", " "))

    return fault


def first(times: int, fault: Fault, then: Fault | None = None) -> Fault:
    """Lie ``times`` times, then otherwise or be honest."""
    left = times

    async def sometimes(request: web.Request, blob: Blob) -> web.StreamResponse:
        nonlocal left
        left -= 1
        return await (fault if left >= 0 else then or honest)(request, blob)

    return sometimes


def cut_after(size: int) -> Fault:
    """Announce the whole, send ``size`` bytes (from where the client wants them), hang up."""

    async def fault(request: web.Request, blob: Blob) -> web.StreamResponse:
        response = await _begin(request, blob)
        start = _start(request)
        await response.write(blob.data[start : start + size])
        assert request.transport is not None
        request.transport.close()
        return response

    return fault


def silent_after(size: int) -> Fault:
    """Send ``size`` bytes and no more, leaving the connection open."""

    async def fault(request: web.Request, blob: Blob) -> web.StreamResponse:
        response = await _begin(request, blob)
        start = _start(request)
        await response.write(blob.data[start : start + size])
        await asyncio.Event().wait()
        return response

    return fault


def endless(chunk: bytes = bytes(1 << 16)) -> Fault:
    """A body without length and without end."""

    async def fault(request: web.Request, blob: Blob) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": blob.media_type})
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):
            while True:
                await response.write(chunk)
        return response

    return fault


def redirecting(target: str = "") -> Fault:
    """Redirect to ``target``, or for ever to the next number."""

    async def fault(request: web.Request, blob: Blob) -> web.StreamResponse:
        count = int(request.query.get("n", "0")) + 1
        return web.Response(status=307, headers={"Location": target or f"{request.path}?n={count}"})

    return fault


def _start(request: web.Request) -> int:
    wanted = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", ""))
    return int(wanted[1]) if wanted else 0


async def _begin(request: web.Request, blob: Blob) -> web.StreamResponse:
    start, size = _start(request), len(blob.data)
    headers = {"Content-Type": blob.media_type, "Content-Length": str(size - start)}
    if start:
        headers["Content-Range"] = f"bytes {start}-{size - 1}/{size}"
    response = web.StreamResponse(status=206 if start else 200, headers=headers)
    await response.prepare(request)
    return response

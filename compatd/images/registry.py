"""A client of registries: the distribution API v2 over HTTP, with its authentication.

Endpoints, their order, what is asked of them and the texts of errors follow moby's daemon/pkg/registry and
distribution's registry/client. The protocol is https://github.com/opencontainers/distribution-spec and
distribution's docs/spec/auth/token.md. Nothing a registry sends is believed before its digest is checked; every
body has a limit, every read a time limit, redirects are counted and take no credentials to another host.
"""

import asyncio
import base64
import contextlib
import ipaddress
import os
import re
import socket
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast
from urllib.parse import urlencode, urljoin, urlsplit

import aiohttp
import msgspec
from yarl import URL

from compatd.errors import SystemFailure
from compatd.images.content import Digest, digest_of, parse_digest
from compatd.images.credentials import ANONYMOUS, Credentials, registry_domain
from compatd.images.manifest import DOCUMENT_LIMIT_BYTES, MANIFEST_TYPES, SCHEMA1_TYPES
from compatd.images.reference import DEFAULT_DOMAIN, is_domain
from compatd.images.registry_faults import (
    STANDARD_TEXTS,
    Challenge,
    RegistryFault,
    code_text,
    inspect_error,
    parse_challenges,
    read_error,
)
from compatd.images.registry_options import RegistryOptions, is_address
from compatd.images.tar import write_all
from compatd.tasks import Workers

HUB_URL = "https://registry-1.docker.io"

_REDIRECT_LIMIT = 10
_REPLY_LIMIT_BYTES = 1 << 20  # tokens, tag lists, error bodies
_TAG_PAGE_LIMIT = 1000
_TOKEN_LEAST_S = 60  # token.md: what a token without expires_in is good for
_READ_BUFFER_BYTES = 1 << 20
_PROGRESS_STEP_BYTES = 512 << 10  # moby pkg/progress, progressreader.go


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where a registry's API is: ``url`` without a trailing slash."""

    url: str
    mirror: bool = False
    insecure: bool = False
    """Whether its certificate is not checked."""
    certificates_ns: int = 0
    """When the folder of its certificates changed last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """What a tag points to. ``data`` is there when the registry had to send the whole manifest to tell."""

    digest: Digest
    data: bytes | None
    media_type: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Token:
    text: str = field(repr=False)
    refresh: str = field(default="", repr=False)
    valid_until_s: float


class RegistryClient:
    """Connections, TLS settings and tokens, shared by all pulls. Belongs to one event loop."""

    def __init__(self, options: RegistryOptions, workers: Workers) -> None:
        self._options = options
        self._workers = workers
        self._session: aiohttp.ClientSession | None = None
        self._tls: dict[Endpoint, ssl.SSLContext] = {}
        self._tokens: dict[tuple[str, ...], _Token] = {}
        self._insecure_hosts = {name.lower() for name in options.insecure if "/" not in name}
        self._insecure_networks = [ipaddress.ip_network(cidr) for cidr in ("127.0.0.0/8", "::1/128")]
        self._insecure_networks += [
            ipaddress.ip_network(name, strict=False) for name in options.insecure if "/" in name
        ]

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def endpoints(self, domain: str, *, mirrors: bool = True) -> list[Endpoint]:
        """Where to look for images of ``domain``, in order."""
        if domain == DEFAULT_DOMAIN:
            found = [await self._endpoint(url.rstrip("/"), mirror=True) for url in self._options.mirrors if mirrors]
            return [*found, await self._endpoint(HUB_URL)]
        if not is_domain(domain):
            raise RegistryFault('Get "https:///v2/": http: no Host in request URL', reached=False)
        found = [await self._endpoint(f"https://{domain}")]
        if await self._is_insecure(domain):
            found.append(await self._endpoint(f"http://{domain}"))
        return found

    async def repository(self, endpoint: Endpoint, path: str, credentials: Credentials) -> "Repository":
        """Get in touch with a repository at ``endpoint``; RegistryFault when nobody answers."""
        # A mirror is another party than the registry which the credentials are for.
        access = _Access(self, endpoint, ANONYMOUS if endpoint.mirror else credentials, f"repository:{path}:pull")
        await access.ping()
        return Repository(access, f"{endpoint.url}/v2/{path}")

    async def check_login(self, credentials: Credentials) -> str:
        """Try credentials at ``credentials.server_address``; the identity token to use from now on, or ''.

        Raises the engine errors of ``POST /auth``.
        """
        domain = registry_domain(credentials.server_address)
        fault = RegistryFault(f"no endpoints found for {domain}")
        for endpoint in await self.endpoints(domain, mirrors=False):
            access = _Access(self, endpoint, credentials, "")
            try:
                await access.ping()
                return await access.login()
            except RegistryFault as error:
                fault = error
                if error.reached:
                    break
        raise inspect_error(fault)

    async def _endpoint(self, url: str, *, mirror: bool = False) -> Endpoint:
        host = urlsplit(url).netloc
        return Endpoint(
            url=url,
            mirror=mirror,
            insecure=await self._is_insecure(host),
            certificates_ns=await self._workers.run(_changed_ns, self._options.certs_dir / host),
        )

    async def _tls_context(self, endpoint: Endpoint) -> ssl.SSLContext:
        # Hosts without certificates of their own share one: a context with the system's authorities is large.
        key = endpoint if endpoint.certificates_ns else Endpoint(url="", insecure=endpoint.insecure)
        if key not in self._tls:
            directory = self._options.certs_dir / urlsplit(endpoint.url).netloc
            self._tls[key] = await self._workers.run(_tls_context, directory, endpoint.insecure)
        return self._tls[key]

    async def _is_insecure(self, host: str) -> bool:
        if host.lower() in self._insecure_hosts:
            return True
        name = urlsplit(f"//{host}").hostname or ""
        try:
            addresses = [name] if is_address(name) else await self._addresses(name)
        except OSError:
            return False
        return any(ipaddress.ip_address(a) in network for a in addresses for network in self._insecure_networks)

    async def _addresses(self, name: str) -> list[str]:
        if name == urlsplit(HUB_URL).hostname:
            return []
        found = await asyncio.get_running_loop().getaddrinfo(name, None, type=socket.SOCK_STREAM)
        return [str(address[4][0]).partition("%")[0] for address in found]

    async def send(
        self,
        method: str,
        url: str,
        endpoint: Endpoint,
        headers: Mapping[str, str] | None = None,
        data: str | None = None,
    ) -> aiohttp.ClientResponse:
        """One request, redirects followed, with the TLS settings of ``endpoint``; the caller releases the response.

        RegistryFault in Go's words.
        """
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=15),
                cookie_jar=aiohttp.DummyCookieJar(),
                auto_decompress=False,
                read_bufsize=_READ_BUFFER_BYTES,
                timeout=aiohttp.ClientTimeout(
                    sock_connect=self._options.connect_timeout_s, sock_read=self._options.idle_timeout_s
                ),
                headers={"User-Agent": self._options.user_agent, "Accept-Encoding": "identity"},
            )
        verb, sent = method.capitalize(), dict(headers or {})
        origin = urlsplit(url)[:2]
        shown = url
        for _ in range(_REDIRECT_LIMIT):
            # Making a context reads the system's whole list of authorities: not for plain HTTP.
            tls = await self._tls_context(endpoint) if url.startswith("https:") else True
            try:
                target = URL(url, encoded=True)
                response = await self._session.request(
                    method,
                    target,
                    headers=sent,
                    data=data,
                    ssl=tls,
                    proxy=self._options.proxy_for(target),
                    allow_redirects=False,
                )
            except (aiohttp.ClientError, TimeoutError, ValueError, OSError) as error:
                raise RegistryFault(
                    f'{verb} "{shown}": {network_error_text(error)}', reached=_reached(error), temporary=True
                ) from error
            location = response.headers.get("Location")
            if response.status not in (301, 302, 303, 307, 308) or location is None:
                return response
            response.release()
            shown = location
            if (following := _join(url, location)) is None:
                raise RegistryFault(f'{verb} "{shown}": unsupported protocol scheme')
            url = following
            if urlsplit(url)[:2] != origin:
                sent.pop("Authorization", None)
        raise RegistryFault(f'{verb} "{shown}": stopped after {_REDIRECT_LIMIT} redirects')

    async def download(self, url: str, into: int, advance: Callable[[int, int], None]) -> Mapping[str, str]:
        """Write what is at a web address into a descriptor: the head of the answer.

        ``advance`` gets the bytes that have come and those there will be (0: unknown), as often as Docker tells its
        clients. ``SystemFailure`` in the words of moby's builder/remotecontext/remote.go.
        """
        response = await self.send("GET", url, Endpoint(url=url))
        try:
            if response.status >= 400:
                said = (await read_reply(response)).strip().decode(errors="replace")
                raise SystemFailure(f"failed to GET {url} with status {_status_text(response)}: {said}")
            total, current, told = response.content_length or 0, 0, -_PROGRESS_STEP_BYTES
            async for piece in _chunks(response, 0):
                await self._workers.run(write_all, into, piece)
                current += len(piece)
                if current - told > _PROGRESS_STEP_BYTES or current == total:
                    told = current
                    advance(current, total)
            if current != told:
                advance(current, total)
            return response.headers
        finally:
            response.close()

    async def token(
        self, challenge: Challenge, credentials: Credentials, scope: str, endpoint: Endpoint, *, offline: bool = False
    ) -> tuple[_Token, bool]:
        """A token which the challenge's realm gives for ``scope``; whether it came from the cache."""
        realm, service = challenge.parameters.get("realm", ""), challenge.parameters.get("service", "")
        if _join("", realm) is None:
            raise RegistryFault(f"invalid token auth challenge realm: {realm!r}")
        key = (realm, service, scope, credentials.username, credentials.password, credentials.identity_token)
        cached = self._tokens.get(key)
        if cached is not None and not offline and cached.valid_until_s > time.monotonic():
            return cached, True
        query = {"service": service} if service else {}
        if scope:
            query["scope"] = scope
        if credentials.identity_token:
            form = {"grant_type": "refresh_token", "refresh_token": credentials.identity_token, "client_id": "docker"}
            headers = {"Content-Type": "application/x-www-form-urlencoded"}
            response = await self.send("POST", realm, endpoint, headers, urlencode(form | query))
        else:
            headers = dict[str, str]()
            if credentials.username:
                query["account"] = credentials.username
                headers["Authorization"] = _basic(credentials)
            if offline:
                query |= {"client_id": "docker", "offline_token": "true"}
            joint = "&" if urlsplit(realm).query else "?"
            url = f"{realm}{joint}{urlencode(sorted(query.items()))}" if query else realm
            response = await self.send("GET", url, endpoint, headers)
        asked_s = time.monotonic()
        body = await read_reply(response)
        if response.status >= 300:
            raise reply_fault(response, body)
        try:
            reply = msgspec.json.decode(body, type=_TokenReply)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise RegistryFault(f"unable to decode token response: {error}") from error
        text = reply.token or reply.access_token
        if not text or not re.fullmatch(r"[\x21-\x7e]+", text):
            raise RegistryFault("authorization server did not include a token in the response")
        lifetime_s = min(max(reply.expires_in or 0, _TOKEN_LEAST_S), 86_400)
        # Ten seconds early: a token must not expire on its way.
        token = _Token(text=text, refresh=reply.refresh_token or "", valid_until_s=asked_s + lifetime_s - 10)
        now_s = time.monotonic()
        self._tokens = {kept: value for kept, value in self._tokens.items() if value.valid_until_s > now_s}
        self._tokens[key] = token
        return token, False

    def forget(self, token: _Token) -> None:
        """Never use ``token`` again: the registry refused it."""
        self._tokens = {key: kept for key, kept in self._tokens.items() if kept is not token}


class _TokenReply(msgspec.Struct):
    token: str | None = None
    access_token: str | None = None
    refresh_token: str | None = None
    expires_in: int | None = None


class _Access:
    """Authorised requests to one endpoint, for one scope."""

    def __init__(self, client: RegistryClient, endpoint: Endpoint, credentials: Credentials, scope: str) -> None:
        self.endpoint = endpoint
        self._client = client
        self._credentials = credentials
        self._scope = scope
        self._challenges: Sequence[Challenge] = ()

    async def ping(self) -> None:
        """Learn how the registry wants to be authorised; whatever else it answers does not matter here."""
        response = await self._client.send("GET", f"{self.endpoint.url}/v2/", self.endpoint)
        await read_reply(response)
        if response.status == 401:
            self._challenges = _challenges_of(response)

    async def login(self) -> str:
        """Ask for ``/v2/`` with the credentials; the refresh token that came along, or ''."""
        url = f"{self.endpoint.url}/v2/"
        authorization, token, _ = await self._authorization("GET", url, offline=True)
        response = await self._client.send("GET", url, self.endpoint, authorization)
        await read_reply(response)
        if response.status != 200:
            raise RegistryFault(f"login attempt to {url} failed with status: {_status_text(response)}")
        return token.refresh if token else ""

    async def send(self, method: str, url: str, headers: Mapping[str, str] | None = None) -> aiohttp.ClientResponse:
        """One authorised request; the caller releases the response, whatever its status."""
        while True:
            authorization, token, cached = await self._authorization(method, url)
            response = await self._client.send(method, url, self.endpoint, {**(headers or {}), **authorization})
            if response.status != 401 or token is None or not cached:
                return response
            # The token may have been revoked since it was cached: one try with a new one.
            response.release()
            self._client.forget(token)

    async def _authorization(
        self, method: str, url: str, *, offline: bool = False
    ) -> tuple[dict[str, str], _Token | None, bool]:
        if self._credentials.registry_token:
            return {"Authorization": f"Bearer {self._credentials.registry_token}"}, None, False
        for challenge in self._challenges:
            try:
                if challenge.scheme == "bearer":
                    token, cached = await self._client.token(
                        challenge, self._credentials, self._scope, self.endpoint, offline=offline
                    )
                    return {"Authorization": f"Bearer {token.text}"}, token, cached
                if challenge.scheme == "basic":
                    if not self._credentials.username:
                        raise RegistryFault("no basic auth credentials")
                    return {"Authorization": _basic(self._credentials)}, None, False
            except RegistryFault as fault:
                text = f'{method.capitalize()} "{url}": {fault}'
                raise RegistryFault(text, code=fault.code, temporary=fault.temporary) from fault
        return {}, None, False


class Repository:
    """One repository at one endpoint."""

    def __init__(self, access: _Access, url: str) -> None:
        self._access = access
        self._url = url
        self.endpoint = access.endpoint

    async def resolve(self, reference: str) -> Resolved:
        """What a tag or a digest points to; RegistryFault when it points to nothing."""
        url = f"{self._url}/manifests/{reference}"
        headers = {"Accept": ", ".join((*MANIFEST_TYPES, *sorted(SCHEMA1_TYPES)))}
        response = await self._access.send("HEAD", url, headers)
        response.release()
        stated = response.headers.get("Docker-Content-Digest")
        if response.status == 200 and stated:
            return Resolved(digest=parse_digest(stated), data=None, media_type=_media_type(response))
        # No digest, or an error without a text: the whole thing tells.
        response = await self._access.send("GET", url, headers)
        data = await read_reply(response, DOCUMENT_LIMIT_BYTES)
        if response.status != 200:
            raise reply_fault(response, data)
        return Resolved(digest=digest_of(data), data=data, media_type=_media_type(response))

    async def manifest(self, digest: Digest) -> tuple[bytes, str]:
        """The manifest's bytes, verified, and the media type which the registry says they have."""
        headers = {"Accept": ", ".join((*MANIFEST_TYPES, *sorted(SCHEMA1_TYPES)))}
        response = await self._access.send("GET", f"{self._url}/manifests/{digest}", headers)
        data = await read_reply(response, DOCUMENT_LIMIT_BYTES)
        if response.status != 200:
            raise reply_fault(response, data)
        if digest_of(data) != digest:
            raise SystemFailure(f"manifest verification failed for digest {digest}")
        return data, _media_type(response)

    async def document(self, digest: Digest) -> bytes:
        """A small blob, unverified, at most DOCUMENT_LIMIT_BYTES."""
        response = await self._access.send("GET", f"{self._url}/blobs/{digest}")
        data = await read_reply(response, DOCUMENT_LIMIT_BYTES)
        if response.status != 200:
            raise _blob_fault(response, data)
        return data

    @contextlib.asynccontextmanager
    async def blob(self, digest: Digest, offset: int = 0) -> AsyncGenerator[AsyncIterator[bytes], None]:
        """The blob's bytes from ``offset``, in chunks as they come; RegistryFault when they stop coming.

        The bytes are not verified, nor is there an end to them but the one the registry makes.
        """
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        response = await self._access.send("GET", f"{self._url}/blobs/{digest}", headers)
        try:
            skip = 0
            match response.status:
                case 200:
                    skip = offset  # a server without ranges
                case 206 if re.match(rf"bytes {offset}-", response.headers.get("Content-Range", "")):
                    pass
                case 206:
                    raise RegistryFault("registry sent another range than was asked for", temporary=True)
                case _:
                    raise _blob_fault(response, await read_reply(response))
            yield _chunks(response, skip)
        finally:
            # Not released to the pool: what is left of the body may have no end.
            response.close()

    async def tags(self) -> list[str]:
        """All tags, as the registry orders them."""
        found: list[str] = []
        url = f"{self._url}/tags/list"
        for _ in range(_TAG_PAGE_LIMIT):
            response = await self._access.send("GET", url)
            body = await read_reply(response)
            if response.status != 200:
                raise reply_fault(response, body)
            try:
                found += msgspec.json.decode(body, type=_TagList).tags or []
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
                raise RegistryFault(f"invalid tag list: {error}") from error
            following = re.match(r'<([^<>]+)>;\s*rel="next"', response.headers.get("Link", ""))
            if following is None:
                break
            next_url = _join(url, following[1])
            if next_url is None or urlsplit(next_url)[:2] != urlsplit(url)[:2]:
                raise RegistryFault("the list of tags continues at another host")
            url = next_url
        return found


class _TagList(msgspec.Struct):
    tags: list[str] | None = None


async def _chunks(response: aiohttp.ClientResponse, skip: int) -> AsyncIterator[bytes]:
    try:
        async for data in response.content.iter_any():
            if skip:
                data, skip = data[skip:], max(0, skip - len(data))
            if data:
                yield data
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise RegistryFault(network_error_text(error), temporary=True) from error


async def read_reply(response: aiohttp.ClientResponse, limit_bytes: int = _REPLY_LIMIT_BYTES) -> bytes:
    """The whole body, at most ``limit_bytes``; releases the response."""
    data = bytearray()
    try:
        async for chunk in response.content.iter_any():
            data += chunk
            if len(data) > limit_bytes:
                raise RegistryFault(f"the registry's reply is larger than {limit_bytes} bytes")
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise RegistryFault(
            f'{response.method.capitalize()} "{response.url}": {network_error_text(error)}', temporary=True
        ) from error
    finally:
        response.close() if len(data) > limit_bytes else response.release()
    return bytes(data)


# what registries say when something is wrong


def reply_fault(response: aiohttp.ClientResponse, body: bytes) -> RegistryFault:
    """Read an error reply as distribution's registry/client/errors.go does."""
    if not 400 <= response.status < 500:
        return RegistryFault(
            f"received unexpected HTTP status: {_status_text(response)}", temporary=response.status >= 500
        )
    said = read_error(response.status, _media_type(response), body)
    # RFC 6750, section 3.1: the challenge may tell what was wrong with the token.
    for challenge in _challenges_of(response):
        code = {"invalid_token": "UNAUTHORIZED", "insufficient_scope": "DENIED"}.get(
            challenge.parameters.get("error", "")
        )
        if challenge.scheme == "bearer" and code:
            text = challenge.parameters.get("error_description") or STANDARD_TEXTS[code]
            return RegistryFault(f"{code_text(code)}: {text}", code=code)
    return said


def _blob_fault(response: aiohttp.ClientResponse, body: bytes) -> RegistryFault:
    if response.status == 404:
        return RegistryFault("unknown blob", code="BLOB_UNKNOWN")
    return reply_fault(response, body)


def _status_text(response: aiohttp.ClientResponse) -> str:
    return f"{response.status} {response.reason or ''}".rstrip()


def _challenges_of(response: aiohttp.ClientResponse) -> list[Challenge]:
    return parse_challenges(response.headers.getall("WWW-Authenticate", []))


def _media_type(response: aiohttp.ClientResponse) -> str:
    return response.headers.get("Content-Type", "").partition(";")[0].strip().lower()


# what the network says, in the words of Go's net, net/http and crypto/tls


def network_error_text(error: BaseException) -> str:
    match error:
        case aiohttp.ClientConnectorCertificateError():
            return f"tls: failed to verify certificate: {_certificate_error_text(error.certificate_error)}"
        case aiohttp.ClientConnectorSSLError():
            cause = cast("OSError", getattr(error, "os_error"))  # noqa: B009  (its type is unknown to the checker)
            if getattr(cause, "reason", "") in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE"):
                return "http: server gave HTTP response to HTTPS client"
            return f"tls: {cause.strerror or cause}"
        case aiohttp.ClientProxyConnectionError():
            return f"proxyconnect tcp: {_dial_error_text(error)}"
        case aiohttp.ClientHttpProxyError():
            return f"proxyconnect tcp: {error.message}"
        case aiohttp.ClientConnectorError():
            return _dial_error_text(error)
        case aiohttp.ServerDisconnectedError():
            return "EOF"
        case aiohttp.ClientPayloadError():
            return "unexpected EOF"
        case aiohttp.InvalidURL():
            return "invalid URL"
        case aiohttp.ClientResponseError():
            return f"net/http: HTTP/1.x transport connection broken: malformed HTTP response: {error.message}"
        case aiohttp.ConnectionTimeoutError():
            return (
                "net/http: request canceled while waiting for connection "
                "(Client.Timeout exceeded while awaiting headers)"
            )
        case TimeoutError():
            return "net/http: timeout awaiting response"
        case OSError() if error.errno:
            return os.strerror(error.errno).lower()
        case _:
            return str(error) or type(error).__name__


def _dial_error_text(error: aiohttp.ClientConnectorError) -> str:
    cause = error.os_error
    if isinstance(cause, socket.gaierror):
        missing = cause.errno in (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME))
        reason = "no such host" if missing else (cause.strerror or str(cause))
        return f"dial tcp: lookup {error.host}: {reason}"
    # asyncio names the address it tried in the text only: Connect call failed ('127.0.0.1', 5000)
    tried = re.search(r"\('([0-9a-fA-F:.]+)', \d+", str(cause))
    host = tried[1] if tried else error.host
    reason = os.strerror(cause.errno).lower() if cause.errno else "connection refused"
    return f"dial tcp {f'[{host}]' if ':' in host else host}:{error.port}: connect: {reason}"


def _certificate_error_text(error: Exception) -> str:
    # Numbers of openssl's x509_vfy.h.
    match getattr(error, "verify_code", 0):
        case 18 | 19 | 20 | 21:
            return "x509: certificate signed by unknown authority"
        case 9 | 10:
            return "x509: certificate has expired or is not yet valid"
        case _:
            return f"x509: {getattr(error, 'verify_message', '') or error}"


def _reached(error: BaseException) -> bool:
    """Whether somebody who speaks the right protocol was there: then plain HTTP is not worth a try."""
    return not isinstance(
        error,
        aiohttp.ClientConnectorError
        | aiohttp.ClientConnectorCertificateError
        | aiohttp.ServerDisconnectedError
        | aiohttp.ConnectionTimeoutError
        | OSError,
    )


def _join(base: str, url: str) -> str | None:
    """The web address that ``url`` means at ``base``; None if it is none."""
    try:
        joined = urljoin(base, url)
        parts = urlsplit(joined)
        return joined if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 else None
    except ValueError:
        return None


def _basic(credentials: Credentials) -> str:
    return "Basic " + base64.b64encode(f"{credentials.username}:{credentials.password}".encode()).decode()


def _changed_ns(directory: Path) -> int:
    try:
        return directory.stat().st_mtime_ns
    except OSError:
        return 0


def _tls_context(directory: Path, insecure: bool) -> ssl.SSLContext:
    """What /etc/docker/certs.d says about a host: ``*.crt`` are roots, ``*.cert`` with ``*.key`` clients."""
    context = ssl.create_default_context()
    if insecure:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    try:
        names = sorted(os.listdir(directory))
    except (FileNotFoundError, NotADirectoryError):
        return context
    for name in names:
        stem, suffix = os.path.splitext(name)
        try:
            if suffix == ".crt":
                context.load_verify_locations(directory / name)
            elif suffix == ".cert":
                if f"{stem}.key" not in names:
                    raise SystemFailure(
                        f"missing key {stem}.key for client certificate {name}. "
                        "CA certificates must use the extension .crt"
                    )
                context.load_cert_chain(directory / name, directory / f"{stem}.key")
            elif suffix == ".key" and f"{stem}.cert" not in names:
                raise SystemFailure(f"missing client certificate {stem}.cert for key {name}")
        except (OSError, ssl.SSLError) as error:
            raise SystemFailure(f"could not read {directory / name}: {error}") from error
    return context

"""The registry client against a registry that lies: texts as Docker 28.5.2 gives them for the same replies."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from yarl import URL

from compatd.errors import EngineError, SystemFailure, Unauthorized
from compatd.images import registry as r
from compatd.images.content import Digest
from compatd.images.credentials import ANONYMOUS, Credentials
from compatd.images.registry_faults import RegistryFault, inspect_error
from compatd.images.registry_options import RegistryOptions, proxies_of
from compatd.tasks import Workers
from tests.fakes import registry as fake
from tests.fakes import tls
from tests.fakes.registry import LyingRegistry

pytestmark = pytest.mark.unit

Client = Callable[..., r.RegistryClient]
MISSING = Digest("sha256:" + "0" * 64)
JSON = "application/json"


@pytest.fixture
async def client() -> AsyncIterator[Client]:
    """Makes clients with short time limits."""
    workers = Workers(2)
    async with AsyncExitStack() as stack:
        stack.callback(workers.close)

        def make(**options: Any) -> r.RegistryClient:
            limits: dict[str, Any] = {"connect_timeout_s": 5, "idle_timeout_s": 0.3, "certs_dir": Path("/nonexistent")}
            made = r.RegistryClient(RegistryOptions(**limits | options), workers)
            stack.push_async_callback(made.close)
            return made

        yield make


@pytest.fixture
async def lying() -> AsyncIterator[LyingRegistry]:
    async with LyingRegistry() as registry:
        registry.add_image("img", "1", [fake.layer_tar({"hello": b"hi"})])
        yield registry


async def repository(client: r.RegistryClient, host: str, **credentials: str) -> r.Repository:
    """The repository ``img`` at a plain HTTP registry."""
    endpoint = (await client.endpoints(host))[-1]
    return await client.repository(endpoint, "img", Credentials(**credentials))


async def refusal(work: Any) -> str:
    with pytest.raises(RegistryFault) as caught:
        await work
    return str(caught.value)


# where to look


async def test_docker_hub_is_the_last_of_its_mirrors(client: Client) -> None:
    found = await client(mirrors=("http://127.0.0.1:1/", "https://127.0.0.1:2/x")).endpoints("docker.io")
    assert [(one.url, one.mirror) for one in found] == [
        ("http://127.0.0.1:1", True),
        ("https://127.0.0.1:2/x", True),
        ("https://registry-1.docker.io", False),
    ]
    assert [one.insecure for one in found] == [True, True, False]


@pytest.mark.parametrize(
    ("domain", "insecure", "urls"),
    [
        ("10.1.2.3:5000", (), ["https://10.1.2.3:5000"]),
        ("10.1.2.3:5000", ("10.1.0.0/16",), ["https://10.1.2.3:5000", "http://10.1.2.3:5000"]),
        ("10.1.2.3:5000", ("10.1.2.3",), ["https://10.1.2.3:5000"]),
        ("10.1.2.3:5000", ("10.1.2.3:5000",), ["https://10.1.2.3:5000", "http://10.1.2.3:5000"]),
        ("127.9.9.9", (), ["https://127.9.9.9", "http://127.9.9.9"]),
        ("localhost:5000", (), ["https://localhost:5000", "http://localhost:5000"]),
        ("[::1]:5000", (), ["https://[::1]:5000", "http://[::1]:5000"]),
    ],
)
async def test_plain_http_is_for_insecure_registries(
    client: Client, domain: str, insecure: tuple[str, ...], urls: list[str]
) -> None:
    found = await client(insecure=insecure).endpoints(domain)
    assert [one.url for one in found] == urls
    assert {one.insecure for one in found} == {len(urls) == 2}


# what registries answer


@pytest.mark.parametrize(
    ("status", "body", "content_type", "headers", "text", "code"),
    [
        (401, b"no", "text/plain", {}, "unauthorized: no", "UNAUTHORIZED"),
        (403, b"no", "text/plain", {}, "denied: no", "DENIED"),
        (404, b"<html>", "text/html", {}, "unknown: <html>", "UNKNOWN"),
        (500, b"oops", "text/plain", {}, "received unexpected HTTP status: 500 Internal Server Error", ""),
        (503, b"oops", "text/plain", {}, "received unexpected HTTP status: 503 Service Unavailable", ""),
        (
            429,
            b'{"errors":[{"code":"TOOMANYREQUESTS","message":"slow down"}]}',
            JSON,
            {},
            "toomanyrequests: slow down",
            "TOOMANYREQUESTS",
        ),
        (404, b'{"errors":[{"code":"MANIFEST_UNKNOWN"}]}', JSON, {}, "manifest unknown", "MANIFEST_UNKNOWN"),
        (
            404,
            b'{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown","detail":{}}]}',
            JSON,
            {},
            "manifest unknown: manifest unknown",
            "MANIFEST_UNKNOWN",
        ),
        (400, b'{"errors":[{"code":"X","message":"new"}]}', JSON, {}, "unknown: new", "UNKNOWN"),
        (
            404,
            b'{"errors":[{"code":"DENIED","message":"a"},{"code":"UNKNOWN","message":"b"}]}',
            JSON,
            {},
            "errors:\ndenied: a\nunknown: b\n",
            "DENIED",
        ),
        (401, b'{"details":"incorrect username or password"}', JSON, {}, "unauthorized: incorrect username", ""),
        (400, b"{bad", JSON, {}, "error parsing HTTP 400 response body: ", ""),
        (400, b"{}", JSON, {}, "no error details found in HTTP response body", ""),
        (400, b"[" * 100_000, JSON, {}, "error parsing HTTP 400 response body", ""),
        (400, b"x" * 5_000_000, "text/plain", {}, "the registry's reply is larger than", ""),
        (
            401,
            b'{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}',
            JSON,
            {"WWW-Authenticate": 'Bearer realm="http://x/",error="insufficient_scope"'},
            "denied: requested access to the resource is denied",
            "DENIED",
        ),
    ],
)
async def test_error_replies(
    client: Client,
    lying: LyingRegistry,
    status: int,
    body: bytes,
    content_type: str,
    headers: dict[str, str],
    text: str,
    code: str,
) -> None:
    lying.faults["/manifests/"] = fake.failing(status, body, content_type, headers)
    found = await repository(client(), lying.host)
    with pytest.raises(RegistryFault) as caught:
        await found.resolve("1")
    assert str(caught.value) == text or (not code and text in str(caught.value))
    assert not code or caught.value.code == code
    assert caught.value.temporary == (status >= 500)


async def test_a_manifest_is_what_its_digest_says(client: Client, lying: LyingRegistry) -> None:
    found = await repository(client(), lying.host)
    resolved = await found.resolve("1")
    assert resolved.data is None
    assert (await found.manifest(resolved.digest))[0] == lying.manifests["img", "1"].data
    lying.faults["/manifests/"] = fake.serving(b"{}")
    with pytest.raises(SystemFailure, match=f"manifest verification failed for digest {resolved.digest}"):
        await found.manifest(resolved.digest)


async def test_a_registry_which_tells_no_digest_sends_the_manifest(client: Client, lying: LyingRegistry) -> None:
    manifest = lying.manifests["img", "1"]
    lying.faults["/manifests/"] = fake.failing(200, manifest.data, fake.MANIFEST)
    resolved = await (await repository(client(), lying.host)).resolve("1")
    assert (resolved.digest, resolved.data, resolved.media_type) == (manifest.digest, manifest.data, fake.MANIFEST)


async def test_endless_and_silent_manifests_end(client: Client, lying: LyingRegistry) -> None:
    lying.manifests["img", MISSING] = lying.manifests["img", "1"]
    found = await repository(client(), lying.host)
    lying.faults["/manifests/"] = fake.endless()
    assert "larger than 4194304 bytes" in await refusal(found.manifest(MISSING))
    lying.faults["/manifests/"] = fake.silent_after(0)
    assert "timeout awaiting response" in await refusal(found.manifest(MISSING))
    lying.faults["/manifests/"] = fake.cut_after(3)
    assert "unexpected EOF" in await refusal(found.manifest(MISSING))


# redirects


async def test_redirects_are_counted(client: Client, lying: LyingRegistry) -> None:
    lying.faults["/manifests/"] = fake.redirecting()
    found = await repository(client(), lying.host)
    assert await refusal(found.resolve("1")) == 'Head "/v2/img/manifests/1?n=10": stopped after 10 redirects'


async def test_credentials_stay_at_the_host_they_are_for(client: Client, lying: LyingRegistry) -> None:
    lying.realm, lying.user, lying.password = "basic", "u", "p"
    async with LyingRegistry() as other:
        other.manifests = lying.manifests
        lying.faults["/manifests/"] = fake.redirecting(f"http://{other.host}/v2/img/manifests/1")
        found = await repository(client(), lying.host, username="u", password="p")
        await found.resolve("1")
        assert "Authorization" in lying.requests("/manifests/", "HEAD")[0]
        assert "Authorization" not in other.requests("/manifests/", "HEAD")[0]


@pytest.mark.parametrize(
    "target", ["file:///etc/passwd", "ftp://127.0.0.1/x", "http://:80/x", "http://[::1/x", "http://h:99999/"]
)
async def test_redirects_lead_to_http_only(client: Client, lying: LyingRegistry, target: str) -> None:
    lying.faults["/manifests/"] = fake.redirecting(target)
    assert "unsupported protocol scheme" in await refusal((await repository(client(), lying.host)).resolve("1"))


# blobs


async def read(blobs: r.Repository, digest: str, offset: int = 0) -> bytes:
    async with blobs.blob(Digest(digest), offset) as chunks:
        return b"".join([chunk async for chunk in chunks])


async def test_blobs_go_on_where_they_stopped(client: Client, lying: LyingRegistry) -> None:
    data = bytes(range(256)) * 3000
    digest = lying.add_blob(data)["digest"]
    found = await repository(client(), lying.host)
    assert await read(found, digest) == data
    assert await read(found, digest, 700_000) == data[700_000:]
    lying.faults["/blobs/"] = fake.serving(data)  # without ranges
    assert await read(found, digest, 700_000) == data[700_000:]
    lying.faults["/blobs/"] = fake.failing(206, data, headers={"Content-Range": "bytes 5-9/768000"})
    assert "another range" in await refusal(read(found, digest, 700_000))


async def test_broken_blobs_are_faults_worth_another_try(client: Client, lying: LyingRegistry) -> None:
    digest = lying.add_blob(bytes(500_000))["digest"]
    found = await repository(client(), lying.host)
    for fault, text in ((fake.cut_after(1000), "unexpected EOF"), (fake.silent_after(1000), "timeout")):
        lying.faults["/blobs/"] = fault
        with pytest.raises(RegistryFault, match=text) as caught:
            await read(found, digest)
        assert caught.value.temporary


async def test_a_missing_blob_is_not_worth_another_try(client: Client, lying: LyingRegistry) -> None:
    with pytest.raises(RegistryFault, match="unknown blob") as caught:
        await read(await repository(client(), lying.host), MISSING)
    assert not caught.value.temporary


# tags


async def test_lists_of_tags_are_read_to_their_end(client: Client, lying: LyingRegistry) -> None:
    found = await repository(client(), lying.host)
    assert await found.tags() == ["1"]
    page = fake.failing(200, b'{"tags":["b"]}', JSON)
    lying.faults["/tags/list?last=a"] = page
    lying.faults["/tags/list"] = fake.failing(
        200, b'{"tags":["a"]}', JSON, {"Link": '</v2/img/tags/list?last=a>; rel="next"'}
    )
    assert await found.tags() == ["a", "b"]
    lying.faults["/tags/list"] = fake.failing(
        200, b'{"tags":["a"]}', JSON, {"Link": '<http://127.0.0.1:1/x>; rel="next"'}
    )
    assert "another host" in await refusal(found.tags())


# authentication


async def test_anonymous_tokens_are_fetched_once(client: Client, lying: LyingRegistry) -> None:
    lying.realm = "self"
    made = client()
    for _ in range(2):
        found = await repository(made, lying.host)
        await found.manifest((await found.resolve("1")).digest)
    queries = [path for _, path, _ in lying.seen if path.startswith("/token")]
    assert queries == ["/token?scope=repository%3Aimg%3Apull&service=lies"]


async def test_a_token_refused_later_is_fetched_anew(client: Client, lying: LyingRegistry) -> None:
    lying.realm = "self"
    found = await repository(client(), lying.host)
    await found.resolve("1")
    refused = fake.failing(401, headers={"WWW-Authenticate": f'Bearer realm="http://{lying.host}/token"'})
    lying.faults["/manifests/"] = fake.first(1, refused)
    await found.resolve("1")
    assert len(lying.requests("/token")) == 2
    lying.faults["/manifests/"] = refused
    assert await refusal(found.resolve("1")) == "unauthorized"
    assert len(lying.requests("/manifests/")) + len(lying.requests("/manifests/", "HEAD")) < 10


async def test_token_servers_are_asked_with_the_credentials(client: Client, lying: LyingRegistry) -> None:
    lying.realm, lying.user, lying.password = "self", "u", "p"
    await (await repository(client(), lying.host, username="u", password="p")).resolve("1")
    assert any("account=u" in path for _, path, _ in lying.seen)
    for wrong in ({"username": "u", "password": "bad"}, {}):
        found = await repository(client(), lying.host, **wrong)
        url = f"http://{lying.host}/v2/img/manifests/1"
        with pytest.raises(RegistryFault) as caught:
            await found.resolve("1")
        assert str(caught.value) == f'Head "{url}": unauthorized: incorrect username or password'
        assert isinstance(inspect_error(caught.value), Unauthorized)


async def test_an_identity_token_is_exchanged(client: Client, lying: LyingRegistry) -> None:
    lying.realm = "self"
    await (await repository(client(), lying.host, identity_token="refresh-me")).resolve("1")
    assert lying.requests("/token", "POST")[0]["Content-Type"] == "application/x-www-form-urlencoded"


async def test_a_registry_token_is_sent_as_it_is(client: Client, lying: LyingRegistry) -> None:
    lying.realm = "self"
    await (await repository(client(), lying.host, registry_token="token-mine")).resolve("1")
    assert lying.requests("/manifests/", "HEAD")[0]["Authorization"] == "Bearer token-mine"
    assert not lying.requests("/token")


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        (b"{", "unable to decode token response"),
        (b"{}", "authorization server did not include a token in the response"),
        (b'{"token":"a\\r\\nX: y"}', "authorization server did not include a token in the response"),
        (b'{"token":1}', "unable to decode token response"),
        (b"x" * 3_000_000, "larger than"),
    ],
)
async def test_token_servers_lie_too(client: Client, lying: LyingRegistry, reply: bytes, text: str) -> None:
    lying.realm = "self"
    lying.faults["/token"] = fake.failing(200, reply, JSON)
    assert text in await refusal((await repository(client(), lying.host)).resolve("1"))


async def test_a_realm_is_a_web_address(client: Client, lying: LyingRegistry) -> None:
    lying.realm = "file:///etc/passwd"
    assert "invalid token auth challenge realm" in await refusal((await repository(client(), lying.host)).resolve("1"))


async def test_basic_authentication(client: Client, lying: LyingRegistry) -> None:
    lying.realm, lying.user, lying.password = "basic", "u", "p"
    await (await repository(client(), lying.host, username="u", password="p")).resolve("1")
    anonymous = await repository(client(), lying.host)
    url = f"http://{lying.host}/v2/img/manifests/1"
    assert await refusal(anonymous.resolve("1")) == f'Head "{url}": no basic auth credentials'
    wrong = await repository(client(), lying.host, username="u", password="bad")
    assert await refusal(wrong.resolve("1")) == "unauthorized: authentication required"


async def test_mirrors_do_not_see_the_credentials(client: Client, lying: LyingRegistry) -> None:
    made = client(mirrors=(f"http://{lying.host}",))
    endpoint = (await made.endpoints("docker.io"))[0]
    lying.realm = "basic"
    found = await made.repository(endpoint, "img", Credentials(username="u", password="p"))
    assert "no basic auth credentials" in await refusal(found.resolve("1"))


@pytest.mark.parametrize(
    ("realm", "credentials", "text"),
    [
        ("", {"username": "u", "password": "x"}, ""),
        ("basic", {"username": "u", "password": "p"}, ""),
        ("basic", {"username": "u", "password": "x"}, "login attempt to {url} failed with status: 401 Unauthorized"),
        ("basic", {}, 'Get "{url}": no basic auth credentials'),
        ("self", {"username": "u", "password": "p"}, ""),
        ("self", {"username": "u", "password": "x"}, 'Get "{url}": unauthorized: incorrect username or password'),
    ],
)
async def test_login(client: Client, lying: LyingRegistry, realm: str, credentials: dict[str, str], text: str) -> None:
    lying.realm, lying.user, lying.password = realm, "u", "p"
    for address in (lying.host, f"http://{lying.host}/v2/"):
        login = client().check_login(Credentials(**credentials, server_address=address))
        if not text:
            assert await login == ""
            continue
        with pytest.raises(EngineError) as caught:
            await login
        assert str(caught.value) == text.format(url=f"http://{lying.host}/v2/")
        assert isinstance(caught.value, Unauthorized) == ("incorrect" in text)


async def test_login_gives_the_identity_token(client: Client, lying: LyingRegistry) -> None:
    lying.realm = "self"
    lying.faults["/token"] = fake.failing(200, b'{"token":"token-1","refresh_token":"again"}', JSON)
    credentials = Credentials(username="u", password="p", server_address=lying.host)
    assert await client().check_login(credentials) == "again"
    token_request = next(path for _, path, _ in lying.seen if path.startswith("/token"))
    assert token_request == "/token?account=u&client_id=docker&offline_token=true&service=lies"


async def test_login_at_what_is_no_host(client: Client) -> None:
    for address in ("a b", "user@host", "https://", "/../..", "a\n"):
        with pytest.raises(EngineError, match="invalid registry address"):
            await client().check_login(Credentials(server_address=address))


# the network


async def test_nobody_there(client: Client) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(RegistryFault) as caught:
            await repository(client(), host)
    assert str(caught.value) == f'Get "http://{host}/v2/": dial tcp {host}: connect: connection refused'
    assert not caught.value.reached


async def test_somebody_else_there(client: Client, lying: LyingRegistry) -> None:
    made = client()
    first = (await made.endpoints(lying.host))[0]
    text = await refusal(made.repository(first, "img", ANONYMOUS))
    assert text == f'Get "https://{lying.host}/v2/": http: server gave HTTP response to HTTPS client'


async def test_a_server_that_says_nothing(client: Client) -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
    async with server:
        host = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        assert await refusal(repository(client(), host)) == f'Get "http://{host}/v2/": EOF'


def test_names_that_do_not_resolve() -> None:
    import aiohttp
    from aiohttp.client_reqrep import ConnectionKey

    key = ConnectionKey("registry.invalid", 443, True, True, None, None, None)
    missing = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    text = r.network_error_text(aiohttp.ClientConnectorDNSError(key, missing))
    assert text == "dial tcp: lookup registry.invalid: no such host"


async def test_certificates(client: Client, tmp_path: Path) -> None:
    (tmp_path / "server.pem").write_text(tls.CERTIFICATE + tls.KEY)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.pem")
    async with LyingRegistry(tls=context) as registry:
        registry.add_image("img", "1", [])
        host = f"localhost:{registry.port}"
        strict = r.Endpoint(url=f"https://{host}")
        lenient = r.Endpoint(url=f"https://{host}", insecure=True)

        made = client(certs_dir=tmp_path)

        async def resolve(endpoint: r.Endpoint) -> object:
            return await (await made.repository(endpoint, "img", ANONYMOUS)).resolve("1")

        unknown_authority = "x509: certificate signed by unknown authority"
        text = f'Get "https://{host}/v2/": tls: failed to verify certificate: {unknown_authority}'
        assert await refusal(resolve(strict)) == text
        await resolve(lenient)
        # What an administrator puts there is seen without a restart.
        (tmp_path / host).mkdir()
        (tmp_path / host / "ca.crt").write_text(tls.CERTIFICATE)
        changed_ns = (await made.endpoints(host))[0].certificates_ns
        assert changed_ns == (tmp_path / host).stat().st_mtime_ns
        await resolve(replace(strict, certificates_ns=changed_ns))
        (tmp_path / host / "me.cert").write_text(tls.CERTIFICATE)
        with pytest.raises(SystemFailure, match=r"missing key me\.key for client certificate me\.cert"):
            await resolve(replace(strict, certificates_ns=changed_ns + 1))


async def test_proxies(client: Client, lying: LyingRegistry) -> None:
    proxies = proxies_of({"http_proxy": lying.host, "NO_PROXY": "direct.test,10.0.0.0/8"})
    assert proxies == {"http": f"http://{lying.host}", "no": "direct.test,10.0.0.0/8"}
    made = client(proxies=proxies)
    far = r.Endpoint(url="http://far.test")
    assert (await (await made.repository(far, "img", ANONYMOUS)).resolve("1")).digest
    assert {headers["Host"] for _, _, headers in lying.seen} == {"far.test"}
    for direct in (
        "http://direct.test",
        "http://sub.direct.test",
        "http://10.1.2.3",
        "http://127.0.0.1",
        "http://localhost",
    ):
        assert made._options.proxy_for(URL(direct)) is None
    assert made._options.proxy_for(URL("http://11.1.2.3")) == f"http://{lying.host}"
    assert made._options.proxy_for(URL("https://far.test")) is None


async def test_downloads(client: Client, lying: LyingRegistry, tmp_path: Path) -> None:
    """ADD of a URL in a Dockerfile."""
    lying.faults["/file"] = fake.failing(200, b"x" * 10, "text/plain", {"Last-Modified": "now"})
    steps: list[tuple[int, int]] = []
    with (tmp_path / "file").open("wb") as file:
        head = await client().download(f"http://{lying.host}/file", file.fileno(), lambda *step: steps.append(step))
        assert (tmp_path / "file").read_bytes() == b"x" * 10
        assert (head["Last-Modified"], steps) == ("now", [(10, 10)])
        lying.faults["/file"] = fake.failing(404, b" sorry\n", "text/plain")
        with pytest.raises(SystemFailure) as caught:
            await client().download(f"http://{lying.host}/file", file.fileno(), lambda *_: None)
        assert str(caught.value) == f"failed to GET http://{lying.host}/file with status 404 Not Found: sorry"
        with pytest.raises(SystemFailure) as caught:
            await client().download("http://127.0.0.1:1/x", file.fileno(), lambda *_: None)
        assert str(caught.value) == 'Get "http://127.0.0.1:1/x": dial tcp 127.0.0.1:1: connect: connection refused'

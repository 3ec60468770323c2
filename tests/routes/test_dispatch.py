"""Versions, paths, kinds of errors. Statuses and texts are those of Docker 28.5.2, asked with the same requests."""

import asyncio
import logging

import pytest

from compatd.errors import (
    Conflict,
    EngineError,
    Forbidden,
    InvalidParameter,
    NotFound,
    NotModified,
    SystemFailure,
    Unauthorized,
    Unavailable,
    Unsupported,
)
from tests.routes.conftest import Client, Services

pytestmark = pytest.mark.unit


async def test_ping(client: Client) -> None:
    for target in ("/_ping", "/v1.24/_ping", "/v1.51/_ping"):
        reply = await client("GET", target)
        assert (reply.status, reply.body) == (200, b"OK")
        assert reply.headers["Api-Version"] == "1.51"
        assert reply.headers["Docker-Experimental"] == "false"
        assert reply.headers["Ostype"] == "linux"
        assert reply.headers["Server"].startswith("Docker/28.")
        assert reply.headers["Builder-Version"] == "1"
        assert reply.headers["Cache-Control"] == "no-cache, no-store, must-revalidate"
        assert reply.headers["Pragma"] == "no-cache"
        assert reply.headers["Content-Type"] == "text/plain; charset=utf-8"
    reply = await client("HEAD", "/_ping")
    assert (reply.status, reply.body, reply.headers["Api-Version"]) == (200, b"", "1.51")


@pytest.mark.parametrize("version", ["1.23", "1.10", "1", "0.1"])
async def test_too_old(client: Client, version: str) -> None:
    reply = await client("GET", f"/v{version}/version")
    assert reply.status == 400
    assert reply.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert reply.body.decode() == (
        f"client version {version} is too old. Minimum supported API version is 1.24,"
        " please upgrade your client to a newer version\n"
    )


@pytest.mark.parametrize("version", ["1.52", "2.0", "1.999"])
async def test_too_new(client: Client, version: str) -> None:
    reply = await client("GET", f"/v{version}/version")
    assert reply.status == 400
    assert reply.message == f"client version {version} is too new. Maximum supported API version is 1.51"


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("GET", "/"),
        ("GET", "/nope"),
        ("GET", "/v1.51/nope"),
        ("GET", "/v1.51"),
        ("GET", "/vx/version"),
        ("GET", "/v99999999999/version"),
        ("GET", "/v.../version"),
        ("POST", "/containers/json"),
        ("DELETE", "/info"),
        ("GET", "/_ping/"),
        ("GET", "/containers/%00/json"),
    ],
)
async def test_page_not_found(client: Client, method: str, target: str) -> None:
    reply = await client(method, target)
    assert reply.status == 404
    assert reply.body == b'{"message":"page not found"}\n'


async def test_options(client: Client) -> None:
    for target in ("/", "/v1.51/info", "/nope"):
        reply = await client("OPTIONS", target, check=False)
        assert (reply.status, reply.body) == (200, b"")


@pytest.mark.parametrize(
    ("target", "location"),
    [
        ("//_ping", "/_ping"),
        ("/v1.51//_ping?a=b", "/v1.51/_ping?a=b"),
        ("/containers/../_ping", "/_ping"),
        ("/./a%20b", "/a%20b"),
    ],
)
async def test_paths_are_cleaned(server: object, client: Client, target: str, location: str) -> None:
    # The client library would clean the path itself.
    reader, writer = await asyncio.open_unix_connection(str(client.path))
    writer.write(f"GET {target} HTTP/1.1\r\nHost: e\r\nConnection: close\r\n\r\n".encode())
    head = (await reader.read()).decode()
    writer.close()
    assert head.startswith("HTTP/1.1 301 ")
    assert f"\r\nLocation: {location}\r\n" in head


async def test_names_with_slashes_and_escapes(client: Client, services: Services) -> None:
    services.images.later("history", [])
    for target in ("/images/a/b:c/history", "/images/a%2Fb:c/history"):
        assert (await client("GET", target)).status == 200
        assert services.images.last[0] == ("a/b:c", None)


@pytest.mark.parametrize(
    ("kind", "status"),
    [
        (NotFound, 404),
        (InvalidParameter, 400),
        (Conflict, 409),
        (Unauthorized, 401),
        (Forbidden, 403),
        (Unavailable, 503),
        (Unsupported, 501),
        (SystemFailure, 500),
        (EngineError, 500),
    ],
)
async def test_kinds(client: Client, services: Services, kind: type[EngineError], status: int) -> None:
    services.containers.later("inspect", kind('that\'s "it"'))
    reply = await client("GET", "/containers/a/json")
    assert (reply.status, reply.message) == (status, 'that\'s "it"')
    assert reply.headers["Api-Version"] == "1.51"


async def test_not_modified_has_no_body(client: Client, services: Services) -> None:
    services.containers.later("start", NotModified("already"))
    reply = await client("POST", "/containers/a/start")
    assert (reply.status, reply.body) == (304, b"")


async def test_what_nobody_thought_of_is_500_and_logged(
    client: Client, services: Services, caplog: pytest.LogCaptureFixture
) -> None:
    services.system.answer("info", ZeroDivisionError("secret"))
    reply = await client("GET", "/info")
    assert reply.status == 500
    assert "secret" not in reply.message
    assert any(record.exc_info and record.levelno == logging.ERROR for record in caplog.records)
    assert (await client("GET", "/_ping")).status == 200


@pytest.mark.parametrize(
    ("method", "target", "named"),
    [
        ("POST", "/session", "Session"),
        ("POST", "/swarm/init", "SwarmInit"),
        ("GET", "/distribution/a/b/json", "DistributionInspect"),
    ],
)
async def test_known_and_absent(client: Client, method: str, target: str, named: str) -> None:
    reply = await client(method, target)
    assert reply.status == 501
    assert named in reply.message


async def test_swarm_is_not_here(client: Client) -> None:
    for target in ("/swarm", "/nodes", "/v1.30/services", "/tasks", "/secrets", "/configs/a"):
        reply = await client("GET", target)
        assert reply.status == 503
        assert reply.message.startswith("This node is not a swarm manager.")
    assert (await client("POST", "/services/create")).status == 503
    reply = await client("POST", "/swarm/leave")
    assert (reply.status, reply.message) == (503, "This node is not part of a swarm")


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"BOGUS\r\n\r\n",
        b"GET /_ping HTTP/1.1\r\n\r\n",
        b"GET /_ping HTTP/1.1\r\nHost: a\r\nContent-Length: -1\r\n\r\n",
        b"GET /_ping HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST /auth HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET /_ping HTTP/1.1\r\nHost: a\r\nX: " + b"x" * (2 * 1024 * 1024),
    ],
)
async def test_no_http(server: object, client: Client, caplog: pytest.LogCaptureFixture, request_bytes: bytes) -> None:
    reader, writer = await asyncio.open_unix_connection(str(client.path))
    try:
        writer.write(request_bytes)
        head = await asyncio.wait_for(reader.read(64), 10)
        assert b" 400 " in head.split(b"\r\n")[0]
    finally:
        writer.transport.abort()
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert (await client("GET", "/_ping")).status == 200

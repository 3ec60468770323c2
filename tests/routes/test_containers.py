"""What the container operations pass on, and how they answer."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from compatd.core.containers import LogRequest
from compatd.errors import InvalidParameter, NotFound, SystemFailure
from compatd.wire.streams import frame
from compatd.wire.types.containers import (
    ContainerCreateRequest,
    ContainerCreateResponse,
    ContainersPruned,
    HostConfig,
    PathStat,
    TopResponse,
)
from compatd.wire.types.networks import NetworkingConfig
from tests.routes.conftest import Client, Services

pytestmark = pytest.mark.unit

JSON = {"Content-Type": "application/json"}


async def test_list(client: Client, services: Services) -> None:
    services.containers.later("listing", [])
    reply = await client("GET", '/containers/json?all=1&limit=3&size=no&filters={"name":["a"]}')
    assert (reply.status, reply.body) == (200, b"[]\n")
    assert services.containers.last == (({"name": ["a"]},), {"all": True, "limit": 3, "size": False})
    assert (await client("GET", "/containers/json?limit=x")).message == 'strconv.Atoi: parsing "x": invalid syntax'


async def test_create(client: Client, services: Services) -> None:
    services.containers.later("create", ContainerCreateResponse(id="1"))
    body = json.dumps({"Image": "busybox", "Cmd": ["true"], "HostConfig": {"IpcMode": ""}})
    reply = await client("POST", "/containers/create?name=/a&platform=linux/amd64", body, headers=JSON)
    assert (reply.status, reply.json()) == (201, {"Id": "1", "Warnings": []})
    wanted = ContainerCreateRequest(
        image="busybox",
        cmd=["true"],
        host_config=HostConfig(network_mode="bridge"),
        networking_config=NetworkingConfig(),
    )
    assert services.containers.last[0] == ("/a", wanted, "linux/amd64")
    await client("POST", "/v1.39/containers/create?platform=linux/amd64", body, headers=JSON)
    _, request, platform = services.containers.last[0]
    assert platform is None
    assert (request.host_config.ipc_mode, request.host_config.cgroupns_mode) == ("shareable", "host")


async def test_several_networks_came_with_1_44(client: Client, services: Services) -> None:
    services.containers.later("create", ContainerCreateResponse(id="1"))
    body = json.dumps({"Image": "a", "NetworkingConfig": {"EndpointsConfig": {"x": {}, "y": None}}})
    assert (await client("POST", "/v1.44/containers/create", body, headers=JSON)).status == 201
    reply = await client("POST", "/v1.43/containers/create", body, headers=JSON)
    assert (reply.status, reply.message) == (
        400,
        "Container cannot be created with multiple network endpoints: x, y",
    )


@pytest.mark.parametrize(
    ("method", "target", "called", "expected"),
    [
        ("POST", "/containers/a/start", "start", (("a",), {})),
        ("POST", "/containers/a/stop?t=3&signal=INT", "stop", (("a",), {"timeout_s": 3, "signal": "INT"})),
        ("POST", "/containers/a/stop?t=", "stop", (("a",), {"timeout_s": None, "signal": None})),
        ("POST", "/v1.41/containers/a/stop?signal=INT", "stop", (("a",), {"timeout_s": None, "signal": None})),
        ("POST", "/containers/a/restart?t=-1", "restart", (("a",), {"timeout_s": -1, "signal": None})),
        ("POST", "/containers/a/kill", "kill", (("a", None), {})),
        ("POST", "/containers/a/kill?signal=HUP", "kill", (("a", "HUP"), {})),
        ("POST", "/containers/a/pause", "pause", (("a",), {})),
        ("POST", "/containers/a/unpause", "unpause", (("a",), {})),
        ("POST", "/containers/a/rename?name=b", "rename", (("a", "b"), {})),
        (
            "DELETE",
            "/containers/a?v=1&force=true",
            "remove",
            (("a",), {"force": True, "volumes": True, "link": False}),
        ),
    ],
)
async def test_changes_of_state(
    client: Client, services: Services, method: str, target: str, called: str, expected: Any
) -> None:
    services.containers.later(called, None)
    reply = await client(method, target)
    assert (reply.status, reply.body) == (204, b"")
    assert services.containers.last == expected


async def test_a_change_goes_on_when_its_client_hangs_up(client: Client, services: Services) -> None:
    begun, go_on, done = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def stop(reference: str, **_: object) -> None:
        begun.set()
        await go_on.wait()
        done.set()

    services.containers.answer("stop", stop)
    _, writer = await asyncio.open_unix_connection(str(client.path))
    writer.write(b"POST /containers/a/stop HTTP/1.1\r\nHost: e\r\n\r\n")
    await asyncio.wait_for(begun.wait(), 5)
    writer.transport.abort()
    # Another request is answered meanwhile, and by then the server has seen the end of the first.
    assert (await client("GET", "/_ping")).status == 200
    go_on.set()
    await asyncio.wait_for(done.wait(), 5)


async def test_prune_of_nothing_is_null(client: Client, services: Services) -> None:
    services.containers.later("prune", ContainersPruned())
    reply = await client("POST", "/containers/prune")
    assert reply.body == b'{"ContainersDeleted":null,"SpaceReclaimed":0}\n'


async def test_top_and_resize(client: Client, services: Services) -> None:
    services.containers.later("top", TopResponse(processes=[["1"]], titles=["PID"]))
    services.containers.later("resize", None)
    assert (await client("GET", "/containers/a/top")).json() == {"Processes": [["1"]], "Titles": ["PID"]}
    assert services.containers.last[0] == ("a", "-ef")
    assert (await client("POST", "/containers/a/resize?h=24&w=80")).status == 200
    assert services.containers.last[0] == ("a", 24, 80)
    assert (await client("POST", "/containers/a/resize?h=24")).message == 'invalid resize width "": invalid syntax'


async def test_a_wait_that_is_over(client: Client, services: Services) -> None:
    services.containers.answer("check_wait", (SimpleNamespace(), 137))
    reply = await client("POST", "/containers/a/wait?condition=not-running")
    assert reply.json() == {"StatusCode": 137}
    assert services.containers.last[0] == ("a", "not-running")
    services.containers.answer("check_wait", InvalidParameter('invalid condition: "x"'))
    assert (await client("POST", "/containers/a/wait?condition=x")).status == 400


async def chunks(*pieces: bytes | Exception) -> AsyncIterator[bytes]:
    for piece in pieces:
        if isinstance(piece, Exception):
            raise piece
        yield piece


async def test_logs(client: Client, services: Services) -> None:
    services.containers.answer("logs", lambda *_: (False, chunks(frame(1, b"a"), frame(2, b"b"))))
    target = "/containers/a/logs?stdout=1&stderr=1&timestamps=1&since=1.5&tail=7"
    reply = await client("GET", target)
    assert reply.body == frame(1, b"a") + frame(2, b"b")
    assert reply.headers["Content-Type"] == "application/vnd.docker.multiplexed-stream"
    assert services.containers.last[0] == (
        "a",
        LogRequest(stdout=True, stderr=True, timestamps=True, since_ns=1_500_000_000, tail=7),
    )
    reply = await client("GET", "/v1.41" + target)
    assert reply.headers["Content-Type"] == "application/vnd.docker.raw-stream"
    for tail in ("all", "-1", "x", "٣", ""):
        await client("GET", f"/containers/a/logs?stdout=1&tail={tail}")
        assert services.containers.last[0][1].tail is None
    reply = await client("GET", "/containers/a/logs")
    assert reply.message == "Bad parameters: you must choose at least one stream"


async def test_the_head_of_followed_logs_comes_at_once_and_hanging_up_ends_them(
    client: Client, services: Services
) -> None:
    ended = asyncio.Event()

    async def silent() -> AsyncIterator[bytes]:
        try:
            await asyncio.Event().wait()
            yield b""
        finally:
            ended.set()

    services.containers.answer("logs", lambda *_: (True, silent()))
    reader, writer = await asyncio.open_unix_connection(str(client.path))
    writer.write(b"GET /containers/a/logs?stdout=1&follow=1 HTTP/1.1\r\nHost: e\r\n\r\n")
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
    assert b"application/vnd.docker.raw-stream" in head
    assert b"chunked" in head
    writer.transport.abort()
    await asyncio.wait_for(ended.wait(), 5)


STAT = PathStat(name="passwd", size=3, mode=420, mtime="2026-01-01T00:00:00Z")


async def test_archive_head(client: Client, services: Services) -> None:
    services.archives.later("stat", STAT)
    reply = await client("HEAD", "/containers/a/archive?path=/etc/passwd")
    assert (reply.status, reply.body) == (200, b"")
    assert json.loads(base64.b64decode(reply.headers["X-Docker-Container-Path-Stat"])) == {
        "name": "passwd",
        "size": 3,
        "mode": 420,
        "mtime": "2026-01-01T00:00:00Z",
        "linkTarget": "",
    }
    services.archives.later("stat", NotFound("Could not find the file /x in container a"))
    assert (await client("HEAD", "/containers/a/archive?path=/x")).status == 404


async def test_archive_get(client: Client, services: Services) -> None:
    services.archives.later("get", lambda *_: (STAT, chunks(b"tar", b"ball")))
    reply = await client("GET", "/containers/a/archive?path=/etc/passwd")
    assert reply.body == b"tarball"
    assert reply.headers["Content-Type"] == "application/x-tar"
    assert (await client("GET", "/containers/a/archive?path=")).message == "bad parameter: pathcannot be empty"


async def test_an_archive_that_breaks_off_is_not_taken_for_whole(client: Client, services: Services) -> None:
    services.archives.later("get", lambda *_: (STAT, chunks(b"tar", SystemFailure("disk"))))
    reader, writer = await asyncio.open_unix_connection(str(client.path))
    writer.write(b"GET /containers/a/archive?path=/x HTTP/1.1\r\nHost: e\r\n\r\n")
    answer = await asyncio.wait_for(reader.read(), 5)
    writer.close()
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert not answer.endswith(b"0\r\n\r\n")


async def test_archive_put(client: Client, services: Services) -> None:
    async def put(reference: str, path: str, body: AsyncIterator[bytes], **options: bool) -> None:
        assert b"".join([piece async for piece in body]) == b"x" * 300_000

    services.archives.later("put", put)
    reply = await client("PUT", "/containers/a/archive?path=/x&noOverwriteDirNonDir=1", b"x" * 300_000)
    assert (reply.status, reply.body) == (200, b"")
    assert services.archives.last[1] == {"no_overwrite_dir_non_dir": True, "copy_uid_gid": False}


async def test_expect_continue(client: Client, services: Services) -> None:
    async def put(reference: str, path: str, body: AsyncIterator[bytes], **options: bool) -> None:
        assert b"".join([piece async for piece in body]) == b"abc"

    services.archives.later("put", put)
    reader, writer = await asyncio.open_unix_connection(str(client.path))
    writer.write(
        b"PUT /containers/a/archive?path=/x HTTP/1.1\r\nHost: e\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\n"
    )
    assert await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5) == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(b"abc")
    assert (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)).startswith(b"HTTP/1.1 200 ")
    writer.close()

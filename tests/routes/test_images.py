"""Images and builds: parameters, progress streams, and where errors go."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import quote, urlencode

import pytest

from compatd.errors import Conflict, NotFound, SystemFailure
from compatd.wire.parameters import BuildParameters, BuildPruneParameters, ImportParameters, PullParameters
from compatd.wire.types.build import BuildPruned, ImageId
from compatd.wire.types.images import ImageDeleted, ImageSummary, Platform, Progress, ProgressDetail
from compatd.wire.types.system import AuthConfig
from tests.routes.conftest import Client, Services

pytestmark = pytest.mark.unit


async def records(*items: Progress | Exception) -> AsyncIterator[Progress]:
    for item in items:
        if isinstance(item, Exception):
            raise item
        yield item


def lines(body: bytes) -> list[Any]:
    assert body.endswith(b"\r\n")
    return [json.loads(line) for line in body.split(b"\r\n")[:-1]]


async def test_list(client: Client, services: Services) -> None:
    services.images.later("listing", [ImageSummary(id="sha256:0", created=1, size=2, repo_tags=["a:1"])])
    reply = await client("GET", "/images/json?all=1&shared-size=1")
    assert reply.json()[0]["RepoTags"] == ["a:1"]
    assert services.images.last == (({},), {"all": True, "shared_size": True})
    assert (await client("GET", "/v1.43/images/json")).json()[0]["VirtualSize"] == 2


async def test_platform_documents(client: Client, services: Services) -> None:
    services.images.later("history", [])
    document = quote('{"os":"linux","architecture":"arm64"}')
    await client("GET", f"/images/a/history?platform={document}")
    assert services.images.last[0] == ("a", Platform(os="linux", architecture="arm64"))
    await client("GET", f"/v1.47/images/a/history?platform={document}")
    assert services.images.last[0] == ("a", None)
    reply = await client("GET", "/images/a/history?platform=x")
    assert reply.message == "failed to parse platform: invalid character 'x' looking for beginning of value"


async def test_tag_and_remove(client: Client, services: Services) -> None:
    services.images.later("tag", None)
    assert (await client("POST", "/images/a/tag?repo=b/c&tag=d")).status == 201
    assert services.images.last[0] == ("a", "b/c", "d")
    services.images.later("remove", [ImageDeleted(untagged="a:1"), ImageDeleted(deleted="sha256:0")])
    reply = await client("DELETE", "/images/a?force=1&noprune=0")
    assert reply.body == b'[{"Untagged":"a:1"},{"Deleted":"sha256:0"}]\n'
    assert services.images.last[1] == {"force": True, "prune": True}
    services.images.later("remove", Conflict("conflict: in use"))
    assert (await client("DELETE", "/images/a")).status == 409
    assert (await client("DELETE", "/images/a?platforms=%5B%5D")).status == 501


async def test_pull(client: Client, services: Services) -> None:
    services.transfers.answer(
        "pull",
        lambda _: records(
            Progress(status="Pulling from a", id="latest"),
            Progress(status="Downloading", id="0", progress_detail=ProgressDetail(current=1, total=2), progress="[=>]"),
            Progress(status="Pull complete", id="0", progress_detail=ProgressDetail()),
        ),
    )
    header = base64.urlsafe_b64encode(b'{"username":"u","password":"p"}').decode()
    reply = await client(
        "POST", "/images/create?fromImage=a&tag=latest&platform=linux/arm64", headers={"X-Registry-Auth": header}
    )
    assert reply.headers["Content-Type"] == "application/json"
    assert lines(reply.body) == [
        {"status": "Pulling from a", "id": "latest"},
        {"status": "Downloading", "progressDetail": {"current": 1, "total": 2}, "progress": "[=>]", "id": "0"},
        {"status": "Pull complete", "progressDetail": {}, "id": "0"},
    ]
    assert services.transfers.last[0][0] == PullParameters(
        image="a", tag="latest", platform="linux/arm64", auth=AuthConfig(username="u", password="p")
    )


async def test_an_error_before_the_first_record_is_a_plain_answer(client: Client, services: Services) -> None:
    services.transfers.answer("pull", lambda _: records(NotFound("manifest for a:b not found: manifest unknown")))
    reply = await client("POST", "/images/create?fromImage=a&tag=b")
    assert (reply.status, reply.message) == (404, "manifest for a:b not found: manifest unknown")
    assert "Content-Length" in reply.headers


async def test_a_later_error_is_the_last_record(client: Client, services: Services) -> None:
    services.transfers.answer("pull", lambda _: records(Progress(status="x"), SystemFailure("gone")))
    reply = await client("POST", "/images/create?fromImage=a")
    assert reply.status == 200
    assert lines(reply.body)[-1] == {"errorDetail": {"message": "gone"}, "error": "gone"}


async def test_hanging_up_cancels_a_pull(client: Client, services: Services) -> None:
    ended = asyncio.Event()

    async def endless() -> AsyncIterator[Progress]:
        try:
            yield Progress(status="x")
            await asyncio.Event().wait()
        finally:
            ended.set()

    services.transfers.answer("pull", lambda _: endless())
    reader, writer = await asyncio.open_unix_connection(str(client.path))
    writer.write(b"POST /images/create?fromImage=a HTTP/1.1\r\nHost: e\r\n\r\n")
    await asyncio.wait_for(reader.readuntil(b'{"status":"x"}'), 5)
    writer.transport.abort()
    await asyncio.wait_for(ended.wait(), 5)


async def whole(body: AsyncIterator[bytes]) -> bytes:
    return b"".join([piece async for piece in body])


async def test_import_and_load(client: Client, services: Services) -> None:
    received: list[bytes] = []

    async def take(body: AsyncIterator[bytes]) -> AsyncIterator[Progress]:
        received.append(await whole(body))
        yield Progress(status="sha256:0")

    services.transfers.answer("import_", lambda parameters, body: take(body))
    reply = await client("POST", "/images/create?fromSrc=-&repo=r&changes=CMD%20a&changes=ENV%20b=c", b"tar" * 100_000)
    assert lines(reply.body) == [{"status": "sha256:0"}]
    assert services.transfers.last[0][0] == ImportParameters(source="-", repo="r", changes=["CMD a", "ENV b=c"])
    services.transfers.answer("load", lambda body, **_: take(body))
    await client("POST", "/images/load?quiet=0", b"tar")
    assert services.transfers.last[1] == {"quiet": False, "platform": None}
    assert received == [b"tar" * 100_000, b"tar"]


async def test_load_reports_its_errors_in_the_stream(client: Client, services: Services) -> None:
    services.transfers.answer("load", lambda *_, **__: records(SystemFailure("unexpected EOF")))
    reply = await client("POST", "/images/load", b"x")
    assert reply.status == 200
    assert lines(reply.body) == [{"errorDetail": {"message": "unexpected EOF"}, "error": "unexpected EOF"}]


async def test_save(client: Client, services: Services) -> None:
    async def tar() -> AsyncIterator[bytes]:
        yield b"tar"

    services.transfers.answer("save", lambda *_: tar())
    reply = await client("GET", "/images/a/b:c/get")
    assert (reply.body, reply.headers["Content-Type"]) == (b"tar", "application/x-tar")
    assert services.transfers.last[0] == (["a/b:c"], None)
    await client("GET", "/images/get?names=a,b&names=c")
    assert services.transfers.last[0] == (["a", "b", "c"], None)


async def test_build(client: Client, services: Services) -> None:
    received: list[bytes] = []

    async def work(context: AsyncIterator[bytes]) -> AsyncIterator[Progress]:
        received.append(await whole(context))
        yield Progress(stream="Step 1/1 : FROM a\n")
        yield Progress(aux=ImageId(id="sha256:0"))

    services.builds.answer("build", lambda parameters, context: work(context))
    auths = base64.urlsafe_b64encode(b'{"r:5000":{"username":"u"}}').decode()
    query = urlencode(
        [
            ("t", "a:1"),
            ("t", "b"),
            ("dockerfile", "D"),
            ("nocache", "1"),
            ("rm", "0"),
            ("pull", "yes"),
            ("memory", "7"),
            ("memswap", "x"),
            ("networkmode", "host"),
            ("target", "s"),
            ("q", "0"),
            ("buildargs", '{"A":"b","C":null}'),
            ("labels", '{"l":"m"}'),
            ("cachefrom", '["i"]'),
            ("extrahosts", "h:1.2.3.4,g:::1"),
            ("platform", "linux/amd64"),
            ("shmsize", "9"),
            ("ulimits", '[{"Name":"nofile","Soft":1,"Hard":2}]'),
            ("version", "1"),
        ]
    )
    headers = {"Content-Type": "application/x-tar", "X-Registry-Config": auths}
    reply = await client("POST", f"/build?{query}", b"tar", headers=headers)
    assert lines(reply.body) == [{"stream": "Step 1/1 : FROM a\n"}, {"aux": {"ID": "sha256:0"}}]
    assert received == [b"tar"]
    assert services.builds.last[0][0] == BuildParameters(
        tags=("a:1", "b"),
        dockerfile="D",
        no_cache=True,
        remove=False,
        pull=True,
        memory=7,
        network_mode="host",
        target="s",
        args={"A": "b", "C": None},
        labels={"l": "m"},
        cache_from=("i",),
        extra_hosts=("h:1.2.3.4", "g:::1"),
        platform="linux/amd64",
        shm_size=9,
        ulimits=(("nofile", 1, 2),),
        version="1",
        auths={"r:5000": AuthConfig(username="u")},
    )


@pytest.mark.parametrize(
    ("query", "status", "message"),
    [
        ("buildargs=x", 400, "error reading build args: invalid character 'x' looking for beginning of value"),
        ("labels=x", 400, "error reading labels: invalid character 'x' looking for beginning of value"),
        ("ulimits=x", 400, "error reading ulimit settings: invalid character 'x' looking for beginning of value"),
        ("cachefrom=x", 400, "error reading cache-from: invalid character 'x' looking for beginning of value"),
        ("version=9", 400, 'invalid version "9"'),
        ("shmsize=x", 500, 'strconv.ParseInt: parsing "x": invalid syntax'),
    ],
)
async def test_builds_that_do_not_begin(
    client: Client, services: Services, query: str, status: int, message: str
) -> None:
    services.builds.answer("build", lambda *_: records(Progress(stream="begun")))
    reply = await client("POST", f"/build?{query}")
    assert (reply.status, reply.message) == (status, message)


async def test_build_prune(client: Client, services: Services) -> None:
    services.builds.later("prune", BuildPruned())
    reply = await client("POST", "/build/prune?all=1&keep-storage=5")
    assert reply.body == b'{"CachesDeleted":null,"SpaceReclaimed":0}\n'
    assert services.builds.last[0] == (BuildPruneParameters(all=True, reserved_space=5),)

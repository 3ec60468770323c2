"""Reads that are answered at once: in the words of the slower way, and only where nothing else is going on."""

import asyncio
import re
from pathlib import Path

import pytest

from compatd.errors import NotFound
from compatd.routes import reads
from tests.routes.conftest import Services

pytestmark = pytest.mark.unit

HOST = "Host: docker\r\n"


def request(line: str, headers: str = HOST) -> bytes:
    return f"{line} HTTP/1.1\r\n{headers}\r\n".encode()


@pytest.mark.parametrize(
    ("line", "headers"),
    [
        ("HEAD /_ping", HOST),
        ("GET /_ping", HOST),
        ("GET /v1.51/_ping", "Host: api.moby.localhost\r\nUser-Agent: Docker-Client/28.5.2 (linux)\r\n"),
        ("GET /v1.24/containers/json?all=1", "Connection: keep-alive\r\nAccept: */*\r\nHost: localhost\r\n"),
        ("GET /containers/a_b.c-d/json", HOST),
        ("GET /exec/0123/json", HOST),
    ],
)
def test_recognised(line: str, headers: str) -> None:
    method, target = line.split()
    assert reads.parse(request(line, headers)) == (method, target)


@pytest.mark.parametrize(
    ("line", "headers"),
    [
        ("HEAD /version", HOST),
        ("POST /_ping", HOST),
        ("GET /_ping", ""),
        ("GET /_ping", "Accept: */*\r\n"),
        ("GET /_ping", HOST + "Connection: close\r\n"),
        ("GET /_ping", HOST + "Content-Length: 3\r\n"),
        ("GET /_ping", HOST + "Transfer-Encoding: chunked\r\n"),
        ("GET /_ping", HOST + "Upgrade: tcp\r\n"),
        ("GET /_ping", HOST + "Expect: 100-continue\r\n"),
        ("GET /_ping", HOST + " folded\r\n"),
        ("GET /_ping", "Host: a\0b\r\n"),
        ("GET /_ping", HOST + "Accept: " + "x" * 5000 + "\r\n"),
        ("GET /_ping?x", HOST),
        ("GET /containers/json?size=1", HOST),
        ("GET /containers/a%2Fb/json", HOST),
        ("GET /containers/../json", HOST),
        ("GET /containers/a/b/json", HOST),
        ("GET //_ping", HOST),
    ],
)
def test_left_to_the_parser(line: str, headers: str) -> None:
    assert reads.parse(request(line, headers)) is None


def test_only_one_and_whole() -> None:
    whole = request("GET /_ping")
    assert reads.parse(whole + b"G") is None
    assert reads.parse(whole[:-1]) is None
    assert reads.parse(whole * 2) is None


async def answers(server: Path, *packets: bytes, count: int = 1) -> list[bytes]:
    """What ``count`` requests, which come in these packets, are answered on one connection; dates left out."""
    reader, writer = await asyncio.open_unix_connection(str(server))
    read: list[bytes] = []
    async with asyncio.timeout(5):
        for packet in packets:
            writer.write(packet)
            await writer.drain()
            await asyncio.sleep(0.01)  # or the packets arrive as one, which must not matter either
        for _ in range(count):
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"Content-Length: ([0-9]+)", head)
            body = await reader.readexactly(int(length[1]) if length else 0)
            read.append(re.sub(rb"Date: [^\r]*", b"Date: now", head) + body)
    writer.close()
    return read


@pytest.mark.parametrize(
    "line",
    [
        "HEAD /_ping",
        "GET /_ping",
        "GET /v1.51/version",
        "GET /v1.51/containers/json?all=1",
        "GET /v1.51/containers/absent/json",
        "GET /v1.23/_ping",
        "GET /v9.9/info",
    ],
)
async def test_in_the_same_words(server: Path, services: Services, line: str) -> None:
    services.system.answer("version", {"Version": "x"})
    services.containers.later("listing", [])
    services.containers.later("inspect", NotFound("No such container: absent"))
    assert reads.parse(request(line)) is not None
    assert await answers(server, request(line)) == await answers(server, request(line, HOST + "X-Other: way\r\n"))


async def test_what_has_to_wait_is_answered_later(server: Path, services: Services) -> None:
    released = asyncio.Event()

    async def listing(*_: object, **__: object) -> list[object]:
        await released.wait()
        return []

    services.containers.answer("listing", listing)
    packets = request("GET /containers/json"), request("GET /_ping")
    pending = asyncio.ensure_future(answers(server, *packets, count=2))
    await asyncio.sleep(0.02)
    assert not pending.done()
    released.set()
    listed, pinged = await pending
    assert (listed[-7:], pinged[-6:]) == (b"\r\n\r\n[]\n", b"\r\n\r\nOK")


async def test_between_other_requests(server: Path, services: Services) -> None:
    """Answers come in the order of the requests; what looks like a read within another request is none."""
    ping, slow = request("GET /_ping"), request("GET /_ping", HOST + "X-Other: way\r\n")
    first, second = await answers(server, ping, slow, count=2)
    assert first == second
    assert len(await answers(server, slow + ping, ping, slow, count=4)) == 4
    (answer,) = await answers(server, b"GET /nope HTTP/1.1\r\nX-Part: ", ping)
    assert answer.startswith(b"HTTP/1.1 404")
    body = f"POST /nope HTTP/1.1\r\n{HOST}Content-Length: {len(ping)}\r\n\r\n".encode()
    (answer,) = await answers(server, body, ping)
    assert answer.startswith(b"HTTP/1.1 404")

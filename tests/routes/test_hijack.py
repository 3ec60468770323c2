"""Sockets that leave the server: what the client sees, what the holder gets, and that the server lets go."""

import asyncio
import base64
import json
import os
import re
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from compatd.errors import Conflict, InvalidParameter, NotFound
from compatd.routes import detach_keys
from compatd.routes.server import serve
from compatd.wire.streams import ClientSocket, frame, wait_result
from tests.fixtures.certificates import KEY_AND_CERTIFICATE
from tests.routes.conftest import Client, Services

pytestmark = pytest.mark.unit

UPGRADE = "Connection: Upgrade\r\nUpgrade: tcp\r\n"


def container(*, tty: bool = False) -> Any:
    return SimpleNamespace(id="full", record=SimpleNamespace(config=SimpleNamespace(tty=tty), started_ns=1))


class Holder:
    """Takes a socket over, as the shim's client does."""

    def __init__(self) -> None:
        self.taken: asyncio.Future[tuple[Any, socket.socket]] = asyncio.get_running_loop().create_future()

    async def attach(self, container: object, document: Any, client: ClientSocket, size: object = None) -> None:
        self.taken.set_result((document, client.duplicate()))
        client.close()

    async def socket(self) -> tuple[Any, socket.socket]:
        return await asyncio.wait_for(self.taken, 5)


async def send(path: Path, head: str, body: bytes = b"") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_unix_connection(str(path))
    writer.write(head.encode() + body)
    return reader, writer


async def read_head(reader: asyncio.StreamReader) -> str:
    return (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)).decode()


def sockets_of_this_process() -> int:
    return sum(os.readlink(f"/proc/self/fd/{fd}").startswith("socket:") for fd in _fds())


def _fds() -> list[str]:
    # The directory's own descriptor is gone once the list is made.
    return [fd for fd in os.listdir("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{fd}")]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.005)


async def test_attach_with_upgrade(server: Path, services: Services) -> None:
    holder = Holder()
    services.containers.answer("check_attach", container())
    services.containers.later("attach", holder.attach)
    reader, writer = await send(
        server,
        f"POST /v1.51/containers/a/attach?stream=1&stdin=1&stdout=1 HTTP/1.1\r\nHost: e\r\n{UPGRADE}\r\n",
        b"typed early",
    )
    head = await read_head(reader)
    assert head.startswith("HTTP/1.1 101 UPGRADED\r\n")
    assert "\r\nContent-Type: application/vnd.docker.multiplexed-stream\r\n" in head
    assert "\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n" in head
    document, connection = await holder.socket()
    with connection:
        assert document["stdin"]
        assert document["stdout"]
        assert not document["stderr"]
        assert "detach_keys" not in document
        # What was read with the request comes first; the rest is still in the socket.
        early = base64.b64decode(document.get("head", ""))
        writer.write(b", and late")
        rest = b""
        loop = asyncio.get_running_loop()
        while len(early + rest) < len(b"typed early, and late"):
            rest += await asyncio.wait_for(loop.sock_recv(connection, 100), 5)
        assert early + rest == b"typed early, and late"
        await loop.sock_sendall(connection, frame(1, b"out"))
        assert await asyncio.wait_for(reader.readexactly(11), 5) == frame(1, b"out")
        # Half-closed by the client: the holder sees the end and can still write.
        writer.write_eof()
        assert await asyncio.wait_for(loop.sock_recv(connection, 1), 5) == b""
        await loop.sock_sendall(connection, b"bye")
    assert await asyncio.wait_for(reader.read(), 5) == b"bye"
    writer.close()


@pytest.mark.parametrize(
    ("version", "upgrade", "tty", "status", "kind"),
    [
        ("", UPGRADE, False, 101, "multiplexed"),
        ("", UPGRADE, True, 101, "raw"),
        ("/v1.41", UPGRADE, False, 101, "raw"),
        ("", "", False, 200, "raw"),
        ("", "", True, 200, "raw"),
    ],
)
async def test_heads(
    server: Path, services: Services, version: str, upgrade: str, tty: bool, status: int, kind: str
) -> None:
    holder = Holder()
    services.containers.answer("check_attach", container(tty=tty))
    services.containers.later("attach", holder.attach)
    reader, writer = await send(
        server, f"POST {version}/containers/a/attach?stream=1&stdout=1 HTTP/1.1\r\nHost: e\r\n{upgrade}\r\n"
    )
    head = await read_head(reader)
    assert head.startswith(f"HTTP/1.1 {status} ")
    assert f"\r\nContent-Type: application/vnd.docker.{kind}-stream\r\n" in head
    assert "Content-Length" not in head
    assert "Transfer-Encoding" not in head
    document, connection = await holder.socket()
    assert document.get("detach_keys") == (detach_keys.DEFAULT if tty else None)
    connection.close()
    assert await asyncio.wait_for(reader.read(), 5) == b""
    writer.close()


async def test_the_server_lets_go(server: Path, services: Services, client: Client) -> None:
    await client("GET", "/_ping")
    before = sockets_of_this_process()
    holder = Holder()
    services.containers.answer("check_attach", container())
    services.containers.later("attach", holder.attach)
    reader, writer = await send(
        server, f"POST /containers/a/attach?stream=1&stdout=1 HTTP/1.1\r\nHost: e\r\n{UPGRADE}\r\n"
    )
    await read_head(reader)
    _, connection = await holder.socket()
    # Ours, and the holder's: the server's own descriptor is gone, and the connection is not.
    await until(lambda: sockets_of_this_process() == before + 2)
    await asyncio.get_running_loop().sock_sendall(connection, b"alive")
    assert await asyncio.wait_for(reader.readexactly(5), 5) == b"alive"
    connection.close()
    writer.close()
    await until(lambda: sockets_of_this_process() == before)


async def test_past_output_comes_first(server: Path, services: Services) -> None:
    async def past() -> AsyncIterator[bytes]:
        yield frame(1, b"old")

    holder = Holder()
    services.containers.answer("check_attach", container())
    services.containers.answer("logs", lambda reference, request: (False, past()))
    services.containers.later("attach", holder.attach)
    reader, writer = await send(
        server, f"POST /containers/a/attach?logs=1&stream=1&stdout=1 HTTP/1.1\r\nHost: e\r\n{UPGRADE}\r\n"
    )
    await read_head(reader)
    _, connection = await holder.socket()
    await asyncio.get_running_loop().sock_sendall(connection, frame(1, b"new"))
    connection.close()
    assert await asyncio.wait_for(reader.read(), 5) == frame(1, b"old") + frame(1, b"new")
    writer.close()


async def test_logs_alone(server: Path, services: Services) -> None:
    async def past() -> AsyncIterator[bytes]:
        yield b"old"

    services.containers.answer("check_attach", container(tty=True))
    services.containers.answer("logs", lambda reference, request: (True, past()))
    services.containers.later("attach", lambda container, document, client: client.close())
    reader, writer = await send(server, "POST /containers/a/attach?logs=1&stdout=1 HTTP/1.1\r\nHost: e\r\n\r\n")
    await read_head(reader)
    assert await asyncio.wait_for(reader.read(), 5) == b"old"
    writer.close()


async def test_errors_of_attach_come_as_text(client: Client, services: Services) -> None:
    services.containers.answer("check_attach", NotFound("No such container: a"))
    reply = await client("POST", "/containers/a/attach?stream=1")
    assert (reply.status, reply.body) == (404, b"No such container: a\r\n")
    assert reply.headers["Content-Type"] == "application/vnd.docker.raw-stream"
    reply = await client("POST", "/containers/a/attach?detachKeys=ctrl-")
    assert (reply.status, reply.body) == (400, b"Invalid detach keys (ctrl-) provided\r\n")


@pytest.mark.parametrize(
    ("text", "codes"),
    [
        ("", [16, 17]),
        ("ctrl-a", [1]),
        ("a,b", [97, 98]),
        ("ctrl-@,ctrl-[,ctrl-\\,ctrl-],ctrl-^,ctrl-_", [0, 27, 28, 29, 30, 31]),
    ],
)
def test_detach_keys(text: str, codes: list[int]) -> None:
    assert detach_keys.parse(text) == codes


@pytest.mark.parametrize("text", ["ctrl-", "ctrl-A", "bogus", ",", "a,", "ctrl-é", "é"])
def test_no_detach_keys(text: str) -> None:
    with pytest.raises(InvalidParameter, match="Invalid detach keys"):
        detach_keys.parse(text)


async def test_wait_is_answered_by_whoever_holds_the_socket(server: Path, services: Services) -> None:
    holder = Holder()
    services.containers.answer("check_wait", (container(), None))
    services.containers.later("wait", holder.attach)
    reader, writer = await send(server, "POST /v1.51/containers/a/wait?condition=removed HTTP/1.1\r\nHost: e\r\n\r\n")
    head = await read_head(reader)
    assert head.startswith("HTTP/1.1 200 OK\r\n")
    assert "\r\nTransfer-Encoding: chunked\r\n" in head
    assert "\r\nConnection: close\r\n" in head
    condition, connection = await holder.socket()
    assert condition == "removed"
    await asyncio.get_running_loop().sock_sendall(connection, wait_result(3))
    connection.close()
    body = await asyncio.wait_for(reader.read(), 5)
    assert re.sub(rb"^[0-9a-f]+\r\n", b"", body) == b'{"StatusCode":3}\n\r\n0\r\n\r\n'
    writer.close()


def exec_request(**fields: Any) -> Any:
    wanted = {"tty": False, "attach_stdin": True, "attach_stdout": True, "attach_stderr": True, "detach_keys": ""}
    return SimpleNamespace(request=SimpleNamespace(**{**wanted, **fields}), detach_keys=b"")


async def post_json(server: Path, target: str, body: Any) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    content = json.dumps(body).encode()
    return await send(
        server,
        f"POST {target} HTTP/1.1\r\nHost: e\r\n{UPGRADE}Content-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\n\r\n",
        content,
    )


async def test_exec_start(server: Path, services: Services) -> None:
    holder = Holder()
    services.execs.answer("check_start", exec_request())
    services.execs.later("start", holder.attach)
    reader, writer = await post_json(server, "/exec/e/start", {"Detach": False, "Tty": False})
    head = await read_head(reader)
    assert head.startswith("HTTP/1.1 101 UPGRADED\r\n")
    assert "\r\nServer: Docker/" in head
    document, connection = await holder.socket()
    assert document["stdin"]
    await asyncio.get_running_loop().sock_sendall(connection, b"x")
    connection.close()
    assert await asyncio.wait_for(reader.read(), 5) == b"x"
    writer.close()


async def test_input_that_comes_with_the_request_of_an_exec(server: Path, services: Services) -> None:
    holder = Holder()
    services.execs.answer("check_start", exec_request())
    services.execs.later("start", holder.attach)
    body = b'{"Tty":false}'
    head = (
        f"POST /exec/e/start HTTP/1.1\r\nHost: e\r\n{UPGRADE}Content-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    # In two packets, so that the body is cut.
    reader, writer = await send(server, head, body[:5])
    await asyncio.sleep(0.01)
    writer.write(body[5:] + b"typed early")
    await read_head(reader)
    document, connection = await holder.socket()
    with connection:
        received = base64.b64decode(document.get("head", ""))
        while len(received) < 11:
            received += await asyncio.wait_for(asyncio.get_running_loop().sock_recv(connection, 100), 5)
    assert received == b"typed early"
    writer.close()


async def test_a_request_after_an_upgrade_that_was_refused(server: Path, services: Services) -> None:
    services.execs.answer("check_start", NotFound("No such exec instance: e"))
    reader, writer = await send(
        server,
        f"POST /exec/e/start HTTP/1.1\r\nHost: e\r\n{UPGRADE}\r\n"
        "GET /_ping HTTP/1.1\r\nHost: e\r\nConnection: close\r\n\r\n",
    )
    answers = await asyncio.wait_for(reader.read(), 5)
    assert answers.startswith(b"HTTP/1.1 404 ")
    assert answers.endswith(b"\r\n\r\nOK")
    writer.close()


@pytest.mark.parametrize("tty", [True, False])
async def test_an_exec_that_fails_says_so_in_its_stream(server: Path, services: Services, tty: bool) -> None:
    services.execs.answer("check_start", exec_request(tty=tty))
    services.execs.later("start", InvalidParameter("OCI runtime exec failed: no"))
    reader, writer = await post_json(server, "/exec/e/start", {"Detach": False, "Tty": tty})
    await read_head(reader)
    text = b"OCI runtime exec failed: no\r\n"
    assert await asyncio.wait_for(reader.read(), 5) == (text if tty else frame(1, text))
    writer.close()


async def test_detached_exec(client: Client, services: Services) -> None:
    services.execs.answer("check_start", exec_request())
    services.execs.later("start", None)
    headers = {"Content-Type": "application/json"}
    reply = await client("POST", "/exec/e/start", '{"Detach":true}', headers=headers)
    assert (reply.status, reply.body) == (200, b"")
    services.execs.later("start", InvalidParameter("OCI runtime exec failed: no"))
    reply = await client("POST", "/exec/e/start", '{"Detach":true}', headers=headers)
    assert (reply.status, reply.message) == (400, "OCI runtime exec failed: no")
    services.execs.answer("check_start", Conflict("already run"))
    assert (await client("POST", "/exec/e/start")).status == 409


async def test_tls_is_relayed(services: Services, tmp_path: Path) -> None:
    pem = tmp_path / "server.pem"
    pem.write_text(KEY_AND_CERTIFICATE)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    listener = socket.create_server(("127.0.0.1", 0))
    running = await serve(services.backends(), [(listener, context)])
    trust = ssl.create_default_context(cafile=str(pem))
    holder = Holder()
    services.containers.answer("check_attach", container())
    services.containers.later("attach", holder.attach)
    try:
        reader, writer = await asyncio.open_connection(*listener.getsockname(), ssl=trust, server_hostname="localhost")
        writer.write(
            f"POST /containers/a/attach?stream=1&stdin=1 HTTP/1.1\r\nHost: e\r\n{UPGRADE}\r\n".encode() + b"early,"
        )
        assert (await read_head(reader)).startswith("HTTP/1.1 101 ")
        document, connection = await holder.socket()
        loop = asyncio.get_running_loop()
        received = base64.b64decode(document.get("head", ""))
        big = b"y" * 500_000
        writer.write(big)
        while len(received) < len(big) + 6:
            received += await asyncio.wait_for(loop.sock_recv(connection, 65536), 5)
        assert received == b"early," + big
        sending = asyncio.gather(loop.sock_sendall(connection, b"z" * 500_000))
        assert await asyncio.wait_for(reader.readexactly(500_000), 5) == b"z" * 500_000
        await sending
        connection.close()
        assert await asyncio.wait_for(reader.read(), 5) == b""
        writer.close()
    finally:
        await running.close(timeout_s=0.2)

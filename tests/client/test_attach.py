"""Attached clients: which streams they get, how they come, leave and are refused, on sockets and on websockets."""

import asyncio
import json
import signal
import socket
import time
from typing import Any

import aiohttp
import pytest

from tests.api import Api
from tests.cli import Cli
from tests.engine import Engine
from tests.hijacked import UPGRADE, Hijacked, frames
from tests.registry import wait_until

pytestmark = [pytest.mark.root, pytest.mark.parity]

MULTIPLEXED, RAW = "application/vnd.docker.multiplexed-stream", "application/vnd.docker.raw-stream"
TICKING = "while echo tick; do sleep 0.05; done"
ALL: dict[str, Any] = {"stream": "1", "stdin": "1", "stdout": "1", "stderr": "1"}


def create(api: Api, image: str, script: str, **options: Any) -> str:
    body = {"Image": image, "Cmd": ["sh", "-c", script], **options}
    return str(api.post("/containers/create", body).ok()["Id"])


def start(api: Api, image: str, script: str, **options: Any) -> str:
    container = create(api, image, script, **options)
    api.post(f"/containers/{container}/start").ok()
    return container


def is_running(api: Api, container: str) -> bool:
    return bool(api.get(f"/containers/{container}/json").ok()["State"]["Running"])


def wait_for_end(api: Api, container: str) -> int:
    return int(api.post(f"/containers/{container}/wait").ok()["StatusCode"])


def test_streams_are_chosen(api: Api, busybox: str) -> None:
    for chosen in ({1}, {2}, {1, 2}):
        container = create(api, busybox, "echo out; echo err >&2")
        query: dict[str, Any] = {name: "1" for stream, name in ((1, "stdout"), (2, "stderr")) if stream in chosen}
        with Hijacked(api, f"/containers/{container}/attach", stream="1", **query) as client:
            api.post(f"/containers/{container}/start").ok()
            expected = {1: b"out\n", 2: b"err\n"}
            assert frames(client.read()) == {stream: expected[stream] for stream in chosen}


@pytest.mark.parametrize(
    ("headers", "http", "status", "content_type"),
    [
        (UPGRADE, "1.1", 101, MULTIPLEXED),
        ("Connection: keep-alive, Upgrade\r\nUpgrade: tcp\r\n", "1.1", 101, MULTIPLEXED),
        ("CONNECTION: UPGRADE\r\nUPGRADE: TCP\r\n", "1.1", 101, MULTIPLEXED),
        ("Upgrade: tcp\r\n", "1.1", 101, MULTIPLEXED),
        ("Connection: Upgrade\r\nUpgrade: h2c\r\n", "1.1", 101, MULTIPLEXED),
        ("Connection: Upgrade\r\nUpgrade: \r\n", "1.1", 101, MULTIPLEXED),
        ("Connection: Upgrade\r\n", "1.1", 200, RAW),
        ("", "1.1", 200, RAW),
        ("Connection: close\r\n", "1.1", 200, RAW),
        ("", "1.0", 200, RAW),
        (UPGRADE, "1.0", 101, MULTIPLEXED),
    ],
)
def test_heads(api: Api, busybox: str, headers: str, http: str, status: int, content_type: str) -> None:
    container = start(api, busybox, TICKING)
    with Hijacked(api, f"/containers/{container}/attach", headers=headers, http=http, stream="1", stdout="1") as client:
        assert (client.status, client.content_type) == (status, content_type)
        assert client.read_until(b"tick\n").endswith(b"\1\0\0\0\0\0\0\5tick\n")


def test_refusals(api: Api, busybox: str) -> None:
    container = start(api, busybox, "sleep 100")
    api.post(f"/containers/{container}/pause").ok()
    paused = f"container {container} is paused, unpause the container before attach\r\n"
    for name, keys, status, text in (
        (container, "", 409, paused),
        ("nope", "", 404, "No such container: nope\r\n"),
        (container, "foo", 400, "Invalid detach keys (foo) provided\r\n"),
    ):
        with Hijacked(api, f"/containers/{name}/attach", stream="1", stdout="1", detachKeys=keys) as client:
            assert (client.status, client.content_type, client.read().decode()) == (status, RAW, text)
            assert len(client.head.splitlines()) == 2
    api.post(f"/containers/{container}/unpause").ok()


def test_nothing_to_attach_to(api: Api, busybox: str) -> None:
    container = start(api, busybox, TICKING, OpenStdin=True)
    queries: tuple[dict[str, Any], ...] = ({"stream": "1"}, {"stdin": "1", "stdout": "1"})
    for query in queries:
        with Hijacked(api, f"/containers/{container}/attach", **query) as client:
            assert client.read() == b""
    stopped = create(api, busybox, "true")
    with Hijacked(api, f"/containers/{stopped}/attach", stream="1") as client:
        assert client.read() == b""


def test_output_of_before_and_after(api: Api, busybox: str) -> None:
    container = start(api, busybox, "echo early; read x; echo late", OpenStdin=True)
    wait_until(
        lambda: b"early" in api.get(f"/containers/{container}/logs", stdout="1").body, "the first line is logged"
    )
    with Hijacked(api, f"/containers/{container}/attach", logs="1", **ALL) as client:
        client.read_until(b"early\n")
        client.send(b"\n")
        assert frames(client.read()) == {1: b"late\n"}


@pytest.mark.own("dockerd loses what comes in the same packet")
def test_input_that_comes_with_the_request(api: Api, busybox: str) -> None:
    container = start(api, busybox, "cat; echo end", OpenStdin=True, StdinOnce=True)
    with Hijacked(api, f"/containers/{container}/attach", ahead=b"typed ahead\n", closes_input=True, **ALL) as client:
        assert frames(client.read()) == {1: b"typed ahead\nend\n"}
    assert wait_for_end(api, container) == 0


def test_megabytes_before_the_start(api: Api, busybox: str) -> None:
    container = create(api, busybox, "md5sum; wc -c </dev/null", OpenStdin=True, StdinOnce=True)
    with Hijacked(api, f"/containers/{container}/attach", **ALL) as client:
        client.sock.setblocking(False)
        block, sent = b"x" * 65_536, 0
        while True:  # as much as fits before anyone reads
            try:
                sent += client.sock.send(block)
            except BlockingIOError:
                break
        client.sock.settimeout(20)
        api.post(f"/containers/{container}/start").ok()
        client.send(block * 32)
        client.close_input()
        assert frames(client.read())[1].endswith(b"-\n0\n")
    assert wait_for_end(api, container) == 0


@pytest.mark.parametrize("once", [True, False])
def test_a_client_that_leaves(api: Api, busybox: str, once: bool) -> None:
    """It takes the input along only when that was meant for one client."""
    container = start(api, busybox, "cat; exit 3", OpenStdin=True, StdinOnce=once)
    with Hijacked(api, f"/containers/{container}/attach", **ALL) as client:
        client.send(b"one\n")
        client.read_until(b"one\n")
    if once:
        assert wait_for_end(api, container) == 3
        return
    with Hijacked(api, f"/containers/{container}/attach", **ALL) as client:
        client.send(b"two\n")
        client.read_until(b"two\n")
        client.close_input()
        assert client.read() == b""
    assert is_running(api, container)


def test_several_at_once(api: Api, busybox: str) -> None:
    container = start(api, busybox, "read x; echo got $x; read x; echo got $x", OpenStdin=True)
    path = f"/containers/{container}/attach"
    with Hijacked(api, path, **ALL) as one, Hijacked(api, path, stream="1", stdout="1") as two:
        with Hijacked(api, path, **ALL) as three:
            three.send(b"a\n")
            for client in (one, two, three):
                client.read_until(b"got a\n")
        one.send(b"b\n")
        assert [frames(client.read()) for client in (one, two)] == [{1: b"got b\n"}] * 2
    assert wait_for_end(api, container) == 0


def test_detaching_from_a_terminal(api: Api, busybox: str) -> None:
    container = start(api, busybox, "while read x; do echo got $x; done", OpenStdin=True, Tty=True)
    since = time.time()
    for keys, typed in (("", b"\x10\x11"), ("ctrl-a,x", b"\x01x"), ("ctrl-@", b"\0")):
        with Hijacked(api, f"/containers/{container}/attach", detachKeys=keys, **ALL) as client:
            assert client.content_type == (RAW)
            client.send(b"word\n")
            client.read_until(b"got word\r\n")
            for key in typed:
                client.send(bytes((key,)))
            assert client.read() == b""
    assert is_running(api, container)
    seen = [
        event["Action"]
        for event in api_events(api, since)
        if event["Type"] == "container" and event["Action"] in ("attach", "detach")
    ]
    assert seen == ["attach", "detach"] * 3


def api_events(api: Api, since: float) -> list[dict[str, Any]]:
    body = api.get("/events", since=f"{since:.9f}", until=f"{time.time():.9f}").body
    return [json.loads(line) for line in body.splitlines()]


def attached(api: Api, since: float, count: int) -> None:
    """Wait for so many clients to have attached."""
    wait_until(
        lambda: [event["Action"] for event in api_events(api, since)].count("attach") == count, "clients are attached"
    )


def test_the_cli(api: Api, cli: Cli, busybox: str) -> None:
    since = time.time()
    cli("run", "-d", "-i", "--name", "reader", busybox, "sh", "-c", "read x; echo got $x; exit 3")
    without_input = cli.start("attach", "--no-stdin", "reader")
    attached(api, since, 1)
    with_input = cli.start("attach", "reader")
    out, _ = with_input.communicate(b"word\n", timeout=20)
    assert (with_input.returncode, out) in ((3, b"got word\n"), (3, b""))  # its input ended first
    out, _ = without_input.communicate(timeout=20)
    assert (without_input.returncode, out) == (3, b"got word\n")
    done = cli.call("attach", "reader")
    assert (done.code, done.err) == (1, "You cannot attach to a stopped container, start it first\n")


def test_signals_are_passed_on_unless_told(api: Api, cli: Cli, busybox: str) -> None:
    since = time.time()
    script = "trap 'echo hup' HUP; trap 'exit 5' TERM; echo ready; while :; do sleep 0.05; done"
    cli("run", "-d", "--name", "trapper", busybox, "sh", "-c", script)
    wait_until(lambda: "ready" in cli("logs", "trapper"), "the traps are set")
    silent = cli.start("attach", "--sig-proxy=false", "--no-stdin", "trapper")
    talking = cli.start("attach", "--no-stdin", "trapper")
    attached(api, since, 2)

    def hears() -> bool:
        talking.send_signal(signal.SIGHUP)
        return "hup" in cli("logs", "trapper")

    silent.send_signal(signal.SIGTERM)
    wait_until(hears, "the signal arrives")
    silent.kill()
    silent.communicate(timeout=20)
    assert cli("inspect", "-f", "{{.State.Running}}", "trapper") == "true\n"
    talking.send_signal(signal.SIGTERM)
    talking.communicate(timeout=20)
    assert talking.returncode == 5


def test_streams_of_run(cli: Cli, busybox: str) -> None:
    script = "cat; echo out; echo err >&2"
    for flags, out, err in (
        (["-a", "stdout"], "out\n", ""),
        (["-a", "stderr"], "", "err\n"),
        (["-a", "stdout", "-a", "stderr"], "out\n", "err\n"),
        (["-i", "-a", "stdin", "-a", "stdout"], "in\nout\n", ""),
        (["-i"], "in\nout\n", "err\n"),
    ):
        done = cli.call("run", "--rm", *flags, busybox, "sh", "-c", script, stdin=b"in\n")
        assert done == (0, out, err), flags


def test_start_attached(cli: Cli, busybox: str) -> None:
    cli("create", "-i", "--name", "cat", busybox, "sh", "-c", "cat; exit 4")
    assert cli.call("start", "-a", "-i", "cat", stdin=b"word\n") == (4, "word\n", "")
    assert cli.call("start", "-a", "cat", "cat").err == "you cannot start and attach multiple containers at once\n"
    done = cli.call("start", "--checkpoint", "some", "cat")
    assert done.code == 1
    assert "experimental" in done.err


# ------------------------------------------------------------------ websockets


class Websocket:
    """What came over one, until its end."""

    def __init__(self, messages: list[tuple[aiohttp.WSMsgType, bytes]], code: int | None) -> None:
        self.kinds = {kind for kind, _ in messages}
        self.data = b"".join(data for _, data in messages)
        self.code = code


def by_websocket(
    engine: Engine, container: str, *, send: tuple[bytes | str, ...] = (), version: str = "v1.51", **query: str
) -> Websocket:
    async def talk() -> Websocket:
        async with (
            aiohttp.ClientSession(connector=aiohttp.UnixConnector(path=engine.socket)) as session,
            session.ws_connect(f"http://docker/{version}/containers/{container}/attach/ws", params=query) as client,
        ):
            await session.post(f"http://docker/v1.51/containers/{container}/start")
            for sent in send:
                await (client.send_str(sent) if isinstance(sent, str) else client.send_bytes(sent))
            messages: list[tuple[aiohttp.WSMsgType, bytes]] = []
            async for message in client:
                messages.append((message.type, message.data.encode() if message.type.value == 1 else message.data))
            return Websocket(messages, client.close_code)

    return asyncio.run(asyncio.wait_for(talk(), 20))


@pytest.mark.parametrize(
    ("version", "query", "kind", "data"),
    [
        ("v1.51", {"stdout": "1", "stderr": "1"}, aiohttp.WSMsgType.BINARY, b"out\nerr\n"),
        ("v1.51", {"stdout": "1"}, aiohttp.WSMsgType.BINARY, b"out\n"),
        ("v1.41", {}, aiohttp.WSMsgType.BINARY, b"out\nerr\n"),
        ("v1.27", {}, aiohttp.WSMsgType.TEXT, b"out\nerr\n"),
    ],
)
def test_a_websocket(
    engine: Engine, busybox: str, version: str, query: dict[str, Any], kind: aiohttp.WSMsgType, data: bytes
) -> None:
    container = create(engine.api, busybox, "echo out; sleep 0.1; echo err >&2")
    seen = by_websocket(engine, container, version=version, stream="1", **query)
    assert (seen.kinds, seen.data, seen.code) == ({kind}, data, 1000)


def test_input_of_a_websocket(engine: Engine, busybox: str) -> None:
    api = engine.api
    script = "read x; echo got $x; read x; echo got $x; head -c 300000 | md5sum"
    container = create(api, busybox, script, OpenStdin=True)
    large = b"y" * 300_000
    seen = by_websocket(engine, container, send=("text\n", b"binary\n", large), **ALL)
    assert seen.data.startswith(b"got text\ngot binary\n")
    assert seen.data.endswith(b"-\n")
    terminal = create(api, busybox, "read x; echo got $x", OpenStdin=True, Tty=True)
    seen = by_websocket(engine, terminal, send=(b"word\x01",), detachKeys="ctrl-a", **ALL)
    assert (seen.code, is_running(api, terminal)) == (1000, True)


def test_a_websocket_is_refused(api: Api, busybox: str) -> None:
    container = create(api, busybox, "true")
    assert api.get("/containers/nope/attach/ws").status == 404
    reply = api.get(f"/containers/{container}/attach/ws", detachKeys="foo")
    assert (reply.status, reply.json()) == (400, {"message": "Invalid detach keys (foo) provided"})
    with Hijacked(api, f"/containers/{container}/attach/ws", method="GET", headers="") as client:
        assert (client.status, client.read()) == (400, b"not websocket protocol")


def test_a_request_from_a_pipe(engine: Engine) -> None:
    """A shell half-closes after what it sends, and wants its answer still."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(20)
        client.connect(engine.socket)
        client.sendall(b"GET /_ping HTTP/1.0\r\n\r\n")
        client.shutdown(socket.SHUT_WR)
        answer = b""
        while data := client.recv(4096):
            answer += data
    assert answer.endswith(b"\r\n\r\nOK")

"""Clients that misbehave on their streams harm themselves, at most their own container, and nobody else."""

import concurrent.futures
import contextlib
import os
import random
import socket
import subprocess
import time
from operator import le
from pathlib import Path
from typing import Any

import pytest

from tests.api import Api
from tests.cli import Cli
from tests.conftest import have
from tests.engine import Engine, OwnEngine
from tests.fixtures.certificates import KEY_AND_CERTIFICATE
from tests.hijacked import Hijacked, frames
from tests.registry import wait_until

pytestmark = [pytest.mark.root]

ALL: dict[str, Any] = {"stream": "1", "stdin": "1", "stdout": "1", "stderr": "1"}
TLS_PORT = 2376


def start(api: Api, image: str, script: str, **options: Any) -> str:
    body = {"Image": image, "Cmd": ["sh", "-c", script], "HostConfig": {"NetworkMode": "none"}, **options}
    container = str(api.post("/containers/create", body).ok()["Id"])
    api.post(f"/containers/{container}/start").ok()
    return container


def execute(api: Api, container: str, script: str, **options: Any) -> str:
    body = {"Cmd": ["sh", "-c", script], "AttachStdout": True, "AttachStderr": True, **options}
    return str(api.post(f"/containers/{container}/exec", body).ok()["Id"])


def is_well(api: Api, image: str) -> None:
    """The engine answers at once, and another container runs as it should."""
    begun = time.monotonic()
    assert api.get("/_ping").body == b"OK"
    assert time.monotonic() - begun < 2
    container = start(api, image, "cat", OpenStdin=True, StdinOnce=True)
    with Hijacked(api, f"/containers/{container}/attach", **ALL) as client:
        client.send(b"word\n")
        client.read_until(b"word\n")
        client.close_input()
        assert client.read() == b""
    assert api.post(f"/containers/{container}/wait").ok()["StatusCode"] == 0
    api.delete(f"/containers/{container}").ok()


@pytest.mark.parity
def test_a_client_that_does_not_read(api: Api, busybox: str) -> None:
    """Its own container waits for it, with what fits into the buffers between; it goes on when the client has gone."""
    script = "i=0; while i=$((i+1)); do echo $i; head -c 100000 /dev/zero; done 2>/dev/null"
    container = start(api, busybox, script, Tty=False, HostConfig={"LogConfig": {"Type": "none"}})
    with Hijacked(api, f"/containers/{container}/attach", stream="1", stdout="1") as client:
        client.read_until(b"\n")
        ticks = [0]

        def stalls() -> bool:
            before, ticks[0] = ticks[0], ticks_of(api, container)
            return before == ticks[0]

        wait_until(stalls, "the container waits for its client")
        is_well(api, busybox)
    before = ticks_of(api, container)
    wait_until(lambda: ticks_of(api, container) > before + 5, "the container goes on")


def ticks_of(api: Api, container: str) -> int:
    """Processor time of the container, in hundredths of a second."""
    stats = api.get(f"/containers/{container}/stats", stream="0", **{"one-shot": "1"}).ok()
    return int(stats["cpu_stats"]["cpu_usage"]["total_usage"]) // 10_000_000


@pytest.mark.parity
@pytest.mark.parametrize("tty", [True, False])
def test_garbage_as_input(api: Api, busybox: str, tty: bool) -> None:
    garbage = random.Random(1).randbytes(1 << 18)
    container = start(api, busybox, "cat >/dev/null", OpenStdin=True, Tty=tty)
    with Hijacked(api, f"/containers/{container}/attach", **ALL) as client:
        client.sock.settimeout(0.5)
        with contextlib.suppress(OSError):  # with a terminal, detach keys may be among it, or its line buffer is full
            client.send(garbage)
    output_only = start(api, busybox, "sleep 100")
    with Hijacked(api, f"/containers/{output_only}/attach", stream="1", stdout="1", ahead=garbage[:1000]) as client:
        client.send(garbage[: 1 << 16])
    exec_id = execute(api, output_only, "md5sum", AttachStdin=True)
    with Hijacked(api, f"/exec/{exec_id}/start", body=b"{}") as client:
        client.send(garbage)
        client.close_input()
        assert frames(client.read())[1].endswith(b"  -\n")
    is_well(api, busybox)


@pytest.mark.parity
def test_garbage_on_a_websocket(api: Api, busybox: str) -> None:
    container = start(api, busybox, "cat", OpenStdin=True)
    headers = (
        "Connection: Upgrade\r\nUpgrade: websocket\r\n"
        "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n"
    )
    for garbage in (random.Random(2).randbytes(4096), b"\x82\xff\xff\xff\xff\xff\xff\xff\xff\xff", b"\x82\x7f"):
        path = f"/containers/{container}/attach/ws"
        with Hijacked(api, path, method="GET", headers=headers, stream="1", stdin="1", stdout="1") as client:
            assert client.status == 101
            client.send(garbage)
    is_well(api, busybox)


@pytest.mark.parity
def test_a_client_that_vanishes(api: Api, busybox: str) -> None:
    """What reads its input comes to an end, what does not goes on."""
    container = start(api, busybox, "sleep 100")
    reading = execute(api, container, "cat; exit 5", AttachStdin=True)
    waiting = execute(api, container, "sleep 99")
    talking = execute(api, container, "for i in 1 2 3 4 5 6 7 8 9 10; do echo x || exit 6; sleep 0.02; done; exit 7")
    for exec_id in (reading, waiting, talking):
        with Hijacked(api, f"/exec/{exec_id}/start", body=b"{}"):
            pass

    def state(exec_id: str) -> tuple[bool, int | None]:
        told = api.get(f"/exec/{exec_id}/json").ok()
        return told["Running"], told["ExitCode"]

    wait_until(lambda: state(reading) == (False, 5), "the reader ends")
    wait_until(lambda: state(talking) == (False, 7), "the writer ends by itself")
    assert state(waiting) == (True, None)


@pytest.mark.parity
def test_requests_that_are_never_finished(engine: Engine, busybox: str) -> None:
    beginnings = (
        b"",
        b"P",
        b"POST /containers/x/attach?stream=1 HTTP/1.1\r\nHost: d\r\nUpgrade: tcp\r\n",
        b"POST /containers/create HTTP/1.1\r\nHost: d\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n{",
        b"POST /exec/x/start HTTP/1.1\r\nHost: d\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nab",
    )
    with contextlib.ExitStack() as stack:
        for number in range(100):
            sock = stack.enter_context(socket.socket(socket.AF_UNIX))
            sock.connect(engine.socket)
            sock.sendall(beginnings[number % len(beginnings)])
        is_well(engine.api, busybox)


@pytest.mark.parity
def test_many_clients_of_one_container(api: Api, busybox: str) -> None:
    count = 200
    container = start(api, busybox, "read x; head -c 100000 /dev/zero | tr '\\0' x; echo", OpenStdin=True)
    with contextlib.ExitStack() as stack:
        clients = [
            stack.enter_context(Hijacked(api, f"/containers/{container}/attach", stream="1", stdout="1"))
            for _ in range(count)
        ]
        one = stack.enter_context(Hijacked(api, f"/containers/{container}/attach", **ALL))
        one.send(b"\n")
        assert all(frames(client.read()) == {1: b"x" * 100_000 + b"\n"} for client in [*clients, one])
    assert api.post(f"/containers/{container}/wait").ok()["StatusCode"] == 0


def test_descriptors_and_memory_come_back(own_engine: OwnEngine, busybox_of_own: str) -> None:
    own_engine.start()
    own_engine.load(busybox_of_own)
    api = own_engine.api
    container = start(api, busybox_of_own, "sleep 1000", OpenStdin=True)
    init = int(api.get(f"/containers/{container}/json").ok()["State"]["Pid"])
    shim = int(Path(f"/proc/{init}/stat").read_text().rpartition(")")[2].split()[1])

    def used() -> tuple[int, int]:
        return tuple(len(os.listdir(f"/proc/{pid}/fd")) for pid in (own_engine.pid, shim))  # type: ignore[return-value]

    def round_of_everything(number: int) -> None:
        with Hijacked(api, f"/containers/{container}/attach", **ALL) as client:
            client.send(b"x" * number)
        exec_id = execute(api, container, "cat", AttachStdin=True)
        with Hijacked(api, f"/exec/{exec_id}/start", body=b"{}") as client:
            client.send(b"word\n")
            if number % 2:
                client.close_input()
                client.read()
        with Hijacked(api, f"/containers/{container}/wait"):
            pass
        api.get("/events", since="1", until="2").ok()

    round_of_everything(0)
    wait_until(lambda: not api.get(f"/containers/{container}/json").ok()["ExecIDs"], "the exec ends")
    before = used()  # maybe with the last request's connection
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(round_of_everything, range(1, 65)))
    wait_until(lambda: all(map(le, used(), before)), f"descriptors are back at {before}")


@pytest.fixture
def busybox_of_own() -> str:
    return "busybox:latest"


# ------------------------------------------------------------------------ TLS


@pytest.fixture
def tls(tmp_path: Path) -> Any:
    """(an engine that listens by TLS too, the CLI set up for that)."""
    for name in ("ca.pem", "cert.pem", "key.pem"):
        (tmp_path / name).write_text(KEY_AND_CERTIFICATE)
    engine = OwnEngine(
        *("--tlsverify", "--tlscacert", str(tmp_path / "ca.pem"), "--tlscert", str(tmp_path / "cert.pem")),
        *("--tlskey", str(tmp_path / "key.pem"), "-H", f"tcp://127.0.0.1:{TLS_PORT}"),
    )
    try:
        engine.start()
        cli = have(lambda: Cli(f"tcp://localhost:{TLS_PORT}", tmp_path))
        cli.environment |= {"DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": str(tmp_path)}
        yield engine, cli
    finally:
        engine.close()


def test_streams_over_tls(tls: tuple[OwnEngine, Cli], busybox_of_own: str) -> None:
    engine, cli = tls
    engine.load(busybox_of_own)

    def talk() -> None:
        count = 50_000_000
        done = cli.call("run", "--rm", "-i", busybox_of_own, "sh", "-c", "cat; echo err >&2; exit 4", stdin=b"word\n")
        assert done == (4, "word\n", "err\n")
        cli("run", "-d", "--name", "long", busybox_of_own, "sh", "-c", "echo begun; sleep 1000")
        assert cli.call("exec", "-i", "long", "sh", "-c", "cat; exit 3", stdin=b"word\n") == (3, "word\n", "")
        # Much, in both directions, while the engine answers others.
        large = cli.start("exec", "-i", "long", "sh", "-c", f"head -c {count} | tee /dev/null")
        slowest_s = 0.0
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            moved = pool.submit(large.communicate, b"z" * count)
            while not moved.done():
                begun = time.monotonic()
                engine.api.get("/_ping").ok()
                slowest_s = max(slowest_s, time.monotonic() - begun)
                with contextlib.suppress(concurrent.futures.TimeoutError):
                    moved.result(0.02)
            out, _ = moved.result()
        assert (large.returncode, len(out)) == (0, count)
        assert slowest_s < 1
        assert cli("logs", "long") == "begun\n"
        waiting = cli.start("wait", "long")
        events = cli.start("events", "--filter", "event=die", "--format", "{{.Action}}")
        following = cli.start("logs", "-f", "long")
        assert events.stdout is not None
        cli("kill", "long")
        assert waiting.communicate(timeout=20)[0] == b"137\n"
        assert following.communicate(timeout=20)[0] == b"begun\n"
        wait_until(lambda: b"die" in os.read(events.stdout.fileno(), 100), "the event comes")  # type: ignore[union-attr]
        events.kill()
        events.communicate()
        cli("rm", "long")

    engine.inside(talk)


def answer_without_tls() -> str:
    with socket.create_connection(("localhost", TLS_PORT), timeout=20) as plain:
        plain.sendall(b"GET /_ping HTTP/1.1\r\nHost: docker\r\n\r\n")
        answer = b""
        while data := plain.recv(4096):
            answer += data
    return answer.decode()


def test_a_client_without_certificate_is_refused(tls: tuple[OwnEngine, Cli], tmp_path: Path) -> None:
    engine, cli = tls
    engine.inside(lambda: cli("version"))
    assert "HTTP request to an HTTPS server" in engine.inside(lambda: answer_without_tls())
    for name in ("cert.pem", "key.pem"):
        (tmp_path / name).unlink()
    done = engine.inside(
        lambda: subprocess.run(
            [cli.program, "--tlscacert", tmp_path / "ca.pem", "--tlsverify", "version"],
            env=cli.environment,
            capture_output=True,
            timeout=30,
        )
    )
    assert done.returncode != 0

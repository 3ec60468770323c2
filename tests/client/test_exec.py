"""Execs, flag by flag and refusal by refusal."""

import base64
import time
from pathlib import Path
from typing import Any

import pytest

from tests.api import Api
from tests.cli import Cli
from tests.conftest import have, make_cli
from tests.engine import OwnEngine
from tests.hijacked import Hijacked, frames
from tests.registry import wait_until

pytestmark = [pytest.mark.root, pytest.mark.parity]

IN_RUNC = "OCI runtime exec failed: exec failed: unable to start container process: "


@pytest.fixture
def sleeper(api: Api, busybox: str) -> str:
    """A running container named ``sleeper``."""
    body = {"Image": busybox, "Cmd": ["sleep", "1000"], "Env": ["OWN=1"], "HostConfig": {"NetworkMode": "none"}}
    made = api.post("/containers/create", body, name="sleeper").ok()
    api.post("/containers/sleeper/start").ok()
    return str(made["Id"])


def create(api: Api, *command: str, **options: Any) -> str:
    body = {"Cmd": list(command), "AttachStdout": True, "AttachStderr": True, **options}
    return str(api.post("/containers/sleeper/exec", body).ok()["Id"])


def start(api: Api, exec_id: str) -> bytes:
    with Hijacked(api, f"/exec/{exec_id}/start", body=b"{}") as client:
        return client.read()


def inspect(api: Api, exec_id: str) -> dict[str, Any]:
    return dict(api.get(f"/exec/{exec_id}/json").ok())


@pytest.mark.parametrize(
    ("flags", "command", "out"),
    [
        ((), "echo $OWN", "1\n"),
        (("-e", "A=b", "-e", "OWN=2"), "echo $A $OWN", "b 2\n"),
        (("-w", "/tmp"), "pwd", "/tmp\n"),
        (("-u", "1000:1001"), "id -u; id -g", "1000\n1001\n"),
        (("-u", "nobody"), "id -un", "nobody\n"),
        (("--privileged",), "grep CapBnd /proc/self/status | tr -d '0\\t' | cut -c-9", "CapBnd:1f\n"),
        ((), "grep CapBnd /proc/self/status | tr -d '0\\t' | cut -c-9", "CapBnd:a8\n"),
    ],
)
def test_flags(cli: Cli, sleeper: str, flags: tuple[str, ...], command: str, out: str) -> None:
    assert cli("exec", *flags, "sleeper", "sh", "-c", command) == out


def test_environment_from_a_file(cli: Cli, sleeper: str, tmp_path: Path) -> None:
    file = tmp_path / "environment"
    file.write_text("# comment\nA=b c\nEMPTY=\n")
    assert cli("exec", "--env-file", str(file), "sleeper", "sh", "-c", 'echo "$A|$EMPTY|"') == "b c||\n"


def test_detached(cli: Cli, sleeper: str) -> None:
    assert cli("exec", "-d", "sleeper", "touch", "/done") == ""
    wait_until(lambda: cli.call("exec", "sleeper", "test", "-e", "/done").code == 0, "the exec has run")


@pytest.mark.parametrize(
    ("flags", "command", "code", "text"),
    [
        ((), ("nope",), 127, IN_RUNC + 'exec: "nope": executable file not found in $PATH'),
        ((), ("/etc",), 126, IN_RUNC + 'exec: "/etc": is a directory: permission denied'),
        ((), ("/etc/passwd",), 126, IN_RUNC + 'exec: "/etc/passwd": permission denied'),
        ((), ("",), 127, IN_RUNC + 'exec: "": executable file not found in $PATH'),
        (
            ("-w", "/nodir"),
            ("true",),
            127,
            IN_RUNC + 'chdir to cwd ("/nodir") set in config.json failed: no such file or directory',
        ),
        (("-w", "rel"), ("true",), 128, "OCI runtime exec failed: exec failed: Cwd must be an absolute path"),
    ],
)
def test_what_cannot_be_run(
    api: Api, cli: Cli, sleeper: str, flags: tuple[str, ...], command: tuple[str, ...], code: int, text: str
) -> None:
    done = cli.call("exec", *flags, "sleeper", *command)
    assert (done.code, done.out.strip()) == (code, text)
    options = {"WorkingDir": flags[1]} if flags else {}
    # Attached to nothing it is told all the same, and detached it is the answer.
    exec_id = create(api, *command, AttachStdout=False, AttachStderr=False, **options)
    assert frames(start(api, exec_id)) == {1: f"{text}\r\n".encode()}
    assert (inspect(api, exec_id)["Running"], inspect(api, exec_id)["ExitCode"]) == (False, code)
    reply = api.post(f"/exec/{create(api, *command, **options)}/start", {"Detach": True})
    assert (reply.status, reply.json()["message"]) == (400 if code != 128 else 500, text)


@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        ({}, 400, "No exec command specified"),
        ({"Cmd": []}, 400, "No exec command specified"),
        ({"Cmd": ["id"], "User": "foo"}, 400, "unable to find user foo: no matching entries in passwd file"),
        ({"Cmd": ["id"], "User": "0:foo"}, 400, "unable to find group foo: no matching entries in group file"),
        ({"Cmd": ["id"], "User": "2147483648"}, 400, "uids and gids must be in range 0-2147483647"),
        ({"Cmd": ["id"], "User": "-1"}, 400, "uids and gids must be in range 0-2147483647"),
        ({"Cmd": ["id"], "User": "\u0663"}, 400, "unable to find user \u0663: no matching entries in passwd file"),
        ({"Cmd": ["id"], "DetachKeys": "foo"}, 500, "Invalid escape keys (foo) provided"),
    ],
)
def test_what_cannot_be_created(api: Api, sleeper: str, body: dict[str, Any], status: int, text: str) -> None:
    reply = api.post("/containers/sleeper/exec", body)
    assert (reply.status, reply.json()["message"]) == (status, text)


def test_it_runs_once(api: Api, sleeper: str) -> None:
    exec_id = create(api, "sleep", "1000", AttachStdout=False, AttachStderr=False)
    begun = time.monotonic()
    assert start(api, exec_id) == b""  # there is nothing to wait for
    assert time.monotonic() - begun < 5
    wait_until(lambda: inspect(api, exec_id)["Running"], "it runs")
    ended = create(api, "true")
    start(api, ended)
    for tried, text in ((exec_id, "is already running"), (ended, "has already run")):
        text = f"exec command {tried} {text}"
        assert frames(start(api, tried)) == {1: f"{text}\r\n".encode()}
        reply = api.post(f"/exec/{tried}/start", {"Detach": True})
        assert (reply.status, reply.json()["message"]) == (409, text)


def test_states_of_the_container(api: Api, sleeper: str) -> None:
    created, ended = create(api, "true"), create(api, "sh", "-c", "exit 3")
    start(api, ended)
    api.post("/containers/sleeper/pause").ok()
    for path, name in (("/containers/sleeper/exec", "sleeper"), (f"/exec/{created}/start", sleeper)):
        reply = api.post(path, {"Cmd": ["true"]})
        text = f"Container {name} is paused, unpause the container before exec"
        assert (reply.status, reply.json()["message"]) == (409, text)
    api.post("/containers/sleeper/unpause").ok()
    api.post("/containers/sleeper/kill").ok()
    for path in ("/containers/sleeper/exec", f"/exec/{ended}/start"):
        reply = api.post(path, {"Cmd": ["true"]})
        assert (reply.status, reply.json()["message"]) == (409, f"container {sleeper} is not running")
    assert inspect(api, ended)["ExitCode"] == 3
    assert api.get(f"/exec/{created}/json").status == 404
    api.delete("/containers/sleeper").ok()
    assert api.get(f"/exec/{ended}/json").status == 404


def test_inspection(api: Api, sleeper: str) -> None:
    exec_id = create(
        api, "cat", "-u", Tty=True, AttachStdin=True, AttachStderr=False, Privileged=True, User="0", DetachKeys="ctrl-a"
    )
    expected = {
        "ID": exec_id,
        "Running": False,
        "ExitCode": None,
        "ProcessConfig": {
            "tty": True,
            "entrypoint": "cat",
            "arguments": ["-u"],
            "privileged": True,
            "user": "0",
        },
        "OpenStdin": True,
        "OpenStderr": False,
        "OpenStdout": True,
        "CanRemove": False,
        "ContainerID": sleeper,
        "DetachKeys": base64.b64encode(b"\1").decode(),
        "Pid": 0,
    }
    assert inspect(api, exec_id) == expected
    assert api.get("/containers/sleeper/json").ok()["ExecIDs"] == [exec_id]
    with Hijacked(api, f"/exec/{exec_id}/start", body=b'{"Tty":true}') as client:
        client.send(b"word\n")
        client.read_until(b"word\r\nword\r\n")
        running = inspect(api, exec_id)
        assert running.pop("Pid") > 0
        assert running == {**{k: v for k, v in expected.items() if k != "Pid"}, "Running": True}


@pytest.mark.own("dockerd 28.5 takes leaving an exec by its keys for a failure of the exec")
def test_detaching(api: Api, sleeper: str) -> None:
    since = time.time()
    exec_id = create(api, "cat", Tty=True, AttachStdin=True, DetachKeys="ctrl-a,b")
    with Hijacked(api, f"/exec/{exec_id}/start", body=b'{"Tty":true}') as client:
        client.send(b"word\n")
        client.read_until(b"word\r\nword\r\n")
        client.send(b"\1b")
        assert client.read() == b""
    assert inspect(api, exec_id)["Running"]

    def told() -> bool:
        body = api.get("/events", since=f"{since:.9f}", until=f"{time.time():.9f}").body
        return f'"exec_detach","Actor":{{"ID":"{sleeper}","Attributes":{{"execID":"{exec_id}"'.encode() in body

    wait_until(told, "the event comes")


def test_resize(api: Api, sleeper: str) -> None:
    script = "trap 'stty size; exit' WINCH; echo ready; while :; do sleep 0.05; done"
    exec_id = create(api, "sh", "-c", script, Tty=True)
    with Hijacked(api, f"/exec/{exec_id}/start", body=b'{"Tty":true,"ConsoleSize":[11,22]}') as client:
        client.read_until(b"ready")
        assert api.post(f"/exec/{exec_id}/resize", h="33", w="44").status == 200
        assert b"33 44" in client.read()
    assert api.post(f"/exec/{exec_id}/resize", h="33", w="44").status in (404, 500)  # by how far its end is known
    failed = create(api, "nope")
    start(api, failed)
    reply = api.post(f"/exec/{failed}/resize", h="33", w="44")
    assert (reply.status, reply.json()["message"]) == (400, "exec process is not started")
    assert api.post("/exec/nope/resize", h="1", w="1").status == 404


@pytest.mark.own("dockerd forgets its execs when it is started again")
def test_an_exec_outlives_the_engine(own_engine: OwnEngine, tmp_path: Path) -> None:
    own_engine.start()
    own_engine.load("busybox:latest")
    cli = have(lambda: make_cli(own_engine, tmp_path))
    api = own_engine.api
    cli("run", "-d", "--name", "sleeper", "busybox", "sleep", "1000")
    running, ending = create(api, "cat", AttachStdin=True), create(api, "sh", "-c", "read x; exit 5", AttachStdin=True)
    with (
        Hijacked(api, f"/exec/{running}/start", body=b"{}") as client,
        Hijacked(api, f"/exec/{ending}/start", body=b"{}") as other,
    ):
        client.send(b"one\n")
        client.read_until(b"one\n")
        wait_until(lambda: inspect(api, ending)["Running"], "both run")
        own_engine.kill()
        other.send(b"\n")
        assert other.read() == b""
        client.send(b"two\n")
        client.read_until(b"two\n")
        own_engine.start()
        assert inspect(api, running)["Running"]
        assert inspect(api, running)["ProcessConfig"]["entrypoint"] == "cat"
        wait_until(lambda: inspect(api, ending)["ExitCode"] == 5, "the end is known")
        client.close_input()
        client.read()
    wait_until(lambda: inspect(api, running)["ExitCode"] == 0, "it has ended")

"""Namespaces of containers: shared with the host, shared with each other, and what cannot be."""

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.api import Api
from tests.cli import Cli
from tests.conftest import have, make_cli
from tests.engine import OwnEngine
from tests.registry import wait_until

pytestmark = [pytest.mark.root, pytest.mark.parity]

KINDS = "ipc pid net uts cgroup mnt user"


@pytest.fixture(autouse=True)
def image(request: pytest.FixtureRequest) -> str:
    return "" if "own_engine" in request.fixturenames else str(request.getfixturevalue("busybox"))


def namespaces(cli: Cli, *flags: str) -> dict[str, str]:
    script = f"for kind in {KINDS}; do readlink /proc/self/ns/$kind; done"
    out = cli("run", "--rm", *flags, "busybox", "sh", "-c", script)
    return dict(zip(KINDS.split(), out.split(), strict=True))


def of(cli: Cli, name: str) -> dict[str, str]:
    out = cli("exec", name, "sh", "-c", f"for kind in {KINDS}; do readlink /proc/1/ns/$kind; done")
    return dict(zip(KINDS.split(), out.split(), strict=True))


def donor(cli: Cli, *flags: str, name: str = "donor") -> dict[str, str]:
    cli("run", "-d", "--name", name, *flags, "busybox", "sleep", "1000")
    return of(cli, name)


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def lives(pid: int) -> bool:
    """Whether it runs: the donor's first process need not reap what has come to it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def create(api: Api, **host_config: Any) -> tuple[int, str]:
    reply = api.post(
        "/containers/create",
        {"Image": "busybox", "Cmd": ["sleep", "1000"], "HostConfig": host_config},
        name="joiner",
    )
    return reply.status, reply.json().get("message", "")


def start(api: Api) -> tuple[int, str]:
    reply = api.post("/containers/joiner/start")
    return reply.status, reply.json()["message"] if reply.body else ""


def test_each_namespace_is_shared_alone(cli: Cli) -> None:
    given = donor(cli, "--ipc", "shareable")
    private = {"user"} | ({"cgroup"} if namespaces(cli)["cgroup"] == given["cgroup"] else set())
    for kind, flag in (("ipc", "--ipc"), ("pid", "--pid"), ("net", "--network")):
        found = namespaces(cli, flag, "container:donor")
        assert {name for name in found if found[name] == given[name]} == {kind} | private
    everything = namespaces(cli, "--ipc", "container:donor", "--pid", "container:donor", "--network", "container:donor")
    assert {name for name in everything if everything[name] == given[name]} == {"ipc", "pid", "net"} | private


def test_namespaces_of_the_host(cli: Cli) -> None:
    one = namespaces(cli, "--ipc", "host", "--pid", "host", "--uts", "host", "--network", "host")
    again = namespaces(cli, "--privileged", "--ipc", "host", "--pid", "host", "--uts", "host", "--network", "host")
    own = namespaces(cli)
    for kind in ("ipc", "pid", "uts", "net"):
        assert one[kind] == again[kind] != own[kind]


def test_processes_of_another_container(cli: Cli) -> None:
    donor(cli)
    out = cli(
        "run", "--rm", "--pid", "container:donor", "busybox", "sh", "-c", "cat /proc/1/cmdline; kill -0 1 && echo ok"
    )
    assert out == "sleep\x001000\x00ok\n"
    # Its namespace ends with its first process, and everyone in it.
    cli("run", "-d", "--name", "joiner", "--pid", "container:donor", "busybox", "sleep", "1000")
    assert cli("exec", "joiner", "sh", "-c", "ps | grep -c 'sleep 1000'").strip() >= "2"
    cli("kill", "donor")
    assert cli("wait", "joiner") == "137\n"


def test_memory_of_another_container(cli: Cli) -> None:
    donor(cli, "--ipc", "shareable", "--shm-size", "1m")
    cli("run", "-d", "--name", "joiner", "--ipc", "container:donor", "busybox", "sleep", "1000")
    cli("exec", "donor", "sh", "-c", "echo from the donor > /dev/shm/a")
    assert cli("exec", "joiner", "sh", "-c", "cat /dev/shm/a; echo back > /dev/shm/b") == "from the donor\n"
    assert cli("exec", "donor", "cat", "/dev/shm/b") == "back\n"
    assert cli("exec", "joiner", "df", "-k", "/dev/shm").splitlines()[-1].split()[1] == "1024"
    # A third one by way of the second, which has it from the first.
    assert cli("run", "--rm", "--ipc", "container:joiner", "busybox", "cat", "/dev/shm/b") == "back\n"
    # The memory outlives the donor's run; its next run has memory of its own.
    cli("restart", "-t", "0", "donor")
    assert cli("exec", "joiner", "cat", "/dev/shm/a") == "from the donor\n"
    assert cli("exec", "donor", "ls", "/dev/shm") == ""
    cli("restart", "-t", "0", "joiner")
    assert cli("exec", "joiner", "ls", "/dev/shm") == ""
    assert of(cli, "joiner")["ipc"] == of(cli, "donor")["ipc"]


def test_own_shared_memory_in_another_s_namespace(cli: Cli) -> None:
    donor(cli, "--ipc", "shareable")
    out = cli(
        "run", "--rm", "--ipc", "container:donor", "--tmpfs", "/dev/shm:size=2m", "busybox", "df", "-k", "/dev/shm"
    )
    assert out.splitlines()[-1].split()[1] == "2048"


@pytest.mark.parametrize(
    ("flags", "status", "text"),
    [
        ((), 400, "container {}: non-shareable IPC (hint: use IpcMode:shareable for the donor container)"),
        (
            ("--ipc", "none"),
            400,
            "container {}: non-shareable IPC (hint: use IpcMode:shareable for the donor container)",
        ),
        (
            ("--ipc", "shareable", "--tmpfs", "/dev/shm"),
            400,
            "container {}: non-shareable IPC (hint: use IpcMode:shareable for the donor container)",
        ),
        (("--ipc", "host"), 204, ""),
    ],
)
def test_memory_that_is_not_shared(cli: Cli, api: Api, flags: tuple[str, ...], status: int, text: str) -> None:
    donor(cli, *flags)
    id = cli("inspect", "-f", "{{.Id}}", "donor").strip()
    assert create(api, IpcMode="container:donor") == (201, "")
    expected = f"failed to join IPC namespace: {text.format(id)}" if text else ""
    assert start(api) == (status, expected)
    if text:
        state = api.get("/containers/joiner/json").ok()["State"]
        assert (state["Status"], state["ExitCode"], state["Error"]) == ("created", 128, expected)


def test_containers_that_do_not_run(cli: Cli, api: Api) -> None:
    id = cli("create", "--name", "donor", "--ipc", "shareable", "busybox", "sleep", "1000").strip()
    for mode, status, text in (
        ("PidMode", 500, f"failed to join PID namespace: container {id} is not running"),
        ("IpcMode", 409, f"failed to join IPC namespace: container {id} is not running"),
        (
            "NetworkMode",
            409,
            "cannot join network namespace of a non running container: container donor is created",
        ),
    ):
        assert create(api, **{mode: "container:donor"}) == (201, "")
        assert api.get("/containers/joiner/json").ok()["HostConfig"][mode] == f"container:{id}"
        assert start(api) == (status, text)
        cli("rm", "joiner")


@pytest.mark.parametrize(
    ("host_config", "text"),
    [
        ({"PidMode": "container:nobody"}, "No such container: nobody"),
        ({"IpcMode": "container:nobody"}, "No such container: nobody"),
        ({"PidMode": "container:joiner"}, "No such container: joiner"),
        ({"PidMode": "container:"}, "invalid PID mode: container:"),
        ({"PidMode": "private"}, "invalid PID mode: private"),
        ({"IpcMode": "bogus"}, "invalid IPC mode: bogus"),
        ({"UTSMode": "container:a"}, "invalid UTS mode: container:a"),
        ({"CgroupnsMode": "bogus"}, "invalid cgroup namespace mode: bogus"),
        ({"NetworkMode": "container:"}, "invalid network mode: invalid container format container:<name|id>"),
    ],
)
def test_bad_modes(api: Api, host_config: dict[str, str], text: str) -> None:
    assert create(api, **host_config) == (400, text)


def test_networks_that_cannot_be_joined(api: Api) -> None:
    for mode, text in (
        ("container:nobody", "joining network namespace of container: No such container: nobody"),
        ("container:joiner", "cannot join own network namespace"),
    ):
        assert create(api, NetworkMode=mode) == (201, "")
        assert start(api) == (500, text)
        api.delete("/containers/joiner").ok()


def test_ports_belong_to_the_network_s_owner(cli: Cli, api: Api) -> None:
    donor(cli)
    body = {"Image": "busybox", "ExposedPorts": {"80/tcp": {}}, "HostConfig": {"NetworkMode": "container:donor"}}
    reply = api.post("/containers/create", body)
    assert (reply.status, reply.json()["message"]) == (
        400,
        "conflicting options: port exposing and the container type network mode",
    )


def test_inspect(cli: Cli) -> None:
    id = cli("create", "--name", "donor", "busybox").strip()
    cli("create", "--name", "joiner", "--pid", "container:donor", "--ipc", f"container:{id[:12]}", "busybox")
    shown = "{{.HostConfig.PidMode}} {{.HostConfig.IpcMode}} {{.HostConfig.SecurityOpt}}"
    assert cli("inspect", "-f", shown, "joiner") == f"container:{id} container:{id} []\n"
    cli("create", "--name", "wide", "--pid", "host", "--uts", "host", "--userns", "host", "busybox")
    shown = "{{.HostConfig.PidMode}} {{.HostConfig.UTSMode}} {{.HostConfig.UsernsMode}} {{.HostConfig.SecurityOpt}}"
    assert cli("inspect", "-f", shown, "wide") == "host host host [label=disable]\n"
    cli("create", "--name", "mighty", "--privileged", "busybox")
    assert cli("inspect", "-f", "{{.HostConfig.SecurityOpt}}", "mighty") == "[label=disable]\n"


def test_a_rename_changes_nothing(cli: Cli) -> None:
    given = donor(cli, "--ipc", "shareable")
    cli(
        "create", "--name", "joiner", "--ipc", "container:donor", "--pid", "container:donor", "busybox", "sleep", "1000"
    )
    cli("rename", "donor", "other")
    cli("start", "joiner")
    found = of(cli, "joiner")
    assert (found["ipc"], found["pid"]) == (given["ipc"], given["pid"])
    cli("rm", "-f", "other")
    wait_until(lambda: cli("inspect", "-f", "{{.State.Running}}", "joiner") == "false\n", "the joiner has ended")
    assert cli.call("start", "joiner").code == 1


@pytest.mark.own("its engine is killed")
def test_donors_are_started_first_with_the_engine(own_engine: OwnEngine, tmp_path: Path) -> None:
    """After a reboot: the joiners are older than what they share, and everyone is to be started."""
    own_engine.start()
    have(lambda: own_engine.load("busybox:latest"))
    cli = have(lambda: make_cli(own_engine, tmp_path))
    cli("run", "-d", "--name", "donor", "--restart", "always", "--ipc", "shareable", "busybox", "sleep", "1000")
    for kind, flag in (("ipc", "--ipc"), ("pid", "--pid"), ("net", "--network")):
        cli("run", "-d", "--name", kind, "--restart", "always", flag, "container:donor", "busybox", "sleep", "1000")
    shims = {parent(int(cli("inspect", "-f", "{{.State.Pid}}", name))) for name in ("donor", "ipc", "pid", "net")}
    own_engine.kill()
    for shim in shims:
        os.kill(shim, signal.SIGKILL)
    wait_until(lambda: not any(Path(f"/proc/{shim}").exists() for shim in shims), "the machine is down")
    shutil.rmtree(own_engine.exec_root)
    own_engine.start()
    everyone = ("donor", "ipc", "pid", "net")
    wait_until(lambda: cli("inspect", "-f", "{{.State.Running}}", *everyone) == "true\n" * 4, "everyone runs")
    given = of(cli, "donor")
    for kind in ("ipc", "pid", "net"):
        assert of(cli, kind)[kind] == given[kind]


@pytest.mark.own("its shim is killed")
@pytest.mark.parametrize("flags", [("--pid", "container:donor"), ("--pid", "host")])
def test_nothing_is_left_of_a_container_whose_shim_is_killed(
    own_engine: OwnEngine, tmp_path: Path, flags: tuple[str, str]
) -> None:
    """Its processes lie in a namespace that goes on; the kernel ends only the first of them with the shim."""
    own_engine.start()
    have(lambda: own_engine.load("busybox:latest"))
    cli = have(lambda: make_cli(own_engine, tmp_path))
    donor(cli)
    cli("run", "-d", "--name", "joiner", *flags, "busybox", "sh", "-c", "sleep 2000 & sleep 3000 & wait")
    pid = int(cli("inspect", "-f", "{{.State.Pid}}", "joiner"))
    children = Path(f"/proc/{pid}/task/{pid}/children")
    wait_until(lambda: len(children.read_text().split()) == 2, "both children run")
    below = [int(word) for word in children.read_text().split()]
    os.kill(parent(pid), signal.SIGKILL)
    wait_until(lambda: cli("inspect", "-f", "{{.State.Running}}", "joiner") == "false\n", "the end is recorded")
    wait_until(lambda: not any(lives(one) for one in below), "the processes have ended")
    assert cli("inspect", "-f", "{{.State.Running}}", "donor") == "true\n"

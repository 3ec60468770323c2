"""``docker update``: limits and restart policies of containers that run, are paused, or have ended."""

import json
import time
from pathlib import Path
from typing import Any

import pytest

from tests.api import Api
from tests.cli import Cli
from tests.conftest import have
from tests.engine import OwnEngine
from tests.registry import wait_until

pytestmark = pytest.mark.root

V2 = Path("/sys/fs/cgroup/cgroup.controllers").exists()

MB = 1 << 20
# What a container's own view of its limits is, in version 1 and in version 2 of control groups.
KNOBS = {
    "memory": ("memory/memory.limit_in_bytes", "memory.max"),
    "reservation": ("memory/memory.soft_limit_in_bytes", "memory.low"),
    "pids": ("pids/pids.max", "pids.max"),
    "cpus": ("cpuset/cpuset.cpus", "cpuset.cpus"),
}


def knob(cli: Cli, name: str, what: str) -> str:
    first, second = (f"/sys/fs/cgroup/{path}" for path in KNOBS[what])
    return cli("exec", name, "sh", "-c", f"cat {first} 2>/dev/null || cat {second}").strip()


def quota(cli: Cli, name: str) -> list[str]:
    """(quota, period)"""
    one = "cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us /sys/fs/cgroup/cpu/cpu.cfs_period_us"
    return cli("exec", name, "sh", "-c", f"{one} 2>/dev/null || cat /sys/fs/cgroup/cpu.max").split()


def host_config(api: Api, name: str) -> dict[str, Any]:
    found: dict[str, Any] = api.get(f"/containers/{name}/json").ok()["HostConfig"]
    return found


@pytest.mark.parity
def test_limits_of_a_running_container(api: Api, cli: Cli, busybox: str) -> None:
    cli("run", "-d", "--name", "running", "-m", "64m", busybox, "sleep", "1000")
    since = str(time.time())
    options = ("-m", "80m", "--memory-swap", "160m", "--memory-reservation", "40m", "--pids-limit", "50")
    assert cli("update", *options, "--cpus", "0.5", "--cpuset-cpus", "0", "running") == "running\n"
    assert knob(cli, "running", "memory") == str(80 * MB)
    assert knob(cli, "running", "reservation") == str(40 * MB)
    assert (knob(cli, "running", "pids"), knob(cli, "running", "cpus")) == ("50", "0")
    assert quota(cli, "running") == ["50000", "100000"]
    shown = host_config(api, "running")
    assert (shown["Memory"], shown["MemorySwap"], shown["MemoryReservation"]) == (80 * MB, 160 * MB, 40 * MB)
    assert (shown["PidsLimit"], shown["NanoCpus"], shown["CpusetCpus"]) == (50, 500_000_000, "0")
    found = api.get("/events", since=since, until=str(time.time()), filters={"event": ["update"]}).body
    (event,) = map(json.loads, found.decode().splitlines())
    assert event["Actor"]["Attributes"] == {"image": busybox, "name": "running"}

    cli("update", "--cpus", "0.25", "running")  # what is not named stays
    assert quota(cli, "running") == ["25000", "100000"]
    assert (knob(cli, "running", "pids"), host_config(api, "running")["PidsLimit"]) == ("50", 50)
    for given in (0, -1, -7):
        api.post("/containers/running/update", {"PidsLimit": 20}).ok()
        assert knob(cli, "running", "pids") == "20"
        assert api.post("/containers/running/update", {"PidsLimit": given}).ok() == {"Warnings": None}
        assert (knob(cli, "running", "pids"), host_config(api, "running")["PidsLimit"]) == ("max", 0)
    cli("restart", "-t", "0", "running")
    assert (knob(cli, "running", "memory"), knob(cli, "running", "pids")) == (str(80 * MB), "max")


@pytest.mark.parity
def test_limits_of_others(api: Api, cli: Cli, busybox: str) -> None:
    cli("create", "--name", "other", busybox, "sleep", "1000")
    cli("update", "-m", "64m", "--memory-swap", "-1", "--pids-limit", "30", "other")
    cli("start", "other")
    assert (knob(cli, "other", "memory"), knob(cli, "other", "pids")) == (str(64 * MB), "30")
    cli("pause", "other")
    cli("update", "--pids-limit", "31", "other")
    cli("unpause", "other")
    assert knob(cli, "other", "pids") == "31"
    cli("kill", "other")
    cli("update", "--pids-limit", "32", "other")
    assert host_config(api, "other")["PidsLimit"] == 32


@pytest.mark.parity
def test_a_version_before_pids_limits(api: Api, cli: Cli, busybox: str) -> None:
    cli("create", "--name", "old", "--pids-limit", "9", busybox)
    Api(api.path, "v1.39").post("/containers/old/update", {"PidsLimit": 5}).ok()
    assert host_config(api, "old")["PidsLimit"] == 9


@pytest.mark.parity
def test_kernel_memory_of_old_versions(api: Api, cli: Cli, busybox: str) -> None:
    cli("create", "--name", "old", busybox)
    old = Api(api.path, "v1.41")
    reply = old.post("/containers/old/update", {"KernelMemory": 1})
    assert (reply.status, reply.json()["message"]) == (400, "Minimum kernel memory limit allowed is 6MB")
    old.post("/containers/old/update", {"KernelMemory": 64 * MB}).ok()
    api.post("/containers/old/update", {"KernelMemory": 32 * MB}).ok()
    assert host_config(api, "old")["KernelMemory"] == 64 * MB


@pytest.mark.parity
@pytest.mark.parametrize(
    ("body", "status", "text"),
    [
        ({"Memory": 1000}, 400, "Minimum memory limit allowed is 6MB"),
        (
            {"Memory": 64 * MB, "MemorySwap": 32 * MB},
            400,
            "Minimum memoryswap limit should be larger than memory limit, see usage",
        ),
        (
            {"Memory": 64 * MB},
            409,
            "Cannot update container ID: Memory limit should be smaller than already set memoryswap limit, update the "
            "memoryswap at the same time",
        ),
        (
            {"CpuQuota": 50_000},
            409,
            "Cannot update container ID: Conflicting options: CPU Quota cannot be updated as NanoCPUs has already been "
            "set",
        ),
        ({"NanoCpus": 1, "CpuPeriod": 2000}, 400, "Conflicting options: Nano CPUs and CPU Period cannot both be set"),
        ({"CpusetCpus": "x"}, 400, "Invalid value x for cpuset cpus: invalid format: x"),
        pytest.param(
            {"MemorySwappiness": 500},
            400,
            "Invalid value: 500, valid memory swappiness range is 0-100",
            marks=pytest.mark.skipif(V2, reason="version 2 of control groups has no swappiness, and it is discarded"),
        ),
        (
            {"IOMaximumIOps": 3},
            400,
            "Invalid QoS settings: linux does not support Maximum IO Bandwidth or Maximum IO IOps",
        ),
        (
            {"RestartPolicy": {"Name": "foo"}},
            400,
            "invalid restart policy: unknown policy 'foo'; use one of 'no', 'always', 'on-failure', or "
            "'unless-stopped'",
        ),
        (
            {"RestartPolicy": {"Name": "always", "MaximumRetryCount": -3}},
            400,
            "invalid restart policy: maximum retry count can only be used with 'on-failure' and cannot be negative",
        ),
        (
            {"RestartPolicy": {"Name": "on-failure", "MaximumRetryCount": -3}},
            400,
            "invalid restart policy: maximum retry count cannot be negative",
        ),
        (
            {"RestartPolicy": {"Name": "always"}},
            409,
            "Cannot update container ID: Restart policy cannot be updated because AutoRemove is enabled for the "
            "container",
        ),
    ],
)
def test_refusals(api: Api, cli: Cli, busybox: str, body: dict[str, Any], status: int, text: str) -> None:
    cli("run", "-d", "--rm", "--name", "refused", "--cpus", "0.5", busybox, "sleep", "1000")
    before = api.get("/containers/refused/json").ok()
    reply = api.post("/containers/refused/update", body)
    assert (reply.status, reply.json()["message"].replace(before["Id"], "ID")) == (status, text)
    assert host_config(api, "refused") == before["HostConfig"]


@pytest.mark.parity
def test_what_changes_nothing(api: Api, cli: Cli, busybox: str) -> None:
    cli("run", "-d", "--name", "same", "--restart", "on-failure:2", busybox, "sleep", "1000")
    before = host_config(api, "same")
    for body in ({}, {"RestartPolicy": {"Name": "", "MaximumRetryCount": 3}}, {"PidsLimit": None}, {"Foo": 1}):
        assert api.post("/containers/same/update", body).ok() == {"Warnings": None}
    assert api.call("POST", "/containers/same/update").ok() == {"Warnings": None}
    warned = api.post("/containers/same/update", {"CpuPercent": 3}).ok()["Warnings"]
    assert warned == ["linux does not support CPU percent. Percent discarded."]
    assert host_config(api, "same") == before
    assert api.post("/containers/nope/update", {}).status == 404


@pytest.mark.parity
def test_the_kernel_refuses(api: Api, cli: Cli, busybox: str) -> None:
    cli("run", "-d", "--name", "proud", busybox, "sleep", "1000")
    reply = api.post("/containers/proud/update", {"CpuShares": 1})
    if reply.status == 200 and knob(cli, "proud", "memory") == "max":
        pytest.skip("version 2 of control groups has a weight for any number of shares")
    assert reply.json()["message"].endswith(
        ": runc did not terminate successfully: exit status 1: the minimum allowed cpu-shares is 2\n"
    )
    assert (reply.status, host_config(api, "proud")["CpuShares"]) == (500, 0)


@pytest.mark.parity
def test_a_restart_policy(api: Api, cli: Cli, busybox: str) -> None:
    """It holds for the run that goes on, both ways."""
    cli("run", "-d", "--name", "revived", busybox, "sh", "-c", "while ! test -e /end; do sleep 0.02; done; rm /end")
    cli("update", "--restart", "always", "revived")
    cli("exec", "revived", "touch", "/end")
    wait_until(lambda: api.get("/containers/revived/json").ok()["RestartCount"] == 1, "it starts again")
    wait_until(lambda: api.get("/containers/revived/json").ok()["State"]["Status"] == "running", "it runs")
    cli("update", "--restart", "no", "revived")
    cli("exec", "revived", "touch", "/end")
    wait_until(lambda: api.get("/containers/revived/json").ok()["State"]["Status"] == "exited", "the end")
    assert api.get("/containers/revived/json").ok()["RestartCount"] == 1


def test_an_update_survives_a_crash(own_engine: OwnEngine, tmp_path: Path) -> None:
    own_engine.start()
    have(lambda: own_engine.load("busybox:latest"))
    api = own_engine.api
    api.post("/containers/create", {"Image": "busybox:latest", "Cmd": ["sleep", "1000"]}, name="kept").ok()
    api.post("/containers/kept/start").ok()
    api.post("/containers/kept/update", {"PidsLimit": 44, "RestartPolicy": {"Name": "always"}}).ok()
    own_engine.kill()
    own_engine.start()
    shown = host_config(api, "kept")
    assert (shown["PidsLimit"], shown["RestartPolicy"]["Name"]) == (44, "always")

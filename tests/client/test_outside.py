"""What others on the machine do to a container's cgroups and mounts: it still stops and is removed."""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from compatd.linux import syscalls
from tests.api import Api
from tests.conftest import have
from tests.engine import OwnEngine
from tests.registry import wait_until

pytestmark = pytest.mark.root


@pytest.fixture
def engine(own_engine: OwnEngine) -> Iterator[OwnEngine]:
    own_engine.start()
    have(lambda: own_engine.load("busybox:latest"))
    yield own_engine
    if own_engine.leaks():
        own_engine.kill()
        own_engine.start()


def run(api: Api, script: str = "sleep 1000") -> int:
    body = {"Image": "busybox:latest", "Cmd": ["sh", "-c", script], "HostConfig": {"Binds": ["/data"]}}
    api.post("/containers/create", body, name="touched").ok()
    api.post("/containers/touched/start").ok()
    return int(api.get("/containers/touched/json").ok()["State"]["Pid"])


def folders(engine: OwnEngine) -> list[Path]:
    return [folder for folder in engine.cgroups() if folder.name != engine.name]


def move_out(engine: OwnEngine, pid: int) -> None:
    """Into a cgroup above it in each hierarchy, so that the container's can go. In version 2 that is the root: the ones
    between have controllers for those below, and no processes."""
    for folder in folders(engine):
        for above in folder.parents:
            with contextlib.suppress(OSError):
                (above / "cgroup.procs").write_text(str(pid))
                break


@pytest.mark.parametrize("paused", [False, True])
@pytest.mark.parametrize("crash", [False, True])
def test_processes_that_were_moved_and_cgroups_that_were_removed(engine: OwnEngine, paused: bool, crash: bool) -> None:
    api = engine.api
    pid = run(api, 'trap "exit 3" TERM; while :; do sleep 0.02; done')
    for child in [pid, *children(pid)]:
        move_out(engine, child)
    wait_until(lambda: remove(folders(engine)), "the cgroups are removed")
    if paused:
        assert api.post("/containers/touched/pause").status in (204, 500)
    if crash:
        engine.kill()
        engine.start()
    api.get("/containers/touched/json").ok()
    assert api.get("/containers/touched/stats", stream="0").status == 200
    assert api.get("/containers/json").ok()
    assert api.get("/containers/touched/top").status in (200, 500)
    began = time.monotonic()
    api.post("/containers/touched/stop", t="5").ok()
    assert time.monotonic() - began < 5
    assert api.get("/containers/touched/json").ok()["State"]["ExitCode"] == 3
    api.post("/containers/touched/start").ok()  # in cgroups that are made again
    wait_until(lambda: bool(folders(engine)), "its cgroups")
    api.delete("/containers/touched", force="1", v="1").ok()
    wait_until(lambda: not folders(engine), "they are gone")


def children(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(OSError):
            found += [int(child) for child in (task / "children").read_text().split()]
    return found


def remove(found: list[Path]) -> bool:
    for folder in found:
        with contextlib.suppress(OSError):
            folder.rmdir()
    return not any(folder.exists() for folder in found)


def test_others_processes_in_its_cgroups(engine: OwnEngine) -> None:
    """They go with it, as everything in there."""
    api = engine.api
    run(api)
    stranger = os.posix_spawn("/bin/sleep", ["sleep", "1000"], {})
    try:
        for folder in folders(engine):
            (folder / "cgroup.procs").write_text(str(stranger))
        api.post("/containers/touched/stop", t="0").ok()
        api.post("/containers/touched/start").ok()
        assert os.waitpid(stranger, os.WNOHANG)[0] == stranger
        stranger = 0
        api.delete("/containers/touched", force="1", v="1").ok()
        wait_until(lambda: not folders(engine), "they are gone")
    finally:
        if stranger:
            os.kill(stranger, 9)
            os.waitpid(stranger, 0)


def test_frozen_by_another(engine: OwnEngine) -> None:
    api = engine.api
    run(api)
    for folder in folders(engine):
        for knob, value in (("freezer.state", "FROZEN"), ("cgroup.freeze", "1")):
            if (folder / knob).exists():
                (folder / knob).write_text(value)
                break
    assert api.get("/containers/touched/json").ok()["State"]["Status"] == "running"
    api.delete("/containers/touched", force="1", v="1", timeout_s=60).ok()
    wait_until(lambda: not folders(engine), "they are gone")


def test_mounts_of_its_namespace(engine: OwnEngine) -> None:
    """Someone has unmounted what it had, and mounted over its root."""
    api = engine.api
    pid = run(api)
    reader = os.fork()
    if not reader:
        try:
            with open(f"/proc/{pid}/ns/mnt") as namespace:
                syscalls.setns(namespace.fileno(), syscalls.CLONE_NEWNS)
            for target in ("/etc/hosts", "/data", "/dev/shm"):
                syscalls.umount(target, 2)  # MNT_DETACH
            syscalls.mount("tmpfs", "/etc", "tmpfs", 0, "")
            os._exit(0)
        finally:
            os._exit(1)
    assert os.waitpid(reader, 0)[1] == 0
    api.post("/containers/touched/restart", t="0").ok()
    made = api.post("/containers/touched/exec", {"Cmd": ["test", "-s", "/etc/hosts"]}).ok()["Id"]
    api.post(f"/exec/{made}/start", {"Detach": True}).ok()
    wait_until(lambda: api.get(f"/exec/{made}/json").ok()["ExitCode"] == 0, "the file is there again")
    api.delete("/containers/touched", force="1", v="1").ok()

"""cgroup file systems: layouts from text, and, as root, real cgroups with real processes."""

import contextlib
import os
import select
import signal
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from compatd.linux import cgroupfs, mountinfo

KNOWN = frozenset({"cpu", "cpuacct", "memory", "pids", "freezer", "devices"})


def layout(*mounts: tuple[str, str, str], offered: str = "cpu memory pids") -> cgroupfs.Layout:
    """``mounts``: (mount point, fstype, super options)."""
    lines = [
        f"{number} 1 0:{number} / {point} rw - {fstype} cgroup rw,{options}\n"
        for number, (point, fstype, options) in enumerate(mounts, 2)
    ]
    return cgroupfs.detect(
        mountinfo.parse("".join(lines).encode()), KNOWN, lambda _directory: frozenset(offered.split())
    )


@pytest.mark.unit
def test_version_2() -> None:
    found = layout(("/sys/fs/cgroup", "cgroup2", "nsdelegate"))
    assert (found.version, found.unified, found.hierarchies) == (2, "/sys/fs/cgroup", ())
    assert found.controllers == {"cpu", "memory", "pids"}
    assert found.mount_point("memory") == "/sys/fs/cgroup"
    assert found.mount_point("io") is None
    assert found.mount_points == ("/sys/fs/cgroup",)


@pytest.mark.unit
def test_hybrid() -> None:
    found = layout(
        ("/sys/fs/cgroup/unified", "cgroup2", ""),
        ("/sys/fs/cgroup/systemd", "cgroup", "xattr,name=systemd"),
        ("/sys/fs/cgroup/cpu,cpuacct", "cgroup", "cpu,cpuacct"),
        ("/sys/fs/cgroup/memory", "cgroup", "memory"),
    )
    assert found.version == 1
    assert found.unified == "/sys/fs/cgroup/unified"
    assert [h.options for h in found.hierarchies] == ["name=systemd", "cpu,cpuacct", "memory"]
    assert found.hierarchies[1].name == "cpu,cpuacct"
    assert found.mount_point("cpuacct") == "/sys/fs/cgroup/cpu,cpuacct"
    assert found.controllers == {"cpu", "cpuacct", "memory"}
    assert found.mount_points[-1] == "/sys/fs/cgroup/unified"


@pytest.mark.unit
def test_copies_elsewhere_lose() -> None:
    found = layout(
        ("/chroot/sys/fs/cgroup/memory", "cgroup", "memory"),
        ("/chroot/sys/fs/cgroup/unified", "cgroup2", ""),
        ("/sys/fs/cgroup/memory", "cgroup", "memory"),
        ("/sys/fs/cgroup/unified", "cgroup2", ""),
    )
    assert found.mount_points == ("/sys/fs/cgroup/memory", "/sys/fs/cgroup/unified")


@pytest.mark.unit
def test_nothing_mounted() -> None:
    found = layout(("/", "ext4", ""))
    assert (found.version, found.mount_points, found.controllers) == (1, (), frozenset())


@pytest.mark.unit
def test_files_that_are_not_there(tmp_path: Path) -> None:
    directory = str(tmp_path)
    assert cgroupfs.read_int(directory, "pids.max") is None
    assert cgroupfs.read_pairs(directory, "memory.stat") == {}
    assert cgroupfs.pids(directory + "/gone") == []
    assert cgroupfs.oom_kills(directory) == 0
    (tmp_path / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n")
    assert cgroupfs.oom_kills(directory) == 3
    (tmp_path / "pids.max").write_text("max\n")
    assert cgroupfs.read_int(directory, "pids.max") is None


# ---- real ones ----


def mounted() -> cgroupfs.Layout:
    return cgroupfs.detect(mountinfo.read(), cgroupfs.known_controllers(), cgroupfs.offered_controllers)


@pytest.fixture(params=["freezer", "unified"])
def directory(request: pytest.FixtureRequest) -> Iterator[str]:
    """A cgroup of the test's own, in a version 1 hierarchy and in the unified one, wherever they are mounted."""
    found = mounted()
    root = found.unified if request.param == "unified" else found.mount_point("freezer")
    if root is None or (request.param == "freezer" and found.version == 2):
        pytest.skip(f"{request.param} is not mounted")
    path = f"{root}/compatd-test-{uuid.uuid4().hex}"
    try:
        os.mkdir(path)
    except OSError as error:
        pytest.skip(f"cgroups are not ours to make: {error}")
    yield path
    cgroupfs.kill(path, timeout_s=10)
    cgroupfs.remove(path, timeout_s=10)


def sleeper(directory: str) -> "subprocess.Popen[bytes]":
    process = subprocess.Popen(["sleep", "600"])
    cgroupfs.write(directory, "cgroup.procs", str(process.pid))
    return process


@pytest.mark.root
def test_kill_reaches_what_is_below(directory: str) -> None:
    os.mkdir(f"{directory}/below")
    first, second = sleeper(directory), sleeper(f"{directory}/below")
    assert sorted(cgroupfs.pids(directory)) == sorted([first.pid, second.pid])
    assert cgroupfs.kill(directory, timeout_s=10)
    assert {first.wait(10), second.wait(10)} == {-signal.SIGKILL}
    assert cgroupfs.pids(directory) == []
    assert cgroupfs.kill(directory + "-gone", timeout_s=10)


@pytest.mark.root
def test_freeze_and_thaw(directory: str) -> None:
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        cgroupfs.write(directory, "cgroup.procs", str(process.pid))
        try:
            cgroupfs.freeze(directory, True, timeout_s=10)
            process.stdin.write(b"x")
            assert select.select([process.stdout], [], [], 0.05)[0] == []
            cgroupfs.freeze(directory, False, timeout_s=10)
            assert select.select([process.stdout], [], [], 10)[0] == [process.stdout]
        finally:
            with contextlib.suppress(OSError):
                cgroupfs.freeze(directory, False, timeout_s=10)
            process.kill()


@pytest.mark.root
def test_remove_is_recursive_and_says_busy(directory: str) -> None:
    os.makedirs(f"{directory}/a/b")
    process = sleeper(f"{directory}/a/b")
    with pytest.raises(OSError, match="busy") as busy:
        cgroupfs.remove(directory, timeout_s=0.02)
    assert busy.value.filename == f"{directory}/a/b"
    process.kill()
    process.wait()
    cgroupfs.remove(directory, timeout_s=10)
    assert not os.path.exists(directory)
    cgroupfs.remove(directory, timeout_s=10)

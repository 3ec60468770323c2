"""Limits: Docker 28.5.2's answers to good and bad ones, what is written for them, and real cgroups as root."""

import os
import subprocess
import uuid
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from compatd.errors import Conflict, InvalidParameter, SystemFailure
from compatd.linux import cgroupfs
from compatd.runtime import cgroups, devices
from compatd.runtime.cgroups import BlkioLimit, Resources
from compatd.runtime.host import CgroupSupport, Host, probe_host
from tests.runtime.hosts import FULL_SUPPORT, HYBRID, ID, UNIFIED, make_host

MIB = 1 << 20


def check(host: Host | None = None, **limits: Any) -> tuple[Resources, list[str]]:
    return cgroups.check(Resources(**limits), host or make_host())


def lacking(*features: str) -> Host:
    return make_host(cgroup_support=replace(FULL_SUPPORT, **dict.fromkeys(features, False)))


@pytest.mark.unit
@pytest.mark.parametrize(
    ("limits", "text"),
    [
        ({"memory_bytes": 1000}, "Minimum memory limit allowed is 6MB"),
        ({"memory_bytes": -5}, "Minimum memory limit allowed is 6MB"),
        (
            {"memory_bytes": 64 * MIB, "memory_swap_bytes": 1},
            "Minimum memoryswap limit should be larger than memory limit, see usage",
        ),
        (
            {"memory_swap_bytes": 100 * MIB},
            "You should always set the Memory limit when using Memoryswap limit, see usage",
        ),
        (
            {"memory_bytes": 64 * MIB, "memory_reservation_bytes": 128 * MIB},
            "Minimum memory limit can not be less than memory reservation limit, see usage",
        ),
        ({"memory_reservation_bytes": 100}, "Minimum memory reservation allowed is 6MB"),
        ({"memory_swappiness": 101}, "Invalid value: 101, valid memory swappiness range is 0-100"),
        ({"memory_swappiness": -2}, "Invalid value: -2, valid memory swappiness range is 0-100"),
        (
            {"nano_cpus": 10**9, "cpu_period_us": 1000},
            "Conflicting options: Nano CPUs and CPU Period cannot both be set",
        ),
        (
            {"nano_cpus": 10**9, "cpu_quota_us": 1000},
            "Conflicting options: Nano CPUs and CPU Quota cannot both be set",
        ),
        ({"nano_cpus": 3 * 10**9}, "range of CPUs is from 0.01 to 2.00, as there are only 2 CPUs available"),
        ({"nano_cpus": -1}, "range of CPUs is from 0.01 to 2.00, as there are only 2 CPUs available"),
        (
            {"cpu_period_us": 10},
            "CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)",
        ),
        ({"cpu_quota_us": 10}, "CPU cfs quota can not be less than 1ms (i.e. 1000)"),
        ({"cpuset_cpus": "9"}, "Requested CPUs are not available - requested 9, available: 0-1"),
        ({"cpuset_cpus": "a"}, "Invalid value a for cpuset cpus: invalid format: a"),
        ({"cpuset_cpus": "1-0"}, "Invalid value 1-0 for cpuset cpus: invalid format: 1-0"),
        ({"cpuset_cpus": "0,,1"}, "Invalid value 0,,1 for cpuset cpus: invalid format: 0,,1"),
        ({"cpuset_cpus": "0\n"}, "Invalid value 0\n for cpuset cpus: invalid format: 0\n"),
        (
            {"cpuset_cpus": "999999999"},
            "Invalid value 999999999 for cpuset cpus: value of out range, maximum is 8192",
        ),
        ({"cpuset_mems": "2"}, "Requested memory nodes are not available - requested 2, available: 0"),
        ({"blkio_weight": 5}, "Range of blkio weight is from 10 to 1000"),
    ],
)
def test_bad_limits_are_refused(limits: dict[str, Any], text: str) -> None:
    with pytest.raises(InvalidParameter) as refused:
        check(**limits)
    assert str(refused.value) == text


@pytest.mark.unit
@pytest.mark.parametrize(
    ("feature", "limits", "warning", "left"),
    [
        (
            "memory_limit",
            {"memory_bytes": 64 * MIB},
            "Your kernel does not support memory limit capabilities or the cgroup is not mounted. "
            "Limitation discarded.",
            {"memory_bytes": 0, "memory_swap_bytes": -1},
        ),
        (
            "swap_limit",
            {"memory_bytes": 64 * MIB},
            "Your kernel does not support swap limit capabilities or the cgroup is not mounted. "
            "Memory limited without swap.",
            {"memory_bytes": 64 * MIB, "memory_swap_bytes": -1},
        ),
        (
            "pids_limit",
            {"pids_limit": 5},
            "Your kernel does not support PIDs limit capabilities or the cgroup is not mounted. PIDs limit discarded.",
            {"pids_limit": None},
        ),
        (
            "cpuset",
            {"cpuset_cpus": "0"},
            "Your kernel does not support cpuset or the cgroup is not mounted. Cpuset discarded.",
            {"cpuset_cpus": ""},
        ),
        (
            "blkio_weight",
            {"blkio_weight": 5},
            "Your kernel does not support Block I/O weight or the cgroup is not mounted. Weight discarded.",
            {"blkio_weight": 0},
        ),
        (
            "oom_kill_disable",
            {"oom_kill_disable": True},
            "Your kernel does not support OomKillDisable. OomKillDisable discarded.",
            {"oom_kill_disable": None},
        ),
    ],
)
def test_what_the_kernel_lacks_is_warned_about(
    feature: str, limits: dict[str, Any], warning: str, left: dict[str, Any]
) -> None:
    result, warnings = check(lacking(feature), **limits)
    assert warnings == [warning]
    assert {name: getattr(result, name) for name in left} == left


@pytest.mark.unit
def test_block_devices_without_throttle() -> None:
    limits = (
        BlkioLimit(kind="write_bps", path="/dev/sda", device=(8, 0), value=1),
        BlkioLimit(kind="read_iops", path="/dev/sda", device=(8, 0), value=1),
    )
    result, warnings = check(lacking("blkio_write_bps"), blkio_limits=limits)
    assert result.blkio_limits == limits[1:]
    assert warnings == [
        "Your kernel does not support BPS Block I/O write limit or the cgroup is not mounted. "
        "Block I/O BPS write limit discarded."
    ]


@pytest.mark.unit
def test_good_limits_pass() -> None:
    result, warnings = check(memory_bytes=64 * MIB, memory_swappiness=-1, cpuset_cpus="0-1", pids_limit=-1)
    assert (result.memory_swap_bytes, result.memory_swappiness, warnings) == (128 * MIB, None, [])
    assert check() == (Resources(), [])
    _, warnings = check(oom_kill_disable=True)
    assert warnings == [
        "OOM killer is disabled for the container, but no memory limit is set, "
        "this can result in the system running out of resources."
    ]


@pytest.mark.unit
@pytest.mark.parametrize(
    ("current", "changes", "text"),
    [
        ({}, {"memory_bytes": 64 * MIB}, "Memory limit should be smaller than already set memoryswap limit"),
        (
            {"memory_bytes": 64 * MIB, "memory_swap_bytes": -1},
            {"memory_bytes": 100 * MIB},
            "Memory limit should be smaller than already set memoryswap limit",
        ),
        ({"nano_cpus": 10**9}, {"cpu_period_us": 10000}, "CPU Period cannot be updated as NanoCPUs has"),
        ({"nano_cpus": 10**9}, {"cpu_quota_us": 10000}, "CPU Quota cannot be updated as NanoCPUs has"),
        ({"cpu_quota_us": 10000}, {"nano_cpus": 10**9}, "Nano CPUs cannot be updated as CPU Quota has"),
        ({"cpu_period_us": 10000}, {"nano_cpus": 10**9}, "Nano CPUs cannot be updated as CPU Period has"),
    ],
)
def test_contradicting_updates(current: dict[str, Any], changes: dict[str, Any], text: str) -> None:
    with pytest.raises(Conflict, match=text):
        cgroups.check_update(Resources(**current), Resources(**changes))


@pytest.mark.unit
def test_updates_that_fit() -> None:
    cgroups.check_update(Resources(), Resources(memory_swap_bytes=64 * MIB))
    cgroups.check_update(
        Resources(memory_bytes=64 * MIB, memory_swap_bytes=128 * MIB), Resources(memory_bytes=100 * MIB)
    )
    current = Resources(memory_bytes=64 * MIB, pids_limit=5, cpuset_cpus="0")
    merged = cgroups.merge(current, Resources(cpu_shares=7, pids_limit=-1))
    assert merged == replace(current, cpu_shares=7, pids_limit=0)
    assert cgroups.merge(current, Resources()) == current


def writes(host: Host, resources: Resources) -> dict[str, str]:
    plan = cgroups.plan(cgroups.locate(host, ID), resources, devices.ALLOW_ALL)
    return {os.path.relpath(write[0], "/sys/fs/cgroup"): write[1] for write in plan["writes"]}


LIMITS = Resources(
    memory_bytes=64 * MIB,
    memory_swap_bytes=96 * MIB,
    memory_reservation_bytes=32 * MIB,
    nano_cpus=1_500_000_000,
    cpu_shares=1024,
    cpuset_cpus="0",
    pids_limit=9,
    blkio_limits=(BlkioLimit(kind="read_bps", path="/dev/sda", device=(8, 0), value=1000),),
)


@pytest.mark.unit
def test_writes_of_version_1() -> None:
    assert writes(make_host(cgroup=HYBRID), replace(LIMITS, oom_kill_disable=True, memory_swappiness=7)) == {
        f"memory/docker/{ID}/memory.limit_in_bytes": str(64 * MIB),
        f"memory/docker/{ID}/memory.memsw.limit_in_bytes": str(96 * MIB),
        f"memory/docker/{ID}/memory.soft_limit_in_bytes": str(32 * MIB),
        f"memory/docker/{ID}/memory.swappiness": "7",
        f"memory/docker/{ID}/memory.oom_control": "1",
        f"cpu,cpuacct/docker/{ID}/cpu.shares": "1024",
        f"cpu,cpuacct/docker/{ID}/cpu.cfs_period_us": "100000",
        f"cpu,cpuacct/docker/{ID}/cpu.cfs_quota_us": "150000",
        f"cpuset/docker/{ID}/cpuset.cpus": "0",
        f"pids/docker/{ID}/pids.max": "9",
        f"blkio/docker/{ID}/blkio.throttle.read_bps_device": "8:0 1000",
    }
    assert writes(make_host(cgroup=HYBRID), Resources()) == {}


@pytest.mark.unit
def test_writes_of_version_2() -> None:
    assert writes(make_host(cgroup=UNIFIED), replace(LIMITS, blkio_weight=500)) == {
        f"docker/{ID}/memory.max": str(64 * MIB),
        f"docker/{ID}/memory.swap.max": str(32 * MIB),
        f"docker/{ID}/memory.low": str(32 * MIB),
        f"docker/{ID}/cpu.weight": "100",
        f"docker/{ID}/cpu.max": "150000 100000",
        f"docker/{ID}/cpuset.cpus": "0",
        f"docker/{ID}/pids.max": "9",
        f"docker/{ID}/io.weight": "4950",
        f"docker/{ID}/io.max": "8:0 rbps=1000",
    }
    unlimited_swap = Resources(memory_bytes=64 * MIB, memory_swap_bytes=-1)
    assert writes(make_host(cgroup=UNIFIED), unlimited_swap)[f"docker/{ID}/memory.swap.max"] == "max"
    assert writes(make_host(cgroup=UNIFIED), Resources(cpu_period_us=5000))[f"docker/{ID}/cpu.max"] == "max 5000"


@pytest.mark.unit
def test_shares_become_weight() -> None:
    assert [cgroups.cpu_weight(shares) for shares in (0, 1, 2, 1024, 262144, 1 << 30)] == [0, 1, 1, 100, 10000, 10000]


@pytest.mark.unit
def test_device_rules_in_the_plan() -> None:
    first = cgroups.plan(cgroups.locate(make_host(), ID), Resources(), devices.DEFAULT_RULES)
    files = [write[0] for write in first["writes"]]
    assert files[0] == f"/sys/fs/cgroup/devices/docker/{ID}/devices.deny"
    assert first["writes"][0][1] == "a"
    assert {"c 1:3 rwm", "b *:* m"} <= {write[1] for write in first["writes"]}
    assert "device_program" not in first
    second = cgroups.plan(cgroups.locate(make_host(cgroup=UNIFIED), ID), Resources(), devices.DEFAULT_RULES)
    assert second.get("device_cgroup") == f"/sys/fs/cgroup/docker/{ID}"
    assert second.get("device_program")
    assert second["joins"] == [f"/sys/fs/cgroup/docker/{ID}/cgroup.procs"]
    assert "device_program" not in cgroups.plan(
        cgroups.locate(make_host(cgroup=UNIFIED), ID), Resources(), devices.ALLOW_ALL
    )


@pytest.mark.unit
@pytest.mark.parametrize(
    ("parent", "path"),
    [
        ("", "/docker"),
        ("/custom", "/custom"),
        ("custom/deeper/", "/custom/deeper"),
        ("/../../etc", "/etc"),
        ("../x", "/x"),
        ("/", ""),
        ("//a", "/a"),
    ],
)
def test_parents_stay_below_the_root(parent: str, path: str) -> None:
    assert cgroups.locate(make_host(), ID, parent).path == f"{path}/{ID}"


@pytest.mark.unit
def test_nothing_mounted() -> None:
    nothing = cgroupfs.Layout(version=1, hierarchies=(), unified=None, controllers=frozenset())
    none = CgroupSupport(**dict.fromkeys(CgroupSupport.__slots__, False))
    host = make_host(cgroup=nothing, cgroup_support=none)
    plan = cgroups.plan(cgroups.locate(host, ID), Resources(), devices.DEFAULT_RULES)
    assert (plan["directories"], plan["writes"], plan["joins"]) == ([], [], [])
    cgroups.prepare(host)
    with pytest.raises(SystemFailure, match="cannot pause"):
        cgroups.freeze(cgroups.locate(host, ID))


# ---- real cgroups ----


@pytest.fixture
def host() -> Iterator[Host]:
    """This machine, with a parent cgroup of the test's own."""
    host = probe_host(cgroup_parent=f"/compatd-test-{uuid.uuid4().hex}/docker")
    try:
        cgroups.prepare(host)
    except SystemFailure as failure:
        pytest.skip(f"cgroups are not ours to make: {failure}")
    cgroups.prepare(host)
    yield host
    for root in host.cgroup.mount_points:
        top = root + os.path.dirname(host.cgroup_parent)
        cgroupfs.kill(top, timeout_s=10)
        cgroupfs.remove(top, timeout_s=10)


@pytest.fixture
def place(host: Host) -> Iterator[cgroups.ContainerCgroup]:
    """A container's cgroup with nothing in it."""
    place = cgroups.locate(host, ID)
    for directory in place.directories:
        os.mkdir(directory)
    yield place
    cgroups.kill_all(place)
    cgroups.remove(place)


def sleeper(place: cgroups.ContainerCgroup) -> "subprocess.Popen[bytes]":
    process = subprocess.Popen(["sleep", "600"])
    for directory in place.directories:
        cgroupfs.write(directory, "cgroup.procs", str(process.pid))
    return process


@pytest.mark.root
def test_a_process_can_join_everywhere(place: cgroups.ContainerCgroup) -> None:
    process = sleeper(place)
    assert cgroups.pids(place) == [process.pid]
    cgroups.freeze(place)
    assert cgroups.kill_all(place)
    assert process.wait(10) == -9
    cgroups.remove(place)
    assert not any(os.path.exists(directory) for directory in place.directories)
    cgroups.remove(place)


@pytest.mark.root
def test_remove_says_what_is_busy(place: cgroups.ContainerCgroup, monkeypatch: pytest.MonkeyPatch) -> None:
    process = sleeper(place)
    monkeypatch.setattr(cgroups, "_REMOVE_TIMEOUT_S", 0.01)
    with pytest.raises(SystemFailure, match=rf"cannot remove cgroup .*{ID}: Device or resource busy"):
        cgroups.remove(place)
    process.kill()
    process.wait()


@pytest.mark.root
def test_limits_move_up_and_down(host: Host, place: cgroups.ContainerCgroup) -> None:
    support = host.cgroup_support
    if not (support.memory_limit and support.swap_limit and support.pids_limit):
        pytest.skip("no memory, swap or pids controller")
    name = "memory.limit_in_bytes" if host.cgroup.version == 1 else "memory.max"
    memory = place.directory("memory")
    assert memory is not None

    current = Resources()
    for megabytes in (64, 128, 32):
        changes = Resources(memory_bytes=megabytes * MIB, memory_swap_bytes=megabytes * 2 * MIB, pids_limit=megabytes)
        cgroups.update(place, current, changes)
        current = cgroups.merge(current, changes)
        assert cgroupfs.read_int(memory, name) == megabytes * MIB
    pids = place.directory("pids") or ""
    assert cgroupfs.read_int(pids, "pids.max") == 32
    cgroups.update(place, current, Resources(pids_limit=0))
    assert cgroupfs.read(pids, "pids.max").strip() == "max"
    with pytest.raises(SystemFailure, match=r'failed to write "77": write .*/cpuset.cpus: '):
        cgroups.update(place, current, Resources(cpuset_cpus="77"))


@pytest.mark.unit
def test_updates_of_version_2(tmp_path: Path) -> None:
    """Into a folder that looks like the unified hierarchy."""
    folder = tmp_path / "x"
    folder.mkdir()
    for name in ("memory.max", "memory.swap.max", "memory.low", "cpu.max", "cpu.weight", "pids.max", "cpuset.cpus"):
        (folder / name).touch()
    place = cgroups.ContainerCgroup(layout=replace(UNIFIED, unified=str(tmp_path)), path="/x")
    current = Resources(memory_bytes=64 * MIB, memory_swap_bytes=128 * MIB, pids_limit=5)
    cgroups.update(place, current, Resources(memory_bytes=96 * MIB, nano_cpus=5 * 10**8, cpu_shares=2048, pids_limit=0))
    written = {path.name: path.read_text() for path in folder.iterdir()}
    assert written == {
        "memory.max": str(96 * MIB),
        "memory.swap.max": str(32 * MIB),
        "memory.low": "",
        "cpu.max": "50000 100000",
        "cpu.weight": str(cgroups.cpu_weight(2048)),
        "pids.max": "max",
        "cpuset.cpus": "",
    }

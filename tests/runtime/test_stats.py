"""Statistics from files as kernels write them, and from a real cgroup as root."""

import os
from pathlib import Path

import pytest

from compatd.linux.cgroupfs import Hierarchy, Layout
from compatd.runtime import cgroups, stats
from compatd.runtime.host import probe_host
from compatd.runtime.stats import BlkioEntry
from tests.runtime.hosts import ID, make_host

VERSION_1 = {
    "cpuacct.usage": "68628610\n",
    "cpuacct.usage_percpu": "48977934 19650676 \n",
    "cpuacct.stat": "user 2\nsystem 4\n",
    "cpu.stat": "nr_periods 41\nnr_throttled 2\nthrottled_time 142539833\nnr_bursts 0\n",
    "memory.usage_in_bytes": "22798336\n",
    "memory.max_usage_in_bytes": "24817664\n",
    "memory.limit_in_bytes": "67108864\n",
    "memory.failcnt": "7\n",
    "memory.stat": "cache 21377024\nrss 110592\nshmem 0\nhierarchical_memory_limit 67108864\ntotal_rss 5\n",
    "blkio.throttle.io_service_bytes_recursive": "8:0 Read 4096\n8:0 Write 0\n8:0 Total 4096\nTotal 4096\n",
    "blkio.bfq.io_service_bytes_recursive": "Total 0\n",
    "blkio.throttle.io_serviced_recursive": "8:0 Read 1\nTotal 1\n",
    "blkio.bfq.time_recursive": "8:0 17\n",
    "pids.current": "2\n",
    "pids.max": "10\n",
}
VERSION_2 = {
    "cpu.stat": "usage_usec 50\nuser_usec 30\nsystem_usec 20\nnr_periods 4\nnr_throttled 3\nthrottled_usec 2\n",
    "memory.current": "4096\n",
    "memory.max": "max\n",
    "memory.events": "low 0\nhigh 0\nmax 5\noom 2\noom_kill 1\n",
    "memory.stat": "anon 100\nfile 200\nsomething_new 3\nthp_fault_alloc 4\n",
    "io.stat": "254:0 rbytes=4096 wbytes=8192 rios=1 wios=2 dbytes=0 dios=0\n7:0 \n",
    "pids.current": "1\n",
    "pids.max": "max\n",
}


def read(tmp_path: Path, files: dict[str, str], version: int) -> stats.Stats:
    directory = tmp_path / "docker" / ID
    directory.mkdir(parents=True)
    for name, text in files.items():
        (directory / name).write_text(text)
    controllers = frozenset({"cpu", "cpuacct", "memory", "blkio", "io", "pids"})
    root = str(tmp_path)
    if version == 2:
        layout = Layout(version=2, hierarchies=(), unified=root, controllers=controllers)
    else:
        everything = Hierarchy(mount_point=root, options="all", controllers=controllers)
        layout = Layout(version=1, hierarchies=(everything,), unified=None, controllers=controllers)
    host = make_host(cgroup=layout)
    return stats.read(cgroups.locate(host, ID), host)


@pytest.mark.unit
def test_version_1(tmp_path: Path) -> None:
    found = read(tmp_path, VERSION_1, 1)
    tick_ns = 10**9 // os.sysconf("SC_CLK_TCK")
    assert (found.cpu.total_ns, found.cpu.per_cpu_ns) == (68628610, (48977934, 19650676))
    assert (found.cpu.user_ns, found.cpu.kernel_ns) == (2 * tick_ns, 4 * tick_ns)
    assert (found.cpu.periods, found.cpu.throttled_periods, found.cpu.throttled_ns) == (41, 2, 142539833)
    memory = found.memory
    assert (memory.usage_bytes, memory.max_usage_bytes) == (22798336, 24817664)
    assert (memory.limit_bytes, memory.failures) == (67108864, 7)
    assert memory.details["rss"] == 110592
    assert memory.details["total_rss"] == 5
    assert memory.details["pgfault"] == 0
    assert "shmem" not in memory.details
    assert found.blkio["io_service_bytes_recursive"] == (
        BlkioEntry(major=8, minor=0, operation="Read", value=4096),
        BlkioEntry(major=8, minor=0, operation="Write", value=0),
        BlkioEntry(major=8, minor=0, operation="Total", value=4096),
    )
    assert found.blkio["io_time_recursive"] == (BlkioEntry(major=8, minor=0, operation="", value=17),)
    assert found.blkio["sectors_recursive"] == ()
    assert (found.pids, found.pids_limit) == (2, 10)


@pytest.mark.unit
def test_version_2(tmp_path: Path) -> None:
    found = read(tmp_path, VERSION_2, 2)
    assert (found.cpu.total_ns, found.cpu.user_ns, found.cpu.kernel_ns) == (50_000, 30_000, 20_000)
    assert found.cpu.per_cpu_ns is None
    assert found.cpu.throttled_ns == 2000
    assert (found.memory.usage_bytes, found.memory.max_usage_bytes, found.memory.failures) == (4096, None, 2)
    assert found.memory.limit_bytes == 8 << 30  # the machine's
    assert found.memory.details["anon"] == 100
    assert "something_new" not in found.memory.details
    assert found.blkio["io_service_bytes_recursive"] == (
        BlkioEntry(major=254, minor=0, operation="read", value=4096),
        BlkioEntry(major=254, minor=0, operation="write", value=8192),
    )
    assert [entry.value for entry in found.blkio["io_serviced_recursive"]] == [1, 2]
    assert (found.pids, found.pids_limit) == (1, None)


@pytest.mark.unit
@pytest.mark.parametrize("version", [1, 2])
def test_a_container_that_has_ended_is_zeros(tmp_path: Path, version: int) -> None:
    found = read(tmp_path, {}, version)
    assert (found.cpu.total_ns, found.memory.usage_bytes, found.memory.details, found.pids) == (0, 0, {}, 0)
    assert set(found.blkio.values()) == {()}


@pytest.mark.unit
def test_the_machine_s_time_goes_on() -> None:
    before = stats.host_cpu_ns()
    assert before > 0
    assert stats.host_cpu_ns() >= before


@pytest.mark.root
def test_this_machine() -> None:
    """The root cgroups have at least what the layout promises."""
    host = probe_host()
    found = stats.read(cgroups.ContainerCgroup(layout=host.cgroup, path=""), host)
    if "cpuacct" in host.cgroup.controllers or host.cgroup.version == 2:
        assert found.cpu.total_ns > 0

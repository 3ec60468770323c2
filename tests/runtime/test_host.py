"""What is found out about this very machine, checked against other sources of the same facts."""

import os
import time

import pytest

from compatd.runtime import capabilities
from compatd.runtime.host import probe_host

pytestmark = pytest.mark.unit


def test_facts() -> None:
    host = probe_host()
    assert host.kernel_release == os.uname().release
    assert host.kernel_release.startswith(f"{host.kernel[0]}.{host.kernel[1]}")
    assert 1 <= host.cpu_count <= (os.cpu_count() or 1)
    assert host.memory_total_bytes > 64 << 20
    assert host.cgroup.version in (1, 2)
    assert host.cgroup_parent == "/docker"
    assert host.capabilities < 1 << 64
    assert "/proc/kcore" in host.masked_paths
    assert probe_host(cgroup_parent="/x").cgroup_parent == "/x"


def test_support_follows_the_controllers() -> None:
    host = probe_host()
    assert host.cgroup_support.memory_limit == ("memory" in host.cgroup.controllers)
    assert host.cgroup_support.pids_limit == ("pids" in host.cgroup.controllers)
    if host.cgroup.version == 2:
        assert not host.cgroup_support.memory_swappiness


def test_capabilities_are_those_held() -> None:
    host = probe_host()
    if os.geteuid() != 0:
        assert capabilities.names(host.capabilities) == ()
    else:
        assert host.capabilities & capabilities.mask(["CAP_CHOWN"])


def test_probing_is_cheap() -> None:
    probe_host()
    best_s = min(_timed() for _ in range(5))
    assert best_s < 0.05


def _timed() -> float:
    start = time.perf_counter()
    probe_host()
    return time.perf_counter() - start

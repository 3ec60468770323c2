"""Hosts that are not this one, and specs with only what a test is about."""

from dataclasses import fields, replace
from typing import Any

from compatd.linux.cgroupfs import Hierarchy, Layout
from compatd.runtime import capabilities
from compatd.runtime.host import CgroupSupport, Host
from compatd.runtime.spec import ContainerSpec

ID = "c" * 64
ALL_CAPABILITIES = (1 << len(capabilities.NAMES)) - 1


def _hierarchy(name: str, *controllers: str, options: str = "") -> Hierarchy:
    return Hierarchy(
        mount_point=f"/sys/fs/cgroup/{name}",
        options=options or ",".join(controllers),
        controllers=frozenset(controllers),
    )


HYBRID = Layout(
    version=1,
    hierarchies=(
        _hierarchy("cpu,cpuacct", "cpu", "cpuacct"),
        *(_hierarchy(name, name) for name in ("cpuset", "memory", "devices", "freezer", "blkio", "pids")),
        _hierarchy("systemd", options="name=systemd"),
    ),
    unified="/sys/fs/cgroup/unified",
    controllers=frozenset({"cpu", "cpuacct", "cpuset", "memory", "devices", "freezer", "blkio", "pids"}),
)
UNIFIED = Layout(
    version=2,
    hierarchies=(),
    unified="/sys/fs/cgroup",
    controllers=frozenset({"cpu", "cpuset", "io", "memory", "pids"}),
)
FULL_SUPPORT = CgroupSupport(**{field.name: True for field in fields(CgroupSupport)})


def make_host(**changes: Any) -> Host:
    """A machine with everything, cgroup version 1 and two processors; ``changes`` are Host's fields."""
    host = Host(
        kernel_release="6.18.0",
        kernel=(6, 18),
        machine="x86_64",
        cpu_count=2,
        memory_total_bytes=8 << 30,
        cgroup=HYBRID,
        cgroup_parent="/docker",
        cgroup_support=FULL_SUPPORT,
        cpuset_cpus="0-1",
        cpuset_mems="0",
        capabilities=ALL_CAPABILITIES,
        seccomp=True,
        apparmor=False,
        apparmor_default_profile=None,
        ipv4_forwarding=True,
        kcore=True,
        ping_group_sysctl=True,
        unprivileged_port_sysctl=True,
        masked_paths=("/proc/kcore", "/sys/firmware"),
        recursive_readonly=True,
    )
    return replace(host, **changes)


def make_spec(**changes: Any) -> ContainerSpec:
    """A container of nothing but a command; ``changes`` are ContainerSpec's fields."""
    given: dict[str, Any] = {
        "id": ID,
        "state_dir": "/run/engine/containers/c",
        "lowers": ("/layers/top", "/layers/base"),
        "upper": "/c/upper",
        "work": "/c/work",
        "args": ("true",),
        "hostname": "box",
    }
    return ContainerSpec(**{**given, **changes})

"""What this machine has: the facts that decide how a container is built, probed once.

``info``, ``doctor`` and the runtime read the same value, so that what is shown is what is done.
"""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from compatd.linux import cgroupfs, mountinfo, syscalls

DEFAULT_CGROUP_PARENT = "/docker"

# moby oci/defaults.go, DefaultLinuxSpec
_MASKED = tuple(
    """
    /proc/asound /proc/acpi /proc/interrupts /proc/kcore /proc/keys /proc/latency_stats /proc/timer_list
    /proc/timer_stats /proc/sched_debug /proc/scsi /sys/firmware /sys/devices/virtual/powercap
    """.split()
)
READONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")


@dataclass(frozen=True, slots=True, kw_only=True)
class CgroupSupport:
    """Which limits can be set here; named after the fields of ``docker info`` (moby pkg/sysinfo)."""

    memory_limit: bool
    memory_reservation: bool
    swap_limit: bool
    memory_swappiness: bool
    kernel_memory_tcp: bool
    oom_kill_disable: bool
    cpu_shares: bool
    cpu_cfs: bool
    cpu_realtime: bool
    cpuset: bool
    pids_limit: bool
    blkio_weight: bool
    blkio_weight_device: bool
    blkio_read_bps: bool
    blkio_write_bps: bool
    blkio_read_iops: bool
    blkio_write_iops: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """Facts about this machine and this process's place in it.

    ``capabilities`` is what a container can be given: this process's bounding and permitted sets together. Without
    CAP_SYS_RESOURCE in it, hard limits cannot be raised above the engine's own, for privileged containers too; a
    start that asks for it fails with EPERM, as under Docker. ``cgroup_parent`` is where containers without a parent
    of their own go, below each mounted hierarchy's root.
    """

    kernel_release: str
    kernel: tuple[int, int]
    machine: str  # uname -m
    cpu_count: int
    memory_total_bytes: int
    cgroup: cgroupfs.Layout
    cgroup_parent: str
    cgroup_support: CgroupSupport
    cpuset_cpus: str
    cpuset_mems: str
    capabilities: int
    seccomp: bool
    apparmor: bool
    apparmor_default_profile: str | None  # docker-default, where it has been loaded
    ipv4_forwarding: bool
    ping_group_sysctl: bool
    unprivileged_port_sysctl: bool
    kcore: bool  # /proc/kcore is there, which a kernel may lack
    masked_paths: tuple[str, ...]  # Docker's default list for this machine
    recursive_readonly: bool  # mount_setattr(2), kernel 5.12


def probe_host(*, cgroup_parent: str = DEFAULT_CGROUP_PARENT) -> Host:
    """Look at /proc and /sys; some milliseconds at most, no change to anything. Never raises for what is absent."""
    uname = os.uname()
    kernel = _kernel(uname.release)
    layout = cgroupfs.detect(mountinfo.read(), cgroupfs.known_controllers(), cgroupfs.offered_controllers)
    cpus = _cpuset(layout, "cpus")
    return Host(
        kernel_release=uname.release,
        kernel=kernel,
        machine=uname.machine,
        cpu_count=len(os.sched_getaffinity(0)),
        memory_total_bytes=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        cgroup=layout,
        cgroup_parent=cgroup_parent,
        cgroup_support=_support(layout, cgroup_parent),
        cpuset_cpus=cpus or f"0-{(os.cpu_count() or 1) - 1}",
        cpuset_mems=_cpuset(layout, "mems") or "0",
        capabilities=_capabilities(),
        seccomp=os.path.exists("/proc/sys/kernel/seccomp/actions_avail"),
        apparmor=_text("/sys/module/apparmor/parameters/enabled").startswith("Y")
        and os.path.isdir("/sys/kernel/security/apparmor"),
        apparmor_default_profile=_default_profile(),
        ipv4_forwarding=_text("/proc/sys/net/ipv4/ip_forward").strip() == "1",
        kcore=os.path.exists("/proc/kcore"),
        ping_group_sysctl=os.path.exists("/proc/sys/net/ipv4/ping_group_range"),
        unprivileged_port_sysctl=os.path.exists("/proc/sys/net/ipv4/ip_unprivileged_port_start"),
        masked_paths=(*_MASKED, *_thermal_throttles()),
        recursive_readonly=kernel >= (5, 12),
    )


def _kernel(release: str) -> tuple[int, int]:
    version = re.match(r"([0-9]+)\.([0-9]+)", release)
    return (int(version[1]), int(version[2])) if version else (0, 0)


def _support(layout: cgroupfs.Layout, parent: str) -> CgroupSupport:
    if layout.version == 2:
        have = layout.controllers
        return CgroupSupport(
            memory_limit="memory" in have,
            memory_reservation="memory" in have,
            swap_limit="memory" in have and _v2_swap(layout, parent),
            memory_swappiness=False,
            kernel_memory_tcp=False,
            oom_kill_disable=False,
            cpu_shares="cpu" in have,
            cpu_cfs="cpu" in have,
            cpu_realtime=False,
            cpuset="cpuset" in have,
            pids_limit="pids" in have,
            blkio_weight="io" in have,
            blkio_weight_device="io" in have,
            blkio_read_bps="io" in have,
            blkio_write_bps="io" in have,
            blkio_read_iops="io" in have,
            blkio_write_iops="io" in have,
        )

    def knob(controller: str, name: str) -> bool:
        root = layout.mount_point(controller)
        return root is not None and os.path.exists(os.path.join(root, name))

    return CgroupSupport(
        memory_limit=layout.mount_point("memory") is not None,
        memory_reservation=knob("memory", "memory.soft_limit_in_bytes"),
        swap_limit=knob("memory", "memory.memsw.limit_in_bytes"),
        memory_swappiness=knob("memory", "memory.swappiness"),
        kernel_memory_tcp=knob("memory", "memory.kmem.tcp.limit_in_bytes"),
        oom_kill_disable=knob("memory", "memory.oom_control"),
        cpu_shares=knob("cpu", "cpu.shares"),
        cpu_cfs=knob("cpu", "cpu.cfs_quota_us") or knob("cpu", "cpu.cfs_period_us"),
        cpu_realtime=knob("cpu", "cpu.rt_period_us"),
        cpuset=layout.mount_point("cpuset") is not None,
        pids_limit=layout.mount_point("pids") is not None,
        blkio_weight=knob("blkio", "blkio.weight"),
        blkio_weight_device=knob("blkio", "blkio.weight_device"),
        blkio_read_bps=knob("blkio", "blkio.throttle.read_bps_device"),
        blkio_write_bps=knob("blkio", "blkio.throttle.write_bps_device"),
        blkio_read_iops=knob("blkio", "blkio.throttle.read_iops_device"),
        blkio_write_iops=knob("blkio", "blkio.throttle.write_iops_device"),
    )


def _v2_swap(layout: cgroupfs.Layout, parent: str) -> bool:
    """The root itself has no memory.swap.max: look at our parent, at our own cgroup, at any child of the root."""
    root = layout.unified or ""
    own = next((line[3:] for line in _text("/proc/self/cgroup").splitlines() if line.startswith("0::")), "/")
    directories = [root + parent, root + own.rstrip("/")]
    try:
        with os.scandir(root) as entries:
            directories += [entry.path for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError:
        pass
    return any(os.path.exists(f"{directory}/memory.swap.max") for directory in directories)


def _cpuset(layout: cgroupfs.Layout, which: str) -> str:
    root = layout.mount_point("cpuset")
    for name in (f"cpuset.{which}.effective", f"cpuset.effective_{which}", f"cpuset.{which}"):
        if root is not None and (text := _text(f"{root}/{name}").strip()):
            return text
    return ""


def _capabilities() -> int:
    bounding = 0
    for line in _text("/proc/self/status").splitlines():
        name, _, value = line.partition(":")
        if name == "CapBnd":
            bounding = int(value.strip(), 16)
    _, permitted, _ = syscalls.capget()
    return bounding & permitted


def _default_profile() -> str | None:
    loaded = _text("/sys/kernel/security/apparmor/profiles")
    return "docker-default" if re.search(r"^docker-default \(", loaded, re.MULTILINE) else None


def _thermal_throttles() -> list[str]:
    cpus = "/sys/devices/system/cpu"
    numbers = range(os.cpu_count() or 0)
    paths = (f"{cpus}/cpu{number}/thermal_throttle" for number in numbers)
    return [path for path in paths if os.path.exists(path)]


def _text(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""

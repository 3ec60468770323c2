"""What a container uses, read from its cgroups, for the API's stats reply. Network counters come from elsewhere."""

import os
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from compatd.linux import cgroupfs
from compatd.runtime.cgroups import ContainerCgroup
from compatd.runtime.host import Host

# What Docker shows of memory.stat (containerd/cgroups metrics, then moby daemon/stats_unix.go).
_V1_DETAILS = """
    active_anon active_file cache dirty inactive_anon inactive_file mapped_file pgfault pgmajfault pgpgin pgpgout rss
    rss_huge unevictable writeback
""".split()
_V1_HIERARCHICAL = ("hierarchical_memory_limit", "hierarchical_memsw_limit")
_V2_DETAILS = """
    anon file kernel_stack slab sock shmem file_mapped file_dirty file_writeback anon_thp inactive_anon active_anon
    inactive_file active_file unevictable slab_reclaimable slab_unreclaimable pgfault pgmajfault workingset_refault
    workingset_activate workingset_nodereclaim pgrefill pgscan pgsteal pgactivate pgdeactivate pglazyfree
    pglazyfreed thp_fault_alloc thp_collapse_alloc
""".split()

# The API's list, and the file below blkio.throttle. or blkio.bfq. (version 1), the keys of io.stat (version 2).
_BLKIO_LISTS = {
    "io_service_bytes_recursive": ("io_service_bytes", ("rbytes", "wbytes")),
    "io_serviced_recursive": ("io_serviced", ("rios", "wios")),
    "io_queue_recursive": ("io_queued", None),
    "io_service_time_recursive": ("io_service_time", None),
    "io_wait_time_recursive": ("io_wait_time", None),
    "io_merged_recursive": ("io_merged", None),
    "io_time_recursive": ("time", None),
    "sectors_recursive": ("sectors", None),
}
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True, kw_only=True)
class Cpu:
    """Times in nanoseconds. ``per_cpu_ns`` is ``None`` on version 2, which does not keep it."""

    total_ns: int
    user_ns: int
    kernel_ns: int
    per_cpu_ns: tuple[int, ...] | None
    host_ns: int  # what all processors of the machine have spent, in any state
    online_cpus: int
    periods: int
    throttled_periods: int
    throttled_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """``limit_bytes`` is the machine's memory where no lower limit is set. ``max_usage_bytes``: version 1 only."""

    usage_bytes: int
    max_usage_bytes: int | None
    limit_bytes: int
    failures: int
    details: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class BlkioEntry:
    """One device's count; ``operation`` as the version names it: ``Read`` (1), ``read`` (2)."""

    major: int
    minor: int
    operation: str
    value: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """One reading. ``blkio`` has each of the API's lists, those that the kernel does not keep empty.

    ``pids_limit`` is ``None`` for no limit.
    """

    read_ns: int  # CLOCK_REALTIME
    cpu: Cpu
    memory: Memory
    blkio: Mapping[str, tuple[BlkioEntry, ...]]
    pids: int
    pids_limit: int | None


def read(place: ContainerCgroup, host: Host) -> Stats:
    """Read the container's counters; blocks for some hundred microseconds. What is not there counts as zero, so that
    a container that has just ended gives zeros rather than an error."""
    version_2 = place.layout.version == 2
    pids = place.directory("pids")
    return Stats(
        read_ns=time.time_ns(),
        cpu=_cpu_v2(place.processes, host) if version_2 else _cpu_v1(place, host),
        memory=_memory_v2(place.processes, host) if version_2 else _memory_v1(place, host),
        blkio=_blkio_v2(place.processes) if version_2 else _blkio_v1(place),
        pids=0 if pids is None else cgroupfs.read_int(pids, "pids.current") or 0,
        pids_limit=None if pids is None else cgroupfs.read_int(pids, "pids.max"),
    )


def host_cpu_ns() -> int:
    """The machine's processor time in all states but guest, which user time contains (proc_stat(5))."""
    first = Path("/proc/stat").read_bytes().split(b"\n", 1)[0].split()
    return sum(int(field) for field in first[1:9]) * 10**9 // _TICKS


def _cpu_v1(place: ContainerCgroup, host: Host) -> Cpu:
    accounting, cpu = place.directory("cpuacct") or "", place.directory("cpu") or ""
    ticks = cgroupfs.read_pairs(accounting, "cpuacct.stat")
    throttling = cgroupfs.read_pairs(cpu, "cpu.stat")
    per_cpu = tuple(int(field) for field in _text(accounting, "cpuacct.usage_percpu").split())
    return Cpu(
        total_ns=cgroupfs.read_int(accounting, "cpuacct.usage") or 0,
        user_ns=ticks.get("user", 0) * 10**9 // _TICKS,
        kernel_ns=ticks.get("system", 0) * 10**9 // _TICKS,
        per_cpu_ns=per_cpu,
        host_ns=host_cpu_ns(),
        online_cpus=host.cpu_count,
        periods=throttling.get("nr_periods", 0),
        throttled_periods=throttling.get("nr_throttled", 0),
        throttled_ns=throttling.get("throttled_time", 0),
    )


def _cpu_v2(directory: str, host: Host) -> Cpu:
    values = cgroupfs.read_pairs(directory, "cpu.stat")
    return Cpu(
        total_ns=values.get("usage_usec", 0) * 1000,
        user_ns=values.get("user_usec", 0) * 1000,
        kernel_ns=values.get("system_usec", 0) * 1000,
        per_cpu_ns=None,
        host_ns=host_cpu_ns(),
        online_cpus=host.cpu_count,
        periods=values.get("nr_periods", 0),
        throttled_periods=values.get("nr_throttled", 0),
        throttled_ns=values.get("throttled_usec", 0) * 1000,
    )


def _memory_v1(place: ContainerCgroup, host: Host) -> Memory:
    directory = place.directory("memory") or ""
    values = cgroupfs.read_pairs(directory, "memory.stat")
    shown = [*_V1_DETAILS, *_V1_HIERARCHICAL, *(f"total_{name}" for name in _V1_DETAILS)]
    limit = cgroupfs.read_int(directory, "memory.limit_in_bytes")
    return Memory(
        usage_bytes=cgroupfs.read_int(directory, "memory.usage_in_bytes") or 0,
        max_usage_bytes=cgroupfs.read_int(directory, "memory.max_usage_in_bytes") or 0,
        limit_bytes=_limit(limit, host),
        failures=cgroupfs.read_int(directory, "memory.failcnt") or 0,
        details={name: values.get(name, 0) for name in shown} if values else {},
    )


def _memory_v2(directory: str, host: Host) -> Memory:
    values = cgroupfs.read_pairs(directory, "memory.stat")
    return Memory(
        usage_bytes=cgroupfs.read_int(directory, "memory.current") or 0,
        max_usage_bytes=None,
        limit_bytes=_limit(cgroupfs.read_int(directory, "memory.max"), host),
        failures=cgroupfs.read_pairs(directory, "memory.events").get("oom", 0),
        details={name: values.get(name, 0) for name in _V2_DETAILS} if values else {},
    )


def _limit(limit_bytes: int | None, host: Host) -> int:
    total = host.memory_total_bytes
    return total if limit_bytes is None or not 0 < limit_bytes < total else limit_bytes


def _blkio_v1(place: ContainerCgroup) -> dict[str, tuple[BlkioEntry, ...]]:
    directory = place.directory("blkio")
    if directory is None:
        return dict.fromkeys(_BLKIO_LISTS, ())
    return {name: _blkio_file(directory, file) for name, (file, _) in _BLKIO_LISTS.items()}


def _blkio_file(directory: str, name: str) -> tuple[BlkioEntry, ...]:
    """From the scheduler that counts, or else from the throttle, which counts what the schedulers do not."""
    for prefix in ("blkio.bfq.", "blkio.", "blkio.throttle."):
        entries: list[BlkioEntry] = []
        for line in _text(directory, f"{prefix}{name}_recursive").splitlines():
            match = re.fullmatch(r"([0-9]+):([0-9]+)(?: ([A-Za-z]+))? ([0-9]+)", line)
            if match is not None:
                major, minor, value = (int(field) for field in match.group(1, 2, 4))
                entries.append(BlkioEntry(major=major, minor=minor, operation=match[3] or "", value=value))
        if entries:
            return tuple(entries)
    return ()


def _blkio_v2(directory: str) -> dict[str, tuple[BlkioEntry, ...]]:
    devices: list[tuple[int, int, dict[str, int]]] = []
    for line in _text(directory, "io.stat").splitlines():
        match = re.fullmatch(r"([0-9]+):([0-9]+)((?: [a-z_.]+=[0-9.]+)*)", line)
        if match is not None:
            pairs = (pair.split("=") for pair in match[3].split())
            counts = {key: int(value) for key, value in pairs if value.isdigit()}
            devices.append((int(match[1]), int(match[2]), counts))
    return {name: _io_entries(devices, keys or ()) for name, (_, keys) in _BLKIO_LISTS.items()}


def _io_entries(devices: Sequence[tuple[int, int, Mapping[str, int]]], keys: Sequence[str]) -> tuple[BlkioEntry, ...]:
    return tuple(
        BlkioEntry(major=major, minor=minor, operation=operation, value=counts[key])
        for major, minor, counts in devices
        for operation, key in zip(("read", "write"), keys, strict=False)
        if key in counts
    )


def _text(directory: str, name: str) -> str:
    try:
        return cgroupfs.read(directory, name)
    except OSError:
        return ""

"""A container's control groups: where they are, which limits are valid, what is written, and changing them live.

Every container has one cgroup of the same path in each mounted hierarchy: ``<parent>/<id>``. The shim makes it
from a plan (``plan``), and its place follows from id and parent alone, so a new engine finds it again.
All functions but ``plan``, ``locate`` and ``check`` block.
"""

import contextlib
import errno
import math
import os
import posixpath
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from compatd.errors import Conflict, InvalidParameter, SystemFailure
from compatd.linux import cgroupfs
from compatd.runtime import devices as device_rules
from compatd.runtime.host import Host
from compatd.runtime.oci import init_failed
from compatd.shim import spec as shim

MIN_MEMORY_BYTES = 6 << 20  # moby daemon/daemon_unix.go, linuxMinMemory
_CFS_PERIOD_US = 100_000
_MAX_CPUSET = 8192  # moby pkg/parsers, ParseUintListMaximum as sysinfo calls it
_UNLIMITED = -1
_V2_CONTROLLERS = frozenset({"cpu", "cpuset", "io", "memory", "pids"})  # each enabled one costs every cgroup something
_FREEZE_TIMEOUT_S = 10.0
_KILL_TIMEOUT_S = 10.0
_REMOVE_TIMEOUT_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BlkioLimit:
    """A limit (bytes or operations a second) or a weight for one block device of the host."""

    kind: Literal["weight", "read_bps", "write_bps", "read_iops", "write_iops"]
    path: str
    device: tuple[int, int]
    value: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """A container's limits, in the API's terms: zero, empty or ``None`` is *not set*, -1 *no limit*.

    ``memory_swap_bytes`` counts memory and swap together.
    """

    memory_bytes: int = 0
    memory_reservation_bytes: int = 0
    memory_swap_bytes: int = 0
    memory_swappiness: int | None = None
    oom_kill_disable: bool | None = None
    nano_cpus: int = 0
    cpu_shares: int = 0
    cpu_period_us: int = 0
    cpu_quota_us: int = 0
    cpu_realtime_period_us: int = 0
    cpu_realtime_runtime_us: int = 0
    cpuset_cpus: str = ""
    cpuset_mems: str = ""
    pids_limit: int | None = None
    blkio_weight: int = 0
    blkio_limits: tuple[BlkioLimit, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerCgroup:
    """The place of one container. ``path`` begins with a slash and holds no ``..``."""

    layout: cgroupfs.Layout
    path: str

    @property
    def directories(self) -> tuple[str, ...]:
        """One host directory in each hierarchy, the unified one last."""
        return tuple(root + self.path for root in self.layout.mount_points)

    def directory(self, controller: str) -> str | None:
        root = self.layout.mount_point(controller)
        return None if root is None else root + self.path

    @property
    def has_parent(self) -> bool:
        """Whether the directories can be made: on a machine with other owners the parent may be gone, in any."""
        return all(os.path.isdir(os.path.dirname(directory)) for directory in self.directories)

    @property
    def processes(self) -> str:
        """The directory to ask for the processes, to kill in: any holds them all; the unified one can do it best."""
        return self.directories[-1]


def locate(host: Host, container_id: str, parent: str = "") -> ContainerCgroup:
    """Where the container's cgroup is or will be. A relative ``parent`` counts from the root; ``..`` ends there."""
    return ContainerCgroup(layout=host.cgroup, path=f"{_parent_path(host, parent)}/{container_id}")


def prepare(host: Host, parent: str = "") -> None:
    """Make the parent of containers and let it pass on its controllers. At start, and before a launch under
    another parent than the default one or where it has gone; harmless to repeat.

    Version 1: the cpuset is handed down (an empty one admits no process), and down to every later child.
    Version 2: controllers are enabled from the root to the parent. Where the root is not the machine's (the engine
    runs in a container), processes must not be in it for that: they move to ``/init``, as Docker-in-Docker does.
    ``SystemFailure``: the file systems are not writable.
    """
    parts = [part for part in _parent_path(host, parent).split("/") if part]
    try:
        for root in host.cgroup.mount_points:
            directory = root
            for part in parts:
                _pass_on(host.cgroup, directory)
                directory += f"/{part}"
                with contextlib.suppress(FileExistsError):
                    os.mkdir(directory, 0o755)
                if root == host.cgroup.mount_point("cpuset") and host.cgroup.version == 1:
                    _inherit_cpuset(directory)
            _pass_on(host.cgroup, directory)
    except OSError as error:
        raise SystemFailure(f"cannot prepare cgroup {'/' + '/'.join(parts)}: {error}") from error


def check(given: Resources, host: Host, *, update: bool = False) -> tuple[Resources, list[str]]:
    """What will be set, and Docker's warnings about the rest. ``InvalidParameter`` with Docker's text.

    moby daemon/daemon_unix.go, verifyPlatformContainerResources, in its order; a limit on memory alone also limits
    memory and swap to twice as much (adaptContainerSettings).
    """
    have, result, warnings = host.cgroup_support, given, list[str]()

    def discard(text: str, **changes: object) -> None:
        nonlocal result
        warnings.append(text)
        result = replace(result, **changes)  # type: ignore[arg-type]  # fields of Resources, below

    if result.memory_swappiness == -1:
        result = replace(result, memory_swappiness=None)
    if result.memory_bytes != 0 and result.memory_bytes < MIN_MEMORY_BYTES:
        raise InvalidParameter("Minimum memory limit allowed is 6MB")
    if result.memory_bytes > 0 and not have.memory_limit:
        discard(
            "Your kernel does not support memory limit capabilities or the cgroup is not mounted. "
            "Limitation discarded.",
            memory_bytes=0,
            memory_swap_bytes=_UNLIMITED,
        )
    if result.memory_bytes > 0 and result.memory_swap_bytes != _UNLIMITED and not have.swap_limit:
        discard(
            "Your kernel does not support swap limit capabilities or the cgroup is not mounted. "
            "Memory limited without swap.",
            memory_swap_bytes=_UNLIMITED,
        )
    if result.memory_bytes > 0 and 0 < result.memory_swap_bytes < result.memory_bytes:
        raise InvalidParameter("Minimum memoryswap limit should be larger than memory limit, see usage")
    if result.memory_bytes == 0 and result.memory_swap_bytes > 0 and not update:
        raise InvalidParameter("You should always set the Memory limit when using Memoryswap limit, see usage")
    if result.memory_swappiness is not None and not have.memory_swappiness:
        discard(
            "Your kernel does not support memory swappiness capabilities or the cgroup is not mounted. "
            "Memory swappiness discarded.",
            memory_swappiness=None,
        )
    if result.memory_swappiness is not None and not 0 <= result.memory_swappiness <= 100:
        raise InvalidParameter(f"Invalid value: {result.memory_swappiness}, valid memory swappiness range is 0-100")
    if result.memory_reservation_bytes > 0 and not have.memory_reservation:
        discard(
            "Your kernel does not support memory soft limit capabilities or the cgroup is not mounted. "
            "Limitation discarded.",
            memory_reservation_bytes=0,
        )
    if 0 < result.memory_reservation_bytes < MIN_MEMORY_BYTES:
        raise InvalidParameter("Minimum memory reservation allowed is 6MB")
    if 0 < result.memory_bytes < result.memory_reservation_bytes:
        raise InvalidParameter("Minimum memory limit can not be less than memory reservation limit, see usage")
    if result.oom_kill_disable is not None and not have.oom_kill_disable:
        if result.oom_kill_disable:
            warnings.append("Your kernel does not support OomKillDisable. OomKillDisable discarded.")
        result = replace(result, oom_kill_disable=None)
    if result.oom_kill_disable and result.memory_bytes == 0:
        warnings.append(
            "OOM killer is disabled for the container, but no memory limit is set, "
            "this can result in the system running out of resources."
        )
    if result.pids_limit is not None and not have.pids_limit:
        if result.pids_limit > 0:
            warnings.append(
                "Your kernel does not support PIDs limit capabilities or the cgroup is not mounted. "
                "PIDs limit discarded."
            )
        result = replace(result, pids_limit=None)

    if result.nano_cpus > 0 and result.cpu_period_us > 0:
        raise InvalidParameter("Conflicting options: Nano CPUs and CPU Period cannot both be set")
    if result.nano_cpus > 0 and result.cpu_quota_us > 0:
        raise InvalidParameter("Conflicting options: Nano CPUs and CPU Quota cannot both be set")
    if result.nano_cpus > 0 and not have.cpu_cfs:
        raise InvalidParameter(
            "NanoCPUs can not be set, as your kernel does not support CPU CFS scheduler or the cgroup is not mounted"
        )
    if not 0 <= result.nano_cpus <= host.cpu_count * 10**9:
        raise InvalidParameter(
            f"range of CPUs is from 0.01 to {host.cpu_count}.00, as there are only {host.cpu_count} CPUs available"
        )
    if result.cpu_shares > 0 and not have.cpu_shares:
        discard("Your kernel does not support CPU shares or the cgroup is not mounted. Shares discarded.", cpu_shares=0)
    if (result.cpu_period_us or result.cpu_quota_us) and not have.cpu_cfs:
        discard(
            "Your kernel does not support CPU CFS scheduler. CPU period/quota discarded.",
            cpu_period_us=0,
            cpu_quota_us=0,
        )
    if result.cpu_period_us != 0 and not 1000 <= result.cpu_period_us <= 1_000_000:
        raise InvalidParameter("CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)")
    if 0 < result.cpu_quota_us < 1000:
        raise InvalidParameter("CPU cfs quota can not be less than 1ms (i.e. 1000)")

    if (result.cpuset_cpus or result.cpuset_mems) and not have.cpuset:
        discard(
            "Your kernel does not support cpuset or the cgroup is not mounted. Cpuset discarded.",
            cpuset_cpus="",
            cpuset_mems="",
        )
    _check_cpuset("cpus", "CPUs", result.cpuset_cpus, host.cpuset_cpus, host.cpuset_cpus)
    # On version 1, moby 28 compares memory nodes with the CPUs; what the kernel lacks is found out at the start.
    nodes = host.cpuset_cpus if host.cgroup.version == 1 else host.cpuset_mems
    _check_cpuset("mems", "memory nodes", result.cpuset_mems, host.cpuset_mems, nodes)

    if result.blkio_weight > 0 and not have.blkio_weight:
        discard(
            "Your kernel does not support Block I/O weight or the cgroup is not mounted. Weight discarded.",
            blkio_weight=0,
        )
    if result.blkio_weight > 0 and not 10 <= result.blkio_weight <= 1000:
        raise InvalidParameter("Range of blkio weight is from 10 to 1000")
    for kind, supported, text in (
        ("weight", have.blkio_weight_device, "Block I/O weight_device|Weight-device"),
        ("read_bps", have.blkio_read_bps, "BPS Block I/O read limit|Block I/O BPS read limit"),
        ("write_bps", have.blkio_write_bps, "BPS Block I/O write limit|Block I/O BPS write limit"),
        ("read_iops", have.blkio_read_iops, "IOPS Block read limit|Block I/O IOPS read limit"),
        ("write_iops", have.blkio_write_iops, "IOPS Block write limit|Block I/O IOPS write limit"),
    ):
        if not supported and any(limit.kind == kind for limit in result.blkio_limits):
            what, _, lost = text.partition("|")
            discard(
                f"Your kernel does not support {what} or the cgroup is not mounted. {lost} discarded.",
                blkio_limits=tuple(limit for limit in result.blkio_limits if limit.kind != kind),
            )
    if not update and result.memory_bytes > 0 and result.memory_swap_bytes == 0:
        result = replace(result, memory_swap_bytes=result.memory_bytes * 2)
    return result, warnings


def check_update(current: Resources, changes: Resources) -> None:
    """Changes that contradict what the container has. ``Conflict`` with Docker's text, which the caller puts behind
    ``Cannot update container <id>: ``.

    moby daemon/container/container_unix.go, UpdateContainer.
    """
    if changes.cpu_period_us > 0 and current.nano_cpus > 0:
        raise Conflict("Conflicting options: CPU Period cannot be updated as NanoCPUs has already been set")
    if changes.cpu_quota_us > 0 and current.nano_cpus > 0:
        raise Conflict("Conflicting options: CPU Quota cannot be updated as NanoCPUs has already been set")
    if changes.nano_cpus > 0 and current.cpu_quota_us > 0:
        raise Conflict("Conflicting options: Nano CPUs cannot be updated as CPU Quota has already been set")
    if changes.nano_cpus > 0 and current.cpu_period_us > 0:
        raise Conflict("Conflicting options: Nano CPUs cannot be updated as CPU Period has already been set")
    if changes.memory_bytes > current.memory_swap_bytes and changes.memory_bytes and not changes.memory_swap_bytes:
        # Also where no swap limit is set, or an unlimited one: so does Docker.
        raise Conflict(
            "Memory limit should be smaller than already set memoryswap limit, update the memoryswap at the same time"
        )


def merge(current: Resources, changes: Resources) -> Resources:
    """``current`` with every limit that ``changes`` sets. A pids limit of zero or less takes the limit away: 0 then."""
    changed = {
        name: value for name in Resources.__slots__ if (value := getattr(changes, name)) not in (0, "", None, ())
    }
    if changes.pids_limit is not None and changes.pids_limit <= 0:
        changed["pids_limit"] = 0
    return replace(current, **changed)


def check_shares(place: ContainerCgroup, resources: Resources) -> None:
    """``SystemFailure`` in runc's words: version 1 takes any number of shares, and holds it within bounds."""
    if place.layout.version == 1 and resources.cpu_shares and not 2 <= resources.cpu_shares <= 262144:
        bound = (
            "minimum allowed cpu-shares is 2" if resources.cpu_shares < 2 else "maximum allowed cpu-shares is 262144"
        )
        raise init_failed(f"error setting cgroup config for procHooks process: the {bound}")


def inherit_cpuset(place: ContainerCgroup, resources: Resources, host: Host) -> Resources:
    """With the machine's CPUs, where the parent is the root of version 1: that one hands none down."""
    if place.layout.version == 2 or place.path.count("/") > 1:
        return resources
    return replace(
        resources,
        cpuset_cpus=resources.cpuset_cpus or host.cpuset_cpus,
        cpuset_mems=resources.cpuset_mems or host.cpuset_mems,
    )


def plan(place: ContainerCgroup, resources: Resources, rules: Sequence[device_rules.Rule]) -> shim.Cgroup:
    """What the shim does to make the cgroup: directories, limits, device rules, joins."""
    layout = place.layout
    writes = [(f"{directory}/{name}", value) for directory, name, value in _limits(place, resources)]
    result = shim.Cgroup(
        directories=list(place.directories),
        writes=writes,
        joins=[f"{directory}/cgroup.procs" for directory in place.directories],
    )
    if rules == device_rules.ALLOW_ALL:
        return result
    if layout.version == 2:
        result["device_program"] = device_rules.encode_program(tuple(rules))
        result["device_cgroup"] = place.processes
    elif (directory := place.directory("devices")) is not None:
        writes.append((f"{directory}/devices.deny", "a"))
        writes += [(f"{directory}/devices.allow", str(rule)) for rule in rules]
    return result


def update(place: ContainerCgroup, current: Resources, changes: Resources) -> None:
    """Bring a running container's limits to what ``changes`` sets over ``current``.

    ``SystemFailure``: the kernel refused one; those before it hold.
    """
    wanted = merge(current, changes)
    writes = _limits(place, wanted)
    if changes.pids_limit is not None and not wanted.pids_limit and (directory := place.directory("pids")):
        writes.append((directory, "pids.max", "max"))
    failed: list[tuple[str, str, str]] = []
    for directory, name, value in writes:
        try:
            cgroupfs.write(directory, name, value)
        except OSError as error:
            # Memory may never exceed memory and swap together, whichever way the two move: once more at the end.
            if name not in ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes"):
                raise _refused(directory, name, value, error) from error
            failed.append((directory, name, value))
    for directory, name, value in failed:
        try:
            cgroupfs.write(directory, name, value)
        except OSError as error:
            raise _refused(directory, name, value, error) from error
    if changes.cpu_shares and (directory := place.directory("cpu")) is not None:
        _check_shares(directory, changes.cpu_shares)


def _check_shares(directory: str, wanted: int) -> None:
    """The kernel takes any number of shares and keeps what it has room for; runc's words for that."""
    kept = cgroupfs.read_int(directory, "cpu.shares")
    if kept is not None and wanted != kept:
        bound = "maximum" if wanted > kept else "minimum"
        raise SystemFailure(f"the {bound} allowed cpu-shares is {kept}")


def pids(place: ContainerCgroup) -> list[int]:
    """The container's processes, execs included, as pids of this process's namespace."""
    return cgroupfs.pids(place.processes)


def freeze(place: ContainerCgroup) -> None:
    """Stop every process of the container. ``SystemFailure``: they did not stop, and go on."""
    _freeze(place, frozen=True)


def thaw(place: ContainerCgroup) -> None:
    """Let the container's processes go on."""
    _freeze(place, frozen=False)


def kill_all(place: ContainerCgroup) -> bool:
    """SIGKILL for every process of the container, thawed if need be, or it would never die. Whether all are gone."""
    with contextlib.suppress(OSError, TimeoutError):
        if (directory := _freezer(place)) is not None:
            cgroupfs.freeze(directory, frozen=False, timeout_s=_KILL_TIMEOUT_S)
    return cgroupfs.kill(place.processes, timeout_s=_KILL_TIMEOUT_S)


def remove(place: ContainerCgroup) -> None:
    """Remove the container's cgroups everywhere; those already gone count as removed.

    ``SystemFailure``: one is busy still; the others are removed.
    """
    failure: OSError | None = None
    deadline = time.monotonic() + _REMOVE_TIMEOUT_S
    for directory in place.directories:
        try:
            cgroupfs.remove(directory, timeout_s=deadline - time.monotonic())
        except OSError as error:
            failure = error
    if failure is not None:
        raise SystemFailure(f"cannot remove cgroup {failure.filename}: {failure.strerror}") from failure


def clear(place: ContainerCgroup) -> None:
    """Before a run: what an earlier one has left in the container's cgroups is ended, and they are removed.

    Whoever joined one that is frozen still (its shim was killed while it was paused) would stop there for ever.
    """
    if any(os.path.isdir(directory) for directory in place.directories):
        kill_all(place)
        with contextlib.suppress(SystemFailure):
            remove(place)


def containers(host: Host) -> set[str]:
    """The ids of containers that have a cgroup below the default parent, in any hierarchy."""
    found: set[str] = set()
    for root in host.cgroup.mount_points:
        with contextlib.suppress(OSError), os.scandir(root + _parent_path(host, "")) as entries:
            found |= {entry.name for entry in entries if re.fullmatch(r"[0-9a-f]{64}", entry.name)}
    return found


def oom_kills(place: ContainerCgroup) -> int:
    """How many of the container's processes the kernel has killed for want of memory."""
    directory = place.directory("memory")
    return 0 if directory is None else cgroupfs.oom_kills(directory)


def cpu_weight(shares: int) -> int:
    """Version 1 shares (2 to 262144, 1024 usual) as version 2 weight (1 to 10000, 100 usual).

    opencontainers/cgroups, ConvertCPUSharesToCgroupV2Value: a curve through (2, 1), (1024, 100), (262144, 10000).
    """
    if shares == 0:
        return 0
    if shares <= 2:
        return 1
    if shares >= 262144:
        return 10000
    logarithm = math.log2(shares)
    return math.ceil(10 ** ((logarithm * logarithm + 125 * logarithm) / 612.0 - 7.0 / 34.0))


def _limits(place: ContainerCgroup, resources: Resources) -> list[tuple[str, str, str]]:
    """(directory, file, value) for each limit that is set, in an order that suits a new cgroup."""
    return _limits_v2(place, resources) if place.layout.version == 2 else _limits_v1(place, resources)


def _limits_v1(place: ContainerCgroup, r: Resources) -> list[tuple[str, str, str]]:
    found: list[tuple[str, str, str]] = []

    def put(controller: str, name: str, value: object) -> None:
        if (directory := place.directory(controller)) is not None:
            found.append((directory, name, str(value)))

    if r.memory_bytes:
        put("memory", "memory.limit_in_bytes", r.memory_bytes)
    if r.memory_swap_bytes and (r.memory_swap_bytes > 0 or r.memory_bytes):
        put("memory", "memory.memsw.limit_in_bytes", max(_UNLIMITED, r.memory_swap_bytes))
    if r.memory_reservation_bytes:
        put("memory", "memory.soft_limit_in_bytes", r.memory_reservation_bytes)
    if r.memory_swappiness is not None:
        put("memory", "memory.swappiness", r.memory_swappiness)
    if r.oom_kill_disable:
        put("memory", "memory.oom_control", 1)
    for name, value in (
        ("cpu.rt_period_us", r.cpu_realtime_period_us),
        ("cpu.rt_runtime_us", r.cpu_realtime_runtime_us),
    ):
        if value:
            put("cpu", name, value if value > 0 or name == "cpu.rt_runtime_us" else value & (1 << 64) - 1)
    if r.cpu_shares:
        put("cpu", "cpu.shares", r.cpu_shares)
    period_us, quota_us = _bandwidth(r)
    if period_us:
        put("cpu", "cpu.cfs_period_us", period_us)
    if quota_us:
        put("cpu", "cpu.cfs_quota_us", quota_us)
    if r.cpuset_cpus:
        put("cpuset", "cpuset.cpus", r.cpuset_cpus)
    if r.cpuset_mems:
        put("cpuset", "cpuset.mems", r.cpuset_mems)
    if r.pids_limit is not None and r.pids_limit > 0:
        put("pids", "pids.max", r.pids_limit)
    if r.blkio_weight:
        put("blkio", "blkio.weight", r.blkio_weight)
    for limit in r.blkio_limits:
        name = "blkio.weight_device" if limit.kind == "weight" else f"blkio.throttle.{limit.kind}_device"
        put("blkio", name, f"{limit.device[0]}:{limit.device[1]} {limit.value}")
    return found


_IO_KEYS = {"read_bps": "rbps", "write_bps": "wbps", "read_iops": "riops", "write_iops": "wiops"}


def _limits_v2(place: ContainerCgroup, r: Resources) -> list[tuple[str, str, str]]:
    found: list[tuple[str, str, str]] = []

    def put(name: str, value: object) -> None:
        found.append((place.processes, name, str(value)))

    if r.memory_bytes:
        put("memory.max", r.memory_bytes if r.memory_bytes > 0 else "max")
    if r.memory_swap_bytes and r.memory_bytes:
        # Version 2 counts swap alone.
        put("memory.swap.max", "max" if r.memory_swap_bytes < 0 else r.memory_swap_bytes - r.memory_bytes)
    if r.memory_reservation_bytes:
        put("memory.low", r.memory_reservation_bytes)
    if r.cpu_shares:
        put("cpu.weight", cpu_weight(r.cpu_shares))
    period_us, quota_us = _bandwidth(r)
    if period_us or quota_us:
        put("cpu.max", f"{quota_us if quota_us > 0 else 'max'} {period_us or _CFS_PERIOD_US}")
    if r.cpuset_cpus:
        put("cpuset.cpus", r.cpuset_cpus)
    if r.cpuset_mems:
        put("cpuset.mems", r.cpuset_mems)
    if r.pids_limit is not None and r.pids_limit > 0:
        put("pids.max", r.pids_limit)
    if r.blkio_weight:
        put("io.weight", _io_weight(r.blkio_weight))
    for limit in r.blkio_limits:
        device = f"{limit.device[0]}:{limit.device[1]}"
        if limit.kind == "weight":
            put("io.weight", f"{device} {_io_weight(limit.value)}")
        else:
            put("io.max", f"{device} {_IO_KEYS[limit.kind]}={limit.value}")
    return found


def _bandwidth(r: Resources) -> tuple[int, int]:
    if r.nano_cpus > 0:
        return _CFS_PERIOD_US, r.nano_cpus * _CFS_PERIOD_US // 10**9
    return r.cpu_period_us, r.cpu_quota_us


def _io_weight(weight: int) -> int:
    """10 to 1000 as 1 to 10000 (opencontainers/cgroups, ConvertBlkIOToIOWeightValue)."""
    return 1 + (weight - 10) * 9999 // 990


def _parent_path(host: Host, parent: str) -> str:
    path = posixpath.normpath(f"/{parent or host.cgroup_parent}").strip("/")
    return f"/{path}" if path else ""


def _pass_on(layout: cgroupfs.Layout, directory: str) -> None:
    """Version 2: let children of ``directory`` have the controllers it has."""
    if layout.version != 2:
        return
    enabled = set(cgroupfs.read(directory, "cgroup.subtree_control").split())
    for controller in sorted((cgroupfs.offered_controllers(directory) & _V2_CONTROLLERS) - enabled):
        try:
            cgroupfs.write(directory, "cgroup.subtree_control", f"+{controller}")
        except OSError as error:
            if error.errno == errno.EBUSY and directory == layout.unified:
                _vacate(directory)
                with contextlib.suppress(OSError):
                    cgroupfs.write(directory, "cgroup.subtree_control", f"+{controller}")
            # Otherwise this controller cannot be had here (cpu, with realtime processes about): its limits fail.


def _vacate(root: str) -> None:
    """Move the processes of a root that is not the machine's into a child: only leaves may hold processes."""
    target = f"{root}/init"
    with contextlib.suppress(FileExistsError):
        os.mkdir(target, 0o755)
    for pid in cgroupfs.read(root, "cgroup.procs").split():
        with contextlib.suppress(OSError):  # a kernel thread, or gone
            cgroupfs.write(target, "cgroup.procs", pid)


def _inherit_cpuset(directory: str) -> None:
    for name in ("cpuset.cpus", "cpuset.mems"):
        if not cgroupfs.read(directory, name).strip():
            cgroupfs.write(directory, name, cgroupfs.read(os.path.dirname(directory), name).strip())
    # Children then begin with a copy, without another write at each start.
    cgroupfs.write(directory, "cgroup.clone_children", "1")


def _freezer(place: ContainerCgroup) -> str | None:
    return place.processes if place.layout.version == 2 else place.directory("freezer")


def _freeze(place: ContainerCgroup, *, frozen: bool) -> None:
    directory = _freezer(place)
    if directory is None:
        raise SystemFailure("cannot pause: the freezer cgroup is not mounted")
    try:
        cgroupfs.freeze(directory, frozen=frozen, timeout_s=_FREEZE_TIMEOUT_S)
    except OSError as error:
        raise SystemFailure(f"unable to {'freeze' if frozen else 'thaw'}: {error.strerror}") from error


def _check_cpuset(name: str, what: str, wanted: str, shown: str, available: str) -> None:
    """moby pkg/sysinfo, isCpusetListAvailable."""
    try:
        numbers = _parse_list(wanted)
    except ValueError as error:
        raise InvalidParameter(f"Invalid value {wanted} for cpuset {name}: {error}") from error
    if not numbers <= _parse_list(available):
        raise InvalidParameter(f"Requested {what} are not available - requested {wanted}, available: {shown}")


def _parse_list(text: str) -> set[int]:
    """``0-3,7``, the kernel's list format. ``ValueError`` with Docker's text."""
    numbers: set[int] = set()
    for part in text.split(",") if text else ():
        match = re.fullmatch(r"([0-9]+)(?:-([0-9]+))?", part)
        if match is None:
            raise ValueError(f"invalid format: {text}")
        if any(len(field) > 9 or int(field) > _MAX_CPUSET for field in match.groups() if field):
            raise ValueError(f"value of out range, maximum is {_MAX_CPUSET}")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise ValueError(f"invalid format: {text}")
        numbers.update(range(first, last + 1))
    return numbers


def _refused(directory: str, name: str, value: str, error: OSError) -> SystemFailure:
    # runc's words, which Docker passes on.
    return SystemFailure(
        f'failed to write "{value}": write {directory}/{name}: {(error.strerror or str(error)).lower()}'
    )

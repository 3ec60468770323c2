"""The cgroup file systems: what is mounted, and the files of one cgroup directory. cgroups(7).

Everything here takes absolute host paths of cgroup directories. Policy (where containers live, what is written)
is ``runtime.cgroups``; the shim uses the plain operations.
"""

import contextlib
import errno
import os
import re
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from compatd.linux import mountinfo

_ROOT = "/sys/fs/cgroup"
_POLL_S = 0.002
_MAX_POLL_S = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Hierarchy:
    """One mounted version 1 hierarchy. ``options`` mounts it again (``cpu,cpuacct``, ``name=systemd``).

    ``name`` is the mount point's last component, which is where a container sees it.
    """

    mount_point: str
    options: str
    controllers: frozenset[str]

    @property
    def name(self) -> str:
        return os.path.basename(self.mount_point)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """What the host mounts. Version 1 with ``unified`` set is the hybrid layout (v2 without controllers beside v1).

    On version 2 ``hierarchies`` is empty and ``controllers`` are those the root offers to its children.
    """

    version: Literal[1, 2]
    hierarchies: tuple[Hierarchy, ...]
    unified: str | None
    controllers: frozenset[str]

    def mount_point(self, controller: str) -> str | None:
        """Where ``controller`` is mounted, if it is."""
        if self.version == 2:
            return self.unified if controller in self.controllers else None
        return next((h.mount_point for h in self.hierarchies if controller in h.controllers), None)

    @property
    def mount_points(self) -> tuple[str, ...]:
        """Every hierarchy's root, the unified one last."""
        unified = (self.unified,) if self.unified is not None else ()
        return (*(h.mount_point for h in self.hierarchies), *unified)


def detect(
    mounts: Iterable[mountinfo.Mount], known: frozenset[str], offered: Callable[[str], frozenset[str]]
) -> Layout:
    """The layout among ``mounts``. ``known``: the kernel's controllers; ``offered``: those of a cgroup2 root.

    The mounts below /sys/fs/cgroup win over copies elsewhere. No cgroup mount at all: a version 1 layout
    without controllers.
    """
    first_v1: dict[str, Hierarchy] = {}
    unified: str | None = None
    ordered = sorted(mounts, key=lambda m: not (m.mount_point == _ROOT or m.mount_point.startswith(_ROOT + "/")))
    for mount in ordered:
        if mount.fstype == "cgroup2":
            unified = unified or mount.mount_point
        elif mount.fstype == "cgroup":
            controllers = [option for option in mount.super_options if option in known]
            names = [option for option in mount.super_options if option.startswith("name=")]
            options = ",".join(controllers or names)
            if options and options not in first_v1:
                first_v1[options] = Hierarchy(
                    mount_point=mount.mount_point, options=options, controllers=frozenset(controllers)
                )
    if any(h.controllers for h in first_v1.values()) or unified is None:
        hierarchies = tuple(first_v1.values())
        available = frozenset[str]().union(*(h.controllers for h in hierarchies))
        return Layout(version=1, hierarchies=hierarchies, unified=unified, controllers=available)
    return Layout(version=2, hierarchies=(), unified=unified, controllers=offered(unified))


def known_controllers() -> frozenset[str]:
    """The enabled version 1 controllers, /proc/cgroups. Empty where the kernel has no such file."""
    with contextlib.suppress(OSError):
        rows = [line.split() for line in Path("/proc/cgroups").read_text().splitlines() if line[:1] != "#"]
        return frozenset(row[0] for row in rows if len(row) == 4 and row[3] == "1")
    return frozenset()


def offered_controllers(directory: str) -> frozenset[str]:
    """What a version 2 cgroup can hand to its children."""
    with contextlib.suppress(OSError):
        return frozenset(read(directory, "cgroup.controllers").split())
    return frozenset()


def read(directory: str, name: str) -> str:
    """A file's text. ``OSError`` as the kernel says: ENOENT when the knob or the cgroup is not there."""
    return Path(directory, name).read_bytes().decode()


def read_int(directory: str, name: str) -> int | None:
    """A number, ``None`` for ``max`` or when the file is not there."""
    try:
        text = read(directory, name).strip()
    except OSError:
        return None
    return int(text) if re.fullmatch(r"-?[0-9]+", text) else None


def read_pairs(directory: str, name: str) -> dict[str, int]:
    """A flat keyed file (``memory.stat``, ``cgroup.events``); empty when it is not there."""
    try:
        text = read(directory, name)
    except OSError:
        return {}
    rows = (line.split() for line in text.splitlines())
    return {row[0]: int(row[1]) for row in rows if len(row) == 2 and row[1].isascii() and row[1].isdigit()}


def write(directory: str, name: str, value: str) -> None:
    """Write a knob in one call, as the kernel wants it. ``OSError`` as the kernel says."""
    fd = os.open(os.path.join(directory, name), os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, value.encode())
    finally:
        os.close(fd)


def pids(directory: str) -> list[int]:
    """Every process in the cgroup and below it, as pids of the caller's namespace. Empty when it has gone."""
    found: list[int] = []
    for below in _walk(directory):
        with contextlib.suppress(OSError):
            found.extend(int(line) for line in read(below, "cgroup.procs").split())
    return found


def oom_kills(directory: str) -> int:
    """How many processes the kernel killed here for lack of memory: memory.events (v2), memory.oom_control (v1)."""
    events = read_pairs(directory, "memory.events") or read_pairs(directory, "memory.oom_control")
    return events.get("oom_kill", 0)


def kill(directory: str, *, timeout_s: float) -> bool:
    """SIGKILL everything in the cgroup and below it. Whether it is empty now.

    With cgroup.kill (version 2, kernel 5.14) the kernel does it at once. Otherwise rounds of signals, until no
    process is left, so that what forks meanwhile is met again.
    """
    deadline = time.monotonic() + timeout_s
    try:
        write(directory, "cgroup.kill", "1")
    except FileNotFoundError:
        if not os.path.isdir(directory):
            return True
    except OSError:
        pass
    else:
        return _wait(lambda: not pids(directory), deadline)

    def signal_all() -> bool:
        remaining = pids(directory)
        for pid in remaining:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return not remaining

    return _wait(signal_all, deadline)


def freeze(directory: str, frozen: bool, *, timeout_s: float) -> None:
    """Stop or continue every process, and wait until it is so: freezer.state (v1) or cgroup.freeze (v2).

    ``TimeoutError``: the processes did not stop in time; they are thawed again. ``OSError`` as the kernel says.
    """
    deadline = time.monotonic() + timeout_s
    if os.path.exists(os.path.join(directory, "freezer.state")):
        wanted = "FROZEN" if frozen else "THAWED"

        def settled_v1() -> bool:
            # What forks while it freezes stays FREEZING until asked again (cgroup-v1/freezer-subsystem).
            write(directory, "freezer.state", wanted)
            return read(directory, "freezer.state").strip() == wanted

        done = _wait(settled_v1, deadline)
        if not done and frozen:
            write(directory, "freezer.state", "THAWED")
    else:
        value = int(frozen)
        write(directory, "cgroup.freeze", str(value))
        done = _wait(lambda: read_pairs(directory, "cgroup.events").get("frozen") == value, deadline)
        if not done and frozen:
            write(directory, "cgroup.freeze", "0")
    if not done:
        raise TimeoutError(errno.ETIMEDOUT, os.strerror(errno.ETIMEDOUT), directory)


def remove(directory: str, *, timeout_s: float) -> None:
    """Remove the cgroup and those below it; gone already is success.

    A dying process keeps its cgroup busy for a moment: EBUSY is retried until ``timeout_s``, then raised.
    """
    deadline = time.monotonic() + timeout_s
    for below in reversed(list(_walk(directory))):
        _remove_one(below, deadline)


def _remove_one(directory: str, deadline: float) -> None:
    failure: OSError | None = None

    def removed() -> bool:
        nonlocal failure
        try:
            os.rmdir(directory)
        except FileNotFoundError:
            return True
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            failure = error
            return False
        return True

    if not _wait(removed, deadline) and failure is not None:
        raise failure


def _walk(directory: str) -> Iterator[str]:
    """The cgroup and all below it, parents first. What vanishes meanwhile is passed over."""
    pending = [directory]
    while pending:
        current = pending.pop()
        yield current
        with contextlib.suppress(OSError), os.scandir(current) as entries:
            pending.extend(entry.path for entry in entries if entry.is_dir(follow_symlinks=False))


def _wait(condition: Callable[[], bool], deadline: float) -> bool:
    """Poll the kernel, which has no event for these states, with growing pauses."""
    pause_s = _POLL_S
    while not condition():
        if time.monotonic() >= deadline:
            return False
        time.sleep(pause_s)
        pause_s = min(pause_s * 2, _MAX_POLL_S)
    return True

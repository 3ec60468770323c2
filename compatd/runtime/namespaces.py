"""Namespaces and mounts of a running container, opened for another one.

A process id in a record may be out of date: the process may have ended, and another one of the machine have its
number. So the process is pinned by a descriptor of its /proc directory first, and has to be in the container's cgroup
then; what is opened through the descriptor is that process's, or nothing.
"""

import os
from collections.abc import Callable
from typing import Literal, TypeVar

from compatd.errors import Conflict, SystemFailure
from compatd.linux import assembly

T = TypeVar("T")
_MAX_CGROUP_BYTES = 1 << 16


def open_namespace(pid: int, container_id: str, kind: Literal["ipc", "net", "pid"]) -> int:
    """The namespace of a container's first process. The caller owns the descriptor.

    ``Conflict``: the process has ended.
    """
    return _pinned(
        pid,
        container_id,
        lambda process: os.open(f"ns/{kind}", os.O_RDONLY | os.O_CLOEXEC, dir_fd=process),
    )


def clone_mount(pid: int, container_id: str, path: str) -> int:
    """A detached copy of what is mounted at ``path`` in a container, with what is mounted below. The caller owns it.

    ``Conflict``: the process has ended, or nothing is mounted there any more.
    """
    return _pinned(pid, container_id, lambda process: assembly.clone_within(process, path))


def _pinned(pid: int, container_id: str, work: Callable[[int], T]) -> T:
    try:
        process = os.open(f"/proc/{pid}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            if container_id not in _cgroups(process):
                raise Conflict(f"container {container_id} is not running")
            return work(process)
        finally:
            os.close(process)
    except (FileNotFoundError, ProcessLookupError) as error:
        raise Conflict(f"container {container_id} is not running") from error
    except OSError as error:
        raise SystemFailure(f"container {container_id}: {error.strerror}") from error


def _cgroups(process: int) -> str:
    fd = os.open("cgroup", os.O_RDONLY | os.O_CLOEXEC, dir_fd=process)
    with open(fd, "rb") as file:
        return file.read(_MAX_CGROUP_BYTES).decode(errors="replace")

"""Hearing of it when the kernel kills for want of memory in a container's cgroup, while the container goes on."""

import asyncio
import contextlib
import os
from collections.abc import Generator

from compatd.linux import cgroupfs
from compatd.linux.inotify import Watches
from compatd.runtime.cgroups import ContainerCgroup


def subscribe(place: ContainerCgroup) -> int:
    """Version 1: an eventfd that the kernel writes to, at its removal too (cgroup-v1/memory.rst, section 10).

    The caller owns it. ``OSError``: there is no such cgroup, or no memory controller. Blocks.
    """
    directory = place.directory("memory")
    if directory is None:
        raise FileNotFoundError("no memory controller")
    event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
    try:
        control = os.open(f"{directory}/memory.oom_control", os.O_RDONLY | os.O_CLOEXEC)
        try:
            cgroupfs.write(directory, "cgroup.event_control", f"{event} {control}")
        finally:
            os.close(control)
    except BaseException:
        os.close(event)
        raise
    return event


@contextlib.contextmanager
def listen(event: int, wake: asyncio.Event) -> Generator[None, None, None]:
    """Set ``wake`` whenever the kernel writes to ``event``, while the context lasts; it is closed then."""
    loop = asyncio.get_running_loop()

    def read() -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(event)
            wake.set()

    loop.add_reader(event, read)
    try:
        yield
    finally:
        loop.remove_reader(event)
        os.close(event)


def watch(place: ContainerCgroup, watches: Watches, wake: asyncio.Event) -> contextlib.AbstractContextManager[None]:
    """Version 2: set ``wake`` at every change of the cgroup's files; most are no news (cgroup-v2.rst, memory.events).
    ``OSError``: there is no such cgroup."""
    return watches.watch(place.processes, wake)

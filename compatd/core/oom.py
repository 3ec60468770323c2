"""Tells of containers in which the kernel has killed for want of memory, as soon as it has: ``State.OOMKilled`` and the
``oom`` event. What happens while no engine is there is found out at adoption, or from the shim at the end."""

import asyncio
import contextlib
import logging

import msgspec

from compatd import tasks
from compatd.core.container import Container
from compatd.core.preparation import Preparation
from compatd.core.supervisor import Supervisor
from compatd.linux.inotify import Watches
from compatd.runtime import cgroups, oom
from compatd.tasks import Workers

log = logging.getLogger(__name__)

PAUSE_S = 0.02  # files of a cgroup can change all the time


class OomKills:
    """One listener for each container that runs; it ends with the run."""

    def __init__(self, *, supervisor: Supervisor, preparation: Preparation, workers: Workers, watches: Watches) -> None:
        self._supervisor = supervisor
        self._preparation = preparation
        self._workers = workers
        self._watches = watches
        self._listening: set[str] = set()
        supervisor.on_changed.append(self._update)

    def _update(self, container: Container) -> None:
        if container.alive and container.id not in self._listening:
            self._listening.add(container.id)
            tasks.detach(self._listen(container), name=f"memory of {container.id[:12]}")

    async def _listen(self, container: Container) -> None:
        ended, place = container.ended, self._preparation.cgroup(container.record)
        wake = asyncio.Event()
        ended.add_done_callback(lambda _: wake.set())
        try:
            with contextlib.suppress(OSError):  # it has ended already, or nobody counts memory here
                if place.layout.version == 2:
                    source = oom.watch(place, self._watches, wake)
                else:
                    source = oom.listen(await self._workers.run(oom.subscribe, place), wake)
                with source:
                    seen = 0 if not container.record.oom_killed else await self._count(place)
                    while not ended.done():
                        wake.clear()  # before looking: what happens meanwhile, the end too, is not to be slept over
                        count = await self._count(place)
                        if count > seen:
                            await self._tell(container, ended)
                        seen = count
                        await wake.wait()
                        await asyncio.sleep(PAUSE_S)  # version 1 tells before it kills and counts
        finally:
            self._listening.discard(container.id)
            if container.alive and container.ended is not ended:
                self._update(container)  # it has been started again meanwhile

    async def _count(self, place: cgroups.ContainerCgroup) -> int:
        return await self._workers.run(cgroups.oom_kills, place)

    async def _tell(self, container: Container, ended: "asyncio.Future[object]") -> None:
        async with container.lock:
            if not ended.done() and container.shim is not None:
                await self._supervisor.commit(container, msgspec.structs.replace(container.record, oom_killed=True))
                self._supervisor.publish(container.record, "oom")

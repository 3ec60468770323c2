"""What an engine does with what it finds: containers still running, containers that died meanwhile, and litter.

In this order, before the first request is answered:

1. Every container that has a shim is adopted: output, exit status and clients never noticed the engine's absence.
2. Every container that was running and has no shim gets its end recorded: from what its shim left, else as 255,
   moby's code for a run whose end nobody saw (the machine went down).
3. Networks are restored for what runs: addresses, ports, rules. Everything else of ours is removed.
4. Directories, layers and blobs that no record mentions go; in the background, since that may take long.
5. Restart policies: what should run and does not is started, in the background.
"""

import asyncio
import logging
import time
from collections.abc import Mapping

import msgspec

from compatd import tasks
from compatd.core import sharing
from compatd.core.builds import Builds
from compatd.core.container import Container
from compatd.core.containers import Containers
from compatd.core.images import Images
from compatd.core.lifecycle import ALIVE, State
from compatd.core.networks import Networks
from compatd.core.preparation import Preparation
from compatd.core.restart import RestartPolicy
from compatd.core.supervisor import Supervisor
from compatd.core.volumes import Volumes
from compatd.errors import EngineError
from compatd.runtime.client import Shim, connect, read_exit
from compatd.shim.spec import Exit
from compatd.tasks import Workers

log = logging.getLogger(__name__)

UNSEEN_EXIT_CODE = 255
START_PATIENCE_S = 10.0


class Recovery:
    """One engine's start."""

    def __init__(
        self,
        *,
        containers: Containers,
        supervisor: Supervisor,
        preparation: Preparation,
        networks: Networks,
        images: Images,
        volumes: Volumes,
        builds: Builds,
        workers: Workers,
    ) -> None:
        self._containers = containers
        self._supervisor = supervisor
        self._preparation = preparation
        self._networks = networks
        self._images = images
        self._volumes = volumes
        self._builds = builds
        self._workers = workers

    async def run(self) -> None:
        """Steps 1 to 3; the rest goes on in the background."""
        wanted: list[Container] = []
        await asyncio.gather(*(self._recover(container, wanted) for container in self._containers))
        await self._networks.restore(
            [container.record for container in self._containers if container.record.state in ALIVE]
        )
        await self._end_strays()
        tasks.detach(self._sweep(), name="sweep")
        tried = {container.id: asyncio.Event() for container in wanted}
        for container in wanted:
            tasks.detach(self._start(container, tried), name=f"start {container.id[:12]} with the engine")

    async def _recover(self, container: Container, wanted: list[Container]) -> None:
        record = container.record
        shim = await self._find_shim(record.id, patience_s=None if record.state in ALIVE else START_PATIENCE_S)
        if shim is not None and self._is_recorded(container, shim):
            container.last_shim = shim
            await shim.release()
        elif shim is not None:
            self._supervisor.adopt(container, shim)
            if container.record.state is State.PAUSED and record.frozen_by_engine:
                await self._supervisor.unpause(container)
            return
        async with container.lock:
            left = read_exit(self._preparation.state_dir(record.id))
            if left is None and (record.state in ALIVE or record.endpoints):
                await self._preparation.end_orphans(record)
            if record.state in ALIVE or (record.endpoints and left is not None):
                await self._supervisor.record_lost(container, left or _unseen())
            elif record.endpoints or record.state is State.RESTARTING:
                # It was about to start, which nobody has been told.
                settled = State.EXITED if record.state is State.RESTARTING else record.state
                await self._supervisor.commit(container, msgspec.structs.replace(record, state=settled, endpoints={}))
                self._preparation.discard(record)
        record = container.record
        if record.started_ns and RestartPolicy.of(record).wants_start_with_engine(record.exit_code):
            wanted.append(container)
        elif record.host_config.auto_remove:
            self._supervisor.notify_ended(container)

    def _is_recorded(self, container: Container, shim: Shim) -> bool:
        """Whether the end that the shim tells of is in the record: the earlier engine died just before it said so."""
        record = container.record
        return (
            record.state not in ALIVE and shim.exited.done() and shim.exited.result()["exited_ns"] == record.finished_ns
        )

    async def _find_shim(self, container_id: str, *, patience_s: float | None = START_PATIENCE_S) -> Shim | None:
        try:
            return await connect(self._preparation.state_dir(container_id), patience_s=patience_s)
        except (FileNotFoundError, ConnectionRefusedError):
            return None

    async def _end_strays(self) -> None:
        """Shims of containers that no record mentions: steps of builds, or removals that were not finished."""
        known = {container.id: container for container in self._containers}
        for container_id in await self._workers.run(self._preparation.left_cgroups) & set(known):
            if not known[container_id].alive:
                self._preparation.discard(known[container_id].record)  # the earlier engine was about to
        for container_id in await self._workers.run(self._preparation.known_ids) - set(known):
            shim = await self._find_shim(container_id)
            if shim is not None:
                if not shim.exited.done():
                    await shim.signal(9)
                    await asyncio.wait({shim.exited}, timeout=10)
                await shim.removed()
                await shim.release()
            await self._workers.run(self._preparation.remove, container_id)

    async def _sweep(self) -> None:
        await self._builds.sweep()
        await self._images.sweep_all()

    async def _start(self, container: Container, tried: Mapping[str, asyncio.Event]) -> None:
        """After those whose namespaces it shares: ids are given at creation, so nobody waits for himself."""
        try:
            for donor in sharing.donors(container.record.host_config):
                if donor in tried:
                    await tried[donor].wait()
            await self._supervisor.start(container)
        except EngineError as error:
            log.warning("container %s could not be started: %s", container.id[:12], error)
        finally:
            tried[container.id].set()


def _unseen() -> Exit:
    return {"code": UNSEEN_EXIT_CODE, "exited_ns": time.time_ns(), "oom_killed": False}

"""Runs the steps of builds: containers without a record, on the same runtime as all others.

A step's container exists only in its shim and its directory. An engine that is killed meanwhile leaves both; the next
one finds that no record mentions them, ends the shim and removes the directory (``core.recovery``).
"""

import asyncio
import socket
import time
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path

import msgspec

from compatd import tasks
from compatd.builder.ports import RunResult, RunStep
from compatd.core import creation
from compatd.core.container import ContainerRecord, MountPoint, PendingAttach
from compatd.core.defaults import Defaults
from compatd.core.names import new_id
from compatd.core.networks import Networks
from compatd.core.preparation import Preparation
from compatd.core.volumes import Volumes
from compatd.images.layers import LayerStore
from compatd.runtime.client import Shim, Spawner
from compatd.tasks import Workers
from compatd.wire.streams import ClientSocket, Frames
from compatd.wire.types.containers import ContainerConfig, HostConfig, LogConfig

_KILL_S = 10


class StepRunner:
    """``builder.ports.Runner`` for one build. ``host_config`` holds the build's limits, network and extra hosts."""

    def __init__(
        self,
        *,
        host_config: HostConfig,
        preparation: Preparation,
        networks: Networks,
        volumes: Volumes,
        layers: LayerStore,
        hold: Callable[[str], object],
        spawner: Spawner,
        workers: Workers,
        cgroup_version: int,
        defaults: Defaults,
    ) -> None:
        completed = creation.complete_host_config(host_config, cgroup_version=cgroup_version, defaults=defaults)
        # What the step writes is read back and kept as a layer or thrown away: it need not survive a power failure.
        self._host_config = msgspec.structs.replace(
            completed, auto_remove=True, log_config=LogConfig(type="none", config={})
        )
        self._preparation = preparation
        self._networks = networks
        self._volumes = volumes
        self._layers = layers
        self._hold = hold
        self._spawner = spawner
        self._workers = workers

    async def run(self, step: RunStep, output: Callable[[int, bytes], None]) -> RunResult:
        """See ``builder.ports.Runner``. When cancelled, everything is gone before this returns."""
        volumes = [await self._volumes.ensure(None, anonymous=True) for _ in step.volumes]
        record = self._record(step, [volume.name for volume in volumes])
        shim: Shim | None = None
        try:
            ours, theirs = socket.socketpair()
            with ours:
                ours.setblocking(False)
                theirs.setblocking(False)
                shim, record = await self._launch(record, ClientSocket(fd=theirs.detach()))
                await self._read_output(ours, output)
            end = await asyncio.shield(shim.exited)
            if end["code"] != 0 or end.get("error"):
                return RunResult(exit_code=end["code"], error=end.get("error", ""))
            upper = Path(self._preparation.paths(record.id).upper)
            diff_id = await self._workers.run(self._layers.commit, upper)
            if diff_id is not None:
                self._hold(str(diff_id))
            return RunResult(exit_code=0, diff_id=diff_id)
        finally:
            await asyncio.shield(tasks.spawn(self._clean(record, shim), name=f"clean step {record.id[:12]}"))
            for volume in volumes:
                await self._volumes.remove_unused(volume.name)

    def _record(self, step: RunStep, volumes: list[str]) -> ContainerRecord:
        return ContainerRecord(
            id=step.container_id,
            name=new_id()[:12],
            created_ns=time.time_ns(),
            image_id=step.image_id,
            image=step.image_id,
            layers=step.diff_ids,
            config=ContainerConfig(
                hostname=step.container_id[:12],
                user=step.user,
                env=list(step.env),
                cmd=list(step.args),
                working_dir=step.working_dir,
                labels=_labels(step.labels),
                stop_signal=step.stop_signal,
            ),
            host_config=self._host_config,
            networks=self._networks.check_request(self._host_config, None),
            mounts=tuple(
                MountPoint(type="volume", name=name, source=self._volumes.path(name), target=target, anonymous=True)
                for name, target in zip(volumes, step.volumes, strict=True)
            ),
        )

    async def _launch(self, record: ContainerRecord, theirs: ClientSocket) -> tuple[Shim, ContainerRecord]:
        async with AsyncExitStack() as undo:
            await self._workers.run(self._preparation.populate, record)
            prepared = await self._preparation.prepare(record, undo)
            record = msgspec.structs.replace(record, endpoints=prepared.endpoints)
            undo.callback(theirs.close)
            attach = PendingAttach({"fd": 0, "stdin": False, "stdout": True, "stderr": True}, theirs)
            launch, fds = self._preparation.build(record, prepared, [attach], [])
            shim = await self._spawner.launch(launch, fds)
            theirs.close()
            undo.pop_all()
            prepared.release()
        return shim, record

    async def _read_output(self, sock: socket.socket, output: Callable[[int, bytes], None]) -> None:
        """Take the 8-byte-headed frames apart until the shim has closed its end."""
        loop = asyncio.get_running_loop()
        frames = Frames()
        while chunk := await loop.sock_recv(sock, 1 << 16):
            for stream, data in frames.feed(chunk):
                output(stream, data)

    async def _clean(self, record: ContainerRecord, shim: Shim | None) -> None:
        if shim is not None:
            if not shim.exited.done():
                await shim.signal(9)
                await asyncio.wait({shim.exited}, timeout=_KILL_S)
            await shim.release()
            self._networks.release_later(record)
            self._preparation.discard(record)
        self._preparation.remove_later(record)


def _labels(labels: Mapping[str, str]) -> dict[str, str] | None:
    return dict(labels) or None

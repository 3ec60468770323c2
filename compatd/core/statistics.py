"""What running containers use: ``docker stats`` (moby daemon/stats.go, stats_unix.go)."""

import asyncio
from collections.abc import AsyncIterator

import msgspec

from compatd.core.container import Container
from compatd.core.containers import Containers
from compatd.core.networks import Networks
from compatd.core.preparation import Preparation
from compatd.errors import InvalidParameter
from compatd.runtime.stats import BlkioEntry, Cpu, Stats
from compatd.tasks import Workers
from compatd.wire.times import format_time
from compatd.wire.types import containers as wire
from compatd.wire.types.containers import StatsResponse

INTERVAL_S = 1.0


class Statistics:
    """Samples of one container after the other; nothing is sampled while nobody asks."""

    def __init__(
        self, *, containers: Containers, networks: Networks, preparation: Preparation, workers: Workers
    ) -> None:
        self._containers = containers
        self._networks = networks
        self._preparation = preparation
        self._workers = workers

    def samples(self, reference: str, *, stream: bool, one_shot: bool) -> AsyncIterator[StatsResponse]:
        """Samples, each with the one before; one a second until the container ends.

        Without ``stream`` a single one, whose predecessor is taken a second before unless ``one_shot``. A container
        that does not run has an empty sample. At once, ``NotFound``: no such container; ``InvalidParameter``: both
        ``stream`` and ``one_shot``.
        """
        container = self._containers.get(reference)
        if stream and one_shot:
            raise InvalidParameter("cannot have stream=true and one-shot=true")
        return self._samples(container, stream, one_shot)

    async def _samples(self, container: Container, stream: bool, one_shot: bool) -> AsyncIterator[StatsResponse]:
        before: Stats | None = None
        while True:
            if not container.alive:
                yield StatsResponse(
                    name=f"/{container.record.name}",
                    id=container.id,
                    preread=format_time(before.read_ns if before else 0),
                )
                if not stream or container.record.id not in {c.id for c in self._containers}:
                    return
                await asyncio.sleep(INTERVAL_S)
                continue
            sample = await self._workers.run(self._preparation.stats, container.record)
            networks = await self._workers.run(self._networks.counters, container.record)
            if stream or one_shot or before is not None:
                response = _response(container, sample, before, networks)
                if not stream:
                    # A single quick look does not say whose it is: so Docker 28.
                    yield msgspec.structs.replace(response, name="", id="") if one_shot else response
                    return
                yield response
            before = sample
            await asyncio.wait({container.ended}, timeout=INTERVAL_S)


def _response(
    container: Container, sample: Stats, before: Stats | None, networks: dict[str, wire.NetworkStats]
) -> StatsResponse:
    blkio = {name: [_entry(entry) for entry in entries] for name, entries in sample.blkio.items()}
    memory = sample.memory
    return StatsResponse(
        name=f"/{container.record.name}",
        id=container.id,
        read=format_time(sample.read_ns),
        preread=format_time(before.read_ns if before else 0),
        pids_stats=wire.PidsStats(current=sample.pids, limit=sample.pids_limit or 0),
        blkio_stats=wire.BlkioStats(
            **{field: blkio[field] for field in wire.BlkioStats.__struct_fields__ if field in blkio}
        ),
        cpu_stats=_cpu(sample.cpu),
        precpu_stats=_cpu(before.cpu) if before else wire.CpuStats(),
        memory_stats=wire.MemoryStats(
            usage=memory.usage_bytes,
            max_usage=memory.max_usage_bytes or 0,
            stats=dict(memory.details),
            failcnt=memory.failures,
            limit=memory.limit_bytes,
        ),
        networks=networks,
    )


def _entry(entry: BlkioEntry) -> wire.BlkioEntry:
    return wire.BlkioEntry(major=entry.major, minor=entry.minor, op=entry.operation, value=entry.value)


def _cpu(cpu: Cpu) -> wire.CpuStats:
    return wire.CpuStats(
        cpu_usage=wire.CpuUsage(
            total_usage=cpu.total_ns,
            percpu_usage=list(cpu.per_cpu_ns or ()),
            usage_in_kernelmode=cpu.kernel_ns,
            usage_in_usermode=cpu.user_ns,
        ),
        system_cpu_usage=cpu.host_ns,
        online_cpus=cpu.online_cpus,
        throttling_data=wire.ThrottlingData(
            periods=cpu.periods, throttled_periods=cpu.throttled_periods, throttled_time=cpu.throttled_ns
        ),
    )

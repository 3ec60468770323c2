"""The probes of running containers: one task for each container that has a health check and is not paused.

A probe is an exec with a connection to this engine in the place of a client's. When that connection ends, because the
probe takes too long or the engine is killed, the shim kills the probe (``shim.spec.Attach``): none is left behind. The
next engine goes on with the health that was recorded last, and with the next probe.
"""

import asyncio
import logging
import socket
import time

import msgspec

from compatd import tasks
from compatd.core import health
from compatd.core.container import Container
from compatd.core.execs import Execs
from compatd.core.health import Probe
from compatd.core.lifecycle import State
from compatd.core.supervisor import Supervisor
from compatd.errors import EngineError, SystemFailure
from compatd.shim.spec import Attach
from compatd.wire.streams import ClientSocket, Frames
from compatd.wire.types.containers import ExecCreateRequest
from compatd.wire.types.images import HealthConfig

log = logging.getLogger(__name__)

START_TIMEOUT_S = 30.0
KILL_TIMEOUT_S = 2.0
READ_BYTES = 1 << 16


class Probes:
    """Owns the tasks. ``Supervisor.on_changed`` tells when one has to begin or to end."""

    def __init__(self, *, supervisor: Supervisor, execs: Execs) -> None:
        self._supervisor = supervisor
        self._execs = execs
        self._monitors: dict[str, asyncio.Task[None]] = {}
        supervisor.on_changed.append(self.update)

    def update(self, container: Container) -> None:
        """See to it that a container is probed exactly while it runs. The caller holds the container's lock."""
        running = container.record.state is State.RUNNING
        words = health.command(container.record.config) if running else None
        monitor = self._monitors.pop(container.id, None)
        if monitor is not None:
            monitor.cancel()
        if words is not None and not self._supervisor.stopping:
            self._monitors[container.id] = tasks.spawn(
                self._monitor(container, words), name=f"health of {container.id[:12]}"
            )

    async def _monitor(self, container: Container, words: list[str]) -> None:
        check = container.record.config.healthcheck or HealthConfig()
        started_ns = container.record.started_ns
        current = asyncio.current_task()
        while (before := container.record.health) is not None:
            await asyncio.sleep(health.interval_ns(before, check, started_ns, time.time_ns()) / 1e9)
            probe = await self._probe(container, words, check)
            async with container.lock:
                if self._monitors.get(container.id) is not current:
                    return
                await self._record(container, probe, check)

    async def _record(self, container: Container, probe: Probe, check: HealthConfig) -> None:
        """Probes are kept in memory; what they lead to is committed, and then told."""
        before = container.record.health
        if before is None:
            return
        after = health.judge(before, probe, check, container.record.started_ns)
        record = msgspec.structs.replace(container.record, health=after)
        if after.status == before.status:
            container.record = record
        else:
            await self._supervisor.commit(container, record)
            self._supervisor.publish(record, f"health_status: {after.status}")

    async def _probe(self, container: Container, words: list[str], check: HealthConfig) -> Probe:
        start_ns = time.time_ns()
        try:
            if not words:
                raise SystemFailure(f"healthcheck for container {container.id} has no command")
            exit_code, output = await self._execute(container, words, check.timeout or health.DEFAULT_TIMEOUT_NS)
        except EngineError as error:
            exit_code, output = health.FAILED, str(error)
        return Probe(start_ns=start_ns, end_ns=time.time_ns(), exit_code=exit_code, output=output)

    async def _execute(self, container: Container, words: list[str], timeout_ns: int) -> tuple[int, str]:
        request = ExecCreateRequest(cmd=words, attach_stdout=True, attach_stderr=True)
        exec = await self._execs.create(container.id, request)
        ours, theirs = socket.socketpair()
        with ours:
            for end in (ours, theirs):
                end.setblocking(False)
            client = ClientSocket(fd=theirs.detach())
            attach = Attach(fd=0, stdin=False, stdout=True, stderr=True, ends_process=True)
            try:
                await asyncio.wait_for(self._execs.start(exec, attach, client), START_TIMEOUT_S)
            except TimeoutError as error:
                client.close()
                raise SystemFailure(f"timed out starting health check for container {container.id}") from error
            except BaseException:
                client.close()
                raise
            output = bytearray()
            try:
                async with asyncio.timeout(timeout_ns / 1e9):
                    await self._read(ours, output)
                    await self._execs.wait(exec)
                in_time = True
            except TimeoutError:
                in_time = False
        whole = len(output) <= health.MAX_OUTPUT_BYTES
        text = health.show_output(bytes(output[: health.MAX_OUTPUT_BYTES]), whole=whole)
        if in_time and exec.process is None:
            raise SystemFailure(text.removesuffix("\r\n"))
        if in_time and exec.exit_code is not None:
            return exec.exit_code, text
        if exec.process is not None:
            await asyncio.wait({exec.process.exited}, timeout=KILL_TIMEOUT_S)
        from compatd.builder.durations import format_duration  # most engines start without the builder

        message = f"Health check exceeded timeout ({format_duration(timeout_ns)})"
        return health.FAILED, f"{message}: {text}" if text else message

    async def _read(self, ours: socket.socket, output: bytearray) -> None:
        """Fill ``output`` until the end; what is too much is read and dropped."""
        loop = asyncio.get_running_loop()
        frames = Frames()
        while chunk := await loop.sock_recv(ours, READ_BYTES):
            for _, data in frames.feed(chunk):
                output += data[: health.MAX_OUTPUT_BYTES + 1 - len(output)]

"""Runs containers: start, stop, kill, restart, and what follows when one has ended.

A start acquires in this order, each on an ``AsyncExitStack`` before the next begins: files, network, the shim. A
failed start therefore leaves nothing behind. The record is committed with its endpoints before the shim is launched:
an engine killed in between finds either no shim (the container did not start) or a shim (it runs, and is adopted),
and knows what the container holds in both cases.

When a container ends, its shim has recorded how; the engine commits the end, tells everyone, lets the shim go, and
leaves what is slow (veths, directories) to the reaper.
"""

import asyncio
import contextlib
import logging
import os
import re
import signal as signals
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from typing import Any

import msgspec

from compatd import tasks
from compatd.core import container as containers
from compatd.core import health
from compatd.core.container import Container, ContainerRecord, PendingAttach, PendingWait
from compatd.core.events import Events
from compatd.core.lifecycle import ALIVE, Event, State, advance
from compatd.core.networks import Networks
from compatd.core.preparation import Preparation
from compatd.core.restart import RestartPolicy
from compatd.core.store import Put, Store
from compatd.errors import Conflict, EngineError, InvalidParameter, NotModified, SystemFailure
from compatd.runtime.client import Shim, Spawner, StartFailed
from compatd.shim.spec import Attach, Exit
from compatd.wire.streams import ClientSocket, wait_result

log = logging.getLogger(__name__)

DEFAULT_STOP_TIMEOUT_S = 10
# After SIGKILL a process can still be stuck in the kernel; a client should hear of it then (moby waits 10 s too).
KILL_TIMEOUT_S = 10
# How often the end of a run is tried to be recorded on a disk that is full.
RECORD_AGAIN_S = 1
FAILED_SIGNAL_GRACE_S = 2
FROZEN_AFTER_S = 1


class Supervisor:
    """Owns the shims' connections and the tasks that watch them."""

    def __init__(
        self,
        *,
        store: Store,
        events: Events,
        networks: Networks,
        preparation: Preparation,
        spawner: Spawner,
    ) -> None:
        self._store = store
        self._events = events
        self._networks = networks
        self._preparation = preparation
        self._spawner = spawner
        self.stopping = False
        self.on_ended: list[Callable[[Container], None]] = []
        self.on_adopted: list[Callable[[Container, Shim], None]] = []
        self.on_changed: list[Callable[[Container], None]] = []  # it runs, is paused, goes on, or has ended

    # ---------------------------------------------------------------- records

    async def commit(self, container: Container, record: ContainerRecord) -> None:
        """Replace the container's record, durably. The caller holds the container's lock.

        ``NotFound``: it was removed while the caller waited for the lock, and must not come back.
        """
        if container.is_removed:
            raise containers.no_such_container(container.id)
        await self._store.commit(Put("containers", record.id, msgspec.json.encode(record)))
        container.record = record

    def publish(self, record: ContainerRecord, action: str, extra: dict[str, str] | None = None) -> None:
        """Publish a container event with the attributes Docker gives it: labels, image, name."""
        attributes = dict(record.config.labels or {})
        attributes |= {"image": record.image, "name": record.name}
        self._events.publish("container", action, record.id, attributes | (extra or {}))

    def publish_prune(self, kind: str, reclaimed_bytes: int) -> None:
        """Publish that a prune has happened."""
        self._events.publish(kind, "prune", "", {"reclaimed": str(reclaimed_bytes)})

    # ------------------------------------------------------------------ start

    async def start(self, container: Container) -> None:
        """Start, and return when the program has been executed.

        ``NotModified``: it runs. ``Conflict``: it is paused or being removed. ``StartFailed`` and other errors as
        Docker words them; the record then tells why.
        """
        async with container.lock:
            state = container.record.state
            if state is State.PAUSED:
                raise Conflict("cannot start a paused container, try unpause instead")
            if state in (State.RUNNING, State.RESTARTING):
                raise NotModified("")
            if state in (State.REMOVING, State.DEAD):
                raise Conflict("container is marked for removal and cannot be started")
            container.backoff_s = 0.0
            fresh = msgspec.structs.replace(
                container.record, restart_count=0, stopped_by_user=False, ended_by_user=False
            )
            await self._start(container, fresh)

    async def _start(self, container: Container, record: ContainerRecord) -> None:
        if container.last_shim is not None:
            removals = [ClientSocket(fd=fd) for fd in await container.last_shim.reclaim()]
            container.waits += [PendingWait("removed", socket) for socket in removals]
        attaches, waits = container.attaches, container.waits
        container.attaches, container.waits = [], []
        try:
            async with AsyncExitStack() as undo:
                prepared = await self._preparation.prepare(record, undo)
                starting = msgspec.structs.replace(
                    record,
                    networks=prepared.networks,
                    endpoints=prepared.endpoints,
                    exit_code=0,
                    error="",
                    oom_killed=False,
                )
                await self.commit(container, starting)
                launch, fds = self._preparation.build(starting, prepared, attaches, waits)
                shim = await self._spawner.launch(launch, fds)
                undo.pop_all()
                prepared.release()
        except EngineError as error:
            code = error.exit_code if isinstance(error, StartFailed) else 128
            failed = msgspec.structs.replace(record, exit_code=code, error=str(error), endpoints={})
            if record.state is State.RESTARTING:
                failed = msgspec.structs.replace(failed, state=State.EXITED, exit_code=record.exit_code)
            await self.commit(container, failed)
            if isinstance(error, StartFailed):
                self.publish_mounts(record)
            self._networks.publish_disconnected(record)
            if isinstance(error, StartFailed):
                self.publish_unmounts(record)
            container.waits += [pending for pending in waits if pending.condition == "removed"]
            waits = [pending for pending in waits if pending.condition != "removed"]
            await self._answer_failed_start(waits, code)
            if record.host_config.auto_remove:
                self.notify_ended(container)
            raise
        finally:
            for socket in [pending.socket for pending in attaches] + [pending.socket for pending in waits]:
                socket.close()
        container.begin_run()
        self._follow(container, shim)
        running = msgspec.structs.replace(
            starting,
            state=advance(starting.state, Event.START),
            pid=shim.pid,
            started_ns=shim.started_ns,
            finished_ns=0 if not starting.finished_ns else starting.finished_ns,
            health=health.begin(starting.health, starting.config),
        )
        container.record = running
        await self._hand_over(container, shim)
        await self.commit(container, running)
        self.publish_mounts(running)
        self._networks.publish_connected(running)
        await self._preparation.tell_parents(running)
        self.publish(running, "start")
        self._notify_changed(container)

    def publish_mounts(self, record: ContainerRecord) -> None:
        """Publish that its volumes are in use, by a run or by a copy."""
        for point in record.mounts:
            if point.type == "volume":
                attributes = {
                    "container": record.id,
                    "destination": point.target,
                    "driver": "local",
                    "propagation": point.propagation,
                    "read/write": "false" if point.readonly else "true",
                }
                self._events.publish("volume", "mount", point.name, attributes)

    def publish_unmounts(self, record: ContainerRecord) -> None:
        """Publish that they are no longer."""
        for point in record.mounts:
            if point.type == "volume":
                self._events.publish("volume", "unmount", point.name, {"container": record.id, "driver": "local"})

    async def _hand_over(self, container: Container, shim: Shim) -> None:
        """Give the shim the clients that came while it was being launched."""
        attaches, waits = container.attaches, container.waits
        container.attaches, container.waits = [], []
        for attach in attaches:
            with contextlib.suppress(SystemFailure):
                await shim.attach(attach.attach, attach.socket.fd)
            attach.socket.close()
        for wait in waits:
            await self.wait(container, wait.condition, wait.socket)

    async def _answer_failed_start(self, waits: list[PendingWait], code: int) -> None:
        for pending in waits:
            answer_wait(pending.socket, code)
        waits.clear()

    def _follow(self, container: Container, shim: Shim) -> None:
        container.shim = container.last_shim = shim
        tasks.detach(self._watch(container, shim), name=f"watch {container.id[:12]}")
        shim.detached = lambda exec_id: self._detached(container, exec_id)

    def _detached(self, container: Container, exec_id: str | None) -> None:
        if exec_id is None:
            self.publish(container.record, "detach")
        else:
            self.publish(container.record, "exec_detach", {"execID": exec_id})

    def adopt(self, container: Container, shim: Shim) -> None:
        """Carry on with a shim that an earlier engine launched."""
        record = container.record
        if record.state not in ALIVE:
            begun = health.begin(record.health, record.config)
            record = msgspec.structs.replace(record, state=State.RUNNING, health=begun)
        container.record = msgspec.structs.replace(record, pid=shim.pid, started_ns=shim.started_ns)
        self._follow(container, shim)
        self._notify_changed(container)
        for callback in self.on_adopted:
            callback(container, shim)

    # -------------------------------------------------------------------- end

    async def _watch(self, container: Container, shim: Shim) -> None:
        exit = await asyncio.shield(shim.exited)
        if self.stopping:
            return
        while not self.stopping:
            try:
                async with container.lock:
                    if shim.lost:
                        await self._preparation.end_orphans(container.record)
                    await self.record_end(container, exit)
                    await shim.release()
                break
            except SystemFailure as error:  # a full disk; the shim keeps the end until it is recorded
                log.warning("the end of container %s cannot be recorded yet: %s", container.id[:12], error)
                await asyncio.sleep(RECORD_AGAIN_S)
        else:
            return
        self.notify_ended(container)

    def stop_watching(self) -> None:
        """The engine stops: what happens to containers from now on is the next engine's to record."""
        self.stopping = True

    async def record_end(self, container: Container, exit: Exit) -> None:
        """Commit how the run ended and tell of it. The caller holds the container's lock."""
        record = container.record
        policy = RestartPolicy.of(record)
        again = not self.stopping and policy.wants_restart(exit["code"])
        state = advance(record.state, Event.WILL_RESTART if again else Event.EXIT)
        ended = msgspec.structs.replace(_ended(record, exit, state), restart_count=record.restart_count + again)
        await self._networks.unpublish(record)
        await self.commit(container, ended)
        container.shim = None
        self._notify_changed(container)
        if exit["oom_killed"] and not record.oom_killed:
            self.publish(ended, "oom")
        self._networks.disconnect_later(record)
        self.publish_unmounts(record)
        if container.stopping:
            container.stopping = False
            self.publish(ended, "stop")  # Docker wakes who has asked for it before it tells of the end
        ran_s = max(0, exit["exited_ns"] - record.started_ns) // 1_000_000_000
        self.publish(ended, "die", {"execDuration": str(ran_s), "exitCode": str(exit["code"])})
        self._preparation.discard(record)
        container.end_run()
        if again:
            container.backoff_s = policy.next_backoff_s(container.backoff_s, ran_s)
            container.restart_timer = tasks.spawn(self._restart_later(container), name=f"restart {record.id[:12]}")

    async def record_lost(self, container: Container, exit: Exit) -> None:
        """Commit the end of a run that happened while no engine was there. The caller holds the container's lock."""
        record = container.record
        await self.commit(container, _ended(record, exit, State.EXITED))
        self._preparation.discard(record)

    def notify_ended(self, container: Container) -> None:
        """Tell the other services that a container has ended for good."""
        for callback in self.on_ended:
            callback(container)

    def _notify_changed(self, container: Container) -> None:
        for callback in self.on_changed:
            callback(container)

    async def _restart_later(self, container: Container) -> None:
        await asyncio.sleep(container.backoff_s)
        async with container.lock:
            record = container.record
            if record.state is not State.RESTARTING or self.stopping:
                return
            try:
                await self._start(container, record)
            except EngineError as error:
                log.warning("container %s could not be restarted: %s", record.id[:12], error)

    def _cancel_restart(self, container: Container) -> None:
        if container.restart_timer is not None and container.restart_timer is not asyncio.current_task():
            container.restart_timer.cancel()
        container.restart_timer = None

    # ------------------------------------------------------------ kill, stop

    async def kill(self, container: Container, number: int) -> None:
        """Send a signal; return when the container has ended, if it is SIGKILL. ``Conflict`` when it does not run."""
        if not container.alive and container.record.state is not State.RESTARTING:
            raise containers.not_running(container.id)
        ended = await self._signal(container, number)
        if number == signals.SIGKILL:
            await _to_the_end(self._await_end(container, ended), name=f"kill {container.id[:12]}")

    async def _await_end(self, container: Container, ended: "asyncio.Future[object]") -> None:
        """What SIGKILL was sent to ends, thawed if someone has frozen it; what does not, since it was moved to where
        that cannot reach it, is sought."""
        if not container.alive or await _within(ended, FROZEN_AFTER_S):
            return
        with contextlib.suppress(SystemFailure):
            await self._preparation.thaw(container.record)
        if not await _within(ended, KILL_TIMEOUT_S):
            await self._preparation.kill_all(container.record)
            await _within(ended, KILL_TIMEOUT_S)

    async def _signal(self, container: Container, number: int) -> "asyncio.Future[object]":
        """Send a signal, note what it means for the restart policy, and let what is paused go on if it is one that
        ends containers (moby daemon/kill.go, killWithSignal). Returns what is done at the end of the run that got it.
        ``Conflict`` when it does not run, or not any more."""
        async with container.lock:
            record = container.record
            own = record.config.stop_signal
            ends = number == signals.SIGKILL or not own or self.stop_signal(record) == number
            noted = msgspec.structs.replace(record, stopped_by_user=True, ended_by_user=record.ended_by_user or ends)
            if record.state is State.RESTARTING:
                if ends:
                    noted = msgspec.structs.replace(noted, state=advance(record.state, Event.GIVE_UP))
                await self.commit(container, noted)
                if ends:
                    self._give_up(container)
                return container.ended
            shim = container.running_shim()
            await self.commit(container, noted)
            await shim.signal(number)
            goes_on = ends and record.state is State.PAUSED
            if goes_on:
                await self._preparation.thaw(record)
            if goes_on and number != signals.SIGKILL:
                await self.commit(container, msgspec.structs.replace(noted, state=advance(record.state, Event.UNPAUSE)))
                self._notify_changed(container)
            self.publish(record, "kill", {"signal": str(number)})
            if goes_on and number != signals.SIGKILL:
                self.publish(record, "unpause")
            return container.ended

    def _give_up(self, container: Container) -> None:
        """A container that waits for its restart waits no more: whoever waits for its end is told."""
        self._cancel_restart(container)
        waits, container.waits = container.waits, []
        for pending in waits:
            if pending.condition == "removed":
                container.waits.append(pending)
            else:
                answer_wait(pending.socket, container.record.exit_code)
        self.notify_ended(container)

    def stop_signal(self, record: ContainerRecord) -> int:
        """The signal that asks this container to end."""
        return parse_signal(record.config.stop_signal) if record.config.stop_signal else signals.SIGTERM

    async def stop(self, container: Container, *, timeout_s: int | None, signal: str | None) -> None:
        """Ask to end, then kill. ``NotModified`` when it does not run. Runs to its end once begun."""
        if not container.alive and container.record.state is not State.RESTARTING:
            raise NotModified("")
        number = parse_signal(signal) if signal else self.stop_signal(container.record)
        await _to_the_end(self._stop(container, number, self._grace(container.record, timeout_s)), name="stop")

    def _grace(self, record: ContainerRecord, timeout_s: int | None) -> int:
        if timeout_s is not None:
            return timeout_s
        configured = record.config.stop_timeout
        return DEFAULT_STOP_TIMEOUT_S if configured is None else configured

    async def _stop(self, container: Container, number: int, grace_s: int) -> None:
        ended = container.ended
        container.stopping = True
        if not 0 < number <= signals.SIGRTMAX:
            grace_s = FAILED_SIGNAL_GRACE_S
        else:
            with contextlib.suppress(EngineError):  # it has ended, or ends
                ended = await self._signal(container, number)
        if container.alive and not await _within(ended, grace_s):
            with contextlib.suppress(EngineError):
                ended = await self._signal(container, signals.SIGKILL)
            await self._await_end(container, ended)
        if container.stopping:  # it waited for its restart, or does not end
            container.stopping = False
            self.publish(container.record, "stop")

    async def restart(self, container: Container, *, timeout_s: int | None, signal: str | None) -> None:
        """Stop if it runs, then start (moby daemon/restart.go). An auto-remove container survives it."""
        await _to_the_end(self._restart(container, timeout_s, signal), name="restart")

    async def _restart(self, container: Container, timeout_s: int | None, signal: str | None) -> None:
        if container.alive or container.record.state is State.RESTARTING:
            number = parse_signal(signal) if signal else self.stop_signal(container.record)
            container.restarting_by_user = True
            try:
                await self._stop(container, number, self._grace(container.record, timeout_s))
                await self.start(container)
            finally:
                container.restarting_by_user = False
        else:
            await self.start(container)
        self.publish(container.record, "restart")

    async def force_end(self, container: Container) -> None:
        """SIGKILL and wait until the end is recorded; for forced removal."""
        ended = container.ended
        with contextlib.suppress(Conflict):  # it has ended
            ended = await self._signal(container, signals.SIGKILL)
        await self._await_end(container, ended)
        if not ended.done():
            raise SystemFailure("could not kill container: tried to kill container, but did not receive an exit event")

    # ------------------------------------------------------------ pause

    async def pause(self, container: Container, *, by_engine: bool = False) -> None:
        """Freeze every process (moby daemon/pause.go). ``by_engine``: for a while; the next engine lets it go on."""
        async with container.lock:
            record = container.record
            if record.state is State.PAUSED:
                raise Conflict(f"Container {record.id} is already paused")
            if record.state is State.RESTARTING:
                raise containers.is_restarting(record.id)
            container.running_shim()
            await self._preparation.freeze(record)
            paused = msgspec.structs.replace(
                container.record,
                state=advance(record.state, Event.PAUSE),
                health=health.suspend(record.health),
                frozen_by_engine=by_engine,
            )
            try:
                await self.commit(container, paused)
            except SystemFailure:  # a full disk: frozen it would be without a way out
                await self._preparation.thaw(record)
                raise
            self._notify_changed(container)
        self.publish(container.record, "pause")

    async def unpause(self, container: Container) -> None:
        """Thaw and tell (moby daemon/unpause.go)."""
        await self.thaw(container)
        self.publish(container.record, "unpause")

    async def thaw(self, container: Container) -> None:
        """Let a paused container go on, without telling yet. ``SystemFailure``: it is not paused."""
        async with container.lock:
            record = container.record
            if record.state is not State.PAUSED:
                raise SystemFailure(f"Container {record.id} is not paused")
            await self._preparation.thaw(record)
            running = msgspec.structs.replace(record, state=advance(record.state, Event.UNPAUSE))
            try:
                await self.commit(container, running)
            except SystemFailure as error:  # a full disk; it runs all the same, and can be thawed once more
                log.warning("container %s goes on, which cannot be recorded: %s", record.id[:12], error)
                container.record = running
            self._notify_changed(container)

    # ------------------------------------------------------ attach and wait

    async def attach(self, container: Container, attach: Attach | None, socket: ClientSocket) -> None:
        """Give the client's connection to the shim, now or at the next start; or close it, when there is nothing to
        attach to. Takes the socket over."""
        self.publish(container.record, "attach")
        if attach is None:
            socket.close()
        elif container.shim is not None and container.alive:
            try:
                await container.shim.attach(attach, socket.fd)
            finally:
                socket.close()
        else:
            container.attaches.append(PendingAttach(attach, socket))

    async def wait(self, container: Container, condition: str, socket: ClientSocket) -> None:
        """Have the exit status written into the client's connection when ``condition`` holds. Takes it over.

        ``condition`` is ``not-running``, ``next-exit`` or ``removed``, as in the API. It may have come to hold since
        the caller looked: nothing is awaited here between the last look and the decision.
        """
        if container.shim is not None and container.alive:
            try:
                await container.shim.wait(
                    {"fd": 0, "condition": "removed" if condition == "removed" else "exit"}, socket.fd
                )
            except SystemFailure:
                log.debug("container %s ended while a client began to wait", container.id[:12])
            else:
                socket.close()
                return
            await asyncio.wait({container.ended})
            if condition != "removed":
                answer_wait(socket, container.record.exit_code)
                return
        settled = not container.alive and container.record.state is not State.RESTARTING
        if (condition == "not-running" and settled) or (condition == "removed" and container.is_removed):
            answer_wait(socket, container.record.exit_code)
        else:
            container.waits.append(PendingWait(condition, socket))


def _ended(record: ContainerRecord, exit: Exit, state: State) -> ContainerRecord:
    """``record`` after a run that ended as ``exit`` says."""
    return msgspec.structs.replace(
        record,
        state=state,
        pid=0,
        exit_code=exit["code"],
        error=exit.get("error", ""),
        oom_killed=exit["oom_killed"] or record.oom_killed,
        finished_ns=exit["exited_ns"],
        endpoints={},
        health=health.suspend(record.health),
    )


async def _to_the_end(work: Coroutine[Any, Any, None], *, name: str) -> None:
    """Do ``work`` whole, even when the caller is cut off; what it fails with is the caller's to tell."""

    async def attempt() -> EngineError | None:
        try:
            await work
        except EngineError as error:
            return error
        return None

    error = await asyncio.shield(tasks.spawn(attempt(), name=name))
    if error is not None:
        raise error


async def _within(ended: "asyncio.Future[object]", timeout_s: int) -> bool:
    """Whether the run ends in time; a negative timeout waits for ever (moby: -1)."""
    done, _ = await asyncio.wait({ended}, timeout=None if timeout_s < 0 else timeout_s)
    return bool(done)


def answer_wait(socket: ClientSocket, code: int) -> None:
    """Write the end of a chunked wait reply into a connection that no shim holds, and close it."""
    try:
        os.write(socket.fd, wait_result(code))
    except OSError:
        log.debug("a waiting client has gone")
    socket.close()


def parse_signal(text: str) -> int:
    """A signal by number or name, with or without SIG. A number may be any but 0 (moby/sys/signal, ParseSignal)."""
    if re.fullmatch(r"[+-]?[0-9]{1,18}", text) and int(text):
        return int(text)
    name = "SIG" + text.upper().removeprefix("SIG")
    base, _, offset = name.partition("+") if name.startswith("SIGRTMIN") else name.partition("-")
    if base in ("SIGRTMIN", "SIGRTMAX") and name.startswith(("SIGRTMIN", "SIGRTMAX")):
        step = int(offset) if offset.isascii() and offset.isdecimal() and len(offset) < 3 else 0
        number = signals.SIGRTMIN + step if base == "SIGRTMIN" else signals.SIGRTMAX - step
        if (not offset or step) and signals.SIGRTMIN <= number <= signals.SIGRTMAX:
            return number
    elif name in signals.Signals.__members__:
        return signals.Signals[name].value
    raise InvalidParameter(f"invalid signal: {text}")

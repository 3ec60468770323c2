"""Execs: further processes in running containers. They are not stored: an exec ends with its container at the latest.

An exec is created (checked, given an id), started once, and can be inspected for some minutes after its end, unless
its container is removed. What has been started is known to the container's shim: the next engine learns of it there,
also of what ended while no engine was there.
"""

import asyncio
import base64
import logging
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import msgspec

from compatd import tasks
from compatd.core.container import Container, is_paused, is_restarting, not_running
from compatd.core.containers import Containers
from compatd.core.lifecycle import State
from compatd.core.names import new_id
from compatd.core.preparation import Preparation
from compatd.core.supervisor import Supervisor
from compatd.errors import Conflict, InvalidParameter, NotFound, SystemFailure
from compatd.runtime.client import ExecProcess, Shim, StartFailed
from compatd.shim.spec import Attach
from compatd.wire.streams import ClientSocket
from compatd.wire.types.containers import ExecCreateRequest, ExecInspect, ProcessConfig

log = logging.getLogger(__name__)

# An exec that has ended is kept for ``inspect`` between one and two times this long (moby daemon/exec.go,
# execCommandGC); and this many of all containers together.
KEPT_S = 300.0
KEPT = 4096
# How long a resize waits for the exec's start (moby daemon/resize.go).
RESIZE_PATIENCE_S = 10.0

_PLAIN_ID = re.compile("[0-9]{1,9}")  # names itself, and is in range


@dataclass(slots=True, eq=False)
class Exec:
    """One exec. ``exit_code`` is None until it has ended; ``begun`` is set when it runs or has failed to."""

    id: str
    container: Container
    request: ExecCreateRequest
    detach_keys: bytes = b""
    process: ExecProcess | None = None
    started: bool = False
    exit_code: int | None = None
    ended_s: float = 0.0
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    finished: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def removable(self) -> bool:
        """Whether it will be forgotten soon."""
        return self.exit_code is not None and time.monotonic() > self.ended_s + KEPT_S

    @property
    def running(self) -> bool:
        return self.started and self.exit_code is None


class Execs:
    """Every exec of every container that is there."""

    def __init__(self, *, containers: Containers, supervisor: Supervisor, preparation: Preparation) -> None:
        self._containers = containers
        self._supervisor = supervisor
        self._preparation = preparation
        self._execs: dict[str, Exec] = {}
        self._next_sweep_s = time.monotonic() + KEPT_S
        supervisor.on_adopted.append(self._adopt)

    def get(self, exec_id: str) -> Exec:
        """``NotFound`` in Docker's words, also once the container has gone, or has ended before the exec."""
        found = self._execs.get(exec_id)
        if (
            found is None
            or found.container.is_removed
            or (found.exit_code is None and not found.started and not found.container.alive)
        ):
            raise NotFound(f"No such exec instance: {exec_id}")
        return found

    def ids_of(self, container: Container) -> list[str]:
        """Execs of a container that have not ended."""
        return [e.id for e in self._execs.values() if e.container is container and e.exit_code is None]

    async def create(self, reference: str, request: ExecCreateRequest, detach_keys: bytes = b"") -> Exec:
        """Check and register (moby daemon/exec.go, ContainerExecCreate)."""
        container = self._containers.get(reference)
        if not request.cmd:
            raise InvalidParameter("No exec command specified")
        self._check_state(container, reference)
        if request.user and not _PLAIN_ID.fullmatch(request.user):
            await self._preparation.check_user(container.record, request.user)
        self._forget_old()
        exec = Exec(id=new_id(), container=container, request=request, detach_keys=detach_keys)
        self._execs[exec.id] = exec
        self._publish(exec, f"exec_create: {_command(request)}")
        return exec

    def _check_state(self, container: Container, reference: str) -> None:
        state = container.record.state
        if state is State.RESTARTING:
            raise is_restarting(container.id)
        if state is State.PAUSED:
            raise is_paused(reference)
        if state is not State.RUNNING:
            raise not_running(container.id)

    def _forget_old(self) -> None:
        now = time.monotonic()
        if now < self._next_sweep_s and len(self._execs) < KEPT:
            return
        self._next_sweep_s = now + KEPT_S
        kept = [
            exec
            for exec in self._execs.values()
            if exec.container.alive or (exec.exit_code is not None and not exec.container.is_removed)
            if exec.exit_code is None or now < exec.ended_s + KEPT_S
        ]
        self._execs = {exec.id: exec for exec in kept[-KEPT // 2 :] + [e for e in kept[: -KEPT // 2] if e.running]}

    def check_start(self, exec_id: str) -> Exec:
        """The exec, if its container can have it started (moby daemon/exec.go, ExecExists)."""
        exec = self.get(exec_id)
        self._check_state(exec.container, exec.container.id)
        return exec

    def _adopt(self, container: Container, shim: Shim) -> None:
        for process in list(shim.execs.values()):
            if process.exit.done():
                del shim.execs[process.exec_id]
            request = msgspec.json.decode(process.note, type=ExecCreateRequest) if process.note else ExecCreateRequest()
            exec = Exec(id=process.exec_id, container=container, request=request, process=process, started=True)
            exec.begun.set()
            self._execs[exec.id] = exec
            tasks.detach(self._watch(exec, process), name=f"watch exec {exec.id[:12]}")

    async def start(
        self,
        exec: Exec,
        attach: Attach | None,
        socket: ClientSocket | None,
        console_size: tuple[int, int] | None = None,
    ) -> None:
        """Start the process; with ``attach`` the shim speaks to the client's connection, which is taken over.

        ``StartFailed`` in the words Docker has for execs; a client that is attached has been told them instead.
        ``Conflict``: it has been started before. Returns when it runs, not when it ends.
        """
        if exec.exit_code is not None:
            raise Conflict(f"exec command {exec.id} has already run")
        if exec.started:
            raise Conflict(f"exec command {exec.id} is already running")
        exec.started = True
        shim = exec.container.running_shim()
        self._publish(exec, f"exec_start: {_command(exec.request)}")
        try:
            spec = self._preparation.build_exec(
                exec.container.record, exec.id, exec.request, attach, console_size or exec.request.console_size
            )
            spec["note"] = msgspec.json.encode(exec.request).decode()
            process = await shim.exec(spec, [socket.fd] if socket is not None else [])
        except StartFailed as error:
            self._end(exec, error.exit_code)
            if socket is None:
                raise
            socket.close()  # the shim has told the client
            return
        except BaseException:
            self._end(exec, 126)
            raise
        finally:
            exec.begun.set()
        exec.process = process
        if socket is not None:
            socket.close()
        tasks.detach(self._watch(exec, process), name=f"watch exec {exec.id[:12]}")

    async def _watch(self, exec: Exec, process: ExecProcess) -> None:
        exit = await process.exited
        self._end(exec, exit["code"])
        self._publish(exec, "exec_die", {"exitCode": str(exit["code"])})

    def _end(self, exec: Exec, exit_code: int) -> None:
        exec.exit_code = exit_code
        exec.ended_s = time.monotonic()
        exec.finished.set()

    async def wait(self, exec: Exec) -> None:
        """Until it has ended; for callers that relay its output themselves."""
        if exec.process is not None:
            await exec.finished.wait()

    async def resize(self, exec_id: str, height: int, width: int) -> None:
        """Size of the terminal of a running exec, or of one that is about to run (moby daemon/resize.go)."""
        exec = self.get(exec_id)
        self._check_state(exec.container, exec.container.id)
        try:
            async with asyncio.timeout(RESIZE_PATIENCE_S):
                await exec.begun.wait()
        except TimeoutError:
            raise SystemFailure("timeout waiting for exec session ready") from None
        if exec.process is None:
            raise InvalidParameter("exec process is not started")
        if exec.exit_code is not None:
            raise NotFound(f"NotFound: process does not exist {exec_id}: not found")
        await exec.container.running_shim().exec_resize(exec_id, height, width)

    async def inspect(self, exec_id: str) -> ExecInspect:
        """``GET /exec/{id}/json``. Whoever has seen the end of the exec's stream is told how it ended."""
        exec = self.get(exec_id)
        if exec.running and exec.container.shim is not None:
            await exec.container.shim.catch_up()
        request = exec.request
        command = request.cmd or [""]
        return ExecInspect(
            id=exec.id,
            running=exec.running,
            exit_code=exec.exit_code,
            process_config=ProcessConfig(
                tty=request.tty,
                entrypoint=command[0],
                arguments=command[1:],
                privileged=request.privileged,
                user=request.user,
            ),
            open_stdin=request.attach_stdin,
            open_stderr=request.attach_stderr,
            open_stdout=request.attach_stdout,
            can_remove=exec.removable,
            container_id=exec.container.id,
            detach_keys=base64.b64encode(exec.detach_keys).decode(),
            pid=exec.process.pid if exec.process is not None else 0,
        )

    def __iter__(self) -> Iterator[Exec]:
        return iter(list(self._execs.values()))

    def _publish(self, exec: Exec, action: str, extra: dict[str, str] | None = None) -> None:
        self._supervisor.publish(exec.container.record, action, {"execID": exec.id, **(extra or {})})


def _command(request: ExecCreateRequest) -> str:
    """As events show it: also a program without arguments has a blank behind it (moby daemon/exec.go)."""
    program, *arguments = request.cmd or [""]
    return f"{program} {' '.join(arguments)}"

"""Execs: further processes in running containers. They are not stored: an exec ends with its container at the latest.

An exec is created (checked, given an id), started once, and inspected for as long as its container lives.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass

from compatd import tasks
from compatd.core.container import Container, is_paused, is_restarting, not_running
from compatd.core.containers import Containers
from compatd.core.lifecycle import State
from compatd.core.names import new_id
from compatd.core.preparation import Preparation
from compatd.core.supervisor import Supervisor
from compatd.errors import Conflict, InvalidParameter, NotFound
from compatd.runtime.client import ExecProcess, StartFailed
from compatd.shim.spec import Attach
from compatd.wire.streams import ClientSocket
from compatd.wire.types.containers import ExecCreateRequest, ExecInspect, ProcessConfig

log = logging.getLogger(__name__)

# Ended execs that are kept for ``inspect``, per container.
KEPT = 32


@dataclass(slots=True, eq=False)
class Exec:
    """One exec. ``exit_code`` is None until it has ended."""

    id: str
    container: Container
    request: ExecCreateRequest
    process: ExecProcess | None = None
    started: bool = False
    exit_code: int | None = None

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

    def get(self, exec_id: str) -> Exec:
        """``NotFound`` in Docker's words, also once the container has ended."""
        found = self._execs.get(exec_id)
        if found is None:
            raise NotFound(f"No such exec instance: {exec_id}")
        return found

    def ids_of(self, container: Container) -> list[str]:
        """Execs of a container that have not ended."""
        return [e.id for e in self._execs.values() if e.container is container and e.exit_code is None]

    async def create(self, reference: str, request: ExecCreateRequest) -> Exec:
        """Check and register (moby daemon/exec.go, ContainerExecCreate)."""
        container = self._containers.get(reference)
        if not request.cmd:
            raise InvalidParameter("No exec command specified")
        self._check_state(container, reference)
        if request.user and not request.user.isdecimal():
            await self._preparation.check_user(container.record, request.user)
        self._forget_old(container)
        exec = Exec(id=new_id(), container=container, request=request)
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

    def _forget_old(self, container: Container) -> None:
        gone = [e.id for e in self._execs.values() if not self._exists(e.container)]
        ended = [e.id for e in self._execs.values() if e.container is container and e.exit_code is not None]
        for exec_id in (*gone, *ended[: max(0, len(ended) - KEPT)]):
            self._execs.pop(exec_id, None)

    def _exists(self, container: Container) -> bool:
        return container.alive

    def check_start(self, exec_id: str) -> Exec:
        """The exec, if it can be started now."""
        exec = self.get(exec_id)
        if exec.exit_code is not None:
            raise Conflict(f"exec process {exec_id} has already run")
        if exec.started:
            raise Conflict(f"Error: Exec command {exec_id} is already running")
        self._check_state(exec.container, exec.container.id)
        return exec

    async def start(self, exec: Exec, attach: Attach | None, socket: ClientSocket | None) -> None:
        """Start the process; with ``attach`` the shim speaks to the client's connection, which is taken over.

        ``StartFailed`` in the words Docker has for execs; a client that is attached has been told them instead. Returns
        when it runs, not when it ends.
        """
        exec.started = True
        shim = exec.container.running_shim()
        self._publish(exec, f"exec_start: {_command(exec.request)}")
        try:
            spec = self._preparation.build_exec(
                exec.container.record, exec.id, exec.request, attach, exec.request.console_size
            )
            process = await shim.exec(spec, [socket.fd] if socket is not None else [])
        except StartFailed as error:
            exec.exit_code = error.exit_code
            if socket is None:
                raise
            socket.close()  # the shim has told the client
            return
        except BaseException:
            exec.exit_code = 126
            raise
        exec.process = process
        if socket is not None:
            socket.close()
        tasks.detach(self._watch(exec, process), name=f"watch exec {exec.id[:12]}")

    async def _watch(self, exec: Exec, process: ExecProcess) -> None:
        exit = await process.exited
        exec.exit_code = exit["code"]
        self._publish(exec, "exec_die", {"exitCode": str(exit["code"])})

    async def wait(self, exec: Exec) -> None:
        """Until it has ended; for callers that relay its output themselves."""
        if exec.process is not None:
            await exec.process.exited

    async def resize(self, exec_id: str, height: int, width: int) -> None:
        """Size of the terminal of a running exec."""
        exec = self.get(exec_id)
        if not exec.running:
            raise Conflict(f"exec process {exec_id} is not running")
        await exec.container.running_shim().exec_resize(exec_id, height, width)

    def inspect(self, exec_id: str) -> ExecInspect:
        """``GET /exec/{id}/json``."""
        exec = self.get(exec_id)
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
            can_remove=exec.exit_code is not None,
            container_id=exec.container.id,
            detach_keys=request.detach_keys,
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

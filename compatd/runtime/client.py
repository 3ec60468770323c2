"""The engine's side of spawner and shims: starting containers, and a connection to each.

Everything here runs on the event loop and nothing blocks it. Messages and their order are described in
``shim.protocol``. The engine may be killed at any moment: spawner and connections go with it, the shims stay, and the
next engine finds them with ``connect``, or with ``read_exit`` what they left.
"""

import asyncio
import contextlib
import json
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import compatd
from compatd import tasks
from compatd.errors import EngineError, InvalidParameter, SystemFailure
from compatd.linux import syscalls
from compatd.linux.fds import FdSet
from compatd.shim import protocol
from compatd.shim.protocol import Message
from compatd.shim.spec import Attach, Exec, Exit, Launch, Wait

log = logging.getLogger(__name__)

SPAWNER_START_S = 10.0
SPAWNER_END_S = 5.0
SPAWNER_TRIES = 5
RETRY_S = 0.01
CATCH_UP_TURNS = 4  # of the loop: through a shielded future to its task
RECLAIM_S = 5.0
LOST_CODE = 137  # a container goes with its shim, by SIGKILL

_BOOT = (
    "import sys; sys.path.insert(0, sys.argv.pop(1)); from compatd.shim.__main__ import main; main(int(sys.argv[1]))"
)


class StartFailed(EngineError):
    """A container or exec did not start; the text is Docker's. Nothing of it is left."""

    def __init__(self, text: str, exit_code: int) -> None:
        super().__init__(text)
        self.exit_code = exit_code


class StartRefused(StartFailed, InvalidParameter):
    """The program named cannot be run: 126 and 127, which Docker answers as the client's mistake."""


def start_failure(text: str, exit_code: int) -> StartFailed:
    """The error of the kind that goes with the exit code."""
    return (StartRefused if exit_code in (126, 127) else StartFailed)(text, exit_code)


class Connection:
    """Messages over one seqpacket socket, which it owns. ``ended`` is called once, when the peer has gone."""

    def __init__(
        self, sock: socket.socket, received: Callable[[Message, FdSet], None], ended: Callable[[], None]
    ) -> None:
        self._sock = sock
        self._received = received
        self._ended = ended
        self._loop = asyncio.get_running_loop()
        self._sending = asyncio.Lock()
        sock.setblocking(False)
        self._loop.add_reader(sock.fileno(), self.read)

    @property
    def closed(self) -> bool:
        return self._sock.fileno() < 0

    async def send(self, message: Mapping[str, Any], fds: Sequence[int] = ()) -> None:
        """Send one message; the caller keeps its descriptors, which must stay open until this returns.

        ``ConnectionError`` when the peer has gone.
        """
        await self.send_bytes(protocol.encode(message), fds)

    async def send_bytes(self, data: bytes, fds: Sequence[int] = ()) -> None:
        """``send`` for a document that is encoded already."""
        async with self._sending:  # a message that has to wait keeps its place
            while True:
                if self.closed:
                    raise ConnectionResetError("shim connection closed")
                try:
                    protocol.send_bytes(self._sock, data, fds)
                    return
                except BlockingIOError:
                    await self._writable()

    def send_now(self, message: Mapping[str, Any]) -> None:
        """Send one message without waiting; it is lost when the peer has gone, or has not read for long."""
        if not self.closed:
            with contextlib.suppress(OSError):
                protocol.send(self._sock, message)

    async def _writable(self) -> None:
        ready: asyncio.Future[None] = self._loop.create_future()
        self._loop.add_writer(self._sock.fileno(), _resolve, ready, None)
        try:
            await ready
        finally:
            if not self.closed:
                self._loop.remove_writer(self._sock.fileno())

    def close(self) -> None:
        if not self.closed:
            self._loop.remove_reader(self._sock.fileno())
            self._loop.remove_writer(self._sock.fileno())
            self._sock.close()

    def read(self) -> None:
        """Take what has arrived."""
        while not self.closed:
            try:
                received = protocol.receive(self._sock)
            except BlockingIOError:
                return
            except (OSError, ValueError, KeyError, IndexError):
                log.exception("unreadable message from a shim")
                received = None
            if received is None:
                self.close()
                self._ended()
                return
            message, fds = received
            with fds:
                self._received(message, fds)


class ExecProcess:
    """A process that was started in a running container.

    ``exited`` resolves when it has ended and all its output has been read. When the exec's client sees the end of its
    stream, the word of it is in our socket at least: see ``Shim.catch_up``.
    """

    def __init__(self, exec_id: str) -> None:
        self.exec_id = exec_id
        self.note = ""  # what the engine that started it has left for the next
        self.pid = 0  # in the host's pid namespace
        self.started: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.exit: asyncio.Future[Exit] = asyncio.get_running_loop().create_future()

    @property
    def exited(self) -> "asyncio.Future[Exit]":
        return asyncio.shield(self.exit)  # a caller that is cancelled must not cancel it for the others


class Shim:
    """A connection to one container's shim. Lost connections do not harm the container.

    ``exited`` resolves with how the container ended, once all its output is in the log. If shim and connection end
    without telling, it is what the shim left on disk, or code 137 and an ``error``.
    """

    def __init__(self, state_dir: Path, sock: socket.socket) -> None:
        self.id = ""
        self.pid = 0  # the init's, in the host's pid namespace
        self.started_ns = 0  # CLOCK_REALTIME
        self.phases: dict[str, int] = {}  # of the start, in microseconds
        self.execs: dict[str, ExecProcess] = {}  # running, or not yet recorded
        self.detached: Callable[[str | None], None] | None = (
            None  # a client of this exec (None: of the container) left by its keys
        )
        self.lost = False  # it has ended without telling how its container did
        self._state_dir = state_dir
        loop = asyncio.get_running_loop()
        self._exit: asyncio.Future[Exit] = loop.create_future()
        self._forked = False
        self._reclaimed: list[int] = []
        self._given_back: asyncio.Future[None] = loop.create_future()
        self._started: asyncio.Future[None] = loop.create_future()
        self._started.add_done_callback(_seen)
        self._connection = Connection(sock, self._on_message, self._on_end)

    @property
    def exited(self) -> "asyncio.Future[Exit]":
        return asyncio.shield(self._exit)

    async def signal(self, number: int) -> None:
        """Send the container's init a signal; nothing happens when it has ended already."""
        await self._send({"type": "signal", "number": number})

    async def resize(self, height: int, width: int) -> None:
        await self._send({"type": "resize", "exec_id": None, "height": height, "width": width})

    async def exec_resize(self, exec_id: str, height: int, width: int) -> None:
        await self._send({"type": "resize", "exec_id": exec_id, "height": height, "width": width})

    async def attach(self, attach: Attach, fd: int) -> None:
        """Hand over a client's socket. The caller keeps its own descriptor, to be closed, never shut down."""
        await self._send({"type": "attach", "attach": {**attach, "fd": 0}}, [fd])

    async def wait(self, wait: Wait, fd: int) -> None:
        """Hand over a client that waits for the exit. Descriptor as with ``attach``."""
        await self._send({"type": "wait", "wait": {**wait, "fd": 0}}, [fd])

    async def exec(self, spec: Exec, fds: Sequence[int] = ()) -> ExecProcess:
        """Start a process in the container. ``StartFailed`` as with ``Spawner.launch``; when the exec has a client,
        that has been told the text then."""
        process = ExecProcess(spec["exec_id"])
        process.started.add_done_callback(_seen)
        self.execs[process.exec_id] = process
        try:
            await self._send({"type": "exec", "exec": spec}, fds)
        except BaseException:
            self.execs.pop(process.exec_id, None)
            raise
        await asyncio.shield(process.started)
        return process

    async def catch_up(self) -> None:
        """Read what the shim has said so far, and let those act on it at once who wait for it."""
        self._connection.read()
        for _ in range(CATCH_UP_TURNS):
            await asyncio.sleep(0)

    async def removed(self) -> None:
        """The container has been removed: those who wait for that get their answer."""
        await self._send({"type": "removed"})

    async def reclaim(self) -> list[int]:
        """Take back the sockets of those who wait for the removal, before the container is started again: the next
        shim is the one that will hear of it. The caller owns the descriptors."""
        if self._connection.closed:
            return []
        self._reclaimed, self._given_back = [], asyncio.get_running_loop().create_future()
        with contextlib.suppress(SystemFailure):
            await self._send({"type": "reclaim"})
            await asyncio.wait({self._given_back}, timeout=RECLAIM_S)
        reclaimed, self._reclaimed = self._reclaimed, []
        return reclaimed

    async def release(self) -> None:
        """The container's exit has been recorded: those who wait for it get their answer, and the shim ends when
        nobody needs it any more."""
        with contextlib.suppress(SystemFailure):  # it has ended already
            await self._send({"type": "release"})

    def cancel(self) -> None:
        """Give up a start: the container is killed and forgotten, and the connection dropped."""
        self._connection.send_now({"type": "cancel"})
        self._connection.close()

    def close(self) -> None:
        """Drop the connection; the shim goes on, and ``exited`` stays as it is."""
        self._connection.close()

    async def _send(self, message: Mapping[str, Any], fds: Sequence[int] = ()) -> None:
        try:
            await self._connection.send(message, fds)
        except OSError as error:
            raise SystemFailure(f"the shim of container {self.id} is gone: {error}") from error

    def _on_message(self, message: Message, fds: FdSet) -> None:
        kind = message["type"]
        if kind == "forked":
            self._forked = True
        elif kind == "state":
            self._on_state(message)
        elif kind == "failed":
            if not self._started.done():
                self._started.set_exception(start_failure(message["text"], message["exit_code"]))
        elif kind == "exited":
            _resolve(self._exit, message["exit"])
        elif kind == "exec_started":
            self._exec(message["exec_id"]).pid = message["pid"]
            _resolve(self._exec(message["exec_id"]).started, None)
        elif kind == "exec_failed":
            self._on_exec_failed(message)
        elif kind == "exec_exited":
            self._on_exec_exited(message["exec_id"], message["exit"])
        elif kind == "waiter":
            self._reclaimed.append(fds.steal(0))
        elif kind == "reclaimed":
            _resolve(self._given_back, None)
        elif kind == "detached" and self.detached is not None:
            self.detached(message["exec_id"])

    def _on_state(self, message: Message) -> None:
        self.id, self.pid = message["id"], message["pid"]
        self.started_ns, self.phases = message["started_ns"], message["phases"]
        for entry in message["execs"]:
            process = self._exec(entry["exec_id"])
            process.pid, process.note = entry["pid"], entry.get("note", "")
            _resolve(process.started, None)
            if entry["exit"] is not None:
                _resolve(process.exit, entry["exit"])
        if message["exit"] is not None:
            _resolve(self._exit, message["exit"])
        _resolve(self._started, None)

    def _exec(self, exec_id: str) -> ExecProcess:
        return self.execs.setdefault(exec_id, ExecProcess(exec_id))

    def _on_exec_failed(self, message: Message) -> None:
        process = self.execs.pop(message["exec_id"], None)
        if process is not None and not process.started.done():
            process.started.set_exception(start_failure(message["text"], message["exit_code"]))

    def _on_exec_exited(self, exec_id: str, exit_: Exit) -> None:
        process = self.execs.pop(exec_id, None)
        if process is not None:
            _resolve(process.exit, exit_)

    def _on_end(self) -> None:
        _resolve(self._given_back, None)
        if not self._started.done():
            self._started.set_exception(ShimLost(forked=self._forked))
        if not self._exit.done():
            lost = Exit(
                code=LOST_CODE,
                exited_ns=time.time_ns(),
                oom_killed=False,
                error="the container's shim has ended without telling why",
            )
            left = read_exit(self._state_dir)
            self.lost = left is None
            self._exit.set_result(left or lost)
        for process in self.execs.values():
            if not process.started.done():
                process.started.set_exception(StartFailed("the container's shim has ended", 128))
            _resolve(process.exit, Exit(code=LOST_CODE, exited_ns=time.time_ns(), oom_killed=False))
        self.execs.clear()

    async def started(self) -> None:
        """Wait for the first word of the shim. ``StartFailed``, ``ShimLost``."""
        await asyncio.shield(self._started)


class ShimLost(SystemFailure):
    """The connection ended before the shim said anything; ``forked``: it had begun."""

    def __init__(self, *, forked: bool) -> None:
        super().__init__("the container's shim ended while it was starting")
        self.forked = forked


class Spawner:
    """Owns the spawner process, and starts another when it dies. Containers do not depend on it."""

    def __init__(self) -> None:
        self._connection: Connection | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._starting = asyncio.Lock()
        self._closing = False

    async def start(self) -> None:
        """Have a spawner running. ``SystemFailure`` when it does not come up."""
        async with self._starting:
            if self._connection is None or self._connection.closed:
                copy = _interpreter_copy()
                try:
                    if copy >= 0 and await self._execute(copy):
                        return
                finally:
                    if copy >= 0:
                        os.close(copy)
                if copy >= 0:
                    log.warning(
                        "the spawner does not run from a read-only copy of the interpreter; using %s", sys.executable
                    )
                if not await self._execute(-1):
                    raise SystemFailure("the spawner did not start")

    async def close(self) -> None:
        """End the spawner; shims go on."""
        self._closing = True
        if self._connection is not None:
            self._connection.close()
        if self._process is not None:
            try:
                await asyncio.wait_for(self._process.wait(), SPAWNER_END_S)
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):
                    self._process.kill()
                await self._process.wait()

    @property
    def pid(self) -> int:
        """Of the spawner process; 0 when there is none."""
        return 0 if self._process is None or self._process.returncode is not None else self._process.pid

    async def launch(self, launch: Launch, fds: Sequence[int] = ()) -> Shim:
        """Start a container; returns when its init is set up, about to execute the program.

        The caller keeps its descriptors and closes them afterwards. ``StartFailed`` with Docker's text and exit code;
        sockets of clients that were passed are untouched then. Cancelling kills what was started.
        """
        document = protocol.encode_launch(launch)
        tries = 0
        while True:
            try:
                return await self._launch(launch, document, fds)
            except ShimLost as error:
                # Unless the shim has said that it exists, nothing was done: the spawner could not fork, or it is
                # dying, which takes a moment in which its socket still accepts launches.
                tries += 1
                if error.forked or tries == SPAWNER_TRIES:
                    raise StartFailed(str(error), 128) from error
            await asyncio.sleep(RETRY_S * tries)

    async def _launch(self, launch: Launch, document: bytes, fds: Sequence[int]) -> Shim:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs:
                await self._hand_over(document, [*fds, theirs.fileno()])
        except BaseException:
            ours.close()
            raise
        shim = Shim(Path(launch["state_dir"]), ours)
        shim.id = launch["id"]
        try:
            await shim.started()
        except asyncio.CancelledError:
            shim.cancel()
            raise
        except BaseException:
            shim.close()
            raise
        return shim

    async def _hand_over(self, document: bytes, fds: Sequence[int]) -> None:
        for _ in range(SPAWNER_TRIES):
            await self.start()
            connection = self._connection
            assert connection is not None
            try:
                await connection.send_bytes(document, fds)
                return
            except ConnectionError:
                connection.close()  # its spawner has died, and nobody has read that yet
        raise SystemFailure("the spawner does not stay")

    async def _execute(self, copy: int) -> bool:
        """Run the spawner; False when it ended before it was ready."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ready: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        connection = Connection(
            ours,
            lambda _, __: None if ready.done() else ready.set_result(True),
            lambda: self._on_end(ready),
        )
        root = str(Path(compatd.__file__).parent.parent)
        with theirs:
            self._process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-I",
                "-S",
                "-X",
                "utf8",
                "-c",
                _BOOT,
                root,
                str(copy),
                executable=f"/proc/self/fd/{copy}" if copy >= 0 else None,
                pass_fds=[copy] if copy >= 0 else [],
                stdin=theirs.fileno(),
                stdout=asyncio.subprocess.DEVNULL,
                env={},
                start_new_session=True,
            )
        try:
            up = await asyncio.wait_for(ready, SPAWNER_START_S)
        except TimeoutError:
            up = False
        if up:
            self._connection = connection
            return True
        connection.close()
        with contextlib.suppress(ProcessLookupError):
            self._process.kill()
        await self._process.wait()
        return False

    def _on_end(self, ready: "asyncio.Future[bool]") -> None:
        if not ready.done():
            ready.set_result(False)
        elif not self._closing:
            log.warning("the spawner has died; starting another")
            tasks.detach(self.start(), name="spawner restart")


async def connect(state_dir: Path, *, patience_s: float | None = None) -> Shim:
    """Connect to the shim that an earlier engine has started. One that has said nothing after ``patience_s`` is stuck
    in a start that nobody was told of, and is killed.

    ``FileNotFoundError`` or ``ConnectionRefusedError``: no shim is there (any more): see ``read_exit``.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        directory = os.open(state_dir, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            sock.connect(f"/proc/self/fd/{directory}/{protocol.SOCKET_NAME}")  # unix(7): a path has 107 bytes
        finally:
            os.close(directory)
    except BaseException:
        sock.close()
        raise
    pid = int.from_bytes(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)[:4], sys.byteorder)
    shim = Shim(state_dir, sock)
    try:
        async with asyncio.timeout(patience_s):
            await shim.started()
    except TimeoutError as error:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        shim.close()
        raise ConnectionRefusedError("the container's shim was stuck in its start") from error
    except ShimLost as error:
        shim.close()
        raise ConnectionRefusedError(str(error)) from error
    except BaseException:
        shim.close()
        raise
    return shim


def read_exit(state_dir: Path) -> Exit | None:
    """How the container ended, as its shim has left it; None when it has left nothing."""
    try:
        document = json.loads((state_dir / protocol.EXIT_NAME).read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return cast(Exit, document)


def _interpreter_copy() -> int:
    """A detached, read-only mount of the interpreter's file, to be executed by descriptor; -1 when not permitted.

    See shim.__main__. The caller owns the descriptor; the mount lives as long as it is executed from.
    """
    try:
        copy = syscalls.open_tree(
            syscalls.AT_FDCWD, sys.executable, syscalls.OPEN_TREE_CLONE | syscalls.OPEN_TREE_CLOEXEC
        )
    except OSError as error:
        log.warning("containers can reach the interpreter's file: no copy of its mount: %s", error)
        return -1
    try:
        syscalls.mount_setattr(copy, "", syscalls.AT_EMPTY_PATH, attr_set=syscalls.MOUNT_ATTR_RDONLY)
    except OSError as error:
        log.warning("containers can reach the interpreter's file: its copy stays writable: %s", error)
        os.close(copy)
        return -1
    return copy


def _resolve(future: "asyncio.Future[Any]", result: object) -> None:
    if not future.done():
        future.set_result(result)


def _seen(future: "asyncio.Future[Any]") -> None:
    """A failure that nobody waits for is no news."""
    if not future.cancelled():
        future.exception()

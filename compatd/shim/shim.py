"""The shim: parent of one container's init, holder of its streams, its log and its exit status.

It is forked by the spawner, one for each container, and outlives spawner and engine. Nothing it does waits: after
the start it is a loop over descriptors, so one blocked client or a hanging start stalls nothing else.

state_dir:
    shim.sock    where the next engine finds it
    exit         how the container ended, once it has (spec.Exit); left behind for an engine that comes late
    shim.log     the traceback, should the shim itself fail

Life:  starting ──started──▶ running ──init ended, output drained──▶ exited ──release, nobody waits──▶ gone
           └──failed──▶ gone
If the shim is killed, so is its init (PR_SET_PDEATHSIG), and with the init everything in its pid namespace.
"""

import base64
import collections
import contextlib
import json
import os
import signal
import socket
import time
from collections.abc import Callable
from typing import NoReturn, cast

from compatd.linux import syscalls
from compatd.linux.fds import FdSet
from compatd.shim import cgroup, container, protocol, title
from compatd.shim.failures import Failed, describe, told
from compatd.shim.loop import IN, OUT, Handler, Loop
from compatd.shim.protocol import Message, ShimShare
from compatd.shim.sink import Sink, open_sink
from compatd.shim.spec import Attach, Exec, Exit, Wait
from compatd.shim.stdio import Stdio
from compatd.shim.waiters import Waiters

PIPE_GRACE_S = 2.0  # moby daemon/monitor.go: how long the end of output is awaited when others hold the pipes
TERMINAL_GRACE_S = 0.02
REMOVAL_RETRIES = 8
ENDED_EXECS = 32  # for the next engine

_SUN_PATH_BYTES = 107  # unix(7)


def warm_up() -> None:
    """Do once, with nothing at stake, what a start does first: what it writes to is then this process's own already."""
    protocol.encode(cast(Message, json.loads('{"a":["b",1,null,{"c":true}]}')))
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        protocol.send(ours, {"type": "none"})
        protocol.receive(theirs)
    for fd in os.pipe():
        os.close(fd)
    syscalls.unshare(syscalls.CLONE_NEWPID)  # nearly every container wants its own


def run(document: bytes, fds: FdSet, tells: int, received_ns: int) -> NoReturn:
    """Be a container's shim: the forked child's whole life. ``fds`` end with the connection to the engine.

    ``tells``: a byte written there has the spawner fork the next shim.

    What is left after an error is a traceback in shim.log; the init dies with the shim.
    """
    state_dir = ""
    try:
        share, _, init_share = protocol.unwrap(document, fds).partition(b"\n")
        launch = cast(ShimShare, json.loads(share))
        state_dir = launch["state_dir"]
        made = Shim(launch, init_share, fds, received_ns)
        os.write(tells, b"!")  # not before: both would want the processors
        os.close(tells)
        made.run()
    except SystemExit:
        pass  # the start has failed, and that has been told
    except BaseException:
        _record(state_dir)
        os._exit(1)
    os._exit(0)


def _settle(id_: str) -> None:
    """Let go of what came from the spawner and the engine. When the container runs: nobody waits for this."""
    os.setsid()
    syscalls.set_process_name("compatd-shim")
    title.show(["compatd-shim", id_])
    null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    for number in range(3):
        os.dup2(null, number, inheritable=False)
    os.close(null)


def _record(state_dir: str) -> None:
    import traceback  # only here: it would be memory of every shim

    with contextlib.suppress(OSError), open(f"{state_dir}/shim.log", "a") as log:
        traceback.print_exc(file=log)


class Child:
    """A process that the shim started: the container's init (``exec_id`` None) or an exec.

    Owns its pid descriptor, its streams and the socket that it reports on until the program runs.
    """

    stdio: Stdio

    def __init__(self, exec_id: str | None, pid: int, report: socket.socket, pipes: list[int]) -> None:
        self.exec_id = exec_id
        self.pid = pid
        self.pidfd = os.pidfd_open(pid)
        self.report = report
        self._pipes = pipes
        self.phases: dict[str, int] | None = None  # once it is ready
        self.failure: tuple[str, int] | None = None  # why it did not start; or, having started, ended at once
        self.started_ns = 0
        self.status: int | None = None
        self.exit: Exit | None = None
        self.released = False  # the engine has been told of its exit
        self.ends_with_clients = False
        self.note = ""
        self.clients: list[tuple[Attach, socket.socket]] = []  # until it has started

    def take_streams(self, stdio: Stdio) -> None:
        self.stdio = stdio
        stdio.use_pipes(*self._pipes)


class Shim:
    """One container's."""

    def __init__(self, launch: ShimShare, init_share: bytes, fds: FdSet, received_ns: int) -> None:
        self._launch = launch
        self._received_ns = received_ns
        self._loop = Loop()
        self._engine: socket.socket | None = None
        self._unsent: collections.deque[Message] = collections.deque()
        self._connections: set[socket.socket] = set()
        self._listener: socket.socket | None = None
        self._socket_identity = (0, 0)
        self._state = os.open(launch["state_dir"], os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self._waits = Waiters(self._loop)
        self._execs: dict[str, Child] = {}
        self._ended_execs: collections.deque[Message] = collections.deque(maxlen=ENDED_EXECS)
        self._phases: dict[str, int] = {}
        self._log: Sink | None = None
        self._oom_kills = 0
        self._over = False  # the start has failed
        self._recorded = False
        self._removed = False
        self._init = self._start(fds, init_share)

    def run(self) -> None:
        """Serve until the container is over and nobody waits for anything of it."""
        while not self._done():
            self._loop.turn()
        if self._log is not None:
            self._log.close()
        self._unlisten()

    def _done(self) -> bool:
        if self._over:
            return True
        return (
            self._recorded
            and self._init.exit is not None
            and not self._waits
            and not self._init.stdio.attended
            and not self._execs
            and not (self._log is not None and self._log.lingers())
        )

    # Starting

    def _start(self, fds: FdSet, init_share: bytes) -> Child:
        """Fork the init first of all; what the shim needs for itself is done while that one sets out."""
        launch = self._launch
        engine = _seqpacket(fds.pop())
        engine.setblocking(False)
        self._engine = engine
        self._tell({"type": "forked"})
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # ignored by the spawner: our children would be reaped for us
        descriptors = [fds.steal(index) for index in range(len(fds))]
        try:
            namespace = launch["namespaces"]["pid"]
            # Of the child to come. A new one is there already.
            if namespace["mode"] == "host":
                _fork_into_own()
            elif namespace["mode"] == "fd":
                syscalls.setns(descriptors[namespace.get("fd", -1)], syscalls.CLONE_NEWPID)
            child = self._fork(
                None,
                tty=launch["tty"],
                stdin=launch["open_stdin"],
                output=True,
                joins=launch["cgroup"]["joins"],
                directories=launch["cgroup"]["directories"],
                body=lambda ends, report: container.become_init(init_share, descriptors, ends, report),
            )
        except Exception as error:
            self._remove_cgroups(0)
            self._fail(*told(describe(error, "shim"), of_exec=False))
            raise SystemExit(0) from error
        _fork_into_own()
        self._mark("fork")
        try:
            self._oom_kills = cgroup.create(launch["cgroup"])
            child.report.send(b"cgroups")
            self._mark("cgroups")
            with contextlib.suppress(FileNotFoundError):
                os.unlink(protocol.EXIT_NAME, dir_fd=self._state)
            self._log = open_sink(launch["log"], descriptors, self._loop, lambda: self._init.stdio.client_drained())
            self._listen()
        except Exception as error:
            child.failure = told(describe(error, "shim"), of_exec=False)
            os.kill(child.pid, signal.SIGKILL)
        child.clients = [
            (attach, socket.socket(fileno=os.dup(descriptors[attach["fd"]]))) for attach in launch["attaches"]
        ]
        for wait in launch["waits"]:
            self._waits.add(wait, socket.socket(fileno=os.dup(descriptors[wait["fd"]])))
        for fd in descriptors:
            os.close(fd)
        self._connect(engine)  # also one that has gone meanwhile: it may have left word that the start is given up
        child.take_streams(
            Stdio(
                self._loop,
                closes_stdin=launch["stdin_once"],
                log=self._log,
                detached=lambda: self._tell({"type": "detached", "exec_id": None}),
                changed=lambda: self._advance(self._init),
            )
        )
        self._watch(child)
        self._mark("settle")
        return child

    def _mark(self, phase: str) -> None:
        now = time.monotonic_ns()
        self._phases[phase] = (now - self._received_ns) // 1000
        self._received_ns = now

    def _fork(
        self,
        exec_id: str | None,
        *,
        tty: bool,
        stdin: bool,
        output: bool,
        joins: list[str],
        directories: list[str],
        body: Callable[[container.Ends, container.Report], NoReturn],
    ) -> Child:
        """Fork a child with pipes (a terminal it makes itself). It runs ``body``, which never returns."""
        ours, theirs = [-1, -1, -1], [-1, -1, -1]
        if not tty:
            if stdin:
                theirs[0], ours[0] = os.pipe()
            if output:
                for stream in (1, 2):
                    ours[stream], theirs[stream] = os.pipe()
        mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        born_in, directory_fd = cgroup.birthplace(joins, directories) or (None, -1)
        pid = -1
        if directory_fd >= 0:
            try:
                pid = syscalls.fork_into_cgroup(directory_fd)
            except OSError:
                born_in = None  # an old kernel, or a sandbox around us: join later
        if pid < 0:
            pid = os.fork()
        if not pid:
            try:
                mine.close()
                body(container.Ends(*theirs), container.Report(its, of_exec=exec_id is not None, born_in=born_in))
            finally:
                os._exit(1)
        its.close()
        for fd in (directory_fd, *theirs):
            if fd >= 0:
                os.close(fd)
        return Child(exec_id, pid, mine, ours)

    def _watch(self, child: Child) -> None:
        child.report.setblocking(False)
        self._loop.watch(child.report.fileno(), IN, lambda _: self._on_report(child))
        self._loop.watch(child.pidfd, IN, lambda _: self._on_end(child))

    def _on_report(self, child: Child) -> None:
        """Read what the child says, until it executes its program or ends (the socket closes)."""
        while child.report.fileno() >= 0:
            try:
                received = protocol.receive(child.report)
            except BlockingIOError:
                return
            if received is None:
                self._loop.forget(child.report.fileno())
                child.report.close()
                # It is ready when it says so, and has started when execve(2) has closed its end.
                if child.phases is not None and child.failure is None:
                    self._on_started(child)
                return
            message, fds = received
            if message["type"] == "entered":
                self._succeed(child, message["pid"])
            elif message["type"] == "ready":
                child.phases = message["phases"]
                if len(fds):
                    child.stdio.use_terminal(fds.pop())
            elif child.failure is None:
                child.failure = (message["text"], message["exit_code"])
            fds.close()

    def _succeed(self, child: Child, pid: int) -> None:
        """The process has forked the one that the container sees, and ends."""
        self._loop.forget(child.pidfd)
        os.close(child.pidfd)
        os.waitpid(child.pid, 0)
        child.pid, child.pidfd = pid, os.pidfd_open(pid)
        self._loop.watch(child.pidfd, IN, lambda _: self._on_end(child))

    def _on_started(self, child: Child) -> None:
        child.started_ns = time.time_ns()
        for attach, sock in child.clients:
            _attach(child.stdio, attach, sock)
        child.clients.clear()
        child.stdio.begin()
        if child.exec_id is None:
            self._phases.update({f"init {name}": us for name, us in (child.phases or {}).items()})
            self._mark("started")
            self._tell(self._describe())
            _settle(self._launch["id"])
        else:
            self._tell({"type": "exec_started", "exec_id": child.exec_id, "pid": child.pid})

    # Ending

    def _on_end(self, child: Child) -> None:
        pid = child.pid
        self._on_report(child)  # its last words may have come in the same turn
        if child.pid != pid:
            return
        self._loop.forget(child.pidfd)
        _, child.status = os.waitpid(child.pid, 0)
        if child.started_ns == 0:
            text, code = child.failure or told(
                Failed("the process died while it was set up"), of_exec=child.exec_id is not None
            )
            self._on_failed(child, text, code)
            return
        if child.exec_id is None and self._launch["namespaces"]["pid"]["mode"] != "new":
            cgroup.kill(self._launch["cgroup"])
        if not child.stdio.process_ended():
            grace_s = TERMINAL_GRACE_S if child.stdio.is_terminal else PIPE_GRACE_S
            self._loop.later(grace_s, child.stdio.close_outputs)
        self._advance(child)

    def _advance(self, child: Child) -> None:
        """The process has ended and all its output has come: say how it ended."""
        if child.status is None or child.exit is not None or child.stdio.open or child.started_ns == 0:
            return
        code = os.waitstatus_to_exitcode(child.status)
        child.exit = Exit(code=code if code >= 0 else 128 - code, exited_ns=time.time_ns(), oom_killed=False)
        if child.failure is not None:
            child.exit["error"] = child.failure[0]
        if child.exec_id is not None:
            self._tell({"type": "exec_exited", "exec_id": child.exec_id, "exit": child.exit})
            self._release_execs()
            return
        child.exit["oom_killed"] = cgroup.oom_kills(self._launch["cgroup"]) > self._oom_kills
        child.stdio.finish()
        self._remove_cgroups(REMOVAL_RETRIES)
        self._write_exit(child.exit)
        self._tell({"type": "exited", "exit": child.exit})
        self._answer_waits()

    def _on_failed(self, child: Child, text: str, code: int) -> None:
        if child.exec_id is None:
            self._remove_cgroups(REMOVAL_RETRIES)
            self._write_exit(Exit(code=code, exited_ns=time.time_ns(), oom_killed=False, error=text))
            self._fail(text, code)
            return
        for attach, sock in child.clients:
            _attach(child.stdio, attach, sock)
        child.clients.clear()
        child.stdio.say(text + "\r\n")
        child.exit = Exit(code=code, exited_ns=time.time_ns(), oom_killed=False, error=text)
        child.stdio.process_ended()
        child.stdio.close_outputs()
        self._tell({"type": "exec_failed", "exec_id": child.exec_id, "text": text, "exit_code": code})
        self._release_execs()

    def _fail(self, text: str, code: int) -> None:
        """The container did not start. Its clients' sockets are left as they are: the engine still has them."""
        self._unlisten()
        self._tell({"type": "failed", "text": text, "exit_code": code})
        self._over = True

    def _remove_cgroups(self, retries: int) -> None:
        """A cgroup is busy for a moment after its last process has died; what is left then, the engine sweeps."""
        if not cgroup.remove(self._launch["cgroup"]) and retries and not self._recorded:
            if self._over:
                time.sleep(0.005)
                self._remove_cgroups(retries - 1)
            else:
                self._loop.later(0.005, lambda: self._remove_cgroups(retries - 1))

    def _write_exit(self, exit_: Exit) -> None:
        """Appears whole or not at all. Not synced: the directory does not outlive the machine either."""
        staged = protocol.EXIT_NAME + ".tmp"
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        with contextlib.suppress(OSError):
            with open(os.open(staged, flags, 0o600, dir_fd=self._state), "w") as file:
                json.dump(exit_, file)
            os.rename(staged, protocol.EXIT_NAME, src_dir_fd=self._state, dst_dir_fd=self._state)

    def _answer_waits(self) -> None:
        """An exit is told when the engine knows it, so that what the client asks next agrees; or there is none."""
        if self._init.exit is not None and (self._removed or self._recorded or self._engine is None):
            self._waits.answer(self._init.exit, removed=self._removed)

    # The engine

    def _listen(self) -> None:
        directory, name = self._launch["state_dir"], protocol.SOCKET_NAME
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self._state)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        path = f"{directory}/{name}"
        listener.bind(path if len(path) <= _SUN_PATH_BYTES else f"/proc/self/fd/{self._state}/{name}")
        listener.listen()
        listener.setblocking(False)
        info = os.stat(name, dir_fd=self._state)
        self._socket_identity = (info.st_dev, info.st_ino)
        self._listener = listener
        self._loop.watch(listener.fileno(), IN, lambda _: self._accept())
        self._mark("listen")

    def _unlisten(self) -> None:
        """Remove the socket, unless the container's next start has put its own there."""
        if self._listener is not None:
            with contextlib.suppress(OSError):
                info = os.stat(protocol.SOCKET_NAME, dir_fd=self._state)
                if (info.st_dev, info.st_ino) == self._socket_identity:
                    os.unlink(protocol.SOCKET_NAME, dir_fd=self._state)

    def _accept(self) -> None:
        assert self._listener is not None
        try:
            sock, _ = self._listener.accept()
        except OSError:
            return
        self._engine = sock
        self._unsent.clear()
        self._connect(sock)
        if self._init.started_ns:
            self._tell(self._describe())

    def _connect(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._connections.add(sock)
        self._loop.watch(sock.fileno(), IN, self._reader_of(sock))

    def _reader_of(self, sock: socket.socket) -> Handler:
        def handle(events: int) -> None:
            if events & OUT and sock is self._engine:
                self._flush()
            if events & ~OUT:
                self._on_message(sock)

        return handle

    def _disconnect(self, sock: socket.socket) -> None:
        self._connections.discard(sock)
        self._loop.forget(sock.fileno())
        sock.close()
        if sock is self._engine:
            self._engine = None
        if self._engine is None:
            self._release_execs()
            self._answer_waits()

    def _tell(self, message: Message) -> None:
        """Send to the engine, if there is one. What a busy one does not take yet is kept for it."""
        if self._engine is not None:
            self._unsent.append(message)
            if len(self._unsent) == 1:
                self._flush()

    def _flush(self) -> None:
        engine = self._engine
        assert engine is not None
        try:
            while self._unsent:
                protocol.send(engine, self._unsent[0])
                self._unsent.popleft()
        except BlockingIOError:
            pass
        except OSError:
            self._engine = None  # the rest of its end follows when its socket is read
            self._unsent.clear()
        if engine in self._connections:
            self._loop.watch(engine.fileno(), IN | OUT if self._unsent else IN, self._reader_of(engine))
            self._release_execs()

    def _describe(self) -> Message:
        return {
            "type": "state",
            "id": self._launch["id"],
            "pid": self._init.pid,
            "started_ns": self._init.started_ns,
            "phases": self._phases,
            "exit": self._init.exit,
            "execs": [
                *self._ended_execs,
                *(_describe_exec(exec_id, child) for exec_id, child in self._execs.items() if not child.released),
            ],
        }

    def _on_message(self, sock: socket.socket) -> None:
        try:
            received = protocol.receive(sock)
        except BlockingIOError:
            return
        except (OSError, ValueError, KeyError, IndexError):
            received = None  # nobody that we know talks like that
        if received is None:
            self._disconnect(sock)
            return
        message, fds = received
        with fds:
            getattr(self, "_do_" + message["type"], self._do_nothing)(message, fds)

    def _do_nothing(self, message: Message, fds: FdSet) -> None:
        """A message of a later version."""

    def _do_signal(self, message: Message, _: FdSet) -> None:
        if self._init.status is None:
            with contextlib.suppress(OSError):
                syscalls.pidfd_send_signal(self._init.pidfd, message["number"])

    def _do_cancel(self, _: Message, __: FdSet) -> None:
        """The engine has given up the start: what has been done is undone, and nobody will ask for the exit."""
        self._recorded = True
        if self._init.status is None:
            os.kill(self._init.pid, signal.SIGKILL)

    def _do_resize(self, message: Message, _: FdSet) -> None:
        child = self._init if message["exec_id"] is None else self._execs.get(message["exec_id"])
        if child is not None:
            child.stdio.resize(message["height"], message["width"])

    def _do_attach(self, message: Message, fds: FdSet) -> None:
        attach = cast(Attach, message["attach"])
        client = (attach, socket.socket(fileno=fds.steal(attach["fd"])))
        if self._init.started_ns:
            _attach(self._init.stdio, *client)
        else:
            self._init.clients.append(client)

    def _do_wait(self, message: Message, fds: FdSet) -> None:
        wait = cast(Wait, message["wait"])
        self._waits.add(wait, socket.socket(fileno=fds.steal(wait["fd"])))
        self._answer_waits()

    def _do_removed(self, _: Message, __: FdSet) -> None:
        self._removed = True
        self._answer_waits()

    def _do_reclaim(self, _: Message, __: FdSet) -> None:
        """The container starts again: those who wait for its removal wait on with the next shim."""
        if self._engine is not None:
            self._waits.give_back(self._engine)
        self._tell({"type": "reclaimed"})

    def _do_release(self, _: Message, __: FdSet) -> None:
        if self._init.exit is not None:
            self._recorded = True
            self._release_execs()
            self._answer_waits()

    # Execs

    def _do_exec(self, message: Message, fds: FdSet) -> None:
        spec = cast(Exec, message["exec"])
        exec_id = spec["exec_id"]
        attach = spec.get("attach")
        client = None if attach is None else (attach, socket.socket(fileno=fds.steal(attach["fd"])))
        stdio = Stdio(
            self._loop,
            closes_stdin=True,
            log=None,
            detached=lambda: self._tell({"type": "detached", "exec_id": exec_id}),
            changed=lambda: self._exec_changed(exec_id),
        )
        try:
            child = self._fork(
                exec_id,
                tty=spec["process"]["tty"],
                stdin=attach is not None and attach["stdin"],
                output=attach is not None,
                joins=spec["cgroup_joins"],
                directories=[],
                body=lambda ends, report: container.enter(spec, self._init.pidfd, ends, report),
            )
        except OSError as error:  # no more processes, or the pid namespace has lost its init
            text, code = told(describe(error, "fork"), of_exec=True)
            self._tell({"type": "exec_failed", "exec_id": exec_id, "text": text, "exit_code": code})
            if client is not None:
                _attach(stdio, *client)
                stdio.say(text + "\r\n")
                stdio.finish()
            return
        if client is not None:
            child.clients.append(client)
            child.ends_with_clients = client[0].get("ends_process", False)
        child.note = spec.get("note", "")
        self._execs[exec_id] = child
        child.take_streams(stdio)
        self._watch(child)

    def _exec_changed(self, exec_id: str) -> None:
        child = self._execs.get(exec_id)
        if child is not None:
            if child.ends_with_clients and child.status is None and not child.stdio.attended:
                with contextlib.suppress(OSError):
                    syscalls.pidfd_send_signal(child.pidfd, signal.SIGKILL)
            self._advance(child)
            if child.released and not child.stdio.attended:
                self._forget_exec(exec_id)

    def _release_execs(self) -> None:
        """When the engine has been told how an exec ended (or there is none), its client may know, and may ask: the
        engine reads what we have sent before it answers."""
        if self._unsent:
            return
        for exec_id, child in list(self._execs.items()):
            if child.exit is None or child.released:
                continue
            self._ended_execs.append(_describe_exec(exec_id, child))
            child.released = True
            child.stdio.finish()
            if not child.stdio.attended:
                self._forget_exec(exec_id)

    def _forget_exec(self, exec_id: str) -> None:
        child = self._execs.pop(exec_id, None)
        if child is not None:
            os.close(child.pidfd)


def _describe_exec(exec_id: str, child: Child) -> Message:
    return {"exec_id": exec_id, "pid": child.pid, "note": child.note, "exit": child.exit}


def _fork_into_own() -> None:
    """Children are born in this process's own pid namespace."""
    with open("/proc/self/ns/pid", "rb", buffering=0) as own:
        syscalls.setns(own.fileno(), syscalls.CLONE_NEWPID)


def _attach(stdio: Stdio, attach: Attach, sock: socket.socket) -> None:
    stdio.attach(
        sock,
        stdin=attach["stdin"],
        stdout=attach["stdout"],
        stderr=attach["stderr"],
        keys=bytes(attach.get("detach_keys", ())),
        head=base64.b64decode(attach.get("head", "")),
        framed=attach.get("framed"),
    )


def _seqpacket(fd: int) -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET, 0, fileno=fd)

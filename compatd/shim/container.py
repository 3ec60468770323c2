"""What the shim's children do between fork and exec: become a container's init, or enter a running container.

Each reports to the shim over a socket that closes on exec: ``failed`` is the client's text and exit code; ``ready``
(with the terminal's master and the time each phase took) means that only seccomp(2) and execve(2) are left. That is
where Docker's start returns as well: what the kernel has against the program then is the container's own failure, and
it is told on its stderr. The steps before the root has changed see the host's tree and trust only paths of the
engine's; the steps after it trust nothing they find.
"""

import contextlib
import errno
import fcntl
import json
import os
import signal
import socket
import stat
import struct
import time
from typing import NamedTuple, NoReturn, cast

from compatd.linux import syscalls
from compatd.linux.rootdir import Rootdir
from compatd.shim import cgroup, init, process, protocol, rootfs, terminal, title, users
from compatd.shim.failures import Failed, describe, told, words
from compatd.shim.protocol import InitShare
from compatd.shim.spec import Exec, Namespaces, Process

_STDIO = 3  # descriptors below are the program's

_FLAGS = {
    "mnt": syscalls.CLONE_NEWNS,
    "uts": syscalls.CLONE_NEWUTS,
    "ipc": syscalls.CLONE_NEWIPC,
    "net": syscalls.CLONE_NEWNET,
    "cgroup": syscalls.CLONE_NEWCGROUP,
}
ALL = sum(_FLAGS.values()) | syscalls.CLONE_NEWPID


class Ends(NamedTuple):
    """A child's ends of its pipes; -1 where it gets the terminal, or /dev/null."""

    stdin: int
    stdout: int
    stderr: int


class Report:
    """A child's side of the socket to its shim, and its stop watch."""

    def __init__(self, sock: socket.socket, *, of_exec: bool, born_in: str | None) -> None:
        self.sock = sock
        self.born_in = born_in  # the cgroup v2 directory that the process has been forked into
        self._of_exec = of_exec
        self._phases: dict[str, int] = {}
        self._last_ns = time.monotonic_ns()
        self._phase = "setup"

    def done(self, phase: str) -> None:
        """What was done since the last call is called ``phase``."""
        now = time.monotonic_ns()
        self._phases[phase] = (now - self._last_ns) // 1000
        self._last_ns = now
        self._phase = phase

    def ready(self, master: int) -> None:
        protocol.send(self.sock, {"type": "ready", "phases": self._phases}, [master] if master >= 0 else [])

    def entered(self, pid: int) -> None:
        """From here on it is ``pid`` that goes on and reports."""
        protocol.send(self.sock, {"type": "entered", "pid": pid})

    def failed(self, error: Exception) -> NoReturn:
        text, code = told(describe(error, f"after {self._phase}"), of_exec=self._of_exec)
        with contextlib.suppress(OSError):
            protocol.send(self.sock, {"type": "failed", "text": text, "exit_code": code})
        os._exit(1)


def become_init(document: bytes, fds: list[int], ends: Ends, report: Report) -> NoReturn:
    """The container's pid 1. The shim makes its cgroups meanwhile, and then says so."""
    try:
        launch = cast(InitShare, json.loads(document))
        spec, overlay = launch["process"], launch["overlay"]
        syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
        process.prepare(spec)
        os.setsid()
        _join(launch["namespaces"], fds)
        new = [name for name in ("mnt", "uts", "ipc", "net") if launch["namespaces"][name]["mode"] == "new"]
        syscalls.unshare(sum(_FLAGS[name] for name in new))
        if "net" in new:
            _loopback_up()
        report.done("namespaces")
        assembled = rootfs.assemble(overlay)
        report.done("overlay")
        # The plan binds the container's cgroup directories, so they have to be there before its sources are taken.
        if report.sock.recv(16) != b"cgroups":
            os._exit(1)
        sources = rootfs.Sources(launch["mounts"], fds)
        rootfs.isolate()
        root = rootfs.attach(assembled, launch["state_dir"])
        cgroup.join(launch["cgroup_joins"], born_in=report.born_in)
        if launch["namespaces"]["cgroup"]["mode"] == "new":
            # Only now: the cgroup that a process is in when it unshares becomes the root of what it sees.
            syscalls.unshare(syscalls.CLONE_NEWCGROUP)
        report.done("cgroup")
        plan = rootfs.Plan(root, sources)
        plan.carry_out(launch["mounts"])
        if not any(op["kind"] == "bind" and op["target"] == "/dev" for op in launch["mounts"]):
            plan.check_null()
        if launch["namespaces"]["uts"]["mode"] == "new":
            syscalls.sethostname(launch["hostname"].encode())
            if launch["domainname"]:
                syscalls.setdomainname(launch["domainname"].encode())
        for key, value in launch["sysctls"].items():
            _write_sysctl(key, value)
        _make_directory(root, spec["cwd"])
        identity = process.identify(spec, root)
        master = -1
        if spec["tty"]:
            master, slave = terminal.create(root, spec.get("console_size"))
            plan.cover(
                syscalls.open_tree(
                    slave,
                    "",
                    syscalls.OPEN_TREE_CLONE | syscalls.OPEN_TREE_CLOEXEC | syscalls.AT_EMPTY_PATH,
                ),
                "/dev/console",
                directory=False,
            )
            ends = Ends(slave, slave, slave)
        plan.finish()
        if overlay["readonly"]:
            rootfs.make_readonly(root)
        report.done("mounts")
        rootfs.pivot(root, overlay.get("propagation", 0))
        report.done("pivot")
        _take_stdio(ends, tty=spec["tty"])
        _keep_only(report.sock.fileno(), master)  # the working directory may be a path through /proc/self/fd
        given = process.environment(spec, identity)
        process.join_keyring(spec, new=True)
        process.limit(spec)
        process.become(spec, identity)
        file = b"" if launch["init"] else process.find(given.argv[0], process.search_path(given.envp))
        process.reset_signals()
        report.done("privileges")
        report.ready(master)
        if launch["init"]:
            _stay(spec, identity, given, report)
        syscalls.mark_cloexec(_STDIO)
        process.filter_calls(spec)
        process.execute(file, given)
        os._exit(1)
    except Exception as error:
        report.failed(error)


def _stay(spec: Process, identity: users.Identity, given: process.Environment, report: Report) -> NoReturn:
    """Remain as pid 1 with the user's privileges."""
    capabilities = spec["capabilities"]
    syscalls.set_process_name("docker-init")
    title.show(["/sbin/docker-init", "--", *spec["args"]])
    process.filter_calls(spec)
    if identity.uid:
        syscalls.capset(0, 0, 0)
    else:
        syscalls.capset(capabilities["effective"], capabilities["permitted"], capabilities["inheritable"])
    report.sock.detach()
    syscalls.close_range(_STDIO)
    init.run(given, tty=spec["tty"])


def enter(spec: Exec, pidfd: int, ends: Ends, report: Report) -> NoReturn:
    """One more process in the container whose init ``pidfd`` names.

    What the container sees in its /proc has its root and none of the shim's descriptors: with CAP_SYS_PTRACE they would
    be ways out, ``/proc/<pid>/root`` and ``fd``. So this process enters the other namespaces first, and then forks
    into that of processes.
    """
    try:
        wanted = spec["process"]
        if not wanted["cwd"].startswith("/"):
            raise Failed("Cwd must be an absolute path", "runtime")
        process.prepare(wanted)
        cgroup.join(spec["cgroup_joins"], born_in=report.born_in)
        report.done("cgroup")
        _keep_only(pidfd, report.sock.fileno(), *ends)
        syscalls.setns(pidfd, ALL)
        os.close(pidfd)
        _go_on_inside(report)
        os.setsid()
        report.done("namespaces")
        root = Rootdir.of("/")
        identity = process.identify(wanted, root)
        master = -1
        if wanted["tty"]:
            master, slave = terminal.create(root, wanted.get("console_size"))
            ends = Ends(slave, slave, slave)
        _take_stdio(ends, tty=wanted["tty"])
        _keep_only(report.sock.fileno(), master)
        given = process.environment(wanted, identity)
        process.join_keyring(wanted, new=False)
        process.limit(wanted)
        process.become(wanted, identity)
        file = process.find(given.argv[0], process.search_path(given.envp))
        process.reset_signals()
        report.done("privileges")
        report.ready(master)
        syscalls.mark_cloexec(_STDIO)
        process.filter_calls(wanted)
        process.execute(file, given)
        os._exit(1)
    except Exception as error:
        report.failed(error)


def _keep_only(*fds: int) -> None:
    """Close all other descriptors above the first three."""
    first = _STDIO
    for fd in sorted(fds):
        if fd >= first:
            if fd > first:
                syscalls.close_range(first, fd - 1)
            first = fd + 1
    syscalls.close_range(first)


def _go_on_inside(report: Report) -> None:
    """Return in a new process, the shim's child as this one is, which begins when the shim can know of it."""
    begins, begin = os.pipe()
    pid = syscalls.fork_beside()
    if pid:
        report.entered(pid)
        os.write(begin, b"!")
        os._exit(0)
    os.close(begin)
    if not os.read(begins, 1):
        os._exit(1)
    os.close(begins)


def _join(namespaces: Namespaces, fds: list[int]) -> None:
    for namespace, flag in (
        (namespaces["uts"], syscalls.CLONE_NEWUTS),
        (namespaces["ipc"], syscalls.CLONE_NEWIPC),
        (namespaces["net"], syscalls.CLONE_NEWNET),
        (namespaces["cgroup"], syscalls.CLONE_NEWCGROUP),
    ):
        if namespace["mode"] == "fd":
            syscalls.setns(fds[namespace.get("fd", -1)], flag)


def _loopback_up() -> None:
    """A new network namespace has its loopback device down (netdevice(7): SIOCSIFFLAGS 0x8914, IFF_UP 0x1)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock:
        fcntl.ioctl(sock, 0x8914, struct.pack("16sh22x", b"lo", 0x1))


def _write_sysctl(key: str, value: str) -> None:
    """The host's /proc/sys shows each reader the values of its own namespaces. The path is told as runc has it."""
    path = key.replace(".", "/")
    told = f"fsmount:fscontext:proc/./sys/{path}"
    try:
        cgroup.write(f"/proc/sys/{path}", value)
    except FileNotFoundError as error:
        raise Failed(f"open sysctl {key} file: unsafe procfs detected: openat2 {told}: {words(error)}") from error
    except OSError as error:
        raise Failed(f'failed to write sysctl {key} = "{value}": write {told}: {words(error)}') from error


def _make_directory(root: Rootdir, path: str) -> None:
    """The working directory; missing ones are made, as dockerd does (its text is SetupWorkingDirectory's)."""
    try:
        os.close(root.open(path, os.O_PATH | os.O_DIRECTORY))
    except FileNotFoundError:
        try:
            root.makedirs(path)
        except OSError as error:
            raise Failed(f"mkdir {path}: {words(error)}") from error
    except NotADirectoryError as error:
        in_the_way = _no_directory(root, path)
        if root.stat(os.path.dirname(in_the_way)).st_dev == os.fstat(root.fileno()).st_dev:
            raise Failed(f"Cannot mkdir: {path} is not a directory", "engine") from error
        raise Failed(f"mkdir {in_the_way}: {words(error)}") from error
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise Failed(f"mkdir {path}: not a directory") from error  # a descriptor of ours: no way out


def _no_directory(root: Rootdir, path: str) -> str:
    """The part of ``path`` that is there and no directory."""
    names = path.strip("/").split("/")
    parts = ["/" + "/".join(names[: count + 1]) for count in range(len(names))]
    return next((part for part in parts if not stat.S_ISDIR(root.stat(part).st_mode)), path)


def _take_stdio(ends: Ends, *, tty: bool) -> None:
    """Descriptors 0 to 2, and with a terminal the session's control of it."""
    null = -1
    for number, fd in enumerate(ends):
        if fd < 0:
            if null < 0:
                null = _null()
            fd = null
        os.dup2(fd, number)
    if tty:
        terminal.control(0)


def _null() -> int:
    """The container's own /dev/null, whose path then means something in there; the host's if that is not one."""
    try:
        with Rootdir.of("/") as root:
            fd = root.open("/dev/null", os.O_RDWR)
        info = os.fstat(fd)
        if stat.S_ISCHR(info.st_mode) and info.st_rdev == rootfs.DEV_NULL:
            os.set_blocking(fd, True)
            return fd
    except OSError as error:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            raise
    return 0  # the shim's

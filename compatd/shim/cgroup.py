"""A container's control groups: made, filled, joined, and taken away again.

The plan is data (spec.Cgroup). A directory whose ``cgroup.procs`` is joined is the container's own and goes with
it; others in the plan are parents that it shares.
"""

import base64
import contextlib
import ctypes
import errno
import os
import signal
import struct

from compatd.linux import syscalls
from compatd.shim.failures import Failed, words
from compatd.shim.spec import Cgroup

# include/uapi/linux/bpf.h
_BPF_PROG_LOAD = 5
_BPF_PROG_ATTACH = 8
_BPF_PROG_TYPE_CGROUP_DEVICE = 15
_BPF_CGROUP_DEVICE = 6
_BPF_F_ALLOW_MULTI = 2


def birthplace(joins: list[str], directories: list[str]) -> tuple[str, int] | None:
    """The cgroup v2 directory among those to be joined, made (with its parents in ``directories``) and opened for
    clone3(2); None where there is none. The last one is looked at alone. The caller owns the descriptor."""
    if not joins:
        return None
    own = os.path.dirname(joins[-1])
    for directory in directories:
        if own == directory or own.startswith(directory + "/"):
            _make(directory)
    if not os.path.exists(own + "/cgroup.controllers"):
        return None
    return own, os.open(own, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)


def create(plan: Cgroup) -> int:
    """Make the directories and write their values. ``Failed`` in runc's words.

    Returns how many processes had been killed for memory there before: none, where the directories are new.
    """
    own = _own(plan)
    found = [directory for directory in plan["directories"] if not _make(directory)]
    for file, value in plan["writes"]:
        try:
            write(file, value)
        except OSError as error:
            # runc sets these as it makes the group, all others once the process waits in it.
            late = not os.path.basename(file).startswith(("cpu.rt_", "cpuset."))
            raise (_unset if late else _unapplied)(_refused(file, value, error)) from error
    if "device_program" in plan and "device_cgroup" in plan:
        try:
            _attach(base64.b64decode(plan["device_program"]), plan["device_cgroup"])
        except OSError as error:
            raise _unset(words(error)) from error
    return max([_oom_kills(directory) for directory in found if directory in own], default=0)


def _make(directory: str) -> bool:
    """Whether it is new."""
    try:
        os.mkdir(directory, 0o755)
    except FileExistsError:
        return False
    except OSError as error:
        raise _unapplied(f"mkdir {directory}: {words(error)}") from error
    return True


def _unset(why: str) -> Failed:
    return Failed(f"error setting cgroup config for procHooks process: {why}")


def _unapplied(why: str) -> Failed:
    return Failed(f"unable to apply cgroup configuration: {why}", "parent")


def _refused(file: str, value: str, error: OSError) -> str:
    shown = value.replace("\n", "\\n")
    return f'failed to write "{shown}": write {file}: {words(error)}'


def join(files: list[str], *, born_in: str | None) -> None:
    """Move the caller, which has one thread. It must happen before exec, and before CLONE_NEWCGROUP is unshared.

    A process that writes to cgroup.procs waits there for an RCU grace period (5 to 20 ms, the kernel's
    cgroup_threadgroup_rwsem). Two ways around it: in a v1 hierarchy a thread that moves itself alone does not wait;
    and in the v2 one a process can be ``born_in`` its cgroup.
    """
    for file in files:
        directory = os.path.dirname(file)
        if directory == born_in:
            continue
        try:
            try:
                write(directory + "/tasks", "0")
            except FileNotFoundError:
                write(file, "0")
        except OSError as error:
            raise _unapplied(_refused(file, "0", error)) from error


def write(file: str, value: str) -> None:
    """One write(2): the kernel takes a control file's value in one piece or not at all."""
    fd = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, value.encode())
    finally:
        os.close(fd)


def oom_kills(plan: Cgroup) -> int:
    """How many of the container's processes the kernel has killed for memory."""
    return max([_oom_kills(directory) for directory in _own(plan)], default=0)


def _oom_kills(directory: str) -> int:
    for name in ("memory.oom_control", "memory.events"):  # v1, v2
        try:
            fd = os.open(f"{directory}/{name}", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            text = os.read(fd, 4096)
        finally:
            os.close(fd)
        for line in text.splitlines():
            key, _, value = line.partition(b" ")
            if key == b"oom_kill" and value.isdigit():
                return int(value)
    return 0


def kill(plan: Cgroup) -> None:
    """SIGKILL to all that is in there: what a container that shares a pid namespace leaves behind."""
    for directory in _own(plan):
        with contextlib.suppress(OSError):
            fd = os.open(f"{directory}/cgroup.procs", os.O_RDONLY | os.O_CLOEXEC)
            with open(fd, "rb") as file:
                pids = [int(pid) for pid in file.read().split()]
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return


def remove(plan: Cgroup) -> bool:
    """Remove the container's own directories and what it made below. False: something is still dying in there."""
    gone = True
    for directory in _own(plan):
        gone &= _remove(directory)
    return gone


def _own(plan: Cgroup) -> list[str]:
    return [os.path.dirname(file) for file in plan["joins"]]


def _remove(directory: str) -> bool:
    try:
        os.rmdir(directory)
        return True
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno not in (errno.EBUSY, errno.ENOTEMPTY):
            return True  # not ours to remove: the engine's sweep will say so
    with contextlib.suppress(OSError), os.scandir(directory) as found:
        children = [entry.path for entry in found if entry.is_dir(follow_symlinks=False)]
        removed = [_remove(child) for child in children]  # as many as possible
        if children and all(removed):
            os.rmdir(directory)
            return True
    return False


def _attach(program: bytes, directory: str) -> None:
    """Load a device program and attach it to a cgroup v2 directory (bpf(2))."""
    instructions = ctypes.create_string_buffer(program, len(program))
    license_text = ctypes.create_string_buffer(b"Apache")
    loaded = syscalls.bpf(
        _BPF_PROG_LOAD,
        struct.pack(
            "=IIQQIIQII16s",
            _BPF_PROG_TYPE_CGROUP_DEVICE,
            len(program) // 8,
            ctypes.addressof(instructions),
            ctypes.addressof(license_text),
            0,
            0,
            0,
            0,
            0,
            b"compatd_devices",
        ),
    )
    try:
        target = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            syscalls.bpf(_BPF_PROG_ATTACH, struct.pack("=IIII", target, loaded, _BPF_CGROUP_DEVICE, _BPF_F_ALLOW_MULTI))
        finally:
            os.close(target)
    finally:
        os.close(loaded)

"""The spawner: execed once by the engine, forks a shim for each container, one ahead.

One thread, few imports, a frozen heap: what it loads is shared by all its shims, and a start costs a fork rather than
an interpreter. Descriptor 0 is its socket to the engine; when that closes it ends, and its shims go on without it.

It is executed from a detached, read-only copy of the interpreter's mount, which runtime.client makes. Until exec, the
init of a container is this very program, and the container can reach it as /proc/self/exe, which is CVE-2019-5736:
through the copy nobody can write the file, and as soon as this runs the copy is made non-executable too, so that as
an entrypoint, a shebang or an exec it leads nowhere.
"""

import contextlib
import gc
import os
import select
import signal
import socket
import sys
import time
from typing import NoReturn

from compatd.linux import syscalls
from compatd.shim import process, protocol, rehearsal, shim, title


def main(copy_fd: int) -> None:
    """Serve until the engine is gone. ``copy_fd``: the interpreter's detached mount, or -1."""
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
    syscalls.set_process_name("compatd-spawner")
    title.locate()
    title.show(["compatd-spawner"])
    if copy_fd >= 0:
        syscalls.mount_setattr(copy_fd, "", syscalls.AT_EMPTY_PATH, attr_set=syscalls.MOUNT_ATTR_NOEXEC)
    syscalls.close_range(3)
    os.chdir("/")
    os.umask(0o022)
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        # An ignored signal stays ignored across exec: whatever our parent ignored must not reach a container.
        with contextlib.suppress(OSError):
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    # Shims end when their containers have, the spawner with its engine; no terminal or service manager decides that.
    for number in process.IGNORED:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # shims that end are reaped by the kernel
    rehearsal.run()
    gc.disable()
    gc.collect()
    gc.freeze()
    with socket.socket(fileno=0) as engine:
        with contextlib.suppress(BrokenPipeError):  # an engine that has gone already is seen below
            protocol.send(engine, {"type": "ready"})
        while _have_one_ready(engine):
            pass


def _have_one_ready(engine: socket.socket) -> bool:
    """Keep one shim waiting for a launch, until it has taken one; False when the engine has gone.

    It receives the launch itself, so that a start need not wait for its fork, nor for the pages that it writes first.
    """
    told, tells = os.pipe()
    spawner = os.getpid()
    try:
        pid = os.fork()
    except OSError as error:
        print(f"compatd-spawner: fork: {error}", file=sys.stderr, flush=True)
        os.close(told)
        os.close(tells)
        received = protocol.receive_bytes(engine)
        if received is None:
            return False
        received[1].close()  # the engine sees that nobody has begun with it
        return True
    if not pid:
        os.close(told)
        _stand_by(engine, tells, spawner)
    os.close(tells)
    taken = os.read(told, 1)
    os.close(told)
    return bool(taken) or not _hung_up(engine)


def _stand_by(engine: socket.socket, tells: int, spawner: int) -> NoReturn:
    """In the child: wait for a launch and become its shim. ``tells`` is how that is told, once it can be disturbed."""
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)  # without a spawner, another one's shim takes it
    if os.getppid() != spawner:
        os._exit(0)
    shim.warm_up()
    received = protocol.receive_bytes(engine)
    if received is None:
        os._exit(0)
    now = time.monotonic_ns()
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, 0)
    shim.run(*received, tells, now)


def _hung_up(engine: socket.socket) -> bool:
    poll = select.poll()
    poll.register(engine, 0)
    return bool(poll.poll(0))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else -1)

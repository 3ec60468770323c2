"""The minimal init of ``--init``: forwards signals, reaps, ends with its child's status.

It is the forked process itself, which stays as pid 1 rather than executing a program of its own, so that its memory
is shared with all other shims. Behaviour and texts are those of docker-init (tini): github.com/krallin/tini.
The interpreter behind /proc/1/exe cannot be written or executed (see __main__), and nobody inside may look into a
process that is not dumpable.
"""

import contextlib
import errno
import os
import signal
from typing import NoReturn

from compatd.linux import syscalls
from compatd.shim import process

# Signals that tell of a fault of our own.
_OWN = (
    signal.SIGFPE,
    signal.SIGILL,
    signal.SIGSEGV,
    signal.SIGBUS,
    signal.SIGABRT,
    signal.SIGTRAP,
    signal.SIGSYS,
    signal.SIGTTIN,
    signal.SIGTTOU,
)


def run(given: process.Environment, *, tty: bool) -> NoReturn:
    """Start the program as a child and serve it until it ends. Every descriptor above 2 is closed already."""
    forwarded = signal.valid_signals() - set(_OWN)
    signal.pthread_sigmask(signal.SIG_SETMASK, forwarded)
    for ignored in (signal.SIGTTIN, signal.SIGTTOU):
        signal.signal(ignored, signal.SIG_IGN)
    program = os.fork()
    if not program:
        _start(given, tty=tty)
    while True:
        number = signal.sigwait(forwarded)
        if number != signal.SIGCHLD:
            with contextlib.suppress(ProcessLookupError):
                os.kill(program, number)
            continue
        status = _reap(program)
        if status is not None:
            code = os.waitstatus_to_exitcode(status)
            os._exit(code if code >= 0 else 128 - code)


def _reap(program: int) -> int | None:
    """Collect every child that has ended; the program's status if it is among them."""
    ended: int | None = None
    with contextlib.suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                break
            if pid == program:
                ended = status
    return ended


def _start(given: process.Environment, *, tty: bool) -> NoReturn:
    """In the child: a process group in the foreground, default signals, exec by PATH as execvp(3)."""
    os.setpgid(0, 0)
    if tty:
        with contextlib.suppress(OSError):
            os.tcsetpgrp(0, os.getpgrp())
    for number in (signal.SIGTTIN, signal.SIGTTOU):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    name = given.argv[0]
    if not name or b"/" in name:
        files = [name]
    else:
        files = [(directory or b".") + b"/" + name for directory in process.search_path(given.envp).split(b":")]
    failure = errno.ENOENT
    for file in files:
        error = syscalls.execve(file, given.argv, given.envp)
        if error.errno == errno.EACCES:
            failure = errno.EACCES  # remembered, in case nothing better comes
        elif error.errno not in (errno.ENOENT, errno.ENOTDIR):
            failure = error.errno or failure
            break
    os.write(2, b"[FATAL tini (%d)] exec %s failed: %s\n" % (os.getpid(), name, os.strerror(failure).encode()))
    os._exit({errno.ENOENT: 127, errno.EACCES: 126}.get(failure, 1))

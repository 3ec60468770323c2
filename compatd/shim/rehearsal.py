"""The spawner does beforehand, with nothing at stake, what its shims will do.

CPython fills its method cache and specialises code while it runs. Done once before the forks, that is shared; else
each shim would do it again, in pages of its own: 0.4 MiB and a third of a millisecond each (CPython 3.11).
"""

import os
import socket

from compatd.linux import syscalls
from compatd.linux.rootdir import Rootdir
from compatd.shim import container, process, protocol, users
from compatd.shim.failures import Failed
from compatd.shim.logfile import LogFile
from compatd.shim.loop import Loop
from compatd.shim.spec import Capabilities, Log, Process
from compatd.shim.stdio import Stdio

ROUNDS = 20  # code is specialised after 8

_NOBODY = Capabilities(bounding=0, effective=0, permitted=0, inheritable=0, ambient=0)
_PROCESS = Process(
    args=["true"],
    env=["PATH=/usr/bin:/bin"],
    cwd="/",
    user="",
    groups=[],
    capabilities=_NOBODY,
    no_new_privileges=False,
    rlimits=[],
    tty=False,
)


def run() -> None:
    for _ in range(ROUNDS):
        _streams()
        _messages()
        _program()


def _streams() -> None:
    """Output and input of a process with one client, and both their ends."""
    loop = Loop()
    log = LogFile(Log(driver="json-file", path="/dev/null"), loop, lambda: None)
    stdio = Stdio(loop, closes_stdin=True, log=log, detached=lambda: None, changed=lambda: None)
    stdin, stdout, stderr = os.pipe(), os.pipe(), os.pipe()
    client, ours = socket.socketpair()
    stdio.use_pipes(stdin[1], stdout[0], stderr[0])
    stdio.attach(ours, stdin=True, stdout=True, stderr=True, keys=b"", head=b"")
    stdio.begin()
    os.write(stdout[1], b"output\n")
    client.send(b"input")
    _turn(loop)
    client.recv(100)
    for fd in (stdin[0], stdout[1], stderr[1]):
        os.close(fd)
    stdio.process_ended()
    stdio.finish()
    client.close()
    _turn(loop)
    log.close()
    loop.close()


def _turn(loop: Loop) -> None:
    loop.later(0, lambda: None)  # so it does not wait
    loop.turn()


def _messages() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        report = container.Report(ours, of_exec=False, born_in=None)
        report.done("nothing")
        report.ready(-1)
        if (received := protocol.receive(theirs)) is not None:
            received[1].close()


def _program() -> None:
    """What leads to a program in a root."""
    with Rootdir.of("/") as root:
        identity = users.resolve("", [], b"root:x:0:0::/root:/bin/sh\n", b"root:x:0:\n")
        given = process.environment(_PROCESS, identity)
        for path in ("/dev", "/no/such"):
            try:
                os.close(root.open(path, os.O_PATH))
                process.find(given.argv[0], process.search_path(given.envp))
            except (OSError, Failed):
                pass
    syscalls.capget()

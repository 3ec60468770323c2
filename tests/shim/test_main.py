"""The spawner's process: what it loads, and how it behaves towards its engine."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from compatd.runtime.client import Spawner
from compatd.shim import protocol
from tests.engine import ROOT

OURS = {
    "compatd",
    "compatd.linux",
    "compatd.linux.fds",
    "compatd.linux.rootdir",
    "compatd.linux.syscalls",
    "compatd.shim",
    "compatd.shim.__main__",
    "compatd.shim.cgroup",
    "compatd.shim.container",
    "compatd.shim.failures",
    "compatd.shim.init",
    "compatd.shim.jsonlog",
    "compatd.shim.lines",
    "compatd.shim.locallog",
    "compatd.shim.logfile",
    "compatd.shim.loop",
    "compatd.shim.process",
    "compatd.shim.protocol",
    "compatd.shim.rehearsal",
    "compatd.shim.rootfs",
    "compatd.shim.shim",
    "compatd.shim.sink",
    "compatd.shim.spec",
    "compatd.shim.stdio",
    "compatd.shim.terminal",
    "compatd.shim.title",
    "compatd.shim.users",
    "compatd.shim.waiters",
}
# What we import, and what that imports; modules with a leading underscore are the interpreter's business.
STANDARD = set(
    """
    abc array base64 binascii builtins codecs collections contextlib copyreg ctypes encodings enum errno fcntl
    functools gc genericpath io itertools json keyword marshal math operator os platform posix posixpath re reprlib
    resource select selectors signal socket stat struct sys termios time types typing zipimport zlib
    """.split()
)

VARYING = {"linecache", "warnings"}  # between releases of CPython


@pytest.mark.unit
def test_exactly_these_modules_are_loaded() -> None:
    """Every shim shares their memory, and after entering a container nothing may be imported any more."""
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import compatd.shim.__main__; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert {name for name in loaded if name.partition(".")[0] == "compatd"} == OURS
    standard = {name.partition(".")[0] for name in loaded} - {"compatd", "__main__"}
    assert {name for name in standard if not name.startswith("_")} - VARYING == STANDARD


@pytest.mark.root
def test_it_ends_with_its_engine() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from compatd.shim.__main__ import main; main(-1)"
    with ours, theirs:
        spawner = subprocess.Popen([sys.executable, "-I", "-S", "-c", program], stdin=theirs.fileno())
        theirs.close()
        received = protocol.receive(ours)
        assert received is not None
        assert received[0] == {"type": "ready"}
    assert spawner.wait(10) == 0


@pytest.mark.root
async def test_it_runs_from_a_copy_that_cannot_be_written_or_executed(spawner: Spawner) -> None:
    exe = f"/proc/{spawner.pid}/exe"
    assert os.stat(exe).st_ino == os.stat(sys.executable).st_ino
    with pytest.raises(OSError, match=r"Read-only file system|Text file busy"):
        os.open(exe, os.O_WRONLY)
    with pytest.raises(PermissionError):
        os.execve(exe, ["python"], {})
    assert Path(f"/proc/{spawner.pid}/environ").read_bytes() == b""
    assert set(os.listdir(f"/proc/{spawner.pid}/fd")) >= {"0", "1", "2"}


@pytest.mark.root
async def test_a_shim_that_waits_and_dies_is_replaced(spawner: Spawner) -> None:
    children = Path(f"/proc/{spawner.pid}/task/{spawner.pid}/children")

    def waiting() -> str:
        deadline = time.monotonic() + 10
        while not (found := children.read_text().strip()):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return found

    first = waiting()
    os.kill(int(first), signal.SIGKILL)
    deadline = time.monotonic() + 10
    while waiting() == first:
        assert time.monotonic() < deadline
        time.sleep(0.01)

"""Running the stock docker CLI against one engine, with pipes or on a terminal."""

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import termios
import time
from pathlib import Path
from typing import NamedTuple

from tests import clients


class Done(NamedTuple):
    """What a finished command printed."""

    code: int
    out: str
    err: str


class Cli:
    """The docker CLI. ``folder`` holds its configuration, which is empty: no plugins, no credentials."""

    def __init__(self, host: str, folder: Path) -> None:
        self.program = clients.docker_cli()
        self.environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder),
            "DOCKER_CONFIG": str(folder),
            "DOCKER_HOST": host,
            "DOCKER_BUILDKIT": "0",  # also quiets the hint at a plugin that is not there
            "TERM": "xterm",
        }

    def call(self, *words: str, cwd: Path | None = None, stdin: bytes = b"", timeout_s: float = 90) -> Done:
        """Run to the end, whatever comes of it."""
        done = subprocess.run(
            [self.program, *words], cwd=cwd, input=stdin, capture_output=True, timeout=timeout_s, env=self.environment
        )
        return Done(done.returncode, done.stdout.decode(), done.stderr.decode())

    def __call__(self, *words: str, cwd: Path | None = None, stdin: bytes = b"", timeout_s: float = 90) -> str:
        """Run to the end, which must be a success; returns what it printed on stdout."""
        done = self.call(*words, cwd=cwd, stdin=stdin, timeout_s=timeout_s)
        assert done.code == 0, f"docker {' '.join(words)}: exit code {done.code}\n{done.out}{done.err}"
        return done.out

    def start(self, *words: str, cwd: Path | None = None) -> subprocess.Popen[bytes]:
        """Start it with pipes; the caller ends it."""
        return subprocess.Popen(
            [self.program, *words],
            cwd=cwd,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self.environment,
            start_new_session=True,
        )

    def terminal(self, *words: str, rows: int = 24, columns: int = 80) -> "Terminal":
        """Start it on a terminal of its own."""
        return Terminal([str(self.program), *words], self.environment, rows, columns)


class Terminal:
    """A command on a pseudo terminal, as a person at a keyboard has it. A context manager: leaving ends the command."""

    def __init__(self, command: list[str], environment: dict[str, str], rows: int, columns: int) -> None:
        self._master, slave = pty.openpty()
        self.resize(rows, columns)
        self.process = subprocess.Popen(
            command,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment,
            start_new_session=True,
            preexec_fn=_take_terminal,
        )
        os.close(slave)
        self.seen = ""

    def __enter__(self) -> "Terminal":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._master)

    def resize(self, rows: int, columns: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def expect(self, pattern: str, timeout_s: float = 20) -> re.Match[str]:
        """Wait until the screen shows ``pattern``; what came up to it is taken off ``seen``."""
        deadline = time.monotonic() + timeout_s
        while not (match := re.search(pattern, self.seen)):
            if not self._read(deadline):
                raise AssertionError(f"{pattern!r} did not come; the screen: {self.seen[-2000:]!r}")
        self.seen = self.seen[match.end() :]
        return match

    def wait(self, timeout_s: float = 20) -> int:
        """Read until the command ends; returns its exit code."""
        deadline = time.monotonic() + timeout_s
        while self._read(deadline):
            pass
        return self.process.wait(max(0.1, deadline - time.monotonic()))

    def _read(self, deadline: float) -> bool:
        ready, _, _ = select.select([self._master], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return False
        try:
            data = os.read(self._master, 65_536)
        except OSError:  # EIO: nobody has the other side open any more
            return False
        self.seen += data.decode(errors="replace")
        return bool(data)


def _take_terminal() -> None:
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)

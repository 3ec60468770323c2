"""Engines to test: a compatd daemon of our own, or one that runs already (``--engine unix:///…``), such as dockerd.

Our own has everything to itself: network namespace, data root, exec root, cgroup parent, socket. What it leaves
behind when it has ended, anywhere on the machine, is a failed test.
"""

import contextlib
import http.client
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar, TypeVar

from tests import clients, registry
from tests.api import Api
from tests.fixtures import images
from tests.netns import Network
from tests.registry import Registry, wait_until

T = TypeVar("T")

ROOT = Path(__file__).resolve().parent.parent
MIRROR_PORT = 5000
_START_S = 20
_STOP_S = 30
_SETTLE_S = 10


class Engine:
    """An engine under test, as its clients see it."""

    def __init__(self, socket_path: str) -> None:
        self.socket = socket_path
        self.host = f"unix://{socket_path}"
        self.api = Api(socket_path)

    @property
    def address(self) -> str:
        """An address of the machine's own, besides loopback, as the engine's containers publish on it."""
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(("192.0.2.1", 9))  # sends nothing
            return str(probe.getsockname()[0])

    @property
    def registry(self) -> str:
        """Address of the registry with the fixture images, which is the engine's mirror."""
        mirrors = self.api.get("/info").ok()["RegistryConfig"]["Mirrors"]
        if not mirrors:
            raise clients.Unavailable("the engine has no --registry-mirror (see tests/registry.py)")
        return str(mirrors[0]).removeprefix("http://").rstrip("/")

    def inside(self, function: Callable[[], T]) -> T:
        """Run ``function`` where the engine's published ports are on loopback."""
        return function()

    def connect(self) -> None:
        """See to it that containers can reach the internet; ``Unavailable`` when they cannot."""

    def provide(self, *names: str) -> None:
        """See to it that these images can be pulled by name."""

    def load(self, name: str) -> None:
        """See to it that the engine has this image, without pulling."""
        if self.api.get(f"/images/{name}/json").status != 200:
            self.api.post("/images/load", images.archive(name).read_bytes(), quiet="1").ok()

    def fetch(self, port: int, *, host: str = "127.0.0.1", path: str = "/", timeout_s: float = 10) -> str:
        """The page on a published port; ``OSError`` when nobody answers."""

        def get() -> str:
            connection = http.client.HTTPConnection(host, port, timeout=timeout_s)
            try:
                connection.request("GET", path)
                return connection.getresponse().read().decode()
            finally:
                connection.close()

        return self.inside(get)

    def forget_images(self) -> None:
        """Remove all images, so that everything has to be pulled anew."""
        for image in self.api.get("/images/json", all="1").ok():
            self.api.delete(f"/images/{image['Id']}", force="1")
        self.api.post("/images/prune", filters={"dangling": ["true"]}).ok()

    def clear(self) -> None:
        """Remove all containers, and the volumes that nobody uses."""
        for container in self.api.get("/containers/json", all="1").ok():
            self.api.delete(f"/containers/{container['Id']}", force="1", v="1").ok()
        self.api.post("/volumes/prune", filters={"all": ["true"]})


class OwnEngine(Engine):
    """A compatd daemon started here."""

    running: ClassVar[list["OwnEngine"]] = []
    more_flags: ClassVar[tuple[str, ...]] = ()

    def __init__(self, *flags: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="ctd-", dir=_writable_folder()))
        self.name = f"compatd-test-{os.getpid()}-{secrets.token_hex(3)}"
        self.data_root, self.exec_root = self.folder / "data", self.folder / "run"
        self.log = self.folder / "log"
        (self.folder / "daemon.json").touch()  # not the machine's own
        super().__init__(str(self.folder / "sock"))
        self.network = Network()
        self._registry: Registry | None = None
        self._flags = flags
        self._process: subprocess.Popen[bytes] | None = None
        self.connected = False
        self.running.append(self)

    # ------------------------------------------------------------ life

    def start(self) -> None:
        """Start the daemon, also again after ``kill`` or ``stop``; returns when it answers."""
        command = [
            *(sys.executable, "-m", "compatd", "-H", self.host, "--pidfile", str(self.folder / "pid")),
            *("--data-root", str(self.data_root), "--exec-root", str(self.exec_root)),
            *(
                "--config-file",
                str(self.folder / "daemon.json"),
                "--cgroup-parent",
                f"/{self.name}",
                "--mtu",
                str(self.network.mtu),
            ),
            *("--registry-mirror", f"http://127.0.0.1:{MIRROR_PORT}", "--insecure-registry", "127.0.0.0/8"),
            *self._flags,
            *self.more_flags,
        ]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=self.network.enter,
                env={"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "HOME": str(self.folder), "LANG": "C.UTF-8"},
            )
        wait_until(self._answers, "the engine answers", _START_S)

    def _answers(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise RuntimeError(f"the engine ended with {self._process.returncode}:\n{self.log.read_text()[-3000:]}")
        try:
            return self.api.call("GET", "/_ping", timeout_s=5).status == 200
        except OSError:
            return False

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        """kill -9 of the daemon alone."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> int:
        """SIGTERM; returns the daemon's exit code."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(_STOP_S)

    def close(self) -> None:
        """End everything; ``AssertionError`` naming what was left behind and what the daemon's log complains of."""
        complaints: list[str] = []
        self.running.remove(self)
        try:
            if self._process is not None:
                complaints = self._end()
        finally:
            self.end_processes()
            if self._registry is not None:
                self._registry.close()
            self.network.close()
            self.remove_cgroups()
            shutil.rmtree(self.folder, ignore_errors=True)
        assert not complaints, "\n".join(complaints)

    def _end(self) -> list[str]:
        assert self._process is not None
        complaints: list[str] = []
        if self._process.poll() is None:
            try:
                self.clear()
                code = self.stop()
                if code != 0:
                    complaints.append(f"the daemon's exit code is {code}")
            except Exception as error:
                complaints.append(f"the daemon could not be ended in order: {error!r}")
                self.kill()
        deadline = time.monotonic() + _SETTLE_S
        while (left := self.leaks()) and time.monotonic() < deadline:
            time.sleep(0.05)
        log = self.log.read_text(errors="replace")
        # Neither an error of the engine's own nor an expected one that is logged as if it were.
        where = log.find("Traceback (most recent call last)")
        if where >= 0:
            complaints.append(log[max(0, where - 500) : where + 4000])
        elif left:
            complaints.append(log[-3000:])
        return complaints + left

    # ------------------------------------------------------------ what is left on the machine

    def end_processes(self) -> None:
        """SIGKILL for everything that the engine has started, as when the machine goes down."""
        deadline = time.monotonic() + _SETTLE_S
        for folder in self.cgroups():  # what is frozen does not die
            with contextlib.suppress(OSError):
                (folder / "freezer.state").write_text("THAWED")
        while (pids := self.processes()) and time.monotonic() < deadline:
            for pid in pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(0.01)

    def processes(self) -> list[int]:
        """Living processes in the engine's network namespace or in its cgroups, the registry aside."""
        namespace = os.fstat(self.network.fd).st_ino
        spared = {os.getpid(), self._registry.pid if self._registry else 0}
        found: list[int] = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) in spared:
                continue
            with contextlib.suppress(OSError):
                if os.stat(entry / "ns/net").st_ino == namespace or f"/{self.name}" in (entry / "cgroup").read_text():
                    found.append(int(entry.name))
        return found

    def leaks(self) -> list[str]:
        """What the engine, which has ended, has left: processes, mounts, cgroups, links, folders."""
        left = [f"process {pid}: {_command(pid)}" for pid in self.processes()]
        left += [f"mount: {line}" for line in _mounts() if str(self.folder) in line]
        left += [f"cgroup: {path}" for path in self.cgroups() if path.name != self.name]
        left += [f"link: {link}" for link in self.network.links() if link.startswith("veth")]
        for folder in (self.data_root / "containers", self.exec_root / "containers", self.data_root / "ingest"):
            with contextlib.suppress(FileNotFoundError):
                left += [f"left in {folder.name}: {entry}" for entry in os.listdir(folder)]
        return left

    def cgroups(self) -> list[Path]:
        """The engine's cgroups, innermost first."""
        found: list[Path] = []
        for root in [Path("/sys/fs/cgroup"), *Path("/sys/fs/cgroup").glob("*/")]:
            found += [Path(folder) for folder, _, _ in os.walk(root / self.name, topdown=False)]
        return found

    def remove_cgroups(self) -> None:
        for folder in self.cgroups():
            with contextlib.suppress(OSError):
                folder.rmdir()

    # ------------------------------------------------------------ surroundings

    @property
    def registry(self) -> str:
        return f"127.0.0.1:{MIRROR_PORT}"

    @property
    def address(self) -> str:
        return self.network.address

    def inside(self, function: Callable[[], T]) -> T:
        return self.network.call(function)

    def connect(self) -> None:
        if not self.connected:
            self.network.connect()
            self.connected = True

    def provide(self, *names: str) -> None:
        registry.provide(*names)
        if self._registry is None:
            self._registry = Registry(MIRROR_PORT, enter=self.network.enter)
            wait_until(lambda: self.inside(self._registry_answers), "the registry answers")

    def _registry_answers(self) -> bool:
        assert self._registry is not None
        return self._registry.check()


def _writable_folder() -> str:
    """A folder on a file system that can hold an overlay's upper directory."""
    for folder in (os.environ.get("TMPDIR", ""), "/var/tmp", "/dev/shm"):
        if folder and os.path.isdir(folder) and _file_system(folder) != "overlay":
            return folder
    raise clients.Unavailable("no folder outside of an overlay file system")


def _file_system(folder: str) -> str:
    device = os.stat(folder).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        if fields[2] == wanted:
            return fields[fields.index("-") + 1]
    return "unknown"


def _command(pid: int) -> str:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")[:200]
    return "?"


def _mounts() -> set[str]:
    """The lines of every mount namespace's table."""
    lines: set[str] = set()
    seen: set[int] = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                namespace = os.stat(entry / "ns/mnt").st_ino
                if namespace not in seen:
                    seen.add(namespace)
                    lines |= set((entry / "mountinfo").read_text().splitlines())
    return lines

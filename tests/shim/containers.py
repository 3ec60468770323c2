"""Containers straight from the spawner: no images, no engine, a busybox root, and every namespace of their own."""

import asyncio
import base64
import contextlib
import json
import os
import secrets
import shutil
import socket
import struct
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from compatd.runtime.client import Shim, Spawner
from compatd.runtime.host import probe_host
from compatd.shim.spec import Attach, Capabilities, Exec, Exit, Launch, MountOp, Process
from tests.fixtures import images

PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
DOCKER_CAPABILITIES = 0xA80425FB
NOSUID_NODEV_NOEXEC = 0x2 | 0x4 | 0x8
RDONLY = 0x1
WAIT_S = 20


def capabilities(mask: int = DOCKER_CAPABILITIES) -> Capabilities:
    return Capabilities(bounding=mask, effective=mask, permitted=mask, inheritable=0, ambient=0)


def process(*args: str, **changes: Any) -> Process:
    made = Process(
        args=list(args),
        env=[PATH],
        cwd="/",
        user="",
        groups=[],
        capabilities=capabilities(),
        no_new_privileges=False,
        rlimits=[],
        tty=False,
    )
    made.update(changes)  # type: ignore[typeddict-item]
    return made


def basic_mounts() -> list[MountOp]:
    def mount(target: str, fstype: str, flags: int, data: str = "") -> MountOp:
        return MountOp(kind="mount", target=target, source=fstype, fstype=fstype, flags=flags, data=data)

    flags = NOSUID_NODEV_NOEXEC
    plan = [
        mount("/proc", "proc", flags),
        mount("/dev", "tmpfs", 0x2, "mode=755,size=65536k"),
        mount("/dev/pts", "devpts", 0x2 | 0x8, "newinstance,ptmxmode=0666,mode=0620,gid=5"),
        mount("/sys", "sysfs", flags | RDONLY),
        mount("/dev/shm", "tmpfs", flags, "mode=1777,size=65536k"),
    ]
    for name, device in {"null": (1, 3), "zero": (1, 5), "full": (1, 7), "tty": (5, 0), "urandom": (1, 9)}.items():
        plan.append(MountOp(kind="mknod", target=f"/dev/{name}", mode=0o20666, device=device))
    plan += [
        MountOp(kind="symlink", source="/proc/self/fd", target="/dev/fd"),
        MountOp(kind="symlink", source="/proc/self/fd/1", target="/dev/stdout"),
        MountOp(kind="symlink", source="pts/ptmx", target="/dev/ptmx"),
    ]
    return plan


def unpack(root: Path) -> None:
    """The busybox image as a directory."""
    for layer in images.image("busybox:latest").layers:
        with tarfile.open(layer.path) as archive:
            # Python before 3.11.4 has no filters; later ones want to be told.
            archive.extraction_filter = getattr(tarfile, "fully_trusted_filter", None)
            archive.extractall(root)


class Nursery:
    """Makes launches below a folder of its own, and takes away all that they leave."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="compatd-test-shim-", dir="/var/tmp"))
        self.root = self.folder / "root"
        self.root.mkdir()
        unpack(self.root)
        self._parent = f"/compatd-test-{os.getpid()}-{secrets.token_hex(4)}"
        self._roots = list(probe_host().cgroup.mount_points)

    def close(self) -> None:
        for root in self._roots:
            for folder, _, _ in os.walk(root + self._parent, topdown=False):
                with contextlib.suppress(OSError):
                    os.rmdir(folder)
        shutil.rmtree(self.folder, ignore_errors=True)

    def launch(self, *args: str, mounts: Sequence[MountOp] = (), cgroups: bool = False, **changes: Any) -> Launch:
        """A container that runs ``args``. Changes with a name of ``Process`` go there, others into the launch."""
        id_ = secrets.token_hex(32)
        folder = self.folder / id_
        for name in ("state", "upper", "work"):
            (folder / name).mkdir(parents=True)
        directories = [root + self._parent + f"/{id_}" for root in self._roots] if cgroups else []
        writes: list[tuple[str, str]] = []
        for directory in directories:
            parent = Path(directory).parent
            for knob in ("cpuset.cpus", "cpuset.mems"):
                if (parent.parent / knob).exists() and not (parent.parent / "cgroup.controllers").exists():
                    value = (parent.parent / knob).read_text().strip()
                    writes += [(f"{parent}/{knob}", value), (f"{directory}/{knob}", value)]
        made = Launch(
            id=id_,
            state_dir=str(folder / "state"),
            namespaces={
                "pid": {"mode": "new"},
                "mnt": {"mode": "new"},
                "uts": {"mode": "new"},
                "ipc": {"mode": "new"},
                "net": {"mode": "host"},  # making one waits for whoever unmakes one
                "cgroup": {"mode": "new" if cgroups else "host"},
            },
            hostname="shim-test",
            domainname="",
            sysctls={},
            overlay={
                "lowers": [str(self.root)],
                "upper": str(folder / "upper"),
                "work": str(folder / "work"),
                "volatile": True,
                "readonly": False,
            },
            mounts=[*basic_mounts(), *mounts],
            cgroup={
                "directories": [str(Path(directory).parent) for directory in directories] + directories,
                "writes": writes,
                "joins": [f"{directory}/cgroup.procs" for directory in directories],
            },
            process=process(
                *args, **{key: changes.pop(key) for key in list(changes) if key in Process.__annotations__}
            ),
            init=False,
            open_stdin=False,
            stdin_once=False,
            log={"driver": "json-file", "path": str(folder / "log")},
            attaches=[],
            waits=[],
        )
        made.update(changes)  # type: ignore[typeddict-item]
        return made


def output(launch: Launch, stream: str = "stdout") -> str:
    """What the container's log says it has written."""
    text = Path(launch["log"]["path"]).read_text()
    return "".join(record["log"] for record in map(json.loads, text.splitlines()) if record["stream"] == stream)


async def end(shim: Shim) -> Exit:
    """Wait until the container has ended, and let its shim go."""
    exit_ = await asyncio.wait_for(shim.exited, WAIT_S)
    await shim.removed()
    await shim.release()
    shim.close()
    return exit_


async def run(spawner: Spawner, launch: Launch, fds: Sequence[int] = ()) -> Exit:
    return await end(await asyncio.wait_for(spawner.launch(launch, fds), WAIT_S))


class Peer:
    """A client: its side of a connection whose other end is handed to a shim."""

    def __init__(self) -> None:
        self.sock, self._theirs = socket.socketpair()
        self.sock.setblocking(False)

    def give(self) -> int:
        """The descriptor to pass; call ``given`` when it has been."""
        return self._theirs.fileno()

    def given(self) -> None:
        self._theirs.close()

    async def send(self, data: bytes) -> None:
        await asyncio.wait_for(asyncio.get_running_loop().sock_sendall(self.sock, data), WAIT_S)

    def finish(self) -> None:
        """Send no more."""
        self.sock.shutdown(socket.SHUT_WR)

    async def read(self, limit: int = 1 << 16) -> bytes:
        return await asyncio.wait_for(asyncio.get_running_loop().sock_recv(self.sock, limit), WAIT_S)

    async def rest(self) -> bytes:
        """Everything up to the end; the connection is closed then."""
        data = b""
        while chunk := await self.read():
            data += chunk
        self.close()
        return data

    async def until(self, wanted: bytes) -> bytes:
        """Everything up to and with ``wanted``."""
        data = b""
        while wanted not in data:
            chunk = await self.read()
            assert chunk, f"ended after {data!r}"
            data += chunk
        return data

    def close(self) -> None:
        self.sock.close()


def frames(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The multiplexed stream's frames; fails on a broken one."""
    while data:
        stream, length = struct.unpack(">BxxxL", data[:8])
        assert len(data) >= 8 + length
        yield stream, data[8 : 8 + length]
        data = data[8 + length :]


def streams(data: bytes) -> dict[int, bytes]:
    joined: dict[int, bytes] = {}
    for stream, content in frames(data):
        joined[stream] = joined.get(stream, b"") + content
    return joined


def attach(fd: int = 0, **changes: Any) -> Attach:
    made = Attach(fd=fd, stdin=False, stdout=True, stderr=True)
    if "head" in changes:
        changes["head"] = base64.b64encode(changes["head"]).decode()
    made.update(changes)  # type: ignore[typeddict-item]
    return made


def exec_of(launch: Launch, *args: str, attached: Attach | None = None, **changes: Any) -> Exec:
    made = Exec(exec_id=secrets.token_hex(8), process=process(*args, **changes), cgroup_joins=launch["cgroup"]["joins"])
    if attached is not None:
        made["attach"] = attached
    return made

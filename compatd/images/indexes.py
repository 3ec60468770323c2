"""Indexes over layers' tars, as the kernel mounts them: instead of unpacking a layer, it is mounted where it lies.

    <layer>/layer.tar    the contents
            index.erofs  names and attributes, see ``images.erofs``
            side         contents that the tar has in another form; missing in most layers

A mount is detached, made when a layer is first used, and kept as a descriptor for all images that have the layer, so
that containers share its page cache. Nothing of it is in the host's mount namespace, and nothing outlives the engine
but what running containers hold. Where a probe fails, layers are unpacked: kernels before 6.15 do not stack overlayfs
on detached mounts, those before 6.12.10 have faults in mounting from files, and a tmpfs or an overlay is no source.
"""

import errno
import hashlib
import logging
import os
import re
import secrets
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from uuid import uuid4

from compatd.errors import SystemFailure
from compatd.images import tarindex
from compatd.images.content import DiffId
from compatd.images.tar import END, REGULAR, Entry, encode, padding
from compatd.images.tarindex import Tree
from compatd.linux import syscalls

log = logging.getLogger(__name__)

INDEX, SIDE, TAR = "index.erofs", "side", "layer.tar"
MIN_KERNEL = (6, 12, 10)
_ATTRIBUTES = (
    syscalls.MOUNT_ATTR_RDONLY | syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV | syscalls.MOUNT_ATTR_NOEXEC
)


def write_index(tree: Tree, layer: Path, target: Path) -> str:
    """Write the index over the tar in ``layer`` to ``target``, and its side file if it needs one; its digest in hex."""
    with (layer / TAR).open("rb") as tar, (target / SIDE).open("wb") as side:
        index = tarindex.build_index(tree, tar, side, uuid=uuid4().bytes)
        needed = side.seek(0, os.SEEK_END)
    if not needed:
        (target / SIDE).unlink()
    with open(os.open(target / INDEX, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o400), "wb") as file:
        file.write(index)
    return hashlib.sha256(index).hexdigest()


class Mounts:
    """The mounted indexes of a store, a descriptor each until they are dropped or the store is closed."""

    def __init__(self) -> None:
        self._fds: dict[DiffId, int] = {}
        self._lock = threading.Lock()

    def path(self, diff_id: DiffId, layer: Path, verify: Callable[[], None]) -> str:
        """Where a layer's root is, for every process on this machine that may look into ours.

        ``verify`` is called before a layer is mounted, and raises if its index is not to be trusted.
        """
        with self._lock:
            fd = self._fds.get(diff_id)
            if fd is None:
                verify()
                fd = self._fds[diff_id] = mount(layer)
        return f"/proc/{os.getpid()}/fd/{fd}"

    def drop(self, diff_id: DiffId) -> None:
        """Let go of a layer that goes away. Overlays on it are not touched."""
        with self._lock:
            fd = self._fds.pop(diff_id, -1)
        if fd >= 0:
            os.close(fd)

    def close(self) -> None:
        with self._lock:
            while self._fds:
                os.close(self._fds.popitem()[1])


def mount(layer: Path) -> int:
    """A layer's root as a detached mount, whose descriptor the caller owns. OSError if the kernel does not take it."""
    with ExitStack() as opened:

        def handle(name: str) -> str:
            fd = os.open(layer / name, os.O_RDONLY | os.O_CLOEXEC)
            opened.callback(os.close, fd)
            return f"/proc/self/fd/{fd}"  # fsconfig(2) takes at most 255 bytes

        context = syscalls.fsopen("erofs")
        opened.callback(os.close, context)
        syscalls.fsconfig(context, syscalls.FSCONFIG_SET_STRING, "source", handle(INDEX))
        syscalls.fsconfig(context, syscalls.FSCONFIG_SET_STRING, "device", handle(TAR))
        if (layer / SIDE).exists():
            syscalls.fsconfig(context, syscalls.FSCONFIG_SET_STRING, "device", handle(SIDE))
        syscalls.fsconfig(context, syscalls.FSCONFIG_SET_FLAG, "ro")
        syscalls.fsconfig(context, syscalls.FSCONFIG_CMD_CREATE)
        return syscalls.fsmount(context, _ATTRIBUTES)


def probe(directory: Path) -> str:
    """Why layers below ``directory`` cannot be mounted by their indexes; empty if they can. Leaves nothing there."""
    release = os.uname().release
    found = re.match(r"(\d+)\.(\d+)\.(\d+)", release)
    if found is None or tuple(int(number) for number in found.groups()) < MIN_KERNEL:
        return f"Linux {release} is older than {'.'.join(str(number) for number in MIN_KERNEL)}"
    layer = directory / f"probe-{secrets.token_hex(8)}"
    layer.mkdir(mode=0o700)
    try:
        _try(layer)
    except (OSError, SystemFailure) as error:
        return f"mounting EROFS over a tar fails: {error.strerror if isinstance(error, OSError) else error}"
    finally:
        for name in (TAR, INDEX, SIDE):
            (layer / name).unlink(missing_ok=True)
        (layer / "empty").rmdir()
        layer.rmdir()
    return ""


def _try(layer: Path) -> None:
    """Stack overlayfs on the index of a tar with one file, and read that."""
    content = secrets.token_bytes(700)
    (layer / "empty").mkdir()
    tar = encode(Entry(b"file", REGULAR, len(content), xattrs={b"user.probe": b"1"})) + content + padding(700) + END
    (layer / TAR).write_bytes(tar)
    with (layer / TAR).open("rb", buffering=0) as file:
        write_index(tarindex.read_tree(file), layer, layer)
    with ExitStack() as opened:
        fds = [mount(layer)]
        opened.callback(os.close, fds[0])
        fds.append(os.open(layer / "empty", os.O_PATH | os.O_CLOEXEC))
        opened.callback(os.close, fds[1])
        context = syscalls.fsopen("overlay")
        opened.callback(os.close, context)
        for fd in fds:
            syscalls.fsconfig(context, syscalls.FSCONFIG_SET_STRING, "lowerdir+", f"/proc/self/fd/{fd}")
        syscalls.fsconfig(context, syscalls.FSCONFIG_CMD_CREATE)
        root = syscalls.fsmount(context, _ATTRIBUTES)
        opened.callback(os.close, root)
        fd = os.open("file", os.O_RDONLY | os.O_CLOEXEC, dir_fd=root)
        opened.callback(os.close, fd)
        if os.read(fd, 1000) != content or os.getxattr(fd, "user.probe") != b"1":
            raise OSError(errno.EIO, "what is read is not what was written")

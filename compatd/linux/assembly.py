"""A container's tree put together where nobody else sees it: its root file system and its volumes, nothing more.

``docker cp`` shows a container as image, changes and volumes, running or not; never its /proc, /dev or tmpfs. A
running one's mount namespace has those as well, a stopped one has no mounts at all. So the tree is assembled in a
mount namespace of its own, which only descriptors keep alive: whatever happens to the engine, the kernel takes the
mounts away with the last of them.

Entering a mount namespace changes the calling thread for good, so each step runs on a thread made for it.
"""

import errno
import os
import stat
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Self, TypeVar

from compatd.linux import syscalls
from compatd.linux.rootdir import Rootdir
from compatd.linux.threads import on_thread

T = TypeVar("T")

_TREE = syscalls.OPEN_TREE_CLONE | syscalls.OPEN_TREE_CLOEXEC
# A directory that every machine has, and that nothing on the assembling thread needs.
_MOUNT_POINT = "/sys"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bind:
    """A file or directory of the host, with what is mounted below it, at ``target`` inside the tree.

    ``fd``: a detached mount in its place, used up by it; the descriptor stays the caller's.
    """

    source: str
    target: str
    readonly: bool = False
    fd: int | None = None


class Assembly:
    """Owns a private mount namespace; ``root`` is the tree and closes with it. Safe for several threads.

    ``root_fd``: a detached mount, which stays the caller's (and can be assembled only once). Missing targets are
    made in it, unless it is read-only. ``OSError`` if something cannot be mounted.
    """

    def __init__(self, root_fd: int, binds: Sequence[Bind] = (), *, readonly: bool = False) -> None:
        self._namespace, fd = on_thread(lambda: _assemble(root_fd, binds, readonly), name="assembly")
        self.root = Rootdir(fd)

    def run(self, work: Callable[[], T]) -> T:
        """Call ``work`` as one that lives in the namespace: the kernel then refuses to remove what is mounted in it.

        From outside, it takes the mount away instead, and not only here but from the container as well. Paths are
        the engine's own, as everywhere.
        """

        def enter() -> T:
            top = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                syscalls.unshare(syscalls.CLONE_FS)
                syscalls.setns(self._namespace, syscalls.CLONE_NEWNS)
                os.fchdir(top)
                os.chroot(".")
            finally:
                os.close(top)
            return work()

        return on_thread(enter, name="assembly")

    def close(self) -> None:
        self.root.close()
        if self._namespace >= 0:
            os.close(self._namespace)
            self._namespace = -1

    def clone(self, inside: int | None = None) -> int:
        """A detached copy of the tree, or of what the descriptor ``inside`` shows of it, for somebody else to attach.
        The caller owns the result."""
        where = self.root.fileno() if inside is None else inside

        def clone() -> int:
            syscalls.unshare(syscalls.CLONE_FS)
            syscalls.setns(self._namespace, syscalls.CLONE_NEWNS)  # only there may the mount be cloned
            return syscalls.open_tree(where, "", _TREE | syscalls.AT_EMPTY_PATH | syscalls.AT_RECURSIVE)

        return on_thread(clone, name="assembly")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def clone_root(pid: int) -> int:
    """The root file system of a process, without what is mounted below it, as a detached mount of the caller's.

    ``ProcessLookupError`` or ``FileNotFoundError`` if the process has gone.
    """

    def clone() -> int:
        namespace = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        try:
            root = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                syscalls.unshare(syscalls.CLONE_FS)
                syscalls.setns(namespace, syscalls.CLONE_NEWNS)  # only there may the mount be cloned
                return syscalls.open_tree(root, "", _TREE | syscalls.AT_EMPTY_PATH)
            finally:
                os.close(root)
        finally:
            os.close(namespace)

    return on_thread(clone, name="assembly")


def mount_detached(source: str, path: str, fstype: str, flags: int, data: str) -> int:
    """mount(2) as if on the host directory ``path``, seen by nobody. The caller owns the detached mount.

    ``OSError``: what mount(2) says.
    """

    def mount() -> int:
        syscalls.unshare(syscalls.CLONE_NEWNS)
        syscalls.mount("none", "/", "", syscalls.MS_REC | syscalls.MS_PRIVATE)
        syscalls.mount(source, path, fstype, flags, data)
        if flags & syscalls.MS_BIND and flags & syscalls.MS_RDONLY:
            syscalls.mount("", path, "", flags | syscalls.MS_REMOUNT)  # a bind takes no flags at once (mount(2))
        return clone_tree(path)

    return on_thread(mount, name="assembly")


def clone_tree(where: str | int) -> int:
    """A detached copy of a host directory or file, named by path or descriptor, with what is mounted below. The caller
    owns the result."""
    if isinstance(where, int):
        return syscalls.open_tree(where, "", _TREE | syscalls.AT_EMPTY_PATH | syscalls.AT_RECURSIVE)
    return syscalls.open_tree(syscalls.AT_FDCWD, where, _TREE | syscalls.AT_RECURSIVE)


def clone_within(process: int, path: str) -> int:
    """A detached copy of what is mounted at ``path`` in the tree of a process, which a descriptor of its /proc
    directory names. The caller owns the result. ``FileNotFoundError``: nothing is mounted there."""

    def clone() -> int:
        namespace = os.open("ns/mnt", os.O_RDONLY | os.O_CLOEXEC, dir_fd=process)
        try:
            root = Rootdir(os.open("root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=process))
            with root:
                syscalls.unshare(syscalls.CLONE_FS)
                syscalls.setns(namespace, syscalls.CLONE_NEWNS)
                where = root.open(path, os.O_PATH)
                try:
                    if not _is_mount_point(where):
                        raise FileNotFoundError(errno.ENOENT, "nothing is mounted there", path)
                    return syscalls.open_tree(where, "", _TREE | syscalls.AT_EMPTY_PATH | syscalls.AT_RECURSIVE)
                finally:
                    os.close(where)
        finally:
            os.close(namespace)

    return on_thread(clone, name="assembly")


def _is_mount_point(directory: int) -> bool:
    """Only the way up from a mount's own root leads to another mount. Nothing of the tree's /proc is asked."""
    try:
        os.close(syscalls.openat2(directory, "..", os.O_PATH, resolve=syscalls.RESOLVE_NO_XDEV))
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        return True
    return False


def _assemble(root_fd: int, binds: Sequence[Bind], readonly: bool) -> tuple[int, int]:
    with ExitStack() as opened:
        syscalls.unshare(syscalls.CLONE_NEWNS)
        namespace = os.open("/proc/thread-self/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
        opened.callback(os.close, namespace)
        syscalls.mount("none", "/", "", syscalls.MS_REC | syscalls.MS_PRIVATE)
        trees: list[tuple[Bind, int]] = []
        for bind in binds:
            tree = _tree(bind)
            opened.callback(os.close, tree)
            trees.append((bind, tree))
        syscalls.move_mount(root_fd, "", syscalls.AT_FDCWD, _MOUNT_POINT, syscalls.MOVE_MOUNT_F_EMPTY_PATH)
        fd = os.open(_MOUNT_POINT, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        opened.callback(os.close, fd)
        for bind, tree in trees:
            _attach(fd, bind, tree)
        if readonly:
            syscalls.mount_setattr(fd, "", syscalls.AT_EMPTY_PATH, attr_set=syscalls.MOUNT_ATTR_RDONLY)
        # The copies of the host's mounts must not keep its file systems busy: the tree becomes all there is.
        os.fchdir(fd)
        syscalls.pivot_root(".", ".")
        syscalls.umount(".", syscalls.MNT_DETACH)
        return os.dup(namespace), os.dup(fd)


def _tree(bind: Bind) -> int:
    tree = clone_tree(bind.source) if bind.fd is None else os.dup(bind.fd)
    if bind.readonly:
        flags = syscalls.AT_EMPTY_PATH | syscalls.AT_RECURSIVE
        try:
            syscalls.mount_setattr(tree, "", flags, attr_set=syscalls.MOUNT_ATTR_RDONLY)
        except BaseException:
            os.close(tree)
            raise
    return tree


def _attach(root_fd: int, bind: Bind, tree: int) -> None:
    root = Rootdir(os.dup(root_fd))
    with root:
        if not root.exists(bind.target):
            _make_target(root, bind)
        target = root.open(bind.target, os.O_PATH)
    try:
        flags = syscalls.MOVE_MOUNT_F_EMPTY_PATH | syscalls.MOVE_MOUNT_T_EMPTY_PATH
        syscalls.move_mount(tree, "", target, "", flags)
    finally:
        os.close(target)


def _make_target(root: Rootdir, bind: Bind) -> None:
    if os.path.isdir(bind.source) if bind.fd is None else stat.S_ISDIR(os.fstat(bind.fd).st_mode):
        root.makedirs(bind.target)
        return
    target = root.resolve(bind.target)
    root.makedirs(os.path.dirname(target))
    os.close(root.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))

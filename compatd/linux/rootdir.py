"""A directory that paths of others cannot leave: every lookup happens inside it, in the kernel.

Container trees, images and build contexts are written by strangers, and a running container can exchange a
directory for a link between two of our calls. So no path from them is ever joined to one of ours: ``openat2(2)``
resolves it with the directory as its root (absolute links and ``..`` included, as in a chroot), and what is done
to the found file is done through its descriptor, or by its last name relative to its parent's descriptor.

Mounts below the directory are crossed, so that ``/proc/<pid>/root`` shows what the container sees. Magic links
are refused: a container's own procfs may lie below. Opening never waits for a FIFO's other end nor takes a
terminal, and only ``open_regular`` vouches for what was opened.

All functions raise ``OSError`` with the errno of the failed call.
"""

import errno
import os
import stat
from collections.abc import Iterator
from types import TracebackType
from typing import Self

from compatd.linux import syscalls

Path = str | bytes

MAX_LINKS = 40  # fs/namei.c, MAXSYMLINKS
_RESOLVE = syscalls.RESOLVE_IN_ROOT | syscalls.RESOLVE_NO_MAGICLINKS
_MAX_DEPTH = 64


class Rootdir:
    """Owns one descriptor of a directory; the operations take paths inside it. Safe for several threads."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    @classmethod
    def of(cls, path: Path | os.PathLike[str]) -> Self:
        """Open ``path``, a trusted one of the host (links followed)."""
        return cls(os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))

    def fileno(self) -> int:
        """The descriptor; it stays owned by this object. It may be an ``O_PATH`` one."""
        return self._fd

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Looking

    def open(self, path: Path, flags: int, mode: int = 0) -> int:
        """Open inside; the caller owns the descriptor. ``mode`` is subject to the umask.

        A FIFO opens without waiting (its writer's side fails with ENXIO). The descriptor of a regular file
        ignores O_NONBLOCK, which is set.
        """
        flags |= 0 if flags & os.O_PATH else os.O_NONBLOCK | os.O_NOCTTY
        return syscalls.openat2(self._fd, os.fsencode(path) or b".", flags, mode=mode, resolve=_RESOLVE)

    def open_regular(self, path: Path) -> int:
        """Open a regular file for reading; whatever else is there is refused with EISDIR or EINVAL."""
        fd = self.open(path, os.O_RDONLY)
        mode = os.fstat(fd).st_mode
        if stat.S_ISREG(mode):
            return fd
        os.close(fd)
        raise _error(errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL, path)

    def read(self, path: Path, limit_bytes: int) -> bytes:
        """Content of a regular file. EFBIG above ``limit_bytes``."""
        fd = self.open_regular(path)
        with open(fd, "rb") as file:
            data = file.read(limit_bytes + 1)
        if len(data) > limit_bytes:
            raise _error(errno.EFBIG, path)
        return data

    def descend(self, path: Path) -> "Rootdir":
        """A directory inside as a root of its own."""
        return Rootdir(self.open(path, os.O_PATH | os.O_DIRECTORY))

    def stat(self, path: Path) -> os.stat_result:
        return self._stat(path, 0)

    def lstat(self, path: Path) -> os.stat_result:
        return self._stat(path, os.O_NOFOLLOW)

    def exists(self, path: Path) -> bool:
        """Whether following ``path`` ends at something."""
        try:
            self._stat(path, 0)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            if error.errno == errno.ELOOP:
                return False
            raise
        return True

    def _stat(self, path: Path, flags: int) -> os.stat_result:
        fd = self.open(path, os.O_PATH | flags)
        try:
            return os.fstat(fd)
        finally:
            os.close(fd)

    def readlink(self, path: Path) -> bytes:
        """Target of the link at ``path``; EINVAL if that is none."""
        fd = self.open(path, os.O_PATH | os.O_NOFOLLOW)
        try:
            return os.readlink(b"", dir_fd=fd)
        except FileNotFoundError:  # what readlinkat(2) says of an empty path that is no link
            raise _error(errno.EINVAL, path) from None
        finally:
            os.close(fd)

    def entries(self, path: Path = b".") -> list[tuple[bytes, os.stat_result]]:
        """Names and ``lstat`` of what a directory holds, sorted by name."""
        fd = self.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            with os.scandir(fd) as found:
                return sorted((os.fsencode(entry.name), entry.stat(follow_symlinks=False)) for entry in found)
        finally:
            os.close(fd)

    def resolve(self, path: Path) -> bytes:
        """The absolute path inside with every link followed; what does not exist is kept as written.

        A name for showing or for a later walk, never a guarantee: the tree may change meanwhile. ELOOP after
        ``MAX_LINKS`` links.
        """
        pending = os.fsencode(path).split(b"/")[::-1]
        done: list[bytes] = []
        links = 0
        missing = False
        while pending:
            name = pending.pop()
            if name in (b"", b"."):
                continue
            if name == b"..":
                del done[-1:]
                missing = False
                continue
            here = b"/".join([*done, name])
            if not missing:
                try:
                    target = self.readlink(here)
                except (FileNotFoundError, NotADirectoryError):
                    missing = True
                except OSError as error:
                    if error.errno != errno.EINVAL:
                        raise
                else:
                    links += 1
                    if links > MAX_LINKS:
                        raise _error(errno.ELOOP, path)
                    pending += target.split(b"/")[::-1]
                    if target.startswith(b"/"):
                        done.clear()
                    continue
            done.append(name)
        return b"/" + b"/".join(done)

    def open_parent(self, path: Path) -> tuple[int, bytes]:
        """Descriptor of the directory that holds ``path``'s last name, and that name; the caller owns the descriptor.

        The name is one component, fit for the ``dir_fd`` calls. EINVAL where there is none (``/``, ``a/..``).
        """
        parent, _, name = os.fsencode(path).rstrip(b"/").rpartition(b"/")
        if name in (b"", b".", b".."):
            raise _error(errno.EINVAL, path)
        return self.open(parent or b".", os.O_PATH | os.O_DIRECTORY), name

    # Making

    def makedirs(self, path: Path, mode: int = 0o755, uid: int = 0, gid: int = 0) -> None:
        """Make the directory and its missing parents, through links (dangling ones too); made ones get the attributes.

        What exists stays as it is. ENOTDIR where something else is in the way.
        """
        fd = os.dup(self._fd)
        try:
            for name in self.resolve(path).split(b"/"):
                if name:
                    # The walk follows no link: resolve() did, and a link put there since is not to be trusted.
                    below = _enter(fd, name, mode, uid, gid)
                    os.close(fd)
                    fd = below
        finally:
            os.close(fd)

    def symlink(self, target: Path, path: Path) -> None:
        with self._parent(path) as (parent, name):
            os.symlink(os.fsencode(target), name, dir_fd=parent)

    def link(self, target: Path, path: Path) -> None:
        """Hard link ``path`` to the inode at ``target`` (a link itself is not followed)."""
        with self._parent(target) as (source, old), self._parent(path) as (parent, name):
            os.link(old, name, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)

    def mknod(self, path: Path, mode: int, device: int = 0) -> None:
        """``mode`` carries the type; it is subject to the umask."""
        with self._parent(path) as (parent, name):
            os.mknod(name, mode, device, dir_fd=parent)

    def rename(self, old: Path, new: Path) -> None:
        with self._parent(old) as (source, old_name), self._parent(new) as (target, new_name):
            os.rename(old_name, new_name, src_dir_fd=source, dst_dir_fd=target)

    # Changing

    def chown(self, path: Path, uid: int, gid: int, *, follow: bool = True) -> None:
        with self._handle(path, follow) as handle:
            os.chown(handle, uid, gid)

    def chmod(self, path: Path, mode: int) -> None:
        """Follows links, as the kernel has no mode for them."""
        with self._handle(path, True) as handle:
            os.chmod(handle, mode)

    def utime(self, path: Path, mtime_ns: int, *, follow: bool = True) -> None:
        """Set both times to ``mtime_ns``."""
        with self._handle(path, follow) as handle:
            os.utime(handle, ns=(mtime_ns, mtime_ns))

    def xattrs(self, path: Path, *, follow: bool = True) -> dict[str, bytes]:
        with self._handle(path, follow) as handle:
            return {name: os.getxattr(handle, name) for name in os.listxattr(handle)}

    def setxattr(self, path: Path, name: str, value: bytes, *, follow: bool = True) -> None:
        with self._handle(path, follow) as handle:
            os.setxattr(handle, name, value)

    def unlink(self, path: Path) -> None:
        with self._parent(path) as (parent, name):
            os.unlink(name, dir_fd=parent)

    def rmdir(self, path: Path) -> None:
        with self._parent(path) as (parent, name):
            os.rmdir(name, dir_fd=parent)

    def rmtree(self, path: Path) -> None:
        """Remove whatever is at ``path``, with what is below; a link itself goes, not its target. Missing is fine.

        EBUSY at a mount point, with what came before it gone.
        """
        try:
            parent, name = self.open_parent(path)
        except FileNotFoundError:
            return
        try:
            remove_tree(parent, name)
        finally:
            os.close(parent)

    def _parent(self, path: Path) -> "_Parent":
        return _Parent(self, path)

    def _handle(self, path: Path, follow: bool) -> "_Handle":
        return _Handle(self.open(path, os.O_PATH | (0 if follow else os.O_NOFOLLOW)))


def remove_tree(parent: int, name: bytes) -> None:
    """Remove ``name`` in the directory ``parent`` with everything below. Missing is fine. No link is followed.

    Needs few descriptors whatever the depth: directories that lie too deep are first moved up to the top.
    """
    try:
        os.unlink(name, dir_fd=parent)
        return
    except FileNotFoundError:
        return
    except (IsADirectoryError, PermissionError) as error:  # unlink(2): EISDIR on Linux, EPERM elsewhere
        try:
            top = _open_directory(parent, name)
        except NotADirectoryError:
            raise error from None
    try:
        moved = _names(0)
        while _empty(top, top, 0, moved):
            pass
    finally:
        os.close(top)
    os.rmdir(name, dir_fd=parent)


def _names(start: int) -> Iterator[bytes]:
    while True:
        start += 1
        yield b".compatd-removed-%d" % start


def _empty(directory: int, top: int, depth: int, moved: Iterator[bytes]) -> bool:
    """Remove what is below ``directory``; True when something was moved to ``top`` instead."""
    again = False
    with os.scandir(directory) as found:
        children = [(os.fsencode(entry.name), entry.is_dir(follow_symlinks=False)) for entry in found]
    for name, is_directory in children:
        if not is_directory:
            os.unlink(name, dir_fd=directory)
            continue
        if depth == _MAX_DEPTH:
            _move_up(directory, name, top, moved)
            again = True
            continue
        try:
            os.rmdir(name, dir_fd=directory)
            continue
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        child = _open_directory(directory, name)
        try:
            again |= _empty(child, top, depth + 1, moved)
        finally:
            os.close(child)
        os.rmdir(name, dir_fd=directory)
    return again


def _move_up(directory: int, name: bytes, top: int, moved: Iterator[bytes]) -> None:
    for free in moved:
        try:
            os.rename(name, free, src_dir_fd=directory, dst_dir_fd=top)
            return
        except OSError as error:  # the tree itself has that name
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise


def _open_directory(parent: int, name: bytes) -> int:
    return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)


def _enter(parent: int, name: bytes, mode: int, uid: int, gid: int) -> int:
    flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(name, flags, dir_fd=parent)
    except FileNotFoundError:
        try:
            os.mkdir(name, 0o700, dir_fd=parent)
        except FileExistsError:
            return os.open(name, flags, dir_fd=parent)
    fd = os.open(name, flags, dir_fd=parent)
    try:
        os.chown(f"/proc/self/fd/{fd}", uid, gid)
        os.chmod(f"/proc/self/fd/{fd}", mode)  # after chown, which clears set-id bits; whatever the umask
    except BaseException:
        os.close(fd)
        raise
    return fd


class _Parent:
    def __init__(self, root: Rootdir, path: Path) -> None:
        self._found = root.open_parent(path)

    def __enter__(self) -> tuple[int, bytes]:
        return self._found

    def __exit__(self, *_: object) -> None:
        os.close(self._found[0])


class _Handle:
    """An O_PATH descriptor as a path: the calls that want a real descriptor or a path reach its file, even a link."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def __enter__(self) -> str:
        return f"/proc/self/fd/{self._fd}"

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)


def _error(number: int, path: Path) -> OSError:
    return OSError(number, os.strerror(number), os.fsdecode(path))

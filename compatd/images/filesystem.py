"""A container's files as the archive API shows and changes them: ``docker cp``, ``docker export``.

The tree is a ``Rootdir``, be it of a running container or of a stopped one: for Docker's view (the root file system
and the volumes, without /proc and its like) see ``linux.assembly``. Texts and kinds of errors are Docker's
(moby daemon/archive_unix.go, daemon/containerfs_linux.go), with their traces of the calls that failed.
"""

import errno
import os
import posixpath
import stat
from collections.abc import Generator
from dataclasses import dataclass, replace

from compatd.errors import InvalidParameter, NotFound, SystemFailure
from compatd.images.compression import decompressed
from compatd.images.streams import Readable
from compatd.images.tar import BadArchive
from compatd.images.trees import Packer, unpack
from compatd.linux.rootdir import Rootdir

# Go's io/fs, FileMode: what the client is told.
_MODE_DIR = 1 << 31
_MODE_SYMLINK = 1 << 27
_MODE_DEVICE = 1 << 26
_MODE_NAMED_PIPE = 1 << 25
_MODE_SOCKET = 1 << 24
_MODE_SETUID = 1 << 23
_MODE_SETGID = 1 << 22
_MODE_CHAR_DEVICE = 1 << 21
_MODE_STICKY = 1 << 20
_MODE_TYPES = {
    stat.S_IFREG: 0,
    stat.S_IFDIR: _MODE_DIR,
    stat.S_IFLNK: _MODE_SYMLINK,
    stat.S_IFBLK: _MODE_DEVICE,
    stat.S_IFCHR: _MODE_DEVICE | _MODE_CHAR_DEVICE,
    stat.S_IFIFO: _MODE_NAMED_PIPE,
    stat.S_IFSOCK: _MODE_SOCKET,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PathStat:
    """What ``X-Docker-Container-Path-Stat`` tells. ``mode`` has the bits of Go's FileMode."""

    name: str
    size_bytes: int
    mode: int
    mtime_ns: int
    link_target: str


def stat_path(root: Rootdir, path: str, *, container: str) -> PathStat:
    """Look at ``path``; a link is shown itself, with where it finally leads, unless a ``/`` or ``/.`` follows it.

    ``container``: its name as the user gave it, for the text of NotFound. SystemFailure for a path that cannot be
    walked.
    """
    absolute = _absolute(path)
    try:
        status = root.lstat(absolute)
        target = root.resolve(absolute) if stat.S_ISLNK(status.st_mode) else b""
    except OSError as error:
        raise _lookup_failed(error, absolute, path, container) from error
    return PathStat(
        name=_base(path),
        size_bytes=status.st_size,
        mode=go_mode(status.st_mode),
        mtime_ns=status.st_mtime_ns,
        link_target=os.fsdecode(target),
    )


def tar_path(root: Rootdir, path: str, *, container: str) -> tuple[PathStat, Generator[bytes]]:
    """What is at ``path`` as an archive, its names beginning with ``path``'s last one (``.`` for a trailing ``/.``).

    The iterator reads while it is consumed and wants ``root`` open until then; close it to stop early. Errors as
    ``stat_path``.
    """
    found = stat_path(root, path, container=container)
    absolute = _absolute(path)
    found = replace(found, name=_base(absolute))
    packer = Packer(root, os.fsencode(absolute), name=os.fsencode(found.name))
    return found, _packed(packer, absolute, path, container)


def export(root: Rootdir) -> Generator[bytes]:
    """The whole tree as an archive, names relative. As ``tar_path`` for reading and closing."""
    return _packed(Packer(root), "/", "/", "")


def _packed(packer: Packer, absolute: str, path: str, container: str) -> Generator[bytes]:
    try:
        yield from packer
    except OSError as error:  # gone since it was looked at, or unreadable
        raise _lookup_failed(error, absolute, path, container) from error


def extract(
    root: Rootdir,
    path: str,
    stream: Readable,
    *,
    container: str,
    keep_kinds: bool = False,
    owner: tuple[int, int] | None = None,
) -> None:
    """Unpack an archive, compressed or not, into the directory ``path``; links lead nowhere outside of that.

    ``keep_kinds``: noOverwriteDirNonDir. ``owner``: copyUIDGID, whom everything shall belong to. NotFound,
    InvalidParameter (not a directory, read-only, a bad archive) or SystemFailure; what was unpacked stays.
    """
    absolute = _absolute(path)
    try:
        shown = root.resolve(absolute)
        fd = root.open(absolute, os.O_PATH)
    except OSError as error:
        if error.errno == errno.ENOTDIR and not absolute.endswith(("/", "/.")):  # the links on the way come first
            raise SystemFailure("not a directory") from error
        raise _lookup_failed(error, absolute, path, container) from error
    with Rootdir(fd) as top:
        if not stat.S_ISDIR(os.fstat(fd).st_mode):
            raise InvalidParameter("extraction point is not a directory")
        if os.fstatvfs(fd).f_flag & os.ST_RDONLY:
            in_volume = os.fstat(fd).st_dev != os.fstat(root.fileno()).st_dev
            raise InvalidParameter(
                "mounted volume is marked read-only" if in_volume else "container rootfs is marked read-only"
            )
        try:
            unpack(decompressed(stream), top, shown=shown, keep_kinds=keep_kinds, owner=owner)
        except BadArchive as error:
            if isinstance(error.__cause__, FileNotFoundError):
                raise file_not_found(path, container) from error  # whatever it is that was not found
            raise


def go_mode(mode: int) -> int:
    """A kernel's mode in the bits of Go's FileMode."""
    bits = mode & 0o777 | _MODE_TYPES.get(stat.S_IFMT(mode), 0)
    bits |= _MODE_SETUID if mode & stat.S_ISUID else 0
    bits |= _MODE_SETGID if mode & stat.S_ISGID else 0
    bits |= _MODE_STICKY if mode & stat.S_ISVTX else 0
    return bits


def file_not_found(path: str, container: str) -> NotFound:
    return NotFound(f"Could not find the file {path} in container {container}")


def _lookup_failed(error: OSError, absolute: str, path: str, container: str) -> Exception:
    if error.errno == errno.ENOENT:
        return file_not_found(path, container)
    return SystemFailure(f"lstat {absolute}: {(error.strerror or 'input/output error').lower()}")


def _absolute(path: str) -> str:
    """Cleaned, but a trailing ``/`` or ``/.`` means a directory and stays (moby, PreserveTrailingDotOrSeparator)."""
    if "\0" in path:
        raise SystemFailure(f"lstat /{path.lstrip('/')}: invalid argument")
    cleaned = posixpath.normpath("/" + path.lstrip("/"))
    if _base(path) == ".":
        return cleaned.rstrip("/") + "/."
    if path.endswith("/") and cleaned != "/":
        return cleaned + "/"
    return cleaned


def _base(path: str) -> str:
    """Go's path/filepath, Base."""
    if not path:
        return "."
    return path.rstrip("/").rpartition("/")[2] or "/"

"""File trees to copy from: a build context that is still a tar, and the root of an image.

A context is not unpacked: its archive is indexed, and content is read where it lies in the file, so nothing
that a context holds ever touches the host's tree. An image is a directory descriptor, walked with
``openat2`` only. Paths are tuples of names, free of links and of ``..``; ``resolve`` makes them.
"""

import contextlib
import errno
import io
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import BinaryIO, Protocol, cast

from compatd.builder.globs import BadPattern, Step, Subject, parse_path_pattern
from compatd.builder.ports import TarEntry
from compatd.errors import InvalidParameter, SystemFailure
from compatd.linux import syscalls
from compatd.linux.rootdir import Rootdir

Parts = tuple[bytes, ...]

CHUNK_BYTES = 1 << 20
MAX_LINKS = 255
MAX_PATH_BYTES = 4096
MAX_DEPTH = 300
MAX_ENTRIES = 2_000_000


class Kind(Enum):
    """The type of a file; the value is its tar type flag."""

    FILE = b"0"
    SYMLINK = b"2"
    CHAR = b"3"
    BLOCK = b"4"
    DIRECTORY = b"5"
    FIFO = b"6"


_KINDS = {kind.value: kind for kind in Kind}
_KIND_OF_MODE = {
    stat.S_IFREG: Kind.FILE,
    stat.S_IFLNK: Kind.SYMLINK,
    stat.S_IFCHR: Kind.CHAR,
    stat.S_IFBLK: Kind.BLOCK,
    stat.S_IFDIR: Kind.DIRECTORY,
    stat.S_IFIFO: Kind.FIFO,
}


class Content(Protocol):
    """Where the bytes of a regular file are."""

    def chunks(self) -> Iterator[bytes]:
        """The content, piece by piece. ``SystemFailure`` if it is not there any more in full."""
        ...


@dataclass(slots=True, eq=False, kw_only=True)
class Inode:
    """A file; two names of one inode are hard links. ``children`` of directories that are held in memory."""

    kind: Kind
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    size: int = 0
    target: bytes = b""
    device: int = 0
    xattrs: Mapping[bytes, bytes] = field(default_factory=dict[bytes, bytes])
    content: Content | None = None
    children: dict[bytes, "Inode"] = field(default_factory=dict[bytes, "Inode"])

    @property
    def is_directory(self) -> bool:
        return self.kind is Kind.DIRECTORY


class Tree(Protocol):
    """Something to copy from."""

    def lookup(self, parts: Parts) -> Inode | None:
        """What has this path, links not followed; None if nothing has."""
        ...

    def list(self, parts: Parts) -> list[tuple[bytes, Inode]]:
        """What a directory holds, sorted by name."""
        ...


@dataclass(frozen=True, slots=True)
class FileRange:
    """Content in a file of ours: the stored parts of it, holes between them."""

    fd: int
    offset: int
    size: int
    segments: tuple[tuple[int, int], ...] | None = None

    def chunks(self) -> Iterator[bytes]:
        if self.segments is None:
            yield from self._stored(self.offset, self.size)
            return
        done, offset = 0, self.offset
        for start, size in (*self.segments, (self.size, 0)):
            while done < start:
                step = min(CHUNK_BYTES, start - done)
                yield bytes(step)
                done += step
            yield from self._stored(offset, size)
            done += size
            offset += size

    def _stored(self, offset: int, size: int) -> Iterator[bytes]:
        while size:
            data = os.pread(self.fd, min(size, CHUNK_BYTES), offset)
            if not data:
                raise SystemFailure("unexpected EOF")
            yield data
            offset += len(data)
            size -= len(data)


class Section(io.RawIOBase):
    """A part of a file as a file of its own, read by position; the descriptor is not owned."""

    def __init__(self, fd: int, offset: int, size: int) -> None:
        super().__init__()
        self._fd = fd
        self._offset = offset
        self._size = size
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def fileno(self) -> int:
        return self._fd

    def read(self, size: int = -1, /) -> bytes:
        left = max(0, self._size - self._at)
        wanted = left if size < 0 else min(size, left)
        data = os.pread(self._fd, wanted, self._offset + self._at) if wanted else b""
        self._at += len(data)
        return data


def open_section(fd: int, offset: int = 0, size: int | None = None) -> BinaryIO:
    """A part of a file of ours, or all of it; the descriptor stays the caller's."""
    return cast("BinaryIO", Section(fd, offset, os.fstat(fd).st_size if size is None else size))


@dataclass(frozen=True, slots=True)
class RootFile:
    """Content of a file in a root directory; exactly ``size`` bytes of it."""

    root: Rootdir
    path: bytes
    size: int

    def chunks(self) -> Iterator[bytes]:
        fd = self.root.open_regular(self.path)
        try:
            left = self.size
            while left:
                data = os.read(fd, min(left, CHUNK_BYTES))
                if not data:
                    raise SystemFailure("unexpected EOF")
                yield data
                left -= len(data)
        finally:
            os.close(fd)


class RootTree:
    """The tree of a directory descriptor, which it owns; close it when no content of it is needed any more."""

    def __init__(self, fd: int) -> None:
        self._root = Rootdir(fd)
        self._linked: dict[tuple[int, int], Inode] = {}

    def close(self) -> None:
        self._root.close()

    def lookup(self, parts: Parts) -> Inode | None:
        path = b"/".join(parts) or b"."
        flags = os.O_PATH | os.O_NOFOLLOW
        resolve = syscalls.RESOLVE_IN_ROOT | syscalls.RESOLVE_NO_SYMLINKS
        try:
            fd = syscalls.openat2(self._root.fileno(), path, flags, resolve=resolve)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG):
                return None
            raise
        try:
            return self._inode(path, fd)
        finally:
            os.close(fd)

    def list(self, parts: Parts) -> list[tuple[bytes, Inode]]:
        path = b"/".join(parts) or b"."
        fd = self._root.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            found: list[tuple[bytes, Inode]] = []
            for name in sorted(map(os.fsencode, os.listdir(fd))):
                below = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
                try:
                    inode = self._inode(path + b"/" + name, below)
                finally:
                    os.close(below)
                if inode is not None:
                    found.append((name, inode))
            return found
        finally:
            os.close(fd)

    def read(self, path: str, limit_bytes: int) -> bytes:
        """A regular file's content, links followed inside. ``OSError`` as the kernel says."""
        return self._root.read(path, limit_bytes)

    def _inode(self, path: bytes, fd: int) -> Inode | None:
        status = os.fstat(fd)
        kind = _KIND_OF_MODE.get(stat.S_IFMT(status.st_mode))
        if kind is None:  # a socket: no archive holds one
            return None
        key = (status.st_dev, status.st_ino)
        shared = status.st_nlink > 1 and kind is not Kind.DIRECTORY
        if shared and (known := self._linked.get(key)) is not None:
            return known
        size = status.st_size if kind is Kind.FILE else 0
        inode = Inode(
            kind=kind,
            mode=stat.S_IMODE(status.st_mode),
            uid=status.st_uid,
            gid=status.st_gid,
            mtime_ns=status.st_mtime_ns,
            size=size,
            target=os.readlink(b"", dir_fd=fd) if kind is Kind.SYMLINK else b"",
            device=status.st_rdev if kind in (Kind.CHAR, Kind.BLOCK) else 0,
            content=RootFile(self._root, path, size) if kind is Kind.FILE else None,
        )
        if kind in (Kind.FILE, Kind.DIRECTORY):
            inode.xattrs = _read_xattrs(fd)
        if shared:
            self._linked[key] = inode
        return inode


def _read_xattrs(fd: int) -> dict[bytes, bytes]:
    path = f"/proc/self/fd/{fd}"  # the calls on descriptors refuse O_PATH ones
    try:
        return {os.fsencode(name): os.getxattr(path, name) for name in os.listxattr(path)}
    except OSError as error:
        if error.errno in (errno.ENOTSUP, errno.EPERM):
            return {}
        raise


class ArchiveTree:
    """The tree that unpacking an archive would give, its content left in the archive's file.

    Like an unpacking in a chroot: an entry replaces what had its name before, parents that are missing are
    made, and a link among the parents is followed inside. The file must outlive the tree; it is not owned.
    """

    def __init__(self) -> None:
        self._root = Inode(kind=Kind.DIRECTORY, mode=0o755)

    @classmethod
    def index(cls, entries: Iterable[tuple[TarEntry, int]], fd: int) -> "ArchiveTree":
        """Index an archive that is the file ``fd``. ``InvalidParameter`` with Docker's words for one that lies."""
        end = os.fstat(fd).st_size
        tree = cls()
        last_dir, last_parent = b"\0", tree._root
        for count, (entry, offset) in enumerate(entries):
            if count > MAX_ENTRIES:
                raise InvalidParameter(f"archive has more than {MAX_ENTRIES} entries")
            directory, _, name = entry.name.rpartition(b"/")
            if directory == last_dir and _is_plain(name):  # the next file of the same directory
                parent = last_parent
            else:
                parts = clean(entry.name)
                if not parts:
                    if entry.type == Kind.DIRECTORY.value:
                        _describe(tree._root, entry)
                    continue
                name = parts[-1]
                parent = tree._make_parent(parts[:-1])
            inode = tree._make(entry, fd, offset, end)
            previous = parent.children.get(name)
            if inode.is_directory:
                if previous is not None and previous.is_directory:
                    inode.children = previous.children
                last_dir = b"\0"
            elif directory != last_dir:
                last_dir, last_parent = directory, parent
            if previous is not None:  # what was there may have been the remembered parent, or above it
                last_dir = b"\0"
            parent.children[name] = inode
        return tree

    def _make(self, entry: TarEntry, fd: int, offset: int, end: int) -> Inode:
        if entry.type == b"1":
            return self.linked(entry, self.lookup)
        return make_inode(entry, fd, offset, end)

    @staticmethod
    def linked(entry: TarEntry, find: Callable[[Parts], Inode | None]) -> Inode:
        """The inode that a hard link entry names. ``InvalidParameter`` if there is none to link to."""
        try:
            target = clean(entry.linkname)
        except InvalidParameter:
            raise InvalidParameter(f"invalid hardlink target {_quote(entry.linkname)}") from None
        inode = find(resolve(find, target[:-1]) + target[-1:]) if target else None
        if inode is None or inode.is_directory:
            shown = b"/".join(target).decode("utf-8", "replace")
            name = b"/".join(clean(entry.name)).decode("utf-8", "replace")
            raise InvalidParameter(f"linkat {shown} {name}: no such file or directory")
        return inode

    def _make_parent(self, parts: Parts) -> Inode:
        parent = self._root
        for name in resolve(self.lookup, parts):
            below = parent.children.get(name)
            if below is None:
                below = parent.children[name] = Inode(kind=Kind.DIRECTORY, mode=0o755)
            elif not below.is_directory:
                raise InvalidParameter(f"mkdir {_show(parts)}: not a directory")
            parent = below
        return parent

    def lookup(self, parts: Parts) -> Inode | None:
        inode = self._root
        for name in parts:
            below = inode.children.get(name)
            if below is None:
                return None
            inode = below
        return inode

    def list(self, parts: Parts) -> list[tuple[bytes, Inode]]:
        inode = self.lookup(parts)
        return sorted(inode.children.items(), key=_name) if inode is not None else []

    def remove(self, parts: Parts) -> None:
        """Forget what has this path, with what is below."""
        parent = self.lookup(parts[:-1])
        if parent is not None and parts:
            parent.children.pop(parts[-1], None)


def _is_plain(name: bytes) -> bool:
    return name not in (b"", b".", b"..") and len(name) <= 255 and b"\0" not in name


def _name(item: tuple[bytes, Inode]) -> bytes:
    return item[0]


def make_inode(entry: TarEntry, fd: int, offset: int, end: int) -> Inode:
    """The inode of an entry that is no hard link, its content at ``offset`` of an archive that ends at ``end``.

    ``InvalidParameter`` for a type that no file has, and for content that is not there.
    """
    kind = _KINDS.get(entry.type)
    if kind is None:
        raise InvalidParameter(f"unhandled tar header type {entry.type[0] if entry.type else 0}")
    inode = Inode(kind=kind, size=entry.size, target=entry.linkname if kind is Kind.SYMLINK else b"")
    if kind is Kind.FILE:
        stored = entry.size if entry.segments is None else sum(size for _, size in entry.segments)
        if offset + stored > end:
            raise InvalidParameter("unexpected EOF")
        inode.content = FileRange(fd, offset, entry.size, entry.segments)
    _describe(inode, entry)
    if kind is Kind.SYMLINK:
        inode.mode = 0o777
    return inode


def _describe(inode: Inode, entry: TarEntry) -> None:
    inode.mode = entry.mode
    inode.uid = entry.uid
    inode.gid = entry.gid
    inode.mtime_ns = entry.mtime_ns
    inode.device = entry.device
    inode.xattrs = entry.xattrs


def clean(name: bytes) -> Parts:
    """An archive's name relative to its root. ``InvalidParameter`` for one that leads outside or that cannot be."""
    parts: list[bytes] = []
    for part in name.split(b"/"):
        if part in (b"", b"."):
            continue
        if part == b"..":
            if not parts and not name.startswith(b"/"):
                raise InvalidParameter(f"invalid entry name {_quote(name)}")
            del parts[-1:]
            continue
        if len(part) > 255:
            raise InvalidParameter(f"invalid entry name {_quote(name[:64])}: file name too long")
        parts.append(part)
    if b"\0" in name or len(name) > MAX_PATH_BYTES or len(parts) > MAX_DEPTH:
        raise InvalidParameter(f"invalid entry name {_quote(name[:64])}")
    return tuple(parts)


def _quote(name: bytes) -> str:
    return '"' + name.decode("utf-8", "backslashreplace").replace("\0", "\\x00") + '"'


def _show(parts: Parts) -> str:
    return "/" + b"/".join(parts).decode("utf-8", "replace")


def split(path: bytes) -> Parts:
    """The names of a path, cleaned lexically; ``..`` stops at the root."""
    parts: list[bytes] = []
    for part in path.split(b"/"):
        if part == b"..":
            del parts[-1:]
        elif part not in (b"", b"."):
            parts.append(part)
    return tuple(parts)


def resolve(find: Callable[[Parts], Inode | None], path: Parts, scope: Parts = ()) -> Parts:
    """The path below ``scope`` with every link followed, none of which leads out of it; a missing rest stays.

    The result includes ``scope``. ``InvalidParameter`` after too many links.
    """
    pending = list(reversed(path))
    done = list(scope)
    links = 0
    missing = False
    while pending:
        name = pending.pop()
        if name in (b"", b"."):
            continue
        if name == b"..":
            if len(done) > len(scope):
                done.pop()
            missing = False
            continue
        inode = None if missing else find((*done, name))
        if inode is None:
            missing = True
        elif inode.kind is Kind.SYMLINK:
            links += 1
            if links > MAX_LINKS or len(pending) > MAX_PATH_BYTES:
                raise InvalidParameter(f"too many links in {_show(path)}")
            pending += reversed(inode.target.split(b"/"))
            if inode.target.startswith(b"/"):
                del done[len(scope) :]
            continue
        done.append(name)
    return tuple(done)


def walk(tree: Tree, parts: Parts) -> Iterator[tuple[Parts, Inode]]:
    """Everything below a directory, parents before children, sorted by name; links are not followed."""
    if len(parts) > MAX_DEPTH:
        raise InvalidParameter(f"{_show(parts)[:64]}…: directories are nested too deeply")
    for name, inode in tree.list(parts):
        path = (*parts, name)
        yield path, inode
        if inode.is_directory:
            yield from walk(tree, path)


def has_wildcards(pattern: str) -> bool:
    """Whether a source of COPY or ADD is a pattern."""
    escaped = False
    for char in pattern:
        if not escaped and char in "*?[":
            return True
        escaped = char == "\\" and not escaped
    return False


def match(tree: Tree, pattern: str) -> list[Parts]:
    """The paths that a pattern matches, as Go's filepath.Match on every path of the tree, in walking order.

    A malformed pattern matches nothing.
    """
    segments: list[tuple[Step, ...]] = []
    with contextlib.suppress(BadPattern):
        segments = [parse_path_pattern(segment) for segment in split_pattern(pattern)]
    return list(_match(tree, (), segments)) if segments else []


def _match(tree: Tree, parts: Parts, segments: list[tuple[Step, ...]]) -> Iterator[Parts]:
    for name, inode in tree.list(parts):
        if not Subject(os.fsdecode(name)).matches(segments[0]):
            continue
        if len(segments) == 1:
            yield (*parts, name)
        elif inode.is_directory:
            yield from _match(tree, (*parts, name), segments[1:])


def split_pattern(pattern: str) -> list[str]:
    """A pattern's segments: it is cut at the slashes that are neither escaped nor in a class."""
    segments: list[str] = []
    start = at = 0
    in_class = False
    while at < len(pattern):
        char = pattern[at]
        if char == "\\":
            at += 1
        elif char == "[":
            in_class = True
        elif char == "]":
            in_class = False
        elif char == "/" and not in_class:
            segments.append(pattern[start:at])
            start = at + 1
        at += 1
    segments.append(pattern[start:])
    return segments

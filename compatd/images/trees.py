"""Directory trees from archives and archives from directory trees, inside a ``Rootdir``.

Unpacking is what layers, build contexts and ``docker cp`` share. The archive is hostile and, for a running
container, so is the tree: parents are opened in the kernel inside the root, everything else happens to one name
in an opened parent, and what must wait for the end (a directory's times) is done to the inode it was meant for.

Whiteouts: archives mark a removed name by ``.wh.<name>`` and a directory that hides the lower ones by
``.wh..wh..opq`` (OCI image spec, layer.md, "Whiteouts"); overlayfs wants a 0/0 character device and the attribute
``trusted.overlay.opaque`` (kernel, filesystems/overlayfs.rst). Both functions translate when asked to.

Everything here blocks, and what fails half way stays half done: callers that want all or nothing stage.
"""

import errno
import os
import stat
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from compatd.errors import EngineError, SystemFailure
from compatd.images.streams import Readable
from compatd.images.tar import (
    BLOCK,
    CHAR,
    DIRECTORY,
    END,
    LINK,
    REGULAR,
    SYMLINK,
    BadArchive,
    Entry,
    TarReader,
    components,
    encode,
    entry_of,
    padding,
    show,
)
from compatd.linux.rootdir import Rootdir, remove_tree

WHITEOUT_PREFIX = b".wh."
OPAQUE_NAME = b".wh..wh..opq"
AUFS_PREFIX = b".wh..wh."
_OPAQUE = "trusted.overlay.opaque"
_ORIGIN = "trusted.overlay.origin"
_REDIRECTIONS = ("trusted.overlay.redirect", "trusted.overlay.metacopy")

_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_MAX_PARENTS = 64
_MAX_TIME_NS = (1 << 63) - 1
_BATCH_BYTES = 1 << 18
_READ_BYTES = 1 << 20
_NODE_TYPES = {CHAR: stat.S_IFCHR, BLOCK: stat.S_IFBLK, b"6": stat.S_IFIFO}
# What an archive can provoke; every other error is the machine's.
_ARCHIVE_FAULTS = {
    errno.EEXIST,
    errno.EFBIG,
    errno.EINVAL,
    errno.EISDIR,
    errno.ELOOP,
    errno.EMLINK,
    errno.ENAMETOOLONG,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.ENOTEMPTY,
    errno.EPERM,
    errno.EXDEV,
}
# What is found instead of a thing of the kind that was listed a moment ago.
_CHANGED = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EINVAL, errno.ENXIO, errno.ENODATA}


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """What a tree or an archive amounts to."""

    entries: int
    size_bytes: int
    """Docker's notion of a layer's size: content of files and length of links (moby pkg/directory, Size)."""


def unpack(
    stream: Readable,
    root: Rootdir,
    *,
    shown: bytes = b".",
    whiteouts: bool = False,
    private: bool = False,
    keep_kinds: bool = False,
    owner: tuple[int, int] | None = None,
) -> Contents:
    """Unpack an uncompressed tar into ``root``, replacing what is there.

    Links on the way are followed inside ``root``, whose own attributes stay. ``shown``: its name, for texts.

    ``private``: nobody else works in the tree, and no directory in it has the set-group-id bit yet, so that new
    files are known to be ours. ``keep_kinds``: refuse to replace a directory by something else or the reverse.
    ``owner``: instead of the owners in the archive. The stream is read to the archive's end, not to its own.

    BadArchive for what is wrong with the archive, caused by FileNotFoundError where a link leads to nothing;
    SystemFailure for the rest (a full disk).
    """
    unpacker = _Unpacker(TarReader(stream), root, shown, whiteouts, private, keep_kinds, owner)
    try:
        unpacker.run()
    finally:
        unpacker.close()
    return Contents(entries=unpacker.entries, size_bytes=unpacker.size_bytes)


class _Unpacker:
    def __init__(
        self,
        reader: TarReader,
        root: Rootdir,
        shown: bytes,
        whiteouts: bool,
        private: bool,
        keep_kinds: bool,
        owner: tuple[int, int] | None,
    ) -> None:
        self._reader = reader
        self._root = root
        self._shown = shown
        self._whiteouts = whiteouts
        self._keep_kinds = keep_kinds
        self._owner = owner
        self._ours = (os.geteuid(), os.getegid()) if private else None
        self._unmasked = ~_umask()
        self._parents: OrderedDict[bytes, int] = OrderedDict()
        self._directories: list[tuple[bytes, Entry, int]] = []
        self._marked: set[int] = set()
        self._stale = False
        self.entries = 0
        self.size_bytes = 0

    def close(self) -> None:
        self._forget_parents()

    def run(self) -> None:
        entry = Entry(b"")
        try:
            for entry in self._reader:
                self._unpack(entry)
                self.entries += 1
            for path, entry, inode in self._directories:
                self._finish(path, entry, inode)
        except OSError as error:
            where = entry.name.decode(errors="backslashreplace")
            raise failure(error, where) from error

    def _unpack(self, entry: Entry) -> None:
        if self._stale:
            self._stale = False
            self._forget_parents()
        name = entry.name
        if name.endswith(b"/"):
            name = name.rstrip(b"/")
        head, _, tail = name.rpartition(b"/")
        parent = self._parents.get(head)
        if parent is None or tail in (b"", b".", b"..") or len(tail) > 255 or b"\0" in tail:
            parts = components(entry.name)
            if not parts:  # the root itself
                return
            tail = parts.pop()
            head = b"/".join(parts)
            parent = self._parent(head)
        if self._whiteouts and tail.startswith(WHITEOUT_PREFIX):
            self._white_out(parent, tail)
            return
        if self._owner is not None:
            entry = entry._replace(uid=self._owner[0], gid=self._owner[1])
        if entry.mtime_ns != (mtime_ns := time_ns(entry)):
            entry = entry._replace(mtime_ns=mtime_ns)
        type_ = entry.type
        if type_ == REGULAR:
            self._file(entry, parent, tail)
        elif type_ == DIRECTORY:
            self._directory(entry, parent, head, tail)
        elif type_ == SYMLINK:
            self._symlink(entry, parent, tail)
        elif type_ == LINK:
            self._link(entry, parent, tail)
        else:
            self._node(entry, parent, tail)

    # One kind each

    def _file(self, entry: Entry, parent: int, name: bytes) -> None:
        mode = entry.mode
        try:
            fd = os.open(name, _CREATE, mode & 0o777, dir_fd=parent)
        except FileExistsError:
            self._replace(entry, parent, name)
            fd = os.open(name, _CREATE, mode & 0o777, dir_fd=parent)
        try:
            self._reader.copy_to(fd)
            if (entry.uid, entry.gid) != self._ours:
                os.fchown(fd, entry.uid, entry.gid)
            if mode & 0o777 & self._unmasked != mode:  # after fchown, which clears set-id bits
                os.fchmod(fd, mode)
            if entry.xattrs:
                _set_xattrs(fd, entry)
            os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))
        finally:
            os.close(fd)
        self.size_bytes += entry.size

    def _directory(self, entry: Entry, parent: int, head: bytes, name: bytes) -> None:
        opaque = False
        try:
            os.mkdir(name, entry.mode & 0o777, dir_fd=parent)
        except FileExistsError:
            found = os.stat(name, dir_fd=parent, follow_symlinks=False)
            if not stat.S_ISDIR(found.st_mode):
                opaque = self._whiteouts and is_whiteout(found)
                self._replace(entry, parent, name)
                os.mkdir(name, entry.mode & 0o777, dir_fd=parent)
        found = os.stat(name, dir_fd=parent, follow_symlinks=False)
        path = head + b"/" + name
        if opaque:
            with self._root.descend(path) as directory:
                os.setxattr(_path(directory.fileno()), _OPAQUE, b"y")
        # Attributes come last: entries below would change the time, and set-group-id their group.
        self._directories.append((path, entry, found.st_ino))

    def _symlink(self, entry: Entry, parent: int, name: bytes) -> None:
        target = entry.linkname
        if not target:
            raise BadArchive(f"{show(entry.name)}: invalid link target") from FileNotFoundError(errno.ENOENT, "")
        if len(target) > 4095 or b"\0" in target:
            raise BadArchive(f"{show(entry.name)}: invalid link target")
        try:
            os.symlink(target, name, dir_fd=parent)
        except FileExistsError:
            self._replace(entry, parent, name)
            os.symlink(target, name, dir_fd=parent)
        if (entry.uid, entry.gid) != self._ours:
            os.chown(name, entry.uid, entry.gid, dir_fd=parent, follow_symlinks=False)
        if entry.xattrs:
            self._set_path_xattrs(entry, parent, name)
        os.utime(name, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=parent, follow_symlinks=False)
        self.size_bytes += len(target)

    def _link(self, entry: Entry, parent: int, name: bytes) -> None:
        try:
            parts = components(entry.linkname)
        except BadArchive as error:
            raise BadArchive(f"invalid hardlink target {show(entry.linkname)}") from error
        if not parts:
            raise BadArchive(f"{show(entry.name)}: invalid hard link target {show(entry.linkname)}")
        target = parts.pop()
        try:
            source = self._open_parent(b"/".join(parts))
        except (FileNotFoundError, NotADirectoryError) as error:
            raise _missing(entry) from error
        try:
            try:
                found = os.stat(target, dir_fd=source, follow_symlinks=False)
            except FileNotFoundError as error:
                raise _missing(entry) from error
            try:
                os.link(target, name, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)
            except FileExistsError:
                there = os.stat(name, dir_fd=parent, follow_symlinks=False)
                if (there.st_dev, there.st_ino) == (found.st_dev, found.st_ino):
                    return
                self._replace(entry, parent, name)
                os.link(target, name, src_dir_fd=source, dst_dir_fd=parent, follow_symlinks=False)
        finally:
            os.close(source)

    def _node(self, entry: Entry, parent: int, name: bytes) -> None:
        mode = _NODE_TYPES[entry.type] | entry.mode
        try:
            os.mknod(name, mode, entry.device, dir_fd=parent)
        except FileExistsError:
            self._replace(entry, parent, name)
            os.mknod(name, mode, entry.device, dir_fd=parent)
        handle = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        try:
            os.chown(_path(handle), entry.uid, entry.gid)
            os.chmod(_path(handle), entry.mode)
            if entry.xattrs:
                _set_xattrs(_path(handle), entry)
            os.utime(_path(handle), ns=(entry.mtime_ns, entry.mtime_ns))
        finally:
            os.close(handle)

    def _white_out(self, parent: int, marker: bytes) -> None:
        if marker == OPAQUE_NAME:
            os.setxattr(_path(parent), _OPAQUE, b"y")
            return
        if marker.startswith(AUFS_PREFIX):  # the bookkeeping of aufs means nothing here
            return
        name = marker.removeprefix(WHITEOUT_PREFIX)
        if name in (b"", b".", b".."):
            raise BadArchive(f"{show(marker)}: invalid whiteout")
        try:
            os.mknod(name, stat.S_IFCHR, 0, dir_fd=parent)
        except FileExistsError:  # the layer has both: what it adds is kept, what it hides stays hidden
            found = os.stat(name, dir_fd=parent, follow_symlinks=False)
            if stat.S_ISDIR(found.st_mode):
                os.setxattr(os.fsencode(_path(parent)) + b"/" + name, _OPAQUE, b"y", follow_symlinks=False)
            return
        if parent not in self._marked:
            # Else overlayfs lists a directory that only this layer has as it stands, the devices included.
            os.setxattr(_path(parent), _ORIGIN, b"")
            self._marked.add(parent)

    def _finish(self, path: bytes, entry: Entry, inode: int) -> None:
        try:
            fd = self._root.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):  # replaced by a later entry
                return
            raise
        try:
            found = os.fstat(fd)
            if found.st_ino != inode:
                return
            if (found.st_uid, found.st_gid) != (entry.uid, entry.gid):
                os.fchown(fd, entry.uid, entry.gid)
            if stat.S_IMODE(found.st_mode) != entry.mode:
                os.fchmod(fd, entry.mode)
            if entry.xattrs:
                _set_xattrs(fd, entry)
            os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))
        finally:
            os.close(fd)

    # Parents and predecessors

    def _parent(self, head: bytes) -> int:
        """The directory ``head`` (cleaned), made if missing. The descriptor belongs to the cache."""
        fd = self._parents.get(head)
        if fd is not None:
            return fd
        try:
            fd = self._open_parent(head)
        except (FileNotFoundError, NotADirectoryError):
            self._make_parents(head)
            fd = self._open_parent(head)
        if len(self._parents) >= _MAX_PARENTS:
            _, oldest = self._parents.popitem(last=False)
            os.close(oldest)
            self._marked.discard(oldest)
        self._parents[head] = fd
        return fd

    def _open_parent(self, head: bytes) -> int:
        return self._root.open(head or b".", os.O_PATH | os.O_DIRECTORY)

    def _make_parents(self, head: bytes) -> None:
        uid, gid = self._owner or (0, 0)
        try:
            self._root.makedirs(head, 0o755, uid, gid)
            return
        except NotADirectoryError:
            if not self._whiteouts:
                raise
        # A whiteout of the same layer may be in the way: the directory then hides the lower one.
        parts = self._root.resolve(head).strip(b"/").split(b"/")
        for depth in range(1, len(parts) + 1):
            path = b"/".join(parts[:depth])
            if self._root.exists(path) and is_whiteout(self._root.lstat(path)):
                self._root.unlink(path)
                self._root.makedirs(path, 0o755, uid, gid)
                self._root.setxattr(path, _OPAQUE, b"y")
                break
        self._root.makedirs(head, 0o755, uid, gid)

    def _replace(self, entry: Entry, parent: int, name: bytes) -> None:
        """Remove ``name``, which is in the way of ``entry``."""
        found = os.stat(name, dir_fd=parent, follow_symlinks=False)
        is_directory = stat.S_ISDIR(found.st_mode)
        if self._keep_kinds and is_directory != (entry.type == DIRECTORY):
            there, new = ("directory", "non-directory") if is_directory else ("non-directory", "directory")
            cleaned = b"/".join(components(entry.name))
            raise BadArchive(f"cannot overwrite {there} {show(cleaned)} with {new} {show(self._shown)}")
        try:
            if is_directory:
                remove_tree(parent, name)
            else:
                os.unlink(name, dir_fd=parent)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            where = b"/".join(components(entry.name)).decode(errors="backslashreplace")
            raise SystemFailure(f"RemoveAll {where}: device or resource busy") from error
        if is_directory or stat.S_ISLNK(found.st_mode):
            self._stale = True  # names may lead elsewhere now; the entry at hand still uses its parent

    def _forget_parents(self) -> None:
        for fd in self._parents.values():
            os.close(fd)
        self._parents.clear()
        self._marked.clear()

    def _set_path_xattrs(self, entry: Entry, parent: int, name: bytes) -> None:
        handle = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        try:
            _set_xattrs(_path(handle), entry)
        finally:
            os.close(handle)


class Packer:
    """A tree as an archive: iterate once for its bytes, in pieces of some hundred KiB. Memory is bounded.

    ``path`` inside ``root`` is the top. A directory's entry is ``name`` with ``/`` appended, those below it
    follow in order of their names; with ``name`` empty the top has no entry and those below have relative
    names. A link at the top is archived as a link. ``whiteouts``: the tree is an overlay's upper directory,
    and its marks become the archive's. Sockets are left out, hard links inside the tree kept, attributes as
    ``_keeps`` says.

    A file that shrinks while it is read is filled up with zeros, one that grows is cut; what disappears or
    turns into something else between listing and reading is left out. ``OSError`` for anything else.
    """

    def __init__(self, root: Rootdir, path: bytes = b".", *, name: bytes = b"", whiteouts: bool = False) -> None:
        self._root = root
        self._path = path
        self._name = name
        self._whiteouts = whiteouts
        self._links: dict[tuple[int, int], bytes] = {}
        self.entries = 0
        self.size_bytes = 0
        self.sockets: list[bytes] = []
        """What was left out, by its archived name."""

    @property
    def contents(self) -> Contents:
        """What was archived so far."""
        return Contents(entries=self.entries, size_bytes=self.size_bytes)

    def __iter__(self) -> Iterator[bytes]:
        batch: list[bytes] = []
        size = 0
        for piece in self._pieces():
            batch.append(piece)
            size += len(piece)
            if size >= _BATCH_BYTES:
                yield b"".join(batch)
                batch.clear()
                size = 0
        yield b"".join([*batch, END])

    def _pieces(self) -> Iterator[bytes]:
        status = self._root.lstat(self._path)
        if not stat.S_ISDIR(status.st_mode):
            parent, name = self._root.open_parent(self._path)
            try:
                yield from self._member(parent, name, self._name, status)
            finally:
                os.close(parent)
            return
        # One open directory at a time, found again by its path after those below it: a deep tree needs no more
        # descriptors than a flat one.
        prefix = self._name.rstrip(b"/") + b"/" if self._name else b""
        with self._root.descend(self._path) as top:
            if self._name:
                yield from self._member(top.fileno(), b".", self._name.rstrip(b"/"), status)
            pending: list[tuple[bytes, list[tuple[bytes, os.stat_result]]]] = [(b".", _listing(top, b"."))]
            fd = -1
            opened = b""
            try:
                while pending:
                    path, children = pending[-1]
                    if not children:
                        pending.pop()
                        continue
                    if fd < 0 or opened != path:
                        if fd >= 0:
                            os.close(fd)
                            fd = -1
                        try:
                            fd = top.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
                        except OSError as error:
                            if error.errno not in _CHANGED:
                                raise
                            pending.pop()
                            continue
                        opened = path
                    name, status = children.pop()
                    inner = name if path == b"." else path + b"/" + name
                    yield from self._member(fd, name, prefix + inner, status)
                    if stat.S_ISDIR(status.st_mode):
                        pending.append((inner, _listing(top, inner)))
            finally:
                if fd >= 0:
                    os.close(fd)

    def _member(self, parent: int, name: bytes, archived: bytes, status: os.stat_result) -> Iterator[bytes]:
        if self._whiteouts and is_whiteout(status):
            head, slash, tail = archived.rpartition(b"/")
            self.entries += 1
            yield encode(Entry(head + slash + WHITEOUT_PREFIX + tail, mode=0o600, mtime_ns=status.st_mtime_ns))
            return
        where = os.fsencode(_path(parent)) + b"/" + name
        try:
            linkname = os.readlink(name, dir_fd=parent) if stat.S_ISLNK(status.st_mode) else b""
            entry = entry_of(archived, status, linkname=linkname)
            if entry is None:
                self.sockets.append(archived)
                return
            if status.st_nlink > 1 and entry.type != DIRECTORY:
                first = self._links.setdefault((status.st_dev, status.st_ino), archived)
                if first != archived:
                    self.entries += 1
                    yield encode(entry._replace(type=LINK, linkname=first, size=0))
                    return
            names = os.listxattr(where, follow_symlinks=False)
            xattrs = (
                {os.fsencode(key): os.getxattr(where, key, follow_symlinks=False) for key in names if _keeps(key)}
                if names
                else {}
            )
            if xattrs:
                entry = entry._replace(xattrs=xattrs)
            if entry.type != REGULAR:
                self.entries += 1
                self.size_bytes += len(linkname)
                yield encode(entry)
                if self._whiteouts and entry.type == DIRECTORY and names:
                    yield from self._marks(entry, where, names)
                return
            # A file may have become a FIFO since.
            fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=parent)
        except OSError as error:
            if error.errno not in _CHANGED:
                raise
            return
        try:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                return
            self.entries += 1
            self.size_bytes += entry.size
            yield encode(entry)
            yield from _content(fd, entry.size)
        finally:
            os.close(fd)

    def _marks(self, entry: Entry, where: bytes, names: list[str]) -> Iterator[bytes]:
        if any(name in _REDIRECTIONS for name in names):
            raise SystemFailure(f"{show(entry.name)}: cannot archive an overlay with redirections")
        if _OPAQUE in names and os.getxattr(where, _OPAQUE, follow_symlinks=False) == b"y":
            self.entries += 1
            mark = Entry(entry.name + OPAQUE_NAME, mode=entry.mode & 0o777, uid=entry.uid, gid=entry.gid)
            yield encode(mark)


def failure(error: OSError, where: str) -> EngineError:
    """``error`` as Go words it: BadArchive for what an archive can cause, SystemFailure else."""
    text = f"{where}: {(error.strerror or 'input/output error').lower()}"
    return BadArchive(text) if error.errno in _ARCHIVE_FAULTS else SystemFailure(text)


def time_ns(entry: Entry) -> int:
    """When an entry says it was changed, or 1970 if that is no time a file can have (moby pkg/system, Chtimes)."""
    return entry.mtime_ns if 0 <= entry.mtime_ns <= _MAX_TIME_NS else 0


def is_whiteout(status: os.stat_result) -> bool:
    """Whether this is overlayfs's mark of a removed name."""
    return stat.S_ISCHR(status.st_mode) and status.st_rdev == 0


def is_opaque(root: Rootdir, path: bytes) -> bool:
    """Whether a directory hides those of its name below it."""
    return root.xattrs(path, follow=False).get(_OPAQUE) == b"y"


def _content(fd: int, size: int) -> Iterator[bytes]:
    left = size
    while left:
        data = os.read(fd, min(left, _READ_BYTES))
        if not data:
            break
        left -= len(data)
        yield data
    while left:
        step = min(left, _READ_BYTES)
        left -= step
        yield bytes(step)
    if size % 512:
        yield padding(size)


def _listing(root: Rootdir, path: bytes) -> list[tuple[bytes, os.stat_result]]:
    """Children in descending order of their names, to be popped from the end. Empty if the directory has gone."""
    try:
        fd = root.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except OSError as error:
        if error.errno not in _CHANGED:
            raise
        return []
    try:
        with os.scandir(fd) as found:
            children: list[tuple[bytes, os.stat_result]] = []
            for entry in found:
                try:
                    children.append((os.fsencode(entry.name), entry.stat(follow_symlinks=False)))
                except FileNotFoundError:
                    continue
    finally:
        os.close(fd)
    children.sort(key=_name, reverse=True)
    return children


_name: Callable[[tuple[bytes, os.stat_result]], bytes] = lambda child: child[0]  # noqa: E731


def _keeps(attribute: str) -> bool:
    """Which attributes an archive carries: what a program stored, never labels or marks of this machine."""
    if attribute.startswith("user."):
        return not attribute.startswith("user.overlay.")
    return attribute == "security.capability" or attribute.startswith("system.posix_acl_")


def _set_xattrs(target: int | str, entry: Entry) -> None:
    for name, value in entry.xattrs.items():
        # Marks of overlayfs would let a layer redirect lookups.
        if name.startswith((b"trusted.overlay.", b"user.overlay.")):
            continue
        try:
            os.setxattr(target, name, value)
        except OSError as error:
            # moby pkg/archive, createTarFile: some file systems and kinds of files have none.
            if error.errno == errno.ENOTSUP or (error.errno == errno.EPERM and name.startswith(b"user.")):
                continue
            raise


def _path(fd: int) -> str:
    return f"/proc/self/fd/{fd}"


def _umask() -> int:
    # umask(2) cannot be asked without being changed, for every thread.
    with open("/proc/self/status", "rb") as file:
        for line in file:
            if line.startswith(b"Umask:"):
                return int(line.split()[1], 8)
    return 0o7777


def _missing(entry: Entry) -> BadArchive:
    return BadArchive(f"{show(entry.name)}: hard link to missing {show(entry.linkname)}")

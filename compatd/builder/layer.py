"""Layers of COPY, ADD and WORKDIR: made as a tar straight from the sources, never as files of the host.

``Layer`` collects what a step puts on top of an image, looking destinations up in the image below (links
followed inside it), and ``LayerStream`` is the tar of that, made while it is read. What goes where, and with
which owner and mode, is what Docker's classic builder does, observed on 28.5.2.
"""

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from compatd.builder.ports import Archives, TarEntry
from compatd.builder.trees import (
    ArchiveTree,
    Inode,
    Kind,
    Parts,
    RootTree,
    Tree,
    clean,
    make_inode,
    resolve,
    split,
    walk,
)
from compatd.errors import InvalidParameter, SystemFailure

BLOCK_BYTES = 512
_BATCH_BYTES = 1 << 18
_WHITEOUT = b".wh."
_OPAQUE = b".wh..wh..opq"
_CAPABILITY = b"security.capability"
_OVERLAY = (b"trusted.overlay.", b"user.overlay.")


class _NotDirectory(SystemFailure):
    def __init__(self, call: str, parts: Parts) -> None:
        super().__init__(f"{call} /{b'/'.join(parts).decode('utf-8', 'replace')}: not a directory")


@dataclass(slots=True, eq=False, kw_only=True)
class _Node:
    """A file of the layer. ``opaque``: a directory that hides what the image has there."""

    inode: Inode
    opaque: bool = False
    children: "dict[bytes, _Node]" = field(default_factory=dict[bytes, "_Node"])


@dataclass(frozen=True, slots=True)
class Owner:
    """Who files are given to."""

    uid: int = 0
    gid: int = 0


ROOT = Owner()


class Layer:
    """What a step adds on top of ``base`` (None: nothing is below). ``now_ns`` dates the directories it makes."""

    def __init__(self, base: RootTree | None, now_ns: int) -> None:
        self._base = base
        self._now_ns = now_ns
        self._root = _Node(inode=Inode(kind=Kind.DIRECTORY, mode=0o755))
        self._root_given = False

    # Looking

    def lookup(self, parts: Parts) -> Inode | None:
        """What has this path now, links not followed."""
        node = self._root
        hidden = False
        for depth, name in enumerate(parts):
            below = node.children.get(name)
            if below is None:
                return None if hidden or self._base is None else self._base.lookup(parts)
            if depth + 1 < len(parts) and not below.inode.is_directory:
                return None
            node = below
            hidden = hidden or node.opaque
        if node is self._root and self._base is not None and not self._root_given:
            return self._base.lookup(parts)
        return node.inode

    def is_empty(self) -> bool:
        """Whether nothing was added."""
        return not self._root.children and not self._root_given

    # Adding

    def make_directory(self, path: bytes) -> None:
        """WORKDIR: the directory with its parents, if it is missing."""
        parts = resolve(self.lookup, split(path))
        found = self.lookup(parts)
        if found is None:
            self._make_directories(parts, ROOT)
        elif not found.is_directory:
            raise SystemFailure(f"Cannot mkdir: {path.decode('utf-8', 'replace')} is not a directory")

    def copy_file(self, inode: Inode, name: bytes, destination: bytes, owner: Owner | None) -> None:
        """A file to a destination; a directory, or one that ends in a slash, gets it as ``name``.

        ``owner`` None keeps owner and mode; else the file loses what chown(2) takes: set-id bits and capabilities.
        """
        parts = self._resolve_destination(destination)
        found = self.lookup(parts)
        if destination.endswith(b"/") or (found is not None and found.is_directory):
            parts = (*parts, name)
        parent = parts[:-1]
        try:
            self._make_directories(parent, owner or ROOT)
        except _NotDirectory as error:
            raise SystemFailure(f"failed to create new directory: {error}") from None
        self._touch(parent)
        self._put(parts, _copy(inode, owner))

    def copy_directory(self, tree: Tree, source: Parts, destination: bytes, owner: Owner | None) -> None:
        """The content of a directory into a destination, which is made if it is missing."""
        parts = self._resolve_destination(destination)
        missing = self.lookup(parts) is None
        try:
            self._make_directories(parts, ROOT)
        except _NotDirectory as error:
            raise SystemFailure(f"failed to copy directory: {error}") from None
        copies: dict[int, Inode] = {}
        anything = False
        for path, inode in walk(tree, source):
            copy = copies.get(id(inode))
            if copy is None:
                copy = copies[id(inode)] = _copy(inode, owner)
                copies[id(copy)] = inode  # keeps the original alive, and with it its id
            self._put((*parts, *path[len(source) :]), copy)
            anything = True
        if anything:
            self._touch(parts)
        if missing and owner is not None:
            made = self._node(parts).inode
            made.uid, made.gid = owner.uid, owner.gid

    def unpack(self, entries: Iterable[tuple[TarEntry, int]], fd: int, end: int, destination: bytes) -> None:
        """An archive in the file ``fd``, up to ``end``, into a destination, links in it never leading out of that."""
        scope = self._resolve_destination(destination)
        self._make_directories(scope, ROOT)
        for entry, offset in entries:
            parts = clean(entry.name)
            parent = resolve(self.lookup, parts[:-1], scope)
            path = parent + parts[-1:]
            if entry.type == b"1":
                inode = self._link_target(entry, scope)
            else:
                inode = make_inode(entry, fd, offset, end)
                inode.xattrs = {key: value for key, value in inode.xattrs.items() if not key.startswith(_OVERLAY)}
            if not parts and not inode.is_directory:
                continue
            if parts:
                self._make_directories(parent, ROOT)
            self._put(path, inode)

    def _link_target(self, entry: TarEntry, scope: Parts) -> Inode:
        found: list[Parts] = []

        def find(parts: Parts) -> Inode | None:
            found.append(parts)
            return self.lookup((*scope, *parts))

        inode = ArchiveTree.linked(entry, find)
        path = (*scope, *found[-1])
        if self._find(path) is None:  # the image's own file: it moves up into this layer, as overlayfs would copy it
            self._make_directories(path[:-1], ROOT)
            self._put(path, inode)
        return inode

    def _resolve_destination(self, destination: bytes) -> Parts:
        parts = resolve(self.lookup, split(destination))
        for depth in range(1, len(parts)):
            found = self.lookup(parts[:depth])
            if found is None:
                break
            if not found.is_directory:
                raise _NotDirectory("lstat", parts)
        return parts

    def _find(self, parts: Parts) -> _Node | None:
        node = self._root
        for name in parts:
            below = node.children.get(name)
            if below is None:
                return None
            node = below
        return node

    def _node(self, parts: Parts) -> _Node:
        node = self._find(parts)
        if node is None:
            raise AssertionError(parts)
        return node

    def _make_directories(self, parts: Parts, owner: Owner) -> None:
        """Have the directory in this layer: the image's own where there is one, new ones else."""
        node = self._root
        for depth, name in enumerate(parts, 1):
            below = node.children.get(name)
            if below is None:
                found = self.lookup(parts[:depth])
                if found is None:
                    inode = Inode(kind=Kind.DIRECTORY, mode=0o755, uid=owner.uid, gid=owner.gid, mtime_ns=self._now_ns)
                    node.inode.mtime_ns = self._now_ns
                elif found.is_directory:
                    inode = found
                else:
                    raise _NotDirectory("mkdir", parts[:depth])
                below = node.children[name] = _Node(inode=inode)
            elif not below.inode.is_directory:
                raise _NotDirectory("mkdir", parts[:depth])
            node = below

    def _touch(self, parts: Parts) -> None:
        self._node(parts).inode.mtime_ns = self._now_ns

    def _put(self, parts: Parts, inode: Inode) -> None:
        if parts and parts[-1].startswith(_WHITEOUT):
            name = parts[-1].decode("utf-8", "replace")
            raise InvalidParameter(f"invalid name {name}: names that begin with .wh. are reserved for image layers")
        if not parts:
            self._root.inode = inode
            self._root_given = True
            return
        siblings = self._node(parts[:-1]).children
        previous = siblings.get(parts[-1])
        if not inode.is_directory:
            siblings[parts[-1]] = _Node(inode=inode)
        elif previous is not None and previous.inode.is_directory:
            previous.inode = inode
        else:
            below = self._base.lookup(parts) if previous is not None and self._base is not None else None
            siblings[parts[-1]] = _Node(inode=inode, opaque=below is not None and below.is_directory)

    # Writing

    def members(self) -> Iterator[tuple[bytes, Inode, bytes]]:
        """What the layer holds, sorted: path, file, and the path of the earlier one that it is a hard link to."""
        if self._root_given:
            yield b"./", self._root.inode, b""
        yield from self._members(b"", self._root, {})

    def _members(self, prefix: bytes, node: _Node, seen: dict[int, bytes]) -> Iterator[tuple[bytes, Inode, bytes]]:
        for name in sorted(node.children):
            child = node.children[name]
            inode = child.inode
            path = prefix + name
            if inode.is_directory:
                path += b"/"
                yield path, inode, b""
                if child.opaque:
                    yield path + _OPAQUE, Inode(kind=Kind.FILE, mode=0o600), b""
                yield from self._members(path, child, seen)
                continue
            first = seen.setdefault(id(inode), path)
            yield path, inode, b"" if first == path else first


def _copy(inode: Inode, owner: Owner | None) -> Inode:
    mode, uid, gid = inode.mode, inode.uid, inode.gid
    xattrs: dict[bytes, bytes] = {}
    if owner is not None:
        uid, gid = owner.uid, owner.gid
        if inode.kind is Kind.FILE:  # what chown(2) does to it
            mode &= ~(0o6000 if mode & 0o010 else 0o4000)
    elif _CAPABILITY in inode.xattrs:
        xattrs[_CAPABILITY] = inode.xattrs[_CAPABILITY]
    return Inode(
        kind=inode.kind,
        mode=mode,
        uid=uid,
        gid=gid,
        mtime_ns=inode.mtime_ns - inode.mtime_ns % 10**9,
        size=inode.size,
        target=inode.target,
        device=inode.device,
        xattrs=xattrs,
        content=inode.content,
    )


def write_tar(members: Iterable[tuple[bytes, Inode, bytes]], header: Callable[[TarEntry], bytes]) -> Iterator[bytes]:
    """The archive of a layer's members, in pieces of a useful size."""
    batch: list[bytes] = []
    pending = 0
    for path, inode, link in members:
        entry = TarEntry(
            path,
            b"1" if link else inode.kind.value,
            0 if link else inode.size,
            inode.mode,
            inode.uid,
            inode.gid,
            inode.mtime_ns,
            link or inode.target,
            inode.device,
            inode.xattrs,
        )
        block = header(entry)
        batch.append(block)
        pending += len(block)
        if inode.content is not None and not link:
            for chunk in inode.content.chunks():
                batch.append(chunk)
                pending += len(chunk)
                if pending >= _BATCH_BYTES:
                    yield b"".join(batch)
                    batch.clear()
                    pending = 0
            batch.append(bytes(-inode.size % BLOCK_BYTES))
    batch.append(bytes(2 * BLOCK_BYTES))
    yield b"".join(batch)


class LayerStream:
    """The tar of a layer, made while it is read, once. Setting ``cancelled``, from any thread, makes reading fail."""

    def __init__(self, layer: Layer, archives: Archives, cancelled: threading.Event) -> None:
        self._pieces = write_tar(layer.members(), archives.header)
        self._piece: bytes = b""
        self._at = 0
        self._cancelled = cancelled

    def read(self, size: int, /) -> bytes:
        """At most ``size`` bytes; none only at the end."""
        if self._cancelled.is_set():
            raise SystemFailure("build cancelled")
        if self._at == len(self._piece):
            self._piece = next(self._pieces, b"")
            self._at = 0
        data = self._piece[self._at : self._at + size]
        self._at += len(data)
        return data


def owner_of(text: str, read: Callable[[str], bytes]) -> Owner:
    """The owner that ``--chown`` names: numbers, or names as the image's /etc/passwd and /etc/group have them.

    ``SystemFailure`` with Docker's words. ``read`` gives the content of one of those files.
    """
    parts = text.split(":")
    if len(parts) > 2:
        raise SystemFailure(f"invalid chown string format: {text}")
    user, group = parts[0], parts[-1]
    try:
        uid = _find_id(user, "user", "/etc/passwd", read)
    except (SystemFailure, OSError) as error:
        raise SystemFailure(f"can't find uid for user {user}: {_words(error)}") from None
    try:
        gid = _find_id(group, "group", "/etc/group", read)
    except (SystemFailure, OSError) as error:
        raise SystemFailure(f"can't find gid for group {group}: {_words(error)}") from None
    return Owner(uid, gid)


def _words(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return f"open {error.filename}: no such file or directory"
    return error.strerror or str(error) if isinstance(error, OSError) else str(error)


def _find_id(name: str, what: str, path: str, read: Callable[[str], bytes]) -> int:
    if name.isascii() and name.removeprefix("+").isdigit() and len(name) < 12:
        number = int(name)
        if number >= 1 << 32:
            raise SystemFailure(f"{what} id is out of range: {name}")
        return number
    try:
        content = read(path)
    except FileNotFoundError:
        raise FileNotFoundError(2, os.strerror(2), path) from None
    wanted = name.encode()
    for line in content.splitlines():
        fields = line.strip().split(b":")
        if len(fields) > 2 and fields[0] == wanted and fields[2].isdigit() and len(fields[2]) < 11:
            return int(fields[2])
    raise SystemFailure(f"no such {what}: {name}")

"""The tree that a layer's tar describes, with the places of its contents in the tar: what an index over it holds.

The rules are those of unpacking (``images.trees``), which gives the same tree in another form: the last of equal names
counts, links on the way are followed inside the layer, what an archive does not list of its directories is made, and
whiteouts become overlayfs's marks.
"""

import os
import stat
from dataclasses import dataclass, field
from typing import BinaryIO

from compatd.images import erofs
from compatd.images.erofs import BLOCK_BYTES, Node
from compatd.images.streams import Readable
from compatd.images.tar import (
    BLOCK,
    CHAR,
    DIRECTORY,
    FIFO,
    LINK,
    REGULAR,
    SYMLINK,
    BadArchive,
    Entry,
    PositionedReader,
    components,
    show,
)
from compatd.images.trees import AUFS_PREFIX, OPAQUE_NAME, WHITEOUT_PREFIX, Contents, time_ns

_OPAQUE = b"trusted.overlay.opaque"
_ORIGIN = b"trusted.overlay.origin"
_OVERLAY_MARKS = (b"trusted.overlay.", b"user.overlay.")
_TYPES = {REGULAR: stat.S_IFREG, SYMLINK: stat.S_IFLNK, CHAR: stat.S_IFCHR, BLOCK: stat.S_IFBLK, FIFO: stat.S_IFIFO}
_MAX_LINKS_FOLLOWED = 40
_MAX_TARGET_BYTES = 4095
_COPY_BYTES = 1 << 20

TAR_DEVICE, SIDE_DEVICE = 1, 2


@dataclass(frozen=True, slots=True)
class Aside:
    """A file whose content in the tar cannot be shown as it lies there: sparse, or not filled up with zeros."""

    node: Node
    offset: int
    segments: tuple[tuple[int, int], ...]


@dataclass(slots=True)
class Tree:
    root: Node
    asides: list[Aside] = field(default_factory=list[Aside])
    entries: int = 0
    size_bytes: int = 0

    @property
    def contents(self) -> Contents:
        return Contents(entries=self.entries, size_bytes=self.size_bytes)


def read_tree(stream: Readable) -> Tree:
    """Read an uncompressed tar to the archive's end, not to the stream's. BadArchive as ``trees.unpack``."""
    reader = _TreeReader(stream)
    reader.run()
    return reader.tree


def build_index(tree: Tree, tar: BinaryIO, side: BinaryIO, *, uuid: bytes) -> bytes:
    """The EROFS image over ``tar``, its first device, and if that gets anything ``side``, an empty file, its second.

    OSError if the side file cannot be written; BadArchive for more than an index can address.
    """
    end = 0
    for aside in tree.asides:
        _copy_aside(aside, tar, side, end)
        aside.node.device, aside.node.offset = SIDE_DEVICE, end
        end += -(-aside.node.size // BLOCK_BYTES) * BLOCK_BYTES
    side.truncate(end)
    devices = [tar.seek(0, os.SEEK_END), *([end] if end else [])]
    if any(size > erofs.MAX_DEVICE_BYTES for size in devices):
        raise BadArchive("layer: file too large")
    return erofs.build(tree.root, uuid=uuid, devices=devices)


def _copy_aside(aside: Aside, tar: BinaryIO, side: BinaryIO, start: int) -> None:
    if start + aside.node.size > erofs.MAX_DEVICE_BYTES:
        raise BadArchive("layer: file too large")
    tar.seek(aside.offset)
    for offset, size in aside.segments:
        side.seek(start + offset)
        while size:
            data = tar.read(min(size, _COPY_BYTES))
            if not data:
                raise BadArchive("unexpected EOF")
            side.write(data)
            size -= len(data)


class _TreeReader:
    def __init__(self, stream: Readable) -> None:
        self._reader = PositionedReader(stream)
        self.tree = Tree(_make_directory())
        self._parents = {b"": self.tree.root}

    def run(self) -> None:
        reader, tree = self._reader, self.tree
        last: tuple[Node, int] | None = None
        while True:
            entry = reader.next()
            if last is not None and not reader.padded:
                tree.asides.append(Aside(*last, ((0, last[0].size),)))
            if entry is None:
                return
            offset = reader.offset
            node = self._add(entry, offset)
            tree.entries += 1
            last = (node, offset) if node is not None and node.size and entry.segments is None else None

    def _add(self, entry: Entry, offset: int) -> Node | None:
        """Take an entry in; the node of a regular file."""
        name = entry.name
        if name.endswith(b"/"):
            name = name.rstrip(b"/")
        head, _, tail = name.rpartition(b"/")
        parent = self._parents.get(head)
        if parent is None or tail in (b"", b".", b"..") or len(tail) > 255 or b"\0" in tail:
            parts = components(entry.name)
            if not parts:  # the root itself
                return None
            tail = parts.pop()
            head = b"/".join(parts)
            parent = self._parents.get(head)
            if parent is None:
                parent = self._parents[head] = self._descend(parts, entry)
        if tail.startswith(WHITEOUT_PREFIX):
            self._white_out(parent, tail)
        elif entry.type == DIRECTORY:
            self._add_directory(entry, parent, tail)
        elif entry.type == LINK:
            self._add_link(entry, parent, tail)
        else:
            return self._add_file(entry, parent, tail, offset)
        return None

    def _add_file(self, entry: Entry, parent: Node, name: bytes, offset: int) -> Node:
        node = Node(_TYPES[entry.type] | entry.mode, entry.uid, entry.gid, time_ns(entry))
        if entry.type == REGULAR:
            node.size, node.device, node.offset = entry.size, TAR_DEVICE, offset
            self.tree.size_bytes += entry.size
            if entry.segments is not None and entry.size:
                self.tree.asides.append(Aside(node, offset, entry.segments))
        elif entry.type == SYMLINK:
            node.mode, node.target = stat.S_IFLNK | 0o777, entry.linkname
            if not node.target or len(node.target) > _MAX_TARGET_BYTES or b"\0" in node.target:
                raise BadArchive(f"{show(entry.name)}: invalid link target")
            self.tree.size_bytes += len(node.target)
        else:
            node.rdev = entry.device
        if entry.xattrs:
            _set_xattrs(node, entry)
        self._replace(parent, name)
        _children(parent)[name] = node
        return node

    def _add_directory(self, entry: Entry, parent: Node, name: bytes) -> None:
        children = _children(parent)
        node = children.get(name)
        if node is None or not node.is_directory:
            hides = node is not None and _is_whiteout(node)
            self._replace(parent, name)
            node = children[name] = _make_directory()
            if hides:
                _mark(node, _OPAQUE, b"y")
        node.mode = stat.S_IFDIR | entry.mode
        node.uid, node.gid, node.mtime_ns = entry.uid, entry.gid, time_ns(entry)
        if entry.xattrs:
            _set_xattrs(node, entry)

    def _add_link(self, entry: Entry, parent: Node, name: bytes) -> None:
        parts = components(entry.linkname)
        if not parts:
            raise BadArchive(f"{show(entry.name)}: invalid hard link target {show(entry.linkname)}")
        *parts, last = parts
        directory = self._parents.get(b"/".join(parts)) or self._walk(parts, entry, make=False)
        target = _children(directory).get(last) if directory is not None else None
        if target is None:
            raise BadArchive(f"{show(entry.name)}: hard link to missing {show(entry.linkname)}")
        if target.is_directory:
            raise BadArchive(f"{show(entry.name)}: operation not permitted")
        children = _children(parent)
        if children.get(name) is not target:
            self._replace(parent, name)
            target.links += 1
            children[name] = target

    def _white_out(self, parent: Node, marker: bytes) -> None:
        if marker == OPAQUE_NAME:
            _mark(parent, _OPAQUE, b"y")
            return
        if marker.startswith(AUFS_PREFIX):
            return
        name = marker.removeprefix(WHITEOUT_PREFIX)
        if name in (b"", b".", b".."):
            raise BadArchive(f"{show(marker)}: invalid whiteout")
        there = _children(parent).get(name)
        if there is not None:  # the layer has both: what it adds is kept, what it hides stays hidden
            if there.is_directory:
                _mark(there, _OPAQUE, b"y")
            return
        _children(parent)[name] = Node(stat.S_IFCHR)
        # Else overlayfs lists a directory that only this layer has as it stands, the devices included.
        _mark(parent, _ORIGIN, b"")

    def _descend(self, parts: list[bytes], entry: Entry) -> Node:
        """The directory that a path leads to; what is missing is made."""
        found = self._walk(parts, entry, make=True)
        assert found is not None
        return found

    def _walk(self, parts: list[bytes], entry: Entry, *, make: bool) -> Node | None:
        path = [self.tree.root]
        rest = parts[::-1]
        followed = 0
        while rest:
            name = rest.pop()
            if name in (b"", b"."):
                continue
            if name == b"..":
                del path[max(1, len(path) - 1) :]
                continue
            children = _children(path[-1])
            node = children.get(name)
            if node is None or _is_whiteout(node):
                if not make:
                    return None
                made = children[name] = _make_directory()
                if node is not None:
                    _mark(made, _OPAQUE, b"y")
                path.append(made)
            elif node.is_directory:
                path.append(node)
            elif stat.S_ISLNK(node.mode):
                followed += 1
                if followed > _MAX_LINKS_FOLLOWED:
                    raise BadArchive(f"{show(entry.name)}: too many levels of symbolic links")
                if node.target.startswith(b"/"):
                    del path[1:]
                rest += node.target.split(b"/")[::-1]
            elif make:
                raise BadArchive(f"{show(entry.name)}: not a directory")
            else:
                return None
        return path[-1]

    def _replace(self, parent: Node, name: bytes) -> None:
        """Take what has the name away."""
        node = _children(parent).pop(name, None)
        if node is None:
            return
        if node.is_directory or stat.S_ISLNK(node.mode):  # names may lead elsewhere now
            self._parents = {b"": self.tree.root}
        pending = [node]
        for gone in pending:
            gone.links -= 1
            if gone.children:
                pending += gone.children.values()


def _make_directory() -> Node:
    return Node(stat.S_IFDIR | 0o755, children={})


def _children(node: Node) -> dict[bytes, Node]:
    assert node.children is not None
    return node.children


def _is_whiteout(node: Node) -> bool:
    return stat.S_ISCHR(node.mode) and node.rdev == 0


def _mark(node: Node, name: bytes, value: bytes) -> None:
    node.xattrs = {**(node.xattrs or {}), name: value}


def _set_xattrs(node: Node, entry: Entry) -> None:
    may_have_user = stat.S_ISREG(node.mode) or stat.S_ISDIR(node.mode)  # xattr(7)
    kept = {
        name: value
        for name, value in entry.xattrs.items()
        if not name.startswith(_OVERLAY_MARKS)
        and erofs.storable(name)
        and (may_have_user or not name.startswith(b"user."))
    }
    if kept:
        node.xattrs = {**(node.xattrs or {}), **kept}

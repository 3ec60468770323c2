"""What COPY and ADD copy: sources found in a tree, told apart by their digests, placed into a layer.

All of it blocks. Errors have Docker's words without the instruction's prefix.
"""

import os
import posixpath
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from email.message import Message
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote, urlsplit

from compatd.builder.cachekey import directory_digest, file_digest, source_digest
from compatd.builder.layer import Layer, Owner
from compatd.builder.ports import Archives, Fetched, Readable, TarEntry
from compatd.builder.trees import (
    CHUNK_BYTES,
    FileRange,
    Inode,
    Kind,
    Parts,
    Tree,
    has_wildcards,
    match,
    open_section,
    resolve,
    split,
    walk,
)
from compatd.errors import InvalidParameter, SystemFailure

_UNNAMED = b"__unnamed__"
_BLOCK_BYTES = 512
_MAGIC_BYTES = 16

Check = Callable[[], None]
"""Raises if the build was cancelled."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """One thing to copy: a file, or a directory of ``tree`` whose content is meant.

    ``name`` is what a file is called in a destination that is a directory. ``plain``: never unpacked.
    """

    tree: Tree | None
    parts: Parts
    inode: Inode
    name: bytes
    digest: str
    plain: bool = False


def is_url(source: str) -> bool:
    """Whether a source is downloaded."""
    return source.startswith(("http://", "https://"))


def inside(path: str) -> Parts:
    """A path of a request or Dockerfile in the context. ``SystemFailure`` if it leads out of it."""
    cleaned = posixpath.normpath("./" + path.lstrip("/") if path.startswith("/") else path)
    if cleaned == ".." or cleaned.startswith("../"):
        raise SystemFailure(f"forbidden path outside the build context: {path} ()")
    return split(os.fsencode(cleaned))


def find_sources(tree: Tree, source: str, *, from_context: bool, check: Check) -> list[Source]:
    """What a source word means in a tree: one thing, or all that a pattern matches."""
    path = source.removeprefix("/").removeprefix("./")
    if not has_wildcards(path):
        return [_find(tree, path, from_context=from_context, check=check)]
    paths = (os.fsdecode(b"/".join(parts)) for parts in match(tree, path))
    return [_find(tree, path, from_context=from_context, check=check) for path in paths]


def _find(tree: Tree, path: str, *, from_context: bool, check: Check) -> Source:
    parts = resolve(tree.lookup, inside(path))
    inode = tree.lookup(parts)
    if inode is None or inode.kind is Kind.SYMLINK:
        where = "file not found in build context or excluded by .dockerignore: " if from_context else ""
        raise SystemFailure(f"{where}stat {path}: file does not exist")
    name = os.fsencode(posixpath.basename(posixpath.normpath(path)))
    if inode.is_directory:
        digest = directory_digest(_digests(tree, parts, inode, check))
    else:
        digest = source_digest(_digest(parts, inode, check))
    return Source(tree=tree, parts=parts, inode=inode, name=name, digest=digest)


def _digests(tree: Tree, parts: Parts, inode: Inode, check: Check) -> Iterator[str]:
    if parts:
        yield _digest(parts, inode, check)
    for path, below in walk(tree, parts):
        yield _digest(path, below, check)


def _digest(parts: Parts, inode: Inode, check: Check) -> str:
    check()
    return file_digest(parts, inode, _checked(inode, check))


def _checked(inode: Inode, check: Check) -> Iterator[bytes]:
    if inode.content is not None and inode.size:
        for chunk in inode.content.chunks():
            check()
            yield chunk


def downloaded(url: str, fetched: Fetched, fd: int, destination: str, check: Check) -> Source:
    """A download as a source; its file descriptor stays the caller's. ``SystemFailure`` if it has no name."""
    name = _file_name(url, fetched.content_disposition)
    if not name:
        if destination.endswith("/"):
            raise SystemFailure(f"cannot determine filename for source {url}")
        name = _UNNAMED
    size = os.fstat(fd).st_size
    inode = Inode(
        kind=Kind.FILE,
        mode=0o600,
        mtime_ns=_http_time_ns(fetched.last_modified),
        size=size,
        content=FileRange(fd, 0, size),
    )
    digest = _digest((name,), inode, check)
    return Source(tree=None, parts=(name,), inode=inode, name=name, digest=digest, plain=True)


def _file_name(url: str, content_disposition: str) -> bytes:
    path = unquote(urlsplit(url).path)
    if not path or path.endswith("/"):
        message = Message()
        message["Content-Disposition"] = content_disposition
        path = message.get_filename("") if content_disposition else ""
    name = b"" if path.endswith("/") else os.fsencode(posixpath.basename(path))
    return b"" if name in (b".", b"..") or b"\0" in name or len(name) > 255 else name


def _http_time_ns(text: str) -> int:
    try:
        return int(parsedate_to_datetime(text).timestamp()) * 10**9 if text else 0
    except (ValueError, TypeError, IndexError, OverflowError):
        return 0


def open_unnamed(directory: Path) -> int:
    """A file without a name in a directory of ours, so that nothing stays whatever happens; the caller owns it."""
    try:
        return os.open(directory, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError:  # not every file system can
        fd, path = tempfile.mkstemp(dir=directory)
        os.unlink(path)
        return fd


class Placer:
    """Puts sources into a layer. Owns the files it needs for that until ``close``."""

    def __init__(self, layer: Layer, archives: Archives, workspace: Path, check: Check) -> None:
        self._layer = layer
        self._archives = archives
        self._workspace = workspace
        self._check = check
        self._fds: list[int] = []

    def close(self) -> None:
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()

    def place(self, source: Source, destination: bytes, owner: Owner | None, *, unpack: bool) -> None:
        """Copy one source, or unpack it if ``unpack`` is set and it is an archive. ``SystemFailure`` if it cannot go
        there, ``InvalidParameter`` for a bad archive."""
        if source.inode.is_directory:
            if source.tree is None:
                raise AssertionError(source)
            self._layer.copy_directory(source.tree, source.parts, destination, owner)
        elif unpack and not source.plain and self._is_archive(source.inode):
            self._unpack(source.inode, destination)
        else:
            self._layer.copy_file(source.inode, source.name, destination, owner)

    def _is_archive(self, inode: Inode) -> bool:
        content = inode.content
        if not isinstance(content, FileRange) or content.segments is not None:
            return False
        try:
            block = _read_block(self._archives, _section(content))
        except InvalidParameter:
            return False
        return any(block) and self._archives.is_tar(block)

    def _unpack(self, inode: Inode, destination: bytes) -> None:
        content = inode.content
        if not isinstance(content, FileRange):
            raise AssertionError(inode)
        fd, base, size = content.fd, content.offset, content.size
        if (unpacked := decompress(self._archives, _section(content), self._workspace, self._check)) is not None:
            fd, base, size = unpacked, 0, os.fstat(unpacked).st_size
            self._fds.append(fd)
        entries = read_entries(self._archives, open_section(fd, base, size), self._check)
        self._layer.unpack(((entry, base + offset) for entry, offset in entries), fd, base + size, destination)


def _section(content: FileRange) -> BinaryIO:
    return open_section(content.fd, content.offset, content.size)


def _read_block(archives: Archives, file: BinaryIO) -> bytes:
    """The first block of what a file holds once decompressed. ``InvalidParameter`` if it is damaged before."""
    compressed = archives.is_compressed(file.read(_MAGIC_BYTES))
    file.seek(0)
    stream: Readable = archives.decompress(file) if compressed else file
    block = b""
    while len(block) < _BLOCK_BYTES and (data := stream.read(_BLOCK_BYTES - len(block))):
        block += data
    return block


def read_entries(archives: Archives, file: BinaryIO, check: Check) -> Iterator[tuple[TarEntry, int]]:
    """The members of an archive, as ``Archives.read`` gives them."""
    for found in archives.read(file):
        check()
        yield found


def decompress(archives: Archives, file: BinaryIO, workspace: Path, check: Check) -> int | None:
    """What a compressed file holds, in an unnamed file whose descriptor the caller owns; None if it is not compressed.

    ``InvalidParameter`` if it is damaged.
    """
    compressed = archives.is_compressed(file.read(_MAGIC_BYTES))
    file.seek(0)
    if not compressed:
        return None
    stream = archives.decompress(file)
    fd = open_unnamed(workspace)
    try:
        while data := stream.read(CHUNK_BYTES):
            check()
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
    except BaseException:
        os.close(fd)
        raise
    return fd

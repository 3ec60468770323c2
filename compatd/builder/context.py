"""A build context as it arrived, and the Dockerfile in it. All of it blocks."""

import contextlib
import os
from pathlib import Path

from compatd.builder import dockerignore
from compatd.builder.parser import MAX_DOCKERFILE_BYTES, Dockerfile, ParseError, parse
from compatd.builder.ports import Archives
from compatd.builder.sources import Check, decompress, inside, read_entries
from compatd.builder.trees import ArchiveTree, Inode, Kind, open_section, resolve
from compatd.errors import InvalidParameter, SystemFailure

DEFAULT_DOCKERFILE = "Dockerfile"


def open_context(
    fd: int, workspace: Path, archives: Archives, resources: contextlib.ExitStack, check: Check
) -> ArchiveTree:
    """Index the archive that is the file ``fd``, perhaps compressed; ``resources`` owns what is opened for it.

    ``SystemFailure`` for a bad archive: that is what dockerd answers.
    """
    try:
        unpacked = decompress(archives, open_section(fd), workspace, check)
        if unpacked is not None:
            fd = unpacked
            resources.callback(os.close, fd)
        return ArchiveTree.index(read_entries(archives, open_section(fd), check), fd)
    except InvalidParameter as error:
        raise SystemFailure(str(error)) from error


def read_dockerfile(tree: ArchiveTree, name: str) -> Dockerfile:
    """Parse the Dockerfile of a context, and hide it and the ignore file there if they are to be ignored.

    ``ParseError`` for a wrong one, ``InvalidParameter`` for an empty one, ``SystemFailure`` if there is none.
    """
    name = name or DEFAULT_DOCKERFILE
    inode = tree.lookup(resolve(tree.lookup, inside(name)))
    if inode is None and name == DEFAULT_DOCKERFILE:
        inode = tree.lookup(resolve(tree.lookup, (b"dockerfile",)))
        name = name if inode is None else "dockerfile"
    if inode is None:
        raise SystemFailure(f"Cannot locate specified Dockerfile: {name}")
    if inode.kind is not Kind.FILE:
        what = "is a directory" if inode.is_directory else "is not a regular file"
        raise SystemFailure(f"unexpected error reading Dockerfile: read {name}: {what}")
    content = _content(inode, MAX_DOCKERFILE_BYTES + 1)
    if not content:
        raise InvalidParameter(f"the Dockerfile ({name}) cannot be empty")
    try:
        dockerfile = parse(content)
    except ParseError as error:
        raise ParseError(f"failed to parse {name}: {error}", error.span) from None
    _hide_ignored(tree, name)
    return dockerfile


def _hide_ignored(tree: ArchiveTree, dockerfile: str) -> None:
    """Clients leave ignored files out but send these two always: if they are ignored too, they go now."""
    ignore = tree.lookup(resolve(tree.lookup, (b".dockerignore",)))
    if ignore is None or ignore.kind is not Kind.FILE:
        return
    patterns = dockerignore.parse(_content(ignore, dockerignore.MAX_FILE_BYTES + 1))
    try:
        matcher = dockerignore.Matcher(patterns)
    except InvalidParameter:
        return
    for path in (".dockerignore", dockerfile):
        if matcher.excludes(path):
            tree.remove(inside(path))


def _content(inode: Inode, limit_bytes: int) -> bytes:
    chunks: list[bytes] = []
    size = 0
    for chunk in inode.content.chunks() if inode.content is not None else ():
        chunks.append(chunk)
        size += len(chunk)
        if size >= limit_bytes:
            break
    return b"".join(chunks)

"""What identifies a build step: pure functions, so that equal steps are found again and others never are.

The digests of copied files are those that Docker's classic builder prints and stores in the history
(tarsum version 1): name, mode, owner, size, type, link and device, then the content, but no times.
"""

import hashlib
import os
from collections.abc import Iterable, Sequence

from compatd.builder.image import RunConfig, encode
from compatd.builder.trees import Inode, Kind, Parts

_VERSION = "compatd classic 1"


def step_key(parent: str, config: RunConfig, command: Sequence[str]) -> str:
    """The key of a step: its parent image (or the platform, for scratch), what it does, and the configuration after.

    ``command`` is what the history shows, split: for COPY it has the digest of the files, for RUN the build
    arguments that count. Times, container ids and names of containers must not enter.
    """
    return hashlib.sha256(encode((_VERSION, parent, tuple(command), config))).hexdigest()


def file_digest(parts: Parts, inode: Inode, content: Iterable[bytes]) -> str:
    """The digest of one file with its path in the tree and its content, without a prefix."""
    name = b"/".join(parts) + (b"/" if inode.is_directory else b"")
    header = b"name%bmode%duid%dgid%dsize%dtypeflag%blinkname%bunamegnamedevmajor%ddevminor%d" % (
        name,
        inode.mode,
        inode.uid,
        inode.gid,
        inode.size,
        inode.kind.value,
        inode.target if inode.kind is Kind.SYMLINK else b"",
        os.major(inode.device),
        os.minor(inode.device),
    )
    digest = hashlib.sha256(header)
    for key in sorted(inode.xattrs):
        digest.update(key + inode.xattrs[key])
    for chunk in content:
        digest.update(chunk)
    return digest.hexdigest()


def source_digest(digest: str) -> str:
    """How one copied file appears."""
    return f"file:{digest}"


def directory_digest(digests: Iterable[str]) -> str:
    """How a copied directory appears, from the digests of all it holds."""
    return "dir:" + _join(sorted(digests))


def sources_digest(sources: Sequence[str]) -> str:
    """How the sources of one COPY appear."""
    return sources[0] if len(sources) == 1 else "multi:" + _join(sources)


def _join(digests: Iterable[str]) -> str:
    return hashlib.sha256(",".join(digests).encode()).hexdigest()

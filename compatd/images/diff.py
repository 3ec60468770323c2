"""What a container changed in its image: ``docker diff``.

The writable directory of its overlay is compared with the image below, name by name, so that only what the
container touched is looked at. The rules are those of moby's pkg/archive/changes.go: a directory counts as changed
if its owner or mode differ or something below it does, a file also by time, size and capabilities.
"""

import os
import stat
from dataclasses import dataclass
from enum import IntEnum

from compatd.images.trees import is_opaque, is_whiteout
from compatd.linux.rootdir import Rootdir

_CAPABILITY = "security.capability"


class ChangeKind(IntEnum):
    """The numbers on the wire."""

    MODIFIED = 0
    ADDED = 1
    DELETED = 2


@dataclass(frozen=True, slots=True, kw_only=True, order=True)
class Change:
    path: str
    kind: ChangeKind


def changes(upper: Rootdir, lower: Rootdir) -> list[Change]:
    """The changes in order of their paths. ``lower``: the image's mounted layers. ``OSError`` if a tree is unreadable.

    Both may be read while the container runs; what disappears meanwhile is passed over.
    """
    found: dict[bytes, ChangeKind] = {}
    pending = [(b".", True)]
    while pending:
        directory, in_image = pending.pop()
        try:
            children = upper.entries(directory)
        except (FileNotFoundError, NotADirectoryError):
            continue
        for name, status in children:
            path = name if directory == b"." else directory + b"/" + name
            below = _lstat(lower, path) if in_image else None
            if is_whiteout(status):
                if below is not None:
                    found[path] = ChangeKind.DELETED
                continue
            if below is None:
                found[path] = ChangeKind.ADDED
            elif _differ(upper, lower, path, status, below):
                found[path] = ChangeKind.MODIFIED
            if not stat.S_ISDIR(status.st_mode):
                continue
            # What a link of the image leads to is not what the directory in its place had before.
            was_directory = below is not None and stat.S_ISDIR(below.st_mode)
            pending.append((path, was_directory))
            if was_directory and is_opaque(upper, path):
                kept = {kept for kept, _ in upper.entries(path)}
                for hidden, _ in lower.entries(path):
                    if hidden not in kept:
                        found[path + b"/" + hidden] = ChangeKind.DELETED
    for path in list(found):
        while b"/" in path:
            path = path.rpartition(b"/")[0]
            found.setdefault(path, ChangeKind.MODIFIED)
    return [Change(path="/" + os.fsdecode(path), kind=kind) for path, kind in sorted(found.items())]


def _lstat(root: Rootdir, path: bytes) -> os.stat_result | None:
    try:
        return root.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _differ(upper: Rootdir, lower: Rootdir, path: bytes, new: os.stat_result, old: os.stat_result) -> bool:
    if (new.st_mode, new.st_uid, new.st_gid, new.st_rdev) != (old.st_mode, old.st_uid, old.st_gid, old.st_rdev):
        return True
    if stat.S_ISDIR(new.st_mode):
        return False
    if (new.st_size, new.st_mtime_ns) != (old.st_size, old.st_mtime_ns):
        return True
    if not stat.S_ISREG(new.st_mode):
        return False
    try:
        capabilities = [root.xattrs(path, follow=False).get(_CAPABILITY) for root in (upper, lower)]
    except FileNotFoundError:
        return False
    return capabilities[0] != capabilities[1]

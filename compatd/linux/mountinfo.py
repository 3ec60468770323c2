"""The mounts a process sees: /proc/<pid>/mountinfo, proc_pid_mountinfo(5)."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

_ESCAPE = re.compile(rb"\\([0-7]{3})")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """One line. Paths are as the process sees them, with the kernel's octal escapes undone.

    ``shared`` and ``master`` are peer group numbers; ``None`` when the mount is not in such a group.
    """

    id: int
    parent_id: int
    device: tuple[int, int]
    root: str
    mount_point: str
    options: frozenset[str]
    shared: int | None
    master: int | None
    fstype: str
    source: str
    super_options: tuple[str, ...]


def parse(text: bytes) -> Iterator[Mount]:
    """The mounts in ``text``, in the kernel's order. ``ValueError``: a line that does not have the form."""
    for line in text.removesuffix(b"\n").split(b"\n") if text else ():
        before, separator, after = line.partition(b" - ")
        fields = before.split(b" ")
        # A file system may leave spaces in its own options: the last field takes the rest.
        tail = after.split(b" ", 2)
        if not separator or len(fields) < 6 or len(tail) < 3:
            raise ValueError(f"not a mountinfo line: {line!r}")
        major, _, minor = fields[2].partition(b":")
        groups = dict(_group(field) for field in fields[6:])
        yield Mount(
            id=int(fields[0]),
            parent_id=int(fields[1]),
            device=(int(major), int(minor)),
            root=_unescape(fields[3]),
            mount_point=_unescape(fields[4]),
            options=frozenset(_unescape(fields[5]).split(",")),
            shared=groups.get(b"shared"),
            master=groups.get(b"master"),
            fstype=_unescape(tail[0]),
            source=_unescape(tail[1]),
            super_options=tuple(_unescape(tail[2]).split(",")),
        )


def read(pid: int | None = None) -> list[Mount]:
    """The mounts of process ``pid``, or of the caller."""
    return list(parse(Path(f"/proc/{pid or 'self'}/mountinfo").read_bytes()))


def containing(mounts: Iterable[Mount], path: str) -> Mount | None:
    """The mount that an absolute, normalised, symlink-free ``path`` lies on: the deepest, and of equals the last."""
    found: Mount | None = None
    for mount in mounts:
        point = mount.mount_point.rstrip("/")
        if (path == point or path.startswith(point + "/")) and (
            found is None or len(point) >= len(found.mount_point.rstrip("/"))
        ):
            found = mount
    return found


def _group(field: bytes) -> tuple[bytes, int]:
    name, _, number = field.partition(b":")
    return name, int(number or 0)


def _unescape(field: bytes) -> str:
    return _ESCAPE.sub(lambda match: bytes((int(match[1], 8) & 0xFF,)), field).decode(errors="surrogateescape")

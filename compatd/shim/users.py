"""Who a process runs as: Docker's ``user[:group]`` against a container's own /etc/passwd and /etc/group.

The files are written by strangers, so no library of the host reads them. The rules are those of
github.com/moby/sys/user, GetExecUser and GetAdditionalGroups; what differs, differs on purpose: a line whose ids
are not plain numbers in range names nobody there (Go's parser reads such an id as 0, which is root).
"""

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from compatd.shim import failures

MAX_FILE_BYTES = 1 << 23

_NUMBER = re.compile(r"[+-]?[0-9]+")
_PLAIN = re.compile(rb"[0-9]{1,10}")


class Identity(NamedTuple):
    uid: int
    gid: int
    groups: list[int]  # supplementary ones, the primary one among them
    home: str


class _User(NamedTuple):
    name: str
    uid: int
    gid: int
    home: str


class _Group(NamedTuple):
    name: str
    gid: int
    members: list[str]


def resolve(user: str, groups: Sequence[str], passwd: bytes, group: bytes) -> Identity:
    """``passwd`` and ``group``: the files' content, empty when there is none. ``failures.Failed`` in Docker's words."""
    name, _, group_name = user.partition(":")
    wanted = _number(name)
    found = next(
        (
            entry
            for entry in _users(passwd)
            if (entry.uid == 0 if not name else entry.name == name or entry.uid == wanted)
        ),
        None,
    )
    if found is None:
        if name and wanted is None:
            raise failures.unknown_user(name)
        found = _User("", _in_range(wanted or 0), 0, "/")
    gid, supplementary = found.gid, []
    if group_name:
        gid = _group(group_name, group)
    elif found.name:
        supplementary = [entry.gid for entry in _groups(group) if found.name in entry.members]
    supplementary += dict.fromkeys(_group(added, group) for added in groups)
    return Identity(found.uid, gid, [gid, *supplementary], found.home or "/")


def _group(name: str, group: bytes) -> int:
    wanted = _number(name)
    for entry in _groups(group):
        if entry.name == name or entry.gid == wanted:
            return entry.gid
    if wanted is None:
        raise failures.unknown_group(name)
    return _in_range(wanted)


def _number(text: str) -> int | None:
    """As strconv.Atoi: a number, the largest there is for one that is larger, or none."""
    if not _NUMBER.fullmatch(text):
        return None
    largest = -(1 << 63) if text[0] == "-" else (1 << 63) - 1
    return int(text) if len(text) < 20 else largest


def _in_range(value: int) -> int:
    if not failures.MIN_ID <= value <= failures.MAX_ID:
        raise failures.id_out_of_range()
    return value


def _fields(content: bytes, least: int) -> Iterator[list[bytes]]:
    for line in content.split(b"\n"):
        fields = line.strip().split(b":")
        if len(fields) >= least and fields[0]:
            yield fields


def _id(field: bytes) -> int | None:
    if not _PLAIN.fullmatch(field):
        return None
    value = int(field)
    return value if value <= failures.MAX_ID else None


def _users(passwd: bytes) -> Iterator[_User]:
    for fields in _fields(passwd, 4):
        uid, gid = _id(fields[2]), _id(fields[3])
        if uid is not None and gid is not None:
            home = fields[5] if len(fields) > 5 else b""
            yield _User(fields[0].decode(errors="surrogateescape"), uid, gid, home.decode(errors="surrogateescape"))


def _groups(group: bytes) -> Iterator[_Group]:
    for fields in _fields(group, 3):
        gid = _id(fields[2])
        if gid is not None:
            members = fields[3].split(b",") if len(fields) > 3 else []
            yield _Group(
                fields[0].decode(errors="surrogateescape"),
                gid,
                [member.decode(errors="surrogateescape") for member in members],
            )

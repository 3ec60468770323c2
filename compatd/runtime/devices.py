"""Devices: what ``--device`` means, and the rules by which the kernel lets a container use device numbers.

The rules hold for every process in the container's cgroup, so for bind mounts and execs too. They only ever allow:
what no rule names is denied.
"""

import base64
import functools
import os
import re
import stat
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from compatd.errors import SystemFailure
from compatd.runtime.oci import create_failed

Kind = Literal["a", "b", "c"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """Allow ``access`` (some of ``r``, ``w``, ``m``) to device numbers; ``None`` is every number, kind ``a`` both."""

    kind: Kind
    major: int | None
    minor: int | None
    access: str

    def __str__(self) -> str:
        """As the version 1 controller writes it."""
        if self.kind == "a":
            return "a"
        return f"{self.kind} {_number(self.major)}:{_number(self.minor)} {self.access}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A node to make in a container, and the rule that comes with it. ``permissions`` empty: no rule."""

    path: str
    kind: Literal["b", "c"]
    major: int
    minor: int
    mode: int  # permission bits
    uid: int
    gid: int
    permissions: str


def _rules(kind: Literal["b", "c"], *numbers: tuple[int | None, int | None], access: str = "rwm") -> tuple[Rule, ...]:
    return tuple(Rule(kind=kind, major=major, minor=minor, access=access) for major, minor in numbers)


# Making any node is allowed, using it is not; then null, zero, full, random, urandom, tty, console, ptmx, tun and pts.
# Documentation/admin-guide/devices.txt has the numbers.
DEFAULT_RULES = (
    *_rules("b", (None, None), access="m"),
    *_rules("c", (None, None), access="m"),
    *_rules("c", (1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2), (10, 200), (136, None)),
)
_FIRST_OWN_RULE = 16  # in the list that Docker hands to runc
ALLOW_ALL = (Rule(kind="a", major=None, minor=None, access="rwm"),)

# The nodes of every container's /dev.
DEFAULT_NODES = tuple(
    Device(path=f"/dev/{name}", kind="c", major=major, minor=minor, mode=0o666, uid=0, gid=0, permissions="")
    for name, major, minor in (
        ("null", 1, 3),
        ("zero", 1, 5),
        ("full", 1, 7),
        ("random", 1, 8),
        ("urandom", 1, 9),
        ("tty", 5, 0),
    )
)

# Not taken over from the host's /dev: the container has its own (opencontainers/cgroups, devices.GetDevices).
_OWN = frozenset({"console", "pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev"})


def invalid_rule(text: str) -> SystemFailure:
    return SystemFailure(f"invalid device cgroup rule format: '{text}'")


def not_a_device(path: str, why: str) -> SystemFailure:
    return SystemFailure(f'error gathering device information while adding custom device "{path}": {why}')


def parse_rule(text: str) -> Rule:
    """``--device-cgroup-rule``: ``c 10:* rw``. ``SystemFailure`` with Docker's text: it is found out at the start."""
    # moby daemon/oci_linux.go, deviceCgroupRuleRegex
    match = re.fullmatch(r"([acb]) ([0-9]+|\*):([0-9]+|\*) ([rwm]{1,3})", text)
    if match is None:
        raise invalid_rule(text)
    for field, name in ((match[2], "major"), (match[3], "minor")):
        if len(field) > 18:
            raise SystemFailure(f"invalid {name} value in device cgroup rule format: '{text}'")
    major, minor = (None if field == "*" else int(field) for field in match.group(2, 3))
    return Rule(kind=_kind(match[1]), major=major, minor=minor, access=match[4])


def expand(path_on_host: str, path_in_container: str, permissions: str) -> tuple[Device, ...]:
    """``--device``: one node, or all those in a directory of the host, under the container's path.

    Reads the host's file system. ``SystemFailure`` with Docker's text when it is no device.
    """
    path_in_container = path_in_container or path_on_host
    path = os.path.join("/", path_on_host) if path_on_host else ""
    try:
        # A link to a device is its target, under the name asked for.
        info = os.stat(path)
    except OSError as error:
        raise not_a_device(path_on_host, (error.strerror or str(error)).lower()) from error
    if stat.S_ISDIR(info.st_mode):
        found = tuple(_below(path, path_in_container, permissions, skip=frozenset()))
        if found:
            return found
        raise not_a_device(path_on_host, "not a device node")
    device = _device(info, path_in_container, permissions)
    if device is None:
        raise not_a_device(path_on_host, "not a device node")
    return (device,)


def host_devices() -> tuple[Device, ...]:
    """All nodes of the host's /dev, for a privileged container, whose rules allow everything anyway."""
    return tuple(_below("/dev", "/dev", "", skip=_OWN))


def number_of(path: str) -> tuple[int, int]:
    """The device number that the node ``path`` of the host stands for. ``SystemFailure`` with Docker's text."""
    try:
        info = os.stat(os.path.join("/", path) if path else "")
    except OSError as error:
        raise SystemFailure(f"stat {path}: {(error.strerror or str(error)).lower()}") from error
    return os.major(info.st_rdev), os.minor(info.st_rdev)


def rules(devices: Sequence[Device], extra: Sequence[Rule] = ()) -> tuple[Rule, ...]:
    """The rules of a container that is not privileged: Docker's, one for each device, and ``extra``.

    In the order in which runc leaves them, one for each number. ``SystemFailure``: a device without any access.
    """
    own: list[Rule] = []
    for number, device in enumerate(devices):
        if not device.permissions:
            raise create_failed(f"device access at {_FIRST_OWN_RULE + number} field cannot be empty")
        own.append(Rule(kind=device.kind, major=device.major, minor=device.minor, access=device.permissions))
    merged: dict[tuple[Kind, int | None, int | None], str] = {}
    for rule in (*DEFAULT_RULES, *own, *extra):
        key = (rule.kind, rule.major, rule.minor)
        access = merged.get(key, "") + rule.access
        if access := "".join(letter for letter in "rwm" if letter in access):
            merged[key] = access
    return tuple(
        Rule(kind=kind, major=major, minor=minor, access=access)
        for (kind, major, minor), access in sorted(merged.items(), key=lambda item: _place(*item[0]))
    )


def _place(kind: Kind, major: int | None, minor: int | None) -> tuple[bool, int, int, Kind]:
    return kind == "a", -1 if major is None else major, -1 if minor is None else minor, kind


# include/uapi/linux/bpf.h: struct bpf_cgroup_dev_ctx is (access << 16 | type, major, minor), 32 bits each.
_TYPES = {"b": 1, "c": 2}
_ACCESS = {"m": 1, "r": 2, "w": 4}
_LDX_W, _AND_IMM, _MOV_IMM, _MOV_REG, _RSH_IMM, _JNE_IMM, _JNE_REG, _EXIT = (
    0x61,
    0x54,
    0xB4,
    0xBC,
    0x74,
    0x56,
    0x5E,
    0x95,
)
_R0, _R1, _TYPE, _WANTED, _MAJOR, _MINOR, _SCRATCH = range(7)


def compile_program(allowed: Sequence[Rule]) -> bytes:
    """The rules as a BPF_PROG_TYPE_CGROUP_DEVICE program, 8 bytes an instruction.

    Each rule is a block that falls through to ``return 1`` when kind, numbers and wanted access all lie within it,
    and jumps to the next one otherwise; the last block returns 0.
    """
    program = [
        _instruction(_LDX_W, _TYPE, _R1, 0),
        _instruction(_MOV_REG, _WANTED, _TYPE),
        _instruction(_AND_IMM, _TYPE, immediate=0xFFFF),
        _instruction(_RSH_IMM, _WANTED, immediate=16),
        _instruction(_LDX_W, _MAJOR, _R1, 4),
        _instruction(_LDX_W, _MINOR, _R1, 8),
    ]
    for rule in allowed:
        program += _compile_rule(rule)
    return b"".join([*program, _instruction(_MOV_IMM, _R0, immediate=0), _instruction(_EXIT)])


@functools.lru_cache(maxsize=16)
def encode_program(allowed: tuple[Rule, ...]) -> str:
    """``compile_program`` in base64, as the shim takes it; most containers share one."""
    return base64.b64encode(compile_program(allowed)).decode()


def _compile_rule(rule: Rule) -> list[bytes]:
    bits = sum(_ACCESS[letter] for letter in set(rule.access))
    fields = [(_TYPE, _TYPES.get(rule.kind)), (_MAJOR, rule.major), (_MINOR, rule.minor)]
    tests = [(register, value) for register, value in fields if value is not None]
    narrowed = bits != 7
    length = len(tests) + (3 if narrowed else 0) + 2
    block: list[bytes] = []
    for register, value in tests:
        if value > 0xFFFFFFFF:
            raise invalid_rule(str(rule))
        block.append(_instruction(_JNE_IMM, register, offset=length - len(block) - 1, immediate=value))
    if narrowed:
        block.append(_instruction(_MOV_REG, _SCRATCH, _WANTED))
        block.append(_instruction(_AND_IMM, _SCRATCH, immediate=bits))
        block.append(_instruction(_JNE_REG, _SCRATCH, _WANTED, length - len(block) - 1))
    return [*block, _instruction(_MOV_IMM, _R0, immediate=1), _instruction(_EXIT)]


def _instruction(code: int, target: int = 0, source: int = 0, offset: int = 0, immediate: int = 0) -> bytes:
    """struct bpf_insn."""
    return struct.pack("<BBhI", code, target | source << 4, offset, immediate)


def _below(directory: str, container_directory: str, permissions: str, *, skip: frozenset[str]) -> list[Device]:
    """What cannot be read is passed over, as Docker does."""
    found: list[Device] = []
    try:
        entries = sorted(os.scandir(directory), key=lambda entry: entry.name)
    except OSError:
        return []
    for entry in entries:
        path = f"{container_directory.rstrip('/')}/{entry.name}"
        if entry.name in skip:
            continue
        try:
            if entry.is_dir(follow_symlinks=False):
                found += _below(entry.path, path, permissions, skip=skip)
            elif (device := _device(os.lstat(entry.path), path, permissions)) is not None:
                found.append(device)
        except FileNotFoundError:
            continue  # unplugged meanwhile
    return found


def _device(info: os.stat_result, path: str, permissions: str) -> Device | None:
    if not (stat.S_ISBLK(info.st_mode) or stat.S_ISCHR(info.st_mode)):
        return None
    return Device(
        path=path,
        kind="b" if stat.S_ISBLK(info.st_mode) else "c",
        major=os.major(info.st_rdev),
        minor=os.minor(info.st_rdev),
        mode=stat.S_IMODE(info.st_mode),
        uid=info.st_uid,
        gid=info.st_gid,
        permissions=permissions,
    )


def _kind(letter: str) -> Kind:
    return "b" if letter == "b" else "c" if letter == "c" else "a"


def _number(value: int | None) -> str:
    return "*" if value is None else str(value)

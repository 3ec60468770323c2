"""A user's seccomp profile as JSON text, read as Docker's decoder reads it and refused in that one's words.

The grammar is that of moby profiles/seccomp (seccomp.go) and of the runtime specification's LinuxSeccomp: member names
in any case, of doubled ones the last, null for absent, unknown ones passed over.
"""

import json
from dataclasses import dataclass
from typing import Any, NoReturn, cast

from compatd.errors import SystemFailure

MAX_PROFILE_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class _Text:
    go: str = "string"


@dataclass(frozen=True, slots=True)
class _Number:
    go: str = "uint"


@dataclass(frozen=True, slots=True)
class _List:
    element: "_Kind"
    go: str


@dataclass(frozen=True, slots=True)
class _Struct:
    members: "dict[str, _Kind]"
    go: str


@dataclass(frozen=True, slots=True)
class _Version:
    """``minKernel``: its own decoder, with messages that do not say where."""


_Kind = _Text | _Number | _List | _Struct | _Version

_TEXTS = _List(_Text(), "[]string")
_ARCHES = _List(_Text("specs.Arch"), "[]specs.Arch")
_FILTER = _Struct({"caps": _TEXTS, "arches": _TEXTS, "minKernel": _Version()}, "seccomp.Filter")
_ARG = _Struct(
    {
        "index": _Number(),
        "value": _Number("uint64"),
        "valueTwo": _Number("uint64"),
        "op": _Text("specs.LinuxSeccompOperator"),
    },
    "specs.LinuxSeccompArg",
)
_CALL = _Struct(
    {
        "name": _Text(),
        "names": _TEXTS,
        "action": _Text("specs.LinuxSeccompAction"),
        "errnoRet": _Number(),
        "args": _List(_ARG, "[]specs.LinuxSeccompArg"),
        "comment": _Text(),
        "includes": _FILTER,
        "excludes": _FILTER,
    },
    "seccomp.Syscall",
)
_PROFILE = _Struct(
    {
        "defaultAction": _Text("specs.LinuxSeccompAction"),
        "defaultErrnoRet": _Number(),
        "architectures": _ARCHES,
        "flags": _List(_Text("specs.LinuxSeccompFlag"), "[]specs.LinuxSeccompFlag"),
        "listenerPath": _Text(),
        "listenerMetadata": _Text(),
        "archMap": _List(
            _Struct({"architecture": _Text("specs.Arch"), "subArchitectures": _ARCHES}, "seccomp.Architecture"),
            "[]seccomp.Architecture",
        ),
        "syscalls": _List(_CALL, "[]*seccomp.Syscall"),
    },
    "seccomp.Seccomp",
)
_JSON_NAMES: dict[type, str] = {bool: "bool", str: "string", list: "array", dict: "object"}


def decode(text: str) -> dict[str, Any]:
    """The profile's members, each of its kind; those that are absent or null are missing. ``SystemFailure``."""
    if len(text) > MAX_PROFILE_BYTES:
        raise refused(f"profile is larger than {MAX_PROFILE_BYTES} bytes")
    try:
        document: object = json.loads(text, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise refused(_syntax(text, error)) from error
    except (RecursionError, ValueError) as error:
        raise refused("exceeded max depth") from error
    checked = _check(document, _PROFILE, "", listed=False)
    return cast("dict[str, Any]", checked) if checked is not None else {}


def refused(why: str) -> SystemFailure:
    return SystemFailure(f"Decoding seccomp profile failed: {why}")


def version(value: object) -> tuple[int, int]:
    """``minKernel`` (moby profiles/seccomp/kernel_linux.go)."""
    if not isinstance(value, str):
        raise refused(
            f'invalid kernel version: {json.dumps(value)}, expected "<kernel>.<major>": '
            f"json: cannot unmarshal {_JSON_NAMES.get(type(value), 'number')} into Go value of type string"
        )
    kernel, dot, major = value.partition(".")
    if not dot or not all(part.isascii() and part.isdecimal() and len(part) <= 9 for part in (kernel, major)):
        raise refused(f'invalid kernel version: "{value}", expected "<kernel>.<major>"')
    if int(kernel) == int(major) == 0:
        raise refused(f'invalid kernel version: "{value}", expected "<kernel>.<major>": version cannot be 0.0')
    return int(kernel), int(major)


def _check(value: object, kind: _Kind, path: str, *, listed: bool) -> object:
    """``value`` with the members that are known; ``None`` is the kind's zero. ``path``: as Go shows it."""
    if value is None:
        return None
    match kind:
        case _Text():
            if isinstance(value, str):
                return value
        case _Number():
            if type(value) is int and 0 <= value < 1 << 64:
                return value
        case _List():
            if isinstance(value, list):
                entries = enumerate(cast("list[object]", value))
                return [_check(entry, kind.element, f"{path}.{index}", listed=True) for index, entry in entries]
        case _Struct():
            if isinstance(value, dict):
                return _check_members(cast("dict[str, object]", value), kind, path)
        case _Version():
            return version(value)
    raise _mismatch(value, kind.go, path, listed=listed, numeric=isinstance(kind, _Number))


def _check_members(value: dict[str, object], kind: _Struct, path: str) -> dict[str, object]:
    names = {name.lower(): name for name in kind.members}
    found: dict[str, object] = {}
    for key, member in value.items():
        name = names.get(key.lower())
        if name is not None:
            checked = _check(member, kind.members[name], f"{path}.{name}", listed=False)
            if checked is not None:
                found[name] = checked
    return found


def _mismatch(value: object, go: str, path: str, *, listed: bool, numeric: bool) -> SystemFailure:
    kind = _JSON_NAMES.get(type(value), "number")
    shown = f"{kind} {json.dumps(value)}" if numeric and kind == "number" else kind
    if not path:
        return refused(f"json: cannot unmarshal {shown} into Go value of type {go}")
    where = f"Seccomp{path}" if listed else f"Go struct field Seccomp{path}"
    return refused(f"json: cannot unmarshal {shown} into {where} of type {go}")


def _no_constant(name: str) -> NoReturn:
    """Python's decoder knows NaN and Infinity."""
    if name.startswith("-"):
        raise refused("invalid character 'I' in numeric literal")
    raise refused(f"invalid character '{name[0]}' looking for beginning of value")


def _syntax(text: str, error: json.JSONDecodeError) -> str:
    if error.pos >= len(text):
        return "unexpected end of JSON input"
    shown = json.dumps(text[error.pos], ensure_ascii=False)[1:-1].replace('\\"', '"').replace("'", "\\'")
    if error.msg == "Extra data":
        where = "after top-level value"
    elif error.msg.startswith("Invalid control character"):
        where = "in string"
    else:
        where = "looking for beginning of value"
    return f"invalid character '{shown}' {where}"

"""The JSON of the Engine API: how values are declared, encoded, and decoded as Go's encoding/json would.

Go emits *absent*, *null* and *empty* alike, per field, and clients notice. A wire type states it so:

- ``name: str = ""`` is Go's ``omitempty``: absent when it has its zero value. Lists and maps of that kind are
  never ``None`` (``omitempty([])``), single values may be (``X | None = None``).
- ``name: str = always("")`` is emitted whatever its value is; ``always(None)`` gives null.
- a field without default has to be set by whoever builds the value.

Attributes are snake_case; the wire name is their PascalCase unless the field says otherwise.

Decoding follows Go where it is unusual: null leaves any field at its default, keys match whatever their case, unknown
keys are ignored, a lone surrogate becomes U+FFFD. Errors have the words of Go's decoder.
"""

import json
import re
from collections.abc import Callable
from functools import cache
from typing import Annotated, Any, TypeVar, cast

import msgspec
import msgspec.inspect as types

T = TypeVar("T")

Uint8 = Annotated[int, msgspec.Meta(ge=0, le=2**8 - 1)]
Uint16 = Annotated[int, msgspec.Meta(ge=0, le=2**16 - 1)]
Uint32 = Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)]
Uint64 = Annotated[int, msgspec.Meta(ge=0)]

# Go's strslice.StrSlice: on input a single string stands for a list of one.
StrSlice = Annotated[list[str] | None, msgspec.Meta(extra={"strslice": True})]

# A type that has a name of its own in Go's messages.
GoUint = Annotated[int, msgspec.Meta(ge=0, extra={"go": "uint"})]
FileMode = Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1, extra={"go": "fs.FileMode"})]

# Go's map[string]struct{}: a set whose members are keys and whose values are empty objects.
Set = dict[str, dict[str, Any]]


class Wire(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, rename="pascal"):
    """Base of the wire types: immutable, fields by keyword, omitted when they have their plain default."""


def omitempty(default: T, wire_name: str | None = None) -> T:
    """A field that is absent when it has its zero value; needed for lists, maps and irregular wire names only."""
    if isinstance(default, list | dict):
        return cast(T, msgspec.field(default_factory=type(cast(object, default)), name=wire_name))
    return msgspec.field(default=default, name=wire_name)


def always(default: T, wire_name: str | None = None) -> T:
    """A field that is emitted even when it has its default."""
    # msgspec omits a field whose value *is* its default, or is empty where the factory is list or dict itself.
    factory: Callable[[], Any]
    if default is None or default in ("", 0, False):
        factory = type(default)
    elif isinstance(default, list | dict):
        kind = type(cast(object, default))
        factory = lambda: kind()  # noqa: E731
    else:
        factory = lambda: default  # noqa: E731
    return cast(T, msgspec.field(default_factory=factory, name=wire_name))


_encoder = msgspec.json.Encoder()


def encode(value: object) -> bytes:
    """``value`` as the engine sends it: compact, UTF-8, one newline at the end (Go's json.Encoder)."""
    try:
        return _encoder.encode(value) + b"\n"
    except UnicodeEncodeError:
        # Bytes that are no UTF-8, of a path or a header or a file's name: each is U+FFFD, as in Go.
        text = json.dumps(msgspec.to_builtins(value), ensure_ascii=False, separators=(",", ":"))
        return _SURROGATE.sub("\ufffd", text).encode() + b"\n"


class DecodeError(Exception):
    """The text is no JSON, or does not fit; in Go's words."""


class EmptyError(DecodeError):
    """There is nothing but white space (Go's io.EOF)."""


def decode(type_: type[T], body: bytes) -> T:
    """The first document of ``body`` as a ``type_``. ``DecodeError``.

    The message for a second document after the first has no prefix in Docker and is raised as ``TrailingError``.
    """
    value, rest = _parse(body)
    plan = _plan(cast(Any, type_))
    decoded = cast(T, plan.zero() if value is None else plan.convert(value, ""))
    # Go asks Decoder.More, for which a closing bracket is no more.
    if rest and rest[0] not in "]}":
        raise TrailingError("unexpected content after JSON")
    return decoded


class TrailingError(DecodeError):
    """Something follows the document."""


def parse(body: bytes) -> object:
    """The first document of ``body`` as plain values, numbers that are no small integers as text. ``DecodeError``."""
    return _parse(body)[0]


class Number(str):
    """A number that is fractional, has an exponent or is beyond 64 bits, as it was written."""

    __slots__ = ()


def _integer(text: str) -> object:
    if len(text) <= 20 and -(2**63) <= (value := int(text)) < 2**64:
        return value
    return Number(text)


def _constant(name: str) -> object:
    raise ValueError(name)


_decoder = json.JSONDecoder(parse_int=_integer, parse_float=Number, parse_constant=_constant)
_SPACE = " \t\r\n"


def _parse(body: bytes) -> tuple[object, str]:
    text = body.decode("utf-8", "replace")
    begin = len(text) - len(text.lstrip(_SPACE))
    if begin == len(text):
        raise EmptyError("EOF")
    try:
        value, end = cast(tuple[object, int], _decoder.raw_decode(text, begin))
    except RecursionError:
        raise DecodeError("exceeded max depth") from None
    except ValueError:
        raise DecodeError(syntax_error(text)) from None
    return value, text[end:].lstrip(_SPACE)


# ---------------------------------------------------------------------- shapes

_KINDS: dict[type, str] = {bool: "bool", str: "string", int: "number", Number: "number", list: "array", dict: "object"}
_SURROGATE = re.compile("[\ud800-\udfff]")

# The names that Go's types have in messages.
_GO_NAMES = {
    "ContainerCreateRequest": "container.CreateRequest",
    "ExecCreateRequest": "container.ExecOptions",
    "ExecStartRequest": "container.ExecStartOptions",
    "PortBinding": "nat.PortBinding",
    "Ulimit": "units.Ulimit",
    "WeightDevice": "blkiodev.WeightDevice",
    "ThrottleDevice": "blkiodev.ThrottleDevice",
    "Mount": "mount.Mount",
    "VolumeDriver": "mount.Driver",
    "HealthConfig": "v1.HealthcheckConfig",
}
# Of these, lists and maps hold pointers.
_POINTED = ("units.Ulimit", "blkiodev.WeightDevice", "blkiodev.ThrottleDevice", "network.EndpointSettings")
# Go tells whose a field is, unless that is an embedded structure.
_ROOTS = {"ExecCreateRequest": "ExecOptions", "ExecStartRequest": "ExecStartOptions"}


class _Item(str):
    """The path of a list's item: what is wrong with it is told without a word on fields."""

    __slots__ = ()


class _Plan:
    """How a decoded document becomes one type. ``zero`` is what null becomes inside lists and maps."""

    go_type: str = "interface {}"

    def zero(self) -> object:
        return None

    def convert(self, value: object, path: str) -> object:
        return value

    def refuse(self, value: object, path: str) -> DecodeError:
        kind = _KINDS[type(value)]
        if kind == "number" and isinstance(self, _Int):
            kind = f"number {value}"
        where = path if isinstance(path, _Item) else f"Go struct field {path}" if path else "Go value"
        return DecodeError(f"json: cannot unmarshal {kind} into {where} of type {self.go_type}")


class _Text(_Plan):
    go_type = "string"

    def zero(self) -> object:
        return ""

    def convert(self, value: object, path: str) -> object:
        if type(value) is not str:
            raise self.refuse(value, path)
        return _SURROGATE.sub("\ufffd", value) if not value.isascii() else value


class _Bool(_Plan):
    go_type = "bool"

    def zero(self) -> object:
        return False

    def convert(self, value: object, path: str) -> object:
        if type(value) is not bool:
            raise self.refuse(value, path)
        return value


class _Int(_Plan):
    def __init__(self, least: int | None, most: int | None) -> None:
        self.least = -(2**63) if least is None else least
        self.most = most if most is not None else 2**63 - 1 if least is None else 2**64 - 1
        self.go_type = f"uint{self.most.bit_length()}" if least == 0 else "int64"

    def zero(self) -> object:
        return 0

    def convert(self, value: object, path: str) -> object:
        if type(value) is not int or not self.least <= value <= self.most:
            raise self.refuse(value, path)
        return value


class _List(_Plan):
    def __init__(self, item: _Plan, *, strslice: bool = False) -> None:
        self.item = item
        self.go_type = f"[]{_held(item)}"
        self.strslice = strslice

    def convert(self, value: object, path: str) -> object:
        if self.strslice:
            return self._convert_words(value, path)
        if type(value) is not list:
            raise self.refuse(value, path)
        return [
            self.item.zero() if item is None else self.item.convert(item, _Item(f"{path}.{index}"))
            for index, item in enumerate(cast(list[object], value))
        ]

    def _convert_words(self, value: object, path: str) -> object:
        words = [value] if type(value) is str else value
        if type(words) is list and all(type(word) is str for word in cast(list[object], words)):
            return [self.item.convert(word, path) for word in cast(list[object], words)]
        raise DecodeError(f"json: cannot unmarshal {_KINDS[type(value)]} into Go value of type string")


class _Pair(_Plan):
    """A Go array of two: what is missing is zero, what is too much is dropped."""

    def __init__(self, item: _Plan) -> None:
        self.item = item
        self.go_type = f"[2]{item.go_type}"

    def convert(self, value: object, path: str) -> object:
        if type(value) is not list:
            raise self.refuse(value, path)
        items = [
            self.item.convert(item, _Item(f"{path}.{index}"))
            for index, item in enumerate(cast(list[object], value)[:2])
            if item is not None
        ]
        return (*items, self.item.zero(), self.item.zero())[:2]


class _Map(_Plan):
    def __init__(self, item: _Plan) -> None:
        self.item = item
        self.go_type = f"map[string]{_held(item)}"

    def convert(self, value: object, path: str) -> object:
        if type(value) is not dict:
            raise self.refuse(value, path)
        converted: dict[str, object] = {}
        for key, item in cast(dict[str, object], value).items():
            name = _SURROGATE.sub("\ufffd", key)
            where = f"{path}.{name.replace('~', '~0').replace('/', '~1')}"
            converted[name] = self.item.zero() if item is None else self.item.convert(item, where)
        return converted


def _held(item: _Plan) -> str:
    return f"*{item.go_type}" if item.go_type in _POINTED else item.go_type


class _Empty(_Plan):
    """Go's struct{}."""

    go_type = "struct {}"

    def zero(self) -> object:
        return dict[str, object]()

    def convert(self, value: object, path: str) -> object:
        if type(value) is not dict:
            raise self.refuse(value, path)
        return dict[str, object]()


class _Struct(_Plan):
    def __init__(self, info: types.StructType) -> None:
        self.type = info.cls
        name = info.cls.__name__
        self.go_type = _GO_NAMES.get(name, f"{info.cls.__module__.rpartition('.')[2].removesuffix('s')}.{name}")
        self.root = _ROOTS.get(name, "")
        self.fields = {field.encode_name: (field.name, _plan_of(field.type)) for field in info.fields}
        self.folded = {key.casefold(): field for key, field in self.fields.items()}

    def zero(self) -> object:
        return self.type()

    def convert(self, value: object, path: str) -> object:
        if type(value) is not dict:
            raise self.refuse(value, path)
        fields: dict[str, object] = {}
        for key, item in cast(dict[str, object], value).items():
            field = self.fields.get(key) or self.folded.get(key.casefold())
            if field is not None and item is not None:
                name, plan = field
                fields[name] = plan.convert(item, f"{path or self.root}.{key}")
        return self.type(**fields)


@cache
def _plan(type_: Any) -> _Plan:
    return _plan_of(types.type_info(type_))


def _plan_of(info: types.Type) -> _Plan:
    extra: dict[str, str] = {}
    while isinstance(info, types.Metadata | types.UnionType):
        if isinstance(info, types.Metadata):
            extra |= cast(Any, info).extra or {}
            info = info.type
        else:
            (info,) = (member for member in info.types if not isinstance(member, types.NoneType))
    plan = _plain_plan(info, strslice="strslice" in extra)
    if "go" in extra:
        plan.go_type = extra["go"]
    return plan


def _plain_plan(info: types.Type, *, strslice: bool) -> _Plan:
    match info:
        case types.StructType():
            return _struct(info)
        case types.StrType():
            return _Text()
        case types.BoolType():
            return _Bool()
        case types.IntType():
            return _Int(info.ge, info.le)
        case types.ListType():
            return _List(_plan_of(info.item_type), strslice=strslice)
        case types.TupleType():
            return _Pair(_plan_of(info.item_types[0]))
        case types.DictType():
            item = info.value_type
            empty = isinstance(item, types.DictType) and isinstance(item.value_type, types.AnyType)
            return _Map(_Empty() if empty else _plan_of(item))
        case _:
            return _Plan()


_structs: dict[type, _Struct] = {}


def _struct(info: types.StructType) -> _Struct:
    if info.cls not in _structs:
        _structs[info.cls] = _Struct(info)
    return _structs[info.cls]


# ---------------------------------------------------------------------- syntax

_NUMBER = re.compile(r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][+-]?[0-9]+)?")


def _quote(character: str) -> str:
    """A character as Go's decoder quotes it."""
    if character == "'":
        return "'\\''"
    shown = json.dumps(character, ensure_ascii=False)[1:-1] if character != '"' else '"'
    if re.fullmatch(r"\\u00[0-9a-f]{2}", shown):
        shown = "\\x" + shown[4:]
    return f"'{shown}'"


def syntax_error(text: str) -> str:
    """What Go's decoder says of a text that is no JSON (encoding/json, scanner.go)."""
    # An iterative scanner: the text may be nested as deeply as it likes.
    stack: list[str] = []
    state = "value"
    position = 0
    while True:
        while position < len(text) and text[position] in _SPACE:
            position += 1
        if position == len(text):
            return "unexpected EOF"
        character = text[position]
        if state == "colon":
            if character != ":":
                return f"invalid character {_quote(character)} after object key"
            state = "value"
            position += 1
            continue
        if state == "after":
            opened = stack[-1]
            if character == ",":
                state = "key" if opened == "{" else "value"
            elif character == ("}" if opened == "{" else "]"):
                stack.pop()
                if not stack:
                    return "unexpected EOF"
            else:
                what = "object key:value pair" if opened == "{" else "array element"
                return f"invalid character {_quote(character)} after {what}"
            position += 1
            continue
        if state in ("key", "first key"):
            if character == "}" and state == "first key":
                stack.pop()
                position += 1
                state = "after"
                if not stack:
                    return "unexpected EOF"
                continue
            if character != '"':
                return f"invalid character {_quote(character)} looking for beginning of object key string"
            outcome = _scan_string(text, position)
            if isinstance(outcome, str):
                return outcome
            position = outcome
            state = "colon"
            continue
        if state == "first value" and character == "]":
            stack.pop()
            position += 1
            state = "after"
            if not stack:
                return "unexpected EOF"
            continue
        if character in "{[":
            stack.append(character)
            state = "first key" if character == "{" else "first value"
            position += 1
            continue
        outcome = _scan_scalar(text, position)
        if isinstance(outcome, str):
            return outcome
        position = outcome
        state = "after"
        if not stack:
            return "unexpected EOF"


def _scan_string(text: str, position: int) -> int | str:
    position += 1
    while position < len(text):
        character = text[position]
        if character == '"':
            return position + 1
        if character < " ":
            return f"invalid character {_quote(character)} in string"
        if character == "\\":
            escape = text[position + 1 : position + 2]
            if not escape:
                break
            if escape == "u":
                digits = text[position + 2 : position + 6]
                if not re.fullmatch("[0-9a-fA-F]{4}", digits):
                    if len(digits) < 4 and re.fullmatch("[0-9a-fA-F]*", digits):
                        break
                    return f"invalid escape sequence `\\u{digits}` in string"
                position += 4
            elif escape not in '"\\/bfnrt':
                return f"invalid escape sequence `\\{escape}` in string"
            position += 1
        position += 1
    return "unexpected EOF"


def _scan_scalar(text: str, position: int) -> int | str:
    character = text[position]
    if character == '"':
        return _scan_string(text, position)
    for literal in ("true", "false", "null"):
        if character == literal[0]:
            for offset, expected in enumerate(literal):
                found = text[position + offset : position + offset + 1]
                if not found:
                    return "unexpected EOF"
                if found != expected:
                    return f"invalid character {_quote(found)} in literal {literal} (expecting {_quote(expected)})"
            return position + len(literal)
    if character == "-" or character in "0123456789":
        if (match := _NUMBER.match(text, position)) is None:
            following = text[position + 1 : position + 2]
            return f"invalid character {_quote(following)} in numeric literal" if following else "unexpected EOF"
        end = match.end()
        following = text[end : end + 1]
        # A fraction or exponent that has begun and has no digits.
        if following in (".", "e", "E") and following:
            next_ = text[end + 1 : end + 2]
            return f"invalid character {_quote(next_)} in numeric literal" if next_ else "unexpected EOF"
        return end
    return f"invalid character {_quote(character)} looking for beginning of value"

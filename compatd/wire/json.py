"""The JSON of the Engine API: how values are declared, encoded, and decoded as Go's encoding/json would.

Go emits *absent*, *null* and *empty* alike, per field, and clients notice. A wire type states it so:

- ``name: str = ""`` is Go's ``omitempty``: absent when it has its zero value. Lists and maps of that kind are
  never ``None`` (``omitempty([])``), single values may be (``X | None = None``).
- ``name: str = always("")`` is emitted whatever its value is; ``always(None)`` gives null.
- a field without default has to be set by whoever builds the value.

Attributes are snake_case; the wire name is their PascalCase unless the field says otherwise.
"""

from collections.abc import Callable
from typing import Annotated, Any, TypeVar, cast

import msgspec

T = TypeVar("T")

Uint8 = Annotated[int, msgspec.Meta(ge=0, le=2**8 - 1)]
Uint16 = Annotated[int, msgspec.Meta(ge=0, le=2**16 - 1)]
Uint32 = Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)]
# 2**64 - 1 in Go; JSON numbers that large are refused by the decoder before.
Uint64 = Annotated[int, msgspec.Meta(ge=0)]

# Go's strslice.StrSlice: on input a single string stands for a list of one.
StrSlice = Annotated[list[str] | None, msgspec.Meta(extra={"strslice": True})]

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
    return _encoder.encode(value) + b"\n"

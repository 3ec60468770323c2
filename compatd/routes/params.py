"""Query parameters, headers and bodies of requests, read as moby reads them (daemon/server/httputils)."""

import base64
import binascii
import re
from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING, TypeVar, cast

import msgspec

from compatd.errors import InvalidParameter, SystemFailure
from compatd.wire import json
from compatd.wire.types.images import Platform
from compatd.wire.types.system import AuthConfig

if TYPE_CHECKING:
    from aiohttp import web

    from compatd.routes.call import Call

T = TypeVar("T")
Filters = dict[str, Sequence[str]]

# A JSON body larger than this is no container or network.
JSON_LIMIT_BYTES = 4 * 1024 * 1024


def boolean(call: "Call", name: str, default: bool = False) -> bool:
    """True unless absent or one of the words for no (BoolValue, BoolValueOrDefault)."""
    if name not in call.query:
        return default
    return call.query[name].strip().lower() not in ("", "0", "no", "false", "none")


def text(call: "Call", name: str, default: str = "") -> str:
    """The first value, empty when absent."""
    return call.query.get(name, default)


_INTEGER = re.compile("[+-]?[0-9]+")


def integer(value: str, parser: str = "strconv.ParseInt") -> int:
    """A decimal number of 64 bits. ``SystemFailure`` with Go's words: Docker answers 500 to a bad number."""
    if not _INTEGER.fullmatch(value):
        raise SystemFailure(f'{parser}: parsing "{value}": invalid syntax')
    digits = value.lstrip("+-0") or "0"
    read = -int(digits[:20]) if value[0] == "-" else int(digits[:20])
    if len(digits) > 19 or not -(2**63) <= read < 2**63:
        raise SystemFailure(f'{parser}: parsing "{value}": value out of range')
    return read


def number(call: "Call", name: str) -> int:
    """A number, 0 when absent or empty."""
    value = text(call, name)
    return integer(value, "strconv.Atoi") if value else 0


def number_or_zero(call: "Call", name: str) -> int:
    """A number, 0 when it is none (Int64ValueOrZero)."""
    try:
        return integer(text(call, name))
    except SystemFailure:
        return 0


def terminal_size(call: "Call", name: str, what: str) -> int:
    """The ``h`` or ``w`` of a resize: 32 bits without sign."""
    value = text(call, name)
    if not _INTEGER.fullmatch(value):
        raise InvalidParameter(f'invalid resize {what} "{value}": invalid syntax')
    if len(value) > 11 or not 0 <= int(value) < 2**32:
        raise InvalidParameter(f'invalid resize {what} "{value}": value out of range')
    return int(value)


def timeout_s(call: "Call") -> int | None:
    """The ``t`` of stop and restart, ``None`` when not given."""
    value = text(call, "t")
    return integer(value, "strconv.Atoi") if value else None


def timestamp_ns(value: str) -> int | None:
    """``seconds[.fraction]``, nanoseconds since the epoch; ``None`` for empty (moby timestamp.ParseTimestamps)."""
    if not value:
        return None
    seconds, _, fraction = value.partition(".")
    whole = integer(seconds) * 1_000_000_000
    if not fraction:
        return whole
    integer(fraction)
    part = int(fraction[:9].ljust(9, "0"))
    return whole - part if seconds.startswith("-") else whole + part


def filters(call: "Call") -> Filters:
    """The ``filters`` parameter: ``{"key": ["value"]}``, or, as of old, ``{"key": {"value": true}}``."""
    value = text(call, "filters")
    if not value:
        return {}
    try:
        document = json.parse(value.encode())
    except json.DecodeError:
        raise InvalidParameter("invalid filter") from None
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise InvalidParameter("invalid filter")
    read: Filters = {}
    for key, values in cast(dict[str, object], document).items():
        names = list(cast(dict[str, object], values)) if isinstance(values, dict) else values
        if isinstance(values, dict) and not all(isinstance(x, bool) for x in cast(dict[str, object], values).values()):
            raise InvalidParameter("invalid filter")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in cast(list[object], names)):
            raise InvalidParameter("invalid filter")
        read[key] = list(dict.fromkeys(cast(list[str], names)))
    return read


def json_parameter(call: "Call", name: str, type_: type[T], what: str) -> T | None:
    """A parameter that is a JSON document; ``what`` begins the message when it is not."""
    value = text(call, name)
    if not value:
        return None
    try:
        return json.decode(type_, value.encode())
    except json.DecodeError as error:
        raise InvalidParameter(f"{what}: {error}") from None


def platform(call: "Call", since: tuple[int, int]) -> Platform | None:
    """The ``platform`` parameter of operations that take an OCI platform document, from API ``since`` on."""
    if call.version < since:
        return None
    return json_parameter(call, "platform", Platform, "failed to parse platform")


def auth(call: "Call", header: str = "X-Registry-Auth") -> AuthConfig | None:
    """Credentials from a header. What cannot be read counts as none, as in Docker."""
    document = _header_document(call, header)
    if document is None:
        return None
    try:
        return json.decode(AuthConfig, document)
    except json.DecodeError:
        return None


def auths(call: "Call") -> dict[str, AuthConfig]:
    """Credentials by registry, from ``X-Registry-Config``."""
    document = _header_document(call, "X-Registry-Config")
    if document is None:
        return {}
    try:
        value = json.parse(document)
    except json.DecodeError:
        return {}
    if not isinstance(value, dict):
        return {}
    read: dict[str, AuthConfig] = {}
    for registry, entry in cast(dict[str, object], value).items():
        try:
            read[registry] = json.decode(AuthConfig, msgspec.json.encode(entry))
        except json.DecodeError:
            continue
    return read


def _header_document(call: "Call", header: str) -> bytes | None:
    value = call.request.headers.get(header, "")
    if not value:
        return None
    try:
        # Clients use the URL alphabet, some the other one, some leave the padding out.
        plain = value.translate(str.maketrans("+/", "-_"))
        return base64.b64decode(plain + "=" * (-len(plain) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        return None


# ---------------------------------------------------------------------- bodies

_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_PARAMETER = re.compile(r"""\s*[!#$%&'*+.^_`|~0-9A-Za-z-]+\s*=\s*([!#$%&'*+.^_`|~0-9A-Za-z-]+|"([^"\\]|\\.)*")\s*""")


def _media_type(header: str) -> str:
    """The media type of a Content-Type, as Go's mime.ParseMediaType. ``ValueError`` in its words."""
    media, *parameters = header.split(";")
    media = media.strip().lower()
    major, slash, minor = media.partition("/")
    if not _TOKEN.fullmatch(major):
        raise ValueError("mime: no media type")
    if slash and not _TOKEN.fullmatch(minor):
        raise ValueError("mime: expected token after slash")
    for index, parameter in enumerate(parameters):
        last = index == len(parameters) - 1
        if not _PARAMETER.fullmatch(parameter) and not (last and not parameter.strip()):
            raise ValueError("mime: invalid media parameter")
    return media


def _has_body(request: "web.BaseRequest") -> bool:
    length = request.headers.get("Content-Length")
    return "Transfer-Encoding" in request.headers if length is None else length.strip("0") != ""


async def body(call: "Call", type_: type[T], *, required: bool = False) -> T:
    """The JSON body. An absent one is a value with every default, unless it is ``required``."""
    request = call.request
    present = _has_body(request)
    header = request.headers.get("Content-Type", "")
    if header or present:
        try:
            media = _media_type(header)
        except ValueError as error:
            raise InvalidParameter(f"malformed Content-Type header ({header}): {error}") from None
        if media != "application/json":
            raise InvalidParameter(f"unsupported Content-Type header ({media}): must be 'application/json'")
    if not present and not required:
        return type_()
    try:
        return json.decode(type_, await _read(request))
    except json.TrailingError as error:
        raise InvalidParameter(str(error)) from None
    except json.EmptyError:
        raise InvalidParameter("invalid JSON: got EOF while reading request body") from None
    except json.DecodeError as error:
        raise InvalidParameter(f"invalid JSON: {error}") from None


async def _read(request: "web.BaseRequest") -> bytes:
    whole = bytearray()
    async for chunk in request.content.iter_any():
        whole += chunk
        if len(whole) > JSON_LIMIT_BYTES:
            raise InvalidParameter(f"request body is larger than {JSON_LIMIT_BYTES} bytes")
    return bytes(whole)


async def chunks(call: "Call") -> AsyncIterator[bytes]:
    """The body in pieces as they come, for operations that take an archive."""
    await call.send_continue()
    async for chunk in call.request.content.iter_any():
        yield chunk

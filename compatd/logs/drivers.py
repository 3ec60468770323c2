"""The log drivers, and what may be said to them when a container is created.

Texts are those of moby daemon/logger (factory.go, each driver's ValidateLogOpt, loggerutils/cache) and of
docker/go-units; that the values of some options are only looked at when the container starts, too.
"""

import math
import re
from collections.abc import Mapping

from compatd.errors import InvalidParameter
from compatd.logs import syslog

READABLE = ("json-file", "local")  # the others keep a copy for ``docker logs``, unless that is disabled
LISTED = ("journald", "json-file", "local", "syslog")
NONE = "none"
DEFAULT_BUFFER_BYTES = 1_000_000  # moby daemon/logger/ring.go

_ATTRIBUTES = frozenset(("labels", "labels-regex", "env", "env-regex", "tag"))
_FILES = frozenset(("max-size", "max-file", "compress"))
_SYSLOG = frozenset(
    f"syslog-{name}"
    for name in ("address", "facility", "format", "tls-ca-cert", "tls-cert", "tls-key", "tls-skip-verify")
)
_OPTIONS = {
    "journald": _ATTRIBUTES,
    "json-file": _ATTRIBUTES | _FILES,
    "local": _FILES,
    "syslog": _ATTRIBUTES | _SYSLOG,
}
CACHE_OPTIONS = frozenset(("cache-disabled", "cache-max-size", "cache-max-file", "cache-compress"))
_OF_ALL = CACHE_OPTIONS | {"mode", "max-buffer-size"}

_TRUE, _FALSE = ("1", "t", "T", "TRUE", "true", "True"), ("0", "f", "F", "FALSE", "false", "False")
_DECIMAL = {"k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12, "p": 10**15}
_BINARY = {"k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40, "p": 1 << 50}


def merge(driver: str, options: Mapping[str, str], default_driver: str, defaults: Mapping[str, str]) -> dict[str, str]:
    """A container's options with the engine's: all of them for the same driver, else those of the copy (moby
    daemon/logs.go, mergeAndVerifyLogConfig)."""
    same = (driver or default_driver) == default_driver
    given = {key: value for key, value in defaults.items() if same or key in CACHE_OPTIONS} | dict(options)
    return {key: given[key] for key in sorted(given)}


def check(driver: str, options: Mapping[str, str]) -> None:
    """``InvalidParameter`` for a driver or an option that there is not (moby daemon/logger/factory.go)."""
    if driver == NONE:
        return
    mode = options.get("mode", "")
    if mode not in ("", "blocking", "non-blocking"):
        raise InvalidParameter(f"logger: logging mode not supported: {mode}")
    if (size := options.get("max-buffer-size")) is not None:
        if mode != "non-blocking":
            raise InvalidParameter("logger: max-buffer-size option is only supported with 'mode=non-blocking'")
        try:
            parse_size(size, binary=True)
        except ValueError as error:
            raise InvalidParameter(f"error parsing option max-buffer-size: {error}") from None
    if (disabled := options.get("cache-disabled")) and disabled not in _TRUE + _FALSE:
        raise InvalidParameter(f"invalid value for option cache-disabled: {disabled}")
    known = _OPTIONS.get(driver)
    if known is None:
        raise InvalidParameter(f'error looking up logging plugin {driver}: plugin "{driver}" not found')
    for key in options:
        if key not in known and key not in _OF_ALL:
            whose = "log driver local" if driver == "local" else f"{driver} log driver"
            raise InvalidParameter(f"unknown log opt '{key}' for {whose}")
    if driver == "syslog":
        try:
            syslog.check(options)
        except ValueError as error:
            raise InvalidParameter(str(error)) from None


def buffer_bytes(options: Mapping[str, str]) -> int | None:
    """How much may wait before output is lost; None when the container waits instead. ``ValueError``."""
    if options.get("mode") != "non-blocking":
        return None
    return parse_size(options["max-buffer-size"], binary=True) if "max-buffer-size" in options else DEFAULT_BUFFER_BYTES


def is_readable(driver: str, options: Mapping[str, str]) -> bool:
    """Whether ``docker logs`` can show it."""
    return driver != NONE and (driver in READABLE or options.get("cache-disabled") not in _TRUE)


def parse_size(text: str, *, binary: bool = False) -> int:
    """``10m`` in bytes (docker/go-units: FromHumanSize, or RAMInBytes if ``binary``). ``ValueError`` in its words."""
    end = max((text.rfind(character) for character in "0123456789. "), default=-1)
    if end < 0:
        raise ValueError(f"invalid size: '{text}'")
    number, suffix = (text[:end] if text[end] == " " else text[: end + 1]), text[end + 1 :].lower()
    if not re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)", number, re.ASCII):
        raise ValueError(f'strconv.ParseFloat: parsing "{number}": invalid syntax')
    size = float(number)
    if size < 0:
        raise ValueError(f"invalid size: '{text}'")
    if suffix and suffix != "b":
        unit = (_BINARY if binary else _DECIMAL).get(suffix[0])
        if unit is None or suffix[1:] not in ("", "b", "ib"):
            raise ValueError(f"invalid suffix: '{suffix if len(suffix) <= 3 else text[end + 1 :]}'")
        size *= unit
    # What Go makes of a number that does not fit.
    return int(size) if math.isfinite(size) and size < 2**63 else -(2**63)


def parse_count(text: str) -> int:
    """A whole number as strconv.Atoi has it. ``ValueError`` in its words."""
    if not re.fullmatch("[+-]?[0-9]+", text, re.ASCII):
        raise ValueError(f'strconv.Atoi: parsing "{text}": invalid syntax')
    number = int(text[:30])
    if len(text) > 30 or not -(2**63) <= number < 2**63:
        raise ValueError(f'strconv.Atoi: parsing "{text}": value out of range')
    return number


def parse_bool(text: str) -> bool:
    """As strconv.ParseBool. ``ValueError`` in its words."""
    if text not in _TRUE + _FALSE:
        raise ValueError(f'strconv.ParseBool: parsing "{text}": invalid syntax')
    return text in _TRUE

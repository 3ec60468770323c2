"""Durations as Go reads and prints them."""

import re
from decimal import Decimal

from compatd.builder.shellwords import quote


class BadDuration(ValueError):
    """The text is no duration; the message is that of Go's time.ParseDuration."""


_UNITS_NS = {
    "ns": 1,
    "us": 10**3,
    "µs": 10**3,
    "μs": 10**3,
    "ms": 10**6,
    "s": 10**9,
    "m": 60 * 10**9,
    "h": 3600 * 10**9,
}
_DURATION_PART = re.compile(r"([0-9]*)(?:(\.)([0-9]*))?([^0-9.]*)")


def parse_duration(text: str) -> int:
    """A Go duration (``1h2m3.5s``) in nanoseconds, with the errors of Go's time.ParseDuration."""
    invalid = BadDuration(f"time: invalid duration {quote(text)}")
    body = text[1:] if text[:1] in ("+", "-") else text
    if body == "0":
        return 0
    if not body or len(body) > 200:
        raise invalid
    total = Decimal(0)
    while body:
        match = _DURATION_PART.match(body)
        if match is None or not (match[1] or match[3]):
            raise invalid
        if not match[4]:
            raise BadDuration(f"time: missing unit in duration {quote(text)}")
        if match[4] not in _UNITS_NS:
            raise BadDuration(f"time: unknown unit {quote(match[4])} in duration {quote(text)}")
        total += Decimal(f"{match[1] or 0}.{match[3] or 0}") * _UNITS_NS[match[4]]
        body = body[match.end() :]
    if total >= 1 << 63:
        raise invalid
    return -int(total) if text.startswith("-") else int(total)


def format_duration(duration_ns: int) -> str:
    """A duration as Go prints it: ``1m0s``, ``1.5s``, ``300ms``, ``0s``."""
    if duration_ns == 0:
        return "0s"
    sign, rest = ("-", -duration_ns) if duration_ns < 0 else ("", duration_ns)
    if rest < 10**9:
        for unit, scale in (("ms", 10**6), ("µs", 10**3), ("ns", 1)):
            if rest >= scale:
                return f"{sign}{_decimal(rest, scale)}{unit}"
    minutes, rest = divmod(rest, 60 * 10**9)
    hours, minutes = divmod(minutes, 60)
    text = _decimal(rest, 10**9) + "s"
    if hours or minutes:
        text = f"{minutes}m{text}"
    return sign + (f"{hours}h{text}" if hours else text)


def _decimal(value: int, scale: int) -> str:
    whole, fraction = divmod(value, scale)
    digits = len(str(scale)) - 1
    return f"{whole}.{fraction:0{digits}d}".rstrip("0").rstrip(".") if fraction else str(whole)

"""The ``filters`` of list, prune and events requests: which keys an operation knows, and how values match."""

import re
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime

from compatd.core import patterns
from compatd.errors import InvalidParameter

Filters = Mapping[str, Sequence[str]]


def check(filters: Filters, known: Iterable[str]) -> None:
    """``InvalidParameter`` for the first key that is not ``known``: an unknown filter must never match everything."""
    allowed = set(known)
    for key in filters:
        if key not in allowed:
            raise InvalidParameter(f"invalid filter '{key}'")


def matches_labels(wanted: Sequence[str], labels: Mapping[str, str] | None) -> bool:
    """Whether every ``name`` or ``name=value`` of ``wanted`` is among ``labels`` (moby MatchKVList)."""
    have = labels or {}
    for entry in wanted:
        name, separator, value = entry.partition("=")
        if name not in have or (separator and have[name] != value):
            return False
    return True


def passes_labels(filters: Filters, labels: Mapping[str, str] | None) -> bool:
    """Whether ``labels`` has every entry of the ``label`` filter, and none of ``label!``'s."""
    return matches_labels(filters.get("label", ()), labels) and not any(
        matches_labels([entry], labels) for entry in filters.get("label!", ())
    )


def matches_any(wanted: Sequence[str], value: str) -> bool:
    """Whether ``value`` matches one of ``wanted``; an empty list matches everything.

    Docker takes each as the text itself or a regular expression found anywhere (MatchRegex).
    """
    return not wanted or any(pattern == value or patterns.search(pattern, value) for pattern in wanted)


def boolean(filters: Filters, key: str) -> bool | None:
    """The value of a true/false filter, ``None`` when absent (moby GetBoolOrDefault)."""
    values = filters.get(key)
    if not values:
        return None
    if len(values) == 1 and values[0] in {"1", "true", "True", "TRUE", "t", "T"}:
        return True
    if len(values) == 1 and values[0] in {"0", "false", "False", "FALSE", "f", "F"}:
        return False
    raise invalid_values(key, values)


def invalid_values(key: str, values: Sequence[str]) -> InvalidParameter:
    """moby api/types/filters/errors.go, invalidFilter."""
    return InvalidParameter(f"invalid filter '{key}=[{' '.join(values)}]'")


_DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)(ns|us|µs|ms|s|m|h)", re.ASCII)
_UNITS_NS = {"ns": 1, "us": 1_000, "µs": 1_000, "ms": 1_000_000, "s": 10**9, "m": 60 * 10**9, "h": 3600 * 10**9}
_RFC3339 = re.compile(r"(\d{4}-\d\d-\d\d)(?:T(\d\d:\d\d(?::\d\d)?)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)?)?", re.ASCII)


def parse_time_ns(text: str) -> int:
    """A moment as clients give it: seconds since 1970 with a fraction, RFC 3339 in full or part, or a Go duration
    before now (moby api/types/time, GetTimestamp). ``InvalidParameter`` otherwise."""
    if match := re.fullmatch(r"(\d{1,12})(?:\.(\d{1,9}))?", text, re.ASCII):
        return int(match[1]) * 10**9 + int((match[2] or "").ljust(9, "0"))
    if match := _RFC3339.fullmatch(text):
        clock = match[2] or "00:00"
        zone = (match[4] or "Z").replace("Z", "+00:00")
        try:
            moment = datetime.fromisoformat(f"{match[1]}T{clock}{'' if clock.count(':') == 2 else ':00'}{zone}")
            return int(moment.timestamp()) * 10**9 + int((match[3] or "").ljust(9, "0"))
        except (ValueError, OverflowError) as error:
            raise InvalidParameter(f'failed to parse value as time or duration: "{text}"') from error
    bare = text.removeprefix("-")
    parts = _DURATION.findall(bare)
    if parts and "".join(number + unit for number, unit in parts) == bare:
        span = sum(int(float(number) * _UNITS_NS[unit]) for number, unit in parts)
        return time.time_ns() - span
    raise InvalidParameter(f'failed to parse value as time or duration: "{text}"')


def until_ns(filters: Filters) -> int | None:
    """The ``until`` filter of prunes and lists, ``None`` when absent."""
    values = filters.get("until", ())
    if len(values) > 1:
        raise InvalidParameter("more than one until filter specified")
    return parse_time_ns(values[0]) if values else None

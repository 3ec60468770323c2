"""The ``filters`` of list, prune and events requests: which keys an operation knows, and how values match."""

from collections.abc import Iterable, Mapping, Sequence

from compatd.core import patterns
from compatd.core.timestamps import parse_time_ns
from compatd.errors import EngineError, InvalidParameter

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


def until_ns(filters: Filters, *, bad: type[EngineError] = InvalidParameter) -> int | None:
    """The ``until`` filter of prunes and lists, ``None`` when absent. ``bad``: the kind for what is no time."""
    values = filters.get("until", ())
    if len(values) > 1:
        raise InvalidParameter("more than one until filter specified")
    try:
        return parse_time_ns(values[0]) if values else None
    except InvalidParameter as error:
        raise bad(str(error)) from None

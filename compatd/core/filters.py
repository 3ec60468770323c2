"""The ``filters`` of list, prune and events requests: which keys an operation knows, and how values match."""

import re
from collections.abc import Iterable, Mapping, Sequence

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


def excludes_labels(unwanted: Sequence[str], labels: Mapping[str, str] | None) -> bool:
    """Whether ``labels`` has any entry of a ``label!`` filter."""
    return any(matches_labels([entry], labels) for entry in unwanted)


def matches_any(wanted: Sequence[str], value: str) -> bool:
    """Whether ``value`` matches one of ``wanted``; an empty list matches everything.

    Docker takes each as a regular expression found anywhere (MatchRegex). A hostile expression could run for
    ever in a backtracking engine, so only plain text with ``^``, ``$``, ``.`` and ``.*`` is taken as one;
    everything else is compared as text.
    """
    if not wanted:
        return True
    return any(_search(pattern, value) for pattern in wanted)


def _search(pattern: str, value: str) -> bool:
    if re.fullmatch(r"\^?[A-Za-z0-9_/.*:@-]*\$?", pattern) and not re.search(r"(^|[^.])\*|\.\*.*\.\*.*\.\*", pattern):
        return re.search(pattern.replace("$", r"\Z"), value) is not None
    return pattern in value


def boolean(filters: Filters, key: str) -> bool | None:
    """The value of a true/false filter, ``None`` when absent (moby GetBoolOrDefault)."""
    values = filters.get(key)
    if not values:
        return None
    if len(values) == 1 and values[0] in {"1", "true", "True", "TRUE", "t", "T"}:
        return True
    if len(values) == 1 and values[0] in {"0", "false", "False", "FALSE", "f", "F"}:
        return False
    raise InvalidParameter(f"invalid filter '{key}={list(values)}'")

"""Suggestions for misspelt words."""

from collections.abc import Iterable


def suggest(word: str, options: Iterable[str], *, exact: bool = False) -> str:
    """`` (did you mean X?)`` for the closest option at an edit distance under 3, or nothing."""
    wanted = word if exact else word.lower()
    best, best_distance = "", 3
    for option in options:
        candidate = option if exact else option.lower()
        distance = _edit_distance(wanted, candidate) if abs(len(wanted) - len(candidate)) < 3 else 3
        if distance == 0:
            return ""
        if distance < best_distance:
            best, best_distance = candidate, distance
    if not best:
        return ""
    if not exact and word == word.upper():
        best = best.upper()
    return f" (did you mean {best}?)"


def _edit_distance(first: str, second: str) -> int:
    row = list(range(len(second) + 1))
    for index, char in enumerate(first, 1):
        previous, row[0] = row[0], index
        for at, other in enumerate(second, 1):
            previous, row[at] = row[at], min(row[at] + 1, row[at - 1] + 1, previous + (char != other))
    return row[-1]

"""Wildcard matching in linear time, whatever the pattern: what hostile Dockerfiles and ignore files get.

A pattern is a list of steps. Matching keeps the set of positions in the subject that the steps so far can
reach, as the bits of one integer, so that a step costs a few operations on that integer and nothing ever
backtracks (Python's ``re`` would, on ``*a*a*a*a``).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

Chars = str | Callable[[str], bool]
"""One character, or the test that says which characters are meant."""


@dataclass(frozen=True, slots=True)
class One:
    """Exactly one of the characters."""

    chars: Chars


@dataclass(frozen=True, slots=True)
class Many:
    """Any number of the characters, none included."""

    chars: Chars


@dataclass(frozen=True, slots=True)
class Until:
    """Nothing, or any number of the characters followed by ``end``."""

    chars: Chars
    end: str


Step = One | Many | Until


class Subject:
    """A string to match against, prepared once for any number of patterns."""

    def __init__(self, text: str) -> None:
        self.length = len(text)
        self._where: dict[str, int] = {}
        positions: dict[str, list[int]] = {}
        for index, char in enumerate(text):
            positions.setdefault(char, []).append(index)
        for char, indexes in positions.items():
            bits = bytearray((indexes[-1] >> 3) + 1)
            for index in indexes:
                bits[index >> 3] |= 1 << (index & 7)
            self._where[char] = int.from_bytes(bits, "little")

    def where(self, chars: Chars) -> int:
        """The positions that hold such a character, as bits."""
        if isinstance(chars, str):
            return self._where.get(chars, 0)
        found = 0
        for char, bits in self._where.items():
            if chars(char):
                found |= bits
        return found

    def reach(self, steps: Iterable[Step], start: int = 1) -> int:
        """The positions where a match that begins at one of ``start``'s bits can end, as bits."""
        reached = start
        for step in steps:
            if not reached:
                return 0
            match step:
                case One(chars):
                    reached = (reached & self.where(chars)) << 1
                case Many(chars):
                    reached = _spread(reached, self.where(chars))
                case Until(chars, end):
                    reached |= (_spread(reached, self.where(chars)) & self.where(end)) << 1
        return reached

    def matches(self, steps: Iterable[Step]) -> bool:
        """Whether the steps match the whole subject."""
        return bool(self.reach(steps) >> self.length & 1)


def _spread(reached: int, run: int) -> int:
    # The carry of the addition walks through each run of ones from every reached position to the run's end.
    return ((run + (reached & run)) ^ run) | reached


def shortest(reached: int) -> int | None:
    """The first position of a set, if any."""
    return (reached & -reached).bit_length() - 1 if reached else None


def longest(reached: int) -> int | None:
    """The last position of a set, if any."""
    return reached.bit_length() - 1 if reached else None


class BadPattern(ValueError):
    """The pattern cannot be read: a class without its end, or an escape at the end."""

    def __init__(self) -> None:
        super().__init__("syntax error in pattern")


def parse_class(pattern: str, index: int) -> tuple[Callable[[str], bool], int]:
    """A ``[...]`` class whose ``[`` is just before ``index``: its test, and the index behind its ``]``.

    The grammar is that of Go's path.Match: ``^`` negates, ``-`` ranges, a backslash escapes, and an empty
    class or a bare ``-`` or ``]`` in it is an error.
    """
    negated = pattern.startswith("^", index)
    index += negated
    ranges: list[tuple[str, str]] = []
    while not (pattern.startswith("]", index) and ranges):
        low, index = _class_char(pattern, index)
        high = low
        if pattern.startswith("-", index):
            high, index = _class_char(pattern, index + 1)
        ranges.append((low, high))
    bounds = tuple(ranges)
    return (lambda char: any(low <= char <= high for low, high in bounds) is not negated), index + 1


def _class_char(pattern: str, index: int) -> tuple[str, int]:
    if index >= len(pattern) or pattern[index] in "-]":
        raise BadPattern
    if pattern[index] == "\\":
        index += 1
    if index + 1 >= len(pattern):  # the class still needs its end
        raise BadPattern
    return pattern[index], index + 1


def _not_separator(char: str) -> bool:
    return char != "/"


def _within_segment(test: Callable[[str], bool]) -> Callable[[str], bool]:
    return lambda char: char != "/" and test(char)


def parse_path_pattern(pattern: str) -> tuple[Step, ...]:
    """A pattern of COPY and ADD sources, as Go's filepath.Match reads it. ``BadPattern`` if it is malformed."""
    steps: list[Step] = []
    index = 0
    while index < len(pattern):
        char = pattern[index]
        index += 1
        if char == "*":
            if not (steps and isinstance(steps[-1], Many)):
                steps.append(Many(_not_separator))
        elif char == "?":
            steps.append(One(_not_separator))
        elif char == "[":
            test, index = parse_class(pattern, index)
            steps.append(One(_within_segment(test)))
        elif char == "\\":
            if index == len(pattern):
                raise BadPattern
            steps.append(One(pattern[index]))
            index += 1
        else:
            steps.append(One(char))
    return tuple(steps)

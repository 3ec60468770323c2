""".dockerignore: which paths of a context count.

The rules are those of moby's patternmatcher: patterns match whole paths from the context's root, a match of
a parent directory counts for all below it, ``**`` crosses directories, ``!`` brings back, the last match
decides. Matching is linear in the path for every pattern.
"""

import posixpath
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from compatd.builder.globs import BadPattern, Many, One, Step, Subject, Until, parse_class, parse_path_pattern
from compatd.builder.shellwords import SPACE
from compatd.errors import InvalidParameter

MAX_FILE_BYTES = 4 << 20
MAX_LINE_BYTES = 1 << 16


def parse(content: bytes) -> list[str]:
    """The patterns of an ignore file, cleaned. ``InvalidParameter`` for a file that is too long."""
    if len(content) > MAX_FILE_BYTES or any(len(line) >= MAX_LINE_BYTES for line in content.split(b"\n")):
        raise InvalidParameter("error reading .dockerignore: bufio.Scanner: token too long")
    patterns: list[str] = []
    for line in content.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape").split("\n"):
        if line.startswith("#"):
            continue
        pattern = line.strip(SPACE)
        if not pattern:
            continue
        inverted = pattern.startswith("!")
        if inverted:
            pattern = pattern[1:].strip(SPACE)
        if pattern:
            pattern = _clean(pattern)
            if len(pattern) > 1:
                pattern = pattern.removeprefix("/")
        patterns.append("!" + pattern if inverted else pattern)
    return patterns


def _clean(path: str) -> str:
    cleaned = posixpath.normpath(path)
    return cleaned[1:] if cleaned.startswith("//") else cleaned  # POSIX keeps two slashes, Go does not


@dataclass(frozen=True, slots=True)
class Pattern:
    """One line: what it matches, and whether it brings back."""

    text: str
    steps: tuple[Step, ...]
    inverted: bool


class Matcher:
    """Decides about paths. ``InvalidParameter`` for patterns that cannot be read."""

    def __init__(self, patterns: Iterable[str]) -> None:
        self.patterns: tuple[Pattern, ...] = tuple(_read(pattern) for pattern in _given(patterns))

    def excludes(self, path: str) -> bool:
        """Whether a path (relative, slashes, no ``..``) is left out. The root itself never is."""
        path = _clean(path)
        if path == ".":
            return False
        names = path.split("/")
        prefixes = ["/".join(names[: depth + 1]) for depth in range(len(names))]
        subjects: list[Subject | None] = [None] * len(names)
        excluded = False
        for pattern in self.patterns:
            if pattern.inverted != excluded:  # it could not change anything
                continue
            if self._matches(pattern, prefixes, subjects):
                excluded = not pattern.inverted
        return excluded

    @staticmethod
    def _matches(pattern: Pattern, prefixes: Sequence[str], subjects: list[Subject | None]) -> bool:
        for index in range(len(prefixes) - 1, -1, -1):
            subject = subjects[index]
            if subject is None:
                subject = subjects[index] = Subject(prefixes[index])
            if subject.matches(pattern.steps):
                return True
        return False


def _given(patterns: Iterable[str]) -> Iterable[str]:
    return (cleaned for pattern in patterns if (cleaned := pattern.strip(SPACE)))


def _read(text: str) -> Pattern:
    cleaned = _clean(text)
    inverted = cleaned.startswith("!")
    if inverted:
        cleaned = cleaned[1:]
        if not cleaned:
            raise InvalidParameter('illegal exclusion pattern: "!"')
    try:
        parse_path_pattern(cleaned)  # the grammar; what the pattern means differs in ``**``
        return Pattern(cleaned, _compile(cleaned), inverted)
    except BadPattern as error:
        raise InvalidParameter(str(error)) from None


def _every(char: str) -> bool:
    return bool(char)


def _anything(char: str) -> bool:
    return char != "\n"


def _within(char: str) -> bool:
    return char != "/"


def _compile(pattern: str) -> tuple[Step, ...]:
    steps: list[Step] = []
    literal = True  # so far: then what follows is compared as text, without the regular expression's dot
    at = 0
    while at < len(pattern):
        char = pattern[at]
        at += 1
        if char == "*" and pattern.startswith("*", at):
            at += 1
            slash = pattern.startswith("/", at)
            at += slash
            if at == len(pattern):
                steps.append(Many(_every if literal else _anything))
            elif not steps and not _SPECIAL & set(pattern[at:]):
                # Alone at the front it asks for the end of the path; in front of a slash for its last names.
                steps.append(Until(_every, "/") if slash else Many(_every))
            else:
                steps.append(Until(_anything, "/"))
            literal = False
            continue
        literal = literal and char not in _SPECIAL
        if char == "*":
            if not (steps and steps[-1] == Many(_within)):
                steps.append(Many(_within))
        elif char == "?":
            steps.append(One(_within))
        elif char == "[":
            test, at = parse_class(pattern, at)
            steps.append(One(test))
        elif char == "\\" and at < len(pattern):
            steps.append(One(pattern[at]))
            at += 1
        else:
            steps.append(One(char))
    return tuple(steps)


_SPECIAL = set("*?[]\\")

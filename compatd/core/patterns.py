"""Regular expressions of clients, matched in time linear in the text: a hostile one costs no more than its length.

The syntax is that of Go's regexp (RE2) as far as names need it: literals, classes, groups, alternatives, repetition,
anchors, ``(?i)`` at the beginning, ``\\Q…\\E``. An expression that is none, or uses more, matches nothing, which is
what Docker's filters make of one that does not compile.
"""

from collections.abc import Callable

_MAX_STATES = 1000  # also RE2's limit for a repetition
_MAX_DEPTH = 50
_CLASSES: dict[str, Callable[[str], bool]] = {
    "d": lambda c: c in "0123456789",
    "w": lambda c: c.isascii() and (c.isalnum() or c == "_"),
    "s": lambda c: c in "\t\n\f\r ",
}
_CONTROLS = {"n": "\n", "t": "\t", "r": "\r", "f": "\f", "v": "\v", "a": "\a"}


class _Unusable(Exception):
    """No expression, or one of more than is known here."""


_Test = Callable[[str], bool]
# A state consumes a character that passes its test, or goes on to each of ``to`` at once, where ``place`` allows it.
_State = tuple[_Test | None, str, list[int]]
_Node = Callable[[list[_State], int], int]  # adds states that lead to one, and returns the first of them


def search(expression: str, text: str) -> bool:
    """Whether ``expression`` is found anywhere in ``text``."""
    try:
        states, start = _Parser(expression).program()
    except (_Unusable, IndexError):
        return False
    active: set[int] = set()
    for at in range(len(text) + 1):
        active = _closure(states, active | {start}, at, len(text))
        if 0 in active:
            return True
        if at < len(text):
            active = {to for one in active if (test := states[one][0]) and test(text[at]) for to in states[one][2]}
    return False


def _closure(states: list[_State], begun: set[int], at: int, end: int) -> set[int]:
    pending, found = list(begun), set[int]()
    while pending:
        one = pending.pop()
        if one in found:
            continue
        found.add(one)
        test, place, to = states[one]
        if test is None and (not place or (place == "^" and at == 0) or (place == "$" and at == end)):
            pending += to
    return found


class _Parser:
    def __init__(self, text: str) -> None:
        self._fold = text.startswith("(?i)")
        self._text = text[4:] if self._fold else text
        self._at = 0
        self._depth = 0

    def program(self) -> tuple[list[_State], int]:
        """(states, where to begin); 0 is the end."""
        states: list[_State] = [(None, "", [])]
        node = self._alternatives()
        if self._at < len(self._text):
            raise _Unusable
        return states, node(states, 0)

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _take(self) -> str:
        self._at += 1
        return self._text[self._at - 1]

    def _alternatives(self) -> _Node:
        branches = [self._sequence()]
        while self._peek() == "|":
            self._take()
            branches.append(self._sequence())
        return lambda states, to: _add(states, None, "", [branch(states, to) for branch in branches])

    def _sequence(self) -> _Node:
        nodes: list[_Node] = []
        while self._peek() not in ("", "|", ")"):
            if self._text.startswith("\\Q", self._at):
                quoted, _, _ = self._text[self._at + 2 :].partition("\\E")
                self._at = min(self._at + 4 + len(quoted), len(self._text))
                nodes += [self._one(_between(character, character)) for character in quoted]
                continue
            nodes.append(self._repeated(self._atom()))

        def build(states: list[_State], to: int) -> int:
            for node in reversed(nodes):
                to = node(states, to)
            return to

        return build

    def _repeated(self, node: _Node) -> _Node:
        least, most = 1, 1
        match self._peek():
            case "*":
                least, most = 0, -1
            case "+":
                least, most = 1, -1
            case "?":
                least, most = 0, 1
            case "{" if (bounds := self._bounds()) is not None:
                least, most = bounds
            case _:
                return node
        self._take()
        if self._peek() == "?":  # as few as possible: found is found
            self._take()
        if self._peek() in ("*", "+", "?") and self._peek():
            raise _Unusable

        def build(states: list[_State], to: int) -> int:
            if most < 0:
                loop = _add(states, None, "", [to])
                states[loop][2].append(node(states, loop))
                to = loop
            for _ in range(most - least):
                to = _add(states, None, "", [node(states, to), to])
            for _ in range(least):
                to = node(states, to)
            return to

        return build

    def _bounds(self) -> tuple[int, int] | None:
        """Those of ``{2}``, ``{2,}`` and ``{2,3}``, up to the brace; anything else stands for itself."""
        inside, closed, _ = self._text[self._at + 1 :].partition("}")
        first, comma, last = inside.partition(",")
        if not closed or not all(word.isascii() and word.isdecimal() for word in (first, last or first)):
            return None
        if len(inside) > 9 or max(int(first), int(last or 0)) > _MAX_STATES or (last and int(last) < int(first)):
            raise _Unusable
        self._at += len(inside) + 1
        return int(first), int(last) if last else -1 if comma else int(first)

    def _atom(self) -> _Node:
        match character := self._take():
            case "(":
                return self._group()
            case "[":
                return self._one(self._class())
            case ".":
                return self._one(lambda c: c != "\n")
            case "^" | "$":
                return lambda states, to: _add(states, None, character, [to])
            case "*" | "+" | "?":
                raise _Unusable
            case "\\" if self._peek() in ("A", "z"):
                place = "^" if self._take() == "A" else "$"
                return lambda states, to: _add(states, None, place, [to])
            case "\\":
                return self._one(self._escaped())
            case _:
                return self._one(lambda c: c == character)

    def _group(self) -> _Node:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise _Unusable
        if self._text.startswith("?:", self._at):
            self._at += 2
        elif self._peek() == "?":
            raise _Unusable
        node = self._alternatives()
        if self._take() != ")":
            raise _Unusable
        self._depth -= 1
        return node

    def _escaped(self) -> _Test:
        character = self._take()
        if character.lower() in _CLASSES:
            test = _CLASSES[character.lower()]
            return test if character.islower() else lambda c: not test(c)
        if character in _CONTROLS:
            character = _CONTROLS[character]
        elif character.isalnum() or not character.isascii():
            raise _Unusable
        return lambda c: c == character

    def _class(self) -> _Test:
        refused = self._peek() == "^"
        self._at += refused
        tests: list[_Test] = []
        while self._peek() != "]" or not tests:
            if self._text.startswith("[:", self._at):
                raise _Unusable
            low = self._take()
            if low == "\\":
                tests.append(self._escaped())
            elif self._peek() == "-" and self._text[self._at + 1] != "]":
                self._take()
                high = self._take()
                if high == "\\" or high < low:
                    raise _Unusable
                tests.append(_between(low, high))
            else:
                tests.append(_between(low, low))
        self._take()
        return lambda c: any(test(c) for test in tests) is not refused

    def _one(self, test: _Test) -> _Node:
        if self._fold:
            plain = test
            test = lambda c: plain(c) or plain(c.lower()) or plain(c.upper())  # noqa: E731
        return lambda states, to: _add(states, test, "", [to])


def _between(low: str, high: str) -> _Test:
    return lambda c: low <= c <= high


def _add(states: list[_State], test: _Test | None, place: str, to: list[int]) -> int:
    if len(states) >= _MAX_STATES:
        raise _Unusable
    states.append((test, place, to))
    return len(states) - 1

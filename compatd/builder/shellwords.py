"""Variable expansion and word splitting in Dockerfile instructions.

The rules are those of BuildKit's shell lexer (frontend/dockerfile/shell), which Docker's classic builder
shares: close to a POSIX shell, with its own ideas about quotes and unset variables. Pure functions; every
failure is a ``ShellSyntaxError`` whose text is Docker's.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from compatd.builder.globs import Many, One, Step, Subject, longest, shortest
from compatd.errors import InvalidParameter

SPACE = "\t\n\v\f\r \x85\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B))) + "\u2028\u2029\u202f\u205f\u3000"
"""What Go's unicode.IsSpace accepts; Python's ``str.isspace`` knows four more."""

MAX_EXPANSION_CHARS = 1 << 20
MAX_PATTERN_CHARS = 1 << 16
MAX_DEPTH = 100

_END = ""
_SPECIAL = "@*#?-$!0"


class ShellSyntaxError(InvalidParameter):
    """A word that cannot be expanded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Lexer:
    """How words are read. ``raw_quotes`` and ``raw_escapes`` keep the quotes and escapes in the result;
    ``keep_unset`` leaves references to unset variables as they stand."""

    escape: str = "\\"
    raw_quotes: bool = False
    raw_escapes: bool = False
    keep_quotes: bool = False
    keep_unset: bool = False

    def expand(self, word: str, env: Mapping[str, str]) -> str:
        """The word with variables replaced and quotes removed; spaces stay. ``ShellSyntaxError`` if it cannot be."""
        return self._read(word, env)[0]

    def split(self, word: str, env: Mapping[str, str]) -> list[str]:
        """The words after expansion, split at unquoted spaces. ``ShellSyntaxError`` if it cannot be."""
        return self._read(word, env)[1]

    def _read(self, word: str, env: Mapping[str, str]) -> tuple[str, list[str]]:
        try:
            return _Reader(self, word, env).read_until(_END, self.raw_escapes)
        except ShellSyntaxError as error:
            raise ShellSyntaxError(f"failed to process {quote(word)}: {error}") from None


class _Words:
    """Collects words; ``inside`` says whether a space now ends one."""

    def __init__(self) -> None:
        self.words: list[str] = []
        self._parts: list[str] = []

    def add(self, text: str) -> None:
        """Add unquoted text: its spaces separate."""
        for char in text:
            if char in SPACE:
                self._close()
            else:
                self._parts.append(char)

    def add_raw(self, text: str) -> None:
        if text:
            self._parts.append(text)

    def finish(self) -> list[str]:
        self._close()
        return self.words

    def _close(self) -> None:
        if self._parts:
            self.words.append("".join(self._parts))
            self._parts.clear()


class _Reader:
    def __init__(self, lexer: Lexer, text: str, env: Mapping[str, str]) -> None:
        self._lexer = lexer
        self._text = text.removeprefix("\ufeff")
        self._at = 0
        self._env = env
        self._depth = 0
        self._produced = 0
        self._raw_escapes = lexer.raw_escapes

    def _peek(self) -> str:
        return self._text[self._at] if self._at < len(self._text) else _END

    def _next(self) -> str:
        char = self._peek()
        self._at += 1 if char else 0
        return char

    def _grow(self, text: str) -> str:
        self._produced += len(text)
        if self._produced > MAX_EXPANSION_CHARS:
            raise ShellSyntaxError(f"expansion is longer than {MAX_EXPANSION_CHARS} characters")
        return text

    def read_until(self, stop: str, raw_escapes: bool) -> tuple[str, list[str]]:
        """Read up to ``stop`` (the end of the text if empty): the expanded text, and its words."""
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise ShellSyntaxError("substitutions are nested too deeply")
        before, self._raw_escapes = self._raw_escapes, raw_escapes
        result: list[str] = []
        words = _Words()
        quoting = not self._lexer.keep_quotes
        while char := self._peek():
            if char == stop:
                self._at += 1
                break
            if char == "$":
                value = self._grow(self._read_dollar())
                result.append(value)
                words.add(value)
            elif char == "'" and quoting:
                value = self._read_single_quoted()
                result.append(value)
                words.add_raw(value)
            elif char == '"' and quoting:
                value = self._read_double_quoted()
                result.append(value)
                words.add_raw(value)
            elif char == "<":
                value = self._read_heredoc_start()
                result.append(value)
                words.add_raw(value)
            else:
                self._at += 1
                if char != self._lexer.escape:
                    result.append(char)
                    words.add(char)
                    continue
                if self._raw_escapes:
                    result.append(char)
                    words.add_raw(char)
                escaped = self._next()
                result.append(escaped)
                words.add_raw(escaped)
        else:
            if stop:
                raise ShellSyntaxError(f"unexpected end of statement while looking for matching {stop}")
        self._raw_escapes = before
        self._depth -= 1
        return "".join(result), words.finish()

    def _read_single_quoted(self) -> str:
        end = self._text.find("'", self._at + 1)
        if end < 0:
            raise ShellSyntaxError("unexpected end of statement while looking for matching single-quote")
        start, self._at = self._at, end + 1
        return self._text[start : end + 1] if self._lexer.raw_quotes else self._text[start + 1 : end]

    def _read_double_quoted(self) -> str:
        result = [self._next()] if self._lexer.raw_quotes else []
        if not self._lexer.raw_quotes:
            self._at += 1
        escape = self._lexer.escape
        while char := self._peek():
            if char == '"':
                self._at += 1
                if self._lexer.raw_quotes:
                    result.append(char)
                return "".join(result)
            if char == "$":
                result.append(self._grow(self._read_dollar()))
                continue
            self._at += 1
            if char == escape:
                if self._raw_escapes:
                    result.append(char)
                following = self._peek()
                if not following:
                    break
                if following in ('"', "$", escape):
                    char = self._next()
            result.append(char)
        raise ShellSyntaxError("unexpected end of statement while looking for matching double-quote")

    def _read_heredoc_start(self) -> str:
        self._at += 1
        if self._peek() != "<":
            return "<"
        self._at += 1
        start = self._at
        while (char := self._peek()) and char in "\t\r ":
            self._at += 1
        return "<<" + self._text[start : self._at]

    def _read_name(self) -> str:
        start = self._at
        first = self._peek()
        if first.isdecimal():
            while self._peek().isdecimal():
                self._at += 1
        elif first and first in _SPECIAL:
            self._at += 1
        else:
            while (char := self._peek()) and (char == "_" or char.isalpha() or char.isdecimal()):
                self._at += 1
        return self._text[start : self._at]

    def _read_dollar(self) -> str:
        self._at += 1
        if self._peek() != "{":
            name = self._read_name()
            if not name:
                return "$"
            value = self._env.get(name)
            if value is None:
                return f"${name}" if self._lexer.keep_unset else ""
            return value
        self._at += 1
        opening = self._peek()
        if not opening:
            raise ShellSyntaxError("syntax error: missing '}'")
        if opening in "{}:":
            raise ShellSyntaxError("syntax error: bad substitution")
        name = self._read_name()
        operator = self._next()
        value = self._env.get(name)
        unset = self._lexer.keep_unset and value is None
        if operator == "}":
            return f"${{{name}}}" if unset else value or ""
        if operator == "/":
            return self._read_replacement(name, value)
        modifier = operator
        if operator == ":":
            operator = self._next()
            modifier += operator or "\ufffd"
        if not operator or operator not in "+-?#%" or (len(modifier) > 1 and operator in "#%"):
            # Go prints its end-of-input rune as U+FFFD
            raise ShellSyntaxError(f"unsupported modifier ({modifier or chr(0xFFFD)}) in substitution")
        word = self._read_operand("}", operator in "#%")
        if unset:
            return f"${{{name}{modifier}{word}}}"
        return _modify(name, value, word, operator, null_is_unset=len(modifier) > 1)

    def _read_operand(self, stop: str, raw_escapes: bool) -> str:
        try:
            return self.read_until(stop, raw_escapes)[0]
        except ShellSyntaxError:
            if self._peek():
                raise
            where = "'}'" if stop == "}" else "'/' in ${}"
            raise ShellSyntaxError(f"syntax error: missing {where}") from None

    def _read_replacement(self, name: str, value: str | None) -> str:
        everywhere = self._peek() == "/"
        self._at += everywhere
        pattern = self._read_operand("/", True)
        replacement = self._read_operand("}", True)
        if self._lexer.keep_unset and value is None:
            return f"${{{name}/{pattern}/{replacement}}}"
        return _replace(value or "", pattern, replacement, everywhere=everywhere)


def _modify(name: str, value: str | None, word: str, operator: str, *, null_is_unset: bool) -> str:
    missing = value is None or (null_is_unset and not value)
    if operator == "-":
        return word if missing else value or ""
    if operator == "+":
        return "" if missing else word
    if operator == "?":
        if missing:
            what = "unset" if value is None else "empty"
            raise ShellSyntaxError(f"{name}: {word or f'is not allowed to be {what}'}")
        return value or ""
    greedy = word.startswith(operator)
    pattern = word[1:] if greedy else word
    return _trim(value or "", pattern, greedy=greedy, suffix=operator == "%")


def _parse_pattern(pattern: str, value: str) -> tuple[Step, ...]:
    if len(value) > MAX_PATTERN_CHARS:
        raise ShellSyntaxError(f"value is too long for a pattern (over {MAX_PATTERN_CHARS} characters)")
    steps: list[Step] = []
    index = 0
    while index < len(pattern):
        char = pattern[index]
        index += 1
        if char == "*":
            if not (steps and isinstance(steps[-1], Many)):
                steps.append(Many(_not_newline))
        elif char == "?":
            steps.append(One(_not_newline))
        elif char != "\\":
            steps.append(One(char))
        else:
            char = pattern[index] if index < len(pattern) else "\ufffd"
            if char not in "}/*?\\":
                raise ShellSyntaxError(f"invalid pattern ({pattern}) in substitution: invalid escape '\\{char}'")
            steps.append(One(char))
            index += 1
    return tuple(steps)


def _not_newline(char: str) -> bool:
    return char != "\n"


def _trim(value: str, pattern: str, *, greedy: bool, suffix: bool) -> str:
    steps = _parse_pattern(pattern, value)
    if suffix:  # the shortest match at the end is the shortest at the start of the mirrored text
        value, steps = value[::-1], steps[::-1]
    reached = Subject(value).reach(steps)
    end = longest(reached) if greedy else shortest(reached)
    if end is not None:
        value = value[end:]
    return value[::-1] if suffix else value


def _replace(value: str, pattern: str, replacement: str, *, everywhere: bool) -> str:
    steps = _parse_pattern(pattern, value)
    subject = Subject(value)
    everything = (1 << len(value) + 1) - 1
    mirrored = Subject(value[::-1]).reach(steps[::-1], everything)
    starts = [len(value) - index for index in range(len(value), -1, -1) if mirrored >> index & 1]
    result: list[str] = []
    done = 0
    produced = 0
    last_end = -1
    for start in starts:
        if start < done:
            continue
        end = longest(subject.reach(steps, 1 << start))
        if end is None or (start == end == last_end):  # an empty match right behind a match does not count
            continue
        put = _fill(replacement, value[start:end]) if everywhere else replacement
        produced += len(put)
        if produced > MAX_EXPANSION_CHARS:
            raise ShellSyntaxError(f"expansion is longer than {MAX_EXPANSION_CHARS} characters")
        result += (value[done:start], put)
        done = last_end = end
        if not everywhere:
            break
    result.append(value[done:])
    return "".join(result)


def _fill(template: str, match: str) -> str:
    """The template of Go's ReplaceAllString, which knows ``$0`` and takes every other ``$name`` for empty."""
    if "$" not in template:
        return template
    result: list[str] = []
    index = 0
    while (at := template.find("$", index)) >= 0:
        result.append(template[index:at])
        index = at + 1
        if template.startswith("$", index):
            result.append("$")
            index += 1
            continue
        braced = template.startswith("{", index)
        start = index + braced
        end = start
        while end < len(template) and (template[end] == "_" or template[end].isalnum()):
            end += 1
        if end == start or (braced and not template.startswith("}", end)):
            result.append("$")
            continue
        result.append(match if template[start:end] == "0" else "")
        index = end + braced
    result.append(template[index:])
    return "".join(result)


_ESCAPES = {
    "\a": "\\a",
    "\b": "\\b",
    "\f": "\\f",
    "\n": "\\n",
    "\r": "\\r",
    "\t": "\\t",
    "\v": "\\v",
    "\\": "\\\\",
    '"': '\\"',
}


def quote(text: str) -> str:
    """The text as Go's ``%q`` writes it, which error messages and image histories contain."""
    if text.isascii() and text.isprintable() and '"' not in text and "\\" not in text:
        return f'"{text}"'
    return '"' + "".join(_ESCAPES.get(char) or _quote_char(char) for char in text) + '"'


def _quote_char(char: str) -> str:
    if char.isprintable():
        return char
    code = ord(char)
    if code < 0x80:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"

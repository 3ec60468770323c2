"""Dockerfile text to nodes: the first step of a build, pure.

A node is one instruction with its flags and arguments split the way its keyword asks for, the lines it
spans, and its heredocs. The grammar is that of BuildKit's parser (frontend/dockerfile/parser), which
Docker's classic builder shares. Every failure is a ``ParseError`` with a span; nothing else is raised,
whatever the bytes.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

from compatd.builder.shellwords import SPACE, Lexer, ShellSyntaxError, quote
from compatd.errors import InvalidParameter

MAX_LINE_BYTES = 1 << 16  # bufio.MaxScanTokenSize, the line's end included
MAX_DOCKERFILE_BYTES = 4 << 20
MAX_INSTRUCTIONS = 10_000

_BLANKS = re.compile(r"[\t\v\f\r ]+")
_DIRECTIVE = re.compile(r"#[\s\x85\xa0]*([a-zA-Z][a-zA-Z0-9]*)[\t\n\f\r ]*=[\t\n\f\r ]*(.+?)[\t\n\f\r ]*", re.ASCII)
_HEREDOC = re.compile(r"([0-9]*)<<(-?)[\t\n\f\r ]*([^<]*)")
_LEADING_TABS = re.compile(r"(?m)^\t+")
_SURROGATE = re.compile("[\ud800-\udfff]")
_HEREDOC_KEYWORDS = {"add", "copy", "run"}


@dataclass(frozen=True, slots=True)
class Span:
    """Lines of the Dockerfile, the first being 1, both ends included."""

    start: int
    end: int


class ParseError(InvalidParameter):
    """The Dockerfile cannot be read; ``span`` says where."""

    def __init__(self, text: str, span: Span) -> None:
        super().__init__(text)
        self.span = span


@dataclass(frozen=True, slots=True, kw_only=True)
class Heredoc:
    """An inline document. ``expand``: its word was not quoted. ``chomp``: leading tabs go (``<<-``)."""

    name: str
    content: str
    fd: int
    expand: bool
    chomp: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """One instruction. ``keyword`` is as written; ``json`` says that the arguments were a JSON array.

    ``original`` is the instruction's text with continuations joined, which the classic builder prints.
    ENV and LABEL have triples as arguments: name, value, and ``=`` or nothing for the old form.
    """

    keyword: str
    flags: tuple[str, ...]
    arguments: tuple[str, ...]
    json: bool
    heredocs: tuple[Heredoc, ...]
    original: str
    span: Span
    comments: tuple[str, ...]
    trigger: "Node | None" = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Warning:
    """Something odd that does not stop a build."""

    text: str
    span: Span


@dataclass(frozen=True, slots=True, kw_only=True)
class Dockerfile:
    """A parsed Dockerfile: its nodes, its escape character, and its ``syntax`` and ``check`` directives."""

    nodes: tuple[Node, ...]
    escape: str
    warnings: tuple[Warning, ...]
    directives: dict[str, str]


def parse(content: bytes) -> Dockerfile:
    """Parse a Dockerfile. ``ParseError`` for anything that is not one."""
    if len(content) > MAX_DOCKERFILE_BYTES:
        raise ParseError(f"dockerfile greater than max allowed size of {MAX_DOCKERFILE_BYTES}", Span(1, 1))
    return _Parser(content).parse()


def parse_trigger(text: str) -> Dockerfile:
    """Parse the text that an ONBUILD instruction left in an image. ``ParseError`` as ``parse``."""
    return parse(text.encode("utf-8", "replace"))


def find_heredoc(word: str) -> Heredoc | None:
    """The heredoc that a word of an instruction opens, without its content. ``ShellSyntaxError`` if misquoted."""
    match = _HEREDOC.fullmatch(word)
    if match is None or not match[3]:
        return None
    words = Lexer(keep_unset=True).split(match[3], {})
    if len(words) != 1:
        return None
    raw = Lexer(keep_unset=True, raw_quotes=True).split(match[3], {})
    quoted = _count_quotes(raw[0]) != _count_quotes(words[0])
    fd = min(int(match[1][:9] or "0"), 1 << 16)
    return Heredoc(name=words[0], content="", fd=fd, expand=not quoted, chomp=match[2] == "-")


def _count_quotes(word: str) -> int:
    return word.count("'") + word.count('"')


def chomp(content: str) -> str:
    """A heredoc's content as ``<<-`` means it, without leading tabs."""
    return _LEADING_TABS.sub("", content)


def _scan_lines(content: bytes) -> Iterator[str]:
    """The lines with their ends; stops before the first that Docker's line scanner would not take."""
    start = 0
    while start < len(content):
        newline = content.find(b"\n", start)
        end = len(content) if newline < 0 else newline + 1
        if end - start > MAX_LINE_BYTES - (newline < 0):
            raise _LineTooLong
        yield content[start:end].decode("utf-8", "replace")
        start = end


class _LineTooLong(Exception):
    pass


class _Parser:
    def __init__(self, content: bytes) -> None:
        self._lines = _scan_lines(content.removeprefix(b"\xef\xbb\xbf"))
        self._line = 0
        self._escape = "\\"
        self._directives: dict[str, str] = {}
        self._directives_done = False
        self._too_long = False

    def _next_line(self) -> str | None:
        try:
            line = next(self._lines, None)
        except _LineTooLong:
            self._too_long = True
            return None
        if line is not None:
            self._line += 1
        return line

    def parse(self) -> Dockerfile:
        nodes: list[Node] = []
        warnings: list[Warning] = []
        comments: list[str] = []
        while (raw := self._next_line()) is not None:
            line = raw.rstrip("\r\n").lstrip(SPACE)
            if line.startswith("#"):
                if not self._read_directive(line):
                    comment = line[1:].strip(SPACE)
                    if comment:
                        comments.append(comment)
                    else:
                        comments.clear()
                continue
            self._directives_done = True
            start = self._line
            line, complete = self._cut_continuation(line)
            if complete and not line:
                continue
            text, gap = self._join_continuations(line, complete)
            span = Span(start, self._line)
            if gap:
                warnings.append(Warning(text=f"Empty continuation line found in: {text}", span=span))
            node = self._read_instruction(text, span, tuple(comments))
            nodes.append(node)
            if len(nodes) > MAX_INSTRUCTIONS:
                raise ParseError(f"dockerfile has more than {MAX_INSTRUCTIONS} instructions", span)
            comments.clear()
        here = Span(self._line, self._line)
        if not nodes:
            raise ParseError("file with no instructions", here)
        if self._too_long:
            raise ParseError(f"dockerfile line greater than max allowed size of {MAX_LINE_BYTES - 1}", here)
        return Dockerfile(
            nodes=tuple(nodes), escape=self._escape, warnings=tuple(warnings), directives=self._directives
        )

    def _read_directive(self, line: str) -> bool:
        if self._directives_done:
            return False
        match = _DIRECTIVE.fullmatch(line)
        name = match[1].lower() if match else ""
        if match is None or name not in ("syntax", "escape", "check"):
            self._directives_done = True
            return False
        here = Span(self._line, self._line)
        if name in self._directives:
            raise ParseError(f"only one {name} parser directive can be used", here)
        value = match[2]
        self._directives[name] = value
        if name == "escape":
            if value not in ("`", "\\"):
                raise ParseError(f"invalid escape token '{value}' does not match ` or \\", here)
            self._escape = value
        return True

    def _cut_continuation(self, line: str) -> tuple[str, bool]:
        """The line without its continuation character, and whether the instruction ends with it."""
        body = line.rstrip(" \t")
        if body.endswith(self._escape) and body[-2:-1] != self._escape:
            return body[:-1], False
        return line, True

    def _join_continuations(self, line: str, complete: bool) -> tuple[str, bool]:
        parts = [line]
        gap = False
        while not complete and (raw := self._next_line()) is not None:
            stripped = raw.rstrip("\r\n")
            start = stripped.lstrip(SPACE)
            if start.startswith("#"):
                continue
            if not start:
                gap = True
                continue
            line, complete = self._cut_continuation(stripped)
            parts.append(line)
        return "".join(parts), gap

    def _read_instruction(self, text: str, span: Span, comments: tuple[str, ...]) -> Node:
        try:
            node = _read_node(text, self._escape, span, comments)
            if not (_takes_heredocs(node) and "<<" in text):
                return node
            openings = _find_heredocs(text)
        except (ShellSyntaxError, _SyntaxError) as error:
            raise ParseError(str(error), span) from None
        heredocs = tuple(self._read_heredoc(opening, span) for opening in openings)
        return Node(
            keyword=node.keyword,
            flags=node.flags,
            arguments=node.arguments,
            json=node.json,
            heredocs=heredocs,
            original=node.original,
            span=Span(span.start, self._line),
            comments=node.comments,
            trigger=node.trigger,
        )

    def _read_heredoc(self, opening: Heredoc, span: Span) -> Heredoc:
        content: list[str] = []
        while (line := self._next_line()) is not None:
            end = line.rstrip("\r\n")
            if (end.lstrip("\t") if opening.chomp else end) == opening.name:
                return Heredoc(
                    name=opening.name,
                    content="".join(content),
                    fd=opening.fd,
                    expand=opening.expand,
                    chomp=opening.chomp,
                )
            content.append(line)
        raise ParseError("unterminated heredoc", Span(span.start, self._line))


class _SyntaxError(Exception):
    pass


def _takes_heredocs(node: Node) -> bool:
    inner = node.trigger if node.keyword.lower() == "onbuild" and node.trigger is not None else node
    return inner.keyword.lower() in _HEREDOC_KEYWORDS and not inner.json


def _find_heredocs(text: str) -> list[Heredoc]:
    try:
        words = Lexer(raw_quotes=True, raw_escapes=True, keep_unset=True).split(text, {})
    except ShellSyntaxError:
        return []
    return [heredoc for word in words if (heredoc := find_heredoc(word)) is not None]


def _read_node(text: str, escape: str, span: Span, comments: tuple[str, ...], depth: int = 0) -> Node:
    parts = _BLANKS.split(text.strip(SPACE), maxsplit=1)
    flags: tuple[str, ...] = ()
    rest = ""
    if len(parts) == 2:
        flags, rest = _read_flags(parts[1], escape)
        rest = rest.strip(SPACE)
    keyword = parts[0]
    arguments: tuple[str, ...] = ()
    is_json = False
    trigger: Node | None = None
    match keyword.lower():
        case "env" | "label" as kind:
            arguments = _read_pairs(rest, kind.upper(), escape)
        case "arg":
            arguments = tuple(_split_words(rest, escape))
        case "expose" | "from":
            arguments = _split_blanks(rest)
        case "run" | "cmd" | "entrypoint" | "shell":
            arguments, is_json = _read_maybe_json(rest)
        case "add" | "copy" | "volume":
            array = _read_json(rest)
            is_json = array is not None
            arguments = _split_blanks(rest) if array is None else array
        case "healthcheck":
            kind, *command = re.split(r"[\t\n\v\f\r ]+", rest, maxsplit=1)
            if kind:
                tail, is_json = _read_maybe_json(command[0] if command else "")
                arguments = (kind, *tail)
        case "maintainer" | "stopsignal" | "user" | "workdir":
            arguments = (rest,) if rest else ()
        case "onbuild":
            if rest:
                if depth > 0:  # refused later by its keyword; never read a chain of them
                    arguments = (rest.split(None, 1)[0],)
                else:
                    trigger = _read_node(rest, escape, span, (), depth + 1)
                    arguments = (trigger.keyword, *trigger.arguments)
        case _:
            pass
    return Node(
        keyword=keyword,
        flags=flags,
        arguments=arguments,
        json=is_json,
        heredocs=(),
        original=text,
        span=span,
        comments=comments,
        trigger=trigger,
    )


def _split_blanks(rest: str) -> tuple[str, ...]:
    return tuple(_BLANKS.split(rest)) if rest else ()


def _read_maybe_json(rest: str) -> tuple[tuple[str, ...], bool]:
    array = _read_json(rest)
    if array is not None:
        return array, True
    return ((rest,) if rest else ()), False


def _read_json(rest: str) -> tuple[str, ...] | None:
    """The strings of a JSON array; None if this is not one. ``_SyntaxError`` if it holds anything but strings."""
    text = rest.lstrip(SPACE)
    if not text.startswith("["):
        return None
    try:
        # Numbers are only looked at, never converted: a long one would be slow.
        decoded: object = json.loads(text, parse_int=len, parse_float=len, parse_constant=_refuse_constant)
    except RecursionError:
        decoded = [None]
    except ValueError:
        return None
    array = cast("list[object]", decoded)
    strings = [_SURROGATE.sub("\ufffd", item) for item in array if isinstance(item, str)]
    if len(strings) != len(array):
        raise _SyntaxError("when using JSON array syntax, arrays must be comprised of strings only")
    return tuple(strings)


def _refuse_constant(name: str) -> object:
    raise ValueError(name)


def _read_flags(line: str, escape: str) -> tuple[tuple[str, ...], str]:
    """The ``--flags`` at the start of an instruction, unquoted, and what follows them."""
    flags: list[str] = []
    at = 0
    length = len(line)
    while True:
        while at < length and line[at] in SPACE:
            at += 1
        if not line.startswith("--", at):
            return tuple(flags), line[at:]
        word: list[str] = []
        quote_char = ""
        quoted = False
        while at < length and (quote_char or line[at] not in SPACE):
            char = line[at]
            at += 1
            if quote_char and char == quote_char:
                quote_char = ""
            elif not quote_char and char in "'\"":
                quote_char = char
                quoted = True
            elif char == escape:
                if at < length:
                    word.append(line[at])
                    at += 1
                else:
                    quote_char = ""
            else:
                word.append(char)
        flag = "".join(word)
        if flag == "--":
            return tuple(flags), line[at:]
        if flag or quoted:
            flags.append(flag)


def _split_words(rest: str, escape: str) -> list[str]:
    """Words separated by spaces, with their quotes and escapes left in: expansion takes those away later."""
    words: list[str] = []
    word: list[str] = []
    quote_char = ""
    quoted = False
    at = 0
    length = len(rest)
    while at < length:
        char = rest[at]
        at += 1
        if not quote_char and char in SPACE:
            if word or quoted:
                words.append("".join(word))
            word = []
            quoted = False
            continue
        if quote_char:
            if char == quote_char:
                quote_char = ""
            elif char == escape and quote_char == '"':
                if at == length:
                    break
                word.append(char)
                char = rest[at]
                at += 1
        elif char in "'\"":
            quote_char = char
            quoted = True
        elif char == escape:
            if at == length:
                break
            word.append(char)
            char = rest[at]
            at += 1
        word.append(char)
    if word or quoted:
        words.append("".join(word))
    return words


def _read_pairs(rest: str, keyword: str, escape: str) -> tuple[str, ...]:
    words = _split_words(rest, escape)
    if not words:
        return ()
    if "=" not in words[0]:
        parts = _BLANKS.split(rest, maxsplit=1)
        if len(parts) < 2:
            raise _SyntaxError(f"{keyword} must have two arguments")
        return parts[0], parts[1], ""
    pairs: list[str] = []
    for word in words:
        name, equals, value = word.partition("=")
        if not equals:
            raise _SyntaxError(f"Syntax error - can't find = in {quote(word)}. Must be of the form: name=value")
        pairs += (name, value, "=")
    return tuple(pairs)

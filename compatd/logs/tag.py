"""The ``tag`` option: a template over what is known of the container (moby daemon/logger/loggerutils/log_tag.go).

Of Go's text/template there is what a tag is made of: fields, methods, constants, pipelines, parentheses, the functions
of moby daemon/logger/templates and some of Go's own, comments and trimming. What there is not, such as ``if``, is
refused by name. Errors are worded as Go's.
"""

import json
import re
import time
from collections.abc import Callable
from typing import NamedTuple, NoReturn
from urllib.parse import quote_plus

from compatd.logs.info import SHORT_ID_LENGTH, Info, extra_attributes

DEFAULT = "{{.ID}}"
MAX_BYTES = 64 * 1024

_ACTION = re.compile(r"\{\{(- )?(.*?)( -)?\}\}", re.DOTALL)
_COMMENT = re.compile(r"\{\{(- )?/\*.*?\*/( -)?\}\}", re.DOTALL)
_TOKEN = re.compile(
    r"""(?P<space>[ \t\r\n]+)|(?P<string>"(?:[^"\\\n]|\\.)*"|`[^`]*`)|(?P<number>[+-]?[0-9]+)(?![\w.])"""
    r"""|(?P<field>\.[A-Za-z_]\w*)|(?P<dot>\.)|(?P<name>[A-Za-z_]\w*)|(?P<pipe>\|)|(?P<open>\()|(?P<close>\))"""
    r"""|(?P<other>.)""",
    re.DOTALL,
)
_CONTROL = frozenset("if else end range with define template block break continue".split())
_GO_ONLY = frozenset("and or not slice html js call eq ne lt le gt ge".split())
_VERB = re.compile(r"%(-?)([0-9]{0,3})(?:\.([0-9]{1,3}))?(.)", re.DOTALL)
_TYPES: dict[type, str] = {str: "string", int: "int", bool: "bool", list: "[]string", dict: "map[string]string"}


class TagError(ValueError):
    """The text is Go's."""


class _Token(NamedTuple):
    kind: str
    text: str
    at: int


class _Instant(str):
    """A time, as Go prints it."""

    __slots__ = ()


def render(info: Info, default: str = DEFAULT) -> str:
    """The container's tag; empty when there is no template. ``TagError``."""
    template = info.config.get("tag", "") or default
    return _Template(template, info).render()


class _Template:
    def __init__(self, text: str, info: Info) -> None:
        self._text = text
        self._info = info
        self._tokens: list[_Token] = []
        self._next = 0

    def render(self) -> str:
        out: list[str] = []
        at, trim = 0, False
        while (begin := self._text.find("{{", at)) >= 0:
            match = _COMMENT.match(self._text, begin) or _ACTION.match(self._text, begin)
            between = self._text[at:begin]
            if match is None:
                self._refuse(begin, "unclosed action")
            between = between.lstrip(" \t\r\n") if trim else between
            out.append(between.rstrip(" \t\r\n") if match[1] else between)
            at, trim = match.end(), bool(match[match.lastindex or 0] == " -")
            if match.re is _ACTION:
                out.append(_show(self._run(match[2], match.start(2))))
            if sum(map(len, out)) > MAX_BYTES:
                self._refuse(begin, "the tag is too long")
        rest = self._text[at:]
        return "".join(out) + (rest.lstrip(" \t\r\n") if trim else rest)

    # Reading an action

    def _run(self, text: str, start: int) -> "Value":
        self._tokens = [
            _Token(str(match.lastgroup), match[0], start + match.start()) for match in _TOKEN.finditer(text)
        ]
        for token in self._tokens:
            if token.kind == "other":
                self._refuse(token.at, _unknown(token.text))
            if token.kind == "name":
                if token.text in _CONTROL:
                    self._refuse(token.at, f"{token.text} is not supported by this engine")
                if token.text in _GO_ONLY:
                    self._refuse(token.at, f"function {token.text} is not supported by this engine")
                if token.text not in _FUNCTIONS and token.text not in ("nil", "true", "false"):
                    self._refuse(token.at, f'function "{token.text}" not defined')
        self._next = 0
        value = self._pipeline("")
        if self._next < len(self._tokens):
            self._refuse(start, f"unexpected right paren {self._tokens[self._next].text!r}")
        return value

    def _peek(self) -> str:
        return self._tokens[self._next].kind if self._next < len(self._tokens) else ""

    def _skip_spaces(self) -> None:
        while self._peek() == "space":
            self._next += 1

    def _pipeline(self, closing: str) -> "Value":
        value: Value = _NOTHING
        while True:
            value = self._command(value)
            if self._peek() != "pipe":
                break
            self._next += 1
        if closing and self._peek() != closing:
            self._refuse(self._tokens[-1].at, "unclosed left paren")
        return value

    def _command(self, piped: "Value") -> "Value":
        self._skip_spaces()
        if self._peek() in ("", "pipe", "close"):
            where = self._tokens[min(self._next, len(self._tokens) - 1)].at if self._tokens else 0
            self._refuse(where, "missing value for command")
        first = self._tokens[self._next]
        function = _FUNCTIONS.get(first.text) if first.kind == "name" else None
        operands: list[tuple[Value, _Token]] = []
        if function is not None:
            self._next += 1
        while True:
            self._skip_spaces()
            if self._peek() in ("", "pipe", "close"):
                break
            token = self._tokens[self._next]
            operands.append((self._operand(), token))
        if piped is not _NOTHING:
            operands.append((piped, first))
        if function is None:
            value, token = operands[0]
            if isinstance(value, _Method):
                return value.call(self, token, [operand for operand, _ in operands[1:]])
            if len(operands) > 1:
                self._fail(token.at, token.text, f"can't give argument to non-function {token.text}")
            if value is None:
                self._fail(token.at, "nil", "nil is not a command")
            return value
        arguments = [_settle(self, value, token) for value, token in operands]
        return _call(self, first, function, arguments, [token for _, token in operands])

    def _operand(self) -> "Value":
        token = self._tokens[self._next]
        self._next += 1
        value: Value
        if token.kind == "open":
            value = self._pipeline("close")
            self._next += 1
        elif token.kind == "string":
            value = token.text[1:-1] if token.text[0] == "`" else self._unquote(token)
        elif token.kind == "number":
            value = int(token.text[:20])
        elif token.kind == "field":
            self._next -= 1
            value = self._info
        elif token.kind == "dot":
            self._fail(token.at, ".", "the container as a whole is not supported by this engine")
        elif token.text in ("nil", "true", "false"):
            value = {"nil": None, "true": True, "false": False}[token.text]
        else:
            value = _call(self, token, _FUNCTIONS[token.text], [], [])
        node = ""
        while self._peek() == "field":
            field = self._tokens[self._next]
            self._next += 1
            node += field.text
            value = self._field(value, field, node)
        return value

    def _unquote(self, token: _Token) -> str:
        try:
            return str(json.loads(token.text))
        except ValueError:
            self._refuse(token.at, f"invalid syntax: {token.text}")

    def _field(self, value: "Value", field: _Token, node: str) -> "Value":
        name = field.text[1:]
        if isinstance(value, _Method):
            value = value.call(self, field, [])
        if isinstance(value, Info):
            if name == "ExtraAttributes":
                return _Method(name, node)
            if name in _FIELDS:
                return _FIELDS[name](value)
        elif isinstance(value, dict):
            return value.get(name, _NO_VALUE)
        kind = "*logger.Info" if isinstance(value, Info) else _type(value)
        return self._fail(field.at, node, f"can't evaluate field {name} in type {kind}")

    # Errors

    def _refuse(self, at: int, reason: str) -> NoReturn:
        line = self._text.count("\n", 0, at) + 1
        raise TagError(f"template: log-tag:{line}: {reason}")

    def _fail(self, at: int, node: str, reason: str) -> NoReturn:
        line = self._text.count("\n", 0, at) + 1
        column = len(self._text[self._text.rfind("\n", 0, at) + 1 : at].encode())
        raise TagError(f'template: log-tag:{line}:{column}: executing "log-tag" at <{node}>: {reason}')

    def fail(self, token: _Token, reason: str) -> NoReturn:
        """Something is wrong with what ``token`` stands for."""
        self._fail(token.at, token.text, reason)

    def extra_attributes(self) -> dict[str, str]:
        return extra_attributes(self._info)


class _Method(NamedTuple):
    """The one that wants an argument: ExtraAttributes, whose only argument is nil."""

    name: str
    node: str

    def call(self, template: _Template, token: _Token, arguments: "list[Value]") -> dict[str, str]:
        if arguments != [None]:
            reason = f"wrong number of args for {self.name}: want 1 got {len(arguments)}"
            template.fail(_Token("field", self.node, token.at), reason)
        return template.extra_attributes()


class _Absent:
    """No value: before a pipeline's first command, and of a key that a map does not have."""


Value = str | int | list[str] | dict[str, str] | Info | _Method | _Absent | None

_NOTHING, _NO_VALUE = _Absent(), _Absent()


def _unknown(character: str) -> str:
    if character == "$":
        return "variables are not supported by this engine"
    if character in "\"'`":
        return "unterminated quoted string" if character == '"' else f"unexpected {character} in operand"
    return f"unrecognized character in action: U+{ord(character):04X} '{character}'"


def _show(value: Value) -> str:
    """As fmt.Print."""
    if isinstance(value, dict):
        return f"map[{' '.join(f'{key}:{value[key]}' for key in sorted(value))}]"
    if isinstance(value, list):
        return f"[{' '.join(map(_show, value))}]"
    if isinstance(value, bool):
        return "true" if value else "false"
    return "<no value>" if isinstance(value, _Absent) else "<nil>" if value is None else str(value)


def _settle(template: _Template, value: Value, token: _Token) -> Value:
    return value.call(template, token, []) if isinstance(value, _Method) else value


def _type(value: Value) -> str:
    return "time.Time" if isinstance(value, _Instant) else _TYPES.get(type(value), "interface {}")


def _call(
    template: _Template,
    token: _Token,
    function: tuple[tuple[type, ...] | None, Callable[..., Value]],
    arguments: list[Value],
    tokens: list[_Token],
) -> Value:
    kinds, body = function
    if kinds is not None:
        if len(arguments) != len(kinds):
            template.fail(token, f"wrong number of args for {token.text}: want {len(kinds)} got {len(arguments)}")
        for kind, value, source in zip(kinds, arguments, tokens, strict=True):
            if kind is not object and type(value) is not kind:
                if source.kind in ("string", "number"):
                    wanted = "integer" if kind is int else _TYPES[kind]
                    template.fail(source, f"expected {wanted}; found {source.text}")
                template.fail(source, f"wrong type for value; expected {_TYPES[kind]}; got {_type(value)}")
    try:
        return body(*arguments)
    except _Wrong as error:
        template.fail(token, f"error calling {token.text}: {error}")


class _Wrong(Exception):
    """A function does not like its arguments."""


def _json(value: Value) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, sort_keys=True)


def _title(text: str) -> str:
    return re.sub(r"(?<!\w)\w", lambda first: first[0].upper(), text)


def _split(text: str, separator: str) -> list[str]:
    return text.split(separator) if separator else list(text)


def _join(texts: list[str], separator: str) -> str:
    return separator.join(texts)


def _pad(text: str, before: int, after: int) -> str:
    return text and " " * min(before, MAX_BYTES) + text + " " * min(after, MAX_BYTES)


def _truncate(text: str, length: int) -> str:
    return text[: max(0, length)]


def _println(*arguments: Value) -> str:
    return " ".join(map(_show, arguments)) + "\n"


def _urlquery(*arguments: Value) -> str:
    return quote_plus(_print(*arguments))


def _length(value: Value) -> int:
    if not isinstance(value, str | list | dict):
        raise _Wrong(f"len of type {_type(value)}")
    return len(value.encode()) if isinstance(value, str) else len(value)


def _index(*arguments: Value) -> Value:
    if not arguments:
        raise _Wrong("index of untyped nil")
    value = arguments[0]
    for key in arguments[1:]:
        if isinstance(value, dict) and isinstance(key, str):
            value = value.get(key, "")
        elif isinstance(value, list) and type(key) is int:
            if not 0 <= key < len(value):
                raise _Wrong(f"error calling index: index out of range: {key}")
            value = value[key]
        else:
            raise _Wrong(f"can't index item of type {_type(value)}")
    return value


def _print(*arguments: Value) -> str:
    """As fmt.Sprint: spaces only between two that are no strings."""
    out = ""
    for number, value in enumerate(arguments):
        if number and not isinstance(value, str) and not isinstance(arguments[number - 1], str):
            out += " "
        out += _show(value)
    return out


def _printf(*arguments: Value) -> str:
    if not arguments or not isinstance(arguments[0], str):
        raise _Wrong("wrong type for value; expected string")
    values = list(arguments[1:])

    def verb(match: re.Match[str]) -> str:
        left, width, precision, letter = match.groups()
        if letter == "%":
            return "%"
        if letter not in "svqd":
            raise _Wrong(f"the verb %{letter} is not supported by this engine")
        if not values:
            return f"%!{letter}(MISSING)"
        value = values.pop(0)
        if (letter == "d") != (type(value) is int) and letter != "v":
            return f"%!{letter}({_type(value)}={_show(value)})"
        text = _show(value) if precision is None else _show(value)[: int(precision)]
        text = json.dumps(text, ensure_ascii=False) if letter == "q" else text
        return text.ljust(int(width or 0)) if left else text.rjust(int(width or 0))

    text = _VERB.sub(verb, arguments[0])
    extra = ", ".join(f"{_type(value)}={_show(value)}" for value in values)
    return f"{text}%!(EXTRA {extra})" if values else text


_FUNCTIONS: dict[str, tuple[tuple[type, ...] | None, Callable[..., Value]]] = {
    "json": ((object,), _json),
    "split": ((str, str), _split),
    "join": ((list, str), _join),
    "title": ((str,), _title),
    "lower": ((str,), str.lower),
    "upper": ((str,), str.upper),
    "pad": ((str, int, int), _pad),
    "truncate": ((str, int), _truncate),
    "len": ((object,), _length),
    "index": (None, _index),
    "print": (None, _print),
    "println": (None, _println),
    "printf": (None, _printf),
    "urlquery": (None, _urlquery),
}


def _created(info: Info) -> _Instant:
    seconds, fraction = divmod(info.created_ns, 1_000_000_000)
    text = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(seconds))
    digits = f".{fraction:09}".rstrip("0").rstrip(".")
    return _Instant(f"{text}{digits} +0000 UTC")


_FIELDS: dict[str, Callable[[Info], Value]] = {
    "Config": lambda info: dict(info.config),
    "ContainerID": lambda info: info.container_id,
    "ContainerName": lambda info: info.name,
    "ContainerEntrypoint": lambda info: info.entrypoint,
    "ContainerArgs": lambda info: list(info.args),
    "ContainerImageID": lambda info: info.image_id,
    "ContainerImageName": lambda info: info.image_name,
    "ContainerCreated": _created,
    "ContainerEnv": lambda info: list(info.env),
    "ContainerLabels": lambda info: dict(info.labels),
    "LogPath": lambda info: info.log_path,
    "DaemonName": lambda info: "docker",
    "ID": lambda info: info.container_id[:SHORT_ID_LENGTH],
    "FullID": lambda info: info.container_id,
    "Name": lambda info: info.name.removeprefix("/"),
    "ImageID": lambda info: info.image_id[:SHORT_ID_LENGTH],
    "ImageFullID": lambda info: info.image_id,
    "ImageName": lambda info: info.image_name,
    "Hostname": lambda info: info.hostname,
    "Command": lambda info: info.command,
}

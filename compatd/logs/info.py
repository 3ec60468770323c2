"""What a log driver knows of its container (moby daemon/logger/loginfo.go): for tags, and for attributes."""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

SHORT_ID_LENGTH = 12
# What Python's expressions have and Go's (RE2) have not, which Go names in its refusal.
_PERL_ONLY = re.compile(r"\(\?(?:<?[=!]|P[=>]|[#(>])")


@dataclass(frozen=True, slots=True, kw_only=True)
class Info:
    """``name`` begins with a slash; ``image_id`` with its algorithm."""

    config: Mapping[str, str]
    container_id: str
    name: str
    entrypoint: str
    args: Sequence[str]
    image_id: str
    image_name: str
    created_ns: int
    env: Sequence[str]
    labels: Mapping[str, str]
    log_path: str

    @property
    def command(self) -> str:
        return " ".join((self.entrypoint, *self.args))

    @property
    def hostname(self) -> str:
        return os.uname().nodename


def extra_attributes(info: Info, rename: Callable[[str], str] = str) -> dict[str, str]:
    """What the options labels, labels-regex, env and env-regex select. ``ValueError`` for a bad expression."""
    attributes: dict[str, str] = {}
    variables = {name: value for name, separator, value in (entry.partition("=") for entry in info.env) if separator}
    for option, values in (("labels", info.labels), ("env", variables)):
        if option == "env" and not variables:
            break
        for key in info.config.get(option, "").split(","):
            if key in values:
                attributes[rename(key)] = values[key]
        if expression := info.config.get(f"{option}-regex", ""):
            pattern = compile_expression(expression)
            attributes |= {rename(key): value for key, value in values.items() if pattern.search(key)}
    return attributes


def compile_expression(expression: str) -> re.Pattern[str]:
    """A regular expression of Go's. ``ValueError`` in Go's words, as far as the mistakes are common.

    The languages are one for what is usual; classes match ASCII, and ``$`` only the very end, as in Go.
    """
    if unknown := _PERL_ONLY.search(expression):
        raise ValueError(f"error parsing regexp: invalid or unsupported Perl syntax: `{unknown[0]}`")
    try:
        return re.compile(_translate(expression), re.ASCII)
    except (re.error, OverflowError, RecursionError) as error:
        text = str(error)
        if "missing ), unterminated subpattern" in text:
            reason = f"missing closing ): `{expression}`"
        elif "unbalanced parenthesis" in text:
            reason = f"unexpected ): `{expression}`"
        elif "unterminated character set" in text:
            position = error.pos or 0 if isinstance(error, re.error) else 0
            reason = f"missing closing ]: `{expression[position:]}`"
        elif "nothing to repeat" in text:
            position = error.pos or 0 if isinstance(error, re.error) else 0
            reason = f"missing argument to repetition operator: `{expression[position : position + 1]}`"
        else:
            reason = f"{text}: `{expression}`"
        raise ValueError(f"error parsing regexp: {reason}") from None


def _translate(expression: str) -> str:
    r"""``$`` becomes ``\Z`` where it is an anchor, POSIX classes and ``\z`` what Python has for them."""
    out: list[str] = []
    at, in_class = 0, False
    while at < len(expression):
        character = expression[at]
        if character == "\\":
            pair = expression[at : at + 2]
            out.append(r"\Z" if pair == r"\z" else pair)
            at += 2
            continue
        if in_class and (posix := re.match(r"\[:(\^?)([a-z]+):\]", expression[at:])) and posix[2] in _POSIX:
            if posix[1]:
                raise ValueError(f"error parsing regexp: invalid character class range: `{posix[0]}`")
            out.append(_POSIX[posix[2]])
            at += len(posix[0])
            continue
        if character == "[" and not in_class:
            in_class = True
            opening = re.match(r"\[\^?\]?", expression[at:])
            out.append(opening[0] if opening else character)
            at += len(out[-1])
            continue
        if character == "]":
            in_class = False
        out.append(r"\Z" if character == "$" and not in_class else r"\[" if character == "[" else character)
        at += 1
    return "".join(out)


_POSIX = {
    "alnum": "0-9A-Za-z",
    "alpha": "A-Za-z",
    "blank": r"\t ",
    "cntrl": r"\x00-\x1f\x7f",
    "digit": "0-9",
    "graph": "!-~",
    "lower": "a-z",
    "print": " -~",
    "punct": r"!-/:-@\[-`{-~",
    "space": r"\t\n\v\f\r ",
    "upper": "A-Z",
    "word": "0-9A-Za-z_",
    "xdigit": "0-9A-Fa-f",
}

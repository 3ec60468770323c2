"""``--change`` of imports and commits: Dockerfile instructions that change an image's configuration."""

import posixpath
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import msgspec

from compatd.builder import image as builder
from compatd.builder.changes import change
from compatd.builder.instructions import Cmd, Expose, Workdir, expand, read_instruction
from compatd.builder.parser import parse
from compatd.builder.shellwords import Lexer
from compatd.errors import InvalidParameter
from compatd.images.manifest import RunConfig

# moby builder/dockerfile/builder.go, validCommitCommands
ALLOWED = frozenset(
    ("cmd", "entrypoint", "healthcheck", "env", "expose", "label", "onbuild", "stopsignal", "user", "volume", "workdir")
)


def apply_changes(config: RunConfig, lines: Sequence[str]) -> RunConfig:
    """``config`` after the instructions (moby builder/dockerfile, BuildFromConfig). ``InvalidParameter``: as there."""
    if not lines:
        return config
    nodes = parse("\n".join(lines).encode("utf-8", "replace")).nodes
    for node in nodes:
        if node.keyword.lower() not in ALLOWED:
            raise InvalidParameter(f"{node.keyword} is not a valid change command")
    current = msgspec.convert(_present(config), type=builder.RunConfig)
    lexer, cmd_given = Lexer(), False
    for instruction in [read_instruction(node) for node in nodes]:
        values = current.environment()
        instruction = expand(instruction, partial(_expand, lexer, values))
        if isinstance(instruction, Workdir):
            path = posixpath.normpath(posixpath.join("/", current.working_dir, instruction.path))
            current = msgspec.structs.replace(current, working_dir="/" + path.lstrip("/"))
            continue
        if isinstance(instruction, Expose):
            ports = (port for word in instruction.ports for port in lexer.split(word, values))
            instruction = replace(instruction, ports=tuple(ports))
        current, _ = change(current, instruction, cmd_given=cmd_given)
        cmd_given = cmd_given or (isinstance(instruction, Cmd) and bool(instruction.command.words))
    return msgspec.convert(msgspec.to_builtins(current), type=RunConfig)


def _expand(lexer: Lexer, values: Mapping[str, str], word: str) -> str:
    return lexer.expand(word, values)


def _present(config: RunConfig) -> dict[str, object]:
    document: dict[str, object] = msgspec.to_builtins(config)
    return {name: value for name, value in document.items() if value is not None}

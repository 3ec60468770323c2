"""Nodes to typed instructions and stages: the second step of a build, pure.

Both front doors use this: the classic builder refuses at execution what only BuildKit has, and
``Dialect`` says which flags exist at all. Failures are ``ParseError``s with the texts of BuildKit's
frontend/dockerfile/instructions, prefixed as Docker does with the line of the instruction.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

from compatd.builder.durations import BadDuration, parse_duration
from compatd.builder.parser import Dockerfile, Node, ParseError, Span, chomp, find_heredoc
from compatd.builder.shellwords import SPACE, ShellSyntaxError, quote
from compatd.builder.spelling import suggest

Expander = Callable[[str], str]
"""Replaces variables in one word; raises ``ShellSyntaxError``."""


class Dialect(Enum):
    """Whose Dockerfile language is spoken: the flags differ."""

    CLASSIC = "classic"
    BUILDKIT = "buildkit"


@dataclass(frozen=True, slots=True, kw_only=True)
class Instruction:
    """What every instruction has. ``original`` is its text as the classic builder prints it."""

    keyword: str
    original: str
    span: Span


@dataclass(frozen=True, slots=True, kw_only=True)
class Pair:
    """A name and its value. ``legacy``: written with a space (``ENV name value``)."""

    name: str
    value: str
    legacy: bool = False

    def __str__(self) -> str:
        return f"{self.name}={self.value}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ArgPair:
    """A build argument and its default, if it has one."""

    name: str
    default: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class InlineFile:
    """A heredoc used as a file: ``expand`` if variables in it are replaced."""

    name: str
    content: str
    expand: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A command line: ``shell`` if the shell of the image runs it. Heredocs become ``files``."""

    words: tuple[str, ...]
    shell: bool
    files: tuple[InlineFile, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Env(Instruction):
    """ENV."""

    pairs: tuple[Pair, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Label(Instruction):
    """LABEL; ``literal`` ones come from the request and are not expanded."""

    pairs: tuple[Pair, ...]
    literal: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Maintainer(Instruction):
    """MAINTAINER."""

    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy(Instruction):
    """COPY and ADD. ``unpack`` and ``keep_git_dir`` are None unless given."""

    sources: tuple[str, ...]
    inline: tuple[InlineFile, ...]
    destination: str
    chown: str = ""
    chmod: str = ""
    link: bool = False
    parents: bool = False
    excludes: tuple[str, ...] = ()
    from_: str = ""
    checksum: str = ""
    keep_git_dir: bool | None = None
    unpack: bool | None = None

    @property
    def is_add(self) -> bool:
        """ADD, which downloads and unpacks."""
        return self.keyword.upper() == "ADD"


@dataclass(frozen=True, slots=True, kw_only=True)
class Onbuild(Instruction):
    """ONBUILD: the text of the trigger."""

    trigger: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Workdir(Instruction):
    """WORKDIR."""

    path: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Run(Instruction):
    """RUN. ``flags`` are the names of the flags given, in their order."""

    command: Command
    mounts: tuple[str, ...] = ()
    network: str = "default"
    security: str = "sandbox"
    devices: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Cmd(Instruction):
    """CMD."""

    command: Command


@dataclass(frozen=True, slots=True, kw_only=True)
class Entrypoint(Instruction):
    """ENTRYPOINT."""

    command: Command


@dataclass(frozen=True, slots=True, kw_only=True)
class Healthcheck(Instruction):
    """HEALTHCHECK: ``test`` as the image configuration has it; zero means not given."""

    test: tuple[str, ...]
    interval_ns: int = 0
    timeout_ns: int = 0
    start_period_ns: int = 0
    start_interval_ns: int = 0
    retries: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Expose(Instruction):
    """EXPOSE: unexpanded words, sorted."""

    ports: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class User(Instruction):
    """USER."""

    user: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Volume(Instruction):
    """VOLUME."""

    paths: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StopSignal(Instruction):
    """STOPSIGNAL."""

    signal: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Arg(Instruction):
    """ARG."""

    pairs: tuple[ArgPair, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shell(Instruction):
    """SHELL."""

    shell: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class From(Instruction):
    """FROM. ``name`` is the stage's, lower case, empty if it has none."""

    base: str
    name: str = ""
    platform: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A FROM and the instructions up to the next."""

    head: From
    instructions: tuple[Instruction, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """A whole Dockerfile: the ARGs before the first FROM, and the stages."""

    arguments: tuple[Arg, ...]
    stages: tuple[Stage, ...]
    dockerfile: Dockerfile | None = field(default=None, repr=False)


def read_program(dockerfile: Dockerfile, dialect: Dialect = Dialect.CLASSIC) -> Program:
    """The instructions of a Dockerfile. ``ParseError`` for one that is wrong."""
    arguments: list[Arg] = []
    heads: list[From] = []
    bodies: list[list[Instruction]] = []
    for node in dockerfile.nodes:
        try:
            instruction = read_instruction(node, dialect)
        except ParseError as error:
            raise ParseError(f"dockerfile parse error on line {node.span.start}: {error}", error.span) from None
        if isinstance(instruction, From):
            heads.append(instruction)
            bodies.append([])
        elif bodies:
            bodies[-1].append(instruction)
        elif isinstance(instruction, Arg):
            arguments.append(instruction)
        else:
            raise ParseError("no build stage in current context", node.span)
    stages = tuple(Stage(head=head, instructions=tuple(body)) for head, body in zip(heads, bodies, strict=True))
    return Program(arguments=tuple(arguments), stages=stages, dockerfile=dockerfile)


def read_instruction(node: Node, dialect: Dialect = Dialect.CLASSIC) -> Instruction:
    """One instruction from its node. ``ParseError`` (without the line) if it is wrong."""
    reader = _READERS.get(node.keyword.lower())
    try:
        if reader is None:
            hint = suggest(node.keyword, [name.upper() for name in _READERS])
            raise _Wrong(f"unknown instruction: {node.keyword}{hint}")
        return reader(_Request(node, dialect))
    except (_Wrong, ShellSyntaxError) as error:
        raise ParseError(str(error), node.span) from None


class _Wrong(Exception):
    pass


class _Flag(Enum):
    BOOL = "bool"
    TEXT = "text"
    TEXTS = "texts"


class _Request:
    """A node being read, with the instruction's common fields."""

    def __init__(self, node: Node, dialect: Dialect) -> None:
        self.node = node
        self.dialect = dialect
        self.name = node.keyword.upper()
        self.keyword = node.keyword
        self.original = node.original.strip(SPACE)
        self.span = node.span
        self.arguments = node.arguments

    def read_flags(self, known: Mapping[str, _Flag] | None = None) -> "_Flags":
        known = known or {}
        values: dict[str, list[str]] = {}
        for flag in self.node.flags:
            name, equals, value = flag.partition("=")
            name = name.removeprefix("--")
            kind = known.get(name)
            if kind is None:
                raise _Wrong(f"unknown flag: --{name}{suggest(name, known, exact=True)}")
            if name in values and kind is not _Flag.TEXTS:
                raise _Wrong(f"duplicate flag specified: --{name}")
            if kind is _Flag.BOOL:
                if equals and not value:
                    raise _Wrong(f"missing a value on flag: --{name}")
                if value.lower() not in ("", "true", "false"):
                    raise _Wrong(f"expecting boolean value for flag --{name}, not: {value}")
                value = "false" if value.lower() == "false" else "true"
            elif not equals:
                raise _Wrong(f"missing a value on flag: --{name}")
            values.setdefault(name, []).append(value)
        return _Flags(values)

    def read_exactly_one(self) -> str:
        if len(self.arguments) != 1:
            raise _Wrong(f"{self.name} requires exactly one argument")
        return self.arguments[0]

    def need_one(self) -> None:
        if not self.arguments:
            raise _Wrong(f"{self.name} requires at least one argument")

    def read_command(self) -> Command:
        words = self.arguments if self.node.json else tuple(" ".join(self.arguments) for _ in self.arguments[:1])
        files = tuple(
            InlineFile(name=doc.name, content=chomp(doc.content) if doc.chomp else doc.content, expand=doc.expand)
            for doc in self.node.heredocs
        )
        return Command(words=words, shell=not self.node.json, files=files)


class _Flags:
    def __init__(self, values: Mapping[str, Sequence[str]]) -> None:
        self.names = tuple(values)
        self._values = values

    def text(self, name: str, default: str = "") -> str:
        return self._values[name][0] if name in self._values else default

    def texts(self, name: str) -> tuple[str, ...]:
        return tuple(self._values.get(name, ()))

    def maybe(self, name: str) -> bool | None:
        return self._values[name][0] == "true" if name in self._values else None


def _read_pairs(request: _Request) -> tuple[Pair, ...]:
    request.read_flags()
    request.need_one()
    words = request.arguments
    pairs = [Pair(name=words[at], value=words[at + 1], legacy=not words[at + 2]) for at in range(0, len(words) - 2, 3)]
    if not all(pair.name for pair in pairs):
        raise _Wrong(f"{request.name} names can not be blank")
    return tuple(pairs)


def _read_env(request: _Request) -> Env:
    pairs = _read_pairs(request)
    return Env(keyword=request.keyword, original=request.original, span=request.span, pairs=pairs)


def _read_label(request: _Request) -> Label:
    pairs = _read_pairs(request)
    return Label(keyword=request.keyword, original=request.original, span=request.span, pairs=pairs)


def _read_maintainer(request: _Request) -> Maintainer:
    name = request.read_exactly_one()
    request.read_flags()
    return Maintainer(keyword=request.keyword, original=request.original, span=request.span, name=name)


_ADD_FLAGS = {
    "chown": _Flag.TEXT,
    "chmod": _Flag.TEXT,
    "link": _Flag.BOOL,
    "keep-git-dir": _Flag.BOOL,
    "checksum": _Flag.TEXT,
    "unpack": _Flag.BOOL,
    "exclude": _Flag.TEXTS,
}
_COPY_FLAGS = {
    "chown": _Flag.TEXT,
    "from": _Flag.TEXT,
    "chmod": _Flag.TEXT,
    "link": _Flag.BOOL,
    "exclude": _Flag.TEXTS,
}
_RUN_FLAGS = {"mount": _Flag.TEXTS, "network": _Flag.TEXT, "device": _Flag.TEXTS}


def _read_copy(request: _Request) -> Copy:
    words = request.arguments
    if len(words) < 2:
        raise _Wrong(
            f"{request.name} requires at least two arguments, but only one was provided. "
            "Destination could not be determined"
        )
    known: dict[str, _Flag] = dict(_ADD_FLAGS if request.name == "ADD" else _COPY_FLAGS)
    if request.dialect is Dialect.BUILDKIT and request.name == "COPY":
        known["parents"] = _Flag.BOOL
    flags = request.read_flags(known)
    if _opens_heredoc(words[-1]):
        raise _Wrong(f"{request.name} cannot accept a heredoc as a destination")
    contents = {doc.name: doc for doc in request.node.heredocs}
    sources: list[str] = []
    inline: list[InlineFile] = []
    for word in words[:-1]:
        opening = find_heredoc(word) if _opens_heredoc(word) else None
        if opening is None:
            sources.append(word)
            continue
        doc = contents.get(opening.name, opening)
        content = chomp(doc.content) if opening.chomp else doc.content
        inline.append(InlineFile(name=opening.name, content=content, expand=opening.expand))
    return Copy(
        keyword=request.keyword,
        original=request.original,
        span=request.span,
        sources=tuple(sources),
        inline=tuple(inline),
        destination=words[-1],
        chown=flags.text("chown"),
        chmod=flags.text("chmod"),
        link=flags.maybe("link") or False,
        parents=flags.maybe("parents") or False,
        excludes=flags.texts("exclude"),
        from_=flags.text("from"),
        checksum=flags.text("checksum"),
        keep_git_dir=flags.maybe("keep-git-dir"),
        unpack=flags.maybe("unpack"),
    )


def _opens_heredoc(word: str) -> bool:
    try:
        return find_heredoc(word) is not None
    except ShellSyntaxError:
        return False


_STAGE_NAME = re.compile(r"[a-z][a-z0-9._-]*")


def _read_from(request: _Request) -> From:
    words = request.arguments
    name = ""
    if len(words) == 3 and words[1].lower() == "as":
        name = words[2].lower()
        if not _STAGE_NAME.fullmatch(name):
            raise _Wrong(
                f"invalid name for build stage: {quote(words[2])}, name can't start with a number or contain symbols"
            )
    elif len(words) != 1:
        raise _Wrong("FROM requires either one or three arguments")
    flags = request.read_flags({"platform": _Flag.TEXT})
    return From(
        keyword=request.keyword,
        original=request.original,
        span=request.span,
        base=words[0],
        name=name,
        platform=flags.text("platform"),
    )


_ONBUILD = re.compile(r"(?i)^\s*ONBUILD\s*")


def _read_onbuild(request: _Request) -> Onbuild:
    request.need_one()
    request.read_flags()
    inner = request.arguments[0].strip(SPACE).upper()
    if inner == "ONBUILD":
        raise _Wrong("Chaining ONBUILD via `ONBUILD ONBUILD` isn't allowed")
    if inner in ("MAINTAINER", "FROM"):
        raise _Wrong(f"{inner} isn't allowed as an ONBUILD trigger")
    trigger = _ONBUILD.sub("", request.node.original)
    for doc in request.node.heredocs:
        trigger += f"\n{doc.content}{doc.name}"
    return Onbuild(keyword=request.keyword, original=request.original, span=request.span, trigger=trigger)


def _read_workdir(request: _Request) -> Workdir:
    path = request.read_exactly_one()
    request.read_flags()
    return Workdir(keyword=request.keyword, original=request.original, span=request.span, path=path)


def _read_run(request: _Request) -> Run:
    known: dict[str, _Flag] = dict(_RUN_FLAGS)
    if request.dialect is Dialect.BUILDKIT:
        known["security"] = _Flag.TEXT
    flags = request.read_flags(known)
    network = flags.text("network", "default")
    if network not in ("default", "none", "host"):
        raise _Wrong(f"invalid network mode {quote(network)}")
    security = flags.text("security", "sandbox")
    if security not in ("sandbox", "insecure"):
        raise _Wrong(f"security {quote(security)} is not valid")
    return Run(
        keyword=request.keyword,
        original=request.original,
        span=request.span,
        command=request.read_command(),
        mounts=flags.texts("mount"),
        network=network,
        security=security,
        devices=flags.texts("device"),
        flags=flags.names,
    )


def _read_cmd(request: _Request) -> Cmd:
    request.read_flags()
    command = request.read_command()
    return Cmd(keyword=request.keyword, original=request.original, span=request.span, command=command)


def _read_entrypoint(request: _Request) -> Entrypoint:
    request.read_flags()
    command = request.read_command()
    return Entrypoint(keyword=request.keyword, original=request.original, span=request.span, command=command)


_HEALTH_FLAGS = {
    "interval": _Flag.TEXT,
    "timeout": _Flag.TEXT,
    "start-period": _Flag.TEXT,
    "start-interval": _Flag.TEXT,
    "retries": _Flag.TEXT,
}


def _read_healthcheck(request: _Request) -> Healthcheck:
    request.need_one()
    kind = request.arguments[0].upper()
    words = request.arguments[1:]
    if kind == "NONE":
        if words:
            raise _Wrong("HEALTHCHECK NONE takes no arguments")
        return Healthcheck(keyword=request.keyword, original=request.original, span=request.span, test=("NONE",))
    flags = request.read_flags(_HEALTH_FLAGS)
    if kind != "CMD":
        raise _Wrong(f"Unknown type {quote(kind)} in HEALTHCHECK (try CMD)")
    if not words:
        raise _Wrong("Missing command after HEALTHCHECK CMD")
    return Healthcheck(
        keyword=request.keyword,
        original=request.original,
        span=request.span,
        test=("CMD", *words) if request.node.json else ("CMD-SHELL", " ".join(words)),
        interval_ns=_read_interval("interval", flags),
        timeout_ns=_read_interval("timeout", flags),
        start_period_ns=_read_interval("start-period", flags),
        start_interval_ns=_read_interval("start-interval", flags),
        retries=_read_retries(flags.text("retries")),
    )


def _read_interval(name: str, flags: _Flags) -> int:
    text = flags.text(name)
    try:
        duration_ns = parse_duration(text) if text else 0
    except BadDuration as error:
        raise _Wrong(str(error)) from None
    if duration_ns and duration_ns < 1_000_000:
        raise _Wrong(f"Interval {quote(name)} cannot be less than 1ms")
    return duration_ns


def _read_retries(text: str) -> int:
    if not text:
        return 0
    if not re.fullmatch(r"[+-]?[0-9]+", text):
        raise _Wrong(f"strconv.ParseInt: parsing {quote(text)}: invalid syntax")
    retries = int(text) if len(text) < 20 else 1 << 40
    if not -(1 << 31) <= retries < 1 << 31:
        raise _Wrong(f"strconv.ParseInt: parsing {quote(text)}: value out of range")
    if retries < 0:
        raise _Wrong(f"--retries cannot be negative ({retries})")
    return retries


def _read_expose(request: _Request) -> Expose:
    request.need_one()
    request.read_flags()
    ports = tuple(sorted(request.arguments, key=lambda port: port.encode("utf-8", "surrogatepass")))
    return Expose(keyword=request.keyword, original=request.original, span=request.span, ports=ports)


def _read_user(request: _Request) -> User:
    user = request.read_exactly_one()
    request.read_flags()
    return User(keyword=request.keyword, original=request.original, span=request.span, user=user)


def _read_volume(request: _Request) -> Volume:
    request.need_one()
    request.read_flags()
    paths = tuple(path.strip(SPACE) for path in request.arguments)
    if not all(paths):
        raise _Wrong("VOLUME specified can not be an empty string")
    return Volume(keyword=request.keyword, original=request.original, span=request.span, paths=paths)


def _read_stop_signal(request: _Request) -> StopSignal:
    signal = request.read_exactly_one()
    return StopSignal(keyword=request.keyword, original=request.original, span=request.span, signal=signal)


def _read_arg(request: _Request) -> Arg:
    request.need_one()
    pairs: list[ArgPair] = []
    for word in request.arguments:
        name, equals, value = word.partition("=")
        if equals and not name:
            raise _Wrong("ARG names can not be blank")
        pairs.append(ArgPair(name=name, default=value if equals else None))
    return Arg(keyword=request.keyword, original=request.original, span=request.span, pairs=tuple(pairs))


def _read_shell(request: _Request) -> Shell:
    request.read_flags()
    request.need_one()
    if not request.node.json:
        raise _Wrong("SHELL requires the arguments to be in JSON form")
    return Shell(keyword=request.keyword, original=request.original, span=request.span, shell=request.arguments)


_READERS: dict[str, Callable[[_Request], Instruction]] = {
    "add": _read_copy,
    "arg": _read_arg,
    "cmd": _read_cmd,
    "copy": _read_copy,
    "entrypoint": _read_entrypoint,
    "env": _read_env,
    "expose": _read_expose,
    "from": _read_from,
    "healthcheck": _read_healthcheck,
    "label": _read_label,
    "maintainer": _read_maintainer,
    "onbuild": _read_onbuild,
    "run": _read_run,
    "shell": _read_shell,
    "stopsignal": _read_stop_signal,
    "user": _read_user,
    "volume": _read_volume,
    "workdir": _read_workdir,
}


def expand(instruction: Instruction, expander: Expander) -> Instruction:
    """The instruction with its variables replaced, where its kind has any. ``ShellSyntaxError``.

    EXPOSE is not touched: there one word may become several, which is the executor's business.
    """
    match instruction:
        case Env() | Label(literal=False):
            pairs = tuple(
                replace(pair, name=expander(pair.name), value=expander(pair.value)) for pair in instruction.pairs
            )
            return replace(instruction, pairs=pairs)
        case Copy():
            return replace(
                instruction,
                chown=expander(instruction.chown),
                chmod=expander(instruction.chmod),
                checksum=expander(instruction.checksum),
                sources=tuple(map(expander, instruction.sources)),
                destination=expander(instruction.destination),
            )
        case Workdir():
            return replace(instruction, path=expander(instruction.path))
        case User():
            return replace(instruction, user=expander(instruction.user))
        case Volume():
            return replace(instruction, paths=tuple(map(expander, instruction.paths)))
        case StopSignal():
            return replace(instruction, signal=expander(instruction.signal))
        case Arg():
            arguments = tuple(
                ArgPair(name=expander(pair.name), default=None if pair.default is None else expander(pair.default))
                for pair in instruction.pairs
            )
            return replace(instruction, pairs=arguments)
        case _:
            return instruction

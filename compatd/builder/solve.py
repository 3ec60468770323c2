"""The classic builder: a Dockerfile and a context become an image, step by step, with the output of dockerd's.

``build`` is the only entry. It talks to the engine through ``ports`` alone. Steps run in the Dockerfile's
order; every step ends in an image, so that a later build finds it by its key. What is printed, and what
images look like, was taken from Docker 28.5.2 (``POST /build``, version 1).

A cancelled build kills its RUN, waits for its worker thread to notice, and leaves the images of the steps
that were done: nothing else.
"""

import asyncio
import codecs
import contextlib
import os
import posixpath
import re
import secrets
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ParamSpec, TypeVar

from msgspec import structs

from compatd.builder.arguments import BuildArguments
from compatd.builder.cachekey import sources_digest, step_key
from compatd.builder.changes import change, command_line, describe_arguments, described_check
from compatd.builder.context import DEFAULT_DOCKERFILE as DEFAULT_DOCKERFILE
from compatd.builder.context import open_context, read_dockerfile
from compatd.builder.graph import find_target, order
from compatd.builder.image import Image, RunConfig, read_image, write_child
from compatd.builder.instructions import (
    Arg,
    Cmd,
    Copy,
    Expose,
    From,
    Healthcheck,
    Instruction,
    Label,
    Maintainer,
    Pair,
    Program,
    Run,
    Stage,
    Workdir,
    expand,
    read_instruction,
    read_program,
)
from compatd.builder.layer import ROOT, Layer, LayerStream, Owner, owner_of
from compatd.builder.parser import Dockerfile, Span, parse_trigger
from compatd.builder.platforms import parse_platform
from compatd.builder.ports import (
    Archives,
    Aux,
    BuildEvent,
    Cache,
    CommandFailed,
    Fetcher,
    Images,
    Layers,
    Output,
    Platform,
    Runner,
    RunStep,
    Stream,
)
from compatd.builder.shellwords import Lexer
from compatd.builder.sources import Placer, Source, downloaded, find_sources, is_url, open_unnamed
from compatd.builder.trees import ArchiveTree, RootTree, Tree
from compatd.errors import EngineError, InvalidParameter, SystemFailure
from compatd.tasks import Workers

P = ParamSpec("P")
T = TypeVar("T")

DEFAULT_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
SCRATCH = "scratch"
MAX_TRIGGERS = 1000

_RED, _PLAIN = "\x1b[91m", "\x1b[0m"
_PASSWD_LIMIT_BYTES = 8 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildRequest:
    """What a client asked for.

    ``context_fd`` is the context as it arrived (a tar, perhaps compressed), in a seekable file that stays the
    caller's and is left alone otherwise. ``workspace`` is a directory of the caller's on the engine's disk;
    only files without a name are made in it. ``tags`` are normalised, familiar and without repeats: what
    ``Successfully tagged`` shows. ``platform`` is what the request asks for, ``host`` what images of scratch
    get otherwise. A build argument may be named without a value.
    """

    context_fd: int
    workspace: Path
    host: Platform
    dockerfile: str = DEFAULT_DOCKERFILE
    tags: tuple[str, ...] = ()
    build_args: Mapping[str, str | None] = field(default_factory=dict[str, str | None])
    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    target: str = ""
    platform: Platform | None = None
    no_cache: bool = False
    pull: bool = False
    remove: bool = True
    force_remove: bool = False
    quiet: bool = False
    engine_version: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ports:
    """The engine as one build sees it. ``now_ns`` is the clock."""

    images: Images
    cache: Cache
    layers: Layers
    runner: Runner
    fetcher: Fetcher
    archives: Archives
    workers: Workers
    now_ns: Callable[[], int] = time.time_ns


async def build(request: BuildRequest, ports: Ports, output: Output) -> str:
    """Build an image: its id. What the client is to see goes to ``output`` as it happens.

    With ``quiet`` only the id does, or everything when the build fails. ``InvalidParameter`` (with a span:
    ``ParseError``) for a wrong Dockerfile, before anything was put out; ``CommandFailed`` for a RUN; other
    ``EngineError``s, from the ports too, with Docker's words.
    """
    events: list[BuildEvent] = []
    try:
        image_id = await _Build(request, ports, events.append if request.quiet else output).run()
    except EngineError:
        for event in events:
            output(event)
        raise
    if request.quiet:
        output(Stream(f"{image_id}\n"))
    return image_id


@dataclass(slots=True, kw_only=True)
class _Stage:
    """A stage being built: the image it has come to, and what the next step starts from."""

    image: Image
    config: RunConfig
    arguments: BuildArguments
    author: str = ""
    cmd_given: bool = False
    cache_missed: bool = False


class _Build:
    def __init__(self, request: BuildRequest, ports: Ports, output: Output) -> None:
        self._request = request
        self._ports = ports
        self._output = output
        self._cancelled = threading.Event()
        self._cleanup = contextlib.ExitStack()
        self._context: Tree = ArchiveTree()
        self._lexer = Lexer()
        self._arguments = BuildArguments(request.build_args)
        self._built: list[Image] = []
        self._names: dict[str, Image] = {}
        self._containers: list[str] = []
        self._step = 0
        self._steps = 0

    async def run(self) -> str:
        try:
            return await self._run()
        finally:
            self._cleanup.close()

    async def _run(self) -> str:
        dockerfile = await self._blocking(self._read_context)
        program = self._plan(dockerfile)
        self._lexer = Lexer(escape=dockerfile.escape)
        for warning in dockerfile.warnings:
            self._print(f"{_RED}[WARNING]: {warning.text}\n{_PLAIN}")
        if dockerfile.warnings:
            self._print(f"{_RED}[WARNING]: Empty continuation lines will become errors in a future release.\n{_PLAIN}")
        self._steps = len(program.arguments) + sum(1 + len(stage.instructions) for stage in program.stages)
        for argument in program.arguments:
            self._print_step(argument)
            self._declare_global(argument)
        image_id = ""
        for stage in program.stages:
            image_id = await self._build_stage(stage)
        if unused := self._arguments.unused():
            self._print(f"[Warning] One or more build-args [{' '.join(unused)}] were not consumed\n")
        if not image_id:
            raise SystemFailure("No image was generated. Is your Dockerfile empty?")
        self._print(f"Successfully built {_short(image_id)}\n")
        for tag in self._request.tags:
            await self._ports.images.tag(image_id, tag)
            self._print(f"Successfully tagged {tag}\n")
        return image_id

    # Threads

    def _check(self) -> None:
        if self._cancelled.is_set():
            raise SystemFailure("build cancelled")

    async def _blocking(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run a blocking function on a worker; when cancelled, tell it and wait for it before passing that on.

        ``SystemFailure`` for the host's own failures, without its paths.
        """
        work = asyncio.ensure_future(self._ports.workers.run(function, *args, **kwargs))  # noqa: TID251 - awaited here
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            self._cancelled.set()
            while not work.done():  # a second cancellation must not let go of the thread either
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait([work])
            if not work.cancelled():
                work.exception()
            raise
        except OSError as error:
            raise SystemFailure((error.strerror or str(error)).lower()) from error

    def _read_context(self) -> Dockerfile:
        request = self._request
        tree = open_context(request.context_fd, request.workspace, self._ports.archives, self._cleanup, self._check)
        self._context = tree
        return read_dockerfile(tree, request.dockerfile)

    # The plan

    def _plan(self, dockerfile: Dockerfile) -> Program:
        program = read_program(dockerfile)
        target = find_target(program, self._request.target)
        stages = [program.stages[index] for index in order(program, target, everything=True)]
        if stages and self._request.labels:
            labels = tuple(_request_label(name, self._request.labels[name]) for name in sorted(self._request.labels))
            last = stages[-1]
            stages[-1] = Stage(head=last.head, instructions=(*last.instructions, *labels))
        return Program(arguments=program.arguments, stages=tuple(stages), dockerfile=dockerfile)

    def _declare_global(self, argument: Arg) -> None:
        values = self._arguments.declared()
        expanded = expand(argument, lambda word: self._lexer.expand(word, values))
        assert isinstance(expanded, Arg)
        for pair in expanded.pairs:
            self._arguments.declare_global(pair.name, pair.default)

    # Stages

    async def _build_stage(self, stage: Stage) -> str:
        head = stage.head
        if head.name in self._names:
            raise SystemFailure(f"{head.name} stage name already used")
        self._print_step(head)
        state = await self._begin(head)
        self._print(f" ---> {_short(state.image.image_id)}\n")
        for instruction in stage.instructions:
            self._print_step(instruction)
            await self._dispatch(state, instruction)
            self._print(f" ---> {_short(state.image.image_id)}\n")
        if state.image.image_id:
            self._output(Aux(state.image.image_id))
        self._built.append(state.image)
        if head.name:
            self._names[head.name] = state.image
        return state.image.image_id

    async def _begin(self, head: From) -> _Stage:
        values = self._arguments.globals()
        platform = self._request.platform
        if head.platform:
            text = self._lexer.expand(head.platform, values)
            try:
                platform = parse_platform(text)
            except InvalidParameter as error:
                raise InvalidParameter(f"failed to parse platform {text}: {error}") from None
        name = self._lexer.expand(head.base, values)
        if not name:
            raise SystemFailure(f"base name ({head.base}) should not be blank")
        image = self._names.get(name.lower())
        if image is None and name == SCRATCH:
            image = _scratch(platform or self._request.host)
        if image is None:
            image = await self._resolve(name, platform)
        triggers = image.config.on_build or ()
        state = _Stage(
            image=image,
            config=structs.replace(_start_config(image.config), image=image.image_id),
            arguments=self._arguments.for_stage(),
        )
        if triggers:
            await self._run_triggers(state, triggers)
        return state

    async def _resolve(self, name: str, platform: Platform | None) -> Image:
        base = await self._ports.images.resolve(name, platform=platform, pull=self._request.pull, output=self._output)
        return read_image(base.image_id, base.document)

    async def _run_triggers(self, state: _Stage, triggers: Sequence[str]) -> None:
        if len(triggers) > MAX_TRIGGERS:
            raise InvalidParameter(f"image has more than {MAX_TRIGGERS} build triggers")
        state.config = structs.replace(state.config, on_build=None)
        self._print(f"# Executing {len(triggers)} build trigger")
        if len(triggers) > 1:
            self._print("s")
        self._print("\n")
        for trigger in triggers:
            nodes = parse_trigger(trigger).nodes
            if len(nodes) != 1:
                raise SystemFailure("onbuild trigger should be a single expression")
            instruction = read_instruction(nodes[0])
            if isinstance(instruction, From):
                raise SystemFailure("FROM isn't allowed as an ONBUILD trigger")
            await self._dispatch(state, instruction)

    # Steps

    async def _dispatch(self, state: _Stage, instruction: Instruction) -> None:
        done = False
        try:
            await self._execute(state, instruction)
            done = True
        finally:
            if self._request.force_remove or (self._request.remove and done):
                for container_id in self._containers:
                    self._print(f" ---> Removed intermediate container {container_id[:12]}\n")
            self._containers.clear()
        state.config = structs.replace(state.config, image=state.image.image_id)

    async def _execute(self, state: _Stage, instruction: Instruction) -> None:
        environment = state.config.environment()
        values = {**environment, **state.arguments.missing_in(environment)}
        instruction = expand(instruction, lambda word: self._lexer.expand(word, values))
        match instruction:
            case Copy():
                await self._copy(state, instruction)
            case Workdir():
                await self._change_directory(state, instruction)
            case Run():
                await self._run_command(state, instruction)
            case Maintainer():
                state.author = instruction.name
                await self._commit(state, f"MAINTAINER {instruction.name}")
            case Arg():
                for pair in instruction.pairs:
                    state.arguments.declare(pair.name, pair.default)
                await self._commit(state, describe_arguments(instruction))
            case _:
                if isinstance(instruction, Healthcheck) and (before := described_check(state.config)):
                    self._print(f"Note: overriding previous HEALTHCHECK: {before}\n")
                if isinstance(instruction, Expose):
                    ports = (port for word in instruction.ports for port in self._lexer.split(word, values))
                    instruction = replace(instruction, ports=tuple(ports))
                state.config, comment = change(state.config, instruction, cmd_given=state.cmd_given)
                if isinstance(instruction, Cmd):
                    state.cmd_given = state.cmd_given or bool(instruction.command.words)
                await self._commit(state, comment)

    async def _commit(self, state: _Stage, comment: str) -> None:
        """A step that changes the configuration only."""
        command = (*state.config.command_shell(), "#(nop) ", comment)
        if not await self._use_cache(state, command):
            container_id = self._print_container()
            await self._create(state, command, container_id=container_id, diff_id=None)

    async def _change_directory(self, state: _Stage, instruction: Workdir) -> None:
        if not instruction.path:
            raise SystemFailure("cannot normalize nothing")
        directory = _clean(posixpath.join("/", state.config.working_dir, instruction.path))
        state.config = structs.replace(state.config, working_dir=directory)
        command = (*state.config.command_shell(), f"#(nop) WORKDIR {directory}")
        if await self._use_cache(state, command):
            return
        diff_id = await self._blocking(
            self._apply, state.image, lambda layer, _: layer.make_directory(os.fsencode(directory))
        )
        container_id = self._print_container()
        await self._create(state, command, container_id=container_id, diff_id=diff_id)

    async def _run_command(self, state: _Stage, instruction: Run) -> None:
        if instruction.flags:
            raise SystemFailure(_needs_buildkit(instruction.flags[0]))
        config = state.config
        words = command_line(config, instruction.command)
        arguments = state.arguments.missing_in(config.environment())
        shown = tuple(sorted(f"{name}={value}" for name, value in arguments.items() if state.arguments.counts(name)))
        command = (f"|{len(shown)}", *shown, *words) if arguments else words
        if await self._use_cache(state, command):
            return
        args = words or (*(config.entrypoint or ()), *(config.cmd or ()))
        if not args:
            raise InvalidParameter("no command specified")
        container_id = self._print_container()
        result = await self._ports.runner.run(
            RunStep(
                container_id=container_id,
                image_id=state.image.image_id,
                diff_ids=state.image.diff_ids,
                args=args,
                env=(*(config.env or ()), *(f"{name}={value}" for name, value in arguments.items())),
                user=config.user,
                working_dir=config.working_dir,
                volumes=tuple(sorted(config.volumes or ())),
                labels=dict(config.labels or {}),
                stop_signal=config.stop_signal or "",
            ),
            _Printer(self._print).write,
        )
        if result.exit_code:
            text = f"The command '{' '.join(words)}' returned a non-zero code: {result.exit_code}"
            raise CommandFailed(f"{text}: {result.error}" if result.error else text, result.exit_code)
        await self._create(state, command, container_id=container_id, diff_id=result.diff_id, ran=True)

    # COPY and ADD

    async def _copy(self, state: _Stage, instruction: Copy) -> None:
        if instruction.chmod:
            raise SystemFailure(_needs_buildkit("chmod"))
        resources = contextlib.ExitStack()
        try:
            await self._copy_with(state, instruction, resources)
        finally:
            await self._blocking(resources.close)

    async def _copy_with(self, state: _Stage, instruction: Copy, resources: contextlib.ExitStack) -> None:
        """``resources`` owns what is opened on the way; worker threads put things on it too."""
        keyword = "ADD" if instruction.is_add else "COPY"
        tree = await self._open_image(instruction.from_, resources) if instruction.from_ else self._context
        try:
            sources = await self._find_sources(instruction, tree, resources)
        except EngineError as error:
            raise SystemFailure(f"{keyword} failed: {error}") from error
        destination = instruction.destination
        if len(sources) > 1 and not destination.endswith("/"):
            raise SystemFailure(
                f"When using {keyword} with more than one source file, "
                "the destination must be a directory and end with a /"
            )
        chown = f"--chown={instruction.chown} " if instruction.chown else ""
        digest = sources_digest([source.digest for source in sources])
        command = (*state.config.command_shell(), f"#(nop) {keyword} {chown}{digest} in {destination} ")
        if await self._use_cache(state, command):
            return
        target = os.fsencode(_normalise_destination(state.config.working_dir, destination))

        def fill(layer: Layer, base: RootTree | None) -> None:
            owner: Owner | None = None if instruction.from_ else ROOT
            if instruction.chown:
                owner = _find_owner(instruction.chown, base)
            placer = Placer(layer, self._ports.archives, self._request.workspace, self._check)
            resources.callback(placer.close)
            try:
                for source in sources:
                    placer.place(source, target, owner, unpack=instruction.is_add)
            except EngineError as error:
                raise SystemFailure(f"failed to copy files: {error}") from error

        diff_id = await self._blocking(self._apply, state.image, fill)
        await self._create(state, command, container_id="", diff_id=diff_id)

    async def _open_image(self, reference: str, resources: contextlib.ExitStack) -> Tree:
        try:
            image = self._find_built(reference) or await self._resolve(reference, self._request.platform)
        except EngineError as error:
            raise SystemFailure(f"invalid from flag value {reference}: {error}") from error
        if not image.diff_ids:
            return ArchiveTree()
        return await self._blocking(self._mount, image.diff_ids, resources)

    def _mount(self, diff_ids: Sequence[str], resources: contextlib.ExitStack) -> RootTree:
        tree = RootTree(self._ports.layers.mount(diff_ids))
        resources.callback(tree.close)
        return tree

    def _find_built(self, reference: str) -> Image | None:
        image = self._names.get(reference.lower())
        if image is not None or not re.fullmatch(r"[+-]?[0-9]{1,18}", reference):
            return image
        index = int(reference)
        if index == len(self._built):
            raise SystemFailure("refers to current build stage")
        if not 0 <= index < len(self._built):
            raise SystemFailure("index out of bounds")
        return self._built[index]

    async def _find_sources(self, instruction: Copy, tree: Tree, resources: contextlib.ExitStack) -> list[Source]:
        sources: list[Source] = []
        for word in instruction.sources:
            if is_url(word):
                if not instruction.is_add:
                    raise SystemFailure("source can't be a URL for COPY")
                sources.append(await self._download(word, instruction.destination, resources))
                continue
            from_context = not instruction.from_
            sources += await self._blocking(find_sources, tree, word, from_context=from_context, check=self._check)
        if not sources:
            raise SystemFailure("no source files were specified")
        return sources

    async def _download(self, url: str, destination: str, resources: contextlib.ExitStack) -> Source:
        def create() -> int:
            fd = open_unnamed(self._request.workspace)
            resources.callback(os.close, fd)
            return fd

        fd = await self._blocking(create)
        fetched = await self._ports.fetcher.fetch(url, fd, self._output)
        self._print("\n")
        return await self._blocking(downloaded, url, fetched, fd, destination, self._check)

    def _apply(self, image: Image, fill: Callable[[Layer, RootTree | None], None]) -> str | None:
        """Blocking: make a layer on top of an image; None if ``fill`` put nothing into it."""
        with contextlib.ExitStack() as resources:
            base = self._mount(image.diff_ids, resources) if image.diff_ids else None
            layer = Layer(base, self._ports.now_ns())
            fill(layer, base)
            if layer.is_empty():
                return None
            return self._ports.layers.apply(LayerStream(layer, self._ports.archives, self._cancelled))

    # Images

    async def _use_cache(self, state: _Stage, command: Sequence[str]) -> bool:
        """Go on from the image that an earlier build made by this step, if there is one."""
        if self._request.no_cache or state.cache_missed:
            return False
        image_id = await self._ports.cache.lookup(self._key(state, command))
        if image_id is None:
            state.cache_missed = True
            return False
        base = await self._ports.images.read(image_id)
        self._print(" ---> Using cache\n")
        state.image = read_image(base.image_id, base.document)
        return True

    def _key(self, state: _Stage, command: Sequence[str]) -> str:
        image = state.image
        parent = image.image_id or f"{SCRATCH} {image.os}/{image.architecture}/{image.variant}"
        return step_key(parent, state.config, command)

    async def _create(
        self, state: _Stage, command: Sequence[str], *, container_id: str, diff_id: str | None, ran: bool = False
    ) -> None:
        """The image of a step. ``ran``: the container was a RUN's, whose configuration Docker stores otherwise."""
        config = state.config
        shown = structs.replace(config, cmd=tuple(command))
        if ran:
            shown = structs.replace(shown, entrypoint=None if command else config.entrypoint)
        elif container_id:
            shown = structs.replace(shown, hostname=container_id[:12], labels=config.labels or {})
        document = write_child(
            state.image,
            config=config,
            container_config=shown,
            container_id=container_id,
            author=state.author,
            diff_id=diff_id,
            created_ns=self._ports.now_ns(),
            engine_version=self._request.engine_version,
        )
        key = self._key(state, command)
        image_id = await self._ports.images.create(document, parent=state.image.image_id)
        await self._ports.cache.record(key, image_id)
        state.image = read_image(image_id, document)

    # Output

    def _print(self, text: str) -> None:
        self._output(Stream(text))

    def _print_step(self, instruction: Instruction) -> None:
        self._step += 1
        self._print(f"Step {self._step}/{self._steps} : {instruction.original}")
        self._print("\n")

    def _print_container(self) -> str:
        container_id = secrets.token_hex(32)
        self._containers.append(container_id)
        self._print(f" ---> Running in {container_id[:12]}\n")
        return container_id


def _find_owner(chown: str, base: RootTree | None) -> Owner:
    def read(path: str) -> bytes:
        if base is None:
            raise FileNotFoundError(path)
        return base.read(path, _PASSWD_LIMIT_BYTES)

    try:
        return owner_of(chown, read)
    except SystemFailure as error:
        raise SystemFailure(f"unable to convert uid/gid chown string to host mapping: {error}") from None


class _Printer:
    """What a RUN writes, as text for the client: errors in red, bytes that are no UTF-8 replaced."""

    def __init__(self, put: Callable[[str], None]) -> None:
        self._put = put
        decoder = codecs.getincrementaldecoder("utf-8")
        self._decoders = {1: decoder("replace"), 2: decoder("replace")}

    def write(self, stream: int, data: bytes) -> None:
        text = self._decoders[stream].decode(data)
        if text:
            self._put(f"{_RED}{text}{_PLAIN}" if stream == 2 else text)


def _short(image_id: str) -> str:
    return image_id.removeprefix("sha256:")[:12]


def _scratch(platform: Platform) -> Image:
    return Image(
        image_id="",
        os=platform.os,
        architecture=platform.architecture,
        variant=platform.variant,
        config=RunConfig(),
        history=(),
        diff_ids=(),
    )


def _start_config(config: RunConfig) -> RunConfig:
    env = config.env
    if "PATH" not in config.environment():
        env = (*(env or ()), DEFAULT_PATH)
    return structs.replace(config, env=env, open_stdin=False, stdin_once=False)


def _request_label(name: str, value: str) -> Label:
    pair = Pair(name=name, value=value)
    return Label(keyword="label", original=f"LABEL {pair}", span=Span(0, 0), pairs=(pair,), literal=True)


def _needs_buildkit(flag: str) -> str:
    return (
        f"the --{flag} option requires BuildKit. Refer to https://docs.docker.com/go/buildkit/ "
        "to learn how to build images with BuildKit enabled"
    )


def _clean(path: str) -> str:
    return "/" + posixpath.normpath(path).lstrip("/")


def _normalise_destination(working_dir: str, destination: str) -> str:
    if destination.startswith("/"):
        return destination
    path = _clean(posixpath.join("/", working_dir, destination))
    return path + "/" if destination.endswith("/") else path

"""What instructions change in an image's configuration, and how the history words it. Pure.

COPY, ADD, RUN and WORKDIR change files too and are not among them; ARG and MAINTAINER leave the
configuration alone.
"""

import re
import signal
from collections.abc import Sequence

from msgspec import UNSET, structs

from compatd.builder.durations import format_duration
from compatd.builder.expose import parse_ports
from compatd.builder.image import Health, RunConfig, present
from compatd.builder.instructions import (
    Arg,
    Cmd,
    Command,
    Entrypoint,
    Env,
    Expose,
    Healthcheck,
    Instruction,
    Label,
    Onbuild,
    Pair,
    Shell,
    StopSignal,
    User,
    Volume,
)
from compatd.builder.shellwords import quote
from compatd.errors import InvalidParameter


def change(config: RunConfig, instruction: Instruction, *, cmd_given: bool = False) -> tuple[RunConfig, str]:
    """The configuration after an expanded instruction, and the instruction as the history has it.

    ``cmd_given``: this stage had a CMD, which ENTRYPOINT then leaves alone. ``InvalidParameter`` with Docker's
    words for values that cannot be.
    """
    match instruction:
        case Env(pairs=pairs):
            return structs.replace(config, env=_set_env(config.env or (), pairs)), f"ENV {_join(pairs)}"
        case Label(pairs=pairs):
            labels = {**(config.labels or {}), **{pair.name: pair.value for pair in pairs}}
            return structs.replace(config, labels=labels), f"LABEL {_join(pairs)}"
        case Onbuild(trigger=trigger):
            return structs.replace(config, on_build=(*(config.on_build or ()), trigger)), f"ONBUILD {trigger}"
        case Cmd(command=command):
            words = command_line(config, command)
            return structs.replace(config, cmd=words, args_escaped=UNSET), f"CMD {_quote_all(words)}"
        case Entrypoint(command=command):
            entrypoint = command_line(config, command) if command.words else None
            cmd = config.cmd if cmd_given else None
            changed = structs.replace(config, entrypoint=entrypoint, cmd=cmd, args_escaped=UNSET)
            return changed, f"ENTRYPOINT {_quote_all(entrypoint or ())}"
        case Expose(ports=ports):
            exposed = {**(config.exposed_ports or {}), **present(parse_ports(ports))}
            return structs.replace(config, exposed_ports=exposed), f"EXPOSE {' '.join(ports)}"
        case User(user=user):
            return structs.replace(config, user=user), f"USER {user}"
        case Volume(paths=paths):
            if not all(paths):
                raise InvalidParameter("VOLUME specified can not be an empty string")
            volumes = {**(config.volumes or {}), **present(paths)}
            return structs.replace(config, volumes=volumes), f"VOLUME [{' '.join(paths)}]"
        case StopSignal(signal=name):
            _check_signal(name)
            return structs.replace(config, stop_signal=name), f"STOPSIGNAL {name}"
        case Shell(shell=shell):
            return structs.replace(config, shell=shell), f"SHELL [{' '.join(shell)}]"
        case Healthcheck():
            return _set_healthcheck(config, instruction)
        case _:
            raise InvalidParameter(f"{instruction.keyword.upper()} is not a valid change command")


def describe_arguments(instruction: Arg) -> str:
    """ARG as the history has it."""
    pairs = (pair.name if pair.default is None else f"{pair.name}={pair.default}" for pair in instruction.pairs)
    return f"ARG {' '.join(pairs)}"


def described_check(config: RunConfig) -> str:
    """The health check that a new one replaces, as the builder's note prints it; empty if there is none."""
    test = config.healthcheck.test if config.healthcheck else ()
    return f"[{' '.join(test)}]" if test and test[0] != "NONE" else ""


def _set_healthcheck(config: RunConfig, instruction: Healthcheck) -> tuple[RunConfig, str]:
    before = config.healthcheck or Health()
    times = (
        instruction.interval_ns,
        instruction.timeout_ns,
        instruction.start_period_ns,
        instruction.start_interval_ns,
    )
    shown = f"[{' '.join(instruction.test)}] {' '.join(map(format_duration, times))} {instruction.retries}"
    # What is not given comes from the image below, as when a container is made of it.
    check = Health(
        test=instruction.test,
        interval=instruction.interval_ns or before.interval,
        timeout=instruction.timeout_ns or before.timeout,
        start_period=instruction.start_period_ns or before.start_period,
        start_interval=instruction.start_interval_ns or before.start_interval,
        retries=instruction.retries or before.retries,
    )
    return structs.replace(config, healthcheck=check), f"HEALTHCHECK &{{{shown}}}"


def _set_env(env: Sequence[str], pairs: Sequence[Pair]) -> tuple[str, ...]:
    entries = list(env)
    for pair in pairs:
        for index, entry in enumerate(entries):
            if entry.partition("=")[0] == pair.name:
                entries[index] = str(pair)
                break
        else:
            entries.append(str(pair))
    return tuple(entries)


def _join(pairs: Sequence[Pair]) -> str:
    return " ".join(map(str, pairs))


def _quote_all(words: Sequence[str]) -> str:
    return f"[{' '.join(map(quote, words))}]"


def command_line(config: RunConfig, command: Command) -> tuple[str, ...]:
    """The words of a command, run by the image's shell if it has the shell form."""
    return (*config.command_shell(), *command.words) if command.shell else command.words


_SIGNALS = (
    {item.name.removeprefix("SIG") for item in signal.Signals}
    | {"CLD", "POLL", "RTMIN", "RTMAX"}
    | {f"RTMIN+{number}" for number in range(1, 16)}
    | {f"RTMAX-{number}" for number in range(1, 15)}
)


def _check_signal(name: str) -> None:
    number = re.fullmatch(r"[+-]?[0-9]{1,18}", name)
    if (number and int(name) == 0) or (not number and name.upper().removeprefix("SIG") not in _SIGNALS):
        raise InvalidParameter(f"invalid signal: {name}")

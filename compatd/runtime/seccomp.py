"""Seccomp: Docker's profiles, compiled to the BPF program that the kernel runs on every system call.

A program is found in three steps: the default profile or a user's JSON becomes a ``Profile``; its rules are chosen
by capabilities, architecture and kernel; what is left becomes, for each architecture, a binary search over system
call numbers whose leaves are a verdict or a few tests of arguments. Results are cached: one start costs a look-up.

Where the profile leaves room, the program does what runc with libseccomp does:
- an unconditional rule for a call wins over conditional ones, else the first rule that matches counts;
- a call newer than every call the profile names fails with ENOSYS rather than the default error, so that a C library
  falls back to what it knows (runc libcontainer/seccomp/patchbpf);
- a call from an architecture the profile does not have kills the thread.
Unlike it, x32 calls never pass: they fail with ENOSYS, as on a kernel built without x32.
"""

import errno
import functools
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from compatd.errors import SystemFailure, Unsupported
from compatd.runtime import capabilities as caps
from compatd.runtime import seccomp_profile as data
from compatd.runtime.oci import create_failed, init_failed
from compatd.runtime.seccomp_document import decode, refused

# include/uapi/linux/seccomp.h, return values
KILL_PROCESS, KILL_THREAD, TRAP = 0x80000000, 0x00000000, 0x00030000
ERRNO, TRACE, LOG, ALLOW = 0x00050000, 0x7FF00000, 0x7FFC0000, 0x7FFF0000
_NOTIFY = 0x7FC00000
_ACTION, _DATA = 0xFFFF0000, 0xFFFF
_ENOSYS = ERRNO | errno.ENOSYS

_MAX_INSTRUCTIONS = 4096  # BPF_MAXINSNS, include/uapi/linux/bpf_common.h

_ACTIONS = {
    "SCMP_ACT_KILL": KILL_THREAD,
    "SCMP_ACT_KILL_THREAD": KILL_THREAD,
    "SCMP_ACT_KILL_PROCESS": KILL_PROCESS,
    "SCMP_ACT_TRAP": TRAP,
    "SCMP_ACT_ERRNO": ERRNO,
    "SCMP_ACT_TRACE": TRACE,
    "SCMP_ACT_LOG": LOG,
    "SCMP_ACT_ALLOW": ALLOW,
    "SCMP_ACT_NOTIFY": _NOTIFY,
}
Operator = Literal["NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"]
_OPERATORS: dict[str, Operator] = {
    "SCMP_CMP_NE": "NE",
    "SCMP_CMP_LT": "LT",
    "SCMP_CMP_LE": "LE",
    "SCMP_CMP_EQ": "EQ",
    "SCMP_CMP_GE": "GE",
    "SCMP_CMP_GT": "GT",
    "SCMP_CMP_MASKED_EQ": "MASKED_EQ",
}
# TSYNC is without effect on a process that has one thread when the filter is loaded.
_FLAGS = {
    "SECCOMP_FILTER_FLAG_TSYNC": 0,
    "SECCOMP_FILTER_FLAG_LOG": 1 << 1,
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW": 1 << 2,
}
DEFAULT_FLAGS = _FLAGS["SECCOMP_FILTER_FLAG_SPEC_ALLOW"]  # runc libcontainer/specconv, where a profile names none

# include/uapi/linux/audit.h
_AUDIT = {"x86_64": 0xC000003E, "x86": 0x40000003, "aarch64": 0xC00000B7, "arm": 0x40000028}
_SUB = {"x86_64": ("x86",), "aarch64": ("arm",)}
_GO = {"x86_64": "amd64", "aarch64": "arm64"}
_X32_BIT = 0x40000000
_ARCHITECTURES = frozenset(
    f"SCMP_ARCH_{name}"
    for name in """
    X86 X86_64 X32 ARM AARCH64 MIPS MIPS64 MIPS64N32 MIPSEL MIPSEL64 MIPSEL64N32 PPC PPC64 PPC64LE S390 S390X
    PARISC PARISC64 RISCV64 LOONGARCH64 M68K SH SHEB
    """.split()
)

# Calls that i386 makes through one number, which the first argument tells apart: socketcall(2), ipc(2).
_MULTIPLEXED = {
    name: (call, number)
    for call, names in (
        (
            "socketcall",
            "socket bind connect listen accept getsockname getpeername socketpair send recv sendto recvfrom shutdown "
            "setsockopt getsockopt sendmsg recvmsg accept4 recvmmsg sendmmsg",
        ),
        (
            "ipc",
            "semop semget semctl semtimedop . . . . . . msgsnd msgrcv msgget msgctl . . . . . . "
            "shmat shmdt shmget shmctl",
        ),
    )
    for number, name in enumerate(names.split(), 1)
    if name != "."
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """A test of one argument, as 64 bits unsigned. MASKED_EQ: ``argument & value == value_two``."""

    index: int
    operator: Operator
    value: int
    value_two: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class When:
    """A part of a rule's filter: all ``caps``, one of ``arches`` (Go's names), at least ``min_kernel``."""

    caps: frozenset[str] = frozenset()
    arches: frozenset[str] = frozenset()
    min_kernel: tuple[int, int] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """``verdict`` for the calls ``names`` when every condition holds."""

    names: tuple[str, ...]
    verdict: int
    conditions: tuple[Condition, ...] = ()
    includes: When = When()
    excludes: When = When()


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """``architectures``: libseccomp's names; ``None`` for the machine's own and what it runs besides."""

    default: int
    rules: tuple[Rule, ...]
    architectures: frozenset[str] | None = None
    flags: int = DEFAULT_FLAGS


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """What seccomp(2) takes: struct sock_filter, 8 bytes each, and SECCOMP_FILTER_FLAG_*."""

    program: bytes
    flags: int


def compile_profile(profile: str | None, *, capabilities: int, machine: str, kernel: tuple[int, int]) -> Filter | None:
    """The filter of a profile's JSON text, or of Docker's default for ``None``.

    ``None`` for a profile that says nothing at all, which leaves a container unconfined under Docker too.
    ``capabilities`` is the container's bounding set, ``machine`` uname's. ``SystemFailure`` with Docker's text for
    a bad profile, ``Unsupported`` for a machine whose system calls are not known here: never a weaker filter.
    """
    return _compile_text(profile, capabilities, machine, kernel)


@functools.lru_cache(maxsize=32)
def _compile_text(profile: str | None, capabilities: int, machine: str, kernel: tuple[int, int]) -> Filter | None:
    if machine not in _SUB:
        raise Unsupported(f"seccomp is not available on {machine}: use --security-opt seccomp=unconfined")
    held = frozenset(caps.names(capabilities))
    parsed = DEFAULT if profile is None else parse_profile(profile, capabilities=held, machine=machine, kernel=kernel)
    if parsed is None:
        return None
    program = compile_rules(parsed, capabilities=held, machine=machine, kernel=kernel)
    return Filter(program=program, flags=parsed.flags)


def compile_rules(profile: Profile, *, capabilities: frozenset[str], machine: str, kernel: tuple[int, int]) -> bytes:
    """The program for ``machine`` and the architectures it also runs. ``SystemFailure``: too large for the kernel."""
    chosen = [
        rule for rule in profile.rules if _applies(rule.includes, rule.excludes, capabilities, _GO[machine], kernel)
    ]
    allowed = profile.architectures
    compatible = [sub for sub in _SUB[machine] if allowed is None or f"SCMP_ARCH_{sub.upper()}" in allowed]
    program: list[_Instruction] = [_ret(KILL_THREAD)]
    for architecture in (*reversed(compatible), machine):
        body = _compile_architecture(profile.default, chosen, architecture)
        # The architecture's number stays in the accumulator until one matches.
        program = [*_branch(_JEQ, _AUDIT[architecture], [], program, then=body)]
    program = [_load(_ARCH), *program]
    if len(program) > _MAX_INSTRUCTIONS:
        raise init_failed("error loading seccomp filter into kernel: error loading seccomp filter: invalid argument")
    return b"".join(struct.pack("<HBBI", *instruction) for instruction in program)


def parse_profile(
    text: str, *, capabilities: frozenset[str] = frozenset(), machine: str = "x86_64", kernel: tuple[int, int] = (0, 0)
) -> Profile | None:
    """A profile in Docker's JSON format, less the rules that do not apply to such a container on such a machine.

    ``SystemFailure`` with Docker's text; ``None`` for one without content.
    moby profiles/seccomp/seccomp_linux.go, LoadProfile and setupSeccomp; runc libcontainer/specconv, SetupSeccomp, and
    libcontainer/seccomp, InitSeccomp: each looks at the whole of it before the next one does.
    """
    document = decode(text)
    architectures: list[str] = document.get("architectures", [])
    arch_map: list[dict[str, Any] | None] = document.get("archMap", [])
    if architectures and arch_map:
        raise SystemFailure(
            "both 'architectures' and 'archMap' are specified in the seccomp profile, "
            "use either 'architectures' or 'archMap'"
        )
    action: str = document.get("defaultAction", "")
    listed: list[dict[str, Any] | None] = document.get("syscalls", [])
    if not action and not listed:
        return None
    for entry in arch_map:
        if entry is not None and entry.get("architecture") == f"SCMP_ARCH_{machine.upper()}":
            architectures = [entry["architecture"], *entry.get("subArchitectures", [])]
            break
    calls: list[dict[str, Any]] = []
    for call in listed:
        if call is None:
            raise refused("null is no system call")  # which makes dockerd panic
        if call.get("name") and call.get("names"):
            raise SystemFailure(
                "both 'name' and 'names' are specified in the seccomp profile, use either 'name' or 'names'"
            )
        includes, excludes = _when(call.get("includes")), _when(call.get("excludes"))
        if _applies(includes, excludes, capabilities, _GO[machine], kernel):
            calls.append(call)
    return _accept(document, action, architectures, calls)


def _accept(
    document: dict[str, Any], action: str, architectures: Sequence[str | None], calls: Sequence[dict[str, Any]]
) -> Profile:
    default = _verdict(action, document.get("defaultErrnoRet"))
    for name in architectures:
        if name not in _ARCHITECTURES:
            raise create_failed(f"string {name or ''} is not a valid arch for seccomp")
    named: list[str | None] = document.get("flags", [])
    for flag in named:
        if flag not in _FLAGS:
            raise create_failed(f"seccomp flag {flag or ''} is not known to runc")
    flags = sum({_FLAGS[flag] for flag in named if flag}) if named else DEFAULT_FLAGS
    parsed = [rule for call in calls for rule in _parse_call(call)]
    if notified := [rule for rule in parsed if rule.verdict == _NOTIFY]:
        if any("write" in rule.names for rule in notified):
            raise init_failed("SCMP_ACT_NOTIFY cannot be used for the write syscall")
        if not document.get("listenerPath") and default != _NOTIFY:
            raise init_failed("seccomp listenerPath is not set")
    if default == _NOTIFY:
        raise init_failed("SCMP_ACT_NOTIFY cannot be used as default action")
    if notified:
        raise Unsupported("seccomp action SCMP_ACT_NOTIFY is not supported")
    if _overflows(default):
        raise init_failed("error creating filter: could not create filter")
    _check_rules(parsed, default)
    return Profile(
        default=default, rules=tuple(parsed), architectures=frozenset(filter(None, architectures)), flags=flags
    )


def _check_rules(rules: Sequence[Rule], default: int) -> None:
    """What libseccomp refuses."""
    seen: dict[tuple[str, frozenset[Condition]], int] = {}
    for rule in rules:
        for name in rule.names:
            if not name:
                raise init_failed("empty string is not a valid syscall")
            if rule.verdict == default or not any(name in numbers for numbers in data.NUMBERS.values()):
                continue
            for condition in rule.conditions:
                if condition.index > 5:
                    raise init_failed(
                        f"error creating seccomp syscall condition for syscall {name}: "
                        f"syscalls only have up to 6 arguments ({condition.index} given)"
                    )
            what = "rule" if rule.conditions else "filter rule"
            if _overflows(rule.verdict):
                raise init_failed(
                    f"error adding seccomp {what} for syscall {name}: two checks on same syscall argument"
                )
            for test in _tests(rule.conditions) if rule.conditions else ():
                if seen.setdefault((name, frozenset(test)), rule.verdict) != rule.verdict:
                    raise init_failed(f"error adding seccomp {what} for syscall {name}: file exists")


def _overflows(verdict: int) -> bool:
    """libseccomp's MAX_ERRNO."""
    return verdict & _ACTION == ERRNO and verdict & _DATA >= 4095


def _default_rules() -> Iterator[Rule]:
    yield Rule(names=data.ALLOWED, verdict=ALLOW)
    for version, names in data.ALLOWED_SINCE.items():
        yield Rule(names=names, verdict=ALLOW, includes=When(min_kernel=version))
    for architecture, names in data.ALLOWED_ON.items():
        yield Rule(names=names, verdict=ALLOW, includes=When(arches=frozenset({architecture})))
    for capability, names in data.ALLOWED_WITH.items():
        yield Rule(names=names, verdict=ALLOW, includes=When(caps=frozenset({capability})))
    vsock = Condition(index=0, operator="NE", value=data.AF_VSOCK)
    yield Rule(names=("socket",), verdict=ALLOW, conditions=(vsock,))
    for value in data.PERSONALITIES:
        persona = Condition(index=0, operator="EQ", value=value)
        yield Rule(names=("personality",), verdict=ALLOW, conditions=(persona,))
    admin = When(caps=frozenset({"CAP_SYS_ADMIN"}))
    no_namespaces = Condition(index=0, operator="MASKED_EQ", value=data.CLONE_NAMESPACES)
    yield Rule(names=("clone",), verdict=ALLOW, conditions=(no_namespaces,), excludes=admin)
    # Its flags lie in memory, out of a filter's sight: a C library told that it is not there uses clone.
    yield Rule(names=("clone3",), verdict=_ENOSYS, excludes=admin)


DEFAULT = Profile(default=ERRNO | errno.EPERM, rules=tuple(_default_rules()))


def _applies(
    includes: When, excludes: When, capabilities: frozenset[str], architecture: str, kernel: tuple[int, int]
) -> bool:
    return not (
        architecture in excludes.arches
        or capabilities & excludes.caps
        or (excludes.min_kernel is not None and kernel >= excludes.min_kernel)
        or (includes.arches and architecture not in includes.arches)
        or not includes.caps <= capabilities
        or (includes.min_kernel is not None and kernel < includes.min_kernel)
    )


# ---- compiling ----

_Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, k; include/uapi/linux/filter.h
_LD, _AND, _RET, _JA, _JEQ, _JGT, _JGE = 0x20, 0x54, 0x06, 0x05, 0x15, 0x25, 0x35
_NR, _ARCH, _ARGS = 0, 4, 16  # offsets in struct seccomp_data
_FAR = 255


def _ret(verdict: int) -> _Instruction:
    return (_RET, 0, 0, verdict)


def _load(offset: int) -> _Instruction:
    return (_LD, 0, 0, offset)


def _branch(
    code: int, value: int, before: list[_Instruction], otherwise: list[_Instruction], *, then: list[_Instruction]
) -> list[_Instruction]:
    """``then`` if the accumulator compares so with ``value``, else ``otherwise``; both end in a return."""
    if len(otherwise) <= _FAR:
        return [*before, (code, len(otherwise), 0, value), *otherwise, *then]
    return [*before, (code, 0, 1, value), (_JA, 0, 0, len(otherwise)), *otherwise, *then]


@dataclass(slots=True)
class _Call:
    """What the rules say about one number: ``always``, or the first of ``tests`` that holds."""

    always: int | None
    tests: list[tuple[tuple[Condition, ...], int]]


def _compile_architecture(default: int, rules: Sequence[Rule], architecture: str) -> list[_Instruction]:
    calls, newest = _collect(default, rules, architecture)
    leaves = {0: [_ret(default)]}  # from this number on
    for number in sorted(calls):
        call = calls[number]
        leaves[number] = [_ret(call.always)] if call.always is not None else _compile_tests(call.tests, default)
        leaves.setdefault(number + 1, [_ret(default)])
    permissive = default & _ACTION in (ALLOW, LOG, TRACE)
    if newest is not None and not permissive:
        leaves[newest + 1] = [_ret(_ENOSYS)]
    if architecture == "x86_64":
        leaves[_X32_BIT] = [_ret(_ENOSYS)]
    ordered = sorted(leaves.items())
    merged = [ordered[0], *(after for before, after in pairwise(ordered) if before[1] != after[1])]
    return [_load(_NR), *_search(merged)]


def _collect(default: int, rules: Sequence[Rule], architecture: str) -> tuple[dict[int, _Call], int | None]:
    """By number, and the newest number that the rules name, whatever they say about it."""
    numbers = data.NUMBERS[architecture]
    calls: dict[int, _Call] = {}
    newest: int | None = None
    for rule in rules:
        for name in rule.names:
            number = numbers.get(name)
            if number is not None and number < _X32_BIT:
                newest = max(number, newest or 0)
            if rule.verdict == default:
                continue
            targets = [(number, rule.conditions)] if number is not None else []
            if architecture == "x86" and name in _MULTIPLEXED:
                targets += _multiplexed(rule, name, numbers)
            for target, conditions in targets:
                call = calls.setdefault(target, _Call(None, []))
                if conditions:
                    call.tests += [(test, rule.verdict) for test in _tests(conditions)]
                elif call.always is None:
                    call.always = rule.verdict
    return calls, newest


def _multiplexed(rule: Rule, name: str, numbers: Mapping[str, int]) -> list[tuple[int, tuple[Condition, ...]]]:
    """The rule for a call made through socketcall or ipc. Its arguments lie in memory there, so a rule that looks at
    them cannot allow; one that denies denies the call altogether."""
    through, number = _MULTIPLEXED[name]
    if rule.conditions and rule.verdict == ALLOW:
        return []
    return [(numbers[through], (Condition(index=0, operator="EQ", value=number),))]


def _tests(conditions: tuple[Condition, ...]) -> list[tuple[Condition, ...]]:
    """All at once; but several on one argument are alternatives (runc libcontainer/seccomp, matchCall)."""
    indexes = [condition.index for condition in conditions]
    return [(condition,) for condition in conditions] if len(set(indexes)) < len(indexes) else [conditions]


def _search(leaves: Sequence[tuple[int, list[_Instruction]]]) -> list[_Instruction]:
    """A binary search over the numbers from which each leaf counts."""
    if len(leaves) == 1:
        return leaves[0][1]
    middle = len(leaves) // 2
    return _branch(_JGE, leaves[middle][0], [], _search(leaves[:middle]), then=_search(leaves[middle:]))


def _compile_tests(tests: Sequence[tuple[tuple[Condition, ...], int]], default: int) -> list[_Instruction]:
    code = [_ret(default)]
    for conditions, verdict in reversed(tests):
        block = [_ret(verdict)]
        for condition in reversed(conditions):
            block = _compile_condition(condition, block)
        code = [*_resolve(block), *code]
    return code


# Jump targets inside a rule's block, until its length is known.
_PASS, _FAIL = -1, -2


def _compile_condition(condition: Condition, then: list[_Instruction]) -> list[_Instruction]:
    """Tests of the argument's high and low half before ``then``; a false one jumps to ``_FAIL``."""
    high, low = condition.value >> 32, condition.value & 0xFFFFFFFF
    low_offset = _ARGS + 8 * condition.index
    load_high, load_low = _load(low_offset + 4), _load(low_offset)
    code: list[_Instruction]
    match condition.operator:
        case "EQ":
            code = [load_high, (_JEQ, 0, _FAIL, high), load_low, (_JEQ, 0, _FAIL, low)]
        case "NE":
            code = [load_high, (_JEQ, 0, _PASS, high), load_low, (_JEQ, _FAIL, 0, low)]
        case "GT":
            code = [load_high, (_JGT, _PASS, 0, high), (_JEQ, 0, _FAIL, high), load_low, (_JGT, 0, _FAIL, low)]
        case "GE":
            code = [load_high, (_JGT, _PASS, 0, high), (_JEQ, 0, _FAIL, high), load_low, (_JGE, 0, _FAIL, low)]
        case "LT":
            code = [load_high, (_JGT, _FAIL, 0, high), (_JEQ, 0, _PASS, high), load_low, (_JGE, _FAIL, 0, low)]
        case "LE":
            code = [load_high, (_JGT, _FAIL, 0, high), (_JEQ, 0, _PASS, high), load_low, (_JGT, _FAIL, 0, low)]
        case "MASKED_EQ":
            wanted = condition.value_two & condition.value
            code = [
                load_high,
                (_AND, 0, 0, high),
                (_JEQ, 0, _FAIL, wanted >> 32),
                load_low,
                (_AND, 0, 0, low),
                (_JEQ, 0, _FAIL, wanted & 0xFFFFFFFF),
            ]
    length = len(code)
    return [
        *((c, _passed(jt, length - i - 1), _passed(jf, length - i - 1), k) for i, (c, jt, jf, k) in enumerate(code)),
        *then,
    ]


def _passed(jump: int, distance: int) -> int:
    return distance if jump == _PASS else jump


def _resolve(block: list[_Instruction]) -> list[_Instruction]:
    """Let failing tests jump behind the block. Six conditions make some forty instructions: always near."""
    length = len(block)
    place: Callable[[int, int], int] = lambda jump, index: length - index - 1 if jump == _FAIL else jump  # noqa: E731
    return [(code, place(jt, i), place(jf, i), k) for i, (code, jt, jf, k) in enumerate(block)]


# ---- parsing ----


def _parse_call(call: dict[str, Any]) -> Iterator[Rule]:
    names: list[str | None] = call.get("names") or ([call["name"]] if call.get("name") else [])
    verdict = _verdict(call.get("action", ""), call.get("errnoRet"))
    conditions = tuple(_parse_condition(arg or {}) for arg in call.get("args", ()))
    if names:
        yield Rule(names=tuple(name or "" for name in names), verdict=verdict, conditions=conditions)


def _parse_condition(arg: dict[str, Any]) -> Condition:
    operator = arg.get("op", "")
    if operator not in _OPERATORS:
        raise create_failed(f"string {operator} is not a valid operator for seccomp")
    return Condition(
        index=arg.get("index", 0),
        operator=_OPERATORS[operator],
        value=arg.get("value", 0),
        value_two=arg.get("valueTwo", 0),
    )


def _when(given: dict[str, Any] | None) -> When:
    given = given or {}
    return When(
        caps=frozenset(filter(None, given.get("caps", ()))),
        arches=frozenset(filter(None, given.get("arches", ()))),
        min_kernel=given.get("minKernel"),
    )


def _verdict(action: str, errno_ret: int | None) -> int:
    if action not in _ACTIONS:
        raise create_failed(f"string {action} is not a valid action for seccomp")
    verdict = _ACTIONS[action]
    if verdict in (ERRNO, TRACE):
        verdict |= (errno.EPERM if errno_ret is None else errno_ret) & _DATA
    return verdict

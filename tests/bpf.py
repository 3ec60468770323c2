"""Seccomp filters: run by an interpreter, taken from a living process, and summed up as a table of verdicts."""

import ctypes
import errno
import os
import struct
from collections.abc import Iterable, Mapping

from compatd.runtime.seccomp_profile import NUMBERS

ARCHITECTURES = {"x86_64": 0xC000003E, "x86": 0x40000003}
X32_BIT = 0x40000000
_LAST = 559  # well beyond the newest call

_ACTIONS = {
    0x00000000: "KILL_THREAD",
    0x80000000: "KILL_PROCESS",
    0x00030000: "TRAP",
    0x00050000: "ERRNO",
    0x7FF00000: "TRACE",
    0x7FFC0000: "LOG",
    0x7FFF0000: "ALLOW",
}
_NEWCGROUP, _NEWUSER, _NEWNET, _NEWNS = 0x02000000, 0x10000000, 0x40000000, 0x00020000
# First arguments that tell rules apart; of other calls the first argument is 0.
_INTERESTING = {
    "clone": (0, 0x1200011, 0x3D0F00, _NEWNS, _NEWCGROUP, _NEWUSER | 17, _NEWNET, 0x7E020000, 1 << 32),
    "personality": (0, 8, 0x20000, 0x20008, 0xFFFFFFFF, 1, 0x40000, 9),
    "socket": (1, 2, 10, 16, 17, 40, 45),
    "socketcall": (1, 3, 9, 20, 99),
    "ipc": (1, 2, 21, 99),
    "ioctl": (0, 0x5412),
    "ptrace": (0, 16),
}


def run(program: bytes, architecture: int, number: int, *arguments: int) -> int:
    """The verdict of a classic BPF program on a struct seccomp_data."""
    arguments = (*arguments, 0, 0, 0, 0, 0, 0)[:6]
    data = struct.pack("<IIQ6Q", number & 0xFFFFFFFF, architecture, 0, *arguments)
    accumulator = counter = 0
    while True:
        code, jump_true, jump_false, k = struct.unpack_from("<HBBI", program, counter * 8)
        counter += 1
        match code:
            case 0x20:
                accumulator = struct.unpack_from("<I", data, k)[0]
            case 0x54:
                accumulator &= k
            case 0x06:
                return int(k)
            case 0x05:
                counter += k
            case 0x15:
                counter += jump_true if accumulator == k else jump_false
            case 0x25:
                counter += jump_true if accumulator > k else jump_false
            case 0x35:
                counter += jump_true if accumulator >= k else jump_false
            case 0x45:
                counter += jump_true if accumulator & k else jump_false
            case _:
                raise AssertionError(f"unexpected instruction {code:#x}")


def verdict(value: int) -> str:
    name = _ACTIONS[value & 0xFFFF0000]
    return f"{name} {errno.errorcode.get(value & 0xFFFF, value & 0xFFFF)}" if value & 0xFFFF else name


def verdicts(program: bytes) -> dict[str, str]:
    """Architecture, call and first argument → verdict, for every number, named or not, of x86_64 and i386."""
    table: dict[str, str] = {}
    for name, number in ARCHITECTURES.items():
        calls = {value: call for call, value in NUMBERS[name].items()}
        for index in range(_LAST + 1):
            call = calls.get(index, str(index))
            for argument in _INTERESTING.get(call, ()):
                table[f"{name} {call}({argument:#x})"] = verdict(run(program, number, index, argument))
            if call not in _INTERESTING:
                table[f"{name} {call}"] = verdict(run(program, number, index))
    return table


def fold(table: Mapping[str, str], base: Mapping[str, str] | None = None) -> dict[str, dict[str, str]]:
    """The table as it is kept in a file, by architecture and verdict; only what differs from ``base``."""
    folded: dict[str, dict[str, list[str]]] = {}
    for key, value in table.items():
        if base is None or base[key] != value:
            architecture, _, call = key.partition(" ")
            folded.setdefault(architecture, {}).setdefault(value, []).append(call)
    return {name: {value: " ".join(calls) for value, calls in kinds.items()} for name, kinds in folded.items()}


# ---------------------------------------------------------------- ptrace(2)

_SEIZE, _INTERRUPT, _DETACH, _SECCOMP_GET_FILTER = 0x4206, 0x4207, 17, 0x420C
_WALL = 0x40000000


def of_process(pid: int) -> list[bytes]:
    """The filters of a process, the last installed one first. ``OSError`` where the kernel does not tell."""
    libc = ctypes.CDLL(None, use_errno=True)

    def ptrace(request: int, address: int = 0, data: object = None) -> int:
        result = int(libc.ptrace(ctypes.c_long(request), ctypes.c_long(pid), ctypes.c_void_p(address), data))
        if result < 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))
        return result

    def read() -> Iterable[bytes]:
        index = 0
        while True:
            try:
                length = ptrace(_SECCOMP_GET_FILTER, index)
            except OSError as error:
                if error.errno in (errno.ENOENT, errno.EINVAL):  # no more; none at all
                    return
                raise
            content = ctypes.create_string_buffer(8 * length)
            ptrace(_SECCOMP_GET_FILTER, index, content)
            yield content.raw
            index += 1

    ptrace(_SEIZE)
    try:
        ptrace(_INTERRUPT)
        os.waitpid(pid, _WALL)
        return list(read())
    finally:
        ptrace(_DETACH)

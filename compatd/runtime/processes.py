"""Processes of a container as ``ps`` shows them, read from /proc (proc_pid_stat(5), proc_pid_status(5)).

The formats that clients ask for are built in: ``-ef`` (the default), ``aux``, and ``-o`` with a list of columns.
"""

import os
import pwd
import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from compatd.errors import InvalidParameter

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE_KIB = os.sysconf("SC_PAGE_SIZE") // 1024
_FULL = ("user:UID", "pid", "ppid", "c", "stime", "tty", "time", "args:CMD")
_USER_ORIENTED = (
    "user:USER",
    "pid",
    "%cpu",
    "%mem",
    "vsz",
    "rss",
    "tty",
    "stat",
    "start",
    "time",
    "args:COMMAND",
)


class _Machine(NamedTuple):
    boot_s: float
    memory_kib: int
    now_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """One process; times in seconds, memory in KiB."""

    pid: int
    ppid: int
    pgid: int
    sid: int
    uid: int
    gid: int
    state: str
    tty: int
    cpu_s: float
    started_s: float  # since boot
    vsz_kib: int
    rss_kib: int
    nice: int
    threads: int
    name: str
    args: str


def read_process(pid: int) -> Process | None:
    """``None`` when it has gone."""
    try:
        directory = f"/proc/{pid}"
        with open(f"{directory}/stat", encoding="utf-8", errors="replace") as file:
            head, _, tail = file.read().rpartition(")")
        with open(f"{directory}/cmdline", "rb") as file:
            command = file.read(1 << 16)
        owner = os.stat(directory)
    except OSError:
        return None
    name = head.partition("(")[2]
    fields = tail.split()
    return Process(
        pid=pid,
        state=fields[0],
        ppid=int(fields[1]),
        pgid=int(fields[2]),
        sid=int(fields[3]),
        tty=int(fields[4]),
        cpu_s=(int(fields[11]) + int(fields[12])) / _TICKS,
        nice=int(fields[16]),
        threads=int(fields[17]),
        started_s=int(fields[19]) / _TICKS,
        vsz_kib=int(fields[20]) // 1024,
        rss_kib=int(fields[21]) * _PAGE_KIB,
        uid=owner.st_uid,
        gid=owner.st_gid,
        name=name,
        args=command.rstrip(b"\0").replace(b"\0", b" ").decode(errors="replace") or f"[{name}]",
    )


def list_processes(pids: Iterable[int], ps_args: str) -> tuple[list[str], list[list[str]]]:
    """(titles, one row per process, by pid). ``InvalidParameter``: arguments that are not understood."""
    columns = _columns(ps_args.split() or ["-ef"])
    with open("/proc/uptime", encoding="ascii") as file:
        uptime = float(file.read().split()[0])
    now = time.time()
    machine = _Machine(now - uptime, os.sysconf("SC_PHYS_PAGES") * _PAGE_KIB, now)
    processes = [process for pid in sorted(pids) if (process := read_process(pid)) is not None]
    return (
        [title for title, _ in columns],
        [[render(process, machine) for _, render in columns] for process in processes],
    )


_Render = Callable[[Process, _Machine], str]


def _columns(words: list[str]) -> list[tuple[str, _Render]]:
    wanted: list[str] = []
    layout: tuple[str, ...] | None = None
    while words:
        word = words.pop(0)
        if match := re.fullmatch(r"-?[eA]*o(.*)", word):
            text = match[1] or (words.pop(0) if words else "")
            wanted += [part for part in text.split(",") if part]
        elif re.fullmatch(r"-[efFAly]+", word):
            layout = _FULL
        elif re.fullmatch(r"-?[aux]+w*", word):
            layout = _USER_ORIENTED
        else:
            raise InvalidParameter(f"ps: unsupported arguments: {word}")
    columns: list[tuple[str, _Render]] = []
    for entry in wanted or layout or _FULL:
        name, _, title = entry.replace("=", ":").partition(":")
        if name.lower() not in _RENDERERS:
            raise InvalidParameter(f'ps: unknown user-defined format specifier "{name}"')
        default, render = _RENDERERS[name.lower()]
        columns.append((title or default, render))
    if "PID" not in [title for title, _ in columns]:
        raise InvalidParameter("Couldn't find PID field in ps output")
    return columns


def _user(process: Process, _: _Machine) -> str:
    try:
        return pwd.getpwuid(process.uid).pw_name
    except KeyError:
        return str(process.uid)


def _time(process: Process, _: _Machine) -> str:
    seconds = int(process.cpu_s)
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"


def _started(process: Process, machine: _Machine) -> str:
    moment = machine.boot_s + process.started_s
    fresh = machine.now_s - moment < 24 * 3600
    return time.strftime("%H:%M" if fresh else "%b%d", time.localtime(moment))


def _cpu(process: Process, machine: _Machine) -> float:
    age = max(0.01, machine.now_s - machine.boot_s - process.started_s)
    return 100 * process.cpu_s / age


def _tty(process: Process, _: _Machine) -> str:
    major, minor = os.major(process.tty), os.minor(process.tty)
    if not process.tty:
        return "?"
    return f"pts/{minor + (major - 136) * 256}" if 136 <= major <= 143 else f"tty{minor}"


def _elapsed(process: Process, machine: _Machine) -> str:
    seconds = int(max(0, machine.now_s - machine.boot_s - process.started_s))
    clock = f"{seconds // 60 % 60:02}:{seconds % 60:02}"
    hours, days = seconds // 3600 % 24, seconds // 86400
    return f"{days}-{hours:02}:{clock}" if days else f"{hours:02}:{clock}" if hours else clock


_RENDERERS: dict[str, tuple[str, _Render]] = {
    "user": ("USER", _user),
    "uname": ("USER", _user),
    "euser": ("EUSER", _user),
    "uid": ("UID", lambda p, _: str(p.uid)),
    "gid": ("GID", lambda p, _: str(p.gid)),
    "pid": ("PID", lambda p, _: str(p.pid)),
    "ppid": ("PPID", lambda p, _: str(p.ppid)),
    "pgid": ("PGID", lambda p, _: str(p.pgid)),
    "sid": ("SID", lambda p, _: str(p.sid)),
    "c": ("C", lambda p, m: str(int(_cpu(p, m)))),
    "%cpu": ("%CPU", lambda p, m: f"{_cpu(p, m):.1f}"),
    "pcpu": ("%CPU", lambda p, m: f"{_cpu(p, m):.1f}"),
    "%mem": ("%MEM", lambda p, m: f"{100 * p.rss_kib / m.memory_kib:.1f}"),
    "pmem": ("%MEM", lambda p, m: f"{100 * p.rss_kib / m.memory_kib:.1f}"),
    "vsz": ("VSZ", lambda p, _: str(p.vsz_kib)),
    "rss": ("RSS", lambda p, _: str(p.rss_kib)),
    "stime": ("STIME", _started),
    "start": ("START", _started),
    "etime": ("ELAPSED", _elapsed),
    "tty": ("TTY", _tty),
    "tt": ("TT", _tty),
    "time": ("TIME", _time),
    "stat": ("STAT", lambda p, _: p.state),
    "s": ("S", lambda p, _: p.state),
    "ni": ("NI", lambda p, _: str(p.nice)),
    "nlwp": ("NLWP", lambda p, _: str(p.threads)),
    "comm": ("COMMAND", lambda p, _: p.name),
    "cmd": ("CMD", lambda p, _: p.args),
    "args": ("COMMAND", lambda p, _: p.args),
    "command": ("COMMAND", lambda p, _: p.args),
}

"""Processes and threads as /proc tells of them (proc(5)), each file read when it is first asked for."""

import os
import re
import stat as modes
import time
from collections.abc import Callable, Iterator
from functools import cached_property

TICKS = os.sysconf("SC_CLK_TCK")
PAGE_KIB = os.sysconf("SC_PAGE_SIZE") // 1024
LINE_BYTES = 128 * 1024  # what is read of command lines and environments; a printed line is not longer


class Host:
    """What the figures of all processes are held against, at one moment."""

    def __init__(self) -> None:
        self.now_s = int(time.time())
        self.up_ticks = float((_read("/proc/uptime") or "0").split()[0]) * TICKS
        booted = re.search(r"^btime (\d+)$", _read("/proc/stat"), re.M)
        self.boot_s = int(booted[1]) if booted else self.now_s - int(self.up_ticks / TICKS)
        self.memory_kib = os.sysconf("SC_PHYS_PAGES") * PAGE_KIB
        self.pid_width = len(str(int(_read("/proc/sys/kernel/pid_max") or "32768") - 1))
        self._terminals: dict[int, str] = {0: "?"}
        self._drivers: list[tuple[str, int, int, int]] | None = None

    def terminal(self, device: int, pid: int) -> str:
        """The name of a controlling terminal without ``/dev/``, ``?`` for what this host has no device node of.

        A container's own devpts counts from 0 as well, so its terminals may be named as one of the host's:
        ps(1) knows no better.
        """
        if device not in self._terminals:
            self._terminals[device] = self._find_terminal(device, pid)
        return self._terminals[device]

    def _find_terminal(self, device: int, pid: int) -> str:
        major, minor = os.major(device), os.minor(device)
        if self._drivers is None:
            pattern = r" /dev/(\S+?)(?:%d)? +(\d+) +(\d+)(?:-(\d+))?"
            found = re.findall(pattern, _read("/proc/tty/drivers"))
            self._drivers = [(name, int(a), int(b), int(c or b)) for name, a, b, c in reversed(found)]
        names = [
            name
            for driver, its_major, first, last in self._drivers
            if its_major == major and first <= minor <= last
            for name in (f"/dev/{driver}{minor}", f"/dev/{driver}/{minor}", f"/dev/{driver}")
        ]
        names += [_link(f"/proc/{pid}/fd/2")]
        if major == 4:
            names += [f"/dev/tty{minor}" if minor < 64 else f"/dev/ttyS{minor - 64}"]
        elif 136 <= major <= 143:
            names += [f"/dev/pts/{minor + (major - 136) * 256}"]
        elif major == 188:
            names += [f"/dev/ttyUSB{minor}"]
        names += [_link(f"/proc/{pid}/fd/255")]
        for name in names:
            if re.fullmatch(r"/dev/[!-~]+", name) and "/../" not in name:
                try:
                    status = os.stat(name)
                except OSError:
                    continue
                if modes.S_ISCHR(status.st_mode) and status.st_rdev == device:
                    return name.removeprefix("/dev/")
        return "?"


class Task:
    """A process, or a thread of one. What cannot be read any more reads as zeros and blanks."""

    def __init__(self, tgid: int, tid: int, *, thread: bool) -> None:
        self.tgid = tgid
        self.tid = tid
        self.thread = thread
        self._place = f"/proc/{tgid}/task/{tid}" if thread else f"/proc/{tgid}"

    def text(self, name: str, limit_bytes: int = LINE_BYTES) -> str:
        """What a file of this task says; nothing, where it cannot be read."""
        return _read(f"{self._place}/{name}", limit_bytes)

    def link(self, name: str) -> str:
        return _link(f"{self._place}/{name}")

    def count(self, name: str) -> int:
        try:
            return len(os.listdir(f"{self._place}/{name}"))
        except OSError:
            return 0

    def namespace(self, kind: str) -> int:
        """The inode of one of its namespaces, 0 if unknown."""
        try:
            return os.stat(f"{self._place}/ns/{kind}").st_ino
        except OSError:
            return 0

    @cached_property
    def exists(self) -> bool:
        return bool(self._stat[0])

    @cached_property
    def _stat(self) -> tuple[str, list[str]]:
        head, _, tail = self.text("stat").rpartition(")")
        fields: list[str] = tail.split() or ["X"]
        return head.partition("(")[2], fields

    @property
    def name(self) -> str:
        """At most 15 bytes of the program's name, as its program has set it."""
        return self._stat[0]

    @property
    def state(self) -> str:
        return self._stat[1][0]

    def stat(self, field: int) -> int:
        """A number of ``stat``, fields counted from 1 as in proc_pid_stat(5)."""
        fields = self._stat[1]
        return int(fields[field - 3]) if field - 3 < len(fields) else 0

    @cached_property
    def status(self) -> dict[str, str]:
        return dict(line.split(":\t", 1) for line in self.text("status").split("\n") if ":\t" in line)

    def status_number(self, name: str, place: int = 0) -> int:
        words = self.status.get(name, "").split()
        return int(words[place]) if place < len(words) else 0

    @cached_property
    def io(self) -> dict[str, int]:
        return _numbers(self.text("io"))

    @cached_property
    def smaps(self) -> dict[str, int]:
        return _numbers(self.text("smaps_rollup"))

    @cached_property
    def words(self) -> str:
        """Its command line, words joined by blanks; the bracketed name of what has none."""
        line = self._joined("cmdline")
        return line or f"[{self.name}]" + (" <defunct>" if self.state == "Z" else "")

    @cached_property
    def environment(self) -> str:
        return self._joined("environ") or "-"

    def _joined(self, name: str) -> str:
        return self.text(name).rstrip("\0").replace("\0", " ").replace("\n", " ")


def threads(pid: int) -> list[Task]:
    try:
        return [Task(pid, tid, thread=True) for tid in sorted(map(int, os.listdir(f"/proc/{pid}/task")))]
    except OSError:
        return []


def all_pids() -> list[int]:
    return sorted(int(name) for name in os.listdir("/proc") if name.isascii() and name.isdecimal())


def existing(pids: list[int], *, with_threads: bool) -> Iterator[Task]:
    """The processes, or all their threads, without those that have gone."""
    expand: Callable[[int], list[Task]] = threads if with_threads else lambda pid: [Task(pid, pid, thread=False)]
    return (task for pid in pids for task in expand(pid) if task.exists)


def _numbers(text: str) -> dict[str, int]:
    return {name: int(number) for name, number in re.findall(r"^(\w+): +(\d+)", text, re.M)}


def _read(path: str, limit_bytes: int = LINE_BYTES) -> str:
    try:
        with open(path, "rb") as file:
            return file.read(limit_bytes).decode(errors="surrogateescape")
    except OSError:
        return ""


def _link(path: str) -> str:
    try:
        return os.readlink(path)
    except OSError:
        return ""

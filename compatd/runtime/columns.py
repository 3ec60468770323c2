"""What the columns of ps(1) hold: how each is written, and what it is sorted by."""

import grp
import os
import pwd
import re
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from compatd.runtime import capabilities
from compatd.runtime.processes import PAGE_KIB, TICKS, Host, Task


@dataclass(slots=True, kw_only=True)
class View:
    """What the options say of how values are written; ``width`` is the room of the column being written."""

    host: Host
    width: int = 0
    forest_prefix: str = ""
    name_only: bool = False  # option c: the program's name for its command line
    words_for_name: bool = False  # option -f: the reverse
    environment: bool = False
    numeric: bool = False
    with_children: bool = False
    signal_names: bool = False
    wide_signals: bool = False
    date_format: str = "%a %b %e %H:%M:%S %Y"
    utf8: bool = field(default_factory=lambda: _speaks_utf8())


Text = Callable[[Task, View], str]
Key = Callable[[Task, View], Any]


def printable(text: str, view: View) -> str:
    """As ps writes what programs call themselves: control characters, and what the locale does not have, replaced."""
    if view.utf8:
        return "".join(c if c.isprintable() else "?" * len(c.encode(errors="surrogateescape")) for c in text)
    raw = text.encode(errors="surrogateescape")
    return "".join(chr(c) if 32 <= c < 127 else "." if c < 128 else "?" for c in raw)


def _speaks_utf8() -> bool:
    names = (os.environ.get(name) for name in ("LC_ALL", "LC_CTYPE", "LANG"))
    return re.search(r"\.utf-?8", next((name for name in names if name), ""), re.I) is not None


# ---------------------------------------------------------------------------------------------- numbers and names


def _ticks(task: Task, view: View) -> int:
    return task.stat(14) + task.stat(15) + (task.stat(16) + task.stat(17) if view.with_children else 0)


def _use(task: Task, view: View, *, with_children: bool | None = None) -> float:
    """CPU used, in percent of its life."""
    children = view.with_children if with_children is None else with_children
    used = task.stat(14) + task.stat(15) + (task.stat(16) + task.stat(17) if children else 0)
    age = view.host.up_ticks - task.stat(22)
    return used * 100 / age if age > 0 else 0.0


def _age_s(task: Task, view: View) -> int:
    return max(0, int((view.host.up_ticks - task.stat(22)) / TICKS))


def _clock(seconds: int, *, hours: bool) -> str:
    days, rest = divmod(seconds, 86400)
    text = f"{rest // 60 % 60:02}:{rest % 60:02}"
    if days or hours or rest >= 3600:
        text = f"{rest // 3600:02}:{text}"
    return f"{days}-{text}" if days else text


def _percent(use: float) -> str:
    tenths = int(use * 10)
    return str(tenths // 10) if tenths > 999 else f"{tenths // 10}.{tenths % 10}"


def _began_s(task: Task, view: View) -> int:
    return view.host.boot_s + task.stat(22) // TICKS


def _bsdstart(task: Task, view: View) -> str:
    began = _began_s(task, view)
    return time.ctime(began)[4:10] if view.host.now_s - began > 86400 else time.ctime(began)[10:16]


def _start(task: Task, view: View) -> str:
    began = _began_s(task, view)
    return time.strftime("%H:%M:%S" if began + 86400 > view.host.now_s else "  %b %d", time.localtime(began))


def _stime(task: Task, view: View) -> str:
    began, now = time.localtime(_began_s(task, view)), time.localtime(view.host.now_s)
    wording = "%Y" if now.tm_year != began.tm_year else "%b%d" if now.tm_yday != began.tm_yday else "%H:%M"
    return time.strftime(wording, began)


def _lstart(task: Task, view: View) -> str:
    return time.strftime(view.date_format, time.localtime(_began_s(task, view)))[:239]


def user_name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except (KeyError, OverflowError):
        return str(uid)


def group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except (KeyError, OverflowError):
        return str(gid)


def _named(kind: str, place: int, name: Callable[[int], str]) -> tuple[Text, Key]:
    def text(task: Task, view: View) -> str:
        number = task.status_number(kind, place)
        found = printable(name(number), view)
        if view.numeric:
            return str(number)
        return found if len(found) <= view.width else found[: max(0, view.width - 1)] + "+"

    return text, lambda task, view: name(task.status_number(kind, place))


def _number(value: Callable[[Task], int]) -> tuple[Text, Key]:
    return lambda task, _: str(value(task)), lambda task, _: value(task)


def _unwritten(value: Callable[[Task], int]) -> tuple[Text, Key]:
    """ps sorts by it, but never writes it."""
    return lambda _task, _view: "-", lambda task, _: value(task)


def _string(value: Text) -> tuple[Text, Key]:
    return value, value


def _timed(value: Callable[[Task, View], float], text: Text) -> tuple[Text, Key]:
    return text, value


def _field(number: int) -> tuple[Text, Key]:
    return _number(lambda task: task.stat(number))


def _hex(number: int) -> tuple[Text, Key]:
    return lambda task, _: f"{task.stat(number):016x}", lambda task, _: task.stat(number)


def _status(name: str, place: int = 0) -> tuple[Text, Key]:
    return _number(lambda task: task.status_number(name, place))


def _faults(own: int, childrens: int) -> tuple[Text, Key]:
    def value(task: Task, view: View) -> int:
        return task.stat(own) + (task.stat(childrens) if view.with_children else 0)

    return lambda task, view: str(value(task, view)), lambda task, _: task.stat(own)


def _namespace(kind: str) -> tuple[Text, Key]:
    return lambda task, _: str(task.namespace(kind) or "-"), lambda task, _: task.namespace(kind)


def _io(name: str) -> tuple[Text, Key]:
    return _number(lambda task: task.io.get(name, 0))


def _smaps(*names: str) -> tuple[Text, Key]:
    return _number(lambda task: sum(task.smaps.get(name, 0) for name in names))


def _text_kib(task: Task) -> int:
    return (task.stat(27) - task.stat(26)) >> 10 if task.stat(23) else 0


def _data_kib(task: Task) -> int:
    return (task.stat(23) - task.stat(27) + task.stat(26)) >> 10 if task.stat(23) else 0


# -------------------------------------------------------------------------------------------------------- commands


def _command(task: Task, view: View, *, words: bool) -> str:
    if words:
        text = printable(task.words, view)
    else:
        text = printable(task.name, view) + (" <defunct>" if task.state == "Z" else "")
    if view.environment and task.environment != "-":
        text += " " + printable(task.environment, view)
    return (view.forest_prefix + text)[: view.width]


def _limited(value: Callable[[Task], str]) -> tuple[Text, Key]:
    return lambda task, view: printable(value(task), view)[: view.width], lambda task, _: value(task)


def _fname(task: Task, view: View) -> str:
    room = min(8, max(0, view.width - len(view.forest_prefix)))
    return view.forest_prefix[: view.width] + printable(task.name, view)[:room]


def _cgroup(task: Task) -> str:
    lines = [line for line in task.text("cgroup").splitlines() if not line.endswith("/")]
    return ",".join(lines) or "-"


def _cgname(task: Task) -> str:
    whole = _cgroup(task)
    _, named, name = whole.partition(":name=")
    return name if named and name else whole


def _docker(task: Task) -> str:
    found = re.search(r"/docker[-/]([0-9a-f]{64})(?![0-9a-f])", task.text("cgroup"))
    return found[1][:12] if found else "-"


def _lxc(task: Task) -> str:
    text = task.text("cgroup")
    for mark in ("lxc.payload.", "lxc.payload/", "lxc/"):
        if mark in text:
            line = text[text.index(mark) :].split("\n")[0]
            return line.rpartition(mark)[2].partition("/")[0]
    return "-"


def _supplementary(task: Task) -> list[int]:
    return [int(word) for word in task.status.get("Groups", "").split()]


# ------------------------------------------------------------------------------------------------------- systemd


def _systemd_path(task: Task) -> list[str]:
    """Where systemd would look: its own hierarchy, or the unified one."""
    text = task.text("cgroup")
    found = re.search(r"^\d+:name=systemd:(.*)$", text, re.M) or re.search(r"^0::(.*)$", text, re.M)
    return [part for part in (found[1] if found else "").split("/") if part]


def _unit_in(path: list[str]) -> str:
    inner = next((at for at, part in enumerate(path) if not part.endswith(".slice")), len(path))
    rest = path[inner:]
    return rest[0] if rest and re.fullmatch(r".+\.(service|scope|socket|mount|swap)", rest[0]) else "-"


def _slice(task: Task) -> str:
    path = _systemd_path(task)
    inner = next((at for at, part in enumerate(path) if not part.endswith(".slice")), len(path))
    return path[inner - 1] if inner else "-.slice"


def _user_unit(task: Task) -> str:
    path = _systemd_path(task)
    manager = next((at for at, part in enumerate(path) if re.fullmatch(r"user@\d+\.service", part)), None)
    return "-" if manager is None else _unit_in(path[manager + 1 :])


def _session(task: Task) -> str:
    found = re.fullmatch(r"session-(.+)\.scope", _unit_in(_systemd_path(task)))
    return found[1] if found else "-"


def _owner(task: Task) -> str:
    found = re.fullmatch(r"user-(\d+)\.slice", _slice(task))
    return found[1] if found else "-"


def _seat(task: Task) -> str:
    session = _session(task)
    return _assignment(f"/run/systemd/sessions/{session}", "SEAT") if session != "-" else "-"


def _machine(task: Task) -> str:
    unit = _unit_in(_systemd_path(task))
    return _assignment(f"/run/systemd/machines/unit:{unit}", "NAME") if unit != "-" else "-"


def _assignment(path: str, name: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            found = re.search(rf"^{name}=(\S+)$", file.read(1 << 16), re.M)
    except OSError:
        return "-"
    return found[1] if found else "-"


# --------------------------------------------------------------------------------------------------------- states


def _stat(task: Task, _: View) -> str:
    nice = task.stat(19)
    return (
        task.state
        + ("<" if nice < 0 else "N" if nice > 0 else "")
        + ("L" if task.status_number("VmLck") else "")
        + ("s" if task.stat(6) == task.tgid else "")
        + ("l" if _nlwp(task) > 1 else "")
        + ("+" if task.stat(5) == task.stat(8) else "")
    )


def _nlwp(task: Task) -> int:
    return task.status_number("Threads") or 1


def _class(task: Task, _: View) -> str:
    names = {0: "TS", 1: "FF", 2: "RR", 3: "B", 4: "ISO", 5: "IDL", 6: "DLN", 7: "#7", 8: "#8", 9: "#9"}
    return names.get(task.stat(41), "?")


def _wchan(task: Task, view: View) -> str:
    text = task.text("wchan", 63)
    name = "-" if text == "0" else text.removeprefix(".").lstrip("_") if text else "?"
    return name[: view.width]


def _context(task: Task, _: View) -> str:
    return re.split(r"[^ -~]", task.text("attr/current"))[0] or "-"


def _autogroup(task: Task) -> tuple[int, int]:
    found = re.fullmatch(r"/autogroup-(\d+) nice (-?\d+)\n", task.text("autogroup"))
    return (int(found[1]), int(found[2])) if found else (0, 0)


def _numa_node(task: Task) -> int:
    """-1 on machines of one node, which ps does not number."""
    if not os.path.exists("/sys/devices/system/node/node1"):
        return -1
    try:
        entries = os.listdir(f"/sys/devices/system/cpu/cpu{task.stat(39)}")
    except OSError:
        return -1
    return next((int(name[4:]) for name in entries if re.fullmatch(r"node\d+", name)), -1)


def _signals(name: str) -> tuple[Text, Key]:
    def value(task: Task) -> str:
        # A process has what is pending for all of it; a thread only its own.
        kind = "SigPnd" if name == "ShdPnd" and task.thread else name
        return task.status.get(kind, "0" * 16)

    def text(task: Task, view: View) -> str:
        mask = value(task)
        if view.signal_names:
            numbers = (number for number in range(1, 65) if int(mask, 16) & 1 << (number - 1))
            return _joined(map(_signal_name, numbers), view.width)
        if view.wide_signals:
            return mask.zfill(16)
        return f"<{mask[-8:]}" if len(mask.lstrip("0")) > 8 else mask[-8:].zfill(8)

    return text, lambda task, _: value(task)


def _joined(names: Iterable[str], room: int) -> str:
    text = ""
    for name in names:
        if len(name) + 1 >= room - len(text):
            return text + "+"
        text += ("," if text else "") + name
    return text or "-"


def _signal_name(number: int) -> str:
    if number >= signal.SIGRTMIN:
        known = {int(signal.SIGRTMIN): "RTMIN", int(signal.SIGRTMAX): "RTMAX"}
        return known.get(number, f"RTMIN+{number - signal.SIGRTMIN:02}")
    try:
        return signal.Signals(number).name.removeprefix("SIG")
    except ValueError:
        return f"LIBC+{number - 32:02}"


def _capabilities(task: Task, _: View) -> str:
    mask = int(task.status.get("CapPrm", "0"), 16)
    if mask == (1 << len(capabilities.NAMES)) - 1:
        return "full"
    return _joined((name.removeprefix("CAP_").lower() for name in capabilities.names(mask)), 240)


SOURCES: dict[str, tuple[Text, Key]] = {
    "agid": _number(lambda task: _autogroup(task)[0]),
    "agnice": _number(lambda task: _autogroup(task)[1]),
    "args": (lambda task, view: _command(task, view, words=not view.name_only), lambda task, _: task.words),
    "bsdstart": _timed(lambda task, _: task.stat(22), _bsdstart),
    "bsdtime": _timed(
        lambda task, _: task.stat(14) + task.stat(15),
        lambda task, view: f"{_ticks(task, view) // TICKS // 60:3}:{_ticks(task, view) // TICKS % 60:02}",
    ),
    "c": _timed(lambda task, view: _use(task, view, with_children=False), lambda t, v: f"{min(99, int(_use(t, v))):2}"),
    "cgname": _limited(_cgname),
    "cgroup": _limited(_cgroup),
    "cgroupns": _namespace("cgroup"),
    "class": _string(_class),
    "comm": (lambda task, view: _command(task, view, words=view.words_for_name), lambda task, _: task.name),
    "context": (_context, lambda task, _: task.tgid),
    "cp": _timed(
        lambda task, view: _use(task, view, with_children=False), lambda t, v: f"{min(999, int(_use(t, v) * 10)):3}"
    ),
    "cuc": _timed(
        lambda task, view: _use(task, view, with_children=True),
        lambda task, view: f"{_most(_use(task, view, with_children=True)):.3f}",
    ),
    "cutime": _unwritten(lambda task: task.stat(14) + task.stat(16)),
    "cuu": _timed(
        lambda task, view: _use(task, view, with_children=False),
        lambda task, view: f"{_most(_use(task, view, with_children=False)):.3f}",
    ),
    "docker": _string(lambda task, _: _docker(task)),
    "drs": (lambda task, _: str(_data_kib(task)), lambda task, _: task.stat(23)),
    "egid": _status("Gid", 1),
    "egroup": _named("Gid", 1, group_name),
    "eip": _hex(30),
    "end_code": _unwritten(lambda task: task.stat(27)),
    "environ": (lambda task, view: printable(task.environment, view)[: view.width], lambda _task, _view: 0),
    "esp": _hex(29),
    "etime": _timed(_age_s, lambda task, view: _clock(_age_s(task, view), hours=False)),
    "etimes": _timed(_age_s, lambda task, view: str(_age_s(task, view))),
    "euid": _status("Uid", 1),
    "euser": _named("Uid", 1, user_name),
    "exe": _limited(lambda task: task.link("exe") or "-"),
    "fds": _number(lambda task: task.count("fd")),
    "fgid": _status("Gid", 3),
    "fgroup": _named("Gid", 3, group_name),
    "flag": (lambda task, _: f"{task.stat(9) >> 6 & 7:o}", lambda task, _: task.stat(9)),
    "fname": (_fname, lambda task, _: task.name),
    "fuid": _status("Uid", 3),
    "fuser": _named("Uid", 3, user_name),
    "htprv": _smaps("Private_Hugetlb"),
    "htshr": _smaps("Shared_Hugetlb"),
    "ipcns": _namespace("ipc"),
    "lim": (
        lambda task, _: "xx" if task.stat(25) == (1 << 64) - 1 else str(task.stat(25) >> 10),
        lambda task, _: task.stat(25),
    ),
    "lstart": _timed(lambda task, _: task.stat(22), _lstart),
    "luid": _string(lambda task, _: "-" if (uid := task.text("loginuid")) in ("", str((1 << 32) - 1)) else uid),
    "lxc": _string(lambda task, _: _lxc(task)),
    "machine": _string(lambda task, _: _machine(task)),
    "majflt": _faults(12, 13),
    "minflt": _faults(10, 11),
    "mntns": _namespace("mnt"),
    "netns": _namespace("net"),
    "nice": (lambda task, _: str(task.stat(19)) if task.stat(41) in (0, 3) else "-", lambda task, _: task.stat(19)),
    "nlwp": _number(_nlwp),
    "none": (lambda _task, _view: "-", lambda _task, _view: 0),
    "numa": _number(_numa_node),
    "oom": _number(lambda task: int(task.text("oom_score") or 0)),
    "oomadj": _number(lambda task: int(task.text("oom_adj") or 0)),
    "opri": (lambda task, _: str(60 + task.stat(18)), lambda task, _: task.stat(18)),
    "ouid": _string(lambda task, _: _owner(task)),
    "pcap": _string(lambda task, _: task.status.get("CapPrm", "0" * 16)),
    "pcaps": (_capabilities, lambda task, _: task.status.get("CapPrm", "")),
    "pcpu": _timed(lambda task, view: _use(task, view, with_children=False), lambda t, v: _percent(_use(t, v))),
    "pgid": _field(5),
    "pidns": _namespace("pid"),
    "pmem": (
        lambda task, view: f"{min(99.9, task.status_number('VmRSS') * 1000 // view.host.memory_kib / 10):4.1f}",
        lambda task, _: task.status_number("VmRSS"),
    ),
    "ppid": _field(4),
    "pri": (lambda task, _: str(39 - task.stat(18)), lambda task, _: task.stat(18)),
    "pri_api": (lambda task, _: str(-1 - task.stat(18)), lambda task, _: task.stat(18)),
    "pri_bar": (lambda task, _: str(task.stat(18) + 1), lambda task, _: task.stat(18)),
    "pri_baz": (lambda task, _: str(task.stat(18) + 100), lambda task, _: task.stat(18)),
    "pri_foo": (lambda task, _: str(task.stat(18) - 20), lambda task, _: task.stat(18)),
    "priority": _field(18),
    "psr": _field(39),
    "pss": _smaps("Pss"),
    "rbytes": _io("read_bytes"),
    "rchars": _io("rchar"),
    "resident": _unwritten(lambda task: task.stat(24)),
    "rgid": _status("Gid", 0),
    "rgroup": _named("Gid", 0, group_name),
    "rops": _io("syscr"),
    "rss": _status("VmRSS"),
    "rtprio": (lambda task, _: str(task.stat(40)) if task.stat(41) else "-", lambda task, _: task.stat(40)),
    "ruid": _status("Uid", 0),
    "ruser": _named("Uid", 0, user_name),
    "s": _string(lambda task, _: task.state),
    "sched": _field(41),
    "seat": _string(lambda task, _: _seat(task)),
    "sess": _field(6),
    "session": _string(lambda task, _: _session(task)),
    "sgi_p": (lambda task, _: str(task.stat(39)) if task.state == "R" else "*", lambda task, _: task.state),
    "sgid": _status("Gid", 2),
    "sgroup": _named("Gid", 2, group_name),
    "share": _unwritten(lambda task: int((task.text("statm").split() or ["0"] * 3)[2])),
    "sig": _signals("ShdPnd"),
    "sigcatch": _signals("SigCgt"),
    "sigignore": _signals("SigIgn"),
    "sigmask": _signals("SigBlk"),
    "size": _field(23),
    "slice": _string(lambda task, _: _slice(task)),
    "stackp": _hex(28),
    "start": _timed(lambda task, _: task.stat(22), _start),
    "start_code": _unwritten(lambda task: task.stat(26)),
    "stat": (_stat, lambda task, _: task.state),
    "stime": _timed(lambda task, _: task.stat(22), _stime),
    "suid": _status("Uid", 2),
    "supgid": _limited(lambda task: ",".join(map(str, _supplementary(task))) or "-"),
    "supgrp": _limited(lambda task: ",".join(map(group_name, _supplementary(task))) or "-"),
    "suser": _named("Uid", 2, user_name),
    "swappable": (
        lambda task, _: str(task.status_number("VmData") + task.status_number("VmStk")),
        lambda task, _: task.stat(23),
    ),
    "sz": (lambda t, _: str(t.status_number("VmSize") // PAGE_KIB), lambda t, _: t.status_number("VmSize")),
    "tgid": _number(lambda task: task.tgid),
    "tid": _number(lambda task: task.tid),
    "time": _timed(
        lambda task, _: task.stat(14) + task.stat(15),
        lambda task, _: _clock((task.stat(14) + task.stat(15)) // TICKS, hours=True),
    ),
    "timens": _namespace("time"),
    "times": _timed(
        lambda task, _: task.stat(14) + task.stat(15), lambda task, _: str((task.stat(14) + task.stat(15)) // TICKS)
    ),
    "tpgid": _field(8),
    "trs": (lambda task, _: str(_text_kib(task)), lambda task, _: task.stat(23)),
    "tsig": _signals("SigPnd"),
    "tty4": _string(lambda t, v: v.host.terminal(t.stat(7), t.tgid).removeprefix("tty").removeprefix("pts/") or "?"),
    "tty8": _string(lambda task, view: view.host.terminal(task.stat(7), task.tgid)),
    "unit": _string(lambda task, _: _unit_in(_systemd_path(task))),
    "userns": _namespace("user"),
    "uss": _smaps("Private_Clean", "Private_Dirty"),
    "utime": _unwritten(lambda task: task.stat(14)),
    "utsns": _namespace("uts"),
    "uunit": _string(lambda task, _: _user_unit(task)),
    "vm_data": _unwritten(lambda task: task.status_number("VmData")),
    "vm_exe": _unwritten(lambda task: task.status_number("VmExe")),
    "vm_lib": _unwritten(lambda task: task.status_number("VmLib")),
    "vm_lock": _unwritten(lambda task: task.status_number("VmLck")),
    "vm_stack": _unwritten(lambda task: task.status_number("VmStk")),
    "vsz": _status("VmSize"),
    "wbytes": _io("write_bytes"),
    "wcbytes": _io("cancelled_write_bytes"),
    "wchan": (_wchan, lambda task, view: task.text("wchan", 63)),
    "wchars": _io("wchar"),
    "wops": _io("syscw"),
}


def _most(use: float) -> float:
    return 99.999 if use > 99 else use

"""The words of a ps(1) command line, as procps-ng 4 understands them: SysV letters, BSD letters and GNU options."""

import grp
import os
import pwd
import re
import stat as modes
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from compatd.runtime.columns import View
from compatd.runtime.formats import AIX, MACROS, Column, find, sort_key
from compatd.runtime.processes import LINE_BYTES, Task

_SORT_LETTERS = {
    "C": "pcpu",
    "G": "tpgid",
    "M": "maj_flt",
    "N": "cmaj_flt",
    "P": "ppid",
    "R": "resident",
    "S": "share",
    "T": "start_time",
    "U": "uid",
    "c": "cmd",
    "f": "flags",
    "g": "pgrp",
    "j": "cutime",
    "k": "utime",
    "m": "min_flt",
    "n": "cmin_flt",
    "o": "session",
    "p": "pid",
    "r": "rss",
    "s": "size",
    "t": "tty",
    "u": "user",
    "v": "vsize",
    "y": "priority",
}
_TERMINALS = ("/dev/pts/{}", "/dev/{}", "/dev/tty{}", "/dev/pty{}", "/dev/{}nsole")
_NO_HEADERS = re.compile(r"no-?(headers?|headings?)")
_HEADERS = re.compile(r"headers?|headings?")


class Refused(Exception):
    """These words cannot be understood in this syntax."""


class Broken(Exception):
    """ps gives up without a word that Docker would pass on."""


class Other(Exception):
    """These words ask for something that is not a listing: a version, help."""


@dataclass(slots=True, kw_only=True)
class Choice:
    """A list of processes: ``kind`` says which of their figures to look up in ``values``."""

    kind: str
    values: list[str] | list[int]


@dataclass(slots=True, kw_only=True)
class Options:
    everything: bool = False
    simple: set[str] = field(default_factory=set[str])  # -a -d and a g x, SysV ones with their dash
    choices: list[Choice] = field(default_factory=list[Choice])
    negated: bool = False
    running: bool = False
    formats: set[str] = field(default_factory=set[str])
    modifiers: set[str] = field(default_factory=set[str])  # -F -M -P -c -j -y
    deferred: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])  # kind of list, its text
    threads: set[str] = field(default_factory=set[str])  # H m -m -L -T
    forest: str = ""
    headings: str = ""
    rows: int = 24
    columns: int = LINE_BYTES
    wide: int = 0
    delimiter: str = ""
    bsd_defaults: bool = False

    shown: list[Column] = field(default_factory=list[Column])
    sorting: list[tuple[str, bool]] = field(
        default_factory=list[tuple[str, bool]]
    )  # column, whether descending; most important first
    both: bool = False  # processes as well as threads
    must_use: bool = False


class Parser:
    def __init__(self, words: Sequence[str], view: View, *, bsd: bool) -> None:
        self._words = list(words)
        self._at = 0
        self._view = view
        self._bsd = bsd
        self._options = Options(bsd_defaults=bsd)
        self._rest = ""  # of the word of letters being read

    def parse(self) -> Options:
        while self._at < len(self._words):
            word = self._words[self._at]
            if re.match(r"--[A-Za-z]", word):
                self._long(word)
            elif re.match(r"-[A-Za-z]", word):
                self._letters(word[1:], self._bsd_letter if self._bsd else self._sysv_letter)
                self._options.bsd_defaults |= self._bsd
            elif re.match(r"[A-Za-z]", word):
                if self._bsd:
                    raise Refused("way bad")
                self._options.bsd_defaults = True
                self._letters(word, self._bsd_letter)
            elif re.match(r"[+-]?[0-9]|\+", word):
                self._options.bsd_defaults = True
                self._trailing()
            else:
                raise Refused("garbage option")
            self._at += 1
        self._check_threads()
        self._settle_format()
        self._check_simple()
        if self._options.wide:
            self._options.columns = max(132, self._options.columns) if self._options.wide == 1 else LINE_BYTES
        return self._options

    def _letters(self, letters: str, read: Callable[[str], None]) -> None:
        self._rest = letters
        while self._rest:
            letter, self._rest = self._rest[0], self._rest[1:]
            read(letter)

    def _argument(self, missing: str) -> str:
        """The rest of the word, or the next one, whatever it is."""
        if self._rest:
            argument, self._rest = self._rest, ""
            return argument
        if self._at + 1 < len(self._words) and self._words[self._at + 1]:
            self._at += 1
            return self._words[self._at]
        raise Refused(missing)

    def _choose(self, kind: str, text: str, read: Callable[[str], int | str]) -> None:
        parts = re.split("[ ,\t]", text)
        if "" in parts:
            raise Refused("improper list")
        values = [read(part) for part in parts]
        self._options.choices.append(Choice(kind=kind, values=values))  # type: ignore[arg-type]  # all of one type

    def _exclusive(self, option: str) -> None:
        if self._words != [option]:
            raise Refused(f"the option is exclusive: {option}")
        raise Other

    def _sysv_letter(self, letter: str) -> None:
        o = self._options
        match letter:
            case "A" | "e":
                o.everything = True
            case "C":
                self._choose("comm", self._argument("list of command names must follow -C"), str)
            case "D":
                self._view.date_format = self._argument("date format must follow -D")
            case "F" | "f":
                o.formats.add("-f")
                if letter == "F":
                    o.modifiers.add("F")
                self._view.words_for_name = True
            case "G":
                self._choose("rgid", self._argument("list of real groups must follow -G"), self._gid)
            case "H":
                o.forest = "u"
            case "L" | "T":
                o.threads.add(f"-{letter}")
            case "M" | "Z":
                o.modifiers.add("M")
            case "N":
                o.negated = True
            case "O":
                o.deferred.append(("-O", self._argument("format or sort specification must follow -O")))
            case "P" | "c" | "j" | "y":
                o.modifiers.add(letter)
            case "U":
                self._choose("ruid", self._argument("list of real users must follow -U"), self._uid)
            case "V":
                self._exclusive("-V")
            case "a" | "d":
                o.simple.add(f"-{letter}")
            case "g":
                missing = "list of session leaders OR effective group names must follow -g"
                text = self._argument(missing)
                try:
                    self._choose("sess", text, _pid)
                except Refused:
                    try:
                        self._choose("egid", text, self._gid)
                    except Refused:
                        raise Refused("list of session leaders OR effective group IDs was invalid") from None
            case "l":
                o.formats.add("-l")
            case "m":
                o.threads.add("-m")
            case "o":
                o.deferred.append(("o", self._argument("format specification must follow -o")))
            case "p":
                self._choose("pid?", self._argument("list of process IDs must follow -p"), _pid)
            case "q":
                self._choose("quick", self._argument("List of process IDs must follow -q."), _pid)
            case "s":
                self._choose("sess", self._argument("list of session IDs must follow -s"), _pid)
            case "t":
                self._choose("tty", self._argument("list of terminals (pty, tty...) must follow -t"), _terminal)
            case "u":
                self._choose("euid", self._argument("list of users must follow -u"), self._uid)
            case "w":
                o.wide += 1
            case "x":
                raise Refused("must set personality to get -x option")
            case "-":
                raise Refused("embedded '-' among SysV options makes no sense")
            case _:
                raise Refused("unsupported SysV option")

    def _bsd_letter(self, letter: str) -> None:
        o = self._options
        match letter:
            case _ if letter in "0123456789":
                text, self._rest = letter + self._rest, ""
                self._choose("pid", text, _pid)
            case "H":
                o.threads.add("H")
            case "L" | "V":
                self._exclusive(letter)
            case "M":
                o.threads.add("m")
            case "O":
                o.deferred.append(("O", self._argument("format or sort specification must follow O")))
            case "S":
                self._view.with_children = True
            case "T":
                o.choices.append(Choice(kind="tty", values=[own_terminal()]))
            case "U":
                self._choose("euid", self._argument("list of users must follow U"), self._uid)
            case "W":
                raise Refused("obsolete W option not supported (you have a /dev/drum?)")
            case "X" | "j" | "l" | "s" | "u" | "v":
                o.formats.add(letter)
            case "Z":
                o.modifiers.add("M")
            case "a" | "g" | "x":
                o.simple.add(letter)
            case "c":
                self._view.name_only = True
            case "e":
                self._view.environment = True
            case "f":
                o.forest = "b"
            case "h":
                self._head("none")
            case "k":
                o.deferred.append(("sort", self._argument("long sort specification must follow 'k'")))
            case "m" if self._bsd:
                o.formats.add("m")
            case "m":
                o.threads.add("m")
            case "n":
                self._view.numeric = True
            case "o":
                o.deferred.append(("o", self._argument("format specification must follow o")))
            case "p":
                self._choose("pid?", self._argument("list of process IDs must follow p"), _pid)
            case "q":
                self._choose("quick", self._argument("List of process IDs must follow q."), _pid)
            case "r":
                o.running = True
            case "t":
                try:
                    text = self._argument("")
                except Refused:
                    o.choices.append(Choice(kind="tty", values=[own_terminal()]))
                else:
                    self._choose("tty", text, _terminal)
            case "w":
                o.wide += 1
            case "-":
                raise Refused("embedded '-' among BSD options makes no sense")
            case _:
                raise Refused("unsupported option (BSD syntax)")

    def _head(self, kind: str) -> None:
        if self._options.headings:
            raise Refused("only one heading option may be specified")
        self._options.headings = kind

    def _long(self, word: str) -> None:
        name = re.split("[:=]", word[2:])[0]
        given = word[2 + len(name) :]
        o = self._options

        def argument(missing: str) -> str:
            if given:
                if len(given) == 1:
                    raise Refused(missing)
                return given[1:]
            self._rest = ""
            return self._argument(missing)

        def bare(text: str) -> None:
            if given:
                raise Refused(f"option --{text} does not take an argument")

        def number(missing: str) -> int:
            try:
                value = _number(argument(missing))
            except ValueError:
                value = 0
            if not 0 < value < 2_000_000_000:
                raise Refused(missing)
            return value

        match name:
            case "Group":
                self._choose("rgid", argument("list of real groups must follow --Group"), self._gid)
            case "User":
                self._choose("ruid", argument("list of real users must follow --User"), self._uid)
            case "cols" | "width" | "columns":
                o.columns = number("number of columns must follow --cols, --width, or --columns")
            case "context":
                o.formats.add("context")
            case "cumulative":
                bare(name)
                self._view.with_children = True
            case "date-format":
                self._view.date_format = argument("date format must follow --date-format")
            case "delimiter":
                o.delimiter = argument("delimiter character must follow --delimiter")
                if len(o.delimiter) != 1:
                    raise Refused("delimiter must be a single character")
            case "deselect":
                bare(name)
                o.negated = True
            case "forest":
                bare(name)
                o.forest = "g"
            case "format":
                o.deferred.append(("o", argument("format specification must follow --format")))
            case "group":
                self._choose("egid", argument("list of effective groups must follow --group"), self._gid)
            case "help":
                raise Other
            case "info" | "version":
                self._exclusive(f"--{name}")
            case "lines" | "rows":
                o.rows = number("number of rows must follow --rows or --lines")
            case "pid":
                self._choose("pid?", argument("list of process IDs must follow --pid"), _pid)
            case "ppid":
                self._choose("ppid", argument("list of process IDs must follow --ppid"), _ppid)
            case "quick-pid":
                self._choose("quick", argument("List of process IDs must follow --quick-pid."), _pid)
            case "sid":
                self._choose("sess", argument("some sid thing(s) must follow --sid"), _pid)
            case "signames":
                self._view.signal_names = True
            case "sort":
                o.deferred.append(("sort", argument("long sort specification must follow --sort")))
            case "tty":
                self._choose("tty", argument("list of ttys must follow --tty"), _terminal)
            case "user":
                self._choose("euid", argument("list of effective users must follow --user"), self._uid)
            case _ if _NO_HEADERS.fullmatch(name):
                bare("no-heading")
                self._head("none")
            case _ if _HEADERS.fullmatch(name):
                bare("heading")
                self._head("many")
            case _:
                raise Refused("unknown gnu long option")

    def _trailing(self) -> None:
        kinds = {"-": "pgid", "+": "sess"}
        for word in self._words[self._at :]:
            kind = kinds.get(word[:1], "pid")
            self._options.choices.append(Choice(kind=kind, values=[_pid(word[1:] if word[:1] in kinds else word)]))
        self._at = len(self._words) - 1

    def _uid(self, text: str) -> int:
        try:
            number = _number(text)
        except ValueError:
            try:
                return pwd.getpwnam(text).pw_uid
            except KeyError:
                if not self._options.negated:
                    raise Refused("user name does not exist") from None
                return -1
        if not self._options.negated and not 0 <= number <= 0xFFFFFFFE:
            raise Refused("user ID out of range")
        return number

    def _gid(self, text: str) -> int:
        try:
            number = _number(text)
        except ValueError:
            try:
                return grp.getgrnam(text).gr_gid
            except KeyError:
                if not self._options.negated:
                    raise Refused("group name does not exist") from None
                return -1
        if not self._options.negated and not 0 <= number <= 0xFFFFFFFE:
            raise Refused("group ID out of range")
        return number

    # ------------------------------------------------------------------------------------- what goes together

    def _check_threads(self) -> None:
        o, threads = self._options, self._options.threads
        if not threads:
            return
        if o.forest:
            raise Refused("thread display conflicts with forest display")
        if "H" in threads and threads & {"m", "-m"}:
            raise Refused("thread flags conflict; can't use H with m or -m")
        if {"m", "-m"} <= threads:
            raise Refused("thread flags conflict; can't use both m and -m")
        if {"-L", "-T"} <= threads:
            raise Refused("thread flags conflict; can't use both -L and -T")
        o.both = bool(threads & {"m", "-m"})
        o.must_use = bool(threads & {"-L", "-T"}) and bool(threads & {"m", "-m", "H"})

    def _check_simple(self) -> None:
        simple = self._options.simple - {"g"}
        if simple == {"a", "x"}:
            self._options.everything = True
        elif self._options.simple and self._options.simple not in (
            *({"-a"}, {"-d"}, {"-a", "-d"}, {"a"}, {"a", "g"}),
            *({"x"}, {"x", "g"}),
        ):
            raise Refused("process selection options conflict")

    def _settle_format(self) -> None:
        o = self._options
        sorted_by_word = any(kind == "sort" for kind, _ in o.deferred)
        has_sort = has_format = False
        for kind, text in o.deferred:
            if kind == "sort":
                if has_sort:
                    raise Refused("multiple sort options")
                o.sorting = self._long_sort(text)
                has_sort = True
            elif kind == "o":
                o.shown += self._format(text)
                has_format = True
            elif kind == "-O":
                if has_format:
                    raise Refused("option -O can not follow other format options")
                o.shown += self._wrapped(self._format(text), "END_SYS5")
                has_format = True
            elif not sorted_by_word and not has_sort and self._is_short_sort(text):
                o.sorting = self._short_sort(text)
                has_sort = True
            else:
                problem = "multiple sort options" if sorted_by_word or has_sort else "bad sorting code"
                if has_format:
                    raise Refused("option O is neither first format nor sort order")
                try:
                    o.shown += self._wrapped(self._format(text), "END_BSD")
                except Refused:
                    raise Refused(problem) from None
                has_format = True
        if o.shown:
            if o.formats:
                raise Refused("conflicting format options")
            if o.modifiers:
                raise Refused("can not use output modifiers with user-defined output")
            if o.must_use:
                raise Refused("-L/-T with H/m/-m and -o/-O/o/O is nonsense")
            return
        o.shown = self._standard()

    def _standard(self) -> list[Column]:
        o = self._options
        macros = {"X": "OL_X", "m": "OL_m", "context": "FLASK_context"}
        if o.formats <= {"-f", "-l"}:
            return [column for name in self._sysv_names() for column in self._find(name)]
        if len(o.formats) != 1:
            raise Refused("conflicting format options")
        (only,) = o.formats
        return self._modified(self._find(macros.get(only, f"OL_{only}")))

    def _sysv_names(self) -> list[str]:
        o = self._options
        full, long, modifiers, threads = "-f" in o.formats, "-l" in o.formats, o.modifiers, o.threads
        if "y" in modifiers and not long:
            raise Refused("modifier -y without format -l makes no sense")
        last = ["cmd"] if full or (o.bsd_defaults and long) else ["args"] if o.bsd_defaults else ["ucmd"]
        times = (["bsdtime"] if long else ["stat", "bsdtime"]) if o.bsd_defaults else ["time"]
        parts: list[tuple[bool, list[str]]] = [
            ("M" in modifiers, ["label"]),
            (long and "y" not in modifiers, ["f"]),
            (long, ["s"]),
            (full, ["uid_hack"]),
            (long and not full, ["uid"]),
            (True, ["pid"]),
            ("-T" in threads, ["spid"]),
            (full or long, ["ppid"]),
            ("j" in modifiers, ["pgid", "sid"]),
            ("-L" in threads, ["lwp"]),
            ("P" in modifiers, ["psr"]),
            ((full or long) and "c" not in modifiers, ["c"]),
            (full and "-L" in threads, ["nlwp"]),
            ("c" in modifiers, ["class", "pri"]),
            (long and "c" not in modifiers, ["opri", "ni"]),
            (long, ["rss"] if "y" in modifiers else ["addr_1"]),
            (long or "F" in modifiers, ["sz"]),
            (long, ["wchan"]),
            ("F" in modifiers and not (long and "y" in modifiers), ["rss"]),
            ("F" in modifiers and "P" not in modifiers, ["psr"]),
            (full, ["stime"]),
            (True, ["tname", *times, *last]),
        ]
        return [name for wanted, names in parts if wanted for name in names]

    def _modified(self, shown: list[Column]) -> list[Column]:
        """A BSD format with SysV modifiers."""
        o = self._options

        def after(name: str, *headers: str) -> bool:
            for header in headers:
                for place, column in enumerate(shown):
                    if column.header == header:
                        shown[place + 1 : place + 1] = self._find(name)
                        return True
            return False

        def drop(*headers: str) -> None:
            for header in headers:
                place = next((at for at, column in enumerate(shown) if column.header == header), None)
                if place is not None:
                    del shown[place]

        if "j" in o.modifiers:
            after("pgid", "PPID", "PID")
            after("sid", "PGID")
        if "y" in o.modifiers:
            drop("F")
            if after("rss", "ADDR"):
                drop("ADDR")
        if "c" in o.modifiers:
            drop("%CPU", "CPU", "CP", "C", "NI")
            if not after("class", "PRI"):
                raise Broken
            drop("PRI")
            after("pri", "CLS")
        if "-T" in o.threads and not after("spid", "PID") and o.must_use:
            raise Refused("-T with H/-m/m but no PID for SPID to follow")
        if "-L" in o.threads and after("lwp", "SID", "SESS", "PGID", "PGRP", "PPID", "PID"):
            after("nlwp", "%CPU")
        if "M" in o.modifiers:
            shown[:0] = self._find("label")
        return shown

    def _find(self, name: str, header: str | None = None, *, width: int = 0) -> list[Column]:
        return find(name, self._view.host, header, width=width)

    def _wrapped(self, shown: list[Column], trailer: str) -> list[Column]:
        return [*self._find("pid"), *shown, *self._find(trailer)]

    def _format(self, text: str) -> list[Column]:
        try:
            return self._unix_format(text)
        except Refused:
            if "%" in text and not re.match(r"%cpu[ ,]|%cpu$|%m", text):
                return self._aix_format(text)
            raise

    def _unix_format(self, text: str) -> list[Column]:
        parts = re.split("[ ,\t\n]", text)
        if parts[-1] == "" and len(parts) > 1:
            parts.pop()
        if "" in parts:
            raise Refused("improper format list")
        shown: list[Column] = []
        for part in parts:
            spec, equals, header = part.partition("=")
            name, colon, width = spec.partition(":")
            if colon and not re.fullmatch("[1-9][0-9]{0,8}", width):
                raise Refused("column widths must be unsigned decimal numbers")
            found = self._find(name, header if equals else None, width=int(width or 0))
            if not found:
                raise Refused(f'unknown user-defined format specifier "{name}"'[:79])
            if colon and name in MACROS:
                raise Refused("can not set width for a macro (multi-column) format specifier")
            shown += found
        return shown

    def _aix_format(self, text: str) -> list[Column]:
        if text[0] not in "% ":
            raise Refused("improper AIX field descriptor")
        if re.search("%( |$|%)", text):
            raise Refused("missing AIX field descriptor")
        shown: list[Column] = []
        for descriptor, between in re.findall("%(.)|([^%]+)", text, re.S):
            if descriptor and descriptor not in AIX:
                raise Refused("unknown AIX field descriptor")
            if descriptor:
                name, header = AIX[descriptor]
                shown += self._find(name, header)
            else:
                shown.append(Column(header=between, width=len(between), stands="", rows="=", text=None))
        return shown

    def _long_sort(self, text: str) -> list[tuple[str, bool]]:
        parts = re.split("[ ,\t\n]", text)
        if parts[-1] == "" and len(parts) > 1:
            parts.pop()
        if "" in parts:
            raise Refused("improper sort list")
        found = [(part[1:] if part[0] in "+-" else part, part[0] == "-") for part in parts]
        if any(sort_key(name) is None for name, _ in found):
            raise Refused("unknown sort specifier")
        return found

    def _is_short_sort(self, text: str) -> bool:
        letters = re.sub("[+-]", "", text)
        return (
            re.fullmatch(r"([+-]?[CGJKMNPRSTUcfgjkmnoprstuvy])+", text) is not None
            and len(set(letters)) == len(letters)
            and not ("P" in text and self._options.forest)
        )

    def _short_sort(self, text: str) -> list[tuple[str, bool]]:
        found: list[tuple[str, bool]] = []
        for place, (sign, letter) in enumerate(re.findall("([+-]?)(.)", text)):
            if letter not in _SORT_LETTERS or sort_key(_SORT_LETTERS[letter]) is None:
                break
            if sign or not place:  # ps forgets which way to sort after its first key
                found.append((_SORT_LETTERS[letter], sign == "-"))
        return found


def _number(text: str) -> int:
    """As strtoul(3) reads it, base by prefix. ``ValueError``: something else."""
    found = re.fullmatch(r"([+-]?)(0[xX][0-9a-fA-F]{1,16}|[0-9]{1,20})", text)
    if not found:
        raise ValueError(text)
    digits = found[2]
    value = int(digits, 16 if digits[:2] in ("0x", "0X") else 8 if digits[0] == "0" else 10)
    return value if found[1] != "-" else (-value) % (1 << 64)


def _pid(text: str) -> int:
    value = _ppid(text)
    if value < 1:
        raise Refused("process ID out of range")
    return value


def _ppid(text: str) -> int:
    try:
        value = _number(text)
    except ValueError:
        raise Refused("process ID list syntax error") from None
    if value > 0x7FFFFFFF:
        raise Refused("process ID out of range")
    return value


def _terminal(text: str) -> int:
    for path in [text] if text.startswith("/") else [pattern.format(text) for pattern in _TERMINALS]:
        try:
            status = os.stat(path)
        except (OSError, ValueError):
            continue
        if not modes.S_ISCHR(status.st_mode):
            raise Refused("list member was not a TTY")
        return status.st_rdev
    if text in ("-", "?"):
        return 0
    raise Refused("TTY could not be found")


def own_terminal() -> int:
    return Task(os.getpid(), os.getpid(), thread=False).stat(7)

"""The listing that ps(1) of procps-ng 4 would print for a command line, its mistakes included.

Docker's ``top`` passes any words to the host's ps and reads its table. This engine runs no programs, so
it understands the words itself: the SysV, BSD and GNU options, in that order of preference, and BSD all over again
where that fails.
"""

import os
from collections.abc import Sequence
from dataclasses import replace

from compatd.runtime.columns import View
from compatd.runtime.formats import Column, sort_key
from compatd.runtime.processes import LINE_BYTES, Host, Task, all_pids, existing
from compatd.runtime.ps_options import Broken, Choice, Options, Other, Parser, Refused, own_terminal


class PsFailed(Exception):
    """ps exits with status 1. ``str(error)`` is the first line of what it says, which may be nothing."""


def listing(words: Sequence[str]) -> str:
    """What ``ps WORDS`` prints here. Blocks; ``PsFailed`` instead of its exit status 1."""
    host = Host()
    view = View(host=host)
    try:
        try:
            options = Parser(words, view, bsd=False).parse()
        except Refused as error:
            first = error
            view = View(host=host)
            try:
                options = Parser(words, view, bsd=True).parse()
            except Refused:
                raise PsFailed(f"error: {first}") from None
    except Other:
        return ""
    except Broken:
        raise PsFailed("") from None
    _settle_quick(options)
    return _print(options, view)


# ------------------------------------------------------------------------------------------------------- selection


def _settle_quick(options: Options) -> None:
    """Whether lists of pids are all there is to look at; -q must be alone."""
    tried = [choice for choice in options.choices if choice.kind == "pid?"]
    quick = [choice for choice in options.choices if choice.kind == "quick"]
    alone = len(tried) == 1 == len(options.choices)
    for choice in tried:
        plain = not alone or options.forest or options.sorting or options.negated
        choice.kind = "pid" if plain else "quick"
    if len(quick) > 1:
        raise PsFailed("q/-q/--quick-pid can only be used once.")
    if quick and len(options.choices) > 1:
        raise PsFailed("q/-q/--quick-pid cannot be combined with other selection options.")
    if quick and options.forest:
        raise PsFailed("q/-q/--quick-pid cannot be used together with forest type listings.")
    if quick and options.sorting:
        raise PsFailed("q/-q,--quick-pid cannot be used together with sort options.")
    if quick and options.negated:
        raise PsFailed("q/-q/--quick-pid cannot be used together with negation switches.")


def _wanted(task: Task, options: Options, terminal: int) -> bool:
    wanted = (
        options.everything
        or ((bool(options.simple) or not options.choices) and _simply_wanted(task, options, terminal))
        or any(_listed(task, choice) for choice in options.choices)
    )
    if options.running and task.state not in "RD":
        wanted = False
    return wanted is not options.negated


def _simply_wanted(task: Task, options: Options, terminal: int) -> bool:
    simple, mine = options.simple - {"g"}, task.status_number("Uid", 1) == os.geteuid()
    leads, has_terminal = task.stat(6) == task.tgid, task.stat(7) != 0
    if not options.simple:
        return mine and (has_terminal if options.bsd_defaults else task.stat(7) == terminal)
    if "-d" in simple:
        return not leads
    if "-a" in simple:
        return not leads and has_terminal
    return has_terminal if "a" in simple else mine


def _listed(task: Task, choice: Choice) -> bool:
    places = {"ruid": ("Uid", 0), "euid": ("Uid", 1), "rgid": ("Gid", 0), "egid": ("Gid", 1)}
    fields = {"pgid": 5, "ppid": 4, "tty": 7, "sess": 6}
    if choice.kind in places:
        return task.status_number(*places[choice.kind]) in [int(value) & 0xFFFFFFFF for value in choice.values]
    if choice.kind in fields:
        return task.stat(fields[choice.kind]) in choice.values
    if choice.kind == "comm":
        # The kernel keeps 15 bytes of a name.
        return any(task.name == (str(name)[:15] if len(task.name) == 15 else name) for name in choice.values)
    return task.tgid in choice.values


# -------------------------------------------------------------------------------------------------------- printing


def _print(options: Options, view: View) -> str:
    page = _Page(options, view)
    terminal = own_terminal()
    quick = next((choice for choice in options.choices if choice.kind == "quick"), None)
    pids = [int(pid) for pid in quick.values] if quick else all_pids()
    by_threads = bool(options.threads)
    if options.forest or options.sorting:
        tasks = existing(pids, with_threads="H" in options.threads)
        found = [task for task in tasks if _wanted(task, options, terminal)]
        _show_sorted(found, options, view, page)
    else:
        tasks = existing(sorted(pids) if options.both else pids, with_threads=by_threads)
        shown = None
        for task in tasks:
            if options.both and task.tgid == shown:
                page.row(task, page.thread_columns)
            elif _wanted(task, options, terminal):
                if options.both:
                    page.row(Task(task.tgid, task.tgid, thread=False), page.process_columns)
                    shown = task.tgid
                page.row(task, page.thread_columns)
    return page.finish()


def _show_sorted(found: list[Task], options: Options, view: View, page: "_Page") -> None:
    sorting = options.sorting or [("start_time", False)]
    for name, descending in [*reversed(sorting), *([("ppid", False)] if options.forest else [])]:
        key = sort_key(name)
        assert key is not None
        # In both directions, what is equal stays in its order.
        found.sort(key=lambda task, key=key: key(task, view), reverse=descending)  # type: ignore[misc]
    if not options.forest:
        for task in found:
            page.row(task, page.process_columns)
        return
    children: dict[int, list[Task]] = {}
    for task in found:
        children.setdefault(task.stat(4), []).append(task)
    present = {task.tid for task in found}
    roots = [task for task in reversed(found) if task.stat(4) not in present]
    pending = [(task, "", "") for task in reversed(roots)]
    while pending:
        task, own, below = pending.pop()
        view.forest_prefix = own
        page.row(task, page.process_columns)
        under = children.get(task.tid, [])
        for place, child in reversed(list(enumerate(under))):
            last = place == len(under) - 1
            if options.forest == "u":
                pending.append((child, below + "  ", below + "  "))
            else:
                pending.append((child, below + " \\_ ", below + ("    " if last else " |  ")))
    view.forest_prefix = ""


def _dash(task: Task, view: View) -> str:
    return "-"


def _for_names(column: Column) -> Column:
    return replace(column, stands="*", width=max(27, column.width)) if column.stands == "S" else column


class _Page:
    """The rows as they come, with a head where one belongs."""

    def __init__(self, options: Options, view: View) -> None:
        if view.signal_names:
            options.shown = [_for_names(column) for column in options.shown]
        self._options = options
        self._view = view
        self._lines: list[str] = []
        self._gap = options.rows - 1 if options.headings == "many" else -1
        heads = options.headings == "many" or any(column.header and column.text for column in options.shown)
        self._until_head = 1 if heads and options.headings != "none" else -1
        self.process_columns = self.thread_columns = options.shown
        if options.both:
            self.process_columns = [self._without(column, "T") for column in options.shown]
            self.thread_columns = [self._without(column, "P") for column in options.shown]
        total = signals = 0
        for place, column in enumerate(options.shown):
            last = place == len(options.shown) - 1
            signals += column.stands == "S"
            total += (3 if column.stands == "*" and last else column.width) + (place > 0)
        room = options.columns
        while room < total and room < LINE_BYTES // 2:
            room += options.columns
        self._room = room
        view.wide_signals = total + signals * 7 <= room

    def _without(self, column: Column, rows: str) -> Column:
        return replace(column, text=_dash) if column.rows == rows else column

    def row(self, task: Task, columns: list[Column]) -> None:
        self._until_head -= 1
        if not self._until_head:
            self._until_head = self._gap
            self._lines.append(self._line(None, columns))
        self._lines.append(self._line(task, columns))

    def finish(self) -> str:
        """``PsFailed``: there was nothing to show."""
        if not self._lines:
            raise PsFailed("")
        return "\n".join(self._lines) + "\n"

    def _line(self, task: Task | None, columns: list[Column]) -> str:
        view, line = self._view, ""
        correct = 0  # where the next column should begin
        gap = 0
        for place, column in enumerate(columns):
            last = place == len(columns) - 1
            after = gap if correct - len(line) < 1 else 0
            room = self._room - max(correct, len(line)) - after if last else column.width
            view.width = max(0, min(room, LINE_BYTES - 1))
            text = column.text(task, view) if task and column.text else column.header
            wide = column.stands == "S" and view.wide_signals
            right = column.stands in "RS" or (column.stands in "UW" and view.numeric)
            width = (16 if view.wide_signals else 9) if column.stands == "S" else column.width
            pad = max(0, width - len(text)) if column.stands and right else 0
            space = correct - len(line) + pad
            if space < 1 or self._options.delimiter:
                space = gap
            line += (self._options.delimiter or " ") * min(space, 144) + text
            correct += column.width + 7 * wide
            gap = int(not last and column.text is not None and columns[place + 1].text is not None)
            correct += gap
        return line

"""The table of a container's processes that ``top`` replies with, from ps(1)'s output (moby: daemon/top_unix.go)."""

import re
from collections.abc import Collection

from compatd.errors import SystemFailure
from compatd.runtime import ps

_BLANKS = "[\t\n\f\r ]+"


def check(ps_args: str) -> None:
    """``SystemFailure``: a header that would pass another column off as the pid."""
    for name, header in re.findall(r"[\t\n\f\r ]+([^\t\n\f\r ]*)=[\t\n\f\r ]*(PID[^\t\n\f\r ]*)", ps_args):
        if name != "pid":
            raise SystemFailure(f'specifying "{name}={header}" is not allowed')


def list_processes(pids: Collection[int], ps_args: str) -> tuple[list[str], list[list[str]]]:
    """(titles, rows) of what ``ps`` shows of these processes. Blocks; ``SystemFailure``: ps's words."""
    words = (ps_args or "-ef").split(" ")
    try:
        # Only these, if the other words allow it.
        output = ps.listing([*words, "-q" + ",".join(map(str, pids))])
    except ps.PsFailed:
        try:
            output = ps.listing(words)
        except ps.PsFailed as error:
            raise SystemFailure(f"ps: {str(error) or 'exit status 1'}") from error
    return _parse(output, pids)


def _parse(output: str, pids: Collection[int]) -> tuple[list[str], list[list[str]]]:
    head, _, body = output.partition("\n")
    titles = _fields(head)
    if "PID" not in titles:
        raise SystemFailure("Couldn't find PID field in ps output")
    place, ours = titles.index("PID"), False
    rows: list[list[str]] = []
    for line in body.split("\n"):
        fields = _fields(line)
        if place >= len(fields):
            continue
        pid = fields[place]
        if pid != "-":
            if not re.fullmatch("[+-]?[0-9]+", pid):
                raise SystemFailure(f"Unexpected pid '{pid}': strconv.Atoi: parsing \"{pid}\": invalid syntax")
            ours = int(pid) in pids
        if ours:
            fields += [""] * (len(titles) - 1 - len(fields))
            rows.append([*fields[: len(titles) - 1], " ".join(fields[len(titles) - 1 :])])
    return titles, rows


def _fields(line: str) -> list[str]:
    return [field for field in re.split(_BLANKS, line) if field]

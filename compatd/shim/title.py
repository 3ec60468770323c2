"""What ``ps`` shows of a process of ours: its arguments' memory, overwritten.

A fork keeps its parent's arguments, so the place is found once, by the spawner. Inside a container nothing of the
engine's command line is to be read (``--init``: pid 1 is a fork).
"""

from collections.abc import Sequence

from compatd.linux import syscalls

_place = (0, 0)


def locate() -> None:
    """Find the arguments: proc_pid_stat(5), fields 48 and 49, arg_start and arg_end."""
    global _place
    with open("/proc/self/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    _place = (int(fields[45]), int(fields[46]))


def show(words: Sequence[str]) -> None:
    """Become ``words``, cut to the room there is. Nothing happens before ``locate``."""
    start, end = _place
    if end > start:
        text = b"\0".join(word.encode(errors="surrogateescape") for word in words)
        syscalls.overwrite(start, text[: end - start - 1].ljust(end - start, b"\0"))

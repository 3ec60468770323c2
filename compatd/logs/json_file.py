"""Reading a container's json-file log, also while its shim writes it and rotates it.

    <id>-json.log         the newest part; the shim appends whole lines to it
    <id>-json.log.1       the part before it, .2 the one before that, and so on
    <id>-json.log.2.gz    the same, compressed

Rotation renames: every older part moves on by one, the newest becomes ``.1``. The reader takes no lock: it opens
all parts and looks whether the names still belong to them; what is open keeps its content whatever becomes of its
name. A last line without its newline is not there yet.

Everything here but ``stream`` blocks on files.
"""

import asyncio
import gzip
import os
import re
import threading
import time
import zlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from io import FileIO

from compatd.linux.inotify import Watches
from compatd.logs.format import Lines, Record, Rendering, between, decode, format_time, parse_time, render
from compatd.tasks import Workers

CHUNK_BYTES = 256 * 1024
# The shim splits messages at 16 KiB; escaped and with attributes a line stays far below this.
MAX_LINE_BYTES = 4 * 1024 * 1024
_OPEN_ATTEMPTS = 50


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which messages: the last ``tail`` of the log (``None``: all), and of those the ones in the span of time, whose
    ends are nanoseconds since the epoch; 0 or ``None`` leaves one open, as 0 does in the API.

    Both streams count for ``tail``, whichever are shown (moby daemon/logger/loggerutils/logfile.go).
    """

    since_ns: int | None = None
    until_ns: int | None = None
    tail: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Follow:
    """Keep reading until ``stopped`` is done and everything written before that has been read."""

    watches: Watches
    stopped: "asyncio.Future[object]"


async def stream(
    path: str, selection: Selection, rendering: Rendering, *, workers: Workers, follow: Follow | None = None
) -> AsyncIterator[bytes]:
    """The log at ``path`` as the API sends it, in pieces; one that does not exist is empty.

    Reads no faster than it is consumed, and holds one piece. ``OSError``: the disk failed.
    """
    log = _Log(path, selection)
    try:
        if follow is None:
            while (piece := await workers.run(log.render, rendering)) is not None:
                if piece:
                    yield piece
            return
        wake = asyncio.Event()

        def stop(_: object) -> None:
            wake.set()

        follow.stopped.add_done_callback(stop)
        try:
            with follow.watches.watch(os.path.dirname(path) or ".", wake):
                while True:
                    last = follow.stopped.done() or _is_past(selection.until_ns)
                    wake.clear()
                    while (piece := await workers.run(log.render, rendering)) is not None:
                        if piece:
                            yield piece
                    if last or log.finished:
                        return
                    await _wait(wake, selection.until_ns)
        finally:
            follow.stopped.remove_done_callback(stop)
    finally:
        log.close()


def _is_past(until_ns: int | None) -> bool:
    return until_ns is not None and 0 < until_ns < time.time_ns()


async def _wait(wake: asyncio.Event, until_ns: int | None) -> None:
    """Wait for a change, or for the moment after which no message can be wanted."""
    delay_s = max(0.0, (until_ns - time.time_ns()) / 1e9) + 0.001 if until_ns else None
    try:
        async with asyncio.timeout(delay_s):
            await wake.wait()
    except TimeoutError:
        return


def records(path: str, selection: Selection) -> Iterator[Record]:
    """The messages of the log as it is now, one by one."""
    log = _Log(path, selection)
    try:
        while (lines := log.read()) is not None:
            yield from lines.records()
    finally:
        log.close()


class _Part:
    """One open file of the log."""

    def __init__(self, fd: int, *, compressed: bool) -> None:
        self.inode = os.fstat(fd).st_ino
        self.compressed = compressed
        self._raw = os.fdopen(fd, "rb", buffering=0)
        self._file: gzip.GzipFile | FileIO = gzip.GzipFile(fileobj=self._raw) if compressed else self._raw
        self._rest = b""  # of a line
        self._ready = b""  # whole lines that were read ahead

    def close(self) -> None:
        self._file.close()
        self._raw.close()

    def read(self) -> bytes:
        """The next whole lines; empty when there are none for now."""
        if self._ready:
            lines, self._ready = self._ready, b""
            return lines
        while data := self._read():
            data = self._rest + data
            end = data.rfind(b"\n") + 1
            # The remainder of a line without end is a broken line to whoever decodes it.
            self._rest = data[end:] if len(data) - end <= MAX_LINE_BYTES else b""
            if end:
                return data[:end]
        return b""

    def _read(self) -> bytes:
        try:
            data = self._file.read(CHUNK_BYTES)
            if not data and not self.compressed and os.fstat(self._raw.fileno()).st_size < self._raw.tell():
                # Emptied in place by its owner: the writer appends from the beginning.
                self._raw.seek(0)
                self._rest = b""
                data = self._file.read(CHUNK_BYTES)
            return data
        except (EOFError, gzip.BadGzipFile, zlib.error):
            return b""  # compression was cut short; what could be read has been read

    def seek_tail(self, count: int) -> int:
        """Go to where the last ``count`` lines begin, or to the beginning. Returns how many lines are left to read."""
        return self._seek_tail_compressed(count) if self.compressed else self._seek_tail_plain(count)

    def _seek_tail_plain(self, count: int) -> int:
        fd = self._raw.fileno()
        end = position = os.fstat(fd).st_size
        found = -1  # newlines seen; the one which ends the last line begins no line
        while position > 0:
            start = max(0, position - CHUNK_BYTES)
            block = os.pread(fd, position - start, start)
            newlines = block.count(b"\n")
            if found + newlines >= count:
                index = len(block)
                while found < count:
                    index = block.rindex(b"\n", 0, index)
                    found += 1
                end = start + index + 1
                self._raw.seek(end)
                return count
            found += newlines
            position = start
        self._raw.seek(0)
        return found + 1

    def _seek_tail_compressed(self, count: int) -> int:
        total = 0
        while lines := self.read():
            total += lines.count(b"\n")
        self._file.seek(0)
        self._rest = b""
        skip = total - count
        while skip > 0 and (lines := self.read()):
            here = lines.count(b"\n")
            if here > skip:
                self._ready = lines.split(b"\n", skip)[skip]
                break
            skip -= here
        return min(total, count)


class _Log:
    """A position in a log: the parts still to read, oldest first, of which the last may grow. Owns their descriptors.

    May be closed while a worker reads: the read then closes it.
    """

    def __init__(self, path: str, selection: Selection) -> None:
        self._path = path
        self._directory, self._name = os.path.split(path)
        self._suffix = re.compile(re.escape(self._name) + r"(?:\.([1-9][0-9]{0,5})(\.gz)?)?", re.ASCII)
        self._since = format_time(selection.since_ns) if selection.since_ns else None
        self._until = format_time(selection.until_ns) if selection.until_ns else None
        self._tail = selection.tail
        self._parts: list[_Part] = []
        self._newest_time = b""
        self._lock = threading.Lock()
        self._closing = False
        self.finished = False  # a message later than the wanted span was met

    def close(self) -> None:
        self._closing = True
        if self._lock.acquire(blocking=False):
            try:
                self._drop(len(self._parts))
            finally:
                self._lock.release()

    def render(self, rendering: Rendering) -> bytes | None:
        """The next piece for the API, empty when nothing of it is shown; ``None`` at the end for now."""
        lines = self.read()
        return None if lines is None else render(lines, rendering)

    def read(self) -> Lines | None:
        """The next wanted messages, maybe none of a chunk; ``None`` at the end for now."""
        try:
            with self._lock:
                if self._closing or self.finished or not (chunk := self._chunk()):
                    return None
        finally:
            if self._closing:
                self.close()
        lines = decode(chunk)
        if lines.times:
            self._newest_time = lines.times[-1]
            self.finished = self._until is not None and self._newest_time > self._until
        return between(lines, self._since, self._until)

    def _chunk(self) -> bytes:
        if not self._parts:
            self._parts = self._open(self._list())
            if self._tail is not None:
                self._seek_tail(self._tail)
                self._tail = None  # what is created later is read from its beginning
        while self._parts:
            if chunk := self._parts[0].read():
                return chunk
            if len(self._parts) == 1 and not self._extend():
                return b""
            # Between the last read and the rotation, more may have been written to this part.
            if chunk := self._parts[0].read():
                return chunk
            self._drop(1)
        return b""

    def _seek_tail(self, tail: int) -> None:
        wanted = tail
        for index in range(len(self._parts) - 1, -1, -1):
            wanted -= self._parts[index].seek_tail(wanted)
            if wanted <= 0:
                self._drop(index)
                return

    def _extend(self) -> bool:
        """Open the parts that are newer than the one at hand; whether there are any."""
        inode = self._parts[0].inode
        listing = self._list()
        numbers = {part_inode: number for number, _, part_inode in listing}
        number = numbers.get(inode)
        if number is None and listing:
            # Removed or compressed meanwhile: everything later than what has been read is in the others.
            parts = self._open(listing)
            if self._newest_time:
                after = format_time(parse_time(self._newest_time) + 1)
                self._since = max(self._since or after, after)
        elif number:
            parts = self._open([entry for entry in listing if entry[0] < number])
        else:
            parts = []
        self._parts += parts
        return bool(parts)

    def _list(self) -> list[tuple[int, str, int]]:
        """(number, name, inode) of each part, oldest first; the newest has number 0."""
        parts: dict[int, tuple[int, str, int]] = {}
        try:
            with os.scandir(self._directory or ".") as entries:
                for entry in entries:
                    if match := self._suffix.fullmatch(entry.name):
                        number = int(match[1] or 0)
                        # While a part is being compressed it is there twice.
                        if number not in parts or not match[2]:
                            parts[number] = (number, entry.name, entry.inode())
        except FileNotFoundError:
            return []
        return sorted(parts.values(), reverse=True)

    def _open(self, listing: list[tuple[int, str, int]]) -> list[_Part]:
        """Open the parts of ``listing``, or of a later one when a rotation came in between."""
        for _ in range(_OPEN_ATTEMPTS):
            parts: list[_Part] = []
            try:
                for _, name, inode in listing:
                    fd = os.open(os.path.join(self._directory, name), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
                    parts.append(_Part(fd, compressed=name.endswith(".gz")))
                    if parts[-1].inode != inode:
                        break
            except FileNotFoundError:
                pass
            except BaseException:
                for part in parts:
                    part.close()
                raise
            # A directory that changes while it is listed may show a part twice or not at all.
            now = self._list()
            if len(parts) == len(listing) and now[len(now) - len(listing) :] == listing:
                return parts
            for part in parts:
                part.close()
            limit = max((number for number, _, _ in listing), default=0) + 1
            listing = [entry for entry in now if entry[0] <= limit]
        return []

    def _drop(self, count: int) -> None:
        for part in self._parts[:count]:
            part.close()
        del self._parts[:count]

"""Reading a container's log files, also while its shim writes and rotates them.

    <id>-json.log         the newest part; the shim appends whole records to it
    <id>-json.log.1       the part before it, .2 the one before that, and so on
    <id>-json.log.2.gz    the same, compressed

Rotation renames: every older part moves on by one, the newest becomes ``.1``. The reader takes no lock: it opens
all parts and looks whether the names still belong to them; what is open keeps its content whatever becomes of its
name. Compression makes another file of a part, whose header tells which inode the part was (``shim.logfile``): one
that is being read keeps that number. A last record that is not whole is not there yet.

Everything here but ``stream`` blocks on files.
"""

import asyncio
import contextlib
import gzip
import os
import re
import threading
import time
import zlib
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from io import FileIO
from typing import Protocol

from compatd.linux.inotify import Watches
from compatd.logs.format import Lines, Record, Rendering, format_time, pad_time, render
from compatd.tasks import Workers

CHUNK_BYTES = 256 * 1024
# The shim splits messages at 16 KiB; escaped and with attributes a record stays far below this.
MAX_RECORD_BYTES = 4 * 1024 * 1024
_OPEN_ATTEMPTS = 50
_EXTRA = re.compile(rb'\{"lastTime":"([-0-9T:.]{19,29})Z"(?:,"inode":([0-9]{1,20}))?\}')


class Codec(Protocol):
    """How records lie in a file."""

    def whole_bytes(self, data: bytes) -> int:
        """Up to where ``data`` is whole records, or what never will be one."""
        ...

    def count(self, data: bytes) -> int:
        """How many records ``data`` is."""
        ...

    def skip(self, data: bytes, count: int) -> bytes:
        """What comes after the first ``count`` records."""
        ...

    def seek_tail(self, fd: int, count: int) -> tuple[int, int]:
        """Where the last ``count`` records begin, or all if there are fewer; and how many there are from there on."""
        ...

    def decode(self, data: bytes) -> Lines:
        """The records that ``data`` is; broken ones are passed over."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which messages: the last ``tail`` of the log (``None``: all), and of those the ones in the span of time, whose
    ends are nanoseconds since the epoch; 0 or ``None`` leaves one open, as 0 does in the API.

    Both streams count for ``tail``, whichever are shown. The span begins with the first message that is not earlier
    and ends before the first that is later, although clocks may be set (moby daemon/logger/loggerutils/logfile.go).
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
    path: str,
    selection: Selection,
    rendering: Rendering,
    *,
    codec: Codec,
    workers: Workers,
    required: bool = False,
    follow: Follow | None = None,
) -> AsyncIterator[bytes]:
    """The log at ``path`` as the API sends it, in pieces; one that does not exist is empty, unless it is ``required``.

    Reads no faster than it is consumed, and holds one piece. ``OSError``: the disk failed.
    """
    log = _Log(path, selection, codec, required=required)
    try:
        if follow is None:
            ended = False
            while not ended:
                pieces, ended = await workers.run(log.render_all_of_little, rendering)
                if pieces:
                    yield pieces
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


def records(path: str, selection: Selection, codec: Codec) -> Iterator[Record]:
    """The messages of the log as it is now, one by one."""
    log = _Log(path, selection, codec)
    try:
        while (lines := log.read()) is not None:
            yield from lines.records()
    finally:
        log.close()


class _Part:
    """One open file of the log."""

    def __init__(self, fd: int, codec: Codec, *, compressed: bool) -> None:
        self.inode = os.fstat(fd).st_ino
        self.compressed = compressed
        self._codec = codec
        self._raw = os.fdopen(fd, "rb", buffering=0)
        self._file: gzip.GzipFile | FileIO = gzip.GzipFile(fileobj=self._raw) if compressed else self._raw
        self._rest = b""  # of a record
        self._ready = b""  # whole records that were read ahead

    def close(self) -> None:
        self._file.close()
        self._raw.close()

    def is_before(self, since: bytes) -> bool:
        """Whether all of it is known to be earlier."""
        last, _ = _provenance(self._raw.fileno()) if self.compressed else (b"", 0)
        return bool(last) and pad_time(last) < since

    def read(self) -> bytes:
        """The next whole records; empty when there are none for now."""
        if self._ready:
            ready, self._ready = self._ready, b""
            return ready
        while data := self._read():
            data = self._rest + data
            end = self._codec.whole_bytes(data)
            # The remainder of a record without end is a broken one to whoever decodes it.
            self._rest = data[end:] if len(data) - end <= MAX_RECORD_BYTES else b""
            if end:
                return data[:end]
        return b""

    def _read(self) -> bytes:
        try:
            data = self._file.read(CHUNK_BYTES)
            if not data and not self.compressed:
                size, position = os.fstat(self._raw.fileno()).st_size, self._raw.tell()
                if size < position:
                    # Emptied in place by its owner: the writer appends from the beginning. Or a record was taken back.
                    self._raw.seek(position - len(self._rest) if size >= position - len(self._rest) else 0)
                    self._rest = b""
                    data = self._file.read(CHUNK_BYTES)
            return data
        except (EOFError, gzip.BadGzipFile, zlib.error):
            return b""  # compression was cut short; what could be read has been read

    def seek_tail(self, count: int) -> int:
        """Go to where the last ``count`` records begin, or to the beginning. Returns how many are left to read."""
        if not self.compressed:
            offset, left = self._codec.seek_tail(self._raw.fileno(), count)
            self._raw.seek(offset)
            return left
        total = 0
        while chunk := self.read():
            total += self._codec.count(chunk)
        self._file.seek(0)
        self._rest = b""
        skip = total - count
        while skip > 0 and (chunk := self.read()):
            here = self._codec.count(chunk)
            if here > skip:
                self._ready = self._codec.skip(chunk, skip)
                break
            skip -= here
        return min(total, count)


def _provenance(fd: int) -> tuple[bytes, int]:
    """From the header of a compressed part: when its last record was made, at the latest, and which inode it was."""
    head = os.pread(fd, 256, 0)
    if head[:4] == b"\x1f\x8b\x08\x04" and (match := _EXTRA.match(head, 12)):
        return match[1], int(match[2] or 0)
    return b"", 0


class _Log:
    """A position in a log: the parts still to read, oldest first, of which the last may grow. Owns their descriptors.

    May be closed while a worker reads: the read then closes it.
    """

    def __init__(self, path: str, selection: Selection, codec: Codec, *, required: bool = False) -> None:
        self._codec = codec
        self._required_path = path if required else None
        self._directory, self._name = os.path.split(path)
        self._suffix = re.compile(re.escape(self._name) + r"(?:\.([1-9][0-9]{0,5})(\.gz)?)?", re.ASCII)
        self._since = format_time(selection.since_ns) if selection.since_ns else None
        self._until = format_time(selection.until_ns) if selection.until_ns else None
        self._tail = selection.tail
        self._parts: list[_Part] = []
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

    def render_all_of_little(self, rendering: Rendering) -> tuple[bytes, bool]:
        """The next piece, and whether it is the last one: what is little needs one turn of a worker."""
        piece = self.render(rendering)
        if not piece or len(piece) >= CHUNK_BYTES // 4:
            return piece or b"", piece is None
        rest = self.render(rendering)
        return piece + (rest or b""), rest is None

    def read(self) -> Lines | None:
        """The next wanted messages, maybe none of a chunk; ``None`` at the end for now."""
        try:
            with self._lock:
                if self._closing or self.finished or not (chunk := self._chunk()):
                    return None
        finally:
            if self._closing:
                self.close()
        return self._within(self._codec.decode(chunk))

    def _within(self, lines: Lines) -> Lines:
        """Those in the span of time."""
        times, since, until = lines.times, self._since, self._until
        begin, end = 0, len(times)
        if since is not None:
            begin = next((n for n, stamp in enumerate(times) if stamp >= since), end)
            if begin < end:
                self._since = None
        if until is not None and max(times, default=until) > until:
            end = next((n for n in range(begin, end) if times[n] > until), end)
            self.finished = end < len(times)
        return lines if end - begin == len(times) else lines.part(begin, end)

    def _chunk(self) -> bytes:
        if not self._parts:
            if self._required_path is not None:
                os.stat(self._required_path)
                self._required_path = None
            self._parts = self._open(self._list())
            if self._since is not None and self._tail is None:
                while len(self._parts) > 1 and self._parts[0].is_before(self._since):
                    self._drop(1)
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
        number = next((number for number, _, part_inode in listing if part_inode == inode), None)
        if number is None:
            number = self._find_compressed(inode, listing)
        if number is None:
            parts = self._open(listing)  # it is gone, and all that is there came later
        else:
            parts = self._open([entry for entry in listing if entry[0] < number]) if number else []
        self._parts += parts
        return bool(parts)

    def _find_compressed(self, inode: int, listing: list[tuple[int, str, int]]) -> int | None:
        """What has become of the part with ``inode``. Others may have had that number, but earlier."""
        for number, name, _ in reversed(listing):
            if name.endswith(".gz"):
                with contextlib.suppress(OSError), open(os.path.join(self._directory, name), "rb", buffering=0) as part:
                    if _provenance(part.fileno())[1] == inode:
                        return number
        return None

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
                    parts.append(_Part(fd, self._codec, compressed=name.endswith(".gz")))
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

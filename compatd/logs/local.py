"""The local driver's files (``shim.locallog``): protobuf messages between their lengths.

What is broken, since a machine died over it, is passed over up to the next record: one is told by its two equal lengths
and by the field it begins with.
"""

import collections
import os
import re

from compatd.logs.format import Lines, format_time

_SIZE_BYTES = 4
_MAX_MESSAGE_BYTES = 1_000_000  # moby daemon/logger/local/read.go
_BLOCK_BYTES = 1 << 20
_BEGINNING = re.compile(rb"\x00[\x00-\x0f][\x00-\xff]{2}\x0a\x06std(?:out|err)\x10", re.DOTALL)
_SOURCES = {b"\n\x06stdout\x10": b"out", b"\n\x06stderr\x10": b"err"}
_SOURCE_BYTES = 9
_TIME_BYTES = 9  # of any time from 1972 to 2262


class Local:
    """Its ``logs.files.Codec``."""

    def whole_bytes(self, data: bytes) -> int:
        spans = _messages(data)
        return spans[-1][1] + _SIZE_BYTES if spans else 0

    def count(self, data: bytes) -> int:
        return len(_messages(data))

    def skip(self, data: bytes, count: int) -> bytes:
        return data[_messages(data)[count][0] - _SIZE_BYTES :]

    def seek_tail(self, fd: int, count: int) -> tuple[int, int]:
        position = os.fstat(fd).st_size
        block, start = b"", position
        for found in range(count):
            if position == 0:
                return 0, found
            if position - start < 2 * _SIZE_BYTES + _MAX_MESSAGE_BYTES and start:
                start = max(0, position - _BLOCK_BYTES - _MAX_MESSAGE_BYTES)
                block = os.pread(fd, position - start, start)
            size = block[position - start - _SIZE_BYTES : position - start]
            position -= int.from_bytes(size, "big") + 2 * _SIZE_BYTES
            if position < start or block[position - start : position - start + _SIZE_BYTES] != size:
                return self._search_tail(fd, count)
        return position, count

    def _search_tail(self, fd: int, count: int) -> tuple[int, int]:
        """The same in a file that is broken somewhere."""
        last: collections.deque[int] = collections.deque(maxlen=count)
        offset = 0
        while data := os.pread(fd, _BLOCK_BYTES + _MAX_MESSAGE_BYTES, offset):
            spans = _messages(data)
            last += (offset + begin - _SIZE_BYTES for begin, _ in spans)
            offset += spans[-1][1] + _SIZE_BYTES if spans else len(data)
        return (last[0], len(last)) if last else (offset, 0)

    def decode(self, data: bytes) -> Lines:
        lines = Lines([], [], [], [])
        stamps = _Stamps()
        for begin, end in _messages(data):
            mark = _SOURCES.get(data[begin : begin + _SOURCE_BYTES])
            at = begin + _SOURCE_BYTES + _TIME_BYTES
            time = data[at - _TIME_BYTES : at]
            text = _only_line(data, at, end)
            if mark is not None and text is not None and (stamp := stamps[time]):
                pass
            elif (entry := _parse(data[begin:end])) is not None:
                mark, time_ns, text = entry
                stamp = format_time(time_ns)
            else:
                continue
            lines.marks.append(mark)
            lines.times.append(stamp)
            lines.texts.append(text)
        lines.attrs.extend([None] * len(lines.texts))
        return lines


class _Stamps(dict[bytes, bytes]):
    """Times in their 29-character form by their varint; empty for what is no varint of the usual length."""

    def __missing__(self, time: bytes) -> bytes:
        usual = len(time) == _TIME_BYTES and time[-1] < 0x80 <= min(time[:-1])
        self[time] = stamp = format_time(_varint(time, 0)[0]) if usual else b""
        return stamp


def _messages(data: bytes) -> list[tuple[int, int]]:
    """Where the whole messages in ``data`` are."""
    spans: list[tuple[int, int]] = []
    at, total = 0, len(data)
    while at + 2 * _SIZE_BYTES <= total:
        size = data[at : at + _SIZE_BYTES]
        begin = at + _SIZE_BYTES
        end = begin + int.from_bytes(size, "big")
        if data[end : end + _SIZE_BYTES] == size and begin < end:
            spans.append((begin, end))
            at = end + _SIZE_BYTES
        elif end + _SIZE_BYTES > total and end - begin <= _MAX_MESSAGE_BYTES:
            break  # the rest of it will follow; what it says is the container's, and not to be searched
        elif (next_one := _BEGINNING.search(data, at + 1)) is not None:
            at = next_one.start()
        else:
            break
    return spans


def _only_line(data: bytes, at: int, end: int) -> bytes | None:
    """The line, when it is all that follows, as it is of a message that is no part of a line."""
    if at == end:
        return b"\n"
    if at > end or data[at] != 0x1A:
        return None
    try:
        length, at = _varint(data, at + 1)
    except IndexError:
        return None
    return data[at:end] + b"\n" if at + length == end else None


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """The number at ``at``, and where it ends. ``IndexError`` when it does not."""
    number = data[at]
    if number < 0x80:
        return number, at + 1
    number &= 0x7F
    shift = 7
    while True:
        at += 1
        byte = data[at]
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at + 1
        shift += 7
        if shift > 63:
            raise IndexError("varint too long")


def _fields(message: bytes) -> dict[int, int | bytes]:
    """A protobuf message's fields of the two kinds that occur. ``IndexError`` or ``ValueError`` when it is none."""
    fields: dict[int, int | bytes] = {}
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        value, at = _varint(message, at)
        if key & 7 == 0:
            fields[key >> 3] = value
        elif key & 7 == 2 and at + value <= len(message):
            fields[key >> 3] = message[at : at + value]
            at += value
        else:
            raise ValueError("no such field")
    return fields


def _parse(message: bytes) -> tuple[bytes, int, bytes] | None:
    """Stream mark, time and text of any message; None if it is broken."""
    try:
        fields = _fields(message)
        source, time_ns, line = fields.get(1), fields.get(2, 0), fields.get(3, b"")
        metadata = fields.get(5, b"")
        if source not in (b"stdout", b"stderr") or not isinstance(time_ns, int) or not isinstance(line, bytes):
            return None
        whole = not fields.get(4) or (isinstance(metadata, bytes) and bool(_fields(metadata).get(1)))
        if time_ns >= 1 << 63:
            time_ns -= 1 << 64
        return source[3:], time_ns, line + b"\n" if whole else line
    except (IndexError, ValueError):
        return None

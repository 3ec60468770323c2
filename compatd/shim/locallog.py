"""The local driver's records (moby daemon/logger/local, api/types/plugins/logdriver/entry.proto).

A record is a protobuf message between its length and its length again, 4 bytes big-endian each. Its fields: source
(1, string), time_nano (2, int64), line (3, bytes, without the newline), partial (4, bool), and for a part of a line
partial_log_metadata (5): last (1, bool), id (2, string), ordinal (3, int32). A field that is zero is left out.
"""

import os
from collections.abc import Mapping

from compatd.shim.lines import Partial

SIZE_BYTES = 4
MAX_RECORD_BYTES = 1_000_000  # moby refuses longer ones when it reads
_WALK_BYTES = 1 << 20


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


class _Frames(dict[int, tuple[bytes, bytes]]):
    """What stands before and behind a line of a certain length, made when first needed."""

    def __init__(self, head: bytes) -> None:
        super().__init__()
        self._head = head

    def __missing__(self, length: int) -> tuple[bytes, bytes]:
        head = self._head + (b"\x1a" + varint(length) if length else b"")
        size = (len(head) + length).to_bytes(SIZE_BYTES, "big")
        self[length] = frame = (size + head, size)
        return frame


class Encoder:
    """Records of one stream."""

    def __init__(self, stream: str, _: Mapping[str, str]) -> None:
        """There is no room for attributes."""
        self._source = b"\x0a" + varint(len(stream)) + stream.encode()

    def encode(self, piece: bytes, now_ns: int, partial: Partial | None = None) -> bytes:
        """The records of a piece from ``Lines``: one, or one for each of its lines."""
        if partial is not None:
            return self._part(piece, partial)
        frames = _Frames(self._source + b"\x10" + varint(now_ns))
        out: list[bytes] = []
        for line in piece.split(b"\n")[:-1]:
            head, size = frames[len(line)]
            out += (head, line, size)
        return b"".join(out)

    def _part(self, piece: bytes, partial: Partial) -> bytes:
        line = piece.removesuffix(b"\n") if partial.last else piece
        metadata = b"\x08\x01" if partial.last else b""
        metadata += b"\x12" + varint(len(partial.id)) + partial.id.encode() + b"\x18" + varint(partial.ordinal)
        body = self._source + b"\x10" + varint(partial.time_ns)
        if line:
            body += b"\x1a" + varint(len(line)) + line
        body += b"\x20\x01\x2a" + varint(len(metadata)) + metadata
        size = len(body).to_bytes(SIZE_BYTES, "big")
        return size + body + size

    @staticmethod
    def end_after(records: bytes, at: int) -> int:
        """Where the record ends that has byte ``at``."""
        end = 0
        while end <= at:
            end += int.from_bytes(records[end : end + SIZE_BYTES], "big") + 2 * SIZE_BYTES
        return end

    @staticmethod
    def end_before(records: bytes, at: int) -> int:
        """Where the last record ends of which no byte is at or behind ``at``."""
        return whole_bytes(records[:at])

    @staticmethod
    def mend(fd: int, size_bytes: int) -> int:
        """Take away a record that somebody was killed over: behind it no reader would find the next. The size then."""
        tail = os.pread(fd, SIZE_BYTES, max(0, size_bytes - SIZE_BYTES))
        length = int.from_bytes(tail, "big")
        head = os.pread(fd, SIZE_BYTES, max(0, size_bytes - length - 2 * SIZE_BYTES))
        if not size_bytes or (head == tail and 0 < length <= size_bytes - 2 * SIZE_BYTES):
            return size_bytes
        good = 0
        while (data := os.pread(fd, _WALK_BYTES + 2 * MAX_RECORD_BYTES, good)) and (whole := whole_bytes(data)):
            good += whole
        os.ftruncate(fd, good)
        return good


def whole_bytes(data: bytes) -> int:
    """How much of ``data`` is whole records, one behind the other."""
    end = 0
    while len(data) >= end + 2 * SIZE_BYTES:
        size = data[end : end + SIZE_BYTES]
        behind = end + int.from_bytes(size, "big") + 2 * SIZE_BYTES
        if behind > len(data) or data[behind - SIZE_BYTES : behind] != size:
            break
        end = behind
    return end

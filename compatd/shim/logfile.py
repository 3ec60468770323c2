"""The json-file log: Docker's records, made by the chunk.

A record is one line of output, at most 16 KiB of it (moby daemon/logger/copier.go); a longer one is several records,
of which only the last ends in a newline, and so does a last line without one. Bytes that are no UTF-8 become U+FFFD
one by one, and escapes are those of moby daemon/logger/jsonfilelog/jsonlog/jsonlogbytes.go. All lines of a chunk
carry one time.

On disk: ``path``, older ones ``path.1`` (newest) to ``path.N``, with ``.gz`` when compressed. A record is written
whole before a rotation; a crash leaves at most one cut record at the end of ``path``.
"""

import codecs
import contextlib
import json
import os
import time
import zlib
from collections.abc import Callable, Iterator, Mapping

from compatd.shim.spec import Log

LINE_BYTES = 1 << 14
_SLICE_BYTES = 1 << 16
_STEP = LINE_BYTES // 2

_PLAIN = bytes(byte for byte in range(256) if byte == 0x0A or (byte >= 0x20 and byte not in b'"\\<>&'))
_ESCAPES = {byte: b"\\u%04x" % byte for byte in range(256) if byte not in _PLAIN} | {
    ord("\\"): b"\\\\",
    ord('"'): b'\\"',
    ord("\r"): b"\\r",
}


def _replace_invalid(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeDecodeError)
    return "\\ufffd" * (error.end - error.start), error.end


codecs.register_error("compatd.json-file", _replace_invalid)


def escape(lines: bytes) -> bytes:
    """Output as the inside of a JSON string; newlines stay, to be cut at."""
    special = lines.translate(None, _PLAIN)
    if special:
        for byte in sorted(set(special), key=lambda byte: byte != 0x5C):  # the backslash first: the others bring some
            lines = lines.replace(bytes((byte,)), _ESCAPES[byte])
    if not lines.isascii():
        text = lines.decode("utf-8", "compatd.json-file")
        lines = text.replace("\u2028", "\\u2028").replace("\u2029", "\\u2029").encode()
    return lines


def timestamp(now_ns: int) -> str:
    """RFC3339Nano in UTC, as Go prints it: without trailing zeros."""
    seconds, nanoseconds = divmod(now_ns, 1_000_000_000)
    fraction = f".{nanoseconds:09d}".rstrip("0").rstrip(".")
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + fraction + "Z"


class Lines:
    """Cuts one stream's output into what is to be records, as the copier does."""

    def __init__(self) -> None:
        self._rest = b""

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Pieces to be recorded: whole lines, many in one, or 16 KiB of one that has not ended."""
        if self._rest:
            data = self._rest + data
        cut = data.rfind(b"\n") + 1
        self._rest = data[cut:] if cut else data
        if cut:
            lines = data[:cut]
            # A line too long leaves a step without a newline, wherever it starts.
            if all(lines.find(b"\n", at, at + _STEP) >= 0 for at in range(0, cut - _STEP, _STEP)):
                yield lines
            else:
                for line in lines.splitlines(keepends=True) if b"\r" not in lines else _split(lines):
                    yield from _cut(line)
        while len(self._rest) >= LINE_BYTES:
            yield self._rest[:LINE_BYTES]
            self._rest = self._rest[LINE_BYTES:]

    def end(self) -> bytes:
        """What was left when the stream ended."""
        rest, self._rest = self._rest, b""
        return rest


def _split(lines: bytes) -> list[bytes]:
    return [line + b"\n" for line in lines.split(b"\n")[:-1]]


def _cut(line: bytes) -> Iterator[bytes]:
    while len(line) > LINE_BYTES:
        yield line[:LINE_BYTES]
        line = line[LINE_BYTES:]
    yield line


class Encoder:
    """Records of one stream."""

    def __init__(self, stream: str, attrs: Mapping[str, str]) -> None:
        extra = b',"attrs":' + _json(attrs) if attrs else b""
        self._tail = b'","stream":"%s"%s,"time":"' % (stream.encode(), extra)

    def encode(self, piece: bytes, now_ns: int) -> bytes:
        """The records of a piece from ``Lines``: one, or one for each of its lines."""
        close = self._tail + timestamp(now_ns).encode() + b'"}\n'
        text = escape(piece)
        if not text.endswith(b"\n"):
            return b'{"log":"' + text + close
        joined = text.replace(b"\n", b"\\n" + close + b'{"log":"')
        return b'{"log":"' + joined[: -len(b'{"log":"')]


def _json(attrs: Mapping[str, str]) -> bytes:
    """As Go's encoder: sorted, and safe inside HTML."""
    text = json.dumps(dict(sorted(attrs.items())), separators=(",", ":"), ensure_ascii=False)
    for character in "<>&\u2028\u2029":  # they can only stand inside of strings
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text.encode(errors="replace")


class LogFile:
    """Owns the file. Synchronous: writing to it costs a copy into the page cache.

    A write that fails (a full disk) loses those records and nothing else. ``background`` is handed the compression
    of a rotated file, as slices to be run one by one.
    """

    def __init__(self, log: Log, background: Callable[[Iterator[None]], None]) -> None:
        """``OSError`` when the file cannot be opened."""
        self._path = log.get("path", "")
        self._capacity_bytes = log.get("max_size", 0)
        self._max_files = log.get("max_file", 1)
        self._compress = log.get("compress", False)
        self._background = background
        self._compression: Iterator[None] | None = None
        self._lines = {"stdout": Lines(), "stderr": Lines()}
        self._encoders = {stream: Encoder(stream, log.get("attrs", {})) for stream in self._lines}
        self._open()

    def write(self, stream: str, data: bytes) -> None:
        for piece in self._lines[stream].feed(data):
            self._record(stream, piece)

    def end(self, stream: str) -> None:
        """The stream has ended; what it left without a newline is recorded."""
        if rest := self._lines[stream].end():
            self._record(stream, rest)

    def close(self) -> None:
        """Finish a compression under way, and close."""
        self._finish_compression()
        os.close(self._fd)

    def _open(self) -> None:
        self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
        self._size_bytes = os.fstat(self._fd).st_size

    def _record(self, stream: str, piece: bytes) -> None:
        records = self._encoders[stream].encode(piece, time.time_ns())
        with contextlib.suppress(OSError):
            while self._capacity_bytes and self._size_bytes + len(records) > self._capacity_bytes:
                # The record that reaches the capacity still goes into this file; newlines only end records.
                cut = 0
                if (room := self._capacity_bytes - self._size_bytes) > 0:
                    cut = records.index(b"\n", room - 1) + 1
                self._append(records[:cut])
                records = records[cut:]
                if not records:
                    return
                self._rotate()
            self._append(records)

    def _append(self, records: bytes) -> None:
        self._size_bytes += len(records)
        written = os.write(self._fd, records)
        while written < len(records):
            written += os.write(self._fd, records[written:])

    def _rotate(self) -> None:
        self._finish_compression()
        if self._max_files < 2:
            os.ftruncate(self._fd, 0)
            self._size_bytes = 0
            return
        ending = ".gz" if self._compress else ""
        for number in range(self._max_files - 1, 1, -1):
            with contextlib.suppress(FileNotFoundError):
                os.rename(f"{self._path}.{number - 1}{ending}", f"{self._path}.{number}{ending}")
        os.close(self._fd)
        os.rename(self._path, f"{self._path}.1")
        self._open()
        if self._compress:
            self._compression = _compress(f"{self._path}.1")
            self._background(self._compression)

    def _finish_compression(self) -> None:
        if self._compression is not None:
            for _ in self._compression:
                pass
            self._compression = None


def _compress(path: str) -> Iterator[None]:
    """Replace ``path`` by ``path.gz``, a slice at each step. A crash leaves the one or the other, whole."""
    compressor = zlib.compressobj(wbits=31)  # with gzip's header
    staged = f"{path}.gz.tmp"
    with (
        contextlib.suppress(OSError),
        open(path, "rb", buffering=0) as source,
        open(staged, "wb", buffering=0) as target,
    ):
        while data := source.read(_SLICE_BYTES):
            target.write(compressor.compress(data))
            yield
        target.write(compressor.flush())
        os.fchmod(target.fileno(), 0o640)
        os.rename(staged, f"{path}.gz")
        os.unlink(path)

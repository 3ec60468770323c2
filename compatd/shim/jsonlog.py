"""The json-file driver's records, made by the chunk: all lines of a chunk carry one time.

Bytes that are no UTF-8 become U+FFFD one by one, and escapes are those of
moby daemon/logger/jsonfilelog/jsonlog/jsonlogbytes.go.
"""

import codecs
import json
import os
import time
from collections.abc import Mapping

from compatd.shim.lines import Partial

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


class Encoder:
    """Records of one stream."""

    def __init__(self, stream: str, attrs: Mapping[str, str]) -> None:
        extra = b',"attrs":' + _json(attrs) if attrs else b""
        self._tail = b'","stream":"%s"%s,"time":"' % (stream.encode(), extra)

    def encode(self, piece: bytes, now_ns: int, partial: Partial | None = None) -> bytes:
        """The records of a piece from ``Lines``: one, or one for each of its lines."""
        close = self._tail + timestamp(now_ns if partial is None else partial.time_ns).encode() + b'"}\n'
        text = escape(piece)
        if not text.endswith(b"\n"):
            return b'{"log":"' + text + close
        joined = text.replace(b"\n", b"\\n" + close + b'{"log":"')
        return b'{"log":"' + joined[: -len(b'{"log":"')]

    @staticmethod
    def end_after(records: bytes, at: int) -> int:
        """Where the record ends that has byte ``at``; newlines only end records."""
        return records.index(b"\n", at) + 1

    @staticmethod
    def end_before(records: bytes, at: int) -> int:
        """Where the last record ends of which no byte is at or behind ``at``."""
        return records.rfind(b"\n", 0, at) + 1

    @staticmethod
    def mend(fd: int, size_bytes: int) -> int:
        """Close a record that somebody was killed over; the file's size then. A reader passes it over."""
        if size_bytes and os.pread(fd, 1, size_bytes - 1) != b"\n":
            size_bytes += os.write(fd, b"\n")
        return size_bytes


def _json(attrs: Mapping[str, str]) -> bytes:
    """As Go's encoder: sorted, and safe inside HTML."""
    text = json.dumps(dict(sorted(attrs.items())), separators=(",", ":"), ensure_ascii=False)
    for character in "<>&\u2028\u2029":  # they can only stand inside of strings
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text.encode(errors="replace")

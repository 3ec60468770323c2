"""What a json-file log holds, and what the API makes of it. Pure functions over whole chunks of lines.

A line of the file (moby daemon/logger/jsonfilelog/jsonlog):

    {"log":"text\\n","stream":"stdout","attrs":{"key":"value"},"time":"2024-01-02T03:04:05.000000006Z"}

``attrs`` is there only when the container asked for it; trailing zeros of the fraction may be left out.

A 200 MB log must not cost a JSON parser's call per line: a chunk is cut at the text that lies between two
messages, and the escapes of all its messages are undone together. Lines that are not of the regular form go
through the JSON parser, one by one.
"""

import calendar
import json
import re
import struct
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal, NamedTuple
from urllib.parse import quote_plus

Stream = Literal["stdout", "stderr"]

_HEAD = b'{"log":"'
# What lies between one message and the next. A quote inside a message is escaped, so none can contain this.
_SEAM = re.compile(
    rb'","stream":"std(out|err)"(?:,"attrs":(\{(?:[^"\n{}]|"(?:[^"\\\n]|\\.)*")*\}))?'
    rb',"time":"([-0-9T:.]+)Z"\}\n(?:\{"log":")?'
)
_GROUPS = 4  # message, stream, attrs, time
_ESCAPE = re.compile(rb"\\u([0-9a-fA-F]{4})(?:\\u([dD][c-fC-F][0-9a-fA-F]{2}))?")
_FRACTION_DIGITS = 9
_TIME_BYTES = len("2024-01-02T03:04:05.000000006")
_SECONDS_BYTES = len("2024-01-02T03:04:05")
# No raw control character occurs in a JSON string, so these can stand for something while a chunk is rewritten.
_BREAK, _BACKSLASH = b"\x00", b"\x01"

_STREAM_NUMBERS = {b"out": 1, b"err": 2}
STREAM_NAMES: dict[int, Stream] = {1: "stdout", 2: "stderr"}


class Record(NamedTuple):
    """One message as the container wrote it, or the part of it that fitted."""

    stream: Stream
    time_ns: int
    line: bytes
    attrs: dict[str, str]


class Lines(NamedTuple):
    """Messages in columns: stream marks (``out``, ``err``), times (UTC, 29 characters), texts, ``attrs`` as JSON."""

    marks: list[bytes]
    times: list[bytes]
    texts: list[bytes]
    attrs: list[bytes | None]

    def part(self, begin: int, end: int) -> "Lines":
        """Some of them, one after the other."""
        marks, times, texts, attrs = self
        return Lines(marks[begin:end], times[begin:end], texts[begin:end], attrs[begin:end])

    def records(self) -> Iterator[Record]:
        """The same, one by one."""
        for mark, stamp, text, attrs in zip(*self, strict=True):
            yield Record(STREAM_NAMES[_STREAM_NUMBERS[mark]], parse_time(stamp), text, _attrs(attrs))


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendering:
    """How the API shows messages. ``framed``: each in an 8-byte-headed frame (a container without a tty)."""

    stdout: bool = True
    stderr: bool = True
    timestamps: bool = False
    details: bool = False
    framed: bool = True


# ---------------------------------------------------------------- reading


def decode(chunk: bytes) -> Lines:
    """The messages in ``chunk``, which is whole lines, each ended by a newline. Broken lines are passed over."""
    if not chunk:
        return Lines([], [], [], [])
    parts: list[Any] = _SEAM.split(chunk[len(_HEAD) :])  # bytes, or None for attrs that are not there
    texts: list[bytes] = parts[0:-1:_GROUPS]
    # Every line was regular: as many messages as lines, nothing after the last seam, no line torn in the middle.
    if chunk.startswith(_HEAD) and parts[-1] == b"" and len(texts) == chunk.count(b"\n"):
        joined = _BREAK.join(texts)
        if not any(odd in joined for odd in (_HEAD, b"\\u000", _BACKSLASH)) and joined.count(_BREAK) == len(texts) - 1:
            times: list[bytes] = parts[3::_GROUPS]
            # Lines that were written together have one time.
            padded = {stamp: pad_time(stamp) for stamp in set(times) if len(stamp) != _TIME_BYTES}
            if padded:
                times = [padded.get(stamp, stamp) for stamp in times]
            return Lines(parts[1::_GROUPS], times, _unescape(joined).split(_BREAK), parts[2::_GROUPS])
    return _decode_each(chunk)


def _unescape(text: bytes) -> bytes:
    if b"\\" not in text:
        return text
    text = text.replace(b"\\\\", _BACKSLASH).replace(b"\\n", b"\n").replace(b'\\"', b'"')
    if b"\\" in text:
        for escape, plain in (
            (b"\\t", b"\t"),
            (b"\\r", b"\r"),
            (b"\\b", b"\b"),
            (b"\\f", b"\f"),
            (b"\\/", b"/"),
            (b"\\u003c", b"<"),
            (b"\\u003e", b">"),
            (b"\\u0026", b"&"),
            (b"\\u001b", b"\x1b"),
        ):
            text = text.replace(escape, plain)
        if b"\\u" in text:
            text = _ESCAPE.sub(_unescape_unicode, text)
    return text.replace(_BACKSLASH, b"\\")


def _unescape_unicode(match: re.Match[bytes]) -> bytes:
    first, second = match.groups()
    unit = int(first, 16)
    if second is None:
        return chr(unit).encode("utf-8", "replace") if not 0xD800 <= unit < 0xE000 else "\ufffd".encode()
    low = int(second, 16)
    if 0xD800 <= unit < 0xDC00:
        return chr(0x10000 + ((unit - 0xD800) << 10) + (low - 0xDC00)).encode()
    return (chr(unit) if unit < 0xD800 or unit >= 0xE000 else "\ufffd").encode() + "\ufffd".encode()


def _decode_each(chunk: bytes) -> Lines:
    lines = Lines([], [], [], [])
    for raw in chunk.split(b"\n"):
        # A machine that died leaves a torn line, and the next message right behind it.
        for start in (0, raw.rfind(_HEAD)):
            document = _load(raw[start:]) if start >= 0 else None
            if document is not None:
                mark, stamp, text, attrs = document
                lines.marks.append(mark)
                lines.times.append(stamp)
                lines.texts.append(text)
                lines.attrs.append(attrs)
                break
    return lines


def _load(raw: bytes) -> tuple[bytes, bytes, bytes, bytes | None] | None:
    try:
        document: Any = json.loads(raw)
        text, stream, stamp = document["log"], document["stream"], document["time"]
        attrs = document.get("attrs")
        if stream not in ("stdout", "stderr") or not re.fullmatch(
            r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{1,9})?Z", stamp, re.ASCII
        ):
            return None
        # Lone surrogates are what JSON can say and UTF-8 cannot.
        line = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace").encode()
        return stream[3:].encode(), pad_time(stamp[:-1].encode()), line, json.dumps(attrs).encode() if attrs else None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def pad_time(stamp: bytes) -> bytes:
    """The 29-character form of a time whose fraction may be short or missing."""
    if len(stamp) == _SECONDS_BYTES:
        stamp += b"."
    return stamp.ljust(_TIME_BYTES, b"0")


def parse_time(stamp: bytes) -> int:
    """Nanoseconds since the epoch of a 29-character time."""
    seconds = calendar.timegm(time.strptime(stamp[:_SECONDS_BYTES].decode(), "%Y-%m-%dT%H:%M:%S"))
    return seconds * 1_000_000_000 + int(stamp[_SECONDS_BYTES + 1 :])


def format_time(time_ns: int) -> bytes:
    """The 29-character form, which sorts as the times do."""
    seconds, fraction = divmod(time_ns, 1_000_000_000)
    try:
        parts = time.gmtime(seconds)
    except (OverflowError, OSError, ValueError):
        return b"9999-12-31T23:59:59.999999999" if seconds > 0 else b"0000-01-01T00:00:00.000000000"
    if not 0 <= parts.tm_year <= 9999:
        return b"9999-12-31T23:59:59.999999999" if seconds > 0 else b"0000-01-01T00:00:00.000000000"
    return (
        f"{parts.tm_year:04}-{parts.tm_mon:02}-{parts.tm_mday:02}"
        f"T{parts.tm_hour:02}:{parts.tm_min:02}:{parts.tm_sec:02}.{fraction:0{_FRACTION_DIGITS}}"
    ).encode()


def _pick(lines: Lines, kept: list[int]) -> Lines:
    marks, times, texts, attrs = lines
    return Lines([marks[n] for n in kept], [times[n] for n in kept], [texts[n] for n in kept], [attrs[n] for n in kept])


# ---------------------------------------------------------------- writing for the API


class _Headers(dict[int, bytes]):
    """Frame headers of one stream by payload length, made when first needed."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self._number = number

    def __missing__(self, length: int) -> bytes:
        header = struct.pack(">BxxxI", self._number, length)
        if length <= 32 * 1024:
            self[length] = header
        return header


_HEADERS = {mark: _Headers(number) for mark, number in _STREAM_NUMBERS.items()}


def frame(stream: Stream, payload: bytes) -> bytes:
    """One multiplexed frame: stream number, three zero bytes, big-endian length, payload."""
    return struct.pack(">BxxxI", 1 if stream == "stdout" else 2, len(payload)) + payload


def error_frame(text: str, *, framed: bool) -> bytes:
    """Words of the engine's own: on the stream for errors of the system, if there are streams (moby stdcopy)."""
    payload = text.encode(errors="replace")
    return struct.pack(">BxxxI", 3, len(payload)) + payload if framed else payload


def render(lines: Lines, rendering: Rendering) -> bytes:
    """The messages as the logs endpoint sends them."""
    if not (rendering.stdout and rendering.stderr):
        wanted = b"out" if rendering.stdout else b"err" if rendering.stderr else b""
        if lines.marks.count(wanted) != len(lines.marks):
            lines = _pick(lines, [n for n, mark in enumerate(lines.marks) if mark == wanted])
    marks, times, texts, attrs = lines
    if rendering.details:
        texts = [_details(attribute) + b" " + text for attribute, text in zip(attrs, texts, strict=True)]
    if rendering.timestamps:
        texts = [stamp + b"Z " + text for stamp, text in zip(times, texts, strict=True)]
    if not rendering.framed:
        return b"".join(texts)
    headers: Iterable[bytes]
    if marks.count(b"out") == len(marks):
        headers = map(_HEADERS[b"out"].__getitem__, map(len, texts))
    else:
        headers = (_HEADERS[mark][len(text)] for mark, text in zip(marks, texts, strict=True))
    return b"".join(chain.from_iterable(zip(headers, texts, strict=True)))


def _attrs(raw: bytes | None) -> dict[str, str]:
    if not raw:
        return {}
    try:
        document: Any = json.loads(raw)
        return {str(key): str(value) for key, value in document.items()}
    except (ValueError, AttributeError, RecursionError):
        return {}


def _details(raw: bytes | None) -> bytes:
    """``key=value,…`` in order of keys, each quoted as in a query (moby daemon/logs httputils write_log_stream.go)."""
    return ",".join(f"{quote_plus(key)}={quote_plus(value)}" for key, value in sorted(_attrs(raw).items())).encode()

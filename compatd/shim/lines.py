"""Cutting one stream's output into what is to be log records, as moby daemon/logger/copier.go does."""

import os
import time
from collections.abc import Iterator

LINE_BYTES = 1 << 14
_STEP = LINE_BYTES // 2


class Partial:
    """Which part of a line that did not fit into one record. All parts bear the time of the first."""

    __slots__ = ("id", "last", "ordinal", "time_ns")

    def __init__(self, id_: str, ordinal: int, time_ns: int, *, last: bool) -> None:
        self.id = id_
        self.ordinal = ordinal  # from 1
        self.time_ns = time_ns
        self.last = last  # the line's end; one whose stream ends before it has none


class Lines:
    """One stream's. A piece is whole lines, many in one and each with its newline; or, with a ``Partial``, a part."""

    def __init__(self) -> None:
        self._rest = b""
        self._begun: Partial | None = None  # the line that the rest belongs to has been recorded up to here

    def feed(self, data: bytes) -> Iterator[tuple[bytes, Partial | None]]:
        """The pieces that are complete with ``data``."""
        if self._rest:
            data = self._rest + data
        cut = data.rfind(b"\n") + 1
        self._rest = data[cut:] if cut else data
        if cut:
            begin = 0
            if self._begun is not None:
                begin = data.index(b"\n") + 1
                yield from self._cut(data[:begin])
            lines = data[begin:cut] if begin or self._rest else data
            # A line too long leaves a step without a newline, wherever it starts.
            if all(lines.find(b"\n", at, at + _STEP) >= 0 for at in range(0, len(lines) - _STEP, _STEP)):
                if lines:
                    yield lines, None
            else:
                for line in lines.split(b"\n")[:-1]:
                    yield from self._cut(line + b"\n")
        while len(self._rest) >= LINE_BYTES:
            part = self._rest[:LINE_BYTES]
            self._rest = self._rest[LINE_BYTES:]
            yield part, self._part(last=False)

    def end(self) -> Iterator[tuple[bytes, Partial | None]]:
        """What was left when the stream ended."""
        rest, self._rest = self._rest, b""
        if rest:
            yield rest, self._part(last=False)
        self._begun = None

    def _cut(self, line: bytes) -> Iterator[tuple[bytes, Partial | None]]:
        while len(line) > LINE_BYTES:
            yield line[:LINE_BYTES], self._part(last=False)
            line = line[LINE_BYTES:]
        yield line, None if self._begun is None else self._part(last=True)

    def _part(self, *, last: bool) -> Partial:
        begun = self._begun
        if begun is None:
            part = Partial(os.urandom(32).hex(), 1, time.time_ns(), last=last)
        else:
            part = Partial(begun.id, begun.ordinal + 1, begun.time_ns, last=last)
        self._begun = None if last else part
        return part

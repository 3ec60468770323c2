"""The json-file driver's files: a record is a line (``logs.format``)."""

import os

from compatd.logs import format as lines_of_json
from compatd.logs.format import Lines

_FIRST_BLOCK_BYTES, _BLOCK_BYTES = 16 * 1024, 256 * 1024


class JsonFile:
    """Its ``logs.files.Codec``."""

    def whole_bytes(self, data: bytes) -> int:
        return data.rfind(b"\n") + 1

    def count(self, data: bytes) -> int:
        return data.count(b"\n")

    def skip(self, data: bytes, count: int) -> bytes:
        return data.split(b"\n", count)[count]

    def seek_tail(self, fd: int, count: int) -> tuple[int, int]:
        position = os.fstat(fd).st_size
        found = -1  # newlines seen; the one which ends the last line begins no line
        block_bytes = _FIRST_BLOCK_BYTES  # mostly all that is asked for
        while position > 0:
            start = max(0, position - block_bytes)
            block_bytes = _BLOCK_BYTES
            block = os.pread(fd, position - start, start)
            newlines = block.count(b"\n")
            if found + newlines >= count:
                index = len(block)
                while found < count:
                    index = block.rindex(b"\n", 0, index)
                    found += 1
                return start + index + 1, count
            found += newlines
            position = start
        return 0, found + 1

    def decode(self, data: bytes) -> Lines:
        return lines_of_json.decode(data)

"""Streams of bytes, as far as those who read archives and blobs need them."""

from typing import Protocol


class Readable(Protocol):
    """A byte stream: ``read`` gives at most that many bytes, none only at the end."""

    def read(self, size: int, /) -> bytes: ...


class Counted:
    """A stream that knows how much of it has been read."""

    def __init__(self, stream: Readable) -> None:
        self._stream = stream
        self.passed = 0

    def read(self, size: int, /) -> bytes:
        data = self._stream.read(size)
        self.passed += len(data)
        return data

"""What the hijacked and chunked streams look like, and the value that stands for a client's own socket."""

import json
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass

RAW_STREAM = "application/vnd.docker.raw-stream"
MULTIPLEXED_STREAM = "application/vnd.docker.multiplexed-stream"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientSocket:
    """A client's connection, taken from the HTTP server after its response head was sent.

    ``fd`` is non-blocking and belongs to the holder, who passes it on or closes it; nobody watches it in between.
    ``head`` is what the server had already read of the client's input: it comes before everything read from ``fd``.
    """

    fd: int
    head: bytes = b""

    def close(self) -> None:
        """Give the connection up."""
        os.close(self.fd)

    def duplicate(self) -> socket.socket:
        """The same connection as a socket of its own, for writing to it from here."""
        return socket.socket(fileno=os.dup(self.fd))


def frame(stream: int, data: bytes) -> bytes:
    """``data`` as one frame of a multiplexed stream: 1 is stdout, 2 stderr, 3 an error of the engine."""
    return bytes((stream, 0, 0, 0)) + len(data).to_bytes(4, "big") + data


class Frames:
    """Takes a multiplexed stream apart, however its bytes arrive."""

    _HEAD_BYTES = 8

    def __init__(self) -> None:
        self._pending = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """(stream, payload) of each frame that is complete now."""
        self._pending += data
        while len(self._pending) >= self._HEAD_BYTES:
            end = self._HEAD_BYTES + int.from_bytes(self._pending[4 : self._HEAD_BYTES], "big")
            if len(self._pending) < end:
                return
            payload = bytes(self._pending[self._HEAD_BYTES : end])
            stream = self._pending[0]
            del self._pending[:end]
            yield stream, payload


def wait_result(status_code: int, error: str = "") -> bytes:
    """The whole chunked body of a wait: the result, and the end."""
    document: dict[str, object] = {"StatusCode": status_code}
    if error:
        document["Error"] = {"Message": error}
    line = json.dumps(document, separators=(",", ":")).encode() + b"\n"
    return b"%x\r\n%s\r\n0\r\n\r\n" % (len(line), line)

"""A hijacked connection by hand, for what no client library does: odd heads, half-closed sockets, garbage."""

import re
import socket
import time
from typing import Any, Self

from tests.api import Api

UPGRADE = "Connection: Upgrade\r\nUpgrade: tcp\r\n"


class Hijacked:
    """One request that becomes a stream. A context manager."""

    def __init__(
        self,
        api: Api,
        path: str,
        /,
        *,
        body: bytes = b"",
        headers: str = UPGRADE,
        method: str = "POST",
        http: str = "1.1",
        ahead: bytes = b"",
        closes_input: bool = False,
        timeout_s: float = 20,
        **query: Any,
    ) -> None:
        """``ahead``: input in the same packet as the request; ``closes_input``: half-closed at once."""
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(timeout_s)
        self.sock.connect(api.path)
        kind = "Content-Type: application/json\r\n" if body else ""
        head = f"{method} {api.target(path, **query)} HTTP/{http}\r\nHost: docker\r\n{headers}{kind}"
        self.sock.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body + ahead)
        if closes_input:
            self.sock.shutdown(socket.SHUT_WR)
        self._rest = b""
        self.head = self._read_head()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def _read_head(self) -> str:
        while b"\r\n\r\n" not in self._rest:
            data = self.sock.recv(65_536)
            if not data:
                raise ConnectionError(f"closed after {self._rest!r}")
            self._rest += data
        head, _, self._rest = self._rest.partition(b"\r\n\r\n")
        return head.decode()

    @property
    def status(self) -> int:
        return int(self.head.split()[1])

    @property
    def content_type(self) -> str:
        match = re.search(r"(?mi)^content-type: *(.*?)\r?$", self.head)
        return match[1] if match else ""

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def close_input(self) -> None:
        self.sock.shutdown(socket.SHUT_WR)

    def read(self) -> bytes:
        """Everything until the end."""
        while data := self.sock.recv(1 << 20):
            self._rest += data
        rest, self._rest = self._rest, b""
        return rest

    def read_until(self, wanted: bytes) -> bytes:
        """Up to and including ``wanted``."""
        deadline = time.monotonic() + (self.sock.gettimeout() or 20)
        while wanted not in self._rest:
            data = self.sock.recv(1 << 20)
            if not data or time.monotonic() > deadline:
                raise ConnectionError(f"ended with {self._rest[-200:]!r}")
            self._rest += data
        end = self._rest.index(wanted) + len(wanted)
        part, self._rest = self._rest[:end], self._rest[end:]
        return part


def frames(data: bytes) -> dict[int, bytes]:
    """What each stream of a multiplexed one has said."""
    streams: dict[int, bytes] = {}
    while data:
        stream, length = data[0], int.from_bytes(data[4:8], "big")
        streams[stream] = streams.get(stream, b"") + data[8 : 8 + length]
        data = data[8 + length :]
    return streams

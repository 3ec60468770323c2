"""The Engine API by hand: one request at a time over the engine's socket, for tests and for setting scenes.

Every reply is held against the contract.
"""

import http.client
import json
import socket
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

from tests.contract import Contract

CONTRACT = Contract()  # remembers what this test process has asked
VERSION = "v1.51"


class Reply(NamedTuple):
    status: int
    headers: http.client.HTTPMessage
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    def ok(self) -> Any:
        """The decoded body of a success; the engine's message otherwise."""
        assert self.status < 400, f"{self.status}: {self.body.decode(errors='replace')}"
        return json.loads(self.body) if self.body and "json" in (self.headers["Content-Type"] or "") else self.body


class Connection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class Api:
    """Requests to the engine that listens on ``path``, in API version ``version`` (empty: the bare paths)."""

    def __init__(self, path: str, version: str = VERSION) -> None:
        self.path = path
        self.version = version

    def call(
        self,
        method: str,
        path: str,
        body: Any = None,
        /,
        *,
        headers: dict[str, str] | None = None,
        timeout_s: float = 60,
        **query: Any,
    ) -> Reply:
        """One request. ``body``: bytes as they are, anything else as JSON; ``query``: what is not text, too."""
        content: bytes | None = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        kind = {} if isinstance(body, bytes) or body is None else {"Content-Type": "application/json"}
        connection = Connection(self.path, timeout_s)
        target = self.target(path, **query)
        try:
            connection.request(method, target, content, {**kind, **(headers or {})})
            response = connection.getresponse()
            reply = Reply(response.status, response.headers, response.read())
        finally:
            connection.close()
        CONTRACT.check(method, target, reply.status, reply.headers["Content-Type"] or "", reply.body)
        return reply

    def open(self, method: str, path: str, body: Any = None, /, timeout_s: float = 60, **query: Any) -> Connection:
        """Send a request whose reply takes its time; the caller reads it and closes the connection."""
        connection = Connection(self.path, timeout_s)
        content = None if body is None else json.dumps(body).encode()
        connection.request(method, self.target(path, **query), content, {"Content-Type": "application/json"})
        return connection

    def target(self, path: str, /, **query: Any) -> str:
        words = {key: value if isinstance(value, str) else json.dumps(value) for key, value in query.items()}
        return (
            (f"/{self.version}" if self.version else "")
            + path
            + (f"?{urlencode(words, quote_via=quote)}" if words else "")
        )

    def get(self, path: str, /, **query: Any) -> Reply:
        return self.call("GET", path, **query)

    def post(self, path: str, body: Any = None, /, **query: Any) -> Reply:
        return self.call("POST", path, body, **query)

    def delete(self, path: str, /, **query: Any) -> Reply:
        return self.call("DELETE", path, **query)

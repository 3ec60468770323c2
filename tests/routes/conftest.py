"""The real HTTP server on a socket of its own, with made-up services behind it."""

import io
import json
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, cast

import aiohttp
import pytest

from compatd.routes.backends import Backends
from compatd.routes.server import serve
from tests.contract import Contract


class Fake:
    """A service that answers as it is told, and remembers what it was asked."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
        self._answers: dict[str, Callable[..., Any]] = {}

    def answer(self, name: str, value: Any) -> None:
        """``name(…)`` returns ``value``, raises it when it is an error, or what it returns when it can be called."""

        def reply(*args: Any, **kwargs: Any) -> Any:
            self.calls.append((name, args, kwargs))
            if isinstance(value, BaseException):
                raise value
            return value(*args, **kwargs) if callable(value) else value

        self._answers[name] = reply

    def later(self, name: str, value: Any) -> None:
        """The same for a coroutine; what a function returns is awaited when it can be."""
        self.answer(name, value)
        direct = self._answers[name]

        async def reply(*args: Any, **kwargs: Any) -> Any:
            result = direct(*args, **kwargs)
            return await result if hasattr(result, "__await__") else result

        self._answers[name] = reply

    def __getattr__(self, name: str) -> Callable[..., Any]:
        try:
            return self._answers[name]
        except KeyError:
            raise AttributeError(name) from None

    @property
    def last(self) -> Any:
        return self.calls[-1][1:]


class Services:
    """One fake per backend that is always there."""

    def __init__(self) -> None:
        for field in fields(Backends):
            if field.default is MISSING:
                setattr(self, field.name, Fake())

    def __getattr__(self, name: str) -> Fake:
        raise AttributeError(name)

    def backends(self) -> Backends:
        return Backends(**cast(Any, vars(self)))


class Client:
    """A client of the server, whose every exchange is held against the contract."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.contract = Contract()
        self._session = aiohttp.ClientSession(
            connector=aiohttp.UnixConnector(str(path)), auto_decompress=False, skip_auto_headers={"Content-Type"}
        )

    async def __call__(
        self,
        method: str,
        target: str,
        body: bytes | str | None = None,
        *,
        headers: dict[str, str] | None = None,
        check: bool = True,
    ) -> "Reply":
        data = io.BytesIO(body) if isinstance(body, bytes) else body
        async with self._session.request(
            method, f"http://engine{target}", allow_redirects=False, headers=headers, data=data
        ) as response:
            content = await response.read()
            reply = Reply(response.status, dict(response.headers), content)
        if check:
            self.contract.check(method, target, reply.status, reply.headers.get("Content-Type", ""), content)
        return reply

    async def close(self) -> None:
        await self._session.close()


class Reply:
    def __init__(self, status: int, headers: dict[str, str], body: bytes) -> None:
        self.status, self.headers, self.body = status, headers, body

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def message(self) -> str:
        return str(self.json()["message"])


@pytest.fixture
def services() -> Services:
    return Services()


@pytest.fixture
async def server(services: Services, tmp_path: Path) -> AsyncIterator[Path]:
    """The socket of a server with ``services`` behind it."""
    path = tmp_path / "s"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    running = await serve(services.backends(), [(listener, None)])
    yield path
    await running.close(timeout_s=0.2)


@pytest.fixture
async def client(server: Path) -> AsyncIterator[Client]:
    made = Client(server)
    yield made
    await made.close()

"""Who listens for a container's memory stops when it ends, whenever that is."""

import asyncio
import os
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from compatd.core.oom import OomKills
from compatd.runtime import oom

pytestmark = pytest.mark.unit


def container() -> Any:
    ended: asyncio.Future[object] = asyncio.get_running_loop().create_future()
    return SimpleNamespace(id="c" * 64, alive=True, ended=ended, record=SimpleNamespace(oom_killed=False))


def listen(one: Any, count: Callable[[], int]) -> int:
    """Have ``one`` listened for; the descriptor that the kernel would write to."""
    event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    async def run(function: object, _: object) -> int:
        found = event if function is oom.subscribe else count()
        await asyncio.sleep(0.01)
        return found

    place = SimpleNamespace(layout=SimpleNamespace(version=1))
    supervisor: Any = SimpleNamespace(on_changed=[])
    OomKills(
        supervisor=supervisor,
        preparation=SimpleNamespace(cgroup=lambda _: place),  # type: ignore[arg-type]
        workers=SimpleNamespace(run=run),  # type: ignore[arg-type]
        watches=SimpleNamespace(),  # type: ignore[arg-type]
    )
    supervisor.on_changed[0](one)
    return event


async def until_closed(event: int) -> None:
    async with asyncio.timeout(5):
        while True:
            try:
                os.fstat(event)
            except OSError:
                return
            await asyncio.sleep(0.005)


async def test_an_end_while_it_looks() -> None:
    one = container()

    def count() -> int:
        one.alive = False
        if not one.ended.done():
            one.ended.set_result(None)
        return 0

    await until_closed(listen(one, count))


async def test_an_end_while_it_sleeps() -> None:
    one = container()
    event = listen(one, lambda: 0)
    await asyncio.sleep(0.05)
    os.fstat(event)
    one.alive = False
    one.ended.set_result(None)
    await until_closed(event)

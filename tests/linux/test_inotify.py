"""Watches against the kernel's inotify."""

import asyncio
from pathlib import Path

import pytest

from compatd.linux.inotify import Watches

pytestmark = pytest.mark.unit


async def woken(wake: asyncio.Event) -> bool:
    try:
        async with asyncio.timeout(5):
            await wake.wait()
    except TimeoutError:
        return False
    wake.clear()
    return True


async def test_every_watcher_of_a_directory_is_woken(tmp_path: Path) -> None:
    watches = Watches()
    first, second = asyncio.Event(), asyncio.Event()
    with watches.watch(str(tmp_path), first):
        with watches.watch(str(tmp_path), second):
            (tmp_path / "a").touch()
            assert await woken(first)
            assert await woken(second)
        # One that leaves takes nothing from the other.
        (tmp_path / "a").write_bytes(b"x")
        assert await woken(first)
        assert not second.is_set()
    watches.close()


async def test_a_directory_can_be_watched_again(tmp_path: Path) -> None:
    watches = Watches()
    for name in ("a", "b"):
        wake = asyncio.Event()
        with watches.watch(str(tmp_path), wake):
            (tmp_path / name).touch()
            assert await woken(wake)
    watches.close()


async def test_a_missing_directory_is_an_error(tmp_path: Path) -> None:
    watches = Watches()
    with pytest.raises(FileNotFoundError), watches.watch(str(tmp_path / "none"), asyncio.Event()):
        pass
    watches.close()


async def test_close_wakes_who_waits(tmp_path: Path) -> None:
    watches = Watches()
    wake = asyncio.Event()
    with watches.watch(str(tmp_path), wake):
        watches.close()
        assert wake.is_set()

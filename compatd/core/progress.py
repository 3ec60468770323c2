"""Progress streams: work that reports as it goes, as an iterator that clients consume."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

from compatd import tasks

T = TypeVar("T")

_END = object()


async def stream(work: Callable[[Callable[[T], None]], Awaitable[object]], *, name: str) -> AsyncIterator[T]:
    """What ``work`` reports through the function it is given, which must be called on the event loop.

    Errors of the work are raised after everything it had reported. When the iterator is closed, the work is cancelled
    and has ended before that returns.
    """
    reported: asyncio.Queue[object] = asyncio.Queue()

    failure: list[Exception] = []

    async def run() -> None:
        try:
            await work(reported.put_nowait)
        except Exception as error:  # the consumer's to handle, after what had been reported
            failure.append(error)
        finally:
            reported.put_nowait(_END)

    task = tasks.spawn(run(), name=name)
    try:
        while (item := await reported.get()) is not _END:
            yield item  # type: ignore[misc]  # what the queue holds besides the end is T
        if failure:
            raise failure[0]
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait({task})

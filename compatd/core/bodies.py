"""Bytes between the event loop and worker threads: request bodies that blocking code reads, and the reverse.

Both directions are bounded: neither side gets more than a few pieces ahead of the other.
"""

import asyncio
import queue
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterator
from typing import TypeVar, cast

from compatd import tasks
from compatd.errors import Cancelled
from compatd.tasks import Workers

T = TypeVar("T")

_PIECES_AHEAD = 16
_BATCH_BYTES = 256 * 1024


class Feed:
    """The reading end, on a worker thread. ``read`` blocks until there is something."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._pieces: queue.SimpleQueue[bytes | BaseException | None] = queue.SimpleQueue()
        self._room = asyncio.Event()
        self._room.set()
        self._piece = b""
        self._taken = 0
        self._ended = False
        self._stopped = False

    async def put(self, piece: bytes) -> bool:
        """False once the reader has gone."""
        if self._stopped:
            return False
        self._pieces.put(piece)
        if self._pieces.qsize() >= _PIECES_AHEAD:
            self._room.clear()
            await self._room.wait()
        return not self._stopped

    def stop(self) -> None:
        """The reader, on its thread, will read no more."""
        self._stopped = True
        self._loop.call_soon_threadsafe(self._room.set)

    def finish(self, error: BaseException | None = None) -> None:
        self._pieces.put(error)

    def read(self, size: int, /) -> bytes:
        while not self._piece and not self._ended:
            piece = self._pieces.get()
            if self._pieces.qsize() < _PIECES_AHEAD // 2:
                self._loop.call_soon_threadsafe(self._room.set)
            if piece is None:
                self._ended = True
            elif isinstance(piece, BaseException):
                self._ended = True
                raise piece
            else:
                self._piece = piece
        if not self._taken and len(self._piece) <= size:
            whole, self._piece = self._piece, b""  # no copy, which would hold up the event loop
            return whole
        data = self._piece[self._taken : self._taken + size]
        self._taken += len(data)
        if self._taken == len(self._piece):
            self._piece, self._taken = b"", 0
        return data


async def consume(body: AsyncIterable[bytes], function: Callable[[Feed], T], workers: Workers) -> T:
    """Run ``function`` on a worker thread with a reader of ``body``; its result.

    When the await is cancelled, or the body ends with an error, the reader raises (``Cancelled``), so that the
    function cleans up, and this returns only after it has.
    """
    feed = Feed(asyncio.get_running_loop())

    failure: list[BaseException] = []

    def read() -> T | None:
        try:
            return function(feed)
        except BaseException as error:  # handed to the caller below
            failure.append(error)
            return None
        finally:
            feed.stop()

    work = tasks.spawn(workers.run(read), name="consume body")
    try:
        async for piece in body:
            if not await feed.put(piece):
                break
        feed.finish()
        result = await asyncio.shield(work)
    except BaseException:
        feed.finish(Cancelled("the request was given up"))
        await asyncio.wait({work})
        raise
    if failure:
        raise failure[0]
    return cast(T, result)


async def acquire(function: Callable[[], T], release: Callable[[T], object], workers: Workers) -> T:
    """Run ``function`` on a worker thread; its result, released there if the await is cancelled meanwhile."""
    work = tasks.spawn(_attempt(function, workers), name="acquire")
    try:
        result, error = await asyncio.shield(work)
    except asyncio.CancelledError:
        await asyncio.wait({work})
        result, error = work.result()
        if error is None:
            await workers.run(release, cast(T, result))
        raise
    if error is not None:
        raise error
    return cast(T, result)


async def produce(start: Callable[[], Iterator[bytes]], workers: Workers) -> AsyncIterator[bytes]:
    """Pieces of what ``start`` (called on a worker thread) gives, gathered into large ones. Closed with the caller."""
    source = await acquire(start, _close, workers)

    def gather() -> bytes:
        batch: list[bytes] = []
        size = 0
        for piece in source:
            batch.append(piece)
            size += len(piece)
            if size >= _BATCH_BYTES:
                break
        return b"".join(batch) if len(batch) != 1 else batch[0]

    reading: asyncio.Task[tuple[bytes | None, Exception | None]] | None = None

    async def close() -> None:
        if reading is not None:  # the client has gone while a thread reads
            await asyncio.wait({reading})
        await workers.run(_close, source)

    try:
        while True:
            reading = tasks.spawn(_attempt(gather, workers), name="produce body")
            piece, error = await asyncio.shield(reading)
            if error is not None:
                raise error
            if not piece:
                break
            yield piece
    finally:
        await asyncio.shield(tasks.spawn(close(), name="close body"))


def _close(source: Iterator[bytes]) -> None:
    close = getattr(source, "close", None)
    if close is not None:
        close()


async def _attempt(function: Callable[[], T], workers: Workers) -> tuple[T | None, Exception | None]:
    try:
        return await workers.run(function), None
    except Exception as error:  # handed to who waits
        return None, error

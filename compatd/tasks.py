"""Ownership of background work: named tasks, and the bounded executor for work that blocks.

``asyncio.create_task`` is banned by lint everywhere else: a task without an owner is lost on error
and may be collected while it runs.
"""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

log = logging.getLogger(__name__)

_owned: set[asyncio.Task[Any]] = set()


def spawn(work: Coroutine[Any, Any, T], *, name: str) -> asyncio.Task[T]:
    """Run ``work`` in the background. The task is kept alive here; its failure is logged under ``name``."""
    task = asyncio.get_running_loop().create_task(work, name=name)
    _owned.add(task)
    task.add_done_callback(_release)
    return task


def detach(work: Coroutine[Any, Any, object], *, name: str) -> None:
    """``spawn`` for work that nobody waits for."""
    spawn(work, name=name).add_done_callback(lambda _: None)


def _release(task: asyncio.Task[Any]) -> None:
    _owned.discard(task)
    if not task.cancelled() and (error := task.exception()) is not None:
        log.error("task %s failed", task.get_name(), exc_info=error)


async def cancel_all(*, timeout_s: float) -> None:
    """Cancel every spawned task and wait for them to end, at most ``timeout_s`` seconds."""
    pending = {task for task in _owned if task is not asyncio.current_task()}
    for task in pending:
        task.cancel()
    if pending:
        await asyncio.wait(pending, timeout=timeout_s)


class Workers:
    """The bounded executor for blocking work: files, tar, hashes, mounts. Owned by ``app``.

    Threads suffice where the work is system calls or releases the interpreter lock (hashing,
    compression); what holds the lock for long must do so in slices.
    """

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPoolExecutor(max_workers=threads, thread_name_prefix="worker")

    async def run(self, function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run ``function`` on a worker thread. Cancelling the await does not stop the thread."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, lambda: function(*args, **kwargs))

    def close(self) -> None:
        """Refuse new work and wait for the running calls."""
        self._pool.shutdown(wait=True, cancel_futures=True)

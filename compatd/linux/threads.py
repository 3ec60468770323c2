"""Threads for work that changes the calling thread for good: its namespaces, its root.

One of a pool's could not be given back afterwards.
"""

import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def on_thread(work: Callable[[], T], *, name: str) -> T:
    """What ``work`` returns or raises, on a thread of its own; the caller's waits for it."""
    result: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            result.append(work())
        except BaseException as error:  # the caller's to handle
            failure.append(error)

    thread = threading.Thread(target=run, name=name)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return result[0]

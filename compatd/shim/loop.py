"""The shim's event loop: readiness of descriptors, and a few timers, on one thread."""

import select
import time
from collections.abc import Callable

IN = select.EPOLLIN
OUT = select.EPOLLOUT
HUP = select.EPOLLHUP | select.EPOLLERR  # reported whether asked for or not

Handler = Callable[[int], None]  # gets the events


class Timer:
    __slots__ = ("callback", "due_s")

    def __init__(self, due_s: float, callback: Callable[[], None]) -> None:
        self.due_s = due_s
        self.callback = callback


class Loop:
    """Level-triggered. Handlers never block; whoever registers a descriptor forgets it before closing it."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, Handler] = {}
        self._timers: list[Timer] = []
        self._forgotten: set[int] = set()  # in this turn: their numbers may already mean something else

    def watch(self, fd: int, events: int, handler: Handler) -> None:
        """Call ``handler`` when ``events`` (or HUP) are there; again with other events for the same descriptor."""
        if fd in self._handlers:
            self._epoll.modify(fd, events)
        else:
            self._epoll.register(fd, events)
        self._handlers[fd] = handler

    def forget(self, fd: int) -> None:
        """Stop watching. Fine for one that is not watched."""
        if self._handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)
            self._forgotten.add(fd)

    def close(self) -> None:
        self._epoll.close()

    def later(self, delay_s: float, callback: Callable[[], None]) -> Timer:
        timer = Timer(time.monotonic() + delay_s, callback)
        self._timers.append(timer)
        return timer

    def cancel(self, timer: Timer) -> None:
        if timer in self._timers:
            self._timers.remove(timer)

    def turn(self) -> None:
        """Wait for something to happen, and handle all of it."""
        ready = self._epoll.poll(self._patience_s())
        self._forgotten.clear()
        for fd, events in ready:
            if fd not in self._forgotten and (handler := self._handlers.get(fd)) is not None:
                handler(events)
        if self._timers:
            now = time.monotonic()
            for timer in [timer for timer in self._timers if timer.due_s <= now]:
                if timer in self._timers:
                    self._timers.remove(timer)
                    timer.callback()

    def _patience_s(self) -> float | None:
        if not self._timers:
            return None
        return max(0.0, min(timer.due_s for timer in self._timers) - time.monotonic())

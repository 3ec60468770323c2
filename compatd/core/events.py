"""What has happened, told to whoever listens: the events stream.

An event is published after the change it tells of is durable. The last 256 are kept for ``since`` (as moby
daemon/events keeps them); the history is not kept across restarts of the engine.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field

from compatd.core import filters as filtering
from compatd.core.filters import Filters
from compatd.errors import Unavailable

HISTORY = 256
# A listener that is this far behind is cut off rather than allowed to hold the engine's memory.
BACKLOG = 65_536

# Of objects that events are about; unlike other operations, this one takes no notice of filters it does not know.
OBJECT_FILTERS = (
    "config",
    "container",
    "daemon",
    "network",
    "node",
    "plugin",
    "secret",
    "service",
    "volume",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One event; ``time_ns`` is the wall clock."""

    type: str
    action: str
    actor_id: str
    attributes: Mapping[str, str] = field(default_factory=dict[str, str])
    time_ns: int


class Events:
    """The history and the listeners."""

    def __init__(self) -> None:
        self._history: deque[Event] = deque(maxlen=HISTORY)
        self._listeners: set[_Listener] = set()
        self._last_ns = 0

    @property
    def listeners(self) -> int:
        """How many streams are open."""
        return len(self._listeners)

    def publish(self, type: str, action: str, actor_id: str, attributes: Mapping[str, str] | None = None) -> None:
        """Tell everyone. Never blocks; times strictly increase, so that ``since`` can tell events apart."""
        self._last_ns = max(time.time_ns(), self._last_ns + 1)
        event = Event(type=type, action=action, actor_id=actor_id, attributes=attributes or {}, time_ns=self._last_ns)
        self._history.append(event)
        for listener in self._listeners:
            listener.offer(event)

    def listen(
        self, *, since_ns: int | None = None, until_ns: int | None = None, filters: Filters | None = None
    ) -> AsyncIterator[Event]:
        """Matching events from ``since_ns`` (or from now) on, until ``until_ns`` or for ever.

        Listening begins with the call, not with the first ``anext``: nothing published in between is missed.
        """
        wanted = filters or {}
        listener = _Listener()
        past = [event for event in self._history if since_ns is not None and event.time_ns >= since_ns]
        ended = until_ns is not None and until_ns <= time.time_ns()
        if not ended:
            self._listeners.add(listener)
        return self._stream(past, listener, until_ns, ended, wanted)

    async def _stream(
        self, past: list[Event], listener: "_Listener", until_ns: int | None, ended: bool, wanted: Filters
    ) -> AsyncIterator[Event]:
        try:
            for event in past:
                if (until_ns is None or event.time_ns <= until_ns) and matches(event, wanted):
                    yield event
            if ended:
                return
            async for event in listener.events(until_ns):
                if matches(event, wanted):
                    yield event
        finally:
            self._listeners.discard(listener)


class _Listener:
    def __init__(self) -> None:
        self._queue: deque[Event] = deque()
        self._wake = asyncio.Event()

    def offer(self, event: Event) -> None:
        if len(self._queue) <= BACKLOG:
            self._queue.append(event)
        self._wake.set()

    async def events(self, until_ns: int | None) -> AsyncIterator[Event]:
        while True:
            if len(self._queue) > BACKLOG:
                raise Unavailable("the events stream was not read fast enough")
            while self._queue:
                yield self._queue.popleft()
            self._wake.clear()
            try:
                timeout = None if until_ns is None else max(0.0, (until_ns - time.time_ns()) / 1e9)
                async with asyncio.timeout(timeout):
                    await self._wake.wait()
            except TimeoutError:
                return


def matches(event: Event, wanted: Filters) -> bool:
    """Whether ``event`` passes every filter (moby daemon/events/filter.go)."""
    return all(_passes(event, key, values) for key, values in wanted.items() if values)


def _passes(event: Event, key: str, wanted: Sequence[str]) -> bool:
    if key == "event":
        # exec_start: sh and health_status: healthy also match by the part before the colon.
        return event.action in wanted or event.action.partition(":")[0] in wanted
    if key == "type":
        return event.type in wanted
    if key == "scope":
        return "local" in wanted
    if key == "label":
        return filtering.matches_labels(wanted, event.attributes)
    if key == "image":
        names = {event.actor_id, event.attributes.get("name", "")} if event.type == "image" else set[str]()
        image = event.attributes.get("image", "")
        names |= {image, image.partition(":")[0]}
        names |= {name.rpartition(":")[0] for name in list(names) if ":" in name}
        return bool(names & set(wanted))
    if key not in OBJECT_FILTERS:
        return True
    if event.type != key:
        return False
    name = event.attributes.get("name", "")
    return any(event.actor_id == value or name == value or event.actor_id.startswith(value) for value in wanted)

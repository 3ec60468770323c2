"""The states of a container and what moves it between them.

Docker's ``Running``, ``Paused``, ``Restarting`` and ``Dead`` flags are derived from the state in the wire mapping
and never stored. Everything that affects the state machine lives here.

              start             exited            removed
    created ─────────▶ running ─────────▶ exited ─────────▶ (gone)
       │                │  ▲  ▲             │ │
       │          pause │  │  │ start       │ └─ start ─▶ running
       │                ▼  │ unpause        ▼
       │              paused              removing ─ failed ─▶ dead
       └─ remove ─▶ removing
    restarting: exited, and the restart policy will start it again.
"""

from enum import StrEnum

from compatd.errors import Conflict


class State(StrEnum):
    """What a container is doing; the values are Docker's ``State.Status``."""

    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    RESTARTING = "restarting"
    EXITED = "exited"
    REMOVING = "removing"
    DEAD = "dead"


class Event(StrEnum):
    """What happens to a container."""

    START = "start"
    PAUSE = "pause"
    UNPAUSE = "unpause"
    EXIT = "exit"
    WILL_RESTART = "will restart"
    GIVE_UP = "give up"
    REMOVE = "remove"
    REMOVE_FAILED = "remove failed"


_MOVES: dict[tuple[State, Event], State] = {
    (State.CREATED, Event.START): State.RUNNING,
    (State.EXITED, Event.START): State.RUNNING,
    (State.RESTARTING, Event.START): State.RUNNING,
    (State.RUNNING, Event.PAUSE): State.PAUSED,
    (State.PAUSED, Event.UNPAUSE): State.RUNNING,
    (State.RUNNING, Event.EXIT): State.EXITED,
    (State.PAUSED, Event.EXIT): State.EXITED,
    (State.RUNNING, Event.WILL_RESTART): State.RESTARTING,
    (State.PAUSED, Event.WILL_RESTART): State.RESTARTING,
    (State.RESTARTING, Event.GIVE_UP): State.EXITED,
    (State.CREATED, Event.REMOVE): State.REMOVING,
    (State.EXITED, Event.REMOVE): State.REMOVING,
    (State.DEAD, Event.REMOVE): State.REMOVING,
    (State.REMOVING, Event.REMOVE): State.REMOVING,
    (State.REMOVING, Event.REMOVE_FAILED): State.DEAD,
}

ALIVE = frozenset({State.RUNNING, State.PAUSED})


def advance(state: State, event: Event) -> State:
    """The state after ``event``. ``Conflict`` when that cannot happen in ``state``: callers check first, with
    Docker's words for the case; this is the last line of defence."""
    try:
        return _MOVES[state, event]
    except KeyError:
        raise Conflict(f"a container that is {state} cannot {event}") from None

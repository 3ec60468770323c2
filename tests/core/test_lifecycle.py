"""The state machine: every move that is drawn exists, and no other."""

import pytest

from compatd.core.lifecycle import ALIVE, Event, State, advance
from compatd.errors import Conflict

pytestmark = pytest.mark.unit

DRAWN = {
    ("created", "start"): "running",
    ("exited", "start"): "running",
    ("restarting", "start"): "running",
    ("running", "pause"): "paused",
    ("paused", "unpause"): "running",
    ("running", "exit"): "exited",
    ("paused", "exit"): "exited",
    ("running", "will restart"): "restarting",
    ("paused", "will restart"): "restarting",
    ("restarting", "give up"): "exited",
    ("created", "remove"): "removing",
    ("exited", "remove"): "removing",
    ("dead", "remove"): "removing",
    ("removing", "remove"): "removing",
    ("removing", "remove failed"): "dead",
}


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("event", Event)
def test_moves(state: State, event: Event) -> None:
    expected = DRAWN.get((state.value, event.value))
    if expected is None:
        with pytest.raises(Conflict):
            advance(state, event)
    else:
        assert advance(state, event) == expected


def test_alive_containers_are_those_with_a_process() -> None:
    assert {State.RUNNING, State.PAUSED} == ALIVE

"""The events stream: in order, filtered, from the past and the present, none lost to who reads."""

import asyncio
import time

import pytest

from compatd.core.events import BACKLOG, HISTORY, Events
from compatd.errors import Unavailable

pytestmark = pytest.mark.unit


async def test_listening_begins_with_the_call() -> None:
    events = Events()
    stream = events.listen()
    events.publish("container", "create", "abc", {"name": "web"})
    assert (await anext(stream)).action == "create"
    assert events.listeners == 1


async def test_past_and_until() -> None:
    events = Events()
    for number in range(HISTORY + 10):
        events.publish("container", f"e{number}", "abc")
    seen = [event.action async for event in events.listen(since_ns=0, until_ns=time.time_ns())]
    assert seen == [f"e{number}" for number in range(10, HISTORY + 10)]
    assert events.listeners == 0


async def test_until_in_the_future_ends_by_itself() -> None:
    events = Events()
    stream = events.listen(until_ns=time.time_ns() + 50_000_000)
    events.publish("container", "start", "abc")
    async with asyncio.timeout(5):
        assert [event.action async for event in stream] == ["start"]


async def test_filters() -> None:
    events = Events()
    wanted = events.listen(
        since_ns=0, until_ns=time.time_ns() + 10**9, filters={"container": ["web"], "event": ["die"]}
    )
    events.publish("container", "start", "abc", {"name": "web"})
    events.publish("container", "die", "abc", {"name": "web", "exitCode": "3"})
    events.publish("container", "die", "def", {"name": "db"})
    events.publish("image", "die", "abc")
    event = await anext(wanted)
    assert (event.actor_id, event.attributes["exitCode"]) == ("abc", "3")


async def test_exec_events_match_without_their_command() -> None:
    events = Events()
    stream = events.listen(filters={"event": ["exec_start"]})
    events.publish("container", "exec_start: sh -c ls", "abc")
    assert (await anext(stream)).action == "exec_start: sh -c ls"


async def test_unknown_filters_match_everything() -> None:
    events = Events()
    events.publish("container", "start", "abc")
    found = [event.action async for event in events.listen(since_ns=0, until_ns=time.time_ns(), filters={"no": ["x"]})]
    assert found == ["start"]


async def test_times_increase_strictly() -> None:
    events = Events()
    for _ in range(100):
        events.publish("container", "tick", "abc")
    times = [event.time_ns async for event in events.listen(since_ns=0, until_ns=time.time_ns())]
    assert times == sorted(set(times))


async def test_a_listener_that_does_not_read_is_cut_off_and_harms_nobody() -> None:
    events = Events()
    slow, quick = events.listen(), events.listen()
    for number in range(BACKLOG + 2):
        events.publish("container", str(number), "abc")
        if number < 10:
            assert (await anext(quick)).action == str(number)
    with pytest.raises(Unavailable):
        await anext(slow)

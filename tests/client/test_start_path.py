"""Where the time of a start goes: run with ``-s``, or read the captured table. Loose bounds keep it from rotting.

tests/run tests/client/test_start_path.py -s
"""

import statistics
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest

from tests.api import Api
from tests.engine import Engine

pytestmark = [pytest.mark.root, pytest.mark.parity]

ROUNDS = 20


def timed(times: dict[str, list[float]], name: str, function: Callable[[], Any]) -> Any:
    begin = time.perf_counter()
    result = function()
    times.setdefault(name, []).append((time.perf_counter() - begin) * 1000)
    return result


def one_life(api: Api, image: str, network: str, times: dict[str, list[float]]) -> None:
    """Create, start, wait, remove, as ``docker run --rm`` does; the parts in milliseconds."""
    begin = time.perf_counter()
    body = {"Image": image, "Cmd": ["true"], "HostConfig": {"NetworkMode": network}}
    container = timed(times, "create", lambda: api.post("/containers/create", body).ok()["Id"])
    asked_ns = time.time_ns()
    timed(times, "start: until the reply", lambda: api.post(f"/containers/{container}/start").ok())
    timed(times, "wait: the program and its exit", lambda: api.post(f"/containers/{container}/wait").ok())
    times.setdefault("all but remove", []).append((time.perf_counter() - begin) * 1000)
    state = api.get(f"/containers/{container}/json").ok()["State"]
    started, finished = (nanoseconds(state[key]) for key in ("StartedAt", "FinishedAt"))
    times.setdefault("  until State.StartedAt", []).append((started - asked_ns) / 1e6)
    times.setdefault("  from there to State.FinishedAt", []).append((finished - started) / 1e6)
    timed(times, "remove", lambda: api.delete(f"/containers/{container}").ok())


def nanoseconds(stamp: str) -> int:
    """Nanoseconds since the epoch of RFC 3339 text."""
    whole, _, fraction = stamp.rstrip("Z").partition(".")
    return int(datetime.fromisoformat(whole + "+00:00").timestamp()) * 10**9 + int(fraction.ljust(9, "0"))


@pytest.mark.parametrize("network", ["none", "bridge"])
def test_start_path(engine: Engine, busybox: str, network: str) -> None:
    times: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        one_life(engine.api, busybox, network, times)
    print(f"\nstart path, network {network}, {ROUNDS} rounds{'':14}median     p90   (ms)")
    for name, values in times.items():
        values.sort()
        print(f"  {name:44}{statistics.median(values):8.1f}{values[int(len(values) * 0.9)]:8.1f}")
    assert statistics.median(times["all but remove"]) < 1000

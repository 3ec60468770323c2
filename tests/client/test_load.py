"""Many containers: what stays quick, and what comes back to where it was.

``COMPATD_LOAD`` multiplies the numbers (10: 200 containers running, 1,000 defined, 1,000 cycles).
"""

import concurrent.futures
import contextlib
import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.api import Api
from tests.engine import OwnEngine
from tests.registry import wait_until

pytestmark = [pytest.mark.root]

LOAD = int(os.environ.get("COMPATD_LOAD", "1"))
RUNNING, DEFINED, CYCLES = 20 * LOAD, 100 * LOAD, 100 * LOAD
BUSYBOX = "busybox:latest"


def create(api: Api, *command: str, network: str = "none", **options: Any) -> str:
    body = {"Image": BUSYBOX, "Cmd": list(command), "HostConfig": {"NetworkMode": network}, **options}
    return str(api.post("/containers/create", body).ok()["Id"])


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def memory_kib(pid: int) -> int:
    line = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS"))
    return int(line.split()[1])


def link(path: str) -> str:
    """What a descriptor is, but for its number."""
    try:
        return re.sub(r":\[[0-9]+\]$", "", os.readlink(path))
    except FileNotFoundError:  # closed meanwhile
        return ""


def quickest_s(work: Callable[[], object], rounds: int = 5) -> float:
    times: list[float] = []
    for _ in range(rounds):
        begun = time.monotonic()
        work()
        times.append(time.monotonic() - begun)
    return min(times)


@pytest.fixture
def engine(own_engine: OwnEngine) -> Iterator[OwnEngine]:
    own_engine.start()
    own_engine.load(BUSYBOX)
    yield own_engine
    # An engine that ends now would leave to the next what is slow about a removal.
    wait_until(lambda: not os.listdir(own_engine.data_root / "containers"), "the containers' files have gone")


def remainders(engine: OwnEngine) -> dict[str, Any]:
    """What must not grow, in numbers."""
    (spawner, *_) = children(engine.pid)
    descriptors = [link(f"/proc/{engine.pid}/fd/{number}") for number in os.listdir(f"/proc/{engine.pid}/fd")]
    return {
        "descriptors": sorted(descriptors),
        "spawner's descriptors": len(os.listdir(f"/proc/{spawner}/fd")),
        "mounts": sum(
            str(engine.folder) in line for line in Path(f"/proc/{engine.pid}/mountinfo").read_text().splitlines()
        ),
        "cgroups": len(engine.cgroups()),
        "links": engine.network.links(),
        "containers": os.listdir(engine.data_root / "containers"),
        "states": os.listdir(engine.exec_root / "containers"),
    }


@pytest.mark.timeout(60 + 60 * LOAD)
def test_cycles_leave_nothing(engine: OwnEngine) -> None:
    api = engine.api

    def cycle(number: int) -> None:
        container = create(api, "echo", "word", network="bridge" if number % 4 == 0 else "none", Volumes={"/v": {}})
        api.post(f"/containers/{container}/start").ok()
        api.post(f"/containers/{container}/wait").ok()
        api.get(f"/containers/{container}/logs", stdout="1")
        api.delete(f"/containers/{container}", v="1").ok()

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(cycle, range(20)))  # what is made once is made here
        settled: list[dict[str, Any]] = []

        def is_settled() -> bool:
            settled.append(remainders(engine))
            return not settled[-1]["containers"] and len(settled) > 1 and settled[-1] == settled[-2]

        wait_until(is_settled, "the first ones have gone")
        memory = memory_kib(engine.pid), memory_kib(children(engine.pid)[0])
        list(pool.map(cycle, range(CYCLES)))
    with contextlib.suppress(TimeoutError):
        wait_until(lambda: remainders(engine) == settled[-1], "everything is as before")
    assert remainders(engine) == settled[-1]
    grown = memory_kib(engine.pid) - memory[0], memory_kib(children(engine.pid)[0]) - memory[1]
    # Of the engine: the history of events, and what the allocator keeps of them and of the rest.
    assert grown[0] < 6_000
    assert grown[1] < 500


@pytest.mark.timeout(60 + 60 * LOAD)
def test_many_running_and_defined(engine: OwnEngine) -> None:
    api = engine.api
    begun = time.monotonic()
    api.get("/containers/json", all="1").ok()
    ids = [create(api, "sleep", "10000", Labels={"number": str(number)}) for number in range(DEFINED)]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda one: api.post(f"/containers/{one}/start").ok(), ids[:RUNNING]))
    assert len(api.get("/containers/json").ok()) == RUNNING
    each_s = (time.monotonic() - begun) / DEFINED
    # Far from what it takes, and far from what anything quadratic would.
    for name, work, at_most_s in (
        ("list", lambda: api.get("/containers/json", all="1").ok(), 0.001 * DEFINED),
        ("inspect", lambda: api.get(f"/containers/{ids[0]}/json").ok(), 0.1),
        ("stats", lambda: api.get(f"/containers/{ids[0]}/stats", stream="0", **{"one-shot": "1"}).ok(), 0.2),
        ("filter", lambda: api.get("/containers/json", filters={"label": ["number=1"]}).ok(), 0.1 + 0.0005 * DEFINED),
        ("create", lambda: api.delete(f"/containers/{create(api, 'true')}").ok(), max(0.3, 10 * each_s)),
        ("ping", lambda: api.get("/_ping"), 0.05),
    ):
        assert quickest_s(work) < at_most_s, name
    # All of them end at once, while someone listens: nobody's end is lost.
    events: list[str] = []
    listening = threading.Thread(target=listen, args=(engine, RUNNING, events))
    listening.start()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda one: api.post(f"/containers/{one}/kill").ok(), ids[:RUNNING]))
    listening.join(60)
    assert sorted(events) == sorted(ids[:RUNNING])
    # Starting the engine again does not take longer for having them.
    assert engine.stop() == 0
    begun = time.monotonic()
    engine.start()
    assert time.monotonic() - begun < 5 + 0.01 * DEFINED
    assert len(api.get("/containers/json", all="1").ok()) == DEFINED
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda one: api.delete(f"/containers/{one}", force="1").ok(), ids))


def listen(engine: OwnEngine, count: int, ended: list[str]) -> None:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(60)
        sock.connect(engine.socket)
        target = engine.api.target("/events", since="1", filters={"event": ["die"]})
        sock.sendall(f"GET {target} HTTP/1.0\r\nHost: docker\r\n\r\n".encode())
        with sock.makefile() as lines:
            for line in lines:
                if line.startswith("{"):
                    ended.append(json.loads(line)["Actor"]["ID"])
                    if len(ended) == count:
                        return


def test_twenty_started_at_once(engine: OwnEngine) -> None:
    api = engine.api
    ids = [create(api, "sleep", "10000") for _ in range(20)]
    with concurrent.futures.ThreadPoolExecutor(20) as pool:
        replies = list(pool.map(lambda one: api.post(f"/containers/{one}/start").status, ids))
        assert replies == [204] * 20
        assert {c["State"] for c in api.get("/containers/json").ok()} == {"running"}
        pids = {api.get(f"/containers/{one}/json").ok()["State"]["Pid"] for one in ids}
        assert len(pids) == 20
        list(pool.map(lambda one: api.delete(f"/containers/{one}", force="1").ok(), ids))

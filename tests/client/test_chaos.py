"""Crash-only: the daemon, the spawner, a shim or the whole machine is killed at a random moment of whatever is going
on; afterwards nothing is lost, doubled or left over.

Each seed is a run of rounds. In a round some clients do random things to containers of their own, something is killed
meanwhile, and then what the engine says and what is on the machine is held against what the clients were told. Many
seeds: ``COMPATD_CHAOS_SEEDS=200 pytest tests/client/test_chaos.py`` (or ``17,4``: seed 17 and those up to 4 after it).
"""

import contextlib
import http.client
import os
import random
import re
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.api import Api
from tests.conftest import have
from tests.engine import OwnEngine
from tests.registry import wait_until

pytestmark = pytest.mark.root

IMAGE = "busybox:latest"
ROUNDS = 5
CLIENTS = 2
SETTLE_S = 20
SPARE = 3  # descriptors of what is under way
ENDED = ("created", "exited")


def _seeds() -> list[int]:
    first, _, count = os.environ.get("COMPATD_CHAOS_SEEDS", "2").rpartition(",")
    return list(range(int(first or 0), int(first or 0) + int(count)))


@dataclass
class Expected:
    """What a client knows of one of its containers; ``None`` and further values are what it cannot know."""

    id: str | None = None
    there: bool | None = None
    running: bool | None = False
    restarts: bool = False  # by policy, so that nobody knows whether it runs
    limits: set[int | None] = field(default_factory=lambda: {None})
    pid: int = 0  # of a run that must go on


class Client:
    """Does random things, one after the other, until told to stop or cut off."""

    def __init__(self, api: Api, name: str, rng: random.Random, known: dict[str, Expected]) -> None:
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.api, self.prefix, self.rng, self.known = api, name, rng, known
        self.over = threading.Event()
        self.done: list[str] = []
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            while not self.over.is_set():
                self.act()
        except (OSError, http.client.HTTPException):
            self.done.append("cut off")
        except BaseException as error:
            self.failure = error

    def act(self) -> None:
        actions: list[Callable[[str, Expected], None]] = [
            self.create,
            self.start,
            self.start,
            self.execute,
            self.pause,
            self.update,
            self.stop,
            self.restart,
            self.remove,
            self.rename,
        ]
        name = f"{self.prefix}-{self.rng.randrange(3)}"
        self.rng.choice(actions)(name, self.known.setdefault(name, Expected(there=False)))

    def ask(self, method: str, path: str, body: Any = None, **query: Any) -> int:
        self.done.append(f"{method} {path}")
        reply = self.api.call(method, path, body, timeout_s=40, **query)
        self.done[-1] += f" {reply.status}"
        # Between a daemon that dies and the next there is no reply at all; one that lives never fails like this, but
        # for what was begun with a spawner or shim that was killed.
        if reply.status >= 500:
            self.done[-1] += f" {reply.body.decode()}"
        return reply.status

    def create(self, name: str, expected: Expected) -> None:
        if expected.there is not False:
            return
        policy = self.rng.choice(("no", "no", "no", "always", "on-failure"))
        expected.there, expected.running, expected.pid = None, False, 0
        expected.restarts, expected.limits = policy != "no", {None}
        host_config: dict[str, Any] = {
            "NetworkMode": self.rng.choice(("none", "bridge")),
            "RestartPolicy": {"Name": policy},
            "AutoRemove": policy == "no" and self.rng.random() < 0.2,
        }
        if host_config["NetworkMode"] == "bridge" and self.rng.random() < 0.5:
            host_config["PortBindings"] = {"80/tcp": [{"HostPort": ""}]}
        if self.rng.random() < 0.3:
            host_config["Binds"] = ["/data"]
        body = {"Image": IMAGE, "Cmd": ["sleep", "1000"], "HostConfig": host_config}
        if self.rng.random() < 0.3:
            body["Healthcheck"] = {"Test": ["CMD", "sleep", "0.05"], "Interval": 20_000_000}
        if host_config["AutoRemove"]:
            expected.restarts = True  # not that, but as unsure: it goes when it ends
        if self.ask("POST", "/containers/create", body, name=name) == 201:
            expected.there = None if host_config["AutoRemove"] else True

    def start(self, name: str, expected: Expected) -> None:
        before, expected.running = expected.running, None
        status = self.ask("POST", f"/containers/{name}/start")
        expected.running = True if status in (204, 304) else None if status >= 500 else before
        self.remember_pid(name, expected)

    def remember_pid(self, name: str, expected: Expected) -> None:
        expected.pid = 0
        if expected.running and not expected.restarts:
            reply = self.api.get(f"/containers/{name}/json")
            if reply.status == 200:
                expected.pid = reply.json()["State"]["Pid"]

    def execute(self, name: str, expected: Expected) -> None:
        self.done.append(f"exec {name}")
        reply = self.api.post(f"/containers/{name}/exec", {"Cmd": ["sh", "-c", "echo x; sleep 0.05"]})
        if reply.status == 201:
            with contextlib.closing(self.api.open("POST", f"/exec/{reply.json()['Id']}/start", {})) as connection:
                self.done[-1] += f" {connection.getresponse().read()!r}"

    def pause(self, name: str, expected: Expected) -> None:
        self.ask("POST", f"/containers/{name}/{self.rng.choice(('pause', 'unpause'))}")

    def update(self, name: str, expected: Expected) -> None:
        limit = self.rng.randrange(100, 200)
        before = set(expected.limits)
        expected.limits.add(limit)
        status = self.ask("POST", f"/containers/{name}/update", {"PidsLimit": limit})
        expected.limits = {limit} if status == 200 else before if status < 500 else expected.limits

    def stop(self, name: str, expected: Expected) -> None:
        before, expected.running, expected.pid = expected.running, None, 0
        how = self.rng.choice(("stop", "kill"))
        status = self.ask("POST", f"/containers/{name}/{how}", **({"t": "0"} if how == "stop" else {}))
        expected.running = False if status in (204, 304) and not expected.restarts else None
        if status in (404, 409):
            expected.running = before

    def restart(self, name: str, expected: Expected) -> None:
        before, expected.running, expected.pid = expected.running, None, 0
        status = self.ask("POST", f"/containers/{name}/restart", t="0")
        expected.running = True if status == 204 else before if status == 404 else None
        self.remember_pid(name, expected)

    def remove(self, name: str, expected: Expected) -> None:
        if self.rng.random() < 0.5:
            return
        before, expected.there = expected.there, None
        expected.running, expected.pid = None, 0
        status = self.ask("DELETE", f"/containers/{name}", force="1", v="1")
        if status in (204, 404):
            expected.there, expected.running, expected.pid, expected.limits = False, False, 0, {None}
        elif status == 409:
            expected.there = None if before is not False else False

    def rename(self, name: str, expected: Expected) -> None:
        """There and back again."""
        there, expected.there = expected.there, None
        if self.ask("POST", f"/containers/{name}/rename", name=f"{name}-x") == 204:
            self.ask("POST", f"/containers/{name}-x/rename", name=name)
        expected.there = there


class Machine:
    """What is on the machine of an engine's containers."""

    def __init__(self, engine: OwnEngine) -> None:
        self.engine = engine

    def processes(self, title: str) -> dict[str, list[int]]:
        """Pids by the second word of their title."""
        found: dict[str, list[int]] = {}
        for pid in self.engine.processes():
            with contextlib.suppress(OSError):
                words = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")
                name = words[1].decode() if len(words) > 1 else ""
                # One that is in the container is an exec that is about to execute its program.
                inside = name and name in Path(f"/proc/{pid}/cgroup").read_text()
                if words[0].decode(errors="replace") == title and not inside:
                    found.setdefault(name, []).append(pid)
        return found

    def problems(self) -> list[str]:
        """In what the machine differs from what the engine says."""
        listed = self.engine.api.get("/containers/json", all="1").ok()
        states = {c["Id"]: c["State"] for c in listed}
        alive = {key for key, state in states.items() if state in ("running", "paused")}
        found = [f"{state}: {key}" for key, state in states.items() if state not in (*ENDED, "running", "paused")]
        shims = self.processes("compatd-shim")
        found += [f"{len(pids)} shims of {key}" for key, pids in shims.items() if len(pids) != 1 or key not in alive]
        found += [f"no shim of {key}" for key in alive - set(shims)]
        for container in listed:
            if container["Id"] in alive:
                pid = self.engine.api.get(f"/containers/{container['Id']}/json").ok()["State"]["Pid"]
                if not Path(f"/proc/{pid}").exists():
                    found.append(f"process {pid} of {container['Id']} is gone")
        cgroups = {path.name for path in self.engine.cgroups()} - {self.engine.name}
        found += [f"cgroup of {key}" for key in cgroups - alive]
        found += [f"no cgroup of {key}" for key in alive - cgroups]
        on_bridge = [c for c in listed if c["Id"] in alive and c["HostConfig"]["NetworkMode"] == "bridge"]
        veths = [link for link in self.engine.network.links() if link.startswith("veth")]
        if len(veths) != len(on_bridge):
            found.append(f"{len(veths)} veths for {len(on_bridge)} containers")
        for root in (self.engine.data_root, self.engine.exec_root):
            with contextlib.suppress(FileNotFoundError):
                found += [f"directory {root.name}/{key}" for key in set(os.listdir(root / "containers")) - set(states)]
        volumes = len(self.engine.api.get("/volumes").ok()["Volumes"] or ())
        mounted = sum(mount["Type"] == "volume" for c in listed for mount in c["Mounts"])
        if volumes < mounted:
            found.append(f"{volumes} volumes for {mounted} mounts")
        return found

    def check(self, told: str) -> None:
        found: list[str] = []

        def settled() -> bool:
            nonlocal found
            found = self.problems()
            return not found

        try:
            wait_until(settled, "nothing is left over", SETTLE_S)
        except TimeoutError as error:
            raise AssertionError(f"{told}\n{found}\n{self.engine.log.read_text()[-2000:]}") from error


class Chaos:
    """One seed's engine, clients and killers."""

    def __init__(self, engine: OwnEngine, seed: int) -> None:
        self.engine, self.rng, self.machine = engine, random.Random(seed), Machine(engine)
        self.known: list[dict[str, Expected]] = [{} for _ in range(CLIENTS)]
        self.story: list[str] = [f"seed {seed}"]

    def round(self, number: int) -> None:
        clients = [
            Client(self.engine.api, f"c{index}", random.Random(self.rng.random()), known)
            for index, known in enumerate(self.known)
        ]
        for client in clients:
            client.thread.start()
        time.sleep(self.rng.random() ** 2 * 0.6)
        victim = self.rng.choice(("daemon", "daemon", "daemon", "spawner", "shim", "shim", "machine"))
        self.kill(victim)
        if victim in ("spawner", "shim"):
            time.sleep(self.rng.random() * 0.2)
        for client in clients:
            client.over.set()
        for client in clients:
            client.thread.join(60)
            assert not client.thread.is_alive(), self.tell(f"a client hangs: {client.done}")
        self.story.append(f"round {number}: {victim}; " + "; ".join(", ".join(client.done) for client in clients))
        for client in clients:
            if client.failure is not None:
                raise AssertionError(self.tell("a client")) from client.failure
        if victim in ("daemon", "machine"):
            self.start()
        self.machine.check(self.tell(""))
        self.compare(victim)

    def start(self) -> None:
        try:
            self.engine.start()
        except TimeoutError as error:
            lines: list[str] = []
            for pid in self.engine.processes():
                with contextlib.suppress(OSError):
                    words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()[:90]
                    lines.append(f"{pid} {words} {Path(f'/proc/{pid}/wchan').read_text()}")
            raise AssertionError(self.tell("\n".join([*lines, self.engine.log.read_text()[-2000:]]))) from error

    def kill(self, victim: str) -> None:
        if victim in ("daemon", "machine"):
            self.engine.kill()
        if victim == "machine":
            self.engine.end_processes()
            shutil.rmtree(self.engine.exec_root)
            self.engine.remove_cgroups()
        if victim in ("shim", "spawner"):
            found = self.machine.processes(f"compatd-{victim}")
            pids = sorted(pid for some in found.values() for pid in some)
            if pids:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self.rng.choice(pids), signal.SIGKILL)

    def tell(self, what: str) -> str:
        return "\n".join([*self.story, what])

    def compare(self, victim: str) -> None:
        """What clients were told against what there is; what they could not know, they learn."""
        listed = {c["Names"][0][1:]: c for c in self.engine.api.get("/containers/json", all="1").ok()}
        assert len({c["Id"] for c in listed.values()}) == len(listed)
        for name in [name for name in listed if name.endswith("-x")]:
            self.engine.api.post(f"/containers/{name}/rename", name=name.removesuffix("-x")).ok()
            listed[name.removesuffix("-x")] = listed.pop(name)
        for known in self.known:
            for name, expected in known.items():
                there = name in listed
                assert expected.there in (None, there), self.tell(f"{name}: {expected}, but there: {there}")
                expected.there = there
                if there:
                    self.compare_one(name, expected, victim)
                else:
                    expected.running, expected.pid, expected.limits = False, 0, {None}
        assert set(listed) <= {name for known in self.known for name in known}, self.tell(str(set(listed)))

    def compare_one(self, name: str, expected: Expected, victim: str) -> None:
        shown = self.engine.api.get(f"/containers/{name}/json").ok()
        state = shown["State"]
        assert shown["HostConfig"]["PidsLimit"] in expected.limits, self.tell(f"{name}: {expected}")
        expected.limits = {shown["HostConfig"]["PidsLimit"]}
        expected.restarts = expected.restarts and not shown["HostConfig"]["AutoRemove"]
        unsure = expected.restarts or victim in ("shim", "machine")
        if not unsure and expected.running is not None and not shown["HostConfig"]["AutoRemove"]:
            assert state["Running"] == expected.running, self.tell(f"{name}: {expected}, but {state}")
            if expected.pid:
                assert state["Pid"] == expected.pid, self.tell(f"{name}: {expected}, but {state}")
        expected.running, expected.pid = state["Running"], state["Pid"]
        if expected.restarts or shown["HostConfig"]["AutoRemove"]:
            expected.pid, expected.restarts, expected.there = 0, True, None
            if not shown["HostConfig"]["AutoRemove"]:
                expected.there = True
        if state["Status"] == "running":
            self.execute(name)

    def execute(self, name: str) -> None:
        made = self.engine.api.post(f"/containers/{name}/exec", {"Cmd": ["cat", "/proc/1/comm"], "AttachStdout": True})
        exec_id = made.ok()["Id"]
        with contextlib.closing(self.engine.api.open("POST", f"/exec/{exec_id}/start", {})) as connection:
            output = connection.getresponse().read()
        assert output[8:] == b"sleep\n", self.tell(f"exec in {name}: {output!r}")


@pytest.fixture
def engine(own_engine: OwnEngine) -> Iterator[OwnEngine]:
    own_engine.start()
    have(lambda: own_engine.load(IMAGE))
    yield own_engine
    if own_engine.leaks():
        own_engine.kill()
        own_engine.start()


def descriptors(engine: OwnEngine) -> list[str]:
    found: list[str] = []
    for entry in Path(f"/proc/{engine.pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            found.append(re.sub(r"\d+", "N", os.readlink(entry)))
    return sorted(found)


@pytest.mark.parametrize("seed", _seeds())
def test_kills_at_random_moments(engine: OwnEngine, seed: int) -> None:
    engine.api.post("/containers/create", {"Image": IMAGE, "Cmd": ["true"]}, name="first").ok()
    engine.api.post("/containers/first/start").ok()
    engine.api.delete("/containers/first", force="1").ok()
    before = descriptors(engine)  # what is opened at the first need is open now
    chaos = Chaos(engine, seed)
    for number in range(ROUNDS):
        chaos.round(number)
    engine.clear()
    chaos.machine.check(chaos.tell("the end"))
    try:
        wait_until(lambda: len(descriptors(engine)) <= len(before) + SPARE, "descriptors are given back")
    except TimeoutError as error:
        raise AssertionError(chaos.tell(f"{before}\n{descriptors(engine)}")) from error

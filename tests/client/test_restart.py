"""Restart policies: when a container starts again, what can be done to it while it waits, and what an engine that was
away makes of it."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.api import Api
from tests.conftest import have
from tests.engine import OwnEngine
from tests.registry import wait_until

pytestmark = pytest.mark.root

OBEDIENT = 'trap "exit 5" TERM USR1 QUIT; echo ready; while :; do sleep 0.02; done'


def make(api: Api, name: str, script: str, policy: str, image: str = "busybox:latest", **options: Any) -> None:
    kind, _, count = policy.partition(":")
    body = {
        "Image": image,
        "Cmd": ["sh", "-c", script],
        "HostConfig": {
            "NetworkMode": "none",
            "RestartPolicy": {"Name": kind, "MaximumRetryCount": int(count or 0)},
            **options.pop("HostConfig", {}),
        },
        **options,
    }
    api.post("/containers/create", body, name=name).ok()
    api.post(f"/containers/{name}/start").ok()


def inspect(api: Api, name: str) -> dict[str, Any]:
    found: dict[str, Any] = api.get(f"/containers/{name}/json").ok()
    return found


def state(api: Api, name: str) -> dict[str, Any]:
    found: dict[str, Any] = inspect(api, name)["State"]
    return found


def wait_for(api: Api, name: str, status: str, restarts: int = 0) -> dict[str, Any]:
    def reached() -> bool:
        shown = inspect(api, name)
        return bool(shown["State"]["Status"] == status and shown["RestartCount"] >= restarts)

    wait_until(reached, f"{name} is {status}")
    return inspect(api, name)


def ready(api: Api, name: str) -> None:
    wait_until(lambda: b"ready" in api.get(f"/containers/{name}/logs", stdout="1").body, "it is ready")


@pytest.mark.parity
def test_on_failure(api: Api, busybox: str) -> None:
    make(api, "failing", "exit 3", "on-failure:2", busybox)
    shown = wait_for(api, "failing", "exited")
    assert (shown["RestartCount"], shown["State"]["ExitCode"], shown["State"]["Restarting"]) == (2, 3, False)
    api.post("/containers/failing/start").ok()  # which counts from the beginning
    assert wait_for(api, "failing", "exited")["RestartCount"] == 2
    make(api, "fine", "exit 0", "on-failure", busybox)
    assert wait_for(api, "fine", "exited")["RestartCount"] == 0


@pytest.mark.parity
def test_while_it_waits(api: Api, busybox: str) -> None:
    make(api, "waiting", "exit 3", "always", busybox)
    shown = wait_for(api, "waiting", "restarting", 4)["State"]  # for more than a second now
    assert (shown["Running"], shown["Restarting"], shown["Pid"], shown["ExitCode"]) == (True, True, 0, 3)
    (listed,) = api.get("/containers/json").ok()
    assert listed["State"] == "restarting"
    assert listed["Status"].startswith("Restarting (3) ")
    assert not api.get("/containers/json", all="1", filters={"exited": ["3"]}).ok()
    container_id = listed["Id"]
    text = f"Container {container_id} is restarting, wait until the container is running"
    for method, path in (("POST", "pause"), ("GET", "top"), ("POST", "exec")):
        reply = api.call(method, f"/containers/waiting/{path}", {"Cmd": ["true"]} if path == "exec" else None)
        assert (reply.status, reply.json()["message"]) == (409, text)
    assert api.post("/containers/waiting/start").status == 304
    reply = api.delete("/containers/waiting")
    assert (reply.status, reply.json()["message"]) == (
        409,
        'cannot remove container "waiting": container is restarting: stop the container before removing or force '
        "remove",
    )


@pytest.mark.parity
@pytest.mark.parametrize("how", ["stop", "kill", "kill?signal=USR1"])
def test_an_end_to_waiting(api: Api, busybox: str, how: str) -> None:
    make(api, "waiting", "exit 3", "always", busybox)
    wait_for(api, "waiting", "restarting", 4)
    path, _, signal = how.partition("?signal=")
    api.post(f"/containers/waiting/{path}", **({"signal": signal} if signal else {})).ok()
    shown = wait_for(api, "waiting", "exited")
    assert (shown["RestartCount"], shown["State"]["ExitCode"]) == (4, 3)


@pytest.mark.parity
def test_restart_and_removal_while_it_waits(api: Api, busybox: str) -> None:
    make(api, "waiting", "exit 3", "always", busybox)
    wait_for(api, "waiting", "restarting", 4)
    api.post("/containers/waiting/restart").ok()
    assert inspect(api, "waiting")["RestartCount"] < 3
    wait_for(api, "waiting", "restarting", 4)
    api.delete("/containers/waiting", force="1").ok()
    assert api.get("/containers/waiting/json").status == 404


@pytest.mark.parity
@pytest.mark.parametrize(
    ("stop_signal", "signal", "policy", "restarts"),
    [
        ("", "USR1", "always", 0),  # any signal counts where none is named
        ("SIGQUIT", "TERM", "always", 1),
        ("SIGQUIT", "TERM", "unless-stopped", 0),
        ("SIGQUIT", "TERM", "on-failure", 1),
        ("SIGQUIT", "QUIT", "always", 0),
        ("SIGQUIT", "KILL", "always", 0),
    ],
)
def test_signals(api: Api, busybox: str, stop_signal: str, signal: str, policy: str, restarts: int) -> None:
    """Its own stop signal ends the policy, another does not."""
    make(api, "signalled", OBEDIENT, policy, busybox, StopSignal=stop_signal)
    ready(api, "signalled")
    api.post("/containers/signalled/kill", signal=signal).ok()
    shown = wait_for(api, "signalled", "running" if restarts else "exited", restarts)
    assert shown["RestartCount"] == restarts


@pytest.mark.parity
def test_waits_go_across_restarts(api: Api, busybox: str) -> None:
    make(api, "awaited", "sleep 0.3; exit 3", "on-failure:1", busybox)
    assert api.post("/containers/awaited/wait", condition="next-exit").json() == {"StatusCode": 3}
    connection = api.open("POST", "/containers/awaited/wait", condition="removed")
    wait_for(api, "awaited", "exited", 1)
    api.delete("/containers/awaited").ok()
    assert b'{"StatusCode":3}' in connection.getresponse().read()
    connection.close()


@pytest.fixture
def engine_of_ours(own_engine: OwnEngine) -> Iterator[OwnEngine]:
    own_engine.start()
    have(lambda: own_engine.load("busybox:latest"))
    yield own_engine
    if own_engine.leaks():
        own_engine.kill()
        own_engine.start()


def test_policies_after_a_reboot(engine_of_ours: OwnEngine) -> None:
    """Every process is gone and with them the directory of live state; the engine starts what should run."""
    api = engine_of_ours.api
    for policy in ("no", "always", "unless-stopped", "on-failure"):
        make(api, f"running-{policy}", "sleep 1000", policy)
        make(api, f"stopped-{policy}", OBEDIENT, policy)
        ready(api, f"stopped-{policy}")
        api.post(f"/containers/stopped-{policy}/stop").ok()
    make(api, "failed", "exit 3", "on-failure:1")
    make(api, "fine", "exit 0", "on-failure:1")
    wait_for(api, "failed", "exited", 1)
    make(api, "removed", "sleep 1000", "no", HostConfig={"AutoRemove": True})
    reboot(engine_of_ours)
    expected = {
        "running-no": "exited",
        "running-always": "running",
        "running-unless-stopped": "running",
        "running-on-failure": "running",
        "stopped-no": "exited",
        "stopped-always": "running",
        "stopped-unless-stopped": "exited",
        "stopped-on-failure": "running",  # it ended with 5
        "failed": "exited",  # as often as it may
        "fine": "exited",
    }

    def found() -> dict[str, str]:
        return {c["Names"][0][1:]: c["State"] for c in api.get("/containers/json", all="1").ok()}

    wait_until(lambda: found() == expected, "what should run does")
    assert state(api, "running-no")["ExitCode"] == 255
    assert inspect(api, "running-always")["RestartCount"] == 0
    # The records do not change with the next restart of the engine alone.
    engine_of_ours.kill()
    engine_of_ours.start()
    assert found() == expected


def reboot(engine: OwnEngine) -> None:
    engine.kill()
    engine.end_processes()
    shutil.rmtree(engine.exec_root)
    engine.remove_cgroups()
    engine.start()


def test_a_container_that_waits_when_the_engine_dies(engine_of_ours: OwnEngine) -> None:
    api = engine_of_ours.api
    make(api, "waiting", "exit 3", "always")
    wait_for(api, "waiting", "restarting", 4)
    before = state(api, "waiting")["FinishedAt"]
    engine_of_ours.kill()
    engine_of_ours.start()
    wait_until(lambda: state(api, "waiting")["FinishedAt"] > before, "it is started")
    api.post("/containers/waiting/stop", t="0")
    wait_for(api, "waiting", "exited")


def test_a_restart_that_fails_is_the_last(engine_of_ours: OwnEngine, tmp_path: Path) -> None:
    api = engine_of_ours.api
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\necho ready; sleep 0.3; exit 7\n")
    program.chmod(0o755)
    body = {
        "Image": "busybox:latest",
        "Cmd": ["/x/program"],
        "HostConfig": {"Binds": [f"{tmp_path}:/x"], "RestartPolicy": {"Name": "always"}},
    }
    api.post("/containers/create", body, name="broken").ok()
    api.post("/containers/broken/start").ok()
    ready(api, "broken")
    program.unlink()
    shown = wait_for(api, "broken", "exited", 1)
    assert (shown["State"]["ExitCode"], shown["RestartCount"]) == (7, 1)
    assert "/x/program" in shown["State"]["Error"]


def test_what_comes_after_a_removal_does_not_bring_it_back(engine_of_ours: OwnEngine) -> None:
    """Requests that waited while it was removed find nothing, and neither does the next engine."""
    api = engine_of_ours.api
    for number in range(4):
        make(api, "fleeting", "sleep 1000", "no", HostConfig={"AutoRemove": True})
        connections = [
            api.open("POST", "/containers/fleeting/stop", t="0"),
            api.open("POST", "/containers/fleeting/rename", name=f"renamed-{number}"),
            api.open("POST", "/containers/fleeting/update", {"PidsLimit": 9}),
            api.open("DELETE", "/containers/fleeting", force="1"),
        ]
        for connection in connections:
            assert connection.getresponse().status < 500
            connection.close()
        wait_until(lambda: not api.get("/containers/json", all="1").ok(), "it is gone")
    engine_of_ours.kill()
    engine_of_ours.start()
    assert not api.get("/containers/json", all="1").ok()

"""Health checks as clients see them: State.Health, lists, events, and what a crash of the engine does to them."""

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.api import Api
from tests.cli import Cli
from tests.conftest import have
from tests.engine import OwnEngine
from tests.registry import wait_until

pytestmark = pytest.mark.root

MS = 10**6


def create(api: Api, test: list[str], image: str, **check: int) -> str:
    body = {"Image": image, "Cmd": ["sleep", "1000"], "Healthcheck": {"Test": test, **check}}
    return str(api.post("/containers/create", body).ok()["Id"])


def health(api: Api, name: str) -> dict[str, Any]:
    found: dict[str, Any] = api.get(f"/containers/{name}/json").ok()["State"].get("Health") or {}
    return found


def wait_for(api: Api, name: str, status: str) -> dict[str, Any]:
    wait_until(lambda: health(api, name)["Status"] == status, status)
    return health(api, name)


def events(api: Api, since: str) -> list[str]:
    found = api.get("/events", since=since, until=str(time.time())).body.decode().splitlines()
    return [event["Action"] for event in map(json.loads, found) if event["Type"] == "container"]


@pytest.mark.parity
def test_a_life(api: Api, cli: Cli, busybox: str) -> None:
    since = str(time.time())
    check = ("--health-cmd", "echo hi; test -e /ok", "--health-interval", "100ms", "--health-retries", "2")
    cli("create", "--name", "checked", *check, busybox, "sleep", "1000")
    assert not health(api, "checked")
    assert [c["Names"] for c in api.get("/containers/json", all="1", filters={"health": ["none"]}).ok()] == [
        ["/checked"]
    ]
    cli("start", "checked")
    assert health(api, "checked")["Status"] == "starting"
    assert cli("ps", "--format", "{{.Status}}").rstrip().endswith("(health: starting)")

    found = wait_for(api, "checked", "unhealthy")
    assert found["FailingStreak"] >= 2
    assert cli("ps", "--format", "{{.Status}}", "--filter", "health=unhealthy").rstrip().endswith("(unhealthy)")
    entry = found["Log"][-1]
    assert (entry["ExitCode"], entry["Output"]) == (1, "hi\n")
    assert entry["Start"] < entry["End"]

    cli("exec", "checked", "touch", "/ok")
    assert wait_for(api, "checked", "healthy")["FailingStreak"] == 0
    wait_until(lambda: len(health(api, "checked")["Log"]) == 5, "five probes")
    assert cli("ps", "-q", "--filter", "health=starting", "--filter", "health=unhealthy") == ""
    seen = [action for action in events(api, since) if action.startswith(("exec", "health"))]
    words = "/bin/sh -c echo hi; test -e /ok"
    assert seen[:3] == [f"exec_create: {words}", f"exec_start: {words}", "exec_die"]
    assert [action for action in seen if action.startswith("health")] == [
        "health_status: unhealthy",
        "health_status: healthy",
    ]

    cli("pause", "checked")  # nobody probes now
    paused = health(api, "checked")
    assert (paused["Status"], paused["FailingStreak"]) == ("unhealthy", 0)
    assert cli("ps", "--format", "{{.Status}}").rstrip().endswith("(Paused)")
    cli("unpause", "checked")
    assert health(api, "checked")["Log"] == paused["Log"]
    wait_for(api, "checked", "healthy")

    cli("restart", "-t", "0", "checked")
    again = health(api, "checked")
    assert (again["Status"], again["FailingStreak"], len(again["Log"])) == ("starting", 0, 5)
    wait_for(api, "checked", "healthy")
    cli("kill", "checked")
    wait_until(lambda: health(api, "checked")["Status"] == "unhealthy", "the end")
    assert "health" not in cli("ps", "-a", "--format", "{{.Status}}")


@pytest.mark.parity
@pytest.mark.parametrize(
    ("test", "code", "output"),
    [
        (["CMD", "sh", "-c", "exit 3"], 3, ""),
        (["CMD-SHELL", "kill -9 $$"], 137, ""),
        (["CMD-SHELL", "printf '\\377x' >&2; exit 1"], 1, "\ufffdx"),
        (["CMD-SHELL", "head -c 5000 /dev/zero | tr '\\0' a; exit 1"], 1, "a" * 4096 + "..."),
        (
            ["CMD", "nope"],
            -1,
            'OCI runtime exec failed: exec failed: unable to start container process: exec: "nope": '
            "executable file not found in $PATH",
        ),
    ],
)
def test_what_a_probe_says(api: Api, busybox: str, test: list[str], code: int, output: str) -> None:
    name = create(api, test, busybox, Interval=50 * MS, Retries=1)
    api.post(f"/containers/{name}/start").ok()
    entry = wait_for(api, name, "unhealthy")["Log"][0]
    assert (entry["ExitCode"], entry["Output"]) == (code, output)


@pytest.mark.parity
def test_a_probe_that_hangs(api: Api, cli: Cli, busybox: str) -> None:
    name = create(api, ["CMD-SHELL", "echo a; sleep 700"], busybox, Interval=50 * MS, Timeout=500 * MS, Retries=1)
    api.post(f"/containers/{name}/start").ok()
    entry = wait_for(api, name, "unhealthy")["Log"][0]
    assert (entry["ExitCode"], entry["Output"]) == (-1, "Health check exceeded timeout (500ms): a\n")
    api.post(f"/containers/{name}/pause").ok()  # no more of them
    api.post(f"/containers/{name}/unpause").ok()
    wait_until(lambda: cli("top", name).count("sleep 700") < 3, "the probes are killed")


@pytest.mark.parity
def test_checks_that_are_none(api: Api, cli: Cli, busybox: str, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text(f"FROM {busybox}\nHEALTHCHECK --interval=50ms CMD true\n")
    cli("build", "-q", "-t", "checking", str(tmp_path))
    for name, image, options in (
        ("none", busybox, ("--no-healthcheck",)),
        ("inherited", "checking", ()),
        ("off", "checking", ("--no-healthcheck",)),
        ("changed", "checking", ("--health-retries", "7")),
    ):
        cli("run", "-d", "--name", name, *options, image, "sleep", "1000")
    wait_for(api, "inherited", "healthy")
    wait_for(api, "changed", "healthy")
    assert not health(api, "none")
    assert not health(api, "off")
    check = api.get("/containers/changed/json").ok()["Config"]["Healthcheck"]
    assert check == {"Test": ["CMD-SHELL", "true"], "Interval": 50 * MS, "Retries": 7}


@pytest.mark.parity
def test_the_start_period(api: Api, busybox: str) -> None:
    """Failures do not count in it, and probes come more often."""
    name = create(
        api, ["CMD", "false"], busybox, Interval=600_000 * MS, StartPeriod=600_000 * MS, StartInterval=50 * MS
    )
    api.post(f"/containers/{name}/start").ok()
    wait_until(lambda: len(health(api, name)["Log"]) >= 4, "probes")
    assert (health(api, name)["Status"], health(api, name)["FailingStreak"]) == ("starting", 0)


@pytest.fixture
def dying_engine(own_engine: OwnEngine) -> Iterator[OwnEngine]:
    own_engine.start()
    have(lambda: own_engine.load("busybox:latest"))
    yield own_engine
    if own_engine.leaks():
        own_engine.kill()
        own_engine.start()


def test_a_crash_of_the_engine(dying_engine: OwnEngine) -> None:
    """What is known stays known, probing goes on, and a probe that nobody waits for any more is killed."""
    api = dying_engine.api
    quick = create(api, ["CMD-SHELL", "test -e /ok"], "busybox:latest", Interval=100 * MS, Retries=1)
    slow = create(api, ["CMD", "sleep", "800"], "busybox:latest", Interval=50 * MS)
    for name in (quick, slow):
        api.post(f"/containers/{name}/start").ok()
    wait_for(api, quick, "unhealthy")
    wait_until(lambda: len(probes(api, slow)) == 1, "the probe")
    (pid,) = probes(api, slow)
    dying_engine.kill()
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), "the probe is killed")
    dying_engine.start()
    assert health(api, quick)["Status"] == "unhealthy"
    exec_id = api.post(f"/containers/{quick}/exec", {"Cmd": ["touch", "/ok"]}).ok()["Id"]
    api.post(f"/exec/{exec_id}/start", {"Detach": True}).ok()
    wait_for(api, quick, "healthy")
    wait_until(lambda: len(probes(api, slow)) == 1, "the next probe")
    assert dying_engine.stop() == 0
    dying_engine.start()
    assert health(api, quick)["Status"] == "healthy"


def probes(api: Api, name: str) -> list[int]:
    rows = api.get(f"/containers/{name}/top", ps_args="-eo pid,args").ok()["Processes"]
    return [int(pid) for pid, words in rows if words == "sleep 800" and os.path.exists(f"/proc/{pid}")]

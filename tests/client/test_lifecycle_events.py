"""What clients hear of a container's life, in order and with every attribute; and what it then looks like."""

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.api import Api
from tests.registry import wait_until

pytestmark = [pytest.mark.root, pytest.mark.parity]

OBEDIENT = 'trap "exit 5" TERM; echo ready; while :; do sleep 0.02; done'
STUBBORN = 'trap "" TERM USR2; echo ready; while :; do sleep 0.02; done'
MB = 1 << 20


class Scene:
    """One container called ``actor`` and what is told of it."""

    def __init__(self, api: Api, image: str) -> None:
        self.api, self.image, self.since = api, image, str(time.time())

    def create(self, *words: str, host_config: dict[str, Any] | None = None, **config: Any) -> None:
        body = {
            "Image": self.image,
            "Cmd": list(words),
            "Labels": {"part": "main"},
            "HostConfig": {"NetworkMode": "none", **(host_config or {})},
            **config,
        }
        self.api.post("/containers/create", body, name="actor").ok()

    def run(self, script: str, host_config: dict[str, Any] | None = None, **config: Any) -> None:
        self.create("sh", "-c", script, host_config=host_config, **config)
        self.post("start")

    def post(self, what: str, status: int = 204, /, **query: str) -> None:
        reply = self.api.post(f"/containers/actor/{what}", **query)
        assert reply.status == status, reply.body

    def ready(self) -> None:
        wait_until(lambda: b"ready" in self.api.get("/containers/actor/logs", stdout="1").body, "it is ready")

    @property
    def state(self) -> dict[str, Any]:
        found: dict[str, Any] = self.api.get("/containers/actor/json").ok()["State"]
        return found

    def ended(self) -> None:
        self.becomes("exited")

    def becomes(self, status: str) -> None:
        wait_until(lambda: bool(self.state["Status"] == status), status)

    def heard(self) -> list[str]:
        """Actions with their attributes, but for those that every container event has."""
        found = self.api.get(
            "/events", since=self.since, until=str(time.time()), filters={"type": ["container"]}
        ).body.decode()
        told: list[str] = []
        for event in map(json.loads, found.splitlines()):
            attributes = event["Actor"]["Attributes"]
            assert attributes.pop("image") == self.image
            assert attributes.pop("part") == "main"
            assert event["id"] == event["Actor"]["ID"]
            name = attributes.pop("name")
            assert name in ("actor", "player")
            attributes.pop("execDuration", None)
            told.append(" ".join([event["Action"], *(f"{key}={value}" for key, value in sorted(attributes.items()))]))
        return told

    def hears(self, *told: str) -> None:
        wait_until(lambda: len(self.heard()) >= len(told), "the events")
        assert self.heard() == list(told)


@pytest.fixture
def scene(api: Api, busybox: str) -> Scene:
    return Scene(api, busybox)


def test_a_life_and_an_end_of_its_own(scene: Scene) -> None:
    scene.run("exit 3")
    scene.ended()
    scene.api.delete("/containers/actor").ok()
    scene.hears("create", "start", "die exitCode=3", "destroy")


def test_stop_and_restart(scene: Scene) -> None:
    scene.run(OBEDIENT)
    scene.ready()
    scene.post("restart")
    wait_until(lambda: scene.api.get("/containers/actor/logs", stdout="1").body.count(b"ready") == 2, "it is ready")
    scene.post("stop")
    scene.post("stop", 304)
    assert (scene.state["ExitCode"], scene.state["Pid"]) == (5, 0)
    once = ("kill signal=15", "stop", "die exitCode=5")
    scene.hears("create", "start", *once, "start", "restart", *once)


def test_stop_by_force(scene: Scene) -> None:
    scene.run(STUBBORN, StopSignal="USR2", StopTimeout=1)
    scene.ready()
    began = time.monotonic()
    scene.post("stop")
    assert 1 <= time.monotonic() - began < 5
    scene.post("start")
    scene.post("stop", t="0", signal="CONT")
    assert scene.state["ExitCode"] == 137
    forced = ("kill signal=9", "stop", "die exitCode=137")
    scene.hears("create", "start", "kill signal=12", *forced, "start", "kill signal=18", *forced)


def test_stop_waits_as_long_as_it_takes(scene: Scene) -> None:
    scene.run('trap "sleep 0.7; exit 4" TERM; echo ready; while :; do sleep 0.02; done', StopTimeout=0)
    scene.ready()
    scene.post("stop", t="-1")
    assert scene.state["ExitCode"] == 4


def test_kill(scene: Scene) -> None:
    scene.run(OBEDIENT)
    scene.ready()
    for signal in ("SIGRTMIN+3", "64", "rtmax-1", "WINCH", "cld"):
        scene.post("kill", signal=signal)
    scene.post("kill")
    assert (scene.state["Status"], scene.state["ExitCode"]) == ("exited", 137)
    reply = scene.api.post("/containers/actor/kill")
    assert (reply.status, reply.json()["message"].rpartition(" container ")[0]) == (
        409,
        "cannot kill container: actor:",
    )
    scene.hears(
        "create",
        "start",
        "kill signal=37",
        "kill signal=64",
        "kill signal=63",
        "kill signal=28",
        "kill signal=17",
        "kill signal=9",
        "die exitCode=137",
    )


@pytest.mark.parametrize(
    ("signal", "text"),
    [
        ("RTMIN+31", "invalid signal: RTMIN+31"),
        ("65", "the linux daemon does not support signal 65"),
        ("0", "invalid signal: 0"),
        ("-1", "the linux daemon does not support signal -1"),
        ("sigusr1x", "invalid signal: sigusr1x"),
    ],
)
def test_signals_that_there_are_not(scene: Scene, signal: str, text: str) -> None:
    reply = scene.api.post("/containers/actor/kill", signal=signal)
    assert (reply.status, reply.json()["message"]) == (400, f"cannot kill container: actor: {text}")


def test_pause(scene: Scene) -> None:
    scene.run(OBEDIENT)
    scene.ready()
    scene.post("pause")
    assert (scene.state["Status"], scene.state["Running"], scene.state["Paused"]) == ("paused", True, True)
    scene.post("pause", 409)
    scene.post("start", 409)
    reply = scene.api.delete("/containers/actor")
    assert reply.json()["message"] == (
        'cannot remove container "actor": container is paused and must be unpaused first'
    )
    scene.post("unpause")
    scene.post("unpause", 500)
    scene.hears("create", "start", "pause", "unpause")


@pytest.mark.parametrize(
    ("end", "told"),
    [
        (lambda scene: scene.post("stop"), ("kill signal=15", "unpause", "stop", "die exitCode=5")),
        (lambda scene: scene.post("kill"), ("kill signal=9", "die exitCode=137")),
        (lambda scene: scene.post("kill", signal="TERM"), ("kill signal=15", "unpause", "die exitCode=5")),
        (
            lambda scene: scene.api.delete("/containers/actor", force="1").ok(),
            ("kill signal=9", "die exitCode=137", "destroy"),
        ),
    ],
    ids=["stop", "kill", "kill -s TERM", "rm -f"],
)
def test_the_end_of_what_is_paused(scene: Scene, end: Callable[[Scene], object], told: tuple[str, ...]) -> None:
    scene.run(OBEDIENT)
    scene.ready()
    scene.post("pause")
    end(scene)
    scene.hears("create", "start", "pause", *told)


def test_another_signal_leaves_it_paused(scene: Scene) -> None:
    scene.run(OBEDIENT, StopSignal="SIGQUIT")
    scene.post("pause")
    scene.post("kill", signal="USR1")
    assert scene.state["Status"] == "paused"
    scene.hears("create", "start", "pause", "kill signal=10")


def test_names(scene: Scene) -> None:
    scene.create("true")
    scene.post("rename", name="player")
    for name, status, text in (
        ("player", 400, "Renaming a container with the same name as its current name"),
        ("", 400, "Neither old nor new names may be empty"),
    ):
        reply = scene.api.post("/containers/player/rename", name=name)
        assert (reply.status, reply.json()["message"]) == (status, text)
    scene.api.post("/containers/player/rename", name="/actor").ok()
    scene.hears("create", "rename oldName=/actor", "rename oldName=/player")


def test_restarts_by_policy(scene: Scene) -> None:
    scene.run("exit 3", {"RestartPolicy": {"Name": "on-failure", "MaximumRetryCount": 1}})
    scene.ended()
    scene.hears("create", "start", "die exitCode=3", "start", "die exitCode=3")
    assert scene.state["StartedAt"] < scene.state["FinishedAt"]


def test_stop_of_what_waits_for_its_restart(scene: Scene) -> None:
    scene.run("exit 3", {"RestartPolicy": {"Name": "always"}})
    wait_until(lambda: scene.api.get("/containers/actor/json").ok()["RestartCount"] == 4, "four restarts")
    wait_until(lambda: scene.state["Status"] == "restarting", "it waits")
    scene.post("stop")
    scene.hears("create", *("start", "die exitCode=3") * 4, "stop")


def test_auto_remove(scene: Scene) -> None:
    scene.run("sleep 1000", {"AutoRemove": True})
    scene.post("restart", t="0")
    scene.post("stop", t="0")
    wait_until(lambda: scene.api.get("/containers/actor/json").status == 404, "it is removed")
    forced = ("kill signal=15", "kill signal=9", "stop", "die exitCode=137")
    scene.hears("create", "start", *forced, "start", "restart", *forced, "destroy")


def test_a_start_that_fails(scene: Scene) -> None:
    scene.create("nope", host_config={"AutoRemove": True})
    scene.post("start", 400)
    wait_until(lambda: scene.api.get("/containers/actor/json").status == 404, "it is removed")
    scene.hears("create", "destroy")


def test_out_of_memory(scene: Scene) -> None:
    """As soon as it happens, though the container goes on; and again in the next run."""
    limits = {"Memory": 20 * MB, "MemorySwap": 20 * MB}
    scene.run("tail /dev/zero; while ! test -e /end; do sleep 0.02; done; rm /end; exit 6", limits)
    for number in (1, 2):
        wait_until(lambda: scene.state["OOMKilled"], "it is told")
        assert scene.state["Running"]
        wait_until(lambda: "oom" in scene.heard()[-1], "the event")
        made = scene.api.post("/containers/actor/exec", {"Cmd": ["touch", "/end"]}).ok()
        scene.api.post(f"/exec/{made['Id']}/start", {"Detach": True}).ok()
        scene.ended()
        assert (scene.state["OOMKilled"], scene.state["ExitCode"]) == (True, 6)
        if number == 1:
            scene.post("start")
    life = ["start", "oom", "die exitCode=6"]
    wait_until(lambda: scene.heard()[-1] == life[-1], "the end")
    assert [told for told in scene.heard() if not told.startswith("exec")] == ["create", *life, *life]


def test_exit_codes(scene: Scene) -> None:
    for words, status, code, left in (
        (["sh", "-c", "exit 125"], 204, 125, "exited"),
        (["nope"], 400, 127, "created"),
        (["/etc"], 400, 126, "created"),
        (["sh", "-c", "sh -c 'kill -SEGV $$'; exit $?"], 204, 139, "exited"),
    ):
        scene.create(*words)
        scene.post("start", status)
        scene.becomes(left)
        assert scene.state["ExitCode"] == code
        assert bool(scene.state["Error"]) == (left == "created")
        scene.api.delete("/containers/actor").ok()


def test_times_are_told_to_the_nanosecond(scene: Scene) -> None:
    scene.run("exit 0")
    scene.ended()
    for moment in (scene.state["StartedAt"], scene.state["FinishedAt"]):
        assert len(moment) > len("2006-01-02T15:04:05.000001Z")


def test_orphans_are_reaped_with_an_init(scene: Scene) -> None:
    script = "(sleep 0.05 & exec true); exec sleep 1000"
    count = "grep -l '^State:.Z' /proc/[0-9]*/status 2>/dev/null | wc -l; echo; ls -d /proc/[0-9]* | wc -l"
    for init, expected in ((True, "0"), (False, "1")):
        scene.run(script, {"Init": init})

        def zombies() -> str:
            made = scene.api.post(
                "/containers/actor/exec", {"Cmd": ["sh", "-c", f"sleep 0.1; {count}"], "AttachStdout": True}
            ).ok()
            connection = scene.api.open("POST", f"/exec/{made['Id']}/start", {})
            try:
                return connection.getresponse().read()[8:9].decode()
            finally:
                connection.close()

        deadline = time.monotonic() + 10
        while zombies() != expected and time.monotonic() < deadline:
            pass
        assert zombies() == expected
        scene.api.delete("/containers/actor", force="1").ok()

"""One long scenario, and the whole stream of events that comes of it."""

import json
import socket
import threading
import time
from typing import Any

import pytest

from tests.api import Api, Connection
from tests.hijacked import Hijacked
from tests.registry import wait_until

pytestmark = [pytest.mark.root, pytest.mark.parity]


class Recorder:
    """Reads the stream of events from now on; a context manager."""

    def __init__(self, api: Api) -> None:
        self._connection = Connection(api.path, 60)
        self._connection.request("GET", api.target("/events"))
        self._response = self._connection.getresponse()  # the head comes at once: nothing is missed from here on
        self.events: list[dict[str, Any]] = []
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        while line := self._response.readline():
            self.events.append(json.loads(line))
            if self.events[-1]["Action"] == "destroy" and self.events[-1]["Actor"]["ID"] == "last":
                return

    def __enter__(self) -> "Recorder":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is not None:
            self._connection.sock.shutdown(socket.SHUT_RDWR)
        self._thread.join(60)
        self._response.close()
        self._connection.close()


def scenario(api: Api, image: str) -> tuple[str, list[str]]:
    """(the container's id, the ids of its execs)."""
    options = {
        "Image": image,
        "Cmd": ["sh", "-c", "trap 'exit 4' HUP; while :; do sleep 0.05; done"],
        "Tty": True,
        "OpenStdin": True,
        "Labels": {"zone": "z", "area": "a"},
        "HostConfig": {"Binds": ["kept:/kept:ro"], "NetworkMode": "bridge"},
    }
    one = str(api.post("/containers/create", options, name="first").ok()["Id"])
    with Hijacked(api, f"/containers/{one}/attach", stream="1", stdin="1", stdout="1") as client:
        api.post(f"/containers/{one}/start").ok()
        client.send(b"word\n")
        client.read_until(b"word\r\n")
        client.send(b"\x10\x11")
        client.read()
    api.post(f"/containers/{one}/resize", h="10", w="20").ok()
    api.get(f"/containers/{one}/top").ok()
    api.post(f"/containers/{one}/rename", name="second").ok()
    execs = [str(api.post(f"/containers/{one}/exec", {"Cmd": ["sh", "-c", "exit 3"]}).ok()["Id"])]
    api.post(f"/exec/{execs[0]}/start", {"Detach": True}).ok()
    wait_until(lambda: api.get(f"/exec/{execs[0]}/json").ok()["ExitCode"] == 3, "the exec ends")
    execs.append(str(api.post(f"/containers/{one}/exec", {"Cmd": ["nope"]}).ok()["Id"]))
    assert api.post(f"/exec/{execs[1]}/start", {"Detach": True}).status == 400
    api.get(f"/containers/{one}/archive", path="/etc/passwd")
    archive = api.get(f"/containers/{one}/archive", path="/etc/passwd").body
    assert api.call("PUT", f"/containers/{one}/archive", archive, path="/tmp").status == 200
    api.get(f"/containers/{one}/export")
    for verb in ("pause", "unpause"):
        api.post(f"/containers/{one}/{verb}").ok()
    api.post(f"/containers/{one}/kill", signal="HUP").ok()
    wait_until(lambda: not api.get(f"/containers/{one}/json").ok()["State"]["Running"], "it ends")
    api.post(f"/containers/{one}/start").ok()
    api.post(f"/containers/{one}/kill").ok()
    api.delete(f"/containers/{one}", v="1").ok()
    return one, execs


def test_every_event_of_a_life(api: Api, busybox: str) -> None:
    api.post("/volumes/create", {"Name": "kept"}).ok()
    with Recorder(api) as recorder:
        one, execs = scenario(api, busybox)
        api.delete("/volumes/kept").ok()
        # Its end is how the recorder knows that it has everything.
        api.post("/volumes/create", {"Name": "last"}).ok()
        api.delete("/volumes/last").ok()
    network = str(api.get("/networks/bridge").ok()["Id"])
    names = {one: "CONTAINER", network: "BRIDGE", **{exec_id: f"EXEC{i}" for i, exec_id in enumerate(execs)}}
    common = {"area": "a", "image": busybox, "zone": "z"}

    def container(action: str, name: str = "second", **more: str) -> tuple[str, str, str, dict[str, str]]:
        return "container", action, "CONTAINER", dict(sorted({**common, "name": name, **more}.items()))

    def bridge(action: str) -> tuple[str, str, str, dict[str, str]]:
        return "network", action, "BRIDGE", {"container": "CONTAINER", "name": "bridge", "type": "bridge"}

    mount = {"destination": "/kept", "driver": "local", "propagation": "", "read/write": "false"}
    volume = ("volume", "mount", "kept", {"container": "CONTAINER", **mount})
    unmount = ("volume", "unmount", "kept", {"container": "CONTAINER", "driver": "local"})
    expected = [
        container("create", "first"),
        container("attach", "first"),
        volume,
        bridge("connect"),
        container("start", "first"),
        container("detach", "first"),
        container("resize", "first", height="10", width="20"),
        container("top", "first"),
        container("rename", oldName="/first"),
        container("exec_create: sh -c exit 3", execID="EXEC0"),
        container("exec_start: sh -c exit 3", execID="EXEC0"),
        container("exec_die", execID="EXEC0", exitCode="3"),
        container("exec_create: nope ", execID="EXEC1"),
        container("exec_start: nope ", execID="EXEC1"),
        *(volume, container("archive-path"), unmount),
        *(volume, container("archive-path"), unmount),
        *(volume, container("extract-to-dir"), unmount),
        container("export"),
        container("pause"),
        container("unpause"),
        container("kill", signal="1"),
        bridge("disconnect"),
        unmount,
        container("die", execDuration="0", exitCode="4"),
        volume,
        bridge("connect"),
        container("start"),
        container("kill", signal="9"),
        bridge("disconnect"),
        unmount,
        container("die", execDuration="0", exitCode="137"),
        container("destroy"),
        ("volume", "destroy", "kept", {"driver": "local"}),
        ("volume", "create", "last", {"driver": "local"}),
        ("volume", "destroy", "last", {"driver": "local"}),
    ]
    seen = [shown(event, names) for event in recorder.events]
    assert seen == expected
    for event in recorder.events:
        assert list(event["Actor"]["Attributes"]) == sorted(event["Actor"]["Attributes"])
        assert event["scope"] == "local"
        assert event["timeNano"] // 1_000_000_000 == event["time"]
        if event["Type"] == "container":
            assert (event["status"], event["id"], event["from"]) == (event["Action"], one, busybox)
    times = [event["timeNano"] for event in recorder.events]
    assert times == sorted(times)
    # The past is the same, and each kind of filter takes its part of it.
    since, until = f"{times[0] / 1e9 - 0.001:.9f}", f"{time.time():.9f}"

    def past(**filters: list[str]) -> list[tuple[str, str, str, dict[str, str]]]:
        body = api.get("/events", since=since, until=until, filters=filters).body
        return [shown(json.loads(line), names) for line in body.splitlines()]

    assert past() == expected
    assert past(container=["second"]) == [e for e in expected if e[0] == "container" and e[3]["name"] == "second"]
    assert past(container=[one]) == [e for e in expected if e[0] == "container"]
    assert past(event=["exec_create", "die"]) == [e for e in expected if e[1].startswith(("exec_create", "die"))]
    assert past(type=["network", "volume"]) == [e for e in expected if e[0] != "container"]
    assert past(label=["zone=z", "area"], event=["create"]) == [expected[0]]
    assert past(label=["zone=y"]) == past(scope=["swarm"]) == past(node=["x"]) == []
    assert past(image=[busybox]) == past(image=[busybox.partition(":")[0]]) == past(type=["container"])
    assert past(volume=["kept"]) == [e for e in expected if e[2] == "kept"]
    assert past(network=["bridge"], event=["connect"]) == [bridge("connect")] * 2


def shown(event: dict[str, Any], names: dict[str, str]) -> tuple[str, str, str, dict[str, str]]:
    attributes = {
        key: names.get(value, value) if key != "execDuration" else "0"
        for key, value in event["Actor"]["Attributes"].items()
        if not key.startswith("org.opencontainers")
    }
    return event["Type"], event["Action"], names.get(event["Actor"]["ID"], event["Actor"]["ID"]), attributes

"""The API's smaller operations, one reply after the other, with Docker's statuses and texts."""

import json
import time
from datetime import datetime
from typing import Any

import pytest

from tests.api import Api, Reply
from tests.cli import Cli
from tests.conftest import have
from tests.engine import Engine
from tests.registry import wait_until

pytestmark = [pytest.mark.root, pytest.mark.parity]


def told(reply: Reply) -> tuple[int, str]:
    """Status and message; the message is empty where there is no body."""
    return reply.status, reply.json()["message"] if reply.body else ""


def sleeper(api: Api, image: str, name: str) -> str:
    return str(api.post("/containers/create", {"Image": image, "Cmd": ["sleep", "1000"]}, name=name).ok()["Id"])


def test_rename(api: Api, busybox: str) -> None:
    container = sleeper(api, busybox, "first")
    assert told(api.post("/containers/first/rename", name="second")) == (204, "")
    assert api.get("/containers/second/json").ok()["Id"] == container
    assert told(api.post("/containers/first/rename", name="third")) == (404, "No such container: first")
    assert told(api.post("/containers/second/rename", name="second")) == (
        400,
        "Renaming a container with the same name as its current name",
    )
    assert told(api.post("/containers/second/rename", name="")) == (400, "Neither old nor new names may be empty")
    assert told(api.post("/containers/second/rename", name="a b")) == (
        400,
        "Error when allocating new name: Invalid container name (/a b), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed",
    )
    other = sleeper(api, busybox, "other")
    status, message = told(api.post("/containers/other/rename", name="second"))
    assert (status, container in message, other in message) == (409, True, False)


def test_states_refuse_what_does_not_fit(api: Api, busybox: str) -> None:
    container = sleeper(api, busybox, "states")
    path = "/containers/states"
    assert told(api.post(f"{path}/pause")) == (409, f"container {container} is not running")
    assert told(api.post(f"{path}/kill")) == (
        409,
        f"cannot kill container: states: container {container} is not running",
    )
    assert told(api.post(f"{path}/stop")) == (304, "")
    assert told(api.post(f"{path}/start")) == (204, "")
    assert told(api.post(f"{path}/start")) == (304, "")
    assert told(api.post(f"{path}/pause")) == (204, "")
    state = api.get(f"{path}/json").ok()["State"]
    assert (state["Status"], state["Running"], state["Paused"]) == ("paused", True, True)
    assert told(api.post(f"{path}/pause")) == (409, f"Container {container} is already paused")
    assert told(api.post(f"{path}/exec", {"Cmd": ["true"]})) == (
        409,
        "Container states is paused, unpause the container before exec",
    )
    assert told(api.post(f"{path}/unpause")) == (204, "")
    assert told(api.post(f"{path}/unpause")) == (500, f"Container {container} is not paused")
    pid = api.get(f"{path}/json").ok()["State"]["Pid"]
    assert told(api.post(f"{path}/restart", t="0")) == (204, "")
    assert api.get(f"{path}/json").ok()["State"]["Pid"] not in (0, pid)
    assert told(api.post(f"{path}/kill", signal="NOPE")) == (400, "cannot kill container: states: invalid signal: NOPE")
    assert told(api.delete(path)) == (
        409,
        'cannot remove container "states": container is running: stop the container before removing or force remove',
    )
    assert told(api.post(f"{path}/kill", signal="SIGKILL")) == (204, "")
    assert api.post(f"{path}/wait").ok()["StatusCode"] == 137
    assert told(api.delete(path)) == (204, "")
    assert told(api.delete(path)) == (404, "No such container: states")


def test_a_paused_container_does_not_run(api: Api, busybox: str) -> None:
    script = "i=0; while :; do i=$((i+1)); echo $i; sleep 0.01; done"
    container = api.post("/containers/create", {"Image": busybox, "Cmd": ["sh", "-c", script]}).ok()["Id"]
    api.post(f"/containers/{container}/start").ok()

    def lines() -> int:
        return api.get(f"/containers/{container}/logs", stdout="1").body.count(b"\n")

    wait_until(lambda: lines() > 3, "the counter counts")
    api.post(f"/containers/{container}/pause").ok()
    before = lines()
    time.sleep(0.1)  # nothing can be waited for: that nothing happens is the point
    assert lines() == before
    api.post(f"/containers/{container}/unpause").ok()
    wait_until(lambda: lines() > before, "the counter goes on")


def test_wait_conditions(api: Api, busybox: str) -> None:
    container = sleeper(api, busybox, "waited")
    assert told(api.post(f"/containers/{container}/wait", condition="bogus")) == (400, 'invalid condition: "bogus"')
    assert api.post(f"/containers/{container}/wait").ok() == {"StatusCode": 0}  # not running: at once
    assert told(api.post("/containers/none/wait")) == (404, "No such container: none")


def test_list_filters(api: Api, busybox: str) -> None:
    for name, labels in (("one", {"a": "1"}), ("two", {"a": "2", "b": ""})):
        body = {"Image": busybox, "Cmd": ["sleep", "1000"], "Labels": labels}
        api.post("/containers/create", body, name=name).ok()
    api.post("/containers/two/start").ok()

    def names(**query: Any) -> list[str]:
        return [one["Names"][0] for one in api.get("/containers/json", **query).ok()]

    assert names() == ["/two"]
    assert names(all="1") == ["/two", "/one"]
    assert names(limit="1") == ["/two"]
    assert names(all="1", filters={"label": ["a"]}) == ["/two", "/one"]
    assert names(all="1", filters={"label": ["a=1"]}) == ["/one"]
    assert names(all="1", filters={"label": ["a", "b"]}) == ["/two"]
    assert names(all="1", filters={"name": ["on"]}) == ["/one"]
    assert names(filters={"status": ["created"]}) == ["/one"]
    assert names(all="1", filters={"ancestor": [busybox]}) == ["/two", "/one"]
    assert names(all="1", filters={"before": ["two"]}) == ["/one"]
    assert told(api.get("/containers/json", filters={"status": ["bogus"]})) == (
        400,
        "invalid filter 'status=bogus': invalid value for state (bogus): must be one of created, running, paused, "
        "restarting, removing, exited, dead",
    )
    sizes = api.get("/containers/json", all="1", size="1").ok()
    assert all({"SizeRootFs"} <= set(one) for one in sizes)


def test_container_prune(api: Api, busybox: str) -> None:
    stopped = sleeper(api, busybox, "stopped")
    sleeper(api, busybox, "running")
    api.post("/containers/running/start").ok()
    assert told(api.post("/containers/prune", filters={"bogus": ["x"]})) == (400, "invalid filter 'bogus'")
    assert api.post("/containers/prune", filters={"label": ["none"]}).ok()["ContainersDeleted"] is None
    assert api.post("/containers/prune").ok()["ContainersDeleted"] == [stopped]
    assert api.post("/containers/prune").ok() == {"ContainersDeleted": None, "SpaceReclaimed": 0}
    assert api.get("/containers/running/json").status == 200


def test_volumes(api: Api, busybox: str) -> None:
    made = api.post("/volumes/create", {"Name": "data", "Labels": {"a": "b"}}).ok()
    assert (made["Name"], made["Driver"], made["Scope"], made["Labels"]) == ("data", "local", "local", {"a": "b"})
    assert api.get("/volumes/data").ok() == made
    assert [one["Name"] for one in api.get("/volumes", filters={"label": ["a=b"]}).ok()["Volumes"]] == ["data"]
    body = {"Image": busybox, "HostConfig": {"Binds": ["data:/data"]}}
    user = api.post("/containers/create", body).ok()["Id"]
    assert told(api.delete("/volumes/data")) == (409, f"remove data: volume is in use - [{user}]")
    api.delete(f"/containers/{user}", v="1").ok()
    assert told(api.delete("/volumes/data")) == (204, "")  # a named one is not removed with its container
    assert told(api.delete("/volumes/data")) == (404, "get data: no such volume")
    assert told(api.delete("/volumes/data", force="1")) == (204, "")
    assert told(api.get("/volumes/data")) == (404, "get data: no such volume")


def test_networks(api: Api) -> None:
    assert {(one["Name"], one["Driver"]) for one in api.get("/networks").ok()} >= {
        ("bridge", "bridge"),
        ("host", "host"),
        ("none", "null"),
    }
    bridge = api.get("/networks/bridge").ok()
    assert api.get(f"/networks/{bridge['Id'][:12]}").ok() == bridge
    assert bridge["IPAM"]["Config"] == [{"Subnet": "172.17.0.0/16", "Gateway": "172.17.0.1"}]
    assert told(api.get("/networks/none-such")) == (404, "network none-such not found")


def test_a_container_shows_in_its_network(api: Api, busybox: str) -> None:
    container = sleeper(api, busybox, "member")
    api.post(f"/containers/{container}/start").ok()
    own = api.get(f"/containers/{container}/json").ok()["NetworkSettings"]["Networks"]["bridge"]
    entry = api.get("/networks/bridge").ok()["Containers"][container]
    assert entry == {
        "Name": "member",
        "EndpointID": own["EndpointID"],
        "MacAddress": own["MacAddress"],
        "IPv4Address": f"{own['IPAddress']}/16",
        "IPv6Address": "",
    }
    api.post(f"/containers/{container}/stop", t="0").ok()
    assert container not in api.get("/networks/bridge").ok()["Containers"]


def test_events_of_the_past(api: Api, busybox: str) -> None:
    begin = time.time()
    sleeper(api, busybox, "seen")
    api.post("/containers/seen/start").ok()
    api.post("/containers/seen/kill").ok()
    api.post("/containers/seen/wait").ok()
    api.delete("/containers/seen").ok()

    def past(filters: dict[str, list[str]]) -> list[dict[str, Any]]:
        body = api.get("/events", since=f"{begin:.9f}", until=f"{time.time():.9f}", filters=filters).body
        return [json.loads(line) for line in body.splitlines()]

    wait_until(lambda: any(one["Action"] == "destroy" for one in past({"container": ["seen"]})), "the last event")
    mine = past({"container": ["seen"]})
    assert [(one["Type"], one["Action"]) for one in mine] == [
        ("container", "create"),
        ("container", "start"),
        ("container", "kill"),
        ("container", "die"),
        ("container", "destroy"),
    ]
    assert mine[2]["Actor"]["Attributes"]["signal"] == "9"
    assert mine[3]["Actor"]["Attributes"]["exitCode"] == "137"
    assert all(one["Actor"]["Attributes"]["image"] == busybox for one in mine)
    assert all(one["time"] == one["timeNano"] // 10**9 for one in mine)
    assert [one["Action"] for one in past({"event": ["die"]})] == ["die"]
    assert {one["Action"] for one in past({"type": ["network"]})} == {"connect", "disconnect"}


def as_number(stamp: str) -> str:
    """Seconds and nanoseconds since the epoch, as the API takes them, of RFC 3339 text."""
    whole, _, fraction = stamp.rstrip("Z").partition(".")
    return f"{int(datetime.fromisoformat(whole + '+00:00').timestamp())}.{fraction}"


def test_logs_of_a_span(api: Api, busybox: str) -> None:
    script = "echo one; sleep 0.05; echo two; sleep 0.05; echo three"
    container = api.post("/containers/create", {"Image": busybox, "Cmd": ["sh", "-c", script], "Tty": True}).ok()["Id"]
    api.post(f"/containers/{container}/start").ok()
    api.post(f"/containers/{container}/wait").ok()
    path = f"/containers/{container}/logs"
    lines = api.get(path, stdout="1", timestamps="1").body.decode().splitlines()
    stamps = [as_number(line.split()[0]) for line in lines]
    assert api.get(path, stdout="1", since=stamps[1], until=stamps[1]).body == b"two\r\n"
    assert api.get(path, stdout="1", until=stamps[1]).body == b"one\r\ntwo\r\n"
    assert api.get(path, stdout="1", tail="1").body == b"three\r\n"
    assert told(api.get(path)) == (400, "Bad parameters: you must choose at least one stream")


def test_disk_usage(api: Api, busybox: str) -> None:
    sleeper(api, busybox, "using")
    usage = api.get("/system/df").ok()
    assert [one["Names"] for one in usage["Containers"]] == [["/using"]]
    assert any(busybox in (one["RepoTags"] or []) and one["Containers"] == 1 for one in usage["Images"])
    assert usage["LayersSize"] > 1_000_000
    only = api.get("/system/df", type="container").ok()
    assert (only["Images"], only["Volumes"], len(only["Containers"])) == (None, None, 1)
    assert told(api.get("/system/df", type="bogus")) == (400, "unknown object type: bogus")


def test_login(engine: Engine) -> None:
    have(lambda: engine.provide("busybox:latest"))
    login = {"username": "somebody", "password": "secret", "serveraddress": engine.registry}
    assert engine.api.post("/auth", login).ok() == {"IdentityToken": "", "Status": "Login Succeeded"}
    status, message = told(engine.api.post("/auth", {**login, "serveraddress": "127.0.0.1:1"}))
    assert status == 500
    assert message == 'Get "http://127.0.0.1:1/v2/": dial tcp 127.0.0.1:1: connect: connection refused'


def test_image_references(api: Api, busybox: str) -> None:
    assert told(api.post(f"/images/{busybox}/tag", repo="UP")) == (
        400,
        "invalid reference format: repository name (library/UP) must be lowercase",
    )
    assert told(api.post("/images/none-such/tag", repo="x")) == (404, "No such image: none-such:latest")
    assert told(api.delete("/images/none-such")) == (404, "No such image: none-such:latest")
    assert told(api.get("/images/none-such/json")) == (404, "No such image: none-such:latest")
    full = api.get(f"/images/{busybox}/json").ok()["Id"]
    for name in (full, full[7:], full[7:19], "busybox", "docker.io/library/busybox", f"docker.io/library/{busybox}"):
        assert api.get(f"/images/{name}/json").ok()["Id"] == full
    listed = api.get("/images/json", filters={"reference": ["busy*"]}).ok()
    assert [one["Id"] for one in listed] == [full]


def test_image_in_use_is_kept(engine: Engine) -> None:
    api, busybox = engine.api, "busybox:latest"
    engine.forget_images()  # of several names one may go
    have(lambda: engine.load(busybox))
    container = sleeper(api, busybox, "user")
    status, message = told(api.delete(f"/images/{busybox}"))
    assert status == 409
    image = api.get(f"/images/{busybox}/json").ok()["Id"][7:19]
    assert message == (
        f'conflict: unable to remove repository reference "{busybox}" (must force) - container {container[:12]} is '
        f"using its referenced image {image}"
    )


def test_several_images_in_one_archive(engine: Engine, busybox: str) -> None:
    api = engine.api
    for tag in ("one", "two"):
        api.post(f"/images/{busybox}/tag", repo="example.org/both", tag=tag).ok()
    saved = api.get("/images/get", names="example.org/both:one").body
    more = api.call("GET", "/images/get?names=example.org/both:one&names=example.org/both:two").body
    for archive, tags in ((saved, ["one"]), (more, ["one", "two"])):
        for tag in ("one", "two"):
            api.delete(f"/images/example.org/both:{tag}")
        told_of = api.post("/images/load", archive, quiet="1").body.decode()
        assert [tag for tag in ("one", "two") if f"example.org/both:{tag}" in told_of] == tags
    for tag in ("one", "two"):
        api.delete(f"/images/example.org/both:{tag}").ok()


def test_prunes_that_find_nothing(api: Api) -> None:
    api.post("/images/prune")
    assert api.post("/images/prune").ok() == {"ImagesDeleted": None, "SpaceReclaimed": 0}
    api.post("/build/prune", all="1")
    assert api.post("/build/prune").ok() == {"CachesDeleted": None, "SpaceReclaimed": 0}


def test_version_and_headers(engine: Engine) -> None:
    reply = engine.api.call("HEAD", "/_ping")
    assert (reply.status, reply.body) == (200, b"")
    for name, value in (
        ("Api-Version", "1.51"),
        ("Docker-Experimental", "false"),
        ("Ostype", "linux"),
        ("Cache-Control", "no-cache, no-store, must-revalidate"),
        ("Pragma", "no-cache"),
    ):
        assert reply.headers[name] == value
    bare = Api(engine.socket, "")
    assert bare.get("/_ping").body == b"OK"
    assert bare.get("/version").ok()["ApiVersion"] == "1.51"
    assert Api(engine.socket, "v1.24").get("/containers/json").ok() == []


def test_the_cli_is_at_home(cli: Cli, busybox: str) -> None:
    """What users type most, in the CLI's own formats."""
    assert "Server Version: " in cli("info")
    assert cli("version", "--format", "{{.Server.APIVersion}}") == "1.51\n"
    cli("run", "-d", "--name", "box", "-p", "8085:80", busybox, "sleep", "1000")
    line = cli("ps", "--format", "{{.Names}}|{{.Image}}|{{.Command}}|{{.Ports}}|{{.Status}}").strip()
    assert line.startswith('box|busybox:latest|"sleep 1000"|0.0.0.0:8085->80/tcp, [::]:8085->80/tcp|Up ')
    assert cli("ps", "-q") == cli("ps", "-q", "-f", "name=box")
    assert "busybox" in cli("images")
    assert "TYPE" in cli("system", "df")
    assert "bridge" in cli("network", "ls")
    cli("restart", "-t", "0", "box")
    cli("pause", "box")
    assert "(Paused)" in cli("ps")
    cli("unpause", "box")
    cli("rename", "box", "renamed")
    assert cli("rm", "-f", "renamed") == "renamed\n"

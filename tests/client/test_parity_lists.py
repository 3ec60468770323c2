"""Lists and reports: what Docker shows of the same objects."""

import json
import time

import pytest

from tests.api import Api
from tests.cli import Cli
from tests.registry import wait_until

pytestmark = [pytest.mark.root, pytest.mark.parity]


def test_filters_by_port(api: Api, cli: Cli, busybox: str) -> None:
    """``publish`` is about ports of the host, ``expose`` about ports of the container; both about running ones."""
    cli("run", "-d", "--name", "ports", "-p", "8082:80", "--expose", "99", busybox, "sleep", "1000")
    cli("create", "--expose", "99", busybox)
    for filters, count in (
        ({"publish": ["8082"]}, 1),
        ({"publish": ["8082/udp"]}, 0),
        ({"publish": ["80"]}, 0),
        ({"publish": ["8000-9000"]}, 1),
        ({"expose": ["99"]}, 1),
        ({"expose": ["80/tcp"]}, 1),
        ({"expose": ["98"], "publish": ["8082"]}, 1),
    ):
        assert len(api.get("/containers/json", all="1", filters=filters).ok()) == count, filters


@pytest.mark.parametrize(
    ("expression", "count"),
    [
        (r"named[12]$", 1),
        (r"named\d+", 2),
        (r"(named1|foo)", 1),
        (r"named{1}", 2),
        (r"(?i)NAMED1", 1),
        (r"named*", 2),
        (r"\Qnamed1\E", 1),
        (r"named(?=1)", 0),
        (r"NAMED1", 0),
        (r"[", 0),
    ],
)
def test_names_by_expression(api: Api, cli: Cli, busybox: str, expression: str, count: int) -> None:
    names = ("named1", "named22")
    for name in names:
        api.post("/volumes/create", {"Name": name}).ok()
        api.post("/networks/create", {"Name": name}).ok()
        api.post("/containers/create", {"Image": busybox}, name=name).ok()
    try:
        filters = {"name": [expression]}
        volumes = api.get("/volumes", filters=filters).ok()["Volumes"] or []
        networks = api.get("/networks", filters=filters).ok()
        containers = api.get("/containers/json", all="1", filters=filters).ok()
        assert (len(volumes), len(networks), len(containers)) == (count, count, count)
    finally:
        for name in names:
            api.delete(f"/volumes/{name}").ok()
            api.delete(f"/networks/{name}").ok()


def happened(api: Api, since: str) -> list[str]:
    """Type, action and what else tells events apart, but for container ids."""
    found = api.get("/events", since=since, until=str(time.time())).body.decode().splitlines()
    lines: list[str] = []
    for event in map(json.loads, found):
        attributes = event["Actor"]["Attributes"]
        told = [attributes[key] for key in ("signal", "destination", "read/write") if key in attributes]
        lines.append(" ".join([event["Type"], event["Action"], *told]))
    return lines


def test_events_of_volumes(api: Api, cli: Cli, busybox: str) -> None:
    since = str(time.time())
    cli("run", "--name", "mounted", "-v", "mounted:/v:ro", "-v", "/etc:/e", busybox, "true")
    cli("rm", "mounted")
    cli("volume", "rm", "mounted")
    assert happened(api, since) == [
        "volume create",
        "container create",
        "container attach",
        "volume mount /v false",
        "network connect",
        "container start",
        "network disconnect",
        "volume unmount",
        "container die",
        "container destroy",
        "volume destroy",
    ]


def test_events_of_a_failed_start(api: Api, cli: Cli, busybox: str) -> None:
    cli("create", "--name", "failed", "-v", "failed:/v", busybox, "nope")
    since = str(time.time())
    assert cli.call("start", "failed").code == 1
    cli("rm", "failed")
    assert happened(api, since) == [
        "volume mount /v true",
        "network disconnect",
        "volume unmount",
        "container destroy",
    ]


def test_a_stop_without_patience_asks_first(api: Api, cli: Cli, busybox: str) -> None:
    cli("run", "-d", "--name", "hasty", busybox, "sleep", "1000")
    since = str(time.time())
    cli("stop", "-t", "0", "hasty")
    assert [line for line in happened(api, since) if "kill" in line] == ["container kill 15", "container kill 9"]


def test_events_of_execs(api: Api, cli: Cli, busybox: str) -> None:
    cli("run", "-d", "--name", "busy", busybox, "sleep", "1000")
    since = str(time.time())
    cli("exec", "busy", "true")
    cli("exec", "busy", "echo", "a", "b")
    wait_until(lambda: len(happened(api, since)) == 6, "both have ended")
    assert happened(api, since) == [
        "container exec_create: true ",
        "container exec_start: true ",
        "container exec_die",
        "container exec_create: echo a b",
        "container exec_start: echo a b",
        "container exec_die",
    ]


def test_top_takes_joined_options(cli: Cli, busybox: str) -> None:
    cli("run", "-d", "--name", "topped", busybox, "sleep", "1000")
    assert cli("top", "topped", "-eo", "pid,comm").split()[::2][:1] == ["PID"]


def test_inspect_shows_the_limits_that_are_set(api: Api, cli: Cli, busybox: str) -> None:
    cli("create", "--name", "limited", "-m", "20m", "-v", "data:/data", busybox)
    shown = api.get("/containers/limited/json").ok()
    assert shown["HostConfig"]["MemorySwap"] == 40 << 20
    assert shown["Config"]["Volumes"] is None
    assert shown["Mounts"][0]["Mode"] == "z"


def test_a_stopped_container_knows_its_network(api: Api, cli: Cli, busybox: str) -> None:
    cli("create", "--name", "linked", busybox, "true")
    assert api.get("/containers/linked/json").ok()["NetworkSettings"]["Networks"]["bridge"]["NetworkID"] == ""
    cli("start", "-a", "linked")
    shown = api.get("/containers/linked/json").ok()["NetworkSettings"]["Networks"]["bridge"]
    assert (shown["NetworkID"], shown["EndpointID"]) == (api.get("/networks/bridge").ok()["Id"], "")


def test_files_of_a_container_that_is_being_killed(api: Api, cli: Cli, busybox: str) -> None:
    """Whoever wins, the reply is the file."""
    for _ in range(5):
        cli("run", "-d", "--name", "dying", busybox, "sh", "-c", "echo x > /x; sleep 1000")
        wait_until(lambda: api.call("HEAD", "/containers/dying/archive", path="/x").status == 200, "the file")
        api.post("/containers/dying/kill").ok()
        assert api.call("GET", "/containers/dying/archive", path="/x").status == 200
        cli("rm", "-f", "dying")


def test_inspect_shows_tmpfs_mounts_and_addresses(api: Api, cli: Cli, busybox: str) -> None:
    address = "02:42:ac:11:00:99"
    cli("create", "--name", "shown", "--mount", "type=tmpfs,dst=/t", "--tmpfs", "/u", "--mac-address", address, busybox)
    shown = api.get("/containers/shown/json").ok()
    tmpfs = {"Type": "tmpfs", "Source": "", "Destination": "/t", "Mode": "", "RW": True, "Propagation": ""}
    assert shown["Mounts"] == [tmpfs]
    assert api.get("/containers/json", all="1").ok()[0]["Mounts"] == [tmpfs]
    assert shown["Config"]["MacAddress"] == address


def test_a_shared_network_has_a_host_name_already(cli: Cli, busybox: str) -> None:
    cli("run", "-d", "--name", "owner", busybox, "sleep", "1000")
    done = cli.call("create", "--network", "container:owner", "-h", "x", busybox)
    assert done.err.splitlines()[0].endswith("conflicting options: hostname and the network mode")

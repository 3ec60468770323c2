"""Networks of the user's own: made, joined, left, removed; who reaches whom in them."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.api import Api, Reply
from tests.cli import Cli
from tests.engine import Engine, OwnEngine
from tests.registry import wait_until

pytestmark = [pytest.mark.root, pytest.mark.parity]

SUBNET = {"Config": [{"Subnet": "10.199.1.0/24", "Gateway": "10.199.1.1", "AuxiliaryAddresses": {"x": "10.199.1.5"}}]}


@pytest.fixture(autouse=True)
def _networks(engine: Engine) -> Iterator[None]:
    """No networks of the user's own after a test."""
    yield
    engine.clear()
    engine.api.post("/networks/prune").ok()


def told(reply: Reply) -> tuple[int, str]:
    return reply.status, reply.json()["message"] if reply.body and reply.status >= 400 else ""


def make(api: Api, name: str, **settings: Any) -> str:
    return str(api.post("/networks/create", {"Name": name, **settings}).ok()["Id"])


def run(api: Api, name: str, networks: dict[str, Any], mode: str = "", **settings: Any) -> str:
    host_config = {"NetworkMode": mode or next(iter(networks)), **settings.pop("HostConfig", {})}
    body = {
        "Image": "busybox:latest",
        "Cmd": ["sleep", "1000"],
        "HostConfig": host_config,
        "NetworkingConfig": {"EndpointsConfig": networks},
        **settings,
    }
    made = api.post("/containers/create", body, name=name).ok()["Id"]
    api.post(f"/containers/{name}/start").ok()
    return str(made)


def joined(api: Api, name: str) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = api.get(f"/containers/{name}/json").ok()["NetworkSettings"]["Networks"]
    return found


@pytest.mark.parametrize(
    ("settings", "status", "text"),
    [
        ({"Name": " "}, 400, "invalid name: name is empty"),
        ({"Name": "host"}, 403, "operation is not permitted on predefined host network "),
        ({"Name": "there"}, 409, "network with name there already exists"),
        ({"Driver": "foo"}, 404, 'plugin "foo" not found'),
        ({"Driver": "host"}, 403, 'only one instance of "host" network is allowed'),
        ({"Scope": "swarm"}, 403, "cannot create a swarm scoped network when swarm is not active"),
        ({"Ingress": True}, 403, "Ingress network can only be global scope network"),
        ({"EnableIPv4": False}, 400, "IPv4 or IPv6 must be enabled"),
        ({"ConfigFrom": {"Network": "nope"}}, 404, 'configuration network "nope" does not exist'),
        ({"IPAM": {"Driver": "foo"}}, 404, 'plugin "foo" not found'),
        (
            {"IPAM": {"Config": [{"Subnet": "10.199.0.0/16"}]}},
            403,
            "invalid pool request: Pool overlaps with other one on this address space",
        ),
        (
            {"IPAM": {"Config": [{"Subnet": "10.198.0.0/24"}, {"Subnet": "10.197.0.0/24"}]}},
            403,
            "bridge driver doesn't support multiple subnets",
        ),
        (
            {
                "IPAM": {
                    "Config": [
                        {"Subnet": "bad"},
                        {"Subnet": "10.198.0.1/24", "Gateway": "10.197.0.1", "IPRange": "10.197.0.0/25"},
                        {"Subnet": "10.198.1.0/24", "AuxiliaryAddresses": {"a": "x"}},
                    ]
                }
            },
            400,
            "invalid network config:\n* invalid subnet bad: invalid CIDR block notation\n"
            "* invalid subnet 10.198.0.1/24: it should be 10.198.0.0/24\n"
            "* invalid ip-range 10.197.0.0/25: parent subnet 10.198.0.1/24 doesn't contain ip-range\n"
            "* invalid gateway 10.197.0.1: parent subnet 10.198.0.1/24 doesn't contain this address\n"
            "* invalid auxiliary address a: invalid address",
        ),
        (
            {"Options": {"com.docker.network.bridge.enable_icc": "x"}},
            400,
            "failed to parse com.docker.network.bridge.enable_icc value: x"
            ' (strconv.ParseBool: parsing "x": invalid syntax)',
        ),
        (
            {"Options": {"com.docker.network.bridge.gateway_mode_ipv4": "isolated"}},
            500,
            "gateway mode 'isolated' can only be used for an internal network",
        ),
        ({"Options": {"com.docker.network.bridge.name": "x" * 16}}, 500, "numerical result out of range"),
    ],
)
def test_what_is_no_network(api: Api, settings: dict[str, Any], status: int, text: str) -> None:
    make(api, "there", IPAM=SUBNET)
    assert told(api.post("/networks/create", {"Name": "new", **settings})) == (status, text)


def test_a_network_as_it_is_shown(api: Api, busybox: str) -> None:
    labels, options = {"a": "b"}, {"com.docker.network.driver.mtu": "1400"}
    network_id = make(api, "mine", IPAM=SUBNET, Labels=labels, Options=options, Attachable=True)
    container_id = run(api, "in", {"mine": {}})
    shown = api.get("/networks/mine").ok()
    endpoint = joined(api, "in")["mine"]
    assert {key: shown[key] for key in ("Id", "Driver", "Scope", "IPAM", "Labels", "Options", "Attachable")} == {
        "Id": network_id,
        "Driver": "bridge",
        "Scope": "local",
        "IPAM": {"Driver": "default", "Options": None, **SUBNET},
        "Labels": labels,
        "Options": options,
        "Attachable": True,
    }
    assert shown["Containers"] == {
        container_id: {
            "Name": "in",
            "EndpointID": endpoint["EndpointID"],
            "MacAddress": endpoint["MacAddress"],
            "IPv4Address": "10.199.1.2/24",
            "IPv6Address": "",
        }
    }
    assert (endpoint["Gateway"], endpoint["NetworkID"]) == ("10.199.1.1", network_id)
    assert endpoint["DNSNames"] == ["in", container_id[:12]]


def test_lists(api: Api) -> None:
    make(api, "mine", Labels={"a": "b"})

    def names(**filters: list[str]) -> list[str]:
        return sorted(network["Name"] for network in api.get("/networks", filters=filters).ok())

    assert names() == ["bridge", "host", "mine", "none"]
    for filters in ({"type": ["custom"]}, {"label": ["a=b"]}, {"name": ["in"]}, {"dangling": ["true"]}):
        assert names(**filters) == ["mine"]
    assert names(dangling=["false"]) == names(type=["builtin"]) == ["bridge", "host", "none"]
    assert names(driver=["bridge"]) == ["bridge", "mine"]
    assert names(label=["a=c"]) == names(scope=["swarm"]) == []


def test_removal(api: Api, busybox: str) -> None:
    make(api, "mine")
    make(api, "other")
    run(api, "in", {"mine": {}})
    endpoint = joined(api, "in")["mine"]["EndpointID"]
    assert told(api.delete("/networks/mine")) == (
        403,
        f'error while removing network: network mine has active endpoints (name:"in" id:"{endpoint[:12]}")',
    )
    assert told(api.delete("/networks/none")) == (403, "none is a pre-defined network and cannot be removed")
    assert told(api.delete("/networks/nope")) == (404, "network nope not found")
    assert api.post("/networks/prune").ok() == {"NetworksDeleted": ["other"]}
    api.post("/containers/in/stop", t="0")
    gone = joined(api, "in")["mine"]["NetworkID"]
    assert api.delete("/networks/mine").status == 204
    make(api, "mine")  # another of the same name is not the one that the container was in
    assert told(api.post("/containers/in/start")) == (
        404,
        f"failed to set up container networking: network {gone} not found",
    )


def test_several_networks_from_the_start(api: Api, cli: Cli, busybox: str) -> None:
    make(api, "first", IPAM=SUBNET)
    make(api, "second", IPAM={"Config": [{"Subnet": "10.199.2.0/24"}]})
    run(
        api,
        "both",
        {
            "first": {"IPAMConfig": {"IPv4Address": "10.199.1.77"}, "MacAddress": "02:42:ac:11:00:99"},
            "second": {"Aliases": ["other"], "GwPriority": 7},
        },
    )
    shown = joined(api, "both")
    assert (shown["first"]["IPAddress"], shown["first"]["MacAddress"]) == ("10.199.1.77", "02:42:ac:11:00:99")
    # The order of attachment is not promised: only the gateway's priority is.
    routes = cli("exec", "both", "ip", "route").splitlines()
    assert [line.split()[2] for line in routes if line.startswith("default")] == ["10.199.2.1"]
    hostname = api.get("/containers/both/json").ok()["Config"]["Hostname"]
    assert sorted(cli("exec", "both", "cat", "/etc/hosts").splitlines()[-2:]) == [
        f"{shown[name]['IPAddress']}\t{hostname}" for name in ("first", "second")
    ]


def test_joining_and_leaving_while_it_runs(api: Api, cli: Cli, busybox: str) -> None:
    make(api, "first", IPAM=SUBNET)
    make(api, "second", IPAM={"Config": [{"Subnet": "10.199.2.0/24"}]})
    run(api, "in", {"bridge": {}}, ExposedPorts={"80/tcp": {}}, HostConfig={"PortBindings": {"80/tcp": [{}]}})

    def inside() -> tuple[list[str], str]:
        addresses = cli("exec", "in", "ip", "-4", "-o", "addr").splitlines()
        routes = cli("exec", "in", "ip", "route").splitlines()
        default = next((line.split()[4] for line in routes if line.startswith("default")), "")
        return [line.split()[1] for line in addresses], default

    cli("network", "connect", "--alias", "db", "--ip", "10.199.1.9", "first", "in")
    assert inside() == (["lo", "eth0", "eth1"], "eth0")
    assert cli("exec", "in", "grep", "-c", "127.0.0.11", "/etc/resolv.conf").strip() == "1"
    cli("network", "connect", "--gw-priority", "3", "second", "in")
    assert inside() == (["lo", "eth0", "eth1", "eth2"], "eth2")
    assert "10.199.1.9" in cli("exec", "in", "cat", "/etc/hosts")
    assert joined(api, "in")["first"]["Aliases"] == ["db"]
    ports = api.get("/containers/in/json").ok()["NetworkSettings"]["Ports"]["80/tcp"]
    assert len({port["HostPort"] for port in ports}) == 1
    for network in ("second", "bridge"):
        cli("network", "disconnect", network, "in")
    assert inside() == (["lo", "eth1"], "eth1")
    cli("network", "disconnect", "first", "in")
    assert inside() == (["lo"], "")
    assert joined(api, "in") == {}


def test_joining_and_leaving_while_it_is_stopped(api: Api, busybox: str) -> None:
    make(api, "first", IPAM=SUBNET)
    api.post("/containers/create", {"Image": "busybox:latest", "Cmd": ["sleep", "9"]}, name="in").ok()
    request = {"Container": "in", "EndpointConfig": {"Aliases": ["db"]}}
    api.post("/networks/first/connect", request).ok()
    assert sorted(joined(api, "in")) == ["bridge", "first"]
    api.post("/networks/bridge/disconnect", {"Container": "in"}).ok()
    assert joined(api, "in")["first"]["DNSNames"][:2] == ["in", "db"]
    api.post("/containers/in/start").ok()
    assert joined(api, "in")["first"]["IPAddress"] == "10.199.1.2"


def test_what_cannot_be_joined(api: Api, busybox: str) -> None:
    make(api, "mine", IPAM=SUBNET)
    make(api, "free")
    run(api, "in", {"mine": {}})
    run(api, "host", {}, mode="host")
    run(api, "none", {}, mode="none")

    def connect(network: str, container: str, **settings: Any) -> tuple[int, str]:
        return told(api.post(f"/networks/{network}/connect", {"Container": container, "EndpointConfig": settings}))

    own = "user specified IP address is supported only when connecting to networks with user configured subnets"
    assert [
        connect("mine", "in"),
        connect("nope", "in"),
        connect("mine", "nope"),
        connect("host", "in"),
        connect("mine", "host"),
        connect("mine", "none"),
        connect("free", "in", IPAMConfig={"IPv4Address": "10.1.1.1"}),
        connect("free", "in", MacAddress="x"),
    ] == [
        (403, "endpoint with name in already exists in network mine"),
        (404, "network nope not found"),
        (404, "No such container: nope"),
        (400, "cannot connect container to host network - container must be created in host network mode"),
        (
            400,
            "container sharing network namespace with another container or host cannot be connected to any other "
            "network",
        ),
        (400, "container cannot be connected to multiple networks with one of the networks in private (none) mode"),
        (400, f"invalid endpoint settings:\n{own}"),
        (400, "invalid MAC address x"),
    ]
    assert told(api.post("/networks/free/disconnect", {"Container": "in"}))[0] == 500
    assert told(api.post("/networks/free/disconnect", {"Container": "nope", "Force": True})) == (
        404,
        "endpoint nope not found",
    )


@pytest.mark.parametrize(
    ("mode", "endpoints", "status", "text"),
    [
        ("mine", {"mine": {"IPAMConfig": {"IPv4Address": "10.77.0.1"}}}, 400, "no configured subnet or ip-range"),
        ("mine", {"mine": {"IPAMConfig": {"IPv4Address": "bad"}}}, 400, "* invalid IPv4 address: bad"),
        ("bridge", {"bridge": {"Aliases": ["a"]}}, 400, "network-scoped alias is supported only for containers in"),
        ("bridge", {"bridge": {"MacAddress": "zz"}}, 400, "invalid config for network bridge: invalid MAC address zz"),
    ],
)
def test_what_cannot_be_created(
    api: Api, busybox: str, mode: str, endpoints: dict[str, Any], status: int, text: str
) -> None:
    make(api, "mine", IPAM=SUBNET)
    body = {
        "Image": "busybox:latest",
        "HostConfig": {"NetworkMode": mode},
        "NetworkingConfig": {"EndpointsConfig": endpoints},
    }
    found = told(api.post("/containers/create", body))
    assert found[0] == status
    assert text in found[1]


@pytest.mark.parametrize("address", ["10.199.1.1", "10.199.1.5"], ids=["gateway", "auxiliary"])
def test_addresses_that_are_taken(api: Api, busybox: str, address: str) -> None:
    make(api, "mine", IPAM=SUBNET)
    body = {
        "Image": "busybox:latest",
        "HostConfig": {"NetworkMode": "mine"},
        "NetworkingConfig": {"EndpointsConfig": {"mine": {"IPAMConfig": {"IPv4Address": address}}}},
    }
    api.post("/containers/create", body, name="in").ok()
    assert told(api.post("/containers/in/start")) == (
        403,
        "failed to set up container networking: Address already in use",
    )


def test_events(api: Api, cli: Cli, busybox: str) -> None:
    since = api.get("/info").ok()["SystemTime"]
    network_id = make(api, "mine")
    container_id = run(api, "in", {"mine": {}})
    api.post("/networks/bridge/connect", {"Container": "in"}).ok()
    api.post("/networks/bridge/disconnect", {"Container": "in"}).ok()
    api.delete("/containers/in", force="1").ok()
    api.delete("/networks/mine").ok()
    until = api.get("/info").ok()["SystemTime"]
    raw = cli("events", "--since", since, "--until", until, "--format", "{{json .}}", "-f", "type=network")
    events = [json.loads(line) for line in raw.splitlines()]
    assert [(event["Action"], event["Actor"]["Attributes"]["name"]) for event in events] == [
        ("create", "mine"),
        ("connect", "mine"),
        ("connect", "bridge"),
        ("disconnect", "bridge"),
        ("disconnect", "mine"),
        ("destroy", "mine"),
    ]
    assert events[0]["Actor"] == {"ID": network_id, "Attributes": {"name": "mine", "type": "bridge"}}
    assert events[1]["Actor"]["Attributes"] == {"container": container_id, "name": "mine", "type": "bridge"}


def test_networks_are_apart(api: Api, cli: Cli, busybox: str) -> None:
    make(api, "first", IPAM=SUBNET)
    make(api, "second", IPAM={"Config": [{"Subnet": "10.199.2.0/24"}]})
    make(api, "closed", Internal=True, IPAM={"Config": [{"Subnet": "10.199.3.0/24"}]})
    serve = ["sh", "-c", "echo hello >/index.html; httpd -f -p 80 -h /"]
    for name, network in (("aa", "first"), ("bb", "second"), ("cc", "closed")):
        run(api, name, {network: {}}, Cmd=serve)
        run(api, f"{name}2", {network: {}})

    def reaches(source: str, target: str) -> bool:
        address = next(iter(joined(api, target).values()))["IPAddress"]
        ask = f"printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 1 {address} 80"
        return cli.call("exec", source, "sh", "-c", ask).out.endswith("hello\n")

    wait_until(lambda: all(reaches(f"{name}2", name) for name in ("aa", "bb", "cc")), "the servers answer")
    assert not reaches("aa2", "bb")
    assert not reaches("aa2", "cc")
    assert not reaches("cc2", "aa")
    assert "default" not in cli("exec", "cc", "ip", "route")


def test_ipv6(api: Api, cli: Cli, busybox: str) -> None:
    make(api, "six", EnableIPv6=True, IPAM={"Config": [{"Subnet": "fd00:199::/64"}]})
    run(api, "one", {"six": {"IPAMConfig": {"IPv6Address": "fd00:199::77"}}}, Cmd=["nc", "-l", "-p", "7", "-e", "date"])
    run(api, "two", {"six": {}})
    shown = joined(api, "one")["six"]
    assert (shown["GlobalIPv6Address"], shown["GlobalIPv6PrefixLen"]) == ("fd00:199::77", 64)
    assert shown["IPv6Gateway"] == "fd00:199::1"
    assert "via fd00:199::1 dev eth0" in cli("exec", "two", "ip", "-6", "route")
    assert cli("exec", "two", "ping", "-6", "-c", "1", "-W", "2", "fd00:199::77")
    make(api, "only", EnableIPv4=False, EnableIPv6=True)
    run(api, "three", {"only": {}})
    alone = joined(api, "three")["only"]
    assert alone["IPAddress"] == ""
    assert alone["GlobalIPv6Address"].startswith("fd")


def test_mac_addresses(api: Api, busybox: str) -> None:
    mac = "02:42:ac:11:00:bb"
    old = Api(api.path, "v1.43")
    for client, warnings in ((old, 0), (api, 1)):
        body = {"Image": "busybox:latest", "MacAddress": mac}
        made = client.post("/containers/create", body, name="in").ok()
        assert len(made["Warnings"]) == warnings
        shown = api.get("/containers/in/json").ok()
        assert shown["Config"]["MacAddress"] == shown["NetworkSettings"]["Networks"]["bridge"]["MacAddress"] == mac
        api.delete("/containers/in").ok()
    on_host = {"Image": "busybox:latest", "MacAddress": mac, "HostConfig": {"NetworkMode": "host"}}
    assert told(old.post("/containers/create", on_host)) == (
        400,
        "conflicting options: mac-address and the network mode",
    )


def test_interfaces_as_they_are_wanted(api: Api, cli: Cli, busybox: str) -> None:
    make(api, "mine", Options={"com.docker.network.container_iface_prefix": "net"})
    option = "driver-opt=com.docker.network.endpoint"
    sysctl = f"{option}.sysctls=net.ipv4.conf.IFNAME.log_martians=1"
    look = "cat /proc/sys/net/ipv4/conf/*/log_martians; cat /proc/net/dev | grep -o '[a-z]*0:'"
    assert "1" in cli("run", "--rm", "--network", f"name=mine,{sysctl}", busybox, "sh", "-c", look).split()
    named = f"name=mine,{option}.ifname=mine0"
    assert cli("run", "--rm", "--network", named, busybox, "sh", "-c", look).split()[-1] == "mine0:"
    assert cli("run", "--rm", "--network", "mine", busybox, "sh", "-c", look).split()[-1] == "net0:"
    done = cli.call("run", "--network", f"name=mine,{option}.sysctls=net.ipv4.foo.IFNAME.x=1", busybox)
    assert "/proc/sys/net/ipv4/foo/net0/x is not a sysctl file" in done.err


@pytest.mark.own("the daemon has flags of its own")
def test_what_the_daemon_s_flags_say() -> None:
    flags = ("--ipv6", "--fixed-cidr-v6", "fd00:199:6::/64", "--default-address-pool", "base=10.199.0.0/16,size=28")
    engine = OwnEngine(*flags)
    try:
        engine.start()
        shown = engine.api.get("/networks/bridge").ok()
        assert shown["EnableIPv6"]
        assert shown["IPAM"]["Config"] == [
            {"Subnet": "10.199.0.0/28", "Gateway": "10.199.0.1"},
            {"Subnet": "fd00:199:6::/64", "Gateway": "fd00:199:6::1"},
        ]
        make(engine.api, "mine")
        assert engine.api.get("/networks/mine").ok()["IPAM"]["Config"] == [
            {"Subnet": "10.199.0.16/28", "Gateway": "10.199.0.17"}
        ]
        engine.load("busybox:latest")
        run(engine.api, "in", {"bridge": {}})
        assert engine.api.get("/containers/in/json").ok()["NetworkSettings"]["GlobalIPv6Address"] == "fd00:199:6::2"
        engine.kill()
        engine.start()
        assert joined(engine.api, "in")["bridge"]["GlobalIPv6Address"] == "fd00:199:6::2"
        engine.clear()
        engine.api.delete("/networks/mine").ok()
    finally:
        engine.close()

"""Published ports as seen from the machine itself: both families, both protocols, across restarts."""

import contextlib
import socket
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from tests.api import Api
from tests.client.test_dns import within
from tests.client.test_networks import joined, make, run, told
from tests.engine import Engine
from tests.registry import wait_until

pytestmark = [pytest.mark.root, pytest.mark.parity]

TCP, UDP = "80/tcp", "53/udp"
SERVE = ["sh", "-c", "echo hello > index.html; exec httpd -f -p 80 -h ."]


@pytest.fixture(autouse=True)
def _networks(engine: Engine) -> Iterator[None]:
    yield
    engine.clear()
    engine.api.post("/networks/prune").ok()


@contextlib.contextmanager
def echo(api: Api, container: str) -> Iterator[None]:
    """A UDP server in the container that sends back what it gets."""
    server = within(api, container, lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM))
    server.settimeout(0.05)
    server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    server.bind(("::", 53))
    stop = threading.Event()

    def serve() -> None:
        while not stop.is_set():
            with contextlib.suppress(TimeoutError):
                data, sender = server.recvfrom(512)
                server.sendto(data, sender)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        server.close()


def published(api: Api, name: str, key: str) -> dict[str, int]:
    """Host port by host address."""
    ports = api.get(f"/containers/{name}/json").ok()["NetworkSettings"]["Ports"][key]
    return {port["HostIp"]: int(port["HostPort"]) for port in ports}


def ask(engine: Engine, address: str, port: int) -> bytes:
    """What comes back by UDP for a word."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with engine.inside(lambda: socket.socket(family, socket.SOCK_DGRAM)) as client:
        client.settimeout(5)
        client.connect((address, port))
        client.send(b"word")
        return client.recv(100)


def answers(engine: Engine, port: int) -> bool:
    try:
        return engine.fetch(port) == "hello\n"
    except OSError:
        return False


@pytest.mark.own("the other engine's ports are in a namespace of its own")
@pytest.mark.parametrize("kind", ["bridge", "dual"])
def test_ports_answer_on_both_families(engine: Engine, api: Api, busybox: str, kind: str) -> None:
    if kind == "dual":
        make(api, "dual", EnableIPv6=True)
    bindings: dict[str, Any] = {TCP: [{}], UDP: [{}]}
    run(api, "web", {kind: {}}, Cmd=SERVE, ExposedPorts={TCP: {}, UDP: {}}, HostConfig={"PortBindings": bindings})
    for _ in range(2):
        port = published(api, "web", TCP)
        assert list(port) == ["0.0.0.0", "::"]
        wait_until(partial(answers, engine, port["0.0.0.0"]), "the server answers")
        assert engine.fetch(port["::"], host="::1") == "hello\n"
        assert engine.fetch(port["0.0.0.0"], host=engine.address) == "hello\n"
        with echo(api, "web"):
            for address, number in zip(("127.0.0.1", "::1"), published(api, "web", UDP).values(), strict=True):
                assert ask(engine, address, number) == b"word"
        api.post("/containers/web/restart", t="0").ok()


def test_the_network_says_where(api: Api, busybox: str) -> None:
    make(api, "local", Options={"com.docker.network.bridge.host_binding_ipv4": "127.0.0.1"})
    run(api, "web", {"local": {}}, ExposedPorts={TCP: {}}, HostConfig={"PortBindings": {TCP: [{}]}})
    assert list(published(api, "web", TCP)) == ["127.0.0.1"]
    make(api, "routed", Options={"com.docker.network.bridge.gateway_mode_ipv4": "routed"})
    run(api, "direct", {"routed": {}}, ExposedPorts={TCP: {}}, HostConfig={"PortBindings": {TCP: [{}]}})
    ports = api.get("/containers/direct/json").ok()["NetworkSettings"]["Ports"][TCP]
    assert ports == [{"HostIp": "0.0.0.0", "HostPort": ""}, {"HostIp": "::", "HostPort": ports[1]["HostPort"]}]
    make(api, "closed", Internal=True)
    run(api, "inside", {"closed": {}}, ExposedPorts={TCP: {}}, HostConfig={"PortBindings": {TCP: [{}]}})
    assert api.get("/containers/inside/json").ok()["NetworkSettings"]["Ports"] == {}


def test_a_port_is_published_once(api: Api, busybox: str) -> None:
    bindings = {TCP: [{"HostPort": "28080"}]}
    run(api, "first", {"bridge": {}}, ExposedPorts={TCP: {}}, HostConfig={"PortBindings": bindings})
    exposed: dict[str, Any] = {TCP: {}}
    hosted = {"PortBindings": bindings}
    body = {"Image": busybox, "Cmd": ["sleep", "9"], "ExposedPorts": exposed, "HostConfig": hosted}
    api.post("/containers/create", body, name="second").ok()
    status, text = told(api.post("/containers/second/start"))
    assert status == 500
    assert text.startswith("failed to set up container networking: driver failed programming external connectivity")
    assert text.endswith("Bind for 0.0.0.0:28080 failed: port is already allocated")
    api.post("/containers/first/kill").ok()
    wait_until(lambda: api.post("/containers/second/start").status in (204, 304), "the port is free")
    assert joined(api, "second")["bridge"]["IPAddress"]

"""Names in networks of the user's own, asked for as a container's programs ask: by UDP and TCP at 127.0.0.11."""

import contextlib
import os
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeVar

import pytest

from compatd.network import netns
from tests.api import Api
from tests.cli import Cli
from tests.client.test_networks import make, run
from tests.engine import Engine, OwnEngine
from tests.registry import wait_until

pytestmark = [pytest.mark.root, pytest.mark.parity]

T = TypeVar("T")
A, PTR, MX, AAAA = 1, 12, 15, 28
OK, FAILED, UNKNOWN = 0, 2, 3
TIMEOUT_S = 5


@pytest.fixture(autouse=True)
def _networks(engine: Engine) -> Iterator[None]:
    yield
    engine.clear()
    engine.api.post("/networks/prune").ok()


class Reply(NamedTuple):
    code: int
    records: list[str]


def within(api: Api, container: str, function: Callable[[], T]) -> T:
    """Run ``function`` in a container's network namespace."""
    pid = api.get(f"/containers/{container}/json").ok()["State"]["Pid"]
    fd = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return netns.run(fd, function)
    finally:
        os.close(fd)


def name_of(text: str) -> bytes:
    return b"".join(bytes((len(label),)) + label.encode() for label in text.rstrip(".").split(".")) + b"\0"


def ask(api: Api, container: str, name: str, kind: int = A, *, tcp: bool = False) -> Reply:
    """What the container's resolver answers."""
    query = struct.pack("!HHHHHH", 4711, 0x0100, 1, 0, 0, 0) + name_of(name) + struct.pack("!HH", kind, 1)
    made = within(api, container, lambda: socket.socket(type=socket.SOCK_STREAM if tcp else socket.SOCK_DGRAM))
    with made:
        made.settimeout(TIMEOUT_S)
        made.connect(("127.0.0.11", 53))
        made.sendall(len(query).to_bytes(2, "big") + query if tcp else query)
        reply = made.recv(4096)
    if tcp:
        reply = reply[2:]
    identity, flags, _, count, _, _ = struct.unpack_from("!HHHHHH", reply)
    assert identity == 4711
    assert flags & 0x8000
    offset = len(query)
    records: list[str] = []
    for _ in range(count):
        while reply[offset] and reply[offset] < 0xC0:
            offset += 1 + reply[offset]
        offset += 2 if reply[offset] else 1
        found, _, _, size = struct.unpack_from("!HHIH", reply, offset)
        data = reply[offset + 10 : offset + 10 + size]
        if found == PTR:
            labels: list[str] = []
            while data[0]:
                labels.append(data[1 : 1 + data[0]].decode())
                data = data[1 + data[0] :]
            records.append(".".join(labels))
        else:
            records.append(socket.inet_ntop(socket.AF_INET if found == A else socket.AF_INET6, data))
        offset += 10 + size
    return Reply(flags & 0xF, sorted(records))


# A server that is asked from within the container, at its own loopback address.
ASKS_ITSELF: dict[str, Any] = {"HostConfig": {"Dns": ["127.0.0.1"]}}


@contextlib.contextmanager
def upstream(api: Api, container: str) -> Iterator[None]:
    """A server in the container's namespace that knows outside.example, and nothing else."""
    server = within(api, container, lambda: socket.socket(type=socket.SOCK_DGRAM))
    server.settimeout(0.05)
    server.bind(("127.0.0.1", 53))
    stop = threading.Event()

    def serve() -> None:
        while not stop.is_set():
            with contextlib.suppress(TimeoutError):
                query, sender = server.recvfrom(512)
                known = query[12:].startswith(name_of("outside.example"))
                head = query[:2] + struct.pack("!HHHHH", 0x8180 if known else 0x8183, 1, int(known), 0, 0)
                answer = b"\xc0\x0c" + struct.pack("!HHIH4B", A, 1, 60, 4, 192, 0, 2, 7) if known else b""
                server.sendto(head + query[12:] + answer, sender)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        server.close()


def test_who_is_known_by_which_name(api: Api, busybox: str) -> None:
    make(api, "mine", IPAM={"Config": [{"Subnet": "10.199.1.0/24"}]})
    make(api, "other", EnableIPv6=True, IPAM={"Config": [{"Subnet": "10.199.2.0/24"}, {"Subnet": "fd00:199::/64"}]})
    first = run(api, "first", {"mine": {"Aliases": ["web", "one"]}}, Hostname="named", **ASKS_ITSELF)
    run(api, "second", {"mine": {"Aliases": ["web"]}, "other": {}})
    run(api, "third", {"other": {}})
    run(api, "plain", {"bridge": {}})
    for name in ("first", "one", "FIRST", "named", first[:12], "first.mine"):
        assert ask(api, "second", name) == (OK, ["10.199.1.2"]), name
    assert ask(api, "first", "web") == ask(api, "second", "web.mine") == (OK, ["10.199.1.2", "10.199.1.3"])
    assert ask(api, "second", "third", tcp=True) == (OK, ["10.199.2.3"])
    # The other family of a name that is known is not asked of others.
    assert ask(api, "second", "first", AAAA) == (OK, [])
    assert ask(api, "second", "third", AAAA) == (OK, ["fd00:199::3"])
    assert ask(api, "second", "2.1.199.10.in-addr.arpa", PTR) == (OK, ["first.mine"])
    with upstream(api, "first"):
        # Who is in another network, or on the default bridge, is not known.
        for name in ("third", "plain", "third.other", "nobody"):
            assert ask(api, "first", name) == (UNKNOWN, []), name
        assert ask(api, "first", "outside.example") == (OK, ["192.0.2.7"])


def test_names_come_and_go_at_once(api: Api, busybox: str) -> None:
    make(api, "mine", IPAM={"Config": [{"Subnet": "10.199.1.0/24"}]})
    run(api, "asking", {"mine": {}}, **ASKS_ITSELF)
    run(api, "guest", {"bridge": {}})
    with upstream(api, "asking"):
        assert ask(api, "asking", "guest") == (UNKNOWN, [])
        api.post("/networks/mine/connect", {"Container": "guest", "EndpointConfig": {"Aliases": ["visitor"]}}).ok()
        assert ask(api, "asking", "guest") == ask(api, "asking", "visitor") == (OK, ["10.199.1.3"])
        assert ask(api, "guest", "asking") == (OK, ["10.199.1.2"])
        api.post("/containers/guest/rename", name="renamed").ok()
        assert ask(api, "asking", "renamed") == (OK, ["10.199.1.3"])
        assert ask(api, "asking", "guest") == (UNKNOWN, [])
        api.post("/networks/mine/disconnect", {"Container": "renamed"}).ok()
        assert ask(api, "asking", "renamed") == (UNKNOWN, [])
        run(api, "passing", {"mine": {}})
        assert ask(api, "asking", "passing").code == OK
        api.post("/containers/passing/kill").ok()
        wait_until(lambda: ask(api, "asking", "passing").code == UNKNOWN, "the name is gone")


def test_internal_networks_ask_nobody_outside(api: Api, busybox: str) -> None:
    make(api, "closed", Internal=True)
    run(api, "inside", {"closed": {}})
    run(api, "serving", {"closed": {}}, **ASKS_ITSELF)
    assert ask(api, "inside", "serving").code == OK
    assert ask(api, "inside", "outside.example") == (FAILED, [])
    with upstream(api, "serving"):
        assert ask(api, "serving", "outside.example") == (OK, ["192.0.2.7"])


def test_links_are_names_for_one_container(api: Api, busybox: str) -> None:
    make(api, "mine", IPAM={"Config": [{"Subnet": "10.199.1.0/24"}]})
    run(api, "database", {"mine": {}})
    run(api, "linked", {"mine": {"Links": ["database:db"]}})
    run(api, "stranger", {"mine": {}}, **ASKS_ITSELF)
    assert ask(api, "linked", "db") == (OK, ["10.199.1.2"])
    with upstream(api, "stranger"):
        assert ask(api, "stranger", "db") == (UNKNOWN, [])


def test_the_resolver_s_files(api: Api, cli: Cli, busybox: str) -> None:
    make(api, "mine")
    options = ["--dns", "192.0.2.53", "--dns-search", "a.example", "--dns-opt", "timeout:1"]
    assert cli("run", "--rm", "--network", "mine", *options, busybox, "cat", "/etc/resolv.conf") == (
        "# Generated by Docker Engine.\n"
        "# This file can be edited; Docker Engine will not make further changes once it\n"
        "# has been modified.\n\n"
        "nameserver 127.0.0.11\n"
        "search a.example\n"
        "options timeout:1 ndots:0\n\n"
        "# Based on host file: '/etc/resolv.conf' (internal resolver)\n"
        "# ExtServers: [192.0.2.53]\n"
        "# Overrides: [nameservers search options]\n"
        "# Option ndots from: internal\n"
    )


@pytest.mark.own("the daemon is killed")
def test_names_are_back_after_a_kill(own_engine: OwnEngine) -> None:
    own_engine.start()
    own_engine.load("busybox:latest")
    api = own_engine.api
    make(api, "mine", IPAM={"Config": [{"Subnet": "10.199.1.0/24"}]})
    settings: dict[str, Any] = {"mine": {"Aliases": ["both"]}}
    for name in ("first", "second"):
        run(api, name, settings)
    own_engine.kill()
    own_engine.start()
    assert ask(api, "first", "both") == (OK, ["10.199.1.2", "10.199.1.3"])
    run(api, "third", settings)
    assert ask(api, "second", "third") == (OK, ["10.199.1.4"])
    own_engine.clear()
    api.delete("/networks/mine").ok()
    assert [link for link in own_engine.network.links() if link.startswith(("br-", "veth"))] == []

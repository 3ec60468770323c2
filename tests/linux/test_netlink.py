import errno
import ipaddress
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compatd.linux.netlink import RouteSocket, attribute, nested, parse_attributes
from compatd.network import netns


@pytest.mark.unit
@settings(max_examples=50)
@given(st.dictionaries(st.integers(1, 0x3FFF), st.binary(max_size=50), max_size=5))
def test_attributes_come_back(attributes: dict[int, bytes]) -> None:
    packed = b"".join(attribute(kind, payload) for kind, payload in attributes.items())
    assert len(packed) % 4 == 0
    assert parse_attributes(packed) == attributes
    assert parse_attributes(parse_attributes(nested(7, packed))[7]) == attributes


@pytest.mark.unit
@settings(max_examples=50)
@given(st.binary(max_size=100))
def test_garbage_parses_to_something(data: bytes) -> None:
    assert sum(len(payload) for payload in parse_attributes(data).values()) <= len(data)


@pytest.mark.unit
def test_an_attribute_has_a_largest_size() -> None:
    assert len(attribute(1, bytes(0xFFFF - 4))) == 0x10000
    with pytest.raises(ValueError, match="too large"):
        attribute(1, bytes(0xFFFF))


@pytest.mark.root
def test_links_addresses_and_routes() -> None:
    fd = netns.create()
    try:
        netns.run(fd, _links)
    finally:
        os.close(fd)


def _links() -> None:
    with RouteSocket() as route:
        assert [(link.name, link.up) for link in route.links()] == [("lo", True)]
        assert route.link("br0") is None
        route.add_bridge("br0", mtu=1400, mac="02:42:00:00:00:01")
        link = route.link("br0")
        assert link is not None
        assert (link.kind, link.mtu, link.mac, link.up) == ("bridge", 1400, "02:42:00:00:00:01", True)
        with pytest.raises(FileExistsError):
            route.add_bridge("br0", mtu=1400, mac="02:42:00:00:00:01")
        address = ipaddress.ip_interface("10.1.0.1/24")
        route.add_address(link.index, address)
        assert (link.index, address) in route.addresses()
        assert [(str(item.destination), item.gateway) for item in route.routes() if item.destination.version == 4] == [
            ("10.1.0.0/24", None)
        ]
        # Several requests at once: the first failure is raised, in the kernel's own words.
        with pytest.raises(OSError, match=r"unreachable|invalid gateway") as caught:
            route.configure(link.index, [ipaddress.ip_interface("10.2.0.1/24")], [ipaddress.ip_address("10.9.9.9")])
        assert caught.value.errno == errno.ENETUNREACH
        assert "gateway" in str(caught.value)
        assert (link.index, ipaddress.ip_interface("10.2.0.1/24")) in route.addresses()
        route.set_mtu(link.index, 1300)
        assert [found.mtu for found in route.links() if found.name == "br0"] == [1300]
        route.delete_link(link.index)
        with pytest.raises(OSError, match="No such device"):
            route.delete_link(link.index)


@pytest.mark.root
def test_a_pair_that_cannot_be_made_is_not_there() -> None:
    fd, inner = netns.create(), netns.create()

    def make(name: str, peer: str, master: int) -> None:
        with RouteSocket() as route:
            route.add_veth(
                name, master=master, peer=peer, peer_namespace_fd=inner, peer_mac="02:00:00:00:00:01", mtu=1500
            )

    def names() -> list[str]:
        with RouteSocket() as route:
            return [link.name for link in route.links()]

    try:
        with pytest.raises(FileExistsError):
            netns.run(fd, lambda: make("veth0", "lo", 0))
        with pytest.raises(OSError):  # noqa: PT011 (which errno differs by kernel)
            netns.run(fd, lambda: make("veth0", "eth0", 999))
        assert netns.run(fd, names) == ["lo"]
        netns.run(fd, lambda: make("veth0", "eth0", 0))
        assert netns.run(inner, names) == ["lo", "eth0"]
        os.close(fd)
        fd = -1
    finally:
        for used in (fd, inner):
            if used >= 0:
                os.close(used)


@pytest.mark.root
def test_many_answers_are_all_read() -> None:
    fd = netns.create()

    def many() -> int:
        with RouteSocket() as route:
            for number in range(200):
                route.add_bridge(f"br{number}", mtu=1500, mac="02:42:00:00:00:01")
            return len(route.links())

    try:
        assert netns.run(fd, many) == 201
    finally:
        os.close(fd)

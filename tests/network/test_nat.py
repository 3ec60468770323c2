"""The desired table as data; what it does to packets is tested in test_driver."""

import ipaddress
import os

import pytest

from compatd.network import nat, netns, nftables
from compatd.network.nat import BridgeRules, Published
from compatd.network.ports import PortMapping

BRIDGE = BridgeRules(bridge="docker0", subnet=ipaddress.IPv4Network("172.17.0.0/16"))


def published(host_port: int, *, host_ip: str = "0.0.0.0", protocol: str = "tcp") -> Published:
    mapping = PortMapping(container_port=80, protocol=protocol, host_ip=host_ip, host_port=host_port)
    return Published(mapping=mapping, address=ipaddress.IPv4Address("172.17.0.2"))


@pytest.mark.unit
def test_published_ports_are_map_elements() -> None:
    table = nat.desired(
        [BRIDGE],
        [published(8080), published(8080, host_ip="::"), published(53, host_ip="10.0.0.1", protocol="udp")],
    )
    anywhere, at = table.maps
    target = bytes((172, 17, 0, 2, 0, 80, 0, 0))
    assert anywhere.elements == {(bytes((6, 0, 0, 0, 0x1F, 0x90, 0, 0)), target)}
    assert at.elements == {(bytes((17, 0, 0, 0, 10, 0, 0, 1, 0, 53, 0, 0)), target)}


@pytest.mark.unit
def test_a_change_of_ports_touches_elements_only() -> None:
    before = nat.desired([BRIDGE], [published(1), published(2)])
    assert nftables.change(before, before) == []
    after = nat.desired([BRIDGE], [published(2), published(3)])
    messages = nftables.change(before, after)
    assert messages is not None
    assert len(messages) == 2  # one goes, one comes
    assert nftables.change(before, nat.desired([], [])) is None  # other rules: the whole table anew
    many = nat.desired([BRIDGE], [published(port) for port in range(1, 3000)])
    assert nftables.change(nat.desired([BRIDGE], []), many)  # fits the protocol's 64 KiB


@pytest.mark.unit
def test_names_that_are_no_interface_s() -> None:
    for name in ("", "x" * 16):
        with pytest.raises(ValueError, match="not an interface name"):
            nftables.interface(name)


@pytest.mark.root
def test_the_kernel_takes_it_whole_or_not_at_all() -> None:
    fd = netns.create()
    try:
        netns.run(fd, _take_or_leave)
    finally:
        os.close(fd)


def _take_or_leave() -> None:
    assert nat.probe() is None
    firewall = nat.Firewall("test")
    ports = [published(port) for port in range(1, 2000)]
    firewall.apply([BRIDGE], ports)
    firewall.apply([BRIDGE], ports[1000:])
    # A second engine's table of another name is no obstacle, nor is an old one of ours.
    nat.Firewall("other").apply([BRIDGE], ports)
    nat.Firewall("test").apply([BRIDGE], ports)
    # An element that does not exist cannot be deleted: the batch fails as a whole, with the kernel's reason.
    table = nat.desired([BRIDGE], [published(5000)], table="test")
    messages = nftables.change(table, nat.desired([BRIDGE], [published(5001)], table="test"))
    assert messages is not None
    with pytest.raises(FileNotFoundError):
        nftables.apply(messages)
    undone = nftables.change(nat.desired([BRIDGE], [published(5001)], table="test"), table)
    assert undone is not None
    with pytest.raises(FileNotFoundError):  # 5001 was not added
        nftables.apply(undone)
    for name in ("test", "other"):
        nat.Firewall(name).remove()
        nat.Firewall(name).remove()
    with pytest.raises(FileNotFoundError):
        nftables.apply(nftables.replacement(table)[-1:])


@pytest.mark.root
def test_foreign_chains_that_drop_are_named() -> None:
    fd = netns.create()

    def look() -> list[str]:
        assert nat.forward_warnings() == []
        messages = nftables.replacement(
            nftables.Table(
                name="filter",
                family=nftables.IPV4,
                maps=(),
                chains=(
                    nftables.Chain(
                        name="FORWARD", type="filter", hook=nftables.FORWARD, priority=0, rules=(), policy=0
                    ),
                ),
            )
        )
        nftables.apply(messages)
        return nat.forward_warnings()

    try:
        (warning,) = netns.run(fd, look)
    finally:
        os.close(fd)
    assert "'ip filter FORWARD'" in warning

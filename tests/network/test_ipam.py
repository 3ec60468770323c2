import ipaddress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compatd.errors import Forbidden, InvalidParameter, SystemFailure
from compatd.network import ipam

pytestmark = pytest.mark.unit

SUBNET = ipaddress.ip_network("10.0.0.0/29")
GATEWAY = ipaddress.ip_address("10.0.0.1")


@settings(max_examples=50)
@given(st.sets(st.integers(0, 7)), st.integers(24, 32))
def test_an_address_is_free_inside_and_neither_network_nor_broadcast(taken: set[int], prefix: int) -> None:
    subnet = ipaddress.ip_network(f"10.0.0.0/{prefix}")
    used = {subnet.network_address + number for number in taken}
    free = [address for address in subnet.hosts() if address not in used]
    if free:
        assert ipam.allocate(subnet, used, network="n") == min(free)
    else:
        with pytest.raises(SystemFailure):
            ipam.allocate(subnet, used, network="n")


def test_the_lowest_address_is_given_again() -> None:
    used = {GATEWAY}
    for expected in ("10.0.0.2", "10.0.0.3"):
        address = ipam.allocate(SUBNET, used, network="n")
        assert str(address) == expected
        used.add(address)
    used.remove(ipaddress.ip_address("10.0.0.2"))
    assert str(ipam.allocate(SUBNET, used, network="n")) == "10.0.0.2"


def test_an_exhausted_network_says_so_as_docker_does() -> None:
    with pytest.raises(SystemFailure) as caught:
        ipam.allocate(SUBNET, set(SUBNET.hosts()), network="bridge (93fc)")
    assert str(caught.value) == "no available IPv4 addresses on this network's address pools: bridge (93fc)"


def test_a_range_within_the_subnet() -> None:
    within = ipaddress.ip_network("10.0.0.4/30")
    assert str(ipam.allocate(SUBNET, {GATEWAY}, network="n", within=within)) == "10.0.0.4"


@pytest.mark.parametrize(
    ("requested", "kind", "text"),
    [
        ("10.0.0.1", Forbidden, "Address already in use"),
        ("10.0.0.0", Forbidden, "Address already in use"),
        ("10.0.0.7", Forbidden, "Address already in use"),
        ("10.0.0.8", InvalidParameter, "no configured subnet or ip-range contain the IP address 10.0.0.8"),
    ],
)
def test_a_requested_address_that_cannot_be_had(requested: str, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind) as caught:
        ipam.allocate(SUBNET, {GATEWAY}, network="n", requested=ipaddress.ip_address(requested))
    assert str(caught.value) == text


def test_ipv6_subnets_are_not_walked() -> None:
    subnet = ipaddress.ip_network("fd00::/64")
    assert str(ipam.allocate(subnet, {subnet.network_address + 1}, network="n")) == "fd00::2"


def test_subnets_avoid_what_is_taken() -> None:
    assert str(ipam.choose_subnet([])) == "172.17.0.0/16"
    taken = [ipaddress.ip_network(text) for text in ("0.0.0.0/0", "172.17.1.0/24", "172.18.0.0/15", "172.16.0.0/12")]
    assert str(ipam.choose_subnet(taken[:2])) == "172.18.0.0/16"
    assert str(ipam.choose_subnet(taken[:3])) == "172.20.0.0/16"
    assert str(ipam.choose_subnet(taken)) == "192.168.0.0/20"
    with pytest.raises(SystemFailure, match="all predefined address pools have been fully subnetted"):
        ipam.choose_subnet([*taken, ipaddress.ip_network("192.168.0.0/16")])


def test_macs_follow_addresses() -> None:
    assert ipam.derive_mac(ipaddress.ip_address("172.17.0.2")) == "02:42:ac:11:00:02"
    assert ipam.derive_mac(ipaddress.ip_address("fd00::1:2")) == "02:42:00:01:00:02"

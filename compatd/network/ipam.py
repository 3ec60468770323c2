"""Which subnet a network gets and which address a container gets. Pure: state comes in, an answer goes out."""

import hashlib
import ipaddress
import secrets
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass

from compatd.errors import Forbidden, InvalidParameter, SystemFailure
from compatd.linux.netlink import Address, IPNetwork


@dataclass(frozen=True, slots=True, kw_only=True)
class AddressPool:
    """Subnets of ``size`` bits are cut from ``base``, lowest first."""

    base: IPNetwork
    size: int

    def subnets(self) -> Iterator[IPNetwork]:
        yield from self.base.subnets(new_prefix=self.size)


def _pool(base: str, size: int) -> AddressPool:
    return AddressPool(base=ipaddress.ip_network(base), size=size)


# moby daemon/libnetwork/ipamutils, localScopeDefaultNetworks
DEFAULT_POOLS = (
    _pool("172.17.0.0/16", 16),
    _pool("172.18.0.0/16", 16),
    _pool("172.19.0.0/16", 16),
    _pool("172.20.0.0/14", 16),
    _pool("172.24.0.0/14", 16),
    _pool("172.28.0.0/14", 16),
    _pool("192.168.0.0/16", 20),
)


def local_pool(machine_id: str) -> AddressPool:
    """The IPv6 subnets that networks get for which none is named: /64s of a unique local prefix (RFC 4193) that is the
    machine's own."""
    digest = hashlib.sha256(machine_id.encode()).digest()[:5]
    base = ipaddress.IPv6Network((b"\xfd" + digest + bytes(10), 48))
    return AddressPool(base=base, size=64)


def choose_subnet(taken: Iterable[IPNetwork], pools: Iterable[AddressPool] = DEFAULT_POOLS) -> IPNetwork:
    """The first subnet of ``pools`` that overlaps none of ``taken`` (other networks, the host's routes)."""
    others = sorted(
        (int(other.network_address), int(other.broadcast_address), other.version) for other in taken if other.prefixlen
    )
    for pool in pools:
        step = 1 << (pool.base.max_prefixlen - pool.size)
        first, end = int(pool.base.network_address), int(pool.base.broadcast_address)
        for low, high, version in others:
            # The next candidate lies behind what it overlaps, on a boundary of its own size.
            if version == pool.base.version and low < first + step and high >= first:
                first += -(-(high + 1 - first) // step) * step
        if first + step - 1 <= end:
            kind = ipaddress.IPv4Network if pool.base.version == 4 else ipaddress.IPv6Network
            return kind((first, pool.size))
    # moby daemon/libnetwork/ipams/defaultipam, ErrNoMoreSubnets
    raise SystemFailure("all predefined address pools have been fully subnetted")


def first_address(subnet: IPNetwork) -> Address:
    """The gateway of a subnet for which none is named."""
    return subnet.network_address + 1


def allocate(
    subnet: IPNetwork,
    used: Collection[Address],
    *,
    network: str,
    requested: Address | None = None,
    within: IPNetwork | None = None,
) -> Address:
    """An address of ``subnet`` that is not in ``used`` (which includes the gateway): ``requested``, or the lowest.

    ``within``: take it from this part of the subnet (``--ip-range``, ``--fixed-cidr``). ``network``: how messages
    name it. Errors carry Docker 28.5.2's text: exhausted, in use, outside.
    """
    if requested is not None:
        if requested not in subnet:
            raise InvalidParameter(f"no configured subnet or ip-range contain the IP address {requested}")
        if requested in used or _reserved(subnet, requested):
            raise Forbidden("Address already in use")  # moby daemon/libnetwork/ipamapi, ErrIPAlreadyAllocated
        return requested
    pool = within if within is not None else subnet
    first, last = int(pool.network_address), int(pool.broadcast_address)
    taken = {int(address) for address in used}
    # With IPv6 the pool is never walked far: there are more addresses than anybody could have taken.
    for value in range(first, last + 1):
        if value not in taken:
            address = type(subnet.network_address)(value)
            if not _reserved(subnet, address):
                return address
    # moby daemon/libnetwork/network.go and ipamapi, ErrNoAvailableIPs
    raise SystemFailure(f"no available IPv{subnet.version} addresses on this network's address pools: {network}")


def _reserved(subnet: IPNetwork, address: Address) -> bool:
    """The subnet's own address and the broadcast address, where the subnet has them."""
    if subnet.prefixlen >= subnet.max_prefixlen - 1:
        return False
    return address == subnet.network_address or (subnet.version == 4 and address == subnet.broadcast_address)


def derive_mac(address: Address) -> str:
    """A locally administered MAC address made from an address.

    Docker 28 draws random ones and announces them; with derived ones, an address that goes to a new container keeps
    its MAC, so no neighbour ever holds a wrong entry.
    """
    return (b"\x02\x42" + address.packed[-4:]).hex(":")


def random_mac() -> str:
    """A locally administered MAC address."""
    return (b"\x02\x42" + secrets.token_bytes(4)).hex(":")

"""The firewall of the bridges: masquerading, published ports, isolation; an nf_tables table of our own per family.

    table ip compatd, and where a bridge has IPv6, table ip6 compatd
      map published      protocol . port             -> container address . port      bound to all addresses
      map published_at   protocol . address . port   -> container address . port      bound to one address
      loopback      prerouting, raw     nothing to 127/8 comes from a bridge
      inbound       prerouting, dstnat  published ports, from elsewhere and from containers
      outbound      output, dstnat      published ports, from the machine itself, by 127.0.0.1 too
      disguise      postrouting, srcnat masquerade what leaves a bridge, and what must come back the same way
      between       forward, filter     who may speak to whom; from elsewhere, containers are reached by published
                                        ports only

A published port that is reached by 127.0.0.1 leaves through the bridge with a loopback source, so it is masqueraded,
and the bridge has ``route_localnet`` set; in return ``loopback`` refuses what bridges send there, and
``inbound`` never translates packets to 127/8 that came from a wire (a port bound to 127.0.0.1 is the machine's own).
There is no such way with ``::1``; ``relay`` carries what comes by it.
No process stands in the way of the bytes otherwise, and rules outlive a killed daemon: published ports go on working.

``desired`` is pure: state in, table out. ``Firewall`` applies it as one transaction, and where only ports changed
just the difference (0.1 ms). Whatever was there under our name is replaced, so nothing leaks after a crash.

An accepting rule of ours cannot undo a drop in a table of somebody else: on a machine where another program has set
the policy of its forward chain to drop (iptables' FORWARD of another engine), traffic of our bridges ends there;
``forward_warnings`` names such chains. Unlike Docker we do not set such a policy ourselves.
"""

import contextlib
import errno
import ipaddress
import struct
from collections.abc import Iterable
from dataclasses import dataclass

from compatd.errors import SystemFailure
from compatd.linux.netlink import Address, IPNetwork, Message
from compatd.network import nftables as nft
from compatd.network.ports import PROTOCOL_NUMBERS, PortMapping

TABLE = "compatd"
_LOOPBACK_V4 = ipaddress.IPv4Network("127.0.0.0/8")
_LOOPBACK_V6 = ipaddress.IPv6Network("::1/128")
_MAX_FORGOTTEN = 32
# nftables' datatype numbers, combined six bits each.
_INET_PROTO, _IPV4_ADDR, _IPV6_ADDR, _INET_SERVICE = 12, 7, 8, 13


@dataclass(frozen=True, slots=True, kw_only=True)
class _Family:
    """What differs between IPv4 and IPv6: sizes and offsets in the header, in bytes."""

    number: int
    version: int
    source: int
    destination: int
    size: int
    data_type: int
    loopback: IPNetwork

    @property
    def port_register(self) -> int:
        """Where the port is when the address begins at the first register."""
        return nft.REG32_00 + self.size // 4


_V4 = _Family(
    number=nft.IPV4, version=4, source=12, destination=16, size=4, data_type=_IPV4_ADDR, loopback=_LOOPBACK_V4
)
_V6 = _Family(
    number=nft.IPV6, version=6, source=8, destination=24, size=16, data_type=_IPV6_ADDR, loopback=_LOOPBACK_V6
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BridgeRules:
    """What the firewall must know of a bridge network."""

    bridge: str
    subnet: IPNetwork
    masquerade: bool = True
    icc: bool = True  # inter-container communication: may its containers speak to one another?
    internal: bool = False  # no way out and none in
    unprotected: bool = False  # every port is reached from elsewhere, not the published ones alone
    opened: tuple[tuple[str, Address, int], ...] = ()  # (protocol, address, port) reached without translation


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A port mapping and the container's address it leads to."""

    mapping: PortMapping
    address: Address


def desired(
    bridges: Iterable[BridgeRules], published: Iterable[Published], *, table: str = TABLE, version: int = 4
) -> nft.Table:
    """The whole table of one IP version for this state. What belongs to the other is no matter of this table."""
    family = _V4 if version == 4 else _V6
    bridges = sorted((one for one in bridges if one.subnet.version == version), key=lambda bridge: bridge.bridge)
    anywhere: set[tuple[bytes, bytes]] = set()
    at: set[tuple[bytes, bytes]] = set()
    for item in published:
        host = ipaddress.ip_address(item.mapping.host_ip)
        if host.version != version or item.address.version != version:
            continue
        protocol = bytes((PROTOCOL_NUMBERS[item.mapping.protocol], 0, 0, 0))
        port = struct.pack("!Hxx", item.mapping.host_port)
        target = item.address.packed + struct.pack("!Hxx", item.mapping.container_port)
        if host.is_unspecified:
            anywhere.add((protocol + port, target))
        else:
            at.add((protocol + host.packed + port, target))
    data_type = family.data_type << 6 | _INET_SERVICE
    maps = (
        nft.Map(
            name="published",
            key_type=_INET_PROTO << 6 | _INET_SERVICE,
            key_bytes=8,
            data_type=data_type,
            data_bytes=family.size + 4,
            elements=frozenset(anywhere),
        ),
        nft.Map(
            name="published_at",
            key_type=_INET_PROTO << 12 | family.data_type << 6 | _INET_SERVICE,
            key_bytes=family.size + 8,
            data_type=data_type,
            data_bytes=family.size + 4,
            elements=frozenset(at),
        ),
    )
    to_loopback = (*_within(family, family.loopback, family.destination), nft.verdict(nft.ACCEPT))
    from_loopback = () if family is _V4 else (to_loopback,)
    chains = (
        nft.Chain(
            name="loopback",
            type="filter",
            hook=nft.PREROUTING,
            priority=nft.PRIORITY_RAW,
            rules=tuple(
                (*_in(bridge.bridge), *_within(family, family.loopback, family.destination), *_DROP)
                for bridge in bridges
            ),
        ),
        nft.Chain(
            name="inbound",
            type="nat",
            hook=nft.PREROUTING,
            priority=nft.PRIORITY_DNAT,
            rules=(to_loopback, *_translations(family)),
        ),
        nft.Chain(
            name="outbound",
            type="nat",
            hook=nft.OUTPUT,
            priority=nft.PRIORITY_DNAT,
            rules=(*from_loopback, *_translations(family)),
        ),
        nft.Chain(
            name="disguise",
            type="nat",
            hook=nft.POSTROUTING,
            priority=nft.PRIORITY_SNAT,
            rules=_disguise(family, bridges),
        ),
        nft.Chain(
            name="between",
            type="filter",
            hook=nft.FORWARD,
            priority=nft.PRIORITY_FILTER,
            rules=_between(family, bridges),
        ),
    )
    return nft.Table(name=table, family=family.number, maps=maps, chains=chains)


class Firewall:
    """The tables as last applied. Calls block for the kernel's transaction; the caller serialises them."""

    def __init__(self, table: str = TABLE) -> None:
        self._name = table
        self._applied: dict[int, nft.Table | None] = {}  # by IP version; None: there is none

    def apply(self, bridges: Iterable[BridgeRules], published: Iterable[Published]) -> None:
        """Make this state so, atomically. ``SystemFailure``: the kernel refused; the rules before still hold."""
        bridges, published = list(bridges), list(published)
        tables: dict[int, nft.Table | None] = {
            version: desired(bridges, published, table=self._name, version=version)
            if version == 4 or any(bridge.subnet.version == version for bridge in bridges)
            else None
            for version in (4, 6)
        }
        try:
            if 6 not in self._applied and tables[6] is None:
                # Of an engine before us; a kernel without IPv6 has none, and refuses to look.
                with contextlib.suppress(OSError):
                    nft.apply(nft.removal(nft.IPV6, self._name))
                self._applied[6] = None
            messages = [message for version in (4, 6) for message in self._change(version, tables[version])]
            try:
                nft.apply(messages)
            except OSError:  # somebody flushed or changed a table: make them anew
                self._applied = {version: table for version, table in self._applied.items() if table is None}
                nft.apply([message for version in (4, 6) for message in self._change(version, tables[version])])
        except OSError as error:
            raise SystemFailure(_refused(error)) from error
        self._applied = tables

    def _change(self, version: int, table: nft.Table | None) -> list[Message]:
        before = self._applied.get(version)
        if table is None:
            return nft.removal(before.family, before.name) if before is not None else []
        changes = nft.change(before, table) if before is not None else None
        return changes if changes is not None else nft.replacement(table)

    def remove(self) -> None:
        """Take the tables away."""
        try:
            nft.apply(nft.removal(nft.IPV4, self._name))
            if self._applied.get(6) is not None:
                nft.apply(nft.removal(nft.IPV6, self._name))
        except OSError as error:
            raise SystemFailure(_refused(error)) from error
        self._applied = {}


def forget_udp_flows(mappings: Iterable[PortMapping]) -> None:
    """Make connection tracking forget UDP traffic to these published ports.

    UDP has no end: a client that goes on sending keeps the translation (or the lack of one) that its first packet
    met, for as long as it sends. Best effort: kernels before 5.8 cannot select, and each port costs a walk over the
    table, so of a large range nothing is forgotten.
    """
    ports = {mapping.host_port for mapping in mappings if mapping.protocol == "udp" and ":" not in mapping.host_ip}
    if 0 < len(ports) <= _MAX_FORGOTTEN:
        with contextlib.suppress(OSError):
            nft.forget_flows([(PROTOCOL_NUMBERS["udp"], port) for port in sorted(ports)])


def probe() -> str | None:
    """Why this machine cannot have published ports and outgoing traffic of bridges, or None if it can.

    Tries in the calling thread's network namespace, and leaves nothing there.
    """
    bridge = BridgeRules(bridge="compatd-probe", subnet=ipaddress.IPv4Network("192.0.2.0/24"))
    name = "compatd-probe"
    try:
        nft.apply([*nft.replacement(desired([bridge], [], table=name)), *nft.removal(nft.IPV4, name)[1:]])
    except OSError as error:
        return _refused(error)
    return None


def forward_warnings() -> list[str]:
    """One sentence for each foreign chain that drops forwarded packets; empty when nf_tables is not there."""
    try:
        chains = nft.forward_droppers()
    except OSError:
        return []
    return [
        f"nftables chain '{chain}' drops forwarded packets by default: containers on bridge networks may not reach "
        "the outside, nor be reached on published ports, unless it accepts them"
        for chain in chains
    ]


def _refused(error: OSError) -> str:
    if error.errno in (errno.EPERM, errno.EACCES):
        return "the firewall cannot be changed: CAP_NET_ADMIN is missing in this network namespace"
    if error.errno in (errno.EPROTONOSUPPORT, errno.EOPNOTSUPP, errno.ENOENT, errno.EINVAL):
        return (
            f"the kernel lacks nf_tables with NAT ({error.strerror}): load the modules nf_tables, nft_chain_nat, "
            "nft_masq, nft_ct, nft_fib_ipv4, or use --network host or none"
        )
    return f"the firewall could not be set up: {error.strerror}"


_Rule = tuple[bytes, ...]


def _in(name: str, operator: int = nft.EQ) -> _Rule:
    return nft.meta(nft.META_IIFNAME), nft.compare(operator, nft.interface(name))


def _out(name: str, operator: int = nft.EQ) -> _Rule:
    return nft.meta(nft.META_OIFNAME), nft.compare(operator, nft.interface(name))


def _within(family: _Family, subnet: IPNetwork, offset: int) -> _Rule:
    return (
        nft.network_header(offset, family.size),
        nft.mask(subnet.netmask.packed),
        nft.compare(nft.EQ, subnet.network_address.packed),
    )


def _flags(key: int, bits: int) -> _Rule:
    packed = struct.pack("=I", bits)
    return nft.ct(key), nft.mask(packed), nft.compare(nft.NE, bytes(4))


_LOCAL: _Rule = (nft.fib_daddr_type(), nft.compare(nft.EQ, struct.pack("=I", nft.RTN_LOCAL)))
_TRANSLATED = _flags(nft.CT_STATUS, nft.STATUS_DNAT)
_ACCEPT: _Rule = (nft.verdict(nft.ACCEPT),)
_DROP: _Rule = (nft.verdict(nft.DROP),)


def _translations(family: _Family) -> tuple[_Rule, ...]:
    # The destination port is at the same place for tcp, udp and sctp.
    dnat = nft.dnat(family.number, nft.REG, family.port_register)
    return (
        (
            *_LOCAL,
            nft.meta(nft.META_L4PROTO),
            nft.network_header(family.destination, family.size, nft.REG32_01),
            nft.transport_header(2, 2, nft.REG32_01 + family.size // 4),
            nft.lookup("published_at", nft.REG, nft.REG),
            dnat,
        ),
        (
            *_LOCAL,
            nft.meta(nft.META_L4PROTO),
            nft.transport_header(2, 2, nft.REG32_01),
            nft.lookup("published", nft.REG, nft.REG),
            dnat,
        ),
    )


def _disguise(family: _Family, bridges: list[BridgeRules]) -> tuple[_Rule, ...]:
    rules: list[_Rule] = []
    for bridge in bridges:
        if bridge.internal:
            continue
        source = _within(family, bridge.subnet, family.source)
        if bridge.masquerade:
            rules.append((*source, *_out(bridge.bridge, nft.NE), nft.masquerade()))
        # The answer must pass this machine to be translated back: from 127.0.0.1, and from the same bridge.
        if family is _V4:
            rules.append((*_out(bridge.bridge), *_within(family, family.loopback, family.source), nft.masquerade()))
        rules.append((*_out(bridge.bridge), *source, *_TRANSLATED, nft.masquerade()))
    return tuple(rules)


def _between(family: _Family, bridges: list[BridgeRules]) -> tuple[_Rule, ...]:
    rules: list[_Rule] = []
    for bridge in bridges:
        if bridge.internal:
            rules += [
                (*_in(bridge.bridge), *_out(bridge.bridge, nft.NE), *_DROP),
                (*_out(bridge.bridge), *_in(bridge.bridge, nft.NE), *_DROP),
            ]
    rules.append((*_flags(nft.CT_STATE, nft.STATE_ESTABLISHED | nft.STATE_RELATED), *_ACCEPT))
    for bridge in bridges:
        if bridge.icc:
            rules.append((*_in(bridge.bridge), *_out(bridge.bridge), *_ACCEPT))
        rules.append((*_out(bridge.bridge), *_TRANSLATED, *_ACCEPT))
        rules += [
            (
                *_out(bridge.bridge),
                nft.meta(nft.META_L4PROTO),
                nft.compare(nft.EQ, bytes((PROTOCOL_NUMBERS[protocol],))),
                nft.network_header(family.destination, family.size),
                nft.compare(nft.EQ, address.packed),
                nft.transport_header(2, 2),
                nft.compare(nft.EQ, struct.pack("!H", port)),
                *_ACCEPT,
            )
            for protocol, address, port in bridge.opened
        ]
        rules.append((*_out(bridge.bridge), *(_ACCEPT if bridge.unprotected else _DROP)))
    return tuple(rules)

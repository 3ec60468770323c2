"""nf_tables in its netlink form: tables, chains, rules, maps, and the few expressions our rules are made of; and
forgetting tracked connections.

Encoding only; what rules there are is decided in ``nat``. The ``nft`` program shows the result as ordinary rules
(map types carry the numbers it expects). Sources: include/uapi/linux/netfilter/nf_tables.h and nfnetlink.h;
data type numbers: nftables' include/datatype.h.
"""

import socket
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from compatd.linux.netlink import (
    NETLINK_NETFILTER,
    NLM_F_APPEND,
    NLM_F_CREATE,
    NLM_F_DUMP,
    Message,
    Netlink,
    attribute,
    nested,
    parse_attributes,
    text,
)

_SUBSYSTEM = 10 << 8  # NFNL_SUBSYS_NFTABLES
_BATCH_BEGIN, _BATCH_END = 16, 17
_CTNETLINK_DELETE = 1 << 8 | 2  # NFNL_SUBSYS_CTNETLINK, IPCTNL_MSG_CT_DELETE
_NEWTABLE, _DELTABLE, _NEWCHAIN, _GETCHAIN, _NEWRULE = 0, 2, 3, 4, 6
_NEWSET, _NEWSETELEM, _DELSETELEM = 9, 12, 14
IPV4 = 2  # NFPROTO_IPV4
IPV6 = 10  # NFPROTO_IPV6

PREROUTING, INPUT, FORWARD, OUTPUT, POSTROUTING = range(5)  # NF_INET_*
PRIORITY_RAW, PRIORITY_DNAT, PRIORITY_FILTER, PRIORITY_SNAT = -300, -100, 0, 100  # linux/netfilter_ipv4.h

DROP, ACCEPT = 0, 1  # NF_DROP, NF_ACCEPT
EQ, NE = 0, 1  # NFT_CMP_*
CT_STATE, CT_STATUS = 0, 2  # NFT_CT_*
STATE_ESTABLISHED, STATE_RELATED = 0x2, 0x4  # NF_CT_STATE_BIT
STATUS_DNAT = 0x20  # IPS_DST_NAT
META_IIFNAME, META_OIFNAME, META_L4PROTO = 6, 7, 16  # NFT_META_*
RTN_LOCAL = 2
# Registers: four of 16 bytes, each also addressable as four of 4 bytes.
VERDICT, REG, REG32_00, REG32_01 = 0, 1, 8, 9

_ELEMENTS_PER_MESSAGE = 512  # an attribute's length has 16 bits


def _number(kind: int, value: int) -> bytes:
    return attribute(kind, struct.pack("!I", value & 0xFFFFFFFF))


def _expression(name: str, *attributes: bytes) -> bytes:
    return nested(1, text(1, name), nested(2, *attributes))  # NFTA_LIST_ELEM, NFTA_EXPR_NAME, NFTA_EXPR_DATA


def meta(key: int, register: int = REG) -> bytes:
    """Load what the packet's surroundings say (``META_*``)."""
    return _expression("meta", _number(2, key), _number(1, register))


def ct(key: int, register: int = REG) -> bytes:
    """Load what connection tracking says (``CT_*``)."""
    return _expression("ct", _number(2, key), _number(1, register))


def fib_daddr_type(register: int = REG) -> bytes:
    """Load the route type of the destination address (``RTN_*``)."""
    return _expression("fib", _number(1, register), _number(2, 3), _number(3, 2))  # RESULT_ADDRTYPE, F_DADDR


def network_header(offset: int, size: int, register: int = REG) -> bytes:
    """Load bytes of the IP header."""
    return _payload(1, offset, size, register)


def transport_header(offset: int, size: int, register: int = REG) -> bytes:
    """Load bytes of the transport header."""
    return _payload(2, offset, size, register)


def _payload(base: int, offset: int, size: int, register: int) -> bytes:
    return _expression("payload", _number(1, register), _number(2, base), _number(3, offset), _number(4, size))


def compare(operator: int, value: bytes, register: int = REG) -> bytes:
    """Go on with the rule only if the register holds (``EQ``) or does not hold (``NE``) ``value``."""
    return _expression("cmp", _number(1, register), _number(2, operator), nested(3, attribute(1, value)))


def mask(bits: bytes, register: int = REG) -> bytes:
    """Keep only ``bits`` in the register."""
    return _expression(
        "bitwise",
        _number(1, register),
        _number(2, register),
        _number(3, len(bits)),
        nested(4, attribute(1, bits)),
        nested(5, attribute(1, bytes(len(bits)))),
    )


def lookup(map_name: str, source: int, destination: int) -> bytes:
    """Replace the key from register ``source`` by the map's value in ``destination``; not there: the rule ends."""
    return _expression("lookup", text(1, map_name), _number(2, source), _number(3, destination), _number(5, 0))


def dnat(family: int, address: int, port: int) -> bytes:
    """Rewrite the destination to the address and port in these registers."""
    return _expression(
        "nat",
        _number(1, 1),  # NFT_NAT_DNAT
        _number(2, family),
        _number(3, address),
        _number(4, address),
        _number(5, port),
        _number(6, port),
    )


def load(value: bytes, register: int) -> bytes:
    """Put ``value`` into a register."""
    return _expression("immediate", _number(1, register), nested(2, attribute(1, value)))


def masquerade() -> bytes:
    """Rewrite the source to the address of the interface that the packet leaves by."""
    return _expression("masq")


def verdict(code: int) -> bytes:
    """End with ``ACCEPT`` or ``DROP``."""
    return _expression("immediate", _number(1, VERDICT), nested(2, nested(2, _number(1, code))))


def interface(name: str) -> bytes:
    """An interface's name as registers hold it."""
    raw = name.encode()
    if not 0 < len(raw) < 16:
        raise ValueError(f"not an interface name: {name!r}")
    return raw.ljust(16, b"\0")


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """A base chain with its rules; a rule is a tuple of expressions. ``policy``: what happens when none decides."""

    name: str
    type: Literal["filter", "nat"]
    hook: int  # PREROUTING ... POSTROUTING
    priority: int
    rules: tuple[tuple[bytes, ...], ...]
    policy: int = ACCEPT


@dataclass(frozen=True, slots=True, kw_only=True)
class Map:
    """A map without intervals. ``key_type`` and ``data_type`` are nftables' numbers, for display only.

    The sizes are in bytes, each part of a concatenation taking a multiple of four.
    """

    name: str
    key_type: int
    key_bytes: int
    data_type: int
    data_bytes: int
    elements: frozenset[tuple[bytes, bytes]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """Everything of ours in one address family."""

    name: str
    family: int
    maps: tuple[Map, ...]
    chains: tuple[Chain, ...]


def replacement(table: Table) -> list[Message]:
    """The transaction that puts ``table`` in place of whatever has its name."""
    return [*removal(table.family, table.name), *_creation(table)]


def removal(family: int, name: str) -> list[Message]:
    """The transaction that removes a table, whether it is there or not."""
    # Deleting what is not there would fail the batch, so it is created first; NFT_MSG_DESTROYTABLE needs 6.3.
    return [
        _message(_NEWTABLE, family, text(1, name), NLM_F_CREATE),
        _message(_DELTABLE, family, text(1, name)),
    ]


def change(old: Table, new: Table) -> list[Message] | None:
    """The transaction from ``old`` to ``new`` if they differ in map elements only, else None."""
    if (old.name, old.family, old.chains) != (new.name, new.family, new.chains) or len(old.maps) != len(new.maps):
        return None
    messages: list[Message] = []
    for before, after in zip(old.maps, new.maps, strict=True):
        if before.name != after.name:
            return None
        messages += _elements(_DELSETELEM, new, after.name, before.elements - after.elements)
        messages += _elements(_NEWSETELEM, new, after.name, after.elements - before.elements)
    return messages


def apply(messages: list[Message]) -> None:
    """Run a transaction in the calling thread's network namespace: all of it or nothing. ``OSError`` when refused."""
    begin = Message(_BATCH_BEGIN, 0, struct.pack("!BBH", socket.AF_UNSPEC, 0, 10))
    with Netlink(NETLINK_NETFILTER) as netlink:
        netlink.transact(begin, messages, Message(_BATCH_END, 0, begin.payload))


def forward_droppers() -> list[str]:
    """``family table chain`` of chains, of whoever, that drop forwarded packets unless told otherwise."""
    found: list[str] = []
    with Netlink(NETLINK_NETFILTER) as netlink:
        for answer in netlink.query(Message(_SUBSYSTEM | _GETCHAIN, NLM_F_DUMP, struct.pack("!BBH", 0, 0, 0))):
            attributes = parse_attributes(answer[4:])
            hook = parse_attributes(attributes.get(4, b""))
            if attributes.get(5) != struct.pack("!I", DROP) or hook.get(1) != struct.pack("!I", FORWARD):
                continue
            family = {1: "inet", IPV4: "ip", IPV6: "ip6"}.get(answer[0])
            if family is not None:
                names = (attributes.get(kind, b"").rstrip(b"\0").decode("utf-8", "replace") for kind in (1, 3))
                found.append(" ".join((family, *names)))
    return found


def forget_flows(flows: Iterable[tuple[int, int]]) -> None:
    """Delete the tracked IPv4 connections of each (protocol, destination port as sent). ``OSError`` before 5.8."""
    # CTA_TUPLE_PROTO holds CTA_PROTO_NUM and CTA_PROTO_DST_PORT; CTA_FILTER says which parts of the tuple count:
    # net/netfilter/nf_internals.h, CTA_FILTER_F_CTA_PROTO_NUM and _DST_PORT.
    header = struct.pack("!BBH", IPV4, 0, 0)
    selected = attribute(1, struct.pack("=I", 1 << 3 | 1 << 5)) + attribute(2, bytes(4))
    messages = [
        Message(
            _CTNETLINK_DELETE,
            0,
            header
            + nested(1, nested(2, attribute(1, bytes((protocol,))), attribute(3, struct.pack("!H", port))))
            + nested(25, selected),
        )
        for protocol, port in flows
    ]
    with Netlink(NETLINK_NETFILTER) as netlink:
        netlink.execute(messages)


def _message(kind: int, family: int, body: bytes, flags: int = 0) -> Message:
    return Message(_SUBSYSTEM | kind, flags, struct.pack("!BBH", family, 0, 0) + body)


def _creation(table: Table) -> Iterator[Message]:
    yield _message(_NEWTABLE, table.family, text(1, table.name), NLM_F_CREATE)
    for number, item in enumerate(table.maps, 1):
        body = b"".join(
            (
                text(1, table.name),
                text(2, item.name),
                _number(3, 0x8),  # NFT_SET_MAP
                _number(4, item.key_type),
                _number(5, item.key_bytes),
                _number(6, item.data_type),
                _number(7, item.data_bytes),
                _number(10, number),
            )
        )
        yield _message(_NEWSET, table.family, body, NLM_F_CREATE)
        yield from _elements(_NEWSETELEM, table, item.name, item.elements)
    for chain in table.chains:
        body = b"".join(
            (
                text(1, table.name),
                text(3, chain.name),
                nested(4, _number(1, chain.hook), _number(2, chain.priority)),
                _number(5, chain.policy),
                text(7, chain.type),
            )
        )
        yield _message(_NEWCHAIN, table.family, body, NLM_F_CREATE)
        for rule in chain.rules:
            body = text(1, table.name) + text(2, chain.name) + nested(4, *rule)
            yield _message(_NEWRULE, table.family, body, NLM_F_CREATE | NLM_F_APPEND)


def _elements(kind: int, table: Table, name: str, elements: Iterable[tuple[bytes, bytes]]) -> Iterator[Message]:
    ordered = sorted(elements)
    for start in range(0, len(ordered), _ELEMENTS_PER_MESSAGE):
        listed = [
            nested(1, nested(1, attribute(1, key)), nested(2, attribute(1, value)))
            for key, value in ordered[start : start + _ELEMENTS_PER_MESSAGE]
        ]
        body = text(1, table.name) + text(2, name) + nested(3, *listed)
        yield _message(kind, table.family, body, NLM_F_CREATE if kind == _NEWSETELEM else 0)

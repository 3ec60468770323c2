"""Netlink: sockets, attributes, acknowledged batches; and the few rtnetlink messages that container networks need.

Written out with ``struct`` instead of taken from pyroute2, which costs a daemon 0.1 s to load, 10 MB to keep and 0.2
to 0.3 ms of Python for each message (0.9.7, measured); here it is 0.01 to 0.03 ms with the kernel's part.

Every socket lives in the network namespace that its thread was in when it was opened, and keeps that namespace
alive. Calls block only as long as the kernel works on the request; no other program is waited for.
Sources: netlink(7), rtnetlink(7), include/uapi/linux/{netlink,rtnetlink,if_link,if_addr,veth,if_bridge}.h.
"""

import errno
import ipaddress
import os
import socket
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import NamedTuple, Self

# include/uapi/linux/netlink.h
NETLINK_ROUTE = 0
NETLINK_NETFILTER = 12
NLM_F_REQUEST = 0x1
NLM_F_ACK = 0x4
NLM_F_REPLACE = 0x100
NLM_F_DUMP = 0x300
NLM_F_EXCL = 0x200
NLM_F_CREATE = 0x400
NLM_F_APPEND = 0x800
NLMSG_ERROR = 2
NLMSG_DONE = 3
NLA_F_NESTED = 0x8000
_NLA_TYPE_MASK = 0x3FFF
_SOL_NETLINK = 270
_NETLINK_EXT_ACK = 11
_NETLINK_GET_STRICT_CHK = 12
_NLM_F_DUMP_INTR = 0x10
_NLM_F_CAPPED = 0x100
_NLM_F_ACK_TLVS = 0x200
_NLMSGERR_ATTR_MSG = 1

# include/uapi/linux/rtnetlink.h
_RTM_NEWLINK, _RTM_DELLINK, _RTM_GETLINK, _RTM_SETLINK = 16, 17, 18, 19
_RTM_NEWADDR, _RTM_GETADDR = 20, 22
_RTM_NEWROUTE, _RTM_DELROUTE, _RTM_GETROUTE = 24, 25, 26
_RTA_DST, _RTA_OIF, _RTA_GATEWAY = 1, 4, 5
_RT_TABLE_MAIN, _RTPROT_BOOT, _RT_SCOPE_UNIVERSE, _RTN_UNICAST = 254, 3, 0, 1
# include/uapi/linux/if_link.h
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_LINK, _IFLA_MASTER, _IFLA_LINKINFO = 1, 3, 4, 5, 10, 18
_IFLA_OPERSTATE = 16
_IFLA_STATS64, _IFLA_NET_NS_FD = 23, 28
_IFLA_INFO_KIND, _IFLA_INFO_DATA, _IFLA_INFO_SLAVE_DATA = 1, 2, 5
_VETH_INFO_PEER = 1
_IFLA_PROTINFO = 12
_IFLA_BRPORT_STATE, _IFLA_BRPORT_HAIRPIN, _IFLA_BRPORT_ISOLATED = 1, 4, 33  # IFLA_BRPORT_MODE is hairpin's name
# include/uapi/linux/if_addr.h
_IFA_ADDRESS, _IFA_LOCAL, _IFA_BROADCAST, _IFA_FLAGS = 1, 2, 4, 8
_IFA_F_NODAD = 0x2
# include/uapi/linux/if.h
IFF_UP = 0x1
IFNAMSIZ = 16

_HEADER = struct.Struct("=IHHII")
_ATTRIBUTE = struct.Struct("=HH")
_IFINFO = struct.Struct("=BxHiII")
_IFADDR = struct.Struct("=BBBBI")
_RTMSG = struct.Struct("=BBBBBBBBI")
_RECEIVE_BYTES = 1 << 16

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Interface = ipaddress.IPv4Interface | ipaddress.IPv6Interface
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network


def attribute(kind: int, payload: bytes) -> bytes:
    """One attribute, padded to four bytes. ``ValueError``: the payload passes 64 KiB."""
    size = len(payload) + 4
    if size > 0xFFFF:
        raise ValueError("netlink attribute too large")
    return _ATTRIBUTE.pack(size, kind) + payload + bytes(-size % 4)


def nested(kind: int, *attributes: bytes) -> bytes:
    """An attribute made of attributes."""
    return attribute(kind | NLA_F_NESTED, b"".join(attributes))


def text(kind: int, value: str) -> bytes:
    """A NUL-terminated string."""
    return attribute(kind, value.encode() + b"\0")


def u32(kind: int, value: int) -> bytes:
    """A number in the machine's byte order."""
    return attribute(kind, value.to_bytes(4, sys.byteorder))


def parse_attributes(payload: bytes) -> dict[int, bytes]:
    """The attributes in ``payload`` by kind, flags removed; of repeated kinds the last."""
    found: dict[int, bytes] = {}
    offset = 0
    while offset + 4 <= len(payload):
        size, kind = _ATTRIBUTE.unpack_from(payload, offset)
        if size < 4 or offset + size > len(payload):
            break
        found[kind & _NLA_TYPE_MASK] = payload[offset + 4 : offset + size]
        offset += size + (-size % 4)
    return found


class Message(NamedTuple):
    """A request: its type, its ``NLM_F_*`` flags besides REQUEST, and what follows the header."""

    kind: int
    flags: int
    payload: bytes


class Netlink:
    """A netlink socket in the calling thread's network namespace. Not to be shared between threads at once."""

    def __init__(self, protocol: int) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_EXT_ACK, 1)
        self._sequence = 0

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def execute(self, messages: Sequence[Message]) -> None:
        """Send ``messages`` at once; each is acknowledged. The kernel goes on after a failure (except within an
        nf_tables batch); the first one is raised as ``OSError`` with the kernel's own explanation, if it gives any."""
        pending: set[int] = set()
        packed: list[bytes] = []
        for message in messages:
            self._sequence += 1
            packed.append(_pack(message, self._sequence, NLM_F_ACK))
            pending.add(self._sequence)
        self._socket.send(b"".join(packed))
        first: OSError | None = None
        while pending:
            for kind, flags, sequence, payload in self._receive():
                if kind == NLMSG_ERROR and sequence in pending:
                    pending.discard(sequence)
                    first = first or _failure(flags, payload)
        if first is not None:
            raise first

    def query(self, message: Message) -> list[bytes]:
        """The payloads of the answers to a get request, a dump or a single one. ``OSError`` as the kernel says."""
        answers, interrupted = self._query(message)
        for _ in range(8):  # a dump that something changed under is inconsistent
            if not interrupted:
                break
            answers, interrupted = self._query(message)
        return answers

    def _query(self, message: Message) -> tuple[list[bytes], bool]:
        self._sequence += 1
        dump = message.flags & NLM_F_DUMP == NLM_F_DUMP
        self._socket.send(_pack(message, self._sequence, 0 if dump else NLM_F_ACK))
        answers: list[bytes] = []
        interrupted = False
        while True:
            for kind, flags, sequence, payload in self._receive():
                if sequence != self._sequence:
                    continue
                interrupted = interrupted or bool(flags & _NLM_F_DUMP_INTR)
                if kind == NLMSG_DONE:
                    return answers, interrupted
                if kind == NLMSG_ERROR:
                    if (error := _failure(flags, payload)) is not None:
                        raise error
                    return answers, interrupted
                answers.append(payload)

    def transact(self, begin: Message, messages: Sequence[Message], end: Message) -> None:
        """Send a batch that the kernel takes or refuses as a whole (nf_tables). ``OSError``: the first refusal.

        Only the last message asks for an acknowledgement; refusals come for any of them, and one of the commit
        itself for ``begin``. All are queued when send returns.
        """
        if not messages:
            return
        packed: list[bytes] = []
        self._sequence += 1
        packed.append(_pack(begin, self._sequence, 0))
        for index, message in enumerate(messages, 1):
            self._sequence += 1
            packed.append(_pack(message, self._sequence, NLM_F_ACK if index == len(messages) else 0))
        last = self._sequence
        self._sequence += 1
        packed.append(_pack(end, self._sequence, 0))
        data = b"".join(packed)
        if len(data) > 100_000:
            self._socket.setsockopt(socket.SOL_SOCKET, 32, 2 * len(data))  # SO_SNDBUFFORCE, asm-generic/socket.h
        self._socket.send(data)
        acknowledged = False
        while True:
            try:
                received = self._receive(socket.MSG_DONTWAIT)
            except BlockingIOError:
                break
            for kind, flags, sequence, payload in received:
                if kind == NLMSG_ERROR:
                    if (error := _failure(flags, payload)) is not None:
                        self._drain()
                        raise error
                    acknowledged = acknowledged or sequence == last
        if not acknowledged:
            raise OSError(5, "netlink: the batch was not acknowledged")

    def _drain(self) -> None:
        try:
            while True:
                self._receive(socket.MSG_DONTWAIT)
        except OSError:
            return

    def _receive(self, flags: int = 0) -> list[tuple[int, int, int, bytes]]:
        data = self._socket.recv(_RECEIVE_BYTES, flags)
        messages: list[tuple[int, int, int, bytes]] = []
        offset = 0
        while offset + 16 <= len(data):
            size, kind, message_flags, sequence, _ = _HEADER.unpack_from(data, offset)
            if size < 16 or offset + size > len(data):
                raise OSError(5, "netlink: malformed answer")
            messages.append((kind, message_flags, sequence, data[offset + 16 : offset + size]))
            offset += size + (-size % 4)
        return messages


def _pack(message: Message, sequence: int, flags: int) -> bytes:
    payload = message.payload
    return (
        _HEADER.pack(16 + len(payload), message.kind, message.flags | flags | NLM_F_REQUEST, sequence, 0)
        + payload
        + bytes(-len(payload) % 4)
    )


def _failure(flags: int, payload: bytes) -> OSError | None:
    """The error in an NLMSG_ERROR; None if it is an acknowledgement."""
    (code,) = struct.unpack_from("=i", payload)
    if code == 0:
        return None
    explanation = ""
    if flags & _NLM_F_ACK_TLVS:
        (size,) = struct.unpack_from("=I", payload, 4)
        start = 20 if flags & _NLM_F_CAPPED else 4 + size + (-size % 4)
        explanation = (
            parse_attributes(payload[start:]).get(_NLMSGERR_ATTR_MSG, b"").rstrip(b"\0").decode("ascii", "replace")
        )
    return OSError(-code, f"{os.strerror(-code)} ({explanation})" if explanation else os.strerror(-code))


@dataclass(frozen=True, slots=True, kw_only=True)
class Counters:
    """What an interface has moved, as the interface's own side sees it."""

    rx_bytes: int = 0
    rx_packets: int = 0
    rx_errors: int = 0
    rx_dropped: int = 0
    tx_bytes: int = 0
    tx_packets: int = 0
    tx_errors: int = 0
    tx_dropped: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A network interface. ``master``: index of the bridge it is a port of, 0 if none; ``kind``: its driver's name.

    ``operational``: packets can leave by it; ``forwarding``: as a bridge's port it passes them on; ``isolated``: but
    not to other isolated ports.
    """

    index: int
    name: str
    up: bool
    operational: bool
    forwarding: bool
    isolated: bool
    mtu: int
    mac: str
    master: int
    kind: str
    counters: Counters


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """A unicast route of the main table. ``gateway`` is None where the destination is on the link."""

    destination: IPNetwork
    gateway: Address | None
    link_index: int


class RouteSocket(Netlink):
    """rtnetlink: links, addresses, routes of one network namespace."""

    def __init__(self) -> None:
        super().__init__(NETLINK_ROUTE)
        self._socket.setsockopt(_SOL_NETLINK, _NETLINK_GET_STRICT_CHK, 1)

    def links(self) -> list[Link]:
        """Every interface of the namespace."""
        return [_link(answer) for answer in self.query(Message(_RTM_GETLINK, NLM_F_DUMP, _IFINFO.pack(0, 0, 0, 0, 0)))]

    def link(self, name: str) -> Link | None:
        """The interface called ``name``, or None."""
        try:
            answers = self.query(Message(_RTM_GETLINK, 0, _IFINFO.pack(0, 0, 0, 0, 0) + text(_IFLA_IFNAME, name)))
        except OSError as error:
            if error.errno == 19:  # ENODEV
                return None
            raise
        return _link(answers[0]) if answers else None

    def addresses(self) -> list[tuple[int, Interface]]:
        """(link index, address with prefix) of both families."""
        found: list[tuple[int, Interface]] = []
        for answer in self.query(Message(_RTM_GETADDR, NLM_F_DUMP, _IFADDR.pack(0, 0, 0, 0, 0))):
            _, prefix, _, _, index = _IFADDR.unpack_from(answer)
            attributes = parse_attributes(answer[_IFADDR.size :])
            raw = attributes.get(_IFA_LOCAL) or attributes.get(_IFA_ADDRESS)
            if raw is not None:
                found.append((index, ipaddress.ip_interface((raw, prefix))))
        return found

    def routes(self) -> list[Route]:
        """The unicast routes of the main table, of both families."""
        found: list[Route] = []
        for wanted in (socket.AF_INET, socket.AF_INET6):
            header = _RTMSG.pack(wanted, 0, 0, 0, 0, 0, 0, 0, 0)
            for answer in self.query(Message(_RTM_GETROUTE, NLM_F_DUMP, header)):
                family, prefix, _, _, table, _, _, kind, _ = _RTMSG.unpack_from(answer)
                if table != _RT_TABLE_MAIN or kind != _RTN_UNICAST or family != wanted:
                    continue
                attributes = parse_attributes(answer[_RTMSG.size :])
                gateway = attributes.get(_RTA_GATEWAY)
                destination = attributes.get(_RTA_DST, bytes(4 if family == socket.AF_INET else 16))
                found.append(
                    Route(
                        destination=ipaddress.ip_network((destination, prefix)),
                        gateway=ipaddress.ip_address(gateway) if gateway is not None else None,
                        link_index=struct.unpack("=I", attributes.get(_RTA_OIF, bytes(4)))[0],
                    )
                )
        return found

    def add_bridge(self, name: str, *, mtu: int, mac: str) -> None:
        """A bridge, up. ``FileExistsError`` if the name is taken."""
        body = b"".join(
            (
                _ifinfo(flags=IFF_UP),
                text(_IFLA_IFNAME, name),
                u32(_IFLA_MTU, mtu),
                attribute(_IFLA_ADDRESS, _mac(mac)),
                nested(_IFLA_LINKINFO, text(_IFLA_INFO_KIND, "bridge")),
            )
        )
        self.execute([Message(_RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body)])

    def add_veth(self, name: str, *, master: int, peer: str, peer_namespace_fd: int, peer_mac: str, mtu: int) -> None:
        """A veth pair: this end up and a port of the bridge ``master``; the other, down, in the given namespace.

        One message, so no half-made pair is ever seen. ``FileExistsError``: either name is taken.
        """
        # The peer cannot be brought up here: veth_open in drivers/net/veth.c refuses while the pair is being tied.
        other = b"".join(
            (
                _ifinfo(),
                text(_IFLA_IFNAME, peer),
                u32(_IFLA_MTU, mtu),
                attribute(_IFLA_ADDRESS, _mac(peer_mac)),
                u32(_IFLA_NET_NS_FD, peer_namespace_fd),
            )
        )
        body = b"".join(
            (
                _ifinfo(flags=IFF_UP),
                text(_IFLA_IFNAME, name),
                u32(_IFLA_MTU, mtu),
                u32(_IFLA_MASTER, master),
                nested(
                    _IFLA_LINKINFO,
                    text(_IFLA_INFO_KIND, "veth"),
                    nested(_IFLA_INFO_DATA, nested(_VETH_INFO_PEER, other)),
                ),
            )
        )
        self.execute([Message(_RTM_NEWLINK, NLM_F_CREATE | NLM_F_EXCL, body)])

    def set_up(self, index: int) -> None:
        """Bring a link up."""
        self.execute([_up(index)])

    def set_mtu(self, index: int, mtu: int) -> None:
        """Change a link's MTU."""
        self.execute([Message(_RTM_NEWLINK, 0, _ifinfo(index=index) + u32(_IFLA_MTU, mtu))])

    def set_port(self, index: int, *, hairpin: bool, isolated: bool) -> None:
        """Whether a bridge port gets back what it sent, and whether it can reach other isolated ports."""
        body = _IFINFO.pack(socket.AF_BRIDGE, 0, index, 0, 0) + nested(
            _IFLA_PROTINFO,
            attribute(_IFLA_BRPORT_HAIRPIN, bytes((hairpin,))),
            attribute(_IFLA_BRPORT_ISOLATED, bytes((isolated,))),
        )
        self.execute([Message(_RTM_SETLINK, 0, body)])

    def add_address(self, index: int, address: Interface) -> None:
        """Give a link an address. ``FileExistsError`` if it has it."""
        self.execute([_address(index, address)])

    def configure(self, index: int, addresses: Sequence[Interface], gateways: Sequence[Address]) -> None:
        """Addresses, up, default routes through ``gateways`` (one of a family at most), as one send."""
        messages = [_address(index, address) for address in addresses] + [_up(index)]
        messages += [_default_route(index, gateway) for gateway in gateways]
        self.execute(messages)

    def replace_default_route(self, index: int, gateway: Address) -> None:
        """Have the default route of the gateway's family lead there, wherever it led before."""
        self.execute([_default_route(index, gateway, NLM_F_REPLACE)])

    def delete_default_route(self, version: int) -> None:
        """Have no default route of IP ``version`` 4 or 6."""
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        header = _RTMSG.pack(family, 0, 0, 0, _RT_TABLE_MAIN, 0, 0, 0, 0)
        try:
            self.execute([Message(_RTM_DELROUTE, 0, header)])
        except OSError as error:
            if error.errno not in (errno.ESRCH, errno.ENOENT):
                raise

    def delete_link(self, index: int) -> None:
        """Remove a link; of a veth pair both ends. ``OSError`` ENODEV if it has gone."""
        self.execute([Message(_RTM_DELLINK, 0, _ifinfo(index=index))])


def _mac(address: str) -> bytes:
    return bytes.fromhex(address.replace(":", ""))


def _ifinfo(*, index: int = 0, flags: int = 0) -> bytes:
    return _IFINFO.pack(socket.AF_UNSPEC, 0, index, flags, flags)


def _up(index: int) -> Message:
    return Message(_RTM_NEWLINK, 0, _ifinfo(index=index, flags=IFF_UP))


def _family(address: Address) -> int:
    return socket.AF_INET if address.version == 4 else socket.AF_INET6


def _address(index: int, address: Interface) -> Message:
    ip, prefix = address.ip, address.network.prefixlen
    # Duplicate detection would keep an IPv6 address unusable for a second; the engine hands out each only once.
    body = [
        _IFADDR.pack(_family(ip), prefix, _IFA_F_NODAD if ip.version == 6 else 0, 0, index),
        attribute(_IFA_LOCAL, ip.packed),
        attribute(_IFA_ADDRESS, ip.packed),
    ]
    if address.version == 4 and prefix < 31:
        body.append(attribute(_IFA_BROADCAST, address.network.broadcast_address.packed))
    return Message(_RTM_NEWADDR, NLM_F_CREATE | NLM_F_EXCL, b"".join(body))


def _default_route(index: int, gateway: Address, flags: int = NLM_F_EXCL) -> Message:
    header = _RTMSG.pack(_family(gateway), 0, 0, 0, _RT_TABLE_MAIN, _RTPROT_BOOT, _RT_SCOPE_UNIVERSE, _RTN_UNICAST, 0)
    body = header + attribute(_RTA_GATEWAY, gateway.packed) + u32(_RTA_OIF, index)
    return Message(_RTM_NEWROUTE, NLM_F_CREATE | flags, body)


def _link(answer: bytes) -> Link:
    _, _, index, flags, _ = _IFINFO.unpack_from(answer)
    attributes = parse_attributes(answer[_IFINFO.size :])
    information = parse_attributes(attributes.get(_IFLA_LINKINFO, b""))
    port = parse_attributes(information.get(_IFLA_INFO_SLAVE_DATA, b""))
    counts = _counts(attributes.get(_IFLA_STATS64, b""))
    rx_packets, tx_packets, rx_bytes, tx_bytes, rx_errors, tx_errors, rx_dropped, tx_dropped = counts
    return Link(
        index=index,
        name=_string(attributes.get(_IFLA_IFNAME, b"")),
        up=bool(flags & IFF_UP),
        operational=attributes.get(_IFLA_OPERSTATE) == b"\6",  # IF_OPER_UP
        forwarding=port.get(_IFLA_BRPORT_STATE) == b"\3",  # BR_STATE_FORWARDING
        isolated=port.get(_IFLA_BRPORT_ISOLATED) == b"\1",
        mtu=_number(attributes, _IFLA_MTU),
        mac=attributes.get(_IFLA_ADDRESS, b"").hex(":"),
        master=_number(attributes, _IFLA_MASTER),
        kind=_string(information.get(_IFLA_INFO_KIND, b"")),
        counters=Counters(
            rx_bytes=rx_bytes,
            rx_packets=rx_packets,
            rx_errors=rx_errors,
            rx_dropped=rx_dropped,
            tx_bytes=tx_bytes,
            tx_packets=tx_packets,
            tx_errors=tx_errors,
            tx_dropped=tx_dropped,
        ),
    )


def _counts(raw: bytes) -> Sequence[int]:
    """The first eight fields of struct rtnl_link_stats64."""
    return struct.unpack_from("=8Q", raw) if len(raw) >= 64 else (0,) * 8


def _number(attributes: dict[int, bytes], kind: int) -> int:
    return int.from_bytes(attributes.get(kind, bytes(4)), sys.byteorder)


def _string(raw: bytes) -> str:
    return raw.rstrip(b"\0").decode("utf-8", "replace")

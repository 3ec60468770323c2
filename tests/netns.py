"""A network namespace for one engine under test, with a way out through the host.

The namespace has no name: the descriptor held here keeps it, so that it goes with the test process, whatever happens
to that. On the host there is one end of a veth pair and one nftables table, both removed at the end, and those of
test processes that died are removed by the next.
"""

import contextlib
import ipaddress
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pyroute2 import IPRoute, NetlinkError
from pyroute2.nftables.expressions import ipv4addr, masq
from pyroute2.nftables.main import NFTables

from compatd.linux import syscalls
from compatd.linux.threads import on_thread
from tests import clients

T = TypeVar("T")

_FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")
_PREFIX = "ct"  # of links and tables; the owner's pid and a number follow, 15 characters at most
_PRIORITY_SRCNAT, _NFPROTO_IPV4 = 100, 2
_OURS = re.compile(rf"{_PREFIX}([0-9]+)n[0-9]+")
_WAS_OFF = "ip_forward-was-off"


class Network:
    """Owns the namespace and what connects it."""

    def __init__(self) -> None:
        self.fd = on_thread(_new_namespace, name="in-namespace")
        self.mtu = 1500
        self.address = "127.0.0.1"
        self._link = ""
        self.call(_loopback_up)

    def call(self, function: Callable[[], T]) -> T:
        """Run ``function`` inside: sockets that it makes belong to the namespace, wherever they are used later."""

        def inside() -> T:
            self.enter()
            return function()

        return on_thread(inside, name="in-namespace")

    def enter(self) -> None:
        """Move the calling thread into the namespace, for good."""
        syscalls.setns(self.fd, syscalls.CLONE_NEWNET)

    def connect(self) -> None:
        """Give the namespace an ``eth0`` with a default route through the host, and source NAT there."""
        with clients.locked("network"), IPRoute() as host:
            _sweep(host)
            routes = host.get_default_routes(family=2)
            if not routes:
                raise clients.Unavailable("the machine has no default route")
            outward = host.get_links(routes[0].get_attr("RTA_OIF"))[0]
            self.mtu = int(outward.get_attr("IFLA_MTU"))
            number = _free_number(host)
            subnet = ipaddress.ip_network((int(ipaddress.ip_address("10.213.0.0")) + 4 * number, 30))
            gateway, self.address = str(subnet[1]), str(subnet[2])
            self._link = f"{_PREFIX}{os.getpid()}n{number}"
            host.link("add", ifname=self._link, kind="veth", peer={"ifname": "eth0", "net_ns_fd": self.fd})
            index = host.link_lookup(ifname=self._link)[0]
            host.link("set", index=index, mtu=self.mtu, state="up")
            host.addr("add", index=index, address=gateway, prefixlen=30)
            self.call(lambda: _configure(self.address, gateway, self.mtu))
            _masquerade(self._link, self.address)
            if _FORWARDING.read_text().strip() != "1":
                (clients.CACHE / _WAS_OFF).touch()
                _FORWARDING.write_text("1")

    def links(self) -> list[str]:
        """Names of the namespace's links."""

        def names() -> list[str]:
            with IPRoute() as here:
                return sorted(str(link.get_attr("IFLA_IFNAME")) for link in here.get_links())

        return self.call(names)

    def close(self) -> None:
        """Disconnect and let go. The namespace ends with its last process."""
        if self._link:
            with clients.locked("network"), IPRoute() as host:
                _remove(host, self._link)
        os.close(self.fd)


def _new_namespace() -> int:
    syscalls.unshare(syscalls.CLONE_NEWNET)  # of this thread alone
    return os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)


def _loopback_up() -> None:
    with IPRoute() as here:
        here.link("set", index=here.link_lookup(ifname="lo")[0], state="up")


def _configure(address: str, gateway: str, mtu: int) -> None:
    with IPRoute() as here:
        index = here.link_lookup(ifname="eth0")[0]
        here.link("set", index=index, mtu=mtu, state="up")
        here.addr("add", index=index, address=address, prefixlen=30)
        here.route("add", dst="default", gateway=gateway)


def _free_number(host: Any) -> int:
    taken = {str(address.get_attr("IFA_ADDRESS")) for address in host.get_addr(family=2)}
    start = os.getpid() % 16_384
    for step in range(16_384):
        number = (start + step) % 16_384
        if str(ipaddress.ip_address("10.213.0.1") + 4 * number) not in taken:
            return number
    raise clients.Unavailable("no free address in 10.213.0.0/16")


def _masquerade(table: str, source: str) -> None:
    with NFTables(nfgen_family=_NFPROTO_IPV4) as nft:
        nft.table("add", name=table)
        nft.chain(
            "add",
            table=table,
            name="postrouting",
            type="nat",
            hook="postrouting",
            priority=_PRIORITY_SRCNAT,
            policy=1,
        )
        nft.rule("add", table=table, chain="postrouting", expressions=(ipv4addr(src=source), masq()))


def _remove(host: Any, name: str) -> None:
    for index in host.link_lookup(ifname=name):
        with contextlib.suppress(NetlinkError):
            host.link("del", index=index)
    with NFTables(nfgen_family=_NFPROTO_IPV4) as nft, contextlib.suppress(NetlinkError):
        nft.table("del", name=name)
    was_off = clients.CACHE / _WAS_OFF
    if was_off.exists() and not any(_OURS.fullmatch(link) for link in _link_names(host)):
        _FORWARDING.write_text("0")
        was_off.unlink()


def _link_names(host: Any) -> set[str]:
    return {str(link.get_attr("IFLA_IFNAME")) for link in host.get_links()}


def _sweep(host: Any) -> None:
    """Remove what test processes left that are no more."""
    names = _link_names(host)
    with NFTables(nfgen_family=_NFPROTO_IPV4) as nft:
        names |= {str(table.get_attr("NFTA_TABLE_NAME")) for table in nft.get_tables()}
    for name in names:
        if (match := _OURS.fullmatch(name)) and not Path(f"/proc/{match[1]}").exists():
            _remove(host, name)

"""The Linux bridge behind a network, and the veth pairs that tie containers to it.

The daemon's current network namespace is where all this happens. Our end of a pair is called ``veth`` and eleven
digits of the endpoint's id, and is a port of the bridge: what has such a name there and belongs to no live endpoint
is left from a crash, and ``remove_strays`` takes it away.
"""

import contextlib
import errno
import ipaddress
import os
import time
from collections.abc import Collection, Sequence
from pathlib import Path

from compatd.errors import SystemFailure
from compatd.linux.netlink import IFNAMSIZ, Address, Counters, Interface, IPNetwork, RouteSocket
from compatd.network import ipam, netns

_PREFIX = "veth"
_FORWARDING_TIMEOUT_S = 0.2
_SYSCTL = Path("/proc/sys/net")


def veth_name(endpoint_id: str) -> str:
    """The name of our end of an endpoint's pair. Its length tells it from the names other engines give."""
    return _PREFIX + endpoint_id[: IFNAMSIZ - 1 - len(_PREFIX)]


def exists(name: str) -> bool:
    """Whether there is an interface of this name."""
    with RouteSocket() as route:
        return route.link(name) is not None


def ensure(name: str, addresses: Sequence[Interface], *, mtu: int) -> None:
    """Make or correct the bridge: up, with these addresses, the machine forwarding. ``SystemFailure`` if not."""
    try:
        with RouteSocket() as route:
            link = route.link(name)
            if link is None:
                # With a MAC address of its own it does not change to that of each new lowest port.
                mac = ipam.derive_mac(addresses[0].ip) if addresses else ipam.random_mac()
                route.add_bridge(name, mtu=mtu, mac=mac)
                link = route.link(name)
            if link is None or link.kind != "bridge":
                raise SystemFailure(f"interface {name} exists and is not a bridge")
            if link.mtu != mtu:
                route.set_mtu(link.index, mtu)
            with contextlib.suppress(OSError):
                (_SYSCTL / f"ipv6/conf/{name}/accept_ra").write_text("0")
            if any(address.version == 6 for address in addresses):
                _require(f"ipv6/conf/{name}/disable_ipv6", "0", "the bridge could not have an IPv6 address")
            if not link.up:
                route.set_up(link.index)
            has = route.addresses()
            for address in addresses:
                if (link.index, address) not in has:
                    route.add_address(link.index, address)
    except OSError as error:
        raise SystemFailure(_lowered(error)) from error
    _require("ipv4/ip_forward", "1", "containers could not reach the outside")
    # Answers to what came from 127.0.0.1 come back through the bridge; nat refuses such addresses from containers.
    _require(f"ipv4/conf/{name}/route_localnet", "1", "published ports could not be reached by 127.0.0.1")
    if any(address.version == 6 for address in addresses):
        _require("ipv6/conf/all/forwarding", "1", "containers could not reach the outside by IPv6")


def _lowered(error: OSError) -> str:
    # As Go words it, and so Docker: clients see the kernel's reason alone.
    text = error.strerror or str(error)
    return text[:1].lower() + text[1:]


def remove(name: str) -> None:
    """Take a bridge away, if it is there."""
    with RouteSocket() as route:
        link = route.link(name)
        if link is not None and link.kind == "bridge":
            _delete(route, link.index)


def attach(
    namespace_fd: int,
    *,
    endpoint_id: str,
    bridge: str,
    interface: str,
    addresses: Sequence[Interface],
    mac: str,
    gateways: Sequence[Address],
    mtu: int,
    published: bool = False,
    isolated: bool = False,
    sysctls: Sequence[tuple[str, str]] = (),
) -> None:
    """Give a namespace an interface on the bridge, with addresses, and default routes through ``gateways``.

    ``sysctls``: (name below net, value) pairs for the interface, such as ipv4/conf/eth0/log_martians.

    ``published``: it has ports on the host. ``isolated``: it shall not reach others on the bridge that are so too.
    When it returns, packets flow. ``SystemFailure`` otherwise, and nothing is left. 2 ms.
    """
    name = veth_name(endpoint_id)
    try:
        with RouteSocket() as route:
            port = route.link(bridge)
            if port is None:
                raise SystemFailure(f"bridge {bridge} does not exist")
            route.add_veth(
                name, master=port.index, peer=interface, peer_namespace_fd=namespace_fd, peer_mac=mac, mtu=mtu
            )
            try:
                if (published or isolated) and (ours := route.link(name)) is not None:
                    # Where br_netfilter is loaded, the bridge itself turns a container's packets to its own
                    # published port around, and only a port in hairpin mode takes them back.
                    route.set_port(ours.index, hairpin=published, isolated=isolated)
                netns.run(namespace_fd, lambda: _configure(interface, addresses, gateways, sysctls))
                _await_forwarding(route, name, bridge)
            except BaseException:
                if (ours := route.link(name)) is not None:
                    _delete(route, ours.index)
                raise
    except OSError as error:
        raise SystemFailure(f"failed to add interface {name} to sandbox: {_lowered(error)}") from error


def _configure(
    interface: str, addresses: Sequence[Interface], gateways: Sequence[Address], sysctls: Sequence[tuple[str, str]]
) -> None:
    """Inside the namespace: only the families that the network has, addresses, up, routes."""
    if all(address.version == 4 for address in addresses):
        # Else the kernel gives it a link-local address, and a neighbour's router advertisement could give it more.
        with contextlib.suppress(OSError):
            (_SYSCTL / f"ipv6/conf/{interface}/disable_ipv6").write_text("1")
    # Announce the address when the interface comes up: it may have been another container's, with another MAC.
    with contextlib.suppress(OSError):
        (_SYSCTL / f"ipv4/conf/{interface}/arp_notify").write_text("1")
    with RouteSocket() as route:
        link = route.link(interface)
        if link is None:
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
        for name, value in sysctls:
            if not (_SYSCTL / name).is_file():
                raise FileNotFoundError(errno.ENOENT, f"{_SYSCTL / name} is not a sysctl file")
            (_SYSCTL / name).write_text(value)
        route.configure(link.index, addresses, gateways)


def route(namespace_fd: int, gateways: Sequence[tuple[str, Address]]) -> None:
    """Have a namespace's default routes lead through ``gateways``, (interface, address) pairs, one of a family; a
    family without one has no default route any more."""

    def change() -> None:
        with RouteSocket() as socket:
            for version in {4, 6} - {address.version for _, address in gateways}:
                socket.delete_default_route(version)
            for interface, address in gateways:
                link = socket.link(interface)
                if link is not None:
                    socket.replace_default_route(link.index, address)

    try:
        netns.run(namespace_fd, change)
    except OSError as error:
        raise SystemFailure(f"failed to set the default route: {_lowered(error)}") from error


def _await_forwarding(route: RouteSocket, port: str, bridge: str) -> None:
    # The kernel's link watch first lets the bridge pass on what comes from the port, then, if it was the bridge's
    # first, lets packets out of the bridge. Both mostly have happened by now. A packet sent earlier would be lost,
    # and a lost ARP request or answer costs the container a second.
    deadline = time.monotonic() + _FORWARDING_TIMEOUT_S
    while time.monotonic() < deadline:
        ours, master = route.link(port), route.link(bridge)
        if ours is None or master is None or (ours.forwarding and master.operational):
            return
        time.sleep(0.0002)


def hairpin(endpoint_id: str) -> None:
    """Let an endpoint get back what it sent to its own published ports; see ``attach``."""
    with RouteSocket() as route:
        link = route.link(veth_name(endpoint_id))
        if link is not None:
            route.set_port(link.index, hairpin=True, isolated=link.isolated)


def detach(endpoint_id: str) -> None:
    """Take an endpoint's pair away, if it is there. 20 to 50 ms (the kernel waits for RCU): off any reply's path."""
    with RouteSocket() as route:
        link = route.link(veth_name(endpoint_id))
        if link is not None:
            _delete(route, link.index)


def remove_strays(bridge: str, live_endpoint_ids: Collection[str]) -> list[str]:
    """Take away pairs of ours on ``bridge`` that no live endpoint has. Their names are returned."""
    live = {veth_name(endpoint_id) for endpoint_id in live_endpoint_ids}
    removed: list[str] = []
    with RouteSocket() as route:
        master = route.link(bridge)
        if master is None:
            return removed
        for link in route.links():
            ours = link.kind == "veth" and link.master == master.index and _is_ours(link.name)
            if ours and link.name not in live:
                _delete(route, link.index)
                removed.append(link.name)
    return removed


def counters(endpoint_id: str) -> Counters | None:
    """What the container has received and sent, read from our end; None if it has gone. 0.1 ms."""
    with RouteSocket() as route:
        link = route.link(veth_name(endpoint_id))
    if link is None:
        return None
    ours = link.counters
    return Counters(
        rx_bytes=ours.tx_bytes,
        rx_packets=ours.tx_packets,
        rx_errors=ours.tx_errors,
        rx_dropped=ours.tx_dropped,
        tx_bytes=ours.rx_bytes,
        tx_packets=ours.rx_packets,
        tx_errors=ours.rx_errors,
        tx_dropped=ours.rx_dropped,
    )


def bridge_address(name: str) -> ipaddress.IPv4Interface | None:
    """The first IPv4 address that the bridge ``name`` has now."""
    with RouteSocket() as route:
        link = route.link(name)
        if link is None:
            return None
        for index, address in route.addresses():
            if index == link.index and isinstance(address, ipaddress.IPv4Interface):
                return address
    return None


def host_subnets(*, except_bridge: str) -> list[IPNetwork]:
    """What this machine's routes lead to, the default routes and link-local ones aside."""
    with RouteSocket() as route:
        link = route.link(except_bridge) if except_bridge else None
        index = link.index if link is not None else -1
        return [
            item.destination
            for item in route.routes()
            if item.link_index != index and item.destination.prefixlen > 0 and not item.destination.is_link_local
        ]


def uplink_mtu() -> int:
    """The MTU of the link with the default route, at most 1500; 1500 if there is none.

    Docker always takes 1500; where the machine's own link carries less (clouds, tunnels) its containers then depend
    on somebody upstream reporting packets that do not fit.
    """
    with RouteSocket() as route:
        outward = {item.link_index for item in route.routes() if item.destination.prefixlen == 0}
        return min([1500, *(link.mtu for link in route.links() if link.index in outward)])


def _is_ours(name: str) -> bool:
    digits = name.removeprefix(_PREFIX)
    return len(name) == IFNAMSIZ - 1 and digits != name and all(digit in "0123456789abcdef" for digit in digits)


def _delete(route: RouteSocket, index: int) -> None:
    try:
        route.delete_link(index)
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise


def _require(sysctl: str, value: str, otherwise: str) -> None:
    path = _SYSCTL / sysctl
    try:
        if path.read_text().strip() != value:
            path.write_text(value)
    except OSError as error:
        raise SystemFailure(f"cannot set net/{sysctl} to {value} ({error.strerror}): {otherwise}") from error

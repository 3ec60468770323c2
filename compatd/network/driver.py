"""The bridge driver: what the core calls to give containers a network.

The driver keeps no file. ``Network`` and ``Endpoint`` are plain documents that the core stores; ``restore`` hands
them back after a restart, and from them the driver rebuilds everything: bridges, addresses in use, held ports, the
firewall, and what a crash has left is removed. So a killed daemon leaks nothing, and running containers keep their
network, published ports included, while no daemon runs.

Calls block and may come from several threads: run them on workers. Measured: a namespace 0.8 ms, a connect 1.4 ms
and 2.5 ms with a published port, a disconnect 20 to 50 ms (asleep in the kernel), a start 7 ms. Loading this module
takes 25 ms: not before the daemon answers its first ping.
"""

import ipaddress
import logging
import secrets
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace

from compatd.errors import InvalidParameter, NotFound, SystemFailure, Unsupported
from compatd.linux.netlink import Address, Counters, IPNetwork
from compatd.network import bridge, ipam, nat
from compatd.network.ports import PortMapping, PortRequest, PortReservations

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A bridge network. ``subnet`` like 172.17.0.0/16, ``gateway`` like 172.17.0.1; ``ip_range``: the part of the
    subnet that addresses are taken from, empty for all of it."""

    id: str
    name: str
    bridge: str
    subnet: str
    gateway: str
    mtu: int
    ip_range: str = ""
    icc: bool = True
    masquerade: bool = True
    internal: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectRequest:
    """One container's wish to be on one network. ``endpoint_id``: 64 hex digits, see ``new_endpoint_id``."""

    endpoint_id: str
    network_id: str
    container_id: str
    container_name: str
    ip_address: str = ""
    mac_address: str = ""
    interface: str = "eth0"
    default_route: bool = True
    ports: tuple[PortRequest, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A container's place on a network, as it is."""

    id: str
    network_id: str
    container_id: str
    interface: str
    ip_address: str
    prefix_length: int
    gateway: str
    mac_address: str
    ports: tuple[PortMapping, ...] = ()


def new_endpoint_id() -> str:
    """64 hex digits."""
    return secrets.token_hex(32)


def default_network(
    network_id: str,
    *,
    name: str = "bridge",
    bridge_name: str = "docker0",
    bip: str = "",
    fixed_cidr: str = "",
    mtu: int = 0,
    icc: bool = True,
    masquerade: bool = True,
    pools: Sequence[ipam.AddressPool] = ipam.DEFAULT_POOLS,
) -> Network:
    """The network that containers are on by default: as configured, else as the bridge is now, else on the first
    free subnet of ``pools``. Looks at the current network namespace, changes nothing.

    ``mtu`` 0: that of the machine's way out. ``InvalidParameter``: ``bip`` or ``fixed_cidr`` make no sense.
    """
    if bip:
        try:
            gateway = ipaddress.IPv4Interface(bip)
        except ValueError:
            raise InvalidParameter(f"invalid bridge IP {bip}: it must be an IPv4 address with a prefix") from None
        if "/" not in bip or gateway.ip in (gateway.network.network_address, gateway.network.broadcast_address):
            raise InvalidParameter(f"invalid bridge IP {bip}: it must be a host's address with a prefix")
    else:
        existing = bridge.bridge_address(bridge_name)
        if existing is not None:
            gateway = existing
        else:
            subnet = ipam.choose_subnet(bridge.host_subnets(except_bridge=bridge_name), pools)
            gateway = ipaddress.IPv4Interface(f"{ipam.first_address(subnet)}/{subnet.prefixlen}")
    if fixed_cidr:
        try:
            inside = ipaddress.IPv4Network(fixed_cidr)
        except ValueError:
            raise InvalidParameter(f"invalid CIDR value for fixed-cidr: {fixed_cidr}") from None
        if not inside.subnet_of(gateway.network):
            raise InvalidParameter(f"fixed-cidr {fixed_cidr} is not within the bridge's subnet {gateway.network}")
    return Network(
        id=network_id,
        name=name,
        bridge=bridge_name,
        subnet=str(gateway.network),
        gateway=str(gateway.ip),
        mtu=mtu or bridge.uplink_mtu(),
        ip_range=fixed_cidr,
        icc=icc,
        masquerade=masquerade,
    )


@dataclass(slots=True, kw_only=True)
class _State:
    """A network with what is on it."""

    network: Network
    subnet: IPNetwork
    gateway: Address
    endpoints: dict[str, Endpoint] = field(default_factory=dict[str, Endpoint])
    used: set[Address] = field(default_factory=set[Address])


class BridgeDriver:
    """Bridge networks of one daemon in one network namespace. ``table``: the nf_tables table that is ours, so that
    two daemons may share a namespace. ``host_ip``: where ports are published unless a request says otherwise."""

    def __init__(self, *, table: str = nat.TABLE, host_ip: str = "") -> None:
        self._lock = threading.Lock()  # guards what follows; held for the firewall's transaction, never for links
        self._networks: dict[str, _State] = {}
        self._ports = PortReservations((host_ip,) if host_ip else ("0.0.0.0", "::"))
        self._firewall = nat.Firewall(table)

    def restore(self, networks: Iterable[Network], endpoints: Iterable[Endpoint]) -> list[PortMapping]:
        """Bring about these networks with these live endpoints (at a daemon's start, and only then).

        Endpoints whose container has gone must not be among them: their leftovers are removed here. Returns the
        published ports that another program has bound meanwhile; they still lead to their containers.
        """
        lost: list[PortMapping] = []
        with self._lock:
            for network in networks:
                self._networks[network.id] = _prepare(network)
            for endpoint in endpoints:
                state = self._networks.get(endpoint.network_id)
                if state is None:
                    log.warning("endpoint %s is on unknown network %s", endpoint.id[:12], endpoint.network_id[:12])
                    continue
                state.endpoints[endpoint.id] = endpoint
                state.used.add(ipaddress.ip_address(endpoint.ip_address))
                lost += self._ports.adopt(endpoint.ports)
            self._apply_firewall()
            for state in self._networks.values():
                for name in bridge.remove_strays(state.network.bridge, state.endpoints):
                    log.info("removed stray interface %s from %s", name, state.network.bridge)
        return lost

    def create_network(self, network: Network) -> None:
        """Add a network: its bridge and rules."""
        with self._lock:
            self._networks[network.id] = _prepare(network)
            try:
                self._apply_firewall()
            except SystemFailure:
                del self._networks[network.id]
                raise

    def delete_network(self, network_id: str) -> None:
        """Remove a network and its bridge; the core has made sure that nobody is on it. Unknown: nothing happens."""
        with self._lock:
            state = self._networks.pop(network_id, None)
            if state is not None:
                self._apply_firewall()
        if state is not None:
            bridge.remove(state.network.bridge)

    def connect(self, request: ConnectRequest, namespace_fd: int) -> Endpoint:
        """Put the namespace on the network and publish the ports. The caller keeps the descriptor.

        All or nothing. Errors have Docker's text, less the ``failed to set up container networking: `` that a
        container's start puts before it: no free address, address in use, port taken (``SystemFailure``).
        """
        with ExitStack() as undo:
            with self._lock:
                state = self._networks.get(request.network_id)
                if state is None:
                    raise NotFound(f"network {request.network_id} not found")
                address = self._allocate(state, request)
                undo.callback(self._release_address, state, address)
                mappings = self._reserve(request, str(address))
                undo.callback(self._release_ports, mappings)
            mac = request.mac_address or ipam.derive_mac(address)
            network = state.network
            gateway = state.gateway if request.default_route and not network.internal else None
            undo.callback(bridge.detach, request.endpoint_id)
            bridge.attach(
                namespace_fd,
                endpoint_id=request.endpoint_id,
                bridge=network.bridge,
                interface=request.interface,
                address=ipaddress.ip_interface((address, state.subnet.prefixlen)),
                mac=mac,
                gateway=gateway,
                mtu=network.mtu,
                published=bool(mappings),
                isolated=not network.icc,
            )
            endpoint = Endpoint(
                id=request.endpoint_id,
                network_id=network.id,
                container_id=request.container_id,
                interface=request.interface,
                ip_address=str(address),
                prefix_length=state.subnet.prefixlen,
                gateway=str(state.gateway) if not network.internal else "",
                mac_address=mac,
                ports=tuple(mappings),
            )
            with self._lock:
                state.endpoints[endpoint.id] = endpoint
                try:
                    if mappings:
                        self._apply_firewall()
                except SystemFailure:
                    del state.endpoints[endpoint.id]
                    raise
            nat.forget_udp_flows(mappings)
            undo.pop_all()
            return endpoint

    def unpublish(self, endpoint: Endpoint) -> None:
        """Give back the endpoint's published ports alone, at once: the quick part of ``disconnect``, 0.3 ms."""
        with self._lock:
            state = self._networks.get(endpoint.network_id)
            known = state.endpoints.get(endpoint.id) if state is not None else None
            if state is not None and known is not None and known.ports:
                state.endpoints[endpoint.id] = replace(known, ports=())
                self._ports.release(known.ports)
                self._apply_firewall()

    def disconnect(self, endpoint: Endpoint) -> None:
        """Take the endpoint off its network and give back address and ports. Of one unknown or gone: what is left.

        The address is free only when the interface has gone, so that no two containers ever answer for it.
        """
        with self._lock:
            state = self._networks.get(endpoint.network_id)
            known = state.endpoints.pop(endpoint.id, None) if state is not None else None
            if known is not None and known.ports:
                self._ports.release(known.ports)
                self._apply_firewall()
        if known is not None:
            nat.forget_udp_flows(known.ports)
        try:
            bridge.detach(endpoint.id)
        finally:
            if state is not None and known is not None:
                with self._lock:
                    state.used.discard(ipaddress.ip_address(known.ip_address))

    def counters(self, endpoint: Endpoint) -> Counters | None:
        """What the container has received and sent on this endpoint; None if it has gone."""
        return bridge.counters(endpoint.id)

    def networks(self) -> list[Network]:
        """The networks there are."""
        with self._lock:
            return [state.network for state in self._networks.values()]

    def close(self) -> None:
        """Give back the held ports. Bridges, pairs and rules stay: running containers go on using them."""
        with self._lock:
            self._ports.close()

    def _allocate(self, state: _State, request: ConnectRequest) -> Address:
        network = state.network
        requested = ipaddress.ip_address(request.ip_address) if request.ip_address else None
        address = ipam.allocate(
            state.subnet,
            state.used,
            network=f"{network.name} ({network.id})",
            requested=requested,
            within=ipaddress.ip_network(network.ip_range) if network.ip_range else None,
        )
        state.used.add(address)
        return address

    def _release_address(self, state: _State, address: Address) -> None:
        with self._lock:
            state.used.discard(address)

    def _reserve(self, request: ConnectRequest, address: str) -> list[PortMapping]:
        for wanted in request.ports:
            if ":" in wanted.host_ip:
                raise Unsupported(f"publishing on an IPv6 address is not supported: [{wanted.host_ip}]")
        try:
            return self._ports.reserve(request.ports, container_ip=address)
        except SystemFailure as error:
            # moby daemon/libnetwork/endpoint.go, sbJoin
            raise SystemFailure(
                f"driver failed programming external connectivity on endpoint {request.container_name} "
                f"({request.endpoint_id}): {error}"
            ) from error

    def _release_ports(self, mappings: list[PortMapping]) -> None:
        with self._lock:
            self._ports.release(mappings)

    def _apply_firewall(self) -> None:
        self._firewall.apply(self._rules(), self._published())

    def _rules(self) -> Iterator[nat.BridgeRules]:
        for state in self._networks.values():
            if isinstance(state.subnet, ipaddress.IPv4Network):
                yield nat.BridgeRules(
                    bridge=state.network.bridge,
                    subnet=state.subnet,
                    masquerade=state.network.masquerade,
                    icc=state.network.icc,
                    internal=state.network.internal,
                )

    def _published(self) -> Iterator[nat.Published]:
        for state in self._networks.values():
            for endpoint in state.endpoints.values():
                for mapping in endpoint.ports:
                    yield nat.Published(mapping=mapping, address=ipaddress.IPv4Address(endpoint.ip_address))


def _prepare(network: Network) -> _State:
    subnet = ipaddress.ip_network(network.subnet)
    gateway = ipaddress.ip_address(network.gateway)
    bridge.ensure(network.bridge, ipaddress.ip_interface((gateway, subnet.prefixlen)), mtu=network.mtu)
    return _State(network=network, subnet=subnet, gateway=gateway, used={gateway})

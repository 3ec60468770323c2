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

from compatd.errors import InvalidParameter, NotFound, SystemFailure
from compatd.linux.netlink import Address, Counters, IPNetwork
from compatd.network import bridge, ipam, nat
from compatd.network.ports import PortMapping, PortRequest, PortReservations
from compatd.network.relay import Relays

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """A bridge network. ``subnet`` like 172.17.0.0/16, ``gateway`` like 172.17.0.1; ``ip_range``: the part of the
    subnet that addresses are taken from, empty for all of it; the same with a 6 for IPv6. No subnet: not that family.

    ``reserved``: addresses that no container gets. ``host_ip``: where ports are published unless a request says
    otherwise. ``mode``: nat, nat-unprotected, routed or isolated, Docker's gateway modes. ``made``: the bridge is
    ours to remove. ``addressed``: the bridge itself has the gateway's address.
    """

    id: str
    name: str
    bridge: str
    mtu: int
    subnet: str = ""
    gateway: str = ""
    ip_range: str = ""
    subnet6: str = ""
    gateway6: str = ""
    ip_range6: str = ""
    reserved: tuple[str, ...] = ()
    icc: bool = True
    masquerade: bool = True
    masquerade6: bool = True
    internal: bool = False
    mode: str = "nat"
    mode6: str = "nat"
    host_ip: str = ""
    prefix: str = "eth"
    made: bool = True
    addressed: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectRequest:
    """One container's wish to be on one network. ``endpoint_id``: 64 hex digits, see ``new_endpoint_id``.

    ``default_route``: for each family that the network has, whether the container's way out is here (4, 6).
    """

    endpoint_id: str
    network_id: str
    container_id: str
    container_name: str
    ip_address: str = ""
    ip6_address: str = ""
    link_local: tuple[str, ...] = ()
    mac_address: str = ""
    interface: str = "eth0"
    default_route: tuple[int, ...] = (4, 6)
    ports: tuple[PortRequest, ...] = ()
    sysctls: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A container's place on a network, as it is. Families that it has not are empty."""

    id: str
    network_id: str
    container_id: str
    interface: str
    ip_address: str
    prefix_length: int
    gateway: str
    mac_address: str
    ports: tuple[PortMapping, ...] = ()
    ip6_address: str = ""
    prefix_length6: int = 0
    gateway6: str = ""


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
    taken: Sequence[IPNetwork] = (),
    ipv6: bool = False,
    fixed_cidr_v6: str = "",
) -> Network:
    """The network that containers are on by default: as configured, else as the bridge is now, else on the first
    free subnet of ``pools``. Looks at the current network namespace, changes nothing.

    ``taken``: subnets of other networks, whose bridges may not be there now. ``mtu`` 0: that of the machine's way
    out. ``InvalidParameter``: ``bip`` or ``fixed_cidr`` make no sense.
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
            fitting = [pool for pool in pools if pool.base.version == 4]
            subnet = ipam.choose_subnet([*bridge.host_subnets(except_bridge=bridge_name), *taken], fitting)
            gateway = ipaddress.IPv4Interface(f"{ipam.first_address(subnet)}/{subnet.prefixlen}")
    if fixed_cidr:
        try:
            inside = ipaddress.IPv4Network(fixed_cidr)
        except ValueError:
            raise InvalidParameter(f"invalid CIDR value for fixed-cidr: {fixed_cidr}") from None
        if not inside.subnet_of(gateway.network):
            raise InvalidParameter(f"fixed-cidr {fixed_cidr} is not within the bridge's subnet {gateway.network}")
    subnet6, gateway6 = "", ""
    if ipv6:
        try:
            six = ipaddress.IPv6Network(fixed_cidr_v6) if fixed_cidr_v6 else None
        except ValueError:
            raise InvalidParameter(f"invalid CIDR value for fixed-cidr-v6: {fixed_cidr_v6}") from None
        if six is None:
            others = [*bridge.host_subnets(except_bridge=bridge_name), *taken]
            chosen = ipam.choose_subnet(others, [pool for pool in pools if pool.base.version == 6])
        else:
            chosen = six
        subnet6, gateway6 = str(chosen), str(ipam.first_address(chosen))
    return Network(
        id=network_id,
        name=name,
        bridge=bridge_name,
        subnet=str(gateway.network),
        gateway=str(gateway.ip),
        subnet6=subnet6,
        gateway6=gateway6,
        mtu=mtu or bridge.uplink_mtu(),
        ip_range=fixed_cidr,
        icc=icc,
        masquerade=masquerade,
    )


@dataclass(slots=True, kw_only=True)
class _Pool:
    """The addresses of one family of a network."""

    subnet: IPNetwork
    gateway: Address
    within: IPNetwork | None
    used: set[Address]


@dataclass(slots=True, kw_only=True)
class _State:
    """A network with what is on it. ``pools`` by IP version."""

    network: Network
    pools: dict[int, _Pool]
    endpoints: dict[str, Endpoint] = field(default_factory=dict[str, Endpoint])


class BridgeDriver:
    """Bridge networks of one daemon in one network namespace. ``table``: the nf_tables table that is ours, so that
    two daemons may share a namespace. ``host_ip``: where ports are published unless a request says otherwise.
    ``relays``: who carries what the firewall cannot, see there."""

    def __init__(self, *, table: str = nat.TABLE, host_ip: str = "", relays: Relays | None = None) -> None:
        self._relays = relays
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
                try:
                    self._networks[network.id] = _prepare(network)
                except SystemFailure as error:  # what its bridge needs has gone; the others do not suffer for it
                    log.error("network %s could not be restored: %s", network.name, error)
            for endpoint in endpoints:
                state = self._networks.get(endpoint.network_id)
                if state is None:
                    log.warning("endpoint %s is on unknown network %s", endpoint.id[:12], endpoint.network_id[:12])
                    continue
                state.endpoints[endpoint.id] = endpoint
                for address in _addresses(endpoint):
                    if address.version in state.pools:
                        state.pools[address.version].used.add(address)
                lost += self._ports.adopt(mapping for mapping in endpoint.ports if mapping.host_port)
                self._relay(endpoint)
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
        if state is not None and state.network.made:
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
                asked = {4: request.ip_address, 6: request.ip6_address}
                addresses: dict[int, Address] = {}
                for version, pool in state.pools.items():
                    addresses[version] = _allocate(state.network, pool, asked[version])
                    undo.callback(self._release_address, pool, addresses[version])
                mappings = self._reserve(state.network, addresses, request.ports, request)
                undo.callback(self._release_ports, mappings)
            network = state.network
            mac = request.mac_address or ipam.derive_mac(addresses[min(addresses)])
            gateways = {} if _closed(network) else {version: pool.gateway for version, pool in state.pools.items()}
            undo.callback(bridge.detach, request.endpoint_id)
            bridge.attach(
                namespace_fd,
                endpoint_id=request.endpoint_id,
                bridge=network.bridge,
                interface=request.interface,
                addresses=[
                    *(
                        ipaddress.ip_interface((address, state.pools[version].subnet.prefixlen))
                        for version, address in addresses.items()
                    ),
                    *(ipaddress.ip_interface(f"{text}/{64 if ':' in text else 16}") for text in request.link_local),
                ],
                mac=mac,
                gateways=[gateway for version, gateway in gateways.items() if version in request.default_route],
                mtu=network.mtu,
                published=bool(mappings),
                isolated=not network.icc,
                sysctls=request.sysctls,
            )
            endpoint = Endpoint(
                id=request.endpoint_id,
                network_id=network.id,
                container_id=request.container_id,
                interface=request.interface,
                ip_address=str(addresses.get(4, "")),
                prefix_length=state.pools[4].subnet.prefixlen if 4 in addresses else 0,
                gateway=str(gateways.get(4, "")),
                ip6_address=str(addresses.get(6, "")),
                prefix_length6=state.pools[6].subnet.prefixlen if 6 in addresses else 0,
                gateway6=str(gateways.get(6, "")),
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
                self._relay(endpoint)
            nat.forget_udp_flows(mappings)
            undo.pop_all()
            return endpoint

    def publish(self, endpoint: Endpoint, ports: Sequence[PortRequest], container_name: str) -> Endpoint:
        """Publish ports of a connected endpoint, which has none so far; the endpoint with them. All or nothing."""
        with self._lock:
            state = self._networks.get(endpoint.network_id)
            if state is None or endpoint.id not in state.endpoints:
                raise NotFound(f"network {endpoint.network_id} not found")
            addresses: dict[int, Address] = {address.version: address for address in _addresses(endpoint)}
            mappings = self._reserve(state.network, addresses, ports, endpoint, container_name)
            published = replace(endpoint, ports=tuple(mappings))
            state.endpoints[endpoint.id] = published
            try:
                self._apply_firewall()
            except SystemFailure:
                state.endpoints[endpoint.id] = endpoint
                self._release(mappings)
                raise
            self._relay(published)
        bridge.hairpin(endpoint.id)
        nat.forget_udp_flows(mappings)
        return published

    def unpublish(self, endpoint: Endpoint) -> None:
        """Give back the endpoint's published ports alone, at once: the quick part of ``disconnect``, 0.3 ms."""
        with self._lock:
            state = self._networks.get(endpoint.network_id)
            known = state.endpoints.get(endpoint.id) if state is not None else None
            if state is not None and known is not None and known.ports:
                state.endpoints[endpoint.id] = replace(known, ports=())
                self._release(known.ports)
                self._apply_firewall()

    def disconnect(self, endpoint: Endpoint) -> None:
        """Take the endpoint off its network and give back address and ports. Of one unknown or gone: what is left.

        The address is free only when the interface has gone, so that no two containers ever answer for it.
        """
        with self._lock:
            state = self._networks.get(endpoint.network_id)
            known = state.endpoints.pop(endpoint.id, None) if state is not None else None
            if known is not None and known.ports:
                self._release(known.ports)
                self._apply_firewall()
        if known is not None:
            nat.forget_udp_flows(known.ports)
        try:
            bridge.detach(endpoint.id)
        finally:
            if state is not None and known is not None:
                for address in _addresses(known):
                    if address.version in state.pools:
                        self._release_address(state.pools[address.version], address)

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
            for state in self._networks.values():
                for endpoint in state.endpoints.values():
                    self._stop_relays(endpoint.ports)
            self._ports.close()

    def _release_address(self, pool: _Pool, address: Address) -> None:
        with self._lock:
            pool.used.discard(address)

    def _reserve(
        self,
        network: Network,
        addresses: dict[int, Address],
        ports: Sequence[PortRequest],
        endpoint: ConnectRequest | Endpoint,
        container_name: str = "",
    ) -> list[PortMapping]:
        if network.internal or not ports:
            return []
        host_ips = (network.host_ip,) if network.host_ip else self._ports.default_host_ips
        routed: list[PortMapping] = []
        held: list[PortRequest] = []
        for request in ports:
            for host_ip in (request.host_ip,) if request.host_ip else host_ips:
                version, has = (6, 6 in addresses) if ":" in host_ip else (4, 4 in addresses)
                if has and (network.mode if version == 4 else network.mode6) == "routed":
                    routed.append(
                        PortMapping(
                            container_port=request.container_port,
                            protocol=request.protocol,
                            host_ip="0.0.0.0" if version == 4 else "::",
                            host_port=0,
                        )
                    )
                elif (has or version == 6) and request not in held:  # IPv6 is relayed where the container has none
                    held.append(request)
        kept = [host_ip for host_ip in host_ips if self._is_held(network, addresses, host_ip)]
        try:
            container_ip = str(addresses[min(addresses)])
            mappings = self._ports.reserve(held, container_ip=container_ip, host_ips=kept)
            return [
                *(mapping for mapping in routed if ":" not in mapping.host_ip),
                *mappings,
                *(mapping for mapping in routed if ":" in mapping.host_ip),
            ]
        except SystemFailure as error:
            # moby daemon/libnetwork/endpoint.go, sbJoin
            name, identity = (
                (endpoint.container_name, endpoint.endpoint_id)
                if isinstance(endpoint, ConnectRequest)
                else (container_name, endpoint.id)
            )
            raise SystemFailure(
                f"driver failed programming external connectivity on endpoint {name} ({identity}): {error}"
            ) from error

    def _is_held(self, network: Network, addresses: dict[int, Address], host_ip: str) -> bool:
        """Whether a port of this host address is taken on the host, or reached without."""
        if ":" in host_ip:
            return 6 not in addresses or network.mode6 != "routed"
        return 4 in addresses and network.mode != "routed"

    def _relay(self, endpoint: Endpoint) -> None:
        """Have what comes to published IPv6 addresses carried where no rule leads."""
        for mapping in endpoint.ports:
            held = self._ports.held(mapping) if ":" in mapping.host_ip else None
            if held is not None and self._relays is not None:
                self._relays.start(mapping, held, endpoint.ip6_address or endpoint.ip_address)

    def _stop_relays(self, mappings: Iterable[PortMapping]) -> None:
        for mapping in mappings:
            if self._relays is not None and ":" in mapping.host_ip:
                self._relays.stop(mapping)

    def _release(self, mappings: Sequence[PortMapping]) -> None:
        self._stop_relays(mappings)
        self._ports.release(mappings)

    def _release_ports(self, mappings: list[PortMapping]) -> None:
        with self._lock:
            self._release(mappings)

    def _apply_firewall(self) -> None:
        self._firewall.apply(self._rules(), self._published())

    def _rules(self) -> Iterator[nat.BridgeRules]:
        for state in self._networks.values():
            network = state.network
            for version, pool in state.pools.items():
                mode = network.mode if version == 4 else network.mode6
                masquerade = network.masquerade if version == 4 else network.masquerade6
                opened = [
                    (mapping.protocol, address, mapping.container_port)
                    for endpoint in state.endpoints.values()
                    for address in _addresses(endpoint)
                    for mapping in endpoint.ports
                    if address.version == version
                    and not mapping.host_port
                    and (":" in mapping.host_ip) == (version == 6)
                ]
                yield nat.BridgeRules(
                    bridge=network.bridge,
                    subnet=pool.subnet,
                    masquerade=masquerade and mode in ("nat", "nat-unprotected"),
                    icc=network.icc,
                    internal=network.internal,
                    unprotected=mode == "nat-unprotected",
                    opened=tuple(opened),
                )

    def _published(self) -> Iterator[nat.Published]:
        for state in self._networks.values():
            for endpoint in state.endpoints.values():
                for address in _addresses(endpoint):
                    for mapping in endpoint.ports:
                        if mapping.host_port:
                            yield nat.Published(mapping=mapping, address=address)


def _allocate(network: Network, pool: _Pool, requested: str) -> Address:
    address = ipam.allocate(
        pool.subnet,
        pool.used,
        network=f"{network.name} ({network.id})",
        requested=ipaddress.ip_address(requested) if requested else None,
        within=pool.within,
    )
    pool.used.add(address)
    return address


def _addresses(endpoint: Endpoint) -> list[Address]:
    return [ipaddress.ip_address(text) for text in (endpoint.ip_address, endpoint.ip6_address) if text]


def _closed(network: Network) -> bool:
    """Whether there is no way out through the bridge."""
    return network.internal


def _prepare(network: Network) -> _State:
    pools: dict[int, _Pool] = {}
    reserved = [ipaddress.ip_address(text) for text in network.reserved]
    for subnet_text, gateway_text, range_text in (
        (network.subnet, network.gateway, network.ip_range),
        (network.subnet6, network.gateway6, network.ip_range6),
    ):
        if subnet_text:
            subnet, gateway = ipaddress.ip_network(subnet_text), ipaddress.ip_address(gateway_text)
            pools[subnet.version] = _Pool(
                subnet=subnet,
                gateway=gateway,
                within=ipaddress.ip_network(range_text) if range_text else None,
                used={gateway, *(address for address in reserved if address in subnet)},
            )
    addresses = [ipaddress.ip_interface((pool.gateway, pool.subnet.prefixlen)) for pool in pools.values()]
    bridge.ensure(network.bridge, addresses if network.addressed else [], mtu=network.mtu)
    return _State(network=network, pools=pools)

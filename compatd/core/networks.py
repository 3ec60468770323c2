"""Networks: which there are, who makes and removes them, and what a container gets in them when it starts.

``bridge``, ``host`` and ``none`` are always there. The kernel side is ``network.driver``'s. A network's record is
committed before its bridge is made, and removed after the bridge: an engine killed in between finds the record, and
makes the bridge (again). So no bridge is ever left over.
"""

import asyncio
import hashlib
import ipaddress
import logging
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import msgspec

from compatd import tasks
from compatd.config import Config, parse_address_pool
from compatd.core import endpoints, sharing
from compatd.core import filters as filtering
from compatd.core.container import ContainerRecord
from compatd.core.discovery import Discovery
from compatd.core.events import Events
from compatd.core.filters import Filters
from compatd.core.lifecycle import ALIVE
from compatd.core.links import Links
from compatd.core.names import find, new_id
from compatd.core.network_request import PREDEFINED, NetworkRecord, already_exists, check_name, read
from compatd.core.ports import port_requests
from compatd.core.store import Delete, Put, Store
from compatd.errors import EngineError, Forbidden, InvalidParameter, NotFound, SystemFailure, reword
from compatd.linux.netlink import IPNetwork
from compatd.network import bridge, files, ipam, netns
from compatd.network.driver import BridgeDriver, ConnectRequest, Endpoint, default_network
from compatd.network.driver import Network as BridgeNetwork
from compatd.network.resolver import Server, Sockets, open_sockets
from compatd.tasks import Workers
from compatd.wire.times import format_time
from compatd.wire.types.containers import HostConfig, NetworkStats
from compatd.wire.types.networks import (
    IPAM,
    ConfigReference,
    EndpointSettings,
    IPAMConfig,
    Network,
    NetworkContainer,
    NetworkCreateRequest,
    NetworkCreateResponse,
    NetworkingConfig,
    NetworksPruned,
)

log = logging.getLogger(__name__)

LIST_FILTERS = ("dangling", "driver", "id", "label", "label!", "name", "scope", "type")
PRUNE_FILTERS = ("label", "label!", "until")


@dataclass(slots=True, kw_only=True)
class Joined:
    """What a starting container has got. The caller owns the descriptor; None: the host's namespace."""

    settings: dict[str, EndpointSettings]
    endpoints: dict[str, Endpoint] = field(default_factory=dict[str, Endpoint])
    namespace_fd: int | None = None


class Networks:
    """Every network; owns the driver's endpoints of running containers."""

    def __init__(self, *, config: Config, store: Store, events: Events, driver: BridgeDriver, workers: Workers) -> None:
        self._config = config
        self._store = store
        self._events = events
        self._driver = driver
        self._workers = workers
        self._networks = {key: msgspec.json.decode(raw, type=NetworkRecord) for key, raw in store.load("networks")}
        self._changing = asyncio.Lock()  # one network is made or removed at a time: they compete for subnets
        self._pools = _address_pools(config)
        self._bridge: BridgeNetwork | None = None
        self._leaving: dict[str, set[asyncio.Task[None]]] = {}  # by container
        self.discovery = Discovery(workers)
        self.links = Links()
        self.discovery.network = self._networks.get
        self.discovery.servers = self.servers
        self.find_container: Callable[[str], ContainerRecord] = _no_container
        self.running: Callable[[], Iterable[ContainerRecord]] = tuple

    async def ensure_predefined(self) -> None:
        """Record the three networks that are always there."""
        self.discovery.records, self.discovery.find = self.running, self.find_container
        self.links.records, self.links.find = self.running, self.find_container
        names = {record.name for record in self._networks.values()}
        for name, driver in PREDEFINED.items():
            if name not in names:
                record = NetworkRecord(id=new_id(), name=name, driver=driver, created_ns=time.time_ns())
                await self._store.commit(Put("networks", record.id, msgspec.json.encode(record)))
                self._networks[record.id] = record

    async def restore(self, records: Iterable[ContainerRecord]) -> None:
        """Bring the bridges up, with what running containers hold on them; remove everything else of ours."""
        config = self._config
        record = self.get("bridge")
        others = [one.bridge for one in self._networks.values() if one.bridge is not None]
        if config.bridge != "none":
            self._bridge = await self._workers.run(
                default_network,
                record.id,
                bridge_name=config.bridge or "docker0",
                bip=config.bip,
                fixed_cidr=config.fixed_cidr,
                mtu=config.mtu,
                icc=config.icc,
                masquerade=config.ip_masq,
                taken=_subnets(others),
                pools=self._pools,
                ipv6=config.ipv6,
                fixed_cidr_v6=config.fixed_cidr_v6,
            )
        records = list(records)
        held = [endpoint for container in records for endpoint in container.endpoints.values()]
        networks = ([self._bridge] if self._bridge is not None else []) + others
        for mapping in await self._workers.run(self._driver.restore, networks, held):
            log.warning("port %s:%s is bound by another program", mapping.host_ip, mapping.host_port)
        for container in records:
            if self.has_dns(container.networks) and container.pid:
                try:
                    await self.discovery.ensure(container.id, container.pid)
                except SystemFailure as error:
                    log.warning("container %s has no DNS server: %s", container.short_id, error)

    @property
    def gateways(self) -> list[str]:
        """The default bridge's addresses; none without one."""
        bridge = self._bridge
        return [text for text in (bridge.gateway, bridge.gateway6) if text] if bridge is not None else []

    # ------------------------------------------------------------------- read

    def get(self, reference: str) -> NetworkRecord:
        """By id, name, or the beginning of an id, in this order."""
        if (record := self._networks.get(reference)) is not None:
            return record
        for record in self._networks.values():
            if record.name == reference:
                return record
        found = find(reference, self._networks)
        if len(found) > 1:
            raise InvalidParameter(f"network {reference} is ambiguous ({len(found)} matches found based on ID prefix)")
        if not found:
            raise NotFound(f"network {reference} not found")
        return self._networks[found[0]]

    def look_up(self, reference: str) -> NetworkRecord | None:
        """``get`` for what may be missing."""
        try:
            return self.get(reference)
        except EngineError:
            return None

    def inspect(self, reference: str) -> Network:
        """One network with the containers in it."""
        return self._describe(self.get(reference), containers=True)

    def _bridge_of(self, record: NetworkRecord) -> BridgeNetwork | None:
        if record.bridge is None and record.driver == "bridge":
            return self._bridge
        return record.bridge

    def has_dns(self, names: Iterable[str]) -> bool:
        """Whether any of the networks is one in which containers find one another by name."""
        return any((record := self.look_up(name)) is not None and record.has_dns for name in names)

    def _members(self, record: NetworkRecord) -> list[tuple[ContainerRecord, str]]:
        """(running container, the name it knows the network by)."""
        return [
            (container, name)
            for container in self.running()
            if container.state in ALIVE
            for name, settings in container.networks.items()
            if settings.network_id == record.id
        ]

    def _describe(self, record: NetworkRecord, *, containers: bool) -> Network:
        bridge = self._bridge if record.name == "bridge" else None
        members: dict[str, NetworkContainer] = {}
        if containers:
            for container, name in self._members(record):
                endpoint = container.endpoints.get(name)
                members[container.id] = NetworkContainer(
                    name=container.name,
                    endpoint_id=endpoint.id if endpoint else _derive(container.id, record.id),
                    mac_address=endpoint.mac_address if endpoint else "",
                    ipv4_address=f"{endpoint.ip_address}/{endpoint.prefix_length}"
                    if endpoint and endpoint.ip_address
                    else "",
                    ipv6_address=f"{endpoint.ip6_address}/{endpoint.prefix_length6}"
                    if endpoint and endpoint.ip6_address
                    else "",
                )
        subnets = list(record.subnets) if record.subnets is not None else None
        if bridge is not None:
            subnets = [
                IPAMConfig(subnet=subnet, gateway=gateway)
                for subnet, gateway in ((bridge.subnet, bridge.gateway), (bridge.subnet6, bridge.gateway6))
                if subnet
            ]
        return Network(
            name=record.name,
            id=record.id,
            created=format_time(record.created_ns),
            scope=record.scope,
            driver=record.driver,
            enable_ipv4=record.enable_ipv4,
            enable_ipv6=record.enable_ipv6 or (bridge is not None and bool(bridge.subnet6)),
            ipam=IPAM(driver=record.ipam_driver, options=record.ipam_options, config=subnets),
            internal=record.internal,
            attachable=record.attachable,
            config_from=ConfigReference(network=record.config_from),
            config_only=record.config_only,
            containers=members,
            options={
                "com.docker.network.bridge.default_bridge": "true",
                "com.docker.network.bridge.enable_icc": str(bridge.icc).lower(),
                "com.docker.network.bridge.enable_ip_masquerade": str(bridge.masquerade).lower(),
                "com.docker.network.bridge.host_binding_ipv4": "0.0.0.0",
                "com.docker.network.bridge.name": bridge.bridge,
                "com.docker.network.driver.mtu": str(bridge.mtu),
            }
            if bridge is not None
            else record.options,
            labels=record.labels,
        )

    # ----------------------------------------------------------- make, remove

    async def create(self, request: NetworkCreateRequest) -> NetworkCreateResponse:
        """Make a network. ``Conflict``: the name is taken; others in Docker's words, see ``network_request``."""
        check_name(request.name)
        async with self._changing:
            if any(record.name == request.name for record in self._networks.values()):
                raise already_exists(request.name)
            bridges = [one for record in self._networks.values() if (one := self._bridge_of(record)) is not None]
            record = await self._workers.run(
                read,
                request,
                network_id=new_id(),
                created_ns=time.time_ns(),
                find=self.get,
                bridges=bridges,
                taken=lambda: bridge.host_subnets(except_bridge=""),
                pools=self._pools,
                mtu=lambda: self._config.mtu or bridge.uplink_mtu(),
                link_exists=bridge.exists,
            )
            await self._store.commit(Put("networks", record.id, msgspec.json.encode(record)))
            if record.bridge is not None:
                try:
                    await self._workers.run(self._driver.create_network, record.bridge)
                except BaseException:
                    await self._store.commit(Delete("networks", record.id))
                    raise
            self._networks[record.id] = record
        self._publish_network(record, "create")
        return NetworkCreateResponse(id=record.id)

    def _publish_network(self, record: NetworkRecord, action: str) -> None:
        self._events.publish("network", action, record.id, {"name": record.name, "type": record.driver})

    async def remove(self, reference: str) -> None:
        """Remove a network that nobody is in. ``Forbidden`` with Docker's reason otherwise."""
        async with self._changing:
            await self._remove(self.get(reference))

    async def _remove(self, record: NetworkRecord) -> None:
        if record.predefined:
            raise Forbidden(f"{record.name} is a pre-defined network and cannot be removed")
        if any(other.config_from == record.name for other in self._networks.values() if record.config_only):
            raise Forbidden(f'configuration network "{record.name}" is in use')
        active = [(container, container.endpoints.get(name)) for container, name in self._members(record)]
        if active:
            listed = ", ".join(
                f'name:"{container.name}" id:"{(endpoint.id if endpoint else "")[:12]}"'
                for container, endpoint in active
            )
            # moby daemon/libnetwork/error.go, ActiveEndpointsError
            raise Forbidden(f"error while removing network: network {record.name} has active endpoints ({listed})")
        # From here on nobody can join; who was about to, fails.
        del self._networks[record.id]
        try:
            if record.bridge is not None:
                await self._workers.run(self._driver.delete_network, record.id)
            await self._store.commit(Delete("networks", record.id))
        except BaseException:
            self._networks[record.id] = record
            raise
        self._publish_network(record, "destroy")

    async def prune(self, filters: Filters) -> NetworksPruned:
        """Remove the networks that nobody is in. The predefined ones stay."""
        filtering.check(filters, PRUNE_FILTERS)
        until = filtering.until_ns(filters)
        removed: list[str] = []
        async with self._changing:
            for record in list(self._networks.values()):
                if record.predefined or (until is not None and record.created_ns > until):
                    continue
                if not filtering.passes_labels(filters, record.labels) or self._members(record):
                    continue
                try:
                    await self._remove(record)
                except Forbidden as error:
                    log.info("network %s is not pruned: %s", record.name, error)
                else:
                    removed.append(record.name)
        self._events.publish("network", "prune", "", {"reclaimed": "0"})
        return NetworksPruned(networks_deleted=removed or None)

    # ------------------------------------------------------------- containers

    def name_mode(self, host_config: HostConfig) -> HostConfig:
        """Another container's network by that container's id, as Docker stores it, whatever it is renamed to."""
        kind, separator, reference = host_config.network_mode.partition(":")
        if kind != "container" or not separator:
            return host_config
        try:
            owner = self.find_container(reference)
        except NotFound:
            return host_config  # which is found out at the start
        return msgspec.structs.replace(host_config, network_mode=f"container:{owner.id}")

    def check_request(
        self, host_config: HostConfig, networking: NetworkingConfig | None
    ) -> dict[str, EndpointSettings]:
        """The networks that a new container will join, by name; ``InvalidParameter`` in Docker's words."""
        mode = host_config.network_mode
        if mode.startswith("container:"):
            return {}
        given = networking.endpoints_config if networking is not None else {}
        joined: dict[str, EndpointSettings] = {}
        for key, settings in given.items():
            name = "bridge" if key == "default" else key
            if settings is None and name != mode:
                raise InvalidParameter(f"invalid config for network {key}: EndpointsConfig is nil")
            record = self.look_up(name)
            settings = settings or EndpointSettings()
            try:
                endpoints.check(settings, name, record)
            except InvalidParameter as error:
                raise InvalidParameter(f"invalid config for network {key}: {error}") from None
            joined[record.name if record is not None else name] = endpoints.asked(settings)
        if not joined:
            record = self.look_up(mode)
            joined = {record.name if record is not None else mode: EndpointSettings()}
        return joined

    def joins(self, record: ContainerRecord, references: Iterable[str]) -> bool:
        """Whether a container is in one of the networks, by name or id."""
        return any(
            reference == name or (settings.network_id or self._id_of(name) or "-").startswith(reference)
            for reference in references
            for name, settings in record.networks.items()
        )

    def _id_of(self, name: str) -> str:
        return next((record.id for record in self._networks.values() if record.name == name), "")

    def settings_of(self, record: ContainerRecord) -> dict[str, EndpointSettings]:
        """A container's networks as inspect shows them: what it asked for, and while it runs what it got."""
        return {
            name: endpoints.shown(record, settings, record.endpoints.get(name), _derive(record.id, settings.network_id))
            for name, settings in sorted(record.networks.items())
        }

    def sandbox_id(self, record: ContainerRecord) -> str:
        """Docker's name for the network namespace; made from the container's start, so that it changes with it."""
        return _derive(record.id, str(record.started_ns)) if _has_sandbox(record) else ""

    def sandbox_key(self, record: ContainerRecord) -> str:
        """Where the network namespace is, for programs such as nsenter: nothing is mounted, so it is the process's."""
        return f"/proc/{record.pid}/ns/net" if record.pid and _has_sandbox(record) else ""

    def servers(self, record: ContainerRecord) -> list[Server]:
        """Whom a container's own resolver asks what it does not know itself."""
        asked = record.host_config.dns or self._config.dns
        found = asked or files.nameservers(files.host_resolv_conf())
        return [Server(address=address, on_host=not asked) for address in found]

    async def connect(self, record: ContainerRecord) -> Joined:
        """Attach a starting container to all of its networks, or to none.

        ``NotFound``: a network is gone. Other errors in Docker's words.
        """
        if leaving := self._leaving.pop(record.id, None):
            await asyncio.wait(leaving)  # its addresses are free then: a restart keeps them
        mode = record.host_config.network_mode
        if mode.startswith("container:"):
            return Joined(
                settings=record.networks,
                namespace_fd=await self._workers.run(sharing.open_network, record, self.find_container),
            )
        plan: list[tuple[str, NetworkRecord]] = []
        main = self.look_up(mode)
        for name in endpoints.attach_order(record.networks, main.name if main is not None else mode):
            try:
                plan.append((name, self.get(record.networks[name].network_id or name)))
            except NotFound as error:
                raise NotFound(f"failed to set up container networking: {error}") from error
        settings = {name: endpoints.joined(record, record.networks[name], network) for name, network in plan}
        if mode == "host":
            if any(network.driver != "host" for _, network in plan):
                raise InvalidParameter(
                    "failed to set up container networking: container sharing network namespace with another "
                    "container or host cannot be connected to any other network"
                )
            return Joined(settings=settings)
        return await self._connect(record, plan, settings)

    async def _connect(
        self, record: ContainerRecord, plan: list[tuple[str, NetworkRecord]], settings: dict[str, EndpointSettings]
    ) -> Joined:
        requests = self._requests(record, [(name, network, settings[name]) for name, network in plan])
        wants_dns = any(network.has_dns for _, network in plan)
        namespace_fd, connected, sockets = await self._workers.run(self._attach, requests, wants_dns)
        if sockets is not None:
            try:
                self.discovery.serve(record.id, sockets, os.dup(namespace_fd))
            except BaseException:
                sockets.close()
                os.close(namespace_fd)
                raise
        return Joined(settings=settings, endpoints=connected, namespace_fd=namespace_fd)

    def _requests(
        self, record: ContainerRecord, plan: list[tuple[str, NetworkRecord, EndpointSettings]]
    ) -> dict[str, ConnectRequest]:
        """What to ask of the driver, by network name; nothing of ``none``."""
        bridges = {name: bridge for name, network, _ in plan if (bridge := self._bridge_of(network)) is not None}
        gateways = endpoints.elect_gateways(
            (name, settings.gw_priority, endpoints.ways_out(bridges[name]))
            for name, _, settings in plan
            if name in bridges
        )
        publishing = gateways.get(4) or gateways.get(6)
        requests: dict[str, ConnectRequest] = {}
        main = self.look_up(record.host_config.network_mode)
        for name, network, settings in plan:
            if network.driver != "bridge":
                continue
            bridge = bridges.get(name)
            if bridge is None:
                raise NotFound(f"failed to set up container networking: network {network.name} not found")
            taken = [request.interface for request in requests.values()]
            mac = settings.mac_address
            if not mac and main is not None and main.id == network.id:
                mac = record.config.mac_address
            requests[name] = endpoints.connect_request(
                record,
                settings,
                bridge,
                taken=taken,
                mac_address=mac,
                default_route=tuple(version for version, elected in gateways.items() if elected == name),
                publish=name == publishing,
            )
        return requests

    def _attach(
        self, requests: dict[str, ConnectRequest], wants_dns: bool
    ) -> tuple[int, dict[str, Endpoint], Sockets | None]:
        namespace_fd = netns.create()
        connected: dict[str, Endpoint] = {}
        try:
            for name, request in requests.items():
                connected[name] = self._driver.connect(request, namespace_fd)
            return namespace_fd, connected, open_sockets(namespace_fd) if wants_dns else None
        except BaseException as error:
            os.close(namespace_fd)
            for endpoint in connected.values():
                self._driver.disconnect(endpoint)
            if isinstance(error, EngineError):
                raise reword(error, f"failed to set up container networking: {error}") from error
            raise

    async def join(
        self, record: ContainerRecord, settings: EndpointSettings, network: NetworkRecord, namespace_fd: int
    ) -> Endpoint:
        """Attach a running container to one more bridge network."""
        bridge = self._bridge_of(network)
        if bridge is None:
            raise NotFound(f"network {network.name} not found")
        request = endpoints.connect_request(
            record,
            settings,
            bridge,
            taken=[endpoint.interface for endpoint in record.endpoints.values()],
            mac_address=settings.mac_address,
            default_route=(),
            publish=False,
        )
        return await self._workers.run(self._driver.connect, request, namespace_fd)

    async def reroute(self, record: ContainerRecord, namespace_fd: int) -> dict[str, Endpoint]:
        """Have a running container's default routes, and its published ports, follow the networks it is in now.

        Its endpoints, with the ports where they are then.
        """
        gateways = endpoints.elect_gateways(
            (
                name,
                record.networks[name].gw_priority,
                [version for version, text in ((4, endpoint.gateway), (6, endpoint.gateway6)) if text],
            )
            for name, endpoint in record.endpoints.items()
        )
        publishing = gateways.get(4) or gateways.get(6)
        return await self._workers.run(self._reroute, record, gateways, publishing, namespace_fd)

    def _reroute(
        self, record: ContainerRecord, gateways: dict[int, str], publishing: str | None, namespace_fd: int
    ) -> dict[str, Endpoint]:
        found = dict(record.endpoints)
        through = [
            (found[name].interface, ipaddress.ip_address(found[name].gateway if version == 4 else found[name].gateway6))
            for version, name in gateways.items()
        ]
        bridge.route(namespace_fd, through)
        requests = port_requests(record)
        if requests and publishing is not None and not found[publishing].ports:
            for name, endpoint in found.items():
                if endpoint.ports:
                    self._driver.unpublish(endpoint)
                    found[name] = replace(endpoint, ports=())
            found[publishing] = self._driver.publish(found[publishing], requests, record.name)
        return found

    def publish(self, record: ContainerRecord, network: NetworkRecord, action: str) -> None:
        """Publish that a container has joined or left a network (``connect``, ``disconnect``)."""
        self._events.publish(
            "network", action, network.id, {"container": record.id, "name": network.name, "type": network.driver}
        )

    def publish_connected(self, record: ContainerRecord) -> None:
        """Publish the connect events of a container that has started."""
        self._publish(record, "connect")

    def _publish(self, record: ContainerRecord, action: str) -> None:
        main = self.look_up(record.host_config.network_mode)
        for name in endpoints.attach_order(record.networks, main.name if main is not None else ""):
            network = self.look_up(record.networks[name].network_id or name)
            if network is not None:
                self.publish(record, network, action)

    def publish_disconnected(self, record: ContainerRecord) -> None:
        """Publish the disconnect events of a container that has ended, or has failed to start."""
        self._publish(record, "disconnect")

    def disconnect_later(self, record: ContainerRecord) -> None:
        """Give back a container's endpoints, off the caller's path. Published as disconnected at once."""
        self.publish_disconnected(record)
        self.release_later(record)

    def release_later(self, record: ContainerRecord) -> None:
        """``disconnect_later`` for a container that no one has been told of."""
        self.discovery.close(record.id)
        leaving = self._leaving.setdefault(record.id, set())
        for endpoint in record.endpoints.values():
            task = tasks.spawn(self.disconnect(endpoint), name=f"disconnect {record.id[:12]}")
            leaving.add(task)
            task.add_done_callback(leaving.discard)
        if not leaving:
            del self._leaving[record.id]

    async def unpublish(self, record: ContainerRecord) -> None:
        """Give back published ports: who hears of a container's end may publish them again."""
        for endpoint in record.endpoints.values():
            if endpoint.ports:
                await self._workers.run(self._driver.unpublish, endpoint)

    def counters(self, record: ContainerRecord) -> dict[str, NetworkStats]:
        """What a running container has sent and received, by interface. Blocks."""
        found: dict[str, NetworkStats] = {}
        for endpoint in record.endpoints.values():
            if (counted := self._driver.counters(endpoint)) is not None:
                found[endpoint.interface] = NetworkStats(
                    **{name: getattr(counted, name) for name in NetworkStats.__struct_fields__}
                )
        return found

    async def disconnect(self, endpoint: Endpoint) -> None:
        """Give back one endpoint."""
        await self._workers.run(self._driver.disconnect, endpoint)

    def listing(self, filters: Filters) -> list[Network]:
        """Networks, newest first."""
        filtering.check(filters, LIST_FILTERS)
        dangling, kinds = _is_dangling(filters), filters.get("type", ())
        for kind in kinds:
            if kind not in ("builtin", "custom"):
                raise SystemFailure(f"invalid filter: 'type'='{kind}'")
        chosen = [
            record
            for record in self._networks.values()
            if filtering.matches_any(filters.get("name", ()), record.name)
            and (not filters.get("id") or any(record.id.startswith(text) for text in filters["id"]))
            and (not filters.get("driver") or record.driver in filters["driver"])
            and (not filters.get("scope") or record.scope in filters["scope"])
            and (not kinds or ("builtin" if record.predefined else "custom") in kinds)
            and filtering.passes_labels(filters, record.labels)
            and (dangling is None or dangling is not record.predefined)
        ]
        return [self._describe(record, containers=False) for record in sorted(chosen, key=lambda r: -r.created_ns)]


def _has_sandbox(record: ContainerRecord) -> bool:
    return record.state in ALIVE and not record.config.network_disabled


def _is_dangling(filters: Filters) -> bool | None:
    values = filters.get("dangling", ())
    if any(value not in ("true", "1", "false", "0") for value in values) or len(values) > 1:
        raise InvalidParameter("""invalid value for filter 'dangling', must be "true" (or "1"), or "false" (or "0")""")
    return values[0] in ("true", "1") if values else None


def _subnets(networks: Iterable[BridgeNetwork]) -> list[IPNetwork]:
    return [ipaddress.ip_network(text) for one in networks for text in (one.subnet, one.subnet6) if text]


def _address_pools(config: Config) -> list[ipam.AddressPool]:
    """Where subnets come from: as configured, Docker's own for a family that is not."""
    pools = [
        ipam.AddressPool(base=ipaddress.ip_network(base), size=size)
        for base, size in map(parse_address_pool, config.default_address_pools)
    ]
    defaults = (*ipam.DEFAULT_POOLS, ipam.local_pool(_machine_id()))
    return pools + [pool for pool in defaults if not any(own.base.version == pool.base.version for own in pools)]


def _machine_id() -> str:
    for path in ("/etc/machine-id", "/proc/sys/kernel/random/boot_id"):
        try:
            return Path(path).read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError):
            continue
    return os.uname().nodename


def _no_container(reference: str) -> ContainerRecord:
    raise NotFound(f"No such container: {reference}")


def _derive(*parts: str) -> str:
    """64 hexadecimal digits that depend on ``parts`` alone."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()

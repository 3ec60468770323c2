"""Networks and endpoints: which there are, what a container asks for, and what it gets when it starts.

``bridge``, ``host`` and ``none`` are always there; networks of the user come later. The kernel side is
``network.driver``'s.
"""

import hashlib
import logging
import os
import time
from collections.abc import Callable, Iterable

import msgspec

from compatd import tasks
from compatd.config import Config
from compatd.core import filters as filtering
from compatd.core.container import ContainerRecord
from compatd.core.events import Events
from compatd.core.filters import Filters
from compatd.core.images import format_time
from compatd.core.lifecycle import ALIVE
from compatd.core.names import find, new_id
from compatd.core.store import Put, Store
from compatd.errors import Conflict, EngineError, InvalidParameter, NotFound, SystemFailure, Unsupported
from compatd.network import netns
from compatd.network.driver import BridgeDriver, ConnectRequest, Endpoint, default_network, new_endpoint_id
from compatd.network.driver import Network as BridgeNetwork
from compatd.network.ports import PortRequest
from compatd.tasks import Workers
from compatd.wire.types.containers import HostConfig, NetworkStats
from compatd.wire.types.networks import (
    IPAM,
    EndpointSettings,
    IPAMConfig,
    Network,
    NetworkContainer,
    NetworkingConfig,
    NetworksPruned,
)

log = logging.getLogger(__name__)

LIST_FILTERS = ("dangling", "driver", "id", "label", "label!", "name", "scope", "type")
PRUNE_FILTERS = ("label", "label!", "until")
PREDEFINED = {"bridge": "bridge", "host": "host", "none": "null"}


class NetworkRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One network. ``driver`` is Docker's name: bridge, host or null."""

    id: str
    name: str
    driver: str
    created_ns: int


class Networks:
    """Every network; owns the driver's endpoints of running containers."""

    def __init__(self, *, config: Config, store: Store, events: Events, driver: BridgeDriver, workers: Workers) -> None:
        self._config = config
        self._store = store
        self._events = events
        self._driver = driver
        self._workers = workers
        self._networks = {key: msgspec.json.decode(raw, type=NetworkRecord) for key, raw in store.load("networks")}
        self.find_container: Callable[[str], ContainerRecord] = _no_container
        self.running: Callable[[], Iterable[ContainerRecord]] = tuple
        self._bridge: BridgeNetwork | None = None

    async def ensure_predefined(self) -> None:
        """Record the three networks that are always there."""
        names = {record.name for record in self._networks.values()}
        for name, driver in PREDEFINED.items():
            if name not in names:
                record = NetworkRecord(id=new_id(), name=name, driver=driver, created_ns=time.time_ns())
                await self._store.commit(Put("networks", record.id, msgspec.json.encode(record)))
                self._networks[record.id] = record

    async def restore(self, records: Iterable[ContainerRecord]) -> None:
        """Bring the default bridge up, with what running containers hold on it; remove everything else of ours."""
        config = self._config
        record = self.get("bridge")
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
            )
        endpoints = [endpoint for container in records for endpoint in container.endpoints.values()]
        networks = [self._bridge] if self._bridge is not None else []
        for mapping in await self._workers.run(self._driver.restore, networks, endpoints):
            log.warning("port %s:%s is bound by another program", mapping.host_ip, mapping.host_port)

    @property
    def gateway(self) -> str:
        """The default bridge's address; empty without one."""
        return self._bridge.gateway if self._bridge is not None else ""

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

    def inspect(self, reference: str) -> Network:
        """One network with the containers in it."""
        return self._describe(self.get(reference), containers=True)

    def _describe(self, record: NetworkRecord, *, containers: bool) -> Network:
        bridge = self._bridge if record.driver == "bridge" else None
        members: dict[str, NetworkContainer] = {}
        if containers:
            for container in self.running():
                if container.state in ALIVE and record.name in container.networks:
                    endpoint = container.endpoints.get(record.name)
                    members[container.id] = NetworkContainer(
                        name=container.name,
                        endpoint_id=endpoint.id if endpoint else _derive(container.id, record.id),
                        mac_address=endpoint.mac_address if endpoint else "",
                        ipv4_address=f"{endpoint.ip_address}/{endpoint.prefix_length}" if endpoint else "",
                    )
        return Network(
            name=record.name,
            id=record.id,
            created=format_time(record.created_ns),
            driver=record.driver,
            ipam=IPAM(
                driver="default",
                config=[IPAMConfig(subnet=bridge.subnet, gateway=bridge.gateway)] if bridge is not None else None,
            ),
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
            else {},
        )

    # ------------------------------------------------------------- containers

    def check_request(
        self, host_config: HostConfig, networking: NetworkingConfig | None
    ) -> dict[str, EndpointSettings]:
        """The networks that a new container will join. ``Unsupported``: other networks than the predefined ones."""
        mode = host_config.network_mode
        if mode.startswith("container:"):
            self._check_shared(host_config)
            return {}
        asked = {
            ("bridge" if name == "default" else name): settings
            for name, settings in (networking.endpoints_config if networking else {}).items()
        }
        settings = asked.pop(mode, None) or EndpointSettings()
        if asked:
            raise Unsupported(f"joining the network {next(iter(asked))} at creation is not supported by this engine")
        self._check_settings(settings, mode)
        return {mode: settings}

    def _check_shared(self, host_config: HostConfig) -> None:
        """What a container that is in another's network cannot have of its own (docker/cli opts; moby runconfig)."""
        for given, what in (
            (host_config.dns, "dns and the network mode"),
            (host_config.extra_hosts, "custom host-to-IP mapping and the network mode"),
            (
                host_config.port_bindings or host_config.publish_all_ports,
                "port publishing and the container type network mode",
            ),
        ):
            if given:
                raise InvalidParameter(f"conflicting options: {what}")

    def _check_settings(self, settings: EndpointSettings, mode: str) -> None:
        if settings.driver_opts:
            raise Unsupported("driver options of endpoints are not supported by this engine")
        if mode in PREDEFINED:
            invalid = f"invalid config for network {mode}: invalid endpoint settings:\n"
            if settings.aliases or settings.links:
                raise InvalidParameter(
                    f"{invalid}network-scoped alias is supported only for containers in user defined networks"
                )
            if settings.ipam_config is not None and (
                settings.ipam_config.ipv4_address or settings.ipam_config.ipv6_address
            ):
                raise InvalidParameter(f"{invalid}user specified IP address is supported on user defined networks only")

    def joins(self, record: ContainerRecord, references: Iterable[str]) -> bool:
        """Whether a container is in one of the networks, by name or id."""
        return any(
            reference == name or (self._id_of(name) or "-").startswith(reference)
            for reference in references
            for name in record.networks
        )

    def _id_of(self, name: str) -> str:
        return next((record.id for record in self._networks.values() if record.name == name), "")

    def settings_of(self, record: ContainerRecord) -> dict[str, EndpointSettings]:
        """A container's networks as inspect shows them: what it asked for, and while it runs what it got."""
        shown: dict[str, EndpointSettings] = {}
        for name, settings in record.networks.items():
            endpoint = record.endpoints.get(name)
            if record.state in ALIVE:
                settings = msgspec.structs.replace(settings, endpoint_id=_derive(record.id, self._id_of(name)))
            if record.started_ns:
                settings = msgspec.structs.replace(settings, network_id=self._id_of(name))
            if endpoint is not None and record.state in ALIVE:
                settings = msgspec.structs.replace(
                    settings,
                    endpoint_id=endpoint.id,
                    gateway=endpoint.gateway,
                    ip_address=endpoint.ip_address,
                    ip_prefix_len=endpoint.prefix_length,
                    mac_address=endpoint.mac_address,
                )
            shown[name] = settings
        return shown

    def sandbox_id(self, record: ContainerRecord) -> str:
        """Docker's name for the network namespace; made from the container's start, so that it changes with it."""
        return _derive(record.id, str(record.started_ns)) if record.state in ALIVE else ""

    def sandbox_key(self, record: ContainerRecord) -> str:
        """Where the network namespace is, for programs such as nsenter: nothing is mounted, so it is the process's."""
        return f"/proc/{record.pid}/ns/net" if record.pid and record.state in ALIVE else ""

    def prune(self, filters: Filters) -> NetworksPruned:
        """Remove the networks that nobody is in. The predefined ones stay, and there are no others yet."""
        filtering.check(filters, PRUNE_FILTERS)
        filtering.until_ns(filters)
        self._events.publish("network", "prune", "", {"reclaimed": "0"})
        return NetworksPruned(networks_deleted=None)

    async def connect(self, record: ContainerRecord) -> tuple[dict[str, Endpoint], int | None]:
        """Attach a starting container: (endpoints by network, descriptor of its namespace, which the caller owns).

        No descriptor: the host's namespace. ``NotFound``: the network is gone. Other errors in Docker's words.
        """
        mode = record.host_config.network_mode
        if mode == "host":
            return {}, None
        if mode.startswith("container:"):
            return {}, self._share(mode.removeprefix("container:"))
        try:
            network = self.get(mode)
        except NotFound as error:
            raise NotFound(f"failed to set up container networking: {error}") from error
        return await self._workers.run(self._connect, record, network)

    def _share(self, reference: str) -> int:
        try:
            other = self.find_container(reference)
        except NotFound as error:
            raise NotFound(f"joining network namespace of container: {error}") from error
        if other.state not in ALIVE:
            raise Conflict(f"cannot join network of a non running container: {other.id}")
        return os.open(f"/proc/{other.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)

    def _connect(self, record: ContainerRecord, network: NetworkRecord) -> tuple[dict[str, Endpoint], int]:
        namespace_fd = netns.create()
        try:
            if network.driver == "null":
                return {}, namespace_fd
            request = ConnectRequest(
                endpoint_id=new_endpoint_id(),
                network_id=network.id,
                container_id=record.id,
                container_name=record.name,
                mac_address=record.config.mac_address or record.networks[network.name].mac_address,
                ports=port_requests(record),
            )
            endpoint = self._driver.connect(request, namespace_fd)
        except EngineError as error:
            os.close(namespace_fd)
            raise type(error)(f"failed to set up container networking: {error}") from error
        except BaseException:
            os.close(namespace_fd)
            raise
        return {network.name: endpoint}, namespace_fd

    def publish_connected(self, record: ContainerRecord) -> None:
        """Publish the connect events of a container that has started."""
        self._publish(record, "connect")

    def _publish(self, record: ContainerRecord, action: str) -> None:
        for name in record.networks:
            network = self.get(name)
            self._events.publish(
                "network", action, network.id, {"container": record.id, "name": name, "type": network.driver}
            )

    def publish_disconnected(self, record: ContainerRecord) -> None:
        """Publish the disconnect events of a container that has ended, or has failed to start."""
        self._publish(record, "disconnect")

    def disconnect_later(self, record: ContainerRecord) -> None:
        """Give back a container's endpoints, off the caller's path. Published as disconnected at once."""
        self.publish_disconnected(record)
        self.release_later(record)

    def release_later(self, record: ContainerRecord) -> None:
        """``disconnect_later`` for a container that no one has been told of."""
        for endpoint in record.endpoints.values():
            tasks.detach(self.disconnect(endpoint), name=f"disconnect {record.id[:12]}")

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
            and (not filters.get("scope") or "local" in filters["scope"])
            and (not kinds or "builtin" in kinds)
            and not filters.get("label")
            and not dangling
        ]
        return [self._describe(record, containers=False) for record in sorted(chosen, key=lambda r: -r.created_ns)]


def _is_dangling(filters: Filters) -> bool:
    values = filters.get("dangling", ())
    if any(value not in ("true", "1", "false", "0") for value in values) or len(values) > 1:
        raise InvalidParameter("""invalid value for filter 'dangling', must be "true" (or "1"), or "false" (or "0")""")
    return bool(values) and values[0] in ("true", "1")


def port_requests(record: ContainerRecord) -> tuple[PortRequest, ...]:
    """What is to be published."""
    requests: list[PortRequest] = []
    bound = record.host_config.port_bindings or {}
    for key, bindings in bound.items():
        numbers, _, protocol = key.partition("/")
        for binding in bindings or ():
            first, _, last = binding.host_port.partition("-")
            requests.append(
                PortRequest(
                    container_port=int(numbers.partition("-")[0]),
                    protocol=protocol or "tcp",
                    host_ip=binding.host_ip,
                    host_first=int(first or 0),
                    host_last=int(last or first or 0),
                )
            )
    if record.host_config.publish_all_ports:
        for key in record.config.exposed_ports or {}:
            if not bound.get(key):
                number, _, protocol = key.partition("/")
                requests.append(PortRequest(container_port=int(number), protocol=protocol or "tcp"))
    return tuple(requests)


def _no_container(reference: str) -> ContainerRecord:
    raise NotFound(f"No such container: {reference}")


def _derive(*parts: str) -> str:
    """64 hexadecimal digits that depend on ``parts`` alone."""
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()

"""Containers that join and leave networks after they were made, running or not.

For one that runs, the kernel's side is made first and then recorded; leaving is recorded first. An engine killed in
between leaves an interface that no record mentions, which the next one removes (``network.bridge.remove_strays``).
Texts as Docker 28.5.2 has them (moby daemon/container_operations.go, daemon/network.go).
"""

import os

import msgspec

from compatd.core import endpoints
from compatd.core.container import Container, ContainerRecord
from compatd.core.containers import Containers
from compatd.core.network_request import NetworkRecord
from compatd.core.networks import Networks
from compatd.core.preparation import Preparation
from compatd.core.supervisor import Supervisor
from compatd.errors import EngineError, Forbidden, InvalidParameter, NotFound, SystemFailure
from compatd.network.driver import Endpoint
from compatd.tasks import Workers
from compatd.wire.types.networks import EndpointSettings, NetworkConnect, NetworkDisconnect


class Connections:
    """Changes the networks of one container at a time, under its lock."""

    def __init__(
        self,
        *,
        containers: Containers,
        networks: Networks,
        supervisor: Supervisor,
        preparation: Preparation,
        workers: Workers,
    ) -> None:
        self._containers = containers
        self._networks = networks
        self._supervisor = supervisor
        self._preparation = preparation
        self._workers = workers

    # ---------------------------------------------------------------- connect

    async def connect(self, reference: str, request: NetworkConnect) -> None:
        """Join a container to a network."""
        network = self._networks.get(reference)
        container = self._containers.get(request.container)
        settings = endpoints.asked(request.endpoint_config or EndpointSettings())
        async with container.lock:
            record = container.record
            if container.is_removed:
                raise NotFound(f"No such container: {request.container}")
            mode = record.host_config.network_mode
            if network.config_only:
                raise Forbidden("cannot connect container to a config-only network")
            if mode.startswith("container:") or (mode == "host" and network.driver != "host"):
                raise InvalidParameter(
                    "container sharing network namespace with another container or host cannot be connected to any "
                    "other network"
                )
            if network.driver == "host" and mode != "host":
                raise InvalidParameter(
                    "cannot connect container to host network - container must be created in host network mode"
                )
            present = [self._networks.look_up(one.network_id or name) for name, one in record.networks.items()]
            if record.networks and (
                network.driver == "null" or any(one is not None and one.driver == "null" for one in present)
            ):
                raise InvalidParameter(
                    "container cannot be connected to multiple networks with one of the networks in private (none) mode"
                )
            endpoints.check(settings, network.name, network)
            if container.alive:
                await self._join(container, network, settings)
            else:
                names = endpoints.dns_names(record, settings) if network.has_dns else None
                changed = msgspec.structs.replace(settings, dns_names=names)
                networks = {**record.networks, network.name: changed}
                await self._supervisor.commit(container, msgspec.structs.replace(record, networks=networks))

    async def _join(self, container: Container, network: NetworkRecord, settings: EndpointSettings) -> None:
        record = container.record
        if any(one.network_id == network.id for one in record.networks.values()):
            raise Forbidden(f"endpoint with name {record.name} already exists in network {network.name}")
        settings = endpoints.joined(record, settings, network)
        networks = {**record.networks, network.name: settings}
        if network.driver != "bridge":
            await self._supervisor.commit(container, msgspec.structs.replace(record, networks=networks))
            self._networks.publish(record, network, "connect")
            return
        namespace_fd = _open_namespace(record)
        try:
            endpoint = await self._networks.join(record, settings, network, namespace_fd)
            try:
                if network.has_dns:
                    await self._networks.discovery.ensure(record.id, record.pid)
                changed = msgspec.structs.replace(
                    record, networks=networks, endpoints={**record.endpoints, network.name: endpoint}
                )
                found = await self._networks.reroute(changed, namespace_fd)
                await self._supervisor.commit(container, msgspec.structs.replace(changed, endpoints=found))
            except BaseException:
                await self._networks.disconnect(endpoint)
                raise
        finally:
            os.close(namespace_fd)
        await self._workers.run(self._preparation.update_files, container.record, record)
        self._networks.publish(record, network, "connect")

    # ------------------------------------------------------------- disconnect

    async def disconnect(self, reference: str, request: NetworkDisconnect) -> None:
        """Take a container out of a network."""
        network = self._networks.get(reference)
        try:
            container = self._containers.get(request.container)
        except EngineError:
            if request.force:
                raise NotFound(f"endpoint {request.container} not found") from None
            raise
        async with container.lock:
            record = container.record
            if record.host_config.network_mode == "host" and network.driver == "host":
                raise InvalidParameter(
                    "cannot disconnect container from host network - container was created in host network mode"
                )
            keys = [
                name
                for name, one in record.networks.items()
                if (one.network_id == network.id if one.network_id else name in (network.name, network.id))
            ]
            if not keys:
                raise SystemFailure(f"container {record.id} is not connected to network {network.name}")
            await self._leave(container, network, keys)

    async def _leave(self, container: Container, network: NetworkRecord, keys: list[str]) -> None:
        record = container.record
        left: list[Endpoint] = [record.endpoints[key] for key in keys if key in record.endpoints]
        changed = msgspec.structs.replace(
            record,
            networks={name: one for name, one in record.networks.items() if name not in keys},
            endpoints={name: one for name, one in record.endpoints.items() if name not in keys},
        )
        await self._supervisor.commit(container, changed)
        if not container.alive:
            return
        for endpoint in left:
            await self._networks.disconnect(endpoint)
        if left:
            namespace_fd = _open_namespace(record)
            try:
                found = await self._networks.reroute(changed, namespace_fd)
            finally:
                os.close(namespace_fd)
            await self._supervisor.commit(container, msgspec.structs.replace(changed, endpoints=found))
            await self._workers.run(self._preparation.update_files, container.record, record)
        self._networks.publish(record, network, "disconnect")


def _open_namespace(record: ContainerRecord) -> int:
    try:
        return os.open(f"/proc/{record.pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise SystemFailure(f"the container has ended: {error.strerror}") from error

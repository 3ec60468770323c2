"""Who is called what: the names that containers of a user's network find one another by, and who answers for them.

A container has a resolver (``network.resolver``) as long as it runs and since it is in a network of the user's own.
Its answers come from the containers' records at the moment of the question, so a container is known as soon as it
has an address and forgotten when it has none. Only networks that the asking container is in count.

The order of attempts is moby's (daemon/libnetwork/sandbox.go, ResolveName): a name as it is in all networks, then
``name.network``; links come before names.
"""

import ipaddress
import os
from collections.abc import Callable, Iterable, Iterator, Sequence

from compatd.core.container import ContainerRecord
from compatd.core.endpoints import dns_names
from compatd.core.network_request import NetworkRecord
from compatd.errors import EngineError, SystemFailure
from compatd.linux.netlink import Address
from compatd.network import dns
from compatd.network.driver import Endpoint
from compatd.network.resolver import Resolver, Server, Sockets, open_sockets
from compatd.tasks import Workers


class Discovery:
    """The resolvers of running containers. ``records``: every container's record; ``find``: one by name or id;
    ``network``: by the name that a container knows it by."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self._resolvers: dict[str, Resolver] = {}
        self.records: Callable[[], Iterable[ContainerRecord]] = tuple
        self.find: Callable[[str], ContainerRecord]
        self.network: Callable[[str], NetworkRecord | None] = lambda _: None
        self.servers: Callable[[ContainerRecord], Sequence[Server]] = lambda _: ()

    def serve(self, container_id: str, sockets: Sockets, namespace_fd: int) -> None:
        """Answer in a namespace. Takes the sockets and the descriptor over."""
        self.close(container_id)
        self._resolvers[container_id] = Resolver(
            sockets,
            namespace_fd,
            lookup=lambda question: self._look_up(container_id, question),
            servers=lambda: self._servers(container_id),
            workers=self._workers,
        )

    async def ensure(self, container_id: str, pid: int) -> None:
        """See to it that a running container has its resolver. ``SystemFailure``: port 53 is taken in there."""
        if container_id in self._resolvers:
            return
        try:
            namespace_fd = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise SystemFailure(f"the container has ended: {error.strerror}") from error
        try:
            sockets = await self._workers.run(open_sockets, namespace_fd)
        except BaseException:
            os.close(namespace_fd)
            raise
        self.serve(container_id, sockets, namespace_fd)

    def close(self, container_id: str) -> None:
        """A container has ended."""
        resolver = self._resolvers.pop(container_id, None)
        if resolver is not None:
            resolver.close()

    def close_all(self) -> None:
        """The engine stops."""
        for container_id in list(self._resolvers):
            self.close(container_id)

    # ------------------------------------------------------------------ names

    def _record(self, container_id: str) -> ContainerRecord | None:
        try:
            return self.find(container_id)
        except EngineError:
            return None

    def _servers(self, container_id: str) -> Sequence[Server]:
        record = self._record(container_id)
        if record is None:
            return ()
        # In internal networks only: no way out, for questions neither; what it can reach itself it may ask.
        closed = not any(one.gateway or one.gateway6 for one in record.endpoints.values())
        return [server for server in self.servers(record) if not (closed and server.on_host)]

    def _look_up(self, container_id: str, question: dns.Question) -> dns.Answer | None:
        record = self._record(container_id)
        if record is None:
            return None
        if question.type == dns.PTR:
            address = dns.reverse_address(question.name)
            name = self._name_of(record, address) if address is not None else None
            return dns.Answer(names=[name]) if name is not None else None
        found = self._resolve(record, question.name.lower())
        if found is not None:
            return dns.Answer(addresses=found)
        if (
            question.type in (dns.A, dns.AAAA)
            and "." not in question.name
            and any(option.startswith("ndots:") for option in record.host_config.dns_options or ())
        ):
            return dns.Answer()  # the client is to try its search domains
        return None

    def _resolve(self, asking: ContainerRecord, name: str) -> list[Address] | None:
        """The addresses of ``name``, None if there is no such name."""
        attempts = [(name, "")]
        parts = name.split(".")
        attempts += [(".".join(parts[:count]), ".".join(parts[count:])) for count in range(len(parts) - 1, 0, -1)]
        for wanted, only in attempts:
            found = self._linked(asking, wanted, only) or list(self._named(asking, wanted, only))
            if found:
                return [address for endpoint in found for address in _addresses(endpoint)]
        return None

    def _networks(self, record: ContainerRecord, only: str = "") -> Iterator[tuple[str, str]]:
        """(name, id) of the networks with names that a container is in, as their gateways rank."""

        def rank(item: tuple[str, Endpoint]) -> tuple[int, int, str]:
            settings = record.networks.get(item[0])
            families = bool(item[1].ip_address) + bool(item[1].ip6_address)
            return -(settings.gw_priority if settings is not None else 0), -families, item[0]

        for name, endpoint in sorted(record.endpoints.items(), key=rank):
            network = self.network(endpoint.network_id)
            if network is not None and network.has_dns and (not only or network.name.lower() == only):
                yield name, endpoint.network_id

    def _linked(self, asking: ContainerRecord, wanted: str, only: str) -> list[Endpoint]:
        for name, network_id in self._networks(asking, only):
            for link in asking.networks[name].links or () if name in asking.networks else ():
                target, _, alias = link.partition(":")
                if (alias or target).lower() == wanted:
                    other = self._record(target)
                    found = [one for one in other.endpoints.values() if one.network_id == network_id] if other else []
                    if found:
                        return found
        return []

    def _named(self, asking: ContainerRecord, wanted: str, only: str) -> Iterator[Endpoint]:
        for _, network_id in self._networks(asking, only):
            found = False
            for record in self.records():
                for key, endpoint in record.endpoints.items():
                    settings = record.networks.get(key) if endpoint.network_id == network_id else None
                    if settings and any(name.lower() == wanted for name in dns_names(record, settings)):
                        found = True
                        yield endpoint
            if found:
                return

    def _name_of(self, asking: ContainerRecord, address: Address) -> str | None:
        mine = {network_id for _, network_id in self._networks(asking)}
        for record in self.records():
            for endpoint in record.endpoints.values():
                if endpoint.network_id in mine and address in _addresses(endpoint):
                    network = self.network(endpoint.network_id)
                    return f"{record.name}.{network.name}" if network is not None else None
        return None


def _addresses(endpoint: Endpoint) -> list[Address]:
    return [ipaddress.ip_address(text) for text in (endpoint.ip_address, endpoint.ip6_address) if text]

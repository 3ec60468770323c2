"""Links: the names that one container of the default bridge has for another, in its hosts file and its environment.

A container remembers whom it is linked to by id, so renaming either changes what is shown and nothing else. In
networks of the user's own, links are DNS names instead (``core.discovery``), and nothing of this applies.
Texts and formats as Docker 28.5.2 has them (moby daemon/links, daemon/container_operations_unix.go).
"""

from collections.abc import Callable, Iterable, Sequence

from compatd.core.container import ContainerRecord, Link, no_such_container
from compatd.core.lifecycle import ALIVE
from compatd.core.ports import exposed_ports
from compatd.errors import EngineError, InvalidParameter, SystemFailure
from compatd.wire.types.containers import HostConfig

_BRIDGE = "bridge"
_NOT_LINKED = ("HOME", "PATH")


def parse(text: str) -> tuple[str, str]:
    """``container[:alias]``, or ``/container:/parent/alias`` as inspect shows it, as (container, alias)."""
    if not text:
        raise SystemFailure("empty string specified for links")
    parts = text.split(":")
    if len(parts) > 2:
        raise SystemFailure(f"bad format for links: {text}")
    name, alias = parts[0], parts[-1]
    if name.startswith("/"):
        return name[1:], alias.rpartition("/")[2]
    return name, alias


class Links:
    """Every link, as the containers' records have them. ``records``: all; ``find``: one by name or id."""

    def __init__(self) -> None:
        self.records: Callable[[], Iterable[ContainerRecord]] = tuple
        self.find: Callable[[str], ContainerRecord]

    # ------------------------------------------------------------------- make

    def read(self, host_config: HostConfig) -> tuple[Link, ...]:
        """The links of a new container; none in networks of the user's own."""
        mode, given = host_config.network_mode, host_config.links or ()
        if given and mode == "host":
            raise _conflict("host type networking")
        if given and mode.startswith("container:"):
            raise _conflict("container type network")
        if mode != _BRIDGE:
            return ()
        links: dict[str, Link] = {}
        for text in given:
            name, alias = parse(text)
            try:
                target = self.find(name)
                while target.host_config.network_mode.startswith("container:"):
                    target = self.find(target.host_config.network_mode.partition(":")[2])
            except EngineError as error:
                raise InvalidParameter(f"could not get container for {name}: {error}") from error
            if target.host_config.network_mode == "host":
                raise _conflict("host type networking")
            links[alias] = Link(target_id=target.id, target_name=target.name, alias=alias)
        return tuple(links.values())

    # ------------------------------------------------------------------- show

    def _target(self, link: Link) -> ContainerRecord | None:
        try:
            return self.find(link.target_id)
        except EngineError:
            return None

    def shown(self, record: ContainerRecord) -> list[str] | None:
        """A container's links in the words of its host configuration."""
        return [
            f"/{target.name if (target := self._target(link)) else link.target_name}:/{record.name}/{link.alias}"
            for link in record.links
        ] or None

    def names(self) -> dict[str, list[str]]:
        """The names that containers have by links, by container id."""
        found: dict[str, list[str]] = {}
        for record in self.records():
            for link in record.links:
                found.setdefault(link.target_id, []).append(f"/{record.name}/{link.alias}")
        return {container_id: sorted(names) for container_id, names in found.items()}

    def resolve(self, name: str) -> tuple[ContainerRecord, Link]:
        """(parent, link) of ``parent/alias``. ``NotFound``: there is no such link."""
        parent, _, alias = name.removeprefix("/").partition("/")
        for record in self.records():
            if record.name == parent:
                for link in record.links:
                    if link.alias == alias:
                        return record, link
        raise no_such_container(name)

    # ------------------------------------------------------------------ apply

    def check(self, record: ContainerRecord) -> None:
        """Before a start: everyone that it is linked to must be running, and on the default bridge."""
        for link in record.links:
            target = self._target(link)
            if target is None or target.state not in ALIVE:
                name = target.name if target is not None else link.target_name
                raise SystemFailure(f"Cannot link to a non running container: /{name} AS /{record.name}/{link.alias}")
            if not _address(target):
                raise SystemFailure(f"container {target.id} not attached to default bridge network")

    def _live(self, record: ContainerRecord) -> list[tuple[Link, ContainerRecord]]:
        pairs = [(link, self._target(link)) for link in sorted(record.links, key=lambda link: link.alias)]
        return [(link, target) for link, target in pairs if target is not None and _address(target)]

    def hosts(self, record: ContainerRecord) -> list[tuple[str, str]]:
        """(names, address) for the container's hosts file."""
        return [(_names(link, target), _address(target)) for link, target in self._live(record)]

    def parents(self, record: ContainerRecord) -> list[ContainerRecord]:
        """The running containers that are linked to this one."""
        return [
            other
            for other in self.records()
            if other.links and other.state in ALIVE and any(link.target_id == record.id for link in other.links)
        ]

    def environment(self, record: ContainerRecord) -> tuple[str, ...]:
        """The variables that tell a container of those it is linked to."""
        return tuple(
            entry for link, target in self._live(record) for entry in _variables(record.name, link.alias, target)
        )


def _conflict(what: str) -> InvalidParameter:
    # moby runconfig/errors.go
    return InvalidParameter(
        f"conflicting options: {what} can't be used with links. This would result in undefined behavior"
    )


def _address(target: ContainerRecord) -> str:
    endpoint = target.endpoints.get(_BRIDGE)
    return endpoint.ip_address if endpoint is not None else ""


def _names(link: Link, target: ContainerRecord) -> str:
    names = [link.alias, target.config.hostname]
    return " ".join(names if link.alias == target.name else [*names, target.name])


def _variables(parent: str, alias: str, target: ContainerRecord) -> list[str]:
    address = _address(target)
    prefix = alias.upper().replace("-", "_")
    ports = sorted({_split(port) for port in exposed_ports(target)}, key=_order)
    entries: list[str] = []
    if ports:
        entries.append(f"{prefix}_PORT={_url(address, ports[0])}")
    for run in _runs(ports):
        first, last = run[0], run[-1]
        if len(run) > 1:
            name = f"{prefix}_PORT_{first[0]}_{first[1].upper()}"
            entries += [
                f"{name}_START={_url(address, first)}",
                f"{name}_PORT_START={first[0]}",
                f"{name}_END={_url(address, last)}",
                f"{name}_PORT_END={last[0]}",
            ]
        for port in run:
            name = f"{prefix}_PORT_{port[0]}_{port[1].upper()}"
            entries += [
                f"{name}={_url(address, port)}",
                f"{name}_ADDR={address}",
                f"{name}_PORT={port[0]}",
                f"{name}_PROTO={port[1]}",
            ]
    entries.append(f"{prefix}_NAME=/{parent}/{alias}")
    for entry in target.config.env or ():
        name, separator, _ = entry.partition("=")
        if separator and name not in _NOT_LINKED:
            entries.append(f"{prefix}_ENV_{entry}")
    return entries


def _split(port: str) -> tuple[int, str]:
    number, _, protocol = port.partition("/")
    return int(number), protocol


def _order(port: tuple[int, str]) -> tuple[bool, str, int]:
    return port[1] != "tcp", port[1], port[0]


def _url(address: str, port: tuple[int, str]) -> str:
    return f"{port[1]}://{address}:{port[0]}"


def _runs(ports: Sequence[tuple[int, str]]) -> list[list[tuple[int, str]]]:
    """Consecutive ports of a protocol, together."""
    runs: list[list[tuple[int, str]]] = []
    for number, protocol in ports:
        if runs and runs[-1][-1] == (number - 1, protocol):
            runs[-1].append((number, protocol))
        else:
            runs.append([(number, protocol)])
    return runs

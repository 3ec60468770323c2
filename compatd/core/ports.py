"""Ports as requests write them: ``80/tcp``, ``8000-8010/udp``, and what a container exposes and publishes.

Docker is lenient where it keeps them and strict where it binds them: any text may be exposed, and means port 0 where it
is no number (docker/go-connections, nat; found on Docker 28.5.2).
"""

import ipaddress
import re

from compatd.core.container import ContainerRecord
from compatd.errors import InvalidParameter
from compatd.network.ports import PortRequest
from compatd.wire.types.containers import PortMap

PROTOCOLS = ("tcp", "udp", "sctp")


def split(text: str) -> tuple[str, str]:
    """(number or range, protocol); both are empty where the number is. nat.SplitProtoPort."""
    numbers, *rest = text.split("/")
    return (numbers, rest[0] if rest and rest[0] else "tcp") if numbers else ("", "")


def parse(text: str) -> int:
    """One port; empty is 0. ``ValueError``. nat.ParsePort."""
    if text and (not re.fullmatch("[0-9]+", text) or len(text) > 99 or int(text) > 65535):
        raise ValueError(text)
    return int(text or 0)


def parse_range(text: str) -> tuple[int, int]:
    """First and last; the same for one port, 0 for an empty text. ``ValueError``. nat.ParsePortRange."""
    parts = text.split("-")
    if len(parts) > 1 and "" in parts[:2]:
        raise ValueError(text)
    first, last = parse(parts[0]), parse(parts[1] if len(parts) > 1 else parts[0])
    if last < first:
        raise ValueError(text)
    return first, last


def check_bindings(bindings: PortMap | None) -> None:
    """``InvalidParameter`` (moby daemon/container.go, validatePortBindings)."""
    for key, entries in (bindings or {}).items():
        numbers, _ = split(key)
        try:
            parse(numbers)
        except ValueError:
            raise InvalidParameter(f'invalid port specification: "{numbers}"') from None
        for entry in entries or ():
            try:
                parse_range(split(entry.host_port)[0])
            except ValueError:
                raise InvalidParameter(f'invalid port specification: "{entry.host_port}"') from None


def exposed_ports(record: ContainerRecord) -> list[str]:
    """Every exposed port as ``80/tcp``; an unknown protocol is shown as 0."""
    return list(dict.fromkeys(f"{number}/{protocol or 0}" for _, number, protocol in _exposed(record)))


def port_requests(record: ContainerRecord) -> tuple[PortRequest, ...]:
    """What is to be published: of the exposed ports those that have a binding, or all of them."""
    found: list[PortRequest] = []
    bindings = record.host_config.port_bindings or {}
    for key, number, protocol in _exposed(record):
        entries = bindings.get(key) or ()
        for entry in entries:
            first, last = parse_range(split(entry.host_port)[0])
            found.append(
                PortRequest(
                    container_port=number,
                    protocol=protocol,
                    host_ip=_address(entry.host_ip),
                    host_first=first,
                    host_last=last,
                )
            )
        if not entries and record.host_config.publish_all_ports:
            found.append(PortRequest(container_port=number, protocol=protocol))
    return tuple(found)


def _exposed(record: ContainerRecord) -> list[tuple[str, int, str]]:
    found: list[tuple[str, int, str]] = []
    for key in record.config.exposed_ports or {}:
        numbers, protocol = split(key)
        protocol = protocol.lower()
        try:
            number = parse(numbers)
        except ValueError:
            number = 0
        found.append((key, number, protocol if protocol in PROTOCOLS else ""))
    return found


def _address(text: str) -> str:
    """The host's address; what is none is taken for none given, as net.ParseIP's callers do."""
    bare = text.removeprefix("[").removesuffix("]")
    try:
        return str(ipaddress.ip_address(bare))
    except ValueError:
        return ""

"""The ports that EXPOSE words mean, as go-connections' nat.ParsePortSpecs reads them."""

import ipaddress
import re
from collections.abc import Iterable

from compatd.errors import InvalidParameter

_RANGE = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")


def parse_ports(words: Iterable[str]) -> list[str]:
    """The container ports (``80/tcp``) of words such as ``80``, ``90/udp``, ``8000-8010``, ``127.0.0.1:80:81``.

    ``InvalidParameter`` with Docker's words for others.
    """
    return [port for word in words for port in _parse(word)]


def _parse(word: str) -> list[str]:
    address, host, container = _split(word)
    port, slash, protocol = container.partition("/")
    protocol = protocol.partition("/")[0] if slash else ""
    if address:
        _check_address(address)
    if not port:
        raise InvalidParameter(f"No port specified: {word}<empty>")
    start, end = _range(port, f"Invalid containerPort: {port}")
    if host:
        host_start, host_end = _range(host, f"Invalid hostPort: {host}")
        if end - start != host_end - host_start and end != start:
            raise InvalidParameter(f"Invalid ranges specified for container and host Ports: {port} and {host}")
    protocol = protocol.lower() or "tcp"
    if protocol not in ("tcp", "udp", "sctp"):
        raise InvalidParameter(f"Invalid proto: {protocol}")
    return [f"{number}/{protocol}" for number in range(start, end + 1)]


def _split(word: str) -> tuple[str, str, str]:
    parts = word.split(":")
    if len(parts) == 1:
        return "", "", word
    if len(parts) == 2:
        return "", parts[0], parts[1]
    return ":".join(parts[:-2]), parts[-2], parts[-1]


def _check_address(address: str) -> None:
    try:
        ipaddress.ip_address(address[1:-1] if address.startswith("[") and address.endswith("]") else address)
    except ValueError:
        raise InvalidParameter(f"Invalid ip address: {address}") from None


def _range(text: str, message: str) -> tuple[int, int]:
    match = _RANGE.fullmatch(text)
    if match is None:
        raise InvalidParameter(message)
    start = int(match[1])
    end = int(match[2] or start)
    if not start <= end <= 65535:
        raise InvalidParameter(message)
    return start, end

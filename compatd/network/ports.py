"""Host ports: which are taken by containers, chosen from requests and held with bound sockets.

A held socket keeps other programs (and other engines) from taking the port, and makes a connection that the firewall
does not translate fail at once instead of hanging; it never listens, but for those that ``relay`` serves. The sockets
die with the daemon; ``adopt`` takes them again at the next start. Behaviour and texts as Docker 28.5.2 has them
(moby libnetwork/portallocator, libnetwork/drivers/bridge/port_mapping_linux.go).
"""

import errno
import ipaddress
import logging
import os
import socket
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from compatd.errors import SystemFailure

log = logging.getLogger(__name__)

PROTOCOL_NUMBERS = {"tcp": 6, "udp": 17, "sctp": 132}
_TYPES = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM, "sctp": socket.SOCK_STREAM}
_DEFAULT_DYNAMIC = (49153, 65535)  # when the kernel does not say


@dataclass(frozen=True, slots=True, kw_only=True)
class PortRequest:
    """Publish a container's port. No ``host_ip``: on all addresses of both families.

    An empty ``protocol`` is one that nobody knows: publishing it fails.

    ``host_first``..``host_last``: a port of this range, the first free one; 0: any of the kernel's dynamic ports.
    """

    container_port: int
    protocol: str = "tcp"
    host_ip: str = ""
    host_first: int = 0
    host_last: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class PortMapping:
    """A published port: one host address (``0.0.0.0`` or ``::`` for all) and port, and the container's port."""

    container_port: int
    protocol: str
    host_ip: str
    host_port: int


def already_allocated(host_ip: str, port: int) -> SystemFailure:
    # moby libnetwork/portallocator, ErrPortAlreadyAllocated
    return SystemFailure(f"Bind for {host_ip}:{port} failed: port is already allocated")


def all_allocated() -> SystemFailure:
    # moby libnetwork/portallocator, errAllPortsAllocated
    return SystemFailure("all ports are allocated")


def bind_failed(mapping: PortMapping, container_ip: str, reason: str) -> SystemFailure:
    # moby libnetwork/drivers/bridge, portBinding.String
    host = f"[{mapping.host_ip}]" if ":" in mapping.host_ip else mapping.host_ip
    return SystemFailure(
        f"failed to bind host port for {host}:{mapping.host_port}:{container_ip}:{mapping.container_port}"
        f"/{mapping.protocol}: {reason}"
    )


class _Taken(Exception):
    """A candidate port cannot be had; ``error`` is what to say if it was the only one."""

    def __init__(self, error: SystemFailure) -> None:
        self.error = error


class PortReservations:
    """The ports of one daemon. Not thread-safe: the caller serialises. Binding happens in the calling thread's
    network namespace; nothing blocks."""

    def __init__(self, default_host_ips: Sequence[str] = ("0.0.0.0", "::")) -> None:
        self.default_host_ips = tuple(default_host_ips)
        self._held: dict[tuple[str, str, int], socket.socket | None] = {}  # (protocol, host ip, port)
        self._last_dynamic = 0

    def reserve(
        self, requests: Iterable[PortRequest], *, container_ip: str, host_ips: Sequence[str] | None = None
    ) -> list[PortMapping]:
        """Choose and hold host ports for all of ``requests``, or for none of them.

        ``host_ips``: where those without an address of their own are published, instead of ``default_host_ips``.
        ``SystemFailure`` with Docker's text: taken by a container, taken by another program, range exhausted.
        """
        reserved: list[PortMapping] = []
        try:
            # Fixed ports first, so that no chosen one can take theirs away.
            for request in sorted(requests, key=lambda request: request.host_first == 0):
                reserved += self._reserve(
                    request, container_ip, self.default_host_ips if host_ips is None else host_ips
                )
        except SystemFailure:
            self.release(reserved)
            raise
        return reserved

    def adopt(self, mappings: Iterable[PortMapping]) -> list[PortMapping]:
        """Hold the ports of a container that outlived the daemon; those that somebody else has bound meanwhile are
        counted as taken all the same (the firewall still leads them to the container) and returned."""
        lost: list[PortMapping] = []
        for mapping in mappings:
            try:
                held = _bind(mapping)
            except OSError:
                lost.append(mapping)
                held = None
            self._held[_key(mapping)] = held
        return lost

    def held(self, mapping: PortMapping) -> socket.socket | None:
        """The socket that holds a port, still owned here; None if it could not be had."""
        return self._held.get(_key(mapping))

    def release(self, mappings: Iterable[PortMapping]) -> None:
        """Give ports back; those not held are passed over."""
        for mapping in mappings:
            held = self._held.pop(_key(mapping), None)
            if held is not None:
                held.close()

    def close(self) -> None:
        """Give everything back."""
        for held in self._held.values():
            if held is not None:
                held.close()
        self._held.clear()

    def _reserve(self, request: PortRequest, container_ip: str, host_ips: Sequence[str]) -> list[PortMapping]:
        if not request.protocol:
            raise SystemFailure("unknown protocol")
        last: SystemFailure | None = None
        for port in self._candidates(request):
            try:
                return self._hold(request, port, container_ip, host_ips)
            except _Taken as taken:
                if request.host_first and request.host_first == max(request.host_last, request.host_first):
                    raise taken.error from None
                last = taken.error
        # A range whose ports all belong to containers says so; a bind error of the last port is more telling.
        if last is not None and not str(last).endswith("port is already allocated"):
            raise last
        raise all_allocated()

    def _candidates(self, request: PortRequest) -> Iterator[int]:
        if request.host_first:
            yield from range(request.host_first, max(request.host_last, request.host_first) + 1)
            return
        first, last = dynamic_range()
        start = self._last_dynamic + 1 if first <= self._last_dynamic < last else first
        for port in (*range(start, last + 1), *range(first, start)):
            yield port
            self._last_dynamic = port

    def _hold(self, request: PortRequest, port: int, container_ip: str, host_ips: Sequence[str]) -> list[PortMapping]:
        held: list[PortMapping] = []
        try:
            for host_ip in (request.host_ip,) if request.host_ip else host_ips:
                mapping = PortMapping(
                    container_port=request.container_port,
                    protocol=request.protocol,
                    host_ip=str(ipaddress.ip_address(host_ip)),
                    host_port=port,
                )
                if self._conflicts(mapping):
                    raise _Taken(already_allocated(mapping.host_ip, port))
                try:
                    self._held[_key(mapping)] = _bind(mapping)
                except OSError as error:
                    if error.errno == errno.EAFNOSUPPORT and not request.host_ip:
                        continue  # no IPv6 on this machine
                    reason = os.strerror(error.errno or 0).lower()
                    failure = bind_failed(mapping, container_ip, reason)
                    if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                        raise failure from error
                    raise _Taken(failure) from error
                held.append(mapping)
        except BaseException:
            self.release(held)
            raise
        if request.host_first == 0:
            self._last_dynamic = port
        return held

    def _conflicts(self, mapping: PortMapping) -> bool:
        wanted = ipaddress.ip_address(mapping.host_ip)
        for protocol, host_ip, port in self._held:
            if port != mapping.host_port or protocol != mapping.protocol:
                continue
            other = ipaddress.ip_address(host_ip)
            if other.version == wanted.version and (other == wanted or other.is_unspecified or wanted.is_unspecified):
                return True
        return False


def dynamic_range() -> tuple[int, int]:
    """The kernel's range of dynamic ports, both ends included (as moby's portallocator takes it)."""
    try:
        with open("/proc/sys/net/ipv4/ip_local_port_range", encoding="ascii") as file:
            first, last = (int(word) for word in file.read().split())
    except (OSError, ValueError):
        return _DEFAULT_DYNAMIC
    return (first, last) if 0 < first <= last < 65536 else _DEFAULT_DYNAMIC


def _key(mapping: PortMapping) -> tuple[str, str, int]:
    return mapping.protocol, mapping.host_ip, mapping.host_port


def _bind(mapping: PortMapping) -> socket.socket:
    family = socket.AF_INET6 if ":" in mapping.host_ip else socket.AF_INET
    number = PROTOCOL_NUMBERS[mapping.protocol]
    held = socket.socket(family, _TYPES[mapping.protocol] | socket.SOCK_CLOEXEC, number)
    try:
        if family == socket.AF_INET6:
            held.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if mapping.protocol != "udp":
            # Connections of a former server that linger in TIME_WAIT are no obstacle, as for any server. Taken back
            # once bound, so that nobody else can bind the port with the same option.
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.bind((mapping.host_ip, mapping.host_port))
        if mapping.protocol != "udp":
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
    except BaseException:
        held.close()
        raise
    return held

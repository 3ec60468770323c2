"""Published ports that no firewall rule can carry: those on IPv6 addresses, for containers that have IPv4 only, and
for what comes by ``::1``, which never leaves the machine's own loopback.

The daemon listens on the socket that holds the port anyway and moves the bytes itself (as docker-proxy does for every
port). So this part of a published port rests while no daemon runs; connections under way end with it.
"""

import asyncio
import contextlib
import logging
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from compatd import tasks
from compatd.network.ports import PortMapping

log = logging.getLogger(__name__)

_BLOCK_BYTES = 1 << 16
_CONNECT_TIMEOUT_S = 10.0
# cmd/docker-proxy/udp_proxy_linux.go, UDPConnTrackTimeout
_UDP_IDLE_S = 90.0
_MAX_CLIENTS = 1024
_BURST = 64
_BACKLOG = 128

_Sender = tuple[str | int, ...]  # an address as recvfrom gives it


@dataclass(slots=True)
class _Relay:
    listener: socket.socket
    target: tuple[str, int]
    open: set[socket.socket] = field(default_factory=set[socket.socket])
    clients: dict[object, tuple[socket.socket, float]] = field(
        default_factory=dict[object, tuple[socket.socket, float]]
    )


class Relays:
    """The relays of one daemon. ``start`` and ``stop`` may be called from any thread, and are done when they return;
    everything else happens on the loop that this was made on."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._relays: dict[tuple[str, str, int], _Relay] = {}

    def start(self, mapping: PortMapping, held: socket.socket, target: str) -> None:
        """Carry what comes to a held socket to the container's address. The caller keeps the socket, and stops the
        relay before closing it."""
        if mapping.protocol in ("tcp", "udp"):
            self._call(lambda: self._start(mapping, held, target))

    def stop(self, mapping: PortMapping) -> None:
        """End a relay with its connections; none: nothing happens."""
        if _key(mapping) in self._relays:
            self._call(lambda: self._stop(mapping))

    def _call(self, function: Callable[[], None]) -> None:
        if threading.get_ident() == self._thread:
            function()
            return
        done = threading.Event()

        def run() -> None:
            try:
                function()
            finally:
                done.set()

        try:
            self._loop.call_soon_threadsafe(run)
        except RuntimeError:  # the loop has ended, and with it every relay
            return
        done.wait(_CONNECT_TIMEOUT_S)

    def _start(self, mapping: PortMapping, held: socket.socket, target: str) -> None:
        relay = _Relay(held, (target, mapping.container_port))
        held.setblocking(False)
        try:
            if mapping.protocol == "tcp":
                held.listen(_BACKLOG)
                # Connections inherit it, so that what lingers of them does not keep the port from its next user.
                held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                self._loop.add_reader(held, self._accept, relay)
            else:
                self._loop.add_reader(held, self._receive, relay)
        except OSError as error:  # the port is published by the rules alone
            log.warning("[%s]:%s is not relayed: %s", mapping.host_ip, mapping.host_port, error)
            return
        self._relays[_key(mapping)] = relay

    def _stop(self, mapping: PortMapping) -> None:
        relay = self._relays.pop(_key(mapping), None)
        if relay is None:
            return
        self._loop.remove_reader(relay.listener)
        for connection in relay.open:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for client, _ in relay.clients.values():
            self._loop.remove_reader(client)
            client.close()
        relay.clients.clear()

    # -------------------------------------------------------------------- tcp

    def _accept(self, relay: _Relay) -> None:
        try:
            connection, _ = relay.listener.accept()
        except OSError:
            return
        connection.setblocking(False)
        if len(relay.open) >= 2 * _MAX_CLIENTS:
            connection.close()
            return
        tasks.detach(self._carry(relay, connection), name="port relay")

    async def _carry(self, relay: _Relay, connection: socket.socket) -> None:
        server = socket.socket(
            _family(relay.target[0]), socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
        )
        with connection, server:
            relay.open |= {connection, server}
            try:
                await asyncio.wait_for(self._loop.sock_connect(server, relay.target), _CONNECT_TIMEOUT_S)
                await asyncio.gather(self._copy(connection, server), self._copy(server, connection))
            except (OSError, TimeoutError):
                # The client is to see a failure, not an end of the data.
                with contextlib.suppress(OSError):
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            finally:
                relay.open -= {connection, server}

    async def _copy(self, source: socket.socket, target: socket.socket) -> None:
        while data := await self._loop.sock_recv(source, _BLOCK_BYTES):
            await self._loop.sock_sendall(target, data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)

    # -------------------------------------------------------------------- udp

    def _receive(self, relay: _Relay) -> None:
        for _ in range(_BURST):
            try:
                data, sender = relay.listener.recvfrom(_BLOCK_BYTES)
            except OSError:
                return
            client = self._client(relay, sender)
            if client is not None:
                with contextlib.suppress(OSError):
                    client.send(data)

    def _client(self, relay: _Relay, sender: _Sender) -> socket.socket | None:
        """The socket that speaks for this sender."""
        known = relay.clients.get(sender)
        now = time.monotonic()
        if known is None:
            for other in [key for key, (_, used) in relay.clients.items() if now - used > _UDP_IDLE_S]:
                stale, _ = relay.clients.pop(other)
                self._loop.remove_reader(stale)
                stale.close()
            if len(relay.clients) >= _MAX_CLIENTS:
                return None
            kind = socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
            client = socket.socket(_family(relay.target[0]), kind)
            try:
                client.connect(relay.target)
            except OSError:
                client.close()
                return None
            self._loop.add_reader(client, self._answer, relay, client, sender)
        else:
            client = known[0]
        relay.clients[sender] = (client, now)
        return client

    def _answer(self, relay: _Relay, client: socket.socket, sender: _Sender) -> None:
        for _ in range(_BURST):
            try:
                data = client.recv(_BLOCK_BYTES)
                relay.listener.sendto(data, sender)
            except OSError:
                return
            relay.clients[sender] = (client, time.monotonic())


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _key(mapping: PortMapping) -> tuple[str, str, int]:
    return mapping.protocol, mapping.host_ip, mapping.host_port

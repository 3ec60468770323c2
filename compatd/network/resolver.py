"""The resolver at 127.0.0.11 in a container's network namespace.

Its sockets are opened inside the namespace and served by the daemon's loop; a rule in there leads port 53 to them.
They keep the namespace alive, so they are closed when the container has ended; a killed daemon's go with it, and the
next daemon opens new ones. In between queries are refused at once (ICMP), which resolvers take for a server that is
down for the moment.

Names of containers are answered from what ``Names`` says at that moment; everything else is forwarded to the servers
that the container would have without us: the machine's are asked from the machine's namespace, as they may be reachable
from there only, those of ``--dns`` from the container's (moby daemon/libnetwork/resolver.go).
"""

import asyncio
import contextlib
import errno
import logging
import os
import random
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from compatd import tasks
from compatd.errors import SystemFailure
from compatd.network import dns, netns
from compatd.network import nftables as nft
from compatd.network.ports import PROTOCOL_NUMBERS
from compatd.tasks import Workers

log = logging.getLogger(__name__)

ADDRESS = "127.0.0.11"
PORT = 53
# moby daemon/libnetwork/resolver.go: maxExtDNS, extIOTimeout, maxConcurrent
MAX_SERVERS = 3
TIMEOUT_S = 4.0
MAX_PENDING = 1024
_IDLE_S = 10.0
_MAX_CONNECTIONS = 64
_BURST = 32

Lookup = Callable[[dns.Question], dns.Answer | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A server to forward to; ``on_host``: it is asked from the machine's namespace."""

    address: str
    on_host: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Sockets:
    """The two sockets of a resolver, bound, in the container's namespace."""

    udp: socket.socket
    tcp: socket.socket

    def close(self) -> None:
        self.udp.close()
        self.tcp.close()


def open_sockets(namespace_fd: int) -> Sockets:
    """Bind in a namespace, and have what goes to port 53 there come. ``SystemFailure``: it cannot be had. Blocks, 1 ms.

    The sockets have other ports, so that the container may have a DNS server of its own on port 53 of every address.
    """

    def bind() -> Sockets:
        try:
            return _redirected()
        except OSError as error:
            log.info("no NAT in containers (%s): their port 53 is taken", error.strerror)
            return _bound(PORT)

    try:
        return netns.run(namespace_fd, bind)
    except OSError as error:
        raise SystemFailure(f"failed to start the embedded DNS server: {error.strerror}") from error


def _bound(port: int) -> Sockets:
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    tcp = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
    sockets = Sockets(udp=udp, tcp=tcp)
    try:
        udp.bind((ADDRESS, port))
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        tcp.bind((ADDRESS, port))
        tcp.listen(16)
    except BaseException:
        sockets.close()
        raise
    return sockets


def _redirected() -> Sockets:
    sockets = _bound(0)
    try:
        nft.apply(nft.replacement(_redirection(sockets)))
    except BaseException:
        sockets.close()
        raise
    return sockets


def _redirection(sockets: Sockets) -> nft.Table:
    """The namespace's table: port 53 of our address leads to our sockets."""
    address = socket.inet_aton(ADDRESS)
    rules = tuple(
        (
            nft.network_header(16, 4),
            nft.compare(nft.EQ, address),
            nft.meta(nft.META_L4PROTO),
            nft.compare(nft.EQ, bytes((PROTOCOL_NUMBERS[protocol],))),
            nft.transport_header(2, 2),
            nft.compare(nft.EQ, PORT.to_bytes(2, "big")),
            nft.load(address, nft.REG32_00),
            nft.load(bound.getsockname()[1].to_bytes(2, "big"), nft.REG32_01),
            nft.dnat(nft.IPV4, nft.REG32_00, nft.REG32_01),
        )
        for protocol, bound in (("udp", sockets.udp), ("tcp", sockets.tcp))
    )
    chain = nft.Chain(name="resolver", type="nat", hook=nft.OUTPUT, priority=nft.PRIORITY_DNAT, rules=rules)
    return nft.Table(name="compatd-dns", family=nft.IPV4, maps=(), chains=(chain,))


class Resolver:
    """Serves one namespace until ``close``. Lives on the loop. ``servers`` says, query by query, whom to ask what
    ``lookup`` does not know; none: nobody. Takes over the sockets and the descriptor."""

    def __init__(
        self,
        sockets: Sockets,
        namespace_fd: int,
        *,
        lookup: Lookup,
        servers: Callable[[], Sequence[Server]],
        workers: Workers,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._sockets = sockets
        self._namespace_fd = namespace_fd
        self._lookup = lookup
        self._servers = servers
        self._workers = workers
        self._pending = 0
        self._connections: set[socket.socket] = set()
        self._closed = False
        self._loop.add_reader(sockets.udp, self._receive)
        self._loop.add_reader(sockets.tcp, self._accept)

    def close(self) -> None:
        """Let the namespace go."""
        if self._closed:
            return
        self._closed = True
        self._loop.remove_reader(self._sockets.udp)
        self._loop.remove_reader(self._sockets.tcp)
        self._sockets.close()
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        os.close(self._namespace_fd)

    # ---------------------------------------------------------------- queries

    def _receive(self) -> None:
        for _ in range(_BURST):  # others on the loop want their turn, too
            try:
                message, sender = self._sockets.udp.recvfrom(dns.MAX_BYTES)
            except OSError:  # empty, or an ICMP error of an earlier answer
                return
            question = dns.parse(message)
            if question is None:
                continue
            known = self._answer(question, question.udp_bytes)
            if known is not None:
                self._send(known, sender)
            elif self._pending < MAX_PENDING:
                self._pending += 1
                tasks.detach(self._forward_datagram(message, question, sender), name="dns query")

    def _send(self, message: bytes, receiver: tuple[str, int]) -> None:
        with contextlib.suppress(OSError):  # it asks again
            self._sockets.udp.sendto(message, receiver)

    def _answer(self, question: dns.Question, limit: int) -> bytes | None:
        """The reply, if no other server has to be asked."""
        if question.cls != dns.IN:
            return None
        answer = self._lookup(question)
        if answer is None:
            return None
        shuffled = replace(answer, addresses=random.sample(list(answer.addresses), len(answer.addresses)))
        return dns.reply(question, dns.NOERROR, shuffled, limit=limit)

    async def _forward_datagram(self, message: bytes, question: dns.Question, sender: tuple[str, int]) -> None:
        try:
            reply = await self._forward(message, question, socket.SOCK_DGRAM)
        finally:
            self._pending -= 1
        if not self._closed:
            self._send(reply if len(reply) <= question.udp_bytes else dns.truncated(reply), sender)

    def _accept(self) -> None:
        try:
            connection, _ = self._sockets.tcp.accept()
        except OSError:
            return
        connection.setblocking(False)
        if len(self._connections) >= _MAX_CONNECTIONS:
            connection.close()
            return
        self._connections.add(connection)
        tasks.detach(self._converse(connection), name="dns connection")

    async def _converse(self, connection: socket.socket) -> None:
        try:
            while not self._closed:
                message = await _receive_framed(connection, _IDLE_S)
                if message is None or (question := dns.parse(message)) is None:
                    return
                reply = self._answer(question, dns.MAX_BYTES)
                if reply is None:
                    reply = await self._forward(message, question, socket.SOCK_STREAM)
                await asyncio.wait_for(self._loop.sock_sendall(connection, _framed(reply)), _IDLE_S)
        except (OSError, TimeoutError):
            return
        finally:
            self._connections.discard(connection)
            connection.close()

    # ---------------------------------------------------------------- forward

    async def _forward(self, message: bytes, question: dns.Question, kind: socket.SocketKind) -> bytes:
        refused: bytes | None = None
        for server in list(self._servers())[:MAX_SERVERS]:
            if self._closed:
                break
            try:
                reply = await self._ask(server, message, question, kind)
            except (OSError, TimeoutError) as error:
                log.debug("no answer from %s: %s", server.address, error)
                continue
            if dns.rcode(reply) in (dns.NOERROR, dns.NXDOMAIN):
                return reply
            refused = refused or reply
        return refused or dns.reply(question, dns.SERVFAIL)

    async def _ask(self, server: Server, message: bytes, question: dns.Question, kind: socket.SocketKind) -> bytes:
        family = socket.AF_INET6 if ":" in server.address else socket.AF_INET

        def make() -> socket.socket:
            return socket.socket(family, kind | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)

        if server.on_host:
            asking = make()
        else:
            namespace_fd = os.dup(self._namespace_fd)
            try:
                asking = await self._workers.run(netns.run, namespace_fd, make)
            finally:
                os.close(namespace_fd)
        with asking:
            async with asyncio.timeout(TIMEOUT_S):
                await self._loop.sock_connect(asking, (server.address, PORT))
                if kind == socket.SOCK_STREAM:
                    await self._loop.sock_sendall(asking, _framed(message))
                    reply = await _receive_framed(asking, TIMEOUT_S)
                    if reply is None or not dns.answers(reply, question):
                        raise OSError(errno.EPROTO, "the answer is no answer")
                    return reply
                await self._loop.sock_sendall(asking, message)
                while True:
                    reply = await self._loop.sock_recv(asking, dns.MAX_BYTES)
                    if dns.answers(reply, question):
                        return reply


def _framed(message: bytes) -> bytes:
    return len(message).to_bytes(2, "big") + message


async def _receive_framed(connection: socket.socket, timeout_s: float) -> bytes | None:
    """A message with its length before it; None at the end of the connection."""
    async with asyncio.timeout(timeout_s):
        head = await _receive_exactly(connection, 2)
        return await _receive_exactly(connection, int.from_bytes(head, "big")) if head is not None else None


async def _receive_exactly(connection: socket.socket, size: int) -> bytes | None:
    loop = asyncio.get_running_loop()
    data = b""
    while len(data) < size:
        piece = await loop.sock_recv(connection, size - len(data))
        if not piece:
            return None
        data += piece
    return data

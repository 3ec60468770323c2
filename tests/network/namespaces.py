"""Network namespaces as machines of a test: nothing of the real host is touched, nothing is left."""

import contextlib
import ipaddress
import os
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Self, TypeVar

from compatd.linux.netlink import RouteSocket
from compatd.network import netns
from compatd.network.driver import BridgeDriver, ConnectRequest, Endpoint, Network, default_network, new_endpoint_id
from compatd.network.ports import PortRequest

T = TypeVar("T")
TIMEOUT_S = 3.0
REFUSED_S = 0.4  # how long to wait for what must not come


class Machine:
    """A namespace with servers in it; ``close`` ends them."""

    def __init__(self) -> None:
        self.fd = netns.create()
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, function: Callable[[], T]) -> T:
        return netns.run(self.fd, function)

    def open(self, kind: socket.SocketKind, address: tuple[str, int] | None = None) -> socket.socket:
        """A socket of this namespace, bound; closed at the end."""

        made = self.run(lambda: socket.socket(socket.AF_INET, kind))
        self._sockets.append(made)
        made.settimeout(TIMEOUT_S)
        if kind == socket.SOCK_STREAM:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if address is not None:
            made.bind(address)
        return made

    def listen(self, address: tuple[str, int]) -> socket.socket:
        """A listening TCP socket of this namespace."""
        made = self.open(socket.SOCK_STREAM, address)
        made.listen()
        return made

    def serve(self, port: int = 80, text: str = "") -> None:
        """A TCP server that tells each client ``text`` and the address it came from."""
        listener = self.listen(("0.0.0.0", port))
        listener.settimeout(None)

        def loop() -> None:
            with contextlib.suppress(OSError):
                while True:
                    client, (address, _) = listener.accept()
                    with client:
                        client.sendall(f"{text} {address}".encode())

        thread = threading.Thread(target=loop, daemon=True)
        thread.start()
        self._threads.append(thread)

    def get(self, address: str, port: int, timeout_s: float = TIMEOUT_S) -> str:
        """What a server there says; ``OSError`` if it cannot be reached."""
        client = self.run(lambda: socket.create_connection((address, port), timeout=timeout_s))
        with client:
            return client.recv(100).decode()

    def reaches(self, address: str, port: int) -> bool:
        """Whether a server there answers, given a moment."""
        try:
            return bool(self.get(address, port, REFUSED_S))
        except OSError:
            return False

    def end_servers(self) -> None:
        """Close every socket of ours in here."""
        for used in self._sockets:
            with contextlib.suppress(OSError):
                used.shutdown(socket.SHUT_RDWR)
            used.close()
        for thread in self._threads:
            thread.join(TIMEOUT_S)
        self._sockets.clear()
        self._threads.clear()

    def close(self) -> None:
        self.end_servers()
        os.close(self.fd)


class Host(Machine):
    """A machine with a driver and a default network; ``containers`` are further namespaces on it."""

    def __init__(self) -> None:
        super().__init__()
        self.containers: list[Container] = []
        self.driver = BridgeDriver()
        self.network: Network = self.run(lambda: default_network("f" * 64))
        self.run(lambda: self.driver.restore([self.network], []))

    def start(self, *ports: PortRequest, name: str = "web", network: str = "", ip: str = "") -> "Container":
        """A container on the network, saying its name on port 80."""
        container = Container()
        try:
            container.endpoint = self.connect(container, *ports, name=name, network=network, ip=ip)
            container.serve(80, name)
        except BaseException:
            container.close()
            raise
        self.containers.append(container)
        return container

    def connect(
        self, machine: Machine, *ports: PortRequest, name: str = "web", network: str = "", ip: str = ""
    ) -> Endpoint:
        request = ConnectRequest(
            endpoint_id=new_endpoint_id(),
            network_id=network or self.network.id,
            container_id="c" * 64,
            container_name=name,
            ip_address=ip,
            ports=ports,
        )
        return self.run(lambda: self.driver.connect(request, machine.fd))

    def disconnect(self, endpoint: Endpoint) -> None:
        self.run(lambda: self.driver.disconnect(endpoint))

    def kill_driver(self) -> BridgeDriver:
        """What a killed daemon leaves: the kernel's state without the held sockets. The new driver is not restored."""
        self.driver.close()
        self.driver = BridgeDriver()
        return self.driver

    def link_names(self) -> set[str]:
        def names() -> set[str]:
            with RouteSocket() as route:
                return {link.name for link in route.links()}

        return self.run(names)

    def close(self) -> None:
        self.driver.close()
        for container in self.containers:
            container.close()
        super().close()


class Container(Machine):
    endpoint: Endpoint


def publish(
    container_port: int, host_port: int = 0, *, last: int = 0, ip: str = "", protocol: str = "tcp"
) -> PortRequest:
    return PortRequest(
        container_port=container_port, protocol=protocol, host_ip=ip, host_first=host_port, host_last=last or host_port
    )


@contextlib.contextmanager
def outside(host: Machine, *, host_address: str, address: str, mtu: int = 1500) -> Iterator[Machine]:
    """Another machine on a wire with ``host``, which has its default route there."""
    machine = Machine()
    try:

        def answer() -> None:
            with RouteSocket() as route:
                link = route.link("eth0")
                assert link is not None
                route.configure(link.index, [ipaddress.ip_interface(f"{address}/24")], [])

        def wire_up() -> None:
            with RouteSocket() as route:
                route.add_veth(
                    "wire0", master=0, peer="eth0", peer_namespace_fd=machine.fd, peer_mac="02:00:00:00:00:02", mtu=mtu
                )

        host.run(wire_up)
        machine.run(answer)

        def configure() -> None:
            with RouteSocket() as route:
                link = route.link("wire0")
                assert link is not None
                local = ipaddress.ip_interface(f"{host_address}/24")
                route.configure(link.index, [local], [ipaddress.ip_address(address)])

        host.run(configure)
        yield machine
    finally:
        machine.close()

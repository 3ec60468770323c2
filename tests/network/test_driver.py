"""Bridge networks in namespaces of the test's own: what containers, the machine and others can reach."""

import concurrent.futures
import dataclasses
import errno
import ipaddress
import json
import os
import socket
import struct
from pathlib import Path

import pytest

from compatd.errors import InvalidParameter, NotFound, SystemFailure
from compatd.linux.netlink import RouteSocket
from compatd.network import bridge, nat, netns, nftables
from compatd.network.driver import BridgeDriver, Endpoint, Network, default_network, new_endpoint_id
from compatd.network.ports import PortMapping
from tests.network.namespaces import REFUSED_S, Host, Machine, outside, publish

pytestmark = pytest.mark.root


def test_a_container_gets_an_interface_an_address_and_a_way_out(host: Host) -> None:
    container = host.start()
    endpoint = container.endpoint

    def look() -> tuple[list[str], list[str], int, str, str]:
        with RouteSocket() as route:
            link = route.link("eth0")
            assert link is not None
            addresses = [str(address) for index, address in route.addresses() if index == link.index]
            gateways = [str(item.gateway) for item in route.routes() if item.destination.prefixlen == 0]
            ipv6 = Path("/proc/sys/net/ipv6/conf/eth0/disable_ipv6").read_text().strip()
            return addresses, gateways, link.mtu, link.mac, ipv6

    assert container.run(look) == (["172.17.0.2/16"], ["172.17.0.1"], 1500, "02:42:ac:11:00:02", "1")
    assert (endpoint.ip_address, endpoint.prefix_length, endpoint.gateway) == ("172.17.0.2", 16, "172.17.0.1")
    host.serve(7, "host")
    assert container.get("172.17.0.1", 7) == "host 172.17.0.2"
    assert host.get("172.17.0.2", 80) == "web 172.17.0.1"


def test_the_interface_carries_packets_as_soon_as_it_is_there(host: Host) -> None:
    # A lost ARP request would cost a second.
    host.serve(7)
    for _ in range(5):
        container = host.start()
        assert container.get("172.17.0.1", 7, timeout_s=0.9)
        host.disconnect(container.endpoint)


@pytest.fixture(params=["0", "1"], ids=["bridge-nf-off", "bridge-nf-on"])
def bridge_netfilter(request: pytest.FixtureRequest, host: Host) -> None:
    """Whether bridged packets pass the IP firewall too: machines differ in it."""
    switch = Path("/proc/sys/net/bridge/bridge-nf-call-iptables")
    if switch.exists():
        host.run(lambda: switch.write_text(request.param))
    elif request.param == "1":
        pytest.skip("br_netfilter is not loaded")


@pytest.mark.usefixtures("bridge_netfilter")
def test_containers_reach_each_other_but_not_with_icc_off(host: Host) -> None:
    first, _ = host.start(name="first"), host.start(name="second")
    assert first.get("172.17.0.3", 80) == "second 172.17.0.2"
    closed = Network(
        id="1" * 64,
        name="closed",
        bridge="br-closed",
        subnet="172.30.0.0/24",
        gateway="172.30.0.1",
        mtu=1500,
        icc=False,
    )
    host.run(lambda: host.driver.create_network(closed))
    third, _ = host.start(network=closed.id), host.start(network=closed.id)
    assert not third.reaches("172.30.0.3", 80)
    assert host.get("172.30.0.3", 80)


def test_networks_are_apart_and_an_internal_one_has_no_way_out(host: Host) -> None:
    other = Network(
        id="1" * 64,
        name="back",
        bridge="br-back",
        subnet="172.30.0.0/24",
        gateway="172.30.0.1",
        mtu=1500,
        internal=True,
    )
    host.run(lambda: host.driver.create_network(other))
    front, back, peer = host.start(), host.start(network=other.id), host.start(network=other.id, name="peer")
    assert back.get(peer.endpoint.ip_address, 80) == "peer 172.30.0.2"
    for one, two in ((front, back), (back, front)):
        assert not one.reaches(two.endpoint.ip_address, 80)
    with outside(host, host_address="10.9.0.1", address="10.9.0.2") as internet:
        internet.serve(80)
        assert front.get("10.9.0.2", 80)
        assert not back.reaches("10.9.0.2", 80)
    for container in (back, peer):
        host.disconnect(container.endpoint)
    host.run(lambda: host.driver.delete_network(other.id))
    assert "br-back" not in host.link_names()


@pytest.mark.usefixtures("bridge_netfilter")
def test_a_published_port_is_reached_from_everywhere(host: Host) -> None:
    web, other = host.start(publish(80, 8080), name="web"), host.start(name="other")
    with outside(host, host_address="10.9.0.1", address="10.9.0.2") as internet:
        for address in ("127.0.0.1", "127.0.0.9", "10.9.0.1", "172.17.0.1"):
            assert host.get(address, 8080).startswith("web "), address
        assert internet.get("10.9.0.1", 8080) == "web 10.9.0.2"  # the client's own address is seen
        for container in (web, other):
            assert container.get("172.17.0.1", 8080) == "web 172.17.0.1"
            assert container.get("10.9.0.1", 8080) == "web 172.17.0.1"
        # What is not published is not reached, even by one who knows the way.
        assert not internet.reaches("10.9.0.1", 8081)
        internet.run(lambda: _route_through("10.9.0.1"))
        assert not internet.reaches("172.17.0.2", 80)


def _route_through(gateway: str) -> None:
    with RouteSocket() as route:
        link = route.link("eth0")
        assert link is not None
        route.configure(link.index, [ipaddress.ip_interface("10.9.1.2/24")], [ipaddress.ip_address(gateway)])


def test_a_port_bound_to_one_address_is_reached_there_only(host: Host) -> None:
    with outside(host, host_address="10.9.0.1", address="10.9.0.2") as internet:
        local = host.start(publish(80, 8080, ip="127.0.0.1"), name="local")
        host.start(publish(80, 8080, ip="10.9.0.1"), name="public")
        assert host.get("127.0.0.1", 8080) == "local 172.17.0.1"
        assert host.get("10.9.0.1", 8080).startswith("public ")
        assert internet.get("10.9.0.1", 8080) == "public 10.9.0.2"
        host.disconnect(local.endpoint)
        with pytest.raises(ConnectionRefusedError):
            host.get("127.0.0.1", 8080)


def test_a_published_udp_port_answers_clients_that_were_there_before(host: Host) -> None:
    client = host.open(socket.SOCK_DGRAM, ("127.0.0.1", 0))
    client.sendto(b"too early", ("127.0.0.1", 5353))
    for ip in ("172.17.0.20", "172.17.0.21"):
        container = host.start(publish(53, 5353, protocol="udp"), ip=ip)
        server = container.open(socket.SOCK_DGRAM, ("0.0.0.0", 53))
        client.sendto(b"question", ("127.0.0.1", 5353))
        question, address = server.recvfrom(100)
        server.sendto(b"answer to " + question, address)
        assert client.recvfrom(100) == (b"answer to question", ("127.0.0.1", 5353))
        host.disconnect(container.endpoint)


def test_containers_go_out_with_the_machine_s_address(host: Host) -> None:
    container = host.start()
    with outside(host, host_address="10.9.0.1", address="10.9.0.2") as internet:
        internet.serve(80, "internet")
        assert container.get("10.9.0.2", 80) == "internet 10.9.0.1"


def test_a_container_cannot_reach_what_listens_on_loopback_only(host: Host) -> None:
    container = host.start()
    seen = host.open(socket.SOCK_DGRAM, ("127.0.0.1", 9))
    seen.settimeout(REFUSED_S)
    gateway = mac_of(host, "docker0")
    send_udp(container, source="172.17.0.2", to=gateway, destination="127.0.0.1", port=9)
    send_udp(container, source="127.0.0.1", to=gateway, destination="172.17.0.1", port=9)
    with pytest.raises(TimeoutError):
        seen.recv(1)
    # The same to an address that is open does arrive, so the test's frames are sound; not from 127.0.0.1, though.
    open_to_all = host.open(socket.SOCK_DGRAM, ("172.17.0.1", 9))
    send_udp(container, source="127.0.0.1", to=gateway, destination="172.17.0.1", port=9)
    send_udp(container, source="172.17.0.2", to=gateway, destination="172.17.0.1", port=9)
    assert open_to_all.recvfrom(1) == (b"x", ("172.17.0.2", 4000))


def test_a_port_bound_to_loopback_is_not_reached_from_the_wire(host: Host) -> None:
    container = host.start(publish(53, 5353, protocol="udp", ip="127.0.0.1"), publish(54, 5354, protocol="udp"))
    bound, free = (container.open(socket.SOCK_DGRAM, ("0.0.0.0", port)) for port in (53, 54))
    with outside(host, host_address="10.9.0.1", address="10.9.0.2") as internet:
        gateway = mac_of(host, "wire0")
        for port, destination in ((5353, "127.0.0.1"), (5354, "127.0.0.1"), (5354, "10.9.0.1")):
            send_udp(internet, source="10.9.0.2", to=gateway, destination=destination, port=port)
        assert free.recvfrom(1) == (b"x", ("10.9.0.2", 4000))
        for server in (bound, free):
            server.settimeout(REFUSED_S)
            with pytest.raises(TimeoutError):
                server.recv(1)


def mac_of(machine: Machine, name: str) -> str:
    def look() -> str:
        with RouteSocket() as route:
            link = route.link(name)
            assert link is not None
            return link.mac

    return machine.run(look)


def send_udp(machine: Machine, *, source: str, to: str, destination: str, port: int) -> None:
    """Put a datagram on the wire by hand, as one does who does not care what the kernel finds proper."""
    udp = struct.pack("!HHHH", 4000, port, 9, 0) + b"x"
    addresses = ipaddress.IPv4Address(source).packed + ipaddress.IPv4Address(destination).packed
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0, 64, socket.IPPROTO_UDP, 0) + addresses
    total = sum(struct.unpack("!10H", header))
    total = (total & 0xFFFF) + (total >> 16)
    header = header[:10] + struct.pack("!H", ~total & 0xFFFF) + header[12:]
    macs = bytes.fromhex((to + mac_of(machine, "eth0")).replace(":", ""))

    def send() -> None:
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as raw:
            raw.bind(("eth0", 0))
            raw.send(macs + struct.pack("!H", 0x0800) + header + udp)

    machine.run(send)


def test_a_port_conflict_leaves_nothing_of_the_second(host: Host) -> None:
    first = host.start(publish(80, 8080), name="first")
    before = host.link_names()
    with Machine() as second:
        with pytest.raises(SystemFailure) as caught:
            host.connect(second, publish(80, 9000), publish(80, 8080), name="second")
        text = str(caught.value)
        assert text.startswith("driver failed programming external connectivity on endpoint second (")
        assert text.endswith("): Bind for 0.0.0.0:8080 failed: port is already allocated")
        assert host.link_names() == before
        # Address and the other port are free again.
        endpoint = host.connect(second, publish(80, 9000), name="second")
        assert endpoint.ip_address == "172.17.0.3"
    assert host.get("127.0.0.1", 8080) == "first 172.17.0.1"
    host.disconnect(first.endpoint)


def test_a_port_that_a_program_has_is_refused(host: Host) -> None:
    host.serve(8080)
    with Machine() as container, pytest.raises(SystemFailure) as caught:
        host.connect(container, publish(80, 8080))
    assert str(caught.value).endswith(
        "): failed to bind host port for 0.0.0.0:8080:172.17.0.2:80/tcp: address already in use"
    )


def test_a_failed_connect_is_undone(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(messages: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    with Machine() as container:
        with monkeypatch.context() as patch:
            patch.setattr(nftables, "apply", refuse)
            with pytest.raises(SystemFailure, match="nf_tables"):
                host.connect(container, publish(80, 8080))
        assert not {name for name in host.link_names() if name.startswith("veth")}
        endpoint = host.connect(container, publish(80, 8080))
        assert endpoint.ip_address == "172.17.0.2"


def test_disconnecting_frees_everything_and_may_be_repeated(host: Host) -> None:
    container = host.start(publish(80, 8080))
    assert host.get("127.0.0.1", 8080)
    for _ in range(2):
        host.disconnect(container.endpoint)
    assert not {name for name in host.link_names() if name.startswith("veth")}
    with pytest.raises(ConnectionRefusedError):
        host.get("127.0.0.1", 8080)
    assert host.start(publish(80, 8080)).endpoint.ip_address == "172.17.0.2"


def test_a_killed_daemon_loses_no_port_and_the_next_one_carries_on(host: Host) -> None:
    survivor, gone = host.start(publish(80, 8080), name="survivor"), host.start(publish(80, 8081), name="gone")
    driver = host.kill_driver()
    assert host.get("127.0.0.1", 8080) == "survivor 172.17.0.1"  # nobody is there, and it works
    stored = json.loads(json.dumps(dataclasses.asdict(survivor.endpoint)))
    ports = tuple(PortMapping(**item) for item in stored.pop("ports"))
    endpoint = Endpoint(**stored, ports=ports)
    assert endpoint == survivor.endpoint
    assert host.run(lambda: driver.restore([host.network], [endpoint])) == []
    assert host.get("127.0.0.1", 8080) == "survivor 172.17.0.1"
    # The other's leftovers are gone: interface, rule, address.
    assert bridge.veth_name(gone.endpoint.id) not in host.link_names()
    assert bridge.veth_name(endpoint.id) in host.link_names()
    with pytest.raises(ConnectionRefusedError):
        host.get("127.0.0.1", 8081)
    next_one = host.start(publish(80, 8081), name="next")
    assert next_one.endpoint.ip_address == "172.17.0.3"
    with pytest.raises(SystemFailure, match=r"Bind for 0\.0\.0\.0:8080 failed: port is already allocated"):
        host.start(publish(80, 8080))
    host.disconnect(endpoint)
    with pytest.raises(ConnectionRefusedError):
        host.get("127.0.0.1", 8080)


def test_a_port_that_was_taken_while_no_daemon_ran_still_leads_to_its_container(host: Host) -> None:
    container = host.start(publish(80, 8080))
    driver = host.kill_driver()
    host.listen(("0.0.0.0", 8080))
    lost = host.run(lambda: driver.restore([host.network], [container.endpoint]))
    assert [(mapping.host_ip, mapping.host_port) for mapping in lost] == [("0.0.0.0", 8080)]
    assert host.get("127.0.0.1", 8080) == "web 172.17.0.1"
    with pytest.raises(SystemFailure, match="port is already allocated"):
        host.start(publish(80, 8080))


def test_interfaces_of_others_on_the_bridge_are_left_alone(host: Host) -> None:
    with Machine() as other:

        def add(name: str, peer: str) -> None:
            with RouteSocket() as route:
                link = route.link("docker0")
                assert link is not None
                route.add_veth(
                    name,
                    master=link.index,
                    peer=peer,
                    peer_namespace_fd=other.fd,
                    peer_mac="02:00:00:00:00:09",
                    mtu=1500,
                )

        stray = bridge.veth_name(new_endpoint_id())
        for number, name in enumerate(("veth1234567", "vethmanualworkx", stray)):
            host.run(lambda name=name, number=number: add(name, f"eth{number}"))  # type: ignore[misc]
        host.run(lambda: host.kill_driver().restore([host.network], []))
        names = host.link_names()
        assert {"veth1234567", "vethmanualworkx"} <= names
        assert stray not in names


def test_rules_that_somebody_flushed_come_back_with_the_next_change(host: Host) -> None:
    host.start(publish(80, 8080), name="first")
    host.run(lambda: nftables.apply(nftables.removal(nftables.IPV4, nat.TABLE)))
    with pytest.raises(ConnectionRefusedError):
        host.get("127.0.0.1", 8080)
    host.start(publish(80, 8081), name="second")
    assert host.get("127.0.0.1", 8080) == "first 172.17.0.1"
    assert host.get("127.0.0.1", 8081) == "second 172.17.0.1"


def test_two_tables_live_side_by_side(host: Host) -> None:
    host.start(publish(80, 8080))
    other = BridgeDriver(table="compatd-other")
    network = dataclasses.replace(host.network, bridge="br-other", subnet="172.30.0.0/24", gateway="172.30.0.1")
    host.run(lambda: other.restore([network], []))
    assert host.get("127.0.0.1", 8080)
    other.close()


def test_many_at_once_get_addresses_and_ports_of_their_own(host: Host) -> None:
    machines = [Machine() for _ in range(12)]
    try:
        with concurrent.futures.ThreadPoolExecutor(6) as pool:
            endpoints = list(pool.map(lambda machine: host.connect(machine, publish(80)), machines))
        assert len({endpoint.ip_address for endpoint in endpoints}) == len(machines)
        assert len({endpoint.ports[0].host_port for endpoint in endpoints}) == len(machines)
        with concurrent.futures.ThreadPoolExecutor(6) as pool:
            list(pool.map(host.disconnect, endpoints))
        assert not {name for name in host.link_names() if name.startswith("veth")}
    finally:
        for machine in machines:
            machine.close()


def test_counters_are_the_container_s(host: Host) -> None:
    container = host.start()
    receiver = host.open(socket.SOCK_DGRAM, ("172.17.0.1", 9))
    sender = container.open(socket.SOCK_DGRAM, ("172.17.0.2", 0))
    for _ in range(10):
        sender.sendto(bytes(1000), ("172.17.0.1", 9))
        receiver.recv(2000)
    counters = host.run(lambda: host.driver.counters(container.endpoint))
    assert counters is not None
    assert counters.tx_bytes > 10_000 > counters.rx_bytes
    assert counters.tx_packets >= 10
    host.disconnect(container.endpoint)
    assert host.run(lambda: host.driver.counters(container.endpoint)) is None


def test_what_cannot_be_had_is_refused(host: Host) -> None:
    with Machine() as container:
        with pytest.raises(NotFound, match="network nope not found"):
            host.connect(container, network="nope")
        with pytest.raises(
            InvalidParameter, match=r"no configured subnet or ip-range contain the IP address 10\.0\.0\.1"
        ):
            host.connect(container, ip="10.0.0.1")
        with pytest.raises(SystemFailure, match="cannot assign requested address"):
            host.connect(container, publish(80, 8080, ip="192.168.77.1"))


def test_the_default_network_keeps_away_from_the_machine_s_routes() -> None:
    with Machine() as machine:
        assert machine.run(lambda: default_network("f" * 64)).subnet == "172.17.0.0/16"
        with outside(machine, host_address="172.17.5.1", address="172.17.5.2", mtu=1400):
            network = machine.run(lambda: default_network("f" * 64))
            assert (network.subnet, network.gateway) == ("172.18.0.0/16", "172.18.0.1")
            assert network.mtu == 1400  # no more than the machine's way out carries
            machine.run(lambda: bridge.ensure("docker0", [ipaddress.ip_interface("10.1.0.1/24")], mtu=1500))
            assert machine.run(lambda: default_network("f" * 64)).subnet == "10.1.0.0/24"
            chosen = machine.run(
                lambda: default_network("f" * 64, bip="10.2.0.5/24", mtu=1300, fixed_cidr="10.2.0.128/25")
            )
            assert (chosen.subnet, chosen.gateway, chosen.mtu) == ("10.2.0.0/24", "10.2.0.5", 1300)
    for bip in ("10.2.0.0/24", "10.2.0.5", "x", "10.2.0.255/24"):
        with pytest.raises(InvalidParameter, match="bridge IP"):
            default_network("f" * 64, bip=bip)


def test_an_interface_that_is_no_bridge_is_not_used() -> None:
    with (
        Machine() as machine,
        outside(machine, host_address="10.9.0.1", address="10.9.0.2"),
        pytest.raises(SystemFailure, match="interface wire0 exists and is not a bridge"),
    ):
        machine.run(lambda: bridge.ensure("wire0", [ipaddress.ip_interface("10.1.0.1/24")], mtu=1500))


def test_the_calling_thread_stays_where_it_is() -> None:
    before = os.stat("/proc/thread-self/ns/net").st_ino
    fd = netns.create()
    try:
        inside = netns.run(fd, lambda: os.stat("/proc/thread-self/ns/net").st_ino)
        assert inside == os.fstat(fd).st_ino != before
        with pytest.raises(ZeroDivisionError):
            netns.run(fd, lambda: 1 // 0)
    finally:
        os.close(fd)
    assert os.stat("/proc/thread-self/ns/net").st_ino == before

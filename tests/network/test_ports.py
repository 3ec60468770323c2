"""Port reservations, in a namespace of the test's own."""

import socket
from collections.abc import Iterator

import pytest

from compatd.errors import SystemFailure
from compatd.network.ports import PortMapping, PortRequest, PortReservations
from tests.network.namespaces import Machine, publish

pytestmark = pytest.mark.root


@pytest.fixture
def machine() -> Iterator[Machine]:
    with Machine() as machine:
        yield machine


@pytest.fixture
def ports() -> Iterator[PortReservations]:
    ports = PortReservations()
    yield ports
    ports.close()


def reserve(machine: Machine, ports: PortReservations, *requests: PortRequest) -> list[PortMapping]:
    return machine.run(lambda: ports.reserve(requests, container_ip="172.17.0.2"))


def shown(mappings: list[PortMapping]) -> list[str]:
    return [
        f"{mapping.host_ip}:{mapping.host_port}->{mapping.container_port}/{mapping.protocol}" for mapping in mappings
    ]


def test_a_fixed_port_is_on_all_addresses_of_both_families(machine: Machine, ports: PortReservations) -> None:
    assert shown(reserve(machine, ports, publish(80, 8080))) == ["0.0.0.0:8080->80/tcp", ":::8080->80/tcp"]
    # The same number of another protocol is another port.
    assert reserve(machine, ports, publish(80, 8080, protocol="udp"))


@pytest.mark.parametrize(
    ("first", "second", "conflict"),
    [
        ("", "", "0.0.0.0"),
        ("", "127.0.0.1", "127.0.0.1"),
        ("127.0.0.1", "", "0.0.0.0"),
        ("127.0.0.1", "127.0.0.1", "127.0.0.1"),
        ("127.0.0.1", "127.0.0.2", None),
    ],
)
def test_conflicts_between_containers(
    machine: Machine, ports: PortReservations, first: str, second: str, conflict: str | None
) -> None:
    reserve(machine, ports, publish(80, 8080, ip=first))
    if conflict is None:
        reserve(machine, ports, publish(80, 8080, ip=second))
        return
    with pytest.raises(SystemFailure) as caught:
        reserve(machine, ports, publish(80, 8080, ip=second))
    assert str(caught.value) == f"Bind for {conflict}:8080 failed: port is already allocated"


def test_a_reserved_port_is_refused_to_programs_and_free_again_afterwards(
    machine: Machine, ports: PortReservations
) -> None:
    mappings = reserve(machine, ports, publish(80, 8080), publish(80, 8080, protocol="udp"))
    # Servers ask for address reuse; that must not let them in.
    with pytest.raises(OSError, match="Address already in use"):
        machine.listen(("0.0.0.0", 8080))
    with pytest.raises(OSError, match="Address already in use"):
        machine.open(socket.SOCK_DGRAM, ("127.0.0.1", 8080))
    for _ in range(2):
        ports.release(mappings)
    machine.listen(("0.0.0.0", 8080))
    machine.open(socket.SOCK_DGRAM, ("127.0.0.1", 8080))


def test_former_connections_are_no_obstacle(machine: Machine, ports: PortReservations) -> None:
    machine.serve(8080)
    assert machine.get("127.0.0.1", 8080)  # the server closed first: its side lingers in TIME_WAIT
    machine.end_servers()
    assert reserve(machine, ports, publish(80, 8080))


def test_a_refused_connection_does_not_hang(machine: Machine, ports: PortReservations) -> None:
    reserve(machine, ports, publish(80, 8080))
    with pytest.raises(ConnectionRefusedError):
        machine.get("127.0.0.1", 8080)


def test_the_program_s_port_and_the_address_that_is_not_there(machine: Machine, ports: PortReservations) -> None:
    machine.serve(8080)
    for request, text in (
        (publish(80, 8080), "0.0.0.0:8080:172.17.0.2:80/tcp: address already in use"),
        (publish(81, 9092, ip="192.168.77.1"), "192.168.77.1:9092:172.17.0.2:81/tcp: cannot assign requested address"),
    ):
        with pytest.raises(SystemFailure) as caught:
            reserve(machine, ports, request)
        assert str(caught.value) == f"failed to bind host port for {text}"


def test_dynamic_ports_go_on_from_the_last_one(machine: Machine, ports: PortReservations) -> None:
    machine.serve(32769)
    chosen = [reserve(machine, ports, publish(80))[0].host_port for _ in range(2)]
    assert chosen == [32768, 32770]
    both = reserve(machine, ports, publish(80), publish(80, protocol="udp"))
    assert len({mapping.host_port for mapping in both if mapping.protocol == "tcp"}) == 1


def test_a_range_takes_the_first_free_port_and_runs_out(machine: Machine, ports: PortReservations) -> None:
    machine.serve(7001)
    chosen = [reserve(machine, ports, publish(80, 7000, last=7002))[0].host_port for _ in range(2)]
    assert chosen == [7000, 7002]
    machine.end_servers()
    assert reserve(machine, ports, publish(80, 7000, last=7002))[0].host_port == 7001
    with pytest.raises(SystemFailure, match=r"^all ports are allocated$"):
        reserve(machine, ports, publish(80, 7000, last=7002))


def test_all_or_nothing(machine: Machine, ports: PortReservations) -> None:
    reserve(machine, ports, publish(80, 7001))
    with pytest.raises(SystemFailure):
        reserve(machine, ports, publish(80, 7000), publish(81, 7001))
    assert reserve(machine, ports, publish(80, 7000))


def test_a_fixed_port_is_not_taken_by_a_chosen_one_of_the_same_container(
    machine: Machine, ports: PortReservations
) -> None:
    mappings = reserve(machine, ports, publish(80), publish(81, 32768))
    assert {(mapping.container_port, mapping.host_port) for mapping in mappings} == {(80, 32769), (81, 32768)}

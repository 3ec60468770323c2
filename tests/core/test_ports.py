"""Ports as requests write them."""

import contextlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compatd.core import ports
from compatd.core.container import ContainerRecord
from compatd.errors import InvalidParameter
from compatd.network.ports import PortRequest
from compatd.wire.types.containers import ContainerConfig, HostConfig, PortBinding, PortMap

pytestmark = pytest.mark.unit


def record(exposed: list[str], bindings: PortMap | None = None, *, everything: bool = False) -> ContainerRecord:
    return ContainerRecord(
        id="c" * 64,
        name="c",
        created_ns=0,
        image_id="",
        image="",
        layers=(),
        config=ContainerConfig(exposed_ports={port: {} for port in exposed}),
        host_config=HostConfig(port_bindings=bindings, publish_all_ports=everything),
        networks={},
    )


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("80", ("80", "tcp")),
        ("80/udp", ("80", "udp")),
        ("80/", ("80", "tcp")),
        ("80/tcp/udp", ("80", "tcp")),
        ("/tcp", ("", "")),
        ("", ("", "")),
    ],
)
def test_split(text: str, parts: tuple[str, str]) -> None:
    assert ports.split(text) == parts


@given(st.text(st.sampled_from("0123456789-/ a٣_+"), max_size=12) | st.text(max_size=6))
def test_ranges_are_read_or_refused(text: str) -> None:
    with contextlib.suppress(ValueError):
        first, last = ports.parse_range(text)
        assert 0 <= first <= last <= 65535
        assert all(re.fullmatch("[0-9]*", part) for part in text.split("-")[:2])


@given(st.integers(0, 65535), st.integers(0, 65535))
def test_ranges(first: int, last: int) -> None:
    if first <= last:
        assert ports.parse_range(f"{first}-{last}") == (first, last)
    else:
        with pytest.raises(ValueError, match="-"):
            ports.parse_range(f"{first}-{last}")


@pytest.mark.parametrize(
    ("bindings", "told"),
    [
        ({"80-82/tcp": None}, "80-82"),
        ({"65536": None}, "65536"),
        ({"x": None}, "x"),
        ({"80/tcp": [PortBinding(host_port="90-80")]}, "90-80"),
        ({"80/tcp": [PortBinding(host_port=" 80")]}, " 80"),
    ],
)
def test_bad_bindings(bindings: PortMap, told: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        ports.check_bindings(bindings)
    assert str(caught.value) == f'invalid port specification: "{told}"'


def test_what_is_lenient_in_bindings() -> None:
    for key in ("80/foo", "", "/tcp", "80/", "0"):
        ports.check_bindings({key: [PortBinding(host_port="8000-8010/x")]})


def test_exposed_ports_are_shown_as_numbers() -> None:
    assert ports.exposed_ports(record(["80", "80/TCP", "53/udp", "x", "80-82", "7/foo", ""])) == [
        "80/tcp",
        "53/udp",
        "0/tcp",
        "7/0",
        "0/0",
    ]


def test_only_exposed_ports_are_published() -> None:
    bindings: PortMap = {
        "80/tcp": [PortBinding(host_ip="127.0.0.1", host_port="8080-8090"), PortBinding(host_ip="x")],
        "81/tcp": [PortBinding(host_port="81")],
    }
    assert ports.port_requests(record(["80/tcp", "82/udp"], bindings)) == (
        PortRequest(container_port=80, host_ip="127.0.0.1", host_first=8080, host_last=8090),
        PortRequest(container_port=80),
    )
    assert ports.port_requests(record(["82/udp"], bindings, everything=True)) == (
        PortRequest(container_port=82, protocol="udp"),
    )

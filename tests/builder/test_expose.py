import pytest

from compatd.builder.expose import parse_ports
from compatd.errors import InvalidParameter

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("word", "ports"),
    [
        ("80", ["80/tcp"]),
        ("80/UDP", ["80/udp"]),
        ("80/", ["80/tcp"]),
        ("8-10/sctp", ["8/sctp", "9/sctp", "10/sctp"]),
        ("80:81", ["81/tcp"]),
        ("127.0.0.1:80:81/udp", ["81/udp"]),
        ("127.0.0.1::81", ["81/tcp"]),
        ("[::1]:80:81", ["81/tcp"]),
        ("8000-8010:81", ["81/tcp"]),
    ],
)
def test_reads(word: str, ports: list[str]) -> None:
    assert parse_ports([word]) == ports


@pytest.mark.parametrize(
    ("word", "error"),
    [
        ("x", "Invalid containerPort: x"),
        ("99999", "Invalid containerPort: 99999"),
        ("10-5", "Invalid containerPort: 10-5"),
        ("\u0663", "Invalid containerPort: \u0663"),
        ("80/x", "Invalid proto: x"),
        ("/tcp", "No port specified: /tcp<empty>"),
        ("x:80", "Invalid hostPort: x"),
        ("1-3:80-81", "Invalid ranges specified for container and host Ports: 80-81 and 1-3"),
        ("nowhere:80:81", "Invalid ip address: nowhere"),
    ],
)
def test_refuses(word: str, error: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        parse_ports([word])
    assert str(caught.value) == error

"""Log drivers' options. What the engine answers is in tests/client/test_logs.py; here is what lies between."""

import contextlib
import socket
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compatd.errors import InvalidParameter
from compatd.logs import drivers, syslog
from compatd.shim.spec import Syslog
from compatd.tasks import Workers

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("driver", "options", "merged"),
    [
        ("", {}, {"max-size": "1m", "cache-disabled": "true", "mode": "blocking"}),
        ("json-file", {"max-size": "2m"}, {"max-size": "2m", "cache-disabled": "true", "mode": "blocking"}),
        ("syslog", {"tag": "x"}, {"tag": "x", "cache-disabled": "true"}),
    ],
)
def test_the_engine_s_options_are_for_its_driver(driver: str, options: dict[str, str], merged: dict[str, str]) -> None:
    defaults = {"max-size": "1m", "cache-disabled": "true", "mode": "blocking"}
    assert drivers.merge(driver, options, "json-file", defaults) == merged


@pytest.mark.parametrize(
    ("text", "binary", "size"),
    [
        ("10", False, 10),
        ("10k", False, 10_000),
        ("10k", True, 10_240),
        ("1.5MB", False, 1_500_000),
        ("10 KiB", True, 10_240),
        ("7b", False, 7),
        (".5g", False, 500_000_000),
        ("9999999999p", False, -(2**63)),
    ],
)
def test_sizes(text: str, binary: bool, size: int) -> None:
    assert drivers.parse_size(text, binary=binary) == size


@given(st.text(alphabet="0123456789. kmgtpbi-+_e\u0663", max_size=8))
@settings(max_examples=150, deadline=None)
def test_any_size_is_one_or_an_error(text: str) -> None:
    with contextlib.suppress(ValueError):
        assert isinstance(drivers.parse_size(text), int)


@pytest.mark.parametrize(
    ("driver", "options", "readable"),
    [
        ("none", {}, False),
        ("syslog", {}, True),
        ("syslog", {"cache-disabled": "1"}, False),
        ("local", {"cache-disabled": "1"}, True),
    ],
)
def test_what_can_be_read(driver: str, options: dict[str, str], readable: bool) -> None:
    assert drivers.is_readable(driver, options) is readable


def test_waiting_or_losing() -> None:
    assert drivers.buffer_bytes({}) is None
    assert drivers.buffer_bytes({"mode": "non-blocking"}) == 1_000_000
    assert drivers.buffer_bytes({"mode": "non-blocking", "max-buffer-size": "4k"}) == 4096


@pytest.mark.parametrize(
    ("url", "network", "shown"),
    [
        ("udp://host", "udp", "host:514"),
        ("tcp://host:9", "tcp", "host:9"),
        ("tcp+tls://[::1]:9", "tcp+tls", "[::1]:9"),
        ("TCP://user@h:1/path?query", "tcp", "h:1"),
        ("unixgram:///dev/null", "unixgram", "/dev/null"),
    ],
)
def test_addresses(url: str, network: str, shown: str) -> None:
    address = syslog.parse_address(url)
    assert (address.network, str(address)) == (network, shown)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("foo", "unsupported scheme: ''"),
        ("tcp://[::1", "parse \"tcp://[::1\": missing ']' in host"),
        ("%zz", 'parse "%zz": invalid URL escape "%zz"'),
        (":foo", 'parse ":foo": missing protocol scheme'),
        ("unix://", "stat : no such file or directory"),
    ],
)
def test_addresses_that_are_none(url: str, message: str) -> None:
    with pytest.raises(InvalidParameter) as raised:
        drivers.check("syslog", {"syslog-address": url})
    assert str(raised.value) == message


@pytest.mark.parametrize(("text", "shifted"), [("", 24), ("kern", 0), ("local7", 23 << 3), ("23", 23 << 3), ("+1", 8)])
def test_facilities(text: str, shifted: int) -> None:
    assert syslog.parse_facility(text) == shifted


async def test_connecting(tmp_path: Path) -> None:
    workers = Workers(1)

    async def connect(url: str, **options: str) -> tuple[Syslog, socket.socket | None]:
        wanted = {"syslog-address": url, **options}
        return await syslog.connect(wanted, syslog.describe(wanted, "t"), workers)

    try:
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
            document, connection = await connect(f"tcp://127.0.0.1:{port}")
            assert connection is not None
            assert document["addresses"] == [("127.0.0.1", port)] == [connection.getpeername()]
            connection.close()
            server.settimeout(5)
            server.accept()[0].close()
        with pytest.raises(ValueError, match=f"^dial tcp 127.0.0.1:{port}: connect: connection refused$"):
            await connect(f"tcp+tls://127.0.0.1:{port}")
        with pytest.raises(ValueError, match=r"^dial udp: address 99999: invalid port$"):
            await connect("udp://127.0.0.1:99999")
        missing = str(tmp_path / "missing")
        with pytest.raises(ValueError, match=r"could not read CA certificate .*: no such file or directory"):
            await connect(f"tcp+tls://127.0.0.1:{port}", **{"syslog-tls-ca-cert": missing})
        with pytest.raises(ValueError, match=r"^Could not load X509 key pair: open .*: no such file or directory$"):
            await connect(f"tcp+tls://127.0.0.1:{port}", **{"syslog-tls-cert": missing})
    finally:
        workers.close()

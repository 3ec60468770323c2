"""What all parsers of clients' words have in common: any text is read or refused in the kind of error that is said,
and numbers are of ASCII digits, without underscores or white space around them."""

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compatd.builder import expose
from compatd.config import ConfigError, parse_address_pool, parse_arguments, parse_host
from compatd.core import mounts, network_request, ports, translation
from compatd.core.supervisor import parse_signal
from compatd.core.verification import check_config
from compatd.errors import EngineError
from compatd.logs import drivers
from compatd.runtime import devices, seccomp_document
from compatd.shim import failures, users
from compatd.volumes import options
from compatd.wire.types.containers import ContainerConfig
from compatd.wire.types.networks import IPAMConfig

pytestmark = pytest.mark.unit

WORDS = st.lists(
    st.sampled_from(
        [
            *"0129+-_.:/,=[]% kmg\n\0٣é",
            *"80 /tcp /udp SIG RTMIN KILL ro rw nocopy rslave 10.0.0.0 /24 :: fe80::1 *: // ..".split(),
            *'base= size= tcp:// nofile= seccomp= no-new-privileges {"defaultAction": "x"} unix:// host'.split(),
            *("c ", " rwm", "9" * 25, "9" * 5000),
        ]
    ),
    max_size=6,
).map("".join)


def _subnets(text: str) -> None:
    for subnet in (text, "10.0.0.0/8"):
        entry = IPAMConfig(subnet=subnet, ip_range=text, gateway=text, auxiliary_addresses={"a": text})
        network_request.check_subnets([entry], enable_ipv6=True)


# By the name of each: how to read a text, and how a bad one is refused.
PARSERS: dict[str, tuple[Callable[[str], object], type[Exception]]] = {
    "address pool": (parse_address_pool, ValueError),
    "bind": (mounts.read_bind, EngineError),
    "configuration": (lambda text: check_config(ContainerConfig(working_dir=text, env=[text])), EngineError),
    "count": (drivers.parse_count, ValueError),
    "device rule": (devices.parse_rule, EngineError),
    "exposed port": (lambda text: expose.parse_ports([text]), EngineError),
    "host": (parse_host, ValueError),
    "kernel version": (seccomp_document.version, EngineError),
    "port": (ports.parse, ValueError),
    "port range": (ports.parse_range, ValueError),
    "seccomp profile": (seccomp_document.decode, EngineError),
    "security option": (lambda text: translation.read_security([text]), EngineError),
    "shm size": (lambda text: parse_arguments([f"--default-shm-size={text}"]), ConfigError),
    "signal": (parse_signal, EngineError),
    "size": (drivers.parse_size, ValueError),
    "binary size": (lambda text: drivers.parse_size(text, binary=True), ValueError),
    "subnet": (_subnets, EngineError),
    "ulimit": (lambda text: parse_arguments([f"--default-ulimit={text}"]), ConfigError),
    "user": (lambda text: users.resolve(text, [text], b"a:x:1:1\n", b"g:x:5:"), failures.Failed),
    "volume's device": (
        lambda text: options.check_options("x", {"type": "cifs", "device": text, "o": text}),
        EngineError,
    ),
    "volume's size": (lambda text: options.check_options("x", {"size": text}), EngineError),
    "volumes from": (mounts.read_volumes_from, EngineError),
}
NUMBERS = ("count", "device rule", "exposed port", "kernel version", "port", "port range", "signal", "size", "subnet")


@pytest.mark.parametrize("name", PARSERS)
@given(text=WORDS | st.text(max_size=10))
@settings(max_examples=40, deadline=None)
def test_any_text_is_read_or_refused(name: str, text: str) -> None:
    parse, refused = PARSERS[name]
    message = ""
    try:
        parse(text)
    except UnicodeError as error:
        raise AssertionError from error  # it is a ValueError, too
    except refused as error:
        message = str(error)
    assert "4300" not in message  # Python's own limit of digits


@pytest.mark.parametrize("name", NUMBERS)
@given(
    text=st.sampled_from(["8", "80", "80-90", "c 1:3 rwm", "4.5", "10.0.0.0/8", "SIGRTMIN+3"]),
    at=st.integers(0, 12),
    what=st.sampled_from(["٣", "\uff11", "_", "\n", "\t", "\0", "\u2028"]),
)
@settings(max_examples=40, deadline=None)
def test_numbers_are_plain(name: str, text: str, at: int, what: str) -> None:
    parse, refused = PARSERS[name]
    with pytest.raises(refused):
        parse(text[:at] + what + text[at:])


@given(st.integers(0, 65535), st.integers(0, 65535), st.sampled_from(["tcp", "udp", "sctp"]))
@settings(max_examples=40, deadline=None)
def test_ports_are_as_many_as_the_range_has(first: int, last: int, protocol: str) -> None:
    text = f"{first}-{min(last, first + 20)}/{protocol}"
    if last < first:
        with pytest.raises(EngineError):
            expose.parse_ports([text])
        return
    last = min(last, first + 20)
    assert expose.parse_ports([text]) == [f"{number}/{protocol}" for number in range(first, last + 1)]
    assert ports.parse_range(ports.split(text)[0]) == (first, last)


@given(st.integers(0, 2**20), st.sampled_from(["", "k", "m", "g"]), st.sampled_from(["", "b", "ib"]))
@settings(max_examples=40, deadline=None)
def test_sizes_are_numbers_times_units(number: int, unit: str, rest: str) -> None:
    power = {"": 0, "k": 1, "m": 2, "g": 3}[unit]
    rest = rest if unit else rest.replace("ib", "b")
    for text in (f"{number}{unit}{rest}", f"{number} {unit}{rest}".upper()):
        for base, binary in ((1000, False), (1024, True)):
            assert drivers.parse_size(text, binary=binary) == number * base**power


@given(st.sampled_from(["", "a", "/a", "/a//b", "/../c", "//d/./e/"]), st.sampled_from(["", ":ro", ":rw,z", ":rslave"]))
@settings(max_examples=30, deadline=None)
def test_clean_binds_stay_as_they_are(path: str, mode: str) -> None:
    point = mounts.read_bind(f"/src{path}:/dst{path}{mode}")
    again = mounts.read_bind(f"{point.source}:{point.target}{mode}")
    assert again == point

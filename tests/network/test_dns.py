"""The few DNS messages that are read and written; what a resolver makes of them is tested in client/test_dns."""

import ipaddress
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compatd.network import dns

pytestmark = pytest.mark.unit


def query(name: str, kind: int = dns.A, *, flags: int = 0x0100, questions: int = 1, opt: int = 0) -> bytes:
    head = struct.pack("!HHHHHH", 7, flags, questions, 0, 0, 1 if opt else 0)
    tail = b"\0" + struct.pack("!HHIH", dns.OPT, opt, 0, 0) if opt else b""
    return head + dns.encode_name(name) + struct.pack("!HH", kind, dns.IN) + tail


def test_a_query_and_its_reply() -> None:
    question = dns.parse(query("Web.mine"))
    assert question is not None
    assert (question.name, question.type, question.udp_bytes) == ("Web.mine", dns.A, 512)
    addresses = [ipaddress.ip_address(text) for text in ("10.0.0.2", "fd00::2")]
    reply = dns.reply(question, dns.NOERROR, dns.Answer(addresses=addresses))
    assert struct.unpack_from("!HHHHHH", reply) == (7, 0x8180, 1, 1, 0, 0)
    assert reply.endswith(struct.pack("!HHIH", dns.A, dns.IN, 600, 4) + bytes((10, 0, 0, 2)))
    assert dns.answers(reply, question)
    assert not dns.answers(query("Web.mine"), question)  # a query is no reply
    other = dns.parse(query("other"))
    assert other is not None
    assert not dns.answers(reply, other)


def test_what_does_not_fit_is_asked_for_by_tcp() -> None:
    question = dns.parse(query("web", opt=1232))
    assert question is not None
    assert question.udp_bytes == 1232
    many = dns.Answer(addresses=[ipaddress.ip_address(f"10.0.{index}.1") for index in range(200)])
    reply = dns.reply(question, dns.NOERROR, many, limit=question.udp_bytes)
    assert len(reply) <= 1232
    assert reply[2] & 0x02
    short = dns.truncated(dns.reply(question, dns.NOERROR, many))
    assert short == reply[:4] + struct.pack("!HHHH", 1, 0, 0, 0) + question.raw


@pytest.mark.parametrize(
    "message",
    [
        b"",
        query("web")[:-1],
        query("web", flags=0x8100),
        query("web", flags=0x2900),
        query("web", questions=2),
        query("web")[:12] + b"\xc0\x0c\0\1\0\1",
        query(".".join(["x" * 60] * 5)),
    ],
    ids=["empty", "short", "reply", "update", "two questions", "compressed", "long"],
)
def test_what_is_no_query(message: bytes) -> None:
    assert dns.parse(message) is None


@given(st.binary(max_size=80))
@settings(max_examples=50)
def test_nothing_that_comes_harms(junk: bytes) -> None:
    for message in (junk, query("web")[:12] + junk):
        question = dns.parse(message)
        if question is not None:
            assert dns.parse(message[:12] + question.raw) is not None
        dns.rcode(message)


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("2.0.17.172.in-addr.arpa", "172.17.0.2"),
        (f"2{'.0' * 23}.5.0.0.0.0.0.d.f.ip6.arpa", "fd00:5::2"),
        ("2.0.17.in-addr.arpa", None),
        ("x.0.17.172.in-addr.arpa", None),
        ("web", None),
    ],
)
def test_reverse_names(name: str, address: str | None) -> None:
    assert dns.reverse_address(name) == (ipaddress.ip_address(address) if address else None)

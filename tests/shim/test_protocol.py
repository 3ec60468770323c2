"""Datagrams: whole, with their descriptors, whatever their size."""

import os
import socket
from collections.abc import Iterator

import pytest

from compatd.shim import protocol

pytestmark = pytest.mark.unit

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield ours, theirs


@pytest.mark.parametrize("size", [0, 100, protocol.INLINE_BYTES, 1 << 20])
def test_messages_arrive_with_their_descriptors(pair: Pair, size: int) -> None:
    read, write = os.pipe()
    protocol.send(pair[0], {"type": "x", "text": "a" * size}, [read, write])
    received = protocol.receive(pair[1])
    assert received is not None
    message, fds = received
    assert (message["type"], len(message["text"])) == ("x", size)
    with fds:
        copy = fds.steal(1)
        os.write(copy, b"through")
        assert os.read(read, 10) == b"through"
        assert not os.get_inheritable(copy)
    for fd in (read, write, copy):
        os.close(fd)


def test_the_peers_end(pair: Pair) -> None:
    pair[0].close()
    assert protocol.receive(pair[1]) is None


@pytest.mark.parametrize("data", [b"nonsense", b"[]", b"{}", b"memfd"])
def test_what_is_no_message_leaves_no_descriptor(pair: Pair, data: bytes) -> None:
    before = set(os.listdir("/proc/self/fd"))
    pair[0].send(data)
    with pytest.raises((ValueError, IndexError)):
        protocol.receive(pair[1])
    assert set(os.listdir("/proc/self/fd")) == before

"""Frames, and what waits are answered with."""

import json
import os
import socket

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compatd.wire.streams import ClientSocket, Frames, frame, wait_result

pytestmark = pytest.mark.unit


def test_frame() -> None:
    assert frame(2, b"abc") == b"\x02\0\0\0\0\0\0\x03abc"


def test_wait_result_is_a_whole_chunked_body() -> None:
    size, _, rest = wait_result(137).partition(b"\r\n")
    assert rest[int(size, 16) :] == b"\r\n0\r\n\r\n"
    assert json.loads(rest[: int(size, 16)]) == {"StatusCode": 137}
    assert b'"Error":{"Message":"x"}' in wait_result(1, "x")


def test_a_client_socket_is_owned() -> None:
    ours, theirs = socket.socketpair()
    with ours:
        client = ClientSocket(fd=theirs.detach())
        with client.duplicate() as copy:
            client.close()
            copy.sendall(b"x")
        assert ours.recv(2) == b"x"
        assert ours.recv(1) == b""
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(client.fd)


@settings(max_examples=30)
@given(st.lists(st.tuples(st.sampled_from([1, 2, 3]), st.binary(max_size=9))), st.integers(1, 9))
def test_frames_come_apart_however_they_arrive(parts: list[tuple[int, bytes]], step: int) -> None:
    stream = b"".join(frame(*part) for part in parts)
    frames = Frames()
    found = [part for at in range(0, len(stream), step) for part in frames.feed(stream[at : at + step])]
    assert found == parts

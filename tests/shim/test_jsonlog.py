"""The json-file log's records, byte for byte as Docker 28.5.2 writes it."""

import json
import time
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compatd.shim.jsonlog import Encoder, timestamp
from compatd.shim.lines import LINE_BYTES, Lines

pytestmark = pytest.mark.unit

NOW = 1_700_000_000_123_456_000


def records(data: bytes, stream: str = "stdout") -> list[bytes]:
    lines, encoder = Lines(), Encoder(stream, {})
    pieces = [*lines.feed(data), *lines.end()]
    return b"".join(encoder.encode(piece, NOW) for piece, _ in pieces).splitlines(keepends=True)


def test_one_record_as_docker_writes_it() -> None:
    data = b'a\tb\x01\r<>&"\\\x7f \xe2\x80\xa8 \xe2\x82 \xff \xc3\xa9\n'
    written = (
        rb'{"log":"a\u0009b\u0001\r\u003c\u003e\u0026\"\\'
        + b"\x7f "
        + rb"\u2028 \ufffd\ufffd \ufffd "
        + b"\xc3\xa9"
        + rb'\n","stream":"stdout","time":"2023-11-14T22:13:20.123456Z"}'
        + b"\n"
    )
    assert records(data) == [written]


def test_attributes_stand_between_stream_and_time() -> None:
    written = Encoder("stderr", {"foo": 'b"r', "E": "1"}).encode(b"x\n", NOW)
    assert written.startswith(rb'{"log":"x\n","stderr'[:11])
    assert rb'"stream":"stderr","attrs":{"E":"1","foo":"b\"r"},"time":' in written
    assert json.loads(written)["attrs"] == {"foo": 'b"r', "E": "1"}


@pytest.mark.parametrize(
    ("lengths", "ended", "expected"),
    [
        ([40000], True, [16384, 16384, 7232 + 1]),
        ([LINE_BYTES], True, [16384, 1]),  # the newline comes too late
        ([LINE_BYTES - 1], True, [16384]),
        ([5], False, [5]),
        ([3, 40000, 2], True, [4, 16384, 16384, 7233, 3]),
    ],
)
def test_long_and_unfinished_lines(lengths: list[int], ended: bool, expected: list[int]) -> None:
    data = b"\n".join(b"x" * length for length in lengths) + (b"\n" if ended else b"")
    assert [len(json.loads(record)["log"]) for record in records(data)] == expected


@given(
    st.lists(st.text(max_size=10) | st.sampled_from(["\n", "x" * 5000, "y" * 9000]), max_size=12),
    st.lists(st.integers(0, 50000), max_size=6),
)
@settings(max_examples=150, deadline=None)
def test_decode_gives_back_what_was_written_however_it_came(texts: list[str], cuts: list[int]) -> None:
    raw = "".join(texts).encode()
    lines, encoder, written = Lines(), Encoder("stdout", {}), b""
    for begin, end in pairwise([0, *sorted(cuts), len(raw) + 50000]):
        written += b"".join(encoder.encode(piece, NOW) for piece, _ in lines.feed(raw[begin:end]))
    written += b"".join(encoder.encode(piece, NOW) for piece, _ in lines.end())
    assert written == b"".join(records(raw))
    whole = "".join(json.loads(record)["log"] for record in written.splitlines())
    if max(map(len, raw.split(b"\n"))) < LINE_BYTES:  # otherwise a cut may go through a character
        assert whole == raw.decode()


@given(st.integers(0, 4_000_000_000_000_000_000))
def test_timestamps_have_no_trailing_zeros(now_ns: int) -> None:
    text = timestamp(now_ns)
    seconds, _, fraction = text.removesuffix("Z").partition(".")
    assert not fraction.endswith("0")
    assert time.strptime(seconds, "%Y-%m-%dT%H:%M:%S")
    assert int((fraction or "0").ljust(9, "0")) == now_ns % 1_000_000_000


def test_parts_of_a_line_share_its_time() -> None:
    lines, encoder = Lines(), Encoder("stdout", {})
    pieces = [*lines.feed(b"short\n" + b"x" * 20000), *lines.feed(b"x" * 20000 + b"\nshort\n"), *lines.end()]
    parts = [partial for _, partial in pieces]
    assert [part and (part.ordinal, part.last) for part in parts] == [None, (1, False), (2, False), (3, True), None]
    assert len({part.id for part in parts if part}) == 1
    begun = parts[1]
    assert begun is not None
    assert timestamp(begun.time_ns).encode() in encoder.encode(*pieces[3][:1], NOW, parts[3])

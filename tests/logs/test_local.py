"""The local driver's files, byte for byte as Docker 28.5.2 has them, and when they are broken."""

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compatd.logs.files import Selection, records
from compatd.logs.local import Local
from compatd.shim.lines import LINE_BYTES, Lines
from compatd.shim.locallog import Encoder, varint, whole_bytes

pytestmark = pytest.mark.unit

NOW = 1_700_000_000_123_456_789
TEXTS = st.lists(
    st.sampled_from(["\n", "a\n", "\0\0\0\x10\n\x06stdout\x10", "x" * 200, "y" * 5000, "z" * 20000, "é\n\n"]),
    max_size=12,
)


def encode(data: bytes, stream: str = "stdout", now_ns: int = NOW) -> bytes:
    lines, encoder = Lines(), Encoder(stream, {})
    pieces = [*lines.feed(data), *lines.end()]
    return b"".join(encoder.encode(piece, now_ns, partial) for piece, partial in pieces)


def test_a_record_as_docker_writes_it() -> None:
    message = b"\x0a\x06stderr\x10" + varint(NOW) + b"\x1a\x02hi"
    size = len(message).to_bytes(4, "big")
    assert encode(b"hi\n", "stderr") == size + message + size
    assert Local().decode(encode(b"\n")).texts == [b"\n"]


def test_a_long_line_is_parts() -> None:
    lines = Local().decode(encode(b"x" * 40000 + b"\nend"))
    assert [len(text) for text in lines.texts] == [LINE_BYTES, LINE_BYTES, 40000 - 2 * LINE_BYTES + 1, 3]
    assert len(set(lines.times[:3])) == 1
    lines = Local().decode(encode(b"x" * LINE_BYTES + b"\n"))
    assert [len(text) for text in lines.texts] == [LINE_BYTES, 1]


@given(TEXTS, st.integers(0, 2**62))
@settings(max_examples=60, deadline=None)
def test_decode_gives_back_what_was_written(texts: list[str], now_ns: int) -> None:
    raw = "".join(texts).encode()
    data = encode(raw, now_ns=now_ns)
    assert b"".join(Local().decode(data).texts) == raw
    assert whole_bytes(data) == len(data) == Local().whole_bytes(data)


@given(texts=TEXTS, count=st.integers(0, 12), cut=st.integers(1, 60))
@settings(max_examples=60, deadline=None)
def test_tail_and_what_is_broken(
    texts: list[str], count: int, cut: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    codec, path = Local(), tmp_path_factory.mktemp("local") / "log"
    good, torn, more = encode("".join(texts).encode()), encode(b"torn" * 9 + b"\n"), encode(b"1\n2\n")
    for data, lost in ((good + more, False), (good + torn[:cut] + more, cut < len(torn))):
        path.write_bytes(data)
        everything = [record.line for record in records(str(path), Selection(), codec)]
        if lost:
            assert everything in ([*codec.decode(good).texts, b"1\n", b"2\n"], codec.decode(good).texts)
        fd = os.open(path, os.O_RDONLY)
        offset, left = codec.seek_tail(fd, count)
        os.close(fd)
        assert left == min(count, len(everything))
        assert codec.decode(data[offset:]).texts == everything[len(everything) - left :]


@given(st.binary(max_size=300))
@settings(max_examples=150, deadline=None)
def test_anything_may_be_in_the_file(data: bytes) -> None:
    Local().decode(data)
    Local().decode(len(data).to_bytes(4, "big") + data + len(data).to_bytes(4, "big"))


def test_what_a_container_writes_is_never_taken_for_a_record(tmp_path: Path) -> None:
    """However the file is cut into chunks."""
    forged = encode(b"forged\n")
    data = encode(b"a" * 3000 + forged.replace(b"\n", b"\0") + b"\n" + b"b" * 3000 + forged[:-5] + b"\n")
    codec = Local()
    for chunk in (64, 1000, 4096):
        rest, texts = b"", list[bytes]()
        for at in range(0, len(data), chunk):
            rest += data[at : at + chunk]
            end = codec.whole_bytes(rest)
            texts += codec.decode(rest[:end]).texts
            rest = rest[end:]
        assert texts == codec.decode(data).texts
        assert b"forged\n" not in texts

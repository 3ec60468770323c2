"""The json-file log, byte for byte as Docker 28.5.2 writes it."""

import gzip
import json
import os
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compatd.shim.logfile import LINE_BYTES, Encoder, Lines, LogFile, timestamp
from compatd.shim.spec import Log

pytestmark = pytest.mark.unit

NOW = 1_700_000_000_123_456_000


def records(data: bytes, stream: str = "stdout") -> list[bytes]:
    lines, encoder = Lines(), Encoder(stream, {})
    pieces = [*lines.feed(data), lines.end()]
    return b"".join(encoder.encode(piece, NOW) for piece in pieces if piece).splitlines(keepends=True)


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
        written += b"".join(encoder.encode(piece, NOW) for piece in lines.feed(raw[begin:end]))
    if rest := lines.end():
        written += encoder.encode(rest, NOW)
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


def log_file(path: Path, **options: Any) -> tuple[LogFile, list[Iterator[None]]]:
    later: list[Iterator[None]] = []
    log = Log(driver="json-file", path=str(path))
    log.update(options)  # type: ignore[typeddict-item]
    return LogFile(log, later.append), later


def test_rotation_keeps_records_whole_and_in_order(tmp_path: Path) -> None:
    log, _ = log_file(tmp_path / "log", max_size=200, max_file=3)
    log.write("stdout", b"".join(b"line %d\n" % number for number in range(20)))
    log.close()
    kept = [tmp_path / "log.2", tmp_path / "log.1", tmp_path / "log"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "log.1", "log.2"]
    lines = [json.loads(record)["log"] for path in kept for record in path.read_bytes().splitlines()]
    assert lines == [f"line {number}\n" for number in range(20 - len(lines), 20)]
    assert all(200 <= path.stat().st_size < 300 for path in kept[:2])  # the record that reaches the limit fits in


def test_one_file_is_cut_instead(tmp_path: Path) -> None:
    log, _ = log_file(tmp_path / "log", max_size=200)
    log.write("stdout", b"x\n" * 1000)
    log.close()
    assert [path.name for path in tmp_path.iterdir()] == ["log"]
    assert (tmp_path / "log").stat().st_size <= 200 + 100


def test_compression_in_slices(tmp_path: Path) -> None:
    log, later = log_file(tmp_path / "log", max_size=400_000, max_file=2, compress=True)
    log.write("stdout", b"word " * 100 + b"\n")
    for _ in range(800):
        log.write("stdout", b"word " * 100 + b"\n")
    assert len(later) == 1
    slices = sum(1 for _ in later[0])
    assert slices > 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "log.1.gz"]
    content = gzip.decompress((tmp_path / "log.1.gz").read_bytes())
    assert len(content) >= 400_000
    assert all(json.loads(record)["stream"] == "stdout" for record in content.splitlines())
    log.close()


def test_it_goes_on_after_a_failed_write(tmp_path: Path) -> None:
    log, _ = log_file(tmp_path / "log")
    read, write = os.pipe()
    os.close(read)
    os.dup2(write, log._fd)
    os.close(write)
    log.write("stdout", b"lost\n")
    log.write("stderr", b"lost too\n")
    log.close()

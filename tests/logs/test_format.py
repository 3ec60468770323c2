"""The codec of json-file lines: what a JSON parser reads, and what Docker's logs endpoint writes."""

import json
import struct
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compatd.logs import format as log_format
from compatd.logs.format import Rendering, decode, format_time, parse_time, render

pytestmark = pytest.mark.unit

TEXTS = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=40) | st.sampled_from(
    [
        '","stream":"stdout","time":"',
        '{"log":"',
        "\\n",
        "\\\\n",
        "\x00",
        "\x01",
        "\u2028",
        "<&>",
        "é€😀",
        '"}\n{"log":"',
        "\x1b[1m",
    ]
)
TIMES = st.integers(min_value=0, max_value=4_000_000_000 * 10**9)
MESSAGES = st.tuples(
    TEXTS,
    st.sampled_from(["stdout", "stderr"]),
    TIMES,
    st.none() | st.dictionaries(st.text(max_size=5), st.text(max_size=5), min_size=1, max_size=2),
)


def encode(
    text: str, stream: str, time_ns: int, attrs: dict[str, str] | None, *, ascii_only: bool, trim: bool
) -> bytes:
    stamp = format_time(time_ns).decode()
    document: dict[str, Any] = {"log": text, "stream": stream}
    if attrs:
        document["attrs"] = attrs
    document["time"] = (stamp.rstrip("0").rstrip(".") if trim else stamp) + "Z"
    return json.dumps(document, separators=(",", ":"), ensure_ascii=ascii_only).encode() + b"\n"


@given(st.lists(MESSAGES, max_size=6), st.booleans(), st.booleans())
@settings(max_examples=150, deadline=None)
def test_decode_agrees_with_a_json_parser(
    messages: list[tuple[str, str, int, dict[str, str] | None]], ascii_only: bool, trim: bool
) -> None:
    chunk = b"".join(encode(*message, ascii_only=ascii_only, trim=trim) for message in messages)
    assert [tuple(record) for record in decode(chunk).records()] == [
        (stream, time_ns, text.encode(), attrs or {}) for text, stream, time_ns, attrs in messages
    ]


@given(st.binary(max_size=200))
@settings(max_examples=100, deadline=None)
def test_decode_survives_anything(noise: bytes) -> None:
    good = encode("kept\n", "stdout", 5, None, ascii_only=False, trim=False)
    assert b"kept\n" in decode(good + noise + b"\n" + good).texts


def test_a_torn_line_costs_only_itself() -> None:
    good = encode("second\n", "stderr", 7, None, ascii_only=False, trim=False)
    lines = decode(b'{"log":"fir' + good)
    assert (lines.texts, lines.marks) == ([b"second\n"], [b"err"])


def test_lone_surrogates_become_replacement_characters() -> None:
    line = b'{"log":"a\\ud800b\\udc00\\ud83d\\ude00\\u0000","stream":"stdout","time":"2024-01-02T03:04:05Z"}\n'
    expected = "a\ufffdb\ufffd😀".encode()
    assert decode(line).texts == [expected + b"\x00"]
    assert decode(line.replace(b"\\u0000", b"")).texts == [expected]


def test_the_regular_form_needs_no_json_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    chunk = b"".join(
        encode(f'line {n} <é> \x1b[1m\t"q"\\\n', "stdout", n, None, ascii_only=True, trim=True) for n in range(50)
    )
    monkeypatch.setattr(log_format, "_decode_each", None)
    assert len(decode(chunk).texts) == 50


@given(TIMES)
@settings(max_examples=50, deadline=None)
def test_times_keep_their_nanoseconds(time_ns: int) -> None:
    assert parse_time(format_time(time_ns)) == time_ns


@pytest.mark.parametrize("time_ns", [-(10**30), -1, 10**30])
def test_times_out_of_range_still_sort(time_ns: int) -> None:
    assert (format_time(time_ns) < b"1970-01-01T00:00:00.000000001") == (time_ns < 0)


CHUNK = b"".join(
    (
        encode("one\n", "stdout", 1_700_000_000_000_000_001, None, ascii_only=False, trim=False),
        encode("two\n", "stderr", 1_700_000_000_500_000_000, {"b": "x y", "a": "1"}, ascii_only=False, trim=True),
        encode("part", "stdout", 1_700_000_001_000_000_000, None, ascii_only=False, trim=True),
    )
)


def test_frames() -> None:
    assert render(decode(CHUNK), Rendering()) == b"".join(
        struct.pack(">BxxxI", number, len(text)) + text for number, text in ((1, b"one\n"), (2, b"two\n"), (1, b"part"))
    )


def test_raw_with_timestamps_and_details() -> None:
    assert render(decode(CHUNK), Rendering(framed=False, timestamps=True, details=True)) == (
        b"2023-11-14T22:13:20.000000001Z  one\n"
        b"2023-11-14T22:13:20.500000000Z a=1,b=x+y two\n"
        b"2023-11-14T22:13:21.000000000Z  part"
    )


def test_one_stream_only() -> None:
    assert render(decode(CHUNK), Rendering(framed=False, stdout=False)) == b"two\n"
    assert render(decode(CHUNK), Rendering(framed=False, stderr=False)) == b"one\npart"
    assert render(decode(CHUNK), Rendering(framed=False, stdout=False, stderr=False)) == b""

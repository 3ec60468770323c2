"""Moments in filters. What is refused and how was asked of Docker 28.5.2."""

import time
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compatd.builder.durations import BadDuration, format_duration, parse_duration
from compatd.core.timestamps import parse_time_ns
from compatd.errors import InvalidParameter
from compatd.wire.times import format_time

pytestmark = pytest.mark.unit

MOMENTS = st.integers(1, 253_402_300_799 * 10**9)
TIME_TEXTS = st.lists(
    st.sampled_from(
        ["2024", "-", "02", "30", "T", "24", ":", "59", ".", "999999999", "Z", "+", "٣", "h", "ns", " ", "\0"]
    ),
    max_size=12,
).map("".join) | st.text(max_size=12)


@pytest.mark.parametrize(
    ("text", "expected_ns"),
    [
        ("0", 0),
        ("1700000000", 1_700_000_000 * 10**9),
        ("1700000000.000000001", 1_700_000_000 * 10**9 + 1),
        ("2023-11-14T22:13:20Z", 1_700_000_000 * 10**9),
        ("2023-11-14T22:13:20.5Z", 1_700_000_000 * 10**9 + 500_000_000),
        ("2023-11-14T23:13:20+01:00", 1_700_000_000 * 10**9),
        ("2023-11-14", 1_699_920_000 * 10**9),
    ],
)
def test_times(text: str, expected_ns: int) -> None:
    assert parse_time_ns(text) == expected_ns


def test_durations_count_back_from_now() -> None:
    assert abs(time.time_ns() - 5400 * 10**9 - parse_time_ns("1h30m")) < 10**9


@pytest.mark.parametrize(
    "text", ["+1h", "-1h", ".5h", "1.h", "1μs", "1µs", "1.0000000001", "2024-01-01T00", "2024-01-01Z", "2024-01-01T0",
             "2024-01-01T00:00+01:00", "2024-01-01T00:00:00.1234567891Z", "+5", "1700000000.1234567891"]
)  # fmt: skip
def test_forms_that_go_takes(text: str) -> None:
    assert isinstance(parse_time_ns(text), int)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("-5", 'parsing time "-5" as "2006-01-02": cannot parse "-5" as "2006"'),
        ("x-1", 'parsing time "x-1" as "2006-01-02": cannot parse "x-1" as "2006"'),
        ("2024-01-01T24:00:00Z", 'parsing time "2024-01-01T24:00:00Z": hour out of range'),
        ("2024-02-30", 'parsing time "2024-02-30": day out of range'),
        *((text, f'failed to parse value as time or duration: "{text}"')
          for text in ("", "x", "1e3", "1.x", "yesterday", "1_0", "١٢", "1x", "99999999999999999999")),
    ],
)  # fmt: skip
def test_bad_times(text: str, message: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        parse_time_ns(text)
    assert str(caught.value) == message


@given(MOMENTS, MOMENTS)
@settings(max_examples=50, deadline=None)
def test_what_the_engine_writes_it_reads_in_the_same_order(one_ns: int, other_ns: int) -> None:
    assert parse_time_ns(format_time(one_ns)) == one_ns
    assert parse_time_ns(f"{one_ns // 10**9}.{one_ns % 10**9:09}") == one_ns
    assert (parse_time_ns(format_time(one_ns)) < parse_time_ns(format_time(other_ns))) is (one_ns < other_ns)


@given(st.datetimes(min_value=datetime(1, 1, 2), max_value=datetime(9999, 12, 30)), st.integers(-1439, 1439))
@settings(max_examples=50, deadline=None)
def test_agrees_with_python(moment: datetime, zone_minutes: int) -> None:
    moment = moment.replace(tzinfo=UTC)
    sign, (hours, minutes) = "-" if zone_minutes < 0 else "+", divmod(abs(zone_minutes), 60)
    text = f"{moment.replace(tzinfo=None).isoformat()}{sign}{hours:02}:{minutes:02}"
    since = moment - timedelta(minutes=zone_minutes) - datetime(1970, 1, 1, tzinfo=UTC)
    assert parse_time_ns(text) == since // timedelta(microseconds=1) * 1000


@given(TIME_TEXTS)
@settings(max_examples=200, deadline=None)
def test_any_text_is_a_time_or_refused(text: str) -> None:
    try:
        value = parse_time_ns(text)
    except InvalidParameter:
        return
    assert isinstance(value, int)
    assert text.replace("μ", "u").replace("µ", "u").isascii()
    assert "_" not in text
    assert text == text.strip()


@given(st.integers(-(2**63) + 1, 2**63 - 1))
@settings(max_examples=100, deadline=None)
def test_durations_come_back(duration_ns: int) -> None:
    assert parse_duration(format_duration(duration_ns)) == duration_ns


@given(
    st.lists(st.sampled_from(["1", "0", ".", "9" * 30, "h", "m", "s", "ns", "µs", "+", "-", " ", "٣", "_"])).map(
        "".join
    )
)
@settings(max_examples=150, deadline=None)
def test_any_text_is_a_duration_or_refused(text: str) -> None:
    try:
        assert abs(parse_duration(text)) < 2**63
    except BadDuration:
        return
    assert not set(text) & set("_٣ ")

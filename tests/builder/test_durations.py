import pytest

from compatd.builder.durations import BadDuration, format_duration, parse_duration

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("text", "duration_ns"),
    [("0", 0), ("1ns", 1), ("1.5us", 1500), ("2ms3µs", 2_003_000), (".5s", 500_000_000), ("-1s", -(10**9))],
)
def test_durations(text: str, duration_ns: int) -> None:
    assert parse_duration(text) == duration_ns


@pytest.mark.parametrize("text", ["", "x", "1", "1x", "1s2", ".s", "9999999999h", "1_0s", "\u0661s", "s" * 1000])
def test_no_durations(text: str) -> None:
    with pytest.raises(BadDuration, match="time: "):
        parse_duration(text)


@pytest.mark.parametrize(
    ("duration_ns", "text"),
    [
        (0, "0s"),
        (1, "1ns"),
        (1500, "1.5µs"),
        (10**6, "1ms"),
        (10**9, "1s"),
        (1_500_000_000, "1.5s"),
        (60 * 10**9, "1m0s"),
        (3600 * 10**9, "1h0m0s"),
        (-(90 * 10**9), "-1m30s"),
        (3_601_000_000_001, "1h0m1.000000001s"),
    ],
)
def test_durations_are_gos(duration_ns: int, text: str) -> None:
    assert format_duration(duration_ns) == text

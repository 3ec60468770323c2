"""Filters and times as clients write them."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compatd.core import filters
from compatd.errors import InvalidParameter

pytestmark = pytest.mark.unit


def test_unknown_filter_is_refused() -> None:
    with pytest.raises(InvalidParameter, match=r"^invalid filter 'bogus'$"):
        filters.check({"name": ["a"], "bogus": ["b"]}, ("name",))


@pytest.mark.parametrize(
    ("wanted", "labels", "expected"),
    [
        ([], None, True),
        (["a"], {"a": "1"}, True),
        (["a=1"], {"a": "1"}, True),
        (["a=2"], {"a": "1"}, False),
        (["a", "b"], {"a": "1"}, False),
        (["a="], {"a": ""}, True),
    ],
)
def test_labels(wanted: list[str], labels: dict[str, str] | None, expected: bool) -> None:
    assert filters.matches_labels(wanted, labels) is expected


@pytest.mark.parametrize(
    ("pattern", "value", "expected"),
    [
        ("web", "my-web-1", True),
        ("^web$", "web", True),
        ("^web$", "web\n", False),
        ("^web", "my-web", False),
        ("w.*1", "web-1", True),
        ("(", "a(b", False),
        ("(", "(", True),
        ("(a+)+$", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa!", False),
    ],
)
def test_names(pattern: str, value: str, expected: bool) -> None:
    assert filters.matches_any([pattern], value) is expected


@given(st.text(max_size=40), st.text(max_size=40))
def test_no_pattern_fails(pattern: str, value: str) -> None:
    filters.matches_any([pattern], value)


@pytest.mark.parametrize("value", ["true", "1", "T"])
def test_boolean(value: str) -> None:
    assert filters.boolean({"dangling": [value]}, "dangling") is True
    assert filters.boolean({}, "dangling") is None
    with pytest.raises(InvalidParameter):
        filters.boolean({"dangling": ["maybe"]}, "dangling")


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
    assert filters.parse_time_ns(text) == expected_ns


def test_durations_count_back_from_now() -> None:
    assert abs(time.time_ns() - 5400 * 10**9 - filters.parse_time_ns("1h30m")) < 10**9


@pytest.mark.parametrize("text", ["", "yesterday", "1_0", "١٢", "2023-13-01", "1x"])
def test_bad_times(text: str) -> None:
    with pytest.raises(InvalidParameter):
        filters.parse_time_ns(text)

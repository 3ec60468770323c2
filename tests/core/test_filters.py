"""Filters and times as clients write them."""

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

"""Expressions in filters."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compatd.core import patterns

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("expression", "text", "expected"),
    [
        ("web[12]$", "my-web1", True),
        ("web[^12]$", "my-web1", False),
        (r"^web\d+$", "web22", True),
        ("(web|db){2}-.?x", "webdb-x", True),
        ("a{2,3}$", "baa", True),
        ("^a{2,}$", "a", False),
        ("(?i)WEB", "web", True),
        (r"\Qa.b\E$", "a.b", True),
        (r"\Qa.b\E$", "acb", False),
        ("[", "[", False),
        ("*", "*", False),
        ("x(?=1)", "x1", False),
        (r"b\z", "ab", True),
        ("(a*)*$", "b", True),
        ("(a|a)*b", "a" * 5000, False),
        ("((((a{1000}){1000}){1000})", "a", False),
        ("(" * 5000, "a", False),
    ],
)
def test_search(expression: str, text: str, expected: bool) -> None:
    assert patterns.search(expression, text) is expected


@given(st.text("ab|()^$.*+?", max_size=12), st.text("ab", max_size=8))
def test_as_the_interpreter_has_it(expression: str, text: str) -> None:
    found = patterns.search(expression, text)
    try:
        expected = re.search(expression.replace("$", r"\Z"), text) is not None
    except re.error:
        return
    if not re.search(r"\(\?|[*+?][*+?]|[\^$][*+?]", expression):
        assert found is expected

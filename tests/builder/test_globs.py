import contextlib
import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compatd.builder.globs import BadPattern, Many, One, Subject, parse_path_pattern

pytestmark = pytest.mark.unit


def matches(pattern: str, path: str) -> bool:
    return Subject(path).matches(parse_path_pattern(pattern))


@pytest.mark.parametrize(
    ("pattern", "path", "expected"),
    [
        ("a*c", "abbc", True),
        ("a*c", "ab/c", False),
        ("*", "", True),
        ("*/x", "d/x", True),
        ("?", "é", True),
        ("?", "/", False),
        ("[a-c]x", "bx", True),
        ("[^a-c]x", "bx", False),
        ("[\\]]", "]", True),
        ("a\\*", "a*", True),
        ("a\\*", "ab", False),
        ("[-]", "-", None),
        ("[]", "]", None),
        ("[a", "a", None),
        ("[a-]", "a", None),
        ("a\\", "a", None),
        ("", "", True),
    ],
)
def test_reads_patterns_as_go_does(pattern: str, path: str, expected: bool | None) -> None:
    if expected is None:
        with pytest.raises(BadPattern):
            parse_path_pattern(pattern)
    else:
        assert matches(pattern, path) is expected


@given(st.text(alphabet="ab*?/", max_size=8), st.text(alphabet="ab/\n", max_size=12))
@settings(max_examples=300, deadline=None)
def test_agrees_with_regular_expressions(pattern: str, path: str) -> None:
    expression = "".join({"*": "[^/]*", "?": "[^/]"}.get(char, char) for char in pattern)
    assert matches(pattern, path) is bool(re.fullmatch(expression, path))


@given(st.text(max_size=12), st.text(max_size=12))
@settings(max_examples=200, deadline=None)
def test_never_fails_otherwise(pattern: str, path: str) -> None:
    with contextlib.suppress(BadPattern):
        matches(pattern, path)


def test_is_linear() -> None:
    steps = [step for _ in range(500) for step in (Many(lambda char: True), One("a"))]
    start = time.perf_counter()
    assert not Subject("a" * 20_000 + "b").matches([*steps, One("c")])
    assert time.perf_counter() - start < 2

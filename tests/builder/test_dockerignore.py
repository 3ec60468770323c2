import contextlib
import posixpath
import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compatd.builder.dockerignore import Matcher, parse
from compatd.errors import InvalidParameter

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("patterns", "path", "excluded"),
    [
        (["**"], "file", True),
        (["**/"], "dir/file", True),
        (["**/**"], "dir/file", True),
        (["dir/**"], "dir/file", True),
        (["dir/**"], "dir", False),
        (["dir/**"], "dir/dir/file", True),
        (["**/dir"], "dir", True),
        (["**/dir"], "a/b/dir/file", True),
        (["**/dir2/*"], "dir/dir2/file", True),
        (["**/dir2/*"], "dir/dir2/dir2/file", True),
        (["**file"], "dir/file", True),
        (["**file"], "dir/dirfile", True),
        (["**/file"], "dirfile", False),
        (["**/*.txt"], "a/b.txt", True),
        (["a/**/b"], "a/b", True),
        (["a/**/b"], "a/x/y/b", True),
        (["a/**/b"], "ab", False),
        (["**.txt"], "x.txtx", False),
        (["a**/*.txt"], "a/dir/file.txt", True),
        (["a*"], "a/b", True),
        (["a"], "ab", False),
        (["*/x"], "a/x", True),
        (["*/x"], "a/b/x", False),
        (["a[b-d]e"], "ace", True),
        (["a[^b]"], "ab", False),
        (["a.b"], "axb", False),
        (["."], "x", False),
        (["/"], "x", False),
        (["a\\*"], "a*", True),
        (["*", "!b"], "b", False),
        (["*", "!b"], "a", True),
        (["*", "!b", "b"], "b", True),
        (["a", "!a/b"], "a/b", False),
        (["a", "!a/b"], "a/c", True),
        (["!a", "a"], "a", True),
        (["a/", "./b"], "a/x", True),
        (["dir/../b"], "b", True),
    ],
)
def test_decides_as_moby_does(patterns: list[str], path: str, excluded: bool) -> None:
    assert Matcher(patterns).excludes(path) is excluded


def test_the_root_stays() -> None:
    assert Matcher(["*", "."]).excludes(".") is False


@pytest.mark.parametrize("pattern", ["!", "[", "[]a]", "a[-]", "a\\"])
def test_refuses_what_it_cannot_read(pattern: str) -> None:
    with pytest.raises(InvalidParameter):
        Matcher([pattern])


def test_reads_the_file() -> None:
    content = b"\xef\xbb\xbf# comment\n\n /a/b/ \n!/c\n! d\n #no comment\n./x/../y\n!\r\n"
    assert parse(content) == ["a/b", "!c", "!d", "#no comment", "y", "!"]


def test_bounds_the_file() -> None:
    with pytest.raises(InvalidParameter, match=r"error reading \.dockerignore"):
        parse(b"x" * 70_000)


def reference(patterns: list[str], path: str) -> bool:
    """The rules once more, with a backtracking matcher of their own."""
    excluded = False
    names = path.split("/")
    parents = ["/".join(names[: depth + 1]) for depth in range(len(names))]
    for pattern in patterns:
        inverted = pattern.startswith("!")
        cleaned = posixpath.normpath(pattern.removeprefix("!"))
        expression = re.sub(r"\*\*/?$", "\0", cleaned)
        expression = re.sub(r"\*\*/?", "\1", expression)
        expression = re.escape(expression).replace("\\\0", "\0").replace("\\\1", "\1")
        expression = expression.replace("\\*", "[^/]*").replace("\\?", "[^/]").replace("\0", ".*")
        if expression.startswith("\1") and not re.search("[*?\1]", cleaned.replace("**", "", 1)):
            expression = ("(.*/)?" if cleaned.startswith("**/") else ".*") + expression[1:]
        expression = expression.replace("\1", "(.*/)?")
        if any(re.fullmatch(expression, parent) for parent in parents):
            excluded = not inverted
    return excluded


segment = st.text(alphabet="ab", min_size=1, max_size=2)
pattern_segment = st.one_of(segment, st.sampled_from(["*", "**", "a*", "?", "*b"]))
one_pattern = st.lists(pattern_segment, min_size=1, max_size=3).map("/".join)
all_patterns = st.lists(st.tuples(st.sampled_from(["", "", "!"]), one_pattern).map("".join), max_size=4)


@given(all_patterns, st.lists(segment, min_size=1, max_size=4).map("/".join))
@settings(max_examples=400, deadline=None)
def test_agrees_with_a_reference(patterns: list[str], path: str) -> None:
    assert Matcher(patterns).excludes(path) is reference(patterns, path)


@given(st.lists(st.text(max_size=10), max_size=4), st.text(max_size=20))
@settings(max_examples=200, deadline=None)
def test_fails_in_one_way_only(patterns: list[str], path: str) -> None:
    with contextlib.suppress(InvalidParameter):
        Matcher(patterns).excludes(path)


def test_hostile_patterns_are_quick() -> None:
    matcher = Matcher(["**/" + "*a" * 200 + "/**/" + "?*" * 200, "!" + "**/*a" * 200])
    start = time.perf_counter()
    matcher.excludes("/".join("a" * 20 for _ in range(100)))
    assert time.perf_counter() - start < 3

import contextlib
import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compatd.builder.shellwords import Lexer, ShellSyntaxError, quote

pytestmark = pytest.mark.unit

ENV = {"a": "one", "empty": "", "path": "/usr/local/bin:/usr/bin", "star": "a*b", "sp": "x  y", "Ü": "u", "nl": "1\n2"}


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("plain", "plain"),
        ("$a", "one"),
        ("${a}x", "onex"),
        ("$ax", ""),
        ("$a$none$a", "oneone"),
        ("$", "$"),
        ("$ x", "$ x"),
        ("a$b$", "a$"),
        ("\\$a", "$a"),
        ("\\\\$a", "\\one"),
        ("'$a'", "$a"),
        ('"$a"', "one"),
        ('"\\$a"', "$a"),
        ('"\\x"', "\\x"),
        ('"a\'b"', "a'b"),
        ("'a\"b'", 'a"b'),
        ("a\\ b", "a b"),
        ("ab\\", "ab"),
        ("$Ü", "u"),
        ("$1", ""),
        ("$12x", "x"),
        ("$@x", "x"),
        ("${none:-d}", "d"),
        ("${empty:-d}", "d"),
        ("${empty-d}", ""),
        ("${none-d}", "d"),
        ("${a:-d}", "one"),
        ("${a:+d}", "d"),
        ("${empty:+d}", ""),
        ("${empty+d}", "d"),
        ("${none+d}", ""),
        ("${none:-$a}", "one"),
        ("${none:-${also:-x y}}", "x y"),
        ("${none:-'q}'}", "q}"),
        ("${a:?no}", "one"),
        ("${empty?no}", ""),
        ("${path#*/}", "usr/local/bin:/usr/bin"),
        ("${path##*/}", "bin"),
        ("${path%/*}", "/usr/local/bin:/usr"),
        ("${path%%:*}", "/usr/local/bin"),
        ("${path%%nothing}", "/usr/local/bin:/usr/bin"),
        ("${star#a\\*}", "b"),
        ("${a#?}", "ne"),
        ("${a/n/N}", "oNe"),
        ("${path/usr/U}", "/U/local/bin:/usr/bin"),
        ("${path//usr/U}", "/U/local/bin:/U/bin"),
        ("${path//\\//_}", "_usr_local_bin:_usr_bin"),
        ("${a/*/x}", "x"),
        ("${a//?/x}", "xxx"),
        ("${a/zz/x}", "one"),
        ("${nl#*2}", "1\n2"),
        ("<<EOF", "<<EOF"),
    ],
)
def test_expands(word: str, expected: str) -> None:
    assert Lexer().expand(word, ENV) == expected


@pytest.mark.parametrize(
    ("word", "error"),
    [
        ("${", "syntax error: missing '}'"),
        ("${}", "syntax error: bad substitution"),
        ("${:x}", "syntax error: bad substitution"),
        ("${a", "unsupported modifier (\ufffd) in substitution"),
        ("${a:x}", "unsupported modifier (:x) in substitution"),
        ("${a:#x}", "unsupported modifier (:#) in substitution"),
        ("${a:-x", "syntax error: missing '}'"),
        ("${a/x", "syntax error: missing '/' in ${}"),
        ("${a/x/y", "syntax error: missing '}'"),
        ("${none?}", "none: is not allowed to be unset"),
        ("${none:?}", "none: is not allowed to be unset"),
        ("${empty:?}", "empty: is not allowed to be empty"),
        ("${none:?because}", "none: because"),
        ("${a#\\x}", "invalid pattern (\\x) in substitution: invalid escape '\\x'"),
        ("'x", "unexpected end of statement while looking for matching single-quote"),
        ('"x', "unexpected end of statement while looking for matching double-quote"),
    ],
)
def test_refuses(word: str, error: str) -> None:
    with pytest.raises(ShellSyntaxError) as caught:
        Lexer().expand(word, ENV)
    assert str(caught.value) == f"failed to process {quote(word)}: {error}"


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("a b  c", ["a", "b", "c"]),
        ("$sp", ["x", "y"]),
        ('"$sp"', ["x  y"]),
        ("a'b c'd", ["ab cd"]),
        ("a\\ b", ["a b"]),
        ("'' x", ["x"]),
        ("", []),
        ("80${none:-81}", ["8081"]),
    ],
)
def test_splits(word: str, expected: list[str]) -> None:
    assert Lexer().split(word, ENV) == expected


def test_the_escape_is_the_dockerfiles() -> None:
    assert Lexer(escape="`").expand('C:\\a`$b "`$"', ENV) == "C:\\a$b $"


def test_unset_may_stay() -> None:
    lexer = Lexer(keep_unset=True)
    for word in ("$x", "${x}", "${x:-y}", "${x#y}", "${x/y/z}"):
        assert lexer.expand(word, {}) == word


pieces = st.lists(
    st.sampled_from(
        ["$", "{", "}", "a", "none", "'", '"', "\\", " ", "/", "#", "%", ":", "-", "+", "?", "*", "\n", "é"]
    ),
    max_size=20,
).map("".join)


@given(pieces)
@settings(max_examples=300, deadline=None)
def test_fails_in_one_way_only(word: str) -> None:
    for lexer in (Lexer(), Lexer(escape="`", raw_quotes=True, raw_escapes=True, keep_unset=True)):
        with contextlib.suppress(ShellSyntaxError):
            lexer.expand(word, ENV)
            lexer.split(word, ENV)


@given(st.text(alphabet="ab*?", max_size=6), st.text(alphabet="ab\n", max_size=10))
@settings(max_examples=200, deadline=None)
def test_patterns_agree_with_regular_expressions(pattern: str, value: str) -> None:
    greedy = "".join({"*": ".*", "?": "."}.get(char, char) for char in pattern)
    lazy = greedy.replace(".*", ".*?")

    def cut(expression: str) -> str:
        match = re.match(expression, value)
        return value[match.end() :] if match else value

    def cut_end(expressions: list[int]) -> str:
        return value[: expressions[0]] if expressions else value

    lexer = Lexer()
    env = {"v": value}
    assert lexer.expand(f"${{v#{pattern}}}", env) == cut(lazy)
    if not pattern.startswith("#"):
        assert lexer.expand(f"${{v##{pattern}}}", env) == cut(greedy)
    ends = [start for start in range(len(value) + 1) if re.fullmatch(greedy, value[start:])]
    assert lexer.expand(f"${{v%%{pattern}}}", env) == cut_end(ends)
    assert lexer.expand(f"${{v%{pattern}}}", env) == cut_end(ends[::-1])
    if not pattern:
        return
    assert lexer.expand(f"${{v/{pattern}/X}}", env) == re.sub(greedy, "X", value, count=1)
    assert lexer.expand(f"${{v//{pattern}/X}}", env) == go_replace_all(greedy, value)


def go_replace_all(expression: str, value: str) -> str:
    """Go's ReplaceAllString: an empty match right behind a match does not count; Python's does."""
    result, done, last_end = "", 0, -1
    for match in re.finditer(expression, value):
        if match.start() == match.end() == last_end:
            continue
        result += value[done : match.start()] + "X"
        done = last_end = match.end()
    return result + value[done:]


@pytest.mark.parametrize(
    "word",
    [
        "${v#" + "*a" * 2_000 + "b}",
        "${v%" + "*a" * 2_000 + "b}",
        "${v//" + "*a" * 2_000 + "b/x}",
        "${v//a/b}",
        "${v//*/b}",
    ],
)
def test_hostile_patterns_are_quick(word: str) -> None:
    start = time.perf_counter()
    Lexer().expand(word, {"v": "a" * 30_000})
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize("word", ["${a:-" * 5_000 + "}" * 5_000, "$v" * 100, "${v//a/$v}"])
def test_hostile_words_have_limits(word: str) -> None:
    with pytest.raises(ShellSyntaxError):
        Lexer().expand(word, {"v": "a" * 20_000})


@pytest.mark.parametrize(
    ("text", "quoted"),
    [
        ("a", '"a"'),
        ('a"b', '"a\\"b"'),
        ("\\\n\t\0\x7f", '"\\\\\\n\\t\\x00\\x7f"'),
        ("é\u2028", '"é\\u2028"'),
        ("", '""'),
    ],
)
def test_quotes_as_go(text: str, quoted: str) -> None:
    assert quote(text) == quoted

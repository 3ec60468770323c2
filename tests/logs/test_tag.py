"""Tags and attributes; texts and values asked on Docker 28.5.2."""

import contextlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compatd.logs import tag
from compatd.logs.info import Info, compile_expression, extra_attributes
from compatd.logs.tag import TagError

pytestmark = pytest.mark.unit


def info(**config: str) -> Info:
    return Info(
        config=config,
        container_id="0123456789abcdef" * 4,
        name="/web",
        entrypoint="sh",
        args=["-c", "x y"],
        image_id="sha256:67c709f9bd6c",
        image_name="busybox",
        created_ns=1_700_000_000_120_000_000,
        env=["A=1", "B", "C=x=y", "D1=d"],
        labels={"a": "1", "b.c": "2", "bb": "3"},
        log_path="/log",
    )


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("", "0123456789ab"),
        ("plain", "plain"),
        ("{{.Name}}/{{.ImageName}}", "web/busybox"),
        ("{{truncate .FullID 3}}{{.ContainerName}}", "012/web"),
        ("{{.ImageID}} {{.ImageFullID}}", "sha256:67c70 sha256:67c709f9bd6c"),
        ("{{.DaemonName}} {{.Command}} {{.ContainerEntrypoint}}", "docker sh -c x y sh"),
        ("{{.ContainerArgs}} {{json .ContainerArgs}}", '[-c x y] ["-c","x y"]'),
        ("{{.ContainerLabels}}", "map[a:1 b.c:2 bb:3]"),
        ('{{index .ContainerLabels "b.c"}}{{.ContainerLabels.a}}{{.ContainerLabels.none}}', "21<no value>"),
        ("{{.ContainerCreated}}", "2023-11-14 22:13:20.12 +0000 UTC"),
        ("{{.ExtraAttributes nil}}", "map[]"),
        ('{{.Name | upper | printf "%q-%5s|%-4s|%.2s" "a b" "c" "d"}}', '"a b"-    c|d   |WE'),
        ('{{join (split .Name "e") "-"}}', "w-b"),
        ('{{pad .Name 1 2}}|{{title "ab cd_e"}}|{{lower "AB"}}|{{len .ID}}', " web  |Ab Cd_e|ab|12"),
        ('a {{- "x" -}} b {{/* c */}}d{{print 1 2 "a" "b" 3}}', "axb d1 2ab3"),
        ("{{`raw`}}{{true}}{{print nil}}", "rawtrue<nil>"),
        ("{{ (.Name) }}{{ (index .ContainerArgs 1) | upper }}", "webX Y"),
    ],
)
def test_tags(template: str, expected: str) -> None:
    assert tag.render(info(tag=template)) == expected


def test_no_tag_is_none() -> None:
    assert tag.render(info(), default="") == ""


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{{.Foo}}", ':1:2: executing "log-tag" at <.Foo>: can\'t evaluate field Foo in type *logger.Info'),
        ("é{{.ID.Foo}}", ':1:7: executing "log-tag" at <.ID.Foo>: can\'t evaluate field Foo in type string'),
        (
            "{{.ID}}\n {{upper .Foo}}",
            ':2:9: executing "log-tag" at <.Foo>: can\'t evaluate field Foo in type *logger.Info',
        ),
        ("{{foo}}", ':1: function "foo" not defined'),
        ("{{.ID", ":1: unclosed action"),
        ("{{}}", ":1: missing value for command"),
        ("{{.ID | }}", ":1: missing value for command"),
        ('{{truncate .ID "x"}}', ':1:15: executing "log-tag" at <"x">: expected integer; found "x"'),
        (
            "{{truncate .ID .Name}}",
            ':1:15: executing "log-tag" at <.Name>: wrong type for value; expected int; got string',
        ),
        ("{{if .ID}}x{{end}}", ":1: if is not supported by this engine"),
        ("{{$x := .ID}}", ":1: variables are not supported by this engine"),
        ("{{eq .ID .ID}}", ":1: function eq is not supported by this engine"),
    ],
)
def test_bad_tags(template: str, message: str) -> None:
    with pytest.raises(TagError) as raised:
        tag.render(info(tag=template))
    assert str(raised.value) == f"template: log-tag{message}"


PIECES = st.sampled_from(
    [
        "{{",
        "}}",
        ".ID",
        ".Name",
        "|",
        "(",
        ")",
        '"a"',
        "`",
        '"',
        "\\",
        " ",
        "upper",
        "print",
        "1",
        "x",
        "-",
        "/*",
        "*/",
        "nil",
    ]
)


@given(st.lists(PIECES, max_size=14))
@settings(max_examples=200, deadline=None)
def test_any_tag_is_a_tag_or_an_error(pieces: list[str]) -> None:
    with contextlib.suppress(TagError):
        tag.render(info(tag="".join(pieces)))


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"labels": "a,none", "env": "C,B"}, {"a": "1", "C": "x=y"}),
        ({"labels-regex": "^b", "env-regex": "^D[0-9]$"}, {"b.c": "2", "bb": "3", "D1": "d"}),
        ({"labels-regex": r"^[[:alpha:]]$", "labels": "bb"}, {"a": "1", "bb": "3"}),
    ],
)
def test_attributes(config: dict[str, str], expected: dict[str, str]) -> None:
    assert extra_attributes(info(**config)) == expected
    assert extra_attributes(info(**config), str.upper) == {key.upper(): value for key, value in expected.items()}


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("(", "missing closing ): `(`"),
        ("[", "missing closing ]: `[`"),
        ("^a(?=b)", "invalid or unsupported Perl syntax: `(?=`"),
        ("*a", "missing argument to repetition operator: `*`"),
    ],
)
def test_expressions_that_are_none(expression: str, message: str) -> None:
    with pytest.raises(ValueError, match="error parsing regexp") as raised:
        compile_expression(expression)
    assert str(raised.value) == f"error parsing regexp: {message}"


@pytest.mark.parametrize(
    ("expression", "text", "found"),
    [("a$", "a\n", False), (r"\z", "", True), ("[$]", "$", True), (r"\d", "٣", False), ("[^[:digit:]]", "1", False)],
)
def test_expressions_are_go_s(expression: str, text: str, found: Any) -> None:
    assert bool(compile_expression(expression).search(text)) is found

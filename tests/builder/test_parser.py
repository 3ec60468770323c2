import contextlib
import json
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compatd.builder.instructions import read_program
from compatd.builder.parser import MAX_INSTRUCTIONS, MAX_LINE_BYTES, Dockerfile, Node, ParseError, parse

pytestmark = pytest.mark.unit

CASES = sorted((Path(__file__).parents[1] / "golden" / "dockerfiles").iterdir())


def _describe(node: Node) -> dict[str, object]:
    lines: dict[str, object] = {
        "lines": [node.span.start, node.span.end],
        "keyword": node.keyword,
        "arguments": list(node.arguments),
    }
    if node.flags:
        lines["flags"] = list(node.flags)
    if node.json:
        lines["json"] = True
    if node.comments:
        lines["comments"] = list(node.comments)
    if node.heredocs:
        lines["heredocs"] = [
            {"name": doc.name, "content": doc.content, "expand": doc.expand, "chomp": doc.chomp}
            for doc in node.heredocs
        ]
    return lines


def describe(dockerfile: Dockerfile) -> dict[str, object]:
    """A parsed Dockerfile as a golden file has it."""
    found: dict[str, object] = {"nodes": [_describe(node) for node in dockerfile.nodes]}
    if dockerfile.directives:
        found["directives"] = dockerfile.directives
    if dockerfile.warnings:
        found["warnings"] = [warning.text for warning in dockerfile.warnings]
    return found


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_golden(case: Path) -> None:
    content = (case / "Dockerfile").read_bytes()
    if (case / "error.txt").exists():
        expected, lines = (case / "error.txt").read_text().rstrip("\n").split("\nlines ")
        with pytest.raises(ParseError) as caught:
            read_program(parse(content))
        assert str(caught.value) == expected
        assert f"{caught.value.span.start}-{caught.value.span.end}" == lines
    else:
        dockerfile = parse(content)
        assert describe(dockerfile) == json.loads((case / "nodes.json").read_text())
        read_program(dockerfile)


ODDITIES = [
    "\\",
    "\\\n",
    "\n",
    "\r\n",
    "#",
    " ",
    "\t",
    "'",
    '"',
    "$",
    "${",
    "}",
    "<<",
    "<<-",
    "EOF",
    "[",
    "]",
    "--",
    "=",
]
WORDS = ["FROM base", "RUN", "ENV", "COPY", "ONBUILD", "LABEL a", "ARG", "HEALTHCHECK", "# escape=`", "é", "\x00", "a"]
texts = st.lists(st.sampled_from(ODDITIES + WORDS), max_size=40).map("".join)


@given(st.one_of(texts.map(lambda text: text.encode()), st.binary(max_size=200)))
@settings(max_examples=300, deadline=None)
def test_fails_only_with_a_span(content: bytes) -> None:
    found: ParseError | None = None
    try:
        read_program(parse(content))
    except ParseError as error:
        found = error
    if found is not None:
        assert str(found)
        assert 0 <= found.span.start <= found.span.end <= content.count(b"\n") + 1


@given(texts)
@settings(max_examples=150, deadline=None)
def test_an_instruction_reads_the_same_alone(text: str) -> None:
    try:
        nodes = parse(text.encode()).nodes
    except ParseError:
        return
    for node in nodes:
        # what the classic builder prints for a step parses to the same step; continuations are joined in it
        if (
            not node.keyword
            or node.heredocs
            or node.original.rstrip().endswith("\\")
            or "`" in text
            or "#" in node.original
        ):
            continue
        again = parse(node.original.encode() + b"\n").nodes[0]
        assert (again.keyword, again.flags, again.arguments) == (node.keyword, node.flags, node.arguments)


def test_takes_a_line_just_short_enough() -> None:
    longest = b"RUN " + b"x" * (MAX_LINE_BYTES - 5)
    assert parse(b"FROM a\n" + longest + b"\n").nodes[1].arguments == ("x" * (MAX_LINE_BYTES - 5),)
    with pytest.raises(ParseError, match="dockerfile line greater than max allowed size of 65535"):
        parse(b"FROM a\n" + longest + b"x\n")


@pytest.mark.parametrize(
    "content",
    [
        b"# x\n" * 200_000 + b"FROM a\n",
        b"FROM a\nRUN " + b"a \\\n" * 200_000 + b"\n",
        b"FROM a\nRUN " + b"[" * 60_000,
        b"FROM a\nRUN [" + b"1" * 60_000 + b"]",
        b"FROM a\n" + b"ONBUILD " * 8_000 + b"RUN x\n",
        b"FROM a\nENV " + b"a=b " * 15_000 + b"\n",
        b"FROM a\nRUN " + b"<<a " * 15_000 + b"\n",
        b"FROM a\nCOPY " + b"--x" * 20_000 + b"\n",
        b"FROM a\nRUN x" + b"\\ " * 30_000 + b"y\n",
        b"FROM a\nHEALTHCHECK" + b" " * 60_000 + b"x\n",
        b"# escape" + b" " * 60_000 + b"x\nFROM a\n",
    ],
)
def test_hostile_files_are_quick(content: bytes) -> None:
    start = time.perf_counter()
    with contextlib.suppress(ParseError):
        read_program(parse(content))
    assert time.perf_counter() - start < 5


def test_counts_instructions() -> None:
    with pytest.raises(ParseError, match="more than"):
        parse(b"RUN a\n" * (MAX_INSTRUCTIONS + 1))

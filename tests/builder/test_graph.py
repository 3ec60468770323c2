import pytest

from compatd.builder.graph import MAX_STAGES, dependencies, find_stage, find_target, order
from compatd.builder.instructions import Program, read_program
from compatd.builder.parser import ParseError, parse

pytestmark = pytest.mark.unit

TEXT = """FROM x AS one
FROM one AS two
FROM x
FROM x AS four
COPY --from=TWO a b
COPY --from=2 a b
COPY --from=elsewhere a b
RUN --mount=type=bind,from=one,target=/m true
FROM x AS five
"""


@pytest.fixture
def program() -> Program:
    return read_program(parse(TEXT.encode()))


def test_targets(program: Program) -> None:
    assert find_target(program, "") == 4
    assert find_target(program, "Two") == 1
    with pytest.raises(ParseError, match='target stage "nope" could not be found'):
        find_target(program, "nope")


def test_references(program: Program) -> None:
    assert find_stage(program.stages, "FOUR") == 3
    assert find_stage(program.stages, "2") == 2
    assert find_stage(program.stages, "9") is None
    assert find_stage(program.stages, "\u0663") is None


def test_what_a_stage_needs(program: Program) -> None:
    assert dependencies(program.stages, 0) == ()
    assert dependencies(program.stages, 1) == (0,)
    assert dependencies(program.stages, 3) == (0, 1, 2)


def test_order(program: Program) -> None:
    assert order(program, 3, everything=True) == (0, 1, 2, 3)
    assert order(program, 4, everything=False) == (4,)
    assert order(program, 1, everything=False) == (0, 1)
    assert order(program, 3, everything=False) == (0, 1, 2, 3)


def test_counts_stages() -> None:
    program = read_program(parse(b"FROM x\n" * (MAX_STAGES + 1)))
    with pytest.raises(ParseError, match="more than"):
        find_target(program, "")

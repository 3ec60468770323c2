"""Stages and what they need of one another, pure.

The classic builder builds every stage up to its target, whether or not it is needed, and its client counts
those steps: ``order`` with ``everything`` gives that. BuildKit builds what the target reaches.
"""

from collections.abc import Sequence

from compatd.builder.instructions import Copy, Program, Run, Stage
from compatd.builder.parser import ParseError, Span
from compatd.builder.shellwords import quote

MAX_STAGES = 1000


def find_target(program: Program, target: str) -> int:
    """The index of the stage to build: the last one, or the one named (whatever its case) or numbered ``target``.

    ``ParseError`` if there is none.
    """
    stages = program.stages
    if len(stages) > MAX_STAGES:
        raise ParseError(f"dockerfile has more than {MAX_STAGES} stages", stages[MAX_STAGES].head.span)
    if not target:
        return len(stages) - 1
    for index, stage in enumerate(stages):
        if stage.head.name == target.lower():
            return index
    raise ParseError(f"target stage {quote(target)} could not be found", Span(1, 1))


def find_stage(stages: Sequence[Stage], reference: str) -> int | None:
    """The stage that a name or number means; the later of two with one name. None for what is no stage."""
    for index in range(len(stages) - 1, -1, -1):
        if stages[index].head.name and stages[index].head.name == reference.lower():
            return index
    if reference.isascii() and reference.isdigit() and len(reference) < 6 and int(reference) < len(stages):
        return int(reference)
    return None


def dependencies(stages: Sequence[Stage], index: int) -> tuple[int, ...]:
    """The earlier stages that a stage names as its base, in ``COPY --from`` and in mounts; sorted."""
    stage = stages[index]
    earlier = stages[:index]
    found: set[int] = set()
    base = next((at for at in range(index - 1, -1, -1) if stages[at].head.name == stage.head.base.lower()), None)
    if base is not None:
        found.add(base)
    for instruction in stage.instructions:
        names: list[str] = []
        if isinstance(instruction, Copy) and instruction.from_:
            names.append(instruction.from_)
        if isinstance(instruction, Run):
            fields = (field for mount in instruction.mounts for field in mount.split(","))
            names += [field.removeprefix("from=") for field in fields if field.startswith("from=")]
        found |= {at for name in names if (at := find_stage(earlier, name)) is not None}
    return tuple(sorted(found))


def order(program: Program, target: int, *, everything: bool) -> tuple[int, ...]:
    """The stages to build for a target, each after what it needs: all up to it, or those it reaches."""
    if everything:
        return tuple(range(target + 1))
    needed: set[int] = set()
    pending = [target]
    while pending:
        index = pending.pop()
        if index not in needed:
            needed.add(index)
            pending += dependencies(program.stages, index)
    return tuple(sorted(needed))

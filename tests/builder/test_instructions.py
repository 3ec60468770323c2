import pytest

from compatd.builder.instructions import (
    Copy,
    Dialect,
    Env,
    Healthcheck,
    Label,
    Pair,
    Run,
    expand,
    read_program,
)
from compatd.builder.parser import ParseError, parse

pytestmark = pytest.mark.unit


def test_buildkit_has_flags_that_the_classic_builder_has_not() -> None:
    for flag, line in (("--parents", "COPY --parents a /b"), ("--security", "RUN --security=insecure x")):
        dockerfile = parse(f"FROM a\n{line}\n".encode())
        with pytest.raises(ParseError, match=f"unknown flag: {flag}"):
            read_program(dockerfile)
        read_program(dockerfile, Dialect.BUILDKIT)


def test_all_flags_of_copy_and_run() -> None:
    text = (
        "FROM a\nCOPY --from=x --chown=1 --chmod=2 --link=false --parents --exclude=p --exclude=q s d\n"
        "ADD --checksum=c --keep-git-dir --unpack=false s d\n"
        "RUN --mount=type=cache,target=/c --mount=type=ssh --network=host --security=insecure x\n"
    )
    copy, add, run = read_program(parse(text.encode()), Dialect.BUILDKIT).stages[0].instructions
    assert isinstance(copy, Copy)
    assert isinstance(add, Copy)
    assert isinstance(run, Run)
    assert (copy.from_, copy.chown, copy.chmod, copy.link, copy.parents) == ("x", "1", "2", False, True)
    assert copy.excludes == ("p", "q")
    assert (add.is_add, add.checksum, add.keep_git_dir, add.unpack) == (True, "c", True, False)
    assert run.mounts == ("type=cache,target=/c", "type=ssh")
    assert (run.network, run.security, run.flags) == ("host", "insecure", ("mount", "network", "security"))


def test_heredocs_become_files() -> None:
    text = "FROM a\nCOPY <<A <<-'B' /d/\n$x\nA\n\ttab\nB\nRUN <<-C\n\tone\nC\n"
    copy, run = read_program(parse(text.encode())).stages[0].instructions
    assert isinstance(copy, Copy)
    assert isinstance(run, Run)
    assert [(file.name, file.content, file.expand) for file in copy.inline] == [
        ("A", "$x\n", True),
        ("B", "tab\n", False),
    ]
    assert copy.sources == ()
    assert run.command.files[0].content == "one\n"


def test_expansion_leaves_what_the_shell_expands() -> None:
    text = "FROM a\nENV $n=$v\nLABEL $n=$v\nCOPY --chown=$v $v $v\nUSER $v\nRUN $v\nCMD $v\nEXPOSE $v\nARG $n=$v\n"
    program = read_program(parse(text.encode()))
    values = {"$n": "name", "$v": "value"}
    env, label, copy, _, run, *_ = [
        expand(item, lambda word: values.get(word, word)) for item in program.stages[0].instructions
    ]
    assert isinstance(env, Env)
    assert isinstance(label, Label)
    assert env.pairs == (Pair(name="name", value="value"),) == label.pairs
    assert isinstance(copy, Copy)
    assert (copy.sources, copy.destination, copy.chown) == (("value",), "value", "value")
    assert isinstance(run, Run)
    assert run.command.words == ("$v",)


def test_a_healthcheck() -> None:
    text = 'FROM a\nHEALTHCHECK --interval=1m30s --timeout=1.5s --start-period=1h --retries=3 CMD ["x", "y z"]\n'
    (check,) = read_program(parse(text.encode())).stages[0].instructions
    assert isinstance(check, Healthcheck)
    assert check.test == ("CMD", "x", "y z")
    assert (check.interval_ns, check.timeout_ns) == (90 * 10**9, 1_500_000_000)
    assert (check.start_period_ns, check.retries) == (3600 * 10**9, 3)

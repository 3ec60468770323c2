import pytest

from compatd.builder.changes import change
from compatd.builder.image import Health, RunConfig
from compatd.builder.instructions import read_program
from compatd.builder.parser import parse
from compatd.errors import InvalidParameter

pytestmark = pytest.mark.unit


def apply(config: RunConfig, line: str, *, cmd_given: bool = False) -> tuple[RunConfig, str]:
    (instruction,) = read_program(parse(f"FROM x\n{line}\n".encode())).stages[0].instructions
    return change(config, instruction, cmd_given=cmd_given)


def test_env_keeps_its_places() -> None:
    config = RunConfig(env=("A=1", "B=2"))
    changed, comment = apply(config, "ENV B=3 C=4 A=5")
    assert changed.env == ("A=5", "B=3", "C=4")
    assert comment == "ENV B=3 C=4 A=5"


def test_an_entrypoint_takes_away_an_inherited_command_only() -> None:
    config = RunConfig(cmd=("old",))
    assert apply(config, 'ENTRYPOINT ["e"]')[0].cmd is None
    assert apply(config, 'ENTRYPOINT ["e"]', cmd_given=True)[0].cmd == ("old",)
    assert apply(config, "ENTRYPOINT []") == (RunConfig(), "ENTRYPOINT []")


def test_shell_form_has_the_images_shell() -> None:
    config = RunConfig(shell=("/bin/bash", "-c"))
    changed, comment = apply(config, 'CMD echo "hi"')
    assert changed.cmd == ("/bin/bash", "-c", 'echo "hi"')
    assert comment == 'CMD ["/bin/bash" "-c" "echo \\"hi\\""]'
    assert apply(config, "CMD []")[0].cmd == ()


def test_a_healthcheck_inherits_what_it_does_not_say() -> None:
    config = RunConfig(healthcheck=Health(test=("CMD", "a"), interval=5, retries=3))
    changed, comment = apply(config, "HEALTHCHECK --interval=2s CMD b")
    assert changed.healthcheck == Health(test=("CMD-SHELL", "b"), interval=2 * 10**9, retries=3)
    assert comment == "HEALTHCHECK &{[CMD-SHELL b] 2s 0s 0s 0s 0}"


@pytest.mark.parametrize("name", ["INT", "sigterm", "9", "RTMIN+3", "SIGRTMAX-1"])
def test_signals(name: str) -> None:
    assert apply(RunConfig(), f"STOPSIGNAL {name}")[0].stop_signal == name


@pytest.mark.parametrize("name", ["0", "FOO", "SIG", "RTMIN+99", "9x"])
def test_no_signals(name: str) -> None:
    with pytest.raises(InvalidParameter, match="invalid signal: "):
        apply(RunConfig(), f"STOPSIGNAL {name}")


def test_refuses_what_is_no_change() -> None:
    with pytest.raises(InvalidParameter, match="RUN is not a valid change command"):
        apply(RunConfig(), "RUN x")

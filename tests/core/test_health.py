import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compatd.core import health
from compatd.core.health import Health, Probe
from compatd.wire.types.containers import ContainerConfig
from compatd.wire.types.images import HealthConfig

pytestmark = pytest.mark.unit

MS = 10**6
START = 1_000 * 10**9


def probe(exit_code: int, at_ns: int = START) -> Probe:
    return Probe(start_ns=at_ns, end_ns=at_ns + MS, exit_code=exit_code, output="")


def config(*test: str, shell: tuple[str, ...] = ()) -> ContainerConfig:
    return ContainerConfig(healthcheck=HealthConfig(test=list(test)), shell=list(shell))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (ContainerConfig(), None),
        (config(), None),
        (config("NONE"), None),
        (config("FOO", "x"), None),
        (config("CMD"), []),
        (config("CMD-SHELL"), []),
        (config("CMD", "curl", "-f"), ["curl", "-f"]),
        (config("CMD-SHELL", "curl -f"), ["/bin/sh", "-c", "curl -f"]),
        (config("CMD-SHELL", "x", shell=("/bin/bash", "-ec")), ["/bin/bash", "-ec", "x"]),
    ],
)
def test_what_is_executed(given: ContainerConfig, words: list[str] | None) -> None:
    assert health.command(given) == words


def test_failures_in_a_row_make_it_unhealthy_and_one_success_healthy() -> None:
    known = Health(status=health.STARTING)
    seen: list[tuple[str, int]] = []
    for code in (1, 2, -1, 1, 0, 1, 0, 1, 1, 1):
        known = health.judge(known, probe(code), HealthConfig(), START)
        seen.append((known.status, known.failing_streak))
    assert seen == [
        ("starting", 1),
        ("starting", 2),
        ("unhealthy", 3),
        ("unhealthy", 4),
        ("healthy", 0),
        ("healthy", 1),
        ("healthy", 0),
        ("healthy", 1),
        ("healthy", 2),
        ("unhealthy", 3),
    ]
    assert [entry.exit_code for entry in known.log] == [1, 0, 1, 1, 1]


def test_the_start_period_forgives_until_the_first_success() -> None:
    check = HealthConfig(start_period=10 * 10**9, retries=1)
    known = health.judge(Health(status=health.STARTING), probe(1, START + 9 * 10**9), check, START)
    assert (known.status, known.failing_streak) == ("starting", 0)
    assert health.judge(known, probe(1, START + 10 * 10**9), check, START).status == "unhealthy"
    known = health.judge(known, probe(0, START + MS), check, START)
    assert health.judge(known, probe(1, START + 2 * MS), check, START).status == "unhealthy"


def test_the_pause_between_probes() -> None:
    starting, healthy = Health(status=health.STARTING), Health(status=health.HEALTHY)
    check = HealthConfig(interval=60 * MS, start_period=100 * MS, start_interval=7 * MS)
    assert health.interval_ns(starting, check, START, START + 99 * MS) == 7 * MS
    assert health.interval_ns(healthy, check, START, START + 99 * MS) == 60 * MS
    assert health.interval_ns(starting, check, START, START + 100 * MS) == 60 * MS
    assert health.interval_ns(starting, HealthConfig(start_period=10), START, START) == 5 * 10**9
    assert health.interval_ns(starting, HealthConfig(), START, START) == 30 * 10**9


def test_a_start_keeps_the_log_and_nothing_else() -> None:
    before = Health(status=health.HEALTHY, failing_streak=2, log=(probe(0),))
    assert health.begin(before, config("CMD", "x")) == Health(status=health.STARTING, log=before.log)
    assert health.begin(None, ContainerConfig()) is None
    assert health.suspend(before) == Health(status=health.UNHEALTHY, failing_streak=2, log=before.log)


@settings(max_examples=50)
@given(st.binary(max_size=50))
def test_output_is_always_text(data: bytes) -> None:
    text = health.show_output(data, whole=True)
    text.encode()
    assert len(text) <= len(data)
    assert health.show_output(data, whole=False) == text + "..."


def test_each_byte_that_is_no_text_is_replaced() -> None:
    assert health.show_output(b"x\xff\xfe\xe4\xb8", whole=True) == "x\ufffd\ufffd\ufffd\ufffd"

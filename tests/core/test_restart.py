import pytest

from compatd.core.restart import RestartPolicy

pytestmark = pytest.mark.unit


def policy(name: str, *, maximum: int = 0, count: int = 0, stopped: bool = False, ended: bool = False) -> RestartPolicy:
    return RestartPolicy(
        name=name, maximum_retry_count=maximum, restart_count=count, stopped_by_user=stopped, ended_by_user=ended
    )


@pytest.mark.parametrize(
    ("given", "exit_code", "again", "with_engine"),
    [
        (policy("no"), 1, False, False),
        (policy("always"), 0, True, True),
        (policy("always", stopped=True), 0, True, True),
        (policy("always", stopped=True, ended=True), 0, False, True),
        (policy("unless-stopped"), 0, True, True),
        (policy("unless-stopped", stopped=True), 0, False, False),
        (policy("on-failure"), 0, False, False),
        (policy("on-failure", count=1000), 1, True, True),
        (policy("on-failure", maximum=3, count=2), 1, True, True),
        (policy("on-failure", maximum=3, count=3), 1, False, False),
        (policy("on-failure", stopped=True, ended=True), 1, False, True),
    ],
)
def test_policies(given: RestartPolicy, exit_code: int, again: bool, with_engine: bool) -> None:
    assert given.wants_restart(exit_code) is again
    assert given.wants_start_with_engine(exit_code) is with_engine


def test_the_delay_doubles_up_to_a_minute_and_begins_again_after_a_healthy_run() -> None:
    delays, delay = [], 0.0
    for _ in range(12):
        delay = RestartPolicy.next_backoff_s(delay, 9)
        delays.append(delay)
    assert [round(delay, 1) for delay in delays] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 51.2, 60.0, 60.0]
    assert RestartPolicy.next_backoff_s(60.0, 10) == 0.1

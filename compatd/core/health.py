"""Health checks: what is probed, how often, and what follows from a probe. Pure; ``core.probes`` runs them.

Figures and rules are those of moby daemon/health.go.
"""

from collections.abc import Sequence

import msgspec

from compatd.wire.types.containers import ContainerConfig
from compatd.wire.types.images import HealthConfig

STARTING, HEALTHY, UNHEALTHY = "starting", "healthy", "unhealthy"
NONE = "none"  # as the list filter calls a container without a check
DEFAULT_INTERVAL_NS = 30 * 10**9
DEFAULT_START_INTERVAL_NS = 5 * 10**9
DEFAULT_TIMEOUT_NS = 30 * 10**9
DEFAULT_RETRIES = 3
MAX_OUTPUT_BYTES = 4096
KEPT = 5
FAILED = -1  # exit code of a probe that did not start or did not end in time


class Probe(msgspec.Struct, frozen=True, kw_only=True):
    """One run of the check. Times are nanoseconds since 1970."""

    start_ns: int
    end_ns: int
    exit_code: int
    output: str


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a container that has a check and was started; the newest probe is the last."""

    status: str
    failing_streak: int = 0
    log: tuple[Probe, ...] = ()


def command(config: ContainerConfig) -> list[str] | None:
    """What a probe executes; None when there is nothing to check. Empty: a check that names no program."""
    check = config.healthcheck
    kind, *words = (check.test if check is not None else None) or [""]
    if kind == "CMD":
        return words
    if kind == "CMD-SHELL":
        return [*(config.shell or ("/bin/sh", "-c")), *words] if words else []
    return None


def begin(before: Health | None, config: ContainerConfig) -> Health | None:
    """At a start: unknown again, with the earlier probes still to be seen."""
    if command(config) is None:
        return before
    return Health(status=STARTING, log=before.log if before is not None else ())


def suspend(before: Health | None) -> Health | None:
    """While nothing is probed, paused or ended: Docker calls that unhealthy, without an event."""
    return None if before is None else msgspec.structs.replace(before, status=UNHEALTHY)


def judge(before: Health, probe: Probe, check: HealthConfig, started_ns: int) -> Health:
    """After a probe: one success is health, ``retries`` failures in a row are not. Failures count from the end of the
    start period on, or from the first success."""
    status, streak = before.status, before.failing_streak
    if probe.exit_code == 0:
        status, streak = HEALTHY, 0
    elif status != STARTING or probe.start_ns - started_ns >= check.start_period:
        streak += 1
        if streak >= (check.retries if check.retries > 0 else DEFAULT_RETRIES):
            status = UNHEALTHY
    return Health(status=status, failing_streak=streak, log=(*before.log, probe)[-KEPT:])


def interval_ns(health: Health, check: HealthConfig, started_ns: int, now_ns: int) -> int:
    """From the end of a probe, or from the start, to the next probe."""
    if now_ns - started_ns < check.start_period and health.status == STARTING:
        return check.start_interval or DEFAULT_START_INTERVAL_NS
    return check.interval or DEFAULT_INTERVAL_NS


def show_output(data: bytes, *, whole: bool) -> str:
    """Output as a probe keeps it: what is no UTF-8 is replaced byte by byte, as Go does it; ``...`` ends a part."""
    text = data.decode("utf-8", "surrogateescape")
    return "".join("\ufffd" if "\udc80" <= char <= "\udcff" else char for char in text) + ("" if whole else "...")


def shown(health: Health | None) -> str:
    """What a list shows of it in parentheses, behind how long the container is up."""
    if health is None:
        return ""
    return f" ({'health: ' if health.status == STARTING else ''}{health.status})"


def matches(wanted: Sequence[str], health: Health | None) -> bool:
    """Whether the ``health`` filter lets it pass."""
    return not wanted or (NONE if health is None else health.status) in wanted

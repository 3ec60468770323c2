"""Restart policies: whether a container that has ended starts again, and when (moby daemon/internal/restartmanager)."""

from dataclasses import dataclass
from typing import Self

from compatd.core.container import ContainerRecord

FIRST_BACKOFF_S = 0.1
LAST_BACKOFF_S = 60.0
# A run at least this long counts as healthy: the next failure begins with the first delay again.
HEALTHY_S = 10


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """What the container asked for, and what matters of its history."""

    name: str
    maximum_retry_count: int
    restart_count: int
    stopped_by_user: bool
    ended_by_user: bool

    @classmethod
    def of(cls, record: ContainerRecord) -> Self:
        policy = record.host_config.restart_policy
        return cls(
            name=policy.name or "no",
            maximum_retry_count=policy.maximum_retry_count,
            restart_count=record.restart_count,
            stopped_by_user=record.stopped_by_user,
            ended_by_user=record.ended_by_user,
        )

    def wants_restart(self, exit_code: int) -> bool:
        """Whether the run that ended with ``exit_code`` is followed by another."""
        return not self.ended_by_user and self.wants_start_with_engine(exit_code)

    def wants_start_with_engine(self, exit_code: int) -> bool:
        """Whether it starts when the engine does and finds it ended with ``exit_code``, whenever that was: what its
        user did to it counts no more, but for ``unless-stopped`` (moby daemon.go, restore)."""
        if self.name == "on-failure":
            enough = self.maximum_retry_count and self.restart_count >= self.maximum_retry_count
            return exit_code != 0 and not enough
        return self.name == "always" or (self.name == "unless-stopped" and not self.stopped_by_user)

    @staticmethod
    def next_backoff_s(previous_s: float, ran_s: int) -> float:
        """The delay before the next start: doubled each time, up to a minute."""
        if not previous_s or ran_s >= HEALTHY_S:
            return FIRST_BACKOFF_S
        return min(previous_s * 2, LAST_BACKOFF_S)

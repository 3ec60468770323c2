"""``docker update``: new limits and another restart policy, for a container in any state (moby daemon/update.go).

The record is committed first and put back when the kernel refuses a limit: what a client was told is what the next
start has. An engine that dies in between leaves the new record with the old limits, and nobody has been told.
"""

import msgspec

from compatd.core import creation
from compatd.core.container import Container
from compatd.core.containers import Containers
from compatd.core.lifecycle import ALIVE, State
from compatd.core.preparation import Preparation
from compatd.core.supervisor import Supervisor
from compatd.core.translation import adapt_resources, resources
from compatd.errors import Conflict, EngineError, InvalidParameter, SystemFailure, reword
from compatd.runtime import cgroups
from compatd.runtime.host import Host
from compatd.wire.types.containers import HostConfig, RestartPolicy, UpdateRequest, UpdateResponse

# What else a request can hold is ignored, as Docker ignores it: it holds from the creation on.
CHANGEABLE = (
    "blkio_weight",
    "cpu_shares",
    "nano_cpus",
    "cpu_period",
    "cpu_quota",
    "cpuset_cpus",
    "cpuset_mems",
    "memory",
    "memory_swap",
    "memory_reservation",
    "cpu_realtime_period",
    "cpu_realtime_runtime",
    "kernel_memory",
)
CHECKED = ("memory_swappiness", "oom_kill_disable", "cpu_percent", "io_maximum_iops", "io_maximum_bandwidth")


class Updates:
    """Changes containers on behalf of clients."""

    def __init__(self, *, containers: Containers, supervisor: Supervisor, preparation: Preparation, host: Host) -> None:
        self._containers = containers
        self._supervisor = supervisor
        self._preparation = preparation
        self._host = host

    async def update(self, reference: str, request: UpdateRequest) -> UpdateResponse:
        """Zero values change nothing, but for ``pids_limit``, where ``None`` does not and 0 takes the limit away.

        ``InvalidParameter``: the request makes no sense for any container. ``Conflict``: not for this one.
        ``SystemFailure``: the kernel refuses, and nothing is changed.
        """
        wanted, warnings = self._check(request)
        container = self._containers.get(reference)
        async with container.lock:
            try:
                before = container.record
                if before.state in (State.REMOVING, State.DEAD):
                    raise Conflict('container is marked for removal and cannot be "update"')
                changed = _merge(before.host_config, wanted)
                await self._supervisor.commit(container, msgspec.structs.replace(before, host_config=changed))
            except EngineError as error:
                raise _cannot_update(container, error) from error
            try:
                if before.state in ALIVE:
                    await self._preparation.change_limits(before, resources(wanted))
            except SystemFailure as error:
                await self._supervisor.commit(
                    container, msgspec.structs.replace(container.record, host_config=before.host_config)
                )
                raise _cannot_update(
                    container, SystemFailure(f"runc did not terminate successfully: exit status 1: {error}\n")
                ) from error
            finally:
                self._supervisor.publish(container.record, "update")  # also when it has failed: so does Docker
        return UpdateResponse(warnings=warnings or None)

    def _check(self, request: UpdateRequest) -> tuple[HostConfig, list[str]]:
        """What is asked for, without what this machine cannot do, and warnings of that."""
        fields = (*CHANGEABLE, *CHECKED, "pids_limit", "restart_policy")
        wanted = HostConfig(**{field: getattr(request, field) for field in fields})
        creation.check_restart_policy(wanted.restart_policy)
        adapted, warnings = cgroups.check(resources(wanted), self._host, update=True)
        if 0 < wanted.kernel_memory < cgroups.MIN_MEMORY_BYTES:
            raise InvalidParameter("Minimum kernel memory limit allowed is 6MB")
        if wanted.cpu_percent > 0:
            warnings.append("linux does not support CPU percent. Percent discarded.")
        if wanted.io_maximum_iops or wanted.io_maximum_bandwidth:
            raise InvalidParameter(
                "Invalid QoS settings: linux does not support Maximum IO Bandwidth or Maximum IO IOps"
            )
        return adapt_resources(wanted, adapted), warnings


def _merge(current: HostConfig, wanted: HostConfig) -> HostConfig:
    """``Conflict`` in Docker's words where the two contradict each other."""
    cgroups.check_update(resources(current), resources(wanted))
    changes: dict[str, object] = {field: value for field in CHANGEABLE if (value := getattr(wanted, field))}
    if wanted.pids_limit is not None:
        changes["pids_limit"] = max(0, wanted.pids_limit)
    policy = wanted.restart_policy
    if policy.name:
        if current.auto_remove and policy.name != "no":
            raise Conflict("Restart policy cannot be updated because AutoRemove is enabled for the container")
        changes["restart_policy"] = RestartPolicy(name=policy.name, maximum_retry_count=policy.maximum_retry_count)
    return msgspec.structs.replace(current, **changes)


def _cannot_update(container: Container, error: EngineError) -> EngineError:
    return reword(error, f"Cannot update container {container.id}: {error}")

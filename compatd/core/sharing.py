"""Namespaces that a container shares: with the host, or with another container.

At creation the other container's name becomes its id, so that a rename changes nothing. At a start its namespaces are
opened as descriptors, which go to the shim: what happens to the other one afterwards does not matter, except that a
process namespace ends with its first process. Texts and kinds are those of moby daemon/container_operations_unix.go
and daemon/daemon_unix.go.
"""

from collections.abc import Callable

import msgspec

from compatd.core.container import ContainerRecord, is_restarting, not_running
from compatd.core.lifecycle import ALIVE, State
from compatd.errors import Conflict, EngineError, InvalidParameter, SystemFailure, reword
from compatd.linux import assembly
from compatd.runtime import namespaces
from compatd.wire.types.containers import ContainerConfig, HostConfig

PREFIX = "container:"
SHM = "/dev/shm"
_MODES = (
    ("IPC", "ipc_mode", ("", "none", "private", "shareable", "host")),
    ("PID", "pid_mode", ("", "host")),
    ("UTS", "uts_mode", ("", "host")),
    ("cgroup namespace", "cgroupns_mode", ("", "private", "host")),
)
_LABELS_OFF = "label=disable"

Find = Callable[[str], ContainerRecord]


def check_modes(host_config: HostConfig) -> None:
    """``InvalidParameter`` for what is no mode. The user namespace's is whatever one likes: nothing is remapped."""
    for label, field, known in _MODES:
        mode: str = getattr(host_config, field)
        if mode in known or (label == "IPC" and mode.startswith(PREFIX)):
            continue
        if label != "PID" or not mode.removeprefix(PREFIX) or not mode.startswith(PREFIX):
            raise InvalidParameter(f"invalid {label} mode: {mode}")


def check_network(host_config: HostConfig, config: ContainerConfig) -> None:
    """What a container that shares another's network cannot have of its own (moby runconfig/hostconfig.go)."""
    mode = host_config.network_mode
    if mode != "container" and not mode.startswith(PREFIX):
        return
    if not mode.removeprefix("container").removeprefix(":"):
        raise InvalidParameter("invalid network mode: invalid container format container:<name|id>")
    for given, what in (
        (config.hostname, "hostname and the network mode"),
        (
            host_config.links,
            "container type network can't be used with links. This would result in undefined behavior",
        ),
        (host_config.dns, "dns and the network mode"),
        (host_config.extra_hosts, "custom host-to-IP mapping and the network mode"),
        (
            host_config.port_bindings or host_config.publish_all_ports,
            "port publishing and the container type network mode",
        ),
        (config.exposed_ports, "port exposing and the container type network mode"),
    ):
        if given:
            raise InvalidParameter(f"conflicting options: {what}")


def resolve(host_config: HostConfig, find: Find) -> HostConfig:
    """``host_config`` with the ids of the containers it names (moby: adaptSharedNamespaceContainer), and without
    labels where they are in the way (generateSecurityOpt).

    ``InvalidParameter``: no such container, except for the network's, whose absence is told at the start.
    """
    labelled = any(option.split("=")[0] == "label" for option in host_config.security_opt or ())
    changes: dict[str, object] = {}
    for field in ("pid_mode", "ipc_mode", "network_mode"):
        mode: str = getattr(host_config, field)
        reference = mode.removeprefix(PREFIX)
        if reference and reference != mode:
            try:
                changes[field] = PREFIX + find(reference).id
            except EngineError as error:
                if field != "network_mode" and not labelled:
                    raise InvalidParameter(str(error)) from error
    shared = host_config.privileged or "host" in (host_config.pid_mode, host_config.ipc_mode)
    if shared and not labelled:
        changes["security_opt"] = [*(host_config.security_opt or ()), _LABELS_OFF]
    return msgspec.structs.replace(host_config, **changes)


def donors(host_config: HostConfig) -> list[str]:
    """The ids of the containers that must run before one with ``host_config`` can start."""
    modes = (host_config.network_mode, host_config.pid_mode, host_config.ipc_mode)
    return [mode.removeprefix(PREFIX) for mode in modes if mode.startswith(PREFIX)]


def open_shared(record: ContainerRecord, find: Find, fds: list[int]) -> dict[str, int]:
    """Open what ``record`` shares with other containers: its ``pid`` and ``ipc`` namespace, and ``shm``, a detached
    mount of /dev/shm. Everything opened is appended to ``fds``, for the caller to close. Blocks.

    ``InvalidParameter``, ``Conflict`` or ``SystemFailure`` when the other one is not there, does not run, or keeps its
    memory for itself.
    """
    host_config = record.host_config
    opened: dict[str, int] = {}

    def own(kind: str, fd: int) -> None:
        fds.append(fd)
        opened[kind] = fd

    if host_config.ipc_mode.startswith(PREFIX):
        try:
            donor = _running(host_config.ipc_mode.removeprefix(PREFIX), find)
            _check_shareable(donor)
            own("ipc", namespaces.open_namespace(donor.pid, donor.id, "ipc"))
            own("shm", _shared_memory(donor))
        except EngineError as error:
            raise reword(error, f"failed to join IPC namespace: {error}") from error
    if host_config.pid_mode.startswith(PREFIX):
        try:
            donor = _running(host_config.pid_mode.removeprefix(PREFIX), find)
            own("pid", namespaces.open_namespace(donor.pid, donor.id, "pid"))
        except EngineError as error:
            # moby has lost the kind on this way.
            raise SystemFailure(f"failed to join PID namespace: {error}") from error
    return opened


def open_network(record: ContainerRecord, find: Find) -> int:
    """The network namespace of the container that ``record`` shares one with; the caller owns the descriptor."""
    try:
        donor = find(record.host_config.network_mode.removeprefix(PREFIX))
    except EngineError as error:
        raise SystemFailure(f"joining network namespace of container: {error}") from error
    if donor.id == record.id:
        raise SystemFailure("cannot join own network namespace")
    if donor.state is State.RESTARTING:
        raise Conflict(f"cannot join network namespace of container: {is_restarting(donor.id)}")
    if donor.state not in ALIVE:
        raise Conflict(
            f"cannot join network namespace of a non running container: container {donor.name} is {donor.state.value}"
        )
    return namespaces.open_namespace(donor.pid, donor.id, "net")


def _running(reference: str, find: Find) -> ContainerRecord:
    if not reference:
        raise InvalidParameter('invalid name or ID supplied: ""')
    try:
        donor = find(reference)
    except EngineError as error:
        raise InvalidParameter(str(error)) from error
    if donor.state is State.RESTARTING:
        raise is_restarting(reference)
    if donor.state not in ALIVE:
        raise not_running(reference)
    return donor


def _check_shareable(donor: ContainerRecord) -> None:
    mode = donor.host_config.ipc_mode
    if mode == "host" or mode.startswith(PREFIX):
        return
    own = {point.target for point in donor.mounts} | set(donor.host_config.tmpfs)
    if mode != "shareable" or SHM in own:
        raise InvalidParameter(
            f"container {donor.id}: non-shareable IPC (hint: use IpcMode:shareable for the donor container)"
        )


def _shared_memory(donor: ContainerRecord) -> int:
    if donor.host_config.ipc_mode == "host":
        return assembly.clone_tree(SHM)
    return namespaces.clone_mount(donor.pid, donor.id, SHM)

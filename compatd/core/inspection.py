"""Container records as the API shows them. Pure: what is not in the record is passed in."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import msgspec

from compatd.core import health
from compatd.core.container import ContainerRecord
from compatd.core.container import MountPoint as StoredMount
from compatd.core.lifecycle import ALIVE, State
from compatd.core.networks import Networks
from compatd.core.ports import exposed_ports
from compatd.wire.times import format_time
from compatd.wire.types.containers import (
    ContainerInspect,
    ContainerState,
    ContainerSummary,
    Health,
    HealthcheckResult,
    MountPoint,
    NetworkSettings,
    Port,
    PortBinding,
    PortMap,
    SummaryHostConfig,
    SummaryNetworkSettings,
)
from compatd.wire.types.images import GraphDriver

# What Docker covers in a container that is not privileged (oci/defaults.go); shown when the user set nothing.
MASKED_PATHS = (
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
)
READONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerPaths:
    """Where a container's files are on the host."""

    directory: str
    upper: str
    work: str
    hosts: str
    hostname: str
    resolv_conf: str
    log: str


def inspect(
    record: ContainerRecord,
    *,
    paths: ContainerPaths,
    networks: Networks,
    sizes: tuple[int, int] | None,
    exec_ids: Sequence[str] = (),
    layers: Sequence[str] = (),
) -> ContainerInspect:
    """``GET /containers/{id}/json``. ``layers``: where those of its image are kept, topmost first."""
    args = record.args
    host_config = msgspec.structs.replace(record.host_config, links=networks.links.shown(record))
    if host_config.masked_paths is None and not host_config.privileged:
        host_config = msgspec.structs.replace(host_config, masked_paths=list(MASKED_PATHS))
    if host_config.readonly_paths is None and not host_config.privileged:
        host_config = msgspec.structs.replace(host_config, readonly_paths=list(READONLY_PATHS))
    has_files = not record.config.network_disabled
    started_once = bool(record.started_ns) or bool(record.endpoints)
    return ContainerInspect(
        id=record.id,
        created=format_time(record.created_ns),
        path=args[0] if args else "",
        args=list(args[1:]),
        state=state_of(record),
        image=record.image_id,
        resolv_conf_path=paths.resolv_conf if started_once and has_files else "",
        hostname_path=paths.hostname if started_once and has_files else "",
        hosts_path=paths.hosts if started_once and has_files else "",
        log_path=paths.log if started_once and host_config.log_config.type == "json-file" else "",
        name=f"/{record.name}",
        restart_count=record.restart_count,
        driver="overlay2",
        exec_ids=list(exec_ids) or None,
        host_config=host_config,
        graph_driver=GraphDriver(
            data={
                "ID": record.id,
                "LowerDir": ":".join(layers),
                # Nothing is mounted on the host: this is where a container's root is seen from there, while it runs.
                "MergedDir": f"/proc/{record.pid}/root" if record.pid else "",
                "UpperDir": paths.upper,
                "WorkDir": paths.work,
            },
            name="overlay2",
        ),
        size_rw=sizes[0] if sizes else None,
        size_root_fs=sizes[1] if sizes else None,
        mounts=_mounts(record),
        config=record.config,
        network_settings=network_settings(record, networks),
    )


def state_of(record: ContainerRecord) -> ContainerState:
    """The flags that Docker derives, and the times."""
    state = record.state
    known = record.health
    return ContainerState(
        status=state.value,
        running=state in ALIVE or state is State.RESTARTING,
        paused=state is State.PAUSED,
        restarting=state is State.RESTARTING,
        oom_killed=record.oom_killed,
        dead=state is State.DEAD,
        pid=record.pid,
        exit_code=record.exit_code,
        error=record.error,
        started_at=format_time(record.started_ns),
        finished_at=format_time(record.finished_ns),
        health=Health(
            status=known.status,
            failing_streak=known.failing_streak,
            log=[
                HealthcheckResult(
                    start=format_time(probe.start_ns),
                    end=format_time(probe.end_ns),
                    exit_code=probe.exit_code,
                    output=probe.output,
                )
                for probe in known.log
            ],
        )
        if known is not None
        else None,
    )


def _mounts(record: ContainerRecord) -> list[MountPoint]:
    """Binds and volumes, and what ``--mount`` has of tmpfs; what ``--tmpfs`` has is in the host configuration only."""
    return [_mount(point) for point in record.mounts]


def _mount(point: StoredMount) -> MountPoint:
    return MountPoint(
        type=point.type,
        name="" if point.unnamed else point.name,
        source=point.source,
        destination=point.target,
        driver="local" if point.type == "volume" else "",
        mode=point.mode,
        rw=not point.readonly,
        propagation=point.propagation,
    )


def network_settings(record: ContainerRecord, networks: Networks) -> NetworkSettings:
    """The networks it is in; the single-network fields repeat the default bridge."""
    settings = networks.settings_of(record)
    bridge = settings.get("bridge")
    return NetworkSettings(
        sandbox_id=networks.sandbox_id(record),
        sandbox_key=networks.sandbox_key(record),
        ports=port_map(record),
        endpoint_id=bridge.endpoint_id if bridge else "",
        gateway=bridge.gateway if bridge else "",
        ip_address=bridge.ip_address if bridge else "",
        ip_prefix_len=bridge.ip_prefix_len if bridge else 0,
        ipv6_gateway=bridge.ipv6_gateway if bridge else "",
        global_ipv6_address=bridge.global_ipv6_address if bridge else "",
        global_ipv6_prefix_len=bridge.global_ipv6_prefix_len if bridge else 0,
        mac_address=bridge.mac_address if bridge else "",
        networks=settings,
    )


def port_map(record: ContainerRecord) -> PortMap:
    """Exposed ports, and where they are published; empty unless it runs and some network leads out."""
    if record.state not in ALIVE or not any(one.gateway or one.gateway6 for one in record.endpoints.values()):
        return {}
    ports: PortMap = dict.fromkeys(exposed_ports(record))
    for endpoint in record.endpoints.values():
        for mapping in endpoint.ports:
            key = f"{mapping.container_port}/{mapping.protocol}"
            bindings = ports.get(key) or []
            bindings.append(PortBinding(host_ip=mapping.host_ip, host_port=str(mapping.host_port or "")))
            ports[key] = bindings
    return ports


def summarize(
    record: ContainerRecord,
    *,
    networks: Networks,
    image_name: str,
    sizes: tuple[int, int] | None,
    linked: Sequence[str] = (),
) -> ContainerSummary:
    """One entry of ``GET /containers/json``."""
    return ContainerSummary(
        id=record.id,
        names=sorted([f"/{record.name}", *linked]),
        image=image_name,
        image_id=record.image_id,
        command=" ".join(_quote(argument) for argument in record.args),
        created=record.created_ns // 1_000_000_000,
        ports=ports_of(record),
        size_rw=sizes[0] if sizes else 0,
        size_root_fs=sizes[1] if sizes else 0,
        labels=record.config.labels or {},
        state=record.state.value,
        status=status_text(record),
        host_config=SummaryHostConfig(
            network_mode=record.host_config.network_mode, annotations=record.host_config.annotations or {}
        ),
        network_settings=SummaryNetworkSettings(networks=networks.settings_of(record)),
        mounts=_mounts(record),
    )


def _quote(argument: str) -> str:
    return f"'{argument}'" if " " in argument else argument


def ports_of(record: ContainerRecord) -> list[Port]:
    """Published ports once per address, exposed ones without."""
    if record.state not in ALIVE:
        return []
    ports: list[Port] = []
    for key, bindings in port_map(record).items():
        number, _, protocol = key.partition("/")
        if not bindings:
            ports.append(Port(private_port=int(number), type=protocol))
        for binding in bindings or ():
            public = int(binding.host_port or 0)
            ports.append(Port(ip=binding.host_ip, private_port=int(number), public_port=public, type=protocol))
    return ports


def status_text(record: ContainerRecord, now_ns: int | None = None) -> str:
    """``Up 5 minutes``, ``Exited (0) 2 hours ago`` … (moby daemon/container/state.go, String)."""
    now = now_ns if now_ns is not None else int(datetime.now(UTC).timestamp() * 1e9)
    match record.state:
        case State.RUNNING:
            return f"Up {human_duration((now - record.started_ns) / 1e9)}{health.shown(record.health)}"
        case State.PAUSED:
            return f"Up {human_duration((now - record.started_ns) / 1e9)} (Paused)"
        case State.RESTARTING:
            return f"Restarting ({record.exit_code}) {human_duration((now - record.finished_ns) / 1e9)} ago"
        case State.REMOVING:
            return "Removal In Progress"
        case State.DEAD:
            return "Dead"
        case State.CREATED:
            return "Created"
        case State.EXITED:
            if not record.finished_ns:
                return ""
            return f"Exited ({record.exit_code}) {human_duration((now - record.finished_ns) / 1e9)} ago"


def human_duration(seconds: float) -> str:
    """A duration in words (docker/go-units, HumanDuration)."""
    whole = int(seconds)
    if whole < 1:
        return "Less than a second"
    if whole == 1:
        return "1 second"
    if whole < 60:
        return f"{whole} seconds"
    minutes = int(seconds / 60)
    if minutes == 1:
        return "About a minute"
    if minutes < 60:
        return f"{minutes} minutes"
    hours = int(seconds / 3600 + 0.5)
    if hours == 1:
        return "About an hour"
    if hours < 48:
        return f"{hours} hours"
    if hours < 24 * 7 * 2:
        return f"{hours // 24} days"
    if hours < 24 * 30 * 2:
        return f"{hours // 24 // 7} weeks"
    if hours < 24 * 365 * 2:
        return f"{hours // 24 // 30} months"
    return f"{hours // 24 // 365} years"


def directory_paths(directory: str, container_id: str) -> ContainerPaths:
    """The files of a container whose directory is ``directory``."""
    return ContainerPaths(
        directory=directory,
        upper=f"{directory}/upper",
        work=f"{directory}/work",
        hosts=f"{directory}/hosts",
        hostname=f"{directory}/hostname",
        resolv_conf=f"{directory}/resolv.conf",
        log=f"{directory}/{container_id}-json.log",
    )

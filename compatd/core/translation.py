"""From a container record, in the API's terms, to a ``ContainerSpec``, in the runtime's. Pure but for devices."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast

import msgspec

from compatd.core import mounts
from compatd.core.container import ContainerRecord
from compatd.core.inspection import ContainerPaths
from compatd.errors import SystemFailure
from compatd.runtime import devices
from compatd.runtime.cgroups import BlkioLimit, Resources
from compatd.runtime.spec import HOST, NEW, Bind, ContainerSpec, Propagation, Ulimit
from compatd.shim import spec as shim
from compatd.wire.types.containers import DeviceRequest, HostConfig, ThrottleDevice, WeightDevice
from compatd.wire.types.containers import Resources as WireResources

DEFAULT_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_BLKIO: dict[Literal["weight", "read_bps", "write_bps", "read_iops", "write_iops"], str] = {
    "weight": "blkio_weight_device",
    "read_bps": "blkio_device_read_bps",
    "write_bps": "blkio_device_write_bps",
    "read_iops": "blkio_device_read_iops",
    "write_iops": "blkio_device_write_iops",
}
_LIMITS = {
    "memory": "memory_bytes",
    "memory_reservation": "memory_reservation_bytes",
    "memory_swap": "memory_swap_bytes",
    "memory_swappiness": "memory_swappiness",
    "oom_kill_disable": "oom_kill_disable",
    "nano_cpus": "nano_cpus",
    "cpu_shares": "cpu_shares",
    "cpu_period": "cpu_period_us",
    "cpu_quota": "cpu_quota_us",
    "cpu_realtime_period": "cpu_realtime_period_us",
    "cpu_realtime_runtime": "cpu_realtime_runtime_us",
    "cpuset_cpus": "cpuset_cpus",
    "cpuset_mems": "cpuset_mems",
    "pids_limit": "pids_limit",
    "blkio_weight": "blkio_weight",
}
RUNTIMES = ("runc", "io.containerd.runc.v2")  # what a container has here, under either name
_TRUE = ("1", "t", "T", "TRUE", "true", "True")
_FALSE = ("0", "f", "F", "FALSE", "false", "False")


@dataclass(slots=True)
class Security:
    """The ``--security-opt`` list, read. ``None``: the list does not say."""

    seccomp: str | None = None
    no_new_privileges: bool = False
    apparmor: str | None = None
    writable_cgroups: bool | None = None


def container_spec(
    record: ContainerRecord,
    *,
    paths: ContainerPaths,
    state_dir: str,
    lowers: Sequence[str],
    netns_fd: int | None = None,
    shared: Mapping[str, int] | None = None,
    sources: Mapping[str, int] | None = None,
    network_files: ContainerPaths | None = None,
    log: shim.Log | None = None,
    linked: Sequence[str] = (),
    defaults: Security | None = None,
) -> ContainerSpec:
    """``netns_fd``: index of the network namespace among the descriptors that go with the launch; None: the host's.
    ``shared``: likewise of what comes from another container, ``pid``, ``ipc`` and ``shm``; ``sources``: of detached
    mounts, by target.
    ``network_files``: where hosts, hostname and resolv.conf are, if not among the container's own.
    ``log``: None writes none. ``linked``: variables that tell of linked containers. ``defaults``: the engine's.

    ``InvalidParameter`` in Docker's words for options that make no sense.
    """
    config, host_config = record.config, record.host_config
    _check_runtime(host_config.runtime)
    shared, sources = shared or {}, sources or {}
    security = read_security(host_config.security_opt or (), defaults)
    return ContainerSpec(
        id=record.id,
        state_dir=state_dir,
        lowers=tuple(lowers),
        upper=paths.upper,
        work=paths.work,
        # What nobody can see after the container has ended need not survive a power failure.
        volatile=host_config.auto_remove,
        readonly_rootfs=host_config.readonly_rootfs,
        args=record.args,
        env=environment(record, linked),
        cwd=config.working_dir or "/",
        user=config.user,
        group_add=tuple(host_config.group_add or ()),
        tty=config.tty,
        console_size=(
            (host_config.console_size[0], host_config.console_size[1]) if any(host_config.console_size) else None
        ),
        open_stdin=config.open_stdin,
        stdin_once=config.stdin_once,
        init=bool(host_config.init),
        hostname=config.hostname,
        domainname=config.domainname,
        pid=_namespace(host_config.pid_mode, shared.get("pid")),
        ipc=_namespace(host_config.ipc_mode, shared.get("ipc")),
        uts=HOST if host_config.uts_mode == "host" else NEW,
        net=HOST if netns_fd is None else shim.Namespace(mode="fd", fd=netns_fd),
        cgroup=HOST if host_config.cgroupns_mode == "host" else NEW,
        privileged=host_config.privileged,
        cap_add=tuple(host_config.cap_add or ()),
        cap_drop=tuple(host_config.cap_drop or ()),
        seccomp=security.seccomp or (defaults.seccomp if defaults and not host_config.privileged else None),
        no_new_privileges=security.no_new_privileges,
        writable_cgroups=security.writable_cgroups,
        apparmor=security.apparmor,
        masked_paths=_paths(host_config.masked_paths, host_config.privileged),
        readonly_paths=_paths(host_config.readonly_paths, host_config.privileged),
        sysctls=host_config.sysctls or {},
        ulimits=tuple(Ulimit(name=u.name, soft=u.soft, hard=u.hard) for u in host_config.ulimits or ()),
        oom_score_adj=host_config.oom_score_adj,
        shm="fd" if "shm" in shared else _shm(host_config.ipc_mode),
        shm_fd=shared.get("shm", -1),
        shm_size_bytes=host_config.shm_size,
        tmpfs={mounts.clean_path(target): options for target, options in host_config.tmpfs.items()}
        | {point.target: point.options for point in record.mounts if point.type == "tmpfs"},
        binds=tuple(
            Bind(
                source=point.source,
                target=point.target,
                readonly=point.readonly,
                readonly_recursive=point.readonly_recursive,
                recursive=point.recursive,
                propagation=cast(Propagation, point.propagation),
                fd=sources.get(point.target),
            )
            for point in record.mounts
            if point.type != "tmpfs" and point.target not in host_config.tmpfs
        ),
        files=() if config.network_disabled else _files(network_files or paths),
        devices=_devices(host_config),
        device_rules=tuple(devices.parse_rule(rule) for rule in host_config.device_cgroup_rules or ()),
        resources=resources(host_config),
        cgroup_parent=host_config.cgroup_parent,
        log=log or shim.Log(driver="none"),
    )


def _namespace(mode: str, fd: int | None) -> shim.Namespace:
    if fd is not None:
        return shim.Namespace(mode="fd", fd=fd)
    return HOST if mode == "host" else NEW


def _shm(ipc_mode: str) -> Literal["private", "none", "host"]:
    return "none" if ipc_mode == "none" else "host" if ipc_mode == "host" else "private"


def environment(record: ContainerRecord, linked: Sequence[str] = ()) -> tuple[str, ...]:
    """PATH and HOSTNAME first, then ``linked`` and the configured variables; one without a value is left out
    (moby daemon/container/env.go)."""
    given = {entry.partition("=")[0]: entry for entry in record.config.env or () if "=" in entry}
    base = {"PATH": DEFAULT_PATH, "HOSTNAME": f"HOSTNAME={record.config.hostname}"}
    if record.config.tty:
        base["TERM"] = "TERM=xterm"
    base |= {entry.partition("=")[0]: entry for entry in linked}
    return tuple((base | given).values())


def resources(wire: WireResources, *, look: bool = True) -> Resources:
    """The limits, in the runtime's terms. ``look``: for the numbers of devices, in the host's file system;
    ``SystemFailure`` where there is none."""
    limits = [
        BlkioLimit(
            kind=kind,
            path=entry.path,
            device=devices.number_of(entry.path) if look else (0, 0),
            value=entry.weight if isinstance(entry, WeightDevice) else entry.rate,
        )
        for kind, field in _BLKIO.items()
        for entry in cast(Sequence[WeightDevice | ThrottleDevice], getattr(wire, field) or ())
    ]
    return Resources(
        memory_bytes=wire.memory,
        memory_reservation_bytes=wire.memory_reservation,
        memory_swap_bytes=wire.memory_swap,
        memory_swappiness=wire.memory_swappiness,
        oom_kill_disable=wire.oom_kill_disable,
        nano_cpus=wire.nano_cpus,
        cpu_shares=wire.cpu_shares,
        cpu_period_us=wire.cpu_period,
        cpu_quota_us=wire.cpu_quota,
        cpu_realtime_period_us=wire.cpu_realtime_period,
        cpu_realtime_runtime_us=wire.cpu_realtime_runtime,
        cpuset_cpus=wire.cpuset_cpus,
        cpuset_mems=wire.cpuset_mems,
        pids_limit=wire.pids_limit,
        blkio_weight=wire.blkio_weight,
        blkio_limits=tuple(limits),
    )


def adapt_resources(host_config: HostConfig, adapted: Resources) -> HostConfig:
    """``host_config`` with the limits that will be set, where they are not those that were asked for."""
    wanted = resources(host_config, look=False)
    kept = {limit.kind for limit in adapted.blkio_limits}
    return msgspec.structs.replace(
        host_config,
        **{
            wire: getattr(adapted, name)
            for wire, name in _LIMITS.items()
            if getattr(adapted, name) != getattr(wanted, name)
        },
        **{field: list[object]() for kind, field in _BLKIO.items() if kind not in kept and getattr(host_config, field)},
    )


def read_security(options: Sequence[str], defaults: Security | None = None) -> Security:
    """``SystemFailure`` in the words of moby daemon/daemon_unix.go, parseSecurityOpt."""
    security = Security(no_new_privileges=defaults is not None and defaults.no_new_privileges)
    for option in options:
        if option == "disable":
            continue
        name, separator, value = option.partition("=")
        if not separator:
            name, separator, value = option.partition(":")
        if not separator and option in ("no-new-privileges", "writable-cgroups"):
            value = "true"
        elif not separator:
            raise SystemFailure(f'invalid --security-opt 1: "{option}"')
        match name:
            case "label":
                pass  # SELinux labels mean nothing where there is no SELinux; Docker accepts them there too.
            case "apparmor":
                security.apparmor = value
            case "seccomp":
                security.seccomp = value or None
            case "no-new-privileges" | "writable-cgroups" if value in (*_TRUE, *_FALSE):
                setattr(security, name.replace("-", "_"), value in _TRUE)
            case _:
                raise SystemFailure(f'invalid --security-opt 2: "{option}"')
    return security


def _paths(given: Sequence[str] | None, unconfined: bool) -> tuple[str, ...] | None:
    if given is not None:
        return tuple(given)
    return () if unconfined else None


def _files(paths: ContainerPaths) -> tuple[Bind, ...]:
    return (
        Bind(source=paths.resolv_conf, target="/etc/resolv.conf", propagation="rprivate"),
        Bind(source=paths.hostname, target="/etc/hostname", propagation="rprivate"),
        Bind(source=paths.hosts, target="/etc/hosts", propagation="rprivate"),
    )


def _devices(host_config: HostConfig) -> tuple[devices.Device, ...]:
    """moby daemon/oci_linux.go, WithDevices. ``SystemFailure`` in Docker's words."""
    found: list[devices.Device] = []
    for mapping in host_config.devices or ():
        if host_config.privileged and mapping.path_on_host == mapping.path_in_container:
            continue
        permissions = "rwm" if host_config.privileged else mapping.cgroup_permissions
        found += devices.expand(mapping.path_on_host, mapping.path_in_container, permissions)
    for request in host_config.device_requests or ():
        check_device_request(request)
    return (*devices.host_devices(), *found) if host_config.privileged else tuple(found)


def _check_runtime(name: str) -> None:
    """Names of containerd's shims are accepted, and looked for at the start (containerd, runtime/v2)."""
    if name not in ("", *RUNTIMES):
        _, _, kind, version = name.split(".")
        raise SystemFailure(
            "failed to create task for container: failed to start shim: failed to resolve runtime path: "
            f'runtime "{name}" binary not installed "containerd-shim-{kind}-{version}": file does not exist'
        )


def check_device_request(request: DeviceRequest) -> None:
    """``SystemFailure`` in Docker's words: there are no drivers but CDI's (moby daemon/devices.go and cdi.go), and no
    devices that it could resolve."""
    if request.driver != "cdi":
        wanted = " ".join(f"[{' '.join(group)}]" for group in request.capabilities or ())
        raise SystemFailure(f'could not select device driver "{request.driver}" with capabilities: [{wanted}]')
    if request.count:
        raise SystemFailure("unexpected count in CDI device request")
    if request.options:
        raise SystemFailure("unexpected options in CDI device request")
    if request.device_ids:
        raise SystemFailure(f"CDI device injection failed: unresolvable CDI devices {', '.join(request.device_ids)}")

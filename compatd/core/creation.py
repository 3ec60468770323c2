"""From a create request to a record: defaults, what the image gives, and every check that needs nothing but both.

Options that the engine does not have are refused here by name (``UNSUPPORTED``): none is accepted and ignored.
"""

import ipaddress
import posixpath
import re
from collections.abc import Callable
from typing import Any

import msgspec

from compatd.core import sharing
from compatd.core.logs import check_log
from compatd.core.supervisor import parse_signal
from compatd.core.translation import read_security
from compatd.errors import InvalidParameter, Unsupported
from compatd.images.manifest import Healthcheck, ImageConfig
from compatd.wire.types.containers import (
    ContainerConfig,
    HostConfig,
    LogConfig,
    PortMap,
    RestartPolicy,
)
from compatd.wire.types.images import HealthConfig

DEFAULT_SHM_BYTES = 64 << 20
RESTART_POLICIES = ("no", "always", "on-failure", "unless-stopped")
_PORT = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?(?:/(tcp|udp|sctp))?", re.ASCII)

# (option as users know it, whether the request asks for it)
UNSUPPORTED: tuple[tuple[str, Callable[[HostConfig], Any]], ...] = (
    ("--gpus", lambda h: h.device_requests),
    ("--storage-opt", lambda h: h.storage_opt),
    ("--cpu-rt-period", lambda h: h.cpu_realtime_period),
    ("--cpu-rt-runtime", lambda h: h.cpu_realtime_runtime),
    ("--kernel-memory", lambda h: h.kernel_memory),
    ("--kernel-memory-tcp", lambda h: h.kernel_memory_tcp),
    ("--isolation", lambda h: h.isolation not in ("", "default")),
)


def merge_image_config(config: ContainerConfig, image: ImageConfig) -> ContainerConfig:
    """``config`` with what the image sets and the user does not (moby daemon/commit.go, merge)."""
    given = image.config
    if given is None:
        return config
    changes: dict[str, Any] = {}
    if not config.user:
        changes["user"] = given.user
    changes["exposed_ports"] = {**(given.exposed_ports or {}), **(config.exposed_ports or {})}
    env = list(config.env or ())
    names = {entry.partition("=")[0] for entry in env}
    changes["env"] = env + [entry for entry in given.env or () if entry.partition("=")[0] not in names]
    changes["labels"] = {**(given.labels or {}), **(config.labels or {})}
    if not config.entrypoint:
        if not config.cmd:
            changes["cmd"] = given.cmd
        if config.entrypoint is None:
            changes["entrypoint"] = given.entrypoint
    if given.healthcheck is not None:
        changes["healthcheck"] = _merge_healthcheck(config.healthcheck, given.healthcheck)
    if not config.working_dir:
        changes["working_dir"] = given.working_dir
    changes["volumes"] = {**(given.volumes or {}), **config.volumes} if config.volumes else given.volumes
    if not config.stop_signal:
        changes["stop_signal"] = given.stop_signal
    if not config.shell:
        changes["shell"] = given.shell or []
    return msgspec.structs.replace(config, **changes)


def _merge_healthcheck(own: HealthConfig | None, given: Healthcheck) -> HealthConfig:
    own = own or HealthConfig()
    return HealthConfig(
        test=own.test or given.test or [],
        interval=own.interval or given.interval,
        timeout=own.timeout or given.timeout,
        start_period=own.start_period or given.start_period,
        start_interval=own.start_interval or given.start_interval,
        retries=own.retries or given.retries,
    )


def complete_config(
    config: ContainerConfig, image: ImageConfig, container_id: str, hostname: str | None
) -> ContainerConfig:
    """The configuration that is stored: merged, checked, with its hostname. ``InvalidParameter`` in Docker's words.

    ``hostname``: the host's, where the container shares its network namespace.
    """
    merged = merge_image_config(config, image)
    if not merged.entrypoint and not merged.cmd:
        raise InvalidParameter("no command specified")
    if (merged.entrypoint == [""] or merged.entrypoint is None) and not any(
        (*(merged.entrypoint or ()), *(merged.cmd or ()))
    ):
        raise InvalidParameter("no command specified")
    for entry in merged.env or ():
        if not entry or entry.startswith("=") or "\0" in entry:
            raise InvalidParameter(f"invalid environment variable: {entry}")
    working_dir = merged.working_dir
    if working_dir:
        if not working_dir.startswith("/"):
            raise InvalidParameter(f"the working directory '{working_dir}' is invalid, it needs to be an absolute path")
        working_dir = posixpath.normpath(working_dir)
        working_dir = "/" + working_dir.lstrip("/")
    if merged.stop_signal:
        parse_signal(merged.stop_signal)
    for port in merged.exposed_ports or ():
        _check_port(port)
    for text in (merged.hostname, merged.domainname, merged.user):
        if "\n" in text or "\0" in text:
            raise InvalidParameter(f"invalid value: {text!r}")
    _check_healthcheck(merged.healthcheck)
    name = merged.hostname or hostname or container_id[:12]
    # --entrypoint "" reaches us as [""]: it resets the image's entrypoint.
    entrypoint = None if merged.entrypoint == [""] else merged.entrypoint
    return msgspec.structs.replace(merged, hostname=name, working_dir=working_dir, entrypoint=entrypoint)


def check_config(config: ContainerConfig) -> None:
    """Refuse what a request asks for and the engine does not have; what an image merely brings along is passed over."""
    if config.network_disabled:
        raise Unsupported("the NetworkDisabled option is not supported by this engine: use --network none")


def _check_healthcheck(health: HealthConfig | None) -> None:
    if health is None:
        return
    for name, value in (
        ("Interval", health.interval),
        ("Timeout", health.timeout),
        ("StartPeriod", health.start_period),
        ("StartInterval", health.start_interval),
    ):
        if value and value < 1_000_000:
            raise InvalidParameter(f"{name} in Healthcheck cannot be less than 1ms")
    if health.retries < 0:
        raise InvalidParameter("Retries in Healthcheck cannot be negative")


def complete_host_config(
    host_config: HostConfig, *, cgroup_version: int, log: LogConfig
) -> tuple[HostConfig, list[str]]:
    """The host configuration that is stored, with Docker's defaults, and warnings.

    ``log``: the engine's default. ``InvalidParameter`` in Docker's words, ``Unsupported`` naming the option.
    """
    check_supported(host_config)
    warnings: list[str] = []
    if host_config.runtime not in ("", "runc", "compatd"):
        raise InvalidParameter(f"unknown or invalid runtime name: {host_config.runtime}")
    if host_config.shm_size < 0:
        raise InvalidParameter("SHM size can not be less than 0")
    if not -1000 <= host_config.oom_score_adj <= 1000:
        raise InvalidParameter(f"Invalid value {host_config.oom_score_adj}, range for oom score adj is [-1000, 1000]")
    policy = check_restart_policy(host_config.restart_policy)
    if host_config.auto_remove and policy.name != "no":
        raise InvalidParameter("can't create 'AutoRemove' container with restart policy")
    network_mode = host_config.network_mode
    if network_mode in ("", "default"):
        network_mode = "bridge"
    ports = _check_ports(host_config.port_bindings)
    if network_mode == "host" and (ports or host_config.publish_all_ports):
        warnings.append("Published ports are discarded when using host network mode")
    sharing.check_modes(host_config)
    read_security(host_config.security_opt or ())
    for entry in host_config.extra_hosts or ():
        _check_extra_host(entry)
    log_config = check_log(host_config.log_config, log)
    return (
        msgspec.structs.replace(
            host_config,
            network_mode=network_mode,
            restart_policy=policy,
            port_bindings=ports,
            ipc_mode=host_config.ipc_mode or "private",
            cgroupns_mode=host_config.cgroupns_mode or _default_cgroupns(host_config, cgroup_version),
            shm_size=host_config.shm_size or DEFAULT_SHM_BYTES,
            log_config=log_config,
            runtime="runc",
            oom_kill_disable=bool(host_config.oom_kill_disable),
        ),
        warnings,
    )


def _default_cgroupns(host_config: HostConfig, cgroup_version: int) -> str:
    return "private" if cgroup_version == 2 and not host_config.privileged else "host"


def check_supported(host_config: HostConfig) -> None:
    """``Unsupported`` naming the first option that the engine does not have."""
    for option, asked in UNSUPPORTED:
        if asked(host_config):
            raise Unsupported(f"the {option} option is not supported by this engine")


def check_restart_policy(policy: RestartPolicy) -> RestartPolicy:
    """The policy as it is stored. ``InvalidParameter`` in the words of moby's container.ValidateRestartPolicy."""
    if not policy.name:  # with any count, as clients have always sent it
        return RestartPolicy(name="no")
    if policy.name not in RESTART_POLICIES:
        raise InvalidParameter(
            f"invalid restart policy: unknown policy '{policy.name}';"
            " use one of 'no', 'always', 'on-failure', or 'unless-stopped'"
        )
    if policy.maximum_retry_count and policy.name != "on-failure":
        negative = " and cannot be negative" if policy.maximum_retry_count < 0 else ""
        raise InvalidParameter(
            f"invalid restart policy: maximum retry count can only be used with 'on-failure'{negative}"
        )
    if policy.maximum_retry_count < 0:
        raise InvalidParameter("invalid restart policy: maximum retry count cannot be negative")
    return policy


def _check_port(text: str) -> None:
    match = _PORT.fullmatch(text)
    if match is None or not all(int(number) <= 65535 for number in match.group(1, 2) if number):
        raise InvalidParameter(f'invalid port specification: "{text}"')


def _check_ports(ports: PortMap | None) -> PortMap:
    for port, bindings in (ports or {}).items():
        _check_port(port)
        for binding in bindings or ():
            if binding.host_port:
                _check_port(binding.host_port)
                if "/" in binding.host_port:
                    raise InvalidParameter(f'invalid port specification: "{binding.host_port}"')
    return ports or {}


def _check_extra_host(entry: str) -> None:
    name, separator, address = entry.partition(":")
    if not separator or not name or "\n" in entry or "\0" in entry:
        raise InvalidParameter(f'bad format for add-host: "{entry}"')
    if address != "host-gateway" and not _is_address(address.removeprefix("[").removesuffix("]")):
        raise InvalidParameter(f'invalid IP address in add-host: "{address}"')


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True

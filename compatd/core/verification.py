"""What dockerd checks of a create request before it looks at the image, in its order: the first mistake is told.

moby runconfig/config.go (``check_request``), daemon/container.go and daemon_unix.go (the rest). Each raises
``InvalidParameter`` in Docker's words.
"""

import ipaddress
import posixpath
import re

import msgspec

from compatd.core import ports, sharing
from compatd.core.creation import check_restart_policy
from compatd.core.supervisor import parse_signal
from compatd.core.translation import RUNTIMES, adapt_resources, resources
from compatd.errors import InvalidParameter, SystemFailure
from compatd.runtime import capabilities, cgroups
from compatd.runtime.host import Host
from compatd.wire.types.containers import ContainerConfig, HostConfig

_OTHER_RUNTIME = re.compile(r"io\.containerd\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)")


def check_request(config: ContainerConfig, host_config: HostConfig, host: Host) -> None:
    """Options that contradict each other, and such as only Windows has."""
    mode = host_config.network_mode
    sharing.check_network(host_config, config)
    if host_config.uts_mode == "host" and config.hostname:
        raise InvalidParameter("conflicting options: hostname and the UTS mode")
    if mode == "host" and host_config.links:
        raise InvalidParameter(
            "conflicting options: host type networking can't be used with links."
            " This would result in undefined behavior"
        )
    if host_config.isolation.lower() not in ("", "default"):
        raise InvalidParameter(f"invalid isolation ({host_config.isolation}): linux only supports 'default'")
    for what, value in (
        ("bandwidth", host_config.io_maximum_bandwidth),
        ("IOPs", host_config.io_maximum_iops),
    ):
        if value:
            raise InvalidParameter(f"invalid option: QoS maximum {what} configuration is not supported on linux")
    period, runtime = host_config.cpu_realtime_period, host_config.cpu_realtime_runtime
    if (period or runtime) and not host.cgroup_support.cpu_realtime:
        raise InvalidParameter("kernel does not support CPU real-time scheduler")
    if period and runtime and runtime > period:
        raise InvalidParameter("cpu real-time runtime cannot be higher than cpu real-time period")
    if host_config.cpu_shares < 0:
        raise InvalidParameter(f"invalid CPU shares ({host_config.cpu_shares}): value must be a positive integer")


def check_config(config: ContainerConfig) -> ContainerConfig:
    """The part that does not depend on the host, as the client sent it; its working directory comes back normalised."""
    directory = config.working_dir
    if directory:
        if not directory.startswith("/"):
            raise InvalidParameter(f"the working directory '{directory}' is invalid, it needs to be an absolute path")
        directory = "/" + posixpath.normpath(directory).lstrip("/")
    if config.stop_signal:
        parse_signal(config.stop_signal)
    for entry in config.env or ():
        if not entry or entry.startswith("="):
            raise InvalidParameter(f"invalid environment variable: {entry}")
    return msgspec.structs.replace(config, working_dir=directory)


def check_host_config(host_config: HostConfig, host: Host) -> tuple[HostConfig, list[str]]:
    """The rest, but for mounts and log options: with the limits that will be set, and warnings."""
    if host_config.auto_remove and host_config.restart_policy.name not in ("", "no"):
        raise InvalidParameter("can't create 'AutoRemove' container with restart policy")
    for entry in host_config.extra_hosts or ():
        _check_extra_host(entry)
    ports.check_bindings(host_config.port_bindings)
    check_restart_policy(host_config.restart_policy)
    capabilities.effective(
        add=host_config.cap_add or (),
        drop=host_config.cap_drop or (),
        privileged=host_config.privileged,
        available=host.capabilities,
    )
    if "" in host_config.annotations:
        raise InvalidParameter("invalid Annotations: the empty string is not permitted as an annotation key")
    host_config, warnings = _check_resources(host_config, host)
    sharing.check_modes(host_config)
    if host_config.shm_size < 0:
        raise InvalidParameter("SHM size can not be less than 0")
    if not -1000 <= host_config.oom_score_adj <= 1000:
        raise InvalidParameter(f"Invalid value {host_config.oom_score_adj}, range for oom score adj is [-1000, 1000]")
    if host_config.network_mode == "host" and host_config.port_bindings:
        warnings.append("Published ports are discarded when using host network mode")
    if host_config.runtime not in ("", *RUNTIMES) and not _OTHER_RUNTIME.fullmatch(host_config.runtime):
        raise InvalidParameter(f"unknown or invalid runtime name: {host_config.runtime}")
    return host_config, warnings


def _check_resources(host_config: HostConfig, host: Host) -> tuple[HostConfig, list[str]]:
    adapted, warnings = cgroups.check(resources(host_config, look=False), host)
    host_config = adapt_resources(host_config, adapted)
    if 0 < host_config.kernel_memory < cgroups.MIN_MEMORY_BYTES:
        raise InvalidParameter("Minimum kernel memory limit allowed is 6MB")
    if host_config.cpu_percent > 0:
        warnings.append("linux does not support CPU percent. Percent discarded.")
        host_config = msgspec.structs.replace(host_config, cpu_percent=0)
    return host_config, warnings


def check_storage(host_config: HostConfig) -> None:
    """``SystemFailure``: sizes of writable layers need quotas, which Docker finds on few file systems only (moby
    daemon/graphdriver/overlay2, parseStorageOpt)."""
    for name in host_config.storage_opt:
        if name.lower() != "size":
            raise SystemFailure(f"Unknown option {name}")
        raise SystemFailure("--storage-opt is supported only for overlay over xfs with 'pquota' mount option")


def _check_extra_host(entry: str) -> None:
    name, separator, address = entry.partition(":")
    if not separator or not name or "\n" in entry or "\0" in entry:
        raise InvalidParameter(f'bad format for add-host: "{entry}"')
    if address != "host-gateway" and not _is_address(address.strip()):
        raise InvalidParameter(f'invalid IP address in add-host: "{address}"')


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return "%" not in text

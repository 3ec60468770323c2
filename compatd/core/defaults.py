"""What the engine's options put into a container whose creation does not say."""

from dataclasses import dataclass, field

import msgspec

from compatd.config import Config
from compatd.core.translation import Security
from compatd.wire.types.containers import HostConfig, LogConfig, Ulimit

DEFAULT_SHM_BYTES = 64 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """``cgroupns_mode`` empty: as the machine's cgroups are."""

    log: LogConfig = field(default_factory=lambda: LogConfig(type="none", config={}))
    ulimits: tuple[Ulimit, ...] = ()
    shm_size_bytes: int = DEFAULT_SHM_BYTES
    ipc_mode: str = "private"
    cgroupns_mode: str = ""


def of(config: Config) -> Defaults:
    return Defaults(
        log=LogConfig(type=config.log_driver, config=dict(config.log_opts)),
        ulimits=tuple(Ulimit(name=name, soft=soft, hard=hard) for name, soft, hard in sorted(config.default_ulimits)),
        shm_size_bytes=config.default_shm_size_bytes or DEFAULT_SHM_BYTES,
        ipc_mode=config.default_ipc_mode,
        cgroupns_mode=config.default_cgroupns_mode,
    )


def security(config: Config) -> Security:
    """Unlike the others these count at each start."""
    return Security(seccomp=config.seccomp_profile_text, no_new_privileges=config.no_new_privileges)


def complete(host_config: HostConfig, defaults: Defaults, *, cgroup_version: int) -> HostConfig:
    """moby daemon/daemon_unix.go, adaptContainerSettings and mergeUlimits."""
    named = {ulimit.name for ulimit in host_config.ulimits or ()}
    added = [ulimit for ulimit in defaults.ulimits if ulimit.name not in named]
    private = (defaults.cgroupns_mode or ("private" if cgroup_version == 2 else "host")) == "private"
    return msgspec.structs.replace(
        host_config,
        ulimits=[*(host_config.ulimits or ()), *added] if added else host_config.ulimits,
        shm_size=host_config.shm_size or defaults.shm_size_bytes,
        ipc_mode=host_config.ipc_mode or defaults.ipc_mode,
        cgroupns_mode=host_config.cgroupns_mode or ("private" if private and not host_config.privileged else "host"),
    )

"""The engine speaking of itself: version, info, disk use."""

import os
import platform
import re
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import compatd
from compatd.config import Config
from compatd.core.builds import Builds
from compatd.core.containers import Containers
from compatd.core.events import Events
from compatd.core.images import Images
from compatd.core.lifecycle import State
from compatd.core.translation import RUNTIMES
from compatd.core.volumes import Volumes
from compatd.logs import drivers
from compatd.runtime.host import Host
from compatd.wire.times import format_time
from compatd.wire.types.images import ImageSummary
from compatd.wire.types.system import (
    Commit,
    DiskUsage,
    FirewallInfo,
    IndexInfo,
    Info,
    PluginsInfo,
    RegistryConfig,
    Runtime,
    Version,
    VersionComponent,
    VersionPlatform,
)

# The Docker release whose behaviour the engine has: clients choose what they do by it.
ENGINE_VERSION = "28.5.2"
API_VERSION = "1.51"
MIN_API_VERSION = "1.24"

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


_OTHER_PROFILE = "WARNING: daemon is not using the default seccomp profile"


class System:
    """Answers from what the other services and the host say."""

    def __init__(
        self,
        *,
        config: Config,
        host: Host,
        events: Events,
        containers: Containers,
        images: Images,
        volumes: Volumes,
        builds: Builds,
        layer_form: str,
    ) -> None:
        self._config = config
        self._host = host
        self._events = events
        self._containers = containers
        self._images = images
        self._volumes = volumes
        self._builds = builds
        self._layer_form = layer_form
        self._id = _engine_id(Path(config.data_root))

    def version(self) -> Version:
        """``GET /version``. The product's own version is that of the component compatd."""
        kernel = platform.release()
        arch = ARCHITECTURES.get(platform.machine(), platform.machine())
        return Version(
            platform=VersionPlatform(name="compatd"),
            components=[
                VersionComponent(
                    name="Engine",
                    version=ENGINE_VERSION,
                    details={
                        "ApiVersion": API_VERSION,
                        "Arch": arch,
                        "BuildTime": "",
                        "Experimental": "false",
                        "GitCommit": "",
                        "GoVersion": "",
                        "KernelVersion": kernel,
                        "MinAPIVersion": MIN_API_VERSION,
                        "Os": "linux",
                    },
                ),
                VersionComponent(
                    name="compatd",
                    version=compatd.__version__,
                    details={"Python": platform.python_version()},
                ),
            ],
            version=ENGINE_VERSION,
            api_version=API_VERSION,
            min_api_version=MIN_API_VERSION,
            os="linux",
            arch=arch,
            kernel_version=kernel,
        )

    def info(self) -> Info:
        """``GET /info``."""
        count = self._containers.count
        config, host = self._config, self._host
        support = host.cgroup_support
        mirrors = [mirror.rstrip("/") + "/" for mirror in config.registry_mirrors]
        return Info(
            id=self._id,
            containers=len(list(self._containers)),
            containers_running=count(State.RUNNING),
            containers_paused=count(State.PAUSED),
            containers_stopped=count(State.CREATED, State.EXITED, State.DEAD, State.RESTARTING),
            images=len(self._images),
            driver="overlay2",
            driver_status=[("Layer Store", self._layer_form), ("Supports d_type", "true"), ("userxattr", "false")],
            plugins=PluginsInfo(volume=["local"], network=["bridge", "host", "null"], log=list(drivers.LISTED)),
            memory_limit=support.memory_limit,
            swap_limit=support.swap_limit,
            cpu_cfs_period=support.cpu_cfs,
            cpu_cfs_quota=support.cpu_cfs,
            cpu_shares=support.cpu_shares,
            cpu_set=support.cpuset,
            pids_limit=support.pids_limit,
            ipv4_forwarding=_reads("/proc/sys/net/ipv4/ip_forward") == "1",
            debug=config.debug,
            n_fd=len(os.listdir("/proc/self/fd")),
            oom_kill_disable=support.oom_kill_disable,
            kernel_memory_tcp=support.kernel_memory_tcp,
            system_time=format_time(time.time_ns()),
            logging_driver=config.log_driver,
            cgroup_driver="cgroupfs",
            cgroup_version=str(host.cgroup.version),
            n_events_listener=self._events.listeners,
            kernel_version=platform.release(),
            operating_system=_operating_system(),
            os_type="linux",
            architecture=platform.machine(),
            index_server_address="https://index.docker.io/v1/",
            registry_config=RegistryConfig(
                index_configs={"docker.io": IndexInfo(mirrors=mirrors, name="docker.io", official=True, secure=True)},
                insecure_registry_cidrs=["127.0.0.0/8", "::1/128"],
                mirrors=mirrors or None,
            ),
            ncpu=host.cpu_count,
            mem_total=host.memory_total_bytes,
            docker_root_dir=str(config.data_root),
            http_proxy=os.environ.get("HTTP_PROXY", os.environ.get("http_proxy", "")),
            https_proxy=os.environ.get("HTTPS_PROXY", os.environ.get("https_proxy", "")),
            no_proxy=os.environ.get("NO_PROXY", os.environ.get("no_proxy", "")),
            name=platform.node(),
            labels=list(config.labels),
            server_version=ENGINE_VERSION,
            runtimes={name: Runtime(path="compatd") for name in RUNTIMES},
            default_runtime="runc",
            live_restore_enabled=True,
            init_binary="compatd",
            containerd_commit=Commit(),
            runc_commit=Commit(),
            init_commit=Commit(),
            security_options=list(_security_options(config, host)),
            warnings=_warnings(config),
            firewall_backend=FirewallInfo(driver="nftables"),
            cdi_spec_dirs=[],
        )

    async def disk_usage(self, types: frozenset[str]) -> DiskUsage:
        """``GET /system/df``; ``types`` empty means every kind."""

        def wanted(kind: str) -> bool:
            return not types or kind in types

        images: list[ImageSummary] | None = None
        layers_size = 0
        if wanted("image"):
            images = []
            layers: dict[str, int] = {}
            users: dict[str, int] = {}
            for image in self._images:
                await self._images.size_bytes(image)
                for diff_id in image.layers:
                    users[diff_id] = users.get(diff_id, 0) + 1
                    layers[diff_id] = self._images.layer_size_bytes(diff_id)
            layers_size = sum(layers.values())
            for image in self._images.listing({}, all=False):
                shared = sum(layers[diff] for diff in image.layers if users[diff] > 1)
                tags, digests = self._images.names_of(image.id)
                images.append(
                    ImageSummary(
                        containers=sum(c.record.image_id == image.id for c in self._containers),
                        created=image.created_ns // 10**9,
                        id=image.id,
                        labels=image.labels or None,
                        parent_id=image.record.parent,
                        repo_digests=digests or None,
                        repo_tags=tags,
                        shared_size=shared,
                        size=sum(layers[diff] for diff in image.layers),
                    )
                )
        return DiskUsage(
            layers_size=layers_size,
            images=images,
            containers=await self._containers.listing({}, all=True, size=True) if wanted("container") else None,
            volumes=await self._volumes.describe_with_usage() if wanted("volume") else None,
            build_cache=self._builds.cache_records() if wanted("build-cache") else None,
        )


def _security_options(config: Config, host: Host) -> Iterator[str]:
    if host.seccomp:
        yield f"name=seccomp,profile={config.seccomp_profile or 'builtin'}"
    if (config.default_cgroupns_mode or ("private" if host.cgroup.version == 2 else "host")) == "private":
        yield "name=cgroupns"
    if config.no_new_privileges:
        yield "name=no-new-privileges"


def _warnings(config: Config) -> list[str] | None:
    return None if config.seccomp_profile in ("", "builtin") else [_OTHER_PROFILE]


def _engine_id(data_root: Path) -> str:
    """A stable id for this engine, kept beside its data."""
    path = data_root / "engine-id"
    known = _reads(str(path))
    if re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", known):
        return known
    made = str(uuid.uuid4())
    staged = path.with_suffix(".new")
    staged.write_text(made)
    staged.replace(path)
    return made


def _reads(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def _operating_system() -> str:
    """PRETTY_NAME of os-release(5)."""
    for path in ("/etc/os-release", "/usr/lib/os-release"):
        for line in _reads(path).splitlines():
            if line.startswith("PRETTY_NAME="):
                return line.removeprefix("PRETTY_NAME=").strip('"')
    return "Linux"

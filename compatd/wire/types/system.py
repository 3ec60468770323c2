"""The engine itself: version, info, disk use, events, credentials."""

from compatd.wire.json import Wire, always, omitempty
from compatd.wire.types.build import BuildCacheRecord
from compatd.wire.types.containers import ContainerSummary
from compatd.wire.types.images import ImageSummary
from compatd.wire.types.volumes import Volume


class VersionPlatform(Wire, frozen=True, kw_only=True):
    """Whose engine this is."""

    name: str


class VersionComponent(Wire, frozen=True, kw_only=True):
    """A part of the engine with a version of its own."""

    name: str
    version: str
    details: dict[str, str] = omitempty({})


class Version(Wire, frozen=True, kw_only=True):
    """Who answers, and which API it speaks."""

    platform: VersionPlatform
    components: list[VersionComponent] = omitempty([])
    version: str
    api_version: str
    min_api_version: str = omitempty("", "MinAPIVersion")
    git_commit: str = always("")
    go_version: str = always("")
    os: str
    arch: str
    kernel_version: str = ""
    experimental: bool = False
    build_time: str = ""


class PluginsInfo(Wire, frozen=True, kw_only=True):
    """The drivers there are, by kind."""

    volume: list[str] = always([])
    network: list[str] = always([])
    authorization: list[str] | None = always(None)
    log: list[str] = always([])


class IndexInfo(Wire, frozen=True, kw_only=True):
    """A registry."""

    mirrors: list[str] = always([])
    name: str
    official: bool
    secure: bool


class RegistryConfig(Wire, frozen=True, kw_only=True):
    """How registries are reached."""

    index_configs: dict[str, IndexInfo] = always({})
    insecure_registry_cidrs: list[str] = always([], "InsecureRegistryCIDRs")
    mirrors: list[str] | None = always(None)


class Runtime(Wire, frozen=True, kw_only=True, rename="camel"):
    """Something that containers can be run with."""

    path: str = ""
    runtime_args: list[str] = omitempty([])
    status: dict[str, str] = omitempty({})


class Commit(Wire, frozen=True, kw_only=True):
    """The revision of a component."""

    id: str = always("", "ID")
    expected: str = ""  # up to API 1.48


class SwarmInfo(Wire, frozen=True, kw_only=True):
    """The engine is never part of a swarm."""

    node_id: str = always("", "NodeID")
    node_addr: str = always("")
    local_node_state: str = always("inactive")
    control_available: bool = always(False)
    error: str = always("")
    remote_managers: list[object] | None = always(None)


class AddressPool(Wire, frozen=True, kw_only=True):
    """Where new networks get their subnets from."""

    base: str
    size: int


class FirewallInfo(Wire, frozen=True, kw_only=True):
    """Who filters packets."""

    driver: str
    info: list[tuple[str, str]] = omitempty([])


class DeviceInfo(Wire, frozen=True, kw_only=True):
    """A device that a driver has found."""

    source: str
    id: str = always("", "ID")


class ContainerdNamespaces(Wire, frozen=True, kw_only=True):
    """Not used by this engine."""

    containers: str
    plugins: str


class ContainerdInfo(Wire, frozen=True, kw_only=True):
    """Not used by this engine."""

    address: str = ""
    namespaces: ContainerdNamespaces


class Info(Wire, frozen=True, kw_only=True):
    """The engine and its host."""

    id: str = always("", "ID")
    containers: int = always(0)
    containers_running: int = always(0)
    containers_paused: int = always(0)
    containers_stopped: int = always(0)
    images: int = always(0)
    driver: str = always("")
    driver_status: list[tuple[str, str]] | None = always(None)
    system_status: list[tuple[str, str]] = omitempty([])
    plugins: PluginsInfo = always(PluginsInfo())
    memory_limit: bool = always(False)
    swap_limit: bool = always(False)
    kernel_memory: bool = False
    kernel_memory_tcp: bool = omitempty(False, "KernelMemoryTCP")
    cpu_cfs_period: bool = always(False)
    cpu_cfs_quota: bool = always(False)
    cpu_shares: bool = always(False, "CPUShares")
    cpu_set: bool = always(False, "CPUSet")
    pids_limit: bool = always(False)
    ipv4_forwarding: bool = always(False, "IPv4Forwarding")
    debug: bool = always(False)
    n_fd: int = always(0, "NFd")
    oom_kill_disable: bool = always(False)
    n_goroutines: int = always(0, "NGoroutines")
    system_time: str = always("")
    logging_driver: str = always("")
    cgroup_driver: str = always("")
    cgroup_version: str = ""
    n_events_listener: int = always(0, "NEventsListener")
    kernel_version: str = always("")
    operating_system: str = always("")
    os_version: str = always("", "OSVersion")
    os_type: str = always("", "OSType")
    architecture: str = always("")
    index_server_address: str = always("")
    registry_config: RegistryConfig | None = always(None)
    ncpu: int = always(0, "NCPU")
    mem_total: int = always(0)
    generic_resources: list[object] | None = always(None)
    docker_root_dir: str = always("")
    http_proxy: str = always("")
    https_proxy: str = always("")
    no_proxy: str = always("")
    name: str = always("")
    labels: list[str] | None = always(None)
    experimental_build: bool = always(False)
    server_version: str = always("")
    runtimes: dict[str, Runtime] | None = always(None)
    default_runtime: str = always("")
    swarm: SwarmInfo = always(SwarmInfo())
    live_restore_enabled: bool = always(False)
    isolation: str = always("")
    init_binary: str = always("")
    containerd_commit: Commit = always(Commit())
    runc_commit: Commit = always(Commit())
    init_commit: Commit = always(Commit())
    security_options: list[str] | None = always(None)
    product_license: str = ""
    default_address_pools: list[AddressPool] = omitempty([])
    firewall_backend: FirewallInfo | None = None
    cdi_spec_dirs: list[str] = always([], "CDISpecDirs")
    discovered_devices: list[DeviceInfo] = omitempty([])
    containerd: ContainerdInfo | None = None
    warnings: list[str] | None = always(None)


class AuthConfig(Wire, frozen=True, kw_only=True, rename="lower"):
    """Credentials for one registry."""

    username: str = ""
    password: str = ""
    auth: str = ""
    email: str = ""
    serveraddress: str = ""
    identitytoken: str = ""
    registrytoken: str = ""


class AuthResponse(Wire, frozen=True, kw_only=True):
    """``Login Succeeded``, and a token where the registry gave one."""

    identity_token: str = always("")
    status: str


class DiskUsage(Wire, frozen=True, kw_only=True):
    """What takes room. A kind that was not asked for is null."""

    layers_size: int = always(0)
    images: list[ImageSummary] | None = always(None)
    containers: list[ContainerSummary] | None = always(None)
    volumes: list[Volume] | None = always(None)
    build_cache: list[BuildCacheRecord] | None = always(None)


class EventActor(Wire, frozen=True, kw_only=True):
    """What an event is about."""

    id: str = always("", "ID")
    attributes: dict[str, str] = always({})


class EventMessage(Wire, frozen=True, kw_only=True):
    """Something that happened. The first three repeat the actor for clients of API 1.21 and before."""

    status: str = omitempty("", "status")
    id: str = omitempty("", "id")
    from_: str = omitempty("", "from")
    type: str
    action: str
    actor: EventActor
    scope: str = omitempty("", "scope")
    time: int = omitempty(0, "time")
    time_nano: int = omitempty(0, "timeNano")

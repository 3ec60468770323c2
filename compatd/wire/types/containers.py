"""Containers: what is asked for, what is there, and what happened to it."""

from typing import Annotated

import msgspec

from compatd.wire.json import FileMode, GoUint, Set, StrSlice, Uint8, Uint16, Uint64, Wire, always, omitempty
from compatd.wire.types.images import Descriptor, GraphDriver, HealthConfig
from compatd.wire.types.networks import EndpointSettings, NetworkingConfig


class ContainerConfig(Wire, frozen=True, kw_only=True):
    """What does not depend on the host; the part that an image can give defaults for."""

    hostname: str = always("")
    domainname: str = always("")
    user: str = always("")
    attach_stdin: bool = always(False)
    attach_stdout: bool = always(False)
    attach_stderr: bool = always(False)
    exposed_ports: Annotated[Set, msgspec.Meta(extra={"go": "nat.PortSet"})] = omitempty({})
    tty: bool = always(False)
    open_stdin: bool = always(False)
    stdin_once: bool = always(False)
    env: list[str] | None = always(None)
    cmd: StrSlice = always(None)
    healthcheck: HealthConfig | None = None
    args_escaped: bool = False
    image: str = always("")
    volumes: Set | None = always(None)
    working_dir: str = always("")
    entrypoint: StrSlice = always(None)
    network_disabled: bool = False
    mac_address: str = ""
    on_build: list[str] | None = always(None)
    labels: dict[str, str] | None = always(None)
    stop_signal: str = ""
    stop_timeout: int | None = None
    shell: list[str] = omitempty([])


class LogConfig(Wire, frozen=True, kw_only=True):
    """Where output is kept; an empty type is the engine's default."""

    type: str = always("")
    config: dict[str, str] | None = always(None)


class PortBinding(Wire, frozen=True, kw_only=True):
    """A port on the host; an empty address is every address, an empty port one that the engine picks."""

    host_ip: str = always("")
    host_port: str = always("")


# Keys are "80/tcp"; a port that is exposed and not published has null.
PortMap = Annotated[dict[str, list[PortBinding] | None], msgspec.Meta(extra={"go": "nat.PortMap"})]


class RestartPolicy(Wire, frozen=True, kw_only=True):
    """When to start a container again: ``no`` or empty, ``always``, ``unless-stopped``, ``on-failure``."""

    name: str = always("")
    maximum_retry_count: int = always(0)


class DeviceMapping(Wire, frozen=True, kw_only=True):
    """A device of the host in the container."""

    path_on_host: str = always("")
    path_in_container: str = always("")
    cgroup_permissions: str = always("")


class DeviceRequest(Wire, frozen=True, kw_only=True):
    """Devices that a driver is to choose (GPUs)."""

    driver: str = always("")
    count: int = always(0)
    device_ids: list[str] | None = always(None, "DeviceIDs")
    capabilities: list[list[str]] | None = always(None)
    options: dict[str, str] | None = always(None)


class WeightDevice(Wire, frozen=True, kw_only=True):
    """A device's share of I/O."""

    path: str = always("")
    weight: Uint16 = always(0)


class ThrottleDevice(Wire, frozen=True, kw_only=True):
    """A device's limit, in bytes or operations per second."""

    path: str = always("")
    rate: Uint64 = always(0)


class Ulimit(Wire, frozen=True, kw_only=True):
    """A resource limit; -1 is no limit."""

    name: str = always("")
    hard: int = always(0)
    soft: int = always(0)


class Resources(Wire, frozen=True, kw_only=True):
    """Limits. 0 is no limit; where ``None`` is possible it means the same, or unchanged in an update."""

    cpu_shares: int = always(0)
    memory: int = always(0)
    nano_cpus: int = always(0)
    cgroup_parent: str = always("")
    blkio_weight: Uint16 = always(0)
    blkio_weight_device: list[WeightDevice] | None = always(None)
    blkio_device_read_bps: list[ThrottleDevice] | None = always(None)
    blkio_device_write_bps: list[ThrottleDevice] | None = always(None)
    blkio_device_read_iops: list[ThrottleDevice] | None = always(None, "BlkioDeviceReadIOps")
    blkio_device_write_iops: list[ThrottleDevice] | None = always(None, "BlkioDeviceWriteIOps")
    cpu_period: int = always(0)
    cpu_quota: int = always(0)
    cpu_realtime_period: int = always(0)
    cpu_realtime_runtime: int = always(0)
    cpuset_cpus: str = always("")
    cpuset_mems: str = always("")
    devices: list[DeviceMapping] | None = always(None)
    device_cgroup_rules: list[str] | None = always(None)
    device_requests: list[DeviceRequest] | None = always(None)
    kernel_memory: int = 0
    kernel_memory_tcp: int = omitempty(0, "KernelMemoryTCP")
    memory_reservation: int = always(0)
    memory_swap: int = always(0)
    memory_swappiness: int | None = always(None)
    oom_kill_disable: bool | None = always(None)
    pids_limit: int | None = always(None)
    ulimits: list[Ulimit] | None = always(None)
    cpu_count: int = always(0)
    cpu_percent: int = always(0)
    io_maximum_iops: Uint64 = always(0, "IOMaximumIOps")
    io_maximum_bandwidth: Uint64 = always(0, "IOMaximumBandwidth")


class BindOptions(Wire, frozen=True, kw_only=True):
    """How a path of the host is mounted."""

    propagation: str = ""
    non_recursive: bool = False
    create_mountpoint: bool = False
    read_only_non_recursive: bool = False
    read_only_force_recursive: bool = False


class VolumeDriver(Wire, frozen=True, kw_only=True):
    """Who makes a volume that is not there yet."""

    name: str = ""
    options: dict[str, str] = omitempty({})


class VolumeOptions(Wire, frozen=True, kw_only=True):
    """How a volume is mounted, or made when it is not there."""

    no_copy: bool = False
    labels: dict[str, str] = omitempty({})
    subpath: str = ""
    driver_config: VolumeDriver | None = None


class ImageOptions(Wire, frozen=True, kw_only=True):
    """How an image is mounted."""

    subpath: str = ""


class TmpfsOptions(Wire, frozen=True, kw_only=True):
    """How a tmpfs is made; ``mode`` as a number, 0 is the default."""

    size_bytes: int = 0
    mode: FileMode = 0
    options: list[list[str]] = omitempty([])


class Mount(Wire, frozen=True, kw_only=True):
    """A mount that is asked for: ``bind``, ``volume``, ``image``, ``tmpfs``, ``npipe`` or ``cluster``."""

    type: str = ""
    source: str = ""
    target: str = ""
    read_only: bool = False
    consistency: str = ""
    bind_options: BindOptions | None = None
    volume_options: VolumeOptions | None = None
    image_options: ImageOptions | None = None
    tmpfs_options: TmpfsOptions | None = None
    cluster_options: dict[str, object] | None = None


class HostConfig(Resources, frozen=True, kw_only=True):
    """What depends on the host. Every field that Docker has is here, so that one which the engine lacks can be
    refused by name and is never ignored."""

    binds: list[str] | None = always(None)
    container_id_file: str = always("", "ContainerIDFile")
    log_config: LogConfig = always(LogConfig())
    network_mode: str = always("")
    port_bindings: PortMap | None = always(None)
    restart_policy: RestartPolicy = always(RestartPolicy())
    auto_remove: bool = always(False)
    volume_driver: str = always("")
    volumes_from: list[str] | None = always(None)
    console_size: tuple[GoUint, GoUint] = always((0, 0))  # (height, width)
    annotations: dict[str, str] = omitempty({})
    cap_add: StrSlice = always(None)
    cap_drop: StrSlice = always(None)
    cgroupns_mode: str = always("")
    dns: list[str] | None = always(None)
    dns_options: list[str] | None = always(None)
    dns_search: list[str] | None = always(None)
    extra_hosts: list[str] | None = always(None)
    group_add: list[str] | None = always(None)
    ipc_mode: str = always("")
    cgroup: str = always("")
    links: list[str] | None = always(None)
    oom_score_adj: int = always(0)
    pid_mode: str = always("")
    privileged: bool = always(False)
    publish_all_ports: bool = always(False)
    readonly_rootfs: bool = always(False)
    security_opt: list[str] | None = always(None)
    storage_opt: dict[str, str] = omitempty({})
    tmpfs: dict[str, str] = omitempty({})
    uts_mode: str = always("", "UTSMode")
    userns_mode: str = always("")
    shm_size: int = always(0)
    sysctls: dict[str, str] = omitempty({})
    runtime: str = ""
    isolation: str = always("")
    mounts: list[Mount] = omitempty([])
    masked_paths: list[str] | None = always(None)
    readonly_paths: list[str] | None = always(None)
    init: bool | None = None


class ContainerCreateRequest(ContainerConfig, frozen=True, kw_only=True):
    """Everything about a new container but its name and platform, which are parameters."""

    host_config: HostConfig | None = None
    networking_config: NetworkingConfig | None = None

    @property
    def config(self) -> ContainerConfig:
        """The configuration alone."""
        return ContainerConfig(**{field: getattr(self, field) for field in ContainerConfig.__struct_fields__})


class ContainerCreateResponse(Wire, frozen=True, kw_only=True):
    """The new container."""

    id: str
    warnings: list[str] = always([])


class Port(Wire, frozen=True, kw_only=True):
    """A port of a container in a list; one entry per address it is published on."""

    ip: str = omitempty("", "IP")
    private_port: int
    public_port: int = 0
    type: str


class MountPoint(Wire, frozen=True, kw_only=True):
    """A mount that a container has. ``name`` and ``driver`` are of volumes only; ``source`` is on the host."""

    type: str = ""
    name: str = ""
    source: str = always("")
    destination: str
    driver: str = ""
    mode: str = always("")
    rw: bool = always(False, "RW")
    propagation: str = always("")


class SummaryHostConfig(Wire, frozen=True, kw_only=True):
    """The part of the host configuration that lists show."""

    network_mode: str = ""
    annotations: dict[str, str] = omitempty({})


class SummaryNetworkSettings(Wire, frozen=True, kw_only=True):
    """The networks of a container in a list."""

    networks: dict[str, EndpointSettings] = always({})


class ContainerSummary(Wire, frozen=True, kw_only=True):
    """A container in a list; ``created`` in seconds, sizes (bytes) only where they were asked for."""

    id: str
    names: list[str]
    image: str
    image_id: str = always("", "ImageID")
    image_manifest_descriptor: Descriptor | None = None
    command: str
    created: int
    ports: list[Port] = always([])
    size_rw: int = 0
    size_root_fs: int = 0
    labels: dict[str, str] = always({})
    state: str
    status: str
    host_config: SummaryHostConfig = always(SummaryHostConfig())
    network_settings: SummaryNetworkSettings = always(SummaryNetworkSettings())
    mounts: list[MountPoint] = always([])


class HealthcheckResult(Wire, frozen=True, kw_only=True):
    """One probe."""

    start: str
    end: str
    exit_code: int
    output: str


class Health(Wire, frozen=True, kw_only=True):
    """``starting``, ``healthy`` or ``unhealthy``, and the last probes."""

    status: str
    failing_streak: int = always(0)
    log: list[HealthcheckResult] = always([])


class ContainerState(Wire, frozen=True, kw_only=True):
    """What a container is doing, and how it last ended."""

    status: str
    running: bool = always(False)
    paused: bool = always(False)
    restarting: bool = always(False)
    oom_killed: bool = always(False, "OOMKilled")
    dead: bool = always(False)
    pid: int = always(0)
    exit_code: int = always(0)
    error: str = always("")
    started_at: str = always("0001-01-01T00:00:00Z")
    finished_at: str = always("0001-01-01T00:00:00Z")
    health: Health | None = None


class Address(Wire, frozen=True, kw_only=True):
    """An address with its prefix length."""

    addr: str
    prefix_len: int


class NetworkSettings(Wire, frozen=True, kw_only=True):
    """A container's network; the single-network fields repeat those of the default bridge."""

    bridge: str = always("")
    sandbox_id: str = always("", "SandboxID")
    sandbox_key: str = always("")
    ports: PortMap = always({})
    hairpin_mode: bool = always(False)
    link_local_ipv6_address: str = always("", "LinkLocalIPv6Address")
    link_local_ipv6_prefix_len: int = always(0, "LinkLocalIPv6PrefixLen")
    secondary_ip_addresses: list[Address] | None = always(None, "SecondaryIPAddresses")
    secondary_ipv6_addresses: list[Address] | None = always(None, "SecondaryIPv6Addresses")
    endpoint_id: str = always("", "EndpointID")
    gateway: str = always("")
    global_ipv6_address: str = always("", "GlobalIPv6Address")
    global_ipv6_prefix_len: int = always(0, "GlobalIPv6PrefixLen")
    ip_address: str = always("", "IPAddress")
    ip_prefix_len: int = always(0, "IPPrefixLen")
    ipv6_gateway: str = always("", "IPv6Gateway")
    mac_address: str = always("")
    networks: dict[str, EndpointSettings] = always({})


class ContainerInspect(Wire, frozen=True, kw_only=True):
    """One container in full. Sizes (bytes) only where they were asked for."""

    id: str
    created: str
    path: str
    args: list[str]
    state: ContainerState
    image: str
    resolv_conf_path: str = always("")
    hostname_path: str = always("")
    hosts_path: str = always("")
    log_path: str = always("")
    name: str
    restart_count: int = always(0)
    driver: str
    platform: str = always("linux")
    image_manifest_descriptor: Descriptor | None = None
    mount_label: str = always("")
    process_label: str = always("")
    app_armor_profile: str = always("")
    exec_ids: list[str] | None = always(None, "ExecIDs")
    host_config: HostConfig
    graph_driver: GraphDriver
    size_rw: int | None = None
    size_root_fs: int | None = None
    mounts: list[MountPoint] = always([])
    config: ContainerConfig
    network_settings: NetworkSettings = always(NetworkSettings())


class UpdateRequest(Resources, frozen=True, kw_only=True):
    """New limits and restart policy for a container; zero values are unchanged."""

    restart_policy: RestartPolicy = always(RestartPolicy())


class UpdateResponse(Wire, frozen=True, kw_only=True):
    """What could not be done as asked."""

    warnings: list[str] | None = always(None)


class TopResponse(Wire, frozen=True, kw_only=True):
    """The processes of a container, one list per process, in the order of the titles; null when none is shown."""

    processes: list[list[str]] | None = always(None)
    titles: list[str]


class WaitError(Wire, frozen=True, kw_only=True):
    """Why waiting failed."""

    message: str = ""


class WaitResponse(Wire, frozen=True, kw_only=True):
    """How a container ended."""

    error: WaitError | None = None
    status_code: int = always(0)


class FilesystemChange(Wire, frozen=True, kw_only=True):
    """A path that differs from the image: 0 changed, 1 added, 2 deleted."""

    path: str
    kind: Uint8


class PathStat(Wire, frozen=True, kw_only=True, rename="lower"):
    """The ``X-Docker-Container-Path-Stat`` header's document; ``mode`` is Go's os.FileMode, not the kernel's."""

    name: str
    size: int
    mode: int
    mtime: str
    link_target: str = always("", "linkTarget")


class ContainersPruned(Wire, frozen=True, kw_only=True):
    """The ids of the containers that were removed, and the bytes that came free."""

    containers_deleted: list[str] | None = always(None)
    space_reclaimed: int = always(0)


class ExecCreateRequest(Wire, frozen=True, kw_only=True):
    """One more process in a running container."""

    user: str = always("")
    privileged: bool = always(False)
    tty: bool = always(False)
    console_size: tuple[int, int] | None = None  # (height, width)
    attach_stdin: bool = always(False)
    attach_stderr: bool = always(False)
    attach_stdout: bool = always(False)
    detach_keys: str = always("")
    env: list[str] | None = always(None)
    working_dir: str = always("")
    cmd: list[str] | None = always(None)


class ExecCreateResponse(Wire, frozen=True, kw_only=True):
    """The new exec."""

    id: str


class ExecStartRequest(Wire, frozen=True, kw_only=True):
    """How to start an exec."""

    detach: bool = always(False)
    tty: bool = always(False)
    console_size: tuple[int, int] | None = None  # (height, width)


class ProcessConfig(Wire, frozen=True, kw_only=True, rename="lower"):
    """The program of an exec."""

    tty: bool
    entrypoint: str
    arguments: list[str]
    privileged: bool | None = None
    user: str = ""


class ExecInspect(Wire, frozen=True, kw_only=True):
    """An exec; ``exit_code`` is null until it has ended."""

    id: str = always("", "ID")
    running: bool = always(False)
    exit_code: int | None = always(None)
    process_config: ProcessConfig
    open_stdin: bool = always(False)
    open_stderr: bool = always(False)
    open_stdout: bool = always(False)
    can_remove: bool = always(False)
    container_id: str = always("", "ContainerID")
    detach_keys: str = always("")
    pid: int = always(0)


class CpuUsage(Wire, frozen=True, kw_only=True, rename=None):
    """Nanoseconds of processor time."""

    total_usage: int = always(0)
    percpu_usage: list[int] = omitempty([])
    usage_in_kernelmode: int = always(0)
    usage_in_usermode: int = always(0)


class ThrottlingData(Wire, frozen=True, kw_only=True, rename=None):
    """How often the processor quota was used up; time in nanoseconds."""

    periods: int = always(0)
    throttled_periods: int = always(0)
    throttled_time: int = always(0)


class CpuStats(Wire, frozen=True, kw_only=True, rename=None):
    """Processor use of the container, and of the whole machine, in nanoseconds."""

    cpu_usage: CpuUsage = always(CpuUsage())
    system_cpu_usage: int = 0
    online_cpus: int = 0
    throttling_data: ThrottlingData = always(ThrottlingData())


class MemoryStats(Wire, frozen=True, kw_only=True, rename=None):
    """Memory in bytes; ``stats`` is the kernel's memory.stat."""

    usage: int = 0
    max_usage: int = 0
    stats: dict[str, int] = omitempty({})
    failcnt: int = 0
    limit: int = 0


class PidsStats(Wire, frozen=True, kw_only=True, rename=None):
    """Tasks."""

    current: int = 0
    limit: int = 0


class BlkioEntry(Wire, frozen=True, kw_only=True, rename=None):
    """One counter of one device."""

    major: int
    minor: int
    op: str
    value: int


class BlkioStats(Wire, frozen=True, kw_only=True, rename=None):
    """Block I/O."""

    io_service_bytes_recursive: list[BlkioEntry] | None = always(None)
    io_serviced_recursive: list[BlkioEntry] | None = always(None)
    io_queue_recursive: list[BlkioEntry] | None = always(None)
    io_service_time_recursive: list[BlkioEntry] | None = always(None)
    io_wait_time_recursive: list[BlkioEntry] | None = always(None)
    io_merged_recursive: list[BlkioEntry] | None = always(None)
    io_time_recursive: list[BlkioEntry] | None = always(None)
    sectors_recursive: list[BlkioEntry] | None = always(None)


class NetworkStats(Wire, frozen=True, kw_only=True, rename=None):
    """Traffic of one interface."""

    rx_bytes: int = always(0)
    rx_packets: int = always(0)
    rx_errors: int = always(0)
    rx_dropped: int = always(0)
    tx_bytes: int = always(0)
    tx_packets: int = always(0)
    tx_errors: int = always(0)
    tx_dropped: int = always(0)


class StorageStats(Wire, frozen=True, kw_only=True, rename=None):
    """Empty on Linux."""


class StatsResponse(Wire, frozen=True, kw_only=True, rename=None):
    """One sample; ``precpu_stats`` is the one before."""

    name: str = ""
    id: str = ""
    read: str = always("0001-01-01T00:00:00Z")
    preread: str = always("0001-01-01T00:00:00Z")
    pids_stats: PidsStats = always(PidsStats())
    blkio_stats: BlkioStats = always(BlkioStats())
    num_procs: int = always(0)
    storage_stats: StorageStats = always(StorageStats())
    cpu_stats: CpuStats = always(CpuStats())
    precpu_stats: CpuStats = always(CpuStats())
    memory_stats: MemoryStats = always(MemoryStats())
    networks: dict[str, NetworkStats] = omitempty({})


class IdResponse(Wire, frozen=True, kw_only=True):
    """The id of what was made."""

    id: str

"""What differs between the API versions, as data: the engine speaks the newest, the edge translates.

``UPGRADES`` change requests of older clients into what they mean today; ``DOWNGRADES`` change replies into what older
clients were promised. Each entry holds for versions *below* the one it names. Replies were compared with Docker 28.5.2
version by version; the requests follow moby's routers.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import msgspec

from compatd.wire.types.containers import (
    ContainerConfig,
    ContainerCreateRequest,
    ExecCreateRequest,
    HostConfig,
    Mount,
    UpdateRequest,
)

T = TypeVar("T")

Version = tuple[int, int]
MINIMUM: Version = (1, 24)
MAXIMUM: Version = (1, 51)


def show(version: Version) -> str:
    """``1.51``."""
    return f"{version[0]}.{version[1]}"


Document = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Downgrade:
    """Clients below ``below`` get the reply of ``operation`` after ``edit``; a list is edited item by item."""

    operation: str
    below: Version
    edit: Callable[[Document], None]


def drop(*path: str) -> Callable[[Document], None]:
    """Leave out a field that came later."""

    def edit(document: Document) -> None:
        for name in path[:-1]:
            document = cast(Document, document.get(name) or {})
        document.pop(path[-1], None)

    return edit


def add(*path: str, value: object) -> Callable[[Document], None]:
    """Put in a field that was dropped since."""

    def edit(document: Document) -> None:
        for name in path[:-1]:
            document = cast(Document, document[name])
        document.setdefault(path[-1], value)

    return edit


def _copy_size(document: Document) -> None:
    document["VirtualSize"] = document["Size"]


def _hide_count(document: Document) -> None:
    document["Containers"] = -1


def _name_nothing(document: Document) -> None:
    if not document.get("RepoTags") and not document.get("RepoDigests"):
        document["RepoTags"] = ["<none>:<none>"]
        document["RepoDigests"] = ["<none>@<none>"]
    elif not document.get("RepoDigests"):
        document["RepoDigests"] = None


# The fields of a container's configuration that images have no use for.
_UNUSED_BY_IMAGES: Document = {
    "Hostname": "",
    "Domainname": "",
    "AttachStdin": False,
    "AttachStdout": False,
    "AttachStderr": False,
    "Tty": False,
    "OpenStdin": False,
    "StdinOnce": False,
    "Image": "",
}


def _fill_config(document: Document) -> None:
    config = cast(Document, document.get("Config") or {})
    for key, value in _UNUSED_BY_IMAGES.items():
        config.setdefault(key, value)


def _add_container_config(document: Document) -> None:
    document["ContainerConfig"] = {**msgspec.to_builtins(ContainerConfig()), "Labels": None}


def _drop_runtime_status(document: Document) -> None:
    for runtime in cast(dict[str, Document], document.get("Runtimes") or {}).values():
        runtime.pop("status", None)


def _add_short_id(document: Document) -> None:
    # In networks of the user's own the short id was an alias, before DNSNames had it.
    networks = cast(dict[str, Document], cast(Document, document["NetworkSettings"])["Networks"])
    for name, endpoint in networks.items():
        if name not in ("bridge", "host", "none"):
            aliases = cast(list[str], endpoint["Aliases"] or [])
            endpoint["Aliases"] = list(dict.fromkeys([*aliases, cast(str, document["Id"])[:12]]))


def _name_security_options(document: Document) -> None:
    options = cast(list[str], document.get("SecurityOptions") or [])
    document["SecurityOptions"] = [option.split(",")[0].removeprefix("name=") for option in options]


def _size_images(document: Document) -> None:
    for image in cast(list[Document], document.get("Images") or []):
        _copy_size(image)


DOWNGRADES: tuple[Downgrade, ...] = (
    Downgrade("ContainerInspect", (1, 45), _add_short_id),
    Downgrade("ImageList", (1, 51), _hide_count),
    Downgrade("ImageList", (1, 44), _copy_size),
    Downgrade("ImageList", (1, 43), _name_nothing),
    Downgrade("ImageInspect", (1, 50), _fill_config),
    Downgrade("ImageInspect", (1, 45), _add_container_config),
    Downgrade("ImageInspect", (1, 44), _copy_size),
    Downgrade("SystemInfo", (1, 50), add("BridgeNfIptables", value=False)),
    Downgrade("SystemInfo", (1, 50), add("BridgeNfIp6tables", value=False)),
    Downgrade("SystemInfo", (1, 49), drop("FirewallBackend")),
    Downgrade("SystemInfo", (1, 49), add("RuncCommit", "Expected", value="")),
    Downgrade("SystemInfo", (1, 49), add("ContainerdCommit", "Expected", value="")),
    Downgrade("SystemInfo", (1, 49), add("InitCommit", "Expected", value="")),
    Downgrade("SystemInfo", (1, 47), add("RegistryConfig", "AllowNondistributableArtifactsCIDRs", value=None)),
    Downgrade("SystemInfo", (1, 47), add("RegistryConfig", "AllowNondistributableArtifactsHostnames", value=None)),
    Downgrade("SystemInfo", (1, 46), drop("Containerd")),
    Downgrade("SystemInfo", (1, 44), _drop_runtime_status),
    Downgrade("SystemInfo", (1, 42), add("KernelMemory", value=True)),
    Downgrade("SystemInfo", (1, 25), _name_security_options),
    Downgrade("SystemDataUsage", (1, 44), _size_images),
)


def downgrade(operation: str, version: Version, value: object) -> object:
    """``value`` as a client of ``version`` expects it: itself, or its edited plain form."""
    if version == MAXIMUM:
        return value
    edits = [change.edit for change in DOWNGRADES if change.operation == operation and version < change.below]
    if not edits:
        return value
    document: Any = msgspec.to_builtins(value)
    items = cast(list[Document], document if isinstance(document, list) else [document])
    for item in items:
        for edit in edits:
            edit(item)
    return cast(object, document)


@dataclass(frozen=True, slots=True)
class Upgrade:
    """What clients from ``since`` on and below ``below`` send to ``operation`` means what ``edit`` makes of it."""

    operation: str
    below: Version
    edit: Callable[[Any], Any]
    since: Version = (0, 0)


def _host(**changes: object) -> Callable[[ContainerCreateRequest], ContainerCreateRequest]:
    """Fields of the host configuration that did not exist: whatever was sent is dropped."""

    def edit(request: ContainerCreateRequest) -> ContainerCreateRequest:
        if request.host_config is None:
            return request
        return msgspec.structs.replace(request, host_config=msgspec.structs.replace(request.host_config, **changes))

    return edit


def _host_default(field: str, value: str) -> Callable[[ContainerCreateRequest], ContainerCreateRequest]:
    """A default that was another one."""

    def edit(request: ContainerCreateRequest) -> ContainerCreateRequest:
        config = request.host_config or HostConfig()
        if getattr(config, field):
            return request
        return msgspec.structs.replace(request, host_config=msgspec.structs.replace(config, **{field: value}))

    return edit


def _mounts(change: Callable[[Mount], Mount]) -> Callable[[ContainerCreateRequest], ContainerCreateRequest]:
    def edit(request: ContainerCreateRequest) -> ContainerCreateRequest:
        config = request.host_config
        if config is None or not config.mounts:
            return request
        mounts = [change(mount) for mount in config.mounts]
        return msgspec.structs.replace(request, host_config=msgspec.structs.replace(config, mounts=mounts))

    return edit


def _bind(**changes: object) -> Callable[[Mount], Mount]:
    def change(mount: Mount) -> Mount:
        if mount.bind_options is None:
            return mount
        return msgspec.structs.replace(mount, bind_options=msgspec.structs.replace(mount.bind_options, **changes))

    return change


def _fitting_options(mount: Mount) -> Mount:
    # Some options of another type of mount were passed over before 1.42; all are refused since.
    return msgspec.structs.replace(
        mount,
        volume_options=None if mount.type == "tmpfs" else mount.volume_options,
        tmpfs_options=mount.tmpfs_options if mount.type == "tmpfs" else None,
    )


def _no_start_interval(request: ContainerCreateRequest) -> ContainerCreateRequest:
    if request.healthcheck is None:
        return request
    return msgspec.structs.replace(request, healthcheck=msgspec.structs.replace(request.healthcheck, start_interval=0))


def _no_console_size(request: ExecCreateRequest) -> ExecCreateRequest:
    return msgspec.structs.replace(request, console_size=None)


def _no_kernel_memory(request: UpdateRequest) -> UpdateRequest:
    return msgspec.structs.replace(request, kernel_memory=0)


def _no_pids_limit(request: UpdateRequest) -> UpdateRequest:
    return msgspec.structs.replace(request, pids_limit=None)


ALL: Version = (99, 0)

UPGRADES: tuple[Upgrade, ...] = (
    Upgrade("ContainerCreate", (1, 25), _host(auto_remove=False)),
    Upgrade("ContainerCreate", (1, 40), _mounts(_bind(non_recursive=False))),
    Upgrade("ContainerCreate", (1, 40), _host(kernel_memory_tcp=0)),
    Upgrade("ContainerCreate", (1, 40), _host_default("ipc_mode", "shareable")),
    Upgrade("ContainerCreate", (1, 41), _host_default("cgroupns_mode", "host")),
    Upgrade("ContainerCreate", (1, 42), _mounts(_fitting_options)),
    Upgrade("ContainerCreate", (1, 42), _mounts(_bind(create_mountpoint=False))),
    Upgrade("ContainerCreate", (1, 42), _host(console_size=(0, 0))),
    Upgrade("ContainerCreate", (1, 43), _host(annotations={})),
    Upgrade("ContainerCreate", (1, 44), _no_start_interval),
    Upgrade("ContainerExec", (1, 42), _no_console_size),
    Upgrade("ContainerUpdate", ALL, _no_kernel_memory, since=(1, 42)),
    Upgrade("ContainerUpdate", (1, 40), _no_pids_limit),
)


@dataclass(frozen=True, slots=True)
class Refusal:
    """Clients from ``since`` on and below ``below`` may not ask of ``operation`` what ``reason`` has a text for."""

    operation: str
    below: Version
    reason: Callable[[Any], str | None]
    since: Version = (0, 0)


def _of_mounts(reason: Callable[[Mount], str | None]) -> Callable[[ContainerCreateRequest], str | None]:
    def check(request: ContainerCreateRequest) -> str | None:
        mounts = request.host_config.mounts if request.host_config is not None else None
        return next((text for text in map(reason, mounts or ()) if text is not None), None)

    return check


def _unfitting_options(mount: Mount) -> str | None:
    for name, options, kind in (
        ("VolumeOptions", mount.volume_options, "volume"),
        ("BindOptions", mount.bind_options, "bind"),
        ("TmpfsOptions", mount.tmpfs_options, "tmpfs"),
    ):
        if options is not None and mount.type != kind:
            return f'{name} must not be specified on mount type "{mount.type}"'
    return None


def _forced_read_only(mount: Mount) -> str | None:
    if mount.type == "bind" and mount.bind_options is not None and mount.bind_options.read_only_force_recursive:
        return "BindOptions.ReadOnlyForceRecursive needs API v1.44 or newer"
    return None


def _subpath(mount: Mount) -> str | None:
    if mount.volume_options is not None and mount.volume_options.subpath:
        return "VolumeOptions.Subpath needs API v1.45 or newer"
    return None


def _image_mount(mount: Mount) -> str | None:
    return 'Mount type "Image" needs API v1.48 or newer' if mount.type == "image" else None


REFUSALS: tuple[Refusal, ...] = (
    Refusal("ContainerCreate", ALL, _of_mounts(_unfitting_options), since=(1, 42)),
    Refusal("ContainerCreate", (1, 44), _of_mounts(_forced_read_only)),
    Refusal("ContainerCreate", (1, 45), _of_mounts(_subpath)),
    Refusal("ContainerCreate", (1, 48), _of_mounts(_image_mount)),
)


def refusal(operation: str, version: Version, request: object) -> str | None:
    """Why ``request`` cannot be made in this version, in Docker's words; None: it can."""
    for known in REFUSALS:
        if known.operation == operation and known.since <= version < known.below:
            text = known.reason(request)
            if text is not None:
                return text
    return None


def upgrade(operation: str, version: Version, request: T) -> T:
    """``request`` as a client of the newest version would have sent it."""
    for change in UPGRADES:
        if change.operation == operation and change.since <= version < change.below:
            request = cast(T, change.edit(request))
    return request

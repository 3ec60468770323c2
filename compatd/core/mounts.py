"""What a container is to have mounted: ``-v``, ``--mount``, ``--volumes-from`` and VOLUME, read and checked.

Pure, except that a bind by ``--mount`` must exist at creation, as Docker demands. Texts, kinds and the order of the
checks are those of moby volume/mounts/linux_parser.go and daemon/volumes.go, asked on Docker 28.5.2.
"""

import os
import posixpath
from collections.abc import Callable, Iterable, Sequence

import msgspec

from compatd.core.container import ContainerRecord, MountPoint
from compatd.errors import EngineError, InvalidParameter, NotFound, SystemFailure
from compatd.volumes.local import check_name
from compatd.wire.types.containers import ContainerConfig, HostConfig, Mount, TmpfsOptions

PROPAGATIONS = frozenset({"private", "rprivate", "shared", "rshared", "slave", "rslave"})
_COPY_MODES = frozenset({"nocopy"})
_MODES = (
    frozenset({"rw", "ro"}),
    frozenset({"z", "Z"}),
    PROPAGATIONS,
    _COPY_MODES,
    frozenset({"consistent", "cached", "delegated"}),
)
_TMPFS_OPTIONS = frozenset({"exec", "noexec"})
_IMAGE_WARNING = "Image mount is an experimental feature"
_DRIVER_WARNING = (
    "WARNING: the container-wide volume-driver configuration is ignored for volumes specified via 'mount'."
    " Use '--mount type=volume,volume-driver=...' instead"
)
_SIZES = (("g", 1 << 30), ("m", 1 << 20), ("k", 1 << 10))


class MountParser:
    """Reads one request. ``data_root``: binds from there, or of what it lies in, must not hold on to its mounts.

    ``recursive_readonly``: whether read-only holds for what is mounted below a bind as well (not before API 1.44).
    """

    def __init__(self, data_root: str, *, recursive_readonly: bool = True) -> None:
        self._data_root = data_root
        self._recursive_readonly = recursive_readonly

    def read(
        self,
        config: ContainerConfig,
        host_config: HostConfig,
        find: Callable[[str], ContainerRecord],
    ) -> tuple[MountPoint, ...]:
        """Every mount but those of ``--tmpfs``, one for each target; a volume without a name gets one later.

        What the user asks for takes the place of what another container (``find`` gives it) brings along, and that
        the place of the image's volumes. Errors in Docker's words.
        """
        points = self._inherit(host_config.volumes_from or (), find)
        own: set[str] = set()
        for text in host_config.binds or ():
            point = read_bind(text)
            if point.target in own or point.target in host_config.tmpfs:
                raise _duplicate(point.target)
            own.add(point.target)
            points[point.target] = self._guard(point, text.split(":")[0])
        for mount in host_config.mounts or ():
            point = read_mount(mount)
            point = self._guard(point, mount.source)
            if point.target in own:
                raise _duplicate(mount.target)
            own.add(point.target)
            points[point.target] = point
        for target in config.volumes or ():
            clean = clean_path(target)
            if "\0" in target:
                raise InvalidParameter(f"invalid volume specification: '{target}'")
            if clean not in points and clean not in host_config.tmpfs:
                points[clean] = MountPoint(type="volume", source="", target=clean, anonymous=True)
        return tuple(points.values())

    def _inherit(self, specifications: Iterable[str], find: Callable[[str], ContainerRecord]) -> dict[str, MountPoint]:
        points: dict[str, MountPoint] = {}
        for text in specifications:
            reference, readonly = read_volumes_from(text)
            if not reference:
                raise InvalidParameter('invalid name or ID supplied: ""')
            try:
                donor = find(reference)
            except EngineError as error:
                raise InvalidParameter(str(error)) from error
            for point in donor.mounts:
                if point.type == "tmpfs":
                    raise NotFound("get: no such volume")  # moby takes it for one
                points[point.target] = msgspec.structs.replace(
                    point, readonly=point.readonly or readonly, copy_up=False, mode=""
                )
        return points

    def _guard(self, point: MountPoint, given: str) -> MountPoint:
        """moby daemon/volumes_linux.go, validateBindDaemonRoot: by the letters of both paths."""
        if point.type != "bind":
            return point
        if not self._recursive_readonly and point.readonly:
            point = msgspec.structs.replace(point, readonly_recursive=False)
        if not given.startswith(self._data_root) and not self._data_root.startswith(given):
            return point
        if point.propagation_implied:
            return msgspec.structs.replace(point, propagation="rslave")
        if point.propagation in ("rslave", "rshared"):
            return point
        raise InvalidParameter(
            'invalid mount config: must use either propagation mode "rslave" or "rshared" when mount source is within'
            f' the daemon root, daemon root: "{self._data_root}", bind mount source: "{given}",'
            f' propagation: "{point.propagation}"'
        )


def check_mounts(host_config: HostConfig) -> list[str]:
    """Validate every ``--mount`` and the targets of ``--tmpfs``; returns warnings. May look at the host's files."""
    warnings: list[str] = []
    for mount in host_config.mounts or ():
        if mount.type == "image":
            warnings.append(_IMAGE_WARNING)
        read_mount(mount)
    for target in host_config.tmpfs or ():
        if (reason := _bad_place(target)) is not None:
            raise InvalidParameter(reason)
    return warnings


def driver_warnings(host_config: HostConfig) -> list[str]:
    """moby api/server/router/container/container_routes.go, handleVolumeDriverBC."""
    for mount in host_config.mounts or () if host_config.volume_driver else ():
        options = mount.volume_options
        if mount.type == "volume" and (options is None or not (options.driver_config and options.driver_config.name)):
            return [_DRIVER_WARNING]
    return []


def read_bind(text: str) -> MountPoint:
    """One ``source:target[:mode]`` or ``target`` (moby volume/mounts/linux_parser.go, ParseMountRaw).

    ``SystemFailure``, which is the kind that Docker has for these errors, except for the name of a volume.
    """
    invalid = f"invalid volume specification: '{text}'"
    parts = text.split(":")
    if not parts[0] or len(parts) > 3 or "\0" in text:
        raise SystemFailure(invalid)
    if len(parts) == 1:
        source, target, mode = "", parts[0], ""
    elif len(parts) == 2:
        if _is_mode(parts[1]):
            raise SystemFailure(invalid)
        source, target, mode = parts[0], parts[1], ""
    else:
        source, target, mode = parts
    if not _is_mode(mode):
        raise SystemFailure(f"invalid mode: {mode}")
    kind = "bind" if source.startswith("/") else "volume"
    words = mode.split(",")
    propagation = next((word for word in words if word in PROPAGATIONS), "")
    extra = "BindOptions" if kind == "volume" and propagation else ""
    if kind == "bind" and "nocopy" in words:
        extra = "VolumeOptions"
    reason = _bad_target(target) or (f"field {extra} must not be specified" if extra else None)
    if reason is not None:
        raise SystemFailure(f'{invalid}: invalid mount config for type "{kind}": {reason}')
    readonly = "ro" in words
    if kind == "volume":
        if source:
            check_name(source)
        return MountPoint(
            type="volume",
            name=source,
            source="",
            target=clean_path(target),
            readonly=readonly,
            mode=mode or "z",  # moby daemon/volumes_unix.go, setBindModeIfNull
            anonymous=not source,
            unnamed=not source,
            copy_up="nocopy" not in words,
        )
    return MountPoint(
        type="bind",
        source=clean_path(source),
        target=clean_path(target),
        readonly=readonly,
        mode=mode,
        propagation=propagation or "rprivate",
        propagation_implied=not propagation,
        create_source=True,
    )


def read_volumes_from(text: str) -> tuple[str, bool]:
    """One ``container[:mode]``: whose mounts, and whether they become read-only. ``InvalidParameter``."""
    if not text:
        raise InvalidParameter("volumes-from specification cannot be an empty string")
    reference, _, mode = text.partition(":")
    words = set(mode.split(","))
    if not _is_mode(mode) or words & (PROPAGATIONS | _COPY_MODES):
        raise InvalidParameter(f"invalid mode: {mode}")
    return reference, "ro" in words


def read_mount(mount: Mount) -> MountPoint:
    """One ``--mount`` (moby volume/mounts/linux_parser.go, validateMountConfigImpl). ``InvalidParameter``."""
    reason = _bad_target(mount.target)
    if reason is None:
        match mount.type:
            case "bind":
                reason = _bad_bind(mount)
            case "volume":
                reason = _bad_volume(mount)
            case "tmpfs":
                reason = _bad_tmpfs(mount)
            case "image":
                reason = _bad_image(mount)
            case _:
                reason = "mount type unknown"
    if reason is not None:
        raise InvalidParameter(f'invalid mount config for type "{mount.type}": {reason}')
    point = MountPoint(type=mount.type, source="", target=clean_path(mount.target), readonly=mount.read_only)
    if mount.type == "tmpfs":
        return msgspec.structs.replace(point, options=tmpfs_options(mount.tmpfs_options, mount.read_only))
    if mount.type == "image":
        options = mount.image_options
        return msgspec.structs.replace(
            point,
            name=mount.source,
            readonly=True,
            propagation="rprivate",
            subpath=options.subpath if options is not None else "",
        )
    if mount.type == "volume":
        if mount.source:
            check_name(mount.source)
        volume = mount.volume_options
        return msgspec.structs.replace(
            point,
            name=mount.source,
            mode="z",
            anonymous=not mount.source,
            copy_up=volume is None or not volume.no_copy,
            subpath=volume.subpath if volume is not None else "",
        )
    binding = mount.bind_options
    point = msgspec.structs.replace(point, source=clean_path(mount.source), propagation="rprivate")
    if binding is None:
        return msgspec.structs.replace(point, propagation_implied=True)
    return msgspec.structs.replace(
        point,
        propagation=binding.propagation or "rprivate",
        propagation_implied=not binding.propagation,
        create_source=binding.create_mountpoint,
        recursive=not binding.non_recursive,
        readonly_recursive=not binding.read_only_non_recursive,
        readonly_forced=binding.read_only_force_recursive,
    )


def conflict(point: MountPoint) -> str | None:
    """What is found contradictory at the start only (moby daemon/volumes_unix.go, setupMounts)."""
    if not point.readonly and not point.readonly_recursive:
        return "mount options conflict: !ReadOnly && BindOptions.ReadOnlyNonRecursive"
    if not point.readonly and point.readonly_forced:
        return "mount options conflict: !ReadOnly && BindOptions.ReadOnlyForceRecursive"
    if not point.readonly_recursive and point.readonly_forced:
        return "mount options conflict: ReadOnlyNonRecursive && BindOptions.ReadOnlyForceRecursive"
    return None


def tmpfs_options(options: TmpfsOptions | None, readonly: bool) -> str:
    """As a ``--tmpfs`` would have them (moby volume/mounts/linux_parser.go, ConvertTmpfsOptions)."""
    words = ["ro"] if readonly else []
    if options is not None:
        words += [f"mode={options.mode:o}"] if options.mode else []
        if options.size_bytes:
            suffix, divisor = next((pair for pair in _SIZES if options.size_bytes % pair[1] == 0), ("", 1))
            words.append(f"size={options.size_bytes // divisor}{suffix}")
        words += ["=".join(option) for option in options.options]
    return ",".join(words)


def clean_path(path: str) -> str:
    """Go's path.Clean: Python's keeps two leading slashes."""
    clean = posixpath.normpath(path)
    return clean[1:] if clean.startswith("//") else clean


def _duplicate(target: str) -> InvalidParameter:
    return InvalidParameter(f"Duplicate mount point: {target}")


def _is_mode(mode: str) -> bool:
    words = mode.split(",") if mode else []
    return all(any(word in group for group in _MODES) for word in words) and all(
        sum(word in group for word in words) <= 1 for group in _MODES
    )


def _bad_target(target: str) -> str | None:
    return _bad_place(target) if target else "field Target must not be empty"


def _bad_place(target: str) -> str | None:
    slashed = target.replace("\\", "/")  # as on the other system
    if "\0" not in target and clean_path(slashed) == "/":
        return "invalid specification: destination can't be '/'"
    return _not_absolute(target)


def _not_absolute(path: str) -> str | None:
    if path.replace("\\", "/").startswith("/") and "\0" not in path:
        return None
    return f"invalid mount path: '{path}' mount path must be absolute"


def _bad_bind(mount: Mount) -> str | None:
    if not mount.source:
        return "field Source must not be empty"
    binding = mount.bind_options
    if binding is not None and binding.propagation and binding.propagation not in PROPAGATIONS:
        return f"invalid propagation mode: {binding.propagation}"
    for name, options in (("VolumeOptions", mount.volume_options), ("ImageOptions", mount.image_options)):
        if options is not None:
            return f"field {name} must not be specified"
    if (reason := _not_absolute(mount.source)) is not None:
        return reason
    try:
        os.stat(mount.source)
    except FileNotFoundError:
        if binding is None or not binding.create_mountpoint:
            return f"bind source path does not exist: {mount.source}"
    except OSError as error:
        return f"stat {mount.source}: {(error.strerror or '').lower()}"
    return None


def _bad_volume(mount: Mount) -> str | None:
    for name, options in (("BindOptions", mount.bind_options), ("ImageOptions", mount.image_options)):
        if options is not None:
            return f"field {name} must not be specified"
    if (volume := mount.volume_options) is not None and volume.subpath:
        if not mount.source:
            return "must not set Subpath when using anonymous volumes"
        if not _is_local(volume.subpath):
            return "subpath must be a relative path within the volume"
    if mount.read_only and not mount.source:
        return "must not set ReadOnly mode when using anonymous volumes"
    return None


def _bad_tmpfs(mount: Mount) -> str | None:
    for name, options in (("BindOptions", mount.bind_options), ("ImageOptions", mount.image_options)):
        if options is not None:
            return f"field {name} must not be specified"
    if mount.source:
        return "field Source must not be specified"
    for option in mount.tmpfs_options.options if mount.tmpfs_options is not None else ():
        if not 1 <= len(option) <= 2:
            return "invalid option array length"
        if option[0] not in _TMPFS_OPTIONS:
            return f"invalid option: {option[0]}"
    return None


def _bad_image(mount: Mount) -> str | None:
    for name, options in (("BindOptions", mount.bind_options), ("VolumeOptions", mount.volume_options)):
        if options is not None:
            return f"field {name} must not be specified"
    if not mount.source:
        return "field Source must not be empty"
    if mount.image_options is not None and mount.image_options.subpath and not _is_local(mount.image_options.subpath):
        return "subpath must be a relative path within the volume"
    return None


def _is_local(path: str) -> bool:
    """Go's filepath.IsLocal: relative, and never above where it begins."""
    depth = 0
    for part in path.split("/"):
        depth += {"": 0, ".": 0, "..": -1}.get(part, 1)
        if depth < 0:
            return False
    return not path.startswith("/") and "\0" not in path


def by_depth(points: Sequence[MountPoint]) -> list[MountPoint]:
    """Shallow targets first, so that a mount never hides one inside it (moby daemon/volumes.go, sortMounts)."""
    return sorted(points, key=lambda point: point.target.count("/"))

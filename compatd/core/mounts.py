"""What a container is to have mounted: ``-v``, ``--mount`` and VOLUME, read and checked (moby volume/mounts).

Pure, except that a bind by ``--mount`` must exist at creation, as Docker demands.
"""

import os
import posixpath
import re

from compatd.core.container import MountPoint
from compatd.errors import InvalidParameter, SystemFailure, Unsupported
from compatd.wire.types.containers import ContainerConfig, HostConfig, Mount

PROPAGATIONS = frozenset({"private", "rprivate", "shared", "rshared", "slave", "rslave"})
_COPY_MODES = frozenset({"nocopy"})
_LABEL_MODES = frozenset({"z", "Z"})
_ACCESS_MODES = frozenset({"rw", "ro"})
_FIELD = "field {} must not be specified"
_VOLUME_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]+")


def read_mounts(config: ContainerConfig, host_config: HostConfig) -> tuple[MountPoint, ...]:
    """Every bind and volume, by target; a volume without a name is anonymous and gets one later.

    ``InvalidParameter`` in Docker's words.
    """
    points: dict[str, MountPoint] = {}

    def add(point: MountPoint) -> None:
        if point.target in points or point.target in (host_config.tmpfs or {}):
            raise InvalidParameter(f"Duplicate mount point: {point.target}")
        points[point.target] = point

    for text in host_config.binds or ():
        add(read_bind(text))
    for mount in host_config.mounts or ():
        if mount.type != "tmpfs":
            add(read_mount(mount))
    for target in host_config.tmpfs or ():
        _check_target(target, f"invalid mount path: '{target}' mount path must be absolute")
    for target in config.volumes or ():
        clean = posixpath.normpath(target)
        _check_target(target, f"invalid volume specification: '{target}'")
        if clean not in points and clean not in (host_config.tmpfs or {}):
            add(MountPoint(type="volume", source="", target=clean, anonymous=True))
    return tuple(points.values())


def read_bind(text: str) -> MountPoint:
    """One ``source:target[:mode]`` or ``target`` (moby volume/mounts/linux_parser.go, ParseMountRaw).

    ``SystemFailure``, which is the kind that Docker has for most of these errors.
    """
    parts = text.split(":")
    if len(parts) > 3 or not all(parts):
        raise SystemFailure(f"invalid volume specification: '{text}'")
    if len(parts) == 1:
        source, target, mode = "", parts[0], ""
    elif len(parts) == 2 and not parts[1].startswith("/") and _is_mode(parts[1]):
        source, target, mode = "", parts[0], parts[1]
    else:
        source, target, mode = parts[0], parts[1], parts[2] if len(parts) == 3 else ""
    if mode and not _is_mode(mode):
        raise SystemFailure(f"invalid mode: {mode}")
    kind = "bind" if source.startswith("/") else "volume"
    words = mode.split(",") if mode else []
    invalid = f"invalid volume specification: '{text}'"
    if "\0" in text or "\n" in text:
        raise SystemFailure(invalid)
    if not target.startswith("/"):
        raise SystemFailure(
            f'{invalid}: invalid mount config for type "{kind}":'
            f" invalid mount path: '{target}' mount path must be absolute"
        )
    clean = posixpath.normpath(target)
    if clean == "/":
        raise SystemFailure(
            f"{invalid}: invalid mount config for type \"{kind}\": invalid specification: destination can't be '/'"
        )
    propagation = next((word for word in words if word in PROPAGATIONS), "")
    if kind == "volume":
        if propagation:
            raise SystemFailure(f'{invalid}: invalid mount config for type "volume": {_FIELD.format("BindOptions")}')
        if source and not _VOLUME_NAME.fullmatch(source):
            raise InvalidParameter(invalid_volume_name(source))
        return MountPoint(
            type="volume",
            name=source,
            source="",
            target=clean,
            readonly="ro" in words,
            mode=mode or "z",  # moby daemon/volumes.go, setBindModeIfNull
            anonymous=not source,
            copy_up="nocopy" not in words,
        )
    if "nocopy" in words:
        raise SystemFailure(f'{invalid}: invalid mount config for type "bind": {_FIELD.format("VolumeOptions")}')
    return MountPoint(
        type="bind",
        source=posixpath.normpath(source),
        target=clean,
        readonly="ro" in words,
        mode=mode,
        propagation=propagation or "rprivate",
        create_source=True,
    )


def _is_mode(mode: str) -> bool:
    words = mode.split(",")
    known = PROPAGATIONS | _COPY_MODES | _LABEL_MODES | _ACCESS_MODES
    return (
        all(word in known for word in words)
        and len(set(words)) == len(words)
        and all(sum(word in group for word in words) <= 1 for group in (PROPAGATIONS, _LABEL_MODES, _ACCESS_MODES))
    )


def read_mount(mount: Mount) -> MountPoint:
    """One ``--mount`` of type bind or volume (moby volume/mounts/linux_parser.go, validateMountConfigImpl)."""

    def refuse(reason: str) -> InvalidParameter:
        return InvalidParameter(f'invalid mount config for type "{mount.type}": {reason}')

    if mount.type in ("image", "npipe", "cluster"):
        raise Unsupported(f'mount type "{mount.type}" is not supported by this engine')
    if not mount.target:
        raise refuse("field Target must not be empty")
    if mount.type not in ("bind", "volume"):
        raise refuse("mount type unknown")
    if not mount.target.startswith("/"):
        raise refuse(f"invalid mount path: '{mount.target}' mount path must be absolute")
    target = posixpath.normpath(mount.target)
    if target == "/":
        raise refuse("invalid specification: destination can't be '/'")
    if mount.type == "volume":
        if mount.bind_options is not None:
            raise refuse("field BindOptions must not be specified")
        options = mount.volume_options
        if options is not None and options.labels:
            raise Unsupported("the volume-label option is not supported by this engine")
        if options is not None and options.subpath:
            raise Unsupported("the volume-subpath option is not supported by this engine")
        if options is not None and options.driver_config is not None:
            driver = options.driver_config
            if driver.name not in ("", "local") or driver.options:
                raise Unsupported("the volume-driver and volume-opt options are not supported by this engine")
        if mount.source and not _VOLUME_NAME.fullmatch(mount.source):
            raise InvalidParameter(invalid_volume_name(mount.source))
        return MountPoint(
            type="volume",
            name=mount.source,
            source="",
            target=target,
            readonly=mount.read_only,
            mode="z",
            anonymous=not mount.source,
            copy_up=options is None or not options.no_copy,
        )
    if mount.volume_options is not None:
        raise refuse("field VolumeOptions must not be specified")
    if not mount.source:
        raise refuse("field Source must not be empty")
    if not mount.source.startswith("/"):
        raise refuse(f"invalid mount path: '{mount.source}' mount path must be absolute")
    binding = mount.bind_options
    propagation = binding.propagation if binding is not None else ""
    if propagation and propagation not in PROPAGATIONS:
        raise refuse(f"invalid propagation mode: {propagation}")
    if binding is not None and (binding.non_recursive or binding.read_only_force_recursive):
        raise Unsupported("the bind-recursive option is not supported by this engine")
    create = binding is not None and binding.create_mountpoint
    source = posixpath.normpath(mount.source)
    if not create and not os.path.lexists(source):
        raise refuse(f"bind source path does not exist: {source}")
    return MountPoint(
        type="bind",
        source=source,
        target=target,
        readonly=mount.read_only,
        propagation=propagation or "rprivate",
        create_source=create,
        readonly_recursive=binding is None or not binding.read_only_non_recursive,
    )


def read_tmpfs(host_config: HostConfig) -> dict[str, str]:
    """Every tmpfs by target, as mount options (moby pkg/mount, and volume/mounts ConvertTmpfsOptions)."""
    mounts = {posixpath.normpath(target): options for target, options in (host_config.tmpfs or {}).items()}
    for mount in host_config.mounts or ():
        if mount.type != "tmpfs":
            continue
        if mount.source:
            raise InvalidParameter('invalid mount config for type "tmpfs": field Source must not be specified')
        if not mount.target.startswith("/") or posixpath.normpath(mount.target) == "/":
            raise InvalidParameter(
                'invalid mount config for type "tmpfs":'
                f" invalid mount path: '{mount.target}' mount path must be absolute"
            )
        words: list[str] = ["ro"] if mount.read_only else []
        if (options := mount.tmpfs_options) is not None:
            if options.size_bytes < 0 or options.mode < 0:
                raise InvalidParameter('invalid mount config for type "tmpfs": sizes and modes cannot be negative')
            words += [f"mode={options.mode:o}"] if options.mode else []
            words += [f"size={options.size_bytes}"] if options.size_bytes else []
            words += ["=".join(option) for option in options.options]
        mounts[posixpath.normpath(mount.target)] = ",".join(words)
    return mounts


def _check_target(target: str, message: str) -> None:
    if not target.startswith("/") or posixpath.normpath(target) == "/" or "\0" in target or "\n" in target:
        raise InvalidParameter(message)


def invalid_volume_name(name: str) -> str:
    """moby volume/local/local.go, validateName."""
    if len(name) == 1:
        return f"create {name}: volume name is too short, names should be at least two alphanumeric characters"
    return (
        f'create {name}: "{name}" includes invalid characters for a local volume name, only'
        ' "[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed. If you intended to pass a host directory, use absolute path'
    )

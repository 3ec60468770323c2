"""What a container's mounts are made of, found or made at its start.

Most are a path of the host, which the shim binds. What is more than a path goes to the shim as a detached mount: a
volume with options of its own (a tmpfs, a file server), a folder inside a volume, an image. None of them is ever
seen in the host's mount namespace.

A volume with options is mounted while containers use it, and they all see the same mount. The engine holds it for
the next one, and an engine that has come later takes it from a container that has it. When the last user ends, and
the engine lets go, the kernel unmounts it.
"""

import contextlib
import errno
import logging
import os
import threading
from collections.abc import Callable, Generator, Iterable, Mapping
from pathlib import PurePosixPath

import msgspec

from compatd.core import mounts
from compatd.core.container import ContainerRecord, MountPoint
from compatd.core.lifecycle import ALIVE
from compatd.core.volumes import Volumes
from compatd.errors import EngineError, InvalidParameter, NotFound, SystemFailure
from compatd.images.content import DiffId
from compatd.images.layers import LayerStore
from compatd.linux import mountinfo, syscalls
from compatd.linux.assembly import Assembly, Bind, clone_tree
from compatd.linux.rootdir import Rootdir
from compatd.runtime import namespaces
from compatd.volumes import options
from compatd.volumes.local import copy_into

log = logging.getLogger(__name__)

_BENEATH = syscalls.RESOLVE_BENEATH | syscalls.RESOLVE_NO_MAGICLINKS
_DEAD = syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV | syscalls.MOUNT_ATTR_NOEXEC
_SLAVES = ("slave", "rslave")
_SHARED = ("shared", "rshared")


class Mounting:
    """Owns the mounts of volumes with options. Its functions block; safe for several threads."""

    def __init__(
        self,
        *,
        layers: LayerStore,
        volumes: Volumes,
        running: Callable[[], Iterable[ContainerRecord]],
        recursive_readonly: bool,
    ) -> None:
        self._layers = layers
        self._volumes = volumes
        self._running = running
        self._recursive_readonly = recursive_readonly
        self._lock = threading.Lock()
        self._held: dict[str, Assembly] = {}
        self._users: dict[str, set[str]] = {}

    # ----------------------------------------------------------------- a start

    def prepare(self, record: ContainerRecord, fds: list[int]) -> tuple[tuple[MountPoint, ...], dict[str, int]]:
        """Make everything ready that ``record`` mounts: (its mounts as they will be, detached mounts by target).

        The detached mounts are appended to ``fds``, for the caller to close. Directories of the host that the user
        may name before they exist are made. Volumes are in use until ``release``. Errors in Docker's words.
        """
        points: list[MountPoint] = []
        detached: dict[str, int] = {}
        table: list[mountinfo.Mount] = []
        for point in record.mounts:
            if point.type == "tmpfs" or point.target in record.host_config.tmpfs:
                points.append(point)
                continue
            if (reason := mounts.conflict(point)) is not None:
                raise SystemFailure(reason)
            if point.readonly_forced and point.readonly and not self._recursive_readonly:
                raise SystemFailure("rro is not supported: function not implemented (kernel is older than 5.12?)")
            if point.type == "bind":
                _ensure_source(point)
                point = _settle_propagation(point, table)
            elif (fd := self._open(record.id, point)) is not None:
                fds.append(fd)
                detached[point.target] = fd
            points.append(point)
        return tuple(points), detached

    def release(self, record: ContainerRecord) -> None:
        """The container does not run (any more): a volume that nobody else uses is unmounted."""
        with self._lock:
            for name in [name for name, users in self._users.items() if record.id in users]:
                self._users[name].remove(record.id)
                if not self._users[name]:
                    del self._users[name]
                    self._held.pop(name).close()

    # ------------------------------------------------------------------- a look

    @contextlib.contextmanager
    def binds(self, record: ContainerRecord) -> Generator[list[Bind]]:
        """The mounts of a container for looking and copying; what is opened for that is closed afterwards."""
        with contextlib.ExitStack() as opened:
            binds: list[Bind] = []
            for point in mounts.by_depth(record.mounts):
                if point.type == "tmpfs":
                    continue
                fd: int | None = None
                if point.type != "bind":
                    alone = record.id not in self._users.get(point.name, ())
                    try:
                        fd = self._open(record.id, point)
                    finally:
                        if alone:
                            opened.callback(self._leave, point.name, record.id)
                    if fd is not None:
                        opened.callback(os.close, fd)
                if fd is not None or os.path.exists(point.source):
                    binds.append(Bind(source=point.source, target=point.target, readonly=point.readonly, fd=fd))
            yield binds

    def populate(self, record: ContainerRecord) -> None:
        """Fill its empty volumes with what the image has where they are mounted (moby daemon/create_unix.go).

        ``SystemFailure``: the image has a file there, or where the working directory is to be.
        """
        wanted = [point for point in record.mounts if point.type == "volume"]
        if not wanted and record.config.working_dir in ("", "/"):
            return
        with Rootdir(self._layers.mount([DiffId(layer) for layer in record.layers])) as root:
            _check_working_directory(root, record.config.working_dir or "/")
            for point in wanted:
                self._populate(record, point, root)

    def _populate(self, record: ContainerRecord, point: MountPoint, root: Rootdir) -> None:
        where = os.fsdecode(root.resolve(point.target))
        try:
            os.close(root.open(where, os.O_PATH | os.O_DIRECTORY))
        except FileNotFoundError:
            return
        except NotADirectoryError as error:
            if not _is_file(root, where):
                raise SystemFailure(f"lstat {where}: not a directory") from error
            if point.anonymous and not point.unnamed:
                raise SystemFailure(f"cannot mount volume over existing file, file exists {where}") from error
            raise SystemFailure(f"source {where} is not directory") from error
        if not point.copy_up:
            return
        if not options.needs_mount(self._volumes.get(point.name).options) and not point.subpath:
            self._volumes.copy_up(point.name, root, where)
            return
        try:
            fd = self._open(record.id, point)
        except NotFound:
            return
        except EngineError as error:
            raise SystemFailure(f"failed to populate volume: {error}") from error
        finally:
            self._leave(point.name, record.id)
        if fd is not None:
            try:
                copy_into(root, where, fd)
            finally:
                os.close(fd)

    # ------------------------------------------------------------------ sources

    def _open(self, container_id: str, point: MountPoint) -> int | None:
        """A detached mount of a volume or image, which the caller owns; None: the volume is its directory."""
        if point.type == "image":
            return self._open_image(point)
        given = self._volumes.get(point.name).options
        if options.needs_mount(given):
            assert given is not None
            held = self._hold(container_id, point, given)
            if not point.subpath:
                return held.clone()
            inside = _open_inside(held.root.fileno(), point.subpath, point.source)
            try:
                return held.clone(inside)
            finally:
                os.close(inside)
        if not os.path.isdir(point.source):
            raise SystemFailure(f"failed to mount local volume: {point.source}: no such file or directory")
        if not point.subpath:
            return None
        base = os.open(point.source, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            inside = _open_inside(base, point.subpath, point.source)
        finally:
            os.close(base)
        try:
            return clone_tree(inside)
        finally:
            os.close(inside)

    def _open_image(self, point: MountPoint) -> int:
        image = self._layers.mount([DiffId(layer) for layer in point.layers])
        try:
            # The store gives a tree to look at; this one is for use.
            syscalls.mount_setattr(image, "", syscalls.AT_EMPTY_PATH, attr_clr=_DEAD)
            if not point.subpath:
                return os.dup(image)
            with Assembly(image) as held:
                inside = _open_inside(held.root.fileno(), point.subpath, point.source)
                try:
                    return held.clone(inside)
                finally:
                    os.close(inside)
        finally:
            os.close(image)

    def _hold(self, container_id: str, point: MountPoint, given: Mapping[str, str]) -> Assembly:
        with self._lock:
            held = self._held.get(point.name)
            if held is None:
                fd = self._find(point.name)
                if fd is None:
                    try:
                        fd = options.mount(point.source, given)
                    except SystemFailure as error:
                        raise SystemFailure(f"error while mounting volume '{point.source}': {error}") from error
                try:
                    held = self._held[point.name] = Assembly(fd)
                finally:
                    os.close(fd)
            self._users.setdefault(point.name, set()).add(container_id)
            return held

    def _find(self, name: str) -> int | None:
        """The mount of a volume, if a container has it that an earlier engine started."""
        for record in self._running():
            for point in record.mounts:
                if point.type == "volume" and point.name == name and not point.subpath and record.state in ALIVE:
                    try:
                        return namespaces.clone_mount(record.pid, record.id, point.target)
                    except EngineError as error:
                        log.debug("volume %s cannot be taken from container %s: %s", name, record.id[:12], error)
        return None

    def _leave(self, name: str, container_id: str) -> None:
        with self._lock:
            users = self._users.get(name, set())
            users.discard(container_id)
            if name in self._users and not users:
                del self._users[name]
                self._held.pop(name).close()


def _ensure_source(point: MountPoint) -> None:
    if os.path.exists(point.source):
        return
    if not point.create_source:
        raise InvalidParameter(f'invalid mount config for type "bind": bind source path does not exist: {point.source}')
    made = PurePosixPath("/")
    try:
        for part in PurePosixPath(point.source).parts[1:]:
            made /= part
            if not os.path.isdir(made):
                os.mkdir(made, 0o755)
                os.chmod(made, 0o755)  # whatever the umask
    except (NotADirectoryError, FileExistsError):
        return  # a file is in the way: what it is will be told when it is mounted
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise SystemFailure(
            f"error while creating mount source path '{point.source}': mkdir {made}: {reason[:1].lower()}{reason[1:]}"
        ) from error


def _settle_propagation(point: MountPoint, table: list[mountinfo.Mount]) -> MountPoint:
    """moby daemon/oci_linux.go, ensureShared and ensureSharedOrSlave. ``table`` is read once for a container."""
    if point.propagation not in (*_SLAVES, *_SHARED):
        return point
    if not table:
        table += mountinfo.read()
    found = mountinfo.containing(table, os.path.realpath(point.source))
    shared = found is not None and found.shared is not None
    if shared or (found is not None and found.master is not None and point.propagation in _SLAVES):
        return point
    if point.propagation_implied:
        return msgspec.structs.replace(point, propagation="rprivate")
    where = found.mount_point if found is not None else "/"
    kind = "shared" if point.propagation in _SHARED else "shared or slave"
    raise SystemFailure(f"path {point.source} is mounted on {where} but it is not a {kind} mount")


def _open_inside(base: int, subpath: str, shown: str) -> int:
    """A file or directory in ``base``, an O_PATH descriptor which the caller owns; links lead nowhere else.

    ``NotFound``, ``InvalidParameter`` in the words of moby internal/safepath. ``shown`` is what they call ``base``.
    """
    try:
        return syscalls.openat2(base, subpath, os.O_PATH, resolve=_BENEATH)
    except OSError as error:
        if error.errno == errno.EXDEV:
            raise InvalidParameter(
                f"path concatenation escapes the base directory, base: {shown}, subpath: {subpath}"
            ) from error
        where, reason = _first_failure(base, subpath), os.strerror(error.errno or 0).lower()
        full = f"{shown}/{mounts.clean_path(subpath)}"
        if error.errno in (errno.ENOENT, errno.ELOOP):
            raise NotFound(f"cannot access path {full}: lstat {shown}/{where}: {reason}") from error
        raise SystemFailure(
            f'error while resolving symlinks in combined path "{full}": lstat {shown}/{where}: {reason}'
        ) from error


def _first_failure(base: int, subpath: str) -> str:
    parts = [part for part in subpath.split("/") if part not in ("", ".")]
    for count in range(1, len(parts)):
        path = "/".join(parts[:count])
        try:
            os.close(syscalls.openat2(base, path, os.O_PATH, resolve=_BENEATH))
        except OSError:
            return path
    return "/".join(parts)


def _check_working_directory(root: Rootdir, path: str) -> None:
    """moby container/container.go, SetupWorkingDirectory; what is missing is made at the start."""
    try:
        os.close(root.open(path, os.O_PATH | os.O_DIRECTORY))
    except NotADirectoryError as error:
        if _is_file(root, path):
            raise SystemFailure(f"Cannot mkdir: {path} is not a directory") from error
        raise SystemFailure(f"lstat {path}: not a directory") from error
    except OSError:
        return


def _is_file(root: Rootdir, path: str) -> bool:
    try:
        os.close(root.open(path, os.O_PATH))
    except OSError:
        return False
    return True

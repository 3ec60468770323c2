"""Volumes of the local driver: directories that outlive containers.

    <root>/                       0701, so that no user but root lists volumes, while a container's user may pass
      <name>/                     0701
        _data/                    what containers see; 0755 root until copy-up gives it its owner and mode
        .copying-<random>/        image content on its way into an empty volume; a crash leaves it, nobody looks at it
        .copied/                  the same, complete: being moved into _data; a crash leaves it, the next use finishes
      .new-<random>/              a volume before it is renamed to its name
      .removed-<random>/          a volume after its removal, until its content is gone

What a crash leaves under names with a dot, ``sweep`` removes. Records (labels, options, times) are the core's.
"""

import contextlib
import errno
import json
import os
import re
import secrets
import stat
from collections.abc import Mapping
from pathlib import Path

from compatd.errors import InvalidParameter, NotFound, SystemFailure
from compatd.linux.rootdir import Rootdir
from compatd.volumes.options import check_options

_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.-]*")
_DATA = "_data"
_COPIED = ".copied"
_COPYING = ".copying-"
_MAX_DEPTH = 400  # each level holds two descriptors and a Python frame
_CHUNK_BYTES = 1 << 30


def no_such_volume(name: str) -> NotFound:
    # moby volume/service/errors.go, errNoSuchVolume as OpErr words it
    return NotFound(f"get {name}: no such volume")


def check_name(name: str) -> None:
    """``InvalidParameter`` with Docker's text unless ``name`` can be a volume's."""
    # moby volume/local/local.go, validateName
    if len(name.encode(errors="surrogatepass")) == 1:
        raise InvalidParameter(
            f"create {name}: volume name is too short, names should be at least two alphanumeric characters"
        )
    if _NAME.fullmatch(name) is None:
        raise InvalidParameter(
            f"create {name}: {json.dumps(name, ensure_ascii=False)} includes invalid characters for a local volume"
            ' name, only "[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed. If you intended to pass a host directory, use'
            " absolute path"
        )


class LocalVolumes:
    """The volumes below ``root``, which is made if need be. Calls block; safe from several threads."""

    def __init__(self, root: Path) -> None:
        self._root = root
        root.mkdir(mode=0o701, parents=True, exist_ok=True)

    def create(self, name: str | None = None, options: Mapping[str, str] | None = None) -> str:
        """Make a volume, on disk when this returns; one that exists stays as it is. No ``name``: 64 hex digits.

        Errors: see ``check_name`` and ``options.check_options``; ``SystemFailure`` when the disk refuses.
        """
        name = name or secrets.token_hex(32)
        check_name(name)
        check_options(name, options or {})
        if self.exists(name):
            return name
        target = self._root / name
        staged = self._root / f".new-{secrets.token_hex(8)}"
        try:
            _mkdir(staged, 0o701)
            _mkdir(staged / _DATA, 0o755)
            try:
                staged.rename(target)
            except OSError as error:
                self._discard(staged.name)
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
            _sync(self._root)
        except OSError as error:
            reason = (error.strerror or "").lower()
            raise SystemFailure(
                f"create {name}: error while creating volume root path '{target}': mkdir {target}: {reason}"
            ) from error
        return name

    def path(self, name: str) -> Path:
        """The directory that containers see. ``NotFound`` if there is no such volume."""
        if not self.exists(name):
            raise no_such_volume(name)
        return self._root / name / _DATA

    def exists(self, name: str) -> bool:
        """Whether there is a volume of this name."""
        return _NAME.fullmatch(name) is not None and len(name) <= 255 and (self._root / name / _DATA).is_dir()

    def names(self) -> list[str]:
        """All volumes, sorted."""
        return sorted(entry.name for entry in os.scandir(self._root) if self.exists(entry.name))

    def remove(self, name: str) -> None:
        """Remove a volume with its content; gone by name at once. ``NotFound`` if there is none."""
        if not self.exists(name):
            raise no_such_volume(name)
        removed = f".removed-{secrets.token_hex(8)}"
        try:
            (self._root / name).rename(self._root / removed)
        except FileNotFoundError:
            raise no_such_volume(name) from None
        _sync(self._root)
        self._discard(removed)

    def size_bytes(self, name: str) -> int:
        """What the files take by their lengths, each inode once (moby pkg/directory, Size)."""
        seen: set[tuple[int, int]] = set()
        total = 0
        root = os.open(self.path(name), os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            for _, _, files, directory in os.fwalk(".", dir_fd=root, follow_symlinks=False):
                for file in files:
                    with contextlib.suppress(FileNotFoundError):
                        found = os.stat(file, dir_fd=directory, follow_symlinks=False)
                        if (found.st_dev, found.st_ino) not in seen:
                            seen.add((found.st_dev, found.st_ino))
                            total += found.st_size
        finally:
            os.close(root)
        return total

    def copy_up(self, name: str, source: Rootdir, path: str) -> bool:
        """Fill an empty volume with what ``source`` has at ``path``: owners, modes, times, links, extended attributes.

        The volume's own directory gets owner and mode of the source's. Nothing happens (False) when the volume holds
        anything, or when the source has no directory there. Killed in the middle: the volume is still empty, or is
        completed by the next call.
        """
        volume = self.path(name).parent
        data = volume / _DATA
        if (volume / _COPIED).is_dir():
            _move_in(volume)
            return True
        with os.scandir(data) as entries:
            if any(entries):
                return False
        try:
            origin = source.open(path, os.O_RDONLY | os.O_DIRECTORY)
        except (FileNotFoundError, NotADirectoryError):
            return False
        staged = volume / f"{_COPYING}{secrets.token_hex(8)}"
        try:
            staged.mkdir(mode=0o700)
            target = os.open(staged, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                _copy_directory(origin, target, {}, 0)
            finally:
                os.close(target)
            staged.rename(volume / _COPIED)
        except OSError as error:
            self._discard(str(Path(name) / staged.name))
            raise SystemFailure(f"failed to copy image content to volume {name}: {error.strerror}") from error
        finally:
            os.close(origin)
        _move_in(volume)
        return True

    def sweep(self) -> None:
        """Remove what a crash has left (at a daemon's start, before anything else is done here)."""
        for entry in list(os.scandir(self._root)):
            if entry.name.startswith((".new-", ".removed-")):
                self._discard(entry.name)
            elif self.exists(entry.name):
                for left in list(os.scandir(entry.path)):
                    if left.name.startswith(_COPYING):
                        self._discard(f"{entry.name}/{left.name}")
                if (self._root / entry.name / _COPIED).is_dir():
                    _move_in(self._root / entry.name)

    def _discard(self, name: str) -> None:
        with Rootdir.of(self._root) as root:
            root.rmtree(name)


def copy_into(source: Rootdir, path: str, mount: int) -> bool:
    """``copy_up`` for what is no volume's own directory: fill the directory ``mount`` (a descriptor) if it is empty.

    Killed in the middle, it stays half full.
    """
    try:
        target = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=mount)
    except NotADirectoryError:
        return False
    try:
        if os.listdir(target):
            return False
        origin = source.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            _copy_directory(origin, target, {}, 0)
        finally:
            os.close(origin)
    except OSError as error:
        raise SystemFailure(f"failed to copy image content: {(error.strerror or '').lower()}") from error
    finally:
        os.close(target)
    return True


def _mkdir(path: Path, mode: int) -> None:
    path.mkdir()
    path.chmod(mode)  # whatever the umask


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _move_in(volume: Path) -> None:
    """Move a complete copy into the volume's directory, which itself stays: a container may already have it."""
    copied, data = volume / _COPIED, volume / _DATA
    found = copied.stat()
    for entry in sorted(os.listdir(copied)):
        (copied / entry).rename(data / entry)
    os.chown(data, found.st_uid, found.st_gid)
    data.chmod(stat.S_IMODE(found.st_mode))
    for attribute in os.listxattr(copied):
        _set_attribute(data, attribute, os.getxattr(copied, attribute))
    os.utime(data, ns=(found.st_atime_ns, found.st_mtime_ns))
    copied.rmdir()
    _sync(volume)


def _copy_directory(source: int, target: int, linked: dict[tuple[int, int], str], depth: int) -> None:
    """Copy what is in the directory ``source`` into the new directory ``target``, then the directory's attributes.

    ``linked``: where, by a path through /proc/self/fd, files with several names have been copied to.
    """
    if depth > _MAX_DEPTH:
        raise OSError(errno.ELOOP, "directories are nested too deeply")
    for name in sorted(os.listdir(source)):
        found = os.stat(name, dir_fd=source, follow_symlinks=False)
        if stat.S_ISSOCK(found.st_mode):  # without its listener of no use to anybody
            continue
        if stat.S_ISDIR(found.st_mode):
            os.mkdir(name, 0o700, dir_fd=target)
            with _opened(name, source, os.O_DIRECTORY) as inner, _opened(name, target, os.O_DIRECTORY) as copy:
                _copy_directory(inner, copy, linked, depth + 1)
            continue
        key = found.st_dev, found.st_ino
        if found.st_nlink > 1 and key in linked:
            os.link(linked[key], name, dst_dir_fd=target, follow_symlinks=False)
            continue
        _copy_entry(name, found, source, target)
        if found.st_nlink > 1:
            linked[key] = os.readlink(f"/proc/self/fd/{target}") + "/" + name
    _copy_attributes(f"/proc/self/fd/{source}/.", os.fstat(source), f"/proc/self/fd/{target}/.")


def _copy_entry(name: str, found: os.stat_result, source: int, target: int) -> None:
    if stat.S_ISLNK(found.st_mode):
        os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
    elif stat.S_ISREG(found.st_mode):
        with (
            _opened(name, source, os.O_NONBLOCK) as reader,
            _opened(name, target, os.O_WRONLY | os.O_CREAT | os.O_EXCL) as writer,
        ):
            _copy_content(reader, writer)
    else:
        os.mknod(name, found.st_mode, found.st_rdev, dir_fd=target)
    _copy_attributes(f"/proc/self/fd/{source}/{name}", found, f"/proc/self/fd/{target}/{name}")


def _copy_content(reader: int, writer: int) -> None:
    try:
        while os.copy_file_range(reader, writer, _CHUNK_BYTES):
            pass
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
            raise
        while os.sendfile(writer, reader, None, _CHUNK_BYTES):
            pass


def _copy_attributes(source: str, found: os.stat_result, target: str) -> None:
    os.chown(target, found.st_uid, found.st_gid, follow_symlinks=False)
    if not stat.S_ISLNK(found.st_mode):
        os.chmod(target, stat.S_IMODE(found.st_mode))  # after chown, which takes set-id bits away
    for attribute in os.listxattr(source, follow_symlinks=False):
        _set_attribute(target, attribute, os.getxattr(source, attribute, follow_symlinks=False))
    os.utime(target, ns=(found.st_atime_ns, found.st_mtime_ns), follow_symlinks=False)


def _set_attribute(target: str | Path, name: str, value: bytes) -> None:
    # What this file system or security module has no room for is no reason to refuse the content.
    try:
        os.setxattr(target, name, value, follow_symlinks=False)
    except OSError as error:
        if error.errno not in (errno.EOPNOTSUPP, errno.EPERM, errno.EINVAL):
            raise


class _opened:
    """A descriptor of ``name`` (one component, no link) in the directory ``directory``, closed at the end."""

    def __init__(self, name: str, directory: int, flags: int) -> None:
        self._fd = os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=directory)

    def __enter__(self) -> int:
        return self._fd

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

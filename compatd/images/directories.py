"""The layer store that unpacks: each layer is a directory, ready to be stacked by overlayfs on any kernel.

    <root>/layers/<hex of diff id>/layer.tar    the tar, byte for byte
                                   fs/          what it unpacks to, whiteouts as overlayfs has them; for a large
                                                layer whose upper directory was kept, only when it is first needed
                                   meta.json    size, format, and the boot in which it was made until it is settled
    <root>/layers/.staging/<random>/…           layers being made or removed
    <root>/layers/.init/                        what lies below every container, see ``layers``
                  .empty/                       a lower directory for stacks that lack one

A layer is published by renaming its staging directory, and removed by renaming it back there first. ``layer.tar``
is the truth: after a power failure ``fs`` is made again from it.
"""

import errno
import hashlib
import logging
import os
import secrets
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from queue import SimpleQueue
from typing import BinaryIO, Self

import msgspec

from compatd.errors import NotFound, SystemFailure
from compatd.images.content import DiffId, parse_digest
from compatd.images.layers import LayerInfo, digest_differs, layer_missing, make_init
from compatd.images.tar import BadArchive, Readable, write_all
from compatd.images.trees import Contents, Packer, failure, unpack
from compatd.linux import syscalls
from compatd.linux.placement import spread
from compatd.linux.rootdir import Rootdir, remove_tree

log = logging.getLogger(__name__)

_FORMAT = 1
_READ_BYTES = 1 << 20
_MAX_META_BYTES = 1 << 12
_INLINE_BYTES = 4 << 20
_QUEUED_READS = 8
_PLACES = 4
_SLOW_NS = 150_000
_LATE_BYTES = 8 << 20


class _Meta(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: int
    size_bytes: int
    entries: int
    boot: str | None


class DirectoryStore:
    """``LayerStore`` over directories on one file system that can carry an overlay (not itself one)."""

    def __init__(self, root: Path) -> None:
        self._layers = root / "layers"
        self._staging = self._layers / ".staging"
        self._empty = self._layers / ".empty"
        self._init = self._layers / ".init"
        for directory in (self._layers, self._staging):
            directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._empty.mkdir(exist_ok=True)
        self._empty.chmod(0o755)
        make_init(self._init)
        spread(self._staging)
        self._litter = list(self._staging.iterdir())
        self._unsettled: set[DiffId] = set()
        self._unpacking = threading.Lock()
        self._boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()

    # Making

    def apply(self, stream: Readable, *, expected: DiffId | None = None) -> DiffId:
        staged = _Staged.in_a_quiet_place(self._staging)
        try:
            tar = staged.create_tar()
            try:
                with closing(_Tap(stream, tar)) as tap:
                    contents = staged.unpack(tap)
                    diff_id = DiffId("sha256:" + tap.finish())
            finally:
                os.close(tar)
            if expected is not None and diff_id != expected:
                raise digest_differs(expected, diff_id)
            self._publish(staged, diff_id, contents)
            return diff_id
        except OSError as error:
            raise failure(error, "layer") from error
        finally:
            staged.discard()

    def commit(self, upper: Path, *, keep: bool = False) -> DiffId | None:
        staged = _Staged(self._staging)
        try:
            adopted = not keep and _adopt(upper, staged.path / "fs")
            with Rootdir.of(staged.path / "fs" if adopted else upper) as root:
                packer = Packer(root, whiteouts=True)
                digest = hashlib.sha256()
                tar = staged.create_tar()
                try:
                    for piece in packer:
                        digest.update(piece)
                        write_all(tar, piece)
                finally:
                    os.close(tar)
                for path in packer.sockets if adopted else ():  # or the directory would hold more than the tar
                    root.unlink(path)
            if not packer.entries:
                return None
            if adopted:
                os.chmod(staged.path / "fs", 0o755)
            elif (staged.path / "layer.tar").stat().st_size < _LATE_BYTES:
                with (staged.path / "layer.tar").open("rb", buffering=0) as file:
                    staged.unpack(file)
            diff_id = DiffId("sha256:" + digest.hexdigest())
            self._publish(staged, diff_id, packer.contents)
            return diff_id
        except OSError as error:
            raise failure(error, "layer") from error
        finally:
            staged.discard()
            if not keep:
                _remove_all(upper.parent, [os.fsencode(upper.name)])

    def _publish(self, staged: "_Staged", diff_id: DiffId, contents: Contents) -> None:
        meta = _Meta(_FORMAT, contents.size_bytes, contents.entries, self._boot)
        (staged.path / "meta.json").write_bytes(msgspec.json.encode(meta))
        self._unsettled.add(diff_id)
        try:
            os.rename(staged.path, self._path(diff_id))
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # else another one was first, with the same bytes
                raise

    # Asking

    def has(self, diff_id: DiffId) -> bool:
        return self._path(diff_id).exists()

    def info(self, diff_id: DiffId) -> LayerInfo:
        path = self._path(diff_id)
        try:
            meta = _read_meta(path)
            tar_bytes = (path / "layer.tar").stat().st_size
        except FileNotFoundError:
            raise layer_missing(diff_id) from None
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            raise SystemFailure(f"layer {diff_id} is damaged: {error}") from error
        return LayerInfo(diff_id=diff_id, size_bytes=meta.size_bytes, tar_bytes=tar_bytes)

    def size(self, diff_id: DiffId) -> int:
        return self.info(diff_id).size_bytes

    def lowers(self, diff_ids: Sequence[DiffId]) -> list[str]:
        return [*self._directories(diff_ids), str(self._init)]

    def mount(
        self,
        diff_ids: Sequence[DiffId],
        upper: Path | None = None,
        work: Path | None = None,
        *,
        volatile: bool = False,
        init: bool = False,
    ) -> int:
        if upper is not None:
            lowers = self.lowers(diff_ids)
        elif init:
            lowers = [*self.lowers(diff_ids), str(self._empty)]
        else:
            lowers = [*self._directories(diff_ids), str(self._empty)]
            if len(lowers) == 1:
                return _clone_read_only(self._empty)  # overlayfs wants two directories
        try:
            return _mount_overlay(lowers, upper, work, volatile)
        except OSError as error:
            raise SystemFailure(f"error creating overlay mount: {(error.strerror or '').lower()}") from error

    def _directories(self, diff_ids: Sequence[DiffId]) -> list[str]:
        paths: list[str] = []
        for diff_id in dict.fromkeys(reversed(diff_ids)):
            if not self.has(diff_id):
                raise layer_missing(diff_id)
            path = self._path(diff_id) / "fs"
            if not path.exists():
                self._unpack_late(diff_id)
            paths.append(str(path))
        return paths

    def _unpack_late(self, diff_id: DiffId) -> None:
        path = self._path(diff_id)
        staged = _Staged(self._staging)
        try:
            with self._unpacking:
                if (path / "fs").exists():  # somebody else was here
                    return
                meta = _read_meta(path)
                with (path / "layer.tar").open("rb", buffering=0) as file:
                    staged.unpack(file)
                # What is new may not survive a power failure, so the next boot has to make it again.
                self._write_meta(path, msgspec.structs.replace(meta, boot=self._boot))
                self._unsettled.add(diff_id)
                os.rename(staged.path / "fs", path / "fs")
        except FileNotFoundError:
            raise layer_missing(diff_id) from None  # removed meanwhile
        except OSError as error:
            raise failure(error, "layer") from error
        finally:
            staged.discard()

    def open_tar(self, diff_id: DiffId) -> BinaryIO:
        try:
            return (self._path(diff_id) / "layer.tar").open("rb")
        except FileNotFoundError:
            raise layer_missing(diff_id) from None

    def walk(self) -> Iterator[LayerInfo]:
        for name in os.listdir(self._layers):
            if len(name) == 64:
                with suppress(NotFound):  # removed meanwhile
                    yield self.info(DiffId(f"sha256:{name}"))

    # Keeping and ending

    def remove(self, diff_id: DiffId) -> bool:
        staged = _Staged(self._staging)
        try:
            os.rename(self._path(diff_id), staged.path / "removed")
        except FileNotFoundError:
            return False
        finally:
            staged.discard()
        return True

    def settle(self, diff_ids: Iterable[DiffId]) -> None:
        unsettled: list[tuple[Path, _Meta]] = []
        for diff_id in diff_ids:
            self._unsettled.discard(diff_id)
            try:
                meta = _read_meta(self._path(diff_id))
            except FileNotFoundError:
                raise layer_missing(diff_id) from None
            if meta.boot is not None and not self._settle_tar(self._path(diff_id), meta):
                unsettled.append((self._path(diff_id), meta))
        if not unsettled:
            return
        fd = os.open(self._layers, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            syscalls.syncfs(fd)
        finally:
            os.close(fd)
        for path, meta in unsettled:
            with suppress(FileNotFoundError):  # removed meanwhile
                self._write_meta(path, msgspec.structs.replace(meta, boot=None))

    def _settle_tar(self, path: Path, meta: _Meta) -> bool:
        """Settle a layer that is its tar only, without making everybody else's writes hurry; False if it is more."""
        with self._unpacking, suppress(FileNotFoundError):  # removed meanwhile
            if (path / "fs").exists():
                return False
            for part in (path / "layer.tar", path, self._layers):
                fd = os.open(part, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    os.fsync(fd)
                finally:
                    os.close(fd)
            self._write_meta(path, msgspec.structs.replace(meta, boot=None))
        return True

    def _write_meta(self, path: Path, meta: _Meta) -> None:
        # Its loss only means that the layer is checked once more.
        fresh = self._staging / f"meta-{secrets.token_hex(8)}"
        fresh.write_bytes(msgspec.json.encode(meta))
        os.rename(fresh, path / "meta.json")

    def sweep(self) -> None:
        litter, self._litter = self._litter, []
        _remove_all(self._staging, [os.fsencode(path.name) for path in litter])
        for name in os.listdir(self._layers):
            if len(name) == 64:
                self._check(DiffId(f"sha256:{name}"))
        self._settle_rest()

    def _settle_rest(self) -> None:
        unsettled, self._unsettled = self._unsettled, set[DiffId]()
        self.settle(diff_id for diff_id in unsettled if self.has(diff_id))

    def _check(self, diff_id: DiffId) -> None:
        """Restore a layer that an earlier boot made and may not have brought to the disk, or remove it."""
        path = self._path(diff_id)
        try:
            meta = _read_meta(path)
            if meta.boot == self._boot:
                self._unsettled.add(diff_id)
            if meta.format == _FORMAT and meta.boot in (None, self._boot):
                return
        except (OSError, msgspec.DecodeError, msgspec.ValidationError):
            pass
        staged = _Staged(self._staging)
        try:
            digest = hashlib.sha256()
            with (path / "layer.tar").open("rb", buffering=0) as file:
                while data := file.read(_READ_BYTES):
                    digest.update(data)
                if "sha256:" + digest.hexdigest() != diff_id:
                    raise ValueError(diff_id)
                file.seek(0)
                contents = staged.unpack(file)
            # Killed between these, the layer still says that it wants checking.
            if (path / "fs").exists():
                os.rename(path / "fs", staged.path / "old")
            os.rename(staged.path / "fs", path / "fs")
            self._write_meta(path, _Meta(_FORMAT, contents.size_bytes, contents.entries, self._boot))
            self._unsettled.add(diff_id)
        except (OSError, ValueError, BadArchive):
            log.warning("layer %s is damaged and was removed", diff_id)
            self.remove(diff_id)
        finally:
            staged.discard()

    def close(self) -> None:
        self._settle_rest()

    def _path(self, diff_id: DiffId) -> Path:
        return self._layers / parse_digest(diff_id).removeprefix("sha256:")


class _Staged:
    """A layer in the making, in a directory of its own until it is renamed away or discarded."""

    def __init__(self, staging: Path) -> None:
        self._staging = staging
        self.path = staging / secrets.token_hex(16)
        self.path.mkdir(mode=0o700)

    @classmethod
    def in_a_quiet_place(cls, staging: Path) -> Self:
        """Begin where files can be made quickly. ``spread`` sees to it mostly; a directory that is slow is left."""
        for _ in range(_PLACES):
            staged = cls(staging)
            os.close(staged.create_tar())  # reads the group's bitmaps, if that is needed
            started_ns = time.perf_counter_ns()
            (staged.path / "meta.json").touch()
            if time.perf_counter_ns() - started_ns < _SLOW_NS:
                return staged
            staged.discard()
        return cls(staging)

    def create_tar(self) -> int:
        return os.open(self.path / "layer.tar", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o400)

    def unpack(self, stream: Readable) -> Contents:
        """Unpack into ``fs`` and read the stream to its end."""
        top = self.path / "fs"
        top.mkdir()
        top.chmod(0o755)
        with Rootdir.of(top) as root:
            contents = unpack(stream, root, whiteouts=True, private=True)
        while stream.read(_READ_BYTES):  # what follows the archive's end belongs to its digest
            pass
        return contents

    def discard(self) -> None:
        """Remove what is left. Harmless after the directory was renamed away."""
        _remove_all(self._staging, [os.fsencode(self.path.name)])


class _Tap:
    """A stream that hashes and keeps what passes; what is long, on a thread of its own, beside the unpacking."""

    def __init__(self, stream: Readable, fd: int) -> None:
        self._stream = stream
        self._fd = fd
        self._hash = hashlib.sha256()
        self._passed = 0
        self._queue: SimpleQueue[bytes] = SimpleQueue()
        self._room = threading.Semaphore(_QUEUED_READS)
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def read(self, size: int, /) -> bytes:
        data = self._stream.read(size)
        if not data:
            return data
        self._passed += len(data)
        if self._thread is None and self._passed > _INLINE_BYTES:
            self._thread = threading.Thread(target=self._work, name="layer tar")
            self._thread.start()
        if self._thread is None:
            self._keep(data)
            return data
        self._room.acquire()
        if self._error is not None:
            raise self._error
        self._queue.put(data)
        return data

    def _keep(self, data: bytes) -> None:
        self._hash.update(data)
        write_all(self._fd, data)

    def _work(self) -> None:
        while data := self._queue.get():
            if self._error is None:
                try:
                    self._keep(data)
                except BaseException as error:  # raised where the stream is read
                    self._error = error
            self._room.release()

    def finish(self) -> str:
        """Wait until everything is kept; the digest in hex. Raises what keeping raised."""
        self.close()
        if self._error is not None:
            raise self._error
        return self._hash.hexdigest()

    def close(self) -> None:
        if self._thread is not None:
            self._queue.put(b"")
            self._thread.join()
            self._thread = None


def _mount_overlay(lowers: Sequence[str], upper: Path | None, work: Path | None, volatile: bool) -> int:
    with ExitStack() as opened:

        def handle(path: str | Path) -> str:
            fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            opened.callback(os.close, fd)
            return f"/proc/self/fd/{fd}"  # fsconfig(2) takes at most 255 bytes, paths may be longer

        context = syscalls.fsopen("overlay")
        opened.callback(os.close, context)
        options = [("lowerdir+", handle(lower)) for lower in lowers]
        if upper is not None and work is not None:
            options += [("upperdir", handle(upper)), ("workdir", handle(work))]
        # A layer must be readable without those below it, whatever the kernel's defaults.
        options += [("redirect_dir", "off"), ("metacopy", "off"), ("index", "off")]
        for key, value in options:
            syscalls.fsconfig(context, syscalls.FSCONFIG_SET_STRING, key, value)
        if volatile:
            syscalls.fsconfig(context, syscalls.FSCONFIG_SET_FLAG, "volatile")
        syscalls.fsconfig(context, syscalls.FSCONFIG_CMD_CREATE)
        attributes = syscalls.MOUNT_ATTR_NOSUID | syscalls.MOUNT_ATTR_NODEV | syscalls.MOUNT_ATTR_NOEXEC
        return syscalls.fsmount(context, attributes | (syscalls.MOUNT_ATTR_RDONLY if upper is None else 0))


def _clone_read_only(directory: Path) -> int:
    flags = syscalls.OPEN_TREE_CLONE | syscalls.OPEN_TREE_CLOEXEC
    fd = syscalls.open_tree(syscalls.AT_FDCWD, str(directory), flags)
    syscalls.mount_setattr(fd, "", syscalls.AT_EMPTY_PATH, attr_set=syscalls.MOUNT_ATTR_RDONLY)
    return fd


def _adopt(source: Path, target: Path) -> bool:
    """Take a directory over; False if it lies on another file system."""
    try:
        os.rename(source, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        return False
    return True


def _read_meta(path: Path) -> _Meta:
    with (path / "meta.json").open("rb", buffering=0) as file:
        return msgspec.json.decode(file.read(_MAX_META_BYTES), type=_Meta)


def _remove_all(parent: Path, names: Sequence[bytes]) -> None:
    fd = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for name in names:
            remove_tree(fd, name)
    finally:
        os.close(fd)

"""The layer store: each layer is a directory that has the layer's tar, and a form of it for overlayfs to stack.

    <root>/layers/<hex of diff id>/layer.tar    the tar, byte for byte
                                   index.erofs  by which the tar is mounted as it lies, see ``images.indexes``; or
                                   fs/          what it unpacks to, whiteouts as overlayfs has them
                                   meta.json    size, format, and the boot in which it was made until it is settled
    <root>/layers/.staging/<random>/…           layers being made or removed
    <root>/layers/.init/                        what lies below every container, see ``layers``
                  .empty/                       a lower directory for stacks that lack one

A layer is published by renaming its staging directory, and removed by renaming it back there first. ``layer.tar``
is the truth: its form is made from it, and made again after a power failure or when an index is found damaged.

What arrives as a tar is indexed where this machine can mount that, and unpacked elsewhere. What arrives as the
writable directory of an overlay is that form already, if it need not be kept; if it must, and is large, the form is
made when it is first needed. A layer keeps its form, so a store may have both.
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
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from typing import BinaryIO, Self

import msgspec

from compatd.errors import NotFound, SystemFailure
from compatd.images.content import DiffId, parse_digest
from compatd.images.indexes import INDEX, SIDE, TAR, Mounts, probe, write_index
from compatd.images.layers import LayerInfo, digest_differs, layer_missing, make_init
from compatd.images.streams import Readable
from compatd.images.tar import BadArchive, write_all
from compatd.images.tarindex import Tree, read_tree
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
_FORMS = (SIDE, INDEX, "fs")


class _Meta(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: int
    size_bytes: int
    entries: int
    boot: str | None
    index: str = ""  # its digest in hex, if the layer has one


def why_unpacked(root: Path) -> str:
    """Why a store below ``root`` cannot be ``indexed`` on this machine; empty if it can."""
    staging = root / "layers" / ".staging"
    staging.mkdir(parents=True, exist_ok=True, mode=0o700)
    return probe(staging)  # killed meanwhile, it leaves what a store sweeps


class DirectoryStore:
    """``LayerStore`` over directories on one file system that can carry an overlay (not itself one).

    ``indexed``: mount layers by an index, see ``why_unpacked``.
    """

    def __init__(self, root: Path, *, indexed: bool = False) -> None:
        self._mounts = Mounts() if indexed else None
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
        self._forming = threading.Lock()
        self._boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()

    # Making

    def apply(self, stream: Readable, *, expected: DiffId | None = None) -> DiffId:
        staged = _Staged.in_a_quiet_place(self._staging)
        try:
            tar = staged.create_tar()
            try:
                with closing(_Tap(stream, tar)) as tap:
                    form = self._begin_form(staged, tap)
                    diff_id = DiffId("sha256:" + tap.finish())
            finally:
                os.close(tar)
            if expected is not None and diff_id != expected:
                raise digest_differs(expected, diff_id)
            self._publish(staged, diff_id, self._finish_form(staged, form))
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
            meta = self._meta(packer.contents)
            if not adopted and (staged.path / TAR).stat().st_size < _LATE_BYTES:
                meta = self._make_form(staged, staged.path)
            diff_id = DiffId("sha256:" + digest.hexdigest())
            self._publish(staged, diff_id, meta)
            return diff_id
        except OSError as error:
            raise failure(error, "layer") from error
        finally:
            staged.discard()
            if not keep:
                _remove_all(upper.parent, [os.fsencode(upper.name)])

    def _begin_form(self, staged: "_Staged", stream: Readable) -> Contents | Tree:
        """Read a tar to the stream's end, for the form that a layer gets here."""
        if self._mounts is None:
            return staged.unpack(stream)
        tree = read_tree(stream)
        while stream.read(_READ_BYTES):  # what follows the archive's end belongs to its digest
            pass
        return tree

    def _finish_form(self, staged: "_Staged", form: Contents | Tree, layer: Path | None = None) -> _Meta:
        """Now that the tar is there, in ``layer`` if not in ``staged``: write the form down."""
        if isinstance(form, Contents):
            return self._meta(form)
        return self._meta(form.contents, write_index(form, layer or staged.path, staged.path))

    def _make_form(self, staged: "_Staged", layer: Path) -> _Meta:
        """In ``staged``, the form of a layer whose tar is there."""
        with (layer / TAR).open("rb", buffering=0) as file:
            return self._finish_form(staged, self._begin_form(staged, file), layer)

    def _meta(self, contents: Contents, index: str = "") -> _Meta:
        return _Meta(_FORMAT, contents.size_bytes, contents.entries, self._boot, index)

    def _publish(self, staged: "_Staged", diff_id: DiffId, meta: _Meta) -> None:
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
            tar_bytes = (path / TAR).stat().st_size
        except FileNotFoundError:
            raise layer_missing(diff_id) from None
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            raise SystemFailure(f"layer {diff_id} is damaged: {error}") from error
        return LayerInfo(diff_id=diff_id, size_bytes=meta.size_bytes, tar_bytes=tar_bytes)

    def size(self, diff_id: DiffId) -> int:
        return self.info(diff_id).size_bytes

    def lowers(self, diff_ids: Sequence[DiffId]) -> list[str]:
        return [*self._directories(diff_ids), str(self._init)]

    def places(self, diff_ids: Sequence[DiffId]) -> list[str]:
        return [str(self._path(diff_id)) for diff_id in dict.fromkeys(reversed(diff_ids))]

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
            path = self._path(diff_id)
            if (path / "fs").exists():
                paths.append(str(path / "fs"))
            elif self._mounts is not None:
                paths.append(self._mounts.path(diff_id, path, partial(self._verify_index, diff_id)))
            else:
                self._form_late(diff_id)
                paths.append(str(path / "fs"))
        return paths

    def _verify_index(self, diff_id: DiffId) -> None:
        """Before a layer is mounted: have an index, and the one that was written."""
        try:
            digest = hashlib.sha256((self._path(diff_id) / INDEX).read_bytes()).hexdigest()
            if digest == _read_meta(self._path(diff_id)).index:
                return
            log.warning("the index of layer %s is damaged and is made again", diff_id)
        except FileNotFoundError:  # not made yet
            pass
        self._form_late(diff_id)

    def _form_late(self, diff_id: DiffId) -> None:
        """Give a layer that has but its tar the form that it has on this machine."""
        path = self._path(diff_id)
        staged = _Staged(self._staging)
        try:
            with self._forming:
                if (path / "fs").exists():  # somebody else was here
                    return
                meta = self._make_form(staged, path)
                # What is new may not survive a power failure, so the next boot has to make it again.
                self._write_meta(path, meta)
                self._unsettled.add(diff_id)
                for name in _FORMS:
                    with suppress(FileNotFoundError):
                        os.rename(staged.path / name, path / name)
        except FileNotFoundError:
            raise layer_missing(diff_id) from None  # removed meanwhile
        except OSError as error:
            raise failure(error, "layer") from error
        finally:
            staged.discard()

    def open_tar(self, diff_id: DiffId) -> BinaryIO:
        try:
            return (self._path(diff_id) / TAR).open("rb")
        except FileNotFoundError:
            raise layer_missing(diff_id) from None

    def walk(self) -> Iterator[LayerInfo]:
        for name in os.listdir(self._layers):
            if len(name) == 64:
                with suppress(NotFound):  # removed meanwhile
                    yield self.info(DiffId(f"sha256:{name}"))

    # Keeping and ending

    def remove(self, diff_id: DiffId) -> bool:
        if self._mounts is not None:
            self._mounts.drop(diff_id)
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
                if meta.index:
                    _drop_cached(path / TAR)
                self._write_meta(path, msgspec.structs.replace(meta, boot=None))

    def _settle_tar(self, path: Path, meta: _Meta) -> bool:
        """Settle a layer that is its tar only, without making everybody else's writes hurry; False if it is more."""
        with self._forming, suppress(FileNotFoundError):  # removed meanwhile
            if any((path / name).exists() for name in _FORMS):
                return False
            for part in (path / TAR, path, self._layers):
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
            with (path / TAR).open("rb", buffering=0) as file:
                while data := file.read(_READ_BYTES):
                    digest.update(data)
                if "sha256:" + digest.hexdigest() != diff_id:
                    raise ValueError(diff_id)
            fresh = self._make_form(staged, path)
            # Killed between these, the layer still says that it wants checking.
            for name in _FORMS:
                with suppress(FileNotFoundError):
                    os.rename(path / name, staged.path / f"old-{name}")
                with suppress(FileNotFoundError):
                    os.rename(staged.path / name, path / name)
            self._write_meta(path, fresh)
            self._unsettled.add(diff_id)
        except (OSError, ValueError, BadArchive):
            log.warning("layer %s is damaged and was removed", diff_id)
            self.remove(diff_id)
        finally:
            staged.discard()

    def close(self) -> None:
        self._settle_rest()
        if self._mounts is not None:
            self._mounts.close()

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
        return os.open(self.path / TAR, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o400)

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
            self._thread = threading.Thread(target=self._work, name=TAR)
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


def _drop_cached(tar: Path) -> None:
    """What is read of an indexed layer is cached for the mount; the kernel need not have it a second time."""
    fd = os.open(tar, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


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

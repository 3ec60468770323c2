"""Blobs as they came or were made, under their digest: manifests, image configs, compressed layers.

On disk, below the data root: ``content/sha256/<hex>`` holds whole, verified blobs; ``ingest/<hash of ref>``
holds unfinished ones, which nobody reads. A blob moves from one to the other by fsync and rename once its
size and digest are right, so a crash leaves an ingest to resume or sweep, never a wrong blob.

Everything here blocks: call it on a worker thread. A text becomes a path only after ``parse_digest``.
"""

import errno
import fcntl
import hashlib
import os
import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, NewType, Self

from compatd.errors import Conflict, InvalidParameter, NotFound, SystemFailure

Digest = NewType("Digest", str)
"""``sha256:<64 lowercase hex digits>`` of a stored blob's bytes."""

DiffId = NewType("DiffId", str)
"""Digest of one layer's uncompressed tar."""

ChainId = NewType("ChainId", str)
"""Name of a stack of layers, made from their diff ids bottom first."""

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}", re.ASCII)
_DIGEST_SHAPE = re.compile(r"[a-z0-9]+(?:[+._-][a-z0-9]+)*:[0-9a-zA-Z=_-]+", re.ASCII)
_READ_BYTES = 1 << 20


def parse_digest(text: str) -> Digest:
    """Check ``text`` and return it; InvalidParameter in the words of the opencontainers digest library otherwise."""
    if _DIGEST.fullmatch(text):
        return Digest(text)
    if not _DIGEST_SHAPE.fullmatch(text):
        raise InvalidParameter("invalid checksum digest format")
    algorithm, _, encoded = text.partition(":")
    if algorithm != "sha256":
        raise InvalidParameter("unsupported digest algorithm")
    if len(encoded) != 64:
        raise InvalidParameter("invalid checksum digest length")
    raise InvalidParameter("invalid checksum digest format")


def digest_of(data: bytes) -> Digest:
    return Digest("sha256:" + hashlib.sha256(data).hexdigest())


def chain_id(diff_ids: Sequence[DiffId]) -> ChainId:
    """Chain id of a non-empty stack, bottom first (OCI image spec, config.md, "Layer ChainID")."""
    chain = ChainId(diff_ids[0])
    for diff_id in diff_ids[1:]:
        chain = ChainId(digest_of(f"{chain} {diff_id}".encode()))
    return chain


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobInfo:
    digest: Digest
    size_bytes: int
    stored_s: float
    """Unix time at which the blob was committed."""


class ContentStore:
    """The blobs below one data root. Safe for several threads and, for one ref, guarded by a file lock."""

    def __init__(self, root: Path) -> None:
        self._blobs = root / "content" / "sha256"
        self._ingests = root / "ingest"
        self._blobs.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._ingests.mkdir(parents=True, exist_ok=True, mode=0o700)

    def path(self, digest: Digest) -> Path:
        """Where the blob is or would be; InvalidParameter for what is no digest."""
        return self._blobs / parse_digest(digest).removeprefix("sha256:")

    def has(self, digest: Digest) -> bool:
        return self.path(digest).exists()

    def open(self, digest: Digest) -> BinaryIO:
        """Open for reading; the caller closes. NotFound when there is none."""
        try:
            return self.path(digest).open("rb")
        except FileNotFoundError:
            raise blob_missing(digest) from None

    def info(self, digest: Digest) -> BlobInfo:
        try:
            status = self.path(digest).stat()
        except FileNotFoundError:
            raise blob_missing(digest) from None
        return BlobInfo(digest=digest, size_bytes=status.st_size, stored_s=status.st_ctime)

    def read(self, digest: Digest, limit_bytes: int) -> bytes:
        """The whole blob, refused with SystemFailure above ``limit_bytes``."""
        with self.open(digest) as file:
            data = file.read(limit_bytes + 1)
        if len(data) > limit_bytes:
            raise SystemFailure(f"content {digest} is larger than {limit_bytes} bytes")
        return data

    def write(self, data: bytes) -> Digest:
        """Store a small blob in one go."""
        digest = digest_of(data)
        if not self.has(digest):
            with self.writer(f"write-{digest}-{time.monotonic_ns()}", expected=digest, size_bytes=len(data)) as ingest:
                ingest.write(data)
                ingest.commit()
        return digest

    def delete(self, digest: Digest) -> bool:
        """Remove the blob; False when it was not there. Who has it open reads on."""
        try:
            self.path(digest).unlink()
        except FileNotFoundError:
            return False
        return True

    def walk(self) -> Iterator[BlobInfo]:
        for entry in os.scandir(self._blobs):
            if re.fullmatch(r"[0-9a-f]{64}", entry.name):
                yield self.info(Digest(f"sha256:{entry.name}"))

    def writer(self, ref: str, expected: Digest | None = None, size_bytes: int | None = None) -> "Ingest":
        """Begin or resume the ingest named ``ref``; what was there is hashed again, which takes its time.

        Conflict when another writer holds it. ``commit`` verifies ``expected`` and ``size_bytes``.
        """
        if expected is not None:
            parse_digest(expected)
        path = self._ingests / hashlib.sha256(ref.encode(errors="surrogateescape")).hexdigest()
        return Ingest(self, path, expected, size_bytes, _open_locked(path, ref))

    def sweep(self, *, idle_s: float) -> int:
        """Remove the ingests which nobody holds and nobody wrote to for ``idle_s`` seconds; their number."""
        removed = 0
        oldest_s = time.time() - idle_s
        for entry in os.scandir(self._ingests):
            try:
                fd = _open_locked(Path(entry.path), entry.name, create=False)
            except (Conflict, FileNotFoundError):
                continue
            try:
                if os.fstat(fd).st_mtime <= oldest_s:
                    os.unlink(entry.path)
                    removed += 1
            finally:
                os.close(fd)
        return removed


class Ingest:
    """A blob being written. Left uncommitted, its bytes stay for a later ``writer`` to resume."""

    def __init__(
        self, store: ContentStore, path: Path, expected: Digest | None, size_bytes: int | None, fd: int
    ) -> None:
        self._store = store
        self._path = path
        self._expected = expected
        self._size_bytes = size_bytes
        self._fd = fd
        self._hash = hashlib.sha256()
        self.offset = 0
        """Bytes written so far, those of earlier tries included."""
        try:
            self._rehash()
        except BaseException:
            self.close()
            raise

    def _rehash(self) -> None:
        if self._size_bytes is not None and os.fstat(self._fd).st_size > self._size_bytes:
            self.restart()
        while data := os.pread(self._fd, _READ_BYTES, self.offset):
            self._hash.update(data)
            self.offset += len(data)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def write(self, data: bytes | memoryview) -> None:
        """Append; SystemFailure as soon as the blob is longer than announced."""
        if self._size_bytes is not None and self.offset + len(data) > self._size_bytes:
            raise SystemFailure(f"unexpected commit size {self.offset + len(data)}, expected {self._size_bytes}")
        view = memoryview(data)
        while view:
            written = os.pwrite(self._fd, view, self.offset)
            self._hash.update(view[:written])
            self.offset += written
            view = view[written:]

    def restart(self) -> None:
        """Forget what is there, for a server that cannot resume."""
        os.ftruncate(self._fd, 0)
        self._hash = hashlib.sha256()
        self.offset = 0

    @property
    def digest(self) -> Digest:
        """Digest of what is written so far."""
        return Digest("sha256:" + self._hash.hexdigest())

    def commit(self) -> Digest:
        """Verify, flush and publish. A blob which fails verification is discarded: SystemFailure says how."""
        digest = self.digest
        if self._size_bytes is not None and self.offset != self._size_bytes:
            self.abort()
            raise SystemFailure(f"unexpected commit size {self.offset}, expected {self._size_bytes}")
        if self._expected is not None and digest != self._expected:
            self.abort()
            raise SystemFailure(f"unexpected commit digest {digest}, expected {self._expected}")
        os.fsync(self._fd)
        os.fchmod(self._fd, 0o400)
        target = self._store.path(digest)
        os.rename(self._path, target)
        fd, self._fd = self._fd, -1
        os.close(fd)
        _sync_directory(target.parent)
        return digest

    def abort(self) -> None:
        """Discard what is written. Harmless after ``commit`` or ``close``."""
        if self._fd >= 0:
            self.offset = 0
            self.close()

    def free_bytes(self) -> int:
        """How much its file system has room for."""
        status = os.fstatvfs(self._fd)
        return status.f_bavail * status.f_frsize

    def reader(self) -> int:
        """A descriptor to read what is written, with pread(2); the caller closes it."""
        return os.dup(self._fd)

    def close(self) -> None:
        """Let go of the ingest, keeping its bytes, if there are any."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            if not self.offset:
                self._path.unlink(missing_ok=True)
            os.close(fd)


def blob_missing(digest: str) -> NotFound:
    return NotFound(f"content {digest}: not found")


def _open_locked(path: Path, ref: str, *, create: bool = True) -> int:
    while True:
        flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | (os.O_CREAT if create else 0)
        fd = os.open(path, flags, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            ours = os.fstat(fd)
            try:
                named = os.stat(path, follow_symlinks=False)
            except FileNotFoundError:
                named = None
            # The holder before us may have committed or removed the file between our open and our lock.
            if named is not None and (named.st_dev, named.st_ino) == (ours.st_dev, ours.st_ino):
                return fd
        except OSError as error:
            os.close(fd)
            if error.errno in (errno.EAGAIN, errno.EACCES):
                raise Conflict(f"ref {ref} locked for ingest") from None
            raise
        os.close(fd)
        if not create:
            raise FileNotFoundError(path)


def _sync_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)

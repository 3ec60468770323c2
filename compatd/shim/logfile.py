"""The file that a container's output is logged to, and its rotation (moby daemon/logger/loggerutils/logfile.go).

    path         the newest records; older ones in path.1, path.2 … path.N, with .gz when compressed
    path.1.gz.tmp    a compression that was cut short; the next one writes it anew

A record is written whole, or what there is of it is taken away again; a kill leaves at most one cut record at the end
of ``path``, which the next start mends. Rotation renames, so that whoever reads an older part goes on reading it.

Compression is a child's work: it neither delays the container nor ends with an exec's fork in the middle of zlib.
The header of a compressed part tells when its last record was made, as Docker's does, and which inode it was: by
that a reader knows that it has read it already. It dies with the shim; the next shim makes up for it.
"""

import contextlib
import fcntl
import os
import signal
import struct
import time
import zlib
from collections.abc import Callable

from compatd.linux import syscalls
from compatd.shim import jsonlog, locallog
from compatd.shim.lines import Lines, Partial
from compatd.shim.loop import IN, Loop
from compatd.shim.spec import Log

_SLICE_BYTES = 1 << 20
_LEVEL = 1  # a rotation waits for the one before it, so this is what limits a log that grows fast


class LogFile:
    """Owns the file. Writing to it costs a copy into the page cache.

    A write that fails (a full disk) loses those records and nothing else. While ``blocked`` its owner should hold
    back what it can, and is told by ``drained`` when that is over; what is written all the same waits, or is
    dropped once ``buffer`` is exceeded.
    """

    def __init__(self, log: Log, loop: Loop, drained: Callable[[], None]) -> None:
        """``OSError`` when the file cannot be opened."""
        self._path = log.get("path", "")
        self._capacity_bytes = log.get("max_size", 0)
        self._max_files = log.get("max_file", 1)
        self._compress = log.get("compress", False) and self._max_files > 1
        self._slack_bytes = log.get("buffer")  # beyond the capacity rather than wait
        self._loop = loop
        self._drained = drained
        self._compressor: tuple[int, int] | None = None  # pid, pidfd
        encoder = jsonlog.Encoder if log["driver"] == "json-file" else locallog.Encoder
        self._lines = {"stdout": Lines(), "stderr": Lines()}
        self._encoders = {stream: encoder(stream, log.get("attrs", {})) for stream in self._lines}
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
        self._size_bytes = encoder.mend(self._fd, os.fstat(self._fd).st_size)
        if self._compress and os.path.exists(f"{self._path}.1"):
            self._begin_compression()

    @property
    def blocked(self) -> bool:
        """Whether the next write would wait for a compression."""
        return self._compressor is not None and self._slack_bytes is None and self._size_bytes >= self._capacity_bytes

    def lingers(self) -> bool:
        return False

    def write(self, stream: str, data: bytes) -> None:
        for piece, partial in self._lines[stream].feed(data):
            self.record(stream, piece, partial)

    def end(self, stream: str) -> None:
        """The stream has ended; what it left without a newline is recorded."""
        for piece, partial in self._lines[stream].end():
            self.record(stream, piece, partial)

    def record(self, stream: str, piece: bytes, partial: Partial | None) -> None:
        """Write a piece that ``Lines`` has made."""
        encoder = self._encoders[stream]
        records = encoder.encode(piece, time.time_ns(), partial)
        capacity = self._capacity_bytes
        with contextlib.suppress(OSError):
            while capacity and self._size_bytes + len(records) > capacity:
                if self._compressor is not None and self._slack_bytes is not None:
                    if self._size_bytes + len(records) > capacity + self._slack_bytes:
                        return
                    break
                # The record that reaches the capacity still goes into this file.
                cut = 0
                if (room := capacity - self._size_bytes) > 0:
                    cut = encoder.end_after(records, room - 1)
                self._append(encoder, records[:cut])
                records = records[cut:]
                if not records:
                    return
                self._rotate()
            self._append(encoder, records)

    def close(self) -> None:
        """Wait for a compression under way, and close."""
        self._end_compression()
        if self._fd >= 0:
            os.close(self._fd)

    def _append(self, encoder: jsonlog.Encoder | locallog.Encoder, records: bytes) -> None:
        written = 0
        try:
            while written < len(records):
                written += os.write(self._fd, records[written:])
        except OSError:
            whole = encoder.end_before(records, written)
            if written > whole:
                os.ftruncate(self._fd, self._size_bytes + whole)
            self._size_bytes += whole
            raise
        self._size_bytes += written

    def _rotate(self) -> None:
        self._end_compression()
        oldest = self._max_files - 1
        for ending in ("", ".gz"):
            for number in range(oldest, 0, -1):
                with contextlib.suppress(OSError):
                    if number == oldest:
                        os.unlink(f"{self._path}.{number}{ending}")
                    else:
                        os.rename(f"{self._path}.{number}{ending}", f"{self._path}.{number + 1}{ending}")
        with contextlib.suppress(FileNotFoundError):  # whoever has taken it away may keep it
            if oldest:
                os.rename(self._path, f"{self._path}.1")
            else:
                os.unlink(self._path)
        fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
        os.close(self._fd)
        self._fd = fd
        self._size_bytes = os.fstat(fd).st_size
        if self._compress:
            self._begin_compression()

    def _begin_compression(self) -> None:
        shim = os.getpid()
        try:
            pid = _fork()
        except OSError:
            return  # it stays as it is, until the next start
        if not pid:
            try:
                syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
                syscalls.close_range(3)  # clients see the end of a stream when nobody has it
                if os.getppid() == shim:
                    compress(f"{self._path}.1", time.time_ns())
            finally:
                os._exit(0)
        pidfd = syscalls.pidfd_open(pid)
        self._compressor = (pid, pidfd)
        self._loop.watch(pidfd, IN, lambda _: self._compressed())

    def _compressed(self) -> None:
        self._end_compression()
        self._drained()

    def _end_compression(self) -> None:
        if self._compressor is not None:
            pid, pidfd = self._compressor
            self._compressor = None
            os.waitpid(pid, 0)
            self._loop.forget(pidfd)
            os.close(pidfd)


def _fork() -> int:
    """fork(2), but not into the container's pid namespace, where the shim's children are born else."""
    flags = os.O_RDONLY | os.O_CLOEXEC
    own, children = os.open("/proc/self/ns/pid", flags), -1
    try:
        # There is none when its first process has ended: nobody will be born there any more.
        with contextlib.suppress(FileNotFoundError):
            children = os.open("/proc/self/ns/pid_for_children", flags)
            if os.path.sameopenfile(own, children):
                return os.fork()
        syscalls.setns(own, syscalls.CLONE_NEWPID)
        try:
            return os.fork()
        finally:
            if children >= 0:
                syscalls.setns(children, syscalls.CLONE_NEWPID)
    finally:
        for fd in (own, children):
            if fd >= 0:
                os.close(fd)


def compress(path: str, last_ns: int) -> None:
    """Replace ``path`` by ``path.gz``, which appears whole; ``last_ns`` is no earlier than its last record's time.

    Two shims may be at it, one that ends and its successor: whoever comes second finds nothing left to do.
    """
    staged = f"{path}.gz.tmp"
    with contextlib.suppress(OSError), open(path, "rb", buffering=0) as source:
        fcntl.flock(source, fcntl.LOCK_EX)
        inode = os.fstat(source.fileno()).st_ino
        if os.stat(path).st_ino != inode:
            return
        extra = b'{"lastTime":"%s","inode":%d}' % (jsonlog.timestamp(last_ns).encode(), inode)
        compressor = zlib.compressobj(_LEVEL, wbits=-zlib.MAX_WBITS)
        checksum = size = 0
        with open(staged, "wb", buffering=0) as target:
            os.fchmod(target.fileno(), 0o640)
            # RFC 1952: magic, deflate, FEXTRA, no time, no hints, unknown system
            target.write(b"\x1f\x8b\x08\x04\0\0\0\0\0\xff" + struct.pack("<H", len(extra)) + extra)
            while data := source.read(_SLICE_BYTES):
                checksum = zlib.crc32(data, checksum)
                size += len(data)
                _write(target.fileno(), compressor.compress(data))
            _write(target.fileno(), compressor.flush() + struct.pack("<II", checksum, size & 0xFFFFFFFF))
        os.rename(staged, f"{path}.gz")
        os.unlink(path)


def _write(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]

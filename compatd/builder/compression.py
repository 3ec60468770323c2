"""What Docker takes for a compressed archive: recognised by its first bytes, read as a stream."""

import bz2
import gzip
import io
import lzma
import os
import zlib
from collections.abc import Callable
from typing import BinaryIO, cast

import zstandard

from compatd.errors import InvalidParameter

CHUNK_BYTES = 1 << 20


def _gzip(file: BinaryIO) -> BinaryIO:
    return cast("BinaryIO", gzip.GzipFile(fileobj=file, mode="rb"))


def _bzip2(file: BinaryIO) -> BinaryIO:
    return cast("BinaryIO", bz2.BZ2File(file))


def _xz(file: BinaryIO) -> BinaryIO:
    return cast("BinaryIO", lzma.LZMAFile(file))


def _zstd(file: BinaryIO) -> BinaryIO:
    return cast("BinaryIO", zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True))


_FORMATS: tuple[tuple[bytes, Callable[[BinaryIO], BinaryIO]], ...] = (
    (b"\x1f\x8b\x08", _gzip),
    (b"BZh", _bzip2),
    (b"\xfd7zXZ\x00", _xz),
    (b"\x28\xb5\x2f\xfd", _zstd),
)
_FAULTS = (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError, zstandard.ZstdError)


def is_compressed(head: bytes) -> bool:
    """Whether a file that begins so is compressed in a format that is unpacked."""
    return any(head.startswith(magic) for magic, _ in _FORMATS)


def read_head(file: BinaryIO, size: int) -> bytes:
    """The first bytes of what a seekable file holds once decompressed; fewer if it is damaged before."""
    head = file.read(16)
    file.seek(0)
    for magic, opener in _FORMATS:
        if head.startswith(magic):
            try:
                return opener(file).read(size)
            except _FAULTS:
                return b""
            finally:
                file.seek(0)
    data = file.read(size)
    file.seek(0)
    return data


def decompress(file: BinaryIO, into: int) -> None:
    """Write what a seekable compressed file holds to a descriptor. ``InvalidParameter`` if it is damaged."""
    head = file.read(16)
    file.seek(0)
    opener = next(opener for magic, opener in _FORMATS if head.startswith(magic))
    try:
        stream = opener(file)
        while data := stream.read(CHUNK_BYTES):
            view = memoryview(data)
            while view:
                view = view[os.write(into, view) :]
    except EOFError:
        raise InvalidParameter("unexpected EOF") from None
    except _FAULTS as error:
        if isinstance(error, OSError) and error.errno:  # the disk's, not the archive's
            raise
        raise InvalidParameter(f"invalid compressed data: {error}") from None


class Section(io.RawIOBase):
    """A part of a file as a file of its own; the descriptor is not owned."""

    def __init__(self, fd: int, offset: int, size: int) -> None:
        super().__init__()
        self._fd = fd
        self._offset = offset
        self._size = size
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._at = max(0, base + offset)
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int = -1, /) -> bytes:
        left = max(0, self._size - self._at)
        wanted = left if size < 0 else min(size, left)
        data = os.pread(self._fd, wanted, self._offset + self._at) if wanted else b""
        self._at += len(data)
        return data

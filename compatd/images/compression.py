"""Compressed archives, recognised by their first bytes: gzip, bzip2, xz, zstd (moby pkg/archive, DetectCompression)."""

import bz2
import lzma
import secrets
import zlib
from collections.abc import Callable
from typing import BinaryIO, Protocol, cast

import zstandard
from isal import igzip_lib

from compatd.images.streams import Readable
from compatd.images.tar import BadArchive

_CHUNK_BYTES = 1 << 20
_INPUT_BYTES = 1 << 17
_XZ_MEMORY_BYTES = 1 << 28
_ZSTD_WINDOW_BYTES = 1 << 27  # what the zstd program itself takes without being asked for more
_SEAL_BYTES = 16
_FAULTS: tuple[type[Exception], ...] = (
    OSError,
    EOFError,
    ValueError,
    zlib.error,
    lzma.LZMAError,
    zstandard.ZstdError,
    cast("type[Exception]", igzip_lib.error),
)


class _Decompressor(Protocol):
    """What bz2, lzma and isal agree on."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


def _gzip() -> _Decompressor:
    return cast("_Decompressor", igzip_lib.IgzipDecompressor(flag=igzip_lib.DECOMP_GZIP))


def _bzip2() -> _Decompressor:
    return cast("_Decompressor", bz2.BZ2Decompressor())


def _xz() -> _Decompressor:
    return cast("_Decompressor", lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY_BYTES))


_FORMATS: tuple[tuple[bytes, Callable[[], _Decompressor]], ...] = (
    (b"\x1f\x8b\x08", _gzip),
    (b"BZh", _bzip2),
    (b"\xfd7zXZ\x00", _xz),
)
_ZSTD = b"\x28\xb5\x2f\xfd"


def is_compressed(head: bytes) -> bool:
    """Whether a stream that begins with ``head`` (six bytes suffice) is compressed in a known format."""
    return head.startswith(_ZSTD) or any(head.startswith(magic) for magic, _ in _FORMATS)


def decompressed(stream: Readable) -> Readable:
    """``stream`` uncompressed, or as it is. Reads ahead of what is asked for; bounded memory.

    Reading raises BadArchive for damaged or truncated data, and what reading ``stream`` raises.
    """
    peeked = Peeked(stream)
    head = peeked.peek(6)
    if head.startswith(_ZSTD):
        return _Zstd(peeked)
    for magic, start in _FORMATS:
        if head.startswith(magic):
            return _Stream(peeked, magic, start)
    return peeked


class Peeked:
    """A stream whose beginning can be looked at before it is read."""

    def __init__(self, stream: Readable, head: bytes = b"") -> None:
        self._stream = stream
        self._head = head

    def peek(self, size: int) -> bytes:
        """The next ``size`` bytes; fewer at the end."""
        while len(self._head) < size and (data := self._stream.read(size - len(self._head))):
            self._head += data
        return self._head[:size]

    def read(self, size: int, /) -> bytes:
        if not self._head:
            return self._stream.read(size)
        data, self._head = self._head[:size], self._head[size:]
        return data


class _Stream:
    def __init__(self, source: Readable, magic: bytes, start: Callable[[], _Decompressor]) -> None:
        self._source = source
        self._magic = magic
        self._start = start
        self._member = start()

    def read(self, size: int, /) -> bytes:
        while True:
            if self._member.eof and not self._next_member():
                return b""
            data = b""
            if self._member.needs_input:
                data = self._source.read(_INPUT_BYTES)
                if not data:
                    raise BadArchive("unexpected EOF")
            try:
                output = self._member.decompress(data, min(size, _CHUNK_BYTES))
            except _FAULTS as error:
                raise BadArchive(f"damaged compressed data: {error}") from error
            if output:
                return output

    def _next_member(self) -> bool:
        """Streams may be concatenated; zeros behind the last one are somebody's padding."""
        rest = self._member.unused_data
        while len(rest) < len(self._magic) and (data := self._source.read(_INPUT_BYTES)):
            rest += data
        if not rest.startswith(self._magic):
            while rest:
                if rest.strip(b"\0"):
                    raise BadArchive("trailing data after compressed data")
                rest = self._source.read(_INPUT_BYTES)
            return False
        self._source = Peeked(self._source, rest)
        self._member = self._start()
        return True


class _Zstd:
    """The library does not tell a frame's end from the stream's. So a frame of our own is put behind: if its content
    comes out last, everything before it was complete."""

    def __init__(self, source: Readable) -> None:
        self._seal = secrets.token_bytes(_SEAL_BYTES)
        frame = zstandard.ZstdCompressor(level=1).compress(self._seal)
        decompressor = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES)
        self._source = _Sealed(source, frame)
        self._reader = decompressor.stream_reader(cast("BinaryIO", self._source), read_across_frames=True)
        self._buffer = b""
        self._position = 0
        self._ended = False

    def read(self, size: int, /) -> bytes:
        while not self._ended and len(self._buffer) - self._position <= _SEAL_BYTES:
            self._fill(size)
        kept = 0 if self._ended else _SEAL_BYTES
        end = min(len(self._buffer) - kept, self._position + size)
        data = self._buffer[self._position : end]
        self._position = end
        return data

    def _fill(self, size: int) -> None:
        rest = self._buffer[self._position :]
        try:
            data = self._reader.read(max(min(size, _CHUNK_BYTES), 2 * _SEAL_BYTES))
        except _FAULTS as error:
            if self._source.is_sealed:
                raise BadArchive("unexpected EOF") from error
            raise BadArchive(f"damaged compressed data: {error}") from error
        if not data:
            if rest != self._seal:
                raise BadArchive("unexpected EOF")
            rest, self._ended = b"", True
        self._buffer, self._position = rest + data, 0


class _Sealed:
    """A stream with something added at its end."""

    def __init__(self, source: Readable, seal: bytes) -> None:
        self._source = source
        self._seal = Peeked(_Nothing(), seal)
        self.is_sealed = False

    def read(self, size: int, /) -> bytes:
        data = b"" if self.is_sealed else self._source.read(size)
        if data:
            return data
        self.is_sealed = True
        return self._seal.read(size)


class _Nothing:
    def read(self, size: int, /) -> bytes:
        return b""

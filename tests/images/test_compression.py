"""Compressed streams: known by their first bytes, read in bounded pieces, damage told."""

import bz2
import gzip
import io
import lzma
from collections.abc import Callable

import pytest
import zstandard

from compatd.images.compression import Peeked, decompressed, is_compressed
from compatd.images.tar import BadArchive

pytestmark = pytest.mark.unit

FORMATS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "xz": lzma.compress,
    "zstd": zstandard.ZstdCompressor().compress,
}
CONTENT = bytes(range(256)) * 3_000


def read_all(data: bytes) -> bytes:
    stream = decompressed(io.BytesIO(data))
    parts: list[bytes] = []
    while piece := stream.read(100_000):
        assert len(piece) <= 100_000
        parts.append(piece)
    return b"".join(parts)


@pytest.mark.parametrize("compress", FORMATS.values(), ids=FORMATS.keys())
def test_formats(compress: Callable[[bytes], bytes]) -> None:
    data = compress(CONTENT)
    assert is_compressed(data[:6])
    assert read_all(data) == CONTENT
    assert read_all(compress(CONTENT[:5000]) + compress(CONTENT[5000:])) == CONTENT
    assert read_all(compress(b"")) == b""


@pytest.mark.parametrize("name", ["gzip", "bzip2", "xz", "zstd"])
def test_truncation(name: str) -> None:
    with pytest.raises(BadArchive, match="unexpected EOF"):
        read_all(FORMATS[name](CONTENT)[:-9])


@pytest.mark.parametrize("compress", FORMATS.values(), ids=FORMATS.keys())
def test_damage(compress: Callable[[bytes], bytes]) -> None:
    data = bytearray(compress(CONTENT))
    data[10:60] = bytes(50)
    with pytest.raises(BadArchive):
        read_all(bytes(data))


def test_padding_and_garbage_behind() -> None:
    assert read_all(gzip.compress(CONTENT) + bytes(3000)) == CONTENT
    with pytest.raises(BadArchive, match="trailing"):
        read_all(gzip.compress(CONTENT) + b"garbage" * 10)


def test_what_is_not_compressed_passes() -> None:
    for data in (b"", b"abc", CONTENT):
        assert read_all(data) == data


def test_a_bomb_is_read_in_pieces() -> None:
    stream = decompressed(io.BytesIO(zstandard.ZstdCompressor().compress(bytes(1 << 28))))
    assert len(stream.read(1 << 30)) <= 1 << 20


def test_looking_ahead() -> None:
    class OneByte:
        def __init__(self) -> None:
            self.data = io.BytesIO(b"hello world")

        def read(self, size: int, /) -> bytes:
            return self.data.read(min(size, 1))

    stream = Peeked(OneByte())
    assert stream.peek(5) == b"hello"
    assert stream.peek(2) == b"he"
    assert stream.read(3) == b"hel"
    assert stream.peek(50) == b"lo world"

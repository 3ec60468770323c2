"""The archive codec: against the standard library's and GNU tar's archives, and against hostile bytes."""

import contextlib
import io
import os
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compatd.images.tar import (
    BLOCK,
    CHAR,
    DIRECTORY,
    END,
    FIFO,
    LINK,
    REGULAR,
    SYMLINK,
    BadArchive,
    Entry,
    TarReader,
    components,
    encode,
    entry_of,
    looks_like_tar,
    members,
    padding,
)

pytestmark = pytest.mark.unit


class Dripping:
    """A stream that gives little at a time."""

    def __init__(self, data: bytes, step: int) -> None:
        self._data = io.BytesIO(data)
        self._step = step

    def read(self, size: int, /) -> bytes:
        return self._data.read(min(size, self._step))


def read_all(data: bytes, step: int = 1 << 20) -> list[tuple[Entry, bytes]]:
    reader = TarReader(Dripping(data, step))
    found: list[tuple[Entry, bytes]] = []
    for entry in reader:
        content = b""
        while piece := reader.read(1 << 20):
            content += piece
        found.append((entry, content))
    return found


def header(**fields: bytes) -> bytearray:
    """A good header block, with some fields written over; the checksum is set right again."""
    block = bytearray(encode(Entry(b"name", size=3)))
    offsets = {"mode": 100, "uid": 108, "size": 124, "mtime": 136, "type": 156, "magic": 257, "prefix": 345, "name": 0}
    for key, value in fields.items():
        block[offsets[key] : offsets[key] + len(value)] = value
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return block


_NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\0/"), min_size=1, max_size=120).map(str.encode)
_IDS = st.integers(0, (1 << 32) - 2)
_ENTRIES = st.builds(
    Entry,
    name=_NAMES,
    type=st.sampled_from([LINK, SYMLINK, CHAR, BLOCK, DIRECTORY, FIFO]),
    size=st.just(0),
    segments=st.none(),
    mode=st.integers(0, 0o7777),
    uid=_IDS,
    gid=_IDS,
    mtime_ns=st.integers(-(10**6), 10**11).map(lambda seconds: seconds * 10**9),
    linkname=_NAMES,
    device=st.builds(os.makedev, st.integers(0, 4095), st.integers(0, (1 << 20) - 1)),
    xattrs=st.dictionaries(_NAMES.filter(lambda name: b"=" not in name), st.binary(max_size=40), max_size=3),
)


@settings(max_examples=80, deadline=None)
@given(
    entries=st.lists(st.tuples(_ENTRIES, st.none()) | st.tuples(_ENTRIES, st.binary(max_size=1100)), max_size=4),
    step=st.sampled_from([1, 100, 513, 1 << 20]),
)
def test_what_is_written_is_read(entries: list[tuple[Entry, bytes | None]], step: int) -> None:
    wanted: list[tuple[Entry, bytes]] = []
    data = b""
    for entry, content in entries:
        if content is not None:
            entry = entry._replace(type=REGULAR, size=len(content))
        if entry.type not in (CHAR, BLOCK):
            entry = entry._replace(device=0)
        data += encode(entry) + (content or b"") + padding(entry.size)
        wanted.append((entry, content or b""))
    assert read_all(data + END, step) == wanted


@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=2000), at=st.integers(0, 3000), size=st.integers(0, 6000))
def test_damage_is_one_kind_of_error(data: bytes, at: int, size: int) -> None:
    good = encode(Entry(b"a" * 150, size=600, xattrs={b"user.x": b"y"})) + bytes(600) + padding(600) + END
    mutated = (good[:at] + data + good[at + len(data) :])[:size]
    with contextlib.suppress(BadArchive):
        read_all(mutated)


@pytest.mark.parametrize("format_", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_archives_of_the_standard_library(format_: int) -> None:
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w", format=format_) as archive:
        for name in ("short", "dir/" * 20 + "n" * 60, "d" * 100 + "/" + "f" * 50):
            info = tarfile.TarInfo(name)
            info.size = 700
            info.mtime = 1_600_000_000
            info.uid, info.gid, info.mode = 1234, 2_000_000, 0o4711
            archive.addfile(info, io.BytesIO(b"z" * 700))
        info = tarfile.TarInfo("link")
        info.type, info.linkname = tarfile.SYMTYPE, "t" * (90 if format_ == tarfile.USTAR_FORMAT else 300)
        archive.addfile(info)
        info = tarfile.TarInfo("null")
        info.type, info.devmajor, info.devminor = tarfile.CHRTYPE, 1, 3
        archive.addfile(info)
    found = read_all(target.getvalue(), 1000)
    assert [(entry.name.decode(), len(content)) for entry, content in found] == [
        ("short", 700),
        ("dir/" * 20 + "n" * 60, 700),
        ("d" * 100 + "/" + "f" * 50, 700),
        ("link", 0),
        ("null", 0),
    ]
    assert found[0][0][:7] == (b"short", REGULAR, 700, 0o4711, 1234, 2_000_000, 1_600_000_000 * 10**9)
    assert found[3][0].linkname == info.linkname.encode() or len(found[3][0].linkname) in (90, 300)
    assert found[4][0].device == os.makedev(1, 3)


def test_the_standard_library_reads_ours() -> None:
    data = encode(Entry(b"n" * 120, size=5, uid=3_000_000_000, xattrs={b"user.a": b"b"})) + b"hello" + padding(5) + END
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        (info,) = archive
        assert (info.name, info.uid, info.size) == ("n" * 120, 3_000_000_000, 5)
        assert info.pax_headers["SCHILY.xattr.user.a"] == "b"


def test_plain_entries_look_like_dockers() -> None:
    assert encode(Entry(b"bin/.wh.vi", mode=0o600, mtime_ns=0o15301267456 * 10**9)) == (
        b"bin/.wh.vi".ljust(100, b"\0")
        + b"0000600\x000000000\x000000000\x0000000000000\x0015301267456\x00011037\x00 0"
        + bytes(100)
        + b"ustar\x0000"
        + bytes(64)
        + b"0000000\x000000000\x00"
        + bytes(167)
    )


def test_numbers() -> None:
    def uid(field: bytes) -> int:
        (found,) = read_all(bytes(header(uid=field)) + b"abc" + padding(3) + END)
        return found[0].uid

    assert uid(b"0000017\0") == 15
    assert uid(b"   17 \0\0") == 15
    assert uid(b"\0" * 8) == 0
    assert uid(b"\x80" + (1 << 31).to_bytes(7, "big")) == 1 << 31
    for bad in (
        b"1_0\0\0\0\0\0",
        b"+17\0\0\0\0\0",
        b"-17\0\0\0\0\0",
        b"0o17\0\0\0\0",
        b"8\0\0\0\0\0\0\0",
        b"1 7\0\0\0\0\0",
        b"\xff" * 8,
    ):
        with pytest.raises(BadArchive):
            uid(bad)


@pytest.mark.parametrize(
    "block",
    [
        header(size=b"\xff" * 12),
        header(size=b"\x80" + b"\xff" * 11),
        header(type=b"V"),
        header(type=b"x", size=b"77777777777\0"),
        header(type=b"3")[:329] + b"7777777\0" + header(type=b"3")[337:],
        bytearray(b"x" * 512),
        header()[:-1],
    ],
)
def test_bad_headers(block: bytearray) -> None:
    with pytest.raises(BadArchive):
        read_all(bytes(block) + b"abc" + padding(3) + END)


@pytest.mark.parametrize(
    "records",
    [
        b"x",
        b"6 a=\n",
        b"99 path=a\n",
        b"1_0 path=a\n",
        b"10 path=a ",
        b"8 path\n",
        b"12 size=1_0\n\n",
        b"12 size=-10\n",
        b"12 mtime=1x\n",
        b"12 path=a\0b\n",
        b"23 SCHILY.xattr.a\0b=c\n"[:23],
    ],
)
def test_bad_extension_records(records: bytes) -> None:
    extension = encode(Entry(b"x", b"x", size=len(records))) + records + padding(len(records))
    with pytest.raises(BadArchive):
        read_all(extension + encode(Entry(b"f")) + END)


def test_fractions_and_negative_times() -> None:
    records = b"19 mtime=-1.500001\n"
    extension = encode(Entry(b"x", b"x", size=len(records))) + records + padding(len(records))
    ((entry, _),) = read_all(extension + encode(Entry(b"f")) + END)
    assert entry.mtime_ns == -1_500_001_000


def test_global_headers_and_old_directories() -> None:
    data = encode(Entry(b"g", b"g", size=10)) + b"10 comme=\n" + padding(10)
    old = header(name=b"old/\0", type=b"\0", size=b"00000000000\0", magic=bytes(8))
    ((entry, _),) = read_all(data + bytes(old) + END)
    assert (entry.name, entry.type) == (b"old/", DIRECTORY)


def test_content_past_the_end() -> None:
    good = encode(Entry(b"f", size=1000)) + bytes(1000) + padding(1000) + END
    for cut in (1, 511, 512, 513, 1000, 1500):
        with pytest.raises(BadArchive, match="unexpected EOF"):
            read_all(good[:cut])
    assert len(read_all(good[:1512])) == 1  # only padding is missing


def test_one_block_of_zeros_is_no_end() -> None:
    with pytest.raises(BadArchive):
        read_all(bytes(512) + encode(Entry(b"f")))
    assert read_all(bytes(512)) == []


def test_the_tail_is_drained() -> None:
    stream = io.BytesIO(encode(Entry(b"f")) + END + b"tail" * 1000)
    reader = TarReader(stream)
    assert len(list(reader)) == 1
    reader.drain()
    assert stream.read() == b""


def sparse_file(tmp_path: Path) -> tuple[bytes, list[tuple[int, int]]]:
    segments = [(0, 512), (1 << 20, 1024), ((1 << 20) + 4096, 100)]
    content = bytearray((2 << 20) + 7)
    for offset, size in segments:
        content[offset : offset + size] = bytes((offset + at) % 251 + 1 for at in range(size))
    return bytes(content), segments


@pytest.mark.parametrize("form", ["gnu", "0.0", "0.1", "1.0"])
def test_sparse_files(tmp_path: Path, form: str) -> None:
    content, segments = sparse_file(tmp_path)
    data = b"".join(content[offset : offset + size] for offset, size in segments)
    if form == "gnu":
        block = header(type=b"S", size=b"%011o\0" % len(data))
        pairs = b"".join(b"%011o\0%011o\0" % segment for segment in segments)
        block[386 : 386 + len(pairs)] = pairs
        block[483:495] = b"%011o\0" % len(content)
        block[148:156] = b" " * 8
        block[148:156] = b"%06o\0 " % sum(block)
        archive = bytes(block) + data
    else:
        numbers = [number for segment in segments for number in segment]
        if form == "0.0":
            records = [("GNU.sparse.size", len(content)), ("GNU.sparse.numblocks", len(segments))]
            for offset, size in segments:
                records += [("GNU.sparse.offset", offset), ("GNU.sparse.numbytes", size)]
        elif form == "0.1":
            records = [("GNU.sparse.size", len(content))]
            records += [("GNU.sparse.map", ",".join(map(str, numbers))), ("GNU.sparse.name", "name")]  # type: ignore[list-item]
        else:
            records = [("GNU.sparse.major", 1), ("GNU.sparse.minor", 0), ("GNU.sparse.realsize", len(content))]
            records += [("GNU.sparse.name", "name")]  # type: ignore[list-item]
            table = "".join(f"{number}\n" for number in [len(segments), *numbers]).encode()
            data = table + padding(len(table)) + data
        body = b""
        for key, value in records:
            text = f" {key}={value}\n"
            length = len(text) + 2 if len(text) < 98 else len(text) + 3
            body += f"{length}{text}".encode()
        archive = encode(Entry(b"x", b"x", size=len(body))) + body + padding(len(body))
        archive += encode(Entry(b"GNUSparseFile.0/name", size=len(data))) + data
    archive += padding(len(archive)) + END
    reader = TarReader(io.BytesIO(archive))
    entry = reader.next()
    assert entry is not None
    assert (entry.name, entry.type, entry.size) == (b"name" if form != "0.0" else entry.name, REGULAR, len(content))
    with (tmp_path / "out").open("wb+") as out:
        reader.copy_to(out.fileno())
        out.seek(0)
        assert out.read() == content
        assert os.fstat(out.fileno()).st_blocks * 512 < len(content)
    assert reader.next() is None


def test_members_of_a_file(tmp_path: Path) -> None:
    data = b""
    for size in (0, 10, 512, 100_000, 70_000, 1):
        data += encode(Entry(b"f%d" % size, size=size)) + bytes([size % 256]) * size + padding(size)
    (tmp_path / "tar").write_bytes(data + END)
    with (tmp_path / "tar").open("rb") as file:
        found = list(members(file))
        assert [entry.size for entry, _ in found] == [0, 10, 512, 100_000, 70_000, 1]
        for entry, offset in found:
            file.seek(offset)
            assert file.read(entry.size) == bytes([entry.size % 256]) * entry.size
    (tmp_path / "tar").write_bytes(data[:-90_000])
    with (tmp_path / "tar").open("rb") as file, pytest.raises(BadArchive, match="unexpected EOF"):
        list(members(file))


def test_names() -> None:
    assert components(b"/a//./b/../c/") == [b"a", b"c"]
    assert components(b"./") == components(b"/") == components(b"a/..") == []
    for bad in (b"..", b"a/../../b", b"a\0b", b"n" * 256, b"a/" * 3000):
        with pytest.raises(BadArchive):
            components(bad)


def test_recognition(tmp_path: Path) -> None:
    assert looks_like_tar(encode(Entry(b"f")))
    assert looks_like_tar(bytes(512))
    assert not looks_like_tar(bytes(100))
    assert not looks_like_tar(b'{"json": 1}'.ljust(512))
    os.mkfifo(tmp_path / "pipe")
    entry = entry_of(b"p", os.lstat(tmp_path / "pipe"))
    assert entry is not None
    assert entry.type == FIFO

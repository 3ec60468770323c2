"""Tar archives as streams: a strict reader for archives of strangers, and a deterministic writer.

The reader takes what tar programs make: ustar, PAX, GNU long names, base-256 numbers, sparse files of every
form, old archives without a magic. The standard library's reader takes too much (numbers such as ``1_0`` or
``+7``, sizes below zero, headers past the end) and costs three times as much an entry. Every fault, whatever
its kind, is one ``BadArchive``; sizes of extension records are bounded, data is never held in memory.

The writer makes what Docker's layers look like: plain ustar headers, PAX records only where a field does not
fit, whole seconds, no user names (moby pkg/archive, FileInfoHeaderNoLookups). Equal entries give equal bytes.

Names and link targets are bytes as they stand in the archive. ``components`` is the way to use a name.
"""

import os
import re
import stat
import struct
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, BinaryIO, NamedTuple, NoReturn

from compatd.errors import InvalidParameter
from compatd.images.streams import Counted, Readable

BLOCK_BYTES = 512
END = bytes(2 * BLOCK_BYTES)

REGULAR = b"0"
LINK = b"1"
SYMLINK = b"2"
CHAR = b"3"
BLOCK = b"4"
DIRECTORY = b"5"
FIFO = b"6"

MAX_ENTRIES = 2_000_000
MAX_EXTENSION_BYTES = 1 << 20
MAX_PATH_BYTES = 4096
MAX_NAME_BYTES = 255
MAX_XATTR_BYTES = 1 << 16
MAX_ID = (1 << 32) - 2  # chown(2) takes the highest one for "leave it"

_MAX_SIZE = (1 << 63) - 1
_CHUNK_BYTES = 1 << 20
_HEADER = struct.Struct("100s8s8s8s12s12s8sc100s6s2s64x8s8s155s12x")
_ZERO = bytes(BLOCK_BYTES)
_PAX_TIME = re.compile(rb"(-?)([0-9]{1,12})(?:\.([0-9]*))?")
_XATTR = b"SCHILY.xattr."
_MODE_TYPES = {
    stat.S_IFREG: REGULAR,
    stat.S_IFLNK: SYMLINK,
    stat.S_IFCHR: CHAR,
    stat.S_IFBLK: BLOCK,
    stat.S_IFDIR: DIRECTORY,
    stat.S_IFIFO: FIFO,
}
_NO_XATTRS: Mapping[bytes, bytes] = {}


class BadArchive(InvalidParameter):
    """The archive is damaged, truncated, hostile or not one at all."""


class Entry(NamedTuple):
    """One member of an archive. (A tuple, since an archive of many small files is mostly the making of these.)"""

    name: bytes
    type: bytes = REGULAR
    size: int = 0
    """Bytes of content of a regular file, holes of a sparse one included; 0 for all else."""
    mode: int = 0o644
    """Permission and set-id bits, no type bits."""
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    linkname: bytes = b""
    """Target of a symbolic link, or the name of the earlier entry that a hard link joins."""
    device: int = 0
    """As ``os.makedev``."""
    xattrs: Mapping[bytes, bytes] = _NO_XATTRS
    segments: tuple[tuple[int, int], ...] | None = None
    """Of a sparse file: (offset, bytes) of its stored parts, ascending; all else is holes."""


def components(name: bytes) -> list[bytes]:
    """The name relative to the archive's root, cleaned as Docker cleans it: ``/a//./b/../c`` is ``a``, ``c``.

    BadArchive for a name that leads outside or that no file system holds. Empty for the root itself.
    """
    if len(name) > MAX_PATH_BYTES:
        raise BadArchive(f"{show(name[:64])}…: file name too long")
    parts: list[bytes] = []
    for part in name.split(b"/"):
        if part in (b"", b"."):
            continue
        if part == b"..":
            if not parts:
                raise BadArchive(f"invalid entry name {show(name)}")
            parts.pop()
            continue
        if len(part) > MAX_NAME_BYTES:
            raise BadArchive(f"{show(name)}: file name too long")
        parts.append(part)
    if b"\0" in name:
        raise BadArchive(f"invalid entry name {show(name)}")
    return parts


def members(file: BinaryIO) -> Iterator[tuple[Entry, int]]:
    """The entries of a seekable archive, each with the offset where its stored content begins. None is read.

    ``file`` is read from its position on and left anywhere. BadArchive as the reader.
    """
    reader = _Seeker(file)
    for entry in reader:
        yield entry, reader.offset


class TarReader:
    """Reads an archive's entries in order, and between two ``next`` calls the content of the first.

    It is itself a ``Readable`` of the current entry's stored content. Not for several threads. The stream
    stays the caller's.
    """

    _chunk_bytes = _CHUNK_BYTES

    def __init__(self, stream: Readable) -> None:
        self._stream = stream
        self._buffer = b""
        self._position = 0
        self._left = 0
        self._padding = 0
        self._count = 0
        self._ended = False
        self._entry = Entry(b"")

    def __iter__(self) -> Iterator[Entry]:
        while (entry := self.next()) is not None:
            yield entry

    def next(self) -> Entry | None:
        """The next entry, or None at the end of the archive. Content not read is skipped."""
        if self._ended:
            return None
        if self._left or self._padding:
            self._skip()
        try:
            entry = self._next()
        except (ValueError, struct.error, IndexError, OverflowError) as error:
            raise BadArchive("archive/tar: invalid tar header") from error
        if entry is None:
            self._ended = True
            return None
        self._count += 1
        if self._count > MAX_ENTRIES:
            raise BadArchive(f"archive has more than {MAX_ENTRIES} entries")
        self._entry = entry
        return entry

    def read(self, size: int, /) -> bytes:
        """Up to ``size`` bytes of the current entry's stored content; none at its end."""
        wanted = min(size, self._left)
        if wanted <= 0:
            return b""
        available = len(self._buffer) - self._position
        if not available:
            if wanted >= _CHUNK_BYTES:
                data = self._stream.read(wanted)
                if not data:
                    _truncated()
                self._left -= len(data)
                return data
            self._fill()
            available = len(self._buffer)
        data = self._buffer[self._position : self._position + min(wanted, available)]
        self._position += len(data)
        self._left -= len(data)
        return data

    def copy_to(self, fd: int) -> None:
        """Write the current entry's content to an empty file, holes as holes."""
        if self._entry.segments is not None:
            self._copy_segments(fd, self._entry.segments)
            return
        left = self._left
        if 0 < left <= len(self._buffer) - self._position:  # the usual small file
            end = self._position + left
            if os.write(fd, self._buffer[self._position : end]) == left:
                self._position = end
                self._left = 0
                return
            os.ftruncate(fd, 0)
            os.lseek(fd, 0, os.SEEK_SET)
        while data := self.read(_CHUNK_BYTES):
            write_all(fd, data)

    def drain(self) -> None:
        """Read the stream to its end: what follows the archive's end still belongs to its digest."""
        self._ended = True
        self._buffer = b""
        self._position = 0
        while self._stream.read(_CHUNK_BYTES):
            pass

    def _copy_segments(self, fd: int, segments: tuple[tuple[int, int], ...]) -> None:
        for offset, size in segments:
            os.lseek(fd, offset, os.SEEK_SET)
            while size:
                data = self.read(min(size, _CHUNK_BYTES))
                if not data:
                    _truncated()
                write_all(fd, data)
                size -= len(data)
        os.ftruncate(fd, self._entry.size)

    def _next(self) -> Entry | None:
        long_name: bytes | None = None
        long_link: bytes | None = None
        records: list[tuple[bytes, bytes]] = []
        while True:
            block = self._block()
            if block is None:
                return None
            (name, mode, uid, gid, size, mtime, checksum, type_, link, magic, _, major, minor, prefix) = _HEADER.unpack(
                block
            )
            # 256 is 1 modulo 255, so a block as one number leaves its sum's remainder: all at C speed. The full
            # sum is taken for the first header, which decides whether this is an archive.
            if self._count == 0 or (
                (int.from_bytes(block, "big") - int.from_bytes(checksum, "big") + 8 * 0x20 - _number(checksum)) % 255
            ):
                _check_sum(block)
            stored = _number(size)
            if stored < 0:
                _invalid()
            if type_ not in b"xgLK":
                break
            if stored > MAX_EXTENSION_BYTES:
                raise BadArchive("archive/tar: header field too long")
            body = self._take(stored)
            if type_ == b"x":
                records = _pax_records(body)
            elif type_ == b"L":
                long_name = body.partition(b"\0")[0]
            elif type_ == b"K":
                long_link = body.partition(b"\0")[0]
        if long_name is not None:
            name = long_name
        else:
            name = name.partition(b"\0")[0]
            if magic == b"ustar\0" and prefix[0]:
                name = prefix.partition(b"\0")[0] + b"/" + name
        entry = Entry(
            name,
            type_,
            stored,
            _number(mode) & 0o7777,
            _number(uid),
            _number(gid),
            _number(mtime) * 1_000_000_000,
            link.partition(b"\0")[0] if long_link is None else long_link,
        )
        if records:
            entry = self._with_records(entry, records)
        if type_ == REGULAR:
            pass
        elif type_ in b"123456":
            device = _device(major, minor) if type_ in b"34" else 0
            entry = entry._replace(size=0, device=device)  # some programs write a size, none the content
        else:
            entry = self._old_type(entry, block)
        if not (0 <= entry.uid <= MAX_ID and 0 <= entry.gid <= MAX_ID):
            raise BadArchive(f"{show(entry.name)}: invalid owner")
        self._left = entry.size if entry.segments is None else sum(size for _, size in entry.segments)
        self._padding = -self._left % BLOCK_BYTES
        return entry

    def _with_records(self, entry: Entry, records: Sequence[tuple[bytes, bytes]]) -> Entry:
        known = dict(records)
        values: dict[str, Any] = {}
        xattrs: dict[bytes, bytes] = {}
        xattr_bytes = 0
        for key, value in known.items():
            if key.startswith(_XATTR):
                attribute = key.removeprefix(_XATTR)
                xattr_bytes += len(attribute) + len(value)
                if not 0 < len(attribute) <= MAX_NAME_BYTES or b"\0" in attribute or xattr_bytes > MAX_XATTR_BYTES:
                    raise BadArchive(f"{show(entry.name)}: invalid extended attribute")
                xattrs[attribute] = value
                continue
            if not value:  # an empty record undoes an earlier one, and there is none
                continue
            if b"\0" in value:
                _invalid()
            if key == b"path":
                values["name"] = value
            elif key == b"linkpath":
                values["linkname"] = value
            elif key in (b"size", b"uid", b"gid"):
                values[key.decode()] = _decimal(value)
            elif key == b"mtime":
                values["mtime_ns"] = _pax_time(value)
        if xattrs:
            values["xattrs"] = xattrs
        entry = entry._replace(**values)
        if any(key.startswith(b"GNU.sparse.") for key in known) and entry.type in (REGULAR, b"\0"):
            entry = self._pax_sparse(entry, records, known)
        return entry

    def _pax_sparse(self, entry: Entry, records: Sequence[tuple[bytes, bytes]], known: Mapping[bytes, bytes]) -> Entry:
        """GNU tar's PAX forms 0.0 (repeated records), 0.1 (one record) and 1.0 (the map heads the content)."""
        entry = entry._replace(name=known.get(b"GNU.sparse.name") or entry.name)
        if (known.get(b"GNU.sparse.major"), known.get(b"GNU.sparse.minor")) == (b"1", b"0"):
            numbers, taken = self._sparse_map_in_content(entry.size)
            return _sparse(entry, _decimal(known[b"GNU.sparse.realsize"]), numbers, entry.size - taken)
        if b"GNU.sparse.map" in known:
            text = known[b"GNU.sparse.map"]
            numbers = [_decimal(number) for number in text.split(b",")] if text else []
        elif b"GNU.sparse.numblocks" in known:
            keys = (b"GNU.sparse.offset", b"GNU.sparse.numbytes")
            numbers = [_decimal(value) for key, value in records if key in keys]
        else:
            return entry
        return _sparse(entry, _decimal(known[b"GNU.sparse.size"]), numbers, entry.size)

    def _sparse_map_in_content(self, stored: int) -> tuple[list[int], int]:
        """Lines of decimals: how many pairs follow, then those; filled up to a whole block."""
        text = bytearray()
        lines = 0
        wanted = 1
        while lines < wanted:
            if len(text) + BLOCK_BYTES > min(stored, MAX_EXTENSION_BYTES):
                _invalid()
            block = self._take(BLOCK_BYTES)
            text += block
            lines += block.count(b"\n")
            if lines and wanted == 1:
                wanted += 2 * _decimal(bytes(text).partition(b"\n")[0])
        return [_decimal(line) for line in bytes(text).split(b"\n")[1:wanted]], len(text)

    def _old_type(self, entry: Entry, block: bytes) -> Entry:
        if entry.type == b"\0":
            if entry.name.endswith(b"/"):
                return entry._replace(type=DIRECTORY, size=0)
            return entry._replace(type=REGULAR)
        if entry.type == b"7":
            return entry._replace(type=REGULAR)
        if entry.type != b"S":
            raise BadArchive(f"unhandled tar header type {entry.type[0]}")
        numbers: list[int] = []
        fields, more = block[386:482], block[482]
        real_size = _number(block[483:495])
        while True:
            for at in range(0, len(fields), 24):
                if fields[at]:
                    numbers += (_number(fields[at : at + 12]), _number(fields[at + 12 : at + 24]))
            if not more:
                break
            if len(numbers) * 12 > MAX_EXTENSION_BYTES:
                _invalid()
            block = self._take(BLOCK_BYTES)
            fields, more = block[:504], block[504]
        return _sparse(entry._replace(type=REGULAR), real_size, numbers, entry.size)

    def _block(self) -> bytes | None:
        """The next header, or None at the archive's end: two blocks of zeros, or the stream's end between entries."""
        position = self._position
        block = self._buffer[position : position + BLOCK_BYTES]
        if len(block) == BLOCK_BYTES:
            self._position = position + BLOCK_BYTES
        else:
            block = self._take(BLOCK_BYTES, partial=True)
            if not block:
                return None
            if len(block) < BLOCK_BYTES:
                _truncated()
        if block != _ZERO:
            return block
        second = self._take(BLOCK_BYTES, partial=True)
        if second.strip(b"\0"):
            _invalid()
        return None

    def _take(self, size: int, *, partial: bool = False) -> bytes:
        """Exactly ``size`` bytes and the padding behind them."""
        padded = size + -size % BLOCK_BYTES
        parts: list[bytes] = []
        missing = padded
        while missing:
            if self._position == len(self._buffer) and not self._fill(partial=True):
                if partial:
                    break
                _truncated()
            data = self._buffer[self._position : self._position + missing]
            self._position += len(data)
            missing -= len(data)
            parts.append(data)
        return b"".join(parts)[:size]

    def _skip(self) -> None:
        """Pass the rest of the content; the last padding may be missing at the stream's end, as other readers allow."""
        while self._left:
            if not self.read(_CHUNK_BYTES):
                _truncated()
        while self._padding:
            if self._position == len(self._buffer) and not self._fill(partial=True):
                break
            step = min(self._padding, len(self._buffer) - self._position)
            self._position += step
            self._padding -= step
        self._padding = 0

    def _fill(self, *, partial: bool = False) -> bool:
        self._buffer = self._stream.read(self._chunk_bytes)
        self._position = 0
        if not self._buffer and not partial:
            _truncated()
        return bool(self._buffer)


class _Seeker(TarReader):
    """Passes over large contents without reading them."""

    _chunk_bytes = 1 << 16

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file)
        self._file = file
        self._end = os.fstat(file.fileno()).st_size

    @property
    def offset(self) -> int:
        return self._file.tell() - (len(self._buffer) - self._position)

    def _skip(self) -> None:
        unread = len(self._buffer) - self._position
        if self._left <= unread:
            super()._skip()
            return
        target = self._file.tell() + self._left - unread
        if target > self._end:
            _truncated()
        self._file.seek(min(target + self._padding, self._end))
        self._buffer = b""
        self._position = self._left = self._padding = 0


class PositionedReader(TarReader):
    """Also knows where in the stream the current entry's content begins, and what followed the one before."""

    def __init__(self, stream: Readable) -> None:
        self._counted = Counted(stream)
        super().__init__(self._counted)
        self.padded = True
        """Whether the entry before this one was filled up to a whole block, with zeros."""

    @property
    def offset(self) -> int:
        return self._counted.passed - (len(self._buffer) - self._position)

    def next(self) -> Entry | None:
        self.padded = True
        return super().next()

    def _skip(self) -> None:
        end = self._position + self._left + self._padding
        if end <= len(self._buffer):  # the usual small file
            self.padded = self._buffer.startswith(_ZERO[: self._padding], end - self._padding)
            self._position = end
            self._left = self._padding = 0
            return
        while self._left:
            if not self.read(_CHUNK_BYTES):
                _truncated()
        padding = self._padding
        self._padding = 0
        self.padded = self._take_partly(padding) == _ZERO[:padding]

    def _take_partly(self, size: int) -> bytes:
        taken = b""
        while len(taken) < size and (self._position < len(self._buffer) or self._fill(partial=True)):
            data = self._buffer[self._position : self._position + size - len(taken)]
            self._position += len(data)
            taken += data
        return taken


def looks_like_tar(block: bytes) -> bool:
    """Whether an archive may begin with ``block``: a header with a right checksum, or the zeros of an empty one."""
    if len(block) < BLOCK_BYTES:
        return False
    block = block[:BLOCK_BYTES]
    if block == _ZERO:
        return True
    try:
        _check_sum(block)
    except (BadArchive, ValueError):
        return False
    return True


def encode(entry: Entry) -> bytes:
    """The header blocks of ``entry``; its content and ``padding`` follow. BadArchive when it cannot be represented."""
    records: dict[bytes, bytes] = {
        _XATTR + name: value for name, value in entry.xattrs.items() if len(value) <= MAX_XATTR_BYTES
    }
    name, link = entry.name, entry.linkname
    if len(name) > 100 or not name.isascii():
        records[b"path"] = name
    if len(link) > 100 or not link.isascii():
        records[b"linkpath"] = link
    mtime_s = entry.mtime_ns // 1_000_000_000
    if not 0 <= mtime_s < 1 << 33:
        records[b"mtime"] = b"%d" % mtime_s
        mtime_s = 0
    size, uid, gid = entry.size, entry.uid, entry.gid
    if size >= 1 << 33:
        records[b"size"] = b"%d" % size
        size = 0
    if uid >= 1 << 21:
        records[b"uid"] = b"%d" % uid
        uid = 0
    if gid >= 1 << 21:
        records[b"gid"] = b"%d" % gid
        gid = 0
    device = entry.device
    header = _encode(
        name[:100], entry.type, size, entry.mode, uid, gid, mtime_s, link[:100], os.major(device), os.minor(device)
    )
    if not records:
        return header
    body = b"".join(_pax_record(key, records[key]) for key in sorted(records))
    head, _, tail = name.rstrip(b"/").rpartition(b"/")
    extension = (head + b"/PaxHeaders.0/" + tail).lstrip(b"/")[:100]
    return _encode(extension, b"x", len(body), 0o644, 0, 0, 0, b"", 0, 0) + body + padding(len(body)) + header


def padding(size: int) -> bytes:
    """The zeros behind ``size`` bytes of content."""
    return bytes(-size % BLOCK_BYTES)


def entry_of(name: bytes, status: os.stat_result, *, linkname: bytes = b"") -> Entry | None:
    """The entry for a file of the disk, without extended attributes; None for a socket, which no archive holds."""
    mode = status.st_mode
    type_ = _MODE_TYPES.get(stat.S_IFMT(mode))
    if type_ is None:
        return None
    return Entry(
        name + b"/" if type_ == DIRECTORY else name,
        type_,
        status.st_size if type_ == REGULAR else 0,
        mode & 0o7777,
        status.st_uid,
        status.st_gid,
        status.st_mtime_ns,
        linkname,
        status.st_rdev if type_ in (CHAR, BLOCK) else 0,
    )


def write_all(fd: int, data: bytes | memoryview) -> None:
    """write(2) until everything is written."""
    while data:
        written = os.write(fd, data)
        if written == len(data):
            return
        data = memoryview(data)[written:]


@lru_cache(maxsize=4096)
def _number(field: bytes) -> int:
    """A header's number: octal digits between blanks and NULs, or base-256 with the first bit set."""
    if field[0] & 0x80:
        value = int.from_bytes(field, "big") & (1 << 8 * len(field) - 1) - 1
        if field[0] & 0x40:  # two's complement
            value -= 1 << 8 * len(field) - 1
        if not -_MAX_SIZE <= value <= _MAX_SIZE:
            _invalid()
        return value
    text = field.strip(b" \0").partition(b"\0")[0].strip(b" ")
    if not text:
        return 0
    if not text.isdigit():
        _invalid()
    return int(text, 8)


def _device(major: bytes, minor: bytes) -> int:
    numbers = _number(major), _number(minor)
    if not (0 <= numbers[0] < 1 << 12 and 0 <= numbers[1] < 1 << 20):  # include/linux/kdev_t.h
        _invalid()
    return os.makedev(*numbers)


def _check_sum(block: bytes) -> None:
    stated = _number(block[148:156])
    rest = block[:148] + b"        " + block[156:]
    total = sum(rest)
    if stated not in (total, total - 256 * sum(byte > 127 for byte in rest)):  # some old programs added signed bytes
        _invalid()


def _decimal(text: bytes) -> int:
    if not text.isdigit() or len(text) > 19 or (value := int(text)) > _MAX_SIZE:
        _invalid()
    return value


def _pax_time(text: bytes) -> int:
    match = _PAX_TIME.fullmatch(text)
    if match is None:
        _invalid()
    sign, seconds, fraction = match.groups()
    value = int(seconds) * 1_000_000_000 + int((fraction or b"")[:9].ljust(9, b"0"))
    return -value if sign else value


def _pax_records(body: bytes) -> list[tuple[bytes, bytes]]:
    records: list[tuple[bytes, bytes]] = []
    position = 0
    while position < len(body):
        blank = body.find(b" ", position, position + 8)
        if blank < 0:
            _invalid()
        end = position + _decimal(body[position:blank])
        equals = body.find(b"=", blank + 1, end)
        if equals <= blank + 1 or end > len(body) or body[end - 1 : end] != b"\n" or equals >= end:
            _invalid()
        records.append((body[blank + 1 : equals], body[equals + 1 : end - 1]))
        position = end
    return records


def _pax_record(key: bytes, value: bytes) -> bytes:
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    if rest + len(str(length)) != length:
        length += 1
    return b"%d %b=%b\n" % (length, key, value)


def _sparse(entry: Entry, real_size: int, numbers: Sequence[int], stored: int) -> Entry:
    if len(numbers) % 2 or not 0 <= real_size <= _MAX_SIZE:
        _invalid()
    segments = tuple(zip(numbers[::2], numbers[1::2], strict=True))
    end = 0
    for offset, size in segments:
        if offset < end or size < 0:
            _invalid()
        end = offset + size
    if end > real_size or sum(size for _, size in segments) != stored:
        _invalid()
    return entry._replace(size=real_size, segments=segments)


def _encode(
    name: bytes,
    type_: bytes,
    size: int,
    mode: int,
    uid: int,
    gid: int,
    mtime_s: int,
    link: bytes,
    major: int,
    minor: int,
) -> bytes:
    front = b"%b%07o\0%07o\0%07o\0%011o\0%011o\0" % (name.ljust(100, b"\0"), mode, uid, gid, size, mtime_s)
    rest = b"%b%bustar\x0000%b%07o\0%07o\0%b" % (type_, link.ljust(100, b"\0"), bytes(64), major, minor, bytes(167))
    return b"%b%06o\0 %b" % (front, sum(front) + sum(rest) + 8 * 0x20, rest)


def show(name: bytes) -> str:
    """A name for a message, quoted, whatever bytes it has."""
    return '"' + name.decode("utf-8", "backslashreplace").replace("\0", "\\0") + '"'


def _invalid() -> NoReturn:
    raise BadArchive("archive/tar: invalid tar header")


def _truncated() -> NoReturn:
    raise BadArchive("unexpected EOF")

"""EROFS images that hold names and attributes only: the files' contents stay where they are, in other files.

Written from the on-disk format as the kernel documents it (filesystems/erofs.rst, fs/erofs/erofs_fs.h). Of its many
forms an index needs one each: extended inodes, contents as one chunk of an external device, attributes and short
directories and link targets behind their inode, long ones in blocks at the image's end. Blocks have 512 bytes, since
that is what tar aligns contents to; a node's number is its offset in the image divided by 32.

    0 nothing · 1024 superblock · 1152 device table · inodes · blocks of long directories and links

The result depends on nothing but the tree: equal trees give equal images.
"""

import os
import stat
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

BLOCK_BYTES = 512
MAX_DEVICE_BYTES = ((1 << 32) - 1) * BLOCK_BYTES
"""What a block address reaches."""
MAX_XATTR_BYTES = 1 << 16

_SUPERBLOCK = 1024
_DEVICES = 1152
_SLOT = 128
_UNIT = 32
_INODE = struct.Struct("<HHHHQIIIIqII16x")
_DIRENT = struct.Struct("<QHBB")
_CHUNK = struct.Struct("<HHI")
_XATTR_HEADER = bytes(12)
_MAGIC = 0xE0F5E1E2
_CHECKSUM, _MTIME = 1, 2
_EXTENDED = 1
_PLAIN, _INLINE, _CHUNKED = 0, 2, 4
_NO_BLOCK = 0xFFFFFFFF
_WIDE_CHUNKS = 0x20
_MAX_CHUNK_BITS = 31
_PREFIXES = (
    (b"user.", 1),
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"trusted.", 4),
    (b"security.", 6),
)
_TYPES = {
    stat.S_IFREG: 1,
    stat.S_IFDIR: 2,
    stat.S_IFCHR: 3,
    stat.S_IFBLK: 4,
    stat.S_IFIFO: 5,
    stat.S_IFSOCK: 6,
    stat.S_IFLNK: 7,
}


@dataclass(slots=True, eq=False)
class Node:
    """A file of any kind. A node that stands under several names is a hard-linked file."""

    mode: int
    """Type and permission bits."""
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    size: int = 0
    """Of a regular file's content."""
    device: int = 0
    """Which external device has the content, from 1 on."""
    offset: int = 0
    """Where in it, a multiple of the block size."""
    rdev: int = 0
    """Of a device file, as ``os.makedev``."""
    target: bytes = b""
    """Of a symbolic link."""
    children: "dict[bytes, Node] | None" = None
    """Of a directory."""
    xattrs: dict[bytes, bytes] | None = None
    links: int = 1
    """Names of a file that is not a directory."""

    @property
    def is_directory(self) -> bool:
        return self.children is not None


@dataclass(slots=True)
class _Place:
    """Where a node goes."""

    node: Node
    parent: "_Place | None"
    xattrs: bytes
    position: int = 0
    tail: int = 0
    """Bytes of a directory or a link target."""
    block: int = -1
    """First block of the tail, unless it is behind the inode."""
    blocks: list[list[bytes]] = field(default_factory=list[list[bytes]])
    """A directory's names, block by block."""
    below: "dict[bytes, _Place]" = field(default_factory=dict[bytes, "_Place"])

    @property
    def number(self) -> int:
        return self.position // _UNIT


def storable(name: bytes) -> bool:
    """Whether an extended attribute of this name has a place in the format."""
    return any(
        name.startswith(prefix) and len(name) > len(prefix) if prefix.endswith(b".") else name == prefix
        for prefix, _ in _PREFIXES
    )


def build(root: Node, *, uuid: bytes, devices: Sequence[int]) -> bytes:
    """The image of a tree. ``uuid``: 16 bytes, not all zero, or overlayfs has no stable inode numbers.

    ``devices``: the length in bytes of each external device, at most ``MAX_DEVICE_BYTES``.
    """
    places = _arrange(root, _DEVICES + _SLOT * len(devices))
    end = _ceil(_end_of(places[-1]), BLOCK_BYTES)
    for place in places:
        if place.block == 0:
            place.block = end // BLOCK_BYTES
            end += _ceil(place.tail, BLOCK_BYTES)
    image = bytearray(end)
    for place in places:
        _write(image, place)
    _write_superblock(image, places[0].number, len(places), uuid, devices)
    return bytes(image)


def _arrange(root: Node, position: int) -> list[_Place]:
    """Give every inode its position, breadth first, the root first: its number has but 16 bits."""
    first = _Place(root, None, _encode_xattrs(root))
    places = [first]
    seen: dict[int, _Place] = {}
    for place in places:  # grows while it is walked
        node = place.node
        if node.children is not None:
            _divide(place, node.children)
            for name, child in sorted(node.children.items()):
                known = seen.get(id(child)) if child.links > 1 else None
                if known is None:
                    known = _Place(child, place, _encode_xattrs(child))
                    places.append(known)
                    if child.links > 1:
                        seen[id(child)] = known
                place.below[name] = known
        else:
            place.tail = len(node.target)
        position = _ceil(position, _UNIT)
        head = _INODE.size + len(place.xattrs)
        if place.tail:
            # A tail behind its inode lies within one block.
            if (position + head) % BLOCK_BYTES + place.tail > BLOCK_BYTES and head + place.tail <= BLOCK_BYTES:
                position = _ceil(position, BLOCK_BYTES)
            if (position + head) % BLOCK_BYTES + place.tail > BLOCK_BYTES:
                place.block = 0  # behind the inodes, see ``build``
        place.position = position
        position = _end_of(place)
    return places


def _end_of(place: _Place) -> int:
    end = place.position + _INODE.size + len(place.xattrs)
    if place.node.size:
        return _ceil(end, _CHUNK.size) + _CHUNK.size * _chunks(place.node.size)
    return end if place.block == 0 else end + place.tail


def _divide(place: _Place, children: dict[bytes, Node]) -> None:
    names = sorted([b".", b"..", *children])
    block: list[bytes] = []
    used = 0
    for name in names:
        if used + _DIRENT.size + len(name) > BLOCK_BYTES:
            place.blocks.append(block)
            block, used = [], 0
        block.append(name)
        used += _DIRENT.size + len(name)
    place.blocks.append(block)
    place.tail = (len(place.blocks) - 1) * BLOCK_BYTES + used


def _write(image: bytearray, place: _Place) -> None:
    node = place.node
    kind = stat.S_IFMT(node.mode)
    size, union, links = place.tail, _NO_BLOCK, node.links
    layout = _PLAIN
    if node.children is not None:
        links = 2 + sum(child.is_directory for child in node.children.values())
    if place.tail:
        layout, union = (_INLINE, _NO_BLOCK) if place.block < 0 else (_PLAIN, place.block)
    elif node.size:
        size, layout, union = node.size, _CHUNKED, _WIDE_CHUNKS | _chunk_bits(node.size)
    elif kind in (stat.S_IFCHR, stat.S_IFBLK):
        union = _encode_device(node.rdev)
    elif kind != stat.S_IFREG:
        union = 0
    seconds, nanoseconds = divmod(node.mtime_ns, 1_000_000_000)
    _INODE.pack_into(
        image,
        place.position,
        _EXTENDED | layout << 1,
        1 + (len(place.xattrs) - len(_XATTR_HEADER)) // 4 if place.xattrs else 0,
        node.mode,
        0,
        size,
        union,
        place.number & 0xFFFFFFFF,
        node.uid,
        node.gid,
        seconds,
        nanoseconds,
        links,
    )
    at = place.position + _INODE.size
    image[at : at + len(place.xattrs)] = place.xattrs
    at += len(place.xattrs)
    if place.tail:
        tail = node.target if node.children is None else _directory(place)
        if place.block >= 0:
            at = place.block * BLOCK_BYTES
        image[at : at + len(tail)] = tail
    elif node.size:
        at = _ceil(at, _CHUNK.size)
        step = 1 << _chunk_bits(node.size)
        for number in range(_chunks(node.size)):
            _CHUNK.pack_into(image, at, 0, node.device, node.offset // BLOCK_BYTES + number * step)
            at += _CHUNK.size


def _directory(place: _Place) -> bytes:
    parts: list[bytes] = []
    for names in place.blocks:
        offset = _DIRENT.size * len(names)
        entries: list[bytes] = []
        for name in names:
            if name == b".":
                found = place
            elif name == b"..":
                found = place.parent or place
            else:
                found = place.below[name]
            entries.append(_DIRENT.pack(found.number, offset, _TYPES[stat.S_IFMT(found.node.mode)], 0))
            offset += len(name)
        parts.append(b"".join([*entries, *names]))
    return b"".join([*(part.ljust(BLOCK_BYTES, b"\0") for part in parts[:-1]), parts[-1]])


def _write_superblock(image: bytearray, root: int, inodes: int, uuid: bytes, devices: Sequence[int]) -> None:
    blocks = len(image) // BLOCK_BYTES
    head = (_MAGIC, 0, _CHECKSUM | _MTIME, BLOCK_BYTES.bit_length() - 1, 0, root, inodes, 0, 0, blocks, 0, 0, uuid)
    struct.pack_into("<IIIBBHQQIIII16s16x", image, _SUPERBLOCK, *head)
    # Chunked files, a device table; no compression.
    struct.pack_into("<IHHH", image, _SUPERBLOCK + 0x50, 0xC, 0, len(devices), _DEVICES // _SLOT)
    start = blocks
    for number, device_bytes in enumerate(devices):
        device_blocks = -(-device_bytes // BLOCK_BYTES)
        struct.pack_into(
            "<IIHH",
            image,
            _DEVICES + number * _SLOT + 64,
            device_blocks & 0xFFFFFFFF,
            start & 0xFFFFFFFF,
            device_blocks >> 32,
            start >> 32,
        )
        start += device_blocks
    # Up to the end of the superblock's block, its own field being zero.
    struct.pack_into("<I", image, _SUPERBLOCK + 4, _crc32c(image[_SUPERBLOCK : 3 * BLOCK_BYTES]))


def _encode_xattrs(node: Node) -> bytes:
    if not node.xattrs:
        return b""
    parts: list[bytes] = [_XATTR_HEADER]
    for name, value in sorted(node.xattrs.items()):
        prefix, number = next((prefix, number) for prefix, number in _PREFIXES if name.startswith(prefix))
        rest = name.removeprefix(prefix)
        entry = struct.pack("<BBH", len(rest), number, len(value)) + rest + value
        parts.append(entry.ljust(_ceil(len(entry), 4), b"\0"))
    return b"".join(parts)


def _encode_device(rdev: int) -> int:
    """include/linux/kdev_t.h, new_encode_dev."""
    major, minor = os.major(rdev), os.minor(rdev)
    return minor & 0xFF | major << 8 | (minor & ~0xFF) << 12


def _chunk_bits(size: int) -> int:
    return min(max(0, (size - 1).bit_length() - 9), _MAX_CHUNK_BITS)


def _chunks(size: int) -> int:
    return -(-size // (BLOCK_BYTES << _chunk_bits(size)))


def _ceil(number: int, step: int) -> int:
    return -(-number // step) * step


def _crc_table() -> list[int]:
    table: list[int] = []
    for number in range(256):
        for _ in range(8):
            number = number >> 1 ^ (0x82F63B78 if number & 1 else 0)
        table.append(number)
    return table


_CRC_TABLE = _crc_table()


def _crc32c(data: bytes | bytearray) -> int:
    """Castagnoli's, without the inversion at the end."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _CRC_TABLE[(crc ^ byte) & 0xFF]
    return crc

"""A root file system out of the host's own programs: what ``compatd demo`` runs when no registry answers.

Programs are taken with their interpreter and the shared libraries that they name, found as the dynamic linker
finds them (ld.so(8)), each at the path at which it was found.
"""

import io
import os
import shutil
import struct
import tarfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

PROGRAMS = "sh cat chmod cp echo env hostname id ln ls mkdir mv ps pwd rm rmdir sleep stat touch true uname wc".split()
FOLDERS = ("dev", "etc", "proc", "root", "sys", "tmp", "usr/local/bin", "var")

# include/uapi/linux/elf.h
_PT_LOAD, _PT_DYNAMIC, _PT_INTERP = 1, 2, 3
_DT_NULL, _DT_NEEDED, _DT_STRTAB, _DT_RPATH, _DT_RUNPATH = 0, 1, 5, 15, 29
_MAX_SEGMENTS = 1000


class Elf(NamedTuple):
    """What a program or library asks the dynamic linker for."""

    interpreter: str  # empty: it has none
    needed: tuple[str, ...]
    search: tuple[str, ...]  # RPATH or RUNPATH, $ORIGIN not yet replaced


def read_elf(data: bytes) -> Elf:
    """Read the dynamic section; ``ValueError``: not a 64-bit little-endian ELF file, or a damaged one."""
    if data[:6] != b"\x7fELF\x02\x01":
        raise ValueError("not a 64-bit little-endian ELF file")
    try:
        table, entry_bytes, count = *struct.unpack_from("<Q", data, 32), *struct.unpack_from("<HH", data, 54)
        segments = [
            struct.unpack_from("<IIQQQQ", data, table + number * entry_bytes)  # type, flags, offset, vaddr, paddr, size
            for number in range(min(count, _MAX_SEGMENTS))
        ]
        interpreter = next((data[s[2] : s[2] + s[5]].rstrip(b"\0") for s in segments if s[0] == _PT_INTERP), b"")
        tags = [tag for s in segments if s[0] == _PT_DYNAMIC for tag in _dynamic(data, s[2], s[5])]
        strings = next((value for tag, value in tags if tag == _DT_STRTAB), 0)
        # The string table is told by its address; the segment that holds it says where that is in the file.
        base = next((s[2] + strings - s[3] for s in segments if s[0] == _PT_LOAD and s[3] <= strings < s[3] + s[5]), 0)

        def text(offset: int) -> str:
            return data[base + offset : data.index(b"\0", base + offset)].decode()

        return Elf(
            interpreter.decode(),
            tuple(text(value) for tag, value in tags if tag == _DT_NEEDED),
            tuple(part for tag, value in tags if tag in (_DT_RPATH, _DT_RUNPATH) for part in text(value).split(":")),
        )
    except (struct.error, UnicodeDecodeError, OverflowError) as error:
        raise ValueError("a damaged ELF file") from error


def _dynamic(data: bytes, offset: int, size: int) -> Iterator[tuple[int, int]]:
    for position in range(offset, offset + size, 16):
        tag, value = struct.unpack_from("<QQ", data, position)
        if tag == _DT_NULL:
            return
        yield tag, value


def closure(programs: Iterable[str]) -> list[str]:
    """The given files and every file that they need to run, by absolute path; missing libraries are left out."""
    folders = [str(folder) for folder in _linker_folders()]
    found: dict[str, None] = {}
    waiting = list(programs)
    while waiting:
        path = waiting.pop()
        if path in found or not os.path.isfile(path):
            continue
        found[path] = None
        try:
            elf = read_elf(Path(path).read_bytes())
        except ValueError:
            continue  # a script
        origin = os.path.dirname(os.path.realpath(path))
        search = [part.replace("$ORIGIN", origin).replace("${ORIGIN}", origin) for part in elf.search]
        waiting += [elf.interpreter] if elf.interpreter else []
        for name in elf.needed:
            places = (f"{folder}/{name}" for folder in (*search, *folders))
            waiting += [place for place in places if os.path.isfile(place)][:1]
    return list(found)


def _linker_folders() -> Iterator[Path]:
    pending = [Path("/etc/ld.so.conf")]
    while pending:
        try:
            lines = pending.pop().read_text().splitlines()
        except OSError:
            continue
        for line in lines:
            words = line.partition("#")[0].split()
            if words[:1] == ["include"]:
                pending += [match for pattern in words[1:] for match in sorted(Path("/").glob(pattern.lstrip("/")))]
            elif words:
                yield Path(words[0])
    machine = os.uname().machine
    for folder in (f"lib/{machine}-linux-gnu", f"usr/lib/{machine}-linux-gnu", "lib64", "usr/lib64", "lib", "usr/lib"):
        yield Path("/", folder)


def root_tar() -> bytes:
    """The root file system as a tar: ``PROGRAMS``, as far as the host has them. ``OSError``: not even a shell."""
    places = [place for name in PROGRAMS if (place := shutil.which(name, path="/bin:/usr/bin:/sbin:/usr/sbin"))]
    if not any(os.path.basename(place) == "sh" for place in places):
        raise FileNotFoundError("this machine has no shell in /bin")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for folder in FOLDERS:
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o1777 if folder == "tmp" else 0o755
            archive.addfile(entry)
        _add(archive, "etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n", 0o644)
        _add(archive, "etc/group", b"root:x:0:\n", 0o644)
        for path in closure(places):
            _add(archive, path.lstrip("/"), Path(path).read_bytes(), 0o755)
    return buffer.getvalue()


def _add(archive: tarfile.TarFile, name: str, content: bytes, mode: int) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), mode
    archive.addfile(entry, io.BytesIO(content))

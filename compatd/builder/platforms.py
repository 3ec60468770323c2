"""Platform names, as in ``--platform``."""

import re

from compatd.builder.ports import Platform
from compatd.builder.shellwords import quote
from compatd.errors import InvalidParameter

_PLATFORM_PART = re.compile(r"[A-Za-z0-9_.-]+")
_SYSTEMS = {"linux", "windows", "darwin", "freebsd", "netbsd", "openbsd", "solaris", "android", "plan9", "js", "wasip1"}
_ARCHITECTURES = {
    "386": ("386", ""),
    "i386": ("386", ""),
    "amd64": ("amd64", ""),
    "x86_64": ("amd64", ""),
    "x86-64": ("amd64", ""),
    "arm64": ("arm64", ""),
    "aarch64": ("arm64", ""),
    "arm": ("arm", "v7"),
    "armhf": ("arm", "v7"),
    "armel": ("arm", "v6"),
    "ppc64le": ("ppc64le", ""),
    "riscv64": ("riscv64", ""),
    "s390x": ("s390x", ""),
    "mips64le": ("mips64le", ""),
    "loong64": ("loong64", ""),
}


def parse_platform(text: str) -> Platform:
    """A platform as containerd's platforms.Parse reads it. ``InvalidParameter`` with its words."""
    parts = text.split("/")
    shown = quote(text)
    for part in parts:
        if not _PLATFORM_PART.fullmatch(part):
            raise InvalidParameter(
                f"{quote(part)} is an invalid component of {shown}: platform specifier component must match "
                f"{quote('^[A-Za-z0-9_.-]+$')}: invalid argument"
            )
    names = [part.lower() for part in parts]
    if len(names) == 1:
        if names[0] in _SYSTEMS:
            return Platform(names[0], "amd64")
        if names[0] in _ARCHITECTURES:
            return Platform("linux", *_ARCHITECTURES[names[0]])
        raise InvalidParameter(f"{shown}: unknown operating system or architecture: invalid argument")
    if len(names) > 3:
        raise InvalidParameter(f"{shown}: cannot parse platform specifier: invalid argument")
    architecture, variant = _ARCHITECTURES.get(names[1], (names[1], ""))
    if len(names) == 3:
        variant = "" if (architecture, names[2]) == ("arm64", "v8") else names[2]
    return Platform(names[0], architecture, variant)

"""Options of the local driver: what may be asked for, and the mount it comes down to.

``type``, ``device`` and ``o`` are mount(8)'s; a volume that has them is mounted while containers use it. The mount is
made where nobody sees it and lives as long as somebody holds it (linux.assembly): the host's tree never shows it, and
nothing has to be undone after a crash. Texts are Docker's (moby volume/local/local_unix.go and moby/sys/mount).
"""

import ipaddress
import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from compatd.errors import InvalidParameter, SystemFailure
from compatd.linux import assembly, syscalls

_REQUIRED = {"type": ("device",), "o": ("device", "type"), "device": ("type",), "size": ()}
_SIZE = re.compile(r"([0-9]{1,18}(?:\.[0-9]{1,18})?) ?([kKmMgGtTpP])?i?[bB]?")
_UNITS = {unit: 1024**power for power, unit in enumerate("kmgtp", 1)}

_MS_DIRSYNC = 0x80  # include/uapi/linux/mount.h
_MS_MANDLOCK = 0x40
# What an option does to the flags: (set, clear). Everything else is for the file system itself.
_FLAGS = {
    "defaults": (0, 0),
    "ro": (syscalls.MS_RDONLY, 0),
    "rw": (0, syscalls.MS_RDONLY),
    "suid": (0, syscalls.MS_NOSUID),
    "nosuid": (syscalls.MS_NOSUID, 0),
    "dev": (0, syscalls.MS_NODEV),
    "nodev": (syscalls.MS_NODEV, 0),
    "exec": (0, syscalls.MS_NOEXEC),
    "noexec": (syscalls.MS_NOEXEC, 0),
    "sync": (syscalls.MS_SYNCHRONOUS, 0),
    "async": (0, syscalls.MS_SYNCHRONOUS),
    "dirsync": (_MS_DIRSYNC, 0),
    "remount": (syscalls.MS_REMOUNT, 0),
    "mand": (_MS_MANDLOCK, 0),
    "nomand": (0, _MS_MANDLOCK),
    "atime": (0, syscalls.MS_NOATIME),
    "noatime": (syscalls.MS_NOATIME, 0),
    "diratime": (0, syscalls.MS_NODIRATIME),
    "nodiratime": (syscalls.MS_NODIRATIME, 0),
    "bind": (syscalls.MS_BIND, 0),
    "rbind": (syscalls.MS_BIND | syscalls.MS_REC, 0),
    "relatime": (syscalls.MS_RELATIME, 0),
    "norelatime": (0, syscalls.MS_RELATIME),
    "strictatime": (syscalls.MS_STRICTATIME, 0),
    "nostrictatime": (0, syscalls.MS_STRICTATIME),
    # How mounts spread matters where a container has it, not in the place where it is made.
    "private": (0, 0),
    "rprivate": (0, 0),
    "shared": (0, 0),
    "rshared": (0, 0),
    "slave": (0, 0),
    "rslave": (0, 0),
    "unbindable": (0, 0),
    "runbindable": (0, 0),
}


def check_options(name: str, options: Mapping[str, str]) -> None:
    """``InvalidParameter`` with Docker's text."""

    def refuse(reason: str) -> InvalidParameter:
        return InvalidParameter(f"create {name}: {reason}")

    for option in options:
        if option not in _REQUIRED:
            raise refuse(f'invalid option: "{option}"')
    if any("\0" in value for value in options.values()):
        raise refuse("an option holds a NUL character")
    device = options.get("device", "") if options.get("type") == "cifs" else ""
    if (port := re.fullmatch(r"//[^/]*?:([^/:\]]*)(?:/.*)?", device, re.DOTALL)) is not None:
        if not re.fullmatch("[0-9]*", port[1]):
            raise refuse(f'error parsing mount device url: parse "{device}": invalid port ":{port[1]}" after host')
        if port[1]:
            raise refuse("port not allowed in CIFS device URL, include 'port' in 'o='")
    if (size := options.get("size")) is not None:
        match = _SIZE.fullmatch(size)
        if match is None:
            raise refuse(f"invalid size: '{size}'")
        if float(match[1]) * _UNITS.get((match[2] or "").lower(), 1) >= 1:
            raise refuse("quota size requested but no quota support")
    for option in ("device", "type", "o"):
        for required in _REQUIRED[option] if option in options else ():
            if required not in options:
                raise refuse(f'missing required option: "{required}"')


def needs_mount(options: Mapping[str, str] | None) -> bool:
    """Whether a volume with these options is more than its directory."""
    return bool(options and (options.get("device") or options.get("type")))


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One call of mount(2)."""

    device: str
    fstype: str
    flags: int
    data: str


def read_plan(options: Mapping[str, str]) -> Plan | None:
    """What to mount (moby/sys/mount, parseOptions and mount); None: nothing, which is what it makes of a device
    ``none`` without options."""
    flags = 0
    data: list[str] = []
    for option in options.get("o", "").split(","):
        if option in _FLAGS:
            added, cleared = _FLAGS[option]
            flags = (flags | added) & ~cleared
        else:
            data.append(option)
    plan = Plan(device=options["device"], fstype=options.get("type", ""), flags=flags, data=",".join(data))
    is_remount = plan.device == "none" or flags & syscalls.MS_REMOUNT
    return None if is_remount and not plan.data else plan


def mount(path: str, options: Mapping[str, str]) -> int:
    """Mount what ``options`` say as if on ``path``, the volume's directory; a detached mount that the caller owns.

    ``SystemFailure`` in Docker's words, a password left out. Blocks, with a file server for as long as that takes.
    """
    if not options.get("device"):
        raise SystemFailure("missing device in volume options")
    plan = read_plan(_resolved(options))
    if plan is None:
        return assembly.clone_tree(path)
    try:
        return assembly.mount_detached(plan.device, path, plan.fstype, plan.flags, plan.data)
    except OSError as error:
        text = f"mount {plan.device}:{path}"
        text += f", flags: 0x{plan.flags:x}" if plan.flags else ""
        text += f", data: {plan.data}" if plan.data else ""
        reason = os.strerror(error.errno or 0)
        text = f"failed to mount local volume: {text}: {reason[:1].lower()}{reason[1:]}"
        password = next((word for word in options.get("o", "").split(",") if word.startswith("password=")), "")
        raise SystemFailure(text.replace(password, "password=********") if password[9:] else text) from error


def _resolved(options: Mapping[str, str]) -> Mapping[str, str]:
    """Names of file servers as addresses: the kernel knows no names."""
    if options.get("type") not in ("nfs", "cifs"):
        return options
    given = options.get("o", "")
    address = next((word[5:] for word in given.split(",") if word.startswith("addr=")), "")
    if address and not _is_address(address, version=4):
        return {**options, "o": given.replace(f"addr={address}", f"addr={_lookup(address)}", 1)}
    if options["type"] == "cifs":
        host = urlsplit(options["device"]).hostname or ""
        if host and not _is_address(host):
            return {**options, "device": unquote(options["device"]).replace(host, _lookup(host), 1)}
    return options


def _lookup(host: str) -> str:
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise SystemFailure(f"error resolving passed in network volume address: lookup {host}: no such host") from error
    found.sort(key=lambda entry: entry[0] != socket.AF_INET)  # Go's preference
    return str(found[0][4][0])


def _is_address(text: str, version: int | None = None) -> bool:
    try:
        return ipaddress.ip_address(text).version == (version or ipaddress.ip_address(text).version)
    except ValueError:
        return False

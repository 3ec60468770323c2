"""``compatd doctor``: what this machine can do for the engine, what it cannot, and how to get the rest.

Every finding is tried out rather than guessed from version numbers, as far as it can be without leaving a trace:
in namespaces of a thread's own, with mounts that are never attached, in a folder that is removed.
"""

import argparse
import json
import os
import platform
import shutil
import socket
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from ipaddress import IPv4Interface
from pathlib import Path
from typing import Literal

from compatd.images import indexes
from compatd.linux import syscalls
from compatd.linux.threads import on_thread
from compatd.network import bridge, nat, netns
from compatd.runtime.host import Host, probe_host

Status = Literal["ok", "missing", "limited"]

_CAPABILITIES = {  # include/uapi/linux/capability.h; what the engine itself cannot do without
    "CHOWN": 0,
    "DAC_OVERRIDE": 1,
    "FOWNER": 3,
    "KILL": 5,
    "SETGID": 6,
    "SETUID": 7,
    "NET_ADMIN": 12,
    "SYS_CHROOT": 18,
    "SYS_ADMIN": 21,
    "MKNOD": 27,
}
_NAMESPACES = {
    "mount": syscalls.CLONE_NEWNS,
    "pid": syscalls.CLONE_NEWPID,
    "network": syscalls.CLONE_NEWNET,
    "uts": syscalls.CLONE_NEWUTS,
    "ipc": syscalls.CLONE_NEWIPC,
    "cgroup": syscalls.CLONE_NEWCGROUP,
}
_OLDEST_KERNEL = (5, 12)  # mount_setattr(2); openat2(2), pidfds, close_range(2) and the new mount API are older
_CONTROLLERS = {  # controller: the options that need it
    "memory": "-m, --memory-swap, --memory-reservation",
    "cpu": "--cpus, --cpu-shares, --cpu-quota",
    "pids": "--pids-limit",
    "cpuset": "--cpuset-cpus, --cpuset-mems",
    "blkio": "--blkio-weight, --device-read-bps and its like",
}
_FREE_BYTES = 1 << 30
_MEMORY_BYTES = 256 << 20
_PROBE_SUBNET = IPv4Interface("192.0.2.1/24")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One line of the report. ``missing`` keeps the engine from working, ``limited`` from doing some of it."""

    name: str
    status: Status
    detail: str
    remedy: str = ""


def main(arguments: Sequence[str]) -> int:
    """Print the report. 0: everything needed is there; 1: the engine cannot work here."""
    parser = argparse.ArgumentParser(prog="compatd doctor", description="What this machine can do for compatd.")
    parser.add_argument(
        "--data-root", default="/var/lib/compatd", help="the folder that would hold images (%(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print the findings as a JSON document")
    options = parser.parse_args(arguments)
    findings = list(examine(Path(options.data_root)))
    able = all(finding.status != "missing" for finding in findings)
    if options.json:
        print(json.dumps({"able": able, "findings": [asdict(finding) for finding in findings]}, indent=2))
    else:
        for finding in findings:
            print(f"{finding.status:8} {finding.name}: {finding.detail}")
            if finding.remedy:
                print(f"{'':8}   → {finding.remedy}")
        print("\nThis machine can run containers." if able else "\nThis machine cannot run containers as it is.")
    return 0 if able else 1


def examine(data_root: Path) -> Iterator[Finding]:
    """All findings, the basic ones first."""
    host = probe_host()
    yield _python()
    yield _kernel(host)
    privileges = _privileges(host)
    yield privileges
    if privileges.status == "missing":
        return  # everything else would only repeat it
    yield _namespaces()
    yield _layers(data_root)
    yield from _cgroups(host)
    yield _seccomp(host)
    yield _apparmor(host)
    yield from _network()
    yield from _room(data_root, host)
    yield _terminals()
    yield _address()
    yield _client()


def _python() -> Finding:
    version = platform.python_version()
    return Finding(name="python", status="ok", detail=f"{version}, {platform.machine()}")


def _kernel(host: Host) -> Finding:
    if host.kernel >= _OLDEST_KERNEL:
        return Finding(name="kernel", status="ok", detail=host.kernel_release)
    oldest = ".".join(map(str, _OLDEST_KERNEL))
    return Finding(
        name="kernel",
        status="missing",
        detail=f"{host.kernel_release} is older than {oldest}",
        remedy="install a newer kernel; every distribution in support has one",
    )


def _privileges(host: Host) -> Finding:
    lacking = [name for name, number in _CAPABILITIES.items() if not host.capabilities >> number & 1]
    if os.geteuid() == 0 and not lacking:
        return Finding(name="privileges", status="ok", detail="root, with the capabilities that the engine uses")
    if os.geteuid() != 0:
        return Finding(name="privileges", status="missing", detail="not root", remedy="run it with sudo, or as root")
    return Finding(
        name="privileges",
        status="missing",
        detail=f"root without {', '.join(f'CAP_{name}' for name in lacking)}",
        remedy="this looks like a container: start that with --privileged",
    )


def _namespaces() -> Finding:
    refused: list[str] = []
    for name, flag in _NAMESPACES.items():
        try:
            on_thread(partial(syscalls.unshare, flag), name="doctor")
        except OSError as error:
            refused.append(f"{name} ({error.strerror})")
    if not refused:
        return Finding(name="namespaces", status="ok", detail=", ".join(_NAMESPACES))
    return Finding(
        name="namespaces",
        status="missing",
        detail=f"refused: {', '.join(refused)}",
        remedy="enable CONFIG_NAMESPACES; inside a container, start that with --privileged",
    )


def _layers(data_root: Path) -> Finding:
    parent = _existing(data_root)
    try:
        with tempfile.TemporaryDirectory(prefix=".compatd-doctor-", dir=parent) as folder:
            mount_overlay(Path(folder))
            reason = indexes.probe(Path(folder))
        how = f"layers are unpacked: {reason}" if reason else "layers are mounted without unpacking"
        return Finding(name="image layers", status="ok", detail=f"overlayfs works on {parent}; {how}")
    except OSError as error:
        return Finding(
            name="image layers",
            status="missing",
            detail=f"no overlayfs with its upper directory on {parent}: {error.strerror}",
            remedy="load the module overlay; where the folder itself lies on an overlay (as in a container), give a "
            "--data-root on a disk, a volume or a tmpfs",
        )


def mount_overlay(folder: Path) -> None:
    """Try an overlay whose directories are made in the empty ``folder``; ``OSError`` when that cannot be."""
    for name in ("lower", "upper", "work"):
        (folder / name).mkdir()
    context = syscalls.fsopen("overlay")
    try:
        for key, name in (("lowerdir", "lower"), ("upperdir", "upper"), ("workdir", "work")):
            syscalls.fsconfig(context, syscalls.FSCONFIG_SET_STRING, key, str(folder / name))
        syscalls.fsconfig(context, syscalls.FSCONFIG_CMD_CREATE)
        os.close(syscalls.fsmount(context))  # never attached: nobody else sees it
    finally:
        os.close(context)


def _cgroups(host: Host) -> Iterator[Finding]:
    layout = host.cgroup
    if not layout.mount_points:
        yield Finding(
            name="cgroups",
            status="missing",
            detail="no cgroup hierarchy is mounted",
            remedy="mount -t cgroup2 none /sys/fs/cgroup",
        )
        return
    what = (
        "version 2"
        if layout.version == 2
        else "version 1" + (" with an empty version 2 beside it" if layout.unified else "")
    )
    closed = [root for root in layout.mount_points if not os.access(root, os.W_OK)]
    if closed:
        yield Finding(
            name="cgroups",
            status="missing",
            detail=f"{what}, not writable: {', '.join(closed)}",
            remedy="remount it read-write; inside a container, start that with --privileged --cgroupns private",
        )
        return
    yield Finding(name="cgroups", status="ok", detail=what)
    names = {"blkio": "io"} if layout.version == 2 else dict[str, str]()
    lacking = [name for name in _CONTROLLERS if names.get(name, name) not in layout.controllers]
    if not lacking:
        yield Finding(name="limits", status="ok", detail=", ".join(_CONTROLLERS))
    for name in lacking:
        yield Finding(
            name="limits",
            status="limited",
            detail=f"no {name} controller: {_CONTROLLERS[name]} have no effect or are refused",
            remedy=f"boot with cgroup_enable={name}, or see what disables it in /proc/cmdline",
        )


def _seccomp(host: Host) -> Finding:
    if host.seccomp:
        return Finding(name="seccomp", status="ok", detail="system calls are filtered")
    return Finding(
        name="seccomp",
        status="limited",
        detail="containers run without a system call filter",
        remedy="a kernel with CONFIG_SECCOMP_FILTER",
    )


def _apparmor(host: Host) -> Finding:
    if not host.apparmor:
        return Finding(name="apparmor", status="ok", detail="not used by this machine")
    if host.apparmor_default_profile:
        return Finding(name="apparmor", status="ok", detail=f"profile {host.apparmor_default_profile}")
    return Finding(
        name="apparmor",
        status="limited",
        detail="on, but the profile docker-default is not loaded: containers run unconfined by it",
        remedy="load a profile of that name with apparmor_parser",
    )


def _network() -> Iterator[Finding]:
    try:
        namespace = netns.create()
    except OSError:
        return  # told under namespaces
    try:
        yield _bridges(namespace)
        refusal = netns.run(namespace, nat.probe)
    finally:
        os.close(namespace)
    if refusal is None:
        yield Finding(name="firewall", status="ok", detail="nf_tables with NAT: published ports, a way out")
    else:
        yield Finding(
            name="firewall",
            status="limited",
            detail=refusal,
            remedy="without it, containers have only --network host and none",
        )
    for warning in nat.forward_warnings():
        yield Finding(name="firewall", status="limited", detail=warning, remedy="accept forwarded packets there")
    forwarding = Path("/proc/sys/net/ipv4/ip_forward")
    if forwarding.read_text().strip() == "1" or os.access(forwarding, os.W_OK):
        yield Finding(name="forwarding", status="ok", detail="IPv4 forwarding is on, or can be turned on")
    else:
        yield Finding(
            name="forwarding",
            status="limited",
            detail="IPv4 forwarding is off, and /proc/sys is read-only",
            remedy="sysctl net.ipv4.ip_forward=1",
        )


def _bridges(namespace: int) -> Finding:
    """A bridge and a container's interface on it, made in a namespace that goes away with them."""

    def attempt() -> None:
        bridge.ensure("compatd-probe", [_PROBE_SUBNET], mtu=1500)
        inner = netns.create()
        try:
            bridge.attach(
                inner,
                endpoint_id="0" * 64,
                bridge="compatd-probe",
                interface="eth0",
                addresses=[IPv4Interface("192.0.2.2/24")],
                mac="02:42:c0:00:02:02",
                gateways=[_PROBE_SUBNET.ip],
                mtu=1500,
            )
        finally:
            os.close(inner)

    try:
        netns.run(namespace, attempt)
    except Exception as error:  # whatever it is, it is the finding
        return Finding(
            name="bridge networks",
            status="limited",
            detail=str(error),
            remedy="load the modules bridge and veth; without them, containers have only --network host and none",
        )
    return Finding(name="bridge networks", status="ok", detail="bridges and veth pairs can be made")


def _room(data_root: Path, host: Host) -> Iterator[Finding]:
    parent = _existing(data_root)
    free = shutil.disk_usage(parent).free
    yield _amount("disk", free, _FREE_BYTES, f"free on {parent}", "give a --data-root on a larger disk")
    yield _amount("memory", host.memory_total_bytes, _MEMORY_BYTES, "in all", "")


def _amount(name: str, have: int, wanted: int, where: str, remedy: str) -> Finding:
    detail = f"{have / (1 << 30):.1f} GiB {where}"
    if have >= wanted:
        return Finding(name=name, status="ok", detail=detail)
    return Finding(name=name, status="limited", detail=f"{detail}; little for images", remedy=remedy)


def _terminals() -> Finding:
    if os.path.exists("/dev/ptmx") or os.path.exists("/dev/pts/ptmx"):
        return Finding(name="terminals", status="ok", detail="devpts is there")
    return Finding(
        name="terminals",
        status="limited",
        detail="no devpts: no run -t, no exec -t",
        remedy="mount -t devpts devpts /dev/pts",
    )


def _address() -> Finding:
    path = "/var/run/docker.sock"
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(path)
        except OSError:
            return Finding(name="address", status="ok", detail=f"{path} is free")
    return Finding(
        name="address",
        status="limited",
        detail=f"an engine answers on {path} already",
        remedy="stop it, or start compatd with -H unix:///run/compatd.sock and set DOCKER_HOST to that",
    )


def _client() -> Finding:
    client = shutil.which("docker")
    if client:
        return Finding(name="docker CLI", status="ok", detail=client)
    return Finding(
        name="docker CLI",
        status="ok",
        detail="none on the PATH; compatd does not need it, docker-py and others work without",
        remedy="apt install docker-cli, or your distribution's package of it",
    )


def _existing(path: Path) -> Path:
    """The nearest folder above ``path`` that is there."""
    return next(folder for folder in (path, *path.absolute().parents) if folder.is_dir())

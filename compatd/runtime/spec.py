"""A container in the engine's terms, and what the shim has to do for it.

``build_launch`` and ``build_exec`` are pure: everything they decide follows from a ``ContainerSpec`` and the
``Host``, so the order of a privileged container's mounts is a unit test. What needs a look at the machine
(``devices.expand``, ``cgroups.prepare``) has been done before.

The root is put together in this order (moby daemon/oci_linux.go):
    /proc, /dev with its nodes and links, /dev/pts, /sys, /sys/fs/cgroup, /dev/mqueue, /dev/shm
    the user's binds, volumes and tmpfs, shallow targets first; one on a default's target takes its place
    masked and read-only paths; at last the root itself becomes read-only, if asked for
"""

import base64
import posixpath
import re
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from compatd.errors import SystemFailure
from compatd.linux import syscalls
from compatd.runtime import capabilities, cgroups, devices, seccomp
from compatd.runtime.cgroups import Resources
from compatd.runtime.devices import Device, Rule
from compatd.runtime.host import READONLY_PATHS, Host
from compatd.runtime.oci import create_failed
from compatd.shim import spec as shim

# include/uapi/asm-generic/resource.h
RLIMITS = {
    name: number
    for number, name in enumerate(
        "cpu fsize data stack core rss nproc nofile memlock as locks sigpending msgqueue nice rtprio rttime".split()
    )
}

NEW = shim.Namespace(mode="new")
HOST = shim.Namespace(mode="host")

_NOSUID_NOEXEC_NODEV = syscalls.MS_NOSUID | syscalls.MS_NOEXEC | syscalls.MS_NODEV
_PRIVATE = syscalls.MS_PRIVATE | syscalls.MS_REC
_PROPAGATION = {
    "": syscalls.MS_SLAVE | syscalls.MS_REC,  # runc's own, which volumes have
    "private": syscalls.MS_PRIVATE,
    "rprivate": _PRIVATE,
    "slave": syscalls.MS_SLAVE,
    "rslave": syscalls.MS_SLAVE | syscalls.MS_REC,
    "shared": syscalls.MS_SHARED,
    "rshared": syscalls.MS_SHARED | syscalls.MS_REC,
}
Propagation = Literal["", "private", "rprivate", "slave", "rslave", "shared", "rshared"]

# What a tmpfs option does to the mount's flags: (set, clear).
_TMPFS_FLAGS = {
    "rw": (0, syscalls.MS_RDONLY),
    "ro": (syscalls.MS_RDONLY, 0),
    "exec": (0, syscalls.MS_NOEXEC),
    "noexec": (syscalls.MS_NOEXEC, 0),
    "suid": (0, syscalls.MS_NOSUID),
    "nosuid": (syscalls.MS_NOSUID, 0),
    "dev": (0, syscalls.MS_NODEV),
    "nodev": (syscalls.MS_NODEV, 0),
    "sync": (syscalls.MS_SYNCHRONOUS, 0),
    "async": (0, syscalls.MS_SYNCHRONOUS),
    "atime": (0, syscalls.MS_NOATIME),
    "noatime": (syscalls.MS_NOATIME, 0),
    "diratime": (0, syscalls.MS_NODIRATIME),
    "nodiratime": (syscalls.MS_NODIRATIME, 0),
    "relatime": (syscalls.MS_RELATIME, 0),
    "norelatime": (0, syscalls.MS_RELATIME),
    "strictatime": (syscalls.MS_STRICTATIME, 0),
    "nostrictatime": (0, syscalls.MS_STRICTATIME),
    "defaults": (0, 0),
}
_TMPFS_DATA = frozenset({"size", "mode", "uid", "gid", "nr_inodes", "nr_blocks", "mpol"})

_CGROUP_ROOT = "/sys/fs/cgroup"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bind:
    """A file or directory of the host, seen in the container. ``source`` is a host path the engine has checked.

    A read-only bind is so for all mounts below it, where the kernel can, unless ``readonly_recursive`` is off.
    """

    source: str
    target: str
    readonly: bool = False
    readonly_recursive: bool = True
    recursive: bool = True  # take the mounts below source along
    propagation: Propagation = ""
    fd: int | None = None  # index among the launch's descriptors of a detached mount to take in place of source


@dataclass(frozen=True, slots=True, kw_only=True)
class Ulimit:
    """Docker's name (``nofile``), and -1 for no limit."""

    name: str
    soft: int
    hard: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ContainerSpec:
    """Everything about a container that its start depends on. Paths of the host are absolute and the engine's own.

    ``env`` is complete but for HOME. ``seccomp`` is ``None`` (the default profile, unless privileged), ``builtin``,
    ``unconfined`` or a profile's JSON text. ``masked_paths`` and ``readonly_paths`` are ``None`` for Docker's lists.
    ``devices`` come from ``devices.expand`` or, for a privileged container, ``devices.host_devices``. ``files`` are
    binds that a user's mount on the same target takes precedence of (/etc/hosts and its like). ``shm`` is what
    /dev/shm is: a tmpfs of its own, nothing, the host's, or the detached mount that ``shm_fd`` numbers among the
    launch's descriptors.
    """

    id: str
    state_dir: str

    lowers: tuple[str, ...]  # topmost first
    upper: str
    work: str
    volatile: bool = False
    readonly_rootfs: bool = False

    args: tuple[str, ...]
    env: tuple[str, ...] = ()
    cwd: str = "/"
    user: str = ""
    group_add: tuple[str, ...] = ()
    tty: bool = False
    console_size: tuple[int, int] | None = None  # height, width
    open_stdin: bool = False
    stdin_once: bool = False
    init: bool = False

    hostname: str = ""
    domainname: str = ""
    pid: shim.Namespace = field(default_factory=lambda: NEW)
    ipc: shim.Namespace = field(default_factory=lambda: NEW)
    uts: shim.Namespace = field(default_factory=lambda: NEW)
    net: shim.Namespace = field(default_factory=lambda: NEW)
    cgroup: shim.Namespace = field(default_factory=lambda: NEW)

    privileged: bool = False
    cap_add: tuple[str, ...] = ()
    cap_drop: tuple[str, ...] = ()
    seccomp: str | None = None
    no_new_privileges: bool = False
    writable_cgroups: bool | None = None  # as if privileged
    apparmor: str | None = None
    masked_paths: tuple[str, ...] | None = None
    readonly_paths: tuple[str, ...] | None = None
    sysctls: Mapping[str, str] = field(default_factory=dict[str, str])
    ulimits: tuple[Ulimit, ...] = ()
    oom_score_adj: int = 0

    shm: Literal["private", "none", "host", "fd"] = "private"
    shm_fd: int = -1
    shm_size_bytes: int = 64 << 20
    tmpfs: Mapping[str, str] = field(default_factory=dict[str, str])  # target: options, as --tmpfs
    binds: tuple[Bind, ...] = ()
    files: tuple[Bind, ...] = ()
    devices: tuple[Device, ...] = ()
    device_rules: tuple[Rule, ...] = ()

    resources: Resources = field(default_factory=Resources)
    cgroup_parent: str = ""

    log: shim.Log = field(default_factory=lambda: shim.Log(driver="none"))


def build_launch(
    spec: ContainerSpec, host: Host, *, attaches: Sequence[shim.Attach] = (), waits: Sequence[shim.Wait] = ()
) -> shim.Launch:
    """The shim's orders. ``InvalidParameter`` or ``SystemFailure`` with Docker's text for what cannot be.

    Limits that the host cannot set are left out, as ``cgroups.check`` has warned.
    """
    resources, _ = cgroups.check(spec.resources, host)
    place = cgroups.locate(host, spec.id, spec.cgroup_parent)
    cgroups.check_shares(place, resources)
    rules = devices.ALLOW_ALL if spec.privileged else devices.rules(spec.devices, spec.device_rules)
    return shim.Launch(
        id=spec.id,
        state_dir=spec.state_dir,
        namespaces=shim.Namespaces(pid=spec.pid, mnt=NEW, uts=spec.uts, ipc=spec.ipc, net=spec.net, cgroup=spec.cgroup),
        hostname="" if spec.uts["mode"] == "host" else spec.hostname,
        domainname=spec.domainname.encode()[:64].decode(errors="ignore"),
        sysctls=_sysctls(spec, host),
        overlay=_overlay(spec),
        mounts=_mounts(spec, host, place),
        cgroup=cgroups.plan(place, cgroups.inherit_cpuset(place, resources, host), rules),
        process=_process(spec, host),
        init=spec.init,
        open_stdin=spec.open_stdin,
        stdin_once=spec.stdin_once,
        log=spec.log,
        attaches=list(attaches),
        waits=list(waits),
    )


def build_exec(
    spec: ContainerSpec,
    host: Host,
    *,
    exec_id: str,
    args: Sequence[str],
    env: Sequence[str],
    cwd: str,
    user: str,
    tty: bool,
    privileged: bool = False,
    console_size: tuple[int, int] | None = None,
    attach: shim.Attach | None = None,
) -> shim.Exec:
    """One more process in the running container ``spec``.

    A privileged exec has all capabilities and no AppArmor profile, yet keeps the container's seccomp filter, as under
    Docker (moby daemon/exec_linux.go).
    """
    process = _process(spec, host)
    process["args"] = list(args)
    process["env"] = list(env)
    process["cwd"] = cwd or "/"
    process["user"] = user
    process["tty"] = tty
    if privileged:
        process["capabilities"] = _capability_sets(host.capabilities)
        process.pop("apparmor", None)
    process.pop("console_size", None)
    if console_size is not None:
        process["console_size"] = console_size
    place = cgroups.locate(host, spec.id, spec.cgroup_parent)
    result = shim.Exec(
        exec_id=exec_id,
        process=process,
        cgroup_joins=[f"{directory}/cgroup.procs" for directory in place.directories],
    )
    if attach is not None:
        result["attach"] = attach
    return result


def unknown_ulimit(name: str) -> SystemFailure:
    """runc libcontainer/specconv; found at start, as under Docker."""
    return create_failed(f"wrong rlimit value: RLIMIT_{name.upper()}")


def invalid_tmpfs_option(option: str) -> SystemFailure:
    """moby sys/mount, MergeTmpfsOptions; ``option`` without its value."""
    return SystemFailure(f'invalid tmpfs option "{option}"')


def _overlay(spec: ContainerSpec) -> shim.Overlay:
    overlay = shim.Overlay(
        lowers=list(spec.lowers),
        upper=spec.upper,
        work=spec.work,
        volatile=spec.volatile,
        readonly=spec.readonly_rootfs,
    )
    kinds = {bind.propagation.removeprefix("r") for bind in spec.binds}
    # Mounts made on the host later arrive in the container only if its root receives them, too.
    if "shared" in kinds:
        overlay["propagation"] = syscalls.MS_SHARED | syscalls.MS_REC
    elif "slave" in kinds:
        overlay["propagation"] = syscalls.MS_SLAVE | syscalls.MS_REC
    return overlay


def _process(spec: ContainerSpec, host: Host) -> shim.Process:
    held = capabilities.effective(
        add=spec.cap_add, drop=spec.cap_drop, privileged=spec.privileged, available=host.capabilities
    )
    process = shim.Process(
        args=list(spec.args),
        env=list(spec.env),
        cwd=spec.cwd or "/",
        user=spec.user,
        groups=list(spec.group_add),
        capabilities=_capability_sets(held),
        no_new_privileges=spec.no_new_privileges,
        rlimits=[_rlimit(ulimit) for ulimit in spec.ulimits],
        tty=spec.tty,
    )
    process["keyring"] = f"_ses.{spec.id}"
    if spec.oom_score_adj:
        process["oom_score_adj"] = spec.oom_score_adj
    if spec.console_size is not None:
        process["console_size"] = spec.console_size
    filter_ = _seccomp(spec, host, held)
    if filter_ is not None:
        process["seccomp"] = base64.b64encode(filter_.program).decode()
        process["seccomp_flags"] = filter_.flags
    if host.apparmor:
        profile = spec.apparmor or (None if spec.privileged else host.apparmor_default_profile)
        if profile is not None and profile != "unconfined":
            process["apparmor"] = profile
    return process


def _capability_sets(held: int) -> shim.Capabilities:
    # The shim drops effective and permitted for any user but root, as execve(2) would.
    return shim.Capabilities(bounding=held, effective=held, permitted=held, inheritable=0, ambient=0)


def _rlimit(ulimit: Ulimit) -> shim.Rlimit:
    number = RLIMITS.get(ulimit.name.lower())
    if number is None:
        raise unknown_ulimit(ulimit.name)
    return shim.Rlimit(resource=number, soft=ulimit.soft, hard=ulimit.hard)


def _seccomp(spec: ContainerSpec, host: Host, held: int) -> seccomp.Filter | None:
    """moby daemon/seccomp_linux.go, WithSeccomp."""
    if spec.seccomp == "unconfined" or (spec.privileged and spec.seccomp is None):
        return None
    # Docker reads even "builtin" as a profile's text where a container is privileged, and refuses it.
    wanted = None if spec.seccomp == "builtin" and not spec.privileged else spec.seccomp
    if not host.seccomp:
        if wanted is not None:
            raise SystemFailure("seccomp is not enabled in your kernel, cannot run a custom seccomp profile")
        return None
    return seccomp.compile_profile(wanted, capabilities=held, machine=host.machine, kernel=host.kernel)


def _sysctls(spec: ContainerSpec, host: Host) -> dict[str, str]:
    chosen: dict[str, str] = {}
    if spec.domainname and spec.uts["mode"] == "host":
        raise create_failed('sysctl "kernel.domainname" is not in a separate kernel namespace')  # Docker sets it so
    if spec.net["mode"] != "host":
        # Docker lets every container ping and bind low ports.
        if host.unprivileged_port_sysctl:
            chosen["net.ipv4.ip_unprivileged_port_start"] = "0"
        if host.ping_group_sysctl:
            chosen["net.ipv4.ping_group_range"] = "0 2147483647"
    for name, value in spec.sysctls.items():
        # Both spellings, a.b/c as a/b.c, are the kernel's; the dotted one is sysctl's default.
        if (reason := _sysctl_refused(name, spec)) is not None:
            raise create_failed(reason)
        chosen[name] = value
    return chosen


_IPC_SYSCTLS = frozenset("msgmax msgmnb msgmni sem shmall shmmax shmmni shm_rmid_forced".split())


def _sysctl_refused(name: str, spec: ContainerSpec) -> str | None:
    """runc libcontainer/configs/validate, sysctl."""
    if re.fullmatch(r"[A-Za-z0-9_./-]+", name) is None or "../" in f"{name}/":
        return f'sysctl "{name}" is not in a separate kernel namespace'
    path = name.replace("/", ".")
    family, _, rest = path.partition(".")
    if family == "net" and rest:
        return f'sysctl "{name}" not allowed in host network namespace' if spec.net["mode"] == "host" else None
    if (family == "kernel" and rest in _IPC_SYSCTLS) or path.startswith("fs.mqueue."):
        if spec.ipc["mode"] == "host":
            return f'sysctl "{name}" is not allowed in the hosts ipc namespace'
        return None
    if path == "kernel.domainname":
        return f'sysctl "{name}" is not allowed in the hosts uts namespace' if spec.uts["mode"] == "host" else None
    if path == "kernel.hostname":
        return f'sysctl "{name}" is not allowed as it conflicts with the OCI "hostname" field'
    return f'sysctl "{name}" is not in a separate kernel namespace'


def _mounts(spec: ContainerSpec, host: Host, place: cgroups.ContainerCgroup) -> list[shim.MountOp]:
    user = _user_mounts(spec, host)
    taken = {op["target"] for op in user}
    plan: list[shim.MountOp] = []
    for op in _default_mounts(spec, place):
        target = op["target"]
        # A user's /dev brings its own contents; a replaced /sys/fs/cgroup has none of ours below it.
        if target in taken or any(
            target.startswith(f"{parent}/") for parent in ("/dev", _CGROUP_ROOT) if parent in taken
        ):
            continue
        plan.append(op)
        if target == "/dev":
            plan += _dev_contents(spec, host, taken)
    for op in user:
        plan.append(op)
        if op["target"] == "/dev" and op["kind"] == "mount":
            plan += _dev_contents(spec, host, taken)
    if "/dev" in taken or any(not device.path.startswith("/dev/") for device in spec.devices):
        outside = (device for device in spec.devices if not device.path.startswith("/dev/"))
        plan += [_node(device) for device in outside if device.path not in taken]
    if not spec.privileged:
        masked = host.masked_paths if spec.masked_paths is None else spec.masked_paths
        readonly = READONLY_PATHS if spec.readonly_paths is None else spec.readonly_paths
        plan += [shim.MountOp(kind="readonly", target=path) for path in readonly]
        plan += [shim.MountOp(kind="mask", target=path) for path in masked]
    return plan


def _default_mounts(spec: ContainerSpec, place: cgroups.ContainerCgroup) -> Iterable[shim.MountOp]:
    sys_readonly = 0 if spec.privileged else syscalls.MS_RDONLY
    yield _mount("/proc", "proc", _NOSUID_NOEXEC_NODEV)
    yield _mount("/dev", "tmpfs", syscalls.MS_NOSUID | syscalls.MS_STRICTATIME, "mode=755,size=65536k")
    yield _mount(
        "/dev/pts",
        "devpts",
        syscalls.MS_NOSUID | syscalls.MS_NOEXEC,
        "newinstance,ptmxmode=0666,mode=0620,gid=5",
    )
    yield _mount("/sys", "sysfs", _NOSUID_NOEXEC_NODEV | sys_readonly)
    writable = spec.privileged if spec.writable_cgroups is None else spec.writable_cgroups
    yield from _cgroup_view(spec, place, _NOSUID_NOEXEC_NODEV | (0 if writable else syscalls.MS_RDONLY))
    yield _mount("/dev/mqueue", "mqueue", _NOSUID_NOEXEC_NODEV)
    if spec.shm == "host":
        yield shim.MountOp(
            kind="bind", target="/dev/shm", source="/dev/shm", flags=0, recursive=True, propagation=_PRIVATE
        )
    elif spec.shm == "fd":
        yield shim.MountOp(
            kind="bind",
            target="/dev/shm",
            source="/dev/shm",
            fd=spec.shm_fd,
            flags=0,
            recursive=True,
            propagation=_PRIVATE,
        )
    elif spec.shm == "private":
        yield _mount("/dev/shm", "tmpfs", _NOSUID_NOEXEC_NODEV, f"mode=1777,size={spec.shm_size_bytes}", source="shm")


def _cgroup_view(spec: ContainerSpec, place: cgroups.ContainerCgroup, flags: int) -> Iterable[shim.MountOp]:
    """What the container sees of its cgroups: itself as the root, whatever the namespace."""
    layout = place.layout
    private = spec.cgroup["mode"] == "new"
    if layout.version == 2:
        if private:
            yield _mount(_CGROUP_ROOT, "cgroup2", flags, source="cgroup")
        else:
            yield _cgroup_bind(place.processes, _CGROUP_ROOT, flags)
        return
    hierarchies = layout.hierarchies
    if not hierarchies:
        return
    yield _mount(_CGROUP_ROOT, "tmpfs", _NOSUID_NOEXEC_NODEV, "mode=755")
    for hierarchy in hierarchies:
        target = f"{_CGROUP_ROOT}/{hierarchy.name}"
        if private:
            data = hierarchy.options if hierarchy.controllers else f"none,{hierarchy.options}"
            yield _mount(target, "cgroup", flags, data, source="cgroup")
        else:
            yield _cgroup_bind(hierarchy.mount_point + place.path, target, flags)
    for hierarchy in hierarchies:
        # cpu,cpuacct mounted together are found under each name as well.
        for controller in sorted(hierarchy.controllers - {hierarchy.name}):
            if not any(other.name == controller for other in hierarchies):
                yield shim.MountOp(kind="symlink", target=f"{_CGROUP_ROOT}/{controller}", source=hierarchy.name)


def _cgroup_bind(source: str, target: str, flags: int) -> shim.MountOp:
    return shim.MountOp(
        kind="bind", target=target, source=source, flags=flags, recursive=False, propagation=syscalls.MS_PRIVATE
    )


def _dev_contents(spec: ContainerSpec, host: Host, taken: set[str]) -> list[shim.MountOp]:
    """Nodes and links of a fresh /dev. What the user mounts there himself is not made first."""
    nodes = {device.path: device for device in (*devices.DEFAULT_NODES, *spec.devices)}
    links = (
        ("/dev/fd", "/proc/self/fd"),
        ("/dev/stdin", "/proc/self/fd/0"),
        ("/dev/stdout", "/proc/self/fd/1"),
        ("/dev/stderr", "/proc/self/fd/2"),
        ("/dev/ptmx", "pts/ptmx"),
        *((("/dev/core", "/proc/kcore"),) if host.kcore else ()),
    )
    own = {path for path, _ in links}
    return [
        *(
            _node(device)
            for path, device in nodes.items()
            if path.startswith("/dev/") and path not in taken and path not in own
        ),
        *(shim.MountOp(kind="symlink", target=path, source=target) for path, target in links if path not in taken),
    ]


def _node(device: Device) -> shim.MountOp:
    kind = stat.S_IFBLK if device.kind == "b" else stat.S_IFCHR
    return shim.MountOp(
        kind="mknod",
        target=device.path,
        mode=kind | device.mode,
        device=(device.major, device.minor),
        uid=device.uid,
        gid=device.gid,
    )


def _user_mounts(spec: ContainerSpec, host: Host) -> list[shim.MountOp]:
    """Shallow targets first, so that a mount never hides one inside it (moby daemon/volumes.go, mounts.Less)."""
    by_target = {bind.target: _bind(bind, host, readonly=spec.readonly_rootfs) for bind in spec.files}
    by_target.update({target: _tmpfs(target, options) for target, options in spec.tmpfs.items()})
    by_target.update({bind.target: _bind(bind, host) for bind in spec.binds})
    ordered = ((posixpath.normpath(op["target"]), op) for op in by_target.values())
    return [{**op, "target": target} for target, op in sorted(ordered, key=lambda pair: pair[0].count("/"))]


def _bind(bind: Bind, host: Host, *, readonly: bool = False) -> shim.MountOp:
    readonly = readonly or bind.readonly
    flags = syscalls.MS_RDONLY if readonly else 0
    if bind.recursive:
        flags |= syscalls.MS_REC
    op = shim.MountOp(
        kind="bind",
        target=bind.target,
        source=bind.source,
        flags=flags,
        recursive=bind.recursive and readonly and bind.readonly_recursive and host.recursive_readonly,
        propagation=_PROPAGATION[bind.propagation],
    )
    if bind.fd is not None:
        op["fd"] = bind.fd
    return op


def _tmpfs(target: str, options: str) -> shim.MountOp:
    """``--tmpfs``: a later option wins over an earlier one (moby sys/mount, MergeTmpfsOptions)."""
    flags, propagation = _NOSUID_NOEXEC_NODEV, _PRIVATE
    data: dict[str, str] = {}
    for option in options.split(",") if options else ():
        name, equals, _ = option.partition("=")
        if option in _TMPFS_FLAGS:
            added, cleared = _TMPFS_FLAGS[option]
            flags = (flags | added) & ~cleared
        elif option in _PROPAGATION and option:
            propagation = _PROPAGATION[option]
        elif equals and name in _TMPFS_DATA:
            data[name] = option
        else:
            raise invalid_tmpfs_option(name)
    op = _mount(target, "tmpfs", flags, ",".join(data.values()))
    op["propagation"] = propagation
    return op


def _mount(target: str, fstype: str, flags: int, data: str = "", *, source: str = "") -> shim.MountOp:
    op = shim.MountOp(kind="mount", target=target, source=source or fstype, fstype=fstype, flags=flags)
    if data:
        op["data"] = data
    return op

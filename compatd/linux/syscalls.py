"""The system calls that Python's ``os`` lacks, each wrapped once, each raising ``OSError`` with its errno.

No policy lives here. Constants carry their kernel names and the header they come from. Functions take and
return plain descriptors; who closes them is said per function. Safe to use between fork and exec: nothing is
imported or resolved lazily after this module has loaded.
"""

import ctypes
import errno
import os
import platform
import signal
import struct
import sys

# include/uapi/linux/mount.h
MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_SYNCHRONOUS = 0x10
MS_REMOUNT = 0x20
MS_NOATIME = 0x400
MS_NODIRATIME = 0x800
MS_BIND = 0x1000
MS_REC = 0x4000
MS_UNBINDABLE = 0x20000
MS_PRIVATE = 0x40000
MS_SLAVE = 0x80000
MS_SHARED = 0x100000
MS_RELATIME = 0x200000
MS_STRICTATIME = 0x1000000
OPEN_TREE_CLONE = 0x1
OPEN_TREE_CLOEXEC = os.O_CLOEXEC
MOVE_MOUNT_F_EMPTY_PATH = 0x4
MOVE_MOUNT_T_EMPTY_PATH = 0x40
MOUNT_ATTR_RDONLY = 0x1
MOUNT_ATTR_NOSUID = 0x2
MOUNT_ATTR_NODEV = 0x4
MOUNT_ATTR_NOEXEC = 0x8
FSOPEN_CLOEXEC = 0x1
FSMOUNT_CLOEXEC = 0x1
FSCONFIG_SET_FLAG = 0
FSCONFIG_SET_STRING = 1
FSCONFIG_CMD_CREATE = 6
MNT_DETACH = 0x2

# include/uapi/linux/fcntl.h
AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_RECURSIVE = 0x8000

# include/uapi/linux/openat2.h
RESOLVE_NO_XDEV = 0x01
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_BENEATH = 0x08
RESOLVE_IN_ROOT = 0x10

# include/uapi/linux/sched.h
CLONE_NEWTIME = 0x80
CLONE_FS = 0x200
CLONE_NEWNS = 0x20000
CLONE_NEWCGROUP = 0x2000000
CLONE_NEWUTS = 0x4000000
CLONE_NEWIPC = 0x8000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
CLONE_PARENT = 0x00008000
CLONE_INTO_CGROUP = 0x200000000

# include/uapi/linux/prctl.h
PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_SET_KEEPCAPS = 8
PR_SET_NAME = 15
PR_CAPBSET_DROP = 24
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_RAISE = 2

# include/uapi/linux/seccomp.h
SECCOMP_SET_MODE_FILTER = 1
SECCOMP_FILTER_FLAG_LOG = 2

# include/uapi/linux/keyctl.h
KEYCTL_JOIN_SESSION_KEYRING = 1
KEYCTL_SETPERM = 5

_ARCH = platform.machine()
# arch/x86/entry/syscalls/syscall_64.tbl; include/uapi/asm-generic/unistd.h for the rest; from 424 up all agree.
_NR = {
    "pivot_root": {"x86_64": 155}.get(_ARCH, 41),
    "keyctl": {"x86_64": 250}.get(_ARCH, 219),
    "seccomp": {"x86_64": 317}.get(_ARCH, 277),
    "bpf": {"x86_64": 321}.get(_ARCH, 280),
    "capget": {"x86_64": 125}.get(_ARCH, 90),
    "capset": {"x86_64": 126}.get(_ARCH, 91),
    "pidfd_send_signal": 424,
    "open_tree": 428,
    "move_mount": 429,
    "fsopen": 430,
    "fsconfig": 431,
    "fsmount": 432,
    "pidfd_open": 434,
    "clone3": 435,
    "close_range": 436,
    "openat2": 437,
    "mount_setattr": 442,
}

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long
_libc.mount.argtypes = (ctypes.c_char_p, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_ulong, ctypes.c_char_p)
_libc.umount2.argtypes = (ctypes.c_char_p, ctypes.c_int)
_libc.unshare.argtypes = (ctypes.c_int,)
_libc.setns.argtypes = (ctypes.c_int, ctypes.c_int)
_libc.syncfs.argtypes = (ctypes.c_int,)
_libc.sethostname.argtypes = (ctypes.c_char_p, ctypes.c_size_t)
_libc.setdomainname.argtypes = (ctypes.c_char_p, ctypes.c_size_t)
_libc.prctl.argtypes = (ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong)

# Paths inside containers are resolved by the dozen per start: a prototype of its own spares the conversions.
_openat2 = ctypes.CFUNCTYPE(
    ctypes.c_long, ctypes.c_long, ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_size_t, use_errno=True
)(("syscall", _libc))

_prctl_of_text = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_char_p, use_errno=True)(("prctl", _libc))

Path = str | bytes


def _raise(call: str, path: Path | None = None) -> OSError:
    number = ctypes.get_errno()
    where = f"{call} {os.fsdecode(path)}" if path else call
    return OSError(number, os.strerror(number), where)


def _call(name: str, *arguments: object, path: Path | None = None) -> int:
    result: int = _syscall(ctypes.c_long(_NR[name]), *arguments)
    if result < 0:
        raise _raise(name, path)
    return result


def mount(source: Path, target: Path, fstype: Path = "", flags: int = 0, data: Path = "") -> None:
    """mount(2). An empty ``fstype`` or ``data`` is passed as NULL."""
    if _libc.mount(
        os.fsencode(source), os.fsencode(target), os.fsencode(fstype) or None, flags, os.fsencode(data) or None
    ):
        raise _raise("mount", target)


def umount(target: Path, flags: int = 0) -> None:
    """umount2(2)."""
    if _libc.umount2(os.fsencode(target), flags):
        raise _raise("umount", target)


def pivot_root(new_root: Path, put_old: Path) -> None:
    """pivot_root(2)."""
    _call(
        "pivot_root",
        ctypes.c_char_p(os.fsencode(new_root)),
        ctypes.c_char_p(os.fsencode(put_old)),
        path=new_root,
    )


def open_tree(dirfd: int, path: Path, flags: int) -> int:
    """open_tree(2): with ``OPEN_TREE_CLONE`` a detached copy of the mount. The caller owns the descriptor."""
    return _call("open_tree", ctypes.c_int(dirfd), ctypes.c_char_p(os.fsencode(path)), ctypes.c_uint(flags), path=path)


def move_mount(from_fd: int, from_path: Path, to_fd: int, to_path: Path, flags: int) -> None:
    """move_mount(2): attach a detached mount, or move one."""
    _call(
        "move_mount",
        ctypes.c_int(from_fd),
        ctypes.c_char_p(os.fsencode(from_path)),
        ctypes.c_int(to_fd),
        ctypes.c_char_p(os.fsencode(to_path)),
        ctypes.c_uint(flags),
        path=to_path,
    )


def mount_setattr(
    dirfd: int,
    path: Path,
    flags: int,
    *,
    attr_set: int = 0,
    attr_clr: int = 0,
    propagation: int = 0,
    userns_fd: int = 0,
) -> None:
    """mount_setattr(2)."""
    attr = ctypes.create_string_buffer(struct.pack("=QQQQ", attr_set, attr_clr, propagation, userns_fd), 32)
    _call(
        "mount_setattr",
        ctypes.c_int(dirfd),
        ctypes.c_char_p(os.fsencode(path)),
        ctypes.c_uint(flags),
        attr,
        ctypes.c_size_t(32),
        path=path,
    )


def fsopen(fstype: str) -> int:
    """fsopen(2): a file system context. The caller owns the descriptor."""
    return _call("fsopen", ctypes.c_char_p(fstype.encode()), ctypes.c_uint(FSOPEN_CLOEXEC), path=fstype)


def fsconfig(fs_fd: int, command: int, key: str | None = None, value: Path | None = None, aux: int = 0) -> None:
    """fsconfig(2)."""
    _call(
        "fsconfig",
        ctypes.c_int(fs_fd),
        ctypes.c_uint(command),
        ctypes.c_char_p(key.encode() if key is not None else None),
        ctypes.c_char_p(os.fsencode(value) if value is not None else None),
        ctypes.c_int(aux),
        path=key,
    )


def fsmount(fs_fd: int, attributes: int = 0) -> int:
    """fsmount(2): a detached mount, which lives as long as the descriptor unless attached. The caller owns it."""
    return _call("fsmount", ctypes.c_int(fs_fd), ctypes.c_uint(FSMOUNT_CLOEXEC), ctypes.c_uint(attributes))


def openat2(dirfd: int, path: Path, flags: int, *, mode: int = 0, resolve: int = RESOLVE_IN_ROOT) -> int:
    """openat2(2), close-on-exec. The caller owns the descriptor.

    ``EAGAIN`` (a rename raced with the walk) is retried a few times, as the man page asks.
    """
    encoded, how = os.fsencode(path), struct.pack("=QQQ", flags | os.O_CLOEXEC, mode, resolve)
    for _ in range(32):
        fd: int = _openat2(_NR["openat2"], dirfd, encoded, how, 24)
        if fd >= 0:
            return fd
        if ctypes.get_errno() != errno.EAGAIN:
            break
    raise _raise("openat2", path)


_libc.fstatfs.argtypes = (ctypes.c_int, ctypes.c_char_p)


def filesystem_type(fd: int) -> int:
    """fstatfs(2), f_type: the magic number of the file system that ``fd`` lies on (include/uapi/linux/magic.h)."""
    buffer = ctypes.create_string_buffer(256)
    if _libc.fstatfs(fd, buffer):
        raise _raise("fstatfs")
    return int.from_bytes(buffer.raw[: ctypes.sizeof(ctypes.c_long)], sys.byteorder)


def syncfs(fd: int) -> None:
    """syncfs(2): write out the file system that ``fd`` lies on."""
    if _libc.syncfs(fd):
        raise _raise("syncfs")


def unshare(flags: int) -> None:
    """unshare(2): affects the calling thread."""
    if _libc.unshare(flags):
        raise _raise("unshare")


def setns(fd: int, flags: int) -> None:
    """setns(2) with a namespace or pid descriptor: affects the calling thread."""
    if _libc.setns(fd, flags):
        raise _raise("setns")


def sethostname(name: bytes) -> None:
    """sethostname(2)."""
    if _libc.sethostname(name, len(name)):
        raise _raise("sethostname")


def setdomainname(name: bytes) -> None:
    """setdomainname(2)."""
    if _libc.setdomainname(name, len(name)):
        raise _raise("setdomainname")


def prctl(option: int, arg2: int = 0, arg3: int = 0, arg4: int = 0, arg5: int = 0) -> int:
    """prctl(2) with numeric arguments."""
    result: int = _libc.prctl(option, arg2, arg3, arg4, arg5)
    if result < 0:
        raise _raise("prctl")
    return result


def set_process_name(name: str) -> None:
    """PR_SET_NAME: at most 15 bytes are kept."""
    if _prctl_of_text(PR_SET_NAME, name.encode()):
        raise _raise("prctl")


def capget() -> tuple[int, int, int]:
    """capget(2) of the calling thread: (effective, permitted, inheritable) as bit sets."""
    header = ctypes.create_string_buffer(struct.pack("=Ii", 0x20080522, 0), 8)
    data = ctypes.create_string_buffer(24)
    _call("capget", header, data)
    e0, p0, i0, e1, p1, i1 = struct.unpack("=6I", data.raw)
    return e0 | e1 << 32, p0 | p1 << 32, i0 | i1 << 32


def capset(effective: int, permitted: int, inheritable: int) -> None:
    """capset(2) of the calling thread, as bit sets."""
    header = ctypes.create_string_buffer(struct.pack("=Ii", 0x20080522, 0), 8)
    low, high = 0xFFFFFFFF, 32
    data = ctypes.create_string_buffer(
        struct.pack(
            "=6I",
            effective & low,
            permitted & low,
            inheritable & low,
            effective >> high,
            permitted >> high,
            inheritable >> high,
        ),
        24,
    )
    _call("capset", header, data)


class _SockFprog(ctypes.Structure):
    _fields_ = (("len", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def seccomp_filter(program: bytes, flags: int = 0) -> None:
    """seccomp(2), SET_MODE_FILTER. ``program``: an array of struct sock_filter, 8 bytes each."""
    fprog = _SockFprog(len(program) // 8, program)
    _call("seccomp", ctypes.c_uint(SECCOMP_SET_MODE_FILTER), ctypes.c_uint(flags), ctypes.byref(fprog))


def join_session_keyring(name: str | None = None) -> int:
    """keyctl(2), JOIN_SESSION_KEYRING: leave the inherited session keyring for the one called so, or for a new one.
    Returns its number."""
    return _call(
        "keyctl",
        ctypes.c_long(KEYCTL_JOIN_SESSION_KEYRING),
        ctypes.c_char_p(name.encode() if name is not None else None),
        ctypes.c_long(0),
        ctypes.c_long(0),
        ctypes.c_long(0),
    )


def set_key_permissions(key: int, permissions: int) -> None:
    """keyctl(2), SETPERM; include/linux/key.h has the bits."""
    _call(
        "keyctl",
        ctypes.c_long(KEYCTL_SETPERM),
        ctypes.c_long(key),
        ctypes.c_long(permissions),
        ctypes.c_long(0),
        ctypes.c_long(0),
    )


def pidfd_open(pid: int) -> int:
    """pidfd_open(2), close-on-exec. The caller owns the descriptor."""
    return _call("pidfd_open", ctypes.c_int(pid), ctypes.c_uint(0))


def pidfd_send_signal(pidfd: int, signal: int) -> None:
    """pidfd_send_signal(2)."""
    _call("pidfd_send_signal", ctypes.c_int(pidfd), ctypes.c_int(signal), None, ctypes.c_uint(0))


def close_range(first: int, last: int = 0xFFFFFFFF) -> None:
    """close_range(2): close every descriptor in the range, both ends included."""
    _call("close_range", ctypes.c_uint(first), ctypes.c_uint(last), ctypes.c_uint(0))


def bpf(command: int, attributes: bytes) -> int:
    """bpf(2). ``attributes``: a packed union bpf_attr; addresses in it must stay alive for the call."""
    buffer = ctypes.create_string_buffer(attributes, len(attributes))
    return _call("bpf", ctypes.c_int(command), buffer, ctypes.c_uint(len(attributes)))


CLOSE_RANGE_CLOEXEC = 0x4  # include/uapi/linux/close_range.h


def mark_cloexec(first: int, last: int = 0xFFFFFFFF) -> None:
    """close_range(2), CLOSE_RANGE_CLOEXEC: every descriptor in the range, both ends included, closes on exec."""
    _call("close_range", ctypes.c_uint(first), ctypes.c_uint(last), ctypes.c_uint(CLOSE_RANGE_CLOEXEC))


_libc.execve.argtypes = (ctypes.c_char_p, ctypes.POINTER(ctypes.c_char_p), ctypes.POINTER(ctypes.c_char_p))


def execve(path: bytes, argv: list[bytes], envp: list[bytes]) -> OSError:
    """execve(2) with the environment as it is given, order and duplicates kept. Returns only the error."""
    arguments = (ctypes.c_char_p * (len(argv) + 1))(*argv, None)
    environment = (ctypes.c_char_p * (len(envp) + 1))(*envp, None)
    _libc.execve(path, arguments, environment)
    return _raise("exec", path)


def overwrite(address: int, content: bytes) -> None:
    """Copy ``content`` over this process's own memory."""
    ctypes.memmove(address, content, len(content))


# Without giving up the interpreter's lock, which the forked child has to hold.
_locked_syscall = ctypes.PyDLL(None, use_errno=True).syscall
_locked_syscall.restype = ctypes.c_long


def fork_into_cgroup(cgroup_fd: int) -> int:
    """clone3(2) as fork(2), the child being born in the cgroup v2 directory ``cgroup_fd``: 0 in the child.

    A process that moves there later waits for an RCU grace period, 5 to 20 ms.
    """
    return _clone(CLONE_INTO_CGROUP, signal.SIGCHLD, cgroup_fd)


def fork_beside() -> int:
    """clone3(2) as fork(2), the new process being a child of this one's parent: 0 in it."""
    return _clone(CLONE_PARENT, 0, 0)


def _clone(flags: int, exit_signal: int, cgroup_fd: int) -> int:
    """Only for a process with one thread; what C libraries and CPython do around a fork is not done, and with one
    thread there is nothing to do."""
    arguments = struct.pack("=11Q", flags, 0, 0, 0, exit_signal, 0, 0, 0, 0, 0, cgroup_fd)
    result: int = _locked_syscall(
        ctypes.c_long(_NR["clone3"]), ctypes.c_char_p(arguments), ctypes.c_size_t(len(arguments))
    )
    if result < 0:
        raise _raise("clone3")
    return result

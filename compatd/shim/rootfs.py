"""A container's root: its overlay, the mount plan, pivot_root.

Runs in the container's init before exec, in a mount namespace of its own, with the host's tree still as root; no
mount of it ever exists outside. The plan is data (spec.MountOp), done in order.

What lies in the container was written by strangers, and a volume may be changed by another container meanwhile.
So a target is resolved once, in the kernel, with the overlay as its root (linux.rootdir), and then used through its
descriptor: mount(2) gets it as /proc/self/fd/N, move_mount(2) as it is. Exchanging it for a link moves nothing.
"""

import errno
import os
import stat
from collections.abc import Callable

from compatd.linux import syscalls
from compatd.linux.rootdir import Rootdir
from compatd.shim.failures import Failed, words
from compatd.shim.spec import MountOp, Overlay

DEV_NULL = os.makedev(1, 3)  # Documentation/admin-guide/devices.txt
MAX_OPTION_BYTES = 255  # fsconfig(2) refuses longer strings

# What MS_* flags of a bind become for mount_setattr(2).
_ATTRIBUTES = (
    (syscalls.MS_RDONLY, syscalls.MOUNT_ATTR_RDONLY),
    (syscalls.MS_NOSUID, syscalls.MOUNT_ATTR_NOSUID),
    (syscalls.MS_NODEV, syscalls.MOUNT_ATTR_NODEV),
    (syscalls.MS_NOEXEC, syscalls.MOUNT_ATTR_NOEXEC),
)
_PROPAGATION = syscalls.MS_PRIVATE | syscalls.MS_SLAVE | syscalls.MS_SHARED | syscalls.MS_UNBINDABLE
_FD = "/proc/self/fd/%d"
_PROC_SUPER_MAGIC = 0x9FA0  # include/uapi/linux/magic.h
_PROC_ROOT_INO = 1  # include/linux/proc_ns.h
# Files of /proc that something else may stand for (lxcfs does that).
_PROC_FILES = frozenset(
    f"/proc/{name}"
    for name in (
        *("cpuinfo", "diskstats", "meminfo", "stat", "swaps", "uptime", "loadavg", "slabinfo"),
        *("sys/kernel/ns_last_pid", "sys/crypto/fips_enabled"),
    )
)
_FLAG_NAMES = tuple(
    (getattr(syscalls, name), name)
    for name in (
        *("MS_RDONLY", "MS_NOSUID", "MS_NODEV", "MS_NOEXEC", "MS_SYNCHRONOUS", "MS_REMOUNT", "MS_NOATIME"),
        *("MS_NODIRATIME", "MS_BIND", "MS_REC", "MS_RELATIME", "MS_STRICTATIME"),
    )
)


class Sources:
    """Detached copies of what the plan binds from the host, taken before the namespace's mounts are made private:
    a copy stays in its source's peer group, which is what slave and shared binds are about."""

    def __init__(self, plan: list[MountOp], fds: list[int]) -> None:
        """``fds``: what came with the launch, detached mounts among it; those are used up."""
        self._fds: dict[int, int] = {}
        for index, op in enumerate(plan):
            if "fd" in op:
                self._fds[index] = fds[op["fd"]]
            elif op["kind"] == "bind":
                source = op.get("source", "")
                try:
                    self._fds[index] = _clone(syscalls.AT_FDCWD, source, recursive=_recursive(op))
                except OSError as error:
                    raise Failed(f"failed to fulfil mount request: open {source}: {words(error)}") from error

    def take(self, index: int) -> int:
        return self._fds.pop(index)


def isolate() -> None:
    """Cut the namespace's mounts off from the host's: nothing mounted from here on shows up there."""
    syscalls.mount("", "/", flags=syscalls.MS_REC | syscalls.MS_PRIVATE)


def assemble(overlay: Overlay) -> int:
    """The root as a detached overlay mount, whose descriptor the caller owns.

    Layers are named by descriptor, for three reasons: fsconfig(2) limits a value to 255 bytes, the classic mount(2)
    all of them to a page, and a container reads in its mountinfo whatever path stands there.
    """
    if overlay["volatile"]:
        _forget_volatile(overlay["work"])
    held = {
        path: os.open(path, os.O_PATH | os.O_CLOEXEC)
        for path in (*overlay["lowers"], overlay["upper"], overlay["work"])
    }
    try:
        context = syscalls.fsopen("overlay")
        try:
            _configure(context, overlay, held)
            return syscalls.fsmount(context)
        finally:
            os.close(context)
    except OSError as error:
        raise Failed(f"error mounting overlay: {words(error)}") from error
    finally:
        for fd in held.values():
            os.close(fd)


def _configure(context: int, overlay: Overlay, held: dict[str, int]) -> None:
    def option(key: str, value: str) -> None:
        syscalls.fsconfig(context, syscalls.FSCONFIG_SET_STRING, key, value)

    lowers = [_FD % held[path] for path in overlay["lowers"]]
    option("source", "overlay")
    try:
        for lower in lowers:
            option("lowerdir+", lower)
    except OSError as error:
        # Linux before 6.7 knows only the joined form.
        joined = ":".join(lowers)
        if error.errno != errno.EINVAL or len(joined) > MAX_OPTION_BYTES:
            raise
        option("lowerdir", joined)
    option("upperdir", _FD % held[overlay["upper"]])
    option("workdir", _FD % held[overlay["work"]])
    option("xino", "auto")
    if overlay["volatile"]:
        # Unmounting syncs the whole upper file system otherwise.
        syscalls.fsconfig(context, syscalls.FSCONFIG_SET_FLAG, "volatile")
    syscalls.fsconfig(context, syscalls.FSCONFIG_CMD_CREATE)


def _forget_volatile(work: str) -> None:
    """A volatile mount leaves a mark, so that nobody mounts after a crash what was never synced. Here that is known:
    the upper directory belongs to one container, whose data did not have to survive."""
    for name, remove in (("dirty", os.unlink), ("", os.rmdir)):
        try:
            remove(f"{work}/work/incompat/volatile/{name}")
        except FileNotFoundError:
            return
    os.rmdir(f"{work}/work/incompat")


def attach(mount: int, where: str) -> Rootdir:
    """Put the root's mount on the host directory ``where``, inside this namespace only: pivot_root(2) and mounts
    below need an attached one. Its descriptor now belongs to the result."""
    syscalls.move_mount(mount, "", syscalls.AT_FDCWD, where, syscalls.MOVE_MOUNT_F_EMPTY_PATH)
    return Rootdir(mount)


class Plan:
    """Carries out the operations below one root."""

    def __init__(self, root: Rootdir, sources: Sources) -> None:
        self._root = root
        self._name = os.readlink(_FD % root.fileno())  # where the host's tree has it
        self._sources = sources
        self._late: list[int] = []
        self._hidden: int | None = None  # the empty directory that covers masked ones
        self._do: dict[str, Callable[[MountOp, int], None]] = {
            "mount": self._mount,
            "bind": self._bind,
            "mknod": self._mknod,
            "symlink": self._symlink,
            "mask": self._mask,
            "readonly": self._readonly,
        }

    def carry_out(self, plan: list[MountOp]) -> None:
        """``Failed`` names the operation, as runc does."""
        for index, op in enumerate(plan):
            try:
                self._do[op["kind"]](op, index)
            except OSError as error:
                raise _mount_failure(op, f"mount src={_source(op)}, dst={op['target']}: {words(error)}") from error
            except Failed as error:
                if op["kind"] not in ("mount", "bind"):
                    raise
                raise _mount_failure(op, str(error)) from error

    def check_null(self) -> None:
        """``Failed`` unless programs can be given the container's own /dev/null (runc, reOpenDevNull).

        That it is one is looked at first: opening something else would do something.
        """
        null = self._root.open("/dev/null", os.O_PATH)
        try:
            _check_null(null)
            os.close(os.open(_FD % null, os.O_RDWR | os.O_CLOEXEC))
        except OSError as error:
            raise Failed(f"error reopening /dev/null inside container: open /dev/null: {words(error)}") from error
        finally:
            os.close(null)

    def finish(self) -> None:
        """Make those read-only at last in which other mounts had to find their places."""
        while self._late:
            mounted = self._late.pop()
            syscalls.mount_setattr(mounted, "", syscalls.AT_EMPTY_PATH, attr_set=syscalls.MOUNT_ATTR_RDONLY)
            os.close(mounted)

    def target(self, path: str, *, directory: bool) -> int:
        """An O_PATH descriptor of ``path`` inside, made when it is missing; the caller owns it."""
        try:
            return self._root.open(path, os.O_PATH)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise Failed(
                f"create mountpoint for {path} mount: lookup mountpoint target:"
                f" securejoin.OpenInRoot {path}: openat2 {path}: {words(error)}"
            ) from error
        try:
            return self._made(path, directory=directory)
        except OSError as error:
            raise Failed(
                f'create mountpoint for {path} mount: make mountpoint "{path}": mkdirat {self._name}{path}:'
                f" {words(error)}"
            ) from error

    def _made(self, path: str, *, directory: bool) -> int:
        flags = os.O_PATH | (os.O_DIRECTORY if directory else 0)
        if not self._make(path, directory=directory):
            where = os.fsdecode(self._root.resolve(path))  # parents are missing, or a link dangles
            self._root.makedirs(where if directory else os.path.dirname(where))
            if not directory:
                os.close(self._root.open(where, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o755))
        return self._root.open(path, flags)

    def _check(self, target: int, op: MountOp, source: int = -1) -> None:
        """Where a mount of the user's really would go, links followed: not over the root, and not into /proc, which
        programs trust (runc libcontainer/rootfs_linux.go, checkProcMount)."""
        where = os.readlink(_FD % target)
        inside = where.removeprefix(self._name)
        path = op["target"]
        if not inside:
            raise Failed(
                f'create mountpoint for {path} mount: mountpoint "{where}" is on the top of rootfs "{self._name}"'
            )
        if inside == "/proc":
            is_proc = source >= 0 and syscalls.filesystem_type(source) == _PROC_SUPER_MAGIC
            if is_proc and os.fstat(source).st_ino == _PROC_ROOT_INO:
                return
            reason = "it is not of type proc"
        elif inside.startswith("/proc/") and inside not in _PROC_FILES:
            reason = "it is inside /proc"
        else:
            return
        raise Failed(
            f"create mountpoint for {path} mount: check proc-safety of {path} mount:"
            f' "{where}" cannot be mounted because {reason}'
        )

    def _clear_place(self, path: str) -> None:
        """No link leads to /proc and /sys: whatever is there would be taken for the kernel's. What an image has in
        their place gives way to a directory (moby daemon/initlayer)."""
        try:
            mode = self._root.lstat(path).st_mode
        except FileNotFoundError:
            return
        if not stat.S_ISDIR(mode):
            parent, name = self._root.open_parent(path)
            try:
                os.unlink(name, dir_fd=parent)
                os.mkdir(name, 0o755, dir_fd=parent)
            finally:
                os.close(parent)

    def _make(self, path: str, *, directory: bool) -> bool:
        """Make it where only the last name is missing."""
        try:
            parent, name = self._root.open_parent(path)
        except OSError:
            return False
        try:
            if directory:
                os.mkdir(name, 0o755, dir_fd=parent)
            else:
                os.close(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o755, dir_fd=parent))
        except FileExistsError:
            return False
        finally:
            os.close(parent)
        return True

    def cover(self, mount: int, path: str, *, directory: bool) -> None:
        """Attach a detached mount, whose descriptor is consumed, on ``path``."""
        try:
            target = self.target(path, directory=directory)
            try:
                _attach(mount, target, directory=directory)
            finally:
                os.close(target)
        finally:
            os.close(mount)

    def _mount(self, op: MountOp, _: int) -> None:
        fstype, data = op.get("fstype", ""), op.get("data", "")
        if fstype in ("proc", "sysfs"):
            self._clear_place(op["target"])
        # runc: a tmpfs takes over the mode of what it covers.
        takes_mode = fstype == "tmpfs" and "mode=" not in data and self._root.exists(op["target"])
        target = self.target(op["target"], directory=True)
        try:
            if fstype == "tmpfs":
                self._check(target, op)
            below = os.fstat(target)
            if takes_mode:
                data = ",".join(filter(None, (f"mode={stat.S_IMODE(below.st_mode):04o}", data)))
            flags = op.get("flags", 0)
            late = flags & syscalls.MS_RDONLY if fstype == "tmpfs" else 0
            try:
                syscalls.mount(op.get("source", fstype), _FD % target, fstype, flags & ~late, data)
            except OSError as error:
                raise _refused(op, target, flags & ~late, data, error) from error
            if late:
                self._late.append(self._root.open(op["target"], os.O_PATH))
            if op.get("copy_up"):
                # The descriptor still is the covered directory; looked up again, the path is the new mount.
                with Rootdir(self._root.open(op["target"], os.O_PATH)) as mounted:
                    os.chown(_FD % mounted.fileno(), below.st_uid, below.st_gid)
                    _copy(target, mounted.fileno())
        finally:
            os.close(target)
        if "propagation" in op:
            with Rootdir(self._root.open(op["target"], os.O_PATH)) as mounted:
                _propagate(mounted.fileno(), op["propagation"])

    def _bind(self, op: MountOp, index: int) -> None:
        source = self._sources.take(index)
        flags = op.get("flags", 0)
        attributes = sum(attribute for flag, attribute in _ATTRIBUTES if flags & flag)
        if attributes:
            syscalls.mount_setattr(
                source,
                "",
                syscalls.AT_EMPTY_PATH | (syscalls.AT_RECURSIVE if op.get("recursive") else 0),
                attr_set=attributes,
            )
        _propagate(source, op.get("propagation", syscalls.MS_PRIVATE | syscalls.MS_REC))
        directory = stat.S_ISDIR(os.fstat(source).st_mode)
        try:
            target = self.target(op["target"], directory=directory)
            try:
                self._check(target, op, source)
                _attach(source, target, directory=directory)
            except OSError as error:
                asked = syscalls.MS_BIND | (flags & ~syscalls.MS_RDONLY if op.get("recursive") else flags)
                raise _refused(op, target, asked, "", error) from error
            finally:
                os.close(target)
        finally:
            os.close(source)

    def _mknod(self, op: MountOp, _: int) -> None:
        parent, name = self._parent(op["target"])
        try:
            mode, device = op.get("mode", 0), os.makedev(*op.get("device", (0, 0)))
            try:
                os.mknod(name, mode, device, dir_fd=parent)
            except FileExistsError:
                found = os.stat(name, dir_fd=parent, follow_symlinks=False)
                if (stat.S_IFMT(found.st_mode), found.st_rdev) != (stat.S_IFMT(mode), device):
                    raise
            # By its descriptor: outside of /dev the name may be a link to somewhere by now.
            node = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
            try:
                if os.fstat(node).st_rdev != device:
                    raise FileExistsError(errno.EEXIST, "")
                os.chmod(_FD % node, stat.S_IMODE(mode))  # whatever the umask
                os.chown(_FD % node, op.get("uid", 0), op.get("gid", 0))
            finally:
                os.close(node)
        finally:
            os.close(parent)

    def _symlink(self, op: MountOp, _: int) -> None:
        parent, name = self._parent(op["target"])
        try:
            os.symlink(op.get("source", ""), name, dir_fd=parent)
        except FileExistsError:
            pass
        finally:
            os.close(parent)

    def _mask(self, op: MountOp, _: int) -> None:
        try:
            target = self._root.open(op["target"], os.O_PATH)
        except (FileNotFoundError, NotADirectoryError):
            return
        directory = stat.S_ISDIR(os.fstat(target).st_mode)
        os.close(target)
        if not directory:
            self.cover(self._null(), op["target"], directory=False)
            return
        if self._hidden is None:
            empty = _empty_directory()
            self.cover(os.dup(empty), op["target"], directory=True)
            self._hidden = empty  # attached now, so it can be copied: one superblock hides all
        else:
            self.cover(_clone(self._hidden, "", recursive=False), op["target"], directory=True)

    def _null(self) -> int:
        """A copy of the container's own /dev/null: who changes its mode must not change the host's. The caller's."""
        try:
            null = self._root.open("/dev/null", os.O_PATH)
        except OSError as error:
            raise Failed(f"can't mask paths: open /dev/null: {words(error)}") from error
        try:
            _check_null(null)
            return _clone(null, "", recursive=False)
        finally:
            os.close(null)

    def _readonly(self, op: MountOp, _: int) -> None:
        try:
            target = self._root.open(op["target"], os.O_PATH)
        except (FileNotFoundError, NotADirectoryError):
            return
        try:
            copy = _clone(target, "", recursive=True)
            syscalls.mount_setattr(
                copy,
                "",
                syscalls.AT_EMPTY_PATH | syscalls.AT_RECURSIVE,
                attr_set=syscalls.MOUNT_ATTR_RDONLY,
            )
            self.cover(copy, op["target"], directory=stat.S_ISDIR(os.fstat(target).st_mode))
        finally:
            os.close(target)

    def _parent(self, path: str) -> tuple[int, bytes]:
        try:
            return self._root.open_parent(path)
        except FileNotFoundError:
            self._root.makedirs(os.path.dirname(path.rstrip("/")))
            return self._root.open_parent(path)


def _check_null(fd: int) -> None:
    found = os.fstat(fd)
    if not stat.S_ISCHR(found.st_mode) or found.st_rdev != DEV_NULL:
        raise Failed(
            "error reopening /dev/null inside container: can't reopen /dev/null: container's /dev/null is invalid"
        )


def make_readonly(root: Rootdir) -> None:
    syscalls.mount_setattr(root.fileno(), "", syscalls.AT_EMPTY_PATH, attr_set=syscalls.MOUNT_ATTR_RDONLY)


def pivot(root: Rootdir, propagation: int) -> None:
    """Make the overlay the root and drop the host's tree.

    With both arguments "." the old root ends up on top of the new one and is unmounted from there (pivot_root(2)),
    so that no directory for it is needed in the container.
    """
    os.fchdir(root.fileno())
    syscalls.pivot_root(".", ".")
    syscalls.umount(".", syscalls.MNT_DETACH)
    os.chdir("/")
    if propagation:
        syscalls.mount("", "/", flags=propagation)


def _clone(dirfd: int, path: str, *, recursive: bool) -> int:
    return syscalls.open_tree(
        dirfd,
        path,
        syscalls.OPEN_TREE_CLONE
        | syscalls.OPEN_TREE_CLOEXEC
        | (syscalls.AT_EMPTY_PATH if not path else 0)
        | (syscalls.AT_RECURSIVE if recursive else 0),
    )


def _recursive(op: MountOp) -> bool:
    return bool(op.get("recursive") or op.get("flags", 0) & syscalls.MS_REC)


def _propagate(mount: int, propagation: int) -> None:
    syscalls.mount_setattr(
        mount,
        "",
        syscalls.AT_EMPTY_PATH | (syscalls.AT_RECURSIVE if propagation & syscalls.MS_REC else 0),
        propagation=propagation & _PROPAGATION,
    )


def _empty_directory() -> int:
    context = syscalls.fsopen("tmpfs")
    try:
        syscalls.fsconfig(context, syscalls.FSCONFIG_SET_STRING, "source", "tmpfs")
        syscalls.fsconfig(context, syscalls.FSCONFIG_SET_STRING, "size", "4k")
        syscalls.fsconfig(context, syscalls.FSCONFIG_SET_STRING, "nr_inodes", "1")
        syscalls.fsconfig(context, syscalls.FSCONFIG_SET_FLAG, "ro")
        syscalls.fsconfig(context, syscalls.FSCONFIG_CMD_CREATE)
        return syscalls.fsmount(context, syscalls.MOUNT_ATTR_RDONLY)
    finally:
        os.close(context)


def _copy(source: int, target: int) -> None:
    """Fill the directory ``target`` with what is in ``source``. Both trees are looked at without following links."""
    listed = _opened(source, ".")
    try:
        names = os.listdir(listed)
    finally:
        os.close(listed)
    for name in names:
        info = os.stat(name, dir_fd=source, follow_symlinks=False)
        kind = stat.S_IFMT(info.st_mode)
        if kind == stat.S_IFLNK:
            os.symlink(os.readlink(name, dir_fd=source), name, dir_fd=target)
        elif kind == stat.S_IFDIR:
            os.mkdir(name, 0o700, dir_fd=target)
            below, copied = _opened(source, name), _opened(target, name)
            try:
                _copy(below, copied)
            finally:
                os.close(below)
                os.close(copied)
        elif kind == stat.S_IFREG:
            _copy_file(source, target, name)
        else:
            os.mknod(name, info.st_mode, info.st_rdev, dir_fd=target)
        os.chown(name, info.st_uid, info.st_gid, dir_fd=target, follow_symlinks=False)
        if kind != stat.S_IFLNK:
            os.chmod(name, stat.S_IMODE(info.st_mode), dir_fd=target)
        os.utime(name, ns=(info.st_atime_ns, info.st_mtime_ns), dir_fd=target, follow_symlinks=False)


def _copy_file(source: int, target: int, name: str) -> None:
    read = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=source)
    write = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=target)
    try:
        while os.sendfile(write, read, None, 1 << 30):
            pass
    finally:
        os.close(read)
        os.close(write)


def _opened(directory: int, name: str) -> int:
    return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)


def _attach(mount: int, target: int, *, directory: bool) -> None:
    if directory != stat.S_ISDIR(os.fstat(target).st_mode):
        raise NotADirectoryError(errno.ENOTDIR, "")  # EINVAL is move_mount(2)'s word for it
    syscalls.move_mount(mount, "", target, "", syscalls.MOVE_MOUNT_F_EMPTY_PATH | syscalls.MOVE_MOUNT_T_EMPTY_PATH)


def _refused(op: MountOp, target: int, flags: int, data: str, error: OSError) -> Failed:
    """As runc tells of the mount(2) that it would have made."""
    text = f"mount src={_source(op)}, dst={op['target']}, dstFd=/proc/thread-self/fd/{target}"
    if names := "|".join(name for flag, name in _FLAG_NAMES if flags & flag):
        text += f", flags={names}"
    return Failed(text + (f", data={data}" if data else "") + f": {words(error)}")


def _mount_failure(op: MountOp, why: str) -> Failed:
    return Failed(f'error mounting "{_source(op)}" to rootfs at "{op["target"]}": {why}')


def _source(op: MountOp) -> str:
    return op.get("source") or op.get("fstype", op["kind"])

"""From a forked child of the shim to the user's program: identity, privileges, exec. Shared by run and exec.

It runs inside the container's root already. So nothing may be imported, looked up or decoded by a library from here
on (all of that would be the image's): every module is loaded when the spawner starts, and names are resolved by
``users`` alone.

Order is dictated by what each step still needs: bounding set and ids need their capabilities, a seccomp filter
without no_new_privs needs CAP_SYS_ADMIN. execve(2) then derives the program's capability sets from bounding,
inheritable and ambient ones (capabilities(7)), so they are not reduced before: as with runc, the program's file may
lie where only root can go.
"""

import base64
import contextlib
import errno
import os
import resource
import signal
import stat
from typing import NamedTuple

from compatd.linux import syscalls
from compatd.linux.rootdir import Rootdir
from compatd.shim import users
from compatd.shim.failures import Failed, words
from compatd.shim.spec import Process

EXEC_FAILED = 255  # runc's exit code when execve(2) itself fails; the container has been started by then

# By spawner and shims; an ignored signal stays ignored across exec.
IGNORED = (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
_ENDLESS = (1 << 64) - 1
KEYRING_PERMISSIONS = 0x3F1B0000  # runc's: its user may find it, so that execs join it


class Environment(NamedTuple):
    """What the program gets, all of it bytes."""

    argv: list[bytes]
    envp: list[bytes]


def prepare(process: Process) -> None:
    """The steps that go through the host's /proc, before the root changes. The values hold from exec on."""
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)  # the container may not look into us
    if "oom_score_adj" in process:
        _write("/proc/self/oom_score_adj", str(process["oom_score_adj"]))
    if "apparmor" in process:
        label = f"exec {process['apparmor']}"
        try:
            _write("/proc/self/attr/apparmor/exec", label)
        except FileNotFoundError:  # Linux before 5.8
            _write("/proc/self/attr/exec", label)


def identify(process: Process, root: Rootdir) -> users.Identity:
    """Resolve the user against the container's files. ``Failed`` in Docker's words."""
    return users.resolve(process["user"], process["groups"], account_file(root, "passwd"), account_file(root, "group"))


def account_file(root: Rootdir, name: str) -> bytes:
    """What lies at /etc/``name``, empty where there is none. ``Failed`` for what is no file of a sensible size."""
    try:
        fd = root.open_regular(f"/etc/{name}")
        try:
            content = b""
            while chunk := os.read(fd, 1 << 16):
                content += chunk
                if len(content) > users.MAX_FILE_BYTES:
                    raise OSError(errno.EFBIG, "")
            return content
        finally:
            os.close(fd)
    except (FileNotFoundError, NotADirectoryError):
        return b""
    except OSError as error:
        raise Failed(f"/etc/{name}: {words(error)}", "engine") from error


def environment(process: Process, identity: users.Identity) -> Environment:
    """With TERM for a terminal and HOME, when they are missing; an empty HOME counts as missing (runc)."""
    values = [value for value in process["env"] if value != "HOME="]
    if process["tty"] and not any(value.startswith("TERM=") for value in values):
        values.append("TERM=xterm")
    if not any(value.startswith("HOME=") for value in values):
        values.append(f"HOME={identity.home}")
    if any(value.startswith("=") for value in values):  # runc 1.3; of a container dockerd says so earlier
        raise Failed("invalid environment variable: name cannot be empty")
    argv, envp = [[text.encode(errors="surrogateescape") for text in texts] for texts in (process["args"], values)]
    for text in envp:
        if b"\0" in text:
            name = text.partition(b"=")[0].decode(errors="replace")
            raise Failed(f'invalid environment variable "{name}": contains nul byte (\\x00)')
    if b"\0" in argv[0]:
        shown = argv[0].decode(errors="replace").replace("\0", "\\x00")
        raise Failed(f'exec: "{shown}": executable file not found in $PATH')
    if any(b"\0" in text for text in argv):
        raise Failed("invalid argument")
    return Environment(argv, envp)


def limit(process: Process) -> None:
    """Resource limits and umask."""
    for entry in process["rlimits"]:
        soft, hard = (
            resource.RLIM_INFINITY if value in (-1, _ENDLESS) else value for value in (entry["soft"], entry["hard"])
        )
        try:
            resource.setrlimit(entry["resource"], (soft, hard))
        except (OSError, ValueError) as error:
            # Python tells the kernel's EINVAL and EPERM as a ValueError.
            number = errno.EPERM if str(error).startswith("not allowed") else errno.EINVAL
            why = words(error if isinstance(error, OSError) else OSError(number, ""))
            raise Failed(
                f"error setting rlimits for ready process: error setting rlimit type {entry['resource']}: {why}"
            ) from error
    os.umask(0o022)


def join_keyring(process: Process, *, new: bool) -> None:
    """The container's session keyring (keyrings(7)): the inherited one would give access to the engine's keys."""
    try:
        keyring = syscalls.join_session_keyring(process.get("keyring"))
        if new:
            syscalls.set_key_permissions(keyring, KEYRING_PERMISSIONS)
    except OSError as error:
        # No keyrings here, or a seccomp filter around us keeps them from everybody.
        if error.errno not in (errno.ENOSYS, errno.EPERM):
            raise Failed(f"unable to join session keyring: unable to create session key: {words(error)}") from error


def enter_directory(path: str) -> bool:
    """Change directory as root; False: root may not (NFS), the user has to try. ``Failed`` as runc's text."""
    try:
        os.chdir(path)
    except PermissionError:
        return False
    except OSError as error:
        raise Failed(f'chdir to cwd ("{path}") set in config.json failed: {words(error)}') from error
    return True


def become(process: Process, identity: users.Identity) -> None:
    """Take the user's ids, and the capability sets that execve(2) derives the program's from."""
    inside = enter_directory(process["cwd"])
    capabilities = process["capabilities"]
    for number in range(64):
        if not capabilities["bounding"] >> number & 1:
            try:
                syscalls.prctl(syscalls.PR_CAPBSET_DROP, number)
            except OSError as error:
                if error.errno == errno.EINVAL:
                    break  # beyond what this kernel has
                raise
    if identity.uid:
        for fd in range(3):
            # So that a program may open /dev/stdout again, which leads to our pipe or terminal.
            info = os.fstat(fd)
            if not (stat.S_ISCHR(info.st_mode) and info.st_rdev == os.makedev(1, 3)) and info.st_uid != identity.uid:
                with contextlib.suppress(OSError):
                    os.fchown(fd, identity.uid, -1)
    syscalls.prctl(syscalls.PR_SET_KEEPCAPS, 1)
    os.setgroups(identity.groups)
    os.setresgid(identity.gid, identity.gid, identity.gid)
    os.setresuid(identity.uid, identity.uid, identity.uid)
    syscalls.prctl(syscalls.PR_SET_KEEPCAPS, 0)
    if not inside:
        try:
            os.chdir(process["cwd"])
        except OSError as error:
            raise Failed(f'chdir to cwd ("{process["cwd"]}") set in config.json failed: {words(error)}') from error
    verify_directory()
    _, permitted, _ = syscalls.capget()
    syscalls.capset(permitted, permitted, capabilities["inheritable"])  # setresuid has emptied the effective set
    for number in range(64):
        if capabilities["ambient"] >> number & 1:
            syscalls.prctl(syscalls.PR_CAP_AMBIENT, syscalls.PR_CAP_AMBIENT_RAISE, number)
    # Both are reset when ids change (prctl(2)): a container without its shim, or with a look at us, must not be.
    syscalls.prctl(syscalls.PR_SET_DUMPABLE, 0)
    syscalls.prctl(syscalls.PR_SET_PDEATHSIG, signal.SIGKILL)
    if process["no_new_privileges"]:
        syscalls.prctl(syscalls.PR_SET_NO_NEW_PRIVS, 1)


def verify_directory() -> None:
    """CVE-2024-21626: a working directory reached through a leaked descriptor may lie outside of the root."""
    try:
        outside = not os.getcwd().startswith("/")
    except FileNotFoundError:
        outside = True
    if outside:
        raise Failed(
            "current working directory is outside of container mount namespace root "
            "-- possible container breakout detected"
        )


def reset_signals() -> None:
    """Default dispositions (an ignored signal stays ignored across exec), nothing blocked."""
    for number in IGNORED:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def filter_calls(process: Process) -> None:
    """Install the seccomp filter: last, since nothing but execve(2) need be allowed by it then."""
    if "seccomp" in process:
        try:
            syscalls.seccomp_filter(base64.b64decode(process["seccomp"]), process.get("seccomp_flags", 0))
        except OSError as error:
            raise Failed(f"error loading seccomp filter: {words(error)}") from error


def find(name: bytes, path: bytes) -> bytes:
    """The program's file, as Go's exec.LookPath finds it (and words it); ``path`` is the container's PATH."""
    shown = '"' + name.decode(errors="replace") + '"'
    if b"/" in name:
        if (why := _unexecutable(name)) is not None:
            raise Failed(f"exec: {shown}: {why}")
        return name
    for directory in path.split(b":") if path else ():
        candidate = (directory or b".") + b"/" + name
        if _unexecutable(candidate) is None:
            if not candidate.startswith(b"/"):
                raise Failed(f"exec: {shown}: cannot run executable found relative to current directory")
            return candidate
    raise Failed(f"exec: {shown}: executable file not found in $PATH")


def _unexecutable(file: bytes) -> str | None:
    try:
        info = os.stat(file)
    except OSError as error:
        return f"stat {os.fsdecode(file)}: {words(error)}"
    if stat.S_ISDIR(info.st_mode):
        return "is a directory: permission denied"
    return None if os.access(file, os.X_OK, effective_ids=True) else "permission denied"


def search_path(envp: list[bytes]) -> bytes:
    return next((value[5:] for value in reversed(envp) if value.startswith(b"PATH=")), b"")


def execute(file: bytes, given: Environment) -> None:
    """Become the program. Where the kernel refuses, runc's container has started, says so itself and ends."""
    error = syscalls.execve(file, given.argv, given.envp)
    with contextlib.suppress(OSError):
        os.write(2, b"exec %s: %s\n" % (file, words(error).encode()))
    os._exit(EXEC_FAILED)


def _write(file: str, value: str) -> None:
    fd = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, value.encode())
    except OSError as error:
        raise Failed(f"write {file}: {words(error)}") from error
    finally:
        os.close(fd)

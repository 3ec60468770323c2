"""Where clients reach the engine: the sockets of ``-H``, sockets passed by systemd, and the pid file.

Bound early and without help of the HTTP library, so that nobody is refused while the rest of the engine starts.
"""

import contextlib
import fcntl
import grp
import logging
import os
import socket
import ssl
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field

from compatd.config import Config
from compatd.errors import InvalidParameter, SystemFailure

log = logging.getLogger(__name__)

_BACKLOG = 1024
_FIRST_PASSED_FD = 3  # sd_listen_fds(3)
_DEFAULT_PORTS = {False: 2375, True: 2376}


@dataclass(slots=True)
class Listeners:
    """Listening sockets, and the TLS settings of those that are reached over a network."""

    plain: list[socket.socket] = field(default_factory=list[socket.socket])
    secure: list[socket.socket] = field(default_factory=list[socket.socket])
    tls: ssl.SSLContext | None = None


@contextlib.contextmanager
def pidfile(path: str) -> Iterator[None]:
    """Hold ``path`` with this process's id. ``SystemFailure`` while another running engine holds it.

    The lock, not the number, decides: a pid file that a crash left is taken over.
    """
    if not path:
        yield
        return
    os.makedirs(os.path.dirname(path), exist_ok=True)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            other = os.pread(fd, 32, 0).decode(errors="replace").strip()
            raise SystemFailure(f"process with PID {other} is still running") from error
        os.ftruncate(fd, 0)
        os.pwrite(fd, str(os.getpid()).encode(), 0)
        yield
        os.unlink(path)
    finally:
        os.close(fd)


@contextlib.contextmanager
def bind(config: Config) -> Iterator[Listeners]:
    """Every socket that the configuration names, listening. They are closed, and unix ones unlinked, at the end.

    ``InvalidParameter`` or ``OSError`` when one cannot be had; nothing is left then.
    """
    listeners = Listeners()
    with contextlib.ExitStack() as stack:
        if config.tls or config.tls_verify:
            listeners.tls = _tls(config)
        for host in config.hosts:
            scheme, _, rest = host.partition("://")
            if scheme == "unix":
                listeners.plain.append(stack.enter_context(_unix(rest, config.group)))
            elif scheme == "fd":
                listeners.plain += [stack.enter_context(passed) for passed in _passed(rest)]
            else:
                bound = stack.enter_context(_tcp(rest, secure=listeners.tls is not None))
                (listeners.secure if listeners.tls is not None else listeners.plain).append(bound)
        yield listeners


@contextlib.contextmanager
def _unix(path: str, group: str) -> Iterator[socket.socket]:
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise InvalidParameter(f"can't create unix socket {path}: it exists and is not a socket")
        # Who else serves it cannot be seen; the lock on the pid file and the data root keeps engines apart.
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX)
    with listener:
        old = os.umask(0o177)
        try:
            listener.bind(path)
        finally:
            os.umask(old)
        try:
            os.chown(path, 0, grp.getgrnam(group).gr_gid if group else 0)
        except KeyError:
            log.warning("could not change group %s to %s: group %s not found", path, group, group)
        except PermissionError:
            log.warning("could not change group %s to %s", path, group)
        os.chmod(path, 0o660)
        inode = os.lstat(path).st_ino
        listener.listen(_BACKLOG)
        try:
            yield listener
        finally:
            with contextlib.suppress(OSError):
                if os.lstat(path).st_ino == inode:
                    os.unlink(path)


@contextlib.contextmanager
def _tcp(address: str, *, secure: bool) -> Iterator[socket.socket]:
    name, _, port = address.rstrip("/").rpartition(":") if ":" in address else (address.rstrip("/"), "", "")
    if port and not (port.isascii() and port.isdecimal() and int(port) < 65536):
        raise InvalidParameter(f"invalid bind address (tcp://{address}): invalid port {port!r}")
    number = int(port) if port else _DEFAULT_PORTS[secure]
    if not secure:
        log.warning("binding to tcp://%s without TLS: whoever reaches it is root on this machine", address)
    try:
        family, _, _, _, where = socket.getaddrinfo(
            name.strip("[]") or "127.0.0.1", number, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise InvalidParameter(f"invalid bind address (tcp://{address}): {error.strerror}") from error
    with socket.create_server(where[:2], family=family, backlog=_BACKLOG) as listener:  # pyright: ignore[reportArgumentType]
        yield listener


def _passed(name: str) -> list[socket.socket]:
    """The sockets that systemd passes (sd_listen_fds(3)); ``name`` picks by LISTEN_FDNAMES or number, empty is all."""
    count = os.environ.get("LISTEN_FDS", "0")
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or not count.isdecimal() or int(count) == 0:
        raise InvalidParameter("no sockets found via socket activation: make sure the service was started by systemd")
    names = os.environ.get("LISTEN_FDNAMES", "").split(":")
    found: list[socket.socket] = []
    for offset in range(int(count)):
        fd = _FIRST_PASSED_FD + offset
        own = names[offset] if offset < len(names) else ""
        if name in ("", "*", own, str(fd)):
            os.set_inheritable(fd, False)
            found.append(socket.socket(fileno=fd))
    if not found:
        raise InvalidParameter(f"failed to find socket activation file {name!r}")
    return found


def _tls(config: Config) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    home = os.path.expanduser("~/.docker")
    certificate = config.tls_cert or f"{home}/cert.pem"
    key = config.tls_key or f"{home}/key.pem"
    try:
        context.load_cert_chain(certificate, key)
        if config.tls_verify:
            context.load_verify_locations(config.tls_ca_cert or f"{home}/ca.pem")
            context.verify_mode = ssl.CERT_REQUIRED
    except (OSError, ssl.SSLError) as error:
        raise InvalidParameter(f"could not load X509 key pair ({certificate}, {key}): {error}") from error
    return context


def notify(state: str) -> None:
    """Tell the service manager (sd_notify(3)); nothing happens where there is none."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender, contextlib.suppress(OSError):
        sender.sendto(state.encode(), address.replace("@", "\0", 1) if address[0] == "@" else address)

"""The sockets that the engine listens on: bound before anything else is loaded, so that early clients wait for us.

``unix://`` sockets are made 0660 for root and a group, and replace a stale one. ``tcp://`` may have TLS. ``fd://``
takes the sockets that systemd passes (sd_listen_fds(3)); its notification protocol (sd_notify(3)) is here as well.
"""

import contextlib
import errno
import grp
import logging
import os
import socket
import ssl
import stat
from collections.abc import Mapping
from dataclasses import dataclass

from compatd.config import Config, ConfigError

log = logging.getLogger(__name__)

BACKLOG = 4096
_FIRST_FD = 3  # SD_LISTEN_FDS_START


@dataclass(slots=True)
class Listeners:
    """Listening sockets with their TLS contexts. ``close`` removes the socket files that are ours."""

    sockets: list[tuple[socket.socket, ssl.SSLContext | None]]
    files: list[tuple[str, tuple[int, int]]]  # path, and (device, inode) of what we made there

    def close(self) -> None:
        """Close everything, and remove the socket files unless another engine has replaced them."""
        for sock, _ in self.sockets:
            sock.close()
        for path, made in self.files:
            with contextlib.suppress(OSError):
                found = os.stat(path)
                if (found.st_dev, found.st_ino) == made:
                    os.unlink(path)


def listen(config: Config, environ: Mapping[str, str] = os.environ) -> Listeners:
    """Bind and listen on every host of ``config``. ``ConfigError`` says which one cannot be had; none is left open."""
    listeners = Listeners([], [])
    try:
        tls = _tls_context(config) if config.tls else None
        for host in config.hosts:
            scheme, _, rest = host.partition("://")
            if scheme == "unix":
                _listen_unix(listeners, rest, config.group)
            elif scheme == "fd":
                listeners.sockets += [(sock, None) for sock in _activated(rest, environ)]
            else:
                _listen_tcp(listeners, rest, tls)
    except BaseException:
        listeners.close()
        raise
    return listeners


def _listen_unix(listeners: Listeners, path: str, group: str) -> None:
    try:
        os.makedirs(os.path.dirname(path) or "/", mode=0o755, exist_ok=True)
        _remove_stale(path)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listeners.sockets.append((sock, None))
        # Nobody may connect before the group is set.
        mask = os.umask(0o777)
        try:
            sock.bind(path)
        finally:
            os.umask(mask)
        made = os.stat(path)
        listeners.files.append((path, (made.st_dev, made.st_ino)))
        if os.geteuid() == 0:
            os.chown(path, 0, _group_id(group))
        os.chmod(path, 0o660)
        sock.listen(BACKLOG)
    except OSError as error:
        raise ConfigError(
            f"failed to load listeners: can't create unix socket {path}: {error.strerror or error}"
        ) from error


def _remove_stale(path: str) -> None:
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(found.st_mode):
        raise OSError(errno.EEXIST, "is in the way and no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            os.unlink(path)
            return
        except BlockingIOError:
            pass
    raise OSError(errno.EADDRINUSE, "another daemon listens there")


def _group_id(group: str) -> int:
    if group.isascii() and group.isdecimal():
        return int(group)
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        # dockerd says so and goes on, unless the group was asked for.
        if group != "docker":
            raise ConfigError(f"failed to load listeners: group {group} not found") from None
        log.warning("could not change group of the socket to docker: group docker not found")
        return 0


def _listen_tcp(listeners: Listeners, address: str, tls: ssl.SSLContext | None) -> None:
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if tls is None:
        log.warning(
            "API is accessible on http://%s without encryption: whoever reaches it has root on this host", address
        )
    try:
        for family, kind, protocol, _, where in socket.getaddrinfo(
            host or None, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        ):
            sock = socket.socket(family, kind, protocol)
            listeners.sockets.append((sock, tls))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            sock.bind(where)
            sock.listen(BACKLOG)
    except OSError as error:
        raise ConfigError(f"failed to load listeners: listen tcp {address}: {error.strerror or error}") from error


def _tls_context(config: Config) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(config.tls_cert, config.tls_key)
        if config.tls_verify:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(config.tls_ca_cert)
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f'invalid TLS configuration: Could not load X509 key pair (cert: "{config.tls_cert}", key:'
            f' "{config.tls_key}"): {error}'
        ) from error
    return context


def _activated(wanted: str, environ: Mapping[str, str]) -> list[socket.socket]:
    """The sockets that systemd passed: all, or the one of a name or number."""
    count = environ.get("LISTEN_FDS", "")
    if environ.get("LISTEN_PID") != str(os.getpid()) or not count.isdecimal() or int(count) == 0:
        raise ConfigError(
            "failed to load listeners: no sockets found via socket activation: make sure the service was"
            " started by systemd"
        )
    names = environ.get("LISTEN_FDNAMES", "").split(":")
    fds = range(_FIRST_FD, _FIRST_FD + int(count))
    chosen = [
        fd
        for fd in fds
        if wanted in ("", "*", str(fd)) or (fd - _FIRST_FD < len(names) and names[fd - _FIRST_FD] == wanted)
    ]
    if not chosen:
        raise ConfigError(f"failed to load listeners: failed to find systemd activated socket {wanted}")
    for fd in chosen:
        os.set_inheritable(fd, False)
    return [socket.socket(fileno=fd) for fd in chosen]


def notify(state: str, environ: Mapping[str, str] = os.environ) -> None:
    """Tell the service manager, if there is one: ``READY=1``, ``STOPPING=1``."""
    path = environ.get("NOTIFY_SOCKET", "")
    if not path.startswith(("/", "@")):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sock, contextlib.suppress(OSError):
        sock.sendto(state.encode(), "\0" + path[1:] if path.startswith("@") else path)

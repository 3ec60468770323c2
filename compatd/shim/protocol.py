"""The datagrams between engine, spawner and shim: one JSON document each, descriptors beside it.

Sockets are SOCK_SEQPACKET, so a message is whole or absent, and an empty one means that the peer has gone.
A document too large for a datagram travels in a memfd, which is then the message's last descriptor.

To the spawner:
    a launch      as ``encode_launch`` makes it; the Launch's descriptors, then one end of the shim's connection to
                  the engine

Engine to shim:
    signal        number: to the container's init
    cancel        the start is given up: kill, forget
    resize        height, width, exec_id (absent: the container's own terminal)
    attach        attach, its client's socket
    wait          wait, its client's socket
    exec          exec, its client's socket if it has one
    removed       the container is removed: waiters for that are answered
    reclaim       the container starts again: give back those who wait for its removal
    release       the engine has recorded the container's exit: waiters for that are answered, the shim may end

Shim to engine:
    forked        nothing has been done yet, and from here the launch must not be tried again
    state         pid, started_ns, phases, exit (or null), execs [{exec_id, pid, note, exit}]: first after a start that
                  succeeded, and first on every connection to a shim that runs
    failed        text, exit_code: the container did not start; nothing of it is left
    exited        exit
    exec_started  exec_id, pid
    exec_failed   exec_id, text, exit_code; when the exec has a client, the text has been written to it
    exec_exited   exec_id, exit
    waiter        the socket of a client that waits for the removal
    reclaimed     these were all
    detached      exec_id (null: the container's own stream): a client left by its detach keys

Whoever is connected last is the engine: events go to it alone.
"""

import json
import os
import socket
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict, cast

from compatd.linux.fds import FdSet, receive_message, send_message
from compatd.shim.spec import Attach, Cgroup, Launch, Log, MountOp, Namespaces, Overlay, Process, Wait

Message = dict[str, Any]

INLINE_BYTES = 1 << 15  # a datagram costs its size in socket buffer, of which there is about 200 KiB
MAX_BYTES = 1 << 24
SOCKET_NAME = "shim.sock"
EXIT_NAME = "exit"
_IN_MEMORY = b"memfd"


_encoder = json.JSONEncoder(separators=(",", ":"), check_circular=False)


def encode(message: Mapping[str, Any]) -> bytes:
    return _encoder.encode(message).encode()


class ShimShare(TypedDict):
    """What of a Launch the shim itself has to know."""

    id: str
    state_dir: str
    namespaces: Namespaces
    cgroup: Cgroup
    tty: bool
    open_stdin: bool
    stdin_once: bool
    log: Log
    attaches: list[Attach]
    waits: list[Wait]


class InitShare(TypedDict):
    """What only the container's init does."""

    state_dir: str
    namespaces: Namespaces
    hostname: str
    domainname: str
    sysctls: dict[str, str]
    overlay: Overlay
    mounts: list[MountOp]
    cgroup_joins: list[str]
    process: Process
    init: bool


def encode_launch(launch: Launch) -> bytes:
    """A launch as two lines, ShimShare and InitShare. The shim passes the second on unread: it lives long, and should
    not grow by what is needed for some milliseconds."""
    shim = ShimShare(
        id=launch["id"],
        state_dir=launch["state_dir"],
        namespaces=launch["namespaces"],
        cgroup=launch["cgroup"],
        tty=launch["process"]["tty"],
        open_stdin=launch["open_stdin"],
        stdin_once=launch["stdin_once"],
        log=launch["log"],
        attaches=launch["attaches"],
        waits=launch["waits"],
    )
    init = InitShare(
        state_dir=launch["state_dir"],
        namespaces=launch["namespaces"],
        hostname=launch["hostname"],
        domainname=launch["domainname"],
        sysctls=launch["sysctls"],
        overlay=launch["overlay"],
        mounts=launch["mounts"],
        cgroup_joins=launch["cgroup"]["joins"],
        process=launch["process"],
        init=launch["init"],
    )
    return encode(shim) + b"\n" + encode(init)


def send(sock: socket.socket, message: Mapping[str, Any], fds: Sequence[int] = ()) -> None:
    """Send one message with copies of ``fds``. ``OSError`` as sendmsg(2): the message is sent whole or not at all."""
    send_bytes(sock, encode(message), fds)


def send_bytes(sock: socket.socket, data: bytes, fds: Sequence[int] = ()) -> None:
    if len(data) <= INLINE_BYTES:
        send_message(sock, data, fds)
        return
    memory = os.memfd_create("message", os.MFD_CLOEXEC)
    try:
        os.truncate(memory, len(data))
        os.pwrite(memory, data, 0)
        send_message(sock, _IN_MEMORY, [*fds, memory])
    finally:
        os.close(memory)


def receive_bytes(sock: socket.socket) -> tuple[bytes, FdSet] | None:
    """Receive one datagram and its descriptors, which the caller owns; None when the peer has gone.

    ``BlockingIOError`` from a non-blocking socket with nothing to read; ``ValueError`` for a truncated one.
    """
    try:
        data, fds = receive_message(sock)
    except ConnectionResetError:  # the peer closed with something unread
        return None
    if not data:
        fds.close()
        return None
    return data, fds


def unwrap(data: bytes, fds: FdSet) -> bytes:
    """A datagram's document; one that travels in a memfd is read, and the memfd taken from ``fds``."""
    if data != _IN_MEMORY:
        return data
    memory = fds.pop()
    try:
        size = os.fstat(memory).st_size
        if size > MAX_BYTES:
            raise ValueError("message too large")
        return os.pread(memory, size, 0)
    finally:
        os.close(memory)


def receive(sock: socket.socket) -> tuple[Message, FdSet] | None:
    """Receive and decode one message; as ``receive_bytes``. ``ValueError`` for what is no message."""
    received = receive_bytes(sock)
    if received is None:
        return None
    data, fds = received
    try:
        message = json.loads(unwrap(data, fds))
        if not isinstance(message, dict) or "type" not in message:
            raise ValueError("not a message")
    except BaseException:
        fds.close()
        raise
    return cast(Message, message), fds

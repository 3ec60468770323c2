"""The datagrams between engine, spawner and shim: one JSON document each, descriptors beside it.

Sockets are SOCK_SEQPACKET, so a message is whole or absent, and an empty one means that the peer has gone.
A document too large for a datagram travels in a memfd, which is then the message's last descriptor.

To the spawner:
    launch        the Launch; its descriptors, then one end of the shim's connection to the engine

Engine to shim:
    signal        number: to the container's init
    cancel        the start is given up: kill, forget
    resize        height, width, exec_id (absent: the container's own terminal)
    attach        attach, its client's socket
    wait          wait, its client's socket
    exec          exec, its client's socket if it has one
    exec_release  exec_id: the engine has recorded the exec's exit; the client's stream may end now
    removed       the container is removed: waiters for that are answered
    release       the engine has recorded the container's exit: waiters for that are answered, the shim may end

Shim to engine:
    forked        nothing has been done yet, and from here the launch must not be tried again
    state         pid, started_ns, phases, exit (or null), execs [{exec_id, pid, exit}]: first after a start that
                  succeeded, and first on every connection to a shim that runs
    failed        text, exit_code: the container did not start; nothing of it is left
    exited        exit
    exec_started  exec_id, pid
    exec_failed   exec_id, text, exit_code; when the exec has a client, the text has been written to it
    exec_exited   exec_id, exit
    detached      exec_id (null: the container's own stream): a client left by its detach keys

Whoever is connected last is the engine: events go to it alone.
"""

import json
import os
import socket
from collections.abc import Mapping, Sequence
from typing import Any

from compatd.linux.fds import FdSet, receive_message, send_message

Message = dict[str, Any]

INLINE_BYTES = 1 << 15  # a datagram costs its size in socket buffer, of which there is about 200 KiB
MAX_BYTES = 1 << 24
SOCKET_NAME = "shim.sock"
EXIT_NAME = "exit"


def encode(message: Mapping[str, Any]) -> bytes:
    return json.dumps(message, separators=(",", ":")).encode()


def send(sock: socket.socket, message: Mapping[str, Any], fds: Sequence[int] = ()) -> None:
    """Send one message with copies of ``fds``. ``OSError`` as sendmsg(2): the message is sent whole or not at all."""
    data = encode(message)
    if len(data) <= INLINE_BYTES:
        send_message(sock, data, fds)
        return
    memory = os.memfd_create("message", os.MFD_CLOEXEC)
    try:
        os.truncate(memory, len(data))
        os.pwrite(memory, data, 0)
        send_message(sock, b'{"type":"memfd"}', [*fds, memory])
    finally:
        os.close(memory)


def receive(sock: socket.socket) -> tuple[Message, FdSet] | None:
    """Receive one message and its descriptors, which the caller owns; None when the peer has gone.

    ``BlockingIOError`` from a non-blocking socket with nothing to read; ``ValueError`` for what is no message.
    """
    try:
        data, fds = receive_message(sock)
    except ConnectionResetError:  # the peer closed with something unread
        return None
    if not data:
        fds.close()
        return None
    try:
        message = json.loads(data)
        if message["type"] == "memfd":
            memory = fds.steal(len(fds) - 1)
            try:
                if os.fstat(memory).st_size > MAX_BYTES:
                    raise ValueError("message too large")
                message = json.loads(os.pread(memory, MAX_BYTES, 0))
            finally:
                os.close(memory)
    except BaseException:
        fds.close()
        raise
    return message, fds

"""Descriptors across processes: datagrams that carry them, and sets that own them."""

import array
import contextlib
import os
import socket
from collections.abc import Iterable
from types import TracebackType

MAX_FDS = 250  # SCM_MAX_FD is 253, include/net/scm.h
MAX_MESSAGE_BYTES = 1 << 17


class FdSet:
    """Owns descriptors: what is not taken out is closed when the set is closed."""

    def __init__(self, fds: Iterable[int] = ()) -> None:
        self._fds = list(fds)

    def __len__(self) -> int:
        return len(self._fds)

    def steal(self, index: int) -> int:
        """Take the descriptor at ``index``; the caller owns it from here. ``IndexError``: not there or taken."""
        fd = self._fds[index]
        if fd < 0:
            raise IndexError(index)
        self._fds[index] = -1
        return fd

    def pop(self) -> int:
        """Take the last descriptor, and its place; the caller owns it from here. ``IndexError``: there is none."""
        if not self._fds or self._fds[-1] < 0:
            raise IndexError("no descriptor")
        return self._fds.pop()

    def close(self) -> None:
        """Close what was not taken."""
        for fd in self._fds:
            if fd >= 0:
                with contextlib.suppress(OSError):
                    os.close(fd)
        self._fds.clear()

    def __enter__(self) -> "FdSet":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def send_message(sock: socket.socket, message: bytes, fds: Iterable[int] = ()) -> None:
    """Send one datagram with copies of ``fds``; the caller keeps its own. ``OSError`` as sendmsg(2)."""
    passed = array.array("i", fds)
    ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, passed)] if passed else []
    sock.sendmsg([message], ancillary, socket.MSG_NOSIGNAL)


def receive_message(sock: socket.socket) -> tuple[bytes, FdSet]:
    """Receive one datagram and the descriptors it carries, close-on-exec. An empty one means the peer has gone.

    ``ValueError``: the datagram or its descriptors did not fit; they are closed then.
    """
    message, ancillary, flags, _ = sock.recvmsg(
        MAX_MESSAGE_BYTES, socket.CMSG_SPACE(MAX_FDS * 4), socket.MSG_CMSG_CLOEXEC
    )
    received = array.array("i")
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            received.frombytes(payload[: len(payload) - len(payload) % received.itemsize])
    fds = FdSet(received)
    if flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
        fds.close()
        raise ValueError("truncated message")
    return message, fds

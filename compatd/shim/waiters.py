"""Clients that wait for the container's end, or for its removal: their connections, and what is written there."""

import contextlib
import socket

from compatd.shim import protocol
from compatd.shim.loop import HUP, Loop
from compatd.shim.spec import Exit, Wait


class Waiters:
    """Owns the sockets; who hangs up is forgotten."""

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._entries: list[tuple[Wait, socket.socket]] = []

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, wait: Wait, sock: socket.socket) -> None:
        entry = (wait, sock)
        self._entries.append(entry)
        self._loop.watch(sock.fileno(), 0, lambda events: self._drop(entry) if events & HUP else None)

    def answer(self, exit_: Exit, *, removed: bool) -> None:
        """Tell those who wait for the end how it was, and when the container is ``removed``, everyone."""
        for entry in list(self._entries):
            wait, sock = entry
            if removed or wait["condition"] == "exit":
                sock.setblocking(False)
                with contextlib.suppress(OSError):
                    sock.send(_body(exit_), socket.MSG_NOSIGNAL)
                    sock.shutdown(socket.SHUT_WR)
                self._drop(entry)

    def give_back(self, engine: socket.socket) -> None:
        """Send the engine those who wait for the removal."""
        for entry in list(self._entries):
            if entry[0]["condition"] == "removed":
                with contextlib.suppress(OSError):
                    protocol.send(engine, {"type": "waiter"}, [entry[1].fileno()])
                    self._drop(entry)

    def _drop(self, entry: tuple[Wait, socket.socket]) -> None:
        self._entries.remove(entry)
        self._loop.forget(entry[1].fileno())
        entry[1].close()


def _body(exit_: Exit) -> bytes:
    """The rest of a chunked HTTP response whose head the engine has sent."""
    document: dict[str, object] = {}
    if "error" in exit_:
        document["Error"] = {"Message": exit_["error"]}
    document["StatusCode"] = exit_["code"]
    line = protocol.encode(document) + b"\n"
    return b"%x\r\n%s\r\n0\r\n\r\n" % (len(line), line)

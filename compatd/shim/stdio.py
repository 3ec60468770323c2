"""The standard streams of one process, and the clients that are attached to them.

Output is copied to the log and to every client. A client that reads slowly may lag by ``CLIENT_BUFFER_BYTES``; then
the process's output is no longer read until it has caught up, so the process blocks, as with Docker. So it is with a
log that says it is blocked. A client that
goes away harms nobody. Input comes from any of the clients; what the process does not read yet is not read from them
either.

Rules for the end of a client's input are those of moby daemon/container/stream/attach.go.
"""

import collections
import contextlib
import errno
import fcntl
import os
import socket
import struct
import termios
import time
from collections.abc import Callable

from compatd.shim import terminal
from compatd.shim.loop import HUP, IN, OUT, Handler, Loop, Timer
from compatd.shim.sink import Sink

READ_BYTES = 1 << 16
CLIENT_BUFFER_BYTES = 1 << 20
PIPE_BYTES = 1 << 18
LINGER_S = 2.0
HEAD_CHECK_S = 0.0005
HEAD_PATIENCE_S = 1.0

STDOUT, STDERR = 1, 2  # as the frames' headers number them
_STREAM = {STDOUT: "stdout", STDERR: "stderr"}


class DetachKeys:
    """Finds a key sequence in a client's input; a part of it is held back until it is known not to be one."""

    def __init__(self, keys: bytes) -> None:
        self._keys = keys
        self._held = b""

    def feed(self, data: bytes) -> tuple[bytes, bool]:
        """What may pass on, and whether the sequence is complete (nothing after it counts)."""
        data = self._held + data
        self._held = b""
        if not self._keys:
            return data, False
        found = data.find(self._keys)
        if found >= 0:
            return data[:found], True
        for length in range(min(len(self._keys) - 1, len(data)), 0, -1):
            if data.endswith(self._keys[:length]):
                self._held = data[-length:]
                return data[:-length], False
        return data, False


class Client:
    """One attached client. Owns its socket."""

    def __init__(
        self,
        stdio: "Stdio",
        sock: socket.socket,
        *,
        streams: frozenset[int],
        framed: bool,
        stdin: bool,
        keys: DetachKeys | None,
    ) -> None:
        self._stdio = stdio
        self._loop = stdio.loop
        self._sock = sock
        self.streams = streams
        self._framed = framed
        self.stdin = stdin
        self._keys = keys
        self._queue: collections.deque[memoryview] = collections.deque()
        self.queued_bytes = 0
        self._reads = True  # there may be more input
        self._sends = True  # the client may still take output
        self._finishing = False
        self._linger: Timer | None = None
        self._watched = -1
        sock.setblocking(False)
        # docker-py reads the response's head with a buffer and the rest without: what came with the head, it loses.
        self._head_deadline_s = time.monotonic() + HEAD_PATIENCE_S
        self._looks_for_head = False
        self.update()

    def send(self, stream: int, data: bytes) -> None:
        """Queue output for the client, if it wants this stream."""
        if stream not in self.streams or not self._sends or self._finishing:
            return
        header = struct.pack(">BxxxL", stream, len(data)) if self._framed else b""
        sent = 0
        if not self._queue and self._knows_head():
            try:
                sent = self._sock.sendmsg((header, data), (), socket.MSG_NOSIGNAL)
            except BlockingIOError:
                pass
            except OSError:
                self._output_lost()
                return
            if sent == len(header) + len(data):
                return
        self.queued_bytes += len(header) + len(data) - sent
        for part in (header, data):
            if sent < len(part):
                self._queue.append(memoryview(part)[sent:])
            sent = max(0, sent - len(part))
        if self._head_deadline_s and not self._looks_for_head:
            self._looks_for_head = True
            self._loop.later(HEAD_CHECK_S, self._look_for_head)
        self.update()

    def _knows_head(self) -> bool:
        """Whether the client has read what the engine sent it before its socket came here."""
        if self._head_deadline_s and (not _unread_bytes(self._sock) or time.monotonic() > self._head_deadline_s):
            self._head_deadline_s = 0.0
        return not self._head_deadline_s

    def _look_for_head(self) -> None:
        if self._sock.fileno() < 0:
            return
        if self._knows_head():
            self._flush()
        else:
            self._loop.later(HEAD_CHECK_S, self._look_for_head)

    @property
    def is_idle(self) -> bool:
        """Whether it is attached to nothing."""
        return not self.streams and not self.stdin

    def finish(self) -> None:
        """No more output will come: end the connection when what is queued has been sent."""
        self._finishing = True
        if not self._queue:
            self._end()

    def update(self) -> None:
        """Watch for what this client is waiting for now."""
        events = 0
        if self._reads and (not self.stdin or self._stdio.takes_input or self._linger is not None):
            events |= IN
        if self._queue and not self._head_deadline_s:
            events |= OUT
        if not events and not self._sends:
            events = -1  # it hangs up all the time, but there may be input to be read later
        if events != self._watched:
            self._watched = events
            if events < 0:
                self._loop.forget(self._sock.fileno())
            else:
                self._loop.watch(self._sock.fileno(), events, self._on_event)

    def close(self) -> None:
        if self._linger is not None:
            self._loop.cancel(self._linger)
        self._loop.forget(self._sock.fileno())
        self._sock.close()
        self._queue.clear()
        self.queued_bytes = 0
        self._stdio.client_gone(self)

    def _on_event(self, events: int) -> None:
        if events & OUT:
            self._flush()
        if self._sock.fileno() < 0:
            return
        if events & IN:
            self._read()
        elif events & HUP:
            self._output_lost()

    def _read(self) -> None:
        try:
            data = self._sock.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
            self._sends = False
        if not data:
            self._reads = False
            if self.stdin and not self._finishing:
                self._stdio.input_ended(self)
            if self._sock.fileno() < 0:
                return
            if self._linger is not None or not self._sends:
                self._gone()
            else:
                self.update()
        elif self.stdin and not self._finishing:
            self.accept(data)

    def accept(self, data: bytes) -> None:
        """Input from the client."""
        detached = False
        if self._keys is not None:
            data, detached = self._keys.feed(data)
        if data:
            self._stdio.write(data)
        if detached:
            self._stdio.detached(self)

    def _flush(self) -> None:
        while self._queue:
            try:
                sent = self._sock.sendmsg(list(self._queue)[:64], (), socket.MSG_NOSIGNAL)
            except BlockingIOError:
                break
            except OSError:
                self._output_lost()
                return
            self.queued_bytes -= sent
            while sent and sent >= len(self._queue[0]):
                sent -= len(self._queue.popleft())
            if sent:
                self._queue[0] = self._queue[0][sent:]
        self._stdio.client_drained()
        if self._finishing and not self._queue:
            self._end()
        else:
            self.update()

    def _output_lost(self) -> None:
        self._sends = False
        self._queue.clear()
        self.queued_bytes = 0
        if self._reads and self.stdin and not self._finishing:
            self.update()
            self._stdio.client_drained()
        else:
            self._gone()

    def _end(self) -> None:
        """All is sent. Closing with input unread would reset the connection and lose output that the client has not
        read yet, so its input is read away until it closes too."""
        if self._linger is not None:
            return
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._gone()
            return
        self._linger = self._loop.later(LINGER_S, self._gone)
        if self._reads:
            self.update()
        else:
            self._gone()

    def _gone(self) -> None:
        ended = self._reads and self.stdin
        self._reads = False
        self.close()
        if ended:
            self._stdio.input_ended(self)


class Stdio:
    """Owns the shim's ends of one process's pipes or of its terminal, and its clients.

    ``closes_stdin``: the process's input ends with the first client's (StdinOnce, and every exec).
    ``changed`` is called when an output has ended or a client has gone.
    """

    def __init__(
        self,
        loop: Loop,
        *,
        closes_stdin: bool,
        log: Sink | None,
        detached: Callable[[], None],
        changed: Callable[[], None],
    ) -> None:
        self.loop = loop
        self._closes_stdin = closes_stdin
        self._log = log
        self._on_detached = detached
        self._changed = changed
        self._stdin = -1
        self._outputs: dict[int, int] = {}  # descriptor → stream
        self._master = -1
        self._slave = -1  # kept open, or the terminal would hang up whenever the container has it closed
        self._pending = b""  # input that the process has not taken yet
        self._closing_stdin = False
        self._clients: list[Client] = []
        self._paused = False
        self._exited = False
        self._begun = False

    # Setting up

    def use_pipes(self, stdin: int, stdout: int, stderr: int) -> None:
        """Take over the shim's ends; -1 where there is none."""
        if stdin >= 0:
            os.set_blocking(stdin, False)
            self._stdin = stdin
        for fd, stream in ((stdout, STDOUT), (stderr, STDERR)):
            if fd >= 0:
                os.set_blocking(fd, False)
                with contextlib.suppress(OSError):
                    fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
                self._outputs[fd] = stream

    def use_terminal(self, master: int) -> None:
        """Take over a terminal's master."""
        os.set_blocking(master, False)
        self._master = master
        self._stdin = os.dup(master)
        self._open_slave()
        self._outputs[master] = STDOUT

    def begin(self) -> None:
        """Start reading: those who are to hear the first word are attached by now."""
        self._resume()
        self._begun = True
        for client in list(self._clients):
            if client.is_idle:
                client.finish()

    def attach(
        self,
        sock: socket.socket,
        *,
        stdin: bool,
        stdout: bool,
        stderr: bool,
        keys: bytes,
        head: bytes,
        framed: bool | None = None,
    ) -> None:
        """Serve a client whose response head has been sent. ``head``: input that was read from it already.

        ``framed``: see ``spec.Attach``; None: unless there is a terminal.
        """
        streams = frozenset(stream for stream, wanted in ((STDOUT, stdout), (STDERR, stderr)) if wanted)
        client = Client(
            self,
            sock,
            streams=streams,
            framed=self._master < 0 if framed is None else framed,
            stdin=stdin and (self._stdin >= 0 or self._closing_stdin),
            keys=DetachKeys(keys) if self._master >= 0 else None,
        )
        self._clients.append(client)
        if head and client.stdin:
            client.accept(head)
        if (not self._outputs and self._exited) or (self._begun and client.is_idle):
            client.finish()

    def resize(self, height: int, width: int) -> None:
        if self._master >= 0:
            with contextlib.suppress(OSError):
                terminal.resize(self._master, height, width)

    # State

    @property
    def open(self) -> bool:
        """Whether output may still come."""
        return bool(self._outputs)

    @property
    def is_terminal(self) -> bool:
        return self._master >= 0

    @property
    def attended(self) -> bool:
        """Whether any client is there."""
        return bool(self._clients)

    @property
    def takes_input(self) -> bool:
        """Whether the process (or nobody, which takes everything) is ready for input."""
        return not self._pending

    # The end

    def process_ended(self) -> bool:
        """The process is dead: read what it left. True when all of it has come.

        Nobody's slowness counts now, since what is in a pipe or a terminal is bounded.
        """
        self._exited = True
        self._drop_stdin()
        if self._slave >= 0:
            os.close(self._slave)
            self._slave = -1
        for fd, stream in list(self._outputs.items()):
            for _ in range(2 * PIPE_BYTES // READ_BYTES):
                if fd not in self._outputs or not self._read(fd, stream):
                    break
        return not self._outputs

    def close_outputs(self) -> None:
        """Others may hold the streams open; they have no reader from now on."""
        for fd in list(self._outputs):
            self._end_output(fd)

    def finish(self) -> None:
        """Tell the clients that all has been said."""
        self._exited = True
        for client in list(self._clients):
            client.finish()

    def say(self, text: str) -> None:
        """Words of the engine's own, as output; to every client, whatever it is attached to."""
        for client in list(self._clients):
            client.streams |= {STDOUT}
            client.send(STDOUT, text.encode(errors="replace"))

    # From the process

    def _resume(self) -> None:
        self._paused = False
        for fd in self._outputs:
            self.loop.watch(fd, IN, self._reader(fd))

    def _reader(self, fd: int) -> Handler:
        return lambda _: self._on_output(fd)

    def _on_output(self, fd: int) -> None:
        self._read(fd, self._outputs[fd])
        if not self._exited and (self._lags(CLIENT_BUFFER_BYTES) or (self._log is not None and self._log.blocked)):
            self._paused = True
            for output in self._outputs:
                self.loop.forget(output)

    def _read(self, fd: int, stream: int) -> bool:
        """Copy one chunk; False when there is none now."""
        try:
            data = os.read(fd, READ_BYTES)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno == errno.EIO and not self._exited and self._open_slave():
                return False  # it hung up (vhangup(2), as a login does) but the process lives
            data = b""
        if not data:
            self._end_output(fd)
            return False
        for client in list(self._clients):
            client.send(stream, data)
        if self._log is not None:
            self._log.write(_STREAM[stream], data)
        return True

    def _end_output(self, fd: int) -> None:
        stream = self._outputs.pop(fd)
        self.loop.forget(fd)
        os.close(fd)
        if fd == self._master:
            self._master = -1
        if self._log is not None:
            self._log.end(_STREAM[stream])
        self._changed()

    def _open_slave(self) -> bool:
        if self._slave >= 0:
            os.close(self._slave)
            self._slave = -1
        try:
            self._slave = terminal.slave(self._master)
        except OSError:
            return False
        return True

    # To the process

    def write(self, data: bytes) -> None:
        """Input for the process; it is dropped when it takes no more."""
        if self._stdin < 0 or self._closing_stdin:
            return
        if self._pending:
            self._pending += data
            return
        self._pending = data
        self._push()

    def _push(self) -> None:
        try:
            self._pending = self._pending[os.write(self._stdin, self._pending) :]
        except BlockingIOError:
            pass
        except OSError:
            self._drop_stdin()
            return
        if self._pending:
            self.loop.watch(self._stdin, OUT, lambda _: self._push())
        else:
            self.loop.forget(self._stdin)
            if self._closing_stdin:
                self._drop_stdin()
                return
        self._update_clients()

    def _drop_stdin(self) -> None:
        if self._stdin >= 0:
            self.loop.forget(self._stdin)
            os.close(self._stdin)
            self._stdin = -1
            self._pending = b""
            self._closing_stdin = True
            self._update_clients()

    def _update_clients(self) -> None:
        for client in list(self._clients):
            client.update()

    # From the clients

    def input_ended(self, client: Client) -> None:
        """A client will send no more, or has gone."""
        if self._closes_stdin and self._master < 0:
            self._closing_stdin = True
            if not self._pending:
                self._drop_stdin()
            if not client.streams and client in self._clients:
                client.finish()
        elif client in self._clients:
            client.finish()

    def detached(self, client: Client) -> None:
        """A client has typed its detach keys."""
        self._on_detached()
        client.stdin = False
        client.finish()

    def _lags(self, queued_bytes: int) -> bool:
        return any(client.queued_bytes > queued_bytes for client in self._clients)

    def client_drained(self) -> None:
        """A client, or the log, has taken what it was behind with."""
        if self._paused and not self._lags(CLIENT_BUFFER_BYTES // 2) and not (self._log and self._log.blocked):
            self._resume()

    def client_gone(self, client: Client) -> None:
        if client in self._clients:
            self._clients.remove(client)
        self.client_drained()
        self._changed()


def _unread_bytes(sock: socket.socket) -> int:
    """What the other side of a local socket has not read yet (unix(7), SIOCOUTQ)."""
    (count,) = struct.unpack("i", fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)))
    return int(count)

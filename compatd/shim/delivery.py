"""Logging to a syslog server or to journald, over a socket, with a copy in a file for those who read logs.

Messages wait in a queue for the socket. While the other side is there but slow, the process waits as well (mode
blocking), or what comes is lost (non-blocking); while it is away, the process goes on, what fits into the queue is
kept for when it is back, and the rest is only in the copy. Docker loses all that comes while it is away (moby
daemon/logger/syslog, vendored srslog: one attempt per message).
"""

import collections
import errno
import fcntl
import itertools
import os
import socket
import time
from collections.abc import Callable, Sequence
from typing import Any

from compatd.shim.jsonlog import timestamp
from compatd.shim.lines import Lines, Partial
from compatd.shim.logfile import LogFile
from compatd.shim.loop import HUP, IN, OUT, Loop, Timer
from compatd.shim.spec import Journal, Log, Syslog

BUFFER_BYTES = 1_000_000  # moby daemon/logger/ring.go
LINGER_S = 10.0  # moby daemon/container/monitor.go, loggerCloseTimeout
RETRY_S = 1.0
_BATCH_BYTES = 1 << 16
_DOUBTFUL = 16  # messages
_ERROR, _INFO = 3, 6  # syslog(3)
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
_DATAGRAMS = ("udp", "unixgram")


class SyslogFormat:
    """Messages as moby daemon/logger/syslog and srslog's formatters make them."""

    def __init__(self, syslog: Syslog) -> None:
        self._format = syslog["format"]
        self._priority = syslog["priority"]
        self._sender = f" {syslog['tag']}[{os.getpid()}]: "
        self._counted = self._format.startswith("rfc5424") and syslog["network"] == "tcp+tls"  # RFC 5425
        hostname = os.uname().nodename
        if self._format == "rfc3164":
            self._sender = f" {hostname}{self._sender}"
        elif self._format:
            self._sender = f" {hostname} {syslog['tag']} {os.getpid()} {syslog['tag']} - "

    def messages(self, stream: str, piece: bytes, _: Partial | None) -> list[bytes]:
        """One for each line that is not empty."""
        head = f"<{self._priority | (_ERROR if stream == 'stderr' else _INFO)}>{self._time()}{self._sender}"
        start = head.encode(errors="surrogateescape")
        lines = [start + line + b"\n" for line in piece.split(b"\n") if line]
        return [b"%d %s" % (len(line), line) for line in lines] if self._counted else lines

    def _time(self) -> str:
        now_ns = time.time_ns()
        local = time.localtime(now_ns // 1_000_000_000)
        if not self._format.startswith("rfc5424"):
            return time.strftime("%b ", local) + f"{local.tm_mday:2}" + time.strftime(" %H:%M:%S", local)
        zone = time.strftime("%z", local)
        fraction = f".{now_ns // 1000 % 1_000_000:06}" if self._format == "rfc5424micro" else ""
        offset = "Z" if zone == "+0000" else f"{zone[:3]}:{zone[3:]}"
        return "1 " + time.strftime("%Y-%m-%dT%H:%M:%S", local) + fraction + offset


class JournalFormat:
    """Entries of journald's native protocol (systemd.io/JOURNAL_NATIVE_PROTOCOL) with the fields of moby
    daemon/logger/journald."""

    def __init__(self, journal: Journal) -> None:
        epoch = os.urandom(32).hex()
        self._fields = b"".join(
            _field(name, value.encode(errors="surrogateescape")) for name, value in journal["fields"].items()
        ) + _field("CONTAINER_LOG_EPOCH", epoch.encode())
        self._ordinal = 0

    def messages(self, stream: str, piece: bytes, partial: Partial | None) -> list[bytes]:
        """One entry for each line."""
        now_ns = time.time_ns()
        common = self._fields
        if partial is not None:
            now_ns = partial.time_ns
            last = "true" if partial.last else "false"
            common += (
                f"CONTAINER_PARTIAL_ID={partial.id}\nCONTAINER_PARTIAL_ORDINAL={partial.ordinal}\n"
                f"CONTAINER_PARTIAL_LAST={last}\n" + ("" if partial.last else "CONTAINER_PARTIAL_MESSAGE=true\n")
            ).encode()
        common += f"SYSLOG_TIMESTAMP={timestamp(now_ns)}\n".encode()
        lines = piece.split(b"\n")
        if piece.endswith(b"\n"):
            lines.pop()
        start = f"PRIORITY={_ERROR if stream == 'stderr' else _INFO}\nMESSAGE=".encode()
        entries: list[bytes] = []
        for line in lines:
            self._ordinal += 1
            entries.append(b"%s%s\n%sCONTAINER_LOG_ORDINAL=%d\n" % (start, line, common, self._ordinal))
        return entries


def _field(name: str, value: bytes) -> bytes:
    if b"\n" not in value:
        return name.encode() + b"=" + value + b"\n"
    return name.encode() + b"\n" + len(value).to_bytes(8, "little") + value + b"\n"


class Delivery:
    """Owns the socket, the queue and the copy."""

    def __init__(self, log: Log, descriptors: Sequence[int], loop: Loop, drained: Callable[[], None]) -> None:
        """``OSError`` when the copy's file cannot be opened."""
        self._loop = loop
        self._drained = drained
        self._limit_bytes = log.get("buffer", BUFFER_BYTES)
        self._patient = "buffer" not in log
        self._lines = {"stdout": Lines(), "stderr": Lines()}
        self._copy = LogFile({**log, "driver": "local"}, loop, drained) if "path" in log else None
        self._tls: Any = None
        self._server_name = ""
        self._format: SyslogFormat | JournalFormat
        if "journal" in log:
            journal = log["journal"]
            self._format = JournalFormat(journal)
            self._network, self._addresses = "unixgram", [(journal["path"], 0)]
        else:
            syslog = log.get("syslog", _NOWHERE)
            self._format = SyslogFormat(syslog)
            self._network, self._addresses = syslog["network"], syslog["addresses"]
            if self._network == "tcp+tls":
                self._tls = _tls_context(syslog)
                self._server_name = syslog.get("server_name", "")
        self._queue: collections.deque[bytes] = collections.deque()
        self._queued_bytes = 0
        self._sent_bytes = 0  # of the first message in the queue
        self._sock: Any = None  # ssl's sockets are not known before ssl is
        self._up = False  # connected, and shaken hands
        self._away = False  # the last attempt to be so has failed
        self._watched = 0
        # The other side will say no more: it has gone, or only half. What it is sent then is sent again if it had gone.
        self._deaf = False
        self._doubtful: collections.deque[bytes] = collections.deque(maxlen=_DOUBTFUL)
        self._next = 0  # address
        self._tried_s = -RETRY_S
        self._retry: Timer | None = None
        self._linger: Timer | None = None
        self._given_up = False
        if "fd" in log:
            self._adopt(socket.socket(fileno=os.dup(descriptors[log["fd"]])))
            self._up = True
        else:
            self._connect()

    # The sink

    @property
    def blocked(self) -> bool:
        if self._copy is not None and self._copy.blocked:
            return True
        return self._patient and not self._away and self._queued_bytes >= self._limit_bytes

    def write(self, stream: str, data: bytes) -> None:
        for piece, partial in self._lines[stream].feed(data):
            self._record(stream, piece, partial)
        self._deliver()

    def end(self, stream: str) -> None:
        for piece, partial in self._lines[stream].end():
            self._record(stream, piece, partial)
        self._deliver()

    def lingers(self) -> bool:
        if not self._queue or self._given_up:
            return False
        if self._linger is None:
            self._linger = self._loop.later(LINGER_S, self._give_up)
        return True

    def close(self) -> None:
        self._disconnect()
        if self._copy is not None:
            self._copy.close()

    def _give_up(self) -> None:
        self._given_up = True

    def _record(self, stream: str, piece: bytes, partial: Partial | None) -> None:
        if self._copy is not None:
            self._copy.record(stream, piece, partial)
        loses = self._away or not self._patient  # else what comes beyond the limit is a chunk at most
        for message in self._format.messages(stream, piece, partial):
            if loses and self._queue and self._queued_bytes + len(message) > self._limit_bytes:
                continue
            self._queue.append(message)
            self._queued_bytes += len(message)

    # The socket

    def _deliver(self) -> None:
        if self._up:
            self._flush()
        elif self._queue and self._sock is None and self._retry is None:
            delay_s = self._tried_s + RETRY_S - time.monotonic()
            self._retry = self._loop.later(max(0.0, delay_s), self._connect)

    def _connect(self) -> None:
        """Set out to the next address; what comes of it, the loop tells."""
        self._retry = None
        self._tried_s = time.monotonic()
        if not self._addresses:
            return
        host, port = self._addresses[self._next % len(self._addresses)]
        self._next += 1
        address: Any = host
        family, kind = socket.AF_UNIX, socket.SOCK_DGRAM if self._network in _DATAGRAMS else socket.SOCK_STREAM
        if port:
            family, address = (socket.AF_INET6 if ":" in host else socket.AF_INET), (host, port)
        try:
            sock = socket.socket(family, kind)
            sock.setblocking(False)
            error = sock.connect_ex(address)
            self._adopt(sock)
        except OSError as failure:  # no descriptors left
            error = failure.errno or errno.EIO
        if error in (0, errno.EINPROGRESS):
            self._watch(OUT)
        else:
            self._lose()

    def _adopt(self, sock: Any) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._sent_bytes = 0
        self._watched = -1
        self._deaf = False
        self._watch(IN)

    def _watch(self, events: int) -> None:
        if events != self._watched:
            self._watched = events
            self._loop.watch(self._sock.fileno(), events, self._on_event)

    def _disconnect(self) -> None:
        if self._sock is not None:
            if self._sock.fileno() >= 0:
                self._loop.forget(self._sock.fileno())
            self._sock.close()
            self._sock = None
        self._up = False

    def _lose(self) -> None:
        """The other side is not there (any more). Another attempt follows, if there is something to say."""
        self._disconnect()
        was_blocked = self.blocked
        self._away = True
        self._queue.extendleft(reversed(self._doubtful))
        self._queued_bytes += sum(map(len, self._doubtful))
        self._doubtful.clear()
        if was_blocked:
            self._drained()  # nobody waits for one who is away
        self._deliver()

    def _on_event(self, events: int) -> None:
        try:
            if not self._up:
                self._shake_hands()
            if self._network == "udp":
                self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)  # nobody was there, but may be now
            elif events & HUP:
                raise ConnectionResetError
            elif not self._deaf and not self._sock.recv(_BATCH_BYTES):
                if self._tls is not None:
                    raise ConnectionResetError
                self._deaf = True
        except OSError as error:
            wanted = _must_wait(error)
            if not wanted:
                self._lose()
                return
            if not self._up:
                self._watch(wanted)
                return
        self._flush()

    def _shake_hands(self) -> None:
        """Come up. ``OSError`` when that is not possible, or not yet."""
        if error := self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            raise OSError(error, os.strerror(error))
        if self._tls is not None:
            if not hasattr(self._sock, "do_handshake"):
                self._sock = self._tls.wrap_socket(
                    self._sock, server_hostname=self._server_name or None, do_handshake_on_connect=False
                )
            self._sock.do_handshake()
        self._up, self._away = True, False

    def _flush(self) -> None:
        """Send what can be sent."""
        was_blocked = self.blocked
        try:
            while self._queue:
                self._send()
        except OSError as error:
            if not _must_wait(error):
                self._lose()
                return
        self._watch((0 if self._deaf else IN) | (OUT if self._queue else 0))
        if was_blocked and not self.blocked:
            self._drained()

    def _send(self) -> None:
        if self._network in _DATAGRAMS:
            self._send_datagram(self._queue[0])
            self._taken()
            return
        # A batch starts with what is left of the first message; after an error that one is sent again as a whole.
        batch = bytearray(self._queue[0][self._sent_bytes :])
        for message in itertools.islice(self._queue, 1, None):
            if len(batch) >= _BATCH_BYTES:
                break
            batch += message
        sent = self._sock.send(batch) if self._tls else self._sock.send(batch, socket.MSG_NOSIGNAL)
        self._sent_bytes += sent
        while self._queue and self._sent_bytes >= len(self._queue[0]):
            self._sent_bytes -= len(self._queue[0])
            self._taken()

    def _taken(self) -> None:
        message = self._queue.popleft()
        self._queued_bytes -= len(message)
        if self._deaf:
            self._doubtful.append(message)

    def _send_datagram(self, message: bytes) -> None:
        """``OSError`` when it should be tried again; a message that cannot be sent at all is dropped."""
        for _ in range(2):
            try:
                self._sock.send(message, socket.MSG_NOSIGNAL)
                return
            except OSError as error:
                if error.errno == errno.EMSGSIZE or (error.errno == errno.ENOBUFS and self._network == "unixgram"):
                    if isinstance(self._format, JournalFormat):
                        self._send_memory(message)
                    return
                # The answer to an earlier datagram: nobody was there for that one.
                if error.errno != errno.ECONNREFUSED or self._network != "udp":
                    raise

    def _send_memory(self, message: bytes) -> None:
        """An entry too large for a datagram goes as a sealed memfd."""
        memory = os.memfd_create("journal-entry", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(memory, len(message))
            os.pwrite(memory, message, 0)
            fcntl.fcntl(memory, fcntl.F_ADD_SEALS, _SEALS)
            rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, memory.to_bytes(4, "little"))]
            self._sock.sendmsg([b""], rights, socket.MSG_NOSIGNAL)
        finally:
            os.close(memory)


_NOWHERE = Syslog(network="unixgram", addresses=[], priority=0, format="", tag="")


def _must_wait(error: OSError) -> int:
    """What to wait for before the same is tried again; 0 if it is of no use."""
    if isinstance(error, BlockingIOError):
        return IN | OUT
    name = type(error).__name__
    return IN if name == "SSLWantReadError" else IN | OUT if name == "SSLWantWriteError" else 0


def _tls_context(syslog: Syslog) -> Any:
    """``OSError`` when a file cannot be read; the engine has looked whether they are good."""
    import ssl  # megabytes, which only who asks for it shall pay

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if syslog.get("skip_verify"):
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif "ca" in syslog:
        context.load_verify_locations(syslog["ca"])
    else:
        context.load_default_certs()
    if "certificate" in syslog:
        context.load_cert_chain(syslog["certificate"], syslog.get("key"))
    return context

"""Logging over sockets: syslog as Docker 28.5.2 words it, journald's native protocol, and servers that come and go."""

import array
import contextlib
import os
import re
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from compatd.logs.files import Selection, records
from compatd.logs.local import Local
from compatd.shim import delivery
from compatd.shim.delivery import Delivery
from compatd.shim.loop import Loop
from compatd.shim.spec import Journal, Log, Syslog
from tests.fakes import tls

pytestmark = pytest.mark.unit

HOST = re.escape(os.uname().nodename)
STAMP = r"[A-Z][a-z]{2} [ 1-3][0-9] [0-9:]{8}"
INSTANT = r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:]{8}%s(Z|[+-][0-9:]{5})"


class Delivering:
    """A delivery and its loop, turned here."""

    def __init__(self, tmp_path: Path, **log: Any) -> None:
        self.loop = Loop()
        self.drained = 0
        self.path = tmp_path / "copy"
        fds = log.pop("fds", [])
        document = Log(driver="syslog", path=str(self.path))
        document.update(log)  # type: ignore[typeddict-item]
        self.delivery = Delivery(document, fds, self.loop, self._drain)

    def _drain(self) -> None:
        self.drained += 1

    def turn(self) -> None:
        timer = self.loop.later(0.005, lambda: None)
        self.loop.turn()
        self.loop.cancel(timer)

    def until(self, condition: Any, what: str) -> None:
        deadline = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < deadline, f"never: {what}"
            self.turn()

    def copy(self) -> bytes:
        return b"".join(record.line for record in records(str(self.path), Selection(), Local()))


class Server:
    """A syslog server of one connection at a time."""

    def __init__(self, family: int, kind: int, address: Any) -> None:
        self.family, self.kind = family, kind
        self.sock = socket.socket(family, kind)
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.sock.bind(address)
        if kind == socket.SOCK_STREAM:
            self.sock.listen()
        self.sock.setblocking(False)
        self.connection: socket.socket | None = None
        self.received = b""
        self.datagrams: list[bytes] = []

    @property
    def address(self) -> tuple[str, int]:
        name: Any = self.sock.getsockname()
        return (name, 0) if isinstance(name, str) else (name[0], name[1])

    def serve(self) -> bytes:
        with contextlib.suppress(BlockingIOError):
            while True:
                if self.kind == socket.SOCK_DGRAM:
                    self.datagrams.append(self.sock.recv(1 << 17))
                    self.received += self.datagrams[-1]
                elif self.connection is None:
                    self.connection, _ = self.sock.accept()
                    self.connection.setblocking(False)
                elif data := self.connection.recv(1 << 16):
                    self.received += data
                else:
                    self.connection.close()
                    self.connection = None
        return self.received

    def drop(self) -> None:
        if self.connection is not None:
            self.connection.close()
            self.connection = None

    def close(self) -> None:
        self.drop()
        self.sock.close()

    def dial(self) -> socket.socket:
        client = socket.socket(self.family, self.kind)
        client.connect(self.sock.getsockname())
        return client


@pytest.fixture
def servers() -> Iterator[list[Server]]:
    made: list[Server] = []
    yield made
    for server in made:
        server.close()


def make(servers: list[Server], network: str, tmp_path: Path) -> Server:
    kind = socket.SOCK_STREAM if network in ("tcp", "unix") else socket.SOCK_DGRAM
    if network.startswith("unix"):
        server = Server(socket.AF_UNIX, kind, str(tmp_path / "server"))
    else:
        server = Server(socket.AF_INET, kind, ("127.0.0.1", 0))
    servers.append(server)
    return server


def syslog(server: Server, network: str, form: str = "", **more: Any) -> Syslog:
    document = Syslog(
        network=network,  # type: ignore[typeddict-item]
        addresses=[server.address],
        priority=3 << 3,
        format=form,  # type: ignore[typeddict-item]
        tag="a-tag",
    )
    document.update(more)  # type: ignore[typeddict-item]
    return document


@pytest.mark.parametrize("network", ["tcp", "udp", "unix", "unixgram"])
def test_messages_as_docker_sends_them(servers: list[Server], tmp_path: Path, network: str) -> None:
    server = make(servers, network, tmp_path)
    with server.dial() as client:
        delivering = Delivering(tmp_path, syslog=syslog(server, network), fds=[client.fileno()], fd=0)
    delivering.delivery.write("stdout", b"one\n\ntwo \xff\nthr")
    delivering.delivery.write("stderr", b"err\n")
    delivering.delivery.end("stdout")
    delivering.until(lambda: b"thr\n" in server.serve(), "all is there")
    lines = server.received.decode("latin-1").splitlines()
    pid = os.getpid()
    for line, (priority, text) in zip(lines, [(30, "one"), (30, "two ÿ"), (27, "err"), (30, "thr")], strict=True):
        assert re.fullmatch(rf"<{priority}>{STAMP} a-tag\[{pid}\]: {text}", line), line
    if network in ("udp", "unixgram"):
        assert len(server.datagrams) == 4
    assert delivering.copy() == b"one\n\ntwo \xff\nerr\nthr"
    assert not delivering.delivery.lingers()
    delivering.delivery.close()


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("rfc3164", rf"<30>{STAMP} {HOST} a-tag\[PID\]: text"),
        ("rfc5424", rf"<30>1 {INSTANT % ''} {HOST} a-tag PID a-tag - text"),
        ("rfc5424micro", rf"<30>1 {INSTANT % '[.][0-9]{6}'} {HOST} a-tag PID a-tag - text"),
    ],
)
def test_formats(servers: list[Server], tmp_path: Path, form: str, expected: str) -> None:
    server = make(servers, "udp", tmp_path)
    delivering = Delivering(tmp_path, syslog=syslog(server, "udp", form))
    delivering.delivery.write("stdout", b"text\n")
    delivering.until(server.serve, "the message")
    assert re.fullmatch(expected.replace("PID", str(os.getpid())) + "\n", server.received.decode())
    delivering.delivery.close()


@pytest.mark.parametrize("network", ["tcp", "unix", "unixgram"])
def test_a_server_that_goes_and_comes_back(
    servers: list[Server], tmp_path: Path, network: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "RETRY_S", 0.05)
    server = make(servers, network, tmp_path)
    address: Any = server.sock.getsockname()
    delivering = Delivering(tmp_path, syslog=syslog(server, network))
    delivering.delivery.write("stdout", b"first\n")
    delivering.until(lambda: b"first\n" in server.serve(), "the first message")
    server.close()
    if network.startswith("unix"):
        os.unlink(address)
    for _ in range(3):
        delivering.turn()
    delivering.delivery.write("stdout", b"while it is away\n")
    for _ in range(20):
        delivering.turn()
    assert not delivering.delivery.blocked
    assert delivering.delivery.lingers()
    servers[:] = [Server(server.family, server.kind, address)]
    delivering.delivery.write("stdout", b"when it is back\n")
    delivering.until(lambda: b"back\n" in servers[0].serve(), "what was said meanwhile")
    assert [line.rpartition(b": ")[2] for line in servers[0].received.splitlines()] == [
        b"while it is away",
        b"when it is back",
    ]
    assert not delivering.delivery.lingers()
    delivering.delivery.close()


def test_a_slow_server_blocks_or_costs_messages(servers: list[Server], tmp_path: Path) -> None:
    server = make(servers, "tcp", tmp_path)
    chunk = (b"x" * 999 + b"\n") * 60
    patient = Delivering(tmp_path, syslog=syslog(server, "tcp"))
    for _ in range(1000):
        patient.delivery.write("stdout", chunk)
        if patient.delivery.blocked:
            break
        patient.turn()
    assert patient.delivery.blocked
    said = patient.copy().count(b"\n")
    patient.until(lambda: server.serve().count(b"\n") == said, "all of it")
    assert not patient.delivery.blocked
    assert patient.drained >= 1
    patient.delivery.close()
    server.drop()

    (tmp_path / "other").mkdir()
    hasty = Delivering(tmp_path / "other", syslog=syslog(server, "tcp"), buffer=10_000)
    sent = len(server.serve())
    for _ in range(400):
        hasty.delivery.write("stdout", chunk)
        assert not hasty.delivery.blocked
    hasty.until(lambda: server.serve() and not hasty.delivery._queue, "what was kept")
    assert len(server.received) - sent < 23_000 * 1000
    assert hasty.copy().count(b"\n") == 24_000
    hasty.delivery.close()


def test_nobody_waits_for_ever(servers: list[Server], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A container's end is not held up by a server that takes nothing."""
    monkeypatch.setattr(delivery, "LINGER_S", 0.1)
    server = make(servers, "udp", tmp_path)
    nowhere = syslog(server, "tcp", addresses=[server.address])
    delivering = Delivering(tmp_path, syslog=nowhere)
    delivering.delivery.write("stdout", b"unheard\n")
    assert delivering.delivery.lingers()
    delivering.until(lambda: not delivering.delivery.lingers(), "it gives up")
    assert delivering.copy() == b"unheard\n"
    delivering.delivery.close()


def test_udp_does_not_care(servers: list[Server], tmp_path: Path) -> None:
    server = make(servers, "udp", tmp_path)
    address = server.sock.getsockname()
    delivering = Delivering(tmp_path, syslog=syslog(server, "udp"))
    server.close()
    for _ in range(5):
        delivering.delivery.write("stdout", b"unheard\n")
        delivering.turn()
    began = time.monotonic()
    delivering.turn()
    assert time.monotonic() - began > 0.004  # nothing keeps it busy
    servers[:] = [Server(socket.AF_INET, socket.SOCK_DGRAM, address)]
    delivering.delivery.write("stdout", b"heard\n")
    delivering.until(servers[0].serve, "the message")
    assert servers[0].received.endswith(b": heard\n")
    delivering.delivery.close()


@pytest.mark.parametrize("form", ["", "rfc5424"])
def test_tls(tmp_path: Path, form: str) -> None:
    """Whose frames count bytes where RFC 5425 asks for it, and which only talks to the server it was told of."""
    certificate, key = tmp_path / "certificate", tmp_path / "key"
    certificate.write_text(tls.CERTIFICATE)
    key.write_text(tls.KEY)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    received: list[bytes] = []

    def serve() -> None:
        for _ in range(2):
            connection, _ = listener.accept()
            with contextlib.suppress(ssl.SSLError), context.wrap_socket(connection, server_side=True) as secured:
                secured.settimeout(10)
                while data := secured.recv(1000):
                    received.append(data)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        document = Syslog(
            network="tcp+tls",
            addresses=[listener.getsockname()],
            priority=0,
            format=form,  # type: ignore[typeddict-item]
            tag="t",
            ca=str(certificate),
            server_name="example.com",
        )
        wary = Delivering(tmp_path, syslog=document)
        wary.delivery.write("stdout", b"not for you\n")
        wary.until(lambda: wary.delivery._away, "it has seen the certificate")
        wary.delivery.close()
        trusting = Delivering(tmp_path, syslog=Syslog(**{**document, "server_name": "localhost"}))
        trusting.delivery.write("stdout", b"one\ntwo\n")
        trusting.until(lambda: b"".join(received).endswith(b"two\n"), "the messages")
        trusting.delivery.close()
        thread.join()
    lines = b"".join(received).splitlines(keepends=True)
    assert [line[-4:] for line in lines] == [b"one\n", b"two\n"]
    if form:
        assert all(int(line.split()[0]) == len(line) - len(line.split()[0]) - 1 for line in lines)


# ---------------------------------------------------------------- journald


class Journald:
    """Takes entries apart as journald does."""

    def __init__(self, path: Path) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.bind(str(path))
        self.sock.setblocking(False)
        self.entries: list[dict[str, bytes]] = []

    def serve(self) -> int:
        with contextlib.suppress(BlockingIOError):
            while True:
                data, ancillary, _, _ = self.sock.recvmsg(1 << 20, 64)
                for _, _, rights in ancillary:
                    (fd,) = array.array("i", rights)
                    data = os.pread(fd, 1 << 24, 0)
                    os.close(fd)
                self.entries.append(dict(self._fields(data)))
        return len(self.entries)

    def _fields(self, data: bytes) -> Iterator[tuple[str, bytes]]:
        while data:
            line, _, data = data.partition(b"\n")
            name, separator, value = line.partition(b"=")
            if not separator:
                size = int.from_bytes(data[:8], "little")
                value, data = data[8 : 8 + size], data[9 + size :]
            yield name.decode(), value


@pytest.fixture
def journald(tmp_path: Path) -> Iterator[Journald]:
    journald = Journald(tmp_path / "socket")
    yield journald
    journald.sock.close()


def test_journal_entries(journald: Journald, tmp_path: Path) -> None:
    fields = {"CONTAINER_ID": "abc", "CONTAINER_NAME": "n", "LABEL": "two\nlines"}
    delivering = Delivering(tmp_path, journal=Journal(path=str(tmp_path / "socket"), fields=fields))
    delivering.delivery.write("stdout", b"one\n\n" + b"x" * 20_000 + b"\n")
    delivering.delivery.write("stderr", b"err \xff=\n")
    delivering.until(lambda: journald.serve() == 5, "the entries")
    entries = journald.entries
    assert [entry["MESSAGE"] for entry in entries] == [b"one", b"", b"x" * 16384, b"x" * 3616, b"err \xff="]
    assert [entry["PRIORITY"] for entry in entries] == [b"6", b"6", b"6", b"6", b"3"]
    assert [entry["CONTAINER_LOG_ORDINAL"] for entry in entries] == [b"1", b"2", b"3", b"4", b"5"]
    assert all(entry["LABEL"] == b"two\nlines" and entry["CONTAINER_ID"] == b"abc" for entry in entries)
    assert len({entry["CONTAINER_LOG_EPOCH"] for entry in entries}) == 1
    assert re.fullmatch(rb"[0-9T:-]{19}(\.[0-9]{1,9})?Z", entries[0]["SYSLOG_TIMESTAMP"])
    first, last = entries[2:4]
    assert first["CONTAINER_PARTIAL_ID"] == last["CONTAINER_PARTIAL_ID"]
    assert (first["CONTAINER_PARTIAL_ORDINAL"], last["CONTAINER_PARTIAL_ORDINAL"]) == (b"1", b"2")
    assert (first["CONTAINER_PARTIAL_LAST"], last["CONTAINER_PARTIAL_LAST"]) == (b"false", b"true")
    assert first["CONTAINER_PARTIAL_MESSAGE"] == b"true"
    assert "CONTAINER_PARTIAL_MESSAGE" not in last
    assert "CONTAINER_PARTIAL_ID" not in entries[0]
    assert first["SYSLOG_TIMESTAMP"] == last["SYSLOG_TIMESTAMP"]
    delivering.delivery.close()


def test_a_large_entry_travels_in_memory(journald: Journald, tmp_path: Path) -> None:
    fields = {"BIG": "b" * 1_000_000}
    delivering = Delivering(tmp_path, journal=Journal(path=str(tmp_path / "socket"), fields=fields))
    delivering.delivery.write("stdout", b"one\ntwo\n")
    delivering.until(lambda: journald.serve() == 2, "the entries")
    assert [(entry["MESSAGE"], len(entry["BIG"])) for entry in journald.entries] == [
        (b"one", 1_000_000),
        (b"two", 1_000_000),
    ]
    delivering.delivery.close()


def test_a_journal_that_is_slow(journald: Journald, tmp_path: Path) -> None:
    delivering = Delivering(tmp_path, journal=Journal(path=str(tmp_path / "socket"), fields={}))
    for number in range(500):
        delivering.delivery.write("stdout", b"%d\n" % number)
    delivering.until(lambda: journald.serve() == 500, "the entries")
    assert [int(entry["MESSAGE"]) for entry in journald.entries] == list(range(500))
    delivering.delivery.close()

"""Reading logs whole, from the end, across rotation, and while they are written."""

import asyncio
import json
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compatd.linux.inotify import Watches
from compatd.logs import files
from compatd.logs.files import Follow, Selection, records, stream
from compatd.logs.format import Rendering, format_time
from compatd.logs.json_file import JsonFile
from compatd.shim import logfile
from compatd.tasks import Workers, spawn

pytestmark = pytest.mark.unit

PLAIN = Rendering(framed=False)
ALL = Selection()


def line(text: str, time_ns: int, stream: str = "stdout") -> bytes:
    document = {"log": text, "stream": stream, "time": format_time(time_ns).decode() + "Z"}
    return json.dumps(document, separators=(",", ":")).encode() + b"\n"


class Writer:
    """Writes and rotates as the shim does."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.count = 0

    def write(self, lines: int = 1) -> None:
        with self.path.open("ab") as log:
            for _ in range(lines):
                self.count += 1
                log.write(line(f"{self.count}\n", self.count))

    def rotate(self, *, compress: bool = False) -> None:
        parts = sorted(int(part.name.split(".")[2]) for part in self.path.parent.glob(self.path.name + ".*"))
        for number in reversed(parts):
            for suffix in ("", ".gz"):
                old = self.path.with_name(f"{self.path.name}.{number}{suffix}")
                if old.exists():
                    old.rename(self.path.with_name(f"{self.path.name}.{number + 1}{suffix}"))
        first = self.path.with_name(self.path.name + ".1")
        self.path.rename(first)
        if compress:
            logfile.compress(str(first), self.count)


@pytest.fixture
def writer(tmp_path: Path) -> Writer:
    return Writer(tmp_path / "c-json.log")


def texts(path: Path, selection: Selection = ALL) -> list[int]:
    return [int(record.line) for record in records(str(path), selection, JsonFile())]


def test_a_log_that_does_not_exist_is_empty(tmp_path: Path) -> None:
    assert texts(tmp_path / "none" / "c-json.log") == []


def test_rotated_and_compressed_parts_come_in_order(writer: Writer) -> None:
    for compress in (True, False, True):
        writer.write(3)
        writer.rotate(compress=compress)
    writer.write(2)
    (writer.path.parent / "c-json.log.bak").write_bytes(line("99", 99))
    assert texts(writer.path) == list(range(1, 12))


def test_the_last_line_without_newline_is_not_there_yet(writer: Writer) -> None:
    writer.write(2)
    with writer.path.open("ab") as log:
        log.write(b'{"log":"3')
    assert texts(writer.path) == [1, 2]
    assert texts(writer.path, Selection(tail=1)) == [2]


@given(
    parts=st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=3),
    last=st.integers(0, 9),
    tail=st.integers(0, 30),
)
@settings(max_examples=60, deadline=None)
def test_tail_is_the_end_of_the_whole(
    parts: list[tuple[int, bool]], last: int, tail: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("tail")
    writer = Writer(folder / "c-json.log")
    for count, compress in parts:
        writer.write(count)
        writer.rotate(compress=compress)
    writer.write(last)
    everything = texts(writer.path)
    assert len(everything) == writer.count
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "CHUNK_BYTES", 100)
        assert texts(writer.path) == everything
        assert texts(writer.path, Selection(tail=tail)) == everything[len(everything) - min(tail, len(everything)) :]
    shutil.rmtree(folder)


def test_tail_reads_only_the_end(writer: Writer, monkeypatch: pytest.MonkeyPatch) -> None:
    writer.write(20_000)
    read = 0
    pread = os.pread

    def counting(fd: int, size: int, offset: int) -> bytes:
        nonlocal read
        read += size
        return pread(fd, size, offset)

    monkeypatch.setattr(os, "pread", counting)
    assert texts(writer.path, Selection(tail=5)) == list(range(19_996, 20_001))
    assert read <= files.CHUNK_BYTES < writer.path.stat().st_size


def test_span_of_time_applies_after_tail(writer: Writer) -> None:
    writer.write(10)
    assert texts(writer.path, Selection(since_ns=4, until_ns=6)) == [4, 5, 6]
    assert texts(writer.path, Selection(since_ns=4, until_ns=6, tail=5)) == [6]


def test_the_span_goes_by_its_first_and_last_message(writer: Writer) -> None:
    """Whatever the clock does in between (moby daemon/logger/loggerutils/logfile.go, forwarder)."""
    times = (3, 5, 2, 6, 9, 4)
    writer.path.write_bytes(b"".join(line(f"{time}\n", time) for time in times))
    assert texts(writer.path, Selection(since_ns=4)) == [5, 2, 6, 9, 4]
    assert texts(writer.path, Selection(since_ns=4, until_ns=6)) == [5, 2, 6]
    assert texts(writer.path, Selection(since_ns=10)) == []


def test_compressed_parts_that_are_too_old_are_not_read(writer: Writer) -> None:
    writer.write(3)
    writer.rotate(compress=True)
    writer.write(2)
    part = writer.path.with_name(writer.path.name + ".1.gz")
    head = part.read_bytes()[:100]
    part.write_bytes(head[: head.index(b"}") + 1])  # nothing but its header
    assert texts(writer.path, Selection(since_ns=5)) == [5]


def test_a_truncated_compressed_part_gives_what_it_has(writer: Writer) -> None:
    writer.write(3)
    writer.rotate(compress=True)
    writer.write(1)
    part = writer.path.with_name(writer.path.name + ".1.gz")
    part.write_bytes(part.read_bytes()[:-9])
    assert texts(writer.path)[-1] == 4


# ---------------------------------------------------------------- following


class Following:
    """A follower and what it has delivered."""

    def __init__(self, writer: Writer, selection: Selection = ALL) -> None:
        self.writer = writer
        self.selection = selection
        self.stopped: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        self.watches = Watches()
        self.workers = Workers(1)
        self.seen: list[int] = []
        self.grown = asyncio.Condition()

    async def __aenter__(self) -> "Following":
        self.task = spawn(self._run(), name="follower")
        return self

    async def __aexit__(self, *_: object) -> None:
        self.task.cancel()
        await asyncio.wait([self.task])
        self.watches.close()
        self.workers.close()

    async def _run(self) -> None:
        pieces: AsyncIterator[bytes] = stream(
            str(self.writer.path),
            self.selection,
            PLAIN,
            codec=JsonFile(),
            workers=self.workers,
            follow=Follow(watches=self.watches, stopped=self.stopped),
        )
        async for piece in pieces:
            async with self.grown:
                self.seen += [int(text) for text in piece.split()]
                self.grown.notify_all()

    async def until(self, last: int) -> None:
        async with asyncio.timeout(10), self.grown:
            await self.grown.wait_for(lambda: last in self.seen)

    async def settled(self) -> None:
        """Until the log has been read a first time: the one worker does its calls in order."""
        while not following_has_begun(self):
            await asyncio.sleep(0)
        await self.workers.run(int)

    async def end(self) -> None:
        self.stopped.set_result(None)
        async with asyncio.timeout(10):
            await self.task


def following_has_begun(following: Following) -> bool:
    return bool(following.watches._wakes)


async def test_follow_gets_what_is_written_and_ends_when_the_container_stops(writer: Writer) -> None:
    writer.write(3)
    async with Following(writer) as following:
        await following.until(3)
        writer.write(2)
        await following.until(5)
        writer.write(1)
        following.stopped.set_result(None)  # the last line is read although nobody woke the reader for it
        async with asyncio.timeout(10):
            await following.task
        assert following.seen == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("compress", [False, True])
async def test_follow_across_rotations(writer: Writer, compress: bool) -> None:
    writer.write(2)
    async with Following(writer) as following:
        await following.until(2)
        for _ in range(4):
            writer.write(50)
            writer.rotate(compress=compress)
            writer.write(1)
        await following.until(writer.count)
        await following.end()
        assert following.seen == list(range(1, writer.count + 1))


async def test_follow_only_the_new(writer: Writer) -> None:
    writer.write(3)
    async with Following(writer, Selection(tail=0)) as following:
        await following.settled()
        writer.write(1)
        await following.until(4)
        assert following.seen == [4]
        await following.end()


async def test_follow_a_log_that_comes_later(writer: Writer) -> None:
    async with Following(writer, Selection(tail=0)) as following:
        await following.settled()
        writer.write(2)
        await following.until(2)
        assert following.seen == [1, 2]
        await following.end()


async def test_follow_an_emptied_log(writer: Writer) -> None:
    writer.write(5)
    async with Following(writer) as following:
        await following.until(5)
        os.truncate(writer.path, 0)
        writer.write(2)
        await following.until(7)
        assert following.seen == [1, 2, 3, 4, 5, 6, 7]


async def test_follow_ends_at_until(writer: Writer) -> None:
    writer.write(3)
    async with Following(writer, Selection(until_ns=2)) as following:
        async with asyncio.timeout(10):
            await following.task
        assert following.seen == [1, 2]


async def test_a_follower_that_leaves_gives_everything_back(writer: Writer) -> None:
    writer.write(1)
    before = len(os.listdir("/proc/self/fd"))
    async with Following(writer) as following:
        await following.until(1)
    assert len(os.listdir("/proc/self/fd")) == before

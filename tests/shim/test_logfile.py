"""Log files: rotation, compression, and what goes wrong with them."""

import gzip
import os
import resource
import signal
from pathlib import Path
from typing import Any

import pytest

from compatd.logs.files import Codec, Selection, records
from compatd.logs.json_file import JsonFile
from compatd.logs.local import Local
from compatd.shim.logfile import LogFile, compress
from compatd.shim.loop import Loop
from compatd.shim.spec import Log

pytestmark = pytest.mark.unit
CODECS: dict[str, Codec] = {"json-file": JsonFile(), "local": Local()}


class Writing:
    """A log file and the loop that it works with."""

    def __init__(self, path: Path, **options: Any) -> None:
        self.path = path
        self.options: dict[str, Any] = {"driver": "json-file", **options}
        self.loop = Loop()
        self.drained = 0
        self.log = self.open()

    def open(self) -> LogFile:
        log = Log(path=str(self.path), **self.options)  # type: ignore[typeddict-item]
        return LogFile(log, self.loop, self._drain)

    def _drain(self) -> None:
        self.drained += 1

    def lines(self) -> list[bytes]:
        return [record.line for record in records(str(self.path), Selection(), CODECS[self.options["driver"]])]

    def names(self) -> list[str]:
        return sorted(path.name for path in self.path.parent.iterdir())


@pytest.fixture(params=["json-file", "local"])
def driver(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def numbered(begin: int, end: int) -> bytes:
    return b"".join(b"line %d\n" % number for number in range(begin, end))


def test_rotation_keeps_records_whole_and_in_order(tmp_path: Path, driver: str) -> None:
    writing = Writing(tmp_path / "log", driver=driver, max_size=200, max_file=3)
    writing.log.write("stdout", numbered(0, 30))
    writing.log.close()
    assert writing.names() == ["log", "log.1", "log.2"]
    lines = writing.lines()
    assert b"".join(lines) == numbered(30 - len(lines), 30)
    # the record that reaches the limit still goes in
    assert all(200 <= (tmp_path / name).stat().st_size < 300 for name in ("log.1", "log.2"))


def test_one_file_begins_anew(tmp_path: Path, driver: str) -> None:
    writing = Writing(tmp_path / "log", driver=driver, max_size=200)
    before = os.stat(tmp_path / "log").st_ino
    with (tmp_path / "log").open("rb"):
        writing.log.write("stdout", b"x\n" * 1000)
        writing.log.close()
        assert writing.names() == ["log"]
        assert os.stat(tmp_path / "log").st_ino != before  # who reads the old one can finish
    assert (tmp_path / "log").stat().st_size <= 200 + 100


def test_compression(tmp_path: Path, driver: str) -> None:
    writing = Writing(tmp_path / "log", driver=driver, max_size=400_000, max_file=3, compress=True)
    for number in range(9000):
        writing.log.write("stdout", b"line %d %s\n" % (number, b"word " * 20))
        while writing.log.blocked:
            writing.loop.turn()
    assert writing.drained > 0
    writing.log.close()
    assert writing.names() == ["log", "log.1.gz", "log.2.gz"]
    assert (tmp_path / "log.1.gz").stat().st_mode & 0o777 == 0o640
    assert len(gzip.decompress((tmp_path / "log.1.gz").read_bytes())) >= 400_000
    numbers = [int(line.split()[1]) for line in writing.lines()]
    assert numbers == list(range(9000 - len(numbers), 9000))


def test_who_may_not_wait_loses_what_exceeds_the_buffer(tmp_path: Path) -> None:
    writing = Writing(tmp_path / "log", max_size=1000, max_file=2, compress=True, buffer=2000)
    writing.log.write("stdout", b"x" * 900 + b"\n")
    writing.log.write("stdout", b"y" * 900 + b"\n" + b"z\n")  # rotates
    assert writing.log._compressor is not None
    os.kill(writing.log._compressor[0], signal.SIGSTOP)
    for _ in range(9):
        writing.log.write("stdout", b"z" * 500 + b"\n")
        assert not writing.log.blocked
    assert 2000 < (tmp_path / "log").stat().st_size <= 3000
    os.kill(writing.log._compressor[0], signal.SIGCONT)
    writing.log.close()


def test_a_compression_that_was_cut_short_is_made_up_for(tmp_path: Path) -> None:
    (tmp_path / "log.1").write_bytes(b"old\n")
    (tmp_path / "log.1.gz.tmp").write_bytes(b"\x1f\x8b")
    writing = Writing(tmp_path / "log", max_size=1000, max_file=2, compress=True)
    writing.log.close()
    assert writing.names() == ["log", "log.1.gz"]
    assert gzip.decompress((tmp_path / "log.1.gz").read_bytes()) == b"old\n"
    compress(str(tmp_path / "log.1"), 0)  # another had it done
    assert writing.names() == ["log", "log.1.gz"]


def test_an_uncompressed_part_is_moved_along(tmp_path: Path) -> None:
    writing = Writing(tmp_path / "log", max_size=200, max_file=4)
    writing.log.write("stdout", numbered(0, 5))
    writing.log.close()
    writing.options["compress"] = True
    log = writing.open()
    log.write("stdout", numbered(5, 12))
    log.close()
    lines = writing.lines()
    assert b"".join(lines) == numbered(12 - len(lines), 12)
    assert len(lines) >= 8


@pytest.mark.parametrize("cut", [2, 5, 20, 60])
def test_a_torn_record_is_mended(tmp_path: Path, driver: str, cut: int) -> None:
    writing = Writing(tmp_path / "log", driver=driver)
    writing.log.write("stdout", b"first\n" + b"x" * 100 + b"\n")
    writing.log.close()
    os.truncate(tmp_path / "log", (tmp_path / "log").stat().st_size - cut)
    log = writing.open()
    log.write("stdout", b"second\n")
    log.close()
    assert writing.lines() == [b"first\n", b"second\n"]


def test_a_full_disk_costs_what_does_not_fit(tmp_path: Path, driver: str) -> None:
    """Shown by the limit on a file's size, which is as abrupt."""
    writing = Writing(tmp_path / "log", driver=driver)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        writing.log.write("stdout", numbered(0, 100))
        kept = writing.lines()
        assert 5 < len(kept) < 100
        writing.log.write("stdout", b"lost\n" * 99)
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        writing.log.write("stderr", b"after\n")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    writing.log.close()
    lines = writing.lines()
    assert b"".join(lines).startswith(b"".join(kept))
    assert lines[-1] == b"after\n"
    assert set(lines) <= {*kept, b"lost\n", b"after\n"}


def test_a_log_that_was_taken_away_is_written_again_after_its_rotation(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    writing = Writing(folder / "log", max_size=300, max_file=2)
    writing.log.write("stdout", numbered(0, 2))
    (folder / "log").unlink()
    folder.rmdir()
    writing.log.write("stdout", numbered(2, 20))  # goes nowhere
    folder.mkdir()
    writing.log.write("stdout", numbered(20, 40))
    writing.log.close()
    assert writing.lines()[-1] == b"line 39\n"

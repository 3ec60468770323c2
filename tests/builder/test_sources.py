import os
import tempfile
from pathlib import Path

import pytest

from compatd.builder.ports import Fetched
from compatd.builder.sources import decompress, downloaded, find_sources, inside, is_url, open_unnamed
from compatd.builder.trees import ArchiveTree, open_section
from compatd.errors import InvalidParameter, SystemFailure
from tests.fakes.builder import EngineArchives, make_tar

pytestmark = pytest.mark.unit


def _go_on() -> None:
    """The build was not cancelled."""


def test_tells_urls_from_paths() -> None:
    assert is_url("http://x/y")
    assert is_url("https://x")
    assert not is_url("ftp://x")
    assert not is_url("dir/http://x")


@pytest.mark.parametrize(
    ("path", "parts"),
    [("a/b", (b"a", b"b")), ("/a", (b"a",)), ("./", ()), ("", ()), ("a/../b", (b"b",))],
)
def test_paths_inside(path: str, parts: tuple[bytes, ...]) -> None:
    assert inside(path) == parts


@pytest.mark.parametrize("path", ["..", "../a", "a/../../b", "/../a"])
def test_paths_outside(path: str) -> None:
    with pytest.raises(SystemFailure, match="forbidden path outside the build context"):
        inside(path)


def test_digests_stop_when_asked() -> None:
    with tempfile.TemporaryFile() as file:
        file.write(make_tar({f"f{number}": "x" for number in range(100)}))
        file.flush()
        tree = ArchiveTree.index(EngineArchives().read(open_section(file.fileno())), file.fileno())
        calls: list[None] = []

        def check() -> None:
            calls.append(None)
            if len(calls) > 5:
                raise SystemFailure("build cancelled")

        with pytest.raises(SystemFailure, match="build cancelled"):
            find_sources(tree, ".", from_context=True, check=check)
        assert len(calls) == 6


@pytest.mark.parametrize(
    ("url", "disposition", "name"),
    [
        ("http://h/a/b.txt?q=1#f", "", b"b.txt"),
        ("http://h/a%20b", "", b"a b"),
        ("http://h/d/", 'attachment; filename="n.txt"', b"n.txt"),
        ("http://h/d/", 'attachment; filename="../../n.txt"', b"n.txt"),
        ("http://h", "attachment; filename*=UTF-8''%e2%82%ac", "€".encode()),
        ("http://h", "", b"__unnamed__"),
        ("http://h/..", "", b"__unnamed__"),
        ("http://h/%00", "", b"__unnamed__"),
    ],
)
def test_names_of_downloads(url: str, disposition: str, name: bytes) -> None:
    with tempfile.TemporaryFile() as file:
        source = downloaded(
            url, Fetched(content_disposition=disposition, last_modified="bad"), file.fileno(), "/x", _go_on
        )
        assert (source.name, source.inode.mtime_ns, source.inode.mode) == (name, 0, 0o600)


def test_unnamed_files_leave_nothing(tmp_path: Path) -> None:
    fd = open_unnamed(tmp_path)
    os.write(fd, b"x")
    assert list(tmp_path.iterdir()) == []
    os.close(fd)


def test_damaged_archives_leave_nothing(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with tempfile.TemporaryFile() as file:
        file.write(__import__("gzip").compress(os.urandom(100_000))[:50_000])
        file.flush()
        with pytest.raises(InvalidParameter):
            decompress(EngineArchives(), open_section(file.fileno()), tmp_path, _go_on)
    assert len(os.listdir("/proc/self/fd")) == before
    assert list(tmp_path.iterdir()) == []

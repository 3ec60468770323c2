"""The directory that paths cannot leave."""

import errno
import os
import re
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from compatd.linux.rootdir import Rootdir

pytestmark = pytest.mark.unit


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "outside").write_text("outside")
    root = tmp_path / "root"
    (root / "usr/lib").mkdir(parents=True)
    (root / "usr/lib/file").write_text("inside")
    (root / "lib").symlink_to("usr/lib")
    (root / "absolute").symlink_to("/usr/lib/file")
    (root / "escape").symlink_to("../outside")
    (root / "up").symlink_to("../../../../..")
    (root / "loop").symlink_to("loop")
    (root / "dangling").symlink_to("/made/later")
    os.mkfifo(root / "fifo")
    return root


@pytest.fixture
def root(tree: Path) -> Iterator[Rootdir]:
    with Rootdir.of(tree) as opened:
        yield opened


def refused(number: int) -> AbstractContextManager[object]:
    return pytest.raises(OSError, match=re.escape(os.strerror(number)))


def test_links_end_inside(root: Rootdir) -> None:
    for path in ("lib/file", "absolute", "/absolute", "../../usr/lib/file", b"up/lib/file", "up/up/usr/../lib/file"):
        assert root.read(path, 100) == b"inside"
    with pytest.raises(FileNotFoundError):
        root.read("escape", 100)
    assert not root.exists("escape")
    assert not root.exists("loop")
    assert root.readlink("escape") == b"../outside"


def test_special_files_do_not_block_and_are_no_regular_files(root: Rootdir) -> None:
    with refused(errno.EINVAL):
        root.open_regular("fifo")
    with refused(errno.EISDIR):
        root.open_regular("usr")
    with refused(errno.EINVAL):
        root.readlink("fifo")


def test_read_is_bounded(root: Rootdir) -> None:
    with refused(errno.EFBIG):
        root.read("absolute", 5)


def test_magic_links_are_refused(tmp_path: Path) -> None:
    with Rootdir.of("/proc/self") as proc, pytest.raises(OSError, match="symbolic links"):
        proc.open("root", os.O_PATH)


def test_resolve(root: Rootdir) -> None:
    assert root.resolve("lib/../lib/file") == b"/usr/lib/file"
    assert root.resolve("absolute") == b"/usr/lib/file"
    assert root.resolve("up/../..") == b"/"
    assert root.resolve("dangling/x/../y") == b"/made/later/y"
    assert root.resolve("escape") == b"/outside"
    assert root.resolve("usr/lib/file/below") == b"/usr/lib/file/below"
    with refused(errno.ELOOP):
        root.resolve("loop/x")


def test_makedirs_follows_links_inside(root: Rootdir, tree: Path) -> None:
    root.makedirs("lib/new/deep", 0o751, os.getuid(), os.getgid())
    root.makedirs("escape/x", 0o700, os.getuid(), os.getgid())
    root.makedirs("dangling/x", 0o2775, os.getuid(), os.getgid())
    assert stat.S_IMODE((tree / "usr/lib/new").stat().st_mode) == 0o751
    assert (tree / "outside/x").is_dir()
    assert (tree.parent / "outside").is_file()
    assert stat.S_IMODE((tree / "made/later/x").stat().st_mode) == 0o2775
    root.makedirs("usr", 0o700, os.getuid(), os.getgid())
    assert stat.S_IMODE((tree / "usr").stat().st_mode) != 0o700
    with pytest.raises(NotADirectoryError):
        root.makedirs("usr/lib/file/x")


def test_making_and_changing(root: Rootdir, tree: Path) -> None:
    root.symlink("/etc", "lib/etc")
    root.link("lib/file", "up/hard")
    root.link("absolute", "link-to-link")
    root.mknod("lib/pipe", stat.S_IFIFO | 0o600)
    assert (tree / "usr/lib/etc").is_symlink()
    assert os.path.samefile(tree / "hard", tree / "usr/lib/file")
    assert os.readlink(tree / "link-to-link") == "/usr/lib/file"
    root.utime("absolute", 5_000_000_007)
    root.utime("absolute", 7, follow=False)
    root.chmod("absolute", 0o604)
    assert (tree / "usr/lib/file").stat().st_mtime_ns == 5_000_000_007
    assert (tree / "absolute").lstat().st_mtime_ns == 7
    assert stat.S_IMODE((tree / "usr/lib/file").stat().st_mode) == 0o604
    root.chown("absolute", os.getuid(), os.getgid(), follow=False)
    root.setxattr("absolute", "user.note", b"\0x")
    assert root.xattrs("absolute") == {"user.note": b"\0x"}
    assert root.xattrs("absolute", follow=False) == {}
    root.rename("lib/pipe", "pipe")
    root.unlink("pipe")
    assert [name for name, status in root.entries("usr/lib") if not stat.S_ISDIR(status.st_mode)] == [b"etc", b"file"]
    for path in ("/", "", "usr/..", "."):
        with refused(errno.EINVAL):
            root.unlink(path)


def test_rmtree_takes_links_not_their_targets(root: Rootdir, tree: Path) -> None:
    (tree / "bin").mkdir()
    (tree / "bin/inner").symlink_to(tree / "usr")
    root.rmtree("bin")
    root.rmtree("lib")
    root.rmtree("missing/too")
    assert not (tree / "bin").exists()
    assert (tree / "usr/lib/file").exists()
    assert not (tree / "lib").is_symlink()


def test_rmtree_of_a_very_deep_tree(root: Rootdir, tree: Path) -> None:
    fd = os.open(tree, os.O_PATH)
    for name in ["deep", ".compatd-removed-1", *["d" * 100] * 1500]:
        os.mkdir(name, dir_fd=fd)
        os.close(os.open("f", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
        below = os.open(name, os.O_PATH, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    root.rmtree("deep")
    assert not (tree / "deep").exists()

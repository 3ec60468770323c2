"""docker cp and export, on a tree without a container."""

import ctypes
import io
import os
import stat
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from compatd.errors import InvalidParameter, NotFound, SystemFailure
from compatd.images.filesystem import PathStat, export, extract, go_mode, stat_path, tar_path
from compatd.images.tar import BadArchive
from compatd.linux.rootdir import Rootdir
from tests.suites.layer_store import archive, file, node

pytestmark = pytest.mark.root


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    top = tmp_path / "root"
    (top / "d/e").mkdir(parents=True)
    (top / "d/e/f").write_text("x\n")
    (top / "d/e/f").chmod(0o4755)
    os.link(top / "d/e/f", top / "d/h")
    os.mkfifo(top / "d/p")
    (top / "etc").mkdir()
    (top / "etc/passwd").write_text("root")
    for name, target in (("lnk", "/d/e"), ("dang", "nope"), ("up", "../../.."), ("lf", "/lnk/f"), ("loop", "loop")):
        (top / name).symlink_to(target)
    for path in top.rglob("*"):
        os.utime(path, ns=(10**18, 10**18), follow_symlinks=False)
    return top


@pytest.fixture
def root(tree: Path) -> Iterator[Rootdir]:
    with Rootdir.of(tree) as opened:
        yield opened


def look(root: Rootdir, path: str) -> PathStat:
    return stat_path(root, path, container="c1")


def names(pieces: Iterator[bytes]) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(b"".join(pieces))) as opened:
        return [info.name + ("/" if info.isdir() else "") for info in opened]


# Docker 28.5.2's answers for the same tree.
@pytest.mark.parametrize(
    ("path", "name", "mode", "target"),
    [
        ("/lnk", "lnk", 134218239, "/d/e"),
        ("/lnk/", "lnk", 2147484141, ""),
        ("/lnk/.", ".", 2147484141, ""),
        ("/dang", "dang", 134218239, "/nope"),
        ("/up/", "up", 2147484141, ""),
        ("/up", "up", 134218239, "/"),
        ("/lf", "lf", 134218239, "/d/e/f"),
        ("/", "/", 2147484141, ""),
        (".", ".", 2147484141, ""),
        ("/d/../d/e/./f", "f", 8389101, ""),
        ("lnk/f", "f", 8389101, ""),
        ("/d/p", "p", 33554852, ""),
    ],
)
def test_stat(root: Rootdir, path: str, name: str, mode: int, target: str) -> None:
    found = look(root, path)
    assert (found.name, found.mode, found.link_target) == (name, mode, target)


def test_stat_of_times_and_sizes(root: Rootdir) -> None:
    found = look(root, "/d/e/f")
    assert (found.size_bytes, found.mtime_ns) == (2, 10**18)
    assert go_mode(stat.S_IFCHR | 0o666) == 1 << 26 | 1 << 21 | 0o666
    assert go_mode(stat.S_IFDIR | 0o3777) == 1 << 31 | 1 << 22 | 1 << 20 | 0o777


@pytest.mark.parametrize("path", ["/dne", "/dang/", "/d/dne/x"])
def test_missing(root: Rootdir, path: str) -> None:
    with pytest.raises(NotFound, match=f"^Could not find the file {path} in container c1$"):
        look(root, path)
    with pytest.raises(NotFound):
        extract(root, path, io.BytesIO(archive()), container="c1")


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("/etc/passwd/", "lstat /etc/passwd/: not a directory"),
        ("/etc/passwd/.", "lstat /etc/passwd/.: not a directory"),
        ("/etc/passwd/x", "lstat /etc/passwd/x: not a directory"),
        ("/loop/", "lstat /loop/: too many levels of symbolic links"),
        ("/loop", "lstat /loop: too many levels of symbolic links"),
    ],
)
def test_what_cannot_be_walked(root: Rootdir, path: str, text: str) -> None:
    with pytest.raises(SystemFailure) as raised:
        look(root, path)
    assert str(raised.value) == text


@pytest.mark.parametrize(
    ("path", "wanted"),
    [
        ("/lnk", ["lnk"]),
        ("/lnk/", ["lnk/", "lnk/f"]),
        ("/lnk/.", ["./", "./f"]),
        ("/d", ["d/", "d/e/", "d/e/f", "d/h", "d/p"]),
        ("/d/.", ["./", "./e/", "./e/f", "./h", "./p"]),
        ("/d/e/f", ["f"]),
        ("/d/p", ["p"]),
        ("/dang", ["dang"]),
    ],
)
def test_copying_out(root: Rootdir, path: str, wanted: list[str]) -> None:
    _, pieces = tar_path(root, path, container="c1")
    assert names(pieces) == wanted


def test_copying_out_of_the_root(root: Rootdir) -> None:
    _, pieces = tar_path(root, "/", container="c1")
    with tarfile.open(fileobj=io.BytesIO(b"".join(pieces))) as opened:
        found = {info.get_info()["name"]: info for info in opened}
    assert "/etc/passwd" in found
    assert found["/d/h"].linkname == "/d/e/f"


def test_export(root: Rootdir) -> None:
    assert names(export(root)) == ("d/ d/e/ d/e/f d/h d/p dang etc/ etc/passwd lf lnk loop up".split())


def test_export_of_a_very_deep_tree(root: Rootdir, tree: Path) -> None:
    fd = os.open(tree / "etc", os.O_PATH)
    for _ in range(1500):
        os.mkdir("x", dir_fd=fd)
        below = os.open("x", os.O_PATH, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)
    assert len(names(tar_path(root, "/etc", container="c1")[1])) == 1502
    root.rmtree("etc")


def test_a_file_that_changes_while_it_is_read(root: Rootdir, tree: Path) -> None:
    (tree / "d/e/g").write_bytes(b"g" * 3_000_000)
    _, pieces = tar_path(root, "/d/e/g", container="c1")
    data = next(pieces)
    os.truncate(tree / "d/e/g", 10)
    data += b"".join(pieces)
    with tarfile.open(fileobj=io.BytesIO(data)) as opened:
        assert [info.size for info in opened] == [3_000_000]


def test_copying_in(root: Rootdir, tree: Path) -> None:
    tar = archive(
        node("sub"),
        file("sub/file", b"new", mode=0o640, uid=123, gid=456, mtime_ns=5 * 10**9),
        node("sub/link", b"2", linkname=b"../../../../x"),
        file(".wh.e", b""),
    )
    extract(root, "/lnk/..", io.BytesIO(tar), container="c1")
    assert (tree / "sub/file").read_text() == "new"
    extract(root, "/lnk", io.BytesIO(tar), container="c1", owner=(7, 8))
    status = (tree / "d/e/sub/file").lstat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode), status.st_mtime) == (7, 8, 0o640, 5)
    assert os.readlink(tree / "d/e/sub/link") == "../../../../x"
    assert (tree / "d/e/.wh.e").exists()


def test_links_in_the_way_lead_nowhere_else(root: Rootdir, tree: Path) -> None:
    """An absolute link means a path below the directory that is extracted to, as in Docker 28.5.2."""
    (tree / "d/data").symlink_to("/etc/made")
    extract(root, "/d", io.BytesIO(archive(file("data/x", b"x"))), container="c1")
    assert (tree / "d/etc/made/x").read_text() == "x"
    assert not (tree / "etc/made").exists()


def test_set_group_id_directories(root: Rootdir, tree: Path) -> None:
    os.chown(tree / "etc", 0, 77)
    (tree / "etc").chmod(0o2755)
    extract(root, "/etc", io.BytesIO(archive(file("new", b"x"), node("dir"))), container="c1")
    assert (tree / "etc/new").stat().st_gid == 0
    assert (tree / "etc/dir").stat().st_gid == 0


def test_keeping_kinds(root: Rootdir, tree: Path) -> None:
    with pytest.raises(BadArchive) as raised:
        extract(root, "/", io.BytesIO(archive(file("d"))), container="c1", keep_kinds=True)
    assert str(raised.value) == 'cannot overwrite directory "d" with non-directory "/"'
    with pytest.raises(BadArchive) as raised:
        extract(root, "/etc", io.BytesIO(archive(node("passwd"))), container="c1", keep_kinds=True)
    assert str(raised.value) == 'cannot overwrite non-directory "passwd" with directory "/etc"'
    extract(root, "/", io.BytesIO(archive(file("d"))), container="c1")
    assert (tree / "d").is_file()


def test_no_directory(root: Rootdir) -> None:
    with pytest.raises(InvalidParameter, match=r"^extraction point is not a directory$"):
        extract(root, "/etc/passwd", io.BytesIO(archive()), container="c1")


def test_a_container_that_exchanges_directories_for_links(root: Rootdir, tree: Path, tmp_path: Path) -> None:
    """While another thread swaps a directory and a link to the outside, nothing lands outside."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (tree / "a").mkdir()
    (tree / "b").symlink_to(outside)
    done = threading.Event()
    renameat2 = ctypes.CDLL(None).renameat2

    def swap() -> None:
        while not done.wait(0.0003):
            renameat2(-100, bytes(tree / "a"), -100, bytes(tree / "b"), 2)  # AT_FDCWD, RENAME_EXCHANGE

    swapper = threading.Thread(target=swap)
    swapper.start()
    try:
        tar = archive(*(file(f"a/f{number}") for number in range(50)))
        for _ in range(40):
            try:
                extract(root, "/", io.BytesIO(tar), container="c1")
            except (BadArchive, NotFound, SystemFailure):
                continue
            for _ in tar_path(root, "/", container="c1")[1]:
                pass
    finally:
        done.set()
        swapper.join()
    assert list(outside.iterdir()) == []

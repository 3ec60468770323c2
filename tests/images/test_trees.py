"""Unpacking what is no layer (build contexts), and packing again."""

import io
import os
import stat
import tarfile
from pathlib import Path

import pytest

from compatd.errors import SystemFailure
from compatd.images.tar import BadArchive
from compatd.images.trees import Packer, failure, unpack
from compatd.linux.rootdir import Rootdir
from tests.suites.layer_store import archive, file, node, tree

pytestmark = pytest.mark.root


def test_a_context_keeps_names_that_look_like_whiteouts(tmp_path: Path) -> None:
    with Rootdir.of(tmp_path) as root:
        contents = unpack(
            io.BytesIO(archive(file(".wh.a", b"abc"), node("l", b"2", linkname=b"t"))), root, private=True
        )
    assert (tmp_path / ".wh.a").read_bytes() == b"abc"
    assert (contents.entries, contents.size_bytes) == (2, 4)


def test_more_directories_than_are_kept_open(tmp_path: Path) -> None:
    members = [file(f"d{number % 200}/sub/f{number}", b"%d" % number) for number in range(1000)]
    before = len(os.listdir("/proc/self/fd"))
    with Rootdir.of(tmp_path) as root:
        unpack(io.BytesIO(archive(*members)), root)
    assert len(os.listdir("/proc/self/fd")) == before
    assert (tmp_path / "d199/sub/f999").read_text() == "999"
    assert len(list(tmp_path.rglob("f*"))) == 1000


def test_a_link_that_changes_while_its_target_is_in_use(tmp_path: Path) -> None:
    tar = archive(
        node("one"),
        node("two"),
        node("l", b"2", linkname=b"one"),
        file("l/a", b"a"),
        node("l", b"2", linkname=b"two"),
        file("l/b", b"b"),
        node("self", b"2", linkname=b"."),
        file("self/c", b"c"),
        node("self/self"),
        file("self/d", b"d"),
    )
    with Rootdir.of(tmp_path) as root:
        unpack(io.BytesIO(tar), root)
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == (
        "c l one one/a self self/d two two/b".split()
    )


def test_times_of_directories_survive_what_is_put_into_them(tmp_path: Path) -> None:
    with Rootdir.of(tmp_path) as root:
        unpack(io.BytesIO(archive(node("d", mtime_ns=10**18), file("d/f"), node("d/e"), file("d/e/g"))), root)
    assert (tmp_path / "d").stat().st_mtime_ns == 10**18


def test_made_parents_belong_to_the_owner(tmp_path: Path) -> None:
    with Rootdir.of(tmp_path) as root:
        unpack(io.BytesIO(archive(file("a/b/c"))), root, owner=(5, 6))
    assert {(path.stat().st_uid, path.stat().st_gid) for path in tmp_path.rglob("*")} == {(5, 6)}


def test_hard_links_to_links_and_out_of_existing_directories(tmp_path: Path) -> None:
    (tmp_path / "there").write_text("there before")
    with Rootdir.of(tmp_path) as root:
        tar = archive(
            node("s", b"2", linkname=b"nowhere"), node("h", b"1", linkname=b"s"), node("t", b"1", linkname=b"there")
        )
        unpack(io.BytesIO(tar), root)
    assert os.readlink(tmp_path / "h") == "nowhere"
    assert (tmp_path / "t").read_text() == "there before"


def test_packing_is_what_unpacking_undoes(tmp_path: Path) -> None:
    members = (
        node("bin", mode=0o1777, mtime_ns=5 * 10**9),
        file("bin/a", b"a" * 1500, mode=0o4755, uid=3, gid=4, xattrs={b"user.k": b"\0"}),
        node("bin/b", b"1", linkname=b"bin/a"),
        node("c", b"2", linkname=b"/bin/a"),
        node("d", b"3", device=os.makedev(1, 5)),
        node("e", b"6"),
    )
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    with Rootdir.of(tmp_path / "one") as one, Rootdir.of(tmp_path / "two") as two:
        unpack(io.BytesIO(archive(*members)), one)
        packed = b"".join(Packer(one))
        unpack(io.BytesIO(packed), two)
        assert tree(one) == tree(two)
        assert b"".join(Packer(two)) == packed
        assert two.xattrs("bin/a") == {"user.k": b"\0"}
    with tarfile.open(fileobj=io.BytesIO(packed)) as opened:
        assert [info.name for info in opened] == ["bin", "bin/a", "bin/b", "c", "d", "e"]


def test_special_files_do_not_block_packing(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    os.mknod(tmp_path / "socket", stat.S_IFSOCK | 0o600)
    with Rootdir.of(tmp_path) as root:
        packer = Packer(root)
        data = b"".join(packer)
    assert packer.sockets == [b"socket"]
    with tarfile.open(fileobj=io.BytesIO(data)) as opened:
        assert [info.name for info in opened] == ["fifo"]


def test_whose_fault_it_is() -> None:
    assert isinstance(failure(OSError(28, "No space left on device"), "f"), SystemFailure)
    assert isinstance(failure(OSError(20, "Not a directory"), "f"), BadArchive)
    assert str(failure(OSError(28, "No space left on device"), "f")) == "f: no space left on device"

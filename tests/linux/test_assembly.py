"""A tree put together where nobody sees it."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from compatd.linux import syscalls
from compatd.linux.assembly import Assembly, Bind, clone_root

pytestmark = pytest.mark.root

CONTAINER = """
import os, sys
from compatd.linux import syscalls
root = sys.argv[1]
syscalls.unshare(syscalls.CLONE_NEWNS)
syscalls.mount("none", "/", "", syscalls.MS_REC | syscalls.MS_PRIVATE)
syscalls.mount(root, root, "", syscalls.MS_BIND)
syscalls.mount("tmpfs", root + "/mnt", "tmpfs")
open(root + "/mnt/on-tmpfs", "w").close()
os.chdir(root)
syscalls.pivot_root(".", ".")
syscalls.umount(".", syscalls.MNT_DETACH)
os.write(1, b"ready")
os.read(0, 1)
"""


def mounts() -> list[str]:
    return Path("/proc/self/mountinfo").read_text().splitlines()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("root/mnt", "root/vol", "volume/deep"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "root/file").write_text("image")
    (tmp_path / "volume/data").write_text("volume")
    (tmp_path / "root/link").symlink_to("/vol/data")
    return tmp_path


@pytest.fixture
def detached(tree: Path) -> Iterator[int]:
    fd = syscalls.open_tree(
        syscalls.AT_FDCWD, str(tree / "root"), syscalls.OPEN_TREE_CLONE | syscalls.OPEN_TREE_CLOEXEC
    )
    yield fd
    os.close(fd)


def test_volumes_are_in_the_tree_and_nothing_is_mounted(tree: Path, detached: int) -> None:
    before = mounts()
    binds = [
        Bind(source=str(tree / "volume"), target="/vol"),
        Bind(source=str(tree / "volume/data"), target="/made/later/file"),
        Bind(source=str(tree / "volume/deep"), target="vol/deep", readonly=True),
    ]
    with Assembly(detached, binds) as assembly:
        assert mounts() == before
        assert assembly.root.read("link", 99) == b"volume"
        assert assembly.root.read("made/later/file", 99) == b"volume"
        assembly.root.makedirs("vol/new")
        with pytest.raises(OSError, match="Read-only"):
            assembly.root.makedirs("vol/deep/new")
        assert assembly.root.resolve("vol/../../..") == b"/"
        assert not assembly.root.exists("proc")
    assert (tree / "volume/new").is_dir()
    assert (tree / "root/made/later/file").read_text() == ""
    assert mounts() == before


def test_read_only(tree: Path, detached: int) -> None:
    binds = [Bind(source=str(tree / "volume"), target="/vol")]
    with Assembly(detached, binds, readonly=True) as assembly:
        with pytest.raises(OSError, match="Read-only"):
            assembly.root.makedirs("new")
        assembly.root.makedirs("vol/new")


def test_a_running_containers_root(tree: Path) -> None:
    container = subprocess.Popen(
        [sys.executable, "-c", CONTAINER, str(tree / "root")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        assert container.stdout is not None
        assert container.stdout.read(5) == b"ready"
        here = os.stat("/").st_ino
        fd = clone_root(container.pid)
        try:
            with Assembly(fd) as assembly:
                assert assembly.root.read("file", 99) == b"image"
                assert assembly.root.entries("mnt") == []
                # It outlives the container.
                container.communicate(b"x")
                assert assembly.root.read("file", 99) == b"image"
        finally:
            os.close(fd)
        assert os.stat("/").st_ino == here
        with pytest.raises((FileNotFoundError, ProcessLookupError)):
            clone_root(container.pid)
    finally:
        container.kill()
        container.communicate()


def test_no_descriptor_is_left(tree: Path, detached: int) -> None:
    before = os.listdir("/proc/self/fd")
    with Assembly(detached, [Bind(source=str(tree / "volume"), target="/vol")]):
        pass
    with pytest.raises(OSError, match="Invalid argument"):
        Assembly(detached, [Bind(source=str(tree / "volume"), target="/vol")])
    with pytest.raises(FileNotFoundError):
        Assembly(detached, [Bind(source=str(tree / "missing"), target="/vol")])
    assert os.listdir("/proc/self/fd") == before

"""What docker diff says."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from compatd.images.diff import changes
from compatd.images.directories import DirectoryStore
from compatd.linux.rootdir import Rootdir
from tests.suites.layer_store import archive, file, mounted, node, put

pytestmark = pytest.mark.root


def write(root: Rootdir, path: str, content: bytes) -> None:
    with open(root.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), "wb") as written:
        written.write(content)


def diff(tmp_path: Path, change: Callable[[Rootdir], None]) -> list[str]:
    store = DirectoryStore(tmp_path / "state")
    image = put(
        store,
        archive(
            node("etc"),
            file("etc/a", b"a"),
            file("etc/b", b"b"),
            node("srv/deep/er"),
            file("srv/deep/er/x"),
            node("usr"),
            node("usr/lib"),
            file("usr/lib/so"),
            node("bin", b"2", linkname=b"usr/lib"),
        ),
    )
    upper, work = tmp_path / "upper", tmp_path / "work"
    upper.mkdir()
    work.mkdir()
    with Rootdir(store.mount([image], upper, work)) as root:
        change(root)
    with Rootdir.of(upper) as written, mounted(store, image) as lower:
        return [f"{'CAD'[found.kind]} {found.path}" for found in changes(written, lower)]


def test_nothing_changed(tmp_path: Path) -> None:
    assert diff(tmp_path, lambda root: None) == []


def test_added_changed_and_deleted(tmp_path: Path) -> None:
    def change(root: Rootdir) -> None:
        write(root, "etc/a", b"A")
        root.unlink("etc/b")
        root.makedirs("srv/new/dir")
        write(root, "srv/new/dir/file", b"f")
        root.chmod("usr/lib/so", 0o755)

    assert diff(tmp_path, change) == [
        "C /etc",
        "C /etc/a",
        "D /etc/b",
        "C /srv",
        "A /srv/new",
        "A /srv/new/dir",
        "A /srv/new/dir/file",
        "C /usr",
        "C /usr/lib",
        "C /usr/lib/so",
    ]


def test_replaced_directories_and_links(tmp_path: Path) -> None:
    def change(root: Rootdir) -> None:
        root.rmtree("srv/deep")
        root.makedirs("srv/deep")
        write(root, "srv/deep/new", b"n")
        root.unlink("bin")
        root.makedirs("bin")
        write(root, "bin/so", b"mine")

    assert diff(tmp_path, change) == [
        "C /bin",
        "A /bin/so",
        "C /srv",
        "C /srv/deep",
        "D /srv/deep/er",
        "A /srv/deep/new",
    ]


def test_copied_up_but_not_changed(tmp_path: Path) -> None:
    def change(root: Rootdir) -> None:
        os.close(root.open("etc/a", os.O_WRONLY))

    assert diff(tmp_path, change) == []

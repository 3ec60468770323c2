"""The layer store that unpacks: the suite, and what only it does."""

import json
import os
from functools import partial
from pathlib import Path

import pytest

from compatd.errors import SystemFailure
from compatd.images.directories import DirectoryStore
from compatd.linux import syscalls
from tests.suites.layer_store import LayerStoreSuite, archive, file, mounted, put

pytestmark = pytest.mark.root


class TestUnpacked(LayerStoreSuite):
    make = DirectoryStore


class TestIndexed(LayerStoreSuite):
    make = partial(DirectoryStore, indexed=True)


def unsettled(root: Path, store: DirectoryStore) -> tuple[DirectoryStore, Path]:
    """A store at the boot after the one in which a layer was made, and the layer's directory."""
    diff_id = put(store, archive(file("f", b"content")))
    path = root / "layers" / diff_id.removeprefix("sha256:")
    meta = json.loads((path / "meta.json").read_text())
    (path / "meta.json").write_text(json.dumps(meta | {"boot": "an earlier one"}))
    return DirectoryStore(root), path


def test_a_power_failure_that_tore_the_tree(tmp_path: Path) -> None:
    store, path = unsettled(tmp_path, DirectoryStore(tmp_path))
    os.truncate(path / "fs/f", 0)
    store.sweep()
    (info,) = store.walk()
    with mounted(store, info.diff_id) as root:
        assert root.read("f", 100) == b"content"
    assert json.loads((path / "meta.json").read_text())["boot"] is None


def test_a_power_failure_that_tore_the_tar(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store, path = unsettled(tmp_path, DirectoryStore(tmp_path))
    os.truncate(path / "layer.tar", 700)
    store.sweep()
    assert list(store.walk()) == []
    assert "damaged" in caplog.text


@pytest.mark.parametrize("meta", [b"", b"\0" * 50, b"{}", b'{"format":99,"size_bytes":0,"entries":0,"boot":null}'])
def test_a_power_failure_that_tore_the_record(tmp_path: Path, meta: bytes) -> None:
    store, path = unsettled(tmp_path, DirectoryStore(tmp_path))
    (path / "meta.json").write_bytes(meta)
    store.sweep()
    (info,) = store.walk()
    assert info.size_bytes == 7


def test_a_settled_layer_is_not_checked_again(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    diff_id = put(store, archive(file("f")))
    store.settle([diff_id])
    path = tmp_path / "layers" / diff_id.removeprefix("sha256:")
    before = (path / "fs/f").stat().st_ino
    DirectoryStore(tmp_path).sweep()
    assert (path / "fs/f").stat().st_ino == before
    assert json.loads((path / "meta.json").read_text())["boot"] is None


def test_closing_settles_the_rest(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path)
    gone, kept = put(store, archive(file("f"))), put(store, archive(file("g")))
    store.remove(gone)
    store.close()
    path = tmp_path / "layers" / kept.removeprefix("sha256:")
    assert json.loads((path / "meta.json").read_text())["boot"] is None


def test_a_full_disk(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    syscalls.mount("tmpfs", str(small), "tmpfs", 0, "size=9m")
    try:
        store = DirectoryStore(small)
        before = sorted(str(path) for path in small.rglob("*"))
        for size in (3_000_000, 8_000_000, 20_000_000):  # while unpacking, while keeping the tar, both at once
            with pytest.raises(SystemFailure, match="no space left on device"):
                put(store, archive(file("f"), file("g", b"g" * size), file("h", b"h" * size)))
        assert sorted(str(path) for path in small.rglob("*")) == before
    finally:
        syscalls.umount(str(small), syscalls.MNT_DETACH)

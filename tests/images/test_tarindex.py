"""Indexes over tars: the kernel shows in them what unpacking gives."""

import io
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compatd.errors import EngineError
from compatd.images import erofs, indexes, tarindex
from compatd.images.content import DiffId
from compatd.images.directories import DirectoryStore
from compatd.images.erofs import Node
from compatd.images.tar import END, LINK, REGULAR, SYMLINK, Entry, encode
from compatd.images.trees import is_whiteout
from compatd.linux.rootdir import Rootdir
from tests.suites.layer_store import ENTRIES, archive, file, mounted, node, put

pytestmark = pytest.mark.root


@pytest.fixture(autouse=True, scope="module")
def _indexes(tmp_path_factory: pytest.TempPathFactory) -> None:
    if reason := indexes.probe(tmp_path_factory.mktemp("probe")):
        pytest.skip(f"no indexes here: {reason}")


def everything(store: DirectoryStore, diff_id: DiffId) -> dict[str, Any]:
    """All that can be seen of a layer, through a path of its own that overlayfs has no part in."""
    seen: dict[str, Any] = {}
    inodes: dict[int, str] = {}
    pending = [b"."]
    with Rootdir.of(store.lowers([diff_id])[0]) as root:
        for top in pending:
            for name, status in root.entries(top):
                path = name if top == b"." else top + b"/" + name
                shown = path.decode(errors="replace")
                kind = stat.S_IFMT(status.st_mode)
                content: Any = None
                if kind == stat.S_IFREG:
                    content = root.read(path, 1 << 24)
                elif kind == stat.S_IFLNK:
                    content = root.readlink(path)
                elif kind == stat.S_IFDIR:
                    pending.append(path)
                first = shown if kind == stat.S_IFDIR else inodes.setdefault(status.st_ino, shown)
                links = 0 if kind == stat.S_IFDIR else status.st_nlink
                # Of directories that no entry names, and of whiteouts, nobody sees the time.
                timeless = kind == stat.S_IFDIR or is_whiteout(status)
                seen[shown] = (
                    *(stat.filemode(status.st_mode), status.st_uid, status.st_gid, status.st_rdev, links, first),
                    *(content, root.xattrs(path, follow=False), 0 if timeless else status.st_mtime_ns),
                )
    return seen


def both(tmp_path: Path, tar: bytes) -> tuple[dict[str, Any] | str, dict[str, Any] | str]:
    found: list[dict[str, Any] | str] = []
    for indexed in (False, True):
        store = DirectoryStore(tmp_path / str(indexed), indexed=indexed)
        try:
            found.append(everything(store, put(store, tar)))
        except EngineError as error:
            found.append(type(error).__name__)
        store.close()
    return found[0], found[1]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(entries=st.lists(ENTRIES, max_size=10))
def test_an_index_shows_what_unpacking_gives(tmp_path_factory: pytest.TempPathFactory, entries: list[Entry]) -> None:
    tar = archive(*((entry._replace(size=4), b"data") if entry.type == REGULAR else entry for entry in entries))
    unpacked, indexed = both(tmp_path_factory.mktemp("both"), tar)
    assert indexed == unpacked


def test_names_targets_and_attributes_of_every_length(tmp_path: Path) -> None:
    members: list[Any] = []
    for length in (*range(1, 60), 120, 255):
        members.append(file(f"names/{'n' * length}", b"x" * length))
        members.append(node(f"links/{length}", SYMLINK, linkname=b"t" * (length * 16)))
        members.append(
            file(f"attributes/{length}", b"y", xattrs={b"user." + b"a" * (length % 200 + 1): b"v" * length * 9})
        )
        members += [file(f"directory{length}/{number:0{length % 9 + 1}}", b"") for number in range(length)]
    members += [file(f"odd/{name}", b"o") for name in ("!a", "+b", "-c", ".d", "~", "\x01", "é", "..e")]
    unpacked, indexed = both(tmp_path, archive(*members))
    assert indexed == unpacked
    assert len(indexed) > 2000


def test_contents_that_do_not_lie_in_the_tar_as_they_are(tmp_path: Path) -> None:
    holes = Entry(b"sparse", REGULAR, 3 << 20, segments=((1 << 20, 600), (2 << 20, 512)))
    old = bytearray(encode(Entry(b"sparse", REGULAR, 1112)))  # GNU's old form
    old[156:157] = b"S"
    old[257:265] = b"ustar  \0"
    old[345:500] = bytes(155)
    for at, number in ((386, 1 << 20), (398, 600), (410, 2 << 20), (422, 512), (483, 3 << 20)):
        old[at : at + 12] = b"%011o\0" % number
    old[148:156] = b" " * 8
    old[148:156] = b"%06o\0 " % sum(old)
    stored = b"s" * 600 + b"t" * 512
    tar = b"".join(
        [
            *(bytes(old), stored, bytes(-len(stored) % 512)),
            *(encode(Entry(b"padded", REGULAR, 5)), b"12345" + b"hidden".ljust(507, b"!")),
            *(encode(Entry(b"clean", REGULAR, 5)), b"67890".ljust(512, b"\0")),
            END,
        ]
    )
    assert holes.size == 3 << 20
    unpacked, indexed = both(tmp_path, tar)
    assert indexed == unpacked
    (layer,) = (path for path in (tmp_path / "True/layers").iterdir() if len(path.name) == 64)
    assert (layer / "side").stat().st_blocks * 512 < 1 << 20
    cut = tar[: -len(END) - 300]  # the last padding is missing
    unpacked, indexed = both(tmp_path / "cut", cut)
    assert indexed == unpacked


def test_a_layer_over_four_gigabytes(tmp_path: Path) -> None:
    """The file system has holes where the content is, so that it costs nothing."""
    size = (5 << 30) + 7
    tar = tmp_path / "layer.tar"
    with tar.open("wb") as written:
        written.write(encode(Entry(b"huge", REGULAR, size)))
        at = written.tell()
        written.seek(at + size - 3)
        written.write(b"end" + bytes(-size % 512) + encode(Entry(b"hard", LINK, linkname=b"huge")))
        written.write(encode(Entry(b"after", REGULAR, 5)) + b"after" + bytes(507) + END)
    with tar.open("rb", buffering=0) as stream:
        tree = tarindex.read_tree(_Holes(stream, at, size))
    assert tree.size_bytes == size + 5
    indexes.write_index(tree, tmp_path, tmp_path)
    with Rootdir(indexes.mount(tmp_path)) as root:
        fd = root.open("huge", os.O_RDONLY)
        assert os.fstat(fd).st_size == size
        assert os.fstat(fd).st_nlink == 2
        assert os.pread(fd, 100, size - 3) == b"end"
        os.close(fd)
        assert root.read("after", 10) == b"after"


class _Holes:
    """A file whose hole is not read but made up."""

    def __init__(self, stream: Any, start: int, size: int) -> None:
        self._stream, self._start, self._size = stream, start, size
        self._zeros = bytes(1 << 20)

    def read(self, size: int, /) -> bytes:
        at = self._stream.tell()
        if self._start <= at and at + size < self._start + self._size:
            self._stream.seek(size, os.SEEK_CUR)
            return self._zeros[:size]
        return bytes(self._stream.read(size))


def test_a_file_over_a_tebibyte_has_chunks() -> None:
    root = Node(stat.S_IFDIR | 0o755, children={b"f": Node(stat.S_IFREG, size=(1 << 40) + 1, device=1, offset=512)})
    image = erofs.build(root, uuid=b"u" * 16, devices=[(1 << 40) + 1024])
    assert b"\1\0\1\0\0\0" in image  # the first chunk: device 1, block 1
    assert (1 + (1 << 31)).to_bytes(4, "little") in image  # the second


@pytest.mark.parametrize("damage", ["torn", "gone", "other"])
def test_a_damaged_index_is_made_again(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    store = DirectoryStore(tmp_path, indexed=True)
    diff_id = put(store, archive(file("d/f", b"content")))
    store.close()
    index = tmp_path / "layers" / diff_id.removeprefix("sha256:") / "index.erofs"
    whole = index.read_bytes()
    index.unlink()
    if damage != "gone":
        index.write_bytes(whole[:1500] if damage == "torn" else whole.replace(b"f", b"g"))
    again = DirectoryStore(tmp_path, indexed=True)
    with mounted(again, diff_id) as root:
        assert root.read("d/f", 100) == b"content"
    again.close()
    assert ("damaged" in caplog.text) == (damage != "gone")


def test_forms_mix_and_outlive_the_machine_that_made_them(tmp_path: Path) -> None:
    store = DirectoryStore(tmp_path, indexed=True)
    lower = put(store, archive(file("both", b"lower"), file("gone"), file("indexed")))
    upper = tmp_path / "upper"
    upper.mkdir()
    (upper / "both").write_text("upper")
    os.mknod(upper / "gone", stat.S_IFCHR)
    adopted = store.commit(upper)
    assert adopted is not None
    store.close()
    for indexed in (True, False):
        again = DirectoryStore(tmp_path, indexed=indexed)
        with mounted(again, lower, adopted) as root:
            assert sorted(name for name, _ in root.entries()) == [b"both", b"indexed"]
            assert root.read("both", 9) == b"upper"
        again.close()


def test_removal_and_closing_let_go_of_mounts(tmp_path: Path) -> None:
    before = set(os.listdir("/proc/self/fd"))
    store = DirectoryStore(tmp_path, indexed=True)
    first, second = (put(store, archive(file("f", content))) for content in (b"1", b"2"))
    held = store.mount([first])
    store.lowers([second])
    assert store.remove(first)
    with Rootdir(held) as root:
        assert root.read("f", 9) == b"1"
    store.close()
    assert set(os.listdir("/proc/self/fd")) == before


def test_the_same_tree_gives_the_same_image() -> None:
    tar = archive(file("b"), node("a"), file("a/c"), node("l", SYMLINK, linkname=b"b"))
    images = {
        erofs.build(tarindex.read_tree(io.BytesIO(tar)).root, uuid=b"u" * 16, devices=[len(tar)]) for _ in range(2)
    }
    assert len(images) == 1

import io
import os
import stat
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compatd.builder.ports import TarEntry
from compatd.builder.trees import (
    ArchiveTree,
    FileRange,
    Inode,
    Kind,
    Parts,
    RootTree,
    Tree,
    has_wildcards,
    match,
    open_section,
    resolve,
    split,
    split_pattern,
    walk,
)
from compatd.errors import InvalidParameter, SystemFailure
from tests.fakes.builder import EngineArchives, make_tar, member

pytestmark = pytest.mark.unit

FILES: dict[str, str | bytes | tarfile.TarInfo | None] = {
    "d": member(tarfile.DIRTYPE, mode=0o700, uid=3),
    "d/x": "xx",
    "d/sub": None,
    "d/sub/y": "y",
    "link": member(tarfile.SYMTYPE, linkname="d/x"),
    "dirlink": member(tarfile.SYMTYPE, linkname="/d"),
    "up": member(tarfile.SYMTYPE, linkname="../../d"),
    "loop": member(tarfile.SYMTYPE, linkname="loop"),
    "hard": member(tarfile.LNKTYPE, linkname="d/x"),
    "pipe": member(tarfile.FIFOTYPE),
    "no/parent/entry": "z",
}


@pytest.fixture(params=["archive", "root"])
def tree(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Tree]:
    if request.param == "archive":
        with tempfile.TemporaryFile() as file:
            yield index(make_tar(FILES), file)
        return
    root = tmp_path / "root"
    root.mkdir()
    with tarfile.open(fileobj=io.BytesIO(make_tar(FILES))) as archive:
        archive.extraction_filter = getattr(tarfile, "fully_trusted_filter", None)  # not before Python 3.11.4
        for item in archive:
            item.uid, item.gid = os.getuid(), os.getgid()
            archive.extract(item, root)
    found = RootTree(os.open(root, os.O_PATH | os.O_DIRECTORY))
    yield found
    found.close()


def index(data: bytes, file: "tempfile._TemporaryFileWrapper[bytes] | io.BufferedRandom") -> ArchiveTree:
    file.write(data)
    file.flush()
    return ArchiveTree.index(EngineArchives().read(open_section(file.fileno())), file.fileno())


def find(tree: Tree, path: str) -> Inode:
    inode = tree.lookup(resolve(tree.lookup, split(path.encode())))
    assert inode is not None
    return inode


def content(inode: Inode) -> bytes:
    assert inode.content is not None
    return b"".join(inode.content.chunks())


def test_looks_up_without_following(tree: Tree) -> None:
    link = tree.lookup((b"link",))
    assert link is not None
    assert (link.kind, link.target) == (Kind.SYMLINK, b"d/x")
    assert tree.lookup((b"dirlink", b"x")) is None
    assert tree.lookup((b"d", b"x", b"below")) is None
    assert tree.lookup((b"nothing",)) is None
    root = tree.lookup(())
    assert root is not None
    assert root.is_directory


def test_reads_files(tree: Tree) -> None:
    assert content(find(tree, "d/x")) == b"xx"
    assert content(find(tree, "no/parent/entry")) == b"z"
    pipe = find(tree, "pipe")
    assert (pipe.kind, pipe.content) == (Kind.FIFO, None)


@pytest.mark.parametrize("path", ["link", "dirlink/x", "up/x", "d/sub/../x", "/../d//./x", "hard"])
def test_resolves_inside(tree: Tree, path: str) -> None:
    assert content(find(tree, path)) == b"xx"


def test_resolves_what_is_missing(tree: Tree) -> None:
    assert resolve(tree.lookup, split(b"dirlink/new/deep")) == (b"d", b"new", b"deep")
    assert resolve(tree.lookup, (b"..", b"etc")) == (b"etc",)


def test_a_loop_ends(tree: Tree) -> None:
    with pytest.raises(InvalidParameter, match="too many links"):
        resolve(tree.lookup, (b"loop", b"x"))


def test_hard_links_are_one_inode(tree: Tree) -> None:
    assert tree.lookup((b"hard",)) is tree.lookup((b"d", b"x"))


def test_walks_in_order(tree: Tree) -> None:
    names = [b"/".join(parts).decode() for parts, _ in walk(tree, (b"d",))]
    assert names == ["d/sub", "d/sub/y", "d/x"]
    assert [name.decode() for name, _ in tree.list(())] == sorted(
        ["d", "link", "dirlink", "up", "loop", "hard", "pipe", "no"]
    )


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("d/*", ["d/sub", "d/x"]),
        ("*/x", ["d/x"]),
        ("*link", ["dirlink", "link"]),
        ("d/[w-z]", ["d/x"]),
        ("*/*/*", ["d/sub/y", "no/parent/entry"]),
        ("dirlink/*", []),
        ("[", []),
        ("nothing*", []),
    ],
)
def test_matches(tree: Tree, pattern: str, expected: list[str]) -> None:
    assert [b"/".join(parts).decode() for parts in match(tree, pattern)] == expected


def test_tells_patterns_from_names() -> None:
    assert has_wildcards("a*")
    assert not has_wildcards("a\\*b")
    assert has_wildcards("a\\\\*b")
    assert split_pattern("a/[b/c]/d\\/e") == ["a", "[b/c]", "d\\/e"]


def test_keeps_metadata() -> None:
    with tempfile.TemporaryFile() as file:
        tree = index(make_tar({"f": member(mode=0o4755, uid=5, gid=6), **FILES}), file)
        inode = tree.lookup((b"f",))
        assert inode is not None
        assert (inode.mode, inode.uid, inode.gid, inode.mtime_ns) == (0o4755, 5, 6, 1_700_000_000 * 10**9)
        directory = tree.lookup((b"d",))
        assert directory is not None
        assert (directory.mode, directory.uid) == (0o700, 3)
        made = tree.lookup((b"no", b"parent"))
        assert made is not None
        assert (made.mode, made.uid) == (0o755, 0)


def test_later_entries_replace_earlier_ones() -> None:
    data = _join({"x": "old", "d/in": "1"}, {"x": None, "x/y": "new"}, {"d": "file now"}, {"x": None})
    with tempfile.TemporaryFile() as file:
        tree = index(data, file)
        assert content(find(tree, "x/y")) == b"new"
        assert content(find(tree, "d")) == b"file now"


def _join(*parts: dict[str, str | None]) -> bytes:
    """Archives one behind another, as one archive."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for files in parts:
            with tarfile.open(fileobj=io.BytesIO(make_tar(files))) as part:
                for item in part:
                    archive.addfile(item, part.extractfile(item) if item.isreg() else None)
    return buffer.getvalue()


def test_a_link_among_the_parents_is_followed_inside() -> None:
    with tempfile.TemporaryFile() as file:
        tree = index(make_tar({"l": member(tarfile.SYMTYPE, linkname="/t"), "l/in": "x", "l/two": "y"}), file)
        assert content(find(tree, "t/in")) == b"x"
        assert content(find(tree, "t/two")) == b"y"
        assert find(tree, "/").children[b"l"].kind is Kind.SYMLINK


@pytest.mark.parametrize(
    ("files", "error"),
    [
        ({"../x": "1"}, 'invalid entry name "../x"'),
        ({"a/../../x": "1"}, "invalid entry name"),
        ({"h": member(tarfile.LNKTYPE, linkname="missing")}, "linkat missing h: no such file or directory"),
        ({"h": member(tarfile.LNKTYPE, linkname="../x")}, 'invalid hardlink target "../x"'),
        ({"d": None, "h": member(tarfile.LNKTYPE, linkname="d")}, "linkat d h: no such file or directory"),
        ({"f": "x", "f/below": "y"}, "mkdir /f: not a directory"),
        ({"/".join("d" * 400): "x"}, "invalid entry name"),
    ],
)
def test_archives_that_lie(files: dict[str, str | tarfile.TarInfo | None], error: str) -> None:
    with tempfile.TemporaryFile() as file, pytest.raises(InvalidParameter, match=error):
        index(make_tar(files), file)


@pytest.mark.parametrize("name", [b"a\0b", b"x" * 256, b"d/" + b"x" * 256, b"d/\0"])
def test_names_that_cannot_be(name: bytes) -> None:
    entries = [(TarEntry(b"d/ok", b"0"), 0), (TarEntry(name, b"0"), 0)]
    with tempfile.TemporaryFile() as file, pytest.raises(InvalidParameter):
        ArchiveTree.index(entries, file.fileno())


def test_content_must_be_there() -> None:
    with tempfile.TemporaryFile() as file:
        file.write(b"x" * 10)
        file.flush()
        with pytest.raises(InvalidParameter, match="unexpected EOF"):
            ArchiveTree.index([(TarEntry(b"f", b"0", 20), 0)], file.fileno())
        with pytest.raises(SystemFailure, match="unexpected EOF"):
            list(FileRange(file.fileno(), 5, 10).chunks())


def test_sparse_content() -> None:
    with tempfile.TemporaryFile() as file:
        file.write(b"..abcd..")
        file.flush()
        content = FileRange(file.fileno(), 2, 10, ((1, 2), (6, 2)))
        assert b"".join(content.chunks()) == b"\0ab\0\0\0cd\0\0"


def test_sections_are_files() -> None:
    with tempfile.TemporaryFile() as file:
        file.write(b"0123456789")
        file.flush()
        section = open_section(file.fileno(), 2, 5)
        assert section.read(3) == b"234"
        assert section.tell() == 3
        assert section.read() == b"56"
        assert section.read(1) == b""
        assert section.seek(-1, os.SEEK_END) == 4
        assert section.read(9) == b"6"


def test_a_root_is_not_left_through_links(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    root = tmp_path / "root"
    root.mkdir()
    (root / "out").symlink_to("../secret")
    (root / "abs").symlink_to(str(tmp_path / "secret"))
    (root / "dir").symlink_to("..")
    tree = RootTree(os.open(root, os.O_PATH | os.O_DIRECTORY))
    try:
        for path in ("out", "abs", "dir/secret"):
            assert tree.lookup(resolve(tree.lookup, split(path.encode()))) is None
        with pytest.raises(OSError, match="No such file"):
            tree.read("out", 100)
    finally:
        tree.close()


def test_sockets_are_passed_over(tmp_path: Path) -> None:
    os.mknod(tmp_path / "socket", stat.S_IFSOCK | 0o600)
    tree = RootTree(os.open(tmp_path, os.O_PATH | os.O_DIRECTORY))
    assert tree.list(()) == []
    tree.close()


paths = st.lists(st.sampled_from([b"a", b"b", b"..", b"."]), min_size=1, max_size=4).map(b"/".join)
members = st.lists(
    st.tuples(paths, st.sampled_from([b"0", b"5", b"2", b"1"]), paths).map(
        lambda item: (TarEntry(item[0], item[1], linkname=item[2]), 0)
    ),
    max_size=8,
)


@given(members)
@settings(max_examples=200, deadline=None)
def test_any_archive_gives_a_tree_or_one_kind_of_error(entries: list[tuple[TarEntry, int]]) -> None:
    with tempfile.TemporaryFile() as file:
        try:
            tree = ArchiveTree.index(entries, file.fileno())
        except InvalidParameter:
            return
        seen: list[Parts] = [parts for parts, _ in walk(tree, ())]
        assert all(b".." not in parts and b"." not in parts for parts in seen)
        assert all(tree.lookup(parts) is not None for parts in seen)

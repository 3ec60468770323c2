"""What every layer store does. A test module subclasses ``LayerStoreSuite`` and gives it a factory.

Needs root: layers carry owners, devices and overlayfs's marks.
"""

import errno
import hashlib
import io
import os
import stat
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compatd.errors import EngineError, NotFound, SystemFailure
from compatd.images.content import DiffId
from compatd.images.layers import EMPTY_DIFF_ID, LayerStore
from compatd.images.tar import (
    BLOCK,
    CHAR,
    DIRECTORY,
    END,
    FIFO,
    LINK,
    REGULAR,
    SYMLINK,
    BadArchive,
    Entry,
    TarReader,
    encode,
    padding,
)
from compatd.linux.rootdir import Rootdir

Factory = Callable[[Path], LayerStore]


def archive(*members: Entry | tuple[Entry, bytes]) -> bytes:
    """A tar of the entries; a regular file with content is a pair, and its size is set here."""
    parts: list[bytes] = []
    for member in members:
        entry, content = member if isinstance(member[1], bytes) and isinstance(member[0], Entry) else (member, b"")
        assert isinstance(entry, Entry)
        if content:
            entry = entry._replace(size=len(content))
        parts += [encode(entry), content, padding(len(content))]
    return b"".join([*parts, END])


def file(name: str, content: bytes = b"x", **attributes: object) -> tuple[Entry, bytes]:
    return Entry(name.encode(), REGULAR)._replace(**attributes), content  # type: ignore[arg-type]


def node(name: str, type_: bytes = DIRECTORY, **attributes: object) -> Entry:
    entry = Entry(name.encode(), type_, mode=0o755 if type_ == DIRECTORY else 0o644)
    return entry._replace(**attributes)  # type: ignore[arg-type]


def diff_id_of(tar: bytes) -> DiffId:
    return DiffId("sha256:" + hashlib.sha256(tar).hexdigest())


def put(store: LayerStore, tar: bytes) -> DiffId:
    return store.apply(io.BytesIO(tar))


@contextmanager
def mounted(store: LayerStore, *diff_ids: DiffId) -> Iterator[Rootdir]:
    with Rootdir(store.mount(diff_ids)) as root:
        yield root


def tree(root: Rootdir, path: bytes = b".") -> Mapping[str, str]:
    """Everything below, as text: type and mode, owner, time, content or target or device, attributes."""
    found: dict[str, str] = {}
    for name, status in root.entries(path):
        inner = name if path == b"." else path + b"/" + name
        kind = stat.filemode(status.st_mode)
        detail = ""
        if stat.S_ISREG(status.st_mode):
            detail = root.read(inner, 1 << 20)[:40].decode(errors="replace")
        elif stat.S_ISLNK(status.st_mode):
            detail = "-> " + root.readlink(inner).decode()
        elif stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
            detail = f"{os.major(status.st_rdev)},{os.minor(status.st_rdev)}"
        found[inner.decode()] = f"{kind} {status.st_uid}:{status.st_gid} {detail}".rstrip()
        if stat.S_ISDIR(status.st_mode):
            found.update(tree(root, inner))
    return found


def snapshot(directory: Path) -> Mapping[str, tuple[int, int, int, int]]:
    """Type, size, inode and change time of everything in a host directory."""
    found: dict[str, tuple[int, int, int, int]] = {}
    for top, directories, files in os.walk(directory):
        for name in directories + files:
            status = os.lstat(os.path.join(top, name))
            found[os.path.join(top, name)] = (status.st_mode, status.st_size, status.st_ino, status.st_ctime_ns)
    return found


_NAMES = st.sampled_from(
    "a b a/b a/b/c d/../a ../x /abs ./a a/ l l/x l/../y up up/x .wh.a .wh.. .wh... a/.wh..wh..opq .wh.l l/.wh.x "
    "up/.wh.outside . .. / a//b .wh. dev/n".split()
)
_TARGETS = st.sampled_from("a ../../outside /etc .. . up/outside l x/y /".split())
ENTRIES = st.builds(
    Entry,
    name=_NAMES.map(str.encode),
    size=st.just(0),
    segments=st.none(),
    gid=st.sampled_from([0, 1000]),
    type=st.sampled_from([REGULAR, REGULAR, LINK, SYMLINK, SYMLINK, DIRECTORY, DIRECTORY, CHAR, BLOCK, FIFO]),
    mode=st.sampled_from([0o644, 0o755, 0o4755, 0o2777, 0]),
    uid=st.sampled_from([0, 1000]),
    mtime_ns=st.sampled_from([0, 10**18, -(10**15), 10**22]),
    linkname=_TARGETS.map(str.encode),
    device=st.sampled_from([0, os.makedev(1, 3)]),
    xattrs=st.sampled_from(
        [{}, {b"user.a": b"b"}, {b"trusted.overlay.redirect": b"/etc"}, {b"trusted.overlay.opaque": b"y"}]
    ),
)


# Subclasses share the method, each with a store of its own.
_SUPPRESSED = [HealthCheck.function_scoped_fixture, HealthCheck.differing_executors]


@pytest.mark.root
class LayerStoreSuite:
    """Subclasses define ``make``, which opens the store below a directory; twice the same directory, the same store."""

    @staticmethod
    def make(root: Path) -> LayerStore:
        raise NotImplementedError

    @pytest.fixture
    def store(self, tmp_path: Path) -> Iterator[LayerStore]:
        store = self.make(tmp_path)
        yield store
        store.close()

    # What a layer is

    def test_the_tar_is_kept_byte_for_byte(self, store: LayerStore) -> None:
        tar = archive(node("etc"), file("etc/a", b"content")) + b"\0" * 8192 + b"behind the end"
        diff_id = put(store, tar)
        assert diff_id == diff_id_of(tar)
        with store.open_tar(diff_id) as kept:
            assert kept.read() == tar
        assert store.info(diff_id).tar_bytes == len(tar)
        assert store.has(diff_id)
        assert [info.diff_id for info in store.walk()] == [diff_id]

    def test_everything_a_layer_may_hold(self, store: LayerStore) -> None:
        capability = bytes.fromhex("0100000200040000000000000000000000000000")
        tar = archive(
            node("bin", mtime_ns=5 * 10**9),
            file("bin/su", b"program", mode=0o4755, uid=0, gid=7, mtime_ns=10**18),
            file("bin/ping", b"p", xattrs={b"security.capability": capability, b"user.note": b"\0\n"}),
            node("bin/sh", SYMLINK, linkname=b"/bin/su"),
            node("bin/hard", LINK, linkname=b"bin/su"),
            node("dev/null", CHAR, device=os.makedev(1, 3), mode=0o666),
            node("dev/loop0", BLOCK, device=os.makedev(7, 0)),
            node("run/pipe", FIFO, uid=3),
            node("tmp", mode=0o1777),
            node("group", mode=0o2775, gid=50),
            file("group/inherits-not", b""),
            file("long/" + "n" * 200, b"l"),
            file("ümlaut", b"u", uid=3_000_000_000, gid=4_000_000_000),
        )
        diff_id = put(store, tar)
        with mounted(store, diff_id) as root:
            assert tree(root) == {
                "bin": "drwxr-xr-x 0:0",
                "bin/hard": "-rwsr-xr-x 0:7 program",
                "bin/ping": "-rw-r--r-- 0:0 p",
                "bin/sh": "lrwxrwxrwx 0:0 -> /bin/su",
                "bin/su": "-rwsr-xr-x 0:7 program",
                "dev": "drwxr-xr-x 0:0",
                "dev/loop0": "brw-r--r-- 0:0 7,0",
                "dev/null": "crw-rw-rw- 0:0 1,3",
                "group": "drwxrwsr-x 0:50",
                "group/inherits-not": "-rw-r--r-- 0:0",
                "long": "drwxr-xr-x 0:0",
                "long/" + "n" * 200: "-rw-r--r-- 0:0 l",
                "run": "drwxr-xr-x 0:0",
                "run/pipe": "prw-r--r-- 3:0",
                "tmp": "drwxrwxrwt 0:0",
                "ümlaut": "-rw-r--r-- 3000000000:4000000000 u",
            }
            assert root.lstat("bin").st_mtime_ns == 5 * 10**9
            assert root.lstat("bin/su").st_mtime_ns == 10**18
            assert root.lstat("bin/su").st_nlink == 2
            assert root.xattrs("bin/ping") == {"security.capability": capability, "user.note": b"\0\n"}
        assert store.size(diff_id) == len(b"program" + b"p" + b"/bin/su" + b"l" + b"u")

    def test_parents_that_are_links_are_followed_inside(self, store: LayerStore) -> None:
        tar = archive(
            node("usr/lib"),
            node("lib", SYMLINK, linkname=b"usr/lib"),
            node("abs", SYMLINK, linkname=b"/usr"),
            node("out", SYMLINK, linkname=b"../../../../made"),
            file("lib/a", b"a"),
            file("abs/lib/b", b"b"),
            file("out/c", b"c"),
        )
        with mounted(store, put(store, tar)) as root:
            assert root.read("usr/lib/a", 9) == b"a"
            assert root.read("usr/lib/b", 9) == b"b"
            assert root.read("made/c", 9) == b"c"

    def test_the_last_of_equal_names_counts(self, store: LayerStore) -> None:
        tar = archive(
            file("a", b"old"),
            file("a", b"new"),
            node("d"),
            file("d/kept", b"k"),
            node("d", mode=0o700),
            node("file-then-dir", SYMLINK, linkname=b"d"),
            node("file-then-dir"),
            file("file-then-dir/x", b"x"),
            node("dir-then-file"),
            file("dir-then-file/gone", b"g"),
            file("dir-then-file", b"f"),
            file("one", b"1"),
            node("two", LINK, linkname=b"one"),
            file("one", b"other"),
            node("two", LINK, linkname=b"two"),
        )
        with mounted(store, put(store, tar)) as root:
            assert tree(root) == {
                "a": "-rw-r--r-- 0:0 new",
                "d": "drwx------ 0:0",
                "d/kept": "-rw-r--r-- 0:0 k",
                "dir-then-file": "-rw-r--r-- 0:0 f",
                "file-then-dir": "drwxr-xr-x 0:0",
                "file-then-dir/x": "-rw-r--r-- 0:0 x",
                "one": "-rw-r--r-- 0:0 other",
                "two": "-rw-r--r-- 0:0 1",
            }

    # Stacking

    def test_whiteouts(self, store: LayerStore) -> None:
        lower = put(
            store,
            archive(file("gone"), file("d/gone"), file("d/kept"), file("o/hidden"), file("both/old"), file("w/old")),
        )
        upper = put(
            store,
            archive(
                file(".wh.gone", b""),
                node("d"),
                file("d/.wh.gone", b""),
                file("d/.wh.never-there", b""),
                node("o"),
                file("o/.wh..wh..opq", b""),
                file("o/new"),
                file(".wh..wh.plnk", b""),
                file(".wh.both", b""),
                node("both"),
                file("both/new"),
                node("w"),
                file("w/new"),
                file(".wh.w", b""),
                file("only-here/.wh.nothing", b""),
                file("only-here/real"),
            ),
        )
        with mounted(store, lower, upper) as root:
            assert sorted(tree(root)) == [
                "both",
                "both/new",
                "d",
                "d/kept",
                "o",
                "o/new",
                "only-here",
                "only-here/real",
                "w",
                "w/new",
            ]

    def test_no_layers_one_layer_and_a_repeated_one(self, store: LayerStore) -> None:
        a = put(store, archive(file("f", b"a"), file("a")))
        b = put(store, archive(file("f", b"b"), file(".wh.a", b"")))
        with mounted(store) as root:
            assert tree(root) == {}
        with mounted(store, b) as root:
            assert sorted(tree(root)) == ["f"]
        with mounted(store, a, b, a) as root:
            assert root.read("f", 9) == b"a"
            assert sorted(tree(root)) == ["a", "f"]
        assert len(store.lowers([])) == 1
        assert len(store.lowers([a, b, a, b])) == 3

    def test_a_container_finds_its_mount_targets_and_keeps_clean(self, store: LayerStore, tmp_path: Path) -> None:
        image = put(
            store, archive(file("etc/hosts", b"own"), node("etc", mode=0o711), node("dev", SYMLINK, linkname=b"d"))
        )
        upper, work = tmp_path / "upper", tmp_path / "work"
        upper.mkdir()
        work.mkdir()
        with Rootdir(store.mount([image], upper, work)) as root:
            assert root.read("etc/hosts", 9) == b"own"
            assert root.exists("etc/resolv.conf")
            assert root.exists("proc")
            assert root.exists(".dockerenv")
            assert stat.S_IMODE(root.lstat("etc").st_mode) == 0o711
            assert root.readlink("dev") == b"d"
        assert store.commit(upper) is None
        with mounted(store, image) as root:
            assert sorted(tree(root)) == ["dev", "etc", "etc/hosts"]

    def test_a_deep_stack(self, store: LayerStore) -> None:
        layers = [put(store, archive(file("f", b"%d" % number), file(f"f{number}"))) for number in range(125)]
        with mounted(store, *layers) as root:
            assert root.read("f", 9) == b"124"
            assert len(root.entries()) == 126

    def test_layers_do_not_change(self, store: LayerStore) -> None:
        with (
            mounted(store, put(store, archive(file("f")))) as root,
            pytest.raises(OSError, match=os.strerror(errno.EROFS)),
        ):
            root.open("new", os.O_WRONLY | os.O_CREAT, 0o600)

    def test_a_layer_from_a_writable_directory(self, store: LayerStore, tmp_path: Path) -> None:
        base = put(
            store, archive(file("etc/gone"), file("etc/kept"), file("dir/old"), file("changed", b"old"), file("cap"))
        )
        capability = bytes.fromhex("0100000200040000000000000000000000000000")
        upper, work = tmp_path / "upper", tmp_path / "work"
        upper.mkdir()
        work.mkdir()
        with Rootdir(store.mount([base], upper, work, volatile=True)) as root:
            root.unlink("etc/gone")
            root.rmtree("dir")
            root.makedirs("dir", 0o2750, 5, 6)
            for path, mode in (("dir/new", 0o4755), ("changed", 0o600)):
                with open(root.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode), "wb") as written:
                    written.write(b"new")
                root.chmod(path, mode)
            root.link("dir/new", "hard")
            root.symlink("/dir/new", "link")
            root.mknod("pipe", stat.S_IFIFO | 0o600)
            root.mknod("socket", stat.S_IFSOCK | 0o600)
            root.setxattr("cap", "security.capability", capability)
            root.utime("hard", 10**18)
            before = dict(tree(root))
        with Rootdir.of(store.lowers([])[-1]) as init:
            targets = set(tree(init)) - {"etc"}
        before = {name: text for name, text in before.items() if name not in {"socket", *targets}}
        diff_id = store.commit(upper)
        assert diff_id is not None
        assert not upper.exists()
        with mounted(store, base, diff_id) as root:
            assert tree(root) == before
            assert root.xattrs("cap") == {"security.capability": capability}
            assert root.lstat("dir/new").st_nlink == 2
        with store.open_tar(diff_id) as tar:
            assert [(entry.name.decode(), entry.type) for entry in TarReader(tar)] == [
                ("cap", REGULAR),
                ("changed", REGULAR),
                ("dir/", DIRECTORY),
                ("dir/.wh..wh..opq", REGULAR),
                ("dir/new", REGULAR),
                ("etc/", DIRECTORY),
                ("etc/.wh.gone", REGULAR),
                ("hard", LINK),
                ("link", SYMLINK),
                ("pipe", FIFO),
            ]
            tar.seek(0)
            again = self.make(tmp_path / "again").apply(tar, expected=diff_id)
        assert again == diff_id

    def test_committing_twice_gives_the_same_layer(self, store: LayerStore, tmp_path: Path) -> None:
        upper = tmp_path / "upper"
        (upper / "d").mkdir(parents=True)
        (upper / "d/f").write_text("f")
        first = store.commit(upper, keep=True)
        assert (upper / "d/f").exists()
        second = store.commit(upper)
        assert first == second
        assert first is not None
        with mounted(store, first) as root:
            assert root.read("d/f", 9) == b"f"

    def test_nothing_written_is_no_layer(self, store: LayerStore, tmp_path: Path) -> None:
        (tmp_path / "upper").mkdir()
        assert store.commit(tmp_path / "upper") is None
        assert not (tmp_path / "upper").exists()
        assert list(store.walk()) == []

    # Life

    def test_missing_layers_are_not_found(self, store: LayerStore) -> None:
        for ask in (store.info, store.size, store.open_tar, lambda diff_id: store.lowers([diff_id])):
            with pytest.raises(NotFound):
                ask(EMPTY_DIFF_ID)
        assert not store.has(EMPTY_DIFF_ID)
        assert not store.remove(EMPTY_DIFF_ID)
        assert put(store, archive()) == EMPTY_DIFF_ID

    def test_a_removed_layer_can_come_back(self, store: LayerStore, tmp_path: Path) -> None:
        tar = archive(*(file(f"d{number % 9}/f{number}") for number in range(99)))
        diff_id = put(store, tar)
        assert store.remove(diff_id)
        assert not store.has(diff_id)
        assert put(store, tar) == diff_id
        with mounted(store, diff_id) as root:
            assert len(tree(root)) == 108

    def test_a_large_layer(self, store: LayerStore) -> None:
        tar = archive(*(file(f"f{number}", bytes([number]) * 3_000_000) for number in range(5))) + bytes(1 << 20)
        assert put(store, tar) == diff_id_of(tar)
        with store.open_tar(diff_id_of(tar)) as kept:
            assert kept.read() == tar
        with pytest.raises(BadArchive, match="unexpected EOF"):
            put(store, tar[:10_000_000])

    def test_the_same_layer_at_the_same_time(self, store: LayerStore) -> None:
        tar = archive(*(file(f"d{number % 9}/f{number}") for number in range(300)))
        results: list[DiffId] = []
        threads = [threading.Thread(target=lambda: results.append(put(store, tar))) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results == [diff_id_of(tar)] * 4
        with mounted(store, results[0]) as root:
            assert len(tree(root)) == 309

    def test_layers_outlive_the_store(self, store: LayerStore, tmp_path: Path) -> None:
        diff_id = put(store, archive(file("f")))
        store.settle([diff_id])
        store.settle([diff_id])
        store.close()
        again = self.make(tmp_path)
        again.sweep()
        with mounted(again, diff_id) as root:
            assert root.exists("f")
        again.close()

    def test_what_was_staged_is_swept(self, store: LayerStore, tmp_path: Path) -> None:
        kept = put(store, archive(file("kept")))
        before = set(snapshot(tmp_path))

        class Killed(BaseException):
            pass

        class Dying:
            def __init__(self) -> None:
                self.tar = io.BytesIO(archive(*(file(f"f{number}") for number in range(5000))))

            def read(self, size: int, /) -> bytes:
                if self.tar.tell() > 1 << 20:
                    os._exit(9)
                return self.tar.read(size)

        child = os.fork()
        if child == 0:
            store.apply(Dying())
        os.waitpid(child, 0)
        assert set(snapshot(tmp_path)) != before
        again = self.make(tmp_path)
        again.sweep()
        assert set(snapshot(tmp_path)) == before
        assert [info.diff_id for info in again.walk()] == [kept]
        again.close()

    # Bad input

    def test_an_unexpected_digest_leaves_nothing(self, store: LayerStore, tmp_path: Path) -> None:
        before = set(snapshot(tmp_path))
        with pytest.raises(SystemFailure):
            store.apply(io.BytesIO(archive(file("f"))), expected=EMPTY_DIFF_ID)
        assert set(snapshot(tmp_path)) == before

    def test_what_reading_raises_comes_out_and_nothing_stays(self, store: LayerStore, tmp_path: Path) -> None:
        before = set(snapshot(tmp_path))

        class Failing:
            def read(self, size: int, /) -> bytes:
                raise NotFound("connection reset")

        with pytest.raises(NotFound, match="connection reset"):
            store.apply(Failing())
        assert set(snapshot(tmp_path)) == before

    @pytest.mark.parametrize(
        "tar",
        [
            archive(file("f", b"x" * 5000))[:3000],
            archive(file("f"))[:300],
            b"garbage" * 1000,
            archive(file("../evil")),
            archive(file("a/../../evil")),
            archive(node("h", LINK, linkname=b"../../etc/passwd")),
            archive(node("h", LINK, linkname=b"missing")),
            archive(node("d"), node("h", LINK, linkname=b"d")),
            archive(node("l", SYMLINK, linkname=b"l"), file("l/x")),
            archive(node("s", SYMLINK)),
            archive(file("f"), file("f/below")),
            archive(file(".wh..")),
            archive(file("a/.wh...")),
            archive(file("n" * 256)),
            archive(file("d/" * 2100 + "f")),
        ],
        ids=(
            "truncated-content truncated-header garbage up up-below link-up link-missing link-to-directory loop "
            "empty-link file-as-parent whiteout-dot whiteout-dotdot long-name long-path"
        ).split(),
    )
    def test_bad_archives_are_refused_and_leave_nothing(self, store: LayerStore, tmp_path: Path, tar: bytes) -> None:
        before = set(snapshot(tmp_path))
        with pytest.raises(BadArchive):
            put(store, tar)
        assert set(snapshot(tmp_path)) == before

    def test_marks_of_overlayfs_do_not_come_from_archives(self, store: LayerStore) -> None:
        lower = put(store, archive(file("d/seen"), file("secret/s")))
        marks = {b"trusted.overlay.opaque": b"y", b"trusted.overlay.redirect": b"/secret", b"user.overlay.opaque": b"y"}
        upper = put(store, archive(node("d", xattrs=marks), file("f", xattrs={b"trusted.overlay.metacopy": b""})))
        with mounted(store, lower, upper) as root:
            assert root.exists("d/seen")
            assert not root.exists("d/s")
            assert root.xattrs("d") == {}

    @settings(max_examples=60, deadline=None, suppress_health_check=_SUPPRESSED)
    @given(entries=st.lists(ENTRIES, max_size=8), cut=st.integers(0, 3000))
    def test_no_archive_reaches_outside(
        self, tmp_path_factory: pytest.TempPathFactory, entries: list[Entry], cut: int
    ) -> None:
        top = tmp_path_factory.mktemp("hostile")
        outside = top / "outside"
        outside.mkdir()
        (outside / "file").write_text("untouched")
        store = self.make(top / "state")
        before = snapshot(outside)
        etc = os.lstat("/etc").st_mtime_ns
        members = [
            (entry._replace(size=4), b"data") if entry.type == REGULAR else entry._replace(xattrs={})
            for entry in entries
        ]
        tar = archive(
            node("up", SYMLINK, linkname=b"../" * 20 + str(outside).encode().lstrip(b"/")),
            node("l", SYMLINK, linkname=str(outside).encode()),
            *members,
        )
        tar = tar[: len(tar) - cut] if cut % 2 else tar
        try:
            diff_id = put(store, tar)
        except EngineError:
            assert list(store.walk()) == []
        else:
            with mounted(store, diff_id) as root:
                tree(root)
        assert snapshot(outside) == before
        assert os.lstat("/etc").st_mtime_ns == etc
        store.close()

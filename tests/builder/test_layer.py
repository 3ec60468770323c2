import gzip
import os
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from compatd.builder.layer import Layer, LayerStream, Owner, owner_of
from compatd.builder.ports import TarEntry
from compatd.builder.trees import FileRange, Inode, Kind, RootTree
from compatd.errors import SystemFailure
from tests.fakes.builder import Engine, EngineArchives, make_tar, member

pytestmark = pytest.mark.unit

NOW_NS = 1_800_000_000 * 10**9


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = Engine(tmp_path)
    yield engine
    engine.close()


CONTEXT: dict[str, str | bytes | tarfile.TarInfo | None] = {
    "a": "1",
    "d": member(tarfile.DIRTYPE, mode=0o700, uid=3),
    "d/x": "x",
    "d/h": member(tarfile.LNKTYPE, linkname="d/x"),
    "d/sub": member(tarfile.DIRTYPE, mode=0o750),
    "d/sub/suid": member(mode=0o4755, size=0),
    "d/rel": member(tarfile.SYMTYPE, linkname="../a"),
    "ln": member(tarfile.SYMTYPE, linkname="a"),
    "dln": member(tarfile.SYMTYPE, linkname="d"),
}
TREE = [
    ("nd/h", "0", 0o644, 0, 0),
    ("nd/rel", "2", 0o777, 0, 0),
    ("nd/sub", "5", 0o750, 0, 0),
    ("nd/sub/suid", "0", 0o755, 0, 0),  # chown(2) takes the bit
    ("nd/x", "1", 0o644, 0, 0),
]
TMP = ("tmp", "5", 0o1777, 0, 0)


@pytest.mark.parametrize(
    ("instruction", "expected"),
    [
        ("COPY a /tmp", [TMP, ("tmp/a", "0", 0o644, 0, 0)]),
        ("COPY a /new", [("new", "0", 0o644, 0, 0)]),
        ("COPY a /new/", [("new", "5", 0o755, 0, 0), ("new/a", "0", 0o644, 0, 0)]),
        ("COPY a /file", [("file", "0", 0o644, 0, 0)]),
        (
            "COPY --chown=7:8 a /p/q/r",
            [("p", "5", 0o755, 7, 8), ("p/q", "5", 0o755, 7, 8), ("p/q/r", "0", 0o644, 7, 8)],
        ),
        ("COPY --chown=mail a /m", [("m", "0", 0o644, 8, 12)]),
        ("COPY --chown=mail:staff a /m", [("m", "0", 0o644, 8, 50)]),
        ("COPY d /nd", [("nd", "5", 0o755, 0, 0), *TREE]),
        ("COPY dln /nd", [("nd", "5", 0o755, 0, 0), *TREE]),
        ("COPY d/ d /nd/", [("nd", "5", 0o755, 0, 0), *TREE]),
        (
            "COPY --chown=7:8 d /p/nd",
            [
                ("p", "5", 0o755, 0, 0),
                ("p/nd", "5", 0o755, 7, 8),
                *[(f"p/{name}", kind, mode, 7, 8) for name, kind, mode, _, _ in TREE],
            ],
        ),
        (
            "COPY --chown=7:8 d /tmp",
            [TMP, *[(name.replace("nd", "tmp"), kind, mode, 7, 8) for name, kind, mode, _, _ in TREE]],
        ),
        ("COPY ln /n/", [("n", "5", 0o755, 0, 0), ("n/ln", "0", 0o644, 0, 0)]),
        ("COPY a ln /n/", [("n", "5", 0o755, 0, 0), ("n/a", "0", 0o644, 0, 0), ("n/ln", "0", 0o644, 0, 0)]),
        # a link in the image is followed for a destination, inside the image
        ("COPY a /bin/t", [("usr", "5", 0o755, 0, 0), ("usr/bin", "5", 0o755, 0, 0), ("usr/bin/t", "0", 0o644, 0, 0)]),
        ("COPY a /out/t", [TMP, ("tmp/t", "0", 0o644, 0, 0)]),
        ("COPY a /dangling", [TMP, ("tmp/none", "0", 0o644, 0, 0)]),
        ("COPY a /x/../y", [("y", "0", 0o644, 0, 0)]),
        ("COPY a ../../y", [("y", "0", 0o644, 0, 0)]),
        ('COPY ["a", "/with space"]', [("with space", "0", 0o644, 0, 0)]),
        ("WORKDIR /q/w", [("q", "5", 0o755, 0, 0), ("q/w", "5", 0o755, 0, 0)]),
        ("WORKDIR /out/x", [TMP, ("tmp/x", "5", 0o755, 0, 0)]),
    ],
)
async def test_what_goes_where(
    instruction: str, expected: list[tuple[str, str, int, int, int]], engine: Engine
) -> None:
    add_links_image(engine)
    image_id = await engine.build(f"FROM links\n{instruction}\n", CONTEXT)
    assert engine.listing(image_id) == expected


def add_links_image(engine: Engine) -> None:
    engine.add_image(
        "links",
        {
            "etc": None,
            "etc/passwd": "root:x:0:0::/:\nmail:x:8:12::/:\n",
            "etc/group": "mail:x:12:\nstaff:x:50:\n",
            "tmp": member(tarfile.DIRTYPE, mode=0o1777),
            "usr": None,
            "usr/bin": None,
            "file": "content",
            "bin": member(tarfile.SYMTYPE, linkname="usr/bin"),
            "out": member(tarfile.SYMTYPE, linkname="../../../../tmp"),
            "dangling": member(tarfile.SYMTYPE, linkname="/tmp/none"),
        },
        b"{}",
    )


async def test_an_existing_working_directory_is_no_layer(engine: Engine) -> None:
    image_id = await engine.build("FROM base\nWORKDIR /tmp\n")
    assert engine.top(image_id) == engine.top(engine.base)


async def test_times_are_the_files_and_directories_are_new(engine: Engine) -> None:
    image_id = await engine.build("FROM base\nCOPY d /p/nd\n", CONTEXT)
    dates = {item.name: item.mtime for item in engine.layers.members(engine.top(image_id))}
    assert dates["p/nd/x"] == dates["p/nd/sub"] == 1_700_000_000
    assert dates["p"] == dates["p/nd"] > 1_800_000_000


async def test_a_copied_directory_replaces_what_is_no_directory(engine: Engine) -> None:
    engine.add_image(
        "odd",
        {
            "z": None,
            "z/sub": member(tarfile.SYMTYPE, linkname="/elsewhere"),
            "z/x": None,
            "z/x/below": "gone",
            "elsewhere": None,
        },
        b"{}",
    )
    image_id = await engine.build("FROM odd\nCOPY d /z\n", CONTEXT)
    names = [name for name, *_ in engine.listing(image_id)]
    assert names == ["z", "z/h", "z/rel", "z/sub", "z/sub/suid", "z/x"]
    assert [kind for name, kind, *_ in engine.listing(image_id) if name == "z/sub"] == ["5"]


async def test_a_directory_over_a_file_over_the_images_directory_hides_that(engine: Engine) -> None:
    engine.add_image("odd", {"z": None, "z/x": None, "z/x/old": "gone"}, b"{}")
    files = {"one": None, "one/x": "file", "two": None, "two/x": None, "two/x/new": "1"}
    image_id = await engine.build("FROM odd\nCOPY one two /z/\n", files)
    names = [name for name, *_ in engine.listing(image_id)]
    assert names == ["z", "z/x", "z/x/.wh..wh..opq", "z/x/new"]


INNER = make_tar(
    {
        "./": None,
        "r": None,
        "r/f": member(mode=0o4755, uid=11, gid=12),
        "r/l": member(tarfile.SYMTYPE, linkname="../../../etc/x"),
        "n/m/o": "deep",
        "r/hard": member(tarfile.LNKTYPE, linkname="r/f"),
    }
)
UNPACKED = [
    ("n", "5", 0o755, 0, 0),
    ("n/m", "5", 0o755, 0, 0),
    ("n/m/o", "0", 0o644, 0, 0),
    ("r", "5", 0o755, 0, 0),
    ("r/f", "0", 0o4755, 11, 12),
    ("r/hard", "1", 0o4755, 11, 12),
    ("r/l", "2", 0o777, 0, 0),
]


@pytest.mark.parametrize("pack", ["", "gzip", "bz2", "lzma"])
async def test_add_unpacks(pack: str, engine: Engine) -> None:
    data = __import__(pack).compress(INNER) if pack else INNER
    image_id = await engine.build("FROM base\nADD --chown=5:6 t /dst\n", {"before": "x", "t": data, "z": "x"})
    # --chown does not reach into archives
    assert engine.listing(image_id) == [
        ("dst", "5", 0o755, 0, 0),
        *[(f"dst/{name}", *rest) for name, *rest in UNPACKED],
    ]
    assert engine.layers.content(engine.top(image_id), "dst/n/m/o") == b"deep"


@pytest.mark.parametrize(
    "data",
    [b"", b"plain", b"\0" * 1024, b"\x1f\x8b\x08broken", gzip.compress(b"no tar", mtime=0)],
    ids=["empty", "plain", "zeros", "broken", "compressed"],
)
async def test_add_takes_other_files_as_they_are(data: bytes, engine: Engine) -> None:
    image_id = await engine.build("FROM base\nADD t /dst\n", {"t": data})
    assert engine.layers.content(engine.top(image_id), "dst") == data


async def test_copy_never_unpacks(engine: Engine) -> None:
    image_id = await engine.build("FROM base\nCOPY t /dst\n", {"t": INNER})
    assert engine.layers.content(engine.top(image_id), "dst") == INNER


async def test_links_in_an_archive_stay_in_its_destination(engine: Engine) -> None:
    data = make_tar({"l": member(tarfile.SYMTYPE, linkname="/etc"), "l/in": "x"})
    image_id = await engine.build("FROM base\nADD t /d\n", {"t": data})
    assert [name for name, *_ in engine.listing(image_id)] == ["d", "d/etc", "d/etc/in", "d/l"]


async def test_an_archive_may_link_to_the_images_files(engine: Engine) -> None:
    data = make_tar({"h": member(tarfile.LNKTYPE, linkname="etc/passwd")})
    image_id = await engine.build("FROM base\nADD t /\n", {"t": data})
    assert [(name, kind) for name, kind, *_ in engine.listing(image_id)] == [
        ("etc", "5"),
        ("etc/passwd", "0"),
        ("h", "1"),
    ]


@pytest.mark.parametrize(
    ("files", "error"),
    [
        ({"../x": "1"}, 'failed to copy files: invalid entry name "../x"'),
        ({"h": member(tarfile.LNKTYPE, linkname="none")}, "failed to copy files: linkat none h: no such file"),
        ({"etc/.wh.passwd": ""}, r"names that begin with \.wh\. are reserved"),
        ({".wh..wh..opq": ""}, r"names that begin with \.wh\. are reserved"),
    ],
)
async def test_archives_that_lie(files: dict[str, str | tarfile.TarInfo], error: str, engine: Engine) -> None:
    with pytest.raises(SystemFailure, match=error):
        await engine.build("FROM base\nADD t /d\n", {"t": make_tar(files)})


async def test_a_truncated_archive_does_not_borrow_from_its_neighbour(engine: Engine) -> None:
    data = make_tar({"f": "x" * 5000})[:1024]
    with pytest.raises(SystemFailure, match="failed to copy files: unexpected EOF"):
        await engine.build("FROM base\nADD t /d\n", {"t": data, "u": "y" * 10_000})


async def test_devices_are_carried_over(engine: Engine) -> None:
    device = member(tarfile.CHRTYPE, devmajor=1, devminor=3)
    image_id = await engine.build("FROM base\nCOPY . /d/\n", {"null": device, "pipe": member(tarfile.FIFOTYPE)})
    found = {item.name: item for item in engine.layers.members(engine.top(image_id))}
    assert (found["d/null"].type, found["d/null"].devmajor, found["d/null"].devminor) == (tarfile.CHRTYPE, 1, 3)
    assert found["d/pipe"].type == tarfile.FIFOTYPE


def test_capabilities_survive_only_without_a_new_owner(tmp_path: Path) -> None:
    inode = Inode(kind=Kind.FILE, xattrs={b"security.capability": b"c", b"user.x": b"1"})
    for owner, expected in ((None, {b"security.capability": b"c"}), (Owner(), {})):
        layer = Layer(None, NOW_NS)
        layer.copy_file(inode, b"f", b"/f", owner)
        assert [dict(found.xattrs) for _, found, _ in layer.members()] == [expected]


def test_overlay_attributes_of_an_archive_are_dropped() -> None:
    layer = Layer(None, NOW_NS)
    entry = TarEntry(
        b"d", b"5", xattrs={b"trusted.overlay.redirect": b"/etc", b"user.overlay.opaque": b"y", b"user.a": b"1"}
    )
    layer.unpack([(entry, 0)], -1, 0, b"/")
    assert [dict(found.xattrs) for _, found, _ in layer.members()] == [{b"user.a": b"1"}]


def test_the_stream_is_read_in_any_pieces(tmp_path: Path) -> None:
    path = tmp_path / "content"
    path.write_bytes(os.urandom(3_000_000))
    with path.open("rb") as file:
        content = FileRange(file.fileno(), 0, 3_000_000)

        def read(size: int) -> bytes:
            layer = Layer(None, NOW_NS)
            for name in (b"a", b"b"):
                inode = Inode(kind=Kind.FILE, size=3_000_000, content=content)
                layer.copy_file(inode, name, b"/d/", Owner())
            stream = LayerStream(layer, EngineArchives(), threading.Event())
            return b"".join(iter(lambda: stream.read(size), b""))

        whole = read(1 << 30)
        assert len(whole) == 512 * 5 + 2 * (3_000_000 + -3_000_000 % 512)
        assert read(999) == whole
        assert read(1 << 20) == whole


def test_owners() -> None:
    files = {
        "/etc/passwd": b"root:x:0:0:::\nbad line\nme:x:12:13:::\nneg:x:-1:1:::\n\xff:x:1:1::\n",
        "/etc/group": b"root:x:0:\nus:x:14:\n",
    }

    def read(path: str) -> bytes:
        return files[path]

    assert owner_of("me:us", read) == Owner(12, 14)
    assert owner_of("5", read) == Owner(5, 5)
    assert owner_of("5:us", read) == Owner(5, 14)
    for wrong in ("neg:0", "1_0", "\u0661", "4294967296", "", "me"):
        with pytest.raises(SystemFailure):
            owner_of(wrong, read)


def test_no_passwd_file() -> None:
    def read(path: str) -> bytes:
        raise FileNotFoundError(path)

    with pytest.raises(SystemFailure, match="can't find uid for user me: open /etc/passwd: no such file or directory"):
        owner_of("me", read)


def test_a_fifo_for_a_passwd_file_does_not_block(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    os.mkfifo(tmp_path / "etc" / "passwd")
    tree = RootTree(os.open(tmp_path, os.O_PATH | os.O_DIRECTORY))
    with pytest.raises(SystemFailure, match="can't find uid for user me"):
        owner_of("me", lambda path: tree.read(path, 1000))
    tree.close()

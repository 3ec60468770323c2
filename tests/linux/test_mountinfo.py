"""mountinfo: the kernel's own, and lines of the shapes it can have."""

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compatd.linux import mountinfo

pytestmark = pytest.mark.unit


def test_fields_and_optional_fields() -> None:
    line = rb"36 35 98:0 /mnt1 /mnt\0402 rw,noatime master:1 shared:7 - ext3 /dev/ro\134ot rw,errors=continue" + b"\n"
    (mount,) = mountinfo.parse(line)
    assert (mount.id, mount.parent_id, mount.device, mount.root) == (36, 35, (98, 0), "/mnt1")
    assert mount.mount_point == "/mnt 2"
    assert mount.options == {"rw", "noatime"}
    assert (mount.shared, mount.master) == (7, 1)
    assert (mount.fstype, mount.source, mount.super_options) == ("ext3", "/dev/ro\\ot", ("rw", "errors=continue"))


def test_own_mounts_have_a_root() -> None:
    mounts = mountinfo.read()
    root = mountinfo.containing(mounts, "/")
    assert root is not None
    assert root.mount_point == "/"
    assert mountinfo.read(os.getpid()) == mounts


def test_containing_is_the_deepest_and_then_the_last() -> None:
    lines = b"".join(
        b"%d 1 0:%d / %s rw - tmpfs t rw\n" % (number, number, point)
        for number, point in ((1, b"/"), (2, b"/a"), (3, b"/a/b"), (4, b"/a"), (5, b"/ab"))
    )
    mounts = list(mountinfo.parse(lines))

    def found(path: str) -> int | None:
        mount = mountinfo.containing(mounts, path)
        return mount.id if mount else None

    assert [found(path) for path in ("/", "/a", "/a/c", "/a/b/c", "/abc", "/ab/c")] == [1, 4, 4, 3, 1, 5]
    assert mountinfo.containing([], "/") is None


@pytest.mark.parametrize("line", [b"36 35 98:0 /", b"a b c d e f - g h i", b"36 35 98:0 / / rw ext3 /dev/x rw"])
def test_other_lines_are_refused(line: bytes) -> None:
    with pytest.raises(ValueError, match=r"not a mountinfo line|invalid literal"):
        list(mountinfo.parse(line))


@settings(max_examples=50)
@given(path=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1))
def test_escapes_are_undone(path: str) -> None:
    escaped = path.encode()
    for byte in b"\\ \t\n":
        escaped = escaped.replace(b"%c" % byte, rb"\%03o" % byte) if byte != 0x5C else escaped.replace(b"\\", rb"\134")
    (mount,) = mountinfo.parse(b"1 1 0:1 / /" + escaped + b" rw - tmpfs t rw\n")
    assert mount.mount_point == "/" + path


def test_only_newlines_end_lines() -> None:
    (mount,) = mountinfo.parse(b"1 1 0:1 / /a\rb\x0cc rw - tmpfs t rw\n")
    assert mount.mount_point == "/a\rb\x0cc"

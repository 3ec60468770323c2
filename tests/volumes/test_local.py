import json
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from compatd.errors import InvalidParameter, NotFound, SystemFailure
from compatd.linux.rootdir import Rootdir
from compatd.volumes import local
from compatd.volumes.local import LocalVolumes


@pytest.fixture
def volumes(tmp_path: Path) -> LocalVolumes:
    return LocalVolumes(tmp_path / "volumes")


@pytest.fixture
def image(tmp_path: Path) -> Iterator[Rootdir]:
    (tmp_path / "image").mkdir()
    root = Rootdir.of(tmp_path / "image")
    yield root
    root.close()


@pytest.mark.unit
def test_life_of_a_volume(volumes: LocalVolumes, tmp_path: Path) -> None:
    anonymous = volumes.create()
    assert len(bytes.fromhex(anonymous)) == 32
    assert volumes.create("data") == "data"
    path = volumes.path("data")
    assert path == tmp_path / "volumes" / "data" / "_data"
    assert stat.S_IMODE(path.stat().st_mode) == 0o755
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o701
    (path / "kept").write_text("x" * 100)
    os.link(path / "kept", path / "again")
    (path / "sub").mkdir()
    (path / "sub" / "more").write_text("y" * 11)
    volumes.create("data")  # once more: nothing is lost
    assert volumes.size_bytes("data") == 111
    assert volumes.names() == sorted(["data", anonymous])
    volumes.remove("data")
    assert not volumes.exists("data")
    assert os.listdir(tmp_path / "volumes") == [anonymous]
    for call in (volumes.remove, volumes.path, volumes.size_bytes):
        with pytest.raises(NotFound) as caught:
            call("data")
        assert str(caught.value) == "get data: no such volume"


@pytest.mark.unit
@pytest.mark.parametrize("name", ["a/b", ".a", "-a", "a:", "a b", "..", "ab\n", "é1", "a\0b", "../data"])
def test_names_that_docker_refuses(volumes: LocalVolumes, name: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        volumes.create(name)
    assert str(caught.value) == (
        f"create {name}: {json.dumps(name, ensure_ascii=False)} includes invalid characters for a local volume name,"
        ' only "[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed. If you intended to pass a host directory, use absolute path'
    )
    assert not volumes.exists(name)
    with pytest.raises(NotFound):
        volumes.remove(name)


@pytest.mark.unit
def test_names_too_short_or_too_long(volumes: LocalVolumes) -> None:
    with pytest.raises(InvalidParameter, match="create a: volume name is too short, names should be at least two alph"):
        volumes.create("a")
    with pytest.raises(SystemFailure, match="file name too long"):
        volumes.create("a" * 300)
    assert volumes.names() == []


def tree(path: Path) -> dict[str, tuple[object, ...]]:
    """Everything that a copy must keep; hard links show as equal numbers."""
    found: dict[str, tuple[object, ...]] = {}
    inodes: dict[int, int] = {}
    for item in [path, *sorted(path.rglob("*"))]:
        status = item.lstat()
        content: object = None
        if stat.S_ISREG(status.st_mode):
            content = item.read_bytes()
        elif stat.S_ISLNK(status.st_mode):
            content = os.readlink(item)
        elif stat.S_ISCHR(status.st_mode):
            content = status.st_rdev
        attributes = (
            {name: os.getxattr(item, name, follow_symlinks=False) for name in os.listxattr(item)}
            if not (stat.S_ISLNK(status.st_mode))
            else {}
        )
        number = inodes.setdefault(status.st_ino, len(inodes))
        found[str(item.relative_to(path))] = (
            status.st_mode,
            status.st_uid,
            status.st_gid,
            status.st_mtime_ns,
            content,
            attributes,
            number,
        )
    return found


@pytest.mark.root
def test_copy_up_keeps_everything(volumes: LocalVolumes, image: Rootdir, tmp_path: Path) -> None:
    source = tmp_path / "image" / "data"
    (source / "sub" / "deeper").mkdir(parents=True)
    (source / "file").write_bytes(os.urandom(100_000))
    os.link(source / "file", source / "sub" / "same")
    (source / "program").write_text("#!/bin/sh\n")
    os.chown(source / "program", 12, 34)
    (source / "program").chmod(0o4755)
    os.setxattr(source / "program", "user.note", b"x")
    (source / "absolute").symlink_to("/etc/passwd")
    os.symlink("../..", source / "sub" / "up")
    os.chown(source / "absolute", 5, 6, follow_symlinks=False)
    os.mknod(source / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mkfifo(source / "fifo")
    (source / "sub").chmod(0o2750)
    source.chmod(0o1777)
    os.chown(source, 70, 71)
    for item in (source / "file", source / "sub", source):
        os.utime(item, ns=(10**18, 10**18 + 7))
    expected = tree(source)
    with socket.socket(socket.AF_UNIX) as listener:  # of no use to anybody without its listener: left out
        listener.bind(str(source / "socket"))
    os.utime(source, ns=(10**18, 10**18 + 7))
    volumes.create("vv")
    before = volumes.path("vv").stat().st_ino
    assert volumes.copy_up("vv", image, "/data")
    assert tree(volumes.path("vv")) == expected
    assert volumes.path("vv").stat().st_ino == before  # a container that already had it sees the content
    assert os.listdir(volumes.path("vv").parent) == ["_data"]


@pytest.mark.unit
def test_copy_up_only_fills_what_is_empty(volumes: LocalVolumes, image: Rootdir, tmp_path: Path) -> None:
    (tmp_path / "image" / "data").mkdir(mode=0o750)
    (tmp_path / "image" / "data" / "new").touch()
    (tmp_path / "image" / "file").touch()
    volumes.create("vv")
    assert not volumes.copy_up("vv", image, "/absent")
    assert not volumes.copy_up("vv", image, "/file")
    (volumes.path("vv") / "old").touch()
    assert not volumes.copy_up("vv", image, "/data")
    assert os.listdir(volumes.path("vv")) == ["old"]
    (volumes.path("vv") / "old").unlink()
    assert volumes.copy_up("vv", image, "/data")
    assert os.listdir(volumes.path("vv")) == ["new"]
    assert stat.S_IMODE(volumes.path("vv").stat().st_mode) == 0o750


@pytest.mark.unit
def test_copy_up_stays_inside_the_image(volumes: LocalVolumes, image: Rootdir, tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key").touch()
    (tmp_path / "image" / "absolute").symlink_to(tmp_path / "secret")
    (tmp_path / "image" / "relative").symlink_to("../secret")
    volumes.create("vv")
    for path in ("/absolute", "relative", "../secret", "/../secret"):
        assert not volumes.copy_up("vv", image, path)
    assert os.listdir(volumes.path("vv")) == []


@pytest.mark.unit
@pytest.mark.parametrize("step", ["_copy_content", "_move_in", "rename of an entry", "rmdir"])
def test_a_copy_up_killed_anywhere_is_begun_again_or_completed(
    volumes: LocalVolumes, image: Rootdir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    class Killed(BaseException):
        pass

    def die(*_: object) -> None:
        raise Killed

    for name in ("one", "two", "three"):
        (tmp_path / "image" / name).write_text(name)
    volumes.create("vv")
    with monkeypatch.context() as patch:
        if step == "rename of an entry":
            original = Path.rename

            def rename(path: Path, target: Path) -> Path:
                if path.name == "three":
                    raise Killed
                return original(path, target)

            patch.setattr(Path, "rename", rename)
        elif step == "rmdir":
            patch.setattr(Path, "rmdir", die)
        else:
            patch.setattr(local, step, die)
        with pytest.raises(Killed):
            volumes.copy_up("vv", image, "/")
    LocalVolumes(tmp_path / "volumes").sweep()
    volumes.copy_up("vv", image, "/")
    assert {item.name: item.read_text() for item in volumes.path("vv").iterdir()} == {
        "one": "one",
        "two": "two",
        "three": "three",
    }
    assert os.listdir(volumes.path("vv").parent) == ["_data"]


@pytest.mark.unit
def test_a_failed_copy_up_leaves_the_volume_empty(
    volumes: LocalVolumes, image: Rootdir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    (tmp_path / "image" / "file").write_text("x")
    volumes.create("vv")
    monkeypatch.setattr(local, "_copy_content", full)
    with pytest.raises(SystemFailure, match="failed to copy image content to volume vv: No space left on device"):
        volumes.copy_up("vv", image, "/")
    assert os.listdir(volumes.path("vv").parent) == ["_data"]
    assert os.listdir(volumes.path("vv")) == []


@pytest.mark.unit
def test_an_image_nested_too_deeply_is_refused(volumes: LocalVolumes, image: Rootdir, tmp_path: Path) -> None:
    deep = tmp_path / "image" / "/".join(["d"] * (local._MAX_DEPTH + 2))
    deep.mkdir(parents=True)
    volumes.create("vv")
    with pytest.raises(SystemFailure, match="nested too deeply"):
        volumes.copy_up("vv", image, "/")
    assert os.listdir(volumes.path("vv").parent) == ["_data"]


@pytest.mark.unit
def test_what_a_crash_left_is_swept(volumes: LocalVolumes, tmp_path: Path) -> None:
    volumes.create("vv")
    (volumes.path("vv") / "kept").touch()
    for left in (".new-1/_data", ".removed-2/_data/x", "vv/.copying-3/x"):
        (tmp_path / "volumes" / left).mkdir(parents=True)
    assert volumes.names() == ["vv"]
    volumes.sweep()
    assert os.listdir(tmp_path / "volumes") == ["vv"]
    assert os.listdir(tmp_path / "volumes" / "vv") == ["_data"]
    assert os.listdir(volumes.path("vv")) == ["kept"]

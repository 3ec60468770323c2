"""Where the mounts of a starting container come from."""

import os
from pathlib import Path
from typing import Any, cast

import pytest

from compatd.core.container import ContainerRecord, MountPoint
from compatd.core.mounting import Mounting
from compatd.core.volumes import VolumeRecord, Volumes
from compatd.errors import EngineError, InvalidParameter, NotFound, SystemFailure
from compatd.images.layers import LayerStore
from compatd.linux import mountinfo
from compatd.wire.types.containers import ContainerConfig, HostConfig

pytestmark = pytest.mark.unit


class FakeVolumes:
    def get(self, name: str) -> VolumeRecord:
        return VolumeRecord(name=name, created_ns=0)


def mounting(*, recursive_readonly: bool = True) -> Mounting:
    return Mounting(
        layers=cast(LayerStore, None),
        volumes=cast(Volumes, FakeVolumes()),
        running=list,
        recursive_readonly=recursive_readonly,
    )


def record(*points: MountPoint, **host_config: Any) -> ContainerRecord:
    return ContainerRecord(
        id="a" * 64,
        name="box",
        created_ns=0,
        image_id="",
        image="",
        layers=(),
        config=ContainerConfig(),
        host_config=HostConfig(**host_config),
        networks={},
        mounts=points,
    )


def bind(source: str, **fields: Any) -> MountPoint:
    return MountPoint(type="bind", source=source, target="/x", **fields)


def table(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    text = "".join(f"{number} 1 0:1 / {line} - tmpfs x rw\n" for number, line in enumerate(lines, 1))
    monkeypatch.setattr(mountinfo, "read", lambda: list(mountinfo.parse(text.encode())))


@pytest.mark.parametrize(
    ("optional", "propagation", "reason"),
    [
        ("", "shared", "a shared mount"),
        ("", "rslave", "a shared or slave mount"),
        ("master:3", "rshared", "a shared mount"),
        ("master:3", "slave", None),
        ("shared:3", "shared", None),
        ("shared:3", "slave", None),
        ("", "rprivate", None),
    ],
)
def test_only_what_is_shared_can_be_shared(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, optional: str, propagation: str, reason: str | None
) -> None:
    table(monkeypatch, "/ rw shared:1", f"{tmp_path} rw {optional}".strip())
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    source = str(tmp_path / "link")
    asked = record(bind(source, propagation=propagation))
    if reason is None:
        points, fds = mounting().prepare(asked, [])
        assert (points[0].propagation, fds) == (propagation, {})
        return
    with pytest.raises(SystemFailure) as caught:
        mounting().prepare(asked, [])
    assert str(caught.value) == f"path {source} is mounted on {tmp_path} but it is not {reason}"


def test_a_slave_that_nobody_asked_for_is_private_where_nothing_is_shared(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked = record(bind(str(tmp_path), propagation="rslave", propagation_implied=True))
    table(monkeypatch, "/ rw")
    assert mounting().prepare(asked, [])[0][0].propagation == "rprivate"
    table(monkeypatch, "/ rw shared:1")
    assert mounting().prepare(asked, [])[0][0].propagation == "rslave"


def test_sources_are_made_if_they_may(tmp_path: Path) -> None:
    made = tmp_path / "a" / "b"
    umask = os.umask(0o077)
    try:
        mounting().prepare(record(bind(str(made), create_source=True)), [])
    finally:
        os.umask(umask)
    assert made.stat().st_mode & 0o7777 == made.parent.stat().st_mode & 0o7777 == 0o755
    with pytest.raises(InvalidParameter, match="bind source path does not exist"):
        mounting().prepare(record(bind(str(tmp_path / "c"))), [])
    assert not (tmp_path / "c").exists()
    # A file on the way is no affair of this step: mounting will tell.
    (tmp_path / "file").touch()
    mounting().prepare(record(bind(str(tmp_path / "file" / "x"), create_source=True)), [])


def test_what_a_tmpfs_covers_is_not_looked_at() -> None:
    points, _ = mounting().prepare(record(bind("/not/there"), tmpfs={"/x": ""}), [])
    assert [point.target for point in points] == ["/x"]


def test_kernels_that_cannot_force_read_only() -> None:
    forced = record(bind("/", readonly=True, readonly_forced=True))
    assert len(mounting().prepare(forced, [])[0]) == 1
    with pytest.raises(SystemFailure, match=r"^rro is not supported"):
        mounting(recursive_readonly=False).prepare(forced, [])


@pytest.mark.parametrize(
    ("subpath", "kind", "message"),
    [
        ("a/b/c", NotFound, "cannot access path {0}/a/b/c: lstat {0}/a/b: no such file or directory"),
        ("loop", NotFound, "cannot access path {0}/loop: lstat {0}/loop: too many levels of symbolic links"),
        ("out", InvalidParameter, "path concatenation escapes the base directory, base: {0}, subpath: out"),
        (
            "absolute/x",
            InvalidParameter,
            "path concatenation escapes the base directory, base: {0}, subpath: absolute/x",
        ),
        ("up/../..", InvalidParameter, "path concatenation escapes the base directory, base: {0}, subpath: up/../.."),
        (
            "file/x",
            SystemFailure,
            'error while resolving symlinks in combined path "{0}/file/x": lstat {0}/file/x: not a directory',
        ),
    ],
)
def test_subpaths_stay_inside(tmp_path: Path, subpath: str, kind: type[EngineError], message: str) -> None:
    data = tmp_path / "_data"
    (data / "a").mkdir(parents=True)
    (data / "file").touch()
    (data / "loop").symlink_to("loop")
    (data / "out").symlink_to("../..")
    (data / "absolute").symlink_to("/etc")
    (data / "up").symlink_to("a/..")
    point = MountPoint(type="volume", name="vv", source=str(data), target="/x", subpath=subpath)
    fds: list[int] = []
    with pytest.raises(kind) as caught:
        mounting().prepare(record(point), fds)
    assert str(caught.value) == message.format(data)
    assert fds == []


@pytest.mark.root
def test_a_subpath_is_a_mount_of_its_own(tmp_path: Path) -> None:
    data = tmp_path / "_data"
    (data / "a" / "b").mkdir(parents=True)
    (data / "link").symlink_to("a/b")
    point = MountPoint(type="volume", name="vv", source=str(data), target="/x", subpath="link")
    fds: list[int] = []
    _, detached = mounting().prepare(record(point), fds)
    try:
        (data / "a" / "b").rename(data / "elsewhere")  # what was found stays what it is
        os.mkdir("seen", dir_fd=detached["/x"])
        assert (data / "elsewhere" / "seen").is_dir()
        assert list(detached.values()) == fds
    finally:
        for fd in fds:
            os.close(fd)

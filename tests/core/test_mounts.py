"""``-v``, ``--mount`` and VOLUME, read and checked."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compatd.core.mounts import read_bind, read_mount, read_mounts, read_tmpfs
from compatd.errors import EngineError, InvalidParameter, SystemFailure, Unsupported
from compatd.wire.types.containers import ContainerConfig, HostConfig, Mount, TmpfsOptions

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/a:/b", {"type": "bind", "source": "/a", "target": "/b", "readonly": False, "propagation": "rprivate"}),
        ("/a:/b:ro", {"type": "bind", "readonly": True, "mode": "ro"}),
        ("/a/../c:/b/:rslave,z", {"source": "/c", "target": "/b", "propagation": "rslave"}),
        ("data:/b", {"type": "volume", "name": "data", "anonymous": False, "copy_up": True, "mode": "z"}),
        ("data:/b:nocopy", {"type": "volume", "copy_up": False}),
        ("/b", {"type": "volume", "name": "", "anonymous": True, "target": "/b"}),
    ],
)
def test_binds(text: str, expected: dict[str, Any]) -> None:
    point = read_bind(text)
    assert {name: getattr(point, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (":", "invalid volume specification: ':'"),
        ("/a:/b:ro,rw", "invalid mode: ro,rw"),
        ("/a:/b:bogus", "invalid mode: bogus"),
        (
            "/a:/b:nocopy",
            "invalid volume specification: '/a:/b:nocopy': invalid mount config for type \"bind\":"
            " field VolumeOptions must not be specified",
        ),
        (
            "data:/b:rshared",
            "invalid volume specification: 'data:/b:rshared': invalid mount config for type \"volume\":"
            " field BindOptions must not be specified",
        ),
        (
            "x",
            "invalid volume specification: 'x': invalid mount config for type \"volume\":"
            " invalid mount path: 'x' mount path must be absolute",
        ),
        (
            "/a:rel",
            "invalid volume specification: '/a:rel': invalid mount config for type \"bind\":"
            " invalid mount path: 'rel' mount path must be absolute",
        ),
        ("a:/c", "create a: volume name is too short, names should be at least two alphanumeric characters"),
        (
            "a/b:/c",
            'create a/b: "a/b" includes invalid characters for a local volume name, only'
            ' "[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed. If you intended to pass a host directory, use absolute path',
        ),
    ],
)
def test_bad_binds_have_dockers_words(text: str, message: str) -> None:
    with pytest.raises(InvalidParameter if text.endswith("/c") else SystemFailure) as caught:
        read_bind(text)
    assert str(caught.value) == message


@settings(max_examples=200)
@given(st.text(alphabet="/:abro,.\0\n$é", max_size=30))
def test_any_text_is_a_bind_or_an_error(text: str) -> None:
    try:
        point = read_bind(text)
    except EngineError:
        return
    assert point.target.startswith("/")
    assert "\0" not in point.target
    assert point.target != "/"


@pytest.mark.parametrize(
    ("mount", "message"),
    [
        ({"type": "foo", "source": "/a", "target": "/x"}, 'invalid mount config for type "foo": mount type unknown'),
        (
            {"type": "bind", "source": "/does/not/exist", "target": "/x"},
            'invalid mount config for type "bind": bind source path does not exist: /does/not/exist',
        ),
        ({"type": "bind", "target": "/x"}, 'invalid mount config for type "bind": field Source must not be empty'),
        ({"type": "volume"}, 'invalid mount config for type "volume": field Target must not be empty'),
        (
            {"type": "volume", "target": "/"},
            "invalid mount config for type \"volume\": invalid specification: destination can't be '/'",
        ),
    ],
)
def test_bad_mounts_have_dockers_words(mount: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        read_mount(Mount(**mount))
    assert str(caught.value) == message


def test_mounts_of_other_types_are_refused_by_name() -> None:
    with pytest.raises(Unsupported, match="image"):
        read_mount(Mount(type="image", source="busybox", target="/x"))


def test_duplicates_are_refused() -> None:
    with pytest.raises(InvalidParameter, match=r"^Duplicate mount point: /x$"):
        read_mounts(ContainerConfig(), HostConfig(binds=["/a:/x", "/b:/x/"]))
    with pytest.raises(InvalidParameter, match=r"^Duplicate mount point: /x$"):
        read_mounts(ContainerConfig(), HostConfig(binds=["/a:/x"], tmpfs={"/x": ""}))


def test_a_bind_takes_the_place_of_an_images_volume() -> None:
    points = read_mounts(ContainerConfig(volumes={"/x": {}, "/y": {}}), HostConfig(binds=["/a:/x"]))
    assert [(point.target, point.anonymous) for point in points] == [("/x", False), ("/y", True)]


def test_tmpfs_options_of_both_kinds() -> None:
    mount = Mount(type="tmpfs", target="/b/", tmpfs_options=TmpfsOptions(size_bytes=4096, mode=0o700))
    assert read_tmpfs(HostConfig(tmpfs={"/a": "size=1m"}, mounts=[mount])) == {
        "/a": "size=1m",
        "/b": "mode=700,size=4096",
    }

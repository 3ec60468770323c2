"""``-v``, ``--mount`` and VOLUME, read and checked."""

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compatd.core.container import ContainerRecord, MountPoint
from compatd.core.mounts import (
    MountParser,
    check_mounts,
    clean_path,
    conflict,
    driver_warnings,
    read_bind,
    read_mount,
    read_volumes_from,
)
from compatd.errors import EngineError, InvalidParameter, NotFound, SystemFailure
from compatd.wire.types.containers import (
    BindOptions,
    ContainerConfig,
    HostConfig,
    ImageOptions,
    Mount,
    TmpfsOptions,
    VolumeDriver,
    VolumeOptions,
)

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


def no_container(reference: str) -> ContainerRecord:
    raise NotFound(f"No such container: {reference}")


def parse(
    host_config: HostConfig,
    config: ContainerConfig | None = None,
    donors: Mapping[str, tuple[MountPoint, ...]] | None = None,
    **settings: bool,
) -> dict[str, MountPoint]:
    def find(reference: str) -> ContainerRecord:
        if donors is None or reference not in donors:
            return no_container(reference)
        return record(donors[reference])

    parser = MountParser("/var/lib/compatd", **settings)
    return {point.target: point for point in parser.read(config or ContainerConfig(), host_config, find)}


def record(points: tuple[MountPoint, ...]) -> ContainerRecord:
    return ContainerRecord(
        id="a" * 64,
        name="donor",
        created_ns=0,
        image_id="",
        image="",
        layers=(),
        config=ContainerConfig(),
        host_config=HostConfig(),
        networks={},
        mounts=points,
    )


@pytest.mark.parametrize(
    ("mount", "reason"),
    [
        ({"type": "npipe", "source": "a", "target": "/x"}, "mount type unknown"),
        ({"type": "cluster", "source": "a", "target": "/x"}, "mount type unknown"),
        ({"type": "", "source": "a", "target": "/x"}, "mount type unknown"),
        ({"type": "bind", "source": "/tmp", "target": "/.."}, "invalid specification: destination can't be '/'"),
        ({"type": "bind", "source": "/tmp", "target": "."}, "invalid mount path: '.' mount path must be absolute"),
        ({"type": "bind", "source": "tmp", "target": "/x"}, "invalid mount path: 'tmp' mount path must be absolute"),
        ({"type": "bind", "source": "/etc/passwd/x", "target": "/x"}, "stat /etc/passwd/x: not a directory"),
        (
            {"type": "bind", "source": "/tmp", "target": "/x", "bind_options": BindOptions(propagation="bogus")},
            "invalid propagation mode: bogus",
        ),
        (
            {"type": "bind", "source": "/tmp", "target": "/x", "image_options": ImageOptions()},
            "field ImageOptions must not be specified",
        ),
        (
            {"type": "volume", "target": "/x", "volume_options": VolumeOptions(subpath="a")},
            "must not set Subpath when using anonymous volumes",
        ),
        (
            {"type": "volume", "source": "vv", "target": "/x", "volume_options": VolumeOptions(subpath="a/../../b")},
            "subpath must be a relative path within the volume",
        ),
        (
            {"type": "volume", "target": "/x", "read_only": True},
            "must not set ReadOnly mode when using anonymous volumes",
        ),
        ({"type": "tmpfs", "source": "a", "target": "/x"}, "field Source must not be specified"),
        (
            {"type": "tmpfs", "target": "/x", "tmpfs_options": TmpfsOptions(options=[["bogus"]])},
            "invalid option: bogus",
        ),
        (
            {"type": "tmpfs", "target": "/x", "tmpfs_options": TmpfsOptions(options=[[]])},
            "invalid option array length",
        ),
        ({"type": "image", "target": "/x"}, "field Source must not be empty"),
        (
            {"type": "image", "source": "a", "target": "/x", "image_options": ImageOptions(subpath="/etc")},
            "subpath must be a relative path within the volume",
        ),
    ],
)
def test_every_field_is_checked(mount: dict[str, Any], reason: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        read_mount(Mount(**mount))
    assert str(caught.value) == f'invalid mount config for type "{mount["type"]}": {reason}'


@pytest.mark.parametrize("path", ["/a", "//a", "/a/../b", "a", "", "///a//b/", "/.."])
def test_paths_are_cleaned_as_go_does(path: str) -> None:
    expected = {"": ".", "//a": "/a", "/a/../b": "/b", "///a//b/": "/a/b", "/..": "/"}
    assert clean_path(path) == expected.get(path, path)


def test_options_of_binds() -> None:
    options = BindOptions(
        propagation="rslave", non_recursive=True, create_mountpoint=True, read_only_force_recursive=True
    )
    point = read_mount(Mount(type="bind", source="/not/there", target="/x", read_only=True, bind_options=options))
    assert (point.propagation, point.propagation_implied) == ("rslave", False)
    assert (point.recursive, point.create_source, point.readonly_forced) == (False, True, True)
    assert conflict(point) is None


@pytest.mark.parametrize(
    ("readonly", "options", "text"),
    [
        (False, BindOptions(read_only_non_recursive=True), "!ReadOnly && BindOptions.ReadOnlyNonRecursive"),
        (False, BindOptions(read_only_force_recursive=True), "!ReadOnly && BindOptions.ReadOnlyForceRecursive"),
        (
            True,
            BindOptions(read_only_non_recursive=True, read_only_force_recursive=True),
            "ReadOnlyNonRecursive && BindOptions.ReadOnlyForceRecursive",
        ),
    ],
)
def test_contradictions_are_found_at_the_start(readonly: bool, options: BindOptions, text: str) -> None:
    point = read_mount(Mount(type="bind", source="/", target="/x", read_only=readonly, bind_options=options))
    assert conflict(point) == f"mount options conflict: {text}"


def test_duplicates_are_refused() -> None:
    for config in (
        HostConfig(binds=["/a:/x", "/b:/x"]),
        HostConfig(binds=["/a:/x"], tmpfs={"/x": ""}),
        HostConfig(binds=["/a:/x"], mounts=[Mount(type="tmpfs", target="/x")]),
    ):
        with pytest.raises(InvalidParameter, match=r"^Duplicate mount point: /x$"):
            parse(config)
    with pytest.raises(InvalidParameter, match=r"^Duplicate mount point: /x/$"):
        parse(HostConfig(mounts=[Mount(type="tmpfs", target="/x"), Mount(type="tmpfs", target="/x/")]))


def test_a_bind_takes_the_place_of_an_images_volume() -> None:
    points = parse(
        HostConfig(binds=["/a:/x"], tmpfs={"/z": ""}), ContainerConfig(volumes={"/x": {}, "/y": {}, "/z/": {}})
    )
    assert {target: point.anonymous for target, point in points.items()} == {"/x": False, "/y": True}


@pytest.mark.parametrize(
    ("source", "propagation"),
    [("/", "rslave"), ("/var", "rslave"), ("/var/lib/compatd/volumes", "rslave"), ("/etc", "rprivate")],
)
def test_what_holds_the_engines_data_is_bound_as_a_slave(source: str, propagation: str) -> None:
    """Else a container would keep mounts alive that are long gone outside."""
    points = parse(HostConfig(binds=[f"{source}:/x"], mounts=[Mount(type="bind", source="/", target="/y")]))
    assert points["/x"].propagation == propagation
    assert points["/y"].propagation == "rslave"
    with pytest.raises(InvalidParameter, match='must use either propagation mode "rslave" or "rshared"'):
        parse(HostConfig(binds=["/:/x:private"]))
    assert parse(HostConfig(binds=["/:/x:rshared"]))["/x"].propagation == "rshared"


def test_old_clients_have_read_only_binds_that_do_not_reach_below() -> None:
    config = HostConfig(binds=["/a:/x:ro", "/a:/y"])
    assert [point.readonly_recursive for point in parse(config, recursive_readonly=False).values()] == [False, True]
    assert [point.readonly_recursive for point in parse(config).values()] == [True, True]


def test_mounts_of_other_containers() -> None:
    points = (
        read_bind("data:/v:ro"),
        read_bind("/etc:/b:rslave"),
        MountPoint(type="volume", name="c" * 64, source="/v/c", target="/anonymous", anonymous=True),
    )
    donors = {"donor": points}
    found = parse(HostConfig(volumes_from=["donor"]), ContainerConfig(volumes={"/v": {}}), donors)
    assert {target: point.readonly for target, point in found.items()} == {"/v": True, "/b": False, "/anonymous": False}
    assert not any(point.copy_up or point.mode for point in found.values())
    assert found["/anonymous"].anonymous
    readonly = parse(HostConfig(volumes_from=["donor:ro,z"], binds=["/usr:/b"]), None, donors)
    assert (readonly["/anonymous"].readonly, readonly["/b"].readonly, readonly["/b"].source) == (True, False, "/usr")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "volumes-from specification cannot be an empty string"),
        ("a:nocopy", "invalid mode: nocopy"),
        ("a:rslave", "invalid mode: rslave"),
        ("a:ro:rw", "invalid mode: ro:rw"),
        (":ro", 'invalid name or ID supplied: ""'),
        ("a", "No such container: a"),
    ],
)
def test_bad_references_to_other_containers(text: str, message: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        parse(HostConfig(volumes_from=[text]))
    assert str(caught.value) == message


def test_tmpfs_mounts_of_another_container_are_taken_for_volumes() -> None:
    donors = {"donor": (MountPoint(type="tmpfs", source="", target="/t"),)}
    with pytest.raises(NotFound, match=r"^get: no such volume$"):
        parse(HostConfig(volumes_from=["donor"]), None, donors)


@settings(max_examples=100)
@given(st.text(alphabet="a:/,rowzslavenpy", max_size=20))
def test_any_text_names_a_container_or_is_refused(text: str) -> None:
    try:
        reference, _ = read_volumes_from(text)
    except InvalidParameter:
        return
    assert text.startswith(reference)
    assert ":" not in reference


@pytest.mark.parametrize(
    ("size", "shown"), [(1 << 30, "1g"), (3 << 20, "3m"), (2048, "2k"), (12345, "12345"), (-5, "-5")]
)
def test_tmpfs_options(size: int, shown: str) -> None:
    options = TmpfsOptions(size_bytes=size, mode=0o1700, options=[["exec"]])
    point = read_mount(Mount(type="tmpfs", target="/b/", read_only=True, tmpfs_options=options))
    assert (point.target, point.options) == ("/b", f"ro,mode=1700,size={shown},exec")


def test_targets_of_tmpfs() -> None:
    for target, reason in (
        ("/", "invalid specification: destination can't be '/'"),
        ("", "invalid mount path: '' mount path must be absolute"),
        ("x", "invalid mount path: 'x' mount path must be absolute"),
    ):
        with pytest.raises(InvalidParameter) as caught:
            check_mounts(HostConfig(tmpfs={target: ""}))
        assert str(caught.value) == reason
    assert check_mounts(HostConfig(mounts=[Mount(type="image", source="a", target="/x")])) == [
        "Image mount is an experimental feature"
    ]


def test_a_driver_for_all_volumes_is_not_for_mounts() -> None:
    mount = Mount(type="volume", source="vv", target="/x")
    assert len(driver_warnings(HostConfig(volume_driver="a", mounts=[mount]))) == 1
    assert not driver_warnings(HostConfig(mounts=[mount]))
    named = VolumeOptions(driver_config=VolumeDriver(name="local"))
    assert not driver_warnings(
        HostConfig(volume_driver="a", mounts=[Mount(type="volume", target="/x", volume_options=named)])
    )

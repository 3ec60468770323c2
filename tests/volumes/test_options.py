"""Options of the local volume driver."""

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compatd.errors import InvalidParameter, SystemFailure
from compatd.linux import syscalls
from compatd.linux.assembly import Assembly
from compatd.volumes.options import Plan, check_options, mount, needs_mount, read_plan


@pytest.mark.unit
@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"foo": "bar"}, 'invalid option: "foo"'),
        ({"type": "tmpfs"}, 'missing required option: "device"'),
        ({"device": "x"}, 'missing required option: "type"'),
        ({"o": "x"}, 'missing required option: "device"'),
        ({"size": "x"}, "invalid size: 'x'"),
        ({"size": "-1"}, "invalid size: '-1'"),
        ({"size": "10"}, "quota size requested but no quota support"),
        ({"type": "cifs", "device": "//h:99/x"}, "port not allowed in CIFS device URL, include 'port' in 'o='"),
        (
            {"type": "cifs", "device": "//h:ab/x"},
            'error parsing mount device url: parse "//h:ab/x": invalid port ":ab" after host',
        ),
    ],
)
def test_what_docker_refuses(options: dict[str, str], reason: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        check_options("vv", options)
    assert str(caught.value) == f"create vv: {reason}"


@pytest.mark.unit
@pytest.mark.parametrize(
    ("options", "mounts"),
    [
        ({}, False),
        ({"size": "0"}, False),
        ({"type": "", "device": ""}, False),
        ({"type": "nfs", "device": ":/x"}, True),
    ],
)
def test_what_is_accepted(options: dict[str, str], mounts: bool) -> None:
    check_options("vv", options)
    assert needs_mount(options) is mounts


@pytest.mark.unit
@pytest.mark.parametrize(
    ("given", "flags", "data"),
    [
        ("", 0, ""),
        ("size=1m,uid=5", 0, "size=1m,uid=5"),
        ("rbind,ro", syscalls.MS_BIND | syscalls.MS_REC | syscalls.MS_RDONLY, ""),
        ("ro,rw,nosuid,addr=1.2.3.4", syscalls.MS_NOSUID, "addr=1.2.3.4"),
    ],
)
def test_mount_options(given: str, flags: int, data: str) -> None:
    plan = read_plan({"type": "nfs", "device": "x", "o": given})
    assert plan == Plan(device="x", fstype="nfs", flags=flags, data=data)


@pytest.mark.unit
def test_a_device_none_without_options_is_nothing_to_mount() -> None:
    assert read_plan({"type": "tmpfs", "device": "none"}) is None
    assert read_plan({"type": "tmpfs", "device": "none", "o": "size=1m"}) is not None


@pytest.mark.unit
@settings(max_examples=100)
@given(st.dictionaries(st.sampled_from(["type", "o", "device", "size"]), st.text(max_size=12)))
def test_any_options_are_read_or_refused(options: dict[str, str]) -> None:
    try:
        check_options("vv", options)
    except InvalidParameter:
        return
    if needs_mount(options):
        read_plan(options)


@pytest.mark.root
def test_a_mount_that_nobody_sees(tmp_path: Path) -> None:
    path = str(tmp_path)
    fd = mount(path, {"type": "tmpfs", "device": "tmpfs", "o": "size=1m,mode=700"})
    try:
        with Assembly(fd) as held:
            assert held.root.stat(".").st_dev != os.stat(path).st_dev
            first, second = held.clone(), held.clone()
            try:
                os.mkdir("seen", dir_fd=first)
                assert os.listdir(os.open(".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=second)) == ["seen"]
            finally:
                os.close(first)
                os.close(second)
    finally:
        os.close(fd)
    assert os.listdir(path) == []
    assert path not in Path("/proc/self/mountinfo").read_text()


@pytest.mark.root
def test_failures_have_dockers_words(tmp_path: Path) -> None:
    path = str(tmp_path)
    for options, text in (
        ({"type": "tmpfs", "device": "tmpfs", "o": "bogus=1"}, f"tmpfs:{path}, data: bogus=1: invalid argument"),
        ({"type": "none", "device": "/nope", "o": "bind"}, f"/nope:{path}, flags: 0x1000: no such file or directory"),
        (
            {"type": "bogus", "device": "//1.2.3.4/x", "o": "user=a,password=b"},
            f"//1.2.3.4/x:{path}, data: user=a,password=********: no such device",
        ),
    ):
        with pytest.raises(SystemFailure) as caught:
            mount(path, options)
        assert str(caught.value) == f"failed to mount local volume: mount {text}"

"""Device rules as text and as a program; the program runs in a small interpreter here."""

import os
import stat
import struct
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compatd.errors import SystemFailure
from compatd.runtime import devices
from compatd.runtime.devices import Device, Rule


def permitted(program: bytes, kind: str, major: int, minor: int, access: str) -> bool:
    """Run a device program as the kernel would (Documentation/bpf/standardization/instruction-set.rst)."""
    wanted = sum({"m": 1, "r": 2, "w": 4}[letter] for letter in access)
    context = struct.pack("<III", wanted << 16 | {"b": 1, "c": 2}[kind], major, minor)
    registers = [0] * 11
    counter = 0
    while True:
        code, both, offset, immediate = struct.unpack_from("<BBhI", program, counter * 8)
        target, source = both & 0xF, both >> 4
        counter += 1
        match code:
            case 0x61:
                registers[target] = struct.unpack_from("<I", context, offset)[0]
            case 0x54:
                registers[target] &= immediate
            case 0x74:
                registers[target] >>= immediate
            case 0xB4:
                registers[target] = immediate
            case 0xBC:
                registers[target] = registers[source]
            case 0x56:
                counter += offset if registers[target] != immediate else 0
            case 0x5E:
                counter += offset if registers[target] != registers[source] else 0
            case 0x95:
                return bool(registers[0])
            case _:
                raise AssertionError(f"unexpected instruction {code:#x}")


def allowed(rules: Sequence[Rule], kind: str, major: int, minor: int, access: str) -> bool:
    return any(
        rule.kind in ("a", kind)
        and rule.major in (None, major)
        and rule.minor in (None, minor)
        and set(access) <= set(rule.access)
        for rule in rules
    )


NUMBER = st.one_of(st.none(), st.integers(0, 3), st.just(0xFFFFFFFF))
ACCESS = st.sampled_from(["r", "w", "m", "rw", "rm", "wm", "rwm"])
RULES = st.lists(
    st.builds(Rule, kind=st.sampled_from(["a", "b", "c"]), major=NUMBER, minor=NUMBER, access=ACCESS), max_size=6
)


@pytest.mark.unit
@settings(max_examples=100)
@given(
    rules=RULES,
    kind=st.sampled_from(["b", "c"]),
    major=st.integers(0, 4),
    minor=st.integers(0, 4),
    access=ACCESS,
)
def test_program_allows_what_the_rules_allow(rules: list[Rule], kind: str, major: int, minor: int, access: str) -> None:
    assert permitted(devices.compile_program(rules), kind, major, minor, access) == allowed(
        rules, kind, major, minor, access
    )


@pytest.mark.unit
def test_default_rules_are_docker_s() -> None:
    # devices.list of an unprivileged container under Docker 28.5.2.
    assert sorted(map(str, devices.DEFAULT_RULES)) == sorted(
        """
        b *:* m|c *:* m|c 1:3 rwm|c 1:5 rwm|c 1:7 rwm|c 1:8 rwm|c 1:9 rwm|c 5:0 rwm|c 5:1 rwm|c 5:2 rwm|c 10:200 rwm|
        c 136:* rwm
        """.replace("\n", "")
        .replace("        ", "")
        .split("|")
    )
    program = devices.compile_program(devices.DEFAULT_RULES)
    assert permitted(program, "c", 1, 3, "rwm")
    assert permitted(program, "b", 8, 0, "m")
    assert not permitted(program, "b", 8, 0, "r")
    assert not permitted(program, "c", 1, 1, "r")


@pytest.mark.unit
@pytest.mark.parametrize("text", ["c 1:2", "c 1:2 x", "d 1:2 r", "c -1:2 r", "c 1:2 r\n", "c \u0661:2 r"])
def test_bad_rules_are_refused(text: str) -> None:
    with pytest.raises(SystemFailure, match="invalid device cgroup rule format: "):
        devices.parse_rule(text)


@pytest.mark.unit
def test_rule_text() -> None:
    assert devices.parse_rule("c 10:* rw") == Rule(kind="c", major=10, minor=None, access="rw")
    assert str(devices.parse_rule("c 10:* rw")) == "c 10:* rw"
    assert str(devices.parse_rule("a *:* rwm")) == "a"


@pytest.mark.unit
def test_expand_one_node() -> None:
    assert devices.expand("/dev/null", "", "r") == (
        Device(path="/dev/null", kind="c", major=1, minor=3, mode=0o666, uid=0, gid=0, permissions="r"),
    )
    (renamed,) = devices.expand("/dev/zero", "/dev/naught", "rwm")
    assert (renamed.path, renamed.minor, renamed.permissions) == ("/dev/naught", 5, "rwm")


@pytest.mark.unit
def test_expand_follows_a_link_and_refuses_what_is_no_device(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/dev/null")
    assert devices.expand(str(tmp_path / "link"), "/dev/x", "rwm")[0].minor == 3
    (tmp_path / "file").touch()
    for path, why in ((tmp_path / "file", "not a device node"), (tmp_path / "none", "no such file or directory")):
        with pytest.raises(SystemFailure) as refused:
            devices.expand(str(path), "/dev/x", "rwm")
        assert str(refused.value) == f'error gathering device information while adding custom device "{path}": {why}'


@pytest.mark.root
def test_expand_a_directory(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "file").touch()
    os.mknod(tmp_path / "sub" / "n", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    os.mknod(tmp_path / "m", stat.S_IFBLK | 0o640, os.makedev(7, 9))
    found = devices.expand(str(tmp_path), "/dev/snd", "rw")
    assert [(d.path, d.kind, d.major, d.minor, d.mode & 0o777) for d in found] == [
        ("/dev/snd/m", "b", 7, 9, found[0].mode),
        ("/dev/snd/sub/n", "c", 1, 3, found[1].mode),
    ]


@pytest.mark.unit
def test_host_devices_leave_the_container_s_own() -> None:
    paths = [device.path for device in devices.host_devices()]
    assert "/dev/null" in paths
    assert not any(path.startswith(("/dev/pts/", "/dev/shm/")) or path == "/dev/console" for path in paths)


@pytest.mark.unit
def test_numbers_that_no_device_has() -> None:
    """Version 1 leaves the refusal to the kernel; a program cannot even say such a number."""
    rule = devices.parse_rule("c 4294967296:1 r")
    assert str(rule) == "c 4294967296:1 r"
    with pytest.raises(SystemFailure, match="c 4294967296:1 r"):
        devices.compile_program([rule])
    with pytest.raises(SystemFailure, match="invalid minor value in device cgroup rule format"):
        devices.parse_rule(f"c 1:{'9' * 19} r")


@pytest.mark.unit
def test_rules_are_merged_and_sorted() -> None:
    extra = [devices.parse_rule(text) for text in ("c 10:* rw", "b 1:1 r", "c 1:3 r", "c 1:11 rr")]
    shown = [str(rule) for rule in devices.rules((), extra)]
    assert shown[:5] == ["b *:* m", "c *:* m", "b 1:1 r", "c 1:3 rwm", "c 1:5 rwm"]
    assert shown[8] == "c 1:11 r"
    assert shown[-3:] == ["c 10:* rw", "c 10:200 rwm", "c 136:* rwm"]


@pytest.mark.unit
def test_a_device_without_access_is_refused() -> None:
    with pytest.raises(SystemFailure, match="device access at 16 field cannot be empty"):
        devices.rules(devices.expand("/dev/null", "/dev/x", ""))

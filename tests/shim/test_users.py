"""Docker's ``user[:group]`` against a container's files."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compatd.shim.failures import Failed
from compatd.shim.users import Identity, resolve

pytestmark = pytest.mark.unit

PASSWD = b"""root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/bin/false
nohome:x:7:7
7:x:70:70::/seventy:/bin/sh
"""
GROUP = b"root:x:0:\ndaemon:x:1:\nwheel:x:10:root,daemon\nadm:x:4:root\n"


@pytest.mark.parametrize(
    ("user", "groups", "expected"),
    [
        ("", [], Identity(0, 0, [0, 10, 4], "/root")),
        ("root", [], Identity(0, 0, [0, 10, 4], "/root")),
        ("daemon", [], Identity(1, 1, [1, 10], "/usr/sbin")),
        ("1", [], Identity(1, 1, [1, 10], "/usr/sbin")),
        ("1000", [], Identity(1000, 0, [0], "/")),
        ("1000:5", [], Identity(1000, 5, [5], "/")),
        ("root:daemon", [], Identity(0, 1, [1], "/root")),  # an explicit group: no others
        (":wheel", [], Identity(0, 10, [10], "/root")),
        ("daemon", ["adm", "77", "10", "wheel"], Identity(1, 1, [1, 10, 4, 77, 10], "/usr/sbin")),  # as Docker
        ("nohome", [], Identity(7, 7, [7], "/")),
        ("2147483647", [], Identity(2147483647, 0, [0], "/")),
    ],
)
def test_resolution(user: str, groups: list[str], expected: Identity) -> None:
    assert resolve(user, groups, PASSWD, GROUP) == expected


@pytest.mark.parametrize(
    ("user", "groups", "text"),
    [
        ("who", [], "unable to find user who: no matching entries in passwd file"),
        ("root:who", [], "unable to find group who: no matching entries in group file"),
        ("1:1:", [], "unable to find group 1:: no matching entries in group file"),
        ("root", ["who"], "unable to find group who: no matching entries in group file"),
        ("2147483648", [], "uids and gids must be in range 0-2147483647"),
        ("-1", [], "uids and gids must be in range 0-2147483647"),
        ("0:99999999999", [], "uids and gids must be in range 0-2147483647"),
        ("0", ["2147483648"], "uids and gids must be in range 0-2147483647"),
        ("99999999999999999999", [], "uids and gids must be in range 0-2147483647"),
        ("-" + "9" * 5000, [], "uids and gids must be in range 0-2147483647"),
        ("1_0", [], "unable to find user 1_0: no matching entries in passwd file"),
        ("\u0661", [], "unable to find user \u0661: no matching entries in passwd file"),
    ],
)
def test_refusals(user: str, groups: list[str], text: str) -> None:
    with pytest.raises(Failed) as caught:
        resolve(user, groups, PASSWD, GROUP)
    assert (str(caught.value), caught.value.stage) == (text, "engine")


@given(st.text(max_size=8), st.binary(max_size=60), st.binary(max_size=60))
def test_no_file_makes_it_fail_otherwise_or_leave_the_range(user: str, passwd: bytes, group: bytes) -> None:
    try:
        identity = resolve(user, [], passwd, group)
    except Failed:
        return
    assert all(0 <= number < 1 << 31 for number in (identity.uid, identity.gid, *identity.groups))


@pytest.mark.parametrize("uid", [b"4294967296", b"-1", b"abc", b"", b"1_0", b"0x0", b" 0", b"\xd9\xa1"])
def test_lines_with_odd_ids_name_nobody(uid: bytes) -> None:
    """Go's parser reads most of them as 0, which is root."""
    with pytest.raises(Failed):
        resolve("mallory", [], b"mallory:x:" + uid + b":5::/:/bin/sh\n", b"")

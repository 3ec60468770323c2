"""Capabilities against what Docker 28.5.2 answers."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compatd.errors import InvalidParameter
from compatd.runtime import capabilities as caps
from tests.runtime.hosts import ALL_CAPABILITIES

pytestmark = pytest.mark.unit

LACKING = ALL_CAPABILITIES & ~caps.mask(["CAP_SYS_RESOURCE"])


def effective(
    add: tuple[str, ...] = (), drop: tuple[str, ...] = (), *, privileged: bool = False, available: int = LACKING
) -> int:
    return caps.effective(add=add, drop=drop, privileged=privileged, available=available)


def test_default_set_is_docker_s() -> None:
    # CapEff of an unprivileged container under Docker 28.5.2.
    assert effective() == 0x00000000A80425FB


def test_privileged_is_all_that_there_is() -> None:
    assert effective(privileged=True) == 0x000001FFFEFFFFFF
    assert effective(drop=("ALL",), privileged=True) == LACKING


@pytest.mark.parametrize("spelling", ["net_admin", "NET_ADMIN", "CAP_NET_ADMIN", "cap_net_admin"])
def test_names_are_taken_in_any_spelling(spelling: str) -> None:
    assert effective((spelling,)) == caps.DEFAULT | 1 << 12


def test_all_in_add_starts_from_all_that_there_is() -> None:
    assert effective(("ALL",)) == LACKING
    assert effective(("all", "NET_ADMIN"), ("CHOWN",)) == LACKING & ~1


def test_all_in_drop_leaves_what_is_added() -> None:
    assert effective(("CHOWN",), ("ALL",)) == 1
    assert effective((), ("all",)) == 0


def test_drop_takes_from_the_default() -> None:
    assert effective((), ("CHOWN", "CAP_KILL")) == caps.DEFAULT & ~caps.mask(["CAP_CHOWN", "CAP_KILL"])


@pytest.mark.parametrize(
    ("add", "drop", "text"),
    [
        (("foo",), (), 'invalid CapAdd: unknown capability: "CAP_FOO"'),
        ((), ("bar", "ALL"), 'invalid CapDrop: unknown capability: "CAP_BAR"'),
        ((" chown",), (), 'invalid CapAdd: unknown capability: "CAP_ CHOWN"'),
        (("",), (), 'invalid CapAdd: unknown capability: "CAP_"'),
        (
            ("SYS_RESOURCE",),
            (),
            "invalid CapAdd: capability not supported by your kernel or not available in the current environment: "
            '"CAP_SYS_RESOURCE"',
        ),
    ],
)
def test_refusals(add: tuple[str, ...], drop: tuple[str, ...], text: str) -> None:
    with pytest.raises(InvalidParameter) as refused:
        effective(add, drop)
    assert str(refused.value) == text


NAMES = st.lists(st.sampled_from([*caps.NAMES, "ALL"]), max_size=6)


@settings(max_examples=50)
@given(add=NAMES, drop=NAMES)
def test_never_more_than_available(add: list[str], drop: list[str]) -> None:
    assert effective(tuple(add), tuple(drop), available=ALL_CAPABILITIES) & ~ALL_CAPABILITIES == 0
    held = caps.mask(["CAP_CHOWN", "CAP_KILL"])
    try:
        assert effective(tuple(add), tuple(drop), available=held) & ~held == 0
    except InvalidParameter as refused:
        assert "not available" in str(refused)  # noqa: PT017  # either outcome is right


def test_names_and_mask_are_inverse() -> None:
    assert caps.mask(caps.names(caps.DEFAULT)) == caps.DEFAULT
    assert caps.names(1 << 40) == ("CAP_CHECKPOINT_RESTORE",)

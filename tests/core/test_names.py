"""Names and ids."""

import pytest

from compatd.core import names
from compatd.errors import InvalidParameter

pytestmark = pytest.mark.unit


def test_ids_are_64_hex_digits_and_not_numbers() -> None:
    ids = {names.new_id() for _ in range(200)}
    assert len(ids) == 200
    assert all(len(id) == 64 and not id[:12].isdecimal() for id in ids)


def test_names_are_made_up_until_one_is_free() -> None:
    taken: set[str] = set()
    for _ in range(300):
        name = names.make_up(taken)
        assert name not in taken
        assert names.check_container_name(name) == name
        taken.add(name)


@pytest.mark.parametrize("name", ["a/b", "a", "-x", "ä" * 3, "web\n", "", " web"])
def test_bad_names_have_dockers_words(name: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        names.check_container_name(name)
    assert str(caught.value) == f"Invalid container name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"


def test_a_leading_slash_is_taken_off() -> None:
    assert names.check_container_name("/web") == "web"


def test_prefixes() -> None:
    ids = ["ab" + "0" * 62, "ac" + "0" * 62]
    assert names.find("a", ids) == ids
    assert names.find("ab", ids) == ids[:1]
    assert names.find("xyz", ids) == []
    assert names.find("", ids) == []

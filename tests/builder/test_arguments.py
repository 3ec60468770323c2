import pytest

from compatd.builder.arguments import BuildArguments

pytestmark = pytest.mark.unit


def test_given_beats_default_beats_global() -> None:
    arguments = BuildArguments({"given": "g", "named": None})
    arguments.declare_global("meta", "m")
    arguments.declare_global("given", "unused")
    stage = arguments.for_stage()
    assert stage.declared() == {}
    for name, default in (("given", "d"), ("named", "d"), ("meta", None), ("nothing", None), ("empty", "")):
        stage.declare(name, default)
    assert stage.declared() == {"given": "g", "named": "d", "meta": "m", "empty": ""}
    assert arguments.globals() == {"meta": "m", "given": "g"}


def test_stages_do_not_see_each_others() -> None:
    arguments = BuildArguments({"a": "1", "b": "2"})
    arguments.for_stage().declare("a", None)
    assert arguments.for_stage().declared() == {}
    assert arguments.unused() == ["b"]


def test_proxies_need_no_declaration() -> None:
    arguments = BuildArguments({"http_proxy": "p", "NO_PROXY": "n"}).for_stage()
    assert arguments.declared() == {"http_proxy": "p", "NO_PROXY": "n"}
    assert not arguments.counts("http_proxy")
    arguments.declare("http_proxy", None)
    assert arguments.counts("http_proxy")
    assert arguments.unused() == []


def test_the_image_hides_arguments() -> None:
    arguments = BuildArguments({"a": "1", "b": "2"})
    arguments.declare("a", None)
    arguments.declare("b", None)
    assert arguments.missing_in({"a": "x"}) == {"b": "2"}

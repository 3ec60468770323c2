import pytest

from compatd.builder.spelling import suggest

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("word", "hint"),
    [("FORM", " (did you mean FROM?)"), ("form", " (did you mean from?)"), ("Fromm", " (did you mean from?)"),
     ("FROM", ""), ("COMPLETELY", "")],
)  # fmt: skip
def test_suggestions(word: str, hint: str) -> None:
    assert suggest(word, ["FROM", "RUN"]) == hint

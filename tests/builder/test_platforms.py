import pytest

from compatd.builder.platforms import parse_platform
from compatd.builder.ports import Platform
from compatd.errors import InvalidParameter

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("text", "platform"),
    [
        ("linux/amd64", Platform("linux", "amd64")),
        ("Linux/x86_64", Platform("linux", "amd64")),
        ("linux/arm64/v8", Platform("linux", "arm64")),
        ("arm", Platform("linux", "arm", "v7")),
        ("linux/arm/v6", Platform("linux", "arm", "v6")),
    ],
)
def test_platforms(text: str, platform: Platform) -> None:
    assert parse_platform(text) == platform


@pytest.mark.parametrize("text", ["", "foo", "a/b/c/d", "linux/", "linux/ä", "linux\n"])
def test_no_platforms(text: str) -> None:
    with pytest.raises(InvalidParameter):
        parse_platform(text)

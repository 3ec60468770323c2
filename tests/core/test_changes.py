"""``--change``: instructions in, a configuration out."""

import msgspec
import pytest

from compatd.core.changes import apply_changes
from compatd.errors import InvalidParameter
from compatd.images.manifest import RunConfig

pytestmark = pytest.mark.unit


def test_changes() -> None:
    lines = [
        "ENV a=b c=$a",
        "ENV d=$a",
        "CMD echo hi",
        "WORKDIR /x/../y",
        "workdir z",
        'ENTRYPOINT ["a"]',
        "EXPOSE 80",
        "LABEL a=b",
        "VOLUME /x",
        "USER me",
        "STOPSIGNAL 9",
        "ONBUILD RUN x",
        "HEALTHCHECK CMD x",
    ]
    config = apply_changes(RunConfig(env=["a=0"]), lines)
    given = {name: value for name, value in msgspec.to_builtins(config).items() if value}
    given["Healthcheck"] = {name: value for name, value in given["Healthcheck"].items() if value}
    assert given == {
        "User": "me",
        "ExposedPorts": {"80/tcp": {}},
        "Env": ["a=b", "c=0", "d=b"],
        "Entrypoint": ["a"],
        "Cmd": ["/bin/sh", "-c", "echo hi"],
        "Volumes": {"/x": {}},
        "WorkingDir": "/y/z",
        "Labels": {"a": "b"},
        "StopSignal": "9",
        "Healthcheck": {"Test": ["CMD-SHELL", "x"]},
        "OnBuild": ["RUN x"],
    }


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("RUN x", "RUN is not a valid change command"),
        ("Foo x", "Foo is not a valid change command"),
        ("SHELL ['x']", "SHELL is not a valid change command"),
        ("ENV", "ENV requires at least one argument"),
        ("", "file with no instructions"),
    ],
)
def test_bad_changes(line: str, text: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        apply_changes(RunConfig(), [line])
    assert str(caught.value) == text

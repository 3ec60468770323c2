"""Engines and clients as fixtures; what this machine cannot have is skipped with its reason, except in CI."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import docker
import pytest

from tests.api import Api
from tests.cli import Cli
from tests.clients import Unavailable
from tests.engine import Engine, OwnEngine

T = TypeVar("T")
IN_CI = os.environ.get("CI", "").lower() in ("1", "true", "yes")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--engine",
        metavar="unix:///PATH",
        help="test this running engine (for example dockerd), which must be empty and is left so, instead of a compatd "
        "of our own; only parity tests run",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    foreign = config.getoption("--engine")
    for item in items:
        if foreign and not item.get_closest_marker("parity"):
            item.add_marker(pytest.mark.skip(reason="not a parity test (--engine)"))
        elif foreign and (own := item.get_closest_marker("own")):
            item.add_marker(pytest.mark.skip(reason=f"not a parity test: {own.args[0]}"))
        elif not foreign and (later := item.get_closest_marker("later")):
            item.add_marker(pytest.mark.xfail(reason=f"not there yet: {later.args[0]}", strict=True))
        if not foreign and item.get_closest_marker("root") and os.geteuid() != 0 and not IN_CI:
            item.add_marker(pytest.mark.skip(reason="needs root"))


def have(function: Callable[[], T]) -> T:
    """Call it; what cannot be had here skips the test with the reason, or fails it in CI."""
    try:
        return function()
    except Unavailable as error:
        if IN_CI:
            raise
        pytest.skip(f"not available here: {error}")


@pytest.fixture(scope="session")
def shared_engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """One engine for the whole session; use ``engine``."""
    foreign: str | None = request.config.getoption("--engine")
    if foreign:
        other = Engine(foreign.removeprefix("unix://"))
        if other.api.get("/containers/json", all="1").ok() or other.api.get("/images/json").ok():
            pytest.exit(f"{foreign} has containers or images, which the tests would remove", 2)
        yield other
        other.forget_images()
        return
    engine = OwnEngine()
    try:
        engine.start()
        yield engine
    finally:
        engine.close()


@pytest.fixture
def engine(shared_engine: Engine) -> Iterator[Engine]:
    """The session's engine, without containers before and after the test."""
    shared_engine.clear()
    yield shared_engine
    shared_engine.clear()


@pytest.fixture
def own_engine() -> Iterator[OwnEngine]:
    """An engine for this test alone, not started yet: it may be killed."""
    engine = OwnEngine()
    try:
        yield engine
    finally:
        engine.close()


@pytest.fixture
def api(engine: Engine) -> Api:
    return engine.api


@pytest.fixture
def cli(engine: Engine, tmp_path: Path) -> Cli:
    return have(lambda: make_cli(engine, tmp_path))


def make_cli(engine: Engine, folder: Path) -> Cli:
    configuration = folder / "docker-config"
    configuration.mkdir()
    return Cli(engine.host, configuration)


@pytest.fixture
def client(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Iterator[docker.DockerClient]:
    """docker-py, set up as its users do."""
    monkeypatch.setenv("DOCKER_HOST", engine.host)
    for name in ("DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH"):
        monkeypatch.delenv(name, raising=False)
    client = docker.from_env()
    yield client
    client.close()


@pytest.fixture
def busybox(engine: Engine) -> str:
    """The name of a small image that the engine has."""
    have(lambda: engine.load("busybox:latest"))
    return "busybox:latest"

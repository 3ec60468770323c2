"""Engines and clients as fixtures; what this machine cannot have is skipped with its reason, except in CI."""

import gc
import json
import os
import re
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qsl, urlsplit

import docker
import pytest
import requests

from compatd.routes.dispatch import Router
from tests.api import CONTRACT, Api
from tests.cli import Cli
from tests.clients import Unavailable
from tests.engine import Engine, OwnEngine

T = TypeVar("T")
ROUTER = Router()
IN_CI = os.environ.get("CI", "").lower() in ("1", "true", "yes")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--matrix",
        metavar="FILE",
        help="append the operations that each passed test used (see compat-matrix/generate.py)",
    )
    parser.addoption(
        "--engine",
        metavar="unix:///PATH",
        help="test this running engine (for example dockerd), which must be empty and is left so, instead of a compatd "
        "of our own; only parity tests run",
    )
    parser.addoption(
        "--record-isolation",
        action="store_true",
        help="with --engine: write down what tests/client/test_isolation.py finds there, instead of comparing",
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--matrix"):
        OwnEngine.more_flags = ("--debug",)


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


@pytest.fixture(autouse=True)
def _used_operations(request: pytest.FixtureRequest) -> Iterator[None]:
    """For the matrix: which operations this test has used, by whatever client."""
    path: str | None = request.config.getoption("--matrix")
    if not path:
        yield
        return
    before = len(CONTRACT.seen)
    logs = {engine: engine.log.stat().st_size for engine in OwnEngine.running}
    yield
    if getattr(request.node, "failed", False):
        return
    used = {(one.operation, parameter) for one in CONTRACT.seen[before:] for parameter in ("", *one.parameters)}
    for engine in OwnEngine.running:
        # What the CLI asks is told by the engine's own log.
        with engine.log.open("rb") as log:
            log.seek(logs.get(engine, 0))
            for method, target in re.findall(rb"dispatch: ([A-Z]+) (?:/v1\.[0-9]+)?(/\S+)$", log.read(), re.M):
                parts = urlsplit(target.decode())
                if found := ROUTER.find(method.decode(), parts.path):
                    used |= {
                        (found[0].id, name) for name in ("", *dict(parse_qsl(parts.query, keep_blank_values=True)))
                    }
    with open(path, "a") as matrix:
        matrix.write(json.dumps({"test": request.node.nodeid, "used": sorted(used)}) + "\n")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        item.failed = True  # type: ignore[attr-defined]  # for the fixture above
    return report


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
    client.api.hooks["response"].append(check_reply)
    yield client
    client.close()
    gc.collect()  # it leaves sockets to the collector, which might find them when another test runs


def check_reply(response: requests.Response, **settings: Any) -> None:
    """Hold what docker-py receives against the contract; of streams the head only."""
    request = response.request
    assert request.method
    assert request.url
    content = b"" if settings.get("stream") or response.status_code == 101 else response.content
    kind = response.headers.get("Content-Type", "") if content else ""
    # It still sends parameters that the API has dropped.
    target = re.sub(r"(?<=[?&])(trunc_cmd|force)=[^&]*&?", "", request.path_url) if request.method != "DELETE" else ""
    CONTRACT.check(request.method, target or request.path_url, response.status_code, kind, content)


@pytest.fixture
def busybox(engine: Engine) -> str:
    """The name of a small image that the engine has."""
    have(lambda: engine.load("busybox:latest"))
    return "busybox:latest"

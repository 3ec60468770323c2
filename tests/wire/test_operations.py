"""The table of operations is what the contract says, and every operation that is there has a handler."""

import pytest
import yaml

from compatd.routes.dispatch import HANDLERS, Router
from compatd.wire.operations import OPERATIONS
from tests.wire.generate_operations import CONTRACT, generate
from tests.wire.generate_operations import OPERATIONS as MODULE

pytestmark = pytest.mark.unit


def test_the_module_is_generated_from_the_contract() -> None:
    assert MODULE.read_text() == generate(yaml.safe_load(CONTRACT.read_text()))


def test_present_operations_are_those_with_a_handler() -> None:
    # DistributionInspect has one already, for a backend that comes later.
    present = {operation.id for operation in OPERATIONS if operation.present}
    assert present == set(HANDLERS) - {"DistributionInspect"}


@pytest.mark.parametrize(
    ("method", "path", "operation", "value"),
    [
        ("GET", "/containers/json", "ContainerList", ""),
        ("GET", "/containers/json/json", "ContainerInspect", "json"),
        ("GET", "/images/json", "ImageList", ""),
        ("GET", "/images/get", "ImageGetAll", ""),
        ("GET", "/images/localhost:5000/a/b:c/json", "ImageInspect", "localhost:5000/a/b:c"),
        ("GET", "/images/json/json", "ImageInspect", "json"),
        ("DELETE", "/images/a/b@sha256:0", "ImageDelete", "a/b@sha256:0"),
        ("GET", "/containers/a/attach/ws", "ContainerAttachWebsocket", "a"),
        ("POST", "/containers/a/attach", "ContainerAttach", "a"),
        ("GET", "/networks/a/b", "NetworkInspect", "a/b"),
        ("HEAD", "/_ping", "SystemPingHead", ""),
    ],
)
def test_routes(method: str, path: str, operation: str, value: str) -> None:
    found = Router().find(method, path)
    assert found is not None
    assert found[0].id == operation
    assert "".join(found[1].values()) == value


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/"), ("GET", "/images//json"), ("POST", "/containers/json"), ("HEAD", "/info"), ("GET", "/_ping/")],
)
def test_no_route(method: str, path: str) -> None:
    assert Router().find(method, path) is None

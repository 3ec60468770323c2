"""The wire types against the contract, and the three ways of being empty."""

import json
from typing import Any

import msgspec
import msgspec.inspect as inspect
import pytest

from compatd.wire.json import Wire, decode, encode
from compatd.wire.times import format_time
from compatd.wire.types import build, containers, images, networks, system, volumes
from compatd.wire.types.containers import ContainerCreateRequest, ContainerInspect, HostConfig, Mount
from tests.contract import document, validator

pytestmark = pytest.mark.unit

MODULES = (build, containers, images, networks, system, volumes)
TYPES: dict[str, type[Wire]] = {
    name: value
    for module in MODULES
    for name, value in vars(module).items()
    if isinstance(value, type) and issubclass(value, Wire) and value is not Wire
}
SCHEMAS: dict[str, Any] = document()["components"]["schemas"]


def _nullable(schema: dict[str, Any]) -> bool:
    return not schema or "null" in schema.get("type", ()) or {"type": "null"} in schema.get("oneOf", ())


@pytest.mark.parametrize("name", sorted(set(SCHEMAS) - {"Error"}))
def test_type_is_what_the_contract_says(name: str) -> None:
    info = inspect.type_info(TYPES[name])
    assert isinstance(info, inspect.StructType)
    schema = SCHEMAS[name]
    assert [field.encode_name for field in info.fields] == list(schema["properties"])
    # What is always sent: fields that have no default which would leave them out.
    always = {
        field.encode_name
        for field in info.fields
        if field.default is msgspec.NODEFAULT and field.default_factory not in (list, dict)
    }
    assert always == set(schema.get("required", ()))
    nullable = {
        field.encode_name
        for field in info.fields
        if isinstance(field.type, inspect.UnionType | inspect.CustomType)
        or (isinstance(field.type, inspect.Metadata) and isinstance(field.type.type, inspect.UnionType))
    }
    assert nullable == {key for key, property in schema["properties"].items() if _nullable(property)}


def test_absent_null_and_empty() -> None:
    sent = json.loads(encode(HostConfig()))
    assert sent["Binds"] is None
    assert sent["Memory"] == 0
    assert sent["ConsoleSize"] == [0, 0]
    assert sent["LogConfig"] == {"Type": "", "Config": None}
    assert not {"Mounts", "Tmpfs", "Init", "Runtime", "Annotations", "KernelMemory"} & set(sent)
    assert "Mounts" in json.loads(encode(HostConfig(mounts=[Mount(type="tmpfs", target="/x")])))
    assert validator('{"$ref": "#/components/schemas/HostConfig"}').is_valid(sent)


def test_inspect_has_every_documented_field() -> None:
    made = ContainerInspect(
        id="1",
        created=format_time(0),
        path="sh",
        args=[],
        state=containers.ContainerState(status="created"),
        image="sha256:0",
        name="/a",
        driver="overlay2",
        host_config=HostConfig(),
        graph_driver=images.GraphDriver(name="overlay2"),
        config=containers.ContainerConfig(),
    )
    sent = json.loads(encode(made))
    assert validator('{"$ref": "#/components/schemas/ContainerInspect"}').is_valid(sent)
    assert sent["ExecIDs"] is None
    assert sent["NetworkSettings"]["SecondaryIPAddresses"] is None
    assert "SizeRw" not in sent


def test_what_is_sent_is_read_back() -> None:
    request = ContainerCreateRequest(
        image="busybox",
        cmd=["sh", "-c", "é"],
        exposed_ports={"80/tcp": {}},
        host_config=HostConfig(port_bindings={"80/tcp": [containers.PortBinding(host_port="8080")]}, memory=2**40),
        networking_config=networks.NetworkingConfig(
            endpoints_config={"a": networks.EndpointSettings(aliases=["b"], gw_priority=-1)}
        ),
    )
    assert decode(ContainerCreateRequest, encode(request)) == request
    assert request.config.image == "busybox"


@pytest.mark.parametrize(
    ("time_ns", "text"),
    [
        (0, "0001-01-01T00:00:00Z"),
        (1_000_000_000, "1970-01-01T00:00:01Z"),
        (1_700_000_000_000_000_000, "2023-11-14T22:13:20Z"),
        (1_700_000_000_120_000_000, "2023-11-14T22:13:20.12Z"),
        (1_700_000_000_000_000_001, "2023-11-14T22:13:20.000000001Z"),
    ],
)
def test_times(time_ns: int, text: str) -> None:
    assert format_time(time_ns) == text

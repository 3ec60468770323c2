"""The engine's own operations, events, networks and volumes."""

import asyncio
import json
from collections.abc import AsyncIterator

import pytest

from compatd.core.events import Event
from compatd.errors import Conflict, InvalidParameter
from compatd.wire.types.networks import Network
from compatd.wire.types.system import AuthConfig, AuthResponse, DiskUsage, Info, Version, VersionPlatform
from compatd.wire.types.volumes import Volume, VolumeCreateRequest, VolumeList, VolumesPruned
from tests.routes.conftest import Client, Services

pytestmark = pytest.mark.unit


async def test_version_and_info(client: Client, services: Services) -> None:
    services.system.answer(
        "version", Version(platform=VersionPlatform(name="compatd"), version="1", api_version="1.51", os="l", arch="a")
    )
    services.system.answer("info", Info(name="host"))
    assert (await client("GET", "/version")).json()["ApiVersion"] == "1.51"
    assert (await client("GET", "/info")).json()["Name"] == "host"
    assert (await client("GET", "/v1.49/info")).json()["BridgeNfIptables"] is False


async def test_disk_usage(client: Client, services: Services) -> None:
    services.system.later("disk_usage", DiskUsage())
    assert (await client("GET", "/system/df?type=container&type=volume")).json()["Images"] is None
    assert services.system.last[0] == (frozenset({"container", "volume"}),)
    await client("GET", "/v1.41/system/df?type=container")
    assert services.system.last[0] == (frozenset(),)
    assert (await client("GET", "/system/df?type=bogus")).message == "unknown object type: bogus"


async def test_auth(client: Client, services: Services) -> None:
    services.logins.later("login", AuthResponse(status="Login Succeeded"))
    body = '{"username":"u","password":"p","serveraddress":"r"}'
    reply = await client("POST", "/auth", body, headers={"Content-Type": "application/json"})
    assert reply.json() == {"IdentityToken": "", "Status": "Login Succeeded"}
    assert services.logins.last[0] == (AuthConfig(username="u", password="p", serveraddress="r"),)


async def test_plugins(client: Client) -> None:
    assert (await client("GET", "/plugins")).body == b"[]\n"


STARTED = Event(
    type="container", action="start", actor_id="1", attributes={"image": "busybox", "name": "a"}, time_ns=1_500_000_001
)


async def test_events(client: Client, services: Services) -> None:
    async def happened() -> AsyncIterator[Event]:
        yield STARTED
        yield Event(type="network", action="connect", actor_id="2", time_ns=2_000_000_000)

    services.events.answer("listen", lambda **_: happened())
    reply = await client("GET", "/events?since=1&until=2.5")
    first, second = [json.loads(line) for line in reply.body.splitlines()]
    assert first == {
        "status": "start",
        "id": "1",
        "from": "busybox",
        "Type": "container",
        "Action": "start",
        "Actor": {"ID": "1", "Attributes": {"image": "busybox", "name": "a"}},
        "scope": "local",
        "time": 1,
        "timeNano": 1_500_000_001,
    }
    assert {"status", "id", "from"} & set(second) == set()
    assert services.events.last[1] == {"since_ns": 1_000_000_000, "until_ns": 2_500_000_000, "filters": {}}


async def test_events_that_cannot_be(client: Client, services: Services) -> None:
    reply = await client("GET", "/events?since=10&until=1")
    assert reply.message == "`since` time (10) cannot be after `until` time (1)"
    services.events.answer("listen", InvalidParameter("invalid filter 'x'"))
    assert (await client("GET", '/events?filters={"x":["y"]}')).status == 400


async def test_the_head_of_events_comes_at_once(client: Client, services: Services) -> None:
    asked: asyncio.Event = asyncio.Event()

    async def silent() -> AsyncIterator[Event]:
        asked.set()
        await asyncio.Event().wait()
        yield STARTED

    services.events.answer("listen", lambda **_: silent())
    reader, writer = await asyncio.open_unix_connection(str(client.path))
    writer.write(b"GET /events HTTP/1.1\r\nHost: e\r\n\r\n")
    assert (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)).startswith(b"HTTP/1.1 200 ")
    await asyncio.wait_for(asked.wait(), 5)
    writer.close()


async def test_networks(client: Client, services: Services) -> None:
    network = Network(name="bridge", id="1", created="0001-01-01T00:00:00Z", driver="bridge")
    services.networks.answer("listing", [network])
    services.networks.answer("inspect", network)
    assert (await client("GET", "/networks")).json()[0]["ConfigFrom"] == {"Network": ""}
    assert (await client("GET", "/networks/bridge?verbose=true&scope=local")).json()["Name"] == "bridge"
    assert (await client("GET", "/networks/bridge?scope=swarm")).message == "network bridge not found"
    assert (await client("GET", "/networks/bridge?verbose=x")).message == (
        'invalid value for verbose: x: strconv.ParseBool: parsing "x": invalid syntax'
    )


async def test_volumes(client: Client, services: Services) -> None:
    volume = Volume(name="v", driver="local", mountpoint="/m", created_at="2026-01-01T00:00:00Z")
    services.volumes.answer("listing", VolumeList(volumes=[volume]))
    services.volumes.answer("inspect", volume)
    services.volumes.later("create", volume)
    services.volumes.later("remove", None)
    services.volumes.later("prune", VolumesPruned())
    assert (await client("GET", "/volumes")).json()["Warnings"] is None
    assert (await client("GET", "/volumes/v")).json()["Labels"] is None
    headers = {"Content-Type": "application/json"}
    assert (await client("POST", "/volumes/create", '{"Name":"v"}', headers=headers)).status == 201
    assert services.volumes.last[0] == (VolumeCreateRequest(name="v"),)
    assert (await client("POST", "/volumes/create")).status == 201
    assert (await client("DELETE", "/volumes/v?force=1")).status == 204
    assert services.volumes.last == (("v",), {"force": True})
    for version, anonymous_only in (("1.41", False), ("1.42", True)):
        await client("POST", f"/v{version}/volumes/prune")
        assert services.volumes.last[1] == {"anonymous_only": anonymous_only}
    services.volumes.later("remove", Conflict("volume is in use"))
    assert (await client("DELETE", "/volumes/v")).status == 409

"""What create requests of other versions mean today."""

from typing import Any

import pytest

from compatd.errors import EngineError
from compatd.routes.compatibility import ENDPOINT_SYSCTLS, Migrated, migrate
from compatd.wire.types.containers import ContainerCreateRequest, HostConfig, Mount, VolumeDriver, VolumeOptions
from compatd.wire.types.networks import EndpointSettings, NetworkingConfig

pytestmark = pytest.mark.unit

MAC = "02:42:ac:11:00:99"


def migrated(version: tuple[int, int], *, mac: str = "", endpoints: Any = None, **options: Any) -> Migrated:
    return migrate(
        ContainerCreateRequest(
            mac_address=mac,
            host_config=HostConfig(**options),
            networking_config=NetworkingConfig(endpoints_config=endpoints or {}),
        ),
        version,
    )


def host_config(version: tuple[int, int], **options: Any) -> HostConfig:
    found = migrated(version, **options).request.host_config
    assert found
    return found


def endpoint(found: Migrated, name: str = "bridge") -> EndpointSettings:
    assert found.request.networking_config
    settings = found.request.networking_config.endpoints_config[name]
    assert settings
    return settings


def test_limits() -> None:
    assert host_config((1, 41), kernel_memory=9).kernel_memory == 9
    assert host_config((1, 42), kernel_memory=9).kernel_memory == 0
    assert [host_config((1, 51), pids_limit=limit).pids_limit for limit in (-1, 0, 5, None)] == [None, None, 5, None]


def test_the_default_network_is_the_bridge() -> None:
    found = migrated((1, 51), network_mode="default", endpoints={"default": EndpointSettings(mac_address=MAC)})
    assert found.request.host_config
    assert found.request.host_config.network_mode == "bridge"
    assert endpoint(found).mac_address == MAC


def test_an_address_of_the_container_becomes_the_endpoints() -> None:
    assert endpoint(migrated((1, 43), mac=MAC)).mac_address == MAC
    found = migrated((1, 44), mac=MAC)
    assert (endpoint(found).mac_address, found.request.mac_address) == (MAC, "")
    assert found.warnings == [
        "The container-wide MacAddress field is now deprecated. It should be specified in EndpointsConfig instead."
    ]
    # Which endpoints did not have before.
    assert not endpoint(migrated((1, 43), endpoints={"bridge": EndpointSettings(mac_address=MAC)})).mac_address


@pytest.mark.parametrize(
    ("version", "options", "text"),
    [
        ((1, 43), {"network_mode": "host"}, "conflicting options: mac-address and the network mode"),
        (
            (1, 44),
            {"endpoints": {"bridge": EndpointSettings(mac_address="02:42:ac:11:00:98")}},
            "the container-wide MAC address must match the endpoint-specific MAC address for the main network,"
            " or be left empty",
        ),
        (
            (1, 44),
            {"network_mode": "a", "endpoints": {"b": None}},
            "unable to migrate container-wide MAC address to a specific network: HostConfig.NetworkMode must match"
            " the identity of a network in NetworkSettings.Networks",
        ),
    ],
)
def test_addresses_that_fit_nowhere(version: tuple[int, int], options: dict[str, Any], text: str) -> None:
    with pytest.raises(EngineError) as caught:
        migrated(version, mac=MAC, **options)
    assert str(caught.value) == text


def test_settings_of_an_interface_become_the_endpoints() -> None:
    sysctls = {"net.ipv4.conf.eth0.forwarding": "0", "kernel.msgmax": "9"}
    given = EndpointSettings(driver_opts={ENDPOINT_SYSCTLS: "net.ipv4.conf.IFNAME.x=1"})
    found = migrated((1, 47), sysctls=sysctls, endpoints={"bridge": given})
    assert found.request.host_config
    assert found.request.host_config.sysctls == {"kernel.msgmax": "9"}
    assert endpoint(found).driver_opts == {
        ENDPOINT_SYSCTLS: "net.ipv4.conf.IFNAME.forwarding=0,net.ipv4.conf.IFNAME.x=1"
    }
    assert found.warnings == [
        'Migrated sysctl "net.ipv4.conf.eth0.forwarding" to DriverOpts{"com.docker.network.endpoint.sysctls":'
        '"net.ipv4.conf.IFNAME.forwarding=0"}.'
    ]
    with pytest.raises(EngineError, match="must be supplied using driver option"):
        migrated((1, 48), sysctls=sysctls)
    with pytest.raises(EngineError, match="unable to determine network endpoint for sysctl"):
        migrated((1, 47), sysctls={"net.ipv4.conf.eth1.forwarding": "0"})
    assert migrated((1, 48), network_mode="host", sysctls=sysctls).warnings == []


def test_a_volume_driver_for_mounts_is_warned_of() -> None:
    own = VolumeOptions(driver_config=VolumeDriver(name="local"))
    for version, mount, warned in (
        ((1, 48), Mount(type="volume"), True),
        ((1, 47), Mount(type="volume"), False),
        ((1, 48), Mount(type="bind"), False),
        ((1, 48), Mount(type="volume", volume_options=own), False),
    ):
        assert bool(migrated(version, volume_driver="local", mounts=[mount]).warnings) is warned

"""What a create request of any version means today, where the answer depends on more than one field, and the warnings
that go with it.

moby api/server/router/container/container_routes.go, postContainersCreate; the texts are Docker 28.5.2's.
"""

from typing import NamedTuple

import msgspec

from compatd.core import mounts
from compatd.errors import InvalidParameter, SystemFailure
from compatd.wire.types.containers import ContainerCreateRequest, HostConfig
from compatd.wire.types.networks import EndpointSettings, NetworkingConfig
from compatd.wire.versions import Version

ENDPOINT_SYSCTLS = "com.docker.network.endpoint.sysctls"
_NO_MATCH = "HostConfig.NetworkMode must match the identity of a network in NetworkSettings.Networks"


class Migrated(NamedTuple):
    """The request as the newest version would have it."""

    request: ContainerCreateRequest
    warnings: list[str]


def migrate(request: ContainerCreateRequest, version: Version) -> Migrated:
    """``InvalidParameter`` or, for sysctls, ``SystemFailure``: it cannot be told what is meant."""
    host_config = request.host_config or HostConfig()
    changes: dict[str, object] = {}
    if version >= (1, 42):
        changes["kernel_memory"] = 0  # dropped from the API then, and from kernels before
    if host_config.pids_limit is not None and host_config.pids_limit <= 0:
        changes["pids_limit"] = None
    if host_config.network_mode in ("", "default"):
        changes["network_mode"] = "bridge"
    host_config = msgspec.structs.replace(host_config, **changes)
    endpoints = {
        host_config.network_mode if name == "default" and "network_mode" in changes else name: settings
        for name, settings in _endpoints(request).items()
    }
    request = _with_endpoints(msgspec.structs.replace(request, host_config=host_config), endpoints)
    warnings: list[str] = []
    if version >= (1, 48):
        warnings += mounts.driver_warnings(host_config)
    for step in (_migrate_mac_address, _migrate_sysctls):
        request, told = step(request, version)
        warnings += told
    return Migrated(request, warnings)


def _migrate_mac_address(request: ContainerCreateRequest, version: Version) -> Migrated:
    """It was the container's, and is an endpoint's since 1.44."""
    address, mode = request.mac_address, (request.host_config or HostConfig()).network_mode
    own = mode not in ("host", "none") and not mode.startswith("container:")
    if version < (1, 44):
        if not address:
            endpoints = {
                name: settings and msgspec.structs.replace(settings, mac_address="")
                for name, settings in _endpoints(request).items()
            }
            return Migrated(_with_endpoints(request, endpoints), [])
        if not own:
            raise InvalidParameter("conflicting options: mac-address and the network mode")
        name, settings = _endpoint(request, version)
        request = _with_endpoint(request, name, msgspec.structs.replace(settings, mac_address=address))
        return Migrated(msgspec.structs.replace(request, mac_address=""), [])
    if not address:
        return Migrated(request, [])
    if own:
        try:
            name, settings = _endpoint(request, version)
        except InvalidParameter as error:
            raise InvalidParameter(
                f"unable to migrate container-wide MAC address to a specific network: {error}"
            ) from error
        if settings.mac_address not in ("", address):
            raise InvalidParameter(
                "the container-wide MAC address must match the endpoint-specific MAC address for the main network,"
                " or be left empty"
            )
        request = _with_endpoint(request, name, msgspec.structs.replace(settings, mac_address=address))
    return Migrated(
        msgspec.structs.replace(request, mac_address=""),
        ["The container-wide MacAddress field is now deprecated. It should be specified in EndpointsConfig instead."],
    )


def _migrate_sysctls(request: ContainerCreateRequest, version: Version) -> Migrated:
    """Settings of ``eth0`` can be made once there is one: they go with the endpoint, below ``IFNAME``."""
    host_config = request.host_config or HostConfig()
    mode = host_config.network_mode
    if mode == "host" or mode.startswith("container:"):
        return Migrated(request, [])
    moved: dict[str, str] = {}
    for key, value in host_config.sysctls.items():
        parts = key.split(".", 4)
        if len(parts) < 5 or parts[0] != "net" or not parts[3].startswith("eth"):
            continue
        if version > (1, 47):
            raise SystemFailure(
                f"interface specific sysctl setting \"{key}\" must be supplied using driver option '{ENDPOINT_SYSCTLS}'"
            )
        if parts[3] != "eth0":
            raise SystemFailure(
                f"unable to determine network endpoint for sysctl {key},"
                f" use driver option '{ENDPOINT_SYSCTLS}' to set per-interface sysctls"
            )
        moved[key] = ".".join([*parts[:3], "IFNAME", f"{parts[4]}={value}"])
    if not moved:
        return Migrated(request, [])
    try:
        name, settings = _endpoint(request, version)
    except InvalidParameter as error:
        raise SystemFailure(f"unable to find a network for sysctl {next(iter(moved))}: {error}") from error
    option = ",".join(moved.values())
    warning = f'Migrated sysctl "{",".join(moved)}" to DriverOpts{{"{ENDPOINT_SYSCTLS}":"{option}"}}.'
    given = settings.driver_opts or {}
    option = ",".join(filter(None, (option, given.get(ENDPOINT_SYSCTLS))))
    request = _with_endpoint(
        request, name, msgspec.structs.replace(settings, driver_opts={**given, ENDPOINT_SYSCTLS: option})
    )
    kept = {key: value for key, value in host_config.sysctls.items() if key not in moved}
    host_config = msgspec.structs.replace(host_config, sysctls=kept)
    return Migrated(msgspec.structs.replace(request, host_config=host_config), [warning])


def _endpoints(request: ContainerCreateRequest) -> dict[str, EndpointSettings | None]:
    return (request.networking_config or NetworkingConfig()).endpoints_config


def _endpoint(request: ContainerCreateRequest, version: Version) -> tuple[str, EndpointSettings]:
    """The one that is meant by options of the whole container: that of the network mode."""
    mode, endpoints = (request.host_config or HostConfig()).network_mode, _endpoints(request)
    name = next(iter(endpoints)) if endpoints and version < (1, 44) else mode
    if endpoints and name not in endpoints:
        raise InvalidParameter(_NO_MATCH)
    return name, endpoints.get(name) or EndpointSettings()


def _with_endpoint(request: ContainerCreateRequest, name: str, settings: EndpointSettings) -> ContainerCreateRequest:
    return _with_endpoints(request, {**_endpoints(request), name: settings})


def _with_endpoints(
    request: ContainerCreateRequest, endpoints: dict[str, EndpointSettings | None]
) -> ContainerCreateRequest:
    return msgspec.structs.replace(request, networking_config=NetworkingConfig(endpoints_config=endpoints))

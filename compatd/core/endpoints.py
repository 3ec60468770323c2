"""What containers ask of the networks they join, and how that is shown. Pure; texts as Docker 28.5.2 has them
(moby daemon/container_operations.go, api/types/network/endpoint.go).
"""

import ipaddress
import re
from collections.abc import Iterable, Mapping, Sequence

import msgspec

from compatd.core.container import ContainerRecord
from compatd.core.lifecycle import ALIVE
from compatd.core.network_request import PREDEFINED, NetworkRecord, join_errors
from compatd.core.ports import port_requests
from compatd.errors import InvalidParameter
from compatd.network.driver import ConnectRequest, Endpoint, new_endpoint_id
from compatd.network.driver import Network as BridgeNetwork
from compatd.wire.types.networks import EndpointSettings

_OPTION = "com.docker.network.endpoint."
# The CLI sends options in lower case.
_SYSCTL = re.compile(r"net\.(ipv4|ipv6|mpls)\.([a-z_]+)\.(?:IFNAME|ifname)\.([a-z0-9_]+)=([^,\s]*)", re.ASCII)


def check(settings: EndpointSettings, mode: str, network: NetworkRecord | None) -> None:
    """``InvalidParameter`` with everything that is wrong; ``network`` None: it is not there (yet)."""
    wrong: list[str] = []
    asked = settings.ipam_config
    addresses = [text for text in (asked.ipv4_address, asked.ipv6_address) if text] if asked is not None else []
    if mode in PREDEFINED:
        if addresses:
            wrong.append("user specified IP address is supported on user defined networks only")
        if settings.aliases:
            wrong.append("network-scoped alias is supported only for containers in user defined networks")
    if asked is not None:
        for version, text in ((4, asked.ipv4_address), (6, asked.ipv6_address)):
            if text and not _is_address(text, version):
                wrong.append(f"invalid IPv{version} address: {text}")
        wrong += [
            f"invalid link-local IP address: {text}"
            for text in asked.link_local_ips
            if not _is_address(text, 4) and not _is_address(text, 6)
        ]
    if network is not None:
        for text in addresses:
            if not network.static:
                wrong.append(
                    "user specified IP address is supported only when connecting to networks with user configured "
                    "subnets"
                )
            elif not _is_within(text, network):
                wrong.append(f"no configured subnet or ip-range contain the IP address {text}")
    if wrong:
        raise InvalidParameter("invalid endpoint settings:\n" + join_errors(wrong))
    check_mac(settings.mac_address)
    interface_options(settings, "eth0")


def check_mac(text: str) -> None:
    """``InvalidParameter``: not six pairs of hexadecimal digits."""
    if text and not re.fullmatch(r"[0-9A-Fa-f]{2}([:-][0-9A-Fa-f]{2}){5}", text):
        raise InvalidParameter(f"invalid MAC address {text}")


def main_mac(networks: Mapping[str, EndpointSettings], mode: str) -> str:
    """The address that was asked for in the network that is a container's main one."""
    main = mode if mode in networks else next(iter(networks), "") if len(networks) == 1 else ""
    return networks[main].mac_address if main else ""


def _is_address(text: str, version: int) -> bool:
    try:
        return ipaddress.ip_address(text).version == version
    except ValueError:
        return False


def _is_within(text: str, network: NetworkRecord) -> bool:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    subnets = [ipaddress.ip_network(entry.subnet, strict=False) for entry in network.subnets or ()]
    return any(address in subnet for subnet in subnets if subnet.version == address.version)


def interface_options(settings: EndpointSettings, interface: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    """(interface name, sysctls for it) as the driver options want it; ``interface`` unless they name one."""
    options = settings.driver_opts or {}
    name = options.get(_OPTION + "ifname") or interface
    if not re.fullmatch(r"[^/:\s\x00]{1,15}", name) or name in (".", "..", "lo"):
        raise InvalidParameter(f"invalid interface name: {name}")
    sysctls: list[tuple[str, str]] = []
    for text in filter(None, (options.get(_OPTION + "sysctls") or "").split(",")):
        match = _SYSCTL.fullmatch(text.strip())
        if match is None:
            raise InvalidParameter(
                f"unrecognised network interface sysctl '{text}'; represent 'net.X.Y.ethN.Z=V' as 'net.X.Y.IFNAME.Z=V'"
            )
        sysctls.append((f"{match[1]}/{match[2]}/{name}/{match[3]}", match[4]))
    return name, tuple(sysctls)


def attach_order(names: Iterable[str], main: str) -> list[str]:
    """The network of the container's mode first, then by name."""
    return sorted(names, key=lambda name: (name != main, name))


def free_interface(prefix: str, taken: Iterable[str]) -> str:
    """``eth0``, or the first such name that is not taken."""
    used = set(taken)
    return next(name for number in range(len(used) + 1) if (name := f"{prefix}{number}") not in used)


def elect_gateways(candidates: Iterable[tuple[str, int, Sequence[int]]]) -> dict[int, str]:
    """Which network each family's default route leads through, of (name, priority, families with a gateway).

    The highest priority wins, then the first name (moby daemon/libnetwork/endpoint.go, Less).
    """
    elected: dict[int, str] = {}
    for name, _, versions in sorted(candidates, key=lambda item: (-item[1], -len(item[2]), item[0])):
        for version in versions:
            elected.setdefault(version, name)
    return elected


def ways_out(network: BridgeNetwork) -> list[int]:
    """The families that can leave by this network."""
    if network.internal:
        return []
    return [version for version, subnet in ((4, network.subnet), (6, network.subnet6)) if subnet]


def dns_names(record: ContainerRecord, settings: EndpointSettings) -> list[str]:
    """What a container is called in a network: name, aliases, short id, host name."""
    names = [record.name, *(settings.aliases or ()), record.short_id, record.config.hostname]
    return list(dict.fromkeys(name for name in names if name))


def asked(settings: EndpointSettings) -> EndpointSettings:
    """Only what a client may ask for; it may send back what it was shown."""
    return EndpointSettings(
        ipam_config=settings.ipam_config,
        links=settings.links,
        aliases=settings.aliases,
        mac_address=settings.mac_address,
        driver_opts=settings.driver_opts,
        gw_priority=settings.gw_priority,
    )


def joined(record: ContainerRecord, settings: EndpointSettings, network: NetworkRecord) -> EndpointSettings:
    """Settings of a container that is in the network: they name it by id from now on."""
    return msgspec.structs.replace(
        settings,
        network_id=network.id,
        dns_names=dns_names(record, settings) if network.has_dns else None,
    )


def connect_request(
    record: ContainerRecord,
    settings: EndpointSettings,
    network: BridgeNetwork,
    *,
    taken: Iterable[str],
    mac_address: str,
    default_route: tuple[int, ...],
    publish: bool,
) -> ConnectRequest:
    """What to ask of the driver for one network; ``taken``: the interfaces that the container has."""
    asked = settings.ipam_config
    interface, sysctls = interface_options(settings, free_interface(network.prefix, taken))
    return ConnectRequest(
        endpoint_id=new_endpoint_id(),
        network_id=network.id,
        container_id=record.id,
        container_name=record.name,
        ip_address=asked.ipv4_address if asked is not None else "",
        ip6_address=asked.ipv6_address if asked is not None and network.subnet6 else "",
        link_local=tuple(asked.link_local_ips) if asked is not None else (),
        mac_address=mac_address.replace("-", ":").lower(),
        interface=interface,
        default_route=default_route,
        ports=port_requests(record) if publish else (),
        sysctls=sysctls,
    )


def shown(
    record: ContainerRecord, settings: EndpointSettings, endpoint: Endpoint | None, endpoint_id: str
) -> EndpointSettings:
    """Settings as inspect shows them: what was asked for, and while it runs what it got."""
    changes: dict[str, object] = {}
    if settings.dns_names is not None:
        changes["dns_names"] = dns_names(record, settings)
    if settings.network_id and record.state not in ALIVE:
        changes["mac_address"] = ""
    if record.state in ALIVE:
        changes["endpoint_id"] = endpoint_id
        if endpoint is not None:
            changes |= {
                "endpoint_id": endpoint.id,
                "gateway": endpoint.gateway,
                "ip_address": endpoint.ip_address,
                "ip_prefix_len": endpoint.prefix_length,
                "ipv6_gateway": endpoint.gateway6,
                "global_ipv6_address": endpoint.ip6_address,
                "global_ipv6_prefix_len": endpoint.prefix_length6,
                "mac_address": endpoint.mac_address,
            }
    return msgspec.structs.replace(settings, **changes)


def addresses(endpoints: Mapping[str, Endpoint]) -> list[str]:
    """Every address of a container, network by network."""
    return [text for one in endpoints.values() for text in (one.ip_address, one.ip6_address) if text]

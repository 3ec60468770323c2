"""Networks and the endpoints that join containers to them."""

from compatd.wire.json import Wire, always, omitempty


class EndpointIPAMConfig(Wire, frozen=True, kw_only=True):
    """Addresses that the user asked for."""

    ipv4_address: str = omitempty("", "IPv4Address")
    ipv6_address: str = omitempty("", "IPv6Address")
    link_local_ips: list[str] = omitempty([], "LinkLocalIPs")


class EndpointSettings(Wire, frozen=True, kw_only=True):
    """A container's place in one network: the first fields are asked for, the rest is what it got."""

    ipam_config: EndpointIPAMConfig | None = always(None, "IPAMConfig")
    links: list[str] | None = always(None)
    aliases: list[str] | None = always(None)
    mac_address: str = always("")
    driver_opts: dict[str, str] | None = always(None)
    gw_priority: int = always(0)
    network_id: str = always("", "NetworkID")
    endpoint_id: str = always("", "EndpointID")
    gateway: str = always("")
    ip_address: str = always("", "IPAddress")
    ip_prefix_len: int = always(0, "IPPrefixLen")
    ipv6_gateway: str = always("", "IPv6Gateway")
    global_ipv6_address: str = always("", "GlobalIPv6Address")
    global_ipv6_prefix_len: int = always(0, "GlobalIPv6PrefixLen")
    dns_names: list[str] | None = always(None, "DNSNames")


class NetworkingConfig(Wire, frozen=True, kw_only=True):
    """The networks that a new container joins, by name or id."""

    endpoints_config: dict[str, EndpointSettings | None] = omitempty({})


class IPAMConfig(Wire, frozen=True, kw_only=True):
    """One subnet of a network."""

    subnet: str = ""
    ip_range: str = omitempty("", "IPRange")
    gateway: str = ""
    auxiliary_addresses: dict[str, str] = omitempty({})


class IPAM(Wire, frozen=True, kw_only=True):
    """Who hands out a network's addresses, and from where."""

    driver: str = always("")
    options: dict[str, str] | None = always(None)
    config: list[IPAMConfig] | None = always(None)


class ConfigReference(Wire, frozen=True, kw_only=True):
    """The config-only network that a network takes its configuration from."""

    network: str = always("")


class NetworkContainer(Wire, frozen=True, kw_only=True):
    """A container in a network, as the network shows it."""

    name: str = always("")
    endpoint_id: str = always("", "EndpointID")
    mac_address: str = always("")
    ipv4_address: str = always("", "IPv4Address")
    ipv6_address: str = always("", "IPv6Address")


class Network(Wire, frozen=True, kw_only=True):
    """A network, in lists and in inspect (only the latter fills ``containers``)."""

    name: str
    id: str
    created: str
    scope: str = always("local")
    driver: str
    enable_ipv4: bool = always(True, "EnableIPv4")
    enable_ipv6: bool = always(False, "EnableIPv6")
    ipam: IPAM = always(IPAM(driver="default"), "IPAM")
    internal: bool = always(False)
    attachable: bool = always(False)
    ingress: bool = always(False)
    config_from: ConfigReference = always(ConfigReference())
    config_only: bool = always(False)
    containers: dict[str, NetworkContainer] = always({})
    options: dict[str, str] = always({})
    labels: dict[str, str] = always({})


class NetworkCreateRequest(Wire, frozen=True, kw_only=True):
    """What a new network is to be."""

    name: str = always("")
    check_duplicate: bool | None = None
    driver: str = always("")
    scope: str = always("")
    enable_ipv4: bool | None = omitempty(None, "EnableIPv4")
    enable_ipv6: bool | None = omitempty(None, "EnableIPv6")
    ipam: IPAM | None = always(None, "IPAM")
    internal: bool = always(False)
    attachable: bool = always(False)
    ingress: bool = always(False)
    config_only: bool = always(False)
    config_from: ConfigReference | None = always(None)
    options: dict[str, str] | None = always(None)
    labels: dict[str, str] | None = always(None)


class NetworkCreateResponse(Wire, frozen=True, kw_only=True):
    """The new network."""

    id: str
    warning: str = always("")


class NetworkConnect(Wire, frozen=True, kw_only=True):
    """Join ``container`` to a network."""

    container: str = always("")
    endpoint_config: EndpointSettings | None = None


class NetworkDisconnect(Wire, frozen=True, kw_only=True):
    """Take ``container`` out of a network."""

    container: str = always("")
    force: bool = always(False)


class NetworksPruned(Wire, frozen=True, kw_only=True):
    """The names of the networks that were removed."""

    networks_deleted: list[str] | None = always(None)

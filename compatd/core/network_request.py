"""From a request for a network to its record: what is checked, defaulted and chosen, in Docker's words. Pure.

Texts and order of checks as Docker 28.5.2 has them (moby daemon/network.go, libnetwork/controller.go,
libnetwork/drivers/bridge, api/types/network/ipam.go).
"""

import ipaddress
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import msgspec

from compatd.errors import Conflict, EngineError, Forbidden, InvalidParameter, NotFound, SystemFailure, Unsupported
from compatd.linux.netlink import IFNAMSIZ, Address, IPNetwork
from compatd.network import ipam
from compatd.network.driver import Network as BridgeNetwork
from compatd.wire.types.networks import IPAMConfig, NetworkCreateRequest

PREDEFINED = {"bridge": "bridge", "host": "host", "none": "null"}
_FORBIDDEN_NAMES = (*PREDEFINED, "default")
_BRIDGE = "com.docker.network.bridge."
_MODES = ("nat", "nat-unprotected", "routed", "isolated")
_TRUE = ("1", "t", "T", "true", "TRUE", "True")
_FALSE = ("0", "f", "F", "false", "FALSE", "False")


class NetworkRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One network. ``driver`` is Docker's name: bridge, host or null; ``subnets`` as inspect shows them.

    ``bridge``: what the driver makes of it; None for what is no bridge, and for the default one, which follows the
    engine's configuration.
    """

    id: str
    name: str
    driver: str
    created_ns: int
    scope: str = "local"
    enable_ipv4: bool = True
    enable_ipv6: bool = False
    internal: bool = False
    attachable: bool = False
    config_only: bool = False
    config_from: str = ""
    ipam_driver: str = "default"
    ipam_options: dict[str, str] | None = None
    subnets: tuple[IPAMConfig, ...] | None = None
    options: dict[str, str] = {}
    labels: dict[str, str] = {}
    static: bool = False  # the user has chosen subnets, so that containers may choose addresses
    bridge: BridgeNetwork | None = None

    @property
    def predefined(self) -> bool:
        """One of the three that are always there."""
        return self.name in PREDEFINED

    @property
    def has_dns(self) -> bool:
        """Whether its containers find one another by name."""
        return self.driver == "bridge" and self.name != "bridge"


def check_name(name: str) -> None:
    """``InvalidParameter``, ``Forbidden``: not a name for a network of the user's own."""
    if not name.strip():
        raise InvalidParameter("invalid name: name is empty")
    if name in _FORBIDDEN_NAMES:
        raise Forbidden(f"operation is not permitted on predefined {name} network ")


def already_exists(name: str) -> Conflict:
    """moby daemon/network.go, createNetwork."""
    return Conflict(f"network with name {name} already exists")


def read(
    request: NetworkCreateRequest,
    *,
    network_id: str,
    created_ns: int,
    find: Callable[[str], NetworkRecord],
    bridges: Iterable[BridgeNetwork],
    taken: Callable[[], Sequence[IPNetwork]],
    pools: Sequence[ipam.AddressPool],
    mtu: Callable[[], int],
    link_exists: Callable[[str], bool],
) -> NetworkRecord:
    """The record of a new network. ``find``: a network by name. ``bridges``: those that there are; ``taken``: subnets
    that an automatic choice avoids; ``mtu``: of a bridge for which none is asked."""
    driver = request.driver or "bridge"
    source: NetworkRecord | None = None
    if request.config_from is not None and request.config_from.network:
        source = _configuration(request, find)
    if request.ingress:
        raise Forbidden("Ingress network can only be global scope network")
    if request.scope == "swarm":
        raise Forbidden("cannot create a swarm scoped network when swarm is not active")
    if driver == "overlay":
        raise Forbidden(
            'This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node '
            "to swarm and try again."
        )
    entries = request.ipam.config or [] if request.ipam is not None else []
    check_subnets(entries, enable_ipv6=bool(request.enable_ipv6))
    if request.config_only:
        driver = "null"
    elif driver in ("host", "null"):
        raise Forbidden(f'only one instance of "{driver}" network is allowed')
    elif driver in ("macvlan", "ipvlan"):
        raise Unsupported(f"the {driver} network driver is not supported by this engine")
    elif driver != "bridge":
        raise NotFound(f'plugin "{driver}" not found')
    ipam_driver = (request.ipam.driver if request.ipam is not None else "") or "default"
    if ipam_driver == "null":
        raise InvalidParameter("ipv4 pool is empty")
    if ipam_driver != "default":
        raise NotFound(f'plugin "{ipam_driver}" not found')
    record = NetworkRecord(
        id=network_id,
        name=request.name,
        driver=driver,
        created_ns=created_ns,
        scope=request.scope or "local",
        enable_ipv4=request.enable_ipv4 is not False,
        enable_ipv6=bool(request.enable_ipv6),
        internal=request.internal,
        attachable=request.attachable,
        config_only=request.config_only,
        ipam_options=request.ipam.options if request.ipam is not None else None,
        subnets=tuple(entries),
        static=bool(entries),
        options=request.options or {},
        labels=request.labels or {},
    )
    if source is not None:
        record = msgspec.structs.replace(
            record,
            config_from=source.name,
            enable_ipv4=source.enable_ipv4,
            enable_ipv6=source.enable_ipv6,
            internal=source.internal,
            attachable=source.attachable or record.attachable,
            ipam_options=source.ipam_options,
            subnets=source.subnets,
            static=source.static,
            options=source.options,
            labels=source.labels,
        )
    if not record.enable_ipv4 and not record.enable_ipv6:
        raise InvalidParameter("IPv4 or IPv6 must be enabled")
    if record.config_only:
        return record
    return _complete(record, list(bridges), taken, pools, mtu, link_exists)


def _configuration(request: NetworkCreateRequest, find: Callable[[str], NetworkRecord]) -> NetworkRecord:
    assert request.config_from is not None
    name = request.config_from.network
    if request.config_only:
        raise Forbidden("a configuration network cannot depend on another configuration network")
    if (
        (request.ipam is not None and (request.ipam.config or request.ipam.options))
        or request.internal
        or request.labels
        or request.options
        or request.enable_ipv6
    ):
        raise Forbidden(
            "user specified configurations are not supported if the network depends on a configuration network"
        )
    try:
        source = find(name)
    except EngineError:
        raise NotFound(f'configuration network "{name}" does not exist') from None
    if not source.config_only:
        raise Forbidden(f'network "{name}" is not a configuration network')
    return source


def _complete(
    record: NetworkRecord,
    bridges: Sequence[BridgeNetwork],
    taken: Callable[[], Sequence[IPNetwork]],
    pools: Sequence[ipam.AddressPool],
    mtu: Callable[[], int],
    link_exists: Callable[[str], bool],
) -> NetworkRecord:
    """Choose what is left open: subnets, gateways, the bridge."""
    options = _Options(record.options)
    modes = {version: options.mode(version) for version in (4, 6)}
    name = options.bridge_name() or f"br-{record.id[:12]}"
    for other in bridges:
        if other.bridge == name:
            raise Forbidden(
                f"cannot create network {record.id} ({name}): conflicts with network {other.id} ({name}): "
                "networks have same bridge name"
            )
    if "isolated" in modes.values() and not record.internal:
        raise SystemFailure("gateway mode 'isolated' can only be used for an internal network")
    subnets = list(record.subnets or ())
    used = [ipaddress.ip_network(text) for other in bridges for text in (other.subnet, other.subnet6) if text]
    chosen: dict[int, IPAMConfig] = {}
    for version, enabled in ((4, record.enable_ipv4), (6, record.enable_ipv6)):
        if not enabled:
            continue
        given = [entry for entry in subnets if ipaddress.ip_network(entry.subnet, strict=False).version == version]
        if len(given) > 1:
            raise Forbidden("bridge driver doesn't support multiple subnets")
        if given:
            if any(ipaddress.ip_network(given[0].subnet).overlaps(other) for other in used if other.version == version):
                raise Forbidden("invalid pool request: Pool overlaps with other one on this address space")
            chosen[version] = given[0]
            continue
        fitting = [pool for pool in pools if pool.base.version == version]
        subnet = ipam.choose_subnet([*used, *taken()], fitting)
        automatic = IPAMConfig(
            subnet=str(subnet), gateway="" if modes[version] == "isolated" else str(ipam.first_address(subnet))
        )
        chosen[version] = automatic
        subnets.append(automatic)
    details: dict[str, str] = {}
    for version, suffix in ((4, ""), (6, "6")):
        if version in chosen:
            details |= _addressing(chosen[version], suffix)
    return msgspec.structs.replace(
        record,
        subnets=tuple(subnets),
        bridge=BridgeNetwork(
            id=record.id,
            name=record.name,
            bridge=name,
            mtu=options.mtu() or mtu(),
            reserved=tuple(address for entry in chosen.values() for address in entry.auxiliary_addresses.values()),
            icc=options.boolean("enable_icc", True),
            masquerade=options.boolean("enable_ip_masquerade", True),
            masquerade6=options.boolean("enable_ip_masquerade", True),
            internal=record.internal,
            mode=modes[4],
            mode6=modes[6],
            host_ip=options.host_ip(),
            prefix=record.options.get("com.docker.network.container_iface_prefix") or "eth",
            made=not link_exists(name),
            addressed="isolated" not in modes.values() and not options.boolean("inhibit_ipv4", False),
            **details,
        ),
    )


def _addressing(entry: IPAMConfig, suffix: str) -> dict[str, str]:
    subnet = ipaddress.ip_network(entry.subnet)
    gateway = entry.gateway
    if not gateway:
        within = ipaddress.ip_network(entry.ip_range) if entry.ip_range else subnet
        gateway = str(_first_free(subnet, within, entry.auxiliary_addresses.values()))
    return {f"subnet{suffix}": entry.subnet, f"gateway{suffix}": gateway, f"ip_range{suffix}": entry.ip_range}


def _first_free(subnet: IPNetwork, within: IPNetwork, reserved: Iterable[str]) -> Address:
    used = {ipaddress.ip_address(text) for text in reserved}
    return ipam.allocate(subnet, used, network="", within=within)


def check_subnets(entries: Sequence[IPAMConfig], *, enable_ipv6: bool) -> None:
    """``InvalidParameter`` with everything that is wrong with them (moby api/types/network, ValidateIPAM)."""
    wrong: list[str] = []
    for entry in entries:
        subnet = _network(entry.subnet)
        if subnet is None:
            wrong.append(f"invalid subnet {entry.subnet}: invalid CIDR block notation")
            continue
        if subnet.version == 6 and not enable_ipv6:
            continue
        if str(subnet) != _normal(entry.subnet):
            wrong.append(f"invalid subnet {entry.subnet}: it should be {subnet}")
        if entry.ip_range:
            wrong += _check_range(subnet, entry)
        if entry.gateway:
            wrong += _check_address("gateway", entry.gateway, subnet, entry.subnet)
        for name, address in sorted(entry.auxiliary_addresses.items()):
            wrong += _check_address("auxiliary address", address, subnet, entry.subnet, name)
    if wrong:
        raise InvalidParameter("invalid network config:\n" + join_errors(wrong))


def join_errors(texts: Sequence[str]) -> str:
    """Several errors as one text (moby internal/multierror)."""
    return texts[0] if len(texts) == 1 else "\n".join(f"* {text}" for text in texts)


def _normal(text: str) -> str:
    address, _, bits = text.partition("/")
    return f"{ipaddress.ip_address(address)}/{int(bits)}"


def _network(text: str) -> IPNetwork | None:
    if not re.fullmatch(r"[0-9A-Fa-f.:]+/[0-9]{1,3}", text):
        return None
    try:
        return ipaddress.ip_network(text, strict=False)
    except ValueError:
        return None


def _check_range(subnet: IPNetwork, entry: IPAMConfig) -> list[str]:
    text = entry.ip_range
    part = _network(text)
    if part is None:
        return [f"invalid ip-range {text}: invalid CIDR block notation"]
    if part.version != subnet.version:
        return [f"invalid ip-range {text}: parent subnet is an IPv{subnet.version} block"]
    if part.prefixlen < subnet.prefixlen:
        return [f"invalid ip-range {text}: CIDR block is bigger than its parent subnet {entry.subnet}"]
    wrong: list[str] = []
    if str(part) != _normal(text):
        wrong.append(f"invalid ip-range {text}: it should be {part}")
    if part.network_address not in subnet:
        wrong.append(f"invalid ip-range {text}: parent subnet {entry.subnet} doesn't contain ip-range")
    return wrong


def _check_address(what: str, text: str, subnet: IPNetwork, given: str, name: str = "") -> list[str]:
    shown = name or text
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return [f"invalid {what} {shown}: invalid address"]
    if address.version != subnet.version:
        return [f"invalid {what} {shown}: parent subnet is an IPv{subnet.version} block"]
    if address not in subnet:
        return [f"invalid {what} {shown}: parent subnet {given} doesn't contain this address"]
    return []


class _Options:
    """The bridge driver's options, read strictly; those that are not the driver's are stored and mean nothing."""

    def __init__(self, options: Mapping[str, str]) -> None:
        self._options = options
        for name in ("host_ipv4", "host_ipv6", "trusted_host_interfaces"):
            if options.get(_BRIDGE + name):
                raise Unsupported(f"the network option {_BRIDGE}{name} is not supported by this engine")

    def boolean(self, name: str, default: bool) -> bool:
        text = self._options.get(_BRIDGE + name)
        if text is None:
            return default
        if text not in (*_TRUE, *_FALSE):
            raise _unparsable(_BRIDGE + name, text, f'strconv.ParseBool: parsing "{text}": invalid syntax')
        return text in _TRUE

    def mtu(self) -> int:
        key = "com.docker.network.driver.mtu"
        text = self._options.get(key)
        if text is None:
            return 0
        if not re.fullmatch(r"[+-]?[0-9]{1,9}", text):
            raise _unparsable(key, text, f'strconv.Atoi: parsing "{text}": invalid syntax')
        if int(text) < 0:
            raise InvalidParameter(f"invalid MTU number: {int(text)}")
        return int(text)

    def mode(self, version: int) -> str:
        key = f"{_BRIDGE}gateway_mode_ipv{version}"
        text = self._options.get(key) or "nat"
        if text not in _MODES:
            raise _unparsable(key, text, f"unknown gateway mode {text}")
        return text

    def host_ip(self) -> str:
        key = _BRIDGE + "host_binding_ipv4"
        text = self._options.get(key)
        if not text:
            return ""
        try:
            ipaddress.ip_address(text)
        except ValueError:
            raise _unparsable(key, text, "nil ip") from None
        return text

    def bridge_name(self) -> str:
        name = self._options.get(_BRIDGE + "name", "")
        # As the kernel answers: dev_valid_name in net/core/dev.c, and the attribute's size.
        if len(name.encode()) >= IFNAMSIZ:
            raise SystemFailure("numerical result out of range")
        if name and (name in (".", "..") or re.search(r"[/:\s\x00-\x1f\x7f]", name)):
            raise SystemFailure("invalid argument")
        return name


def _unparsable(key: str, text: str, reason: str) -> InvalidParameter:
    return InvalidParameter(f"failed to parse {key} value: {text} ({reason})")

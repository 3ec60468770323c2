"""The engine's configuration: dockerd's flags and its daemon.json, read once into a frozen value.

Flags have dockerd's names, forms (GNU long options, ``-D``, ``-H x``, ``-Hx``) and messages; the file has dockerd's
keys. An option given in both places is an error, as is one that does not exist. An option that dockerd has and this
engine has not is refused by name, unless it is given the value that changes nothing.
"""

import ipaddress
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

DEFAULT_FILE = "/etc/docker/daemon.json"
DEFAULT_SOCKET = "unix:///var/run/docker.sock"


class ConfigError(Exception):
    """The configuration cannot be used; the text is for the person who wrote it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """What the engine was told. Paths are absolute; empty strings are "not given"."""

    hosts: tuple[str, ...] = (DEFAULT_SOCKET,)
    group: str = "docker"
    pidfile: str = "/run/compatd.pid"
    data_root: str = "/var/lib/compatd"
    exec_root: str = "/run/compatd"
    debug: bool = False
    log_level: str = "info"
    shutdown_timeout_s: int = 15
    live_restore: bool = True  # containers always outlive the engine

    tls: bool = False
    tls_verify: bool = False
    tls_ca_cert: str = ""
    tls_cert: str = ""
    tls_key: str = ""

    labels: tuple[str, ...] = ()
    cgroup_parent: str = ""
    storage_driver: str = ""
    default_ulimits: tuple[tuple[str, int, int], ...] = ()  # name, soft, hard
    default_shm_size_bytes: int = 0  # 0: 64 MiB
    default_ipc_mode: str = "private"
    default_cgroupns_mode: str = ""
    no_new_privileges: bool = False
    seccomp_profile: str = ""
    seccomp_profile_text: str | None = None  # "unconfined", or what the file has; None: the built-in one
    log_driver: str = "json-file"
    log_opts: Mapping[str, str] = field(default_factory=dict[str, str])

    registry_mirrors: tuple[str, ...] = ()
    insecure_registries: tuple[str, ...] = ()
    max_concurrent_downloads: int = 3
    max_concurrent_uploads: int = 5

    bridge: str = ""
    bip: str = ""
    ipv6: bool = False
    fixed_cidr_v6: str = ""
    default_address_pools: tuple[str, ...] = ()
    fixed_cidr: str = ""
    ip: str = "0.0.0.0"
    icc: bool = True
    ip_masq: bool = True
    mtu: int = 0  # 0: that of the machine's way out
    dns: tuple[str, ...] = ()
    dns_opts: tuple[str, ...] = ()
    dns_search: tuple[str, ...] = ()
    host_gateway_ips: tuple[str, ...] = ()


Kind = Literal["bool", "int", "string", "list", "map"]


@dataclass(frozen=True, slots=True)
class Option:
    """One of dockerd's options. ``key`` is its name in the file; ``attribute`` that in ``Config``, ``None`` when the
    engine does not have it: then only the values in ``harmless`` are taken."""

    flag: str
    kind: Kind
    attribute: str | None = None
    key: str = ""
    short: str = ""
    check: Callable[[str], object] | None = None
    harmless: tuple[object, ...] = ()
    metavar: str = ""
    help: str = ""


def _check_label(text: str) -> None:
    name, separator, _ = text.partition("=")
    if not name or not separator:
        raise ValueError(f"bad attribute format: {text}")


def _check_mirror(text: str) -> None:
    scheme, separator, rest = text.partition("://")
    if not separator:
        raise ValueError(f"invalid mirror: no scheme specified for \"{text}\": must use either 'https://' or 'http://'")
    if scheme not in ("http", "https"):
        raise ValueError(
            f"invalid mirror: unsupported scheme \"{scheme}\" in \"{text}\": must use either 'https://' or 'http://'"
        )
    host = rest.rstrip("/")
    if not host or "?" in rest or "#" in rest:
        raise ValueError(f'invalid mirror: unsupported query or fragment in "{text}"')


def _check_address(text: str) -> None:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        raise ValueError(f"invalid string being converted to IP address: {text}") from None


_ULIMITS = frozenset(
    "core cpu data fsize locks memlock msgqueue nice nofile nproc rss rtprio rttime sigpending stack".split()
)


def _parse_ulimit(text: str) -> tuple[str, int, int]:
    """``nofile=1024:2048``: name, soft, hard (docker/go-units, ParseUlimit)."""
    name, separator, values = text.partition("=")
    if not separator:
        raise ValueError(f"invalid ulimit argument: {text}")
    if name.lower() not in _ULIMITS:
        raise ValueError(f"invalid ulimit type: {name}")
    numbers: list[int] = []
    for value in values.split(":", 2):
        if not re.fullmatch(r"[+-]?[0-9]{1,18}", value, re.ASCII):
            raise ValueError(f'strconv.ParseInt: parsing "{value}": invalid syntax')
        numbers.append(int(value))
    if len(numbers) > 2:
        raise ValueError(f"too many limit value arguments - {values}, can only have up to two, `soft[:hard]`")
    soft, hard = numbers[0], numbers[-1]
    if hard != -1 and (soft > hard or soft == -1):
        raise ValueError(f"ulimit soft limit must be less than or equal to hard limit: {soft} > {hard}")
    return name.lower(), soft, hard


def _parse_bytes(text: str) -> int:
    """``64m`` (docker/go-units, RAMInBytes)."""
    match = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,9})?) ?(?:([kmgtp])i?)?b?", text, re.ASCII | re.IGNORECASE)
    if match is None:
        raise ValueError(f"invalid size: '{text}'")
    return int(float(match[1]) * (1 << 10 * " kmgtp".index((match[2] or " ").lower())))


def parse_address_pool(text: str) -> tuple[str, int]:
    """``base=CIDR,size=BITS`` as (base, size). ``ValueError`` otherwise (moby daemon/libnetwork/ipamutils)."""
    fields = {name: value for name, _, value in (part.partition("=") for part in text.split(","))}
    if set(fields) != {"base", "size"}:
        raise ValueError(f"invalid default address pool: {text}: must be base=CIDR,size=BITS")
    base = ipaddress.ip_network(fields["base"])
    size = fields["size"]
    number = int(size) if size.isascii() and size.isdecimal() and len(size) < 4 else -1
    if not base.prefixlen <= number <= base.max_prefixlen:
        raise ValueError(f"invalid pool size {size}: must be from {base.prefixlen} to {base.max_prefixlen}")
    return str(base), number


def parse_host(text: str, *, tls: bool = False) -> str:
    """A ``-H`` value with its defaults filled in. ``ValueError`` in Docker's words (docker/opts, ParseHost)."""
    scheme, separator, rest = text.strip().partition("://")
    if not separator:
        scheme, rest = "tcp", text.strip()
    if scheme == "unix":
        return f"unix://{rest or DEFAULT_SOCKET.removeprefix('unix://')}"
    if scheme == "fd":
        return f"fd://{rest}"
    if scheme != "tcp":
        raise ValueError(f"invalid bind address ({text}): unsupported proto '{scheme}'")
    default_port = 2376 if tls else 2375
    host, _, port = rest.rpartition(":") if ":" in rest and not rest.endswith("]") else (rest, "", "")
    if port and not (port.isascii() and port.isdecimal() and len(port) <= 5 and int(port) <= 65535):
        raise ValueError(f"invalid bind address ({text}): invalid port: {port}")
    return f"tcp://{host or 'localhost'}:{port or default_port}"


# dockerd's table of options (cmd/dockerd/config.go and config_unix.go).
OPTIONS = (
    Option("host", "list", "hosts", "hosts", short="H", check=parse_host, help="Daemon socket(s) to listen on"),
    Option("group", "string", "group", short="G", help="Group for the unix socket"),
    Option("pidfile", "string", "pidfile", short="p", help="Path to use for daemon PID file"),
    Option("data-root", "string", "data_root", help="Root directory of persistent state"),
    Option("exec-root", "string", "exec_root", help="Root directory for execution state files"),
    Option("debug", "bool", "debug", short="D", help="Enable debug mode"),
    Option("log-level", "string", "log_level", short="l", metavar="level", help="debug, info, warn, error or fatal"),
    Option("shutdown-timeout", "int", "shutdown_timeout_s", metavar="seconds", help="Time to finish what is under way"),
    Option("live-restore", "bool", "live_restore", help="Containers always outlive the daemon; nothing to enable"),
    Option("tls", "bool", "tls", help="Use TLS; implied by --tlsverify"),
    Option("tlsverify", "bool", "tls_verify", help="Use TLS and verify the remote"),
    Option("tlscacert", "string", "tls_ca_cert", metavar="file", help="Trust certs signed only by this CA"),
    Option("tlscert", "string", "tls_cert", metavar="file", help="Path to TLS certificate file"),
    Option("tlskey", "string", "tls_key", metavar="file", help="Path to TLS key file"),
    Option("label", "list", "labels", "labels", check=_check_label, help="Set key=value labels to the daemon"),
    Option("cgroup-parent", "string", "cgroup_parent", help="Set parent cgroup for all containers"),
    Option(
        "storage-driver",
        "string",
        "storage_driver",
        short="s",
        help="Layer store: overlay2, erofs, directories",
    ),
    Option(
        "default-cgroupns-mode",
        "string",
        "default_cgroupns_mode",
        metavar="mode",
        help="Default mode for containers' cgroup namespace: host or private",
    ),
    Option("default-ipc-mode", "string", "default_ipc_mode", metavar="mode", help="Default mode for containers' ipc"),
    Option("default-shm-size", "string", "default_shm_size_bytes", check=_parse_bytes, help="Default size of /dev/shm"),
    Option(
        "default-ulimit",
        "map",
        "default_ulimits",
        "default-ulimits",
        check=_parse_ulimit,
        help="Default ulimits for containers",
    ),
    Option("no-new-privileges", "bool", "no_new_privileges", help="Set no-new-privileges by default for containers"),
    Option("seccomp-profile", "string", "seccomp_profile", metavar="file", help="Path to the default seccomp profile"),
    Option("log-driver", "string", "log_driver", help="Default driver for container logs"),
    Option("log-opt", "map", "log_opts", "log-opts", help="Default log driver options"),
    Option(
        "registry-mirror", "list", "registry_mirrors", "registry-mirrors", check=_check_mirror, help="Registry mirror"
    ),
    Option("insecure-registry", "list", "insecure_registries", "insecure-registries", help="Registry without TLS"),
    Option("max-concurrent-downloads", "int", "max_concurrent_downloads", help="Layers downloaded at once"),
    Option("max-concurrent-uploads", "int", "max_concurrent_uploads", help="Layers uploaded at once"),
    Option("bridge", "string", "bridge", short="b", help='Default bridge, or "none"'),
    Option("bip", "string", "bip", help="IPv4 address for the default bridge"),
    Option("fixed-cidr", "string", "fixed_cidr", help="IPv4 subnet for the default bridge network"),
    Option("ipv6", "bool", "ipv6", help="Enable IPv6 networking for the default bridge network"),
    Option("fixed-cidr-v6", "string", "fixed_cidr_v6", help="IPv6 subnet for the default bridge network"),
    Option(
        "default-address-pool",
        "list",
        "default_address_pools",
        "default-address-pools",
        check=parse_address_pool,
        help="Where networks get their subnets from: base=CIDR,size=BITS",
    ),
    Option("ip", "string", "ip", check=_check_address, help="Host IP for port publishing"),
    Option("icc", "bool", "icc", help="Let containers of the default bridge reach each other"),
    Option("ip-masq", "bool", "ip_masq", help="Enable IP masquerading"),
    Option("mtu", "int", "mtu", help="MTU of the default bridge network"),
    Option("dns", "list", "dns", "dns", check=_check_address, help="DNS server to use"),
    Option("dns-opt", "list", "dns_opts", "dns-opts", help="DNS options to use"),
    Option("dns-search", "list", "dns_search", "dns-search", help="DNS search domains to use"),
    Option("host-gateway-ip", "list", "host_gateway_ips", "host-gateway-ips", help='What "host-gateway" resolves to'),
    # What follows dockerd has and this engine has not (yet).
    Option("add-runtime", "list", key="runtimes", harmless=((), {})),
    Option("allow-direct-routing", "bool", harmless=(False,)),
    Option("authorization-plugin", "list", key="authorization-plugins", harmless=((),)),
    Option("bip6", "string", harmless=("",)),
    Option("cdi-spec-dir", "list", key="cdi-spec-dirs", harmless=((),)),
    Option("containerd", "string", harmless=("",)),
    Option("containerd-namespace", "string", harmless=("moby",)),
    Option("containerd-plugins-namespace", "string", key="containerd-plugin-namespace", harmless=("plugins.moby",)),
    Option("cpu-rt-period", "int", harmless=(0,)),
    Option("cpu-rt-runtime", "int", harmless=(0,)),
    Option("cri-containerd", "bool", harmless=(False,)),
    Option("default-gateway", "string", harmless=("",)),
    Option("default-gateway-v6", "string", harmless=("",)),
    Option("default-network-opt", "map", key="default-network-opts", harmless=({},)),
    Option("default-runtime", "string", harmless=("", "runc")),
    Option("exec-opt", "list", key="exec-opts", harmless=((), ("native.cgroupdriver=cgroupfs",))),
    Option("experimental", "bool", harmless=(False,)),
    Option("feature", "map", key="features", harmless=({}, {"containerd-snapshotter": False}, {"buildkit": False})),
    Option("http-proxy", "string", harmless=("",)),
    Option("https-proxy", "string", harmless=("",)),
    Option("no-proxy", "string", harmless=("",)),
    Option("init", "bool", harmless=(False,)),
    Option("init-path", "string", harmless=("",)),
    Option("ip-forward", "bool", harmless=(True,)),
    Option("ip-forward-no-drop", "bool", harmless=(False, True)),
    Option("ip6tables", "bool", harmless=(True,)),
    Option("iptables", "bool", harmless=(True,)),
    Option("log-format", "string", harmless=("", "text")),
    Option("max-download-attempts", "int", harmless=(5,)),
    Option("metrics-addr", "string", harmless=("",)),
    Option("network-control-plane-mtu", "int", harmless=(1500,)),
    Option("node-generic-resource", "list", key="node-generic-resources", harmless=((),)),
    Option("raw-logs", "bool", harmless=(False, True)),
    Option("rootless", "bool", harmless=(False,)),
    Option("selinux-enabled", "bool", harmless=(False,)),
    Option("storage-opt", "list", key="storage-opts", harmless=((),)),
    Option("swarm-default-advertise-addr", "string", harmless=("",)),
    Option("userland-proxy", "bool", harmless=(True, False)),
    Option("userland-proxy-path", "string", harmless=("",)),
    Option("userns-remap", "string", harmless=("",)),
)

_FLAGS = {option.flag: option for option in OPTIONS}
_SHORT = {option.short: option for option in OPTIONS if option.short}
_KEYS = {option.key or option.flag: option for option in OPTIONS}
# In the file these stand in one object, "proxies"; dockerd has no flag for the others.
_FILE_ONLY: dict[str, tuple[object, ...]] = {"proxies": ({},), "builder": ({},), "deprecated-key-path": ("",)}
LOG_LEVELS = ("debug", "info", "warn", "error", "fatal")


@dataclass(frozen=True, slots=True, kw_only=True)
class Arguments:
    """The command line: options by flag, and those that are no configuration."""

    values: Mapping[str, object]
    config_file: str | None
    validate: bool
    version: bool
    help: bool


def parse_arguments(argv: Sequence[str]) -> Arguments:
    """Split a command line (without the program's name). ``ConfigError`` in the words of dockerd's flag parser."""
    values: dict[str, Any] = {}
    special: dict[str, Any] = {"config-file": None, "validate": False, "version": False, "help": False}
    rest = list(argv)
    while rest:
        argument = rest.pop(0)
        if argument == "--" and not rest:
            break
        if argument.startswith("--") and len(argument) > 2:
            flag, separator, text = argument[2:].partition("=")
            given: str | None = text if separator else None
            shown = f"--{flag}"
        elif argument.startswith("-") and len(argument) > 1:
            letter, tail = argument[1], argument[2:]
            short = {"v": "version", "h": "help"}.get(letter) or (_SHORT[letter].flag if letter in _SHORT else "")
            if not short:
                raise ConfigError(f"unknown shorthand flag: '{letter}' in {argument}")
            flag, shown = short, f"-{letter}, --{short}"
            boolean = short in special or _SHORT[letter].kind == "bool"
            if boolean and tail and not tail.startswith("="):
                rest.insert(0, f"-{tail}")
                tail = ""
            given = tail.removeprefix("=") if tail else None
        else:
            raise ConfigError("\"compatd\" accepts no arguments.\nSee 'compatd --help'.")
        option = _FLAGS.get(flag)
        if option is not None and option.short:
            shown = f"-{option.short}, --{flag}"
        if option is None and flag not in special:
            raise ConfigError(f"unknown flag: --{flag}")
        kind = option.kind if option is not None else ("string" if flag == "config-file" else "bool")
        if given is None:
            if kind == "bool":
                given = "true"
            elif rest:
                given = rest.pop(0)
            else:
                raise ConfigError(f"flag needs an argument: {argument if argument.startswith('--') else shown}")
        try:
            value = _parse_value(kind, given)
            if option is not None and option.check is not None:
                option.check(given)
        except ValueError as error:
            raise ConfigError(f'invalid argument "{given}" for "{shown}" flag: {error}') from None
        if option is None:
            special[flag] = value
        elif kind == "list":
            values[flag] = (*values.get(flag, ()), *value)
        elif kind == "map":
            values[flag] = {**values.get(flag, {}), **value}
        else:
            values[flag] = value
    return Arguments(
        values=values,
        config_file=special["config-file"],
        validate=special["validate"],
        version=special["version"],
        help=special["help"],
    )


def _parse_value(kind: Kind, text: str) -> Any:
    if kind == "bool":
        if text in ("1", "t", "T", "true", "TRUE", "True"):
            return True
        if text in ("0", "f", "F", "false", "FALSE", "False"):
            return False
        raise ValueError(f'strconv.ParseBool: parsing "{text}": invalid syntax')
    if kind == "int":
        digits = text[1:] if text[:1] in ("-", "+") else text
        if not (digits.isascii() and digits.isdecimal()):
            raise ValueError(f'strconv.ParseInt: parsing "{text}": invalid syntax')
        if len(digits) > 18:
            raise ValueError(f'strconv.ParseInt: parsing "{text}": value out of range')
        return int(text)
    if kind == "list":
        return (text,)
    if kind == "map":
        name, _, value = text.partition("=")
        return {name: value}
    return text


def load(arguments: Arguments) -> Config:
    """The configuration of a command line and of the file it names. ``ConfigError`` says what is wrong with it."""
    path = arguments.config_file or DEFAULT_FILE
    try:
        text = Path(path).read_bytes()
    except FileNotFoundError:
        if arguments.config_file is not None:
            raise ConfigError(
                f"unable to configure the Docker daemon with file {path}: open {path}: no such file or directory"
            ) from None
        text = b""
    except OSError as error:
        raise ConfigError(
            f"unable to configure the Docker daemon with file {path}: open {path}: {error.strerror}"
        ) from None
    try:
        from_file = read_file(text)
        _refuse_duplicates(arguments.values, from_file)
    except ConfigError as error:
        raise ConfigError(f"unable to configure the Docker daemon with file {path}: {error}") from None
    return _build({**from_file, **arguments.values})


def read_file(text: bytes) -> dict[str, object]:
    """The options of a daemon.json, by flag."""
    if not text.strip():
        return {}
    try:
        document: object = json.loads(text.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"invalid JSON: {error}") from None
    if not isinstance(document, dict):
        kind = "array" if isinstance(document, list) else "string" if isinstance(document, str) else "number"
        raise ConfigError(
            f"invalid JSON: json: cannot unmarshal {kind} into Go value of type map[string]interface {{}}"
        )
    directives = cast(dict[str, Any], document)
    if unknown := sorted(key for key in directives if key not in _KEYS and key not in _FILE_ONLY):
        raise ConfigError(f"the following directives don't match any configuration option: {', '.join(unknown)}")
    values: dict[str, object] = {}
    for key, value in directives.items():
        if value is None:
            continue
        if key in _FILE_ONLY:
            if value not in _FILE_ONLY[key]:
                raise ConfigError(f"the directive {key} is not supported by compatd")
            continue
        option = _KEYS[key]
        values[option.flag] = _convert(option, key, value)
    return values


_GO_TYPES = {"bool": "bool", "int": "int", "string": "string", "list": "[]string", "map": "map[string]string"}


def _convert(option: Option, key: str, value: Any) -> object:
    if option.flag == "default-shm-size" and type(value) is int:
        return str(value)
    if option.flag == "default-ulimit" and isinstance(value, dict):
        return _convert_ulimits(cast(dict[str, object], value))
    if option.attribute is None and isinstance(value, list | dict):
        return tuple(cast(list[object], value)) if isinstance(value, list) else cast(dict[str, object], value)
    if key == "default-address-pools" and isinstance(value, list):
        pools = cast(list[dict[str, object]], value)
        if all(isinstance(pool, dict) for pool in cast(list[object], value)):
            value = [f"base={pool.get('base', '')},size={pool.get('size', '')}" for pool in pools]
    fits = {
        "bool": isinstance(value, bool),
        "int": isinstance(value, int) and not isinstance(value, bool),
        "string": isinstance(value, str) or (option.attribute is None and isinstance(value, int)),
        "list": isinstance(value, list) and all(isinstance(item, str) for item in cast(list[object], value)),
        "map": isinstance(value, dict)
        and all(isinstance(item, str) for item in cast(dict[str, object], value).values()),
    }
    if not fits[option.kind]:
        kind = (
            "bool"
            if isinstance(value, bool)
            else "number"
            if isinstance(value, int | float)
            else "string"
            if isinstance(value, str)
            else "array"
            if isinstance(value, list)
            else "object"
        )
        raise ConfigError(
            f"invalid JSON: json: cannot unmarshal {kind} into Go struct field Config.{key} of type"
            f" {_GO_TYPES[option.kind]}"
        )
    texts = cast(list[str], value) if option.kind == "list" else [value] if isinstance(value, str) else []
    for text in texts:
        try:
            if option.check is not None:
                option.check(text)
        except ValueError as error:
            raise ConfigError(str(error)) from None
    return tuple(texts) if option.kind == "list" else cast(object, value)


def _convert_ulimits(value: dict[str, object]) -> dict[str, str]:
    """``{"nofile": {"Name": "nofile", "Soft": 1024, "Hard": 2048}}`` as the flag has it."""
    found: dict[str, str] = {}
    for name, limit in value.items():
        members = cast(dict[str, object], limit) if isinstance(limit, dict) else {}
        numbers = [members.get("Soft", 0), members.get("Hard", 0)]
        if not members or not all(type(number) is int for number in numbers):
            raise ConfigError(f"invalid JSON: json: cannot unmarshal {name} into Go value of type units.Ulimit")
        found[name] = ":".join(str(number) for number in numbers)
    return found


def _refuse_duplicates(flags: Mapping[str, object], from_file: Mapping[str, object]) -> None:
    conflicts = [
        f"{_FLAGS[flag].key or flag}: (from flag: {_show(flags[flag])}, from file: {_show(from_file[flag])})"
        for flag in sorted(set(flags) & set(from_file))
    ]
    if conflicts:
        raise ConfigError(
            "the following directives are specified both as a flag and in the configuration file: "
            + ", ".join(conflicts)
        )


def _show(value: object) -> str:
    """A value as Go's %v prints it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return "[" + " ".join(str(item) for item in cast(tuple[object, ...], value)) + "]"
    if isinstance(value, dict):
        items = sorted(cast(dict[str, object], value).items())
        return "map[" + " ".join(f"{name}:{item}" for name, item in items) + "]"
    return str(value)


def _build(values: Mapping[str, object]) -> Config:
    fields: dict[str, Any] = {}
    for flag, value in values.items():
        option = _FLAGS[flag]
        if option.attribute is not None:
            fields[option.attribute] = value
        elif value not in option.harmless:
            raise ConfigError(f"the option --{flag} is not supported by compatd")
    if fields.get("tls_verify"):
        fields["tls"] = True
    certificates = os.environ.get("DOCKER_CERT_PATH") or str(Path.home() / ".docker")
    if fields.get("tls"):
        for attribute, file in (("tls_ca_cert", "ca.pem"), ("tls_cert", "cert.pem"), ("tls_key", "key.pem")):
            fields.setdefault(attribute, f"{certificates}/{file}")
    tls = bool(fields.get("tls"))
    fields["hosts"] = tuple(dict.fromkeys(parse_host(text, tls=tls) for text in fields.get("hosts", (DEFAULT_SOCKET,))))
    _read_defaults(fields)
    for attribute in ("data_root", "exec_root", "pidfile"):
        if attribute in fields:
            fields[attribute] = os.path.abspath(fields[attribute]) if fields[attribute] else ""
    config = Config(**fields)
    _check(config)
    return config


def _read_defaults(fields: dict[str, Any]) -> None:
    """Defaults for containers, from their texts to what they mean."""
    try:
        if "default_ulimits" in fields:
            limits = cast(Mapping[str, str], fields["default_ulimits"])
            fields["default_ulimits"] = tuple(_parse_ulimit(f"{name}={text}") for name, text in limits.items())
        if "default_shm_size_bytes" in fields:
            fields["default_shm_size_bytes"] = _parse_bytes(fields["default_shm_size_bytes"])
    except ValueError as error:
        raise ConfigError(str(error)) from None
    profile = fields.get("seccomp_profile", "")
    if profile == "unconfined":
        fields["seccomp_profile_text"] = profile
    elif profile not in ("", "builtin"):
        try:
            fields["seccomp_profile_text"] = Path(profile).read_text()
        except (OSError, UnicodeDecodeError) as error:
            why = (error.strerror or "").lower() if isinstance(error, OSError) else "invalid UTF-8"
            raise ConfigError(f"opening seccomp profile ({profile}) failed: open {profile}: {why}") from None


def _check(config: Config) -> None:
    """dockerd's Validate (daemon/config/config.go)."""
    if config.log_level not in LOG_LEVELS:
        raise ConfigError(f"invalid logging level: {config.log_level}")
    if config.default_ipc_mode not in ("private", "shareable"):
        raise ConfigError(
            f'default IPC mode setting ({config.default_ipc_mode}) is invalid; use "shareable" or "private"'
        )
    if config.default_cgroupns_mode not in ("", "host", "private"):
        raise ConfigError(f'invalid default cgroup namespace ({config.default_cgroupns_mode}): use "host" or "private"')
    if config.mtu < 0:
        raise ConfigError(f"invalid default MTU: {config.mtu}")
    for label in config.labels:
        try:
            _check_label(label)
        except ValueError as error:
            raise ConfigError(str(error)) from None
    if config.max_concurrent_downloads < 0:
        raise ConfigError(f"invalid max concurrent downloads: {config.max_concurrent_downloads}")
    if config.max_concurrent_uploads < 0:
        raise ConfigError(f"invalid max concurrent uploads: {config.max_concurrent_uploads}")
    if config.storage_driver not in ("", "overlay2", "erofs", "directories"):
        raise ConfigError(f"error initializing graphdriver: driver not supported: {config.storage_driver}")


def usage() -> str:
    """The text of ``--help``."""
    lines = [
        "Usage:  compatd [OPTIONS]",
        "        compatd doctor | demo",
        "",
        "A drop-in for dockerd.",
        "",
        "Options:",
        f"      {'--config-file string':32}Daemon configuration file (default {DEFAULT_FILE})",
    ]
    for option in sorted((o for o in OPTIONS if o.attribute is not None), key=lambda o: o.flag):
        short = f"-{option.short}, " if option.short else "    "
        kind = option.metavar or ("" if option.kind == "bool" else option.kind)
        lines.append(f"  {short}{f'--{option.flag} {kind}':32}{option.help}")
    lines += [
        f"      {'--validate':32}Validate daemon configuration and exit",
        f"  -v, {'--version':32}Print version information and quit",
        "",
        "Subcommands:",
        "  doctor    Say what this machine can do, what is missing and how to get it",
        "  demo      Build and run the hello-world image on a private daemon",
    ]
    return "\n".join(lines)

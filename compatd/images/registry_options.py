"""The daemon's settings about registries."""

import contextlib
import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from yarl import URL


@dataclass(frozen=True, slots=True, kw_only=True)
class RegistryOptions:
    """The daemon's settings about registries."""

    mirrors: tuple[str, ...] = ()
    """URLs to try before Docker Hub, in order."""
    insecure: tuple[str, ...] = ()
    """``host[:port]`` or CIDR: certificates are not checked, and plain HTTP is tried. Loopback always is."""
    certs_dir: Path = Path("/etc/docker/certs.d")
    proxies: Mapping[str, str] = field(default_factory=dict[str, str])
    """``http``, ``https``: proxy URLs; ``no``: comma-separated exceptions."""
    user_agent: str = "compatd"
    connect_timeout_s: float = 15
    idle_timeout_s: float = 60
    """How long a connection may say nothing while we wait for it."""

    def proxy_for(self, url: URL) -> str | None:
        """The proxy to ask for ``url``; None: its host itself."""
        host = url.host or ""
        if host == "localhost" or (is_address(host) and ipaddress.ip_address(host).is_loopback):
            return None
        for exception in (part.strip().lower() for part in self.proxies.get("no", "").split(",")):
            name, _, port = exception.partition(":") if exception.count(":") == 1 else (exception, "", "")
            if not name or (port and port != str(url.port)):
                continue
            if name == "*" or host == name.lstrip(".") or host.endswith("." + name.lstrip("*").lstrip(".")):
                return None
            with contextlib.suppress(ValueError):
                if ipaddress.ip_address(host) in ipaddress.ip_network(name, strict=False):
                    return None
        return self.proxies.get(url.scheme)


def proxies_of(environment: Mapping[str, str]) -> dict[str, str]:
    """HTTP_PROXY, HTTPS_PROXY and NO_PROXY, in either case, for ``RegistryOptions.proxies``."""
    found: dict[str, str] = {}
    for name in ("http", "https", "no"):
        variable = f"{name}_proxy"
        if value := environment.get(variable.upper()) or environment.get(variable):
            found[name] = value if name == "no" or "://" in value else f"http://{value}"
    return found


def is_address(host: str) -> bool:
    """Whether it is an IP address rather than a name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True

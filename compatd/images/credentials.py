"""What a client lets us show to a registry, and which registry that is for."""

import re
from dataclasses import dataclass, field

import msgspec

from compatd.errors import InvalidParameter
from compatd.images.reference import DEFAULT_DOMAIN, is_domain

INDEX_SERVER = "https://index.docker.io/v1/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """What a client lets us show to a registry."""

    username: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)
    """A refresh token, given by an earlier login instead of a password."""
    registry_token: str = field(default="", repr=False)
    """A bearer token to send as it is."""
    server_address: str = ""


ANONYMOUS = Credentials()


def registry_domain(address: str) -> str:
    """The domain, as in references, of an address in a client's configuration: a host or a URL.

    Empty means Docker Hub. InvalidParameter for what is neither.
    """
    host = re.sub(r"^https?://", "", address or INDEX_SERVER).partition("/")[0]
    if not is_domain(host):
        raise InvalidParameter(f"invalid registry address {msgspec.json.encode(address).decode()}")
    return DEFAULT_DOMAIN if host in ("index.docker.io", "registry-1.docker.io") else host

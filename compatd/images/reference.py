"""Image references: Docker's grammar and its normalisation of familiar names.

The grammar is the one of github.com/distribution/reference (regexp.go, normalize.go): ``ubuntu`` means
``docker.io/library/ubuntu``, the part before the first slash is a registry when it looks like one.
"""

import re
from dataclasses import dataclass, replace
from typing import Self

from compatd.errors import Forbidden, InvalidParameter
from compatd.images.content import Digest, parse_digest

DEFAULT_DOMAIN = "docker.io"
DEFAULT_TAG = "latest"

_LEGACY_DOMAIN = "index.docker.io"
_OFFICIAL = "library/"
_PATH_LIMIT = 255

_COMPONENT = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_DOMAIN_COMPONENT = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
_TAG = r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}"
_DOMAIN = rf"(?:{_DOMAIN_COMPONENT}(?:\.{_DOMAIN_COMPONENT})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?"
_REFERENCE = re.compile(
    rf"(?:(?P<domain>{_DOMAIN})/)?"
    rf"(?P<path>{_COMPONENT}(?:/{_COMPONENT})*)"
    rf"(?::(?P<tag>{_TAG}))?"
    r"(?:@(?P<digest>[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}))?",
    re.ASCII,
)
_IDENTIFIER = re.compile(r"[a-f0-9]{64}", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """A normalised reference. ``domain`` is empty only for a registry-like part that is no host name (``a_b.c/d``)."""

    domain: str
    path: str
    tag: str | None = None
    digest: Digest | None = None

    @property
    def name(self) -> str:
        """``docker.io/library/ubuntu``."""
        return f"{self.domain}/{self.path}" if self.domain else self.path

    @property
    def familiar_name(self) -> str:
        """``ubuntu``: what users read and write."""
        if self.domain != DEFAULT_DOMAIN:
            return self.name
        official = self.path.removeprefix(_OFFICIAL)
        return self.path if "/" in official else official

    @property
    def familiar(self) -> str:
        """``ubuntu:16.04``, with the tag and digest that are there."""
        return self.familiar_name + self._suffix

    def __str__(self) -> str:
        return self.name + self._suffix

    @property
    def _suffix(self) -> str:
        return (f":{self.tag}" if self.tag else "") + (f"@{self.digest}" if self.digest else "")

    @property
    def is_name_only(self) -> bool:
        return self.tag is None and self.digest is None

    def trimmed(self) -> Self:
        """Without tag and digest."""
        return replace(self, tag=None, digest=None)

    def with_default_tag(self) -> Self:
        """``latest`` where neither tag nor digest is there."""
        return replace(self, tag=DEFAULT_TAG) if self.is_name_only else self

    def with_tag(self, tag: str) -> Self:
        if not re.fullmatch(_TAG, tag, re.ASCII):
            raise InvalidParameter("invalid tag format")
        return replace(self, tag=tag)

    def with_digest(self, digest: Digest) -> Self:
        return replace(self, digest=digest)


def parse_normalized(text: str) -> Reference:
    """Read a reference as a user types it. InvalidParameter with Docker's text; takes linear time."""
    if _IDENTIFIER.fullmatch(text):
        raise InvalidParameter(f"invalid repository name ({text}), cannot specify 64-byte hexadecimal strings")
    domain, remainder = _split_domain(text)
    remote = remainder.partition(":")[0]
    if remote.lower() != remote:
        raise InvalidParameter(f"invalid reference format: repository name ({remote}) must be lowercase")
    match = _REFERENCE.fullmatch(f"{domain}/{remainder}")
    if match is None:
        raise InvalidParameter("invalid reference format")
    if len(match["path"]) > _PATH_LIMIT:
        raise InvalidParameter(f"repository name must not be more than {_PATH_LIMIT} characters")
    digest = None if match["digest"] is None else parse_digest(match["digest"])
    return Reference(domain=match["domain"] or "", path=match["path"], tag=match["tag"], digest=digest)


def parse_pull(image: str, tag: str) -> Reference:
    """Read ``fromImage`` and ``tag`` of ``POST /images/create``, where the tag may be a digest.

    Neither tag nor digest in the result: every tag is wanted. A trailing colon says so too, in old clients.
    """
    reference = parse_normalized(image.removesuffix(":"))
    if tag:
        reference = reference.trimmed()
        try:
            reference = reference.with_digest(parse_digest(tag))
        except InvalidParameter:
            reference = reference.with_tag(tag)
    if reference.familiar_name == "scratch":
        raise Forbidden("'scratch' is a reserved name")
    return reference


def is_domain(text: str) -> bool:
    """Whether ``text`` is ``host[:port]``, fit to name a registry."""
    return re.fullmatch(_DOMAIN, text, re.ASCII) is not None


def _split_domain(text: str) -> tuple[str, str]:
    first, slash, rest = text.partition("/")
    if not slash:
        return DEFAULT_DOMAIN, _OFFICIAL + text
    if first == _LEGACY_DOMAIN:
        first = DEFAULT_DOMAIN
    elif first != "localhost" and not ("." in first or ":" in first) and first.lower() == first:
        first, rest = DEFAULT_DOMAIN, text
    if first == DEFAULT_DOMAIN and "/" not in rest:
        rest = _OFFICIAL + rest
    return first, rest

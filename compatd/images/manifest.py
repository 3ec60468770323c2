"""What registries serve about an image: manifests, indexes, image configs; and which platform fits.

Bytes are the identity of these documents (an image's id is the digest of its config), so they are kept as they
came, in the content store; the values here are readings of them, unknown members left out. Docker's own media
types and OCI's carry the same members (distribution's schema2, OCI image spec manifest.md, index.md, config.md).
"""

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Annotated, Any, Self, TypeVar, cast

import msgspec

from compatd.errors import InvalidParameter, NotFound, SystemFailure
from compatd.images.content import DiffId, Digest, parse_digest

DOCKER_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
DOCKER_INDEX = "application/vnd.docker.distribution.manifest.list.v2+json"
DOCKER_CONFIG = "application/vnd.docker.container.image.v1+json"
DOCKER_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"
OCI_MANIFEST = "application/vnd.oci.image.manifest.v1+json"
OCI_INDEX = "application/vnd.oci.image.index.v1+json"
OCI_CONFIG = "application/vnd.oci.image.config.v1+json"
SCHEMA1_TYPES = frozenset(
    {
        "application/vnd.docker.distribution.manifest.v1+json",
        "application/vnd.docker.distribution.manifest.v1+prettyjws",
    }
)
MANIFEST_TYPES = (DOCKER_MANIFEST, DOCKER_INDEX, OCI_MANIFEST, OCI_INDEX)

DOCUMENT_LIMIT_BYTES = 4 << 20
"""No manifest, index or config is longer (the registries' own limit for manifests)."""

LAYER_LIMIT = 125
"""As many layers as an image may have: maxLayerDepth in moby's layer store."""

# What old registries and clients wrote for a config: ImageTypes in moby's daemon/internal/distribution/registry.go.
_CONFIG_TYPES = frozenset({DOCKER_CONFIG, OCI_CONFIG, "application/octet-stream", "application/json", "text/html", ""})
_PLUGIN_CONFIG = "application/vnd.docker.plugin.v1+json"

Int64 = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
Size = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
T = TypeVar("T")


class PlatformDocument(msgspec.Struct, frozen=True, kw_only=True):
    architecture: str = ""
    os: str = ""
    variant: str = ""
    os_version: str = msgspec.field(name="os.version", default="")
    os_features: list[str] = msgspec.field(name="os.features", default_factory=list[str])


class Descriptor(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Names a blob; ``digest`` has been checked to be one when it comes out of this module."""

    media_type: str = ""
    digest: Digest
    size: Size
    platform: PlatformDocument | None = None
    urls: list[str] = msgspec.field(default_factory=list[str])
    annotations: dict[str, str] = msgspec.field(default_factory=dict[str, str])
    artifact_type: str = ""


class Manifest(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """One image for one platform; layers bottom first."""

    schema_version: int
    media_type: str = ""
    config: Descriptor
    layers: list[Descriptor]


class Index(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """Images of several platforms: OCI index, Docker manifest list."""

    schema_version: int
    media_type: str = ""
    manifests: list[Descriptor]


class Healthcheck(msgspec.Struct, frozen=True, kw_only=True, rename="pascal", omit_defaults=True):
    """Durations in nanoseconds; zero means inherit."""

    test: list[str] | None = None
    interval: Int64 = 0
    timeout: Int64 = 0
    start_period: Int64 = 0
    start_interval: Int64 = 0
    retries: Int64 = 0


class RunConfig(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """How containers of the image run by default: moby's container.Config as images carry it."""

    hostname: str = ""
    domainname: str = ""
    user: str = ""
    attach_stdin: bool = False
    attach_stdout: bool = False
    attach_stderr: bool = False
    exposed_ports: dict[str, dict[str, Any]] | None = None
    tty: bool = False
    open_stdin: bool = False
    stdin_once: bool = False
    env: list[str] | None = None
    cmd: list[str] | None = None
    healthcheck: Healthcheck | None = None
    args_escaped: bool = False
    image: str = ""
    volumes: dict[str, dict[str, Any]] | None = None
    working_dir: str = ""
    entrypoint: list[str] | None = None
    network_disabled: bool = False
    mac_address: str = ""
    on_build: list[str] | None = None
    labels: dict[str, str] | None = None
    stop_signal: str = ""
    stop_timeout: Int64 | None = None
    shell: list[str] | None = None


class History(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    created: str | None = None
    created_by: str = ""
    author: str = ""
    comment: str = ""
    empty_layer: bool = False


class RootFs(msgspec.Struct, frozen=True, kw_only=True):
    type: str = "layers"
    diff_ids: list[DiffId] = msgspec.field(default_factory=list[DiffId])


class ImageConfig(msgspec.Struct, frozen=True, kw_only=True):
    """An image as its config blob tells it: OCI's members and the ones Docker adds. ``created`` is RFC 3339 text."""

    architecture: str = ""
    author: str = ""
    comment: str = ""
    config: RunConfig | None = None
    container: str = ""
    container_config: RunConfig | None = None
    created: str | None = None
    docker_version: str = ""
    history: list[History] = msgspec.field(default_factory=list[History])
    os: str = ""
    os_features: list[str] = msgspec.field(name="os.features", default_factory=list[str])
    os_version: str = msgspec.field(name="os.version", default="")
    parent: str = ""
    rootfs: RootFs = msgspec.field(default_factory=RootFs)
    variant: str = ""


_RUN_OMITTED_WHEN_EMPTY = frozenset(
    {
        *("ExposedPorts", "Healthcheck", "ArgsEscaped", "NetworkDisabled", "MacAddress"),
        *("StopSignal", "Shell"),
    }
)
_GO_ESCAPES = {
    b"<": b"\\u003c",
    b">": b"\\u003e",
    b"&": b"\\u0026",
    "\u2028".encode(): b"\\u2028",
    "\u2029".encode(): b"\\u2029",
}
_HTML = re.compile(b"|".join(_GO_ESCAPES))  # outside of strings JSON has none of these
_ALWAYS_WRITTEN = frozenset({"architecture", "created", "os", "rootfs"})


def encode_config(config: ImageConfig) -> bytes:
    """The bytes of a new image's config, as Docker writes them: its members, in its order, in its spelling."""
    document: dict[str, Any] = msgspec.to_builtins(config)
    for name in ("config", "container_config"):
        if (run := document[name]) is not None:
            if run["StopTimeout"] is None:
                del run["StopTimeout"]
            # Go sorts maps, and what is at the top, but not what a structure has.
            run |= {key: dict(sorted(run[key].items())) for key in ("ExposedPorts", "Labels", "Volumes") if run[key]}
            document[name] = {key: value for key, value in run.items() if value or key not in _RUN_OMITTED_WHEN_EMPTY}
    written = {key: document[key] for key in sorted(document) if document[key] or key in _ALWAYS_WRITTEN}
    return _HTML.sub(lambda found: _GO_ESCAPES[found[0]], msgspec.json.encode(written))


def decode_config(data: bytes) -> ImageConfig:
    """Read an image config; SystemFailure when it is none that can be used here."""
    config = _decode(data, ImageConfig, "image configuration")
    for diff_id in config.rootfs.diff_ids:
        parse_digest(diff_id)
    return config


def decode_manifest(data: bytes, media_type: str, *, name: str) -> Manifest | Index:
    """Read what a registry gave for the reference ``name`` (for error texts only).

    ``media_type`` is its Content-Type: registries which do not know better send ``application/json`` or nothing,
    then the document's own word counts. InvalidParameter for schema 1 and whatever else is not an image.
    """
    head = _document(data, "manifest")
    stated = head.get("mediaType", "")
    declared = media_type.partition(";")[0].strip()
    if declared in ("", "application/json", "application/octet-stream", "text/plain"):
        declared = stated or (OCI_INDEX if "manifests" in head else OCI_MANIFEST)
    if declared in SCHEMA1_TYPES or head.get("schemaVersion") == 1:
        raise schema1_refused(name)
    if declared not in MANIFEST_TYPES:
        raise InvalidParameter(f"unsupported manifest media type {declared!r}")
    if stated != declared and (stated or not declared.startswith("application/vnd.oci.")):
        raise SystemFailure(f"mediaType in manifest should be '{declared}' not '{stated}'")
    if head.get("schemaVersion") != 2:
        raise SystemFailure("unsupported manifest schema version")
    if declared in (DOCKER_INDEX, OCI_INDEX):
        if "layers" in head or "config" in head:
            raise SystemFailure("index: expected index but found manifest")
        index = _convert(head, Index, "manifest list")
        _check_digests(index.manifests)
        return index
    if "manifests" in head:
        raise SystemFailure("manifest: expected manifest but found index")
    manifest = _convert(head, Manifest, "manifest")
    _check_digests((manifest.config, *manifest.layers))
    _check_image(manifest, declared)
    return manifest


def _check_image(manifest: Manifest, media_type: str) -> None:
    config_type = manifest.config.media_type
    if config_type not in _CONFIG_TYPES:
        if media_type == OCI_MANIFEST:
            raise InvalidParameter(f"unsupported media type {config_type}")
        kind = "plugin" if config_type == _PLUGIN_CONFIG else "unknown"
        raise InvalidParameter(f'Encountered remote "{config_type}"({kind}) when fetching')
    if len(manifest.layers) > LAYER_LIMIT:
        raise max_depth_exceeded()
    if manifest.config.size > DOCUMENT_LIMIT_BYTES:
        raise too_large("image configuration")


def _check_digests(descriptors: Iterable[Descriptor]) -> None:
    for descriptor in descriptors:
        parse_digest(descriptor.digest)


def schema1_refused(name: str) -> InvalidParameter:
    return InvalidParameter(
        "[DEPRECATION NOTICE] Docker Image Format v1 and Docker Image manifest version 2, schema 1 support is disabled "
        "by default and will be removed in an upcoming release. Suggest the author of "
        f"{name} to upgrade the image to the OCI Format or Docker Image manifest v2, schema 2. "
        "More information at https://docs.docker.com/go/deprecated-image-specs/"
    )


def max_depth_exceeded() -> SystemFailure:
    return SystemFailure("max depth exceeded")


def too_large(what: str) -> SystemFailure:
    return SystemFailure(f"{what} is larger than {DOCUMENT_LIMIT_BYTES} bytes")


def _document(data: bytes, what: str) -> dict[str, Any]:
    if len(data) > DOCUMENT_LIMIT_BYTES:
        raise too_large(what)
    try:
        document = msgspec.json.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        # Go's words for a document that ends too early, which is what a broken-off transfer looks like.
        words = "unexpected end of JSON input" if "truncated" in str(error) else str(error)
        raise SystemFailure(f"invalid {what}: {words}") from error
    if not isinstance(document, dict):
        raise SystemFailure(f"invalid {what}: expected an object")
    return cast("dict[str, Any]", document)


def _decode(data: bytes, model: type[T], what: str) -> T:
    return _convert(_document(data, what), model, what)


def _convert(document: dict[str, Any], model: type[T], what: str) -> T:
    try:
        return msgspec.convert(_without_nulls(document), model)
    except (msgspec.ValidationError, RecursionError) as error:
        raise SystemFailure(f"invalid {what}: {error}") from error


def _without_nulls(value: Any) -> Any:
    """Go reads null as the member's zero value, and so do the writers of these documents."""
    if isinstance(value, dict):
        members = cast("dict[str, Any]", value)
        return {key: _without_nulls(member) for key, member in members.items() if member is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in cast("Iterable[Any]", value)]
    return value


# platforms

_OSES = frozenset(
    "aix android darwin dragonfly freebsd hurd illumos ios js linux nacl netbsd openbsd plan9 solaris "
    "windows zos".split()
)
_ARCHITECTURES = frozenset(
    "386 amd64 amd64p32 arm armbe arm64 arm64be loong64 mips mipsle mips64 mips64le mips64p32 mips64p32le "
    "ppc ppc64 ppc64le riscv riscv64 s390 s390x sparc sparc64 wasm".split()
)
_MACHINES = {"i386": "386", "i686": "386", "x86_64": "amd64", "x86-64": "amd64", "aarch64": "arm64"}
_OS_AND_VERSION = r"([A-Za-z0-9_-]+)(?:\(([A-Za-z0-9_.%-]*)((?:\+[A-Za-z0-9_.%-]+)*)\))?"
_COMPONENT = r"[A-Za-z0-9_.-]+"


@dataclass(frozen=True, slots=True, kw_only=True)
class Platform:
    """An operating system and a processor, in Go's names; the rules are those of github.com/containerd/platforms."""

    os: str
    architecture: str
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)

    def normalized(self) -> Self:
        """One spelling for each platform: ``x86_64`` is ``amd64``, ``arm`` is ``arm/v7``."""
        name = {"macos": "darwin"}.get(self.os.lower(), self.os.lower())
        architecture, variant = self.architecture.lower(), self.variant.lower()
        match _MACHINES.get(architecture, architecture):
            case "386":
                architecture, variant = "386", ""
            case "amd64":
                architecture, variant = "amd64", "" if variant == "v1" else variant
            case "arm64":
                architecture, variant = "arm64", "" if variant in ("8", "v8", "v8.0") else variant
            case "armhf":
                architecture, variant = "arm", "v7"
            case "armel":
                architecture, variant = "arm", "v6"
            case "arm":
                variant = {"": "v7", "5": "v5", "6": "v6", "7": "v7", "8": "v8"}.get(variant, variant)
            case _:
                pass
        return replace(self, os=name, architecture=architecture, variant=variant)

    def compatible(self) -> list["Platform"]:
        """What runs here, best first: older variants of the processor, and its 32-bit mode."""
        own = self.normalized()
        found = [own]
        level = int(own.variant[1:]) if re.fullmatch(r"v[0-9]", own.variant, re.ASCII) else 0
        if own.architecture == "amd64":
            found += [replace(own, variant=f"v{older}") for older in range(level - 1, 0, -1)]
            found.append(replace(own, architecture="386", variant=""))
        elif own.architecture == "arm":
            found += [replace(own, variant=f"v{older}") for older in range(level - 1, 4, -1)]
        elif own.architecture == "arm64":
            if own.variant:
                found.append(replace(own, variant=""))
            found += [replace(own, architecture="arm", variant=f"v{older}") for older in range(8, 4, -1)]
        return [platform.normalized() for platform in found]


def host_platform() -> Platform:
    """This machine's platform, by its kernel."""
    machine = os.uname().machine
    variant = {"armv5": "v5", "armv6": "v6", "armv7": "v7", "armv8": "v8"}.get(machine[:5], "")
    return Platform(os="linux", architecture="arm" if variant else machine, variant=variant).normalized()


def parse_platform(text: str) -> Platform:
    """Read ``os[/arch[/variant]]`` or ``arch``; InvalidParameter in the words of containerd's parser."""
    parts = text.split("/")
    if "*" in text:
        raise InvalidParameter(f'"{text}": wildcards not yet supported: invalid argument')
    if (first := re.fullmatch(_OS_AND_VERSION, parts[0], re.ASCII)) is None:
        pattern = f"^{_OS_AND_VERSION}$".replace("\\", "\\\\")
        raise InvalidParameter(
            f'"{parts[0]}" is an invalid OS component of "{text}": OSAndVersion specifier component must match '
            f'"{pattern}": invalid argument'
        )
    parts[0] = first[1]  # a version makes no difference on Linux
    for part in parts[1:]:
        if not re.fullmatch(_COMPONENT, part, re.ASCII):
            raise InvalidParameter(
                f'"{part}" is an invalid component of "{text}": platform specifier component must match '
                f'"^{_COMPONENT}$": invalid argument'
            )
    match parts:
        case [one]:
            alone = Platform(os=one, architecture="").normalized().os
            if alone in _OSES:
                return replace(host_platform(), os=alone)
            machine = Platform(os="linux", architecture=one).normalized()
            if machine.architecture in _ARCHITECTURES:
                return machine
            raise InvalidParameter(f'"{text}": unknown operating system or architecture: invalid argument')
        case [system, architecture]:
            return Platform(os=system, architecture=architecture).normalized()
        case [system, architecture, variant]:
            return Platform(os=system, architecture=architecture, variant=variant).normalized()
        case _:
            raise InvalidParameter(f'"{text}": cannot parse platform specifier: invalid argument')


def select(index: Index, platform: Platform) -> list[Descriptor]:
    """The entries of ``index`` that run on ``platform``, best first; never empty: NotFound with Docker's text."""
    ranks = {compatible: rank for rank, compatible in reversed(list(enumerate(platform.compatible())))}
    ranked: list[tuple[int, Descriptor]] = []
    for entry in index.manifests:
        if entry.platform is None or not (entry.platform.os or entry.platform.architecture):
            ranked.append((len(ranks), entry))  # Docker takes an entry without a platform to fit all
        elif (rank := ranks.get(platform_of(entry.platform))) is not None:
            ranked.append((rank, entry))
    if not ranked:
        raise no_matching_manifest(platform)
    return [entry for _, entry in sorted(ranked, key=lambda pair: pair[0])]


def platform_of(document: PlatformDocument | ImageConfig) -> Platform:
    return Platform(os=document.os, architecture=document.architecture, variant=document.variant).normalized()


def no_matching_manifest(platform: Platform) -> NotFound:
    return NotFound(f"no matching manifest for {platform} in the manifest list entries")

"""The image configuration document as Docker's classic builder writes it.

Field order, and whether a field that is empty appears as null or not at all, are those of Go's structs
(moby api/types/container.Config and daemon/internal/image.Image), so that clients see no difference.
Documents of strangers are read strictly by type and leniently by presence: null means not given.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import cast

import msgspec
from msgspec import UNSET, UnsetType

from compatd.errors import InvalidParameter

MAX_DOCUMENT_BYTES = 8 << 20


class Health(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, rename="pascal"):
    """A health check; durations in nanoseconds, zero for inherited."""

    test: tuple[str, ...] = ()
    interval: int = 0
    timeout: int = 0
    start_period: int = 0
    start_interval: int = 0
    retries: int = 0


Presence = dict[str, dict[str, object]]
"""Go's map to empty structs: the keys are what counts."""


class RunConfig(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """What a container of the image starts with. None is null on the wire; UNSET does not appear."""

    hostname: str = ""
    domainname: str = ""
    user: str = ""
    attach_stdin: bool = False
    attach_stdout: bool = False
    attach_stderr: bool = False
    exposed_ports: Presence | UnsetType = UNSET
    tty: bool = False
    open_stdin: bool = False
    stdin_once: bool = False
    env: tuple[str, ...] | None = None
    cmd: tuple[str, ...] | None = None
    healthcheck: Health | UnsetType = UNSET
    args_escaped: bool | UnsetType = UNSET
    image: str = ""
    volumes: Presence | None = None
    working_dir: str = ""
    entrypoint: tuple[str, ...] | None = None
    network_disabled: bool | UnsetType = UNSET
    mac_address: str | UnsetType = UNSET
    on_build: tuple[str, ...] | None = None
    labels: dict[str, str] | None = None
    stop_signal: str | UnsetType = UNSET
    stop_timeout: int | UnsetType = UNSET
    shell: tuple[str, ...] | UnsetType = UNSET

    def environment(self) -> dict[str, str]:
        """The variables by name; the last of a name counts."""
        return {name: value for name, _, value in (entry.partition("=") for entry in self.env or ())}

    def command_shell(self) -> tuple[str, ...]:
        """The shell that shell-form commands run in."""
        return self.shell or ("/bin/sh", "-c")


class History(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How a layer, or an image without a layer of its own, was made."""

    created: str = ""
    created_by: str = ""
    author: str = ""
    comment: str = ""
    empty_layer: bool = False


class RootFs(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The layers, bottom first."""

    type: str | UnsetType = UNSET
    diff_ids: tuple[str, ...] = ()


class _Document(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    # Sorted by key, as Docker sorts the top level of the document.
    architecture: str = ""
    author: str = ""
    config: RunConfig | UnsetType = UNSET
    container: str = ""
    container_config: RunConfig | UnsetType = UNSET
    created: str = ""
    docker_version: str = ""
    history: tuple[History, ...] | None = None
    os: str = ""
    os_features: tuple[str, ...] = msgspec.field(default=(), name="os.features")
    os_version: str = msgspec.field(default="", name="os.version")
    rootfs: RootFs | UnsetType = UNSET
    variant: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """What the builder knows of an image; ``image_id`` is empty for scratch."""

    image_id: str
    os: str
    architecture: str
    variant: str
    config: RunConfig
    history: tuple[History, ...]
    diff_ids: tuple[str, ...]
    os_version: str = ""
    os_features: tuple[str, ...] = ()


def read_image(image_id: str, document: bytes) -> Image:
    """Read a configuration document. ``InvalidParameter`` for one that is none."""
    try:
        if len(document) > MAX_DOCUMENT_BYTES:
            raise ValueError("document too large")
        found = msgspec.convert(_drop_nulls(msgspec.json.decode(document)), _Document)
    except (ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors
        raise InvalidParameter(f"invalid image configuration of {image_id}: {error}") from None
    rootfs = found.rootfs if isinstance(found.rootfs, RootFs) else RootFs()
    return Image(
        image_id=image_id,
        os=found.os or "linux",
        architecture=found.architecture,
        variant=found.variant,
        config=found.config if isinstance(found.config, RunConfig) else RunConfig(),
        history=found.history or (),
        diff_ids=rootfs.diff_ids,
        os_version=found.os_version,
        os_features=found.os_features,
    )


def _drop_nulls(value: object) -> object:
    if isinstance(value, dict):
        fields = cast("dict[str, object]", value)
        return {key: _drop_nulls(item) for key, item in fields.items() if item is not None}
    if isinstance(value, list):
        return [_drop_nulls(item) for item in cast("list[object]", value)]
    return value


def write_child(
    parent: Image,
    *,
    config: RunConfig,
    container_config: RunConfig,
    container_id: str,
    author: str,
    diff_id: str | None,
    created_ns: int,
    engine_version: str,
) -> bytes:
    """The document of an image made from ``parent`` by one step; ``diff_id`` is its layer, if it has one."""
    created = format_time(created_ns)
    step = History(
        created=created,
        created_by=" ".join(container_config.cmd or ()),
        author=author,
        empty_layer=diff_id is None,
    )
    document = _Document(
        architecture=parent.architecture,
        author=author,
        config=config,
        container=container_id,
        container_config=container_config,
        created=created,
        docker_version=engine_version,
        history=(*parent.history, step),
        os=parent.os,
        os_features=parent.os_features,
        os_version=parent.os_version,
        rootfs=RootFs(type="layers", diff_ids=parent.diff_ids if diff_id is None else (*parent.diff_ids, diff_id)),
        variant=parent.variant,
    )
    return encode(document)


def encode(value: object) -> bytes:
    """JSON as Go writes it: map keys sorted, and ``<``, ``>``, ``&`` and the two line separators escaped."""
    text = msgspec.json.encode(value, order="deterministic")
    for raw, escaped in _GO_ESCAPES:
        if raw in text:
            text = text.replace(raw, escaped)
    return text


_GO_ESCAPES = (
    (b"<", b"\\u003c"),
    (b">", b"\\u003e"),
    (b"&", b"\\u0026"),
    ("\u2028".encode(), b"\\u2028"),
    ("\u2029".encode(), b"\\u2029"),
)


def present(keys: Sequence[str] | Mapping[str, object]) -> Presence:
    """A Go set."""
    return {key: {} for key in keys}


def format_time(time_ns: int) -> str:
    """RFC 3339 in UTC with as many digits of the second as needed, as Go's RFC3339Nano."""
    seconds, nanoseconds = divmod(time_ns, 10**9)
    whole = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    fraction = f".{nanoseconds:09d}".rstrip("0").rstrip(".")
    return f"{whole}{fraction}Z"

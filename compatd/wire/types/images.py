"""Images: configuration, lists, history, removal, and the progress records of pull, push, load and import."""

from compatd.wire.json import Set, StrSlice, Wire, always, omitempty


class HealthConfig(Wire, frozen=True, kw_only=True):
    """How to probe a container. Durations in nanoseconds; 0 means inherited, or the default."""

    test: list[str] = omitempty([])
    interval: int = 0
    timeout: int = 0
    start_period: int = 0
    start_interval: int = 0
    retries: int = 0


class Platform(Wire, frozen=True, kw_only=True, rename="lower"):
    """What an image runs on (OCI image-spec, descriptor.md)."""

    architecture: str = always("")
    os: str = always("")
    os_version: str = omitempty("", "os.version")
    os_features: list[str] = omitempty([], "os.features")
    variant: str = ""


class Descriptor(Wire, frozen=True, kw_only=True, rename="camel"):
    """A blob by digest (OCI image-spec, descriptor.md)."""

    media_type: str = always("")
    digest: str = always("")
    size: int = always(0)
    urls: list[str] = omitempty([])
    annotations: dict[str, str] = omitempty({})
    data: str = ""
    platform: Platform | None = None
    artifact_type: str = ""


class ImageConfig(Wire, frozen=True, kw_only=True):
    """What containers made from an image get by default."""

    user: str = always("")
    exposed_ports: Set = omitempty({})
    env: list[str] | None = always(None)
    cmd: StrSlice = always(None)
    healthcheck: HealthConfig | None = None
    args_escaped: bool = False
    volumes: Set | None = always(None)
    working_dir: str = always("")
    entrypoint: StrSlice = always(None)
    on_build: list[str] | None = always(None)
    labels: dict[str, str] | None = always(None)
    stop_signal: str = ""
    shell: list[str] = omitempty([])


class GraphDriver(Wire, frozen=True, kw_only=True):
    """The storage driver's own words about a container or an image."""

    data: dict[str, str] | None = always(None)
    name: str


class RootFS(Wire, frozen=True, kw_only=True):
    """The layers of an image by diff id, bottom first."""

    type: str = always("layers")
    layers: list[str] = omitempty([])


class ImageMetadata(Wire, frozen=True, kw_only=True):
    """What the engine knows of an image beyond its own document."""

    last_tag_time: str = always("0001-01-01T00:00:00Z")


class ImageInspect(Wire, frozen=True, kw_only=True):
    """One image in full."""

    id: str
    repo_tags: list[str] = always([])
    repo_digests: list[str] = always([])
    parent: str = always("")
    comment: str = always("")
    created: str = ""
    docker_version: str = always("")
    author: str = always("")
    config: ImageConfig = always(ImageConfig())
    architecture: str = always("")
    variant: str = ""
    os: str = always("")
    os_version: str = ""
    size: int = always(0)
    graph_driver: GraphDriver
    root_fs: RootFS = always(RootFS(), "RootFS")
    metadata: ImageMetadata = always(ImageMetadata())
    descriptor: Descriptor | None = None
    manifests: list[dict[str, object]] = omitempty([])


class ImageSummary(Wire, frozen=True, kw_only=True):
    """One image in a list; ``created`` in seconds, -1 where a number was not asked for."""

    containers: int = always(-1)
    created: int
    id: str
    labels: dict[str, str] | None = always(None)
    parent_id: str = always("")
    repo_digests: list[str] | None = always(None)
    repo_tags: list[str] | None = always(None)
    shared_size: int = always(-1)
    size: int
    descriptor: Descriptor | None = None
    manifests: list[dict[str, object]] = omitempty([])


class HistoryItem(Wire, frozen=True, kw_only=True):
    """One step of an image's making, newest first; ``created`` in seconds, ``id`` may be ``<missing>``."""

    comment: str = always("")
    created: int = always(0)
    created_by: str = always("")
    id: str = always("<missing>")
    size: int = always(0)
    tags: list[str] | None = always(None)


class ImageDeleted(Wire, frozen=True, kw_only=True):
    """One consequence of removing an image: exactly one of the two is set."""

    deleted: str = ""
    untagged: str = ""


class ImagesPruned(Wire, frozen=True, kw_only=True):
    """What a prune of images did."""

    images_deleted: list[ImageDeleted] | None = always(None)
    space_reclaimed: int = always(0)


class ProgressDetail(Wire, frozen=True, kw_only=True):
    """How far a transfer is, in bytes; hidden counts are for clients that draw no bar."""

    current: int = omitempty(0, "current")
    total: int = omitempty(0, "total")
    start: int = omitempty(0, "start")
    hidecounts: bool = omitempty(False, "hidecounts")
    units: str = omitempty("", "units")


class ErrorDetail(Wire, frozen=True, kw_only=True):
    """Why a stream ended early; ``code`` is a program's exit code where one is the reason."""

    code: int = omitempty(0, "code")
    message: str = omitempty("", "message")


class Progress(Wire, frozen=True, kw_only=True):
    """One record of a pull, push, load, import or build stream (moby pkg/jsonmessage, JSONMessage).

    ``progress`` is the drawn bar; clients draw their own from ``progress_detail``. The engine sends an empty
    ``progress_detail`` object with each status that belongs to an id.
    """

    stream: str = omitempty("", "stream")
    status: str = omitempty("", "status")
    progress_detail: ProgressDetail | None = omitempty(None, "progressDetail")
    progress: str = omitempty("", "progress")
    id: str = omitempty("", "id")
    error_detail: ErrorDetail | None = omitempty(None, "errorDetail")
    error: str = omitempty("", "error")
    aux: object = omitempty(None, "aux")


class DistributionInspect(Wire, frozen=True, kw_only=True):
    """What a registry holds under a name."""

    descriptor: Descriptor
    platforms: list[Platform] = always([])

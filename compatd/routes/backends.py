"""What the routes need from the engine, one small protocol per router (as moby's routers declare their backends).

Every method raises the kinds of ``compatd.errors`` with Docker's text. Values are wire types of the newest API
version: older versions are made of them at the edge.

Cancellation: a coroutine that changes state is run to its end even when its client hangs up. What moves a body, or
iterates, is cancelled with its client and cleans up then. Errors that an iterator raises before its first item become
a plain reply; later ones an ``errorDetail`` record.
"""

from collections.abc import AsyncIterable, AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from compatd.core.container import Container
from compatd.core.containers import LogRequest
from compatd.core.events import Event
from compatd.core.execs import Exec
from compatd.core.filters import Filters
from compatd.shim.spec import Attach
from compatd.wire.parameters import (
    BuildParameters,
    BuildPruneParameters,
    CommitParameters,
    ImportParameters,
    PullParameters,
)
from compatd.wire.streams import ClientSocket
from compatd.wire.types.build import BuildPruned
from compatd.wire.types.containers import (
    ContainerConfig,
    ContainerCreateRequest,
    ContainerCreateResponse,
    ContainerInspect,
    ContainersPruned,
    ContainerSummary,
    ExecCreateRequest,
    ExecInspect,
    FilesystemChange,
    PathStat,
    StatsResponse,
    TopResponse,
    UpdateRequest,
    UpdateResponse,
)
from compatd.wire.types.images import (
    DistributionInspect,
    HistoryItem,
    ImageDeleted,
    ImageInspect,
    ImagesPruned,
    ImageSummary,
    Platform,
    Progress,
)
from compatd.wire.types.networks import (
    Network,
    NetworkConnect,
    NetworkCreateRequest,
    NetworkCreateResponse,
    NetworkDisconnect,
    NetworksPruned,
)
from compatd.wire.types.system import AuthConfig, AuthResponse, DiskUsage, Info, Version
from compatd.wire.types.volumes import Volume, VolumeCreateRequest, VolumeList, VolumesPruned


class Containers(Protocol):
    """Containers by reference: id, prefix of an id, or name."""

    async def create(
        self,
        name: str | None,
        request: ContainerCreateRequest,
        platform: str | None,
        *,
        recursive_readonly: bool,
    ) -> ContainerCreateResponse:
        """``name`` as the client gave it; ``None`` for one that the engine makes up. ``recursive_readonly``: whether a
        bind is read-only with what is mounted below it."""
        ...

    async def listing(self, filters: Filters, *, all: bool, limit: int, size: bool) -> list[ContainerSummary]: ...

    async def inspect(self, reference: str, *, size: bool) -> ContainerInspect: ...

    async def start(self, reference: str) -> None: ...

    async def stop(self, reference: str, *, timeout_s: int | None, signal: str | None) -> None:
        """``timeout_s``: -1 waits for ever, ``None`` is the container's own."""
        ...

    async def restart(self, reference: str, *, timeout_s: int | None, signal: str | None) -> None: ...

    async def kill(self, reference: str, signal: str | None) -> None:
        """``signal``: a name or number, ``None`` for SIGKILL."""
        ...

    async def pause(self, reference: str) -> None: ...

    async def unpause(self, reference: str) -> None: ...

    async def rename(self, reference: str, new_name: str) -> None: ...

    async def remove(self, reference: str, *, force: bool, volumes: bool, link: bool) -> None: ...

    async def prune(self, filters: Filters) -> ContainersPruned: ...

    async def resize(self, reference: str, height: int, width: int) -> None: ...

    async def top(self, reference: str, ps_args: str) -> TopResponse: ...

    def check_wait(self, reference: str, condition: str) -> tuple[Container, int | None]:
        """(the container, its exit code if ``condition`` holds already)."""
        ...

    async def wait(self, container: Container, condition: str, socket: ClientSocket) -> None:
        """Take ``socket`` over: the result is written there (``wire.streams.wait_result``) when it is known."""
        ...

    def check_attach(self, reference: str) -> Container: ...

    async def attach(self, container: Container, attach: Attach | None, socket: ClientSocket) -> None:
        """Take ``socket`` over, now or at the next start; ``None``: only to close it."""
        ...

    def logs(self, reference: str, request: LogRequest) -> tuple[bool, AsyncIterator[bytes]]:
        """(whether there is a tty, the output: framed unless there is)."""
        ...


class Archives(Protocol):
    """Files of containers."""

    async def stat(self, reference: str, path: str) -> PathStat: ...

    async def get(self, reference: str, path: str) -> tuple[PathStat, AsyncIterator[bytes]]:
        """What ``path`` is, and its tar."""
        ...

    async def put(
        self,
        reference: str,
        path: str,
        body: AsyncIterable[bytes],
        *,
        no_overwrite_dir_non_dir: bool,
        copy_uid_gid: bool,
    ) -> None:
        """Unpack a tar, maybe compressed, into the directory ``path``."""
        ...

    async def changes(self, reference: str) -> list[FilesystemChange]: ...

    def export(self, reference: str) -> AsyncIterator[bytes]:
        """The whole root, volumes left out."""
        ...


class Updates(Protocol):
    """Changes of what containers may use."""

    async def update(self, reference: str, request: UpdateRequest) -> UpdateResponse: ...


class Commits(Protocol):
    """Images made from containers."""

    async def commit(self, parameters: CommitParameters, config: ContainerConfig | None) -> str:
        """The id of the image; ``config`` is for its containers, ``None`` for the container's own."""
        ...


class Statistics(Protocol):
    """What containers use."""

    def samples(self, reference: str, *, stream: bool, one_shot: bool) -> AsyncIterator[StatsResponse]:
        """One a second until the container ends, or a single one."""
        ...


class Execs(Protocol):
    """Processes added to running containers."""

    async def create(self, reference: str, request: ExecCreateRequest, detach_keys: bytes) -> Exec: ...

    def check_start(self, exec_id: str) -> Exec: ...

    async def start(
        self,
        exec: Exec,
        attach: Attach | None,
        socket: ClientSocket | None,
        console_size: tuple[int, int] | None,
    ) -> None:
        """Start it, detached without ``socket``, which is taken over when the process has started and only then."""
        ...

    async def resize(self, exec_id: str, height: int, width: int) -> None: ...

    async def inspect(self, exec_id: str) -> ExecInspect: ...


class Images(Protocol):
    """Images by reference: name, digest, id or prefix of an id."""

    async def listing(self, filters: Filters, *, all: bool, shared_size: bool) -> list[ImageSummary]: ...

    async def inspect(self, reference: str, platform: Platform | None) -> ImageInspect: ...

    async def history(self, reference: str, platform: Platform | None) -> list[HistoryItem]: ...

    async def tag(self, reference: str, repo: str, tag: str) -> None: ...

    async def remove(self, reference: str, *, force: bool, prune: bool) -> list[ImageDeleted]: ...

    async def prune(self, filters: Filters) -> ImagesPruned: ...


class Transfers(Protocol):
    """Images on their way in and out."""

    def pull(self, parameters: PullParameters) -> AsyncIterator[Progress]: ...

    def import_(self, parameters: ImportParameters, body: AsyncIterable[bytes]) -> AsyncIterator[Progress]: ...

    def load(
        self, body: AsyncIterable[bytes], *, quiet: bool, platform: Platform | None
    ) -> AsyncIterator[Progress]: ...

    def save(self, references: Sequence[str], platform: Platform | None) -> AsyncIterator[bytes]: ...


class Builds(Protocol):
    """The classic builder."""

    def build(self, parameters: BuildParameters, context: AsyncIterable[bytes]) -> AsyncIterator[Progress]:
        """``context``: the tar, maybe compressed; empty when ``remote`` names one."""
        ...

    async def prune(self, parameters: BuildPruneParameters) -> BuildPruned: ...


class Networks(Protocol):
    """Networks by reference: id, name or prefix of an id."""

    def listing(self, filters: Filters) -> list[Network]: ...

    def inspect(self, reference: str) -> Network: ...

    async def create(self, request: NetworkCreateRequest) -> NetworkCreateResponse: ...

    async def remove(self, reference: str) -> None: ...

    async def prune(self, filters: Filters) -> NetworksPruned: ...


class Connections(Protocol):
    """Containers joining and leaving networks, both by reference, running or not."""

    async def connect(self, reference: str, request: NetworkConnect) -> None: ...

    async def disconnect(self, reference: str, request: NetworkDisconnect) -> None: ...


class Volumes(Protocol):
    """Volumes by name."""

    def listing(self, filters: Filters) -> VolumeList: ...

    def inspect(self, name: str) -> Volume: ...

    async def create(self, request: VolumeCreateRequest) -> Volume: ...

    async def remove(self, name: str, *, force: bool) -> None: ...

    async def prune(self, filters: Filters, *, anonymous_only: bool) -> VolumesPruned:
        """``anonymous_only`` unless the filter ``all`` says otherwise (from API 1.42 on)."""
        ...


class System(Protocol):
    """The engine itself."""

    def version(self) -> Version: ...

    def info(self) -> Info: ...

    async def disk_usage(self, types: frozenset[str]) -> DiskUsage:
        """``types`` of container, image, volume, build-cache, empty for all; others stay ``None``."""
        ...


class Logins(Protocol):
    """Credentials tried at a registry."""

    async def login(self, credentials: AuthConfig) -> AuthResponse: ...


class Events(Protocol):
    """What happens."""

    def listen(self, *, since_ns: int | None, until_ns: int | None, filters: Filters | None) -> AsyncIterator[Event]:
        """Listening begins, and the filters are checked, with the call."""
        ...


class Distribution(Protocol):
    """What registries hold."""

    async def inspect(self, reference: str, auth: AuthConfig | None) -> DistributionInspect: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Backends:
    """Everything that answers requests. What is ``None`` is not there yet: its operations answer 501."""

    containers: Containers
    archives: Archives
    updates: Updates
    commits: Commits
    statistics: Statistics
    execs: Execs
    images: Images
    transfers: Transfers
    builds: Builds
    networks: Networks
    connections: Connections
    volumes: Volumes
    system: System
    logins: Logins
    events: Events
    distribution: Distribution | None = None

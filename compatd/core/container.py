"""One container: what is stored of it, and the handle that the running engine has on it.

``ContainerRecord`` is a value: it is replaced, never changed, and every replacement is committed before anyone is
told of it. ``Container`` is the one place where the current record, the shim and the waiting clients meet; whoever
changes it holds its lock, readers take ``record`` as it is.
"""

import asyncio
from dataclasses import dataclass, field

import msgspec

from compatd.core.health import Health
from compatd.core.lifecycle import ALIVE, State
from compatd.errors import Conflict, NotFound
from compatd.network.driver import Endpoint
from compatd.runtime.client import Shim
from compatd.shim.spec import Attach
from compatd.wire.streams import ClientSocket
from compatd.wire.types.containers import ContainerConfig, HostConfig
from compatd.wire.types.networks import EndpointSettings


class MountPoint(msgspec.Struct, frozen=True, kw_only=True):
    """A bind, volume, image or ``--mount`` tmpfs of a container, resolved: ``source`` is a path of the host, ``target``
    one of the container."""

    type: str
    source: str
    target: str
    readonly: bool = False
    readonly_recursive: bool = True
    propagation: str = ""
    mode: str = ""
    name: str = ""  # of the volume or image
    anonymous: bool = False
    unnamed: bool = False  # an anonymous volume of ``-v``, whose name inspect does not show
    copy_up: bool = True
    create_source: bool = False
    recursive: bool = True  # with what is mounted below the source
    readonly_forced: bool = False  # a kernel that cannot make that read-only is an error
    propagation_implied: bool = False  # not asked for: private where the source is not shared
    subpath: str = ""  # in the volume or image
    layers: tuple[str, ...] = ()  # diff ids of the image
    options: str = ""  # of the tmpfs


class Link(msgspec.Struct, frozen=True, kw_only=True):
    """The name ``alias`` for another container; ``target_name``: what that was called then."""

    target_id: str
    target_name: str
    alias: str


class ContainerRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What the engine remembers of a container. Times are nanoseconds since 1970, 0 meaning never."""

    id: str
    name: str
    created_ns: int
    image_id: str
    image: str  # as the client named it
    layers: tuple[str, ...]  # diff ids, bottom first
    config: ContainerConfig
    host_config: HostConfig
    networks: dict[str, EndpointSettings]
    mounts: tuple[MountPoint, ...] = ()
    state: State = State.CREATED
    pid: int = 0
    exit_code: int = 0
    error: str = ""
    oom_killed: bool = False
    started_ns: int = 0
    finished_ns: int = 0
    restart_count: int = 0
    stopped_by_user: bool = False  # a signal was sent to it: ``unless-stopped`` leaves it alone then
    ended_by_user: bool = False  # by a signal that ends it: until the next start, no policy starts it again
    links: tuple[Link, ...] = ()
    endpoints: dict[str, Endpoint] = {}  # by network name, while running
    health: Health | None = None  # once started with a check
    frozen_by_engine: bool = False  # while paused: for a commit, not by a user

    @property
    def short_id(self) -> str:
        return self.id[:12]

    @property
    def args(self) -> tuple[str, ...]:
        """The program and its arguments: entrypoint, then command."""
        return (*(self.config.entrypoint or ()), *(self.config.cmd or ()))


@dataclass(slots=True)
class PendingAttach:
    """A client that attached before the start; ``attach['fd']`` is filled in at launch."""

    attach: Attach
    socket: ClientSocket


@dataclass(slots=True)
class PendingWait:
    """A client that waits for something that no shim can tell it yet."""

    condition: str
    socket: ClientSocket


def _future() -> "asyncio.Future[object]":
    return asyncio.get_running_loop().create_future()


@dataclass(slots=True, eq=False)
class Container:
    """The live handle. ``ended`` is done at the end of each run and replaced at the next start: wait
    for it with ``asyncio.wait``, since awaiting it alone would cancel it for everyone.

    ``last_shim`` outlives ``shim``: it may still hold clients that wait for the removal.
    """

    record: ContainerRecord
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    shim: Shim | None = None
    last_shim: Shim | None = None
    restarting_by_user: bool = False
    stopping: bool = False  # someone waits for the end, and it is to be told as a stop
    is_removed: bool = False
    attaches: list[PendingAttach] = field(default_factory=list[PendingAttach])
    waits: list[PendingWait] = field(default_factory=list[PendingWait])
    ended: "asyncio.Future[object]" = field(default_factory=_future)
    restart_timer: asyncio.Task[None] | None = None
    backoff_s: float = 0.0

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def alive(self) -> bool:
        return self.record.state in ALIVE

    def running_shim(self) -> Shim:
        """The shim of a running container; ``Conflict`` in Docker's words otherwise."""
        if self.shim is None or not self.alive:
            raise not_running(self.id)
        return self.shim

    def begin_run(self) -> None:
        """Replace ``ended`` by one for the run that begins."""
        self.ended = _future()

    def end_run(self) -> None:
        """Tell whoever waits for the end."""
        if not self.ended.done():
            self.ended.set_result(None)

    def drop_clients(self) -> None:
        """Close whoever waits for a start that will not come."""
        sockets = [pending.socket for pending in self.attaches] + [pending.socket for pending in self.waits]
        for socket in sockets:
            socket.close()
        self.attaches.clear()
        self.waits.clear()


def no_such_container(reference: str) -> NotFound:
    """moby daemon/errors.go, containerNotFound."""
    return NotFound(f"No such container: {reference}")


def not_running(container_id: str) -> Conflict:
    """moby daemon/errors.go, errNotRunning."""
    return Conflict(f"container {container_id} is not running")


def is_paused(reference: str) -> Conflict:
    """moby daemon/exec.go, getExecConfig: as the client named it."""
    return Conflict(f"Container {reference} is paused, unpause the container before exec")


def is_restarting(container_id: str) -> Conflict:
    """moby daemon/errors.go, errContainerIsRestarting."""
    return Conflict(f"Container {container_id} is restarting, wait until the container is running")

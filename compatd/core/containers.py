"""All containers: made, found, listed, renamed, removed, waited for. What runs them is ``core.supervisor``."""

import contextlib
import logging
import os
import signal as signals
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass

import msgspec

from compatd import tasks
from compatd.config import Config
from compatd.core import (
    creation,
    defaults,
    endpoints,
    inspection,
    logs,
    mounts,
    names,
    selection,
    sharing,
    verification,
)
from compatd.core import filters as filtering
from compatd.core.container import (
    Container,
    ContainerRecord,
    MountPoint,
    is_restarting,
    no_such_container,
    not_running,
)
from compatd.core.filters import Filters
from compatd.core.images import Images, check_platform
from compatd.core.lifecycle import Event, State, advance
from compatd.core.networks import Networks
from compatd.core.preparation import Preparation
from compatd.core.store import Delete, Put, Store
from compatd.core.supervisor import Supervisor, answer_wait, parse_signal
from compatd.core.volumes import Volumes
from compatd.errors import Conflict, EngineError, InvalidParameter, SystemFailure, Unsupported, reword
from compatd.images.content import DiffId
from compatd.images.manifest import parse_platform
from compatd.linux.inotify import Watches
from compatd.logs.files import Follow, Selection
from compatd.logs.format import Rendering
from compatd.runtime import top
from compatd.runtime.host import Host
from compatd.shim.spec import Attach
from compatd.tasks import Workers
from compatd.wire.streams import ClientSocket
from compatd.wire.types.containers import (
    ContainerConfig,
    ContainerCreateRequest,
    ContainerCreateResponse,
    ContainerInspect,
    ContainersPruned,
    ContainerSummary,
    HostConfig,
    TopResponse,
)

log = logging.getLogger(__name__)

PRUNE_FILTERS = ("label", "label!", "until")
WAIT_CONDITIONS = ("", "not-running", "next-exit", "removed")


@dataclass(frozen=True, slots=True, kw_only=True)
class LogRequest:
    """Which part of a container's output, and how it is shown. Nanoseconds, 0 is no limit; ``tail`` None is all."""

    stdout: bool
    stderr: bool
    follow: bool = False
    timestamps: bool = False
    details: bool = False
    since_ns: int = 0
    until_ns: int = 0
    tail: int | None = None
    multiplexed: bool = True  # framed, unless there is a tty


class Containers:
    """Every container of the engine, in memory and in the store."""

    def __init__(
        self,
        *,
        config: Config,
        store: Store,
        images: Images,
        networks: Networks,
        volumes: Volumes,
        supervisor: Supervisor,
        preparation: Preparation,
        host: Host,
        workers: Workers,
        watches: Watches,
    ) -> None:
        self._config = config
        self._store = store
        self._images = images
        self._networks = networks
        self._volumes = volumes
        self._supervisor = supervisor
        self._preparation = preparation
        self._host = host
        self._workers = workers
        self._watches = watches
        self._making: dict[str, set[str]] = {}  # volumes of containers that are not there yet
        self._containers = {
            key: Container(msgspec.json.decode(raw, type=ContainerRecord)) for key, raw in store.load("containers")
        }
        self._names = {container.record.name: key for key, container in self._containers.items()}
        self.exec_ids: Callable[[Container], Sequence[str]] = lambda _: ()
        supervisor.on_ended.append(self._ended)
        images.in_use.append(self._users_of_image)
        images.mounted_by = self._mounters_of_image
        images.layers_in_use.append(self._layers)
        volumes.in_use = self._users_of_volume

    def __iter__(self) -> Iterator[Container]:
        return iter(list(self._containers.values()))

    # -------------------------------------------------------------------- find

    def get(self, reference: str) -> Container:
        """By id, name, or the beginning of an id, in this order (moby daemon/container.go, GetContainer)."""
        if not reference:
            raise InvalidParameter('invalid name or ID supplied: ""')
        bare = reference.removeprefix("/")
        if (container := self._containers.get(bare)) is not None:
            return container
        if (container_id := self._names.get(bare)) is not None:
            return self._containers[container_id]
        if "/" in bare:
            return self._containers[self._networks.links.resolve(reference)[1].target_id]
        found = names.find(bare, self._containers)
        if len(found) > 1:
            raise InvalidParameter(f"multiple IDs found with provided prefix: {bare}")
        if not found:
            raise no_such_container(reference)
        return self._containers[found[0]]

    # ------------------------------------------------------------------ create

    async def create(
        self,
        name: str | None,
        request: ContainerCreateRequest,
        platform: str | None = None,
        *,
        recursive_readonly: bool = True,
    ) -> ContainerCreateResponse:
        """Check and record a new container; nothing on the host is touched but the volumes it names.

        ``NotFound``: no such image. ``Conflict``: the name is taken. ``InvalidParameter``, ``Unsupported``: an option.
        """
        if request.config == ContainerConfig():
            raise InvalidParameter("config cannot be empty in order to create a container")
        wanted = parse_platform(platform) if platform else None
        host_config = request.host_config or HostConfig()
        verification.check_request(request, host_config, self._host)
        checked = verification.check_config(request.config)
        warnings = await self._workers.run(mounts.check_mounts, host_config)
        host_config, more_warnings = verification.check_host_config(host_config, self._host)
        warnings += more_warnings
        host_config = creation.complete_host_config(
            host_config,
            cgroup_version=self._host.cgroup.version,
            defaults=defaults.of(self._config),
        )
        host_config = sharing.resolve(host_config, self._record)
        image = self._images.get(request.image)
        check_platform(image, wanted, request.image)
        if name:
            name = names.check_container_name(name)
        container_id = names.new_id()
        config = creation.complete_config(
            checked,
            image.config,
            container_id,
            os.uname().nodename if host_config.network_mode == "host" else None,
        )
        host_config = self._networks.name_mode(host_config)
        networks = (
            {} if request.network_disabled else self._networks.check_request(host_config, request.networking_config)
        )
        links = self._networks.links.read(host_config)
        host_config = msgspec.structs.replace(host_config, links=None)
        config = msgspec.structs.replace(config, mac_address=endpoints.main_mac(networks, host_config.network_mode))
        parser = mounts.MountParser(self._config.data_root, recursive_readonly=recursive_readonly)
        points = await self._workers.run(parser.read, config, host_config, self._record)
        record = ContainerRecord(
            id=container_id,
            name=name or names.make_up(self._names),
            created_ns=time.time_ns(),
            image_id=image.id,
            image=request.image,
            layers=image.layers,
            config=config,
            host_config=host_config,
            networks=networks,
            links=links,
            mounts=points,
        )
        self._preparation.check(record)
        self._check_name_free(record.name)
        verification.check_storage(host_config)
        self._names[record.name] = container_id
        self._making[container_id] = {point.name for point in points}
        try:
            record = msgspec.structs.replace(record, mounts=await self._make_sources(record))
            await self._workers.run(self._preparation.populate, record)
            await self._store.commit(Put("containers", container_id, msgspec.json.encode(record)))
        except BaseException:
            del self._names[record.name]
            for volume in self._making.pop(container_id):
                await self._volumes.remove_unused(volume, anonymous_only=True)
            raise
        self._containers[container_id] = Container(record)
        del self._making[container_id]
        self._supervisor.publish(record, "create")
        return ContainerCreateResponse(id=container_id, warnings=warnings)

    def _check_name_free(self, name: str) -> None:
        if (owner := self._names.get(name)) is not None:
            raise Conflict(
                f'Conflict. The container name "/{name}" is already in use by container "{owner}".'
                " You have to remove (or rename) that container to be able to reuse that name."
            )

    def _record(self, reference: str) -> ContainerRecord:
        return self.get(reference).record

    async def _make_sources(self, record: ContainerRecord) -> tuple[MountPoint, ...]:
        """Its mounts with the volumes made and the images found."""
        asked = {mounts.clean_path(mount.target): mount.volume_options for mount in record.host_config.mounts or ()}
        making = self._making[record.id]
        points: list[MountPoint] = []
        for point in record.mounts:
            if point.type == "image" and not point.layers:
                image = self._images.get(point.name)
                point = msgspec.structs.replace(point, source=image.id, layers=image.layers)
            elif point.type == "volume" and not point.source:
                options = asked.get(point.target)
                driver = options.driver_config if options is not None else None
                volume = await self._volumes.ensure(
                    point.name or None,
                    anonymous=point.anonymous,
                    driver=driver.name if driver else "" if point.target in asked else record.host_config.volume_driver,
                    labels=(options.labels or None) if options is not None else None,
                    options=(driver.options or None) if driver is not None else None,
                )
                making.add(volume.name)
                point = msgspec.structs.replace(point, name=volume.name, source=self._volumes.path(volume.name))
            points.append(point)
        return tuple(points)

    # ----------------------------------------------------------- inspect, list

    async def inspect(self, reference: str, *, size: bool = False) -> ContainerInspect:
        """One container in full; sizes are counted only when asked for."""
        container = self.get(reference)
        sizes = await self._sizes(container.record) if size else None
        return inspection.inspect(
            container.record,
            paths=self._preparation.paths(container.id),
            networks=self._networks,
            sizes=sizes,
            exec_ids=self.exec_ids(container),
            layers=self._images.places(container.record.layers),
        )

    async def listing(
        self, filters: Filters, *, all: bool = False, limit: int = 0, size: bool = False
    ) -> list[ContainerSummary]:
        """Containers as ``docker ps`` shows them, newest first."""
        found = selection.select(self, filters, get=self.get, images=self._images, networks=self._networks)
        everything = all or limit > 0 or any(filters.get(key) for key in ("status", "exited", "since", "before"))
        selected = [container for container in found if everything or container.record.state in selection.RUNNING]
        selected.sort(key=lambda container: container.record.created_ns, reverse=True)
        if limit > 0:
            selected = selected[:limit]
        names: dict[str, str] = {}
        linked = self._networks.links.names()
        return [
            inspection.summarize(
                container.record,
                networks=self._networks,
                image_name=self._shown_image(container.record, names),
                linked=linked.get(container.id, ()),
                sizes=await self._sizes(container.record) if size else None,
            )
            for container in selected
        ]

    def _shown_image(self, record: ContainerRecord, known: dict[str, str]) -> str:
        """The name the container was made with, or the id once that name points elsewhere (moby daemon/list.go)."""
        if record.image not in known:
            try:
                known[record.image] = self._images.get(record.image).id
            except EngineError:
                known[record.image] = ""
        return record.image if known[record.image] == record.image_id else record.image_id

    async def _sizes(self, record: ContainerRecord) -> tuple[int, int]:
        """(bytes written by the container, bytes of the whole root)."""
        image = self._images.find(record.image_id)
        below = await self._images.size_bytes(image) if image else 0
        own = await self._workers.run(self._preparation.upper_size_bytes, record.id)
        return own, own + below

    # ----------------------------------------------------------- rename, remove

    async def rename(self, reference: str, new_name: str) -> None:
        """``Conflict`` when the new name is taken."""
        container = self.get(reference)
        old = container.record.name
        if not new_name or not reference:
            raise InvalidParameter("Neither old nor new names may be empty")
        new_name = new_name.removeprefix("/")
        if new_name == old:
            raise InvalidParameter("Renaming a container with the same name as its current name")
        async with container.lock:
            try:
                names.check_container_name("/" + new_name)
                self._check_name_free(new_name)
            except EngineError as error:
                raise reword(error, f"Error when allocating new name: {error}") from error
            self._names[new_name] = container.id
            old = container.record.name  # another request may have been quicker
            try:
                await self._supervisor.commit(container, msgspec.structs.replace(container.record, name=new_name))
            except BaseException:
                del self._names[new_name]
                raise
            del self._names[old]
        self._supervisor.publish(container.record, "rename", {"oldName": f"/{old}"})

    async def remove(self, reference: str, *, force: bool = False, volumes: bool = False, link: bool = False) -> None:
        """Remove; a running one only by ``force``. Directories follow later, off the reply's path."""
        container = self.get(reference)
        if link:
            await self._unlink(reference)
            return
        if container.record.state is State.REMOVING:
            raise Conflict(f"removal of container {reference} is already in progress")
        while not await self._remove(container, volumes=volumes):
            state = container.record.state
            if not force:
                why = f"is {state}: stop the container before removing or force remove"
                if state is State.PAUSED:
                    why = "is paused and must be unpaused first"
                raise Conflict(f'cannot remove container "{reference}": container {why}')
            await self._supervisor.force_end(container)

    async def _remove(self, container: Container, *, volumes: bool) -> bool:
        """Remove what does not run; False: it runs."""
        async with container.lock:
            record = container.record
            if record.id not in self._containers:
                return True
            if record.state in selection.RUNNING:
                return False
            container.record = msgspec.structs.replace(record, state=advance(record.state, Event.REMOVE))
            await self._store.commit(Delete("containers", record.id))
            del self._containers[record.id]
            container.is_removed = True
            self._names.pop(record.name, None)
        if volumes:
            for point in record.mounts:
                if point.type == "volume" and point.anonymous:
                    await self._volumes.remove_unused(point.name)
        self._supervisor.publish(record, "destroy")
        for pending in container.waits:
            answer_wait(pending.socket, record.exit_code)
        container.waits.clear()
        container.drop_clients()
        if container.last_shim is not None:
            with contextlib.suppress(SystemFailure):  # nobody waited for the removal, so it has ended
                await container.last_shim.removed()
        self._preparation.remove_later(record)
        if self._images.find(record.image_id) is None:
            await self._images.sweep([DiffId(layer) for layer in record.layers], [])
        for point in record.mounts:
            if point.type == "image" and self._images.find(point.source) is None:
                await self._images.sweep([DiffId(layer) for layer in point.layers], [])
        return True

    async def _unlink(self, reference: str) -> None:
        if "/" not in reference.removeprefix("/"):
            raise SystemFailure("Conflict, cannot remove the default link name of the container")
        parent = self._containers[self._networks.links.resolve(reference)[0].id]
        async with parent.lock:
            links = tuple(one for one in parent.record.links if one.alias != reference.rpartition("/")[2])
            await self._supervisor.commit(parent, msgspec.structs.replace(parent.record, links=links))

    def _ended(self, container: Container) -> None:
        ended = not container.alive and container.record.state is not State.RESTARTING
        if container.record.host_config.auto_remove and ended and not container.restarting_by_user:
            tasks.detach(self._remove(container, volumes=True), name=f"auto-remove {container.id[:12]}")

    async def prune(self, filters: Filters) -> ContainersPruned:
        """Remove every container that does not run."""
        filtering.check(filters, PRUNE_FILTERS)
        until = filtering.until_ns(filters)
        deleted: list[str] = []
        reclaimed = 0
        for container in self:
            record = container.record
            if record.state not in (State.CREATED, State.EXITED, State.DEAD):
                continue
            if until is not None and record.created_ns > until:
                continue
            if not filtering.passes_labels(filters, record.config.labels):
                continue
            own, _ = await self._sizes(record)
            if await self._remove(container, volumes=False):
                deleted.append(record.id)
                reclaimed += own
        self._supervisor.publish_prune("container", reclaimed)
        return ContainersPruned(containers_deleted=deleted or None, space_reclaimed=reclaimed)

    # ------------------------------------------------------------ start … wait

    async def start(self, reference: str) -> None:
        """See ``Supervisor.start``."""
        container = self.get(reference)
        if not container.alive and container.record.host_config.mounts:
            # As Docker, which looks at them again before it begins: what is wrong then is not the container's end.
            await self._workers.run(mounts.check_mounts, container.record.host_config)
        await self._supervisor.start(container)

    async def stop(self, reference: str, *, timeout_s: int | None = None, signal: str | None = None) -> None:
        """See ``Supervisor.stop``."""
        container = self.get(reference)
        try:
            await self._supervisor.stop(container, timeout_s=timeout_s, signal=signal)
        except InvalidParameter as error:
            raise SystemFailure(f"cannot stop container: {reference}: {error}") from error

    async def restart(self, reference: str, *, timeout_s: int | None = None, signal: str | None = None) -> None:
        """See ``Supervisor.restart``."""
        container = self.get(reference)
        try:
            await self._supervisor.restart(container, timeout_s=timeout_s, signal=signal)
        except EngineError as error:
            # moby has lost the kind on this way.
            raise SystemFailure(f"Cannot restart container {reference}: {error}") from error

    async def kill(self, reference: str, signal: str | None = None) -> None:
        """Send a signal, SIGKILL by default."""
        try:
            number = parse_signal(signal) if signal else 9
            if not 0 < number <= signals.SIGRTMAX:
                raise InvalidParameter(f"the linux daemon does not support signal {number}")
            await self._supervisor.kill(self.get(reference), number)
        except EngineError as error:
            raise reword(error, f"cannot kill container: {reference}: {error}") from error

    async def pause(self, reference: str) -> None:
        """See ``Supervisor.pause``."""
        await self._supervisor.pause(self.get(reference))

    async def unpause(self, reference: str) -> None:
        """See ``Supervisor.unpause``."""
        await self._supervisor.unpause(self.get(reference))

    def check_wait(self, reference: str, condition: str) -> tuple[Container, int | None]:
        """(the container, its exit code if ``condition`` holds already)."""
        if condition not in WAIT_CONDITIONS:
            raise InvalidParameter(f'invalid condition: "{condition}"')
        container = self.get(reference)
        settled = not container.alive and container.record.state is not State.RESTARTING
        if condition in ("", "not-running") and settled:
            return container, container.record.exit_code
        return container, None

    async def wait(self, container: Container, condition: str, socket: ClientSocket) -> None:
        """See ``Supervisor.wait``."""
        await self._supervisor.wait(container, condition or "not-running", socket)

    def check_attach(self, reference: str) -> Container:
        """The container, if clients can attach to it (moby daemon/attach.go, ContainerAttach)."""
        container = self.get(reference)
        state = container.record.state
        if state is State.PAUSED:
            raise Conflict(f"container {container.id} is paused, unpause the container before attach")
        if state is State.RESTARTING:
            raise Conflict(f"container {container.id} is restarting, wait until the container is running")
        return container

    async def attach(self, container: Container, attach: Attach | None, socket: ClientSocket) -> None:
        """See ``Supervisor.attach``."""
        await self._supervisor.attach(container, attach, socket)

    async def resize(self, reference: str, height: int, width: int) -> None:
        """Size of the terminal of a running container."""
        container = self.get(reference)
        await container.running_shim().resize(height, width)
        self._supervisor.publish(container.record, "resize", {"height": str(height), "width": str(width)})

    # -------------------------------------------------------------- logs, top

    def logs(self, reference: str, request: LogRequest) -> tuple[bool, AsyncIterator[bytes]]:
        """(whether there is a tty, the output: framed unless there is), following while it runs if asked to."""
        if not request.stdout and not request.stderr:
            raise InvalidParameter("Bad parameters: you must choose at least one stream")
        container = self.get(reference)
        if container.record.state in (State.REMOVING, State.DEAD):
            raise Conflict("can not get logs from container which is dead or marked for removal")
        record = container.record
        path = logs.log_path(record, self._preparation.paths(record.id))
        if path is None:
            raise Unsupported("configured logging driver does not support reading")
        if not container.alive:
            logs.check_options(record, self._preparation.paths(record.id))
        rendering = Rendering(
            stdout=request.stdout,
            stderr=request.stderr,
            timestamps=request.timestamps,
            details=request.details,
            framed=request.multiplexed and not record.config.tty,
        )
        selection = Selection(since_ns=request.since_ns, until_ns=request.until_ns, tail=request.tail)
        follow = Follow(watches=self._watches, stopped=container.ended) if request.follow and container.alive else None
        driver = record.host_config.log_config.type
        pieces = logs.read(
            path, driver, selection, rendering, workers=self._workers, running=container.alive, follow=follow
        )
        return record.config.tty, pieces

    async def top(self, reference: str, ps_args: str) -> TopResponse:
        """The processes of a running container, as ``ps`` prints them."""
        top.check(ps_args)
        container = self.get(reference)
        if container.record.state is State.RESTARTING:
            raise is_restarting(container.id)
        if not container.alive:
            raise not_running(container.id)
        response = await self._workers.run(self._preparation.top, container.record, ps_args)
        self._supervisor.publish(container.record, "top")
        return response

    # ------------------------------------------------------------------- users

    def _users_of_image(self, image_id: str) -> list[tuple[str, bool]]:
        return [(c.id, c.alive) for c in self._containers.values() if c.record.image_id == image_id]

    def _mounters_of_image(self, image_id: str) -> list[str]:
        return [
            c.id
            for c in self._containers.values()
            if any(point.type == "image" and point.source == image_id for point in c.record.mounts)
        ]

    def _users_of_volume(self, name: str) -> list[str]:
        return [
            c.id
            for c in self._containers.values()
            if any(point.type == "volume" and point.name == name for point in c.record.mounts)
        ] + [container_id for container_id, names in self._making.items() if name in names]

    def _layers(self) -> set[str]:
        records = [c.record for c in self._containers.values()]
        mounted = {layer for record in records for point in record.mounts for layer in point.layers}
        return mounted | {layer for record in records for layer in record.layers}

    def count(self, *states: State) -> int:
        """How many are in one of ``states``."""
        return sum(c.record.state in states for c in self._containers.values())

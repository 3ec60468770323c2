"""Images made from containers: ``docker commit``.

The container goes on using its writable layer, so what the image gets is a copy of it. The container is frozen while
that is read, unless the client does not want it, and no longer. An engine that is killed meanwhile leaves nothing of
the image; the next one lets a container go on that it finds frozen for a commit (``ContainerRecord.frozen_by_engine``).
"""

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass

import msgspec

from compatd import tasks
from compatd.core import creation
from compatd.core.container import Container
from compatd.core.containers import Containers
from compatd.core.images import Image, Images, read_name
from compatd.core.lifecycle import State
from compatd.core.preparation import Preparation
from compatd.core.supervisor import Supervisor
from compatd.errors import Conflict, EngineError, NotFound
from compatd.images.content import DiffId
from compatd.images.layers import LayerStore
from compatd.images.manifest import History, ImageConfig, RootFs, RunConfig, encode_config
from compatd.tasks import Workers
from compatd.wire.parameters import CommitParameters
from compatd.wire.times import format_time
from compatd.wire.types.containers import ContainerConfig


@dataclass(slots=True, kw_only=True)
class Commits:
    """The commit operation of the API."""

    containers: Containers
    supervisor: Supervisor
    preparation: Preparation
    images: Images
    layers: LayerStore
    workers: Workers

    async def commit(self, parameters: CommitParameters, config: ContainerConfig | None) -> str:
        """Make an image of a container; its id. ``config``: for its containers, instead of this container's.

        ``NotFound``: no such container, or its image is gone. ``InvalidParameter``: a bad name or change. ``Conflict``:
        the container is being removed. ``SystemFailure``: the disk is full.
        """
        name = read_name(parameters.repo, parameters.tag)
        container = self.containers.get(parameters.container)
        record = container.record
        if record.state is State.DEAD:
            raise Conflict(f"You cannot commit container {record.id} which is Dead")
        if record.state is State.REMOVING:
            raise being_removed(record.id)
        with self._leased() as hold:
            for below in record.layers:
                hold(below)
            frozen = parameters.pause and await self._freeze(container)
            try:
                own = _run_config(record.config)
                chosen = _run_config(config) if config is not None else own
                if parameters.changes:
                    from compatd.core.changes import apply_changes  # it brings the builder along

                    chosen = apply_changes(chosen, parameters.changes)
                merged = creation.merge_image_config(_container_config(chosen), ImageConfig(config=own))
                parent = self.images.find(record.image_id)
                if parent is None:
                    raise NotFound(f"failed to get digest {record.image_id}: no such file or directory")
                diff_id = await self._copy(container)
                if diff_id is not None:
                    hold(diff_id)
            finally:
                if frozen:
                    frozen = await self._thaw(container)
            document = _child(parent, own, _run_config(merged), parameters, record.id, diff_id)
            image = await self.images.add(encode_config(document), parent=parent.id, names=[name] if name else [])
        self.images.publish("create", image, image.id)
        if name is not None:
            self.images.publish("tag", image, name.familiar)
        told = {"comment": parameters.comment, "imageID": image.id, "imageRef": name.familiar if name else ""}
        self.supervisor.publish(container.record, "commit", told)
        if frozen:
            self.supervisor.publish(container.record, "unpause")  # as late as Docker's, though not the thawing
        if diff_id is not None:
            # It is to survive a power failure too, but nobody waits for the disk.
            tasks.detach(self.workers.run(self.layers.settle, [diff_id]), name="settle a commit")
        return image.id

    async def _copy(self, container: Container) -> DiffId | None:
        """The writable layer as a layer of an image; ``None`` if nothing was written."""
        diff_id = await self.workers.run(self.preparation.copy_upper, container.record)
        if container.is_removed:  # and its files with it, maybe before they were read
            raise being_removed(container.id)
        return diff_id

    async def _freeze(self, container: Container) -> bool:
        """Whether it runs, and has been frozen."""
        try:
            await self.supervisor.pause(container, by_engine=True)
        except Conflict:  # it does not run, or is frozen already (moby daemon/commit.go)
            return False
        return True

    async def _thaw(self, container: Container) -> bool:
        """Whether that was necessary."""
        try:
            await self.supervisor.thaw(container)
        except EngineError:  # somebody else did, or it has ended
            return False
        return True

    @contextmanager
    def _leased(self) -> Generator[Callable[[str], None]]:
        """A function that keeps a layer from being swept; what no image took goes at the end."""
        held = set[str]()
        try:
            with self.images.lease() as held:
                yield held.add
        finally:
            if leftovers := held - self.images.live_layers():
                self.images.sweep_later([DiffId(item) for item in leftovers], [])


def being_removed(container_id: str) -> Conflict:
    """moby daemon/commit.go, CreateImageFromContainer."""
    return Conflict(f"You cannot commit container {container_id} which is being removed")


def _child(
    parent: Image,
    own: RunConfig,
    config: RunConfig,
    parameters: CommitParameters,
    container_id: str,
    diff_id: DiffId | None,
) -> ImageConfig:
    """moby daemon/internal/image/image.go, NewChildImage."""
    created = format_time(time.time_ns())
    step = History(
        created=created,
        created_by=" ".join(own.cmd or ()),
        author=parameters.author,
        comment=parameters.comment,
        empty_layer=diff_id is None,
    )
    return ImageConfig(
        architecture=parent.config.architecture,
        author=parameters.author,
        config=config,
        container=container_id,
        container_config=own,
        created=created,
        docker_version="28.5.2",
        history=[*parent.config.history, step],
        os=parent.config.os,
        os_features=parent.config.os_features,
        os_version=parent.config.os_version,
        rootfs=RootFs(diff_ids=[*parent.layers, *([diff_id] if diff_id else [])]),
        variant=parent.config.variant,
    )


def _run_config(config: ContainerConfig) -> RunConfig:
    return msgspec.convert(msgspec.to_builtins(config), RunConfig)


def _container_config(config: RunConfig) -> ContainerConfig:
    document: dict[str, object] = msgspec.to_builtins(config)
    return msgspec.convert({key: value for key, value in document.items() if value is not None}, ContainerConfig)

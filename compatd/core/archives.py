"""Files of containers, in and out: ``docker cp``.

The tree that is shown is the container's root with its binds and volumes, put together apart from the container
(``linux.assembly``), so that nothing is mounted where a container or the host could see it.
"""

import contextlib
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Generator, Iterator
from typing import TypeVar, cast

from compatd.core import bodies
from compatd.core.container import Container
from compatd.core.containers import Containers
from compatd.core.preparation import Preparation
from compatd.core.supervisor import Supervisor
from compatd.errors import SystemFailure
from compatd.images import filesystem
from compatd.images.tar import BadArchive
from compatd.linux.assembly import Assembly
from compatd.tasks import Workers
from compatd.wire.times import format_time
from compatd.wire.types.containers import FilesystemChange, PathStat

T = TypeVar("T")


class Archives:
    """The archive operations of the API."""

    def __init__(
        self, *, containers: Containers, supervisor: Supervisor, preparation: Preparation, workers: Workers
    ) -> None:
        self._containers = containers
        self._supervisor = supervisor
        self._preparation = preparation
        self._workers = workers

    async def stat(self, reference: str, path: str) -> PathStat:
        """What is at ``path``. ``NotFound`` in Docker's words."""
        container = self._containers.get(reference)

        def look() -> filesystem.PathStat:
            with self._assemble(container) as tree:
                return filesystem.stat_path(tree.root, path, container=reference)

        with self._volumes_in_use(container):
            return _path_stat(await self._workers.run(look))

    async def get(self, reference: str, path: str) -> tuple[PathStat, AsyncIterator[bytes]]:
        """What ``path`` is, and its tar, which is read while it is consumed."""
        container = self._containers.get(reference)

        def start() -> tuple[filesystem.PathStat, _Tree]:
            tree = self._assemble(container)
            try:
                found, pieces = filesystem.tar_path(tree.root, path, container=reference)
            except BaseException:
                tree.close()
                raise
            return found, _Tree(tree, pieces)

        with contextlib.ExitStack() as stack:
            stack.enter_context(self._volumes_in_use(container))
            found, pieces = await bodies.acquire(start, lambda started: started[1].close(), self._workers)
            self._supervisor.publish(container.record, "archive-path")
            rest = stack.pop_all()
        return _path_stat(found), _ending(bodies.produce(lambda: pieces, self._workers), rest)

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
        container = self._containers.get(reference)
        owner = None
        if copy_uid_gid and container.record.config.user:
            owner = await self._workers.run(self._preparation.owner_of, container.record)

        def unpack(stream: bodies.Feed) -> None:
            with self._assemble(container) as tree:
                tree.run(
                    lambda: filesystem.extract(
                        tree.root,
                        path,
                        stream,
                        container=reference,
                        keep_kinds=no_overwrite_dir_non_dir,
                        owner=owner,
                    )
                )

        with self._volumes_in_use(container):
            try:
                await bodies.consume(body, unpack, self._workers)
            except BadArchive as error:
                raise SystemFailure(str(error)) from error  # Docker blames itself for what is wrong with an archive
            self._supervisor.publish(container.record, "extract-to-dir")

    async def changes(self, reference: str) -> list[FilesystemChange]:
        """What a container has changed in its image: ``docker diff``."""
        container = self._containers.get(reference)
        found = await self._workers.run(self._preparation.changes, container.record)
        return [FilesystemChange(path=change.path, kind=int(change.kind)) for change in found]

    def export(self, reference: str) -> AsyncIterator[bytes]:
        """The whole root as a tar, volumes left out: ``docker export``."""
        container = self._containers.get(reference)
        pid = container.record.pid if container.alive else 0

        def start() -> Iterator[bytes]:
            tree = self._preparation.assemble(container.record, pid, mounts=False)
            return _Tree(tree, filesystem.export(tree.root))

        self._supervisor.publish(container.record, "export")
        return bodies.produce(start, self._workers)

    @contextlib.contextmanager
    def _volumes_in_use(self, container: Container) -> Generator[None]:
        """Docker mounts a container's volumes for every look at its files, and tells of it."""
        record = container.record
        self._supervisor.publish_mounts(record)
        try:
            yield
        finally:
            self._supervisor.publish_unmounts(record)

    def _assemble(self, container: Container) -> Assembly:
        pid = container.record.pid if container.alive else 0
        return self._preparation.assemble(container.record, pid)


async def _ending(pieces: AsyncIterator[bytes], stack: contextlib.ExitStack) -> AsyncIterator[bytes]:
    """``pieces``, and then, or when they are given up, the end of ``stack``."""
    with stack:
        async with contextlib.aclosing(cast(AsyncGenerator[bytes], pieces)):
            async for piece in pieces:
                yield piece


class _Tree:
    """Pieces that are read from a tree, which is closed with them, even if none was asked for."""

    def __init__(self, tree: Assembly, pieces: Generator[bytes]) -> None:
        self._tree = tree
        self._pieces = pieces

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        return next(self._pieces)

    def close(self) -> None:
        """Not while a piece is being read."""
        self._pieces.close()
        self._tree.close()


def _path_stat(found: filesystem.PathStat) -> PathStat:
    return PathStat(
        name=found.name,
        size=found.size_bytes,
        mode=found.mode,
        mtime=format_time(found.mtime_ns),
        link_target=found.link_target,
    )

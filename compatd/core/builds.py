"""Builds: the classic builder's requests, and its cache.

A build holds everything it has made by a lease until an image refers to it. Cache records name images; one whose image
is gone is forgotten when it is met.

    <data-root>/build/    the contexts of running builds, in files without a name: nothing of them survives a crash
"""

import asyncio
import os
from collections.abc import AsyncIterable, AsyncIterator, Callable, Generator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from compatd import tasks
from compatd.config import Config
from compatd.core import bodies, defaults, progress
from compatd.core.images import Images
from compatd.core.networks import Networks
from compatd.core.preparation import Preparation
from compatd.core.store import Delete, Store
from compatd.core.transfers import Transfers
from compatd.core.volumes import Volumes
from compatd.errors import InvalidParameter, Unsupported
from compatd.images import tar
from compatd.images.content import DiffId
from compatd.images.layers import LayerStore
from compatd.images.manifest import Platform, host_platform, parse_platform
from compatd.images.reference import parse_normalized
from compatd.runtime.client import Spawner
from compatd.runtime.host import Host
from compatd.tasks import Workers
from compatd.wire.parameters import BuildParameters, BuildPruneParameters
from compatd.wire.types.build import BuildCacheRecord, BuildPruned
from compatd.wire.types.containers import HostConfig, Ulimit
from compatd.wire.types.images import ErrorDetail, Progress

MAX_CONTEXT_BYTES = 1 << 40


class CacheRecord(msgspec.Struct, frozen=True, kw_only=True):
    """The image that a step made."""

    image_id: str
    created_ns: int


class Builds:
    """Owns the build cache and the directory of running builds' contexts."""

    def __init__(
        self,
        *,
        config: Config,
        store: Store,
        host: Host,
        images: Images,
        transfers: Transfers,
        layers: LayerStore,
        preparation: Preparation,
        networks: Networks,
        volumes: Volumes,
        spawner: Spawner,
        workers: Workers,
    ) -> None:
        self._config = config
        self._store = store
        self._host = host
        self._images = images
        self._transfers = transfers
        self._layers = layers
        self._preparation = preparation
        self._networks = networks
        self._volumes = volumes
        self._spawner = spawner
        self._workers = workers
        self._workspace = Path(config.data_root) / "build"
        self._workspace.mkdir(mode=0o700, exist_ok=True)
        self._cache = {key: msgspec.json.decode(raw, type=CacheRecord) for key, raw in store.load("builds")}

    # ------------------------------------------------------------------- build

    def build(self, parameters: BuildParameters, context: AsyncIterable[bytes]) -> AsyncIterator[Progress]:
        """Build an image by the classic builder. What comes first is read before anything is put out."""
        check(parameters)
        tags = tuple(dict.fromkeys(_tag(text) for text in parameters.tags))
        wanted = parse_platform(parameters.platform) if parameters.platform else None

        async def work(report: Callable[[Progress], None]) -> None:
            fd = os.open(self._workspace, os.O_RDWR | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
            try:
                await bodies.consume(context, lambda stream: _spool(stream, fd), self._workers)
                await self._build(parameters, tags, wanted, fd, report)
            finally:
                # The last close frees the file, which takes a while for a large context.
                await asyncio.shield(tasks.spawn(self._workers.run(os.close, fd), name="close build context"))

        return progress.stream(work, name="build")

    async def _build(
        self,
        parameters: BuildParameters,
        tags: tuple[str, ...],
        wanted: Platform | None,
        context_fd: int,
        report: Callable[[Progress], None],
    ) -> None:
        # Only now: see core.builder.
        from compatd.builder import ports, solve
        from compatd.core import builder
        from compatd.core.runner import StepRunner

        request = solve.BuildRequest(
            context_fd=context_fd,
            workspace=self._workspace,
            host=builder.builder_platform(host_platform()),
            dockerfile=parameters.dockerfile or solve.DEFAULT_DOCKERFILE,
            tags=tags,
            build_args=parameters.args,
            labels=parameters.labels,
            target=parameters.target,
            platform=builder.builder_platform(wanted) if wanted else None,
            no_cache=parameters.no_cache,
            pull=parameters.pull,
            remove=parameters.remove,
            force_remove=parameters.force_remove,
            quiet=parameters.quiet,
            engine_version="28.5.2",
        )
        with self._leased() as hold:
            runner = StepRunner(
                host_config=build_host_config(parameters),
                preparation=self._preparation,
                networks=self._networks,
                volumes=self._volumes,
                layers=self._layers,
                hold=hold,
                spawner=self._spawner,
                workers=self._workers,
                cgroup_version=self._host.cgroup.version,
                defaults=defaults.of(self._config),
            )
            engine = solve.Ports(
                images=builder.BuildImages(self._images, self._transfers, self._layers, parameters.auths),
                cache=builder.BuildCache(self._cache, self._store, self._images),
                layers=builder.BuildLayers(self._layers, hold),
                runner=runner,
                fetcher=builder.BuildFetcher(self._transfers),
                archives=builder.BuildArchives(),
                workers=self._workers,
            )
            try:
                image_id = await solve.build(request, engine, lambda event: report(builder.progress_of(event)))
                self._settle_later(image_id)
            except ports.CommandFailed as error:
                report(Progress(error_detail=ErrorDetail(code=error.code, message=str(error)), error=str(error)))

    def _settle_later(self, image_id: str) -> None:
        """See that what was built survives a power failure, too, without making the client wait for the disk."""
        image = self._images.find(image_id)
        if image is not None:
            tasks.detach(self._workers.run(self._layers.settle, image.layers), name="settle a built image")

    @contextmanager
    def _leased(self) -> Generator[Callable[[str], None]]:
        """Keeps the layers of unfinished steps; those that no image took go at the end."""
        held = set[str]()
        try:
            with self._images.lease() as held:
                yield held.add
        finally:
            self._images.sweep_later([DiffId(item) for item in held], [])

    # ------------------------------------------------------------------- cache

    async def prune(self, parameters: BuildPruneParameters) -> BuildPruned:
        """Forget which step made which image. The images themselves are ``image prune``'s."""
        for key in parameters.filters:
            raise InvalidParameter(f"failed to prune build cache: invalid filter '{key}'")
        forgotten = list(self._cache)
        await self._store.commit(*(Delete("builds", key) for key in forgotten))
        self._cache.clear()
        self._images.publish_cache_prune()
        return BuildPruned(caches_deleted=None, space_reclaimed=0)

    def cache_records(self) -> list[BuildCacheRecord]:
        """The records that are not images: none, for the classic builder caches by images alone."""
        return []

    async def sweep(self) -> None:
        """Forget records of images that are gone. At start."""
        dead = [key for key, record in self._cache.items() if self._images.find(record.image_id) is None]
        if dead:
            await self._store.commit(*(Delete("builds", key) for key in dead))
        for key in dead:
            del self._cache[key]


def check(parameters: BuildParameters) -> None:
    """``Unsupported`` for what the classic builder here does not have; ``InvalidParameter`` for nonsense."""
    if parameters.version == "2":
        raise Unsupported("BuildKit builds are not supported by this engine: set DOCKER_BUILDKIT=0")
    if parameters.remote:
        raise Unsupported("building from a remote context is not supported by this engine: send the context")
    if parameters.squash:
        raise InvalidParameter("squash is only supported with experimental mode")
    if parameters.outputs:
        raise Unsupported("the --output option is not supported by the classic builder")
    # ``cache_from`` names further images where steps may be found: without them a build is slower, not another.
    if parameters.isolation not in ("", "default"):
        raise InvalidParameter(f'unsupported isolation: "{parameters.isolation}"')
    if parameters.security_opt:
        raise InvalidParameter("security options are not supported on linux")


def build_host_config(parameters: BuildParameters) -> HostConfig:
    """The limits, network and hosts of a build's steps, as for a container."""
    return HostConfig(
        memory=parameters.memory,
        memory_swap=parameters.memory_swap,
        cpu_shares=parameters.cpu_shares,
        cpu_period=parameters.cpu_period,
        cpu_quota=parameters.cpu_quota,
        cpuset_cpus=parameters.cpuset_cpus,
        cpuset_mems=parameters.cpuset_mems,
        cgroup_parent=parameters.cgroup_parent,
        shm_size=parameters.shm_size,
        network_mode=parameters.network_mode,
        extra_hosts=list(parameters.extra_hosts),
        ulimits=[Ulimit(name=name, soft=soft, hard=hard) for name, soft, hard in parameters.ulimits],
    )


def _tag(text: str) -> str:
    reference = parse_normalized(text)
    if reference.digest is not None:
        raise InvalidParameter("build tag cannot contain a digest")
    return reference.with_default_tag().familiar


def _spool(stream: bodies.Feed, fd: int) -> None:
    size = 0
    while piece := stream.read(1 << 20):
        size += len(piece)
        if size > MAX_CONTEXT_BYTES:
            raise InvalidParameter("the build context is too large")
        tar.write_all(fd, piece)
    os.lseek(fd, 0, os.SEEK_SET)

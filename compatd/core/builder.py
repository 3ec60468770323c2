"""The engine as the classic builder sees it: ``builder.ports`` over images, layers and the build cache.

Apart from ``core.builds``, for this module and the builder cost two megabytes and 35 ms, and an engine that builds
nothing need not load them.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import BinaryIO, cast

import msgspec

from compatd.builder import ports
from compatd.core.builds import CacheRecord
from compatd.core.images import Image, Images
from compatd.core.store import Put, Store
from compatd.core.transfers import Transfers
from compatd.errors import InvalidParameter, NotFound
from compatd.images import compression, tar
from compatd.images.content import DiffId
from compatd.images.credentials import registry_domain
from compatd.images.layers import LayerStore
from compatd.images.manifest import Platform, platform_of
from compatd.images.reference import Reference, parse_normalized
from compatd.wire.types.images import Progress
from compatd.wire.types.system import AuthConfig


def progress_of(event: ports.BuildEvent) -> Progress:
    """What the client is told of it."""
    match event:
        case ports.Stream(text):
            return Progress(stream=text)
        case ports.Aux(image_id):
            return Progress(aux={"ID": image_id})
        case ports.Record(fields):
            return cast(Progress, fields["progress"])


def builder_platform(platform: Platform) -> ports.Platform:
    """The builder's word for a platform."""
    return ports.Platform(platform.os, platform.architecture, platform.variant)


class BuildImages:
    """``builder.ports.Images``: the images of the engine, pulled when they are missing."""

    def __init__(
        self,
        images: Images,
        transfers: Transfers,
        layers: LayerStore,
        auths: "dict[str, AuthConfig] | object",
    ) -> None:
        self._images = images
        self._transfers = transfers
        self._layers = layers
        self._auths = auths

    async def resolve(
        self, name: str, *, platform: ports.Platform | None, pull: bool, output: ports.Output
    ) -> ports.Base:
        """See ``builder.ports.Images``."""
        wanted = (
            Platform(os=platform.os, architecture=platform.architecture, variant=platform.variant) if platform else None
        )
        image: Image | None = None
        if not pull:
            try:
                image = self._images.get(name)
            except NotFound:
                image = None
            if image is not None and wanted and platform_of(image.config) not in wanted.compatible():
                image = None
        if image is None:
            reference = parse_normalized(name).with_default_tag()
            image = await self._transfers.pull_image(
                reference, wanted, self._auth(reference), lambda item: output(ports.Record({"progress": item}))
            )
        return ports.Base(image_id=image.id, document=image.record.raw)

    def _auth(self, reference: Reference) -> AuthConfig | None:
        for address, auth in cast("dict[str, AuthConfig]", self._auths).items():
            with contextlib.suppress(InvalidParameter):
                if registry_domain(address) == reference.domain:
                    return auth
        return None

    async def read(self, image_id: str) -> ports.Base:
        """See ``builder.ports.Images``."""
        image = self._images.find(image_id)
        if image is None:
            raise NotFound(f"No such image: {image_id}")
        return ports.Base(image_id=image.id, document=image.record.raw)

    async def create(self, document: bytes, *, parent: str) -> str:
        """See ``builder.ports.Images``."""
        image = await self._images.add(document, parent=parent)
        self._images.publish("create", image, image.id)
        return image.id

    async def tag(self, image_id: str, reference: str) -> None:
        """See ``builder.ports.Images``."""
        image = self._images.find(image_id)
        if image is None:
            raise NotFound(f"No such image: {image_id}")
        await self._images.tag(image, parse_normalized(reference))


class BuildCache:
    """``builder.ports.Cache`` over the store's table."""

    def __init__(self, records: dict[str, CacheRecord], store: Store, images: Images) -> None:
        self._records = records
        self._store = store
        self._images = images

    async def lookup(self, key: str) -> str | None:
        """See ``builder.ports.Cache``."""
        record = self._records.get(key)
        if record is None or self._images.find(record.image_id) is None:
            return None
        return record.image_id

    async def record(self, key: str, image_id: str) -> None:
        """See ``builder.ports.Cache``."""
        record = CacheRecord(image_id=image_id, created_ns=time.time_ns())
        await self._store.commit(Put("builds", key, msgspec.json.encode(record)))
        self._records[key] = record


class BuildLayers:
    """``builder.ports.Layers``: the layer store, holding what a build makes."""

    def __init__(self, layers: LayerStore, hold: Callable[[str], object]) -> None:
        self._layers = layers
        self._hold = hold

    def mount(self, diff_ids: Sequence[str]) -> int:
        """See ``builder.ports.Layers``."""
        return self._layers.mount([DiffId(diff_id) for diff_id in diff_ids])

    def apply(self, stream: ports.Readable) -> str:
        """See ``builder.ports.Layers``."""
        diff_id = str(self._layers.apply(stream))
        self._hold(diff_id)
        return diff_id


class BuildArchives:
    """``builder.ports.Archives``: the engine's tar codec."""

    def read(self, file: BinaryIO) -> Iterator[tuple[ports.TarEntry, int]]:
        """See ``builder.ports.Archives``."""
        for entry, offset in tar.members(file):
            yield ports.TarEntry(*entry), offset

    def header(self, entry: ports.TarEntry) -> bytes:
        """See ``builder.ports.Archives``."""
        return tar.encode(tar.Entry(*entry))

    def is_tar(self, block: bytes) -> bool:
        """See ``builder.ports.Archives``."""
        return tar.looks_like_tar(block)

    def is_compressed(self, head: bytes) -> bool:
        """See ``builder.ports.Archives``."""
        return compression.is_compressed(head)

    def decompress(self, stream: ports.Readable) -> ports.Readable:
        """See ``builder.ports.Archives``."""
        return compression.decompressed(stream)


class BuildFetcher:
    """``builder.ports.Fetcher``: the engine's client of registries, which has the proxies and the certificates."""

    def __init__(self, transfers: Transfers) -> None:
        self._transfers = transfers

    async def fetch(self, url: str, into: int, output: ports.Output) -> ports.Fetched:
        """See ``builder.ports.Fetcher``."""
        head = await self._transfers.download(url, into, lambda item: output(ports.Record({"progress": item})))
        return ports.Fetched(
            content_disposition=head.get("Content-Disposition", ""), last_modified=head.get("Last-Modified", "")
        )

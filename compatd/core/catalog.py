"""The image operations of the API that move no bytes: list, inspect, history, tag, remove, prune."""

from collections.abc import Callable, Iterable

from compatd.core import filters as filtering
from compatd.core import image_reports
from compatd.core.filters import Filters
from compatd.core.images import PRUNE_FILTERS, Images, check_platform
from compatd.core.transfers import wire_platform
from compatd.errors import Conflict, InvalidParameter, SystemFailure
from compatd.images.reference import parse_normalized
from compatd.wire.types.images import (
    HistoryItem,
    ImageDeleted,
    ImageInspect,
    ImagesPruned,
    ImageSummary,
    Platform,
)


class Catalog:
    """Images by reference, as clients see them. ``users``: the image id of every container."""

    def __init__(self, *, images: Images, users: Callable[[], Iterable[str]]) -> None:
        self._images = images
        self._users = users

    async def listing(self, filters: Filters, *, all: bool, shared_size: bool) -> list[ImageSummary]:
        """``GET /images/json``."""
        return await image_reports.list_images(
            self._images, filters, all=all, shared_size=shared_size, users=self._users()
        )

    async def inspect(self, reference: str, platform: Platform | None) -> ImageInspect:
        """``GET /images/{name}/json``."""
        image = self._images.get(reference)
        check_platform(image, wire_platform(platform), reference)
        return await image_reports.inspect_image(self._images, image)

    async def history(self, reference: str, platform: Platform | None) -> list[HistoryItem]:
        """``GET /images/{name}/history``."""
        image = self._images.get(reference)
        check_platform(image, wire_platform(platform), reference)
        return await image_reports.image_history(self._images, image)

    async def tag(self, reference: str, repo: str, tag: str) -> None:
        """Point ``repo:tag`` at an image; ``InvalidParameter`` in Docker's words."""
        image = self._images.get(reference)
        name = parse_normalized(repo)
        if name.digest is not None:
            raise InvalidParameter("refusing to create a tag with a digest reference")
        name = name.with_tag(tag) if tag else name.with_default_tag()
        if name.familiar_name == "sha256":
            raise InvalidParameter("refusing to create an ambiguous tag using digest algorithm as name")
        await self._images.tag(image, name)

    async def remove(self, reference: str, *, force: bool, prune: bool) -> list[ImageDeleted]:
        """Remove a name or an image; see ``Images.remove``."""
        return _deleted(await self._images.remove(reference, force=force, prune=prune))

    async def prune(self, filters: Filters) -> ImagesPruned:
        """Remove dangling images, or every unused one with ``dangling=false``."""
        filtering.check(filters, PRUNE_FILTERS)
        dangling = filtering.boolean(filters, "dangling")
        until = filtering.until_ns(filters, bad=SystemFailure)
        done: list[tuple[str, str]] = []
        reclaimed = 0
        for image in self._images:
            tags, digests = self._images.names_of(image.id)
            if (tags or digests) and dangling is not False:
                continue
            if self._images.find(image.id) is None or image.id in set(self._users()):
                continue
            if until is not None and image.created_ns > until:
                continue
            if not filtering.passes_labels(filters, image.labels):
                continue
            await self._images.size_bytes(image)
            sizes = {layer: self._images.layer_size_bytes(layer) for layer in image.layers}
            try:
                for name in [*tags, *digests] or [image.id]:
                    done += await self._images.remove(name, force=False, prune=True)
            except Conflict:
                continue
            live = self._images.live_layers()
            reclaimed += sum(size for layer, size in sizes.items() if layer not in live)
        self._images.publish_prune(reclaimed)
        return ImagesPruned(images_deleted=_deleted(done) or None, space_reclaimed=reclaimed)


def _deleted(done: list[tuple[str, str]]) -> list[ImageDeleted]:
    return [ImageDeleted(untagged=what) if kind == "Untagged" else ImageDeleted(deleted=what) for kind, what in done]

"""Images as the API shows them: list, inspect, history, and what removing did."""

from collections.abc import Iterable

import msgspec

from compatd.core.filters import Filters
from compatd.core.images import Image, Images, parse_time_ns
from compatd.images.manifest import RunConfig
from compatd.wire.times import format_time
from compatd.wire.types.images import (
    GraphDriver,
    HistoryItem,
    ImageConfig,
    ImageInspect,
    ImageMetadata,
    ImageSummary,
    RootFS,
)


async def list_images(
    images: Images, filters: Filters, *, all: bool, shared_size: bool, users: Iterable[str]
) -> list[ImageSummary]:
    """``GET /images/json``. ``users``: the image id of every container."""
    names = images.all_names()
    counts: dict[str, int] = {}
    for image_id in users:
        counts[image_id] = counts.get(image_id, 0) + 1
    sharing: dict[str, int] = {}
    if shared_size:
        for image in images:
            for diff_id in image.layers:
                sharing[diff_id] = sharing.get(diff_id, 0) + 1
    summaries: list[ImageSummary] = []
    for image in images.listing(filters, all=all):
        tags, digests = names[image.id]
        size = await images.size_bytes(image)
        shared = sum(images.layer_size_bytes(diff) for diff in image.layers if sharing.get(diff, 0) > 1)
        summaries.append(
            ImageSummary(
                containers=counts.get(image.id, 0),
                created=image.created_ns // 10**9,
                id=image.id,
                labels=image.labels or None,
                parent_id=image.record.parent,
                repo_digests=list(digests),
                repo_tags=list(tags),
                shared_size=shared if shared_size else -1,
                size=size,
            )
        )
    return summaries


async def inspect_image(images: Images, image: Image) -> ImageInspect:
    """``GET /images/{name}/json``."""
    tags, digests = images.names_of(image.id)
    config = image.config
    return ImageInspect(
        id=image.id,
        repo_tags=tags,
        repo_digests=digests,
        parent=image.record.parent,
        comment=config.comment or (config.history[-1].comment if config.history else ""),
        created=config.created or "",
        docker_version=config.docker_version,
        author=config.author,
        config=run_config(config.config),
        architecture=config.architecture,
        variant=config.variant,
        os=config.os,
        os_version=config.os_version,
        size=await images.size_bytes(image),
        graph_driver=GraphDriver(data=_places(images.places(image.layers)), name="overlay2"),
        root_fs=RootFS(layers=list(image.layers)),
        metadata=ImageMetadata(last_tag_time=format_time(image.record.tagged_ns)),
    )


def _places(layers: list[str]) -> dict[str, str]:
    """Where an image's files are, as far as overlay2's words fit: nothing of it is mounted on the host."""
    if not layers:
        return {}
    return {"UpperDir": layers[0]} | ({"LowerDir": ":".join(layers[1:])} if layers[1:] else {})


def run_config(config: RunConfig | None) -> ImageConfig:
    """The defaults for containers, as the API spells them."""
    if config is None:
        return ImageConfig()
    return msgspec.convert(
        {key: value for key, value in msgspec.to_builtins(config).items() if value is not None or key in _NULLS},
        type=ImageConfig,
    )


_NULLS = frozenset({"Env", "Cmd", "Volumes", "Entrypoint", "OnBuild", "Labels"})


async def image_history(images: Images, image: Image) -> list[HistoryItem]:
    """``GET /images/{name}/history``: newest first; ids where the image that a step made is still here."""
    await images.size_bytes(image)
    ids: list[str] = []
    step: Image | None = image
    while step is not None:
        ids.append(step.id)
        step = images.find(step.record.parent)
    layers = iter(image.layers)
    items: list[HistoryItem] = []
    for line in image.config.history:
        diff_id = None if line.empty_layer else next(layers, None)
        items.append(
            HistoryItem(
                comment=line.comment,
                created=parse_time_ns(line.created) // 10**9,
                created_by=line.created_by,
                size=images.layer_size_bytes(diff_id) if diff_id else 0,
            )
        )
    items.reverse()
    # Each step of the classic builder is an image of its own and adds one line, so ids and lines run in parallel.
    for position, image_id in enumerate(ids[: len(items)]):
        tags, _ = images.names_of(image_id)
        items[position] = msgspec.structs.replace(items[position], id=image_id, tags=tags or None)
    return items

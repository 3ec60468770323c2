"""Images as the user knows them: records, names, and who may be removed.

An image is its configuration: the id is the digest of the configuration's bytes, which name the layers by diff id.
A name (``docker.io/library/busybox:latest``, or one with ``@sha256:…``) points to one image. Layers and blobs have no
owner: what no image refers to any more is removed from the layer and content stores after the record is gone
(mark, then sweep), except while a pull, load or build holds it.
"""

import fnmatch
import logging
import re
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime

import msgspec

from compatd import tasks
from compatd.core import filters as filtering
from compatd.core.events import Events
from compatd.core.filters import Filters
from compatd.core.store import Change, Delete, Put, Store
from compatd.errors import Conflict, InvalidParameter, NotFound, SystemFailure
from compatd.images.content import ContentStore, DiffId, Digest, chain_id, digest_of, parse_digest
from compatd.images.layers import LayerStore
from compatd.images.manifest import Platform, decode_config, platform_of
from compatd.images.reference import Reference, parse_normalized
from compatd.tasks import Workers

log = logging.getLogger(__name__)

_HEX = re.compile(r"[0-9a-f]{1,64}")

# An interrupted download may be resumed for this long.
STALE_INGEST_S = 24 * 3600.0

LIST_FILTERS = ("dangling", "label", "label!", "before", "since", "until", "reference")
PRUNE_FILTERS = ("dangling", "label", "label!", "until")


class ImageRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One image. ``raw``: the configuration's bytes; ``parent``: set by the classic builder and by commit only."""

    id: str
    raw: bytes
    parent: str = ""
    tagged_ns: int = 0
    blobs: tuple[str, ...] = ()  # what of the content store belongs to it: manifests, compressed layers

    @property
    def short_id(self) -> str:
        return self.id.removeprefix("sha256:")[:12]


class Image:
    """A record with its configuration read. Immutable."""

    __slots__ = ("config", "created_ns", "layers", "record")

    def __init__(self, record: ImageRecord) -> None:
        self.record = record
        self.config = decode_config(record.raw)
        self.layers: tuple[DiffId, ...] = tuple(self.config.rootfs.diff_ids)
        self.created_ns = parse_time_ns(self.config.created)

    @property
    def id(self) -> str:
        return self.record.id

    @property
    def labels(self) -> dict[str, str]:
        return (self.config.config.labels if self.config.config else None) or {}


class Images:
    """All images and names, in memory and in the store."""

    def __init__(
        self, *, store: Store, events: Events, content: ContentStore, layers: LayerStore, workers: Workers
    ) -> None:
        self._store = store
        self._events = events
        self._content = content
        self._layers = layers
        self._workers = workers
        self._images = {key: Image(msgspec.json.decode(raw, type=ImageRecord)) for key, raw in store.load("images")}
        self._names = {key: raw.decode() for key, raw in store.load("names")}
        self._sizes: dict[str, int] = {}
        self._leases: dict[object, set[str]] = {}
        # Asked before an image goes: (container id, whether it runs) of those made from an image; layers they stand on.
        self.in_use: list[Callable[[str], list[tuple[str, bool]]]] = []
        self.mounted_by: Callable[[str], list[str]] = lambda _image_id: []
        self.layers_in_use: list[Callable[[], set[str]]] = []

    # ------------------------------------------------------------------ reading

    def __iter__(self) -> Iterator[Image]:
        return iter(list(self._images.values()))

    def __len__(self) -> int:
        return len(self._images)

    def get(self, reference: str) -> Image:
        """The image that a user names by name, id, or the beginning of an id. ``NotFound`` in Docker's words."""
        bare = reference.removeprefix("sha256:")
        if len(bare) == 64 and _HEX.fullmatch(bare):
            if (image := self._images.get(f"sha256:{bare}")) is not None:
                return image
            raise no_such_image(reference)
        if reference.startswith("sha256:") and _HEX.fullmatch(bare):
            if (image := self._by_prefix(bare)) is not None:
                return image
            raise no_such_image(reference)
        parsed = parse_normalized(reference)
        if (image := self.by_name(parsed)) is not None:
            return image
        if _HEX.fullmatch(reference) and (image := self._by_prefix(reference)) is not None:
            return image
        raise no_such_image(parsed.with_default_tag().familiar)

    def by_name(self, reference: Reference) -> Image | None:
        """The image that a name points to; a name with neither tag nor digest means ``latest``."""
        if reference.digest is not None:
            key = f"{reference.name}@{reference.digest}"
        else:
            key = str(reference.with_default_tag())
        found = self._names.get(key)
        return None if found is None else self._images.get(found)

    def find(self, image_id: str) -> Image | None:
        """The image with exactly this id."""
        return self._images.get(image_id)

    def _by_prefix(self, prefix: str) -> Image | None:
        found = [image for key, image in self._images.items() if key.startswith(f"sha256:{prefix}")]
        if len(found) > 1:
            raise NotFound(f"ambiguous reference: {prefix}")
        return found[0] if found else None

    def names_of(self, image_id: str) -> tuple[list[str], list[str]]:
        """(tags, digests) that point to an image, in familiar form and sorted."""
        tags: list[str] = []
        digests: list[str] = []
        for key, target in self._names.items():
            if target == image_id:
                (digests if "@" in key else tags).append(parse_normalized(key).familiar)
        return sorted(tags), sorted(digests)

    def all_names(self) -> dict[str, tuple[list[str], list[str]]]:
        """``names_of`` of every image that has a name, in one pass."""
        names: dict[str, tuple[list[str], list[str]]] = defaultdict(lambda: ([], []))
        for key, target in self._names.items():
            names[target]["@" in key].append(parse_normalized(key).familiar)
        for tags, digests in names.values():
            tags.sort()
            digests.sort()
        return names

    async def size_bytes(self, image: Image) -> int:
        """The sum of the layers' contents."""
        missing = [diff_id for diff_id in image.layers if diff_id not in self._sizes]
        if missing:
            self._sizes.update(await self._workers.run(lambda: {diff: self._layers.size(diff) for diff in missing}))
        return sum(self._sizes[diff_id] for diff_id in image.layers)

    def layer_size_bytes(self, diff_id: str) -> int:
        """Size of one layer, once ``size_bytes`` of an image that has it has been asked."""
        return self._sizes.get(diff_id, 0)

    def places(self, diff_ids: Sequence[str]) -> list[str]:
        """Where layers are kept, topmost first."""
        return self._layers.places([DiffId(diff_id) for diff_id in diff_ids])

    def children(self, image_id: str) -> list[Image]:
        """Images built directly on this one."""
        return [image for image in self._images.values() if image.record.parent == image_id]

    def listing(self, filters: Filters, *, all: bool) -> list[Image]:
        """Images as ``docker image ls`` shows them, newest first. Intermediate ones only if ``all``.

        ``InvalidParameter``: an unknown filter or a bad value.
        """
        filtering.check(filters, LIST_FILTERS)
        names = self.all_names()
        parents = {image.record.parent for image in self._images.values()}
        dangling = filtering.boolean(filters, "dangling")
        before = max((self.get(text).created_ns for text in filters.get("before", ())), default=None)
        since = max((self.get(text).created_ns for text in filters.get("since", ())), default=None)
        until = filtering.until_ns(filters, bad=SystemFailure)
        chosen: list[Image] = []
        for image in self._images.values():
            named = image.id in names
            if not named and image.id in parents and not all:
                continue
            if dangling is not None and dangling is named:
                continue
            if before is not None and image.created_ns >= before:
                continue
            if since is not None and image.created_ns <= since:
                continue
            if until is not None and image.created_ns > until:
                continue
            if not filtering.passes_labels(filters, image.labels):
                continue
            if (patterns := filters.get("reference")) and not any(
                reference_matches(pattern, name) for pattern in patterns for half in names[image.id] for name in half
            ):
                continue
            chosen.append(image)
        return sorted(chosen, key=lambda image: image.created_ns, reverse=True)

    # ------------------------------------------------------------------ writing

    @contextmanager
    def lease(self) -> Generator[set[str]]:
        """A set of diff ids and blob digests that no sweep touches while the context is open."""
        token = object()
        self._leases[token] = held = set[str]()
        try:
            yield held
        finally:
            del self._leases[token]

    async def add(
        self,
        raw: bytes,
        *,
        parent: str = "",
        names: Sequence[Reference] = (),
        blobs: Iterable[str] = (),
        stamp: bool = True,
    ) -> Image:
        """Record the image whose configuration is ``raw`` (its layers are stored already) under ``names``.

        Adding one that is there keeps it and adds the names.
        """
        image_id = str(digest_of(raw))
        known = self._images.get(image_id)
        record = known.record if known else ImageRecord(id=image_id, raw=raw, parent=parent)
        if added := [blob for blob in blobs if blob not in record.blobs]:
            record = msgspec.structs.replace(record, blobs=(*record.blobs, *added))
        if names and stamp:
            record = msgspec.structs.replace(record, tagged_ns=time.time_ns())
        image = known if known and known.record == record else Image(record)
        await self._store.commit(
            Put("images", image_id, msgspec.json.encode(record)),
            *(Put("names", str(name), image_id.encode()) for name in names),
        )
        self._images[image_id] = image
        for name in names:
            self._names[str(name)] = image_id
        return image

    async def tag(self, image: Image, name: Reference, *, stamp: bool = True) -> None:
        """Point ``name`` at an image, wherever it pointed before."""
        record = msgspec.structs.replace(image.record, tagged_ns=time.time_ns()) if stamp else image.record
        await self._store.commit(
            Put("images", image.id, msgspec.json.encode(record)),
            Put("names", str(name), image.id.encode()),
        )
        self._images[image.id] = Image(record)
        self._names[str(name)] = image.id
        if name.tag is not None:
            self._events.publish("image", "tag", image.id, {"name": name.familiar} | image.labels)

    def publish(self, action: str, image: Image, name: str, *, subject: str = "") -> None:
        """Publish an image event; ``subject``: what it is about, where that is not the id."""
        self._events.publish("image", action, subject or image.id, image.labels | {"name": name})

    def publish_prune(self, reclaimed_bytes: int) -> None:
        """Publish that a prune has happened."""
        self._events.publish("image", "prune", "", {"reclaimed": str(reclaimed_bytes)})

    def publish_cache_prune(self) -> None:
        """Publish that the build cache has been pruned, of which nothing but names of steps was there."""
        self._events.publish("builder", "prune", "", {"reclaimed": "0"})

    # ----------------------------------------------------------------- removing

    async def remove(self, reference: str, *, force: bool, prune: bool) -> list[tuple[str, str]]:
        """Remove a name, or an image with all its names; then parents that nothing needs, if ``prune``.

        Returns (``Untagged`` or ``Deleted``, what) in order (moby daemon/images/image_delete.go). ``Conflict`` when
        a container or another image needs it.
        """
        image = self.get(reference)
        keys = [key for key, target in self._names.items() if target == image.id]
        done: list[tuple[str, str]] = []
        by_name = not image.id.removeprefix("sha256:").startswith(reference.removeprefix("sha256:"))
        users = self._users(image)
        if by_name:
            holders = [user for user, _ in users] + self.mounted_by(image.id)
            if _is_single(keys) and holders and not force:
                # Without its name the image would dangle, and that wants to be said twice.
                raise Conflict(
                    f'conflict: unable to remove repository reference "{reference}" (must force)'
                    f" - container {holders[0][:12]} is using its referenced image {image.record.short_id}"
                )
            name = parse_normalized(reference)
            key = f"{name.name}@{name.digest}" if name.digest else str(name.with_default_tag())
            await self._untag(image, key, done)
            rest = [other for other in keys if other != key]
            if "@" not in key and not any(_repository(other) == name.name and "@" not in other for other in rest):
                # The digests of a repository go with its last tag.
                for other in [other for other in rest if _repository(other) == name.name]:
                    await self._untag(image, other, done)
                    rest.remove(other)
            if rest:
                return done
        elif _is_single(keys) or force:
            self._check_removable(image, users, force=force)
            for key in sorted(keys, key=lambda key: "@" in key):
                await self._untag(image, key, done)
        try:
            while True:
                self._check_removable(image, self._users(image), force=force)
                parent = self._images.get(image.record.parent)
                await self._delete(image, done)
                if not prune or parent is None or any(target == parent.id for target in self._names.values()):
                    return done
                image = parent
        except Conflict:
            # What could be done has been done: the name is gone, and whoever needs the image keeps it.
            if not done:
                raise
            return done

    def _users(self, image: Image) -> list[tuple[str, bool]]:
        return [user for source in self.in_use for user in source(image.id)]

    def _check_removable(self, image: Image, users: list[tuple[str, bool]], *, force: bool) -> None:
        """moby daemon/images/image_delete.go, checkImageDeleteConflict."""
        subject = f"conflict: unable to delete {image.record.short_id}"
        if self.children(image.id):
            raise Conflict(f"{subject} (cannot be forced) - image has dependent child images")
        for container, running in users:
            if running:
                raise Conflict(
                    f"{subject} (cannot be forced) - image is being used by running container {container[:12]}"
                )
        if force:
            return
        keys = [key for key, target in self._names.items() if target == image.id]
        if not _is_single(keys):
            raise Conflict(f"{subject} (must be forced) - image is referenced in multiple repositories")
        for container, _ in users:
            raise Conflict(f"{subject} (must be forced) - image is being used by stopped container {container[:12]}")

    async def _untag(self, image: Image, key: str, done: list[tuple[str, str]]) -> None:
        await self._store.commit(Delete("names", key))
        self._names.pop(key, None)
        done.append(("Untagged", parse_normalized(key).familiar))
        self.publish("untag", image, image.id)

    async def _delete(self, image: Image, done: list[tuple[str, str]]) -> None:
        gone: list[Change] = [Delete("images", image.id)]
        await self._store.commit(*gone)
        del self._images[image.id]
        done.append(("Deleted", image.id))
        self.publish("delete", image, image.id)
        done.extend(("Deleted", chain) for chain in self._unshared_chains(image))
        await self.sweep(image.layers, [Digest(image.id), *map(Digest, image.record.blobs)])

    def _unshared_chains(self, image: Image) -> list[str]:
        kept = {
            str(chain_id(other.layers[:depth]))
            for other in self._images.values()
            for depth in range(1, len(other.layers) + 1)
        }
        chains = [str(chain_id(image.layers[:depth])) for depth in range(len(image.layers), 0, -1)]
        return [chain for chain in chains if chain not in kept]

    async def sweep(self, diff_ids: Iterable[DiffId], blobs: Iterable[Digest]) -> None:
        """Remove those of the layers and blobs that nothing refers to."""
        live = self.live_layers()
        held = {item for lease in self._leases.values() for item in lease}
        dead = [diff for diff in dict.fromkeys(diff_ids) if diff not in live and diff not in held]
        live_blobs = self.live_blobs() | held
        dead_blobs = [digest for digest in blobs if digest not in live_blobs]

        def remove() -> None:
            for diff_id in dead:
                self._layers.remove(diff_id)
            for digest in dead_blobs:
                self._content.delete(digest)

        await self._workers.run(remove)
        for diff_id in dead:
            self._sizes.pop(diff_id, None)

    def sweep_later(self, diff_ids: Iterable[DiffId], blobs: Iterable[Digest]) -> None:
        """``sweep`` off the caller's path."""
        tasks.detach(self.sweep(diff_ids, blobs), name="sweep images")

    async def sweep_all(self) -> None:
        """Remove every layer and blob that nothing refers to, and what a crash left half made. At start."""

        def find() -> tuple[list[DiffId], list[Digest]]:
            self._layers.sweep()
            self._content.sweep(idle_s=STALE_INGEST_S)
            return [info.diff_id for info in self._layers.walk()], [info.digest for info in self._content.walk()]

        await self.sweep(*await self._workers.run(find))

    def live_layers(self) -> set[str]:
        """Diff ids that an image, or a container, refers to."""
        live = {str(diff_id) for image in self._images.values() for diff_id in image.layers}
        for source in self.layers_in_use:
            live |= source()
        return live

    def live_blobs(self) -> set[str]:
        """Digests that an image refers to directly."""
        return set(self._images) | {blob for image in self._images.values() for blob in image.record.blobs}


def read_name(repo: str, tag: str) -> Reference | None:
    """The name that import and commit give an image, if any (moby daemon/server/httputils, RepoTagReference)."""
    if not repo:
        return None
    name = parse_normalized(repo)
    if name.digest is not None:
        raise InvalidParameter("cannot import digest reference")
    if tag:
        try:
            parse_digest(tag)
        except InvalidParameter:
            return name.with_tag(tag)
        raise InvalidParameter("cannot import digest reference")
    return name.with_default_tag()


def no_such_image(reference: str) -> NotFound:
    """moby daemon/images/image.go, ErrImageDoesNotExist."""
    return NotFound(f"No such image: {reference}")


def check_platform(image: Image, wanted: Platform | None, name: str) -> None:
    """``NotFound`` when an operation on one platform's image is asked for another's."""
    have = platform_of(image.config)
    if wanted is not None and have not in wanted.compatible():
        raise NotFound(
            f"image with reference {name} was found but its platform ({have}) does not match the specified platform"
            f" ({wanted})"
        )


def parse_time_ns(text: str | None) -> int:
    """Nanoseconds since 1970 of an RFC 3339 time; 0 for none or an unreadable one."""
    if not text:
        return 0
    match = re.fullmatch(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(Z|[+-]\d\d:\d\d)", text, re.ASCII)
    if match is None:
        return 0
    try:
        seconds = datetime.fromisoformat(match[1] + match[3].replace("Z", "+00:00")).timestamp()
    except ValueError:
        return 0
    return int(seconds) * 1_000_000_000 + int((match[2] or "").ljust(9, "0"))


def reference_matches(pattern: str, name: str) -> bool:
    """The ``reference`` filter: a shell pattern against ``repo:tag`` or ``repo`` (reference.FamiliarMatch)."""
    repository = name.partition("@")[0] if "@" in name else name.rpartition(":")[0]
    return any(_path_match(pattern, candidate) for candidate in (name, repository))


def _path_match(pattern: str, text: str) -> bool:
    wanted, have = pattern.split("/"), text.split("/")
    # As Go's path.Match: a star stays within one component.
    return len(wanted) == len(have) and all(map(fnmatch.fnmatchcase, have, wanted))


def _repository(key: str) -> str:
    return key.partition("@")[0] if "@" in key else key.rpartition(":")[0]


def _is_single(keys: Sequence[str]) -> bool:
    """At most one tag, and digests of its repository only (moby daemon/images/image_delete.go, isSingleReference)."""
    return len({_repository(key) for key in keys}) <= 1 and sum("@" not in key for key in keys) <= 1

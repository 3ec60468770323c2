"""Named and anonymous volumes: records; their directories are ``volumes.local``'s."""

import time
from collections.abc import Callable

import msgspec

from compatd.core import filters as filtering
from compatd.core.events import Events
from compatd.core.filters import Filters
from compatd.core.names import new_id
from compatd.core.store import Delete, Put, Store
from compatd.errors import Conflict, InvalidParameter, NotFound
from compatd.linux.rootdir import Rootdir
from compatd.tasks import Workers
from compatd.volumes.local import LocalVolumes, no_such_volume
from compatd.wire.times import format_time
from compatd.wire.types.volumes import Volume, VolumeCreateRequest, VolumeList, VolumesPruned, VolumeUsage

LIST_FILTERS = ("dangling", "driver", "label", "name")
PRUNE_FILTERS = ("all", "label", "label!")
ANONYMOUS_LABEL = "com.docker.volume.anonymous"


class VolumeRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One volume."""

    name: str
    created_ns: int
    labels: dict[str, str] | None = None
    options: dict[str, str] | None = None

    @property
    def anonymous(self) -> bool:
        return ANONYMOUS_LABEL in (self.labels or {})


class Volumes:
    """Every volume. ``in_use`` names the containers that refer to one; set by ``core.containers``."""

    def __init__(self, *, store: Store, events: Events, local: LocalVolumes, workers: Workers) -> None:
        self._store = store
        self._events = events
        self._local = local
        self._workers = workers
        self._volumes = {key: msgspec.json.decode(raw, type=VolumeRecord) for key, raw in store.load("volumes")}
        self.in_use: Callable[[str], list[str]] = lambda _name: []

    def get(self, name: str) -> VolumeRecord:
        """``NotFound`` in Docker's words."""
        try:
            return self._volumes[name]
        except KeyError:
            raise no_such_volume(name) from None

    def path(self, name: str) -> str:
        """Its data directory on the host."""
        return str(self._local.path(name))

    def copy_up(self, name: str, root: Rootdir, path: str) -> None:
        """Fill an empty volume with what an image has at ``path``. Blocks."""
        self._local.copy_up(name, root, path)

    async def ensure(
        self,
        name: str | None,
        *,
        anonymous: bool = False,
        driver: str = "",
        labels: dict[str, str] | None = None,
        options: dict[str, str] | None = None,
    ) -> VolumeRecord:
        """The volume of that name, made if it is not there; without a name a new one.

        ``NotFound``: unknown driver. ``InvalidParameter``: a bad name or options.
        """
        made = name or new_id()
        if driver not in ("", "local"):
            raise NotFound(f'create {made}: error looking up volume plugin {driver}: plugin "{driver}" not found')
        if (known := self._volumes.get(made)) is not None:
            return known
        record = VolumeRecord(
            name=made,
            created_ns=time.time_ns(),
            labels={ANONYMOUS_LABEL: "", **(labels or {})} if anonymous else labels,
            options=options,
        )
        await self._workers.run(self._local.create, record.name, options)
        await self._store.commit(Put("volumes", record.name, msgspec.json.encode(record)))
        self._volumes[record.name] = record
        self._events.publish("volume", "create", record.name, {"driver": "local"})
        return record

    async def create(self, request: VolumeCreateRequest) -> Volume:
        """``NotFound``: unknown driver. ``InvalidParameter``: a bad name or options."""
        record = await self.ensure(
            request.name or None,
            anonymous=not request.name,
            driver=request.driver,
            labels=request.labels,
            options=request.driver_opts,
        )
        return self._describe(record)

    def inspect(self, name: str) -> Volume:
        """One volume."""
        return self._describe(self.get(name))

    async def describe_with_usage(self) -> list[Volume]:
        """Every volume with its size and users, for ``system df``; what has options is elsewhere."""
        described: list[Volume] = []
        for record in [record for record in self._volumes.values() if not record.options]:
            size = await self._workers.run(self._local.size_bytes, record.name)
            usage = VolumeUsage(ref_count=len(self.in_use(record.name)), size=size)
            described.append(msgspec.structs.replace(self._describe(record), usage_data=usage))
        return described

    async def remove(self, name: str, *, force: bool) -> None:
        """``Conflict`` when a container refers to it; a missing one is no error with ``force``."""
        if name not in self._volumes and force:
            return
        self.get(name)
        if users := self.in_use(name):
            raise Conflict(f"remove {name}: volume is in use - [{', '.join(users)}]")
        await self._store.commit(Delete("volumes", name))
        del self._volumes[name]
        await self._workers.run(self._local.remove, name)
        self._events.publish("volume", "destroy", name, {"driver": "local"})

    async def remove_unused(self, name: str, *, anonymous_only: bool = False) -> None:
        """Remove it if no container refers to it."""
        known = self._volumes.get(name)
        if known is not None and not self.in_use(name) and (known.anonymous or not anonymous_only):
            await self.remove(name, force=True)

    async def prune(self, filters: Filters, *, anonymous_only: bool) -> VolumesPruned:
        """Remove what no container refers to; only anonymous ones unless ``all=true`` (API 1.42)."""
        filtering.check(filters, PRUNE_FILTERS)
        everything = _reads_all(filters) or not anonymous_only
        deleted: list[str] = []
        reclaimed = 0
        for record in list(self._volumes.values()):
            # What has options is elsewhere: nothing comes free by removing it.
            if self.in_use(record.name) or record.options or not (everything or record.anonymous):
                continue
            if not filtering.passes_labels(filters, record.labels):
                continue
            reclaimed += await self._workers.run(self._local.size_bytes, record.name)
            await self.remove(record.name, force=True)
            deleted.append(record.name)
        self._events.publish("volume", "prune", "", {"reclaimed": str(reclaimed)})
        return VolumesPruned(volumes_deleted=deleted, space_reclaimed=reclaimed)

    def sweep(self) -> None:
        """Remove what a crash has left half made. Blocks."""
        self._local.sweep()

    def names(self) -> set[str]:
        """Every name that has a record."""
        return set(self._volumes)

    def _describe(self, record: VolumeRecord) -> Volume:
        return Volume(
            created_at=format_time(record.created_ns // 10**9 * 10**9),
            driver="local",
            labels=record.labels,
            mountpoint=self.path(record.name),
            name=record.name,
            options=record.options,
        )

    def listing(self, filters: Filters) -> VolumeList:
        """Volumes, by name."""
        filtering.check(filters, LIST_FILTERS)
        dangling = filtering.boolean(filters, "dangling")
        chosen = [
            record
            for record in self._volumes.values()
            if (dangling is None or dangling is not bool(self.in_use(record.name)))
            and filtering.matches_any(filters.get("name", ()), record.name)
            and filtering.passes_labels(filters, record.labels)
            and (not filters.get("driver") or "local" in filters["driver"])
        ]
        return VolumeList(volumes=[self._describe(record) for record in sorted(chosen, key=lambda r: r.name)])


def _reads_all(filters: Filters) -> bool:
    """The ``all`` filter of prunes, which Docker words in its own way (moby volume/service, withPrune)."""
    values = filters.get("all", ())
    if len(values) > 1:
        raise InvalidParameter(f"invalid filter 'all=[{' '.join(values)}]': only one value is expected")
    try:
        return bool(filtering.boolean(filters, "all"))
    except InvalidParameter as error:
        raise InvalidParameter(
            f"invalid filter 'all': strconv.ParseBool: parsing \"{values[0]}\": invalid syntax"
        ) from error

"""Builds: the cache, and what prune did to it."""

from compatd.wire.json import Wire, always, omitempty


class BuildCacheRecord(Wire, frozen=True, kw_only=True):
    """One entry of the build cache."""

    id: str = always("", "ID")
    parent: str = ""
    parents: list[str] = omitempty([], " Parents")
    type: str = always("regular")
    description: str = always("")
    in_use: bool = always(False)
    shared: bool = always(False)
    size: int = always(0)
    created_at: str = always("0001-01-01T00:00:00Z")
    last_used_at: str | None = always(None)
    usage_count: int = always(0)


class BuildPruned(Wire, frozen=True, kw_only=True):
    """The cache entries that were removed, and the bytes that came free."""

    caches_deleted: list[str] | None = always(None)
    space_reclaimed: int = always(0)


class ImageId(Wire, frozen=True, kw_only=True):
    """The ``aux`` of a build stream: what was built."""

    id: str = always("", "ID")

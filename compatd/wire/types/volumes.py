"""Volumes."""

from compatd.wire.json import Wire, always, omitempty


class VolumeUsage(Wire, frozen=True, kw_only=True):
    """What a volume takes and how many containers refer to it; -1: not counted."""

    ref_count: int = always(-1)
    size: int = always(-1)


class Volume(Wire, frozen=True, kw_only=True):
    """A volume."""

    cluster_volume: dict[str, object] | None = None
    created_at: str = ""
    driver: str
    labels: dict[str, str] | None = always(None)
    mountpoint: str
    name: str
    options: dict[str, str] | None = always(None)
    scope: str = always("local")
    status: dict[str, object] = omitempty({})
    usage_data: VolumeUsage | None = None


class VolumeCreateRequest(Wire, frozen=True, kw_only=True):
    """What a new volume is to be; ``driver`` empty means local, ``name`` empty a random one."""

    cluster_volume_spec: dict[str, object] | None = None
    driver: str = ""
    driver_opts: dict[str, str] | None = None
    labels: dict[str, str] | None = None
    name: str = ""


class VolumeList(Wire, frozen=True, kw_only=True):
    """The volumes, and what went wrong while listing them."""

    volumes: list[Volume] = always([])
    warnings: list[str] | None = always(None)


class VolumesPruned(Wire, frozen=True, kw_only=True):
    """The names of the volumes that were removed, and the bytes that came free."""

    volumes_deleted: list[str] | None = always(None)
    space_reclaimed: int = always(0)

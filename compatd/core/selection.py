"""The filters of ``docker ps``: which containers a list shows (moby daemon/list.go)."""

import re
from collections.abc import Callable, Iterable, Sequence, Set

from compatd.core import filters as filtering
from compatd.core import health
from compatd.core.container import Container, ContainerRecord
from compatd.core.filters import Filters
from compatd.core.images import Images
from compatd.core.inspection import ports_of
from compatd.core.lifecycle import ALIVE, State
from compatd.core.networks import Networks
from compatd.errors import EngineError, InvalidParameter, SystemFailure

LIST_FILTERS = (
    "ancestor",
    "before",
    "expose",
    "exited",
    "health",
    "id",
    "isolation",
    "is-task",
    "label",
    "name",
    "network",
    "publish",
    "since",
    "status",
    "volume",
)
RUNNING = ALIVE | {State.RESTARTING}  # as lists and filters see it
_STATES = "created, running, paused, restarting, removing, exited, dead"
_HEALTH = ("none", "starting", "healthy", "unhealthy")


def select(
    containers: Iterable[Container],
    filters: Filters,
    *,
    get: Callable[[str], Container],
    images: Images,
    networks: Networks,
) -> list[Container]:
    """Those of ``containers`` that pass ``filters``; ``get`` finds the ones that ``before`` and ``since`` name.

    ``InvalidParameter`` and ``SystemFailure`` for values, as dockerd words them.
    """
    filtering.check(filters, LIST_FILTERS)
    before = max((get(text).record.created_ns for text in filters.get("before", ())), default=None)
    since = max((get(text).record.created_ns for text in filters.get("since", ())), default=None)
    statuses = filters.get("status", ())
    for status in statuses:
        if status not in State.__members__.values():
            raise InvalidParameter(
                f"invalid filter 'status={status}': invalid value for state ({status}): must be one of {_STATES}"
            )
    exited: set[int] = set()
    for code in filters.get("exited", ()):
        if not re.fullmatch(r"[+-]?[0-9]{1,18}", code):
            raise InvalidParameter(f"invalid filter 'exited={code}': strconv.Atoi: parsing \"{code}\": invalid syntax")
        exited.add(int(code))
    for text in filters.get("health", ()):
        if text not in _HEALTH:
            raise InvalidParameter(
                f"invalid filter 'health={text}': invalid value for health ({text}): "
                f"must be one of {', '.join(_HEALTH)}"
            )
    if filtering.boolean(filters, "is-task"):
        return []  # which only swarm makes
    published, exposed = (_read_ports(filters, key) for key in ("publish", "expose"))
    ancestors = _ancestor_ids(images, filters.get("ancestor", ()))
    chosen: list[Container] = []
    for container in containers:
        record = container.record
        if filters.get("id") and not any(record.id.startswith(text) for text in filters["id"]):
            continue
        if filters.get("name") and not (
            filtering.matches_any(filters["name"], record.name)
            or filtering.matches_any(filters["name"], "/" + record.name)
        ):
            continue
        if not filtering.passes_labels(filters, record.config.labels):
            continue
        if statuses and record.state not in statuses:
            continue
        if exited and (record.exit_code not in exited or record.state in RUNNING or not record.finished_ns):
            continue
        if before is not None and record.created_ns >= before:
            continue
        if since is not None and record.created_ns <= since:
            continue
        if filters.get("ancestor") and record.image_id not in ancestors:
            continue
        if not health.matches(filters.get("health", ()), record.health):
            continue
        if filters.get("network") and not networks.joins(record, filters["network"]):
            continue
        if filters.get("volume") and not any(
            text in (point.name, point.target, point.source) for text in filters["volume"] for point in record.mounts
        ):
            continue
        if not _matches_ports(record, published, exposed):
            continue
        chosen.append(container)
    return chosen


def _ancestor_ids(images: Images, references: Sequence[str]) -> set[str]:
    ids: set[str] = set()
    for reference in references:
        try:
            root = images.get(reference)
        except EngineError:
            continue
        ids |= {
            image.id
            for image in images
            if image.layers[: len(root.layers)] == root.layers
            and (image.id == root.id or _descends(images, image.id, root.id))
        }
    return ids


def _descends(images: Images, image_id: str, ancestor_id: str) -> bool:
    while image_id:
        if image_id == ancestor_id:
            return True
        image = images.find(image_id)
        image_id = image.record.parent if image else ""
    return False


def _read_ports(filters: Filters, key: str) -> set[str]:
    """The values of the ``publish`` and ``expose`` filters, ``80``, ``80/udp`` or a range, as single ports.

    ``SystemFailure`` in the words of moby daemon/list.go and go-connections (nat.ParsePortRange).
    """
    ports: set[str] = set()
    for text in filters.get(key, ()):
        numbers, _, protocol = text.partition("/")
        first, dash, last = numbers.partition("-")
        bad = "" if numbers else "Empty string specified for ports."
        for number in (first, last) if dash else (first,):
            if not bad and not re.fullmatch("[0-9]+", number):
                bad = f'strconv.ParseUint: parsing "{number}": invalid syntax'
            elif not bad and (len(number.lstrip("0")) > 5 or int(number) > 65535):
                bad = f'strconv.ParseUint: parsing "{number}": value out of range'
        if not bad and dash and int(last) < int(first):
            bad = f"Invalid range specified for the Port: {numbers}"
        if bad:
            raise SystemFailure(f"error while looking up for {key} {text}: {bad}")
        ports.update(f"{number}/{protocol or 'tcp'}" for number in range(int(first), int(last or first) + 1))
    return ports


def _matches_ports(record: ContainerRecord, published: Set[str], exposed: Set[str]) -> bool:
    """Whether a running container has any of the ports, where any are wanted (moby daemon/list.go)."""
    return not (published or exposed) or any(
        f"{port.public_port or 0}/{port.type}" in published or f"{port.private_port}/{port.type}" in exposed
        for port in ports_of(record)
    )

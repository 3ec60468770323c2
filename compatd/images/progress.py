"""What a pull says while it works, in the items of Docker's progress stream."""

from dataclasses import dataclass
from typing import Any

from compatd.images.content import Digest
from compatd.images.manifest import ImageConfig, Platform, platform_of
from compatd.images.reference import Reference


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """One item of Docker's progress stream. ``detailed`` items are about a part of the work, ``id``."""

    status: str
    id: str = ""
    detailed: bool = False
    current: int = 0
    total: int = 0

    def document(self) -> dict[str, Any]:
        """As the API sends it (moby pkg/streamformatter, jsonmessage)."""
        document: dict[str, Any] = {"status": self.status}
        if self.detailed:
            detail = {"current": self.current, "total": self.total}
            document["progressDetail"] = {name: value for name, value in detail.items() if value}
            if bar := progress_bar(self.current, self.total):
                document["progress"] = bar
        if self.id:
            document["id"] = self.id
        return document


def progress_bar(current: int, total: int) -> str:
    """``[==>      ]  1.5MB/3MB``."""
    if current <= 0 and total <= 0:
        return ""
    if total <= 0 or current > total:
        return f"{human_size(current):>8}"
    done = min(current * 100 // total // 2, 50)
    return f"[{'=' * done}>{' ' * (50 - done)}] {human_size(current):>8}/{human_size(total)}"


def human_size(size_bytes: float) -> str:
    """Four digits and a decimal unit (docker/go-units HumanSize)."""
    units = ("B", "kB", "MB", "GB", "TB", "PB", "EB", "ZB", "YB")
    step = 0
    while size_bytes >= 1000 and step < len(units) - 1:
        size_bytes, step = size_bytes / 1000, step + 1
    return f"{size_bytes:.4g}{units[step]}"


def digest_line(digest: Digest) -> Progress:
    return Progress(status=f"Digest: {digest}")


def status_line(reference: Reference, *, newer: bool) -> Progress:
    """The last line: ``newer`` if any name points to another image now than before."""
    said = "Downloaded newer image for" if newer else "Image is up to date for"
    return Progress(status=f"Status: {said} {reference.familiar}")


def platform_warning(reference: Reference, config: ImageConfig, wanted: Platform) -> Progress | None:
    """What Docker adds when a platform was asked for and a single-platform image was of another one."""
    found = platform_of(config)
    if found in wanted.compatible():
        return None
    return Progress(
        status=f"WARNING: image with reference {reference.familiar} was found but its platform ({found}) "
        f"does not match the specified platform ({wanted})"
    )

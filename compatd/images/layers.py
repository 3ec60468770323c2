"""The layer store: what an image's layers are on this machine.

Names. A layer is known by its ``DiffId``, the digest of its uncompressed tar, and by nothing else: where it came
from, what compressed form it had and what lies below it do not matter, so images share layers freely. An image is
a list of diff ids, bottom first.

The life of a layer. ``apply`` makes one from a tar, ``commit`` from the writable directory of an overlay. Either
way it appears whole or not at all, under its final name, and never changes afterwards. Making the same layer
twice, even at the same time, is fine: the first one published stays. ``remove`` ends it. The store does not know
who uses a layer; whoever records images holds that knowledge, calls ``remove`` for what no image and no work in
progress needs, and never for a layer below a running container.

What a layer gives. Its tar byte for byte (``open_tar``: save, push and export of it are ranges of a file), and a
read-only directory for overlayfs (``lowers``, ``mount``). Both are of equal rank: one can be made from the other,
so a store may keep the tar only, as the index over the tar does, or both.

Worked example: ``RUN make`` on an image of layers A, B. The engine has ``lowers([A, B])`` as the lower directories
of an overlay with a fresh upper and work directory, runs the command, and calls ``commit(upper)``: C, or None if
the command wrote nothing. The new image is [A, B, C]; ``lowers([A, B, C])`` begins with C's directory, which in
the directory store *is* the former upper.

Worked example: looking into an image. ``mount([A, B])`` is a descriptor of a read-only root that is attached
nowhere; closing it is all the clean-up there is.

The init directory. A container's mounts need targets (/proc, /dev/pts, /etc/hosts …) that an image may lack. Docker
makes them in a layer of their own above the image; here one shared directory lies *below* everything, so that they
show through where the image has nothing, hide nothing, and what a container writes stays free of them. It is part
of ``lowers`` and of a ``mount`` with an upper directory, not of an image that is only looked at.

Paths. ``lowers`` gives paths that are valid in the engine's mount namespace and those which share its mounts, until
the layer is removed or the store closed. A store that has to mount something first (one file system per layer) does
so on the first call, attached nowhere, and keeps it mounted for all images together, so that containers share its
page cache. An overlay holds what it was made of: neither ``close`` nor the engine's death takes a root away from a
running container, and the next engine makes the mounts again.

What a crash leaves. Killed at any instant, the store holds whole layers and staging litter, which ``sweep`` takes
away at the next start. A power failure is another matter: ``apply`` and ``commit`` do not wait for the disk (thirty
steps of a build would wait thirty times for everybody's writes), so a layer is sure to survive one only after
``settle``. Until then its making is noted with the boot it belongs to; ``sweep`` checks such layers of earlier
boots against their digest, restores what can be restored and removes the rest. Call ``settle`` before recording an
image as pulled or loaded, once for all its layers; a build may do it after it has answered.

All functions block; call them on worker threads, as many at a time as you like.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from compatd.errors import NotFound, SystemFailure
from compatd.images.content import DiffId
from compatd.images.streams import Readable

EMPTY_DIFF_ID = DiffId("sha256:5f70bf18a086007016e948b04aed3b82103a36bea41755b6cddfaf10ace3c6ef")
"""The layer without entries: 1,024 zero bytes (moby layer/empty.go, DigestSHA256EmptyTar)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerInfo:
    diff_id: DiffId
    size_bytes: int
    """Docker's notion: content of the layer's files and length of its links."""
    tar_bytes: int


class LayerStore(Protocol):
    """See the module's text. ``tests/suites/layer_store.py`` is what every implementation passes."""

    def apply(self, stream: Readable, *, expected: DiffId | None = None) -> DiffId:
        """Make a layer of an uncompressed tar. The stream is read to its end, whatever is there already.

        BadArchive (an InvalidParameter) for a bad tar; SystemFailure if its digest is not the expected one or the
        disk is full. Nothing is left then.
        """
        ...

    def commit(self, upper: Path, *, keep: bool = False) -> DiffId | None:
        """Make a layer of an overlay's writable directory, which is no longer written to; None if it is empty.

        The directory is consumed, whatever comes of it, unless ``keep``; either way its parent stays.
        """
        ...

    def has(self, diff_id: DiffId) -> bool: ...

    def info(self, diff_id: DiffId) -> LayerInfo:
        """NotFound if there is none."""
        ...

    def size(self, diff_id: DiffId) -> int:
        """``size_bytes`` of ``info``."""
        ...

    def lowers(self, diff_ids: Sequence[DiffId]) -> list[str]:
        """A container's lower directories, topmost first, no two alike, the init directory last.

        A layer which occurs twice counts where it lies topmost: overlayfs refuses repetition, and above itself a
        layer changes nothing. NotFound for a missing layer.
        """
        ...

    def places(self, diff_ids: Sequence[DiffId]) -> list[str]:
        """The directories in which layers are kept, topmost first, whether or not they are there: for showing."""
        ...

    def mount(
        self,
        diff_ids: Sequence[DiffId],
        upper: Path | None = None,
        work: Path | None = None,
        *,
        volatile: bool = False,
        init: bool = False,
    ) -> int:
        """A detached overlay as a directory descriptor, read-only without ``upper``; the caller owns and closes it.

        ``work``: an empty directory beside ``upper``. ``volatile``: closing does not wait for the disk; the work
        directory cannot be used again then. ``init``: the init directory is shown even without ``upper``. Devices,
        set-id bits and programs are dead in it: it is for looking and copying. NotFound for a missing layer.
        """
        ...

    def open_tar(self, diff_id: DiffId) -> BinaryIO:
        """The layer's tar, seekable, byte for byte; the caller closes it. NotFound if there is none."""
        ...

    def remove(self, diff_id: DiffId) -> bool:
        """Forget the layer and take its space back; False if there was none. Its name is free at once."""
        ...

    def walk(self) -> Iterator[LayerInfo]:
        """Every layer, in no order. Safe against changes meanwhile."""
        ...

    def settle(self, diff_ids: Iterable[DiffId]) -> None:
        """Return when the layers will survive a power failure."""
        ...

    def sweep(self) -> None:
        """At start, before layers are used: remove what a crash left, restore or settle what it left unsettled.

        Quick after a clean end; else it may take seconds.
        """
        ...

    def close(self) -> None:
        """Settle the rest, and let go of what the store keeps open or mounted. Layers stay."""
        ...


_INIT_DIRECTORIES = ("dev", "dev/pts", "dev/shm", "etc", "proc", "sys")
_INIT_FILES = (".dockerenv", "dev/console", "etc/hosts", "etc/hostname", "etc/resolv.conf")


def make_init(directory: Path) -> None:
    """Fill the init directory, if that is not done (moby daemon/initlayer/setup_unix.go has the list)."""
    directory.mkdir(exist_ok=True)
    for name in _INIT_DIRECTORIES:
        (directory / name).mkdir(exist_ok=True)
    for name in _INIT_FILES:
        (directory / name).touch(exist_ok=True)
    if not (mtab := directory / "etc/mtab").is_symlink():
        mtab.symlink_to("/proc/mounts")
    for name in (".", *_INIT_DIRECTORIES, *_INIT_FILES):
        (directory / name).chmod(0o755)  # whatever the umask


def layer_missing(diff_id: str) -> NotFound:
    return NotFound(f"layer does not exist: {diff_id}")


def digest_differs(expected: str, actual: str) -> SystemFailure:
    """moby distribution/xfer and image/tarexport word it by place; callers that know the place say more."""
    return SystemFailure(f"layer digest mismatch: expected {expected}, got {actual}")

"""What the builder needs from the rest of the engine; ``core`` supplies it.

Image and layer ids are plain ``sha256:…`` strings here. Everything async runs on the loop; everything else
blocks and is called on a worker thread.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import BinaryIO, NamedTuple, Protocol

from compatd.errors import SystemFailure


class Platform(NamedTuple):
    """What an image runs on."""

    os: str
    architecture: str
    variant: str = ""


@dataclass(frozen=True, slots=True)
class Stream:
    """Text for the client: ``{"stream": …}``."""

    text: str


@dataclass(frozen=True, slots=True)
class Aux:
    """The image a stage ended with: ``{"aux": {"ID": …}}``, which API versions before 1.30 do not have."""

    image_id: str


@dataclass(frozen=True, slots=True)
class Record:
    """A progress record of a pull or download, passed through as it is."""

    fields: Mapping[str, object]


BuildEvent = Stream | Aux | Record
Output = Callable[[BuildEvent], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """An image at hand: its id and its configuration document, byte for byte."""

    image_id: str
    document: bytes


class Images(Protocol):
    """The image store, with what a pull needs (registry, credentials) already in it."""

    async def resolve(self, name: str, *, platform: Platform | None, pull: bool, output: Output) -> Base:
        """The image that FROM or ``COPY --from`` names, pulled when it is missing or ``pull`` is set.

        Pull progress goes to ``output`` as ``Record``s. Errors carry Docker's words and reach the client as
        they are.
        """
        ...

    async def read(self, image_id: str) -> Base:
        """An image by its full id. ``NotFound`` if it is gone."""
        ...

    async def create(self, document: bytes, *, parent: str) -> str:
        """Store an image whose layers are all there: its id. ``parent`` is empty for the child of scratch."""
        ...

    async def tag(self, image_id: str, reference: str) -> None:
        """Point a normalised reference at an image."""
        ...


class Cache(Protocol):
    """Which step made which image. Survives restarts."""

    async def lookup(self, key: str) -> str | None:
        """The image recorded under the key, if it still exists with all its layers."""
        ...

    async def record(self, key: str, image_id: str) -> None:
        """Remember an image; a later one under the same key replaces it."""
        ...


class Readable(Protocol):
    """A byte stream: ``read`` gives at most that many bytes, none only at the end."""

    def read(self, size: int, /) -> bytes: ...


class Layers(Protocol):
    """The layer store."""

    def mount(self, diff_ids: Sequence[str]) -> int:
        """A read-only view of the layers, bottom first: a directory descriptor, which the caller owns."""
        ...

    def apply(self, stream: Readable) -> str:
        """Store an uncompressed layer tar: its diff id. What ``read`` raises comes out, and nothing stays."""
        ...


class TarEntry(NamedTuple):
    """A member of an archive; the fields, in their order, are those of the engine's archive codec.

    ``type`` is the type flag; names and targets are raw, long and sparse forms resolved; ``device`` is as
    ``os.makedev``; ``segments`` are the stored parts (offset, bytes) of a sparse file.
    """

    name: bytes
    type: bytes
    size: int = 0
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    mtime_ns: int = 0
    linkname: bytes = b""
    device: int = 0
    xattrs: Mapping[bytes, bytes] = MappingProxyType({})
    segments: tuple[tuple[int, int], ...] | None = None


class Archives(Protocol):
    """The archive codec."""

    def read(self, file: BinaryIO) -> Iterator[tuple[TarEntry, int]]:
        """The members of a seekable tar, each with the offset in ``file`` where its stored content begins.

        ``InvalidParameter`` with Go's words for what is not an archive (``unexpected EOF``,
        ``archive/tar: invalid tar header``).
        """
        ...

    def is_tar(self, block: bytes) -> bool:
        """Whether a tar may begin with these 512 bytes."""
        ...

    def header(self, entry: TarEntry) -> bytes:
        """The header blocks of a member, extended ones included."""
        ...

    def is_compressed(self, head: bytes) -> bool:
        """Whether a file that begins so is one that ``decompress`` unpacks (gzip, bzip2, xz, zstd)."""
        ...

    def decompress(self, stream: Readable) -> Readable:
        """What a compressed stream holds. Reading it raises ``InvalidParameter`` for a damaged one."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStep:
    """One RUN: a container to be run on top of the layers and thrown away.

    ``user`` and ``working_dir`` are as the image has them; a missing working directory is made. ``volumes``
    get fresh anonymous volumes. No health check runs. ``config`` is the image's configuration for what else
    matters (labels, stop signal).
    """

    container_id: str
    image_id: str
    diff_ids: tuple[str, ...]
    args: tuple[str, ...]
    env: tuple[str, ...]
    user: str
    working_dir: str
    volumes: tuple[str, ...]
    labels: Mapping[str, str]
    stop_signal: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """How a RUN ended. ``diff_id`` is None if nothing changed, and always if it failed."""

    exit_code: int
    error: str = ""
    diff_id: str | None = None


class Runner(Protocol):
    """The runtime, with the build's network, limits and extra hosts already in it."""

    async def run(self, step: RunStep, output: Callable[[int, bytes], None]) -> RunResult:
        """Run a command; ``output`` gets what it writes to 1 and 2 as it comes.

        Errors to start it are raised with Docker's words. When cancelled it kills the container and leaves
        nothing before it returns.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """What came with a download: the values of ``Content-Disposition`` and ``Last-Modified``, empty if absent."""

    content_disposition: str = ""
    last_modified: str = ""


class Fetcher(Protocol):
    """HTTP for ``ADD <url>``."""

    async def fetch(self, url: str, into: int, output: Output) -> Fetched:
        """Download into the descriptor, with progress as ``Record``s. Errors carry Docker's words."""
        ...


class CommandFailed(SystemFailure):
    """A RUN ended with another exit code than zero; the code goes into ``errorDetail``."""

    def __init__(self, text: str, code: int) -> None:
        super().__init__(text)
        self.code = code

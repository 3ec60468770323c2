"""The engine as the builder sees it, in memory: every port of ``compatd.builder.ports``."""

import hashlib
import io
import os
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, cast

from compatd.builder.image import read_image
from compatd.builder.ports import (
    Aux,
    Base,
    BuildEvent,
    Fetched,
    Output,
    Platform,
    Readable,
    Record,
    RunResult,
    RunStep,
    Stream,
    TarEntry,
)
from compatd.builder.solve import BuildRequest, Ports, build
from compatd.errors import NotFound
from compatd.images import compression, tar
from compatd.tasks import Workers

HOST = Platform("linux", "amd64")


class EngineArchives:
    """The engine's own codec: it is pure, so it needs no fake."""

    def read(self, file: BinaryIO) -> Iterator[tuple[TarEntry, int]]:
        return cast("Iterator[tuple[TarEntry, int]]", tar.members(file))

    def is_tar(self, block: bytes) -> bool:
        return tar.looks_like_tar(block)

    def header(self, entry: TarEntry) -> bytes:
        return tar.encode(tar.Entry(*entry))

    def is_compressed(self, head: bytes) -> bool:
        return compression.is_compressed(head)

    def decompress(self, stream: Readable) -> Readable:
        return compression.decompressed(stream)


class FakeLayers:
    """Layers as tars in memory; ``mount`` unpacks them into a temporary directory."""

    def __init__(self) -> None:
        self.tars: dict[str, bytes] = {}
        self._directories: list[str] = []

    def apply(self, stream: Readable) -> str:
        data = b"".join(iter(lambda: stream.read(1 << 16), b""))
        diff_id = "sha256:" + hashlib.sha256(data).hexdigest()
        self.tars[diff_id] = data
        return diff_id

    def mount(self, diff_ids: Sequence[str]) -> int:
        root = tempfile.mkdtemp(prefix="compatd-test-")
        self._directories.append(root)
        for diff_id in diff_ids:
            with tarfile.open(fileobj=io.BytesIO(self.tars[diff_id])) as archive:
                for member in archive:
                    _extract(archive, member, Path(root))
        return os.open(root, os.O_PATH | os.O_DIRECTORY)

    def members(self, diff_id: str) -> list[tarfile.TarInfo]:
        with tarfile.open(fileobj=io.BytesIO(self.tars[diff_id])) as archive:
            return archive.getmembers()

    def content(self, diff_id: str, name: str) -> bytes:
        with tarfile.open(fileobj=io.BytesIO(self.tars[diff_id])) as archive:
            file = archive.extractfile(name)
            assert file is not None
            return file.read()

    def close(self) -> None:
        for directory in self._directories:
            shutil.rmtree(directory, ignore_errors=True)


def _extract(archive: tarfile.TarFile, member: tarfile.TarInfo, root: Path) -> None:
    path = root / member.name
    if path.name == ".wh..wh..opq":
        for child in path.parent.iterdir():
            shutil.rmtree(child) if child.is_dir() and not child.is_symlink() else child.unlink()
        return
    if not member.isdir() and (path.is_symlink() or path.exists()):
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    if member.isdir() and path.is_symlink():
        path.unlink()
    # Python before 3.11.4 has no filters; later ones want to be told.
    archive.extraction_filter = getattr(tarfile, "fully_trusted_filter", None)
    archive.extract(member, root, numeric_owner=True)


class FakeImages:
    """Documents by their digest, names beside them."""

    def __init__(self) -> None:
        self.documents: dict[str, bytes] = {}
        self.parents: dict[str, str] = {}
        self.names: dict[str, str] = {}
        self.resolved: list[tuple[str, Platform | None, bool]] = []

    def add(self, name: str, document: bytes) -> str:
        image_id = "sha256:" + hashlib.sha256(document).hexdigest()
        self.documents[image_id] = document
        self.names[name] = image_id
        return image_id

    async def resolve(self, name: str, *, platform: Platform | None, pull: bool, output: Output) -> Base:
        self.resolved.append((name, platform, pull))
        image_id = self.names.get(name, name)
        if image_id not in self.documents:
            repository = name.partition(":")[0]
            raise NotFound(
                f"pull access denied for {repository}, repository does not exist or may require 'docker login': "
                "denied: requested access to the resource is denied"
            )
        if pull:
            output(Record({"status": f"Pulling from library/{name}", "id": "latest"}))
        return Base(image_id=image_id, document=self.documents[image_id])

    async def read(self, image_id: str) -> Base:
        return Base(image_id=image_id, document=self.documents[image_id])

    async def create(self, document: bytes, *, parent: str) -> str:
        image_id = "sha256:" + hashlib.sha256(document).hexdigest()
        self.documents[image_id] = document
        self.parents[image_id] = parent
        return image_id

    async def tag(self, image_id: str, reference: str) -> None:
        self.names[reference] = image_id


class FakeCache:
    def __init__(self) -> None:
        self.found: dict[str, str] = {}

    async def lookup(self, key: str) -> str | None:
        return self.found.get(key)

    async def record(self, key: str, image_id: str) -> None:
        self.found[key] = image_id


@dataclass
class FakeRunner:
    """Runs nothing: ``behave`` says what a command does."""

    behave: Callable[[RunStep, Callable[[int, bytes], None]], RunResult] = field(
        default=lambda step, output: RunResult(exit_code=0)
    )
    steps: list[RunStep] = field(default_factory=list[RunStep])

    async def run(self, step: RunStep, output: Callable[[int, bytes], None]) -> RunResult:
        self.steps.append(step)
        return self.behave(step, output)


class FakeFetcher:
    """Serves ``pages``: content and headers by URL."""

    def __init__(self) -> None:
        self.pages: dict[str, tuple[bytes, Fetched]] = {}

    async def fetch(self, url: str, into: int, output: Output) -> Fetched:
        if url not in self.pages:
            raise NotFound(f"failed to GET {url} with status 404 Not Found: ")
        content, fetched = self.pages[url]
        os.write(into, content)
        output(Record({"status": "Downloading"}))
        return fetched


def make_tar(files: Mapping[str, str | bytes | tarfile.TarInfo | None], mtime: int = 1_700_000_000) -> bytes:
    """An archive: text or bytes make a file, None a directory, a ``TarInfo`` whatever it says."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, value in files.items():
            member = value if isinstance(value, tarfile.TarInfo) else tarfile.TarInfo(name)
            member.name = name
            member.mtime = mtime
            data = b""
            if value is None:
                member.type, member.mode = tarfile.DIRTYPE, 0o755
            elif not isinstance(value, tarfile.TarInfo):
                data = value.encode() if isinstance(value, str) else value
                member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def member(kind: bytes = tarfile.REGTYPE, **fields: object) -> tarfile.TarInfo:
    """A ``TarInfo`` for ``make_tar``."""
    made = tarfile.TarInfo()
    made.type = kind
    for name, value in fields.items():
        setattr(made, name, value)
    return made


class Engine:
    """All ports, and a base image called ``base`` with a few files. Close it."""

    def __init__(self, workspace: Path) -> None:
        self.workspace = workspace
        self.images = FakeImages()
        self.cache = FakeCache()
        self.layers = FakeLayers()
        self.runner = FakeRunner()
        self.fetcher = FakeFetcher()
        self.workers = Workers(2)
        self.now_ns = 1_800_000_000 * 10**9
        self.events: list[BuildEvent] = []
        self.base = self.add_image(
            "base",
            {
                "etc": None,
                "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nmail:x:8:12:mail:/:/bin/false\n",
                "etc/group": "root:x:0:\nmail:x:12:\nstaff:x:50:\n",
                "tmp": member(tarfile.DIRTYPE, mode=0o1777),
                "usr": None,
                "usr/bin": None,
                "bin": member(tarfile.SYMTYPE, linkname="usr/bin"),
                "file": "content",
            },
            b'{"Cmd":["sh"]}',
        )

    def add_image(self, name: str, files: Mapping[str, str | bytes | tarfile.TarInfo | None], config: bytes) -> str:
        diff_id = self.layers.apply(io.BytesIO(make_tar(files)))
        document = (
            b'{"architecture":"amd64","os":"linux","config":%b,"rootfs":{"type":"layers","diff_ids":["%b"]},'
            b'"history":[{"created_by":"base"}]}' % (config, diff_id.encode())
        )
        return self.images.add(name, document)

    def ports(self) -> Ports:
        def tick() -> int:
            self.now_ns += 10**9
            return self.now_ns

        return Ports(
            images=self.images,
            cache=self.cache,
            layers=self.layers,
            runner=self.runner,
            fetcher=self.fetcher,
            archives=EngineArchives(),
            workers=self.workers,
            now_ns=tick,
        )

    async def build(
        self,
        text: str | bytes | None,
        files: Mapping[str, str | bytes | tarfile.TarInfo | None] | None = None,
        *,
        context: bytes | None = None,
        **options: object,
    ) -> str:
        """Build with a fresh list of events."""
        self.events = []
        everything = dict(files or {})
        if text is not None:
            everything["Dockerfile"] = text
        with tempfile.TemporaryFile(dir=self.workspace) as file:
            file.write(make_tar(everything) if context is None else context)
            file.flush()
            request = BuildRequest(
                context_fd=file.fileno(),
                workspace=self.workspace,
                host=HOST,
                **options,  # type: ignore[arg-type]
            )
            return await build(request, self.ports(), self.events.append)

    def lines(self) -> list[str]:
        """The text put out, in lines, with ids as ``<id>``."""
        text = "".join(event.text for event in self.events if isinstance(event, Stream))
        known = {image_id.removeprefix("sha256:")[:12] for image_id in self.images.documents}
        lines: list[str] = []
        for line in text.splitlines():
            head, _, last = line.rpartition(" ")
            if last in known or (len(last) == 12 and head.endswith(("Running in", "container"))):
                line = f"{head} <id>"
            lines.append(line)
        return lines

    def aux(self) -> list[str]:
        return [event.image_id for event in self.events if isinstance(event, Aux)]

    def top(self, image_id: str) -> str:
        """The diff id of an image's last layer."""
        return read_image(image_id, self.images.documents[image_id]).diff_ids[-1]

    def listing(self, image_id: str) -> list[tuple[str, str, int, int, int]]:
        """An image's last layer: name, type flag, mode, owner, group."""
        return [
            (item.name, item.type.decode(), item.mode, item.uid, item.gid)
            for item in self.layers.members(self.top(image_id))
        ]

    def close(self) -> None:
        self.layers.close()
        self.workers.close()


def as_binary(data: bytes) -> BinaryIO:
    return cast("BinaryIO", io.BytesIO(data))

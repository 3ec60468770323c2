"""Pulling images: from a reference to verified content and applied layers, each byte read once.

The way of a layer. The registry's bytes are appended to an ingest of the content store, which hashes them; one thread
follows that file as it grows and decompresses, another one feeds the layer store. So the download never waits for the
unpacking, memory stays flat whatever the sizes, a broken download goes on where it stopped, in this pull or in a
later one, and the compressed blob is there for a push to give back. The follower sees the end of the file only
after the blob's digest was found right: a lying registry leaves no layer.

What a crash, an error or a cancelled pull leaves: whole blobs and whole layers that nothing refers to, and
ingests to resume; the owner of the image records sweeps them.
"""

import asyncio
import errno
import os
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar, cast

from compatd.errors import Cancelled, EngineError, NotFound, SystemFailure
from compatd.images.compression import decompressed
from compatd.images.content import ContentStore, DiffId, Digest, Ingest, digest_of
from compatd.images.credentials import Credentials
from compatd.images.manifest import (
    DOCUMENT_LIMIT_BYTES,
    Descriptor,
    ImageConfig,
    Index,
    Manifest,
    Platform,
    decode_config,
    decode_manifest,
    host_platform,
    select,
)
from compatd.images.progress import Progress
from compatd.images.reference import DEFAULT_TAG, Reference
from compatd.images.registry import RegistryClient, Repository
from compatd.images.registry_faults import RegistryFault, pull_error
from compatd.images.streams import Counted, Readable
from compatd.tasks import Workers, spawn

T = TypeVar("T")

_BATCH_BYTES = 1 << 20
_CHUNK_BYTES = 1 << 20
_CHUNKS_AHEAD = 4
_PROGRESS_INTERVAL_S = 0.1
_SHORT_ID = slice(len("sha256:"), len("sha256:") + 12)


class Layers(Protocol):
    """What a pull needs of the layer store."""

    def has(self, diff_id: DiffId) -> bool: ...
    def apply(self, stream: Readable, *, expected: DiffId | None = None) -> DiffId: ...
    def settle(self, diff_ids: Iterable[DiffId]) -> None: ...


Report = Callable[[Progress], object]
Hold = Callable[[Iterable[str]], object]


@dataclass(frozen=True, slots=True, kw_only=True)
class Pulled:
    """An image that is in the stores, not yet recorded by anybody."""

    reference: Reference
    digest: Digest
    """Of what the reference points to, maybe an index: what ``name@sha256:…`` means."""
    image: Digest
    """The image id: digest of its config blob."""
    config: ImageConfig
    diff_ids: tuple[DiffId, ...]
    blobs: tuple[Digest, ...]
    """Everything in the content store that belongs to it: index, manifest, config, compressed layers."""


class Puller:
    """All pulls of the daemon: they share downloads of the same layer and the limit of how many there are at once."""

    def __init__(
        self,
        *,
        client: RegistryClient,
        content: ContentStore,
        layers: Layers,
        workers: Workers,
        max_downloads: int = 3,
        attempts: int = 5,
        retry_step_s: float = 1,
    ) -> None:
        """``attempts`` to download a layer; the wait before the next one grows by five ``retry_step_s`` each time."""
        self._client = client
        self._content = content
        self._layers = layers
        self._workers = workers
        # Apart from the common workers: these threads wait for what the common ones write, for as long as it takes.
        self._unpackers = Workers(2 * max_downloads)
        self._slots = asyncio.Semaphore(max_downloads)
        self._attempts = attempts
        self._retry_step_s = retry_step_s
        self._transfers: dict[DiffId, _Transfer] = {}

    def close(self) -> None:
        """After the last pull has ended."""
        self._unpackers.close()

    async def pull(
        self,
        reference: Reference,
        *,
        credentials: Credentials,
        progress: Report,
        platform: Platform | None = None,
        hold: Hold = lambda _: None,
        known: Callable[[Digest], bool] = lambda _: False,
    ) -> Pulled:
        """Get the image that ``reference`` (with a tag or a digest) names, for ``platform`` or this machine.

        ``progress`` is called on the event loop, first when the registry has answered; what fails before or after
        that raises the same EngineErrors. ``hold`` is told the digests and diff ids which have to be kept, before
        they are relied on. Everything survives a power failure when this returns. ``digest_line`` and ``status_line``
        are the caller's to send, for only it knows what the name meant before. Of an image ``known`` by its id, the
        layers are not looked at again.
        """

        async def attempt(repository: Repository) -> Pulled:
            return await self._pull_from(repository, reference, platform or host_platform(), progress, hold, known)

        return await self._at_endpoints(reference, credentials, attempt)

    async def tags(self, reference: Reference, credentials: Credentials) -> list[str]:
        """All tags of the repository, for ``docker pull -a``."""
        return await self._at_endpoints(reference, credentials, Repository.tags)

    async def _at_endpoints(
        self, reference: Reference, credentials: Credentials, attempt: Callable[[Repository], Awaitable[T]]
    ) -> T:
        """Mirrors are tried until one can do it; plain HTTP where nobody speaks HTTPS (pullEndpoints in moby)."""
        fault: EngineError = SystemFailure(f"no endpoints found for {reference.familiar}")
        for endpoint in await self._client.endpoints(reference.domain):
            try:
                return await attempt(await self._client.repository(endpoint, reference.path, credentials))
            except SystemFailure as error:
                fault = error
                if not endpoint.mirror and not (isinstance(error, RegistryFault) and not error.reached):
                    break
        raise pull_error(fault, reference)

    async def _pull_from(
        self,
        repository: Repository,
        reference: Reference,
        platform: Platform,
        progress: Report,
        hold: Hold,
        known: Callable[[Digest], bool],
    ) -> Pulled:
        top, found = await self._resolve(repository, reference, hold)
        progress(Progress(status=f"Pulling from {reference.path}", id=reference.digest or reference.tag or DEFAULT_TAG))
        digest = top
        if isinstance(found, Index):
            digest = select(found, platform)[0].digest
            hold([digest])
            found = await self._manifest(repository, digest, reference)
        if isinstance(found, Index):
            raise SystemFailure("unsupported manifest format")
        layers = found.layers
        hold([found.config.digest, *(layer.digest for layer in layers)])
        config = await self._config(repository, found.config)
        diff_ids = tuple(config.rootfs.diff_ids)
        if len(diff_ids) != len(layers):
            raise SystemFailure("layers from manifest don't match image configuration")
        if config.os not in ("linux", ""):
            raise SystemFailure(
                f'image operating system "{config.os}" cannot be used on this platform: '
                "operating system is not supported"
            )
        hold(diff_ids)
        if not known(found.config.digest):
            await self._get_layers(repository, layers, diff_ids, progress)
            await self._workers.run(self._layers.settle, diff_ids)
        return Pulled(
            reference=reference,
            digest=top,
            image=found.config.digest,
            config=config,
            diff_ids=diff_ids,
            blobs=tuple(dict.fromkeys((top, digest, found.config.digest, *(layer.digest for layer in layers)))),
        )

    # documents

    async def _resolve(
        self, repository: Repository, reference: Reference, hold: Hold
    ) -> tuple[Digest, Manifest | Index]:
        digest = reference.digest
        if digest is None:
            resolved = await repository.resolve(reference.tag or DEFAULT_TAG)
            digest = resolved.digest
            if resolved.data is not None:
                hold([digest])
                document = decode_manifest(resolved.data, resolved.media_type, name=reference.familiar)
                await self._workers.run(self._content.write, resolved.data)
                return digest, document
        hold([digest])
        return digest, await self._manifest(repository, digest, reference)

    async def _manifest(self, repository: Repository, digest: Digest, reference: Reference) -> Manifest | Index:
        stored = await self._workers.run(self._stored, digest)
        if stored is not None:
            return decode_manifest(stored, "", name=reference.familiar)
        data, media_type = await repository.manifest(digest)
        document = decode_manifest(data, media_type, name=reference.familiar)
        await self._workers.run(self._content.write, data)
        return document

    async def _config(self, repository: Repository, descriptor: Descriptor) -> ImageConfig:
        digest = descriptor.digest
        stored = await self._workers.run(self._stored, digest)
        if stored is not None:
            return decode_config(stored)
        try:
            data = await repository.document(digest)
        except RegistryFault as fault:
            text = f"error pulling image configuration: {fault}"
            raise RegistryFault(text, reached=fault.reached, temporary=fault.temporary) from fault
        if digest_of(data) != digest:
            raise SystemFailure(
                f"error pulling image configuration: image config verification failed for digest {digest}"
            )
        config = decode_config(data)
        await self._workers.run(self._content.write, data)
        return config

    def _stored(self, digest: Digest) -> bytes | None:
        return self._content.read(digest, DOCUMENT_LIMIT_BYTES) if self._content.has(digest) else None

    # layers

    async def _get_layers(
        self, repository: Repository, layers: Sequence[Descriptor], diff_ids: Sequence[DiffId], progress: Report
    ) -> None:
        there = await self._workers.run(lambda: {diff_id for diff_id in diff_ids if self._layers.has(diff_id)})
        wanted: list[tuple[_View, Descriptor, DiffId]] = []
        for layer, diff_id in zip(layers, diff_ids, strict=True):
            view = _View(layer, progress)
            if diff_id in there:
                view.show("Already exists")
            else:
                view.show("Pulling fs layer")
                wanted.append((view, layer, diff_id))
        joined: list[tuple[_View, _Transfer]] = []
        try:
            for view, layer, diff_id in wanted:
                joined.append((view, await self._join(repository, layer, diff_id, view)))
            pending = {transfer.task for _, transfer in joined}
            # An image grows from the bottom: so it is shown, in whatever order its layers come. A failure is shown
            # at once, though.
            for view, transfer in joined:
                view.come_forward()
                while not transfer.task.done():
                    done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                    _raise_failures(done)
                _raise_failures([transfer.task])
                view.complete()
        finally:
            for view, transfer in joined:
                await self._leave(transfer, view)

    async def _join(self, repository: Repository, layer: Descriptor, diff_id: DiffId, view: "_View") -> "_Transfer":
        while (transfer := self._transfers.get(diff_id)) is not None and transfer.given_up:
            await _ended(transfer.task)
        if transfer is None:
            transfer = self._transfers[diff_id] = _Transfer(layer, diff_id)
            transfer.task = spawn(self._transfer(repository, transfer), name=f"layer {layer.digest}")
        transfer.add(view)
        return transfer

    async def _leave(self, transfer: "_Transfer", view: "_View") -> None:
        """The last pull to leave an unfinished transfer ends it."""
        transfer.views.remove(view)
        if not transfer.views and not transfer.task.done():
            transfer.given_up = True
            transfer.task.cancel()
            await _ended(transfer.task)

    async def _transfer(self, repository: Repository, transfer: "_Transfer") -> EngineError | None:
        """Make the layer; a failure is returned, for all the pulls that wait for it."""
        try:
            if self._slots.locked():
                transfer.show("Waiting")
            async with self._slots:
                if not await self._workers.run(self._layers.has, transfer.diff_id):
                    await self._fetch(repository, transfer)
        except EngineError as error:
            return error
        except OSError as error:
            return SystemFailure(f"write {transfer.layer.digest}: {os.strerror(error.errno or 0).lower()}")
        finally:
            del self._transfers[transfer.diff_id]
        return None

    async def _fetch(self, repository: Repository, transfer: "_Transfer") -> None:
        layer = transfer.layer
        if (blob := await _whole(self._workers.run(self._open_blob, layer), release=_close)) is not None:
            # The blob outlived its layer: there is nothing to download.
            growing = _Growing(blob)
            growing.advance(layer.size)
            growing.finish()
            transfer.downloaded()
            async with self._applying(transfer, growing) as applying:
                await _applied(applying)
            return
        while True:
            opening = self._workers.run(self._content.writer, f"layer-{layer.digest}", layer.digest, layer.size)
            ingest = await _whole(opening, release=Ingest.close)
            resumed = ingest.offset > 0
            try:
                if ingest.free_bytes() < layer.size - ingest.offset:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                if await self._download(repository, transfer, ingest):
                    return
            finally:
                await _whole(self._workers.run(ingest.close))
            if not resumed:
                raise SystemFailure(f"filesystem layer verification failed for digest {layer.digest}")
            # What an earlier pull left may have been wrong: once more, from the beginning.

    def _open_blob(self, layer: Descriptor) -> int | None:
        try:
            if self._content.info(layer.digest).size_bytes == layer.size:
                return os.open(self._content.path(layer.digest), os.O_RDONLY | os.O_CLOEXEC)
        except (NotFound, FileNotFoundError):
            pass
        return None

    async def _download(self, repository: Repository, transfer: "_Transfer", ingest: Ingest) -> bool:
        """Download and apply; False if the bytes were not those of the digest (the ingest is discarded then)."""
        growing = _Growing(ingest.reader())
        growing.advance(ingest.offset)
        async with self._applying(transfer, growing) as applying:
            complete = await self._receive(repository, transfer, ingest, growing)
            transfer.show("Verifying Checksum")
            if not complete or ingest.digest != transfer.layer.digest:
                await _whole(self._workers.run(ingest.abort))
                return False
            growing.finish()
            transfer.downloaded()
            await _whole(self._workers.run(ingest.commit))
            await _applied(applying)
        return True

    async def _receive(
        self, repository: Repository, transfer: "_Transfer", ingest: Ingest, growing: "_Growing"
    ) -> bool:
        """Fill the ingest; False if the registry sent another number of bytes than the manifest says."""
        layer = transfer.layer
        for attempt in range(1, self._attempts + 1):
            if ingest.offset == layer.size:
                return True
            try:
                async with repository.blob(layer.digest, ingest.offset) as chunks:
                    async for batch in _batches(chunks):
                        if ingest.offset + sum(map(len, batch)) > layer.size:
                            return False
                        await self._store(transfer, ingest, growing, batch)
                return ingest.offset == layer.size
            except RegistryFault as fault:
                if not fault.temporary or attempt == self._attempts:
                    raise
            for left in range(attempt * 5, 0, -1):
                transfer.show(f"Retrying in {left} second{'s' if left != 1 else ''}")
                await asyncio.sleep(self._retry_step_s)
        raise AssertionError("unreachable")

    async def _store(self, transfer: "_Transfer", ingest: Ingest, growing: "_Growing", batch: Sequence[bytes]) -> None:
        def write() -> None:
            for chunk in batch:
                ingest.write(chunk)
            growing.advance(ingest.offset)

        await _whole(self._workers.run(write))
        transfer.advance("Downloading", ingest.offset)

    @asynccontextmanager
    async def _applying(
        self, transfer: "_Transfer", growing: "_Growing"
    ) -> AsyncGenerator["asyncio.Task[_Outcome[DiffId]]", None]:
        """A thread makes the layer of what ``growing`` gives; it has ended when the block is left."""
        loop = asyncio.get_running_loop()

        def seen(offset: int) -> None:
            loop.call_soon_threadsafe(transfer.advance, "Extracting", offset)

        ahead = _ReadAhead()

        def decompress() -> None:
            ahead.fill(lambda: decompressed(_Watched(growing, seen)))

        def apply() -> DiffId:
            try:
                return self._layers.apply(ahead, expected=transfer.diff_id)
            finally:
                ahead.close()

        decompressing = spawn(_outcome(self._unpackers.run(decompress)), name=f"decompress {transfer.diff_id}")
        applying = spawn(_outcome(self._unpackers.run(apply)), name=f"apply {transfer.diff_id}")
        try:
            yield applying
        finally:
            growing.give_up()
            await _ended(applying, decompressing)
            growing.close()


class _Growing:
    """A file that one thread reads while another one writes it: at its end, the reader waits for more.

    Owns the descriptor.
    """

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._changed = threading.Condition()
        self._at = 0
        self._size = 0
        self._finished = False
        self._given_up = False

    def advance(self, size: int) -> None:
        """The file has ``size`` bytes by now."""
        with self._changed:
            self._size = size
            self._changed.notify_all()

    def finish(self) -> None:
        """There will be no more, and all of it is right."""
        with self._changed:
            self._finished = True
            self._changed.notify_all()

    def give_up(self) -> None:
        """Make the reader fail, unless it has ended."""
        with self._changed:
            self._given_up = True
            self._changed.notify_all()

    def close(self) -> None:
        """When nobody reads any more."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def read(self, size: int, /) -> bytes:
        with self._changed:
            while not self._given_up and not self._finished and self._at == self._size:
                self._changed.wait()
            if self._given_up:
                raise Cancelled("the download ended before the layer was complete")
            available = self._size - self._at
        data = os.pread(self._fd, min(size, available), self._at)
        self._at += len(data)
        return data


class _ReadAhead:
    """A stream that one thread fills a little ahead of the other one, which reads: each has a processor to use."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._chunks = deque[bytes]()
        self._at = 0
        self._ended = False
        self._error: Exception | None = None

    def fill(self, open_stream: Callable[[], Readable]) -> None:
        """Read the stream to its end, or until ``close``; its error is the reader's."""
        try:
            stream = open_stream()
            while data := stream.read(_CHUNK_BYTES):
                with self._changed:
                    self._changed.wait_for(lambda: len(self._chunks) < _CHUNKS_AHEAD or self._ended)
                    if self._ended:
                        return
                    self._chunks.append(data)
                    self._changed.notify_all()
        except Exception as error:
            self._error = error
        finally:
            self.close()

    def close(self) -> None:
        """Nothing comes any more, or nothing is wanted any more."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def read(self, size: int, /) -> bytes:
        with self._changed:
            self._changed.wait_for(lambda: self._chunks or self._ended)
            if not self._chunks:
                if self._error is not None:
                    raise self._error
                return b""
            chunk = self._chunks[0]
            data = chunk[self._at : self._at + size]  # no copy when that is all of it
            self._at += len(data)
            if self._at == len(chunk):
                self._at = 0
                self._chunks.popleft()
                self._changed.notify_all()
            return data


class _Watched(Counted):
    """A stream that tells now and then how far it has been read."""

    def __init__(self, stream: Readable, seen: Callable[[int], None]) -> None:
        super().__init__(stream)
        self._seen = seen
        self._told_s = 0.0

    def read(self, size: int, /) -> bytes:
        data = super().read(size)
        if (now_s := time.monotonic()) - self._told_s >= _PROGRESS_INTERVAL_S:
            self._told_s = now_s
            self._seen(self.passed)
        return data


class _Transfer:
    """A layer on its way, and those who watch it."""

    task: "asyncio.Task[EngineError | None]"

    def __init__(self, layer: Descriptor, diff_id: DiffId) -> None:
        self.layer = layer
        self.diff_id = diff_id
        self.views: list[_View] = []
        self.given_up = False
        self._last = ("", 0)
        self._told_s = 0.0
        self._downloaded = False

    def add(self, view: "_View") -> None:
        self.views.append(view)
        if self._last[0]:
            view.show(*self._last)

    def show(self, status: str, current: int = 0) -> None:
        self._last = (status, current)
        for view in self.views:
            view.show(status, current)

    def downloaded(self) -> None:
        self._downloaded = True
        self.show("Download complete")

    def advance(self, status: str, current: int) -> None:
        """Show how far ``status`` has come, not too often. Extraction runs beside the download, but is shown after."""
        now_s = time.monotonic()
        if (status == "Extracting") != self._downloaded or (
            now_s - self._told_s < _PROGRESS_INTERVAL_S and current < self.layer.size
        ):
            return
        self._told_s = now_s
        self.show(status, current)


class _View:
    """One layer as one pull shows it. Extraction is shown when the layers below are complete, as Docker does it."""

    def __init__(self, layer: Descriptor, progress: Report) -> None:
        self._id = layer.digest[_SHORT_ID]
        self._size = layer.size
        self._progress = progress
        self._in_front = False
        self._kept = 0

    def show(self, status: str, current: int = 0) -> None:
        if status == "Extracting" and not self._in_front:
            self._kept = current
            return
        total = self._size if current else 0
        self._progress(Progress(status=status, id=self._id, detailed=True, current=current, total=total))

    def come_forward(self) -> None:
        self._in_front = True
        if self._kept:
            self.show("Extracting", self._kept)

    def complete(self) -> None:
        self.show("Extracting", self._size)
        self.show("Pull complete")


async def _batches(chunks: AsyncIterator[bytes]) -> AsyncGenerator[list[bytes], None]:
    """Chunks together, about _BATCH_BYTES or what comes in a short while; the rest too when the source fails."""
    batch: list[bytes] = []
    size, since_s = 0, time.monotonic()
    try:
        async for chunk in chunks:
            batch.append(chunk)
            size += len(chunk)
            if size >= _BATCH_BYTES or time.monotonic() - since_s >= _PROGRESS_INTERVAL_S:
                yield batch
                batch, size, since_s = [], 0, time.monotonic()
    except RegistryFault:
        if batch:
            yield batch
        raise
    if batch:
        yield batch


def _raise_failures(tasks: "Iterable[asyncio.Task[EngineError | None]]") -> None:
    for task in tasks:
        if (error := task.result()) is not None:
            raise error


# Threads cannot be cancelled: whoever shares a descriptor with one waits for its end, cancelled or not.


@dataclass(frozen=True, slots=True)
class _Outcome(Generic[T]):
    value: T | None
    error: Exception | None


async def _outcome(work: Coroutine[Any, Any, T]) -> _Outcome[T]:
    try:
        return _Outcome(await work, None)
    except Exception as error:
        return _Outcome(None, error)


async def _ended(*tasks: "asyncio.Task[Any]") -> None:
    """Wait for the end of ``tasks``, whatever it is; a cancellation meanwhile is raised afterwards."""
    cancelled = False
    while not all(task.done() for task in tasks):
        try:
            await asyncio.wait(tasks)
        except asyncio.CancelledError:
            cancelled = True
    if cancelled:
        raise asyncio.CancelledError


async def _whole(work: Coroutine[Any, Any, T], *, release: Callable[[T], object] | None = None) -> T:
    """Await ``work`` to its end even if cancelled meanwhile; then its value is given to ``release``."""
    task = spawn(_outcome(work), name="pull step")
    try:
        await _ended(task)
    except asyncio.CancelledError:
        value = task.result().value
        if release is not None and value is not None:
            release(value)
        raise
    return _value(task.result())


def _value(outcome: _Outcome[T]) -> T:
    if outcome.error is not None:
        raise outcome.error
    return cast("T", outcome.value)


async def _applied(applying: "asyncio.Task[_Outcome[DiffId]]") -> None:
    try:
        _value(await asyncio.shield(applying))
    except EngineError as error:
        raise SystemFailure(f"failed to register layer: {error}") from error


def _close(fd: int | None) -> None:
    if fd is not None:
        os.close(fd)

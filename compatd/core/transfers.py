"""Images on their way in and out: pull, load, save, import; and logins at registries.

Everything a transfer has stored is leased until a record refers to it; what no record took is swept when the lease
ends, so an interrupted transfer leaves nothing but resumable downloads.
"""

import asyncio
import os
import platform as machine
import time
from collections.abc import AsyncIterable, AsyncIterator, Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import msgspec

from compatd.config import Config
from compatd.core import bodies, progress
from compatd.core.images import Image, Images, read_name
from compatd.errors import EngineError, InvalidParameter, NotFound, SystemFailure, Unsupported
from compatd.images import archive
from compatd.images import progress as lines
from compatd.images.content import ContentStore, DiffId, Digest
from compatd.images.layers import LayerStore
from compatd.images.manifest import (
    History,
    ImageConfig,
    Platform,
    RootFs,
    RunConfig,
    encode_config,
    parse_platform,
    platform_of,
)
from compatd.images.reference import Reference, parse_normalized, parse_pull
from compatd.tasks import Workers
from compatd.wire.parameters import ImportParameters, PullParameters
from compatd.wire.times import format_time
from compatd.wire.types import images as wire
from compatd.wire.types.images import ErrorDetail, Progress, ProgressDetail
from compatd.wire.types.system import AuthConfig, AuthResponse

if TYPE_CHECKING:
    from compatd.images import credentials, pull, registry

Report = Callable[[Progress], None]


class Transfers:
    """Owns the registry client, which is made when it is first needed: most starts of an engine pull nothing."""

    def __init__(
        self,
        *,
        config: Config,
        images: Images,
        content: ContentStore,
        layers: LayerStore,
        workers: Workers,
    ) -> None:
        self._config = config
        self._images = images
        self._content = content
        self._layers = layers
        self._workers = workers
        self._client: registry.RegistryClient | None = None
        self._puller: pull.Puller | None = None

    async def close(self) -> None:
        """Close connections. After the last transfer has ended."""
        if self._puller is not None:
            self._puller.close()
        if self._client is not None:
            await self._client.close()

    def _connect(self) -> "tuple[registry.RegistryClient, pull.Puller]":
        if self._client is None or self._puller is None:
            # A quarter of a second that a start need not spend.
            from compatd.images import pull, registry, registry_options

            options = registry_options.RegistryOptions(
                mirrors=tuple(self._config.registry_mirrors),
                insecure=tuple(self._config.insecure_registries),
                proxies=registry_options.proxies_of(os.environ),
                user_agent=f"docker/28.5.2 go/go1.24 kernel/{machine.release()} os/linux arch/amd64",
            )
            self._client = registry.RegistryClient(options, self._workers)
            self._puller = pull.Puller(
                client=self._client,
                content=self._content,
                layers=self._layers,
                workers=self._workers,
                max_downloads=self._config.max_concurrent_downloads,
            )
        return self._client, self._puller

    # -------------------------------------------------------------------- pull

    def pull(self, parameters: PullParameters) -> AsyncIterator[Progress]:
        """Pull one image, or every tag of a repository. Errors in Docker's words."""
        reference = parse_pull(parameters.image, parameters.tag)
        wanted = parse_platform(parameters.platform) if parameters.platform else None

        async def work(report: Report) -> None:
            if reference.is_name_only:
                _, puller = self._connect()
                tags = await puller.tags(reference, registry_credentials(parameters.auth))
                newer = False
                for tag in tags:
                    one = reference.with_tag(tag)
                    before = self._images.by_name(one)
                    image = await self.pull_image(one, wanted, parameters.auth, report, status=False)
                    newer = newer or before is None or before.id != image.id
                report(_pull_progress(lines.status_line(reference, newer=newer)))
            else:
                await self.pull_image(reference, wanted, parameters.auth, report)

        return progress.stream(work, name=f"pull {reference.familiar}")

    async def pull_image(
        self,
        reference: Reference,
        platform: Platform | None,
        auth: AuthConfig | None,
        report: Report,
        *,
        status: bool = True,
    ) -> Image:
        """Pull one image, record it and report as ``POST /images/create`` does, the last line only if ``status``."""
        _, puller = self._connect()
        before = self._images.by_name(reference)
        with self._leased() as hold:
            pulled = await puller.pull(
                reference,
                credentials=registry_credentials(auth),
                platform=platform,
                progress=lambda item: report(_pull_progress(item)),
                hold=lambda names: [hold(name) for name in names],
                known=lambda image_id: self._images.find(image_id) is not None,
            )
            raw = await self._workers.run(self._content.read, pulled.image, 16 << 20)
            named = [reference.trimmed().with_digest(pulled.digest)]
            if reference.digest is None:
                named.append(reference)
            image = await self._images.add(raw, names=named, blobs=[str(blob) for blob in pulled.blobs], stamp=False)
        report(_pull_progress(lines.digest_line(pulled.digest)))
        newer = before is None or before.id != image.id
        if status:
            report(_pull_progress(lines.status_line(reference, newer=newer)))
        if platform is not None and (warning := lines.platform_warning(reference, pulled.config, platform)) is not None:
            report(_pull_progress(warning))
        self._images.publish("pull", image, reference.familiar_name, subject=reference.familiar)
        return image

    @contextmanager
    def _leased(self) -> Generator[Callable[[str], None]]:
        """A function that keeps a diff id or digest from being swept; what no record took goes at the end."""
        held = set[str]()
        try:
            with self._images.lease() as held:
                yield held.add
        finally:
            leftovers = held - self._images.live_layers() - self._images.live_blobs()
            if leftovers:
                self._images.sweep_later([DiffId(item) for item in leftovers], [Digest(item) for item in leftovers])

    # -------------------------------------------------------------- load, save

    def load(
        self, body: AsyncIterable[bytes], *, quiet: bool, platform: wire.Platform | None
    ) -> AsyncIterator[Progress]:
        """Load every image of an archive."""

        async def work(report: Report) -> None:
            try:
                await self._load(body, quiet, wire_platform(platform), report)
            except EngineError as error:
                # Docker has sent its head by then, whatever is wrong with the archive.
                report(Progress(error_detail=ErrorDetail(message=str(error)), error=str(error)))

        return progress.stream(work, name="load")

    async def _load(self, body: AsyncIterable[bytes], quiet: bool, platform: Platform | None, report: Report) -> None:
        loop = asyncio.get_running_loop()

        def advance(item: archive.LoadProgress) -> None:
            record = Progress(
                status="Loading layer",
                id=item.id,
                progress_detail=ProgressDetail(current=item.current_bytes, total=item.total_bytes),
            )
            loop.call_soon_threadsafe(report, record)

        with self._leased() as hold:

            def read(stream: bodies.Feed) -> list[archive.LoadedImage]:
                loaded = archive.load(
                    stream,
                    self._content,
                    self._layers,
                    hold=hold,
                    progress=advance if not quiet else lambda _: None,
                    platform=platform,
                )
                self._layers.settle({diff_id for image in loaded for diff_id in image.diff_ids})
                return loaded

            for loaded in await bodies.consume(body, read, self._workers):
                names = [parse_normalized(name) for name in loaded.references]
                blobs = [str(loaded.manifest_digest)] if loaded.manifest_digest else []
                image = await self._images.add(loaded.config, names=names, blobs=blobs, stamp=False)
                if not names:
                    report(Progress(stream=f"Loaded image ID: {image.id}\n"))
                for name in names:
                    report(Progress(stream=f"Loaded image: {name.familiar}\n"))
                self._images.publish("load", image, image.id)

    def save(self, references: Sequence[str], platform: wire.Platform | None) -> AsyncIterator[bytes]:
        """An archive of images, in both forms that Docker writes at once."""
        chosen: dict[str, archive.SavedImage] = {}
        for text in references:
            try:
                image = self._images.get(text)
            except NotFound as error:
                raise NotFound(f"No such image: {text}") from error
            wanted = wire_platform(platform)
            if wanted is not None and platform_of(image.config) not in wanted.compatible():
                raise SystemFailure(f"no suitable export target found for platform {wanted}")
            known = chosen.get(image.id)
            names = list(known.references if known else ())
            names += [name for name in self._names_to_save(text, image) if name not in names]
            chosen[image.id] = archive.SavedImage(config=image.record.raw, references=tuple(names))
            self._images.publish("save", image, image.id)
        return bodies.produce(lambda: archive.save(list(chosen.values()), self._layers), self._workers)

    def _names_to_save(self, text: str, image: Image) -> list[str]:
        """An id saves no name, a repository every tag of this image, a tag itself."""
        if image.id.removeprefix("sha256:").startswith(text.removeprefix("sha256:")):
            return []
        reference = parse_normalized(text)
        if reference.digest is not None:
            return []
        return [str(reference.with_default_tag())]

    # ------------------------------------------------------------------ import

    def import_(self, parameters: ImportParameters, body: AsyncIterable[bytes]) -> AsyncIterator[Progress]:
        """Make an image of a root file system's tar."""
        if parameters.source != "-":
            raise Unsupported("importing from a URL is not supported by this engine: send the archive as the body")
        name = read_name(parameters.repo, parameters.tag)
        wanted = parse_platform(parameters.platform) if parameters.platform else parse_platform("linux")
        if wanted.os != "linux":
            raise InvalidParameter(f"operating system is not supported: {wanted.os}")
        run_config = RunConfig()
        if parameters.changes:
            from compatd.core.changes import apply_changes  # it brings the builder along

            run_config = apply_changes(run_config, parameters.changes)

        async def work(report: Report) -> None:
            with self._leased() as hold:
                diff_id = await bodies.consume(
                    body, lambda stream: archive.import_root(stream, self._layers), self._workers
                )
                hold(str(diff_id))
                await self._workers.run(self._layers.settle, [diff_id])
                created = format_time(time.time_ns())
                comment = parameters.message or "Imported from -"
                document = ImageConfig(
                    created=created,
                    comment=comment,
                    architecture=wanted.architecture,
                    variant=wanted.variant,
                    os="linux",
                    docker_version="28.5.2",
                    config=run_config,
                    container_config=RunConfig(),
                    rootfs=RootFs(diff_ids=[diff_id]),
                    history=[History(created=created, comment=comment)],
                )
                image = await self._images.add(encode_config(document), names=[name] if name else [])
            report(Progress(status=image.id))
            if name:
                self._images.publish("tag", image, name.familiar)
            self._images.publish("import", image, image.id)

        return progress.stream(work, name="import")

    # --------------------------------------------------------------- downloads

    async def download(self, url: str, into: int, report: Report) -> Mapping[str, str]:
        """Fetch what is at a web address into a descriptor; the head of the answer. Errors in Docker's words."""
        client, _ = self._connect()

        def advance(current: int, total: int) -> None:
            item = lines.Progress(status="Downloading", detailed=True, current=current, total=total)
            report(_pull_progress(item))

        return await client.download(url, into, advance)

    # ------------------------------------------------------------------ logins

    async def login(self, credentials: AuthConfig) -> AuthResponse:
        """Try credentials at the registry they are for, Docker Hub by default."""
        client, _ = self._connect()
        auth = credentials
        if not auth.serveraddress:
            auth = msgspec.structs.replace(auth, serveraddress="https://index.docker.io/v1/")
        token = await client.check_login(registry_credentials(auth))
        return AuthResponse(identity_token=token, status="Login Succeeded")


def registry_credentials(auth: AuthConfig | None) -> "credentials.Credentials":
    """The registry client's form of what a client sent."""
    from compatd.images import credentials

    if auth is None:
        return credentials.ANONYMOUS
    return credentials.Credentials(
        username=auth.username,
        password=auth.password,
        identity_token=auth.identitytoken,
        registry_token=auth.registrytoken,
        server_address=auth.serveraddress,
    )


def _pull_progress(item: lines.Progress) -> Progress:
    if not item.detailed:
        return Progress(status=item.status, id=item.id)
    return msgspec.convert(item.document(), type=Progress)


def wire_platform(platform: wire.Platform | None) -> Platform | None:
    """The platform that a request names."""
    if platform is None:
        return None
    return Platform(os=platform.os, architecture=platform.architecture, variant=platform.variant).normalized()

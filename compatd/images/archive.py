"""Images as files: what ``docker save`` writes, ``docker load`` and ``docker import`` read.

``save`` writes what Docker 25 and later write: an OCI image layout whose layers are uncompressed tars, so that
their blobs' digests are their diff ids, with ``manifest.json`` and ``repositories`` for older readers. Entries come
in order of their names, dated like the image (configs, layers) or at the epoch (documents made here).

``load`` takes that, Docker's older form (a directory with a ``layer.tar`` for each layer, links between equal
ones), and any OCI image layout (image-spec image-layout.md), whole or compressed. The archive comes as a stream in
whatever order: layers go to the layer store as they pass, small documents are kept in memory, and what the
archive means is decided at its end. So nothing is written twice; what was stored for nothing is the caller's to
sweep, which ``hold`` names.
"""

import posixpath
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec

from compatd.errors import Conflict, InvalidParameter, NotFound
from compatd.images.compression import Peeked, decompressed, is_compressed
from compatd.images.content import ContentStore, DiffId, Digest, digest_of
from compatd.images.layers import LayerStore
from compatd.images.manifest import (
    DOCUMENT_LIMIT_BYTES,
    OCI_CONFIG,
    OCI_INDEX,
    OCI_MANIFEST,
    Descriptor,
    Index,
    Manifest,
    Platform,
    decode_config,
    decode_manifest,
    host_platform,
    select,
)
from compatd.images.reference import parse_normalized
from compatd.images.streams import Counted, Readable
from compatd.images.tar import (
    DIRECTORY,
    END,
    LINK,
    REGULAR,
    SYMLINK,
    BadArchive,
    Entry,
    TarReader,
    components,
    encode,
    looks_like_tar,
    padding,
)

OCI_LAYER = "application/vnd.oci.image.layer.v1.tar"
IMAGE_NAME = "io.containerd.image.name"
REF_NAME = "org.opencontainers.image.ref.name"

_READ_BYTES = 1 << 20
_MAX_DOCUMENTS_BYTES = 64 << 20
_MAX_LINKS = 10_000
_MAX_INDEX_DEPTH = 4
_BLOB = re.compile(rb"blobs/sha256/([0-9a-f]{64})")
_FRACTION = re.compile(r"\.(\d{6})\d*")


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedImage:
    """What to save: the config's bytes and the names it is saved under (normalised, with a tag), perhaps none."""

    config: bytes
    references: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedImage:
    """An image whose layers are all in the layer store."""

    config: bytes
    config_digest: Digest
    diff_ids: tuple[DiffId, ...]
    references: tuple[str, ...]
    """Normalised, with a tag, in the archive's order."""
    manifest_digest: Digest | None = None
    """Of an OCI layout with compressed layers: its manifest, in the content store with the config and the layers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadProgress:
    """A layer on its way; ``id`` is short."""

    id: str
    current_bytes: int
    total_bytes: int


def save(images: Sequence[SavedImage], layers: LayerStore) -> Iterator[bytes]:
    """The archive, in pieces of at most a MiB. Missing layers are reported (NotFound) before the first piece.

    Equal images in equal order give equal bytes. Every layer is written once.
    """
    plan = _Plan(images, layers)
    return plan.write()


class _Plan:
    def __init__(self, images: Sequence[SavedImage], layers: LayerStore) -> None:
        self._layers = layers
        self._documents: dict[Digest, tuple[bytes, int]] = {}
        self._tars: dict[DiffId, tuple[int, int]] = {}
        self._created_s = 0
        index: list[dict[str, Any]] = []
        manifest: list[dict[str, Any]] = []
        repositories: dict[str, dict[str, str]] = {}
        for image in images:
            config = decode_config(image.config)
            created_s = _created_s(config.created)
            self._created_s = max(self._created_s, created_s)
            diff_ids = config.rootfs.diff_ids
            for diff_id in diff_ids:
                self._tars.setdefault(diff_id, (layers.info(diff_id).tar_bytes, created_s))
            layer_descriptors = {
                diff_id: {"mediaType": OCI_LAYER, "size": self._tars[diff_id][0], "digest": diff_id}
                for diff_id in diff_ids
            }
            config_digest = self._add(image.config, created_s)
            document = msgspec.json.encode(
                {
                    "schemaVersion": 2,
                    "mediaType": OCI_MANIFEST,
                    "config": {"mediaType": OCI_CONFIG, "digest": config_digest, "size": len(image.config)},
                    "layers": [
                        {"mediaType": OCI_LAYER, "digest": diff_id, "size": self._tars[diff_id][0]}
                        for diff_id in diff_ids
                    ],
                }
            )
            descriptor = {"mediaType": OCI_MANIFEST, "digest": self._add(document, 0), "size": len(document)}
            names = [parse_normalized(reference) for reference in image.references]
            for name in names:
                index.append(descriptor | {"annotations": {IMAGE_NAME: str(name), REF_NAME: name.tag}})
                if diff_ids:
                    top = diff_ids[-1].removeprefix("sha256:")
                    repositories.setdefault(name.familiar_name, {})[name.tag or ""] = top
            if not names:
                index.append(descriptor)
            manifest.append(
                {
                    "Config": _blob_path(config_digest),
                    "RepoTags": [name.familiar for name in names] or None,
                    "Layers": [_blob_path(diff_id) for diff_id in diff_ids],
                    "LayerSources": layer_descriptors,
                }
            )
        self._files = {
            "index.json": msgspec.json.encode({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": index}),
            "manifest.json": msgspec.json.encode(manifest) + b"\n",
            "oci-layout": b'{"imageLayoutVersion": "1.0.0"}',
        }
        if repositories:
            self._files["repositories"] = msgspec.json.encode(repositories, order="sorted") + b"\n"

    def _add(self, document: bytes, mtime_s: int) -> Digest:
        digest = digest_of(document)
        self._documents.setdefault(digest, (document, mtime_s))
        return digest

    def write(self) -> Iterator[bytes]:
        yield _directory("blobs/", self._created_s) + _directory("blobs/sha256/", self._created_s)
        for digest in sorted({*self._documents, *self._tars}):
            if digest in self._documents:
                document, mtime_s = self._documents[Digest(digest)]
                yield _file(_blob_path(digest), document, mtime_s)
                continue
            size, mtime_s = self._tars[DiffId(digest)]
            yield encode(Entry(_blob_path(digest).encode(), size=size, mtime_ns=mtime_s * 1_000_000_000))
            with self._layers.open_tar(DiffId(digest)) as tar:
                while data := tar.read(_READ_BYTES):
                    yield data
            yield padding(size)
        yield b"".join(_file(name, content, 0) for name, content in self._files.items()) + END


def load(
    stream: Readable,
    content: ContentStore,
    layers: LayerStore,
    *,
    hold: Callable[[str], object],
    progress: Callable[[LoadProgress], object] = lambda _: None,
    platform: Platform | None = None,
) -> list[LoadedImage]:
    """Read an archive of images; all of them or, with an error, none.

    ``hold`` is called with each diff id and blob digest as soon as it is stored, before anything else could miss
    it: the caller keeps it from being swept meanwhile, and sweeps afterwards what no image took. Of an index the
    manifest for ``platform`` is taken, by default this machine's. BadArchive and InvalidParameter in Docker's
    words where it has some.
    """
    loading = _Loading(content, layers, hold, progress, platform or host_platform())
    loading.read(TarReader(decompressed(stream)))
    return loading.images()


def import_root(stream: Readable, layers: LayerStore) -> DiffId:
    """The one layer of an image made from a tar of a root file system, compressed or not (``docker import``)."""
    return layers.apply(decompressed(stream))


class _DockerImage(msgspec.Struct, frozen=True):
    """An element of ``manifest.json`` (moby image/tarexport, manifestItem)."""

    config: str = msgspec.field(name="Config", default="")
    repo_tags: list[str] | None = msgspec.field(name="RepoTags", default=None)
    layers: list[str] | None = msgspec.field(name="Layers", default=None)


class _Loading:
    def __init__(
        self,
        content: ContentStore,
        layers: LayerStore,
        hold: Callable[[str], object],
        progress: Callable[[LoadProgress], object],
        platform: Platform,
    ) -> None:
        self._content = content
        self._layers = layers
        self._hold = hold
        self._progress = progress
        self._platform = platform
        self._documents: dict[bytes, bytes] = {}
        self._documents_bytes = 0
        self._diff_ids: dict[bytes, DiffId] = {}
        self._kept: set[bytes] = set()
        self._faults: dict[bytes, BadArchive] = {}
        self._links: dict[bytes, bytes] = {}

    # While the archive passes

    def read(self, reader: TarReader) -> None:
        for entry in reader:
            path = b"/".join(components(entry.name))
            if entry.type == REGULAR:
                if entry.segments is not None:
                    raise BadArchive(f"{path.decode(errors='backslashreplace')}: sparse file in an archive of images")
                self._file(path, entry.size, Peeked(reader))
            elif entry.type == SYMLINK:
                self._link(path, posixpath.normpath(posixpath.join(posixpath.dirname(path), entry.linkname)))
            elif entry.type == LINK:
                self._link(path, b"/".join(components(entry.linkname)))
        reader.drain()

    def _file(self, path: bytes, size: int, stream: Peeked) -> None:
        head = stream.peek(512)
        if looks_like_tar(head) or is_compressed(head):
            try:
                self._layer(path, size, stream, compressed=is_compressed(head))
            except BadArchive as error:
                self._faults[path] = error  # fatal only if an image needs it
        elif size <= DOCUMENT_LIMIT_BYTES:
            self._documents_bytes += size
            if self._documents_bytes > _MAX_DOCUMENTS_BYTES:
                raise BadArchive("archive holds too many documents")
            parts: list[bytes] = []
            while data := stream.read(_READ_BYTES):
                parts.append(data)
            self._documents[path] = b"".join(parts)

    def _layer(self, path: bytes, size: int, stream: Readable, *, compressed: bool) -> None:
        blob = _BLOB.fullmatch(path)
        digest = f"sha256:{blob[1].decode()}" if blob else None
        if digest and not compressed:
            self._hold(digest)
            if self._layers.has(DiffId(digest)):
                self._diff_ids[path] = DiffId(digest)
                return
        name = digest.removeprefix("sha256:") if digest else posixpath.dirname(path).decode(errors="replace")
        counted: Readable = _Reported(stream, lambda done: self._report(name[:12], done, size))
        if not compressed:
            diff_id = self._layers.apply(counted)
        elif digest is None:
            diff_id = self._layers.apply(decompressed(counted))
        else:
            diff_id = self._keep(path, Digest(digest), size, counted)
        self._hold(diff_id)
        self._diff_ids[path] = diff_id

    def _keep(self, path: bytes, digest: Digest, size: int, stream: Readable) -> DiffId:
        """A compressed layer stays in the content store as well, so that a push gives back the same digest."""
        self._hold(digest)
        if self._content.has(digest):
            diff_id = self._layers.apply(decompressed(stream))
        else:
            try:
                ingest = self._content.writer(f"load-{digest}", expected=digest, size_bytes=size)
            except Conflict:  # another load of the same layer keeps it
                return self._layers.apply(decompressed(stream))
            with ingest:
                ingest.restart()
                kept = _Kept(stream, ingest.write)
                try:
                    diff_id = self._layers.apply(decompressed(kept))
                    while kept.read(_READ_BYTES):
                        pass
                    if ingest.digest != digest:
                        raise BadArchive(f"invalid blob {digest}: its content is {ingest.digest}")
                except BaseException:
                    ingest.abort()
                    raise
                ingest.commit()
        self._kept.add(path)
        return diff_id

    def _report(self, name: str, current_bytes: int, total_bytes: int) -> None:
        self._progress(LoadProgress(id=name, current_bytes=current_bytes, total_bytes=total_bytes))

    def _link(self, path: bytes, target: bytes) -> None:
        if len(self._links) >= _MAX_LINKS:
            raise BadArchive("archive holds too many links")
        self._links[path] = target

    # At its end

    def images(self) -> list[LoadedImage]:
        if self._find(b"manifest.json") in self._documents:
            return self._docker_images(self._document("manifest.json"))
        if self._find(b"index.json") in self._documents:
            return self._oci_images(self._document("index.json"))
        raise _no_file("manifest.json")

    def _docker_images(self, document: bytes) -> list[LoadedImage]:
        try:
            items = msgspec.json.decode(document, type=list[_DockerImage])
        except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError, RecursionError) as error:
            raise InvalidParameter(f"invalid manifest.json: {error}") from error
        return [self._docker_image(item) for item in items]

    def _docker_image(self, item: _DockerImage) -> LoadedImage:
        config = self._document(item.config)
        diff_ids = self._config_layers(config)
        paths = item.layers or []
        if len(paths) != len(diff_ids):
            raise InvalidParameter(
                f"invalid manifest, layers length mismatch: expected {len(paths)}, got {len(diff_ids)}"
            )
        for number, (path, diff_id) in enumerate(zip(paths, diff_ids, strict=True)):
            self._check_layer(path, number, diff_id)
        return LoadedImage(
            config=config,
            config_digest=digest_of(config),
            diff_ids=diff_ids,
            references=tuple(_tagged(tag) for tag in item.repo_tags or []),
        )

    def _config_layers(self, config: bytes) -> tuple[DiffId, ...]:
        decoded = decode_config(config)
        if decoded.os not in ("", "linux"):
            raise InvalidParameter(f"cannot load {decoded.os} image on linux")
        return tuple(decoded.rootfs.diff_ids)

    def _check_layer(self, path: str, number: int, diff_id: DiffId) -> None:
        found = self._find(path.encode(errors="surrogatepass"))
        actual = self._diff_ids.get(found)
        if actual is None:
            self._hold(diff_id)
            if self._layers.has(diff_id):
                return
            if found in self._faults:
                raise self._faults[found]
            raise _no_file(path)
        if actual != diff_id:
            raise InvalidParameter(f'invalid diffID for layer {number}: expected "{diff_id}", got "{actual}"')

    def _oci_images(self, document: bytes) -> list[LoadedImage]:
        index = decode_manifest(document, OCI_INDEX, name="index.json")
        assert isinstance(index, Index)
        found: dict[Digest, LoadedImage] = {}
        for entry in index.manifests:
            if _is_attestation(entry):
                continue
            image = self._oci_image(entry, 0)
            if image is None:
                continue
            names = _names(entry)
            if (known := found.get(image.config_digest)) is not None:
                names = tuple(dict.fromkeys((*known.references, *names)))
            found[image.config_digest] = LoadedImage(
                config=image.config,
                config_digest=image.config_digest,
                diff_ids=image.diff_ids,
                references=names,
                manifest_digest=image.manifest_digest,
            )
        if not found:
            raise InvalidParameter("no image in index.json")
        return list(found.values())

    def _oci_image(self, entry: Descriptor, depth: int) -> LoadedImage | None:
        document = self._blob(entry.digest)
        decoded = decode_manifest(document, entry.media_type, name=entry.digest)
        if isinstance(decoded, Index):
            if depth == _MAX_INDEX_DEPTH:
                raise InvalidParameter("index.json is nested too deeply")
            for candidate in select(decoded, self._platform):
                if _is_attestation(candidate) or self._find(_blob_path(candidate.digest).encode()) not in (
                    self._documents
                ):
                    continue  # archives may carry one platform of many
                return self._oci_image(candidate, depth + 1)
            return None
        return self._oci_manifest(document, decoded)

    def _oci_manifest(self, document: bytes, manifest: Manifest) -> LoadedImage:
        config = self._blob(manifest.config.digest)
        diff_ids = self._config_layers(config)
        if len(manifest.layers) != len(diff_ids):
            raise InvalidParameter(
                f"invalid manifest, layers length mismatch: expected {len(manifest.layers)}, got {len(diff_ids)}"
            )
        paths = [_blob_path(layer.digest) for layer in manifest.layers]
        for number, (path, diff_id) in enumerate(zip(paths, diff_ids, strict=True)):
            self._check_layer(path, number, diff_id)
        manifest_digest: Digest | None = None
        if paths and all(self._find(path.encode(errors="surrogatepass")) in self._kept for path in paths):
            manifest_digest = digest_of(document)
            for blob in (config, document):
                self._hold(digest_of(blob))
                self._content.write(blob)
        return LoadedImage(
            config=config,
            config_digest=digest_of(config),
            diff_ids=diff_ids,
            references=(),
            manifest_digest=manifest_digest,
        )

    def _blob(self, digest: Digest) -> bytes:
        data = self._document(_blob_path(digest))
        if digest_of(data) != digest:
            raise InvalidParameter(f"invalid blob {digest}: its content is {digest_of(data)}")
        return data

    def _document(self, path: str) -> bytes:
        data = self._documents.get(self._find(path.encode(errors="surrogatepass")))
        if data is None:
            raise _no_file(path)
        return data

    def _find(self, path: bytes) -> bytes:
        """Where the archive has it, through its links. Nothing of the machine is looked at."""
        path = b"/".join(components(path))
        for _ in range(40):
            if path not in self._links:
                break
            path = self._links[path]
        return path


class _Reported(Counted):
    """A stream that tells how far it is, once a MiB."""

    def __init__(self, stream: Readable, report: Callable[[int], None]) -> None:
        super().__init__(stream)
        self._report = report
        self._reported = 0

    def read(self, size: int, /) -> bytes:
        data = super().read(size)
        if self.passed - self._reported >= _READ_BYTES or not data:
            self._reported = self.passed
            self._report(self.passed)
        return data


class _Kept:
    """A stream that is also written somewhere."""

    def __init__(self, stream: Readable, write: Callable[[bytes], None]) -> None:
        self._stream = stream
        self._write = write

    def read(self, size: int, /) -> bytes:
        data = self._stream.read(size)
        if data:
            self._write(data)
        return data


def _names(entry: Descriptor) -> tuple[str, ...]:
    """containerd core/images/archive: its own annotation has the whole name, OCI's often the tag alone."""
    name = entry.annotations.get(IMAGE_NAME) or entry.annotations.get(REF_NAME, "")
    if not name or (IMAGE_NAME not in entry.annotations and not re.search(r"[/:]", name)):
        return ()
    return (_tagged(name),)


def _tagged(name: str) -> str:
    """Normalised; InvalidParameter for what is no name with a tag."""
    reference = parse_normalized(name)
    if reference.tag is None:
        raise InvalidParameter(f'invalid tag "{name}"')
    return str(reference)


def _is_attestation(entry: Descriptor) -> bool:
    return "vnd.docker.reference.type" in entry.annotations


def _blob_path(digest: str) -> str:
    return "blobs/sha256/" + digest.removeprefix("sha256:")


def _directory(name: str, mtime_s: int) -> bytes:
    return encode(Entry(name.encode(), DIRECTORY, mode=0o755, mtime_ns=mtime_s * 1_000_000_000))


def _file(name: str, content: bytes, mtime_s: int) -> bytes:
    entry = Entry(name.encode(), size=len(content), mtime_ns=mtime_s * 1_000_000_000)
    return encode(entry) + content + padding(len(content))


def _created_s(text: str | None) -> int:
    try:
        return int(datetime.fromisoformat(_FRACTION.sub(r".\1", text or "")).timestamp())
    except (ValueError, OverflowError):
        return 0


def _no_file(path: str) -> NotFound:
    return NotFound(f"open {path}: no such file or directory")

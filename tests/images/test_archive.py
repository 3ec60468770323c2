"""docker save, load and import, without an engine."""

import bz2
import contextlib
import gzip
import hashlib
import io
import json
import lzma
import os
import tarfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compatd.errors import EngineError, InvalidParameter, NotFound
from compatd.images.archive import LoadedImage, LoadProgress, SavedImage, import_root, load, save
from compatd.images.content import ContentStore, digest_of
from compatd.images.directories import DirectoryStore
from compatd.images.manifest import Platform
from compatd.images.streams import Readable
from compatd.images.tar import BadArchive
from tests.suites.layer_store import archive, diff_id_of, file, mounted, node

pytestmark = pytest.mark.root

GZIP = partial(gzip.compress, mtime=0)
CREATED = "2024-01-02T03:04:05.678901234Z"
CREATED_S = 1704164645
BASE = archive(node("etc"), file("etc/os", b"base"))
TOP = archive(file("app", b"a" * 700))


class Place:
    """Stores below one directory, and what a load held."""

    def __init__(self, root: Path) -> None:
        root.mkdir(exist_ok=True)
        self.content = ContentStore(root)
        self.layers = DirectoryStore(root)
        self.held: set[str] = set()
        self.progress: list[LoadProgress] = []

    def load(self, data: bytes | Readable, **options: Any) -> list[LoadedImage]:
        stream = io.BytesIO(data) if isinstance(data, bytes) else data
        return load(stream, self.content, self.layers, hold=self.held.add, progress=self.progress.append, **options)

    def save(self, *images: SavedImage) -> bytes:
        return b"".join(save(images, self.layers))


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path / "a")


def config(*layers: bytes, **members: Any) -> bytes:
    diff_ids = [digest_of(layer) for layer in layers]
    document = {
        "architecture": "amd64",
        "os": "linux",
        "created": CREATED,
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    }
    return json.dumps(document | members).encode()


def bundle(files: Mapping[str, bytes | str]) -> bytes:
    """A tar with the files in their order; a text is a link's target."""
    target = io.BytesIO()
    with tarfile.open(fileobj=target, mode="w") as out:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname = tarfile.SYMTYPE, content
                out.addfile(info)
            else:
                info.size = len(content)
                out.addfile(info, io.BytesIO(content))
    return target.getvalue()


def manifest_json(*items: Mapping[str, Any]) -> bytes:
    return json.dumps(items).encode()


def docker_archive(**changes: Any) -> dict[str, bytes | str]:
    """The older form: a directory for each layer, equal layers as links, the manifest last."""
    item = {
        "Config": "c.json",
        "RepoTags": ["app:1", "registry.example/x/app:2"],
        "Layers": ["1/layer.tar", "2/layer.tar"],
    }
    return {
        "1/layer.tar": BASE,
        "1/VERSION": b"1.0",
        "2/layer.tar": TOP,
        "c.json": config(BASE, TOP),
        "manifest.json": manifest_json(item | changes),
    }


def blob(data: bytes) -> tuple[str, bytes]:
    return "blobs/sha256/" + hashlib.sha256(data).hexdigest(), data


def oci_layout(
    *layers: bytes, annotations: Mapping[str, str], compress: Callable[[bytes], bytes] = lambda data: data
) -> tuple[dict[str, bytes], bytes]:
    """The files of a layout with one image, and its manifest."""
    compressed = [compress(layer) for layer in layers]
    image = config(*layers)
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor(image, "application/vnd.oci.image.config.v1+json"),
            "layers": [descriptor(layer, "application/vnd.oci.image.layer.v1.tar+gzip") for layer in compressed],
        }
    ).encode()
    index = {
        "schemaVersion": 2,
        "manifests": [
            descriptor(manifest, "application/vnd.oci.image.manifest.v1+json") | {"annotations": annotations}
        ],
    }
    files = {"oci-layout": b'{"imageLayoutVersion":"1.0.0"}', "index.json": json.dumps(index).encode()}
    files |= dict(blob(data) for data in (manifest, image, *compressed))
    return files, manifest


def descriptor(data: bytes, media_type: str) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": digest_of(data), "size": len(data)}


def test_saved_archives_are_dockers(place: Place) -> None:
    for layer in (BASE, TOP):
        place.layers.apply(io.BytesIO(layer))
    app, base = config(BASE, TOP), config(BASE)
    data = place.save(
        SavedImage(config=app, references=("docker.io/library/app:1", "registry.example/x/app:2")),
        SavedImage(config=base),
    )
    assert data == place.save(
        SavedImage(config=app, references=("docker.io/library/app:1", "registry.example/x/app:2")),
        SavedImage(config=base),
    )
    with tarfile.open(fileobj=io.BytesIO(data)) as opened:
        infos = opened.getmembers()
        files = {info.name: opened.extractfile(info).read() for info in infos if info.isfile()}  # type: ignore[union-attr]
    blobs = sorted(name for name in files if name.startswith("blobs/"))
    assert [info.name for info in infos] == [
        "blobs",
        "blobs/sha256",
        *blobs,
        "index.json",
        "manifest.json",
        "oci-layout",
        "repositories",
    ]
    times = {info.name: info.mtime for info in infos}
    assert {times[blob(data)[0]] for data in (app, base, BASE, TOP)} == {CREATED_S}
    assert times["manifest.json"] == 0
    for name in blobs:
        assert name == blob(files[name])[0]
    assert json.loads(files["manifest.json"])[0] == {
        "Config": blob(app)[0],
        "RepoTags": ["app:1", "registry.example/x/app:2"],
        "Layers": [blob(BASE)[0], blob(TOP)[0]],
        "LayerSources": {
            digest_of(layer): descriptor(layer, "application/vnd.oci.image.layer.v1.tar") for layer in (BASE, TOP)
        },
    }
    assert json.loads(files["manifest.json"])[1]["RepoTags"] is None
    index = json.loads(files["index.json"])
    assert [entry.get("annotations") for entry in index["manifests"]] == [
        {"io.containerd.image.name": "docker.io/library/app:1", "org.opencontainers.image.ref.name": "1"},
        {"io.containerd.image.name": "registry.example/x/app:2", "org.opencontainers.image.ref.name": "2"},
        None,
    ]
    top = hashlib.sha256(TOP).hexdigest()
    assert json.loads(files["repositories"]) == {"app": {"1": top}, "registry.example/x/app": {"2": top}}


def test_what_is_saved_is_loaded(place: Place, tmp_path: Path) -> None:
    for layer in (BASE, TOP):
        place.layers.apply(io.BytesIO(layer))
    image = config(BASE, TOP)
    data = place.save(SavedImage(config=image, references=("docker.io/library/app:1",)))
    other = Place(tmp_path / "b")
    loaded = LoadedImage(
        config=image,
        config_digest=digest_of(image),
        diff_ids=(diff_id_of(BASE), diff_id_of(TOP)),
        references=("docker.io/library/app:1",),
    )
    for _ in range(2):
        assert other.load(data) == [loaded]
    with mounted(other.layers, *loaded.diff_ids) as root:
        assert root.read("etc/os", 9) == b"base"
        assert root.read("app", 999) == b"a" * 700
    assert other.held == {digest_of(BASE), digest_of(TOP)}
    assert {report.id for report in other.progress} == {digest_of(layer)[7:19] for layer in (BASE, TOP)}
    # The same image as a plain OCI layout.
    without = {name: content for name, content in unbundle(data).items() if name != "manifest.json"}
    assert Place(tmp_path / "c").load(bundle(without)) == [loaded]


def unbundle(data: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(data)) as opened:
        return {info.name: opened.extractfile(info).read() for info in opened if info.isfile()}  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "compress",
    [lambda data: data, GZIP, bz2.compress, lzma.compress, zstandard.ZstdCompressor().compress],
    ids=["plain", "gzip", "bzip2", "xz", "zstd"],
)
def test_the_older_form_whole_or_compressed(place: Place, compress: Callable[[bytes], bytes]) -> None:
    class Upload:
        """Not seekable, and in small pieces."""

        def __init__(self, data: bytes) -> None:
            self._data = io.BytesIO(data)

        def read(self, size: int, /) -> bytes:
            return self._data.read(min(size, 700))

    files = docker_archive(Layers=["1/layer.tar", "2/layer.tar", "3/layer.tar"])
    files["c.json"] = config(BASE, TOP, BASE)
    files["3/layer.tar"] = "../1/layer.tar"
    files["2/layer.tar"] = compress(TOP)
    (image,) = place.load(Upload(compress(bundle(files))))
    assert image.references == ("docker.io/library/app:1", "registry.example/x/app:2")
    assert len(image.diff_ids) == 3
    with mounted(place.layers, *image.diff_ids) as root:
        assert root.read("etc/os", 9) == b"base"


@pytest.mark.parametrize(
    ("annotations", "references"),
    [
        ({}, ()),
        ({"org.opencontainers.image.ref.name": "latest"}, ()),
        ({"org.opencontainers.image.ref.name": "example.org/a:b"}, ("example.org/a:b",)),
        (
            {"io.containerd.image.name": "docker.io/library/z:1", "org.opencontainers.image.ref.name": "1"},
            ("docker.io/library/z:1",),
        ),
    ],
)
def test_a_layout_with_compressed_layers(
    place: Place, annotations: Mapping[str, str], references: tuple[str, ...]
) -> None:
    files, manifest = oci_layout(BASE, TOP, annotations=annotations, compress=GZIP)
    (image,) = place.load(bundle(dict(sorted(files.items()))))
    assert image.references == references
    assert image.diff_ids == (diff_id_of(BASE), diff_id_of(TOP))
    assert image.manifest_digest == digest_of(manifest)
    for data in (manifest, image.config):
        assert place.content.has(digest_of(data))
    assert place.held >= {digest_of(BASE), digest_of(TOP)}
    stored = {info.digest for info in place.content.walk()}
    assert len(stored) == 4
    assert stored <= place.held


def test_a_layout_for_many_platforms(place: Place) -> None:
    ours, manifest = oci_layout(BASE, annotations={}, compress=GZIP)
    nested = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [
                descriptor(b"{}", "application/vnd.oci.image.manifest.v1+json")
                | {"platform": {"os": "linux", "architecture": "amd64", "variant": "v1"}},
                descriptor(manifest, "application/vnd.oci.image.manifest.v1+json")
                | {"platform": {"os": "linux", "architecture": "amd64"}},
                descriptor(b"attestation", "application/vnd.oci.image.manifest.v1+json")
                | {
                    "platform": {"os": "unknown", "architecture": "unknown"},
                    "annotations": {"vnd.docker.reference.type": "attestation-manifest"},
                },
            ],
        }
    ).encode()
    index = {
        "schemaVersion": 2,
        "manifests": [
            descriptor(nested, "application/vnd.oci.image.index.v1+json")
            | {"annotations": {"io.containerd.image.name": "docker.io/library/m:1"}}
        ],
    }
    files = ours | dict([blob(nested)]) | {"index.json": json.dumps(index).encode()}
    (image,) = place.load(bundle(files), platform=Platform(os="linux", architecture="amd64"))
    assert image.references == ("docker.io/library/m:1",)
    with pytest.raises(NotFound, match="no matching manifest"):
        place.load(bundle(files), platform=Platform(os="linux", architecture="s390x"))


@pytest.mark.parametrize(
    ("files", "error"),
    [
        ({}, "open manifest.json: no such file or directory"),
        (docker_archive(Config="missing"), "open missing: no such file or directory"),
        (docker_archive(Config="../../etc/passwd"), 'invalid entry name "../../etc/passwd"'),
        (docker_archive(Layers=["1/layer.tar"]), "invalid manifest, layers length mismatch: expected 1, got 2"),
        (docker_archive(Layers=["1/layer.tar", "nope"]) | {"2/layer.tar": b""}, "open nope: no such file or directory"),
        (docker_archive(Layers=["2/layer.tar", "1/layer.tar"]), "invalid diffID for layer 0"),
        (docker_archive(RepoTags=["UPPER:x"]), "invalid reference format: repository name (library/UPPER) must be"),
        (docker_archive(RepoTags=["untagged"]), 'invalid tag "untagged"'),
        (docker_archive() | {"c.json": config(BASE, TOP, os="windows")}, "cannot load windows image on linux"),
        (docker_archive() | {"c.json": b"{"}, "invalid image configuration"),
        (docker_archive() | {"manifest.json": b"{"}, "invalid manifest.json"),
        (docker_archive() | {"manifest.json": b'[{"Layers": 3}]'}, "invalid manifest.json"),
        (docker_archive() | {"2/layer.tar": TOP[:700]}, "unexpected EOF"),
        (docker_archive() | {"2/layer.tar": archive(file("../evil"))}, 'invalid entry name "../evil"'),
        (docker_archive() | {"../evil": b"x"}, 'invalid entry name "../evil"'),
        (docker_archive() | {"c.json": "manifest.json/../../../../etc/passwd"}, "no such file or directory"),
        (docker_archive() | {"c.json": "c.json"}, "open c.json: no such file or directory"),
    ],
)
def test_bad_archives(place: Place, files: dict[str, bytes | str], error: str) -> None:
    with pytest.raises(EngineError) as raised:
        place.load(bundle(files))
    assert error in str(raised.value)
    assert not isinstance(raised.value, AssertionError)
    assert {info.diff_id for info in place.layers.walk()} <= place.held


def test_lies_about_digests(place: Place) -> None:
    files, _ = oci_layout(BASE, annotations={}, compress=GZIP)
    layer, image = blob(GZIP(BASE))[0], blob(config(BASE))[0]
    for name, content in ((layer, GZIP(TOP)), (image, config(TOP))):
        with pytest.raises(InvalidParameter, match=r"invalid blob sha256:|invalid diffID"):
            place.load(bundle(files | {name: content}))
    assert {info.digest for info in place.content.walk()} <= place.held
    assert os.listdir(place.content.path(digest_of(b"")).parents[2] / "ingest") == []


def test_truncated_uploads(place: Place) -> None:
    data = bundle(docker_archive())
    for size in (100, 600, 3000, len(data) // 2):
        with pytest.raises(BadArchive, match="unexpected EOF"):
            place.load(data[:size])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.integers(0, 12_000), value=st.binary(min_size=1, max_size=40))
def test_damaged_archives_end_in_one_way(tmp_path_factory: pytest.TempPathFactory, at: int, value: bytes) -> None:
    data = bytearray(bundle(docker_archive()))
    data[at : at + len(value)] = value
    place = Place(tmp_path_factory.mktemp("fuzz"))
    with contextlib.suppress(EngineError):
        place.load(bytes(data))
    assert {info.diff_id for info in place.layers.walk()} <= place.held


def test_import(place: Place) -> None:
    assert import_root(io.BytesIO(GZIP(BASE)), place.layers) == diff_id_of(BASE)
    assert import_root(io.BytesIO(BASE), place.layers) == diff_id_of(BASE)
    with pytest.raises(BadArchive, match="unexpected EOF"):
        import_root(io.BytesIO(GZIP(TOP)[:-4]), place.layers)
    assert [info.diff_id for info in place.layers.walk()] == [diff_id_of(BASE)]

"""Pulls: from an honest registry as Docker shows it, from lying ones with its errors and nothing half-made left."""

import asyncio
import gzip
import hashlib
import http.client
import json
import os
import random
import re
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zstandard

from compatd.errors import EngineError, InvalidParameter, NotFound, SystemFailure
from compatd.images.content import ContentStore, DiffId, digest_of
from compatd.images.credentials import ANONYMOUS, Credentials
from compatd.images.directories import DirectoryStore
from compatd.images.manifest import parse_platform
from compatd.images.progress import Progress, platform_warning, progress_bar, status_line
from compatd.images.pull import Layers, Puller
from compatd.images.reference import parse_normalized
from compatd.images.registry import RegistryClient
from compatd.images.registry_options import RegistryOptions
from compatd.images.streams import Readable
from compatd.tasks import Workers
from tests import clients
from tests.conftest import have
from tests.engine import ROOT
from tests.fakes import registry as fake
from tests.fakes.registry import LyingRegistry, digest, layer_tar

BIG = random.Random(1).randbytes(3_000_000)
BASE = layer_tar({"base": b"some content", "big": BIG})
TOP = layer_tar({"top": b"x"})


class MemoryLayers:
    """A layer store that keeps tars in memory; ``gate`` closed, it lets nobody finish."""

    def __init__(self) -> None:
        self.tars: dict[DiffId, bytes] = {}
        self.applying = 0
        self.applied = 0
        self.gate = threading.Event()
        self.gate.set()
        self.settled: list[DiffId] = []
        self.failure: EngineError | None = None

    def has(self, diff_id: DiffId) -> bool:
        return diff_id in self.tars

    def apply(self, stream: Readable, *, expected: DiffId | None = None) -> DiffId:
        self.applying += 1
        try:
            tar = b""
            while data := stream.read(1 << 16):
                tar += data
            assert self.gate.wait(20)
            if self.failure is not None:
                raise self.failure
            diff_id = DiffId(digest_of(tar))
            if expected is not None and diff_id != expected:
                raise SystemFailure("layer digest mismatch")
            self.applied += 1
            self.tars[diff_id] = tar
            return diff_id
        finally:
            self.applying -= 1

    def settle(self, diff_ids: Iterable[DiffId]) -> None:
        self.settled += diff_ids


class Engine:
    """What a daemon has for pulls, with short time limits."""

    def __init__(self, root: Path, layers: Layers, **options: Any) -> None:
        self.root = root
        self.workers = Workers(4)
        settings: dict[str, Any] = {"connect_timeout_s": 5, "idle_timeout_s": 0.3, **options}
        self.client = RegistryClient(RegistryOptions(certs_dir=Path("/nonexistent"), **settings), self.workers)
        self.content = ContentStore(root)
        self.puller = Puller(
            client=self.client,
            content=self.content,
            layers=layers,
            workers=self.workers,
            attempts=3,
            retry_step_s=0.001,
        )
        self.progress: list[dict[str, Any]] = []
        self.held: set[str] = set()

    async def close(self) -> None:
        await self.client.close()
        self.puller.close()
        self.workers.close()

    async def pull(self, name: str, platform: str = "linux/amd64", credentials: Credentials = ANONYMOUS) -> Any:
        def note(item: Progress) -> None:
            self.progress.append(item.document())

        return await self.puller.pull(
            parse_normalized(name),
            credentials=credentials,
            progress=note,
            platform=parse_platform(platform),
            hold=self.held.update,
        )

    def statuses(self, id: str = "") -> list[str]:
        """The distinct statuses in the order they first came, of one layer or of all."""
        seen = [item["status"] for item in self.progress if not id or item.get("id") == id]
        return list(dict.fromkeys(seen))

    def ingests(self) -> list[str]:
        return os.listdir(self.root / "ingest")

    def check_ingests(self, right: Iterable[bytes]) -> None:
        """What is kept for the next try is the beginning of right bytes."""
        for name in self.ingests():
            data = (self.root / "ingest" / name).read_bytes()
            assert data
            assert any(blob.startswith(data) for blob in right)

    def check_content(self) -> None:
        """Every blob there is what its name says."""
        for info in self.content.walk():
            assert digest_of(self.content.read(info.digest, 1 << 30)) == info.digest


@pytest.fixture
def layers() -> MemoryLayers:
    return MemoryLayers()


@pytest.fixture
async def engine(tmp_path: Path, layers: MemoryLayers) -> AsyncIterator[Engine]:
    made = Engine(tmp_path, layers)
    yield made
    layers.gate.set()
    await made.close()
    assert layers.applying == 0


@pytest.fixture
async def lying() -> AsyncIterator[LyingRegistry]:
    async with LyingRegistry() as registry:
        registry.add_image("img", "1", [BASE, TOP])
        yield registry


def descriptors(registry: LyingRegistry, name: str = "img", tag: str = "1") -> list[str]:
    """Digests of config and layers, bottom first."""
    manifest = json.loads(registry.manifests[name, tag].data)
    return [manifest["config"]["digest"], *(layer["digest"] for layer in manifest["layers"])]


async def refusal(engine: Engine, name: str, **options: Any) -> EngineError:
    with pytest.raises(EngineError) as caught:
        await engine.pull(name, **options)
    return caught.value


# what an honest registry gives


@pytest.mark.unit
async def test_an_image_is_pulled_whole(engine: Engine, layers: MemoryLayers, lying: LyingRegistry) -> None:
    pulled = await engine.pull(f"{lying.host}/img:1")
    config, base, top = descriptors(lying)
    assert layers.tars == {digest(BASE): BASE, digest(TOP): TOP}
    assert list(pulled.diff_ids) == [digest(BASE), digest(TOP)] == layers.settled
    assert (pulled.digest, pulled.image) == (lying.manifests["img", "1"].digest, config)
    assert pulled.config.config.cmd == ["/hello"]
    assert {info.digest for info in engine.content.walk()} == set(pulled.blobs) == {pulled.digest, config, base, top}
    assert engine.held == {*pulled.blobs, *pulled.diff_ids}
    assert engine.ingests() == []
    engine.check_content()


@pytest.mark.unit
async def test_progress_is_shown_as_docker_shows_it(engine: Engine, lying: LyingRegistry) -> None:
    await engine.pull(f"{lying.host}/img:1")
    _, base, top = (one[7:19] for one in descriptors(lying))
    assert engine.progress[:3] == [
        {"status": "Pulling from img", "id": "1"},
        {"status": "Pulling fs layer", "progressDetail": {}, "id": base},
        {"status": "Pulling fs layer", "progressDetail": {}, "id": top},
    ]
    order = [
        "Pulling fs layer",
        "Downloading",
        "Verifying Checksum",
        "Download complete",
        "Extracting",
        "Pull complete",
    ]
    assert engine.statuses(base) == engine.statuses(top) == order
    complete = [item["id"] for item in engine.progress if item["status"] == "Pull complete"]
    assert complete == [base, top]
    size = len(lying.blobs[descriptors(lying)[1]].data)
    last = [item for item in engine.progress if item["status"] == "Extracting" and item["id"] == base][-1]
    assert last["progressDetail"] == {"current": size, "total": size}
    assert last["progress"].startswith("[" + "=" * 50 + ">]")


@pytest.mark.unit
async def test_what_is_there_is_not_fetched_again(engine: Engine, layers: MemoryLayers, lying: LyingRegistry) -> None:
    first = await engine.pull(f"{lying.host}/img:1")
    lying.seen.clear()
    engine.progress.clear()
    assert await engine.pull(f"{lying.host}/img:1") == first
    assert [(method, path) for method, path, _ in lying.seen] == [("GET", "/v2/"), ("HEAD", "/v2/img/manifests/1")]
    assert engine.statuses() == ["Pulling from img", "Already exists"]
    # A layer that went is made of its blob, without a download.
    del layers.tars[DiffId(digest(TOP))]
    await engine.pull(f"{lying.host}/img:1")
    assert not lying.requests("/blobs/")
    assert layers.tars[DiffId(digest(TOP))] == TOP


@pytest.mark.unit
@pytest.mark.parametrize(
    ("compress", "media_type"),
    [
        (zstandard.ZstdCompressor().compress, "application/vnd.oci.image.layer.v1.tar+zstd"),
        (bytes, "application/vnd.oci.image.layer.v1.tar"),
        (gzip.compress, "application/x-unheard-of"),
    ],
)
async def test_compressions(
    engine: Engine,
    layers: MemoryLayers,
    lying: LyingRegistry,
    compress: Callable[[bytes], bytes],
    media_type: str,
) -> None:
    lying.add_image("other", "1", [BASE], compress=compress, layer_type=media_type)
    await engine.pull(f"{lying.host}/other:1")
    assert layers.tars == {digest(BASE): BASE}


@pytest.mark.unit
async def test_by_digest_and_by_platform(engine: Engine, lying: LyingRegistry) -> None:
    entries: list[dict[str, Any]] = []
    for architecture, variant in (("arm64", "v8"), ("amd64", "")):
        entry = lying.add_image("multi", architecture, [TOP], architecture=architecture)
        entries.append({**entry, "platform": {"os": "linux", "architecture": architecture, "variant": variant}})
    index = lying.add_manifest(
        "multi", "1", {"schemaVersion": 2, "mediaType": fake.INDEX, "manifests": entries}, fake.INDEX
    )
    for platform, entry in (("linux/amd64", entries[1]), ("linux/arm64", entries[0])):
        for name in ("multi:1", f"multi@{index['digest']}"):
            pulled = await engine.pull(f"{lying.host}/{name}", platform)
            assert pulled.digest == index["digest"]
            assert pulled.config.architecture == platform[6:]
            assert entry["digest"] in pulled.blobs
    error = await refusal(engine, f"{lying.host}/multi:1", platform="linux/riscv64")
    assert str(error) == "no matching manifest for linux/riscv64 in the manifest list entries"
    assert engine.progress[-1]["id"] == "1"
    only_arm = await engine.pull(f"{lying.host}/multi:arm64")
    warning = platform_warning(only_arm.reference, only_arm.config, parse_platform("linux/amd64"))
    assert warning is not None
    assert warning.status == (
        f"WARNING: image with reference {lying.host}/multi:arm64 was found but its platform (linux/arm64) "
        "does not match the specified platform (linux/amd64)"
    )
    assert platform_warning(only_arm.reference, only_arm.config, parse_platform("linux/arm64")) is None


@pytest.mark.unit
async def test_mirrors_are_tried_in_order(tmp_path: Path, layers: MemoryLayers, lying: LyingRegistry) -> None:
    async with LyingRegistry() as empty:
        lying.add_image("library/ubuntu", "16.04", [TOP])
        made = Engine(tmp_path, layers, mirrors=(f"http://{empty.host}", "http://127.0.0.1:1", f"http://{lying.host}"))
        try:
            pulled = await made.pull("ubuntu:16.04")
            assert pulled.reference.familiar == "ubuntu:16.04"
            assert made.progress[0] == {"status": "Pulling from library/ubuntu", "id": "16.04"}
            assert empty.requests("/v2/library/ubuntu/manifests/16.04", "HEAD")
            assert await made.puller.tags(parse_normalized("ubuntu"), ANONYMOUS) == ["16.04"]
        finally:
            await made.close()


@pytest.mark.unit
async def test_many_layers_wait_for_their_turn(engine: Engine, layers: MemoryLayers, lying: LyingRegistry) -> None:
    many = [layer_tar({f"file{number}": b"x"}) for number in range(8)]
    lying.add_image("many", "1", many)
    layers.gate.clear()
    pulling = asyncio.get_running_loop().create_task(engine.pull(f"{lying.host}/many:1"))
    await until(lambda: layers.applying == 3 and "Download complete" in engine.statuses())
    assert len(lying.requests("/blobs/")) == 4  # config, three layers
    layers.gate.set()
    pulled = await pulling
    assert list(pulled.diff_ids) == [digest(one) for one in many]
    assert sum(item["status"] == "Waiting" for item in engine.progress) == 5


@pytest.mark.unit
async def test_a_layer_that_occurs_twice(engine: Engine, layers: MemoryLayers, lying: LyingRegistry) -> None:
    lying.add_image("twice", "1", [TOP, BASE, TOP])
    pulled = await engine.pull(f"{lying.host}/twice:1")
    assert list(pulled.diff_ids) == [digest(TOP), digest(BASE), digest(TOP)]
    assert layers.applied == 2


# several pulls, interrupted pulls


@pytest.mark.unit
async def test_pulls_share_the_work(engine: Engine, layers: MemoryLayers, lying: LyingRegistry) -> None:
    lying.add_image("other", "1", [BASE], author="somebody")
    names = (f"{lying.host}/img:1", f"{lying.host}/other:1", f"{lying.host}/img:1")
    await asyncio.gather(*(engine.pull(name) for name in names))
    assert layers.applied == 2
    assert len(lying.requests(descriptors(lying)[1])) == 1


@pytest.mark.unit
async def test_a_cancelled_pull_leaves_the_others_alone(
    engine: Engine, layers: MemoryLayers, lying: LyingRegistry
) -> None:
    layers.gate.clear()
    loop = asyncio.get_running_loop()
    first, second = (loop.create_task(engine.pull(f"{lying.host}/img:1")) for _ in range(2))
    await until(lambda: layers.applying == 2)
    first.cancel()
    await asyncio.wait([first])
    assert first.cancelled()
    layers.gate.set()
    assert len((await second).diff_ids) == 2
    assert layers.applied == 2


@pytest.mark.unit
async def test_a_cancelled_download_is_resumed_by_the_next_pull(
    engine: Engine, layers: MemoryLayers, lying: LyingRegistry
) -> None:
    base = descriptors(lying)[1]
    lying.faults[f"/blobs/{base}"] = fake.silent_after(2_000_000)
    engine.client._options = RegistryOptions(idle_timeout_s=30)
    pulling = asyncio.get_running_loop().create_task(engine.pull(f"{lying.host}/img:1"))
    await until(lambda: sum(path.stat().st_size for path in (engine.root / "ingest").iterdir()) > 1_000_000)
    pulling.cancel()
    await asyncio.wait([pulling])
    assert pulling.cancelled()
    assert layers.applying == 0
    assert DiffId(digest(BASE)) not in layers.tars
    lying.faults.clear()
    await engine.pull(f"{lying.host}/img:1")
    assert int(lying.requests(base)[-1]["Range"][6:-1]) >= 1_000_000
    assert layers.tars[DiffId(digest(BASE))] == BASE
    assert engine.ingests() == []


@pytest.mark.unit
async def test_a_wrong_beginning_left_by_an_earlier_pull_is_thrown_away(
    engine: Engine, layers: MemoryLayers, lying: LyingRegistry
) -> None:
    base = descriptors(lying)[1]
    with engine.content.writer(f"layer-{base}") as ingest:
        ingest.write(b"wrong bytes")
    assert len(engine.ingests()) == 1
    await engine.pull(f"{lying.host}/img:1")
    assert layers.tars[DiffId(digest(BASE))] == BASE
    assert [headers.get("Range") for headers in lying.requests(base)] == ["bytes=11-", None]


@pytest.mark.unit
@pytest.mark.parametrize("ranges", [True, False])
async def test_broken_downloads_go_on(engine: Engine, layers: MemoryLayers, lying: LyingRegistry, ranges: bool) -> None:
    base = descriptors(lying)[1]
    lying.faults[f"/blobs/{base}"] = fake.first(2, fake.cut_after(1_200_000))
    if not ranges:
        whole = lying.blobs[base].data
        lying.faults[f"/blobs/{base}"] = fake.first(1, fake.cut_after(1_200_000), then=fake.serving(whole))
    await engine.pull(f"{lying.host}/img:1")
    assert layers.tars[DiffId(digest(BASE))] == BASE
    asked = [headers.get("Range") for headers in lying.requests(base)]
    assert asked[0] is None
    assert all(re.fullmatch(r"bytes=[1-9]\d+-", later or "") for later in asked[1:])
    assert "Retrying in 5 seconds" in engine.statuses(base[7:19])


# what lying registries give


def wrong_layer(lying: LyingRegistry, fault: fake.Fault) -> None:
    lying.faults[f"/blobs/{descriptors(lying)[2]}"] = fault


def with_layer_size(lying: LyingRegistry, size: int) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads(lying.manifests["img", "1"].data)
    manifest["layers"][1]["size"] = size
    return manifest


VERIFICATION = "filesystem layer verification failed for digest {top}"
LIES: dict[str, tuple[Callable[[LyingRegistry], object], str]] = {
    "other bytes": (lambda lying: wrong_layer(lying, fake.serving(gzip.compress(b"other"))), VERIFICATION),
    "too few bytes": (lambda lying: wrong_layer(lying, fake.serving(b"")), VERIFICATION),
    "too many bytes": (lambda lying: wrong_layer(lying, fake.serving(bytes(1_000_000))), VERIFICATION),
    "endless bytes": (lambda lying: wrong_layer(lying, fake.endless()), VERIFICATION),
    "same length, other bytes": (
        lambda lying: wrong_layer(lying, fake.serving(bytes(len(lying.blobs[descriptors(lying)[2]].data)))),
        VERIFICATION,
    ),
    "cut short": (lambda lying: wrong_layer(lying, fake.cut_after(10)), "unexpected EOF"),
    "silent": (lambda lying: wrong_layer(lying, fake.silent_after(10)), "net/http: timeout awaiting response"),
    "missing": (lambda lying: wrong_layer(lying, fake.error("BLOB_UNKNOWN", 404)), "unknown blob"),
    "broken": (
        lambda lying: wrong_layer(lying, fake.failing(503)),
        "received unexpected HTTP status: 503 Service Unavailable",
    ),
    "redirected for ever": (lambda lying: wrong_layer(lying, fake.redirecting()), "stopped after 10 redirects"),
    "other config": (
        lambda lying: lying.faults.update({f"/blobs/{descriptors(lying)[0]}": fake.serving(b"{}")}),
        "error pulling image configuration: image config verification failed for digest {config}",
    ),
    "endless config": (
        lambda lying: lying.faults.update({f"/blobs/{descriptors(lying)[0]}": fake.endless()}),
        "error pulling image configuration: the registry's reply is larger than 4194304 bytes",
    ),
    "other manifest": (
        lambda lying: lying.faults.update({"/manifests/sha256": fake.serving(b"{}")}),
        "manifest verification failed for digest {manifest}",
    ),
    "a page": (
        lambda lying: lying.add_manifest("img", "1", b"<html>", "text/html"),
        "invalid manifest",
    ),
    "schema 1": (
        lambda lying: lying.add_manifest(
            "img", "1", {"schemaVersion": 1}, "application/vnd.docker.distribution.manifest.v1+prettyjws"
        ),
        "[DEPRECATION NOTICE] Docker Image Format v1",
    ),
    "another diff id": (
        lambda lying: lying.add_image("img", "1", [TOP], rootfs={"type": "layers", "diff_ids": ["sha256:" + "1" * 64]}),
        "failed to register layer: layer digest mismatch",
    ),
    "fewer diff ids": (
        lambda lying: lying.add_image("img", "1", [TOP], rootfs={"type": "layers", "diff_ids": []}),
        "layers from manifest don't match image configuration",
    ),
    "a layer larger than the disk": (
        lambda lying: lying.add_manifest("img", "1", with_layer_size(lying, 1 << 60)),
        "no space left on device",
    ),
    "no layer": (
        lambda lying: lying.add_image("img", "1", [TOP], compress=lambda data: gzip.compress(data)[:-10]),
        "failed to register layer: unexpected EOF",
    ),
    "another system": (
        lambda lying: lying.add_image("img", "1", [TOP], os="windows"),
        'image operating system "windows" cannot be used on this platform: operating system is not supported',
    ),
    "not a name": (
        lambda lying: lying.manifests.clear(),
        "manifest for {host}/img:1 not found: manifest unknown: manifest unknown",
    ),
    "no access": (
        lambda lying: lying.faults.update({"/manifests/": fake.error("DENIED", 403, "requested access is denied")}),
        "pull access denied for {host}/img, repository does not exist or may require 'docker login': "
        "denied: requested access is denied",
    ),
}


@pytest.mark.unit
@pytest.mark.parametrize("lie", LIES)
async def test_lies(engine: Engine, layers: MemoryLayers, lying: LyingRegistry, lie: str) -> None:
    config, _, top = descriptors(lying)
    names = {"config": config, "top": top, "manifest": lying.manifests["img", "1"].digest, "host": lying.host}
    right = [blob.data for blob in lying.blobs.values()]
    tell, text = LIES[lie]
    tell(lying)
    error = await refusal(engine, f"{lying.host}/img:1")
    assert text.format(**names) in str(error)
    assert layers.applying == 0
    assert set(layers.tars) <= {digest(BASE), digest(TOP)}
    engine.check_content()
    engine.check_ingests(right)
    # The next pull, from a registry that has come to reason, does not remember.
    lying.faults.clear()
    lying.add_image("img", "1", [BASE, TOP])
    await engine.pull(f"{lying.host}/img:1")
    assert layers.tars == {digest(BASE): BASE, digest(TOP): TOP}
    assert engine.ingests() == []


@pytest.mark.unit
async def test_failures_here_are_told_too(engine: Engine, layers: MemoryLayers, lying: LyingRegistry) -> None:
    layers.failure = InvalidParameter("archive/tar: invalid tar header")
    error = await refusal(engine, f"{lying.host}/img:1")
    assert str(error) == "failed to register layer: archive/tar: invalid tar header"
    engine.check_ingests([blob.data for blob in lying.blobs.values()])
    layers.failure = None
    await engine.pull(f"{lying.host}/img:1")


@pytest.mark.unit
async def test_nobody_there(engine: Engine) -> None:
    error = await refusal(engine, "127.0.0.1:1/img:1")
    assert str(error) == 'Get "http://127.0.0.1:1/v2/": dial tcp 127.0.0.1:1: connect: connection refused'
    assert engine.progress == []
    assert str(await refusal(engine, "a_b.c/img:1")) == 'Get "https:///v2/": http: no Host in request URL'


@pytest.mark.unit
def test_bars_and_lines() -> None:
    assert progress_bar(0, 0) == ""
    assert progress_bar(32768, 1070598) == "[=>" + " " * 49 + "]  32.77kB/1.071MB"
    assert progress_bar(349, 349) == "[" + "=" * 50 + ">]     349B/349B"
    assert progress_bar(5, 0) == "      5B"
    reference = parse_normalized("ubuntu:16.04")
    assert status_line(reference, newer=True).status == "Status: Downloaded newer image for ubuntu:16.04"
    assert status_line(reference, newer=False).status == "Status: Image is up to date for ubuntu:16.04"


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


# a real registry, a real layer store


@pytest.fixture
def real_registry(tmp_path: Path) -> Iterator[str]:
    """Debian's docker-registry with a storage of its own, writable; its host and port."""
    config = tmp_path / "registry.yml"
    config.write_text(
        "version: 0.1\nlog: {level: info, accesslog: {disabled: true}}\n"
        f"storage: {{filesystem: {{rootdirectory: {json.dumps(str(tmp_path / 'registry'))}}}}}\n"
        "http: {addr: '127.0.0.1:0'}\n"
    )
    log = tmp_path / "registry.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [have(clients.docker_registry), "serve", config],
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, "OTEL_TRACES_EXPORTER": "none"},
        )
    try:
        deadline = time.monotonic() + 20
        while (match := re.search(r"listening on (127\.0\.0\.1:\d+)", log.read_text())) is None:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.01)
        yield match[1]
    finally:
        process.kill()
        process.wait()


def push(host: str, name: str, tag: str, layers: list[bytes]) -> str:
    """Push an image of these uncompressed layers; the manifest's digest."""
    connection = http.client.HTTPConnection(host, timeout=30)

    def call(method: str, path: str, body: bytes | None = None, media_type: str = "application/octet-stream") -> Any:
        connection.request(method, path, body, {"Content-Type": media_type})
        response = connection.getresponse()
        text = response.read()
        assert response.status < 300, (method, path, text)
        return response.headers

    def upload(data: bytes, media_type: str) -> dict[str, Any]:
        location = re.sub("^http://[^/]+", "", call("POST", f"/v2/{name}/blobs/uploads/")["Location"])
        call("PUT", f"{location}&digest={digest(data)}", data)
        return {"mediaType": media_type, "size": len(data), "digest": digest(data)}

    config = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Cmd": ["/hello"]},
        "rootfs": {"type": "layers", "diff_ids": [digest(layer) for layer in layers]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": fake.MANIFEST,
        "config": upload(json.dumps(config).encode(), fake.CONFIG),
        "layers": [upload(gzip.compress(layer), fake.LAYER) for layer in layers],
    }
    headers = call("PUT", f"/v2/{name}/manifests/{tag}", json.dumps(manifest).encode(), fake.MANIFEST)
    connection.close()
    return str(headers["Docker-Content-Digest"])


PULL = """
import asyncio, sys
from pathlib import Path
from compatd.images.directories import DirectoryStore
from tests.images.test_pull import Engine

async def main():
    root = Path(sys.argv[1])
    await Engine(root, DirectoryStore(root), idle_timeout_s=30).pull(sys.argv[2])

asyncio.run(main())
"""


@pytest.mark.root
async def test_killed_at_any_time(tmp_path: Path, lying: LyingRegistry) -> None:
    """The next daemon sees whole blobs and layers only, and its pull goes on with what is there."""
    name = f"{lying.host}/img:1"
    base = descriptors(lying)[1]
    lying.faults[f"/blobs/{base}"] = fake.silent_after(2_000_000)
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", PULL, tmp_path, name, cwd=ROOT)
    try:
        await until(lambda: sum(path.stat().st_size for path in tmp_path.glob("ingest/*")) > 1_000_000)
    finally:
        process.kill()
        await process.wait()
    lying.faults.clear()
    layers = DirectoryStore(tmp_path)
    engine = Engine(tmp_path, layers)
    try:
        engine.check_content()
        layers.sweep()
        assert {info.diff_id for info in layers.walk()} <= {digest(TOP)}
        pulled = await engine.pull(name)
        assert Path(layers.lowers(pulled.diff_ids)[1], "big").read_bytes() == BIG
        assert int(lying.requests(base)[-1]["Range"][6:-1]) >= 1_000_000
        # A blob whose layer was whole already is not asked for again: its beginning is the sweep's.
        engine.content.sweep(idle_s=0)
        assert engine.ingests() == []
    finally:
        await engine.close()
        layers.close()


@pytest.mark.root
async def test_from_a_real_registry_into_real_layers(tmp_path: Path, real_registry: str) -> None:
    pushed = push(real_registry, "library/ubuntu", "16.04", [BASE, TOP])
    layers = DirectoryStore(tmp_path / "data")
    engine = Engine(tmp_path / "data", layers, idle_timeout_s=30, mirrors=(f"http://{real_registry}",))
    try:
        pulled = await engine.pull("ubuntu:16.04")
        assert pulled.digest == pushed
        assert (await engine.pull(f"ubuntu@{pushed}")).diff_ids == pulled.diff_ids
        lowers = layers.lowers(pulled.diff_ids)
        assert Path(lowers[0], "top").read_bytes() == b"x"
        assert hashlib.sha256(Path(lowers[1], "big").read_bytes()).digest() == hashlib.sha256(BIG).digest()
        assert await engine.puller.tags(parse_normalized("ubuntu"), ANONYMOUS) == ["16.04"]
        error = await refusal(engine, f"{real_registry}/library/ubuntu:nope")
        assert isinstance(error, NotFound)
        assert str(error) == (
            f"manifest for {real_registry}/library/ubuntu:nope not found: manifest unknown: manifest unknown"
        )
    finally:
        await engine.close()
        layers.close()

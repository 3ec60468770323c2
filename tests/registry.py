"""A real docker-registry with the fixture images in it, read-only, on a loopback port.

``python -m tests.registry PORT`` serves them until interrupted, for an engine that was not started by the tests.
"""

import contextlib
import hashlib
import http.client
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests import clients
from tests.fixtures import images
from tests.fixtures.images import Image

STORAGE = "registry-1"
_MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
_CONFIG = "application/vnd.docker.container.image.v1+json"
_LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"
_START_S = 20


class Registry:
    """A running registry process; ``enter`` runs in the child before exec (to join a network namespace)."""

    def __init__(self, port: int, *, writable: bool = False, enter: Callable[[], None] | None = None) -> None:
        self.port = port
        self.address = f"127.0.0.1:{port}"
        self._folder = tempfile.TemporaryDirectory(prefix="compatd-registry-")
        storage = clients.CACHE / STORAGE
        storage.mkdir(parents=True, exist_ok=True)
        config = Path(self._folder.name, "config.yml")
        config.write_text(
            "version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\n"
            f"storage:\n  filesystem: {{rootdirectory: {json.dumps(str(storage))}}}\n"
            f"  maintenance: {{readonly: {{enabled: {json.dumps(not writable)}}}}}\n"
            f"http: {{addr: '{self.address}'}}\n"
        )
        self.log = Path(self._folder.name, "log")
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [clients.docker_registry(), "serve", config],
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=enter,
                env={**os.environ, "OTEL_TRACES_EXPORTER": "none"},
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def check(self) -> bool:
        """Whether it answers by now; to be called in its network namespace."""
        if self._process.poll() is not None:
            raise clients.Unavailable(f"docker-registry ended: {self.log.read_text()[-300:].strip()}")
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/v2/")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._folder.cleanup()


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = _START_S) -> None:
    """Poll ``condition`` until it holds; ``TimeoutError`` naming ``what`` after the deadline."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(what)
        time.sleep(0.02)


def provide(*names: str) -> None:
    """See to it that the storage holds these images; they are pushed into it once."""
    for name in names:
        content = images.image(name)
        marker = hashlib.sha256(content.config).hexdigest()[:16]

        def push(target: Path, content: Image = content) -> None:
            with clients.locked(f"{STORAGE}-write"), _writable() as registry:
                _push(registry.port, content)
            (target / "pushed").touch()

        clients.cached(f"{STORAGE}-has/{marker}", push)


@contextlib.contextmanager
def _writable() -> Iterator[Registry]:
    registry = Registry(5999, writable=True)
    try:
        wait_until(registry.check, "the registry answers")
        yield registry
    finally:
        registry.close()


def _push(port: int, content: Image) -> None:
    repository, _, tag = content.name.partition(":")
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def call(
        method: str, path: str, body: bytes | None = None, kind: str = "application/octet-stream"
    ) -> http.client.HTTPResponse:
        connection.request(method, path, body, {"Content-Type": kind})
        response = connection.getresponse()
        text = response.read()
        if response.status >= 400 and method != "HEAD":
            raise clients.Unavailable(f"docker-registry: {method} {path}: {response.status} {text[:200]!r}")
        return response

    base = f"/v2/library/{repository}"
    config_digest = f"sha256:{hashlib.sha256(content.config).hexdigest()}"
    blobs = [(config_digest, content.config)]
    blobs += [(layer.digest, layer.path.read_bytes()) for layer in content.layers]
    for digest, data in blobs:
        if call("HEAD", f"{base}/blobs/{digest}").status == 200:
            continue
        location = call("POST", f"{base}/blobs/uploads/").headers["Location"]
        path = "/" + location.split("/", 3)[3]
        call("PUT", f"{path}{'&' if '?' in path else '?'}digest={digest}", data)
    manifest = {
        "schemaVersion": 2,
        "mediaType": _MANIFEST,
        "config": {"mediaType": _CONFIG, "size": len(content.config), "digest": config_digest},
        "layers": [{"mediaType": _LAYER, "size": one.size_bytes, "digest": one.digest} for one in content.layers],
    }
    call("PUT", f"{base}/manifests/{tag}", json.dumps(manifest).encode(), _MANIFEST)
    connection.close()


def main() -> None:
    provide("busybox:latest", "ubuntu:16.04", "node:20")
    registry = Registry(int(sys.argv[1]))
    try:
        wait_until(registry.check, "the registry answers")
        print(f"http://{registry.address}", flush=True)
        registry._process.wait()
    finally:
        registry.close()


if __name__ == "__main__":
    main()

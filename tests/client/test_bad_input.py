"""What goes wrong does so in Docker's words, leaves nothing half-made, and the engine stays well."""

import json
import re
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.api import Api
from tests.cli import Cli, Done
from tests.conftest import have
from tests.engine import Engine
from tests.fixtures import images, tars
from tests.fixtures.tars import Entry, pack

pytestmark = [pytest.mark.root, pytest.mark.parity]

SENT = r"Sending build context to Docker daemon +[0-9.]+kB\r\r\n"


def build(cli: Cli, folder: Path, dockerfile: str, *words: str) -> Done:
    (folder / "Dockerfile").write_text(dockerfile)
    done = cli.call("build", *words, ".", cwd=folder)
    # The CLI's own hint about the classic builder precedes what the engine said.
    return done._replace(err=done.err.partition("environment-variable.\n\n")[2])


def state(engine: Engine) -> tuple[Any, ...]:
    """What a failed request must leave as it was."""
    containers = engine.api.get("/containers/json", all="1").ok()
    tagged = engine.api.get("/images/json").ok()
    return sorted(one["Id"] for one in containers), sorted(tag for one in tagged for tag in one["RepoTags"] or [])


# ---------------------------------------------------------------- Dockerfiles


@pytest.mark.parametrize(
    ("dockerfile", "error"),
    [
        (
            "FROM busybox\nFOO bar\n",
            "Error response from daemon: "
            "dockerfile parse error on line 2: unknown instruction: FOO (did you mean FROM?)",
        ),
        (
            "FROM busybox\n\n# why\nRUN true &&\\\n  true\nCOPY a\n",
            "Error response from daemon: dockerfile parse error on line 6: "
            "COPY requires at least two arguments, but only one was provided. Destination could not be determined",
        ),
        ("", "Error response from daemon: the Dockerfile (Dockerfile) cannot be empty"),
        ("# only\n", "Error response from daemon: failed to parse Dockerfile: file with no instructions"),
        (
            "FROM\n",
            "Error response from daemon: dockerfile parse error on line 1: FROM requires either one or three arguments",
        ),
        ("RUN true\n", "Error response from daemon: no build stage in current context"),
        (
            "FROM busybox\nENV a\n",
            "Error response from daemon: failed to parse Dockerfile: ENV must have two arguments",
        ),
        (
            "FROM busybox\nWORKDIR\n",
            "Error response from daemon: dockerfile parse error on line 2: WORKDIR requires exactly one argument",
        ),
    ],
)
def test_a_dockerfile_that_cannot_be_read(cli: Cli, tmp_path: Path, dockerfile: str, error: str) -> None:
    done = build(cli, tmp_path, dockerfile)
    assert (done.code, done.err) == (1, error + "\n")
    assert re.fullmatch(SENT, done.out)


@pytest.mark.parametrize(
    ("step", "code", "error"),
    [
        ("RUN exit 3", 3, "The command '/bin/sh -c exit 3' returned a non-zero code: 3"),
        ("RUN no-such-program", 127, "The command '/bin/sh -c no-such-program' returned a non-zero code: 127"),
        ('RUN ["sh", "-c", "exit 4"]', 4, "The command 'sh -c exit 4' returned a non-zero code: 4"),
        ('RUN ["no-such-program"]', 1, r'.*exec: "no-such-program": executable file not found in \$PATH'),
        (
            "COPY none /",
            1,
            r"COPY failed: file not found in build context or excluded by \.dockerignore: "
            r"stat none: file does not exist",
        ),
        ("COPY ../x /", 1, r"COPY failed: forbidden path outside the build context: \.\./x \(\)"),
        ("COPY --from=none /a /b", 1, r".*"),
        ("EXPOSE x", 1, "Invalid containerPort: x"),
        ("USER nobodyx\nRUN true", 1, "unable to find user nobodyx: no matching entries in passwd file"),
    ],
)
def test_a_step_that_fails(
    engine: Engine, cli: Cli, busybox: str, tmp_path: Path, step: str, code: int, error: str
) -> None:
    before = state(engine)
    done = build(cli, tmp_path, f"FROM busybox\n{step}\n", "-t", "half-made")
    assert done.code == code
    assert re.fullmatch(rf"(?:\x1b\[91m.*\n\x1b\[0m)?{error}\n", done.err)
    assert "Successfully" not in done.out
    # The container of a failed step stays, for a look at it; nothing is tagged.
    after = state(engine)
    assert after[1] == before[1]
    assert len(after[0]) <= 1


def test_rm_of_a_failed_step(engine: Engine, cli: Cli, busybox: str, tmp_path: Path) -> None:
    build(cli, tmp_path, "FROM busybox\nRUN exit 3\n", "--force-rm")
    assert state(engine)[0] == []


# ---------------------------------------------------------------- registries


@pytest.mark.parametrize("reference", ["library/busybox:none", "no-such-repository"])
def test_a_base_image_that_is_not_there(engine: Engine, cli: Cli, tmp_path: Path, reference: str) -> None:
    have(lambda: engine.provide("busybox:latest"))
    name = f"{engine.registry}/{reference}"
    full = name if ":none" in name else f"{name}:latest"
    error = f"manifest for {full} not found: manifest unknown: manifest unknown\n"
    assert build(cli, tmp_path, f"FROM {name}\n").err == error
    assert cli.call("pull", "-q", name) == (1, "", f"Error response from daemon: {error}")
    done = cli.call("run", "--rm", name)
    assert done.code == 125
    assert f"Unable to find image '{full}' locally\ndocker: Error response from daemon: {error}" in done.err


class LyingRegistry(BaseHTTPRequestHandler):
    """Serves one image, each time with another lie; the repository's name says which."""

    protocol_version = "HTTP/1.1"
    released = threading.Event()

    def do_GET(self) -> None:
        content = images.image("busybox:latest")
        layer = content.layers[0]
        data = layer.path.read_bytes()
        lie, _, rest = self.path.removeprefix("/v2/").partition("/")
        manifest = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
            "config": {
                "mediaType": "application/vnd.docker.container.image.v1+json",
                "size": len(content.config),
                "digest": f"sha256:{sha256(content.config).hexdigest()}",
            },
            "layers": [
                {
                    "mediaType": "application/vnd.docker.image.rootfs.diff.tar.gzip",
                    "size": layer.size_bytes,
                    "digest": layer.digest,
                }
            ],
        }
        if not rest:
            self.reply(b"{}")
        elif rest.startswith("manifests/"):
            self.reply(b"{" if lie == "garbage" else json.dumps(manifest).encode(), str(manifest["mediaType"]))
        elif rest.endswith(layer.digest):
            if lie == "denied":
                self.reply(
                    b'{"errors":[{"code":"DENIED","message":"requested access to the resource is denied"}]}', status=401
                )
            elif lie == "hang":
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data[:1000])
                self.wfile.flush()
                self.released.wait(60)
                self.close_connection = True
            else:
                self.reply(data[:-20] + bytes(20) if lie == "layer" else data)
        else:
            self.reply(content.config.replace(b"amd64", b"amd65") if lie == "config" else content.config)

    def reply(self, body: bytes, kind: str = "application/octet-stream", status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def lying_registry(engine: Engine) -> Iterator[str]:
    LyingRegistry.released.clear()
    server = engine.inside(lambda: ThreadingHTTPServer(("127.0.0.1", 0), LyingRegistry))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        LyingRegistry.released.set()
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize(
    ("lie", "error"),
    [
        ("layer", r"filesystem layer verification failed for digest sha256:[0-9a-f]{64}"),
        ("config", r"image config verification failed for digest sha256:[0-9a-f]{64}"),
        ("garbage", r"unexpected end of JSON input"),
    ],
)
def test_a_registry_that_lies(engine: Engine, cli: Cli, lie: str, error: str) -> None:
    have(lambda: images.image("busybox:latest"))
    engine.forget_images()  # a layer that is there already is not asked for
    before = state(engine)
    with lying_registry(engine) as address:
        done = cli.call("pull", f"{address}/{lie}")
    assert done.code == 1
    assert re.search(error, done.err)
    assert state(engine) == before
    assert engine.api.get("/_ping").body == b"OK"


def test_a_registry_that_hangs(engine: Engine, cli: Cli) -> None:
    have(lambda: images.image("busybox:latest"))
    engine.forget_images()
    before = state(engine)
    with lying_registry(engine) as address:
        pull = cli.start("pull", f"{address}/hang")
        assert pull.stdout
        for line in pull.stdout:
            if b"Pulling fs layer" in line:
                break
        # The engine goes on with other things, and whoever pulls may give up.
        assert engine.api.get("/_ping").body == b"OK"
        pull.terminate()
        pull.communicate(timeout=20)
    assert state(engine) == before


# ---------------------------------------------------------------- run


@pytest.mark.parametrize(
    ("words", "code", "error"),
    [
        (("no-such-program",), 127, r'exec: "no-such-program": executable file not found in \$PATH'),
        (("/no/such/program",), 127, r'exec: "/no/such/program": stat /no/such/program: no such file or directory'),
        (("/etc/passwd",), 126, r'exec: "/etc/passwd": permission denied'),
        (("/etc",), 126, r'exec: "/etc": is a directory: permission denied'),
    ],
)
def test_a_program_that_cannot_be_run(
    engine: Engine, cli: Cli, busybox: str, words: tuple[str, ...], code: int, error: str
) -> None:
    done = cli.call("run", "--rm", busybox, *words)
    assert (done.code, done.out) == (code, "")
    assert re.fullmatch(
        rf"docker: Error response from daemon: failed to create task for container: .*{error}\n\n"
        r"Run 'docker run --help' for more information\n",
        done.err,
    )
    assert state(engine)[0] == []
    cli.call("run", "--name", "kept", busybox, *words)
    document = engine.api.get("/containers/kept/json").ok()
    assert document["State"]["Status"] == "created"
    assert document["State"]["ExitCode"] == code
    assert re.search(error, document["State"]["Error"])


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        (("--user", "nouser"), "unable to find user nouser: no matching entries in passwd file"),
        (("-w", "/etc/passwd"), "Cannot mkdir: /etc/passwd is not a directory"),
        (("-m", "1k"), "Minimum memory limit allowed is 6MB"),
        (("--cpus", "1000"), "range of CPUs is from 0.01 to {cpus}.00, as there are only {cpus} CPUs available"),
        (
            ("-v", "relative/x:/y"),
            'create relative/x: "relative/x" includes invalid characters for a local volume name, only '
            '"[a-zA-Z0-9][a-zA-Z0-9_.-]" are allowed. If you intended to pass a host directory, use absolute path',
        ),
        (
            ("-v", "/a:rel"),
            "invalid volume specification: '/a:rel': invalid mount config for type \"bind\": invalid mount path: 'rel' "
            "mount path must be absolute",
        ),
        (
            ("--mount", "type=bind,src=/no/such/folder,dst=/x"),
            'invalid mount config for type "bind": bind source path does not exist: /no/such/folder',
        ),
        (("--network", "nonet"), "failed to set up container networking: network nonet not found"),
        (("--name", "bad name"), "Invalid container name (bad name), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"),
        (("--cap-add", "NOPE"), 'invalid CapAdd: unknown capability: "CAP_NOPE"'),
    ],
)
def test_an_option_that_is_wrong(engine: Engine, cli: Cli, busybox: str, flags: tuple[str, ...], error: str) -> None:
    done = cli.call("run", "--rm", *flags, busybox, "true")
    expected = error.replace("{cpus}", str(engine.api.get("/info").ok()["NCPU"]))
    assert done == (
        125,
        "",
        f"docker: Error response from daemon: {expected}\n\nRun 'docker run --help' for more information\n",
    )
    assert state(engine)[0] == []


def test_a_name_that_is_taken(cli: Cli, busybox: str) -> None:
    first = cli("create", "--name", "taken", busybox).strip()
    done = cli.call("create", "--name", "taken", busybox)
    assert (done.code, done.err) == (
        1,
        f'Error response from daemon: Conflict. The container name "/taken" is already in use by container "{first}". '
        "You have to remove (or rename) that container to be able to reuse that name.\n",
    )


def test_a_port_that_is_taken(engine: Engine, cli: Cli, busybox: str) -> None:
    cli("run", "-d", "-p", "8099:80", busybox, "sleep", "1000")
    done = cli.call("run", "-d", "--name", "second", "-p", "8099:80", busybox, "sleep", "1000")
    assert done.code == 125
    assert re.fullmatch(
        r"docker: Error response from daemon: failed to set up container networking: "
        r"driver failed programming external connectivity on endpoint second \([0-9a-f]{64}\): "
        r"Bind for (0\.0\.0\.0|::):8099 failed: port is already allocated\n\n"
        r"Run 'docker run --help' for more information\n",
        done.err,
    )
    assert engine.api.get("/containers/second/json").ok()["State"]["Status"] == "created"


def test_a_port_that_another_program_has(engine: Engine, cli: Cli, busybox: str) -> None:
    server = engine.inside(lambda: ThreadingHTTPServer(("0.0.0.0", 8098), BaseHTTPRequestHandler))
    try:
        done = cli.call("run", "-d", "--name", "second", "-p", "8098:80", busybox, "sleep", "1000")
        assert done.code == 125
        assert re.search(
            r"failed to bind host port for (0\.0\.0\.0:8098:[0-9.]+|\[::\]:8098:\S+):80/tcp: address already in use\n",
            done.err,
        )
    finally:
        server.server_close()
    # Once it is free, the container that was created can start.
    assert cli("start", "second") == "second\n"


@pytest.mark.parametrize("verb", ["start", "stop", "rm", "logs", "top", "kill", "restart", "pause"])
def test_a_container_that_is_not_there(cli: Cli, verb: str) -> None:
    done = cli.call(verb, "no-such-container")
    assert done.code == 1
    assert re.match(r"Error response from daemon: .*No such container: no-such-container\n", done.err)


# ---------------------------------------------------------------- requests


@pytest.mark.parametrize(
    ("body", "kind", "message"),
    [
        (b"{", "application/json", "invalid JSON: unexpected EOF"),
        (b"{}", "text/plain", "unsupported Content-Type header (text/plain): must be 'application/json'"),
        (b"{}{}", "application/json", "unexpected content after JSON"),
        (b"", "application/json", "invalid JSON: got EOF while reading request body"),
        (b"null", "application/json", "config cannot be empty in order to create a container"),
        (
            b'{"Image":1}',
            "application/json",
            "invalid JSON: json: cannot unmarshal number into Go struct field .Image of type string",
        ),
        (
            b'{"Image":"busybox","HostConfig":{"Memory":"x"}}',
            "application/json",
            "invalid JSON: json: cannot unmarshal string into Go struct field .HostConfig.Memory of type int64",
        ),
    ],
)
def test_a_body_that_is_wrong(api: Api, body: bytes, kind: str, message: str) -> None:
    reply = api.call("POST", "/containers/create", body, headers={"Content-Type": kind})
    assert (reply.status, reply.json()) == (400, {"message": message})


@pytest.mark.parametrize(
    ("method", "path", "status", "message"),
    [
        ("GET", "/nope", 404, "page not found"),
        ("POST", "/containers/json", 404, "page not found"),
        ("GET", "/containers/json?filters=x", 400, "invalid filter"),
        ("GET", '/containers/json?filters={"bogus":["1"]}', 400, "invalid filter 'bogus'"),
    ],
)
def test_a_request_that_is_wrong(api: Api, method: str, path: str, status: int, message: str) -> None:
    reply = api.call(method, path)
    assert (reply.status, reply.json()) == (status, {"message": message})


def test_versions_out_of_range(engine: Engine) -> None:
    old = Api(engine.socket, "v1.20").get("/version")
    assert old.status == 400
    assert (
        b"client version 1.20 is too old. Minimum supported API version is 1.24, please upgrade your client" in old.body
    )
    new = Api(engine.socket, "v1.99").get("/version")
    assert (new.status, new.json()) == (
        400,
        {"message": "client version 1.99 is too new. Maximum supported API version is 1.51"},
    )


# ---------------------------------------------------------------- archives

TAR = {"Content-Type": "application/x-tar"}


def outside() -> set[str]:
    return {path.name for path in Path("/tmp").glob("evil*")} | {path.name for path in Path("/").glob("evil*")}


@pytest.mark.parametrize("case", tars.ESCAPING)
def test_a_build_context_that_escapes(engine: Engine, busybox: str, case: str) -> None:
    before = state(engine), outside()
    context = pack(Entry("Dockerfile", tars.DOCKERFILE.encode()), *tars.ESCAPING[case])
    reply = engine.api.call("POST", "/build", context, headers=TAR, t="hostile", nocache="1")
    assert reply.status in (400, 500)
    assert reply.json()["message"]
    assert (state(engine), outside()) == before


@pytest.mark.parametrize("case", tars.CONTAINED)
def test_a_build_context_that_stays_inside(engine: Engine, cli: Cli, busybox: str, case: str) -> None:
    before = outside()
    context = pack(Entry("Dockerfile", tars.DOCKERFILE.encode()), *tars.CONTAINED[case])
    reply = engine.api.call("POST", "/build", context, headers=TAR, t="hostile", nocache="1")
    assert b"Successfully tagged hostile:latest" in reply.body
    assert outside() == before
    listing = cli("run", "--rm", "hostile", "find", "/context")
    assert ("evil" in listing) == (case != "device")
    engine.api.delete("/images/hostile", force="1").ok()


@pytest.mark.parametrize("case", tars.CONTAINED_OR_REFUSED)
def test_a_build_context_with_a_way_out(engine: Engine, cli: Cli, busybox: str, case: str) -> None:
    before = outside()
    context = pack(Entry("Dockerfile", tars.DOCKERFILE.encode()), *tars.CONTAINED_OR_REFUSED[case])
    reply = engine.api.call("POST", "/build", context, headers=TAR, t="hostile", nocache="1")
    assert outside() == before
    if reply.status == 200:
        assert "evil" in cli("run", "--rm", "hostile", "find", "/context")
        engine.api.delete("/images/hostile", force="1").ok()


@pytest.mark.parametrize("case", tars.ESCAPING)
def test_a_copied_archive_that_escapes(engine: Engine, busybox: str, case: str) -> None:
    container = engine.api.post("/containers/create", {"Image": busybox}).ok()["Id"]
    before = outside()
    reply = engine.api.call(
        "PUT", f"/containers/{container}/archive", pack(*tars.ESCAPING[case]), headers=TAR, path="/root"
    )
    assert reply.status in (400, 500)
    assert outside() == before
    inside = engine.api.call("HEAD", f"/containers/{container}/archive", path="/evil")
    assert inside.status == 404


@pytest.mark.parametrize(
    ("archive", "message"),
    [
        (b"garbage" * 300, "archive/tar: invalid tar header"),
        (pack(Entry("a", b"x" * 5000))[:800], "unexpected EOF"),
    ],
)
def test_an_archive_that_is_none(engine: Engine, busybox: str, archive: bytes, message: str) -> None:
    before = state(engine)
    loaded = engine.api.post("/images/load", archive)
    assert json.loads(loaded.body.splitlines()[-1])["error"] == message
    container = engine.api.post("/containers/create", {"Image": busybox}).ok()["Id"]
    reply = engine.api.call("PUT", f"/containers/{container}/archive", archive, headers=TAR, path="/root")
    assert (reply.status, reply.json()) == (500, {"message": message})
    engine.api.delete(f"/containers/{container}").ok()
    assert state(engine) == before


def test_a_saved_image_that_reaches_out(engine: Engine) -> None:
    before = state(engine)
    for config in ("../../../../../../etc/passwd", "/etc/passwd"):
        manifest = json.dumps([{"Config": config, "RepoTags": ["evil:latest"], "Layers": []}]).encode()
        for extra in ((), (tars.link("etc", "/etc"),)):
            loaded = engine.api.post("/images/load", pack(Entry("manifest.json", manifest), *extra))
            assert b'"errorDetail"' in loaded.body or loaded.status >= 400
            assert b"root:" not in loaded.body
    assert state(engine) == before


def test_a_dockerfile_that_is_no_file(engine: Engine, busybox: str) -> None:
    for entry in (
        tars.link("Dockerfile", "/etc/passwd"),
        Entry("Dockerfile", kind=tarfile.DIRTYPE),
        Entry("another", b"FROM busybox\n"),
    ):
        reply = engine.api.call("POST", "/build", pack(entry), headers=TAR)
        assert reply.status in (400, 500)
        assert "Dockerfile" in reply.json()["message"]
        assert b"root" not in reply.body


@pytest.mark.own("dockerd waits for somebody to write into it")
def test_a_dockerfile_that_is_a_pipe(engine: Engine, busybox: str) -> None:
    reply = engine.api.call("POST", "/build", pack(Entry("Dockerfile", kind=tarfile.FIFOTYPE)), headers=TAR)
    assert reply.status in (400, 500)
    assert "Dockerfile" in reply.json()["message"]

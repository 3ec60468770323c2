"""``compatd demo``: the hello-world scenario from nothing, with a private engine that leaves no trace.

Needs root and nothing else: where no registry answers, the base image is made of the host's own shell. The engine
has its own data root, exec root, socket, cgroup parent and bridge subnet; where another engine has its bridge already,
it gets a network namespace of its own, too, and disturbs nobody. This is a client: it speaks HTTP to the engine's
socket, or lets the stock CLI do so where that is on the PATH.
"""

import argparse
import contextlib
import http.client
import io
import ipaddress
import json
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Generator, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from compatd import __version__, doctor, hostimage
from compatd.linux import syscalls
from compatd.network import bridge, netns
from compatd.runtime.host import probe_host

_BASE = "ubuntu:16.04"
_DOCKERFILE = f"""\
FROM {_BASE}

COPY helloworld /usr/local/bin
RUN chmod +x /usr/local/bin/helloworld

CMD ["helloworld"]
"""
_SCRIPT = '#!/bin/sh\necho "Hello, World!"\n'
_BRIDGE = "docker0"
_WANTED = "Hello, World!\n"
_START_S = 20
_STOP_S = 20
_PULL_S = 60
_REGISTRY_S = 3


class DemoFailed(Exception):
    """A step went wrong; the message says which and why."""


def main(arguments: Sequence[str]) -> int:
    """Run the demonstration. 0: the container has printed ``Hello, World!``."""
    parser = argparse.ArgumentParser(prog="compatd demo", description="Build and run hello-world on a private engine.")
    parser.add_argument("--no-cli", action="store_true", help="speak to the API even where a docker CLI is on the PATH")
    parser.add_argument("--offline", action="store_true", help="do not ask a registry for the base image")
    options = parser.parse_args(arguments)
    cli = None if options.no_cli else shutil.which("docker")
    began = time.monotonic()
    try:
        apart = os.path.exists(f"/sys/class/net/{_BRIDGE}")
        with _engine(apart=apart) as engine:
            _provide_base(engine, offline=options.offline or apart)
            printed = _by_cli(engine, cli) if cli else _by_api(engine)
            if printed != _WANTED:
                raise DemoFailed(f"the container printed {printed!r}")
    except DemoFailed as error:
        print(f"\ncompatd demo: {error}", file=sys.stderr)
        return 1
    _step(f"Done in {time.monotonic() - began:.1f} s; everything has been removed again")
    return 0


def _step(text: str) -> None:
    print(f"\n\033[1m==> {text}\033[0m" if sys.stdout.isatty() else f"\n==> {text}", flush=True)


# ---------------------------------------------------------------- the engine


class _Engine:
    def __init__(self, path: str) -> None:
        self.path = path
        self.host = f"unix://{path}"

    def request(
        self,
        method: str,
        target: str,
        body: bytes | None = None,
        kind: str = "application/json",
        timeout_s: float = 120,
    ) -> http.client.HTTPResponse:
        """One request on a connection of its own; the response is still to be read. ``DemoFailed``: refused."""
        connection = http.client.HTTPConnection("localhost")
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(timeout_s)
        try:
            connection.sock.connect(self.path)
            connection.request(method, f"/v1.51{target}", body, {"Content-Type": kind, "Connection": "close"})
            response = connection.getresponse()
            if response.status >= 400:
                message = json.loads(response.read())["message"]
                raise DemoFailed(f"{method} {target}: {message}")
            return response
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise DemoFailed(f"{method} {target}: {error!r}") from error

    def call(self, method: str, target: str, document: object = None) -> Any:
        """A request with JSON in and out."""
        body = None if document is None else json.dumps(document).encode()
        with self.request(method, target, body) as response:
            text = response.read()
        return json.loads(text) if text else None

    def stream(self, method: str, target: str, body: bytes | None, kind: str, timeout_s: float = 120) -> Iterator[Any]:
        """The documents of a progress stream, which ends with an error in it when the work fails."""
        with self.request(method, target, body, kind, timeout_s) as response:
            try:
                for line in response:
                    document = json.loads(line)
                    if "error" in document:
                        raise DemoFailed(document["error"])
                    yield document
            except OSError as error:
                raise DemoFailed(f"{method} {target}: {error!r}") from error


@contextlib.contextmanager
def _engine(*, apart: bool) -> Generator[_Engine, None, None]:
    """A private daemon, ``apart`` from the host's network; it and all that it made are gone when the context ends."""
    if os.geteuid() != 0:
        raise DemoFailed("it needs root, as every container engine does: sudo compatd demo")
    folder = _folder()
    try:
        engine = _Engine(f"{folder}/sock")
        command = [
            *(sys.executable, "-m", "compatd", "-H", engine.host, "--pidfile", f"{folder}/pid"),
            *("--data-root", f"{folder}/data", "--exec-root", f"{folder}/run", "--cgroup-parent", f"/{folder.name}"),
            *("--bip", _free_address(), "--config-file", f"{folder}/daemon.json"),
        ]
        (folder / "daemon.json").touch()  # not the one of another engine
        _step("Starting a private engine")
        print(" ".join(command))
        with contextlib.ExitStack() as stack:
            if apart:
                print("in a network namespace of its own, since another engine has a bridge here")
                namespace = netns.create()
                stack.callback(os.close, namespace)
                enter = partial(syscalls.setns, namespace, syscalls.CLONE_NEWNET)
            else:
                enter = None
            log = stack.enter_context((folder / "log").open("wb"))
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, preexec_fn=enter)
        try:
            _await(engine, process, folder / "log")
            version = engine.call("GET", "/version")
            print(f"compatd {__version__} answers on {engine.host} (API {version['ApiVersion']})")
            yield engine
        finally:
            process.terminate()
            try:
                process.wait(_STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for root in probe_host().cgroup.mount_points:
            with contextlib.suppress(OSError):
                os.rmdir(f"{root}/{folder.name}")


def _await(engine: _Engine, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise DemoFailed(f"the engine ended with exit code {process.returncode}:\n{log.read_text()[-3000:]}")
        with contextlib.suppress(DemoFailed):
            engine.request("GET", "/_ping", timeout_s=5).close()
            return
        time.sleep(0.02)
    raise DemoFailed(f"the engine does not answer:\n{log.read_text()[-3000:]}")


def _folder() -> Path:
    """A new folder where images can be kept: on a file system that can carry an overlay's upper directory."""
    for parent in (tempfile.gettempdir(), "/var/tmp", "/var/lib", "/dev/shm"):
        try:
            folder = Path(tempfile.mkdtemp(prefix="compatd-demo-", dir=parent))
        except OSError:
            continue
        try:
            (folder / "probe").mkdir()
            doctor.mount_overlay(folder / "probe")
        except OSError:
            shutil.rmtree(folder, ignore_errors=True)
            continue
        return folder
    raise DemoFailed("no folder here can carry an overlay; compatd doctor tells more")


def _free_address() -> str:
    """A bridge address with its subnet, in none of the networks that the host is in."""
    taken = bridge.host_subnets(except_bridge="")
    for subnet in ipaddress.ip_network("172.16.0.0/12").subnets(new_prefix=24):
        if isinstance(subnet, ipaddress.IPv4Network) and not any(subnet.overlaps(other) for other in taken):
            return f"{subnet[1]}/{subnet.prefixlen}"
    raise DemoFailed("no free subnet in 172.16.0.0/12")


# ---------------------------------------------------------------- the scenario


def _provide_base(engine: _Engine, *, offline: bool) -> None:
    if not offline and _registry_answers():
        _step(f"Pulling {_BASE}")
        name, _, tag = _BASE.partition(":")
        try:
            _show_progress(
                engine.stream("POST", f"/images/create?fromImage={name}&tag={tag}", None, "text/plain", _PULL_S)
            )
            return
        except DemoFailed as error:
            print(error)
    _step(f"No registry answers: making {_BASE} of this machine's own shell and libraries")
    try:
        root = hostimage.root_tar()
    except OSError as error:
        raise DemoFailed(f"no base image: {error}") from error
    name, _, tag = _BASE.partition(":")
    _show_progress(engine.stream("POST", f"/images/create?fromSrc=-&repo={name}&tag={tag}", root, "application/x-tar"))


def _registry_answers() -> bool:
    try:
        socket.create_connection(("registry-1.docker.io", 443), timeout=_REGISTRY_S).close()
    except OSError:
        return False
    return True


def _show_progress(documents: Iterator[Any]) -> None:
    for document in documents:
        if "progress" not in document:
            print(f"{document['id']}: {document['status']}" if document.get("id") else document.get("status", ""))


def _by_cli(engine: _Engine, cli: str) -> str:
    """Both commands as a user types them. Returns what the container printed."""
    with tempfile.TemporaryDirectory(prefix="compatd-demo-") as folder:
        Path(folder, "helloworld").write_text(_SCRIPT)
        Path(folder, "Dockerfile").write_text(_DOCKERFILE)
        environment = {**os.environ, "DOCKER_HOST": engine.host, "DOCKER_BUILDKIT": "0", "DOCKER_CONFIG": folder}
        environment.pop("DOCKER_CONTEXT", None)
        _step("$ docker image build -t helloworld:latest .")
        print(_DOCKERFILE)
        built = subprocess.run([cli, "image", "build", "-t", "helloworld:latest", "."], cwd=folder, env=environment)
        if built.returncode:
            raise DemoFailed(f"docker image build: exit code {built.returncode}")
        _step("$ docker container run --rm helloworld:latest")
        ran = subprocess.run(
            [cli, "container", "run", "--rm", "helloworld:latest"], env=environment, stdout=subprocess.PIPE, text=True
        )
        print(ran.stdout, end="")
        if ran.returncode:
            raise DemoFailed(f"docker container run: exit code {ran.returncode}")
        return ran.stdout


def _by_api(engine: _Engine) -> str:
    """The same in the requests that the CLI would make. Returns what the container printed."""
    _step("POST /build?t=helloworld:latest")
    print(_DOCKERFILE)
    for document in engine.stream("POST", "/build?t=helloworld:latest&rm=1", _context(), "application/x-tar"):
        print(document.get("stream", ""), end="", flush=True)
    _step("POST /containers/create, …/start, …/wait; GET …/logs")
    container = engine.call("POST", "/containers/create", {"Image": "helloworld:latest"})["Id"]
    engine.call("POST", f"/containers/{container}/start")
    code = engine.call("POST", f"/containers/{container}/wait")["StatusCode"]
    with engine.request("GET", f"/containers/{container}/logs?stdout=1&stderr=1") as response:
        printed = _unframe(response.read())
    engine.call("DELETE", f"/containers/{container}")
    print(printed, end="")
    if code:
        raise DemoFailed(f"the container's exit code is {code}")
    return printed


def _context() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in (("Dockerfile", _DOCKERFILE), ("helloworld", _SCRIPT)):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content.encode()))
    return buffer.getvalue()


def _unframe(data: bytes) -> str:
    """The text in 8-byte-headed frames."""
    text = b""
    while data:
        length = int.from_bytes(data[4:8], "big")
        text += data[8 : 8 + length]
        data = data[8 + length :]
    return text.decode(errors="replace")

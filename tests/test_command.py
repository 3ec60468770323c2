"""The command line, as a program."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from compatd import __version__
from compatd.__main__ import pidfile
from compatd.config import ConfigError

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[1]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "compatd", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=60
    )


def test_version_and_help() -> None:
    done = run("--version")
    assert (done.returncode, done.stdout) == (0, f"compatd version {__version__}\n")
    done = run("--help")
    assert done.returncode == 0
    assert "--registry-mirror" in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 100


def test_validate(tmp_path: Path) -> None:
    file = tmp_path / "daemon.json"
    file.write_text('{"debug": true}')
    done = run("--validate", "--config-file", str(file))
    assert (done.returncode, done.stdout) == (0, "configuration OK\n")
    done = run("--validate", "--config-file", str(file), "--debug")
    assert done.returncode == 1
    assert "specified both as a flag and in the configuration file: debug" in done.stderr


def test_usage_errors() -> None:
    done = run("--bogus")
    assert (done.returncode, done.stderr) == (125, "unknown flag: --bogus\nSee 'compatd --help'.\n")


def test_pidfile(tmp_path: Path) -> None:
    path = tmp_path / "run" / "pid"
    with pidfile(str(path)):
        assert path.read_text() == str(os.getpid())
    assert not path.exists()


def test_pidfile_of_a_living_engine(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    expected = f"process with PID {os.getpid()} is still running"
    with pidfile(str(path)):
        with pytest.raises(ConfigError, match=expected), pidfile(str(path)):
            pass
        assert path.read_text() == str(os.getpid())


@pytest.mark.parametrize("stale", ["1", "garbage", "", "9" * 300])
def test_pidfile_that_was_left_behind(tmp_path: Path, stale: str) -> None:
    """Whoever has the number now: nobody holds the file."""
    path = tmp_path / "pid"
    path.write_text(stale)
    with pidfile(str(path)):
        assert path.read_text() == str(os.getpid())


def test_what_the_sockets_wait_for_is_little() -> None:
    """Everything imported before the sockets are bound delays the first client of a cold start."""
    code = (
        "import sys, compatd.__main__, compatd.config, compatd.listeners;"
        "large = ('asyncio', 'aiohttp', 'msgspec', 'argparse', 'compatd.core', 'compatd.routes');"
        "print(*(name for name in sys.modules if name in large))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []

"""compatd demo, as on a machine without a network: nothing is there but Python, a shell and the kernel."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.clients import docker_cli
from tests.conftest import have
from tests.engine import ROOT
from tests.netns import Network

pytestmark = pytest.mark.root


def demonstrate(folder: Path, path: str, *flags: str) -> str:
    network = Network()
    try:
        done = subprocess.run(
            [sys.executable, "-m", "compatd", "demo", *flags],
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=90,
            preexec_fn=network.enter,
            env={"PATH": path, "PYTHONPATH": str(ROOT), "TMPDIR": str(folder)},
        )
    finally:
        network.close()
    assert done.returncode == 0, done.stdout + done.stderr
    assert os.listdir(folder) == []
    parent = re.search(r"--cgroup-parent /(\S+)", done.stdout)
    assert parent
    assert not [root for root in Path("/sys/fs/cgroup").glob("*/") if (root / parent[1]).exists()]
    return done.stdout


def test_over_the_api(tmp_path: Path) -> None:
    shown = demonstrate(tmp_path, "/nonexistent")
    assert "No registry answers: making ubuntu:16.04 of this machine's own shell and libraries" in shown
    assert "Step 3/4 : RUN chmod +x /usr/local/bin/helloworld\n" in shown
    assert "\nHello, World!\n" in shown


def test_with_the_stock_cli(tmp_path: Path) -> None:
    client = have(docker_cli)
    shown = demonstrate(tmp_path, f"{client.parent}:/usr/bin:/bin", "--offline")
    assert "$ docker container run --rm helloworld:latest" in shown
    assert "Successfully tagged helloworld:latest\n" in shown
    assert "\nHello, World!\n" in shown

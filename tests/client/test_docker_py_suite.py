"""docker-py's own integration tests, as far as they concern containers, run against the engine.

What fails must be what is written here, with its reason; the real engine passes the rest on the same machine.
"""

import os
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from tests import clients
from tests.conftest import have
from tests.engine import Engine, OwnEngine
from tests.fixtures import tars

NO_REGISTRY = "pulls from Docker Hub"
OLD = "knows an older engine's text or exit code"
SWARM = "makes a swarm"
SLOW = "waits out the ten seconds of a stop; api_container_test restarts, too"

# What they expect of the image, made of ours.
ALPINE = """FROM busybox:latest
RUN echo postgres:x:70:70::/:/bin/sh >>/etc/passwd && mkdir -p /var/opt
"""

# module: (the tests in it that are left out, and why)
MODULES: dict[str, dict[str, str]] = {
    "api_container_test": {
        "test_create_with_restart_policy": OLD,
        "test_run_container_reading_socket_ws": "the client has no websockets over a unix socket",
    },
    "api_exec_test": {},
    "api_healthcheck_test": {},
    "api_volume_test": {},
    "api_network_test": {
        "test_create_check_duplicate": OLD,
        "test_create_network_ipv6_enabled": OLD,
        "test_create_inspect_network_with_scope": SWARM,
        "test_create_network_attachable": SWARM,
        "test_create_network_ingress": SWARM,
    },
    "models_containers_test": {
        "test_exec_run_failed": OLD,
        "test_restart": SLOW,
        "test_run_with_image_that_does_not_exist": NO_REGISTRY,
    },
    "models_networks_test": {},
    "models_volumes_test": {},
    "regression_test": {},
}

DOCKERD_LOSES = ["test_attach_no_stream"]  # a race between the program and the attach

pytestmark = [pytest.mark.root, pytest.mark.parity, pytest.mark.timeout(420)]


def test_modules(engine: Engine, busybox: str, tmp_path: Path) -> None:
    """All in one run: each run costs seconds before its first test."""
    folder = have(clients.docker_py_tests)
    context = tars.pack(tars.Entry("Dockerfile", ALPINE.encode()))
    assert engine.api.post("/build", context, t="alpine:3.10").status == 200
    engine.api.post("/images/alpine:3.10/tag", repo="alpine", tag="latest").ok()
    left_out = [f"not ({module} and {name})" for module, names in MODULES.items() for name in names]
    if not isinstance(engine, OwnEngine):
        left_out += [f"not {name}" for name in DOCKERD_LOSES]
    report = tmp_path / "report.xml"
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", folder),
            *("--timeout", "60", "--tb", "short", f"--junitxml={report}"),
            *(f"tests/integration/{module}.py" for module in MODULES),
            *("-k", " and ".join(left_out)),
        ],
        cwd=folder,
        env={**os.environ, "DOCKER_HOST": engine.host, "PYTHONDONTWRITEBYTECODE": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=400,
    )
    cases = list(ElementTree.parse(report).iter("testcase"))
    failed = [case.get("name") for case in cases if case.find("failure") is not None or case.find("error") is not None]
    assert {module for module in MODULES if any(module in case.get("classname", "") for case in cases)} == set(MODULES)
    assert not failed, done.stdout

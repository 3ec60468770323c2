"""Format, lint, types and import contracts are tests like any other, so that ``pytest`` is the one command."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import IN_CI
from tests.engine import ROOT

_CA = Path("/etc/ssl/certs/ca-certificates.crt")

pytestmark = [pytest.mark.unit, pytest.mark.timeout(600)]


@pytest.mark.parametrize(
    "command",
    [
        ("ruff", "format", "--check", "."),
        ("ruff", "check", "."),
        ("mypy",),
        ("pyright", "--pythonpath", sys.executable),
        ("lint-imports",),
    ],
    ids=lambda command: command[0] + " " + command[1] if command[0] == "ruff" else command[0],
)
def test_linter(command: tuple[str, ...]) -> None:
    program = Path(sys.executable).parent / command[0]
    if not program.exists() and not IN_CI:
        pytest.skip(f"{command[0]} is not installed (pip install '.[test]')")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "NO_COLOR": "1"}
    if _CA.exists():  # pyright fetches itself once, with a Node.js that brings its own certificates
        environment.setdefault("NODE_EXTRA_CA_CERTS", str(_CA))
    done = subprocess.run(
        [program, *command[1:]], cwd=ROOT, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]

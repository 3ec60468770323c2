"""Start-up cost and memory are imports: what each process may load."""

import subprocess
import sys

import pytest

from tests.engine import ROOT

pytestmark = pytest.mark.unit


def loaded(statement: str) -> set[str]:
    """The modules that a fresh interpreter has after ``statement``."""
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r}); {statement}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_the_spawner_loads_almost_nothing() -> None:
    """Every shim shares its memory; each module costs every container. Without site-packages, too."""
    modules = loaded("import compatd.shim.__main__")
    ours = {name for name in modules if name.startswith("compatd.")}
    assert {name for name in ours if not name.startswith(("compatd.shim", "compatd.linux"))} <= {"compatd.errors"}
    heavy = {"asyncio", "ssl", "email", "http", "urllib", "logging", "argparse", "tempfile", "subprocess", "threading"}
    heavy |= {"aiohttp", "msgspec", "pyroute2", "sqlite3", "dataclasses", "inspect", "ast", "multiprocessing"}
    assert modules & heavy == set()


def test_the_engine_starts_without_what_most_starts_do_not_need() -> None:
    """Building, pulling: loaded at the first build and the first pull."""
    done = subprocess.run(
        [sys.executable, "-c", "import sys, compatd.app; print(*sys.modules)"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    modules = set(done.stdout.split())
    assert not {name for name in modules if name.startswith("compatd.builder")}
    assert modules & {"compatd.core.builder", "compatd.core.runner", "compatd.images.registry", "pyroute2"} == set()


def test_wire_types_stand_alone() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import sys, compatd.wire; print(*(m for m in sys.modules if m.startswith('compatd')))"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert {name for name in done.stdout.split() if not name.startswith("compatd.wire")} == {"compatd"}

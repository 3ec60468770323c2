"""The tree stays as it was meant: small modules, tests where one looks for them, nothing of this machine."""

import ast
import subprocess
from pathlib import Path

import pytest

from tests.engine import ROOT

pytestmark = pytest.mark.unit

MAX_LINES = 700
TOP_LEVEL = {".ci", ".gitignore", "LICENSE", "README.md", "api", "compat-matrix", "compatd", "pyproject.toml", "tests"}
BANNED_NAMES = {"utils", "util", "helpers", "helper", "common", "misc", "base"}


def modules() -> list[Path]:
    return [path for path in sorted((ROOT / "compatd").rglob("*.py")) if path.name != "__init__.py"]


def tracked() -> list[str]:
    try:
        done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("git is not installed")
    if done.returncode:
        pytest.skip("not a git checkout")
    return [name for name in done.stdout.split("\0") if name]


def test_modules_are_small() -> None:
    sizes = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in modules()}
    assert {name: lines for name, lines in sizes.items() if lines > MAX_LINES} == {}


def test_modules_are_named_after_what_they_hold() -> None:
    assert [str(path) for path in modules() if path.stem in BANNED_NAMES] == []


def test_every_module_says_what_it_is() -> None:
    silent = [
        str(path.relative_to(ROOT)) for path in modules() if not ast.get_docstring(ast.parse(path.read_text())) or ""
    ]
    assert silent == []


def test_top_level() -> None:
    assert {name.partition("/")[0] for name in tracked()} <= TOP_LEVEL


def test_packages_have_tests() -> None:
    """Each package of the engine has its folder of tests."""
    packages = {path.parent.name for path in modules()} - {"compatd", "types"}
    assert {name for name in packages if not list((ROOT / "tests" / name).glob("test_*.py"))} == set()

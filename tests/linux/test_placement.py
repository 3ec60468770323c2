"""Hints to the file system."""

from pathlib import Path

import pytest

from compatd.linux.placement import spread

pytestmark = pytest.mark.unit


def test_it_is_only_a_hint(tmp_path: Path) -> None:
    spread(tmp_path)
    spread(Path("/proc"))
    with pytest.raises(NotADirectoryError):
        spread(Path("/proc/version"))

"""Root file systems made of the host's own programs."""

import io
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compatd import hostimage

SHELL = Path("/bin/sh").resolve()


@pytest.mark.unit
def test_a_program_names_its_interpreter_and_libraries() -> None:
    elf = hostimage.read_elf(SHELL.read_bytes())
    assert Path(elf.interpreter).exists()
    assert any(name.startswith("libc.") for name in elf.needed)


@pytest.mark.unit
@given(st.binary(max_size=200), st.integers(0, 5000))
@settings(max_examples=100, deadline=None)
def test_a_damaged_file_is_a_value_error(noise: bytes, cut: int) -> None:
    whole = SHELL.read_bytes()[:8000]
    for data in (noise, whole[:cut], whole[:64] + noise, whole[:cut] + noise + whole[cut:]):
        try:
            hostimage.read_elf(data)
        except ValueError:
            continue


@pytest.mark.unit
def test_the_closure_is_complete() -> None:
    files = hostimage.closure([str(SHELL)])
    names = {Path(path).name for path in files}
    for path in files:
        elf = hostimage.read_elf(Path(path).read_bytes())
        assert set(elf.needed) <= names
        assert not elf.interpreter or elf.interpreter in files


@pytest.mark.root
def test_the_shell_runs_in_it(tmp_path: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(hostimage.root_tar())) as archive:
        archive.extraction_filter = lambda member, path: member  # an argument for it came with Python 3.11.4
        archive.extractall(tmp_path)
    program = (
        f"import os; os.chroot({str(tmp_path)!r}); os.chdir('/'); "
        "os.execv('/bin/sh', ['sh', '-c', 'ls /; id -u; cat /etc/passwd'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env={"PATH": "/bin:/usr/bin"}
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert {"bin", "etc", "tmp"} <= set(done.stdout.split())
    assert "root:x:0:0:root:/root:/bin/sh" in done.stdout

"""docker diff, export and import of it, and the sizes of containers."""

import io
import os
import tarfile
from pathlib import Path

import pytest

from tests.api import Api
from tests.cli import Cli
from tests.registry import wait_until

pytestmark = [pytest.mark.root, pytest.mark.parity]

WRITER = (
    "echo hello > /f; ln -s /f /l; ln /f /g; mkdir /d; dd if=/dev/zero of=/d/z bs=1000 count=3;"
    " rm /bin/true; rm -r /home; mkdir /home; touch /home/new; mv /usr/local /usr/moved; touch /etc/passwd;"
    " rm /etc/mtab; rm /.dockerenv; mkfifo /p; echo v > /vol/v; echo gone > /gone; rm /gone; echo ready; exec sleep {}"
)
CHANGES = {
    *("A /d", "A /d/z", "A /f", "A /g", "A /l", "A /p", "A /vol", "C /bin", "D /bin/true", "C /etc", "D /etc/mtab"),
    *(
        "C /home",
        "A /home/new",
        "A /run",
        "C /usr",
        "A /usr/moved/bin",
        "D /usr/local",
        "A /usr/moved",
        "D /.dockerenv",
        "C /etc/passwd",
    ),
}


@pytest.fixture(params=["running", "ended"])
def writer(request: pytest.FixtureRequest, cli: Cli, busybox: str) -> str:
    script = WRITER.format(1000 if request.param == "running" else 0)
    cli("run", "-d", "--name", "writer", "-v", "/vol", "--tmpfs", "/run", busybox, "sh", "-c", script)
    wait_until(lambda: "ready" in cli.call("logs", "writer").out, "it has written")
    if request.param == "ended":
        cli("wait", "writer")
    return "writer"


def test_diff(cli: Cli, writer: str) -> None:
    lines = cli("diff", writer).splitlines()
    assert set(lines) == CHANGES
    assert len(lines) == len(CHANGES)
    # What contains something comes before it.
    assert lines.index("A /d") < lines.index("A /d/z")
    assert lines.index("C /bin") < lines.index("D /bin/true")


def test_nothing_changed(cli: Cli, api: Api, busybox: str) -> None:
    cli("run", "--name", "same", busybox, "true")
    cli("create", "--name", "fresh", busybox, "true")
    for name in ("same", "fresh"):
        assert cli("diff", name) == ""
        assert api.get(f"/containers/{name}/changes").json() is None
    assert api.get("/containers/none/changes").status == 404


def test_sizes(cli: Cli, api: Api, writer: str) -> None:
    """What it wrote, links by their length, hard links once; and all that with its image."""
    own = len("hello\n") + len("/f") + 3000
    found = api.get(f"/containers/{writer}/json", size="1").ok()
    passwd = len(cli("run", "--rm", "busybox", "cat", "/etc/passwd"))
    assert found["SizeRw"] == own + passwd
    assert found["SizeRootFs"] == found["SizeRw"] + api.get("/images/busybox/json").ok()["Size"]
    assert not {"SizeRw", "SizeRootFs"} & api.get(f"/containers/{writer}/json").ok().keys()
    (listed,) = api.get("/containers/json", all="1", size="1").ok()
    assert (listed["SizeRw"], listed["SizeRootFs"]) == (found["SizeRw"], found["SizeRootFs"])
    (used,) = api.get("/system/df", type="container").ok()["Containers"]
    assert (used["SizeRw"], used["SizeRootFs"]) == (found["SizeRw"], found["SizeRootFs"])


def test_export(cli: Cli, writer: str, tmp_path: Path) -> None:
    cli("export", "-o", str(tmp_path / "root.tar"), writer)
    with tarfile.open(tmp_path / "root.tar") as archive:
        entries = {entry.name: entry for entry in archive}
    assert [name for name in entries if "/" not in name] == sorted(name for name in entries if "/" not in name)
    # The targets of mounts are there, what is mounted is not.
    for name in ("dev/console", "etc/hosts", "etc/hostname", "etc/resolv.conf"):
        assert (entries[name].size, entries[name].mode) == (0, 0o755), name
    assert sorted(name for name in entries if name.split("/")[0] in ("dev", "proc", "sys", "run", "vol")) == [
        *("dev", "dev/console", "dev/pts", "dev/shm", "proc", "run", "sys", "vol"),
    ]
    assert not {"bin/true", "etc/mtab", ".dockerenv", "gone", "usr/local"} & entries.keys()
    assert entries["g"].islnk()
    assert (entries["l"].linkname, entries["p"].isfifo(), entries["d/z"].size) == ("/f", True, 3000)


def test_import_of_an_export(cli: Cli, api: Api, writer: str) -> None:
    process = cli.start("export", writer)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, b"")
    image = cli("import", "-c", "CMD cat /f", "-m", "back", "-", "imported:one", stdin=out).strip()
    try:
        assert cli("run", "--rm", "imported:one") == "hello\n"
        with tarfile.open(fileobj=io.BytesIO(out)) as archive:
            total = sum(entry.size + len(entry.linkname) * entry.issym() for entry in archive)
        assert api.get(f"/images/{image}/json").ok()["Size"] == total
    finally:
        cli("rmi", "-f", "imported:one")


def test_export_refused(cli: Cli, busybox: str, tmp_path: Path) -> None:
    done = cli.call("export", "-o", str(tmp_path / "x"), "none")
    assert (done.code, done.err) == (1, "Error response from daemon: No such container: none\n")
    assert os.listdir(tmp_path) == ["docker-config"]

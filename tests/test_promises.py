"""What the project promises to be: an engine of its own, with nobody else's program in it."""

import ast
import contextlib
import os
import re
import sys
from pathlib import Path, PurePosixPath

import pytest

from tests.client.test_node_app import answers
from tests.conftest import have
from tests.engine import ROOT, OwnEngine
from tests.registry import wait_until

# Engines, their parts, and the tools that such software calls instead of the kernel.
OTHERS = set(
    "runc crun containerd containerd-shim dockerd docker docker-proxy docker-init podman buildah buildkitd skopeo "
    "youki runsc conmon tini catatonit unshare nsenter newuidmap newgidmap iptables ip6tables iptables-save nft ip tc "
    "brctl dnsmasq slirp4netns passt pasta netavark aardvark-dns fuse-overlayfs mount umount tar gzip zstd xz bsdtar "
    "mkfs mkfs.erofs losetup dmsetup systemd-run capsh setpriv chroot sh bash".split()
)
STARTERS = re.compile(
    r"run|call|check_call|check_output|Popen|system|popen|which|create_subprocess_\w+|(posix_)?spawn\w*|exec\w+"
)
CODE = sorted((ROOT / "compatd").rglob("*.py"))


def started(tree: ast.AST) -> list[tuple[int, str]]:
    """Names of programs, with their lines, in calls that start or look for one."""
    found: list[tuple[int, str]] = []
    for call in ast.walk(tree):
        if not isinstance(call, ast.Call):
            continue
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        if STARTERS.fullmatch(name):
            first = call.args[0] if call.args else None
            words = first.elts[:1] if isinstance(first, ast.List | ast.Tuple) else [first]
            for word in words:
                if isinstance(word, ast.Constant) and isinstance(word.value, str | bytes):
                    text = word.value if isinstance(word.value, str) else word.value.decode(errors="replace")
                    found.append((call.lineno, PurePosixPath(text.split()[0] if text.split() else "").name))
    return found


@pytest.mark.unit
@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_code_starts_nobody_elses_program(path: Path) -> None:
    tree = ast.parse(path.read_text())
    # These show the user the stock CLI where there is one; the engine has no part in that.
    allowed = {"docker"} if path.name in ("demo.py", "doctor.py") else set[str]()
    assert [(line, name) for line, name in started(tree) if name in OTHERS - allowed] == []
    imported = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    if path.name != "demo.py":
        assert "subprocess" not in imported, "programs are started by the spawner and the shim, with exec"


@pytest.mark.root
def test_the_process_tree_has_only_our_own(own_engine: OwnEngine) -> None:
    """While containers run with ports, networks and builds, every process of the engine's is this very Python."""
    own_engine.start()
    have(lambda: own_engine.load("busybox:latest"))
    python = os.stat(sys.executable)
    ours, others = set[int](), dict[int, str]()

    def look() -> None:
        for pid in own_engine.processes():
            with contextlib.suppress(OSError):  # it has ended meanwhile
                program = os.stat(f"/proc/{pid}/exe")
                if (program.st_dev, program.st_ino) == (python.st_dev, python.st_ino):
                    ours.add(pid)
                else:
                    others[pid] = os.readlink(f"/proc/{pid}/exe")

    api = own_engine.api
    created = api.post(
        "/containers/create",
        {
            "Image": "busybox",
            "Cmd": ["httpd", "-f", "-p", "80", "-h", "/etc"],
            "ExposedPorts": {"80/tcp": {}},
            "HostConfig": {"PortBindings": {"80/tcp": [{"HostPort": "8080"}]}, "Init": True},
        },
        name="web",
    ).ok()["Id"]
    api.post(f"/containers/{created}/start").ok()
    wait_until(answers(lambda: own_engine.fetch(8080, path="/hostname").strip(), created[:12]), "the page")
    look()
    made = api.post(f"/containers/{created}/exec", {"Cmd": ["sleep", "1000"]}).ok()["Id"]
    api.post(f"/exec/{made}/start", {"Detach": True}).ok()
    look()
    assert len(ours) >= 3  # daemon, spawner, shim
    assert set(others.values()) == {"/bin/busybox"}  # the containers' own

"""Known ways out of containers, tried. What an engine of its own is needed for, such as marks on the host, is ``own``.

compat-matrix/isolation.md says which test stands for which threat.
"""

import os
import re
import signal
import time
from pathlib import Path

import pytest

from tests.api import Api
from tests.cli import Cli
from tests.engine import Engine
from tests.registry import wait_until

pytestmark = [pytest.mark.root, pytest.mark.parity]


def _state(api: Api, container_id: str) -> dict[str, object]:
    state: dict[str, object] = api.get(f"/containers/{container_id}/json").ok()["State"]
    return state


def _pid(api: Api, container_id: str) -> int:
    pid = _state(api, container_id)["Pid"]
    assert isinstance(pid, int)
    return pid


def _ready(cli: Cli, container_id: str) -> None:
    wait_until(lambda: "ready" in cli("logs", container_id), "the container is ready")


# ---------------------------------------------------------------- execs as their containers see them


WATCH = r"""
echo ready
while :; do
  for p in /proc/[0-9]*; do
    [ -e $p/root$MARK ] && echo "LEAK $p/root"
    [ -e $p/cwd$MARK ] && echo "LEAK $p/cwd"
    for f in $p/fd/*; do [ -e $f/shim.sock ] || [ -e $f/upper ] && echo "LEAK $f"; done
    (: >>$p/exe) 2>/dev/null && echo "LEAK $p/exe" || :
  done
done 2>/dev/null
"""


@pytest.mark.own("looks for a mark on the host")
@pytest.mark.parametrize("flags", ["", "--cap-add SYS_PTRACE"])
def test_an_exec_on_its_way_in_shows_nothing(cli: Cli, busybox: str, tmp_path: Path, flags: str) -> None:
    """Neither the host's root nor our descriptors nor a program that can be written (CVE-2019-5736), at any moment."""
    mark = tmp_path / "mark"
    mark.touch()
    container_id = cli("run", "-d", "-e", f"MARK={mark}", *flags.split(), busybox, "sh", "-c", WATCH).strip()
    _ready(cli, container_id)
    for _ in range(12):
        cli("exec", container_id, "true")
    assert "LEAK" not in cli("logs", container_id)


def test_a_hostile_proc_is_not_written_to(engine: Engine, cli: Cli, busybox: str) -> None:
    """CVE-2025-52881: where a container has covered its /proc, an exec is refused or has what was asked for."""
    cover = """
        mount -t tmpfs none /proc && mkdir -p /proc/self/attr /proc/self/fd /proc/thread-self/attr /proc/sys/kernel
        for f in self/oom_score_adj self/attr/exec thread-self/attr/exec self/setgroups sys/kernel/hostname; do
          : >/proc/$f
        done
        echo ready
        while :; do sleep 0.1; [ -z "$(find /proc -type f -size +0)" ] || echo WRITTEN; done
    """
    container_id = cli("run", "-d", "--oom-score-adj", "77", "--privileged", busybox, "sh", "-c", cover).strip()
    _ready(cli, container_id)
    cli.call("exec", "-d", container_id, "sleep", "1002")
    found = [
        entry
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and _command(entry) == b"sleep\0001002\0" and container_id in _text(entry / "cgroup")
    ]
    assert [_text(entry / "oom_score_adj").strip() for entry in found] == ["77"] * len(found)
    time.sleep(0.15)  # one look of the container's
    assert "WRITTEN" not in cli("logs", container_id)


def _command(entry: Path) -> bytes:
    try:
        return (entry / "cmdline").read_bytes()
    except OSError:
        return b""


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


@pytest.mark.own("a FIFO or a device as /etc/passwd blocks dockerd")
@pytest.mark.parametrize("kind", ["mkfifo /etc/passwd", "ln -s /dev/zero /etc/passwd", "ln -s /dev/tty /etc/passwd"])
def test_account_files_exchanged_while_it_runs(cli: Cli, busybox: str, kind: str) -> None:
    container_id = cli("run", "-d", busybox, "sh", "-c", f"rm /etc/passwd; {kind}; echo ready; exec sleep 1000").strip()
    _ready(cli, container_id)
    refused = cli.call("exec", "-u", "daemon", container_id, "id", timeout_s=20)
    assert refused.code != 0
    assert "passwd" in refused.out + refused.err


# ---------------------------------------------------------------- working directories


@pytest.mark.parametrize("fd", range(3, 16, 2))
def test_a_working_directory_through_a_descriptor(cli: Cli, busybox: str, fd: int) -> None:
    """CVE-2024-21626, at run and at exec."""
    path = f"/proc/self/fd/{fd}"
    done = cli.call("run", "--rm", "-w", path, busybox, "ls")
    assert done.code in (125, 126, 127), done.out
    container_id = cli("run", "-d", busybox, "sleep", "1000").strip()
    done = cli.call("exec", "-w", path, container_id, "ls")
    assert done.code == 127
    assert f'chdir to cwd ("{path}") set in config.json failed: ' in done.out + done.err


def test_a_working_directory_that_is_exchanged(engine: Engine, cli: Cli, busybox: str) -> None:
    """While another container makes it a link to descriptors in turn, nobody ever gets outside."""
    swap = """
        mkdir -p /v/real; echo ready
        while :; do
          for fd in 3 4 5 6 7 8 9 10 11 12; do
            ln -sfn /proc/self/fd/$fd /v/next && mv -T /v/next /v/dir; ln -sfn real /v/next && mv -T /v/next /v/dir
          done
        done
    """
    swapper = cli("run", "-d", "-v", "shared:/v", busybox, "sh", "-c", swap).strip()
    _ready(cli, swapper)
    for _ in range(6):
        done = cli.call("run", "--rm", "-v", "shared:/v", "-w", "/v/dir", busybox, "sh", "-c", "pwd -P; ls")
        assert done.code in (0, 125, 126, 127)
        if done.code == 0:
            assert done.out == "/v/real\n"


# ---------------------------------------------------------------- mounts


@pytest.mark.own("Docker's refusal names a file that it misses there")
def test_a_part_of_proc_is_no_proc(cli: Cli, busybox: str) -> None:
    refused = cli.call("run", "--rm", "-v", "/proc/self:/proc", busybox, "true")
    assert refused.code == 125
    assert "cannot be mounted because it is not of type proc" in refused.err


def test_a_false_null_device(cli: Cli, busybox: str) -> None:
    """CVE-2025-31133: paths are masked with the container's /dev/null, which has to be one."""
    refused = cli.call("run", "--rm", "-v", "/etc/passwd:/dev/null", busybox, "true")
    assert refused.code == 125
    assert "can't reopen /dev/null: container's /dev/null is invalid" in refused.err
    refused = cli.call("run", "--rm", "--privileged", "-v", "/etc/passwd:/dev/null", busybox, "true")
    assert refused.code == 125
    assert "can't reopen /dev/null: container's /dev/null is invalid" in refused.err
    refused = cli.call("run", "--rm", "--tmpfs", "/dev", busybox, "true")
    assert refused.code == 126
    assert "error reopening /dev/null inside container: open /dev/null: permission denied" in refused.err
    refused = cli.call("run", "--rm", "-v", "empty:/dev", busybox, "true")
    assert refused.code == 127
    assert "can't mask paths: open /dev/null: no such file or directory" in refused.err


def test_a_mount_target_that_is_exchanged(engine: Engine, cli: Cli, busybox: str) -> None:
    """A folder of a shared volume becomes a link to /proc in turn, while others mount onto it."""
    swap = """
        mkdir -p /v/real; echo ready
        while :; do ln -sfn /proc /v/next && mv -T /v/next /v/dir; ln -sfn real /v/next && mv -T /v/next /v/dir; done
    """
    swapper = cli("run", "-d", "-v", "shared:/v", busybox, "sh", "-c", swap).strip()
    _ready(cli, swapper)
    before = Path("/proc/self/mountinfo").read_text()
    for _ in range(6):
        done = cli.call(
            *("run", "--rm", "-v", "shared:/v", "-v", "other:/v/dir"),
            *(busybox, "sh", "-c", "cut -d' ' -f5 /proc/self/mountinfo; ls -d /proc/1"),
        )
        assert done.code in (0, 125, 126, 127)
        if done.code == 0:
            assert "/v/real" in done.out
            assert done.out.endswith("/proc/1\n")
    assert Path("/proc/self/mountinfo").read_text() == before


# ---------------------------------------------------------------- programs


@pytest.mark.own("Docker's is a file in memory, without an interpreter of its own")
@pytest.mark.parametrize("program", ["/proc/self/exe", "/proc/1/exe"])
def test_the_interpreter_is_no_program(cli: Cli, busybox: str, program: str) -> None:
    refused = cli.call("run", "--rm", busybox, program)
    assert refused.code == 126
    assert f'exec: "{program}": permission denied' in refused.err


@pytest.mark.parametrize(
    ("user", "text"),
    [
        ("2147483648", "uids and gids must be in range 0-2147483647"),
        ("4294967296", "uids and gids must be in range 0-2147483647"),
        ("99999999999999999999", "uids and gids must be in range 0-2147483647"),
        ("-1", "uids and gids must be in range 0-2147483647"),
        ("0:4294967296", "uids and gids must be in range 0-2147483647"),
        ("1_0", "unable to find user 1_0: no matching entries in passwd file"),
        ("\u0661", "unable to find user \u0661: no matching entries in passwd file"),
        ("0:x", "unable to find group x: no matching entries in group file"),
    ],
)
def test_users_that_overflow(cli: Cli, busybox: str, user: str, text: str) -> None:
    refused = cli.call("run", "--rm", "-u", user, busybox, "id")
    assert (refused.code, text in refused.err) == (125, True)
    container_id = cli("run", "-d", busybox, "sleep", "1000").strip()
    refused = cli.call("exec", "-u", user, container_id, "id")
    assert (refused.code, text in refused.err) == (1, True)


def test_root_defined_anew(cli: Cli, busybox: str) -> None:
    """An image's accounts decide what names mean, never more: the first line that fits counts."""
    script = "sed -i 's/^root:x:0:0/root:x:1234:5678/' /etc/passwd; echo ready; exec sleep 1000"
    container_id = cli("run", "-d", busybox, "sh", "-c", script).strip()
    _ready(cli, container_id)
    assert cli("exec", "-u", "root", container_id, "id", "-u") == "1234\n"
    assert cli("exec", "-u", "0", container_id, "id", "-u") == "0\n"


# ---------------------------------------------------------------- exhaustion and interference


def test_a_fork_bomb_in_its_limit(engine: Engine, cli: Cli, busybox: str) -> None:
    bomb = "b() { b | b & }; echo ready; b; while :; do :; done"
    container_id = cli("run", "-d", "--pids-limit", "25", busybox, "sh", "-c", bomb).strip()
    _ready(cli, container_id)
    cli.call("exec", container_id, "true", timeout_s=20)  # whatever comes of it, it comes
    assert engine.api.get(f"/containers/{container_id}/top").status in (200, 500)
    cli("kill", container_id)
    assert cli("wait", container_id) == "137\n"


def test_a_stopped_init_can_be_ended(engine: Engine, cli: Cli, busybox: str) -> None:
    container_id = cli("run", "-d", busybox, "sleep", "1000").strip()
    os.kill(_pid(engine.api, container_id), signal.SIGSTOP)
    assert _state(engine.api, container_id)["Running"] is True
    cli("stop", "-t", "1", container_id)
    assert _state(engine.api, container_id)["ExitCode"] == 137


def test_the_parent_of_the_init_is_killed(engine: Engine, cli: Cli, busybox: str) -> None:
    """As a container with --pid host can: the init goes with it, and the engine knows."""
    container_id = cli("run", "-d", busybox, "sleep", "1000").strip()
    pid = _pid(engine.api, container_id)
    parent = re.search(r"^PPid:\s+(\d+)", Path(f"/proc/{pid}/status").read_text(), re.M)
    assert parent
    os.kill(int(parent[1]), signal.SIGKILL)
    wait_until(lambda: _state(engine.api, container_id)["Status"] == "exited", "the engine has noticed")
    assert _state(engine.api, container_id)["ExitCode"] == 137
    assert not re.search(r"^State:\s+[^ZX]", _text(Path(f"/proc/{pid}/status")), re.M)
    cli("start", container_id)
    assert _state(engine.api, container_id)["Running"] is True


def test_the_engine_does_not_serve_its_containers(cli: Cli, busybox: str) -> None:
    """No descriptor, no environment and no key of the engine's is in reach."""
    script = """
        ls -l /proc/self/fd /proc/1/fd 2>/dev/null | grep -o ' -> .*' | grep -v -e pipe: -e /dev/null -e /proc/
        echo --
        cat /proc/keys; echo --; ls /run /var/run 2>/dev/null || true
    """
    assert cli("run", "--rm", busybox, "sh", "-c", script) == "--\n--\n"

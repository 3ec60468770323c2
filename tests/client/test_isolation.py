"""Isolation, compared: what a container's process is and finds here, and what was recorded of it on Docker's engine.

``golden/isolation.json`` holds the recorded views: the default run's in full, of the others what differs from it.
What differs here on purpose is listed, with the reason, in compat-matrix/isolation.md; the list is part of the test.
To record: pytest tests/client/test_isolation.py --engine unix:///DOCKERD --record-isolation
"""

import functools
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from compatd.runtime import capabilities, seccomp
from tests import bpf, views
from tests.api import Api
from tests.cli import Cli
from tests.engine import ROOT, Engine
from tests.registry import wait_until
from tests.views import View

pytestmark = [pytest.mark.root, pytest.mark.parity]

GOLDEN = ROOT / "tests" / "golden" / "isolation.json"
EXPLAINED = ROOT / "compat-matrix" / "isolation.md"
VERDICTS = ROOT / "tests" / "golden" / "seccomp.json"

RUNS = {
    "default": "",
    "privileged": "--privileged",
    "privileged user": "--privileged --user 1000",
    "numeric user": "--user 1000",
    "named user": "--user www-data",
    "user and groups": "--user nobody --group-add 5 --group-add www-data",
    "init": "--init",
    "init as user": "--init --user 1000",
    "terminal": "-t",
    "terminal as user": "-t --user 1000",
    "stdin": "-i",
    "all capabilities": "--cap-add ALL",
    "one more capability": "--cap-add SYS_ADMIN --cap-drop CHOWN",
    "no capabilities": "--cap-drop ALL",
    "all less some": "--cap-add ALL --cap-drop NET_RAW",
    "capability for a user": "--cap-add NET_ADMIN --user 1000",
    "no new privileges": "--security-opt no-new-privileges",
    "no seccomp": "--security-opt seccomp=unconfined",
    "plain paths": "--security-opt systempaths=unconfined",
    "writable cgroups": "--security-opt writable-cgroups=true",
    "read-only": "--read-only",
    "no network": "--network none",
    "host network": "--network host",
    "host processes": "--pid host",
    "host ipc": "--ipc host",
    "no ipc": "--ipc none",
    "host name": "--uts host",
    "host cgroups": "--cgroupns host",
    "own cgroups": "--cgroupns private",
    "limits": "--ulimit nofile=100:200 --ulimit core=0 --oom-score-adj 100 --shm-size 1m",
    "device": "--device /dev/null:/dev/foo:r",
    "tmpfs": "--tmpfs /var/log:size=1m,exec --tmpfs /new",
    "sysctls": "--sysctl net.ipv4.ip_unprivileged_port_start=1000 --sysctl kernel.msgmax=9000",
}
# What the container is run with, and the exec in it.
EXECS = {
    "exec": ("", ""),
    "exec as user": ("", "-u 1000"),
    "exec as named user": ("--user nobody", "-u www-data:daemon"),
    "exec keeps the user": ("--user 1000 --group-add 77 --cap-add NET_ADMIN", ""),
    "privileged exec": ("--cap-drop ALL", "--privileged"),
    "privileged exec as user": ("", "--privileged -u 1000"),
    "exec on a terminal": ("", "-t"),
    "exec in a privileged one": ("--privileged", ""),
    "exec without new privileges": ("--security-opt no-new-privileges", "--privileged"),
    "exec beside an init": ("--init", ""),
    "exec with limits": ("--ulimit nofile=100:200 --oom-score-adj 50", ""),
}


def explained(name: str) -> frozenset[str]:
    """The lines of the differences in this case that compat-matrix/isolation.md lists."""
    lines: set[str] = set()
    for row in re.findall(r"^\| `(.+?)` \| `(.+?)` \| (.*?) ?\| (.*?) ?\|", EXPLAINED.read_text(), re.M):
        where, section, before, after = row
        if where in name:
            lines |= {f"- {section}: {text}" for text in re.findall(r"`(.*?)`", before)}
            lines |= {f"+ {section}: {text}" for text in re.findall(r"`(.*?)`", after)}
    return frozenset(lines)


def compare(request: pytest.FixtureRequest, engine: Engine, name: str, view: View) -> None:
    recording = request.config.getoption("--record-isolation")
    golden: dict[str, Any] = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {"views": {}}
    default: View = golden["views"].get("default", {})
    if recording:
        version = engine.api.get("/version").ok()
        golden["engine"] = f"{version['Version']}, API {version['ApiVersion']}, Linux {version['KernelVersion']}"
        golden["cgroups"] = engine.api.get("/info").ok()["CgroupVersion"]
        golden["views"][name] = (
            view
            if name == "default"
            else [line for line in views.difference(default, view) if line[2:].partition(": ")[0] in view]
        )
        GOLDEN.write_text(json.dumps(golden, indent=1) + "\n")
        return
    if name == "default":
        recorded = default
    else:
        delta = golden["views"][name]
        recorded = {
            section: [line for line in lines if f"- {section}: {line}" not in delta]
            for section, lines in default.items()
        }
        for line in delta:
            if line.startswith("+ "):
                section, _, text = line[2:].partition(": ")
                recorded.setdefault(section, []).append(text)
    recorded = {section: lines for section, lines in recorded.items() if section in view}
    # For dockerd itself: what it shows is what was recorded.
    accepted = frozenset() if request.config.getoption("--engine") else explained(name)
    found = [line for line in views.difference(recorded, view) if line not in accepted]
    if golden["cgroups"] != engine.api.get("/info").ok()["CgroupVersion"]:
        found = [line for line in found if not re.match(r"[+-] (mounts: \(cgroup\)|namespaces: cgroup)", line)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("name", RUNS)
def test_run(name: str, request: pytest.FixtureRequest, engine: Engine, cli: Cli, busybox: str) -> None:
    script = f"{views.SCRIPT}\nexec sleep 1000"
    container_id = cli("run", "-d", *RUNS[name].split(), busybox, "sh", "-c", script).strip()
    view = views.inside(_finished(engine.api, container_id), container_id)
    pid: int = engine.api.get(f"/containers/{container_id}/json").ok()["State"]["Pid"]
    if "--network host" in RUNS[name]:
        del view["interfaces"], view["sysctls"], view["files"]
    if "--init" not in RUNS[name]:
        wait_until(lambda: Path(f"/proc/{pid}/comm").read_text() == "sleep\n", "the script has ended")
    compare(request, engine, name, view | views.outside(pid, container_id))


@pytest.mark.parametrize("name", EXECS)
def test_exec(name: str, request: pytest.FixtureRequest, engine: Engine, cli: Cli, busybox: str) -> None:
    run_flags, flags = (text.split() for text in EXECS[name])
    container_id = cli("run", "-d", *run_flags, busybox, "sleep", "1000").strip()
    told = cli("exec", *flags, container_id, "sh", "-c", views.SCRIPT)
    cli("exec", "-d", *flags, container_id, "sleep", "1001")
    view = views.inside(told, container_id) | views.outside(_newest_exec(engine.api, container_id), container_id)
    compare(request, engine, name, view)


def test_build_step(request: pytest.FixtureRequest, engine: Engine, cli: Cli, busybox: str, tmp_path: Path) -> None:
    (tmp_path / "script").write_text(views.SCRIPT)
    (tmp_path / "Dockerfile").write_text(f"FROM {busybox}\nCOPY script /\nRUN . /script\n")
    out = cli("build", "--no-cache", "--force-rm", str(tmp_path))
    short_id = re.findall(r"Running in ([0-9a-f]{12})", out)[-1]
    compare(request, engine, "build step", views.inside(out, short_id + "0" * 52))


def _finished(api: Api, container_id: str) -> str:
    """The output, once the script has ended."""

    def output() -> str:
        raw: bytes = api.get(f"/containers/{container_id}/logs", stdout="1", stderr="1").body
        return re.sub(rb"[\0-\2]\0\0\0.{4}", b"", raw, flags=re.S).decode()  # without frames' heads

    wait_until(lambda: "=== end" in output(), "the script has ended")
    return output()


def _newest_exec(api: Api, container_id: str) -> int:
    """The pid of the exec that runs."""

    def running() -> list[int]:
        found = api.get(f"/containers/{container_id}/json").ok()["ExecIDs"] or []
        states = [api.get(f"/exec/{exec_id}/json").ok() for exec_id in found]
        return [state["Pid"] for state in states if state["Running"] and state["Pid"]]

    def programs() -> list[int]:
        return [pid for pid in running() if Path(f"/proc/{pid}/comm").read_text() == "sleep\n"]

    wait_until(lambda: bool(programs()), "the exec runs")
    return programs()[0]


# ---------------------------------------------------------------- system calls


def test_the_installed_filter(request: pytest.FixtureRequest, engine: Engine, cli: Cli, busybox: str) -> None:
    """The verdict for every system call, of a container's process and of an exec, on either engine."""
    if os.uname().machine != "x86_64":
        pytest.skip("recorded on x86_64")
    recording = request.config.getoption("--record-isolation")
    golden: dict[str, Any] = {} if recording else json.loads(VERDICTS.read_text())
    container_id = cli("run", "-d", busybox, "sleep", "1000").strip()
    pid: int = engine.api.get(f"/containers/{container_id}/json").ok()["State"]["Pid"]
    cli("exec", "-d", "--privileged", container_id, "sleep", "1001")
    try:
        filters = [bpf.of_process(one) for one in (pid, _newest_exec(engine.api, container_id))]
    except OSError as error:
        pytest.skip(f"ptrace(PTRACE_SECCOMP_GET_FILTER): {error}")
    assert [len(found) for found in filters] == [1, 1]
    tables = [bpf.verdicts(found[0]) for found in filters]
    assert tables[0] == tables[1]
    if recording:
        golden["default"] = bpf.fold(tables[0])
        for name in capabilities.NAMES:
            run = cli.call("run", "-d", "--cap-drop", "ALL", "--cap-add", name, busybox, "sleep", "1000")
            if run.code:
                continue
            other = run.out.strip()
            (program,) = bpf.of_process(engine.api.get(f"/containers/{other}/json").ok()["State"]["Pid"])
            golden[name] = bpf.fold(bpf.verdicts(program), tables[0])
        VERDICTS.write_text(json.dumps(golden, indent=1) + "\n")
    assert bpf.fold(tables[0]) == golden["default"]


@functools.cache
def _compiled(held: int) -> dict[str, str]:
    compiled = seccomp.compile_profile(None, capabilities=held, machine="x86_64", kernel=(6, 18))
    assert compiled
    return bpf.verdicts(compiled.program)


@pytest.mark.own("compiles a filter itself")
@pytest.mark.parametrize("name", ["default", *capabilities.NAMES])
def test_the_compiled_filter(name: str) -> None:
    """For every capability alone, with what it allows on top."""
    golden = json.loads(VERDICTS.read_text())
    if name not in golden:
        pytest.skip("not to be had where this was recorded")

    default = _compiled(capabilities.DEFAULT)
    if name == "default":
        assert bpf.fold(default) == golden["default"]
    else:
        assert bpf.fold(_compiled(capabilities.mask([name])), default) == golden[name]


@pytest.mark.own("is about the list")
def test_every_threat_has_its_tests() -> None:
    named = set(re.findall(r"`(test_\w+)`", EXPLAINED.read_text()))
    defined = {
        name for file in (ROOT / "tests").rglob("test_*.py") for name in re.findall(r"def (test_\w+)", file.read_text())
    }
    assert len(named) > 40
    assert named - defined == set()

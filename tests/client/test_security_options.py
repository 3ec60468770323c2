"""Security options and seccomp profiles: what they do, and Docker's words for those that are refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.api import Api
from tests.conftest import have
from tests.engine import OwnEngine

pytestmark = [pytest.mark.root, pytest.mark.parity]

CREATE = (
    "failed to create task for container: failed to create shim task: OCI runtime create failed: runc create failed: "
)
INIT = CREATE + "unable to start container process: error during container init: "
DECODE = "Decoding seccomp profile failed: "


def profile(default: str = "SCMP_ACT_ALLOW", *calls: dict[str, Any], **more: Any) -> str:
    return "seccomp=" + json.dumps({"defaultAction": default, "syscalls": list(calls), **more})


def call(action: str = "SCMP_ACT_ERRNO", *names: str, **more: Any) -> dict[str, Any]:
    return {"names": names or ["mkdir"], "action": action, **more}


def equal(value: int) -> dict[str, Any]:
    return {"index": 0, "value": value, "op": "SCMP_CMP_EQ"}


def run(api: Api, options: list[str], script: str = "true", **host_config: Any) -> tuple[str, str]:
    """``created``/``started`` and the output, or where it was refused and the text."""
    body = {
        "Image": "busybox:latest",
        "Cmd": ["sh", "-c", script],
        "Tty": True,
        "HostConfig": {"SecurityOpt": options, "NetworkMode": "none", **host_config},
    }
    reply = api.post("/containers/create", body)
    if reply.status != 201:
        return "refused", reply.json()["message"]
    container_id = reply.json()["Id"]
    reply = api.post(f"/containers/{container_id}/start")
    if reply.status != 204:
        return "failed", reply.json()["message"]
    api.post(f"/containers/{container_id}/wait")
    return "ran", api.get(f"/containers/{container_id}/logs", stdout="1").body.decode().replace("\r\n", "\n")


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ("foo", 'invalid --security-opt 1: "foo"'),
        ("foo=bar", 'invalid --security-opt 2: "foo=bar"'),
        ("no-new-privileges=x", 'invalid --security-opt 2: "no-new-privileges=x"'),
        ("systempaths=unconfined", 'invalid --security-opt 2: "systempaths=unconfined"'),  # the CLI's own
        ("writable-cgroups=x", 'invalid --security-opt 2: "writable-cgroups=x"'),
    ],
)
def test_options_that_are_refused(api: Api, busybox: str, option: str, text: str) -> None:
    assert run(api, [option]) == ("refused", text)


@pytest.mark.parametrize(
    ("option", "seen"),
    [
        ("no-new-privileges", "NoNewPrivs:\t1\nSeccomp:\t2\n"),
        ("no-new-privileges:T", "NoNewPrivs:\t1\nSeccomp:\t2\n"),
        ("no-new-privileges=false", "NoNewPrivs:\t0\nSeccomp:\t2\n"),
        ("seccomp=unconfined", "NoNewPrivs:\t0\nSeccomp:\t0\n"),
        ("seccomp:unconfined", "NoNewPrivs:\t0\nSeccomp:\t0\n"),
        ("seccomp=builtin", "NoNewPrivs:\t0\nSeccomp:\t2\n"),
        ("seccomp=", "NoNewPrivs:\t0\nSeccomp:\t2\n"),
        ("label=type:x", "NoNewPrivs:\t0\nSeccomp:\t2\n"),
        ("label:disable", "NoNewPrivs:\t0\nSeccomp:\t2\n"),
    ],
)
def test_options_that_are_taken(api: Api, busybox: str, option: str, seen: str) -> None:
    assert run(api, [option], "grep -E '^(NoNewPrivs|Seccomp):' /proc/self/status") == ("ran", seen)


def test_a_privileged_container_reads_every_profile(api: Api, busybox: str) -> None:
    """Even the word for the built-in one."""
    where, text = run(api, ["seccomp=builtin"], Privileged=True)
    assert (where, text) == ("failed", DECODE + "invalid character 'b' looking for beginning of value")
    assert run(api, [], "grep ^Seccomp: /proc/self/status", Privileged=True) == ("ran", "Seccomp:\t0\n")


@pytest.mark.parametrize(
    ("option", "seen"),
    [
        (profile("SCMP_ACT_ALLOW", call()), "mkdir: can't create directory '/x': Operation not permitted\n"),
        (profile("SCMP_ACT_ALLOW", call(errnoRet=28)), "mkdir: can't create directory '/x': No space left on device\n"),
        (profile("SCMP_ACT_ALLOW", call("SCMP_ACT_KILL")), "Bad system call\n"),
        (profile("SCMP_ACT_ALLOW", call("SCMP_ACT_TRAP")), "Bad system call\n"),
        (profile("SCMP_ACT_ALLOW", call("SCMP_ACT_LOG"), flags=["SECCOMP_FILTER_FLAG_LOG"]), ""),
        (
            profile("SCMP_ACT_ALLOW", call("SCMP_ACT_TRACE")),
            "mkdir: can't create directory '/x': Function not implemented\n",
        ),
        (profile("SCMP_ACT_ALLOW", call(includes={"caps": ["CAP_SYS_ADMIN"]})), ""),
        (profile("SCMP_ACT_ALLOW", call(excludes={"minKernel": "4.8"})), ""),
        (profile("SCMP_ACT_ALLOW", call("SCMP_ACT_ERRNO", "nosuchcall"), comment="?", unknown=1), ""),
        (
            profile("SCMP_ACT_ALLOW", call(), archMap=[{"architecture": "SCMP_ARCH_FOO"}]),
            "mkdir: can't create directory '/x': Operation not permitted\n",
        ),
        (
            'seccomp={"DEFAULTACTION":"SCMP_ACT_ALLOW","SysCalls":[{"NAMES":["mkdir"],"Action":"SCMP_ACT_ERRNO"}]}',
            "mkdir: can't create directory '/x': Operation not permitted\n",
        ),
    ],
)
def test_profiles(api: Api, busybox: str, option: str, seen: str) -> None:
    assert run(api, [option], "mkdir /x; exit") == ("ran", seen)


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ("seccomp=junk", DECODE + "invalid character 'j' looking for beginning of value"),
        ("seccomp={} x", DECODE + "invalid character 'x' after top-level value"),
        ("seccomp={", DECODE + "unexpected end of JSON input"),
        (
            'seccomp={"defaultAction":"SCMP_ACT_ALLOW","x":NaN}',
            DECODE + "invalid character 'N' looking for beginning of value",
        ),
        (profile("SCMP_ACT_X"), CREATE + "string SCMP_ACT_X is not a valid action for seccomp"),
        (profile("SCMP_ACT_NOTIFY"), INIT + "SCMP_ACT_NOTIFY cannot be used as default action"),
        (profile("SCMP_ACT_ALLOW", call("SCMP_ACT_NOTIFY")), INIT + "seccomp listenerPath is not set"),
        (
            profile("SCMP_ACT_ALLOW", call("SCMP_ACT_NOTIFY", "write")),
            INIT + "SCMP_ACT_NOTIFY cannot be used for the write syscall",
        ),
        (profile("SCMP_ACT_ALLOW", call("SCMP_ACT_ERRNO", "")), INIT + "empty string is not a valid syscall"),
        (
            profile("SCMP_ACT_ALLOW", call(errnoRet=4095)),
            INIT + "error adding seccomp filter rule for syscall mkdir: two checks on same syscall argument",
        ),
        (
            profile("SCMP_ACT_ALLOW", call(args=[equal(5)]), call("SCMP_ACT_TRAP", args=[equal(5)])),
            INIT + "error adding seccomp rule for syscall mkdir: file exists",
        ),
        (profile("SCMP_ACT_ERRNO", defaultErrnoRet=5000), INIT + "error creating filter: could not create filter"),
        (profile(flags=["X"]), CREATE + "seccomp flag X is not known to runc"),
        (profile(architectures=["X"]), CREATE + "string X is not a valid arch for seccomp"),
        (
            profile("SCMP_ACT_ALLOW", call(includes={"minKernel": "0.0"})),
            DECODE + 'invalid kernel version: "0.0", expected "<kernel>.<major>": version cannot be 0.0',
        ),
    ],
)
def test_profiles_that_are_refused(api: Api, busybox: str, option: str, text: str) -> None:
    assert run(api, [option]) == ("failed", text)


@pytest.mark.own("starts an engine of its own")
def test_the_engines_own_defaults(tmp_path: Path) -> None:
    (tmp_path / "profile.json").write_text(profile("SCMP_ACT_ALLOW", call()).partition("=")[2])
    engine = OwnEngine(
        *("--seccomp-profile", str(tmp_path / "profile.json"), "--no-new-privileges"),
        *("--default-ulimit", "nofile=100:200", "--default-shm-size", "1M", "--default-ipc-mode", "shareable"),
    )
    try:
        engine.start()
        have(lambda: engine.load("busybox:latest"))
        info = engine.api.get("/info").ok()
        assert f"name=seccomp,profile={tmp_path}/profile.json" in info["SecurityOptions"]
        assert "name=no-new-privileges" in info["SecurityOptions"]
        script = "ulimit -n; grep ^NoNew /proc/self/status; df -k /dev/shm | grep -o 1024 | head -1; mkdir /x"
        denied = "mkdir: can't create directory '/x': Operation not permitted\n"
        assert run(engine.api, [], script) == ("ran", f"100\nNoNewPrivs:\t1\n1024\n{denied}")
        assert run(engine.api, ["seccomp=builtin", "no-new-privileges=false"], script) == (
            "ran",
            "100\nNoNewPrivs:\t0\n1024\n",
        )
    finally:
        engine.close()

"""Volumes: what they are made of, who keeps them, what goes with whom."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.api import Api
from tests.cli import Cli
from tests.conftest import have, make_cli
from tests.engine import Engine, OwnEngine
from tests.registry import wait_until

pytestmark = [pytest.mark.root]
parity = pytest.mark.parity
own = pytest.mark.own


@pytest.fixture(autouse=True)
def image(request: pytest.FixtureRequest) -> str:
    if "own_engine" in request.fixturenames:
        return ""
    return str(request.getfixturevalue("busybox"))


@pytest.fixture
def run(cli: Cli) -> Callable[..., str]:
    return lambda script, *flags: cli("run", "--rm", *flags, "busybox", "sh", "-c", script)


@pytest.fixture
def volume(cli: Cli) -> Callable[..., str]:
    """Make one with options (prune leaves such alone); it is removed at the end."""

    def make(name: str, **options: str) -> str:
        cli("volume", "create", *(word for pair in options.items() for word in ("-o", "=".join(pair))), name)
        return name

    return make


@pytest.fixture(autouse=True)
def none_left(request: pytest.FixtureRequest) -> Any:
    yield
    if "engine" in request.fixturenames:
        engine: Engine = request.getfixturevalue("engine")
        engine.clear()
        for found in engine.api.get("/volumes").ok()["Volumes"] or ():
            engine.api.delete(f"/volumes/{found['Name']}", force="1").ok()


def names(api: Api) -> list[str]:
    return [found["Name"] for found in api.get("/volumes").ok()["Volumes"] or ()]


# ---------------------------------------------------------------- create, inspect, remove


@parity
@pytest.mark.parametrize(
    ("body", "labels", "options"),
    [
        ({}, None, None),
        ({"Labels": {}, "DriverOpts": {}}, {}, {}),
        ({"Labels": {"a": "b"}}, {"a": "b"}, None),
        ({"DriverOpts": {"size": "0"}}, None, {"size": "0"}),
        (
            {"DriverOpts": {"type": "tmpfs", "device": "tmpfs", "o": "size=1m"}},
            None,
            {"type": "tmpfs", "device": "tmpfs", "o": "size=1m"},
        ),
    ],
)
def test_create_and_inspect(api: Api, body: dict[str, Any], labels: Any, options: Any) -> None:
    made = api.post("/volumes/create", {"Name": "vv", **body}).ok()
    assert (made["Labels"], made["Options"], made["Driver"], made["Scope"]) == (labels, options, "local", "local")
    assert api.get("/volumes/vv").ok() == made
    # Once more with something else: it stays as it is.
    again = api.post("/volumes/create", {"Name": "vv", "Labels": {"other": ""}, "DriverOpts": {"foo": "bar"}}).ok()
    assert again == made


@parity
@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        ({"Name": "vv", "DriverOpts": {"foo": "x"}}, 400, 'create vv: invalid option: "foo"'),
        ({"Name": "vv", "DriverOpts": {"type": "tmpfs"}}, 400, 'create vv: missing required option: "device"'),
        ({"Name": "vv", "DriverOpts": {"size": "10"}}, 400, "create vv: quota size requested but no quota support"),
        ({"Name": "vv", "DriverOpts": {"size": "x"}}, 400, "create vv: invalid size: 'x'"),
        (
            {"Name": "vv", "Driver": "bogus"},
            404,
            'create vv: error looking up volume plugin bogus: plugin "bogus" not found',
        ),
        (
            {"Name": "é"},
            400,
            'create é: "é" includes invalid characters for a local volume name, only "[a-zA-Z0-9][a-zA-Z0-9_.-]" are'
            " allowed. If you intended to pass a host directory, use absolute path",
        ),
    ],
)
def test_bad_volumes(api: Api, body: dict[str, Any], status: int, message: str) -> None:
    reply = api.post("/volumes/create", body)
    assert (reply.status, reply.json()["message"]) == (status, message)
    assert names(api) == []


@parity
def test_removal_of_what_is_used(cli: Cli, api: Api) -> None:
    id = cli("create", "--name", "box", "-v", "vv:/x", "busybox").strip()
    reply = api.delete("/volumes/vv", force="1")
    assert (reply.status, reply.json()["message"]) == (409, f"remove vv: volume is in use - [{id}]")
    cli("rm", "-v", "box")
    assert names(api) == ["vv"]
    cli("volume", "rm", "vv")
    reply = api.delete("/volumes/vv")
    assert (reply.status, reply.json()["message"]) == (404, "get vv: no such volume")
    assert api.delete("/volumes/vv", force="1").status == 204


@parity
def test_prune(cli: Cli, api: Api, volume: Callable[..., str]) -> None:
    """Only what is unused, has no options and, unless told so, has no name."""
    cli("volume", "create", "named")
    volume("optional", type="tmpfs", device="tmpfs")
    anonymous = cli("volume", "create").strip()
    cli("create", "--name", "box", "-v", "used:/x", "-v", "/y", "busybox")
    assert api.post("/volumes/prune").ok()["VolumesDeleted"] == [anonymous]
    assert api.post("/volumes/prune", filters={"all": ["true"]}).ok()["VolumesDeleted"] == ["named"]
    assert len(names(api)) == 3


# ---------------------------------------------------------------- of containers


@parity
def test_volumes_of_mounts(cli: Cli, api: Api) -> None:
    cli(
        *("create", "--name", "box", "--mount", "type=volume,src=vv,dst=/x,volume-label=a=b,volume-nocopy"),
        *("--mount", "type=volume,dst=/y,volume-label=c=d", "-v", "/z", "-v", "ww:/w:ro", "busybox"),
    )
    mounts = {mount["Destination"]: mount for mount in api.get("/containers/box/json").ok()["Mounts"]}
    assert (mounts["/x"]["Name"], mounts["/w"]["Name"]) == ("vv", "ww")
    fields = ("Mode", "RW", "Propagation", "Driver")
    assert {target: tuple(mount[field] for field in fields) for target, mount in mounts.items()} == {
        "/x": ("z", True, "", "local"),
        "/y": ("z", True, "", "local"),
        "/z": ("", True, "", "local"),
        "/w": ("ro", False, "", "local"),
    }
    assert api.get("/volumes/vv").ok()["Labels"] == {"a": "b"}
    assert api.get(f"/volumes/{mounts['/y']['Name']}").ok()["Labels"] == {"c": "d", "com.docker.volume.anonymous": ""}
    cli("rm", "-v", "box")
    assert sorted(names(api)) == ["vv", "ww"]


@parity
def test_content_comes_with_the_container_not_with_its_start(cli: Cli, run: Callable[..., str]) -> None:
    """A container that never starts is a way to keep data for others."""
    cli("create", "--name", "data", "-v", "/etc", "-v", "vv:/home", "busybox")
    assert run("cat /etc/passwd", "--volumes-from", "data").startswith("root:")
    assert run("stat -c '%a %u %g' /h", "-v", "vv:/h") == run("stat -c '%a %u %g' /home")


@parity
def test_content_is_copied_into_what_is_empty_only(cli: Cli, run: Callable[..., str]) -> None:
    run("rm -rf /home/*; echo mine > /home/mine", "-v", "vv:/home")
    assert run("ls /home", "-v", "vv:/home") == "mine\n"
    # Without content it is filled again; a link to a directory is as good a source.
    run("rm /e/mine", "-v", "vv:/e")
    cli("run", "--name", "linked", "busybox", "sh", "-c", "ln -s etc /link; mkdir -p -m 750 /own/sub; chown 5:6 /own")
    cli("commit", "linked", "linked")
    assert cli("run", "--rm", "-v", "vv:/link", "linked", "ls", "/etc/passwd") == "/etc/passwd\n"
    script = "stat -c '%a %u %g' /own; ls /own"
    assert cli("run", "--rm", "-v", "/own", "linked", "sh", "-c", script) == "755 5 6\nsub\n"
    cli("rm", "linked")
    cli("rmi", "linked")


@parity
def test_volumes_from_live_as_long_as_anyone_has_them(cli: Cli, api: Api, run: Callable[..., str]) -> None:
    cli("run", "--name", "one", "-v", "/a", "-v", "vv:/v:ro", "busybox", "sh", "-c", "echo kept > /a/file")
    cli("create", "--name", "two", "--volumes-from", "one", "busybox", "cat", "/a/file")
    cli("create", "--name", "three", "--volumes-from", "two:ro", "busybox", "sh", "-c", "touch /a/new /v/new 2>&1")
    cli("rm", "-v", "one")
    assert cli("start", "-a", "two") == "kept\n"
    cli("rm", "-v", "two")
    assert cli.call("start", "-a", "three").out.count("Read-only file system") == 2
    cli("rm", "-v", "three")
    assert names(api) == ["vv"]


@parity
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nobody", "No such container: nobody"),
        ("box:nocopy", "invalid mode: nocopy"),
        ("box:rslave", "invalid mode: rslave"),
        ("", "volumes-from specification cannot be an empty string"),
    ],
)
def test_bad_volumes_from(cli: Cli, api: Api, text: str, message: str) -> None:
    cli("create", "--name", "box", "busybox")
    reply = api.post("/containers/create", {"Image": "busybox", "HostConfig": {"VolumesFrom": [text]}})
    assert (reply.status, reply.json()["message"]) == (400, message)


# ---------------------------------------------------------------- parts of volumes


@parity
def test_subpaths(cli: Cli, run: Callable[..., str]) -> None:
    run("mkdir -p /v/a/b; echo one > /v/a/b/file; ln -s a/b /v/inside; ln -s .. /v/a/up", "-v", "vv:/v")
    for part in ("a/b", "inside", "a/up/a/b", "a//./b/"):
        flag = f"type=volume,src=vv,dst=/x,volume-subpath={part}"
        assert run("cat /x/file", "--mount", flag) == "one\n", part
    assert run("cat /x", "--mount", "type=volume,src=vv,dst=/x,volume-subpath=a/b/file") == "one\n"
    readonly = "type=volume,src=vv,dst=/x,volume-subpath=a,readonly"
    assert "Read-only" in run("touch /x/new 2>&1; true", "--mount", readonly)


@parity
def test_subpaths_that_lead_nowhere_or_out(cli: Cli, api: Api, run: Callable[..., str]) -> None:
    run(
        "mkdir /v/a; ln -s ../../../../../../../../../../etc /v/out; ln -s /etc /v/absolute; touch /v/file",
        "-v",
        "vv:/v",
    )
    where = api.get("/volumes/vv").ok()["Mountpoint"]
    for part, status, message in (
        ("a/b/c", 404, f"cannot access path {where}/a/b/c: lstat {where}/a/b: no such file or directory"),
        ("out", 400, f"path concatenation escapes the base directory, base: {where}, subpath: out"),
        ("absolute", 400, f"path concatenation escapes the base directory, base: {where}, subpath: absolute"),
    ):
        mount = {"Type": "volume", "Source": "vv", "Target": "/x", "VolumeOptions": {"Subpath": part}}
        api.post("/containers/create", {"Image": "busybox", "HostConfig": {"Mounts": [mount]}}, name="box").ok()
        reply = api.post("/containers/box/start")
        assert (reply.status, reply.json()["message"]) == (status, message)
        cli("rm", "box")


def test_a_subpath_that_is_exchanged_all_the_time(cli: Cli, api: Api, run: Callable[..., str]) -> None:
    """A container swaps a folder of its volume for a link to the host, while others are started with it."""
    script = """
        mkdir -p /v/part /v/real; touch /v/part/inside /v/real/inside; ln -s ../../../../../../../../etc /v/link
        while :; do mv /v/part /v/p; mv /v/link /v/part; mv /v/part /v/link; mv /v/p /v/part; done
    """
    cli("run", "-d", "--name", "swapper", "-v", "vv:/v", "busybox", "sh", "-c", script)
    flag = "type=volume,src=vv,dst=/x,volume-subpath=part"
    seen = set[str]()
    for _ in range(12):
        done = cli.call("run", "--rm", "--mount", flag, "busybox", "ls", "/x")
        seen.add(done.out)
        assert done.code == 0 or "cannot access path" in done.err or "escapes the base directory" in done.err, done.err
    assert seen <= {"inside\n", ""}
    cli("rm", "-f", "swapper")


def test_a_mount_target_that_is_exchanged_all_the_time(cli: Cli, run: Callable[..., str]) -> None:
    """The target lies in a volume where another container swaps it for a link out of the root and into /proc."""
    script = """
        mkdir -p /v/target; ln -s ../../../../../../proc /v/proc; ln -s / /v/top
        while :; do
            mv /v/target /v/t; mv /v/proc /v/target; mv /v/target /v/proc; mv /v/top /v/target; mv /v/target /v/top
            mv /v/t /v/target
        done
    """
    cli("run", "-d", "--name", "swapper", "-v", "vv:/v", "busybox", "sh", "-c", script)
    for _ in range(12):
        done = cli.call(
            "run", "--rm", "-v", "vv:/v", "--tmpfs", "/v/target", "busybox", "sh", "-c", "head -c 5 /proc/version; ls /"
        )
        if done.code == 0:
            assert done.out.startswith("Linux")
            assert "etc" in done.out
        else:
            assert "error mounting" in done.err, done.err
    cli("rm", "-f", "swapper")


# ---------------------------------------------------------------- options of the local driver


@parity
def test_a_tmpfs_lives_while_it_is_used(
    cli: Cli, api: Api, run: Callable[..., str], volume: Callable[..., str]
) -> None:
    volume("mem", type="tmpfs", device="tmpfs", o="size=1m,mode=750,nosuid")
    cli("run", "-d", "--name", "one", "-v", "mem:/x", "busybox", "sleep", "1000")
    script = "grep ' /x ' /proc/self/mountinfo | sed 's/ master:[0-9]*//' | cut -d' ' -f6-"
    shown = cli("exec", "one", "sh", "-c", script)
    assert shown == "rw,nosuid,relatime - tmpfs tmpfs rw,size=1024k,mode=750\n"
    cli("exec", "one", "sh", "-c", "echo shared > /x/file")
    assert run("cat /y/file; echo back > /y/back", "-v", "mem:/y") == "shared\n"
    assert cli("exec", "one", "cat", "/x/back") == "back\n"
    assert cli("cp", "one:/x/file", "-").count("shared") == 1
    cli("rm", "-f", "one")
    assert run("ls /x", "-v", "mem:/x") == ""


@parity
def test_a_volume_that_is_a_host_directory(
    cli: Cli, api: Api, run: Callable[..., str], volume: Callable[..., str]
) -> None:
    where = api.post("/volumes/create", {"Name": "host"}).ok()["Mountpoint"]
    volume("there", type="none", device=where, o="bind")
    volume("readable", type="none", device=where, o="rbind,ro")
    # What the image has comes along, as into any empty volume.
    assert run("cat /etc/passwd", "-v", "there:/etc").startswith("root:")
    assert run("cat /x/passwd", "-v", "host:/x").startswith("root:")
    assert "Read-only" in run("touch /x/new 2>&1; true", "-v", "readable:/x")
    run("mkdir /x/part; touch /x/part/file", "-v", "there:/x")
    assert run("ls /x", "--mount", "type=volume,src=there,dst=/x,volume-subpath=part") == "file\n"


@parity
@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (
            {"type": "nfs", "device": ":/x", "o": "addr=127.0.0.1,rw"},
            "mount :/x:{}, data: addr=127.0.0.1: no such device",
        ),
        ({"type": "none", "device": "/nope", "o": "bind"}, "mount /nope:{}, flags: 0x1000: no such file or directory"),
        ({"type": "tmpfs", "device": "tmpfs", "o": "bogus=1"}, "mount tmpfs:{}, data: bogus=1: invalid argument"),
        (
            {"type": "cifs", "device": "//127.0.0.1/x", "o": "username=a,password=b"},
            "mount //127.0.0.1/x:{}, data: username=a,password=********: no such device",
        ),
    ],
)
def test_what_cannot_be_mounted(
    cli: Cli, api: Api, volume: Callable[..., str], options: dict[str, str], reason: str
) -> None:
    if options["type"] in ("nfs", "cifs") and f"\t{options['type']}\n" in Path("/proc/filesystems").read_text():
        pytest.skip(f"this kernel has {options['type']}")
    volume("vv", **options)
    where = api.get("/volumes/vv").ok()["Mountpoint"]
    message = f"error while mounting volume '{where}': failed to mount local volume: {reason.format(where)}"
    cli("create", "--name", "box", "-v", "vv:/x", "busybox")
    reply = api.post("/containers/box/start")
    assert (reply.status, reply.json()["message"]) == (500, message)
    reply = api.post("/containers/create", {"Image": "busybox", "HostConfig": {"Binds": ["vv:/etc"]}})
    assert (reply.status, reply.json()["message"]) == (500, f"failed to populate volume: {message}")


def test_mounts_survive_the_engine_and_end_with_their_containers(own_engine: OwnEngine, tmp_path: Path) -> None:
    """The engine is killed with a volume mounted: the next one finds the mount where the container has it."""
    own_engine.start()
    have(lambda: own_engine.load("busybox:latest"))
    cli = have(lambda: make_cli(own_engine, tmp_path))
    cli("volume", "create", "-o", "type=tmpfs", "-o", "device=tmpfs", "mem")
    cli("run", "-d", "--name", "one", "-v", "mem:/x", "busybox", "sleep", "1000")
    cli("exec", "one", "sh", "-c", "echo kept > /x/file")
    own_engine.kill()
    own_engine.start()
    assert cli("run", "--rm", "-v", "mem:/y", "busybox", "cat", "/y/file") == "kept\n"
    cli("run", "-d", "--name", "two", "-v", "mem:/y", "busybox", "sleep", "1000")
    cli("rm", "-f", "one")
    assert cli("exec", "two", "cat", "/y/file") == "kept\n"
    own_engine.kill()
    own_engine.start()
    cli("rm", "-f", "two")
    wait_until(lambda: not held(own_engine), "nothing holds the mount")
    assert cli("run", "--rm", "-v", "mem:/y", "busybox", "ls", "/y") == ""
    cli("volume", "rm", "mem")


def held(engine: OwnEngine) -> list[str]:
    """The mount namespaces that an engine keeps."""
    found = [os.readlink(entry) for entry in Path(f"/proc/{engine.pid}/fd").iterdir()]
    return [target for target in found if target.startswith("mnt:[")]

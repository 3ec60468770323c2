"""Mounts of containers: what may be asked for, what the container then sees, and what is refused with which words.

A host directory that every engine can reach, whatever root it lives in, is a volume's own (its ``Mountpoint``).
"""

import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.api import VERSION, Api
from tests.cli import Cli

pytestmark = [pytest.mark.root, pytest.mark.parity]

RUNC = (
    "failed to create task for container: failed to create shim task: OCI runtime create failed: runc create failed:"
    " unable to start container process: error during container init: "
)
MISMATCH = (
    ": Are you trying to mount a directory onto a file (or vice-versa)? "
    "Check if the specified host path exists and is the expected type"
)
NO_TARGET = 'invalid mount config for type "bind": field Target must not be empty'
MOUNT = 'invalid mount config for type "{}": {}'


@pytest.fixture(autouse=True)
def image(busybox: str) -> str:
    return busybox


@pytest.fixture
def run(cli: Cli) -> Callable[..., str]:
    return lambda script, *flags: cli("run", "--rm", *flags, "busybox", "sh", "-c", script)


@pytest.fixture
def host(api: Api) -> str:
    """A directory of the engine's host."""
    return str(api.post("/volumes/create", {"Name": "host"}).ok()["Mountpoint"])


def create(api: Api, host_config: dict[str, Any], *, version: str = VERSION, **config: Any) -> tuple[int, Any]:
    body = {"Image": "busybox", "Cmd": ["sleep", "1000"], **config, "HostConfig": host_config}
    reply = Api(api.path, version).post("/containers/create", body, name="box")
    document = reply.json()
    if reply.status == 201:
        return reply.status, document["Warnings"]
    return reply.status, document["message"]


def start(api: Api, host_config: dict[str, Any], **config: Any) -> tuple[int, str]:
    assert create(api, host_config, **config)[0] == 201
    reply = api.post("/containers/box/start")
    api.delete("/containers/box", force="1", v="1").ok()
    return reply.status, reply.json()["message"] if reply.body else ""


def shown(api: Api, target: str) -> dict[str, Any]:
    found: list[dict[str, Any]] = api.get("/containers/box/json").ok()["Mounts"]
    return next(mount for mount in found if mount["Destination"] == target)


def mount(kind: str, **fields: Any) -> dict[str, Any]:
    return {"Mounts": [{"Type": kind, **fields}]}


# ---------------------------------------------------------------- what is refused at creation


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"Type": "bind", "Source": "/tmp"}, "field Target must not be empty"),
        ({"Type": "bind", "Source": "/tmp", "Target": "/.."}, "invalid specification: destination can't be '/'"),
        ({"Type": "bind", "Source": "/tmp", "Target": "a"}, "invalid mount path: 'a' mount path must be absolute"),
        ({"Type": "bind", "Target": "/x"}, "field Source must not be empty"),
        ({"Type": "bind", "Source": "tmp", "Target": "/x"}, "invalid mount path: 'tmp' mount path must be absolute"),
        ({"Type": "bind", "Source": "/nope", "Target": "/x"}, "bind source path does not exist: /nope"),
        ({"Type": "bind", "Source": "/etc/passwd/x", "Target": "/x"}, "stat /etc/passwd/x: not a directory"),
        (
            {"Type": "bind", "Source": "/tmp", "Target": "/x", "BindOptions": {"Propagation": "bogus"}},
            "invalid propagation mode: bogus",
        ),
        (
            {"Type": "bind", "Source": "/tmp", "Target": "/x", "ImageOptions": {}},
            "field ImageOptions must not be specified",
        ),
        (
            {"Type": "volume", "Target": "/x", "VolumeOptions": {"Subpath": "a"}},
            "must not set Subpath when using anonymous volumes",
        ),
        (
            {"Type": "volume", "Source": "vv", "Target": "/x", "VolumeOptions": {"Subpath": "../a"}},
            "subpath must be a relative path within the volume",
        ),
        (
            {"Type": "volume", "Target": "/x", "ReadOnly": True},
            "must not set ReadOnly mode when using anonymous volumes",
        ),
        ({"Type": "tmpfs", "Source": "a", "Target": "/x"}, "field Source must not be specified"),
        (
            {"Type": "tmpfs", "Target": "/x", "TmpfsOptions": {"Options": [["bogus"]]}},
            "invalid option: bogus",
        ),
        ({"Type": "image", "Target": "/x"}, "field Source must not be empty"),
        (
            {"Type": "image", "Source": "busybox", "Target": "/x", "ImageOptions": {"Subpath": "/etc"}},
            "subpath must be a relative path within the volume",
        ),
        ({"Type": "npipe", "Source": "a", "Target": "/x"}, "mount type unknown"),
        ({"Type": "cluster", "Source": "a", "Target": "/x"}, "mount type unknown"),
        ({"Source": "a", "Target": "/x"}, "mount type unknown"),
    ],
)
def test_bad_mounts(api: Api, fields: dict[str, Any], reason: str) -> None:
    assert create(api, {"Mounts": [fields]}) == (400, MOUNT.format(fields.get("Type", ""), reason))


@pytest.mark.parametrize(
    ("text", "status", "message"),
    [
        ("", 500, "invalid volume specification: ''"),
        ("/tmp:ro", 500, "invalid volume specification: '/tmp:ro'"),
        ("/a:/b:/c:/d", 500, "invalid volume specification: '/a:/b:/c:/d'"),
        ("/tmp:/x:ro,rw", 500, "invalid mode: ro,rw"),
        ("/tmp:/x:unbindable", 500, "invalid mode: unbindable"),
        (
            "/tmp::ro",
            500,
            "invalid volume specification: '/tmp::ro': " + NO_TARGET,
        ),
        (
            "/tmp:/x:nocopy",
            500,
            "invalid volume specification: '/tmp:/x:nocopy': "
            + MOUNT.format("bind", "field VolumeOptions must not be specified"),
        ),
        (
            "vv:/x:rshared",
            500,
            "invalid volume specification: 'vv:/x:rshared': "
            + MOUNT.format("volume", "field BindOptions must not be specified"),
        ),
        ("v:/x", 400, "create v: volume name is too short, names should be at least two alphanumeric characters"),
    ],
)
def test_bad_binds(api: Api, text: str, status: int, message: str) -> None:
    assert create(api, {"Binds": [text]}) == (status, message)


@pytest.mark.parametrize(
    ("host_config", "target"),
    [
        ({"Binds": ["/tmp:/x", "/etc:/x/"]}, "/x"),
        ({"Binds": ["/tmp:/x"], "Tmpfs": {"/x": ""}}, "/x"),
        ({"Binds": ["/tmp:/x"], "Mounts": [{"Type": "tmpfs", "Target": "/x/."}]}, "/x/."),
    ],
)
def test_one_mount_for_each_target(api: Api, host_config: dict[str, Any], target: str) -> None:
    assert create(api, host_config) == (400, f"Duplicate mount point: {target}")


def test_options_that_came_later(api: Api) -> None:
    asked = {"Type": "bind", "Source": "/tmp", "Target": "/x", "VolumeOptions": {}}
    assert create(api, {"Mounts": [asked]}) == (400, 'VolumeOptions must not be specified on mount type "bind"')
    for fields, version, text in (
        (
            {"Type": "bind", "Source": "/tmp", "BindOptions": {"ReadOnlyForceRecursive": True}},
            "v1.43",
            "BindOptions.ReadOnlyForceRecursive needs API v1.44 or newer",
        ),
        (
            {"Type": "volume", "Source": "vv", "VolumeOptions": {"Subpath": "a"}},
            "v1.44",
            "VolumeOptions.Subpath needs API v1.45 or newer",
        ),
        ({"Type": "image", "Source": "busybox"}, "v1.47", 'Mount type "Image" needs API v1.48 or newer'),
    ):
        assert create(api, {"Mounts": [{**fields, "Target": "/x"}]}, version=version) == (400, text)


def test_images_that_are_not_there(api: Api) -> None:
    assert create(api, mount("image", Source="nope", Target="/x")) == (404, "No such image: nope:latest")


def test_volumes_over_files(api: Api) -> None:
    status, message = create(api, {}, Volumes={"/etc/passwd": {}})
    assert status == 500
    assert message.startswith("cannot mount volume over existing file, file exists ")
    status, message = create(api, {"Binds": ["vv:/etc/passwd"]})
    assert status == 500
    assert message.endswith("/etc/passwd is not directory")
    # Anonymous volumes of a creation that fails do not stay.
    assert create(api, {"Binds": ["/fine"]}, Volumes={"/etc/passwd": {}})[0] == 500
    names = [volume["Name"] for volume in api.get("/volumes").ok()["Volumes"]]
    assert [name for name in names if len(name) == 64] == []


# ---------------------------------------------------------------- what is refused at the start


@pytest.mark.parametrize(
    ("host_config", "status", "beginning", "end"),
    [
        (
            {"Binds": ["/etc/passwd:/tmp"]},
            400,
            'error mounting "/etc/passwd" to rootfs at "/tmp": mount src=/etc/passwd, dst=/tmp, dstFd=',
            ", flags=MS_BIND|MS_REC: not a directory" + MISMATCH,
        ),
        (
            {"Binds": ["/tmp:/etc/passwd"]},
            400,
            'error mounting "/tmp" to rootfs at "/etc/passwd": mount src=/tmp, dst=/etc/passwd, dstFd=',
            ", flags=MS_BIND|MS_REC: not a directory" + MISMATCH,
        ),
        (
            {"Binds": ["/tmp:/proc"]},
            500,
            'error mounting "/tmp" to rootfs at "/proc": create mountpoint for /proc mount: check proc-safety of ',
            '/proc" cannot be mounted because it is not of type proc',
        ),
        (
            {"Binds": ["/tmp:/proc/sys"]},
            500,
            'error mounting "/tmp" to rootfs at "/proc/sys": create mountpoint for /proc/sys mount:'
            ' check proc-safety of /proc/sys mount: "',
            '/proc/sys" cannot be mounted because it is inside /proc',
        ),
        (
            {"Tmpfs": {"/proc": ""}},
            500,
            'error mounting "tmpfs" to rootfs at "/proc": create mountpoint for /proc mount: check proc-safety of ',
            '/proc" cannot be mounted because it is not of type proc',
        ),
        (
            {"Binds": ["/tmp:/proc/nope"]},
            400,
            'error mounting "/tmp" to rootfs at "/proc/nope": create mountpoint for /proc/nope mount:'
            ' make mountpoint "/proc/nope": mkdirat ',
            "/proc/nope: no such file or directory",
        ),
        (
            {"Binds": ["/etc:/proc/self/fd/0"]},
            500,
            'error mounting "/etc" to rootfs at "/proc/self/fd/0": create mountpoint for /proc/self/fd/0 mount:'
            " lookup mountpoint target: ",
            "openat2 /proc/self/fd/0: too many levels of symbolic links",
        ),
        (
            {"Binds": ["/tmp:/etc/passwd/x"]},
            400,
            'error mounting "/tmp" to rootfs at "/etc/passwd/x": create mountpoint for /etc/passwd/x mount:'
            " lookup mountpoint target: ",
            "openat2 /etc/passwd/x: not a directory" + MISMATCH,
        ),
        (
            {"Tmpfs": {"/x": "size=foo"}},
            500,
            'error mounting "tmpfs" to rootfs at "/x": mount src=tmpfs, dst=/x, dstFd=/proc/thread-self/fd/',
            ", flags=MS_NOSUID|MS_NODEV|MS_NOEXEC, data=size=foo: invalid argument",
        ),
    ],
)
def test_what_cannot_be_mounted(api: Api, host_config: dict[str, Any], status: int, beginning: str, end: str) -> None:
    found, message = start(api, host_config)
    assert found == status
    assert message.startswith(RUNC + beginning), message
    assert message.endswith(end), message


@pytest.mark.parametrize(
    ("host_config", "status", "message"),
    [
        (
            mount("bind", Source="/tmp", Target="/x", BindOptions={"ReadOnlyNonRecursive": True}),
            500,
            "mount options conflict: !ReadOnly && BindOptions.ReadOnlyNonRecursive",
        ),
        (
            mount(
                "bind",
                Source="/tmp",
                Target="/x",
                ReadOnly=True,
                BindOptions={"ReadOnlyNonRecursive": True, "ReadOnlyForceRecursive": True},
            ),
            500,
            "mount options conflict: ReadOnlyNonRecursive && BindOptions.ReadOnlyForceRecursive",
        ),
        ({"Tmpfs": {"/x": "bogus"}}, 500, 'invalid tmpfs option "bogus"'),
        (
            mount("tmpfs", Target="/x", TmpfsOptions={"Options": [["exec", "a"]]}),
            500,
            'invalid tmpfs option "exec"',
        ),
        (
            {"Binds": ["/proc/nope/x:/x"]},
            500,
            "error while creating mount source path '/proc/nope/x': mkdir /proc/nope: no such file or directory",
        ),
        (
            {"Binds": ["/etc/passwd/x:/x"]},
            400,
            RUNC + "failed to fulfil mount request: open /etc/passwd/x: not a directory" + MISMATCH,
        ),
    ],
)
def test_what_is_wrong_at_the_start(api: Api, host_config: dict[str, Any], status: int, message: str) -> None:
    assert start(api, host_config) == (status, message)


def test_files_of_proc_that_may_be_covered(run: Callable[..., str]) -> None:
    assert run("cat /proc/uptime", "-v", "/etc/hostname:/proc/uptime").count(".") == 0
    assert run("cat /proc/version", "-v", "/proc:/proc").startswith("Linux")


@pytest.mark.own("which descriptors runc has open is another matter")
def test_the_working_directory_is_no_descriptor_of_the_engines(api: Api) -> None:
    for number in (3, 7, 8, 9):
        status, message = start(api, {}, WorkingDir=f"/proc/self/fd/{number}")
        assert status == 400
        assert message == f"{RUNC}mkdir /proc/self/fd/{number}: not a directory{MISMATCH}"


# ---------------------------------------------------------------- binds


def test_a_source_that_is_a_host_directory(run: Callable[..., str], api: Api, host: str) -> None:
    run("mkdir -p /host/a/b; echo one > /host/a/file; ln -s a /host/link", "-v", f"{host}:/host")
    assert run("cat /x/file", "-v", f"{host}/link:/x") == "one\n"
    assert run("cat /x", "--mount", f"type=bind,src={host}/a/file,dst=/x") == "one\n"
    assert "Read-only" in run("touch /x/new 2>&1; true", "-v", f"{host}/a:/x:ro")
    assert "Read-only" in run("touch /x/b/new 2>&1; true", "--mount", f"type=bind,src={host}/a,dst=/x,readonly")
    # -v makes what is missing, --mount only if it is told so.
    run("true", "-v", f"{host}/made/by/bind:/x")
    asked = {"Type": "bind", "Source": f"{host}/made/by/mount", "Target": "/x"}
    assert create(api, {"Mounts": [asked]})[0] == 400
    assert start(api, {"Mounts": [{**asked, "BindOptions": {"CreateMountpoint": True}}]}) == (204, "")
    assert run("cd /host/made/by; stat -c '%n %a %u' *", "-v", f"{host}:/host") == "bind 755 0\nmount 755 0\n"


def test_deep_targets_and_their_order(run: Callable[..., str]) -> None:
    out = run(
        "echo deep > /a/b/c/file; cat /a/b/c/file; cut -d' ' -f5 /proc/self/mountinfo | grep ^/a | sort",
        *("--tmpfs", "/a/b/c", "-v", "/a/b", "--mount", "type=tmpfs,dst=/a"),
    )
    assert out == "deep\n/a\n/a/b\n/a/b/c\n"


def test_a_target_reached_through_links(cli: Cli, run: Callable[..., str]) -> None:
    """Links are followed inside of the container, also those that would lead out."""
    cli(
        "run",
        "--name",
        "linked",
        "busybox",
        "sh",
        "-c",
        "ln -s ../../../../etc /out; ln -s / /top; mkdir /real; ln -s real /in",
    )
    cli("commit", "linked", "linked")
    script = "cut -d' ' -f5 /proc/self/mountinfo | grep -E '^/(etc|real)/?' | sort"
    out = cli("run", "--rm", "--tmpfs", "/out/mine", "--tmpfs", "/in", "linked", "sh", "-c", script)
    assert [line for line in out.splitlines() if line not in ("/etc/hosts", "/etc/hostname", "/etc/resolv.conf")] == [
        "/etc/mine",
        "/real",
    ]
    refused = cli.call("run", "--rm", "-v", "/tmp:/top", "linked", "true")
    assert refused.code == 125
    assert "is on the top of rootfs" in refused.err
    refused = cli.call("run", "--rm", "-v", "/tmp:/top/proc/sys", "linked", "true")
    assert refused.code == 125
    assert '/proc/sys" cannot be mounted because it is inside /proc' in refused.err
    cli("rm", "linked")
    cli("rmi", "linked")


def test_a_source_that_has_gone_is_no_end(api: Api, cli: Cli, busybox: str) -> None:
    cli("run", "--rm", "-v", "/tmp:/t", busybox, "mkdir", "/t/compatd-test-gone")
    mount = {"Type": "bind", "Source": "/tmp/compatd-test-gone", "Target": "/x"}
    api.post("/containers/create", {"Image": busybox, "HostConfig": {"Mounts": [mount]}}, name="gone").ok()
    cli("run", "--rm", "-v", "/tmp:/t", busybox, "rmdir", "/t/compatd-test-gone")
    reply = api.post("/containers/gone/start")
    why = 'invalid mount config for type "bind": bind source path does not exist: /tmp/compatd-test-gone'
    assert (reply.status, reply.json()["message"]) == (400, why)
    state = api.get("/containers/gone/json").ok()["State"]
    assert (state["Status"], state["ExitCode"], state["Error"]) == ("created", 0, "")


@pytest.mark.parametrize("place", ["proc", "sys"])
def test_an_image_whose_proc_is_a_link(api: Api, cli: Cli, busybox: str, place: str, tmp_path: Path) -> None:
    """A directory covers it: what is mounted through it would be taken for the kernel's."""
    archive = tmp_path / "link.tar"
    shell = cli("create", busybox).strip()
    cli("export", "-o", str(archive), shell)
    with tarfile.open(archive) as old, tarfile.open(tmp_path / "new.tar", "w") as tar:
        for entry in old:
            if entry.name.strip("/").split("/")[0] != place:
                tar.addfile(entry, old.extractfile(entry) if entry.isreg() else None)
        link = tarfile.TarInfo(place)
        link.type, link.linkname = tarfile.SYMTYPE, "tmp"
        tar.addfile(link)
    cli("import", str(tmp_path / "new.tar"), "hostile")
    try:
        look = f"ls -d /tmp/* 2>/dev/null; test -L /{place} || stat -f -c %T /{place}"
        assert cli("run", "--rm", "hostile", "sh", "-c", look) == {"proc": "proc\n", "sys": "sysfs\n"}[place]
    finally:
        cli("rm", shell)
        cli("rmi", "hostile")


@pytest.mark.parametrize(
    ("flag", "propagation", "mode"),
    [
        (("-v", "/:/x"), "rslave", ""),
        (("-v", "/:/x:ro,rshared"), "rshared", "ro,rshared"),
        (("-v", "/etc:/x:private,Z"), "private", "private,Z"),
        (("-v", "/etc:/x:cached"), "rprivate", "cached"),
        (("--mount", "type=bind,src=/etc,dst=/x,bind-propagation=slave"), "slave", ""),
        (("--mount", "type=bind,src=/,dst=/x"), "rslave", ""),
    ],
)
def test_propagation_in_inspect(cli: Cli, api: Api, flag: tuple[str, str], propagation: str, mode: str) -> None:
    cli("create", "--name", "box", *flag, "busybox")
    found = shown(api, "/x")
    assert (found["Propagation"], found["Mode"], found["Type"]) == (propagation, mode, "bind")


def test_binds_of_the_engine_s_own_directory(api: Api) -> None:
    status, message = create(api, {"Binds": ["/:/x:private"]})
    assert status == 400
    assert message.startswith(
        'invalid mount config: must use either propagation mode "rslave" or "rshared" when mount source is within the'
        ' daemon root, daemon root: "'
    )
    assert message.endswith('bind mount source: "/", propagation: "private"')


def test_recursion(run: Callable[..., str]) -> None:
    """/dev has mounts below it on every machine."""
    below = "cut -d' ' -f5 /proc/self/mountinfo | grep -c ^/x/"
    assert int(run(below, "-v", "/dev:/x")) > 0
    assert run(f"{below}; true", "--mount", "type=bind,src=/dev,dst=/x,bind-recursive=disabled") == "0\n"
    modes = "grep -E ' /x(/pts)? ' /proc/self/mountinfo | cut -d' ' -f5,6 | cut -d, -f1 | sort -u | tr '\\n' ' '"
    assert run(modes, "-v", "/dev:/x:ro") == "/x ro /x/pts ro "
    assert run(modes, "--mount", "type=bind,src=/dev,dst=/x,readonly,bind-recursive=writable") == "/x ro /x/pts rw "
    assert (
        run(modes, "--mount", "type=bind,src=/dev,dst=/x,readonly,bind-propagation=rprivate,bind-recursive=readonly")
        == "/x ro /x/pts ro "
    )


def test_old_clients_have_read_only_binds_that_do_not_reach_below(api: Api, cli: Cli) -> None:
    assert create(api, {"Binds": ["/dev:/x:ro"]}, version="v1.43")[0] == 201
    cli("start", "box")
    modes = "grep -E ' /x(/pts)? ' /proc/self/mountinfo | cut -d' ' -f5,6 | cut -d, -f1 | sort -u | tr '\\n' ' '"
    assert cli("exec", "box", "sh", "-c", modes) == "/x ro /x/pts rw "


# ---------------------------------------------------------------- tmpfs


def test_modes_of_tmpfs(run: Callable[..., str]) -> None:
    """A new one has its own; one over a directory of the image has that one's."""
    script = "for i in /new /etc /own /tmp; do stat -c '%n %a %u' $i; done"
    flags = [word for target in ("/new", "/etc", "/own:mode=700,uid=5", "/tmp") for word in ("--tmpfs", target)]
    assert run(script, *flags) == "/new 1777 0\n/etc 755 0\n/own 700 5\n/tmp 1777 0\n"


def test_options_of_tmpfs(run: Callable[..., str]) -> None:
    script = "grep ' /x ' /proc/self/mountinfo | cut -d' ' -f6-"
    assert (
        run(script, "--tmpfs", "/x:rw,exec,size=1m,size=2m") == "rw,nosuid,nodev,relatime - tmpfs tmpfs rw,size=2048k\n"
    )
    assert run(script, "--mount", "type=tmpfs,dst=/x,tmpfs-size=3m,tmpfs-mode=1711") == (
        "rw,nosuid,nodev,noexec,relatime - tmpfs tmpfs rw,size=3072k,mode=1711\n"
    )
    # What lies in a read-only one finds its place before.
    assert run("cat /etc/hosts; touch /etc/new 2>&1; true", "--mount", "type=tmpfs,dst=/etc,readonly").endswith(
        "touch: /etc/new: Read-only file system\n"
    )


def test_tmpfs_in_inspect(cli: Cli, api: Api) -> None:
    cli("create", "--name", "box", "--mount", "type=tmpfs,dst=/x/,readonly", "--tmpfs", "/y:size=1m", "busybox")
    mounts = api.get("/containers/box/json").ok()["Mounts"]
    assert mounts == [{"Type": "tmpfs", "Source": "", "Destination": "/x", "Mode": "", "RW": False, "Propagation": ""}]


# ---------------------------------------------------------------- images


def test_image_mounts(cli: Cli, api: Api) -> None:
    assert create(api, mount("image", Source="busybox", Target="/x")) == (
        201,
        ["Image mount is an experimental feature"],
    )
    found = shown(api, "/x")
    assert (found["Type"], found["Name"], found["RW"], found["Propagation"]) == ("image", "busybox", False, "rprivate")
    cli("start", "box")
    assert cli("exec", "box", "/x/bin/busybox", "echo", "it can be executed") == "it can be executed\n"
    assert "Read-only" in cli("exec", "box", "sh", "-c", "touch /x/new 2>&1; true")
    cli("rm", "-f", "box")
    out = cli(
        "run", "--rm", "--mount", "type=image,src=busybox,dst=/x,image-subpath=etc", "busybox", "cat", "/x/passwd"
    )
    assert out.startswith("root:x:0:0:")
    status, message = start(api, mount("image", Source="busybox", Target="/x", ImageOptions={"Subpath": "a/b"}))
    assert status == 404
    assert message.startswith("cannot access path ")
    assert message.endswith("/a: no such file or directory")


def test_an_image_outlives_its_name_while_it_is_mounted(cli: Cli) -> None:
    cli("run", "--name", "maker", "busybox", "sh", "-c", "echo here > /file")
    cli("commit", "maker", "mounted")
    cli("rm", "maker")
    cli("run", "-d", "--name", "box", "--mount", "type=image,src=mounted,dst=/x", "busybox", "sleep", "1000")
    refused = cli.call("rmi", "mounted")
    assert 'conflict: unable to remove repository reference "mounted" (must force) - container ' in refused.err
    cli("rmi", "-f", "mounted")
    assert cli("exec", "box", "cat", "/x/file") == "here\n"
    cli("restart", "-t", "0", "box")
    assert cli("exec", "box", "cat", "/x/file") == "here\n"


# ---------------------------------------------------------------- a read-only root, files of the engine's


def test_mounts_below_a_read_only_root(run: Callable[..., str]) -> None:
    script = "touch /new/dir/file && ls /new/dir; touch /file 2>&1; true"
    out = run(script, "--read-only", "-v", "/new/dir", "--tmpfs", "/other/new")
    assert out == "file\ntouch: /file: Read-only file system\n"


def test_own_hosts_file(run: Callable[..., str], api: Api) -> None:
    assert run("cat /etc/hosts", "-v", "/etc/hostname:/etc/hosts:ro").count("localhost") == 0
    status, message = start(api, {"Binds": ["/tmp:/etc/hosts"]})
    assert status == 400
    assert message.endswith(": not a directory" + MISMATCH)

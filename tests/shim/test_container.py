"""What a container's program finds, and what it must not find. Each test is one container."""

import asyncio
import base64
import contextlib
import os
import signal
import socket
import struct
from pathlib import Path

import pytest

from compatd.linux import syscalls
from compatd.runtime.client import Spawner, StartFailed, StartRefused
from compatd.shim.spec import MountOp
from tests.shim.containers import DOCKER_CAPABILITIES, Nursery, capabilities, end, output, run

pytestmark = pytest.mark.root

START = (
    "failed to create task for container: failed to create shim task: OCI runtime create failed: runc create failed: "
    "unable to start container process: error during container init: "
)


async def says(nursery: Nursery, spawner: Spawner, script: str, **changes: object) -> str:
    launch = nursery.launch("sh", "-c", script, **changes)  # type: ignore[arg-type]
    exit_ = await run(spawner, launch)
    assert exit_["code"] == 0, output(launch) + output(launch, "stderr")
    return output(launch)


async def refused(spawner: Spawner, nursery: Nursery, *args: str, **changes: object) -> StartFailed:
    with pytest.raises(StartFailed) as caught:
        await run(spawner, nursery.launch(*args, **changes))  # type: ignore[arg-type]
    return caught.value


async def test_nothing_leaks_in(nursery: Nursery, spawner: Spawner) -> None:
    """Descriptors, environment, umask, signal dispositions and mask, controlling terminal, host paths, hostname."""
    script = """
        for fd in /proc/self/fd/*; do readlink $fd; done | grep -v -e ^/proc/ -e ^pipe: ; echo --
        tr '\\0' '\\n' </proc/self/environ; echo --
        umask; grep -E '^Sig(Ign|Blk)|^ShdPnd' /proc/self/status; hostname; pwd; cut -d' ' -f5,6,7 /proc/1/stat; echo --
        cat /proc/self/mountinfo /proc/1/cgroup
    """
    told = await says(nursery, spawner, script)
    fds, environment, rest, mounts = told.split("--\n")
    assert fds.split() == ["/dev/null"]
    # What the shell adds itself is not in its own environ.
    assert environment.split() == ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root"]
    assert rest.split("\n")[0] == "0022"
    assert "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n" in rest
    assert "shim-test\n/\n1 1 0\n" in rest  # its own group and session, no terminal
    assert str(nursery.folder) not in mounts


async def test_process_ids_and_namespaces(nursery: Nursery, spawner: Spawner) -> None:
    told = await says(nursery, spawner, "echo $$; for n in mnt uts ipc net cgroup; do readlink /proc/self/ns/$n; done")
    pid, *inside = told.split()
    outside = [os.readlink(f"/proc/self/ns/{name}") for name in ("mnt", "uts", "ipc", "net", "cgroup")]
    assert pid == "1"
    assert [a == b for a, b in zip(inside, outside, strict=True)] == [False, False, False, True, True]


async def test_a_network_namespace_has_its_loopback_up(nursery: Nursery, spawner: Spawner) -> None:
    launch = nursery.launch("cat", "/sys/class/net/lo/operstate", "/sys/class/net/lo/flags")
    launch["namespaces"]["net"] = {"mode": "new"}
    assert (await run(spawner, launch))["code"] == 0
    assert output(launch).split() == ["unknown", "0x9"]


async def test_joining_namespaces_of_another(nursery: Nursery, spawner: Spawner) -> None:
    first = nursery.launch("sleep", "1000")
    shim = await spawner.launch(first)
    fds = [os.open(f"/proc/{shim.pid}/ns/{name}", os.O_RDONLY) for name in ("pid", "ipc", "uts")]
    second = nursery.launch("sh", "-c", "hostname; readlink /proc/self/ns/ipc; [ $$ != 1 ] && ls -d /proc/1")
    for index, name in enumerate(("pid", "ipc", "uts")):
        second["namespaces"][name] = {"mode": "fd", "fd": index}  # type: ignore[literal-required]
    second["hostname"] = "other"
    try:
        assert (await run(spawner, second, fds))["code"] == 0
        assert output(second).split() == ["shim-test", os.readlink(f"/proc/{shim.pid}/ns/ipc"), "/proc/1"]
    finally:
        for fd in fds:
            os.close(fd)
        await shim.signal(signal.SIGKILL)
        await end(shim)


async def test_the_hosts_name_stays(nursery: Nursery, spawner: Spawner) -> None:
    launch = nursery.launch("hostname")
    launch["namespaces"]["uts"] = {"mode": "host"}
    before = socket.gethostname()
    await run(spawner, launch)
    assert output(launch).strip() == before == socket.gethostname()


@pytest.mark.parametrize(
    ("args", "text", "code"),
    [
        (["nosuch"], 'exec: "nosuch": executable file not found in $PATH', 127),
        ([""], 'exec: "": executable file not found in $PATH', 127),
        (["/nosuch"], 'exec: "/nosuch": stat /nosuch: no such file or directory', 127),
        (["/etc/passwd"], 'exec: "/etc/passwd": permission denied', 126),
        (["/etc"], 'exec: "/etc": is a directory: permission denied', 126),
        (
            ["/etc/passwd/x"],
            'exec: "/etc/passwd/x": stat /etc/passwd/x: not a directory: Are you trying to mount a directory onto a '
            "file (or vice-versa)? Check if the specified host path exists and is the expected type",
            127,
        ),
    ],
)
async def test_programs_that_cannot_be_run(
    nursery: Nursery, spawner: Spawner, args: list[str], text: str, code: int
) -> None:
    """As runc words it and dockerd passes it on; the client's mistake."""
    error = await refused(spawner, nursery, *args)
    assert isinstance(error, StartRefused)
    assert (str(error), error.exit_code) == (START + text, code)


async def test_a_relative_path_entry_is_refused(nursery: Nursery, spawner: Spawner) -> None:
    error = await refused(spawner, nursery, "true", env=["PATH=bin"])
    assert str(error) == START + 'exec: "true": cannot run executable found relative to current directory'
    assert error.exit_code == 128


async def test_what_only_the_kernel_refuses_is_the_containers_own_failure(nursery: Nursery, spawner: Spawner) -> None:
    script = "printf '#!/no/such\\n' >/bin/broken; printf junk >/junk; chmod +x /bin/broken /junk; exec {}"
    for program, said in (
        ("/bin/broken", "exec /bin/broken: no such file or directory\n"),
        ("/junk", "exec /junk: exec format error\n"),
    ):
        first = nursery.launch("sh", "-c", script.format("true"))
        await run(spawner, first)
        second = nursery.launch(program)
        second["overlay"]["lowers"].insert(0, first["overlay"]["upper"])
        assert (await run(spawner, second))["code"] == 255
        assert output(second, "stderr") == said


@pytest.mark.parametrize("program", ["/proc/self/exe", "/interpreted", "/linked"])
@pytest.mark.parametrize("init", [False, True])
async def test_the_interpreter_is_out_of_reach(nursery: Nursery, spawner: Spawner, program: str, init: bool) -> None:
    """CVE-2019-5736: neither as entrypoint nor by a shebang is the engine's own program run."""
    launch = nursery.launch(program, init=init)
    upper = Path(launch["overlay"]["upper"])
    (upper / "interpreted").write_text("#!/proc/self/exe\n")
    (upper / "interpreted").chmod(0o755)
    (upper / "linked").symlink_to("/proc/self/exe")
    try:
        code = (await run(spawner, launch))["code"]
        said = output(launch, "stderr")
    except StartRefused as error:
        code, said = error.exit_code, str(error)
    assert code in (126, 255)
    assert "ermission denied" in said


async def test_the_init_shows_nothing_of_the_host(nursery: Nursery, spawner: Spawner) -> None:
    script = """
        cat /proc/1/comm; tr '\\0' ' ' </proc/1/cmdline; echo; cat /proc/1/environ
        ls -l /proc/1/exe /proc/1/fd /proc/1/root
        echo >/proc/1/mem; (echo >/proc/1/exe) ; true
    """
    told = await says(nursery, spawner, script, init=True)
    assert told.startswith("docker-init\n/sbin/docker-init -- sh -c")
    assert "python" not in told
    assert str(nursery.folder) not in told


async def test_capabilities_of_root_and_of_others(nursery: Nursery, spawner: Spawner) -> None:
    script = "grep ^Cap /proc/self/status | cut -f2"
    full, none = f"{DOCKER_CAPABILITIES:016x}", "0" * 16
    assert (await says(nursery, spawner, script)).split() == [none, full, full, full, none]
    assert (await says(nursery, spawner, script, user="65534")).split() == [none, none, none, full, none]
    assert (await says(nursery, spawner, script, init=True)).split() == [none, full, full, full, none]
    few = capabilities(1 << 10)
    assert (await says(nursery, spawner, script, capabilities=few)).split()[1] == f"{1 << 10:016x}"
    raised = {**few, "inheritable": 1 << 10, "ambient": 1 << 10}
    assert (await says(nursery, spawner, script, capabilities=raised, user="65534")).split()[4] == f"{1 << 10:016x}"


async def test_no_new_privileges_limits_and_scores(nursery: Nursery, spawner: Spawner) -> None:
    script = "grep NoNewPrivs /proc/self/status; ulimit -n; ulimit -Hn; cat /proc/self/oom_score_adj"
    told = await says(
        nursery,
        spawner,
        script,
        no_new_privileges=True,
        rlimits=[{"resource": 7, "soft": 100, "hard": 200}],
        oom_score_adj=321,
    )
    assert told.split() == ["NoNewPrivs:", "1", "100", "200", "321"]


async def test_a_users_streams_can_be_opened_again(nursery: Nursery, spawner: Spawner) -> None:
    assert await says(nursery, spawner, "echo x >/dev/stdout; id -u", user="1234:5") == "x\n1234\n"


async def test_users_and_groups_are_the_containers(nursery: Nursery, spawner: Spawner) -> None:
    launch = nursery.launch("sh", "-c", "id -u; id -g; id -G; echo $HOME", user="someone", groups=["extra", "77"])
    etc = Path(launch["overlay"]["upper"]) / "etc"
    etc.mkdir()
    (etc / "passwd").write_text("root:x:0:0::/root:/bin/sh\nsomeone:x:1001:1002::/home/some:/bin/sh\n")
    (etc / "group").write_text("root:x:0:\nsome:x:1002:\nwheel:x:10:root,someone\nextra:x:55:\n")
    assert (await run(spawner, launch))["code"] == 0
    assert output(launch).split() == ["1001", "1002", "1002", "10", "55", "77", "/home/some"] or output(
        launch
    ).split() == ["1001", "1002", "1002 10 55 77", "/home/some"]


@pytest.mark.parametrize(
    ("user", "text"),
    [
        ("nobody-here", "unable to find user nobody-here: no matching entries in passwd file"),
        (":nogroup-here", "unable to find group nogroup-here: no matching entries in group file"),
        ("4294967296", "uids and gids must be in range 0-2147483647"),
        ("-1", "uids and gids must be in range 0-2147483647"),
    ],
)
async def test_unknown_users(nursery: Nursery, spawner: Spawner, user: str, text: str) -> None:
    error = await refused(spawner, nursery, "true", user=user)
    assert (str(error), error.exit_code) == (text, 128)


@pytest.mark.parametrize("kind", ["fifo", "socket", "directory", "link", "huge", "overflowing"])
async def test_hostile_account_files(nursery: Nursery, spawner: Spawner, kind: str) -> None:
    """None of them blocks, reads without bound, or makes somebody root."""
    launch = nursery.launch("id", "-u", user="mallory")
    etc = Path(launch["overlay"]["upper"]) / "etc"
    etc.mkdir()
    passwd = etc / "passwd"
    if kind == "fifo":
        os.mkfifo(passwd)
    elif kind == "socket":
        sock = socket.socket(socket.AF_UNIX)
        with contextlib.chdir(etc):  # the path is too long for a socket's address
            sock.bind("passwd")
        sock.close()
    elif kind == "directory":
        passwd.mkdir()
    elif kind == "link":
        passwd.symlink_to("/../../../../../etc/shadow")
    elif kind == "huge":
        with passwd.open("wb") as file:
            file.truncate(1 << 40)
    else:
        passwd.write_text("mallory:x:4294967296:0::/:/bin/sh\nmallory:x:0x0:0::/:\nmallory:x:1_0:0::/:\n")
    with pytest.raises(StartFailed):
        await asyncio.wait_for(run(spawner, launch), 10)


async def test_the_working_directory_is_made(nursery: Nursery, spawner: Spawner) -> None:
    assert await says(nursery, spawner, "pwd", cwd="/a/b/c") == "/a/b/c\n"
    error = await refused(spawner, nursery, "true", cwd="/etc/passwd")
    assert str(error) == "Cannot mkdir: /etc/passwd is not a directory"


async def test_the_working_directory_stays_inside(nursery: Nursery, spawner: Spawner) -> None:
    """CVE-2024-21626: through a descriptor of ours."""
    for fd in range(3, 12):
        for path in (f"/proc/self/fd/{fd}", f"/proc/self/fd/{fd}/../../.."):
            launch = nursery.launch("sh", "-c", "pwd; ls", cwd=path)
            try:
                await run(spawner, launch)
            except StartFailed:
                continue
            raise AssertionError(output(launch))


async def test_mounts(nursery: Nursery, spawner: Spawner, tmp_path: Path) -> None:
    """A bind of a file and of a directory where nothing is, read-only, masked and read-only paths, a filled tmpfs."""
    (tmp_path / "sub").mkdir()
    (tmp_path / "file").write_text("content\n")
    mounts = [
        MountOp(kind="bind", source=str(tmp_path / "file"), target="/new/file", flags=0x1),
        MountOp(kind="bind", source=str(tmp_path), target="/also/new"),
        MountOp(kind="mount", target="/etc", fstype="tmpfs", source="tmpfs", data="size=1m", copy_up=True),
        MountOp(kind="mask", target="/proc/version"),
        MountOp(kind="mask", target="/proc/fs"),
        MountOp(kind="mask", target="/proc/no/such"),
        MountOp(kind="readonly", target="/proc/sys"),
    ]
    script = """
        cat /new/file; echo x >/new/file || echo refused; echo y >/also/new/made && ls -d /also/new/sub
        stat -c %a /etc; grep -c ^root: /etc/passwd; grep ' /etc ' /proc/mounts | cut -d' ' -f3
        wc -c </proc/version; ls /proc/fs | wc -l; mkdir /proc/fs/x || echo refused
        echo 1 >/proc/sys/kernel/panic || echo refused
    """
    told = await says(nursery, spawner, script, mounts=mounts)
    assert told.split() == (
        ["content", "refused", "/also/new/sub", "755", "1", "tmpfs", "0", "0", "refused", "refused"]
    )
    assert (tmp_path / "made").read_text() == "y\n"


async def test_mount_targets_cannot_leave_the_root(nursery: Nursery, spawner: Spawner, tmp_path: Path) -> None:
    (tmp_path / "inside").write_text("inside\n")
    mounts = [
        MountOp(kind="bind", source=str(tmp_path), target="/absolute/place"),
        MountOp(kind="bind", source=str(tmp_path), target="/relative"),
        MountOp(kind="bind", source=str(tmp_path), target="/dangling/below"),
        MountOp(kind="bind", source=str(tmp_path), target="/proc/self/root/magic"),
    ]
    launch = nursery.launch("cat", "/outside/place/inside", "/elsewhere/inside", "/nowhere/below/inside")
    upper = Path(launch["overlay"]["upper"])
    (upper / "outside").mkdir()
    (upper / "absolute").symlink_to("/outside")
    (upper / "relative").symlink_to("../../../../elsewhere")
    (upper / "dangling").symlink_to("/nowhere")
    launch["mounts"] += mounts[:3]
    assert (await run(spawner, launch))["code"] == 0
    assert output(launch) == "inside\n" * 3
    assert not Path("/elsewhere").exists()
    assert not Path("/nowhere").exists()
    launch = nursery.launch("true", mounts=mounts[3:])
    with pytest.raises(StartFailed, match=r"error mounting .*/proc/self/root/magic"):
        await run(spawner, launch)


async def test_a_file_cannot_cover_a_directory(nursery: Nursery, spawner: Spawner, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for source, target in ((tmp_path, "/etc/passwd"), (tmp_path / "file", "/etc")):
        error = await refused(
            spawner, nursery, "true", mounts=[MountOp(kind="bind", source=str(source), target=target)]
        )
        assert f'error mounting "{source}" to rootfs at "{target}": mount src={source}, dst={target}' in str(error)
        assert "not a directory: Are you trying to mount a directory onto a file (or vice-versa)?" in str(error)
        assert error.exit_code == 127


async def test_a_read_only_root(nursery: Nursery, spawner: Spawner) -> None:
    launch = nursery.launch("sh", "-c", "echo x >/x || echo refused; echo x >/dev/shm/x && echo fine")
    launch["overlay"]["readonly"] = True
    assert (await run(spawner, launch))["code"] == 0
    assert output(launch).split() == ["refused", "fine"]


async def test_nothing_is_mounted_on_the_host(nursery: Nursery, spawner: Spawner) -> None:
    before = Path("/proc/self/mountinfo").read_text()
    shim = await spawner.launch(nursery.launch("sleep", "1000"))
    assert launchless(Path("/proc/self/mountinfo").read_text()) == launchless(before)
    await shim.signal(signal.SIGKILL)
    assert (await end(shim))["code"] == 137


def launchless(mountinfo: str) -> set[str]:
    """Mounts that could be ours: overlays."""
    return {line for line in mountinfo.splitlines() if " - overlay " in line}


async def test_propagation(nursery: Nursery, spawner: Spawner, tmp_path: Path) -> None:
    """A slave bind sees what the host mounts later; a private one does not."""
    shared = tmp_path / "shared"
    (shared / "below").mkdir(parents=True)
    syscalls.mount("tmpfs", str(shared), "tmpfs")
    syscalls.mount("", str(shared), flags=syscalls.MS_SHARED)
    try:
        (shared / "below").mkdir()
        rslave = syscalls.MS_SLAVE | syscalls.MS_REC
        script = "while [ ! -e /slave/go ]; do sleep 0.02; done; cat /slave/below/file; cat /private/below/file"
        launch = nursery.launch("sh", "-c", script)
        launch["mounts"] += [
            MountOp(kind="bind", source=str(shared), target="/slave", recursive=True, propagation=rslave),
            MountOp(kind="bind", source=str(shared), target="/private", recursive=True),
        ]
        shim = await spawner.launch(launch)
        syscalls.mount("tmpfs", str(shared / "below"), "tmpfs")
        try:
            (shared / "below" / "file").write_text("later\n")
            (shared / "go").touch()
            await end(shim)
        finally:
            syscalls.umount(str(shared / "below"), syscalls.MNT_DETACH)
    finally:
        syscalls.umount(str(shared), syscalls.MNT_DETACH)
    assert output(launch) == "later\n"
    assert "/private/below/file" in output(launch, "stderr")


async def test_seccomp_holds(nursery: Nursery, spawner: Spawner) -> None:
    """A filter that refuses mkdir(2) and mkdirat(2) alone: installed, and late enough for the setup."""

    def instruction(code: int, jt: int, jf: int, k: int) -> bytes:
        return struct.pack("=HBBI", code, jt, jf, k)

    numbers = {"x86_64": (83, 258)}.get(os.uname().machine, (34, 34))
    program = (
        instruction(0x20, 0, 0, 0)  # load the call's number
        + instruction(0x15, 1, 0, numbers[0])
        + instruction(0x15, 0, 1, numbers[1])
        + instruction(0x06, 0, 0, 0x50000 | 1)  # EPERM
        + instruction(0x06, 0, 0, 0x7FFF0000)
    )
    encoded = base64.b64encode(program).decode()
    script = "mkdir /x || echo refused; grep Seccomp: /proc/self/status | cut -f2"
    for changes in ({}, {"no_new_privileges": True}, {"user": "65534"}, {"init": True}):
        assert (await says(nursery, spawner, script, seccomp=encoded, **changes)).split() == ["refused", "2"]
    with pytest.raises(StartFailed, match="error loading seccomp filter: invalid argument"):
        await run(spawner, nursery.launch("true", seccomp=base64.b64encode(b"\xff" * 8).decode()))


async def test_sysctls(nursery: Nursery, spawner: Spawner) -> None:
    launch = nursery.launch("cat", "/proc/sys/kernel/msgmax", sysctls={"kernel.msgmax": "12345"})
    before = Path("/proc/sys/kernel/msgmax").read_text()
    assert (await run(spawner, launch))["code"] == 0
    assert (output(launch), Path("/proc/sys/kernel/msgmax").read_text()) == ("12345\n", before)


async def test_many_layers_and_volatile_twice(nursery: Nursery, spawner: Spawner, tmp_path: Path) -> None:
    """More layers than fit into a mount option; and a second start on the mark that a volatile mount left."""
    launch = nursery.launch("sh", "-c", "ls /layers | wc -l")
    for number in range(120):
        layer = tmp_path / (f"{number}" * 40)[:200]
        (layer / "layers").mkdir(parents=True)
        (layer / "layers" / str(number)).touch()
        launch["overlay"]["lowers"].insert(0, str(layer))
    for _ in range(2):
        assert (await run(spawner, launch))["code"] == 0
    assert output(launch) == "120\n120\n"


async def test_arguments_with_nul_are_refused(nursery: Nursery, spawner: Spawner) -> None:
    error = await refused(spawner, nursery, "echo", "a\0b")
    assert "invalid argument" in str(error)

"""The plan for a container: what is mounted in which order, with which rights."""

import base64
import stat
from dataclasses import replace
from typing import Any

import pytest

from compatd.errors import InvalidParameter, SystemFailure
from compatd.linux import syscalls
from compatd.runtime import capabilities, devices, seccomp
from compatd.runtime.cgroups import Resources
from compatd.runtime.devices import Device
from compatd.runtime.host import READONLY_PATHS
from compatd.runtime.spec import HOST, RLIMITS, Bind, ContainerSpec, Ulimit, build_exec, build_launch
from compatd.shim import spec as shim
from tests.runtime.hosts import ALL_CAPABILITIES, FULL_SUPPORT, HYBRID, ID, UNIFIED, make_host, make_spec

pytestmark = pytest.mark.unit

RO, NOSUID, NODEV, NOEXEC = syscalls.MS_RDONLY, syscalls.MS_NOSUID, syscalls.MS_NODEV, syscalls.MS_NOEXEC
SAFE = NOSUID | NODEV | NOEXEC


def mounts(spec: ContainerSpec, **host: Any) -> list[shim.MountOp]:
    return build_launch(spec, make_host(**host))["mounts"]


def targets(spec: ContainerSpec, *kinds: str, **host: Any) -> list[str]:
    return [op["target"] for op in mounts(spec, **host) if not kinds or op["kind"] in kinds]


def at(spec: ContainerSpec, target: str, **host: Any) -> shim.MountOp:
    """The last operation on ``target``: the one that is seen."""
    return [op for op in mounts(spec, **host) if op["target"] == target][-1]


def test_default_mounts_in_order() -> None:
    assert targets(make_spec(), "mount", "bind", cgroup=UNIFIED) == [
        "/proc",
        "/dev",
        "/dev/pts",
        "/sys",
        "/sys/fs/cgroup",
        "/dev/mqueue",
        "/dev/shm",
    ]
    spec = make_spec(shm_size_bytes=1234)
    assert at(spec, "/proc")["flags"] == SAFE
    assert at(spec, "/sys")["flags"] == SAFE | RO
    assert at(spec, "/dev")["flags"] == NOSUID | syscalls.MS_STRICTATIME
    assert at(spec, "/dev/shm")["data"] == "mode=1777,size=1234"


def test_devices_and_links_come_right_after_dev() -> None:
    plan = mounts(make_spec())
    start = next(index for index, op in enumerate(plan) if op["target"] == "/dev") + 1
    made = {op["target"]: op for op in plan[start : start + 11]}
    assert set(made) == {
        f"/dev/{name}" for name in "null zero full random urandom tty fd stdin stdout stderr ptmx".split()
    }
    null = made["/dev/null"]
    assert (null.get("mode"), null.get("device")) == (stat.S_IFCHR | 0o666, (1, 3))
    assert made["/dev/ptmx"]["source"] == "pts/ptmx"


def test_masked_and_readonly_paths_come_last() -> None:
    spec = make_spec(binds=(Bind(source="/x", target="/proc/kcore"),))
    plan = mounts(spec)
    last = [(op["kind"], op["target"]) for op in plan[-7:]]
    assert last == [
        *(("readonly", path) for path in READONLY_PATHS),
        ("mask", "/proc/kcore"),
        ("mask", "/sys/firmware"),
    ]
    assert targets(make_spec(masked_paths=(), readonly_paths=("/proc/x",)), "mask", "readonly") == ["/proc/x"]


def test_privileged() -> None:
    tun = Device(path="/dev/net/tun", kind="c", major=10, minor=200, mode=0o600, uid=0, gid=5, permissions="")
    spec = make_spec(privileged=True, devices=(tun,))
    launch = build_launch(spec, make_host())
    assert targets(spec, "mask", "readonly") == []
    assert at(spec, "/sys")["flags"] == SAFE
    assert at(spec, "/sys/fs/cgroup", cgroup=UNIFIED)["flags"] == SAFE
    assert at(spec, "/dev/net/tun") == {
        "kind": "mknod",
        "target": "/dev/net/tun",
        "mode": stat.S_IFCHR | 0o600,
        "device": (10, 200),
        "uid": 0,
        "gid": 5,
    }
    assert launch["process"]["capabilities"]["effective"] == ALL_CAPABILITIES
    assert "seccomp" not in launch["process"]
    assert launch["cgroup"]["writes"] == []


def test_user_mounts_are_sorted_by_depth_and_keep_their_order() -> None:
    spec = make_spec(
        binds=(
            Bind(source="/h/deep", target="/a/b/c"),
            Bind(source="/h/second", target="/b/"),
            Bind(source="/h/first", target="/a"),
        ),
        files=(Bind(source="/c/hosts", target="/etc/hosts"),),
        tmpfs={"/a/b": "", "/t": ""},
    )
    plan = targets(spec, "mount", "bind")
    assert plan[plan.index("/dev/shm") + 1 :] == ["/t", "/b", "/a", "/etc/hosts", "/a/b", "/a/b/c"]


@pytest.mark.parametrize(
    ("target", "gone"),
    [
        ("/dev/shm", ["/dev/shm"]),
        ("/proc", ["/proc"]),
        ("/dev", ["/dev", "/dev/pts", "/dev/mqueue", "/dev/shm"]),
        ("/sys/fs/cgroup", ["/sys/fs/cgroup", "/sys/fs/cgroup/memory"]),
    ],
)
def test_a_user_s_mount_takes_a_default_s_place(target: str, gone: list[str]) -> None:
    plan = mounts(make_spec(binds=(Bind(source="/h", target=target),), cgroup=HOST))
    for path in gone:
        assert [op["source"] for op in plan if op["target"] == path and op["kind"] != "mask"] == (
            ["/h"] if path == target else []
        )
    if target == "/dev":
        assert not [op for op in plan if op["target"].startswith("/dev/")]


def test_a_tmpfs_on_dev_gets_the_nodes() -> None:
    plan = mounts(make_spec(tmpfs={"/dev": ""}, devices=(_device("/dev/foo"),)))
    order = [op["target"] for op in plan]
    assert order.count("/dev") == 1
    assert order.index("/dev/null") > order.index("/dev")
    assert "/dev/foo" in order
    assert "/dev/pts" not in order


def _device(path: str) -> Device:
    return Device(path=path, kind="c", major=1, minor=3, mode=0o666, uid=0, gid=0, permissions="rwm")


def test_a_bind_on_a_node_is_not_made_first() -> None:
    spec = make_spec(binds=(Bind(source="/dev/kvm", target="/dev/null"),))
    assert [op["kind"] for op in mounts(spec) if op["target"] == "/dev/null"] == ["bind"]


def test_devices_outside_dev() -> None:
    spec = make_spec(devices=(_device("/opt/null"), _device("/dev/other")))
    plan = targets(spec, "mknod", "mount", "bind")
    assert plan.index("/dev/other") < plan.index("/dev/pts")
    assert plan[-1] == "/opt/null"
    rules = [write[1] for write in build_launch(spec, make_host())["cgroup"]["writes"]]
    assert rules.count("c 1:3 rwm") == 1


def test_binds() -> None:
    slave, rshared = syscalls.MS_SLAVE | syscalls.MS_REC, syscalls.MS_SHARED | syscalls.MS_REC
    plain = at(make_spec(binds=(Bind(source="/h", target="/t"),)), "/t")
    assert (plain.get("flags"), plain.get("recursive"), plain.get("propagation")) == (syscalls.MS_REC, False, slave)
    readonly = at(make_spec(binds=(Bind(source="/h", target="/t", readonly=True),)), "/t")
    assert (readonly.get("flags"), readonly.get("recursive")) == (syscalls.MS_REC | RO, True)
    shallow = Bind(source="/h", target="/t", readonly=True, readonly_recursive=False, propagation="rshared")
    found = at(make_spec(binds=(shallow,)), "/t")
    assert (found.get("recursive"), found.get("propagation")) == (False, rshared)
    old = at(make_spec(binds=(Bind(source="/h", target="/t", readonly=True),)), "/t", recursive_readonly=False)
    assert old.get("recursive") is False
    alone = at(make_spec(binds=(Bind(source="/h", target="/t", recursive=False),)), "/t")
    assert alone.get("flags") == 0
    assert "fd" not in alone
    assert at(make_spec(binds=(Bind(source="/h", target="/t", fd=3),)), "/t").get("fd") == 3


def test_shared_memory_of_another_container() -> None:
    shared = at(make_spec(shm="fd", shm_fd=2), "/dev/shm")
    assert (shared["kind"], shared.get("fd"), shared.get("propagation")) == (
        "bind",
        2,
        syscalls.MS_PRIVATE | syscalls.MS_REC,
    )
    own = make_spec(shm="fd", shm_fd=2, tmpfs={"/dev/shm": "size=1m"})
    assert at(own, "/dev/shm")["kind"] == "mount"


def test_files_are_readonly_with_the_root_and_give_way_to_binds() -> None:
    files = (Bind(source="/c/hosts", target="/etc/hosts"), Bind(source="/c/hostname", target="/etc/hostname"))
    spec = make_spec(files=files, readonly_rootfs=True, binds=(Bind(source="/mine", target="/etc/hosts"),))
    assert at(spec, "/etc/hosts")["source"] == "/mine"
    assert at(spec, "/etc/hosts").get("flags") == syscalls.MS_REC
    assert at(spec, "/etc/hostname").get("flags") == syscalls.MS_REC | RO
    assert build_launch(spec, make_host())["overlay"]["readonly"]


@pytest.mark.parametrize(
    ("propagation", "expected"),
    [
        ("", None),
        ("private", None),
        ("rslave", syscalls.MS_SLAVE | syscalls.MS_REC),
        ("shared", syscalls.MS_SHARED | syscalls.MS_REC),
    ],
)
def test_the_root_receives_what_its_binds_need(propagation: Any, expected: int | None) -> None:
    spec = make_spec(binds=(Bind(source="/h", target="/t", propagation=propagation),))
    assert build_launch(spec, make_host())["overlay"].get("propagation") == expected


@pytest.mark.parametrize(
    ("options", "flags", "data"),
    [
        ("", SAFE, None),
        ("exec,suid,dev", 0, None),
        ("rw,size=65536k,mode=1770", SAFE, "size=65536k,mode=1770"),
        ("ro,noatime,size=1m,size=2m", SAFE | RO | syscalls.MS_NOATIME, "size=2m"),
        ("exec,noexec", SAFE, None),
    ],
)
def test_tmpfs_options(options: str, flags: int, data: str | None) -> None:
    op = at(make_spec(tmpfs={"/t": options}), "/t")
    assert (op.get("fstype"), op.get("flags"), op.get("data")) == ("tmpfs", flags, data)


@pytest.mark.parametrize("option", ["foo", "foo=1", "size", "rro", "lowerdir=/", ""])
def test_bad_tmpfs_options(option: str) -> None:
    with pytest.raises(SystemFailure) as refused:
        build_launch(make_spec(tmpfs={"/t": f"ro,{option}"}), make_host())
    assert str(refused.value) == f'invalid tmpfs option "{option.partition("=")[0]}"'


def test_shm() -> None:
    assert "/dev/shm" not in targets(make_spec(shm="none"))
    assert at(make_spec(shm="host", ipc=HOST), "/dev/shm")["kind"] == "bind"


def test_cgroups_of_version_1_on_the_host_s_namespace() -> None:
    spec = make_spec(cgroup=HOST)
    memory = at(spec, "/sys/fs/cgroup/memory")
    assert (memory["kind"], memory.get("source")) == ("bind", f"/sys/fs/cgroup/memory/docker/{ID}")
    assert memory.get("flags") == SAFE | RO
    links = {op["target"]: op["source"] for op in mounts(spec) if op["kind"] == "symlink" and "cgroup" in op["target"]}
    assert links == {"/sys/fs/cgroup/cpu": "cpu,cpuacct", "/sys/fs/cgroup/cpuacct": "cpu,cpuacct"}
    assert "/sys/fs/cgroup/unified" not in targets(spec)


def test_cgroups_of_version_1_in_a_namespace() -> None:
    systemd = at(make_spec(), "/sys/fs/cgroup/systemd")
    assert (systemd.get("fstype"), systemd.get("data")) == ("cgroup", "none,name=systemd")


def test_cgroups_of_version_2() -> None:
    assert at(make_spec(), "/sys/fs/cgroup", cgroup=UNIFIED).get("fstype") == "cgroup2"
    bound = at(make_spec(cgroup=HOST), "/sys/fs/cgroup", cgroup=UNIFIED)
    assert (bound["kind"], bound.get("source")) == ("bind", f"/sys/fs/cgroup/docker/{ID}")


def test_launch_of_version_1_joins_every_hierarchy() -> None:
    launch = build_launch(make_spec(), make_host(cgroup=HYBRID))
    assert len(launch["cgroup"]["joins"]) == len(HYBRID.hierarchies) + 1
    assert [f"{d}/cgroup.procs" for d in launch["cgroup"]["directories"]] == launch["cgroup"]["joins"]


def test_default_process() -> None:
    process = build_launch(make_spec(), make_host())["process"]
    assert process["capabilities"] == {
        "bounding": 0xA80425FB,
        "effective": 0xA80425FB,
        "permitted": 0xA80425FB,
        "inheritable": 0,
        "ambient": 0,
    }
    compiled = seccomp.compile_profile(None, capabilities=0xA80425FB, machine="x86_64", kernel=(6, 18))
    assert compiled is not None
    assert base64.b64decode(process.get("seccomp", "")) == compiled.program
    assert process.get("seccomp_flags") == 1 << 2  # SECCOMP_FILTER_FLAG_SPEC_ALLOW
    assert not process["no_new_privileges"]
    assert "oom_score_adj" not in process


def test_seccomp_follows_the_capabilities() -> None:
    plain = build_launch(make_spec(), make_host())["process"].get("seccomp")
    admin = build_launch(make_spec(cap_add=("SYS_ADMIN",)), make_host())["process"].get("seccomp")
    assert None not in (plain, admin)
    assert plain != admin


def test_seccomp_choices() -> None:
    deny = '{"defaultAction":"SCMP_ACT_ERRNO"}'

    def program(host: dict[str, Any] | None = None, **spec: Any) -> str | None:
        return build_launch(make_spec(**spec), make_host(**(host or {})))["process"].get("seccomp")

    assert program(seccomp="unconfined") is None
    assert program(privileged=True, seccomp=deny) is not None
    assert program(seccomp="builtin") == program()
    assert program({"seccomp": False}) is None
    assert program({"seccomp": False}, privileged=True) is None
    with pytest.raises(SystemFailure, match="seccomp is not enabled in your kernel, cannot run a custom"):
        program({"seccomp": False}, seccomp=deny)


def test_apparmor() -> None:
    loaded = {"apparmor": True, "apparmor_default_profile": "docker-default"}

    def profile(host: dict[str, Any], **spec: Any) -> str | None:
        return build_launch(make_spec(**spec), make_host(**host))["process"].get("apparmor")

    assert profile(loaded) == "docker-default"
    assert profile(loaded, apparmor="mine") == "mine"
    assert profile(loaded, apparmor="unconfined") is None
    assert profile(loaded, privileged=True) is None
    assert profile({}, apparmor="mine") is None


def test_sysctls() -> None:
    def chosen(**spec: Any) -> dict[str, str]:
        return build_launch(make_spec(**spec), make_host())["sysctls"]

    base = {"net.ipv4.ip_unprivileged_port_start": "0", "net.ipv4.ping_group_range": "0 2147483647"}
    assert chosen() == base
    assert chosen(net=HOST) == {}
    assert chosen(sysctls={"net.ipv4.ip_unprivileged_port_start": "99", "kernel.shmmax": "1"}) == {
        **base,
        "net.ipv4.ip_unprivileged_port_start": "99",
        "kernel.shmmax": "1",
    }


@pytest.mark.parametrize(
    ("name", "spec", "text"),
    [
        ("foo.bar", {}, 'sysctl "foo.bar" is not in a separate kernel namespace'),
        ("kernel.panic", {}, 'sysctl "kernel.panic" is not in a separate kernel namespace'),
        ("net.ipv4.ip_forward", {"net": HOST}, 'sysctl "net.ipv4.ip_forward" not allowed in host network namespace'),
        ("kernel.shmmax", {"ipc": HOST}, 'sysctl "kernel.shmmax" is not allowed in the hosts ipc namespace'),
        ("net/../kernel/panic", {}, 'sysctl "net/../kernel/panic" is not in a separate kernel namespace'),
        ("net.x\n", {}, 'sysctl "net.x\n" is not in a separate kernel namespace'),
    ],
)
def test_sysctls_of_the_host_are_refused(name: str, spec: dict[str, Any], text: str) -> None:
    with pytest.raises(SystemFailure) as refused:
        build_launch(make_spec(sysctls={name: "1"}, **spec), make_host())
    assert str(refused.value).endswith(f"runc create failed: {text}")


def test_ulimits() -> None:
    process = build_launch(make_spec(ulimits=(Ulimit(name="nofile", soft=1, hard=-1),)), make_host())["process"]
    assert process["rlimits"] == [{"resource": 7, "soft": 1, "hard": -1}]
    assert RLIMITS["rttime"] == 15
    with pytest.raises(SystemFailure, match="wrong rlimit value: RLIMIT_FOO"):
        build_launch(make_spec(ulimits=(Ulimit(name="foo", soft=1, hard=1),)), make_host())


def test_the_host_s_name_is_left_alone() -> None:
    launch = build_launch(make_spec(uts=HOST, hostname="h"), make_host())
    assert (launch["hostname"], launch["domainname"]) == ("", "")
    with pytest.raises(SystemFailure, match="is not in a separate kernel namespace"):
        build_launch(make_spec(uts=HOST, domainname="d"), make_host())


def test_limits_that_cannot_be_are_left_out_or_refused() -> None:
    spec = make_spec(resources=Resources(pids_limit=5), privileged=True)
    without = make_host(cgroup_support=replace(FULL_SUPPORT, pids_limit=False))
    assert build_launch(spec, without)["cgroup"]["writes"] == []
    assert len(build_launch(spec, make_host())["cgroup"]["writes"]) == 1
    with pytest.raises(InvalidParameter, match="Minimum memory limit allowed is 6MB"):
        build_launch(make_spec(resources=Resources(memory_bytes=1)), make_host())


def test_exec_has_the_container_s_rights() -> None:
    spec = make_spec(
        cap_drop=("ALL",), no_new_privileges=True, oom_score_adj=5, user="1000", group_add=("audio",), tty=True
    )
    made = build_exec(
        spec, make_host(), exec_id="e", args=["id"], env=["A=1"], cwd="", user="2:3", tty=False, console_size=(4, 5)
    )
    process = made["process"]
    container = build_launch(spec, make_host())["process"]
    assert process["capabilities"] == container["capabilities"]
    assert process.get("seccomp") == container.get("seccomp")
    assert process["no_new_privileges"]
    assert process.get("oom_score_adj") == 5
    assert (process["args"], process["env"], process["cwd"], process["user"]) == (["id"], ["A=1"], "/", "2:3")
    assert (process["groups"], process["tty"], process.get("console_size")) == (["audio"], False, (4, 5))
    assert made["cgroup_joins"] == build_launch(spec, make_host())["cgroup"]["joins"]
    assert "attach" not in made


def test_privileged_exec_keeps_the_filter() -> None:
    made = build_exec(
        make_spec(), make_host(), exec_id="e", args=["id"], env=[], cwd="/", user="", tty=False, privileged=True
    )
    assert made["process"]["capabilities"]["effective"] == ALL_CAPABILITIES
    assert made["process"].get("seccomp")


def test_capabilities_lacking_here_are_refused_by_name() -> None:
    lacking = make_host(capabilities=ALL_CAPABILITIES & ~capabilities.mask(["CAP_SYS_RESOURCE"]))
    with pytest.raises(InvalidParameter, match="not available in the current environment"):
        build_launch(make_spec(cap_add=("SYS_RESOURCE",)), lacking)


def test_device_rules_of_the_user() -> None:
    spec = make_spec(device_rules=(devices.parse_rule("c 10:* rw"),))
    assert build_launch(spec, make_host())["cgroup"]["writes"][-3][1] == "c 10:* rw"

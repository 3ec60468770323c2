"""The options of docker run, each seen from inside the container."""

import json
import os
import re
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli import Cli
from tests.conftest import have
from tests.engine import Engine
from tests.registry import wait_until

pytestmark = [pytest.mark.root, pytest.mark.parity]


class Run:
    """docker run --rm with a shell script."""

    def __init__(self, cli: Cli, image: str) -> None:
        self.cli = cli
        self.image = image

    def __call__(self, script: str, *flags: str, stdin: bytes = b"") -> str:
        return self.cli("run", "--rm", *flags, self.image, "sh", "-c", script, stdin=stdin)

    def code(self, script: str, *flags: str) -> int:
        done = self.cli.call("run", "--rm", *flags, self.image, "sh", "-c", script)
        assert done.code != 125, done.err  # the engine's own failure, not the script's
        return done.code


@pytest.fixture
def run(cli: Cli, busybox: str) -> Run:
    return Run(cli, busybox)


# ---------------------------------------------------------------- the process


def test_environment(run: Run) -> None:
    assert run('echo "$A|$B|$HOME|$HOSTNAME|$PATH"', "-e", "A=1 2", "-e", "B=", "--hostname", "me").strip() == (
        "1 2||/root|me|/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
    )
    environment = run("env").splitlines()
    assert {line.partition("=")[0] for line in environment} <= {"PATH", "HOSTNAME", "HOME", "SHLVL", "PWD", "OLDPWD"}


def test_working_directory(run: Run) -> None:
    assert run("pwd; stat -c '%u %a' .", "-w", "/made/by/engine/") == "/made/by/engine\n0 755\n"


@pytest.mark.parametrize(
    ("user", "seen"),
    [
        ("nobody", "65534 65534 65534 /home"),
        ("www-data", "33 33 33 /var/www"),
        ("33", "33 33 33 /var/www"),
        ("4242", "4242 0 0 /"),
        ("4242:4343", "4242 4343 4343 /"),
        ("nobody:wheel", "65534 10 10 /home"),
        ("0", "0 0 0 10 /root"),
    ],
)
def test_user(run: Run, user: str, seen: str) -> None:
    assert run("echo $(id -u) $(id -g) $(id -G) $HOME", "--user", user).strip() == seen


def test_added_groups(run: Run) -> None:
    assert run("id -G", "--user", "nobody", "--group-add", "wheel", "--group-add", "77").split() == [
        "65534",
        "10",
        "77",
    ]


def test_entrypoint(cli: Cli, busybox: str) -> None:
    assert cli("run", "--rm", "--entrypoint", "echo", busybox, "a b", "c") == "a b c\n"


def test_exit_code(run: Run) -> None:
    assert run.code("exit 42") == 42
    assert run.code("sleep 1000 & kill -9 $!; wait $!") == 137


def test_input(run: Run) -> None:
    assert run("cat; echo end", "-i", stdin=b"a\nb") == "a\nbend\n"
    assert run("cat; echo end", stdin=b"not passed on") == "end\n"
    assert run("wc -c", "-i", stdin=bytes(3_000_000)) == "3000000\n"


def test_terminal(cli: Cli, busybox: str) -> None:
    with cli.terminal("run", "--rm", "-it", busybox, rows=33, columns=99) as terminal:
        terminal.expect("/ # ")
        terminal.type("stty size; tty; echo $TERM; id -u\n")
        terminal.expect(r"33 99\r\n/dev/pts/0\r\nxterm\r\n0\r\n/ # ")
        terminal.resize(44, 111)
        os.kill(terminal.process.pid, 28)  # SIGWINCH: the kernel tells the foreground group only
        terminal.type("sleep 0.3; stty size\n")
        terminal.expect(r"44 111\r\n/ # ")
        terminal.type("sh -c 'echo started; exec sleep 1000'\n")
        terminal.expect("started\r\n")
        terminal.type("\x03")
        terminal.expect("/ # ")
        terminal.type("exit 3\n")
        assert terminal.wait() == 3


def test_detach_and_attach(cli: Cli, busybox: str) -> None:
    with cli.terminal("run", "-it", "--name", "detached", busybox) as terminal:
        terminal.expect("/ # ")
        terminal.type("\x10\x11")
        assert terminal.wait() == 0
    assert cli("inspect", "-f", "{{.State.Status}}", "detached") == "running\n"
    with cli.terminal("attach", "detached") as terminal:
        terminal.type("echo $((40+2))\n")
        terminal.expect(r"\n42\r\n")
        terminal.type("exit 5\n")
        assert terminal.wait() == 5


def test_exec_in_a_terminal(cli: Cli, busybox: str) -> None:
    cli("run", "-d", "--name", "host", busybox, "sleep", "1000")
    with cli.terminal(
        "exec", "-it", "-e", "A=b", "-w", "/tmp", "-u", "nobody", "host", "sh", rows=50, columns=70
    ) as terminal:
        terminal.expect(r"\$ ")
        terminal.type("echo $A $(pwd) $(id -u) $(stty size)\n")
        terminal.expect(r"b /tmp 65534 50 70\r\n")
        terminal.type("exit 6\n")
        assert terminal.wait() == 6
    assert cli.call("exec", "host", "sh", "-c", "exit 7").code == 7
    assert cli("exec", "-i", "host", "cat", stdin=b"through") == "through"
    missing = cli.call("exec", "host", "no-such-program")
    assert missing.code == 127
    assert 'exec: "no-such-program": executable file not found in $PATH' in missing.out + missing.err
    assert (missing.out + missing.err).count("executable file not found") == 1


def test_signals_reach_the_process(cli: Cli, busybox: str) -> None:
    script = "trap 'echo got it; exit 9' USR1; echo ready; while :; do sleep 0.05; done"
    cli("run", "-d", "--name", "trap", busybox, "sh", "-c", script)
    wait_until(lambda: "ready" in cli("logs", "trap"), "the trap is set")
    cli("kill", "-s", "USR1", "trap")
    assert cli("wait", "trap") == "9\n"
    assert cli("logs", "trap") == "ready\ngot it\n"


def test_an_attached_client_passes_signals_on(cli: Cli, busybox: str) -> None:
    client = cli.start(
        "run", "--rm", busybox, "sh", "-c", "trap 'exit 11' TERM; echo ready; while :; do sleep 0.05; done"
    )
    assert client.stdout
    assert client.stdout.readline() == b"ready\n"
    client.terminate()
    client.communicate(timeout=20)
    assert client.returncode == 11


def test_stop_gives_a_grace_period(cli: Cli, busybox: str) -> None:
    cli("run", "-d", "--name", "deaf", busybox, "sleep", "1000")  # pid 1 ignores SIGTERM when it has no handler
    begin = time.monotonic()
    cli("stop", "-t", "1", "deaf")
    assert 0.9 < time.monotonic() - begin < 5
    assert cli("inspect", "-f", "{{.State.ExitCode}} {{.State.OOMKilled}}", "deaf") == "137 false\n"


def test_init(run: Run, cli: Cli, busybox: str) -> None:
    assert run("echo $$", "--init") != "1\n"
    assert run("echo $$") == "1\n"
    cli("run", "-d", "--init", "--name", "polite", busybox, "sleep", "1000")
    begin = time.monotonic()
    cli("stop", "polite")
    assert time.monotonic() - begin < 5
    assert cli("inspect", "-f", "{{.State.ExitCode}}", "polite") == "143\n"


def test_rm(engine: Engine, run: Run, cli: Cli, busybox: str) -> None:
    run("true", "-v", "/anonymous", "--name", "gone")
    assert engine.api.get("/containers/json", all="1").ok() == []
    assert engine.api.get("/volumes").ok()["Volumes"] in (None, [])
    cli("run", "-d", "--rm", "--name", "later", busybox, "sleep", "1000")
    cli("rm", "-f", "later")
    assert engine.api.get("/containers/json", all="1").ok() == []


# ---------------------------------------------------------------- files


@pytest.mark.own("a dockerd to compare with may live in another root")
def test_bind_mount(run: Run, tmp_path: Path) -> None:
    (tmp_path / "in").write_text("from the host")
    assert run("cat /data/in; echo back > /data/out", "-v", f"{tmp_path}:/data") == "from the host"
    assert (tmp_path / "out").read_text() == "back\n"
    assert run.code("echo x > /data/out", "-v", f"{tmp_path}:/data:ro") == 1
    assert run("cat /file", "--mount", f"type=bind,src={tmp_path}/in,dst=/file,readonly") == "from the host"
    run("true", "-v", f"{tmp_path}/made/by/engine:/data")
    assert (tmp_path / "made/by/engine").is_dir()


def test_volume(run: Run, cli: Cli) -> None:
    run("echo kept > /data/file", "-v", "named:/data")
    assert run("cat /other/file", "--mount", "type=volume,src=named,dst=/other") == "kept\n"
    # What the image has at the target is copied into a new volume, unless that is declined.
    assert run("ls /etc/passwd", "-v", "/etc") == "/etc/passwd\n"
    assert run("ls /etc/passwd 2>&1 || true", "-v", "fresh:/etc:nocopy").startswith("ls: ")
    cli("volume", "rm", "named", "fresh")


def test_tmpfs(run: Run) -> None:
    listed = run("mount | grep ' /scratch '; touch /scratch/file", "--tmpfs", "/scratch:size=1m,mode=700")
    assert listed.startswith("tmpfs on /scratch type tmpfs (rw,nosuid,nodev,noexec,relatime,size=1024k,mode=700")
    assert "tmpfs on /other type tmpfs (rw,nosuid,nodev,noexec,relatime" in run(
        "mount", "--mount", "type=tmpfs,dst=/other"
    )


def test_read_only(run: Run, tmp_path: Path) -> None:
    assert "Read-only file system" in run("touch /file 2>&1 || true", "--read-only")
    assert (
        run("echo x > /tmp/file; echo y > /data/file; cat /*/file", "--read-only", "--tmpfs", "/tmp", "-v", "/data")
        == "y\nx\n"
    )


def test_shared_memory(run: Run) -> None:
    assert re.search(r"^shm +65536 ", run("df -k /dev/shm"), re.M)
    assert re.search(r"^shm +1024 ", run("df -k /dev/shm", "--shm-size", "1m"), re.M)


def test_copy(cli: Cli, busybox: str, tmp_path: Path) -> None:
    cli("create", "--name", "box", busybox, "cat", "/tmp/sub/file")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "file").write_text("copied in\n")
    cli("cp", str(tmp_path / "sub"), "box:/tmp")
    assert cli("start", "-a", "box") == "copied in\n"
    cli("cp", "box:/tmp/sub/file", str(tmp_path / "back"))
    assert (tmp_path / "back").read_text() == "copied in\n"
    cli("cp", "box:/bin/sh", str(tmp_path / "link"))
    assert (tmp_path / "link").is_symlink()
    cli("cp", "-L", "box:/bin/sh", str(tmp_path / "program"))
    assert (tmp_path / "program").stat().st_size > 100_000


# ---------------------------------------------------------------- network


def test_hostname_and_hosts(run: Run) -> None:
    lines = run("hostname; cat /etc/hosts", "--hostname", "me.example", "--add-host", "db:10.1.2.3").splitlines()
    assert lines[0] == "me.example"
    assert "10.1.2.3\tdb" in lines
    assert any(re.fullmatch(r"172\.17\.0\.\d+\tme\.example me", line) for line in lines)
    assert lines[1].startswith("127.0.0.1\tlocalhost")


def test_resolver(run: Run) -> None:
    text = run("cat /etc/resolv.conf", "--dns", "192.0.2.53", "--dns-search", "example.org", "--dns-option", "ndots:2")
    assert [line for line in text.splitlines() if line and not line.startswith("#")] == [
        "nameserver 192.0.2.53",
        "search example.org",
        "options ndots:2",
    ]


def test_network_bridge(run: Run) -> None:
    assert re.search(r"inet 172\.17\.0\.\d+/16 ", run("ip addr show eth0"))
    assert "default via 172.17.0.1 dev eth0" in run("ip route")


def test_network_none(run: Run) -> None:
    assert run("ls /sys/class/net", "--network", "none").split() == ["lo"]
    assert run("ping -c 1 -W 1 127.0.0.1 > /dev/null && echo up", "--network", "none") == "up\n"


def test_network_host(engine: Engine, run: Run) -> None:
    inside = engine.inside(lambda: os.readlink("/proc/thread-self/ns/net"))
    assert run("readlink /proc/self/ns/net", "--network", "host").strip() == inside
    assert run("readlink /proc/self/ns/net").strip() != inside


def test_network_of_another_container(cli: Cli, run: Run, busybox: str) -> None:
    cli("run", "-d", "--name", "web", busybox, "sh", "-c", "echo shared > index.html; exec httpd -f -p 80")
    script = "for i in $(seq 50); do wget -q -O - http://127.0.0.1/index.html 2>/dev/null && break; sleep 0.1; done"
    assert run(script, "--network", "container:web") == "shared\n"
    assert (
        run("hostname", "--network", "container:web").strip()
        == cli("inspect", "-f", "{{.Config.Hostname}}", "web").strip()
    )


def test_containers_reach_each_other(cli: Cli, run: Run, busybox: str) -> None:
    cli("run", "-d", "--name", "web", busybox, "sh", "-c", "echo neighbour > index.html; exec httpd -f -p 80")
    address = cli("inspect", "-f", "{{.NetworkSettings.Networks.bridge.IPAddress}}", "web").strip()
    script = f"for i in $(seq 50); do wget -q -O - http://{address}/index.html 2>/dev/null && break; sleep 0.1; done"
    assert run(script) == "neighbour\n"


def test_the_way_out(engine: Engine, run: Run) -> None:
    have(engine.connect)
    server = next(
        line.split()[1] for line in Path("/etc/resolv.conf").read_text().splitlines() if line.startswith("nameserver ")
    )
    if server.startswith("127."):
        pytest.skip("the machine's resolver is on its loopback")
    assert server in run("cat /etc/resolv.conf")
    assert run("nslookup -type=ns . > /dev/null 2>&1; echo asked") == "asked\n"


UDP_ECHO = """
const socket = require("dgram").createSocket("udp4");
socket.on("message", (data, from) => socket.send(data, from.port, from.address));
socket.bind(7);
"""


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_published_port(engine: Engine, cli: Cli, busybox: str, protocol: str) -> None:
    command = [busybox, "nc", "-ll", "-p", "7", "-e", "cat"]
    if protocol == "udp":
        have(lambda: engine.provide("node:20"))
        command = ["node:20", "node", "-e", UDP_ECHO]
    cli("run", "-d", "--name", "echo", "-p", f"7007:7/{protocol}", *command)
    kind = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}[protocol]

    def echoed(host: str) -> bool:
        with socket.socket(socket.AF_INET, kind) as connection:
            connection.settimeout(1)
            try:
                connection.connect((host, 7007))
                connection.sendall(b"ping")
                return connection.recv(10) == b"ping"
            except OSError:
                return False

    wait_until(lambda: engine.inside(lambda: echoed("127.0.0.1")), "an echo on loopback")
    assert engine.inside(lambda: echoed(engine.address))
    assert cli("port", "echo", f"7/{protocol}").splitlines()[0] == "0.0.0.0:7007"


def test_port_on_one_address(engine: Engine, cli: Cli, busybox: str) -> None:
    have(engine.connect)  # or loopback would be the only address there is
    cli("run", "-d", "--name", "one", "-p", "127.0.0.1:7080:80", busybox, "sh", "-c", "echo x > x; exec httpd -f -p 80")
    wait_until(answer(lambda: engine.fetch(7080, path="/x")), "the page on loopback")
    with pytest.raises(OSError, match=r"refused|timed out"):
        engine.fetch(7080, host=engine.address, timeout_s=1)
    assert cli("port", "one") == "80/tcp -> 127.0.0.1:7080\n"


def test_port_range(cli: Cli, busybox: str) -> None:
    cli("create", "--name", "range", "-p", "7090-7091:80-81", busybox)
    bindings = json.loads(cli("inspect", "-f", "{{json .HostConfig.PortBindings}}", "range"))
    assert bindings == {
        "80/tcp": [{"HostIp": "", "HostPort": "7090"}],
        "81/tcp": [{"HostIp": "", "HostPort": "7091"}],
    }


def answer(fetch: Callable[[], str]) -> Callable[[], bool]:
    def check() -> bool:
        try:
            return bool(fetch())
        except OSError:
            return False

    return check


# ---------------------------------------------------------------- privileges

DEFAULT_CAPABILITIES = 0xA80425FB


def capabilities(run: Run, *flags: str) -> dict[str, int]:
    text = run("grep ^Cap /proc/self/status", *flags)
    return {name: int(value, 16) for name, value in re.findall(r"Cap(\w+):\s+([0-9a-f]+)", text)}


def test_capabilities(run: Run) -> None:
    assert capabilities(run) == {
        "Inh": 0,
        "Prm": DEFAULT_CAPABILITIES,
        "Eff": DEFAULT_CAPABILITIES,
        "Bnd": DEFAULT_CAPABILITIES,
        "Amb": 0,
    }
    added = capabilities(run, "--cap-add", "NET_ADMIN", "--cap-drop", "chown")
    assert added["Eff"] == (DEFAULT_CAPABILITIES | 1 << 12) & ~1
    assert capabilities(run, "--cap-drop", "ALL")["Bnd"] == 0
    assert capabilities(run, "--cap-drop", "ALL", "--cap-add", "CAP_CHOWN")["Eff"] == 1
    assert capabilities(run, "--user", "nobody") == {
        "Inh": 0,
        "Prm": 0,
        "Eff": 0,
        "Bnd": DEFAULT_CAPABILITIES,
        "Amb": 0,
    }


def test_seccomp(run: Run) -> None:
    assert "Seccomp:\t2" in run("cat /proc/self/status")
    assert "Seccomp:\t0" in run("cat /proc/self/status", "--security-opt", "seccomp=unconfined")
    assert "Operation not permitted" in run("unshare -n true 2>&1 || true")
    assert "NoNewPrivs:\t1" in run("cat /proc/self/status", "--security-opt", "no-new-privileges")
    assert "NoNewPrivs:\t0" in run("cat /proc/self/status")


def test_masked_and_read_only_paths(run: Run) -> None:
    assert run("cat /proc/kcore | wc -c; ls /proc/acpi /sys/firmware 2>/dev/null | grep -v : | wc -w") == "0\n0\n"
    for path in ("/proc/sys/vm/swappiness", "/sys/kernel/notes"):
        assert "Read-only file system" in run(f"(echo 1 > {path}) 2>&1 || true")


def test_devices(run: Run) -> None:
    expected = "fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero".split()
    expected += ["core"] if Path("/proc/kcore").exists() else []
    assert sorted(run("ls /dev").split()) == sorted(expected)
    assert run("echo x > /dev/null; head -c 3 /dev/zero | wc -c") == "3\n"
    # Making a node of a disk is allowed, using it is not.
    assert "Operation not permitted" in run("mknod /disk b 7 0; cat /disk 2>&1 || true")


def test_privileged(run: Run) -> None:
    own = re.search(r"^CapBnd:\s+([0-9a-f]+)", Path("/proc/self/status").read_text(), re.M)
    assert own
    assert capabilities(run, "--privileged")["Eff"] == int(own[1], 16)
    assert "Seccomp:\t0" in run("cat /proc/self/status", "--privileged")
    assert run("mkdir /m && mount -t tmpfs none /m && touch /m/x && echo mounted", "--privileged") == "mounted\n"
    assert "kmsg" in run("ls /dev", "--privileged")


def test_no_descriptor_and_no_mount_leaks_in(run: Run) -> None:
    assert run("ls /proc/self/fd | wc -l") == "4\n"  # 0, 1, 2, and the listing's own
    table = run("cat /proc/self/mountinfo").splitlines()
    targets = [line.split()[4] for line in table]
    assert targets.count("/") == 1
    allowed = r"/|/proc(/.*)?|/sys(/.*)?|/dev(/.*)?|/etc/(hosts|hostname|resolv\.conf)"
    assert [target for target in targets if not re.fullmatch(allowed, target)] == []


@pytest.mark.own("how dockerd was started shows in its containers")
def test_signals_and_umask_are_the_defaults(run: Run, cli: Cli, busybox: str) -> None:
    assert run("umask") == "0022\n"
    # Not from a shell, which ignores some itself.
    assert cli("run", "--rm", busybox, "grep", "-E", "Sig(Ign|Blk)", "/proc/self/status") == (
        "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n"
    )


# ---------------------------------------------------------------- limits


def limit(run: Run, v1: str, v2: str, *flags: str) -> str:
    """A cgroup value as the container sees it, in whichever version the machine has."""
    return run(f"cat /sys/fs/cgroup/{v1} 2>/dev/null || cat /sys/fs/cgroup/{v2}", *flags).strip()


def test_memory_limit(run: Run) -> None:
    assert limit(run, "memory/memory.limit_in_bytes", "memory.max", "-m", "32m") == str(32 << 20)


def test_out_of_memory(cli: Cli, busybox: str) -> None:
    done = cli.call(
        "run", "--name", "hungry", "-m", "16m", "--memory-swap", "16m", busybox, "sh", "-c", "tail /dev/zero"
    )
    assert done.code == 137
    assert cli("inspect", "-f", "{{.State.OOMKilled}}", "hungry") == "true\n"


def test_cpu_limit(run: Run) -> None:
    value = limit(run, "cpu/cpu.cfs_quota_us", "cpu.max", "--cpus", "0.5")
    assert value in ("50000", "50000 100000")


def test_pids_limit(run: Run) -> None:
    assert limit(run, "pids/pids.max", "pids.max", "--pids-limit", "33") == "33"


def test_ulimit(run: Run) -> None:
    assert run("ulimit -n; ulimit -Hn", "--ulimit", "nofile=77:88") == "77\n88\n"


def test_sysctl_and_oom_score(run: Run) -> None:
    assert run("cat /proc/sys/net/ipv4/ip_forward", "--sysctl", "net.ipv4.ip_forward=0") == "0\n"
    assert run("cat /proc/self/oom_score_adj", "--oom-score-adj", "321") == "321\n"


# ---------------------------------------------------------------- logs


def test_logs(cli: Cli, busybox: str) -> None:
    cli("run", "--name", "log", busybox, "sh", "-c", "echo one; echo two >&2; printf 'no newline'")
    done = cli.call("logs", "log")
    assert (done.out, done.err) == ("one\nno newline", "two\n")
    stamped = cli("logs", "-t", "log").splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z ", line) for line in stamped)
    assert cli("logs", "--since", stamped[-1].split()[0], "log") == "no newline"
    assert cli("logs", "--tail", "1", "log") == "no newline"
    assert cli("logs", "--tail", "0", "log") == ""


def test_long_lines_and_rotation(cli: Cli, busybox: str) -> None:
    script = (
        "for i in $(seq 2000); do echo \"$i $(printf '%0300d' 0)\"; done; head -c 100000 /dev/zero | tr '\\0' x; echo"
    )
    flags = ("--log-opt", "max-size=100k", "--log-opt", "max-file=3")
    cli("run", "--name", "big", *flags, busybox, "sh", "-c", script)
    text = cli("logs", "big")
    assert text.endswith("x" * 100_000 + "\n")
    numbers = [int(line.split()[0]) for line in text.splitlines()[:-1]]
    assert numbers == list(range(numbers[0], 2001))
    assert 100_000 < len(text) < 400_000


def test_log_driver_none(cli: Cli, busybox: str) -> None:
    assert cli("run", "--name", "quiet", "--log-driver", "none", busybox, "echo", "seen") == "seen\n"
    assert "configured logging driver does not support reading" in cli.call("logs", "quiet").err


def test_large_output(cli: Cli, busybox: str) -> None:
    client = subprocess.run(
        [cli.program, "run", "--rm", busybox, "sh", "-c", "head -c 20000000 /dev/zero; echo end >&2"],
        capture_output=True,
        timeout=60,
        env=cli.environment,
    )
    assert (len(client.stdout), client.stderr) == (20_000_000, b"end\n")

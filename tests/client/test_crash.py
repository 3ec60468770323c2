"""kill -9 of the daemon loses nothing: no container, no output, no exit code; an attached client notices nothing."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli import Cli
from tests.client.test_node_app import answers
from tests.conftest import have, make_cli
from tests.engine import OwnEngine
from tests.registry import wait_until

pytestmark = pytest.mark.root

BUSYBOX = "busybox:latest"


@pytest.fixture
def engine(own_engine: OwnEngine) -> Iterator[OwnEngine]:
    own_engine.start()
    have(lambda: own_engine.load(BUSYBOX))
    yield own_engine
    if own_engine.leaks():  # an engine that lies dead cannot clear up after itself
        own_engine.kill()
        own_engine.start()


@pytest.fixture
def cli(engine: OwnEngine, tmp_path: Path) -> Cli:
    return have(lambda: make_cli(engine, tmp_path))


def counting(last: int, code: int, pause_s: str = "0.01") -> str:
    return f"i=1; while [ $i -le {last} ]; do echo line $i; i=$((i+1)); sleep {pause_s}; done; exit {code}"


def lines(last: int) -> str:
    return "".join(f"line {number}\n" for number in range(1, last + 1))


def status(engine: OwnEngine, name: str) -> str:
    return str(engine.api.get(f"/containers/{name}/json").ok()["State"]["Status"])


def test_an_attached_client_sees_every_line(engine: OwnEngine, cli: Cli) -> None:
    """(a) The container writes to an attached client before, during and after the crash."""
    client = cli.start("run", "--name", "attached", BUSYBOX, "sh", "-c", counting(150, 7))
    assert client.stdout
    seen = [client.stdout.readline() for _ in range(5)]
    engine.kill()
    seen += [client.stdout.readline() for _ in range(20)]
    engine.start()
    out, err = client.communicate(timeout=60)
    assert (b"".join(seen) + out).decode() == lines(150)
    assert (client.returncode, err) == (7, b"")
    assert cli("logs", "attached") == lines(150)
    assert cli("inspect", "-f", "{{.State.ExitCode}} {{.RestartCount}}", "attached") == "7 0\n"


def test_an_attached_client_with_rm_ends_while_the_daemon_is_down(engine: OwnEngine, cli: Cli) -> None:
    """(a) and (c): its pending wait, which is for the removal, is answered by the next daemon."""
    client = cli.start("run", "--rm", "--name", "attached", BUSYBOX, "sh", "-c", counting(40, 8))
    assert client.stdout
    assert [client.stdout.readline() for _ in range(5)][-1] == b"line 5\n"
    engine.kill()
    assert [client.stdout.readline() for _ in range(35)][-1] == b"line 40\n"
    engine.start()
    client.communicate(timeout=60)
    assert client.returncode == 8
    wait_until(lambda: engine.api.get("/containers/attached/json").status == 404, "the container is removed")


def test_a_session_on_a_terminal_goes_on(engine: OwnEngine, cli: Cli) -> None:
    with cli.terminal("run", "--rm", "-it", BUSYBOX) as terminal:
        terminal.expect("/ # ")
        cli("ps")  # by then, start has been answered
        engine.kill()
        terminal.type("echo $((40+2))\n")
        terminal.expect(r"\r\n42\r\n/ # ")
        engine.start()
        terminal.type("echo $((40+3)); exit 9\n")
        terminal.expect(r"\r\n43\r\n")
        assert terminal.wait() == 9


def test_a_published_port_stays(engine: OwnEngine, cli: Cli) -> None:
    """(b) A detached container keeps its port, also while there is no daemon, and gives it back at the end."""
    script = "echo alive > index.html; echo serving; exec httpd -f -p 80"
    cli("run", "-d", "--name", "web", "-p", "8080:80", BUSYBOX, "sh", "-c", script)
    wait_until(answers(lambda: engine.fetch(8080, path="/index.html"), "alive\n"), "the page")
    before = json.loads(cli("inspect", "web"))[0]
    engine.kill()
    assert engine.fetch(8080, host=engine.address, path="/index.html") == "alive\n"
    assert engine.fetch(8080, path="/index.html") == "alive\n"
    engine.start()
    assert engine.fetch(8080, host=engine.address, path="/index.html") == "alive\n"
    assert engine.fetch(8080, path="/index.html") == "alive\n"

    after = json.loads(cli("inspect", "web"))[0]
    assert after == before
    assert cli("logs", "web") == "serving\n"
    assert cli("exec", "web", "cat", "index.html") == "alive\n"
    assert "httpd -f -p 80" in cli("top", "web")
    taken = cli.call("run", "--rm", "-p", "8080:80", BUSYBOX, "true")
    assert "port is already allocated" in taken.err
    cli("stop", "-t", "1", "web")
    cli("run", "--rm", "-p", "8080:80", BUSYBOX, "true")
    cli("start", "web")
    wait_until(answers(lambda: engine.fetch(8080, path="/index.html"), "alive\n"), "the page after a restart")


def test_an_exit_while_the_daemon_is_down(engine: OwnEngine, cli: Cli) -> None:
    """(c) The next daemon knows how and when it ended, and has all that it wrote."""
    cli("run", "-d", "--name", "quitter", BUSYBOX, "sh", "-c", counting(30, 3))
    cli("run", "-d", "--rm", "--name", "remover", BUSYBOX, "sh", "-c", counting(30, 0))
    pids = [int(cli("inspect", "-f", "{{.State.Pid}}", name)) for name in ("quitter", "remover")]
    engine.kill()
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), "the containers end")
    engine.start()
    wait_until(lambda: status(engine, "quitter") == "exited", "the exit is known")
    state = json.loads(cli("inspect", "-f", "{{json .State}}", "quitter"))
    assert (state["ExitCode"], state["Running"], state["Pid"], state["OOMKilled"]) == (3, False, 0, False)
    assert state["StartedAt"] < state["FinishedAt"]
    assert cli("logs", "quitter") == lines(30)
    wait_until(lambda: engine.api.get("/containers/remover/json").status == 404, "the other is removed")
    # It can be started again.
    cli("start", "quitter")
    assert cli("wait", "quitter") == "3\n"
    assert cli("logs", "quitter") == lines(30) * 2


def test_a_killed_container_while_the_daemon_is_down(engine: OwnEngine, cli: Cli) -> None:
    cli("run", "-d", "--name", "victim", BUSYBOX, "sleep", "1000")
    pid = int(cli("inspect", "-f", "{{.State.Pid}}", "victim"))
    engine.kill()
    os.kill(pid, signal.SIGKILL)
    engine.start()
    wait_until(lambda: status(engine, "victim") == "exited", "the exit is known")
    assert cli("inspect", "-f", "{{.State.ExitCode}}", "victim") == "137\n"


def test_many_crashes_in_a_row(engine: OwnEngine, cli: Cli) -> None:
    client = cli.start("run", "--name", "tough", BUSYBOX, "sh", "-c", counting(600, 4, "0.02"))
    assert client.stdout
    out = b"".join(client.stdout.readline() for _ in range(5))  # by the fifth, start has been answered
    for _ in range(3):
        engine.kill()
        engine.start()
        assert status(engine, "tough") == "running"
    rest, _ = client.communicate(timeout=60)
    assert (out + rest).decode() == lines(600)
    assert client.returncode == 4


def test_images_and_stopped_containers_survive(engine: OwnEngine, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM busybox\nRUN echo built > /file\n")
    built = cli("build", "-q", "-t", "survivor", str(tmp_path))
    cli(
        "create",
        "--name",
        "never",
        "-v",
        "kept:/data",
        "survivor",
        "sh",
        "-c",
        "cat /file; echo x >> /data/x; wc -l < /data/x",
    )
    assert cli("start", "-a", "never") == "built\n1\n"
    engine.kill()
    engine.start()
    assert cli("images", "-q", "--no-trunc", "survivor") == built
    assert cli("start", "-a", "never") == "built\n2\n"


def test_a_crash_in_a_build_leaves_nothing_half_made(engine: OwnEngine, cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM busybox\nRUN echo started; sleep 1000\n")
    client = cli.start("build", "-t", "half", str(tmp_path))
    assert client.stdout
    for line in client.stdout:
        if line == b"started\n":
            break
    engine.kill()
    client.communicate(timeout=20)
    engine.start()
    assert cli("images", "-q", "half") == ""
    # Docker leaves the container of an interrupted step as well; here it must at least not go on running.
    for container in cli("ps", "-q").split():
        cli("rm", "-f", container)
    assert cli("run", "--rm", BUSYBOX, "echo", "well") == "well\n"


def test_a_second_daemon_is_refused(engine: OwnEngine) -> None:
    second = OwnEngine("--data-root", str(engine.data_root))
    try:
        with pytest.raises(RuntimeError, match=r"(?s)ended with 1.*"):
            second.start()
        log = second.log.read_text()
        assert str(engine.data_root) in log
        assert "Traceback" not in log
        assert engine.api.get("/_ping").body == b"OK"
    finally:
        second.close()


def test_sigterm_ends_the_daemon_and_no_container(engine: OwnEngine, cli: Cli) -> None:
    """An upgrade is a restart: dockerd with live-restore does the same."""
    client = cli.start("run", "--name", "going", BUSYBOX, "sh", "-c", counting(150, 6, "0.02"))
    assert client.stdout
    first = b"".join(client.stdout.readline() for _ in range(5))
    assert engine.stop() == 0
    assert not Path(engine.socket).exists()
    engine.start()
    assert status(engine, "going") == "running"
    rest, _ = client.communicate(timeout=60)
    assert (first + rest).decode() == lines(150)
    assert client.returncode == 6


def test_socket_and_pid_file(engine: OwnEngine) -> None:
    mode = os.stat(engine.socket).st_mode
    assert mode & 0o777 == 0o660
    assert int((engine.folder / "pid").read_text()) == engine.pid


@pytest.mark.parametrize("down", [False, True])
def test_a_shim_that_is_killed_takes_its_container_along(engine: OwnEngine, cli: Cli, down: bool) -> None:
    """With and without a daemon that sees it: the container has ended with 137, and can be started again."""
    cli("run", "-d", "--name", "orphan", BUSYBOX, "sleep", "1000")
    pid = int(cli("inspect", "-f", "{{.State.Pid}}", "orphan"))
    stat = Path(f"/proc/{pid}/stat").read_text()
    shim = int(stat.rpartition(")")[2].split()[1])
    if down:
        engine.kill()
    os.kill(shim, signal.SIGKILL)
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), "the container's end")
    if down:
        engine.start()
    wait_until(lambda: status(engine, "orphan") == "exited", "the end is known")
    assert json.loads(cli("inspect", "-f", "{{json .State}}", "orphan"))["ExitCode"] == (255 if down else 137)
    cli("start", "orphan")
    assert status(engine, "orphan") == "running"


def test_a_cgroup_parent_that_has_gone_is_made_again(engine: OwnEngine, cli: Cli) -> None:
    """Someone tidied up while no container ran."""
    engine.remove_cgroups()
    assert engine.cgroups() == []
    limit = "cd /sys/fs/cgroup; cat memory/memory.limit_in_bytes 2>/dev/null || cat memory.max"
    assert cli("run", "--rm", "-m", "64m", BUSYBOX, "sh", "-c", limit) == f"{64 << 20}\n"


def test_a_commit(engine: OwnEngine, cli: Cli) -> None:
    """The container goes on when the next engine is there, and nothing of the image is."""
    api = engine.api
    cli("run", "-d", "--name", "big", BUSYBOX, "sh", "-c", "dd if=/dev/zero of=/big bs=1M count=300; sleep 1000")
    wait_until(lambda: "300+0" in cli.call("logs", "big").err, "it has written")
    images = len(api.get("/images/json", all="1").ok())
    layers = set((engine.data_root / "layers").iterdir())
    client = cli.start("commit", "big", "made:never")
    wait_until(lambda: any((engine.data_root / "layers/.staging").glob("*/layer.tar")), "it is being written")
    assert api.get("/containers/big/json").ok()["State"]["Status"] == "paused"
    engine.kill()
    assert client.wait() != 0
    client.communicate()
    engine.start()
    assert api.get("/containers/big/json").ok()["State"]["Status"] == "running"
    assert cli("exec", "big", "echo", "goes on") == "goes on\n"
    assert len(api.get("/images/json", all="1").ok()) == images
    wait_until(lambda: not any((engine.data_root / "layers/.staging").iterdir()), "the litter is swept")
    assert set((engine.data_root / "layers").iterdir()) == layers

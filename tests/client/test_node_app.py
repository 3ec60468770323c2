"""The second scenario: a Node.js web application, whose build installs a package from the network."""

import json
import re
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli import Cli
from tests.conftest import have
from tests.engine import Engine
from tests.registry import wait_until

pytestmark = [pytest.mark.root, pytest.mark.parity, pytest.mark.timeout(300)]

DOCKERFILE = """\
FROM node:20
WORKDIR /usr/src/app
COPY package*.json ./
RUN npm install
COPY . .
ENV GREETING=hello
EXPOSE 3000
CMD ["node","server.js"]
"""
SERVER = """\
const http = require("http"), ms = require("ms");
const server = http.createServer((request, response) => {
  console.log(`${request.method} ${request.url}`);
  response.end(`VERSION ${process.env.GREETING} ${ms(60000, {long: true})}`);
});
server.listen(3000, () => console.log("listening"));
process.on("SIGTERM", () => { console.log("stopping"); server.closeAllConnections(); process.exit(5); });
"""
PACKAGE = {"name": "web", "version": "1.0.0", "private": True, "dependencies": {"ms": "2.1.3"}}
PORT = 8080


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "web"
    folder.mkdir()
    (folder / "Dockerfile").write_text(DOCKERFILE)
    (folder / "package.json").write_text(json.dumps(PACKAGE))
    (folder / ".dockerignore").write_text("node_modules\n*.log\n")
    (folder / "node_modules").mkdir()
    (folder / "node_modules" / "stale").write_text("from the host")
    (folder / "server.js").write_text(SERVER.replace("VERSION", "one"))
    return folder


def answers(fetch: Callable[[], str], page: str) -> Callable[[], bool]:
    def check() -> bool:
        try:
            return fetch() == page
        except OSError:
            return False

    return check


def steps(built: str) -> list[bool]:
    """For each step, whether it came from the cache."""
    return [" ---> Using cache" in step for step in built.split("\nStep ")[2:]]


def test_node_app(engine: Engine, cli: Cli, folder: Path) -> None:
    have(lambda: engine.provide("node:20"))
    have(engine.connect)
    cli.call("image", "rm", "-f", "web:latest")

    built = cli("build", "-t", "web:latest", ".", cwd=folder, timeout_s=240)
    assert re.search(r"Step 4/8 : RUN npm install\n ---> Running in [0-9a-f]{12}\n", built)
    assert "added 1 package" in built
    assert re.search(r"Successfully built [0-9a-f]{12}\nSuccessfully tagged web:latest\n\Z", built)

    container = cli("run", "-d", "--name", "web", "-p", f"{PORT}:3000", "web:latest").strip()
    assert re.fullmatch(r"[0-9a-f]{64}", container)
    page = "one hello 1 minute"
    wait_until(answers(lambda: engine.fetch(PORT), page), "the page on loopback")
    assert engine.fetch(PORT, host=engine.address) == page

    # logs -f shows what was there, then what comes, and ends with the container.
    follower = cli.start("logs", "-f", "web")
    assert follower.stdout
    seen = [follower.stdout.readline(), follower.stdout.readline()]
    assert seen == [b"listening\n", b"GET /\n"]
    engine.fetch(PORT, path="/more")
    assert follower.stdout.readline() == b"GET /\n"
    assert follower.stdout.readline() == b"GET /more\n"

    with cli.terminal("exec", "-it", "web", "sh") as shell:
        shell.expect("# ")
        shell.type("echo $PPID $((6*7)) $(pwd) $GREETING; ls node_modules; exit 9\n")
        shell.expect(r"\r\n[0-9]+ 42 /usr/src/app hello\r\nms\r\n")
        assert shell.wait() == 9

    top = cli("top", "web").splitlines()
    assert top[0].split() == ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]
    assert len(top) == 2
    assert top[1].endswith(" node server.js")

    document = json.loads(cli("inspect", "web"))[0]
    assert document["Id"] == container
    assert document["State"]["Running"]
    assert document["State"]["Pid"] == int(top[1].split()[1])
    assert document["Config"]["ExposedPorts"] == {"3000/tcp": {}}
    assert document["Config"]["WorkingDir"] == "/usr/src/app"
    assert document["Path"] == "node"
    assert document["Args"] == ["server.js"]
    assert document["NetworkSettings"]["Ports"] == {
        "3000/tcp": [{"HostIp": "0.0.0.0", "HostPort": str(PORT)}, {"HostIp": "::", "HostPort": str(PORT)}]
    }
    assert cli("port", "web") == f"3000/tcp -> 0.0.0.0:{PORT}\n3000/tcp -> [::]:{PORT}\n"

    assert cli("stop", "web") == "web\n"
    assert cli("inspect", "-f", "{{.State.Status}} {{.State.ExitCode}} {{.State.Pid}}", "web") == "exited 5 0\n"
    out, err = follower.communicate(timeout=10)
    assert (follower.returncode, out, err) == (0, b"stopping\n", b"")
    with pytest.raises(OSError, match=r"refused|reset"):
        engine.fetch(PORT)

    assert cli("start", "web") == "web\n"
    wait_until(answers(lambda: engine.fetch(PORT), page), "the page after docker start")
    assert cli("logs", "--tail", "1", "web") == "GET /\n"
    refused = cli.call("rm", "web")
    assert refused.code == 1
    assert (
        'cannot remove container "web": container is running: stop the container before removing or force remove'
        in refused.err
    )
    cli("stop", "web")
    assert cli("rm", "web") == "web\n"
    assert cli("ps", "-aq") == ""


def test_build_cache(engine: Engine, cli: Cli, folder: Path) -> None:
    have(lambda: engine.provide("node:20"))
    have(engine.connect)
    (folder / "Dockerfile").write_text(DOCKERFILE.replace("hello", "cache"))
    cli("build", "-t", "web:cache", ".", cwd=folder, timeout_s=240)
    again = cli("build", "-t", "web:cache", ".", cwd=folder)
    assert steps(again) == [True] * 7
    # A file's time is not its content.
    (folder / "server.js").touch()
    assert steps(cli("build", "-t", "web:cache", ".", cwd=folder)) == [True] * 7
    (folder / "debug.log").write_text("ignored")
    assert steps(cli("build", "-t", "web:cache", ".", cwd=folder)) == [True] * 7

    (folder / "server.js").write_text(SERVER.replace("VERSION", "two"))
    changed = cli("build", "-t", "web:cache", ".", cwd=folder)
    assert steps(changed) == [True, True, True, False, False, False, False]
    cli("run", "-d", "-P", "--name", "cached", "web:cache")
    port = int(cli("port", "cached", "3000/tcp").splitlines()[0].rpartition(":")[2])
    wait_until(answers(lambda: engine.fetch(port), "two cache 1 minute"), "the changed page")


def test_a_published_port_is_reached_from_outside(engine: Engine, cli: Cli, busybox: str) -> None:
    """From another machine's view: through the interface, not from the engine's own host."""
    have(engine.connect)
    cli("run", "-d", "-p", "8081:80", busybox, "sh", "-c", "echo outside > index.html; exec httpd -f -p 80 -h .")

    def fetch() -> str:
        with socket.create_connection((engine.address, 8081), timeout=5) as connection:
            connection.sendall(b"GET /index.html HTTP/1.0\r\n\r\n")
            with connection.makefile("rb") as answer:
                return answer.read().decode().rpartition("\r\n")[2]

    wait_until(answers(fetch, "outside\n"), "the page from outside")

"""The same two scenarios as a program does them, with docker-py.

The client is ``Any`` here: the stubs do not know what docker-py returns when it streams.
"""

import io
import itertools
import tarfile
from pathlib import Path
from typing import Any

import pytest
from docker.errors import APIError, BuildError, ContainerError, ImageNotFound, NotFound

from tests.api import Api
from tests.client.test_hello_world import DOCKERFILE
from tests.client.test_node_app import answers
from tests.conftest import have
from tests.engine import Engine
from tests.registry import wait_until

pytestmark = [
    pytest.mark.root,
    pytest.mark.parity,
    # docker-py leaves sockets of hijacked connections to the collector.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def build(client: Any, folder: Path, dockerfile: str, **options: Any) -> tuple[Any, str]:
    """Build ``dockerfile`` with the files in ``folder``; the image and the log's text."""
    (folder / "Dockerfile").write_text(dockerfile)
    image, log = client.images.build(path=str(folder), rm=True, **options)
    return image, "".join(str(entry.get("stream", "")) for entry in log)


def test_from_env(client: Any) -> None:
    assert client.ping() is True
    assert client.version()["ApiVersion"] >= "1.51"
    assert client.info()["OSType"] == "linux"


def test_hello_world(engine: Engine, client: Any, tmp_path: Path) -> None:
    have(lambda: engine.provide("ubuntu:16.04"))
    (tmp_path / "helloworld").write_text('#!/bin/sh\necho "Hello, World!"\n')
    image, log = build(client, tmp_path, DOCKERFILE, tag="helloworld:py")
    assert "helloworld:py" in image.tags
    assert log.startswith("Step 1/4 : FROM ubuntu:16.04\n")
    assert f"Successfully built {image.id[7:19]}\n" in log
    assert client.containers.run("helloworld:py", remove=True) == b"Hello, World!\n"
    assert client.containers.list(all=True) == []


def test_build_options(client: Any, busybox: str, tmp_path: Path) -> None:
    image, log = build(
        client,
        tmp_path,
        "FROM busybox AS base\nARG WHO=nobody\nRUN echo hello $WHO > /greeting\nFROM base AS wanted\nLABEL a=b\n"
        "CMD cat /greeting\nFROM base AS unwanted\nRUN exit 1\n",
        buildargs={"WHO": "python"},
        target="wanted",
        labels={"c": "d"},
        tag="options:py",
    )
    assert "Step 7/7 : LABEL c=d" in log
    assert "unwanted" not in log
    assert image.labels == {"a": "b", "c": "d"}
    assert client.containers.run(image, remove=True) == b"hello python\n"


def test_a_failing_build_tells_its_log(client: Any, busybox: str, tmp_path: Path) -> None:
    with pytest.raises(BuildError) as raised:
        build(client, tmp_path, "FROM busybox\nRUN echo before; exit 3\n")
    assert raised.value.msg == "The command '/bin/sh -c echo before; exit 3' returned a non-zero code: 3"
    assert any(entry.get("stream") == "before\n" for entry in raised.value.build_log)


def test_pull(engine: Engine, client: Any) -> None:
    have(lambda: engine.provide("busybox:latest"))
    image = client.images.pull("busybox", "latest")
    assert image.tags == ["busybox:latest"]
    assert image.attrs["RepoDigests"][0].startswith("busybox@sha256:")
    with pytest.raises(ImageNotFound):
        client.images.get("busybox:none")


def test_run_attached(client: Any, busybox: str) -> None:
    assert client.containers.run(busybox, ["sh", "-c", "echo out; echo err >&2"]) == b"out\n"
    assert client.containers.run(busybox, "echo words are split") == b"words are split\n"
    both = client.containers.run(busybox, ["sh", "-c", "echo err >&2"], stdout=False, stderr=True, remove=True)
    assert both == b"err\n"
    with pytest.raises(ContainerError) as raised:
        client.containers.run(busybox, ["sh", "-c", "echo why >&2; exit 4"], remove=True)
    assert raised.value.exit_status == 4
    assert raised.value.args[0].endswith("returned non-zero exit status 4: b'why\\n'")


def test_run_with_a_stream(client: Any, busybox: str) -> None:
    lines = client.containers.run(busybox, ["sh", "-c", "for i in 1 2 3; do echo $i; done"], stream=True, remove=True)
    assert b"".join(lines) == b"1\n2\n3\n"


def test_run_detached(client: Any, busybox: str) -> None:
    command = "trap 'echo asked; exit 6' TERM; echo started; while :; do sleep 0.05; done"
    container = client.containers.run(busybox, ["sh", "-c", command], detach=True, name="py", environment={"A": "b"})
    container.reload()
    assert container.status == "running"
    assert container.name == "py"
    assert client.containers.get("py") == container
    assert [one.id for one in client.containers.list(filters={"name": "py"})] == [container.id]

    # A stream of the log is there while the container runs, and ends with it.
    log = container.logs(stream=True, follow=True)
    assert next(log) == b"started\n"
    container.stop(timeout=20)
    assert list(log) == [b"asked\n"]
    assert container.wait() == {"StatusCode": 6}
    assert container.logs() == b"started\nasked\n"
    assert container.logs(tail=1) == b"asked\n"
    assert container.logs(timestamps=True, tail=1).endswith(b"Z asked\n")
    container.start()
    container.kill()
    assert container.wait()["StatusCode"] == 137
    container.remove()
    with pytest.raises(NotFound, match=r"No such container: py"):
        client.containers.get("py")


@pytest.fixture
def sleeper(client: Any, busybox: str) -> Any:
    return client.containers.run(busybox, ["sleep", "1000"], detach=True, init=True)


def test_exec_run(sleeper: Any) -> None:
    assert sleeper.exec_run("echo hello") == (0, b"hello\n")
    assert sleeper.exec_run(["sh", "-c", "echo out; echo err >&2; exit 5"], demux=True) == (5, (b"out\n", b"err\n"))
    code, output = sleeper.exec_run(
        ["sh", "-c", 'echo "$A $(id -u) $(pwd) $1"'], environment={"A": "b"}, user="nobody", workdir="/tmp"
    )
    assert (code, output) == (0, b"b 65534 /tmp \n")
    _, stream = sleeper.exec_run(["sh", "-c", "echo 1; echo 2"], stream=True)
    assert b"".join(stream) == b"1\n2\n"
    _, terminal = sleeper.exec_run(["sh", "-c", "test -t 0 && test -t 1 && echo tty"], tty=True, stdin=True)
    assert terminal == b"tty\r\n"
    code, output = sleeper.exec_run("no-such-program")
    assert code == 127
    assert b'exec: "no-such-program": executable file not found in $PATH' in output


def test_exec_with_input(sleeper: Any, client: Any) -> None:
    made = client.api.exec_create(sleeper.id, ["cat"], stdin=True)
    connection = client.api.exec_start(made["Id"], socket=True)
    raw = connection._sock
    raw.sendall(b"what is typed\n")
    assert read_exactly(raw, 8 + 14) == b"\1\0\0\0\0\0\0\x0ewhat is typed\n"
    raw.shutdown(1)  # the half-closed input reaches the program, which ends
    assert raw.recv(100) == b""
    connection.close()
    assert client.api.exec_inspect(made["Id"])["ExitCode"] == 0


def test_attach_with_input(client: Any, busybox: str) -> None:
    container = client.containers.create(busybox, ["sh", "-c", "read line; echo got $line; exit 8"], stdin_open=True)
    connection = container.attach_socket(params={"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1})
    container.start()
    connection._sock.sendall(b"it\n")
    assert read_exactly(connection._sock, 8 + 7) == b"\1\0\0\0\0\0\0\x07got it\n"
    assert container.wait()["StatusCode"] == 8
    connection.close()


def read_exactly(source: Any, count: int) -> bytes:
    data = b""
    while len(data) < count and (more := source.recv(count - len(data))):
        data += more
    return data


def tar_of(entries: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in entries.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode, entry.uid, entry.mtime = len(content), 0o640, 1234, 1_000_000_000
            archive.addfile(entry, io.BytesIO(content))
    return buffer.getvalue()


@pytest.mark.parametrize("running", [True, False])
def test_put_and_get_archive(client: Any, busybox: str, running: bool) -> None:
    container = client.containers.create(busybox, ["sleep", "1000"], volumes=["/volume"], init=True)
    if running:
        container.start()
    for folder in ("/root", "/volume"):
        assert container.put_archive(folder, tar_of({"sub/file": b"content", "other": b""})) is True
        if running:
            assert (
                container.exec_run(["stat", "-c", "%a %u %s %Y", f"{folder}/sub/file"]).output
                == b"640 1234 7 1000000000\n"
            )
        data, status = container.get_archive(f"{folder}/sub")
        assert (status["name"], status["linkTarget"]) == ("sub", "")
        with tarfile.open(fileobj=io.BytesIO(b"".join(data))) as archive:
            assert sorted(archive.getnames()) == ["sub", "sub/file"]
            content = archive.extractfile("sub/file")
            assert content
            assert content.read() == b"content"
            assert (archive.getmember("sub/file").uid, archive.getmember("sub/file").mode) == (1234, 0o640)
    with pytest.raises(NotFound, match=r"Could not find the file /none in container"):
        container.get_archive("/none")
    with pytest.raises(NotFound):
        container.put_archive("/none", tar_of({"a": b""}))


def test_top(sleeper: Any) -> None:
    top = sleeper.top()
    assert "CMD" in top["Titles"]
    assert any("sleep 1000" in process[-1] for process in top["Processes"])


def test_stats(sleeper: Any) -> None:
    stats = sleeper.stats(stream=False)
    assert stats["memory_stats"]["usage"] > 0
    assert stats["pids_stats"]["current"] >= 1


def test_diff_and_export(client: Any, busybox: str) -> None:
    container = client.containers.create(busybox, ["sh", "-c", "echo changed > /etc/made; rm /etc/shadow"])
    container.start()
    container.wait()
    assert {(one["Path"], one["Kind"]) for one in container.diff()} == {
        ("/etc", 0),
        ("/etc/made", 1),
        ("/etc/shadow", 2),
    }
    with tarfile.open(fileobj=io.BytesIO(b"".join(container.export()))) as archive:
        assert "etc/made" in archive.getnames()
        assert "etc/shadow" not in archive.getnames()


def test_images(client: Any, busybox: str, tmp_path: Path) -> None:
    image = client.images.get(busybox)
    assert image.tag("example.org/copy", "v1") is True
    assert "example.org/copy:v1" in client.images.get(busybox).tags
    saved = b"".join(client.images.get("example.org/copy:v1").save(named="example.org/copy:v1"))
    client.images.remove("example.org/copy:v1")
    with pytest.raises(ImageNotFound):
        client.images.get("example.org/copy:v1")
    loaded = client.images.load(saved)
    assert [one.id for one in loaded] == [image.id]
    assert "example.org/copy:v1" in client.images.get(busybox).tags
    client.images.remove("example.org/copy:v1")
    assert client.images.get(busybox).history()[0]["CreatedBy"].endswith('CMD ["sh"]')


def test_import(client: Any, api: Api) -> None:
    client.api.import_image_from_data(tar_of({"file": b"content"}), repository="imported", tag="py")
    image = client.images.get("imported:py")
    assert image.attrs["Size"] >= 7
    client.images.remove("imported:py")


def test_events(client: Any, busybox: str) -> None:
    stream = client.events(decode=True, filters={"type": "container"})
    client.containers.run(busybox, "true", remove=True, name="watched")
    actions = []
    for event in itertools.islice(stream, 20):
        if event["Actor"]["Attributes"].get("name") == "watched":
            actions.append(event["Action"])
            if event["Action"] == "destroy":
                break
    stream.close()
    assert actions == ["create", "start", "die", "destroy"]


def test_a_published_port(engine: Engine, client: Any, busybox: str) -> None:
    container = client.containers.run(
        busybox, ["sh", "-c", "echo page > /index.html; exec httpd -f -p 80 -h /"], ports={"80/tcp": None}, detach=True
    )
    container.reload()
    port = int(container.ports["80/tcp"][0]["HostPort"])
    assert 1024 < port < 65536
    wait_until(answers(lambda: engine.fetch(port, path="/index.html"), "page\n"), "the page")


def test_errors_carry_the_engines_message(client: Any, busybox: str) -> None:
    client.containers.create(busybox, name="taken")
    with pytest.raises(APIError) as raised:
        client.containers.create(busybox, name="taken")
    assert raised.value.status_code == 409
    assert 'Conflict. The container name "/taken" is already in use by container' in str(raised.value.explanation)
    with pytest.raises(ImageNotFound, match=r"No such image: no-such-image:latest"):
        client.containers.create("no-such-image:latest")

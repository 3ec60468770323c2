"""docker commit: what the image has of its container, what is refused, and what a crash in the middle leaves."""

import io
import json
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.api import Api
from tests.cli import Cli
from tests.engine import Engine, OwnEngine
from tests.registry import wait_until

pytestmark = pytest.mark.root
parity = pytest.mark.parity

WRITER = (
    "echo hi > /tmp/f; ln /tmp/f /tmp/g; mkfifo -m 640 /tmp/p; mknod /tmp/c c 1 3; ln -s /none /tmp/s;"
    " chown 5:6 /tmp/f; chmod 4755 /tmp/f; rm /bin/true; rm -r /home; mkdir /home; touch /home/new;"
    " rm /etc/mtab; echo v > /vol/v"
)


@pytest.fixture
def written(cli: Cli, busybox: str) -> str:
    """A container that has ended and has files of every kind."""
    words = ("-l", "a=1", "-e", "X=1", "-w", "/tmp", "-v", "/vol", "--expose", "90", "--stop-timeout", "3")
    cli("run", "--name", "written", *words, busybox, "sh", "-c", WRITER)
    return "written"


@pytest.fixture(autouse=True)
def _no_images_left(api: Api) -> Iterator[None]:
    kept = {image["Id"] for image in api.get("/images/json", all="1").ok()}
    yield
    for container in api.get("/containers/json", all="1").ok():
        api.delete(f"/containers/{container['Id']}", force="1", v="1")
    for image in api.get("/images/json").ok():
        if image["Id"] not in kept and "busybox:latest" not in image["RepoTags"]:
            api.delete(f"/images/{image['Id']}", force="1")


def saved(api: Api, image: str) -> tuple[dict[str, Any], list[tarfile.TarFile]]:
    """The configuration of an image and its layers, bottom first."""
    archive = tarfile.TarFile(fileobj=io.BytesIO(api.get(f"/images/{image}/get").body))

    def read(name: str) -> bytes:
        file = archive.extractfile(name)
        assert file
        return file.read()

    manifest = json.loads(read("manifest.json"))[0]
    layers = [tarfile.TarFile(fileobj=io.BytesIO(read(name))) for name in manifest["Layers"]]
    return json.loads(read(manifest["Config"])), layers


@parity
def test_the_image(cli: Cli, api: Api, written: str) -> None:
    container = api.get(f"/containers/{written}/json").ok()
    base = api.get("/images/busybox/json").ok()
    image_id = cli("commit", "-a", "me <me@x>", "-m", "a message", written, "made:one").strip()
    image = api.get("/images/made:one/json").ok()
    assert image["Id"] == image_id
    assert (image["Author"], image["Comment"], image["Parent"]) == ("me <me@x>", "a message", base["Id"])
    config = {"Cmd", "Env", "Labels", "User", "WorkingDir", "Volumes", "ExposedPorts", "StopTimeout"}
    for key in config - {"StopTimeout"}:
        assert (image["Config"].get(key) or None) == (container["Config"].get(key) or None), key
    assert image["RootFS"]["Layers"][:-1] == base["RootFS"]["Layers"]

    document, layers = saved(api, "made:one")
    assert document["config"] == document["container_config"] == container["Config"]
    assert document["container"] == container["Id"]
    assert document["history"][-1] == {
        "created": document["created"],
        "created_by": f"sh -c {WRITER}",
        "author": "me <me@x>",
        "comment": "a message",
    }
    newest = api.get("/images/made:one/history").ok()[0]
    assert (newest["Id"], newest["Tags"], newest["Comment"]) == (image_id, ["made:one"], "a message")
    # Content once for both names of the file, and the target of the link.
    assert newest["Size"] == image["Size"] - base["Size"] == len("hi\n") + len("/none")

    entries = {entry.name: entry for entry in layers[-1].getmembers()}
    assert list(entries) == [
        *(
            "bin",
            "bin/.wh.true",
            "etc",
            "etc/.wh.mtab",
            "home",
            "home/.wh..wh..opq",
            "home/new",
            "tmp",
            "tmp/c",
            "tmp/f",
            "tmp/g",
            "tmp/p",
            "tmp/s",
        ),
        "vol",
    ]
    assert (entries["tmp/f"].mode, entries["tmp/f"].uid, entries["tmp/f"].gid) == (0o4755, 5, 6)
    assert (entries["tmp/g"].islnk(), entries["tmp/g"].linkname) == (True, "tmp/f")
    assert (entries["tmp/s"].issym(), entries["tmp/s"].linkname) == (True, "/none")
    assert (entries["tmp/p"].isfifo(), entries["tmp/p"].mode) == (True, 0o640)
    assert (entries["tmp/c"].ischr(), entries["tmp/c"].devmajor, entries["tmp/c"].devminor) == (True, 1, 3)
    assert cli("run", "--rm", "made:one", "sh", "-c", "cat f g; ls /vol /home /bin/true 2>&1; true") == (
        "hi\nhi\nls: /bin/true: No such file or directory\n/home:\nnew\n\n/vol:\n"
    )


@parity
def test_nothing_changed(cli: Cli, api: Api, busybox: str) -> None:
    """A container that has written nothing, or was never started: no layer."""
    base = api.get("/images/busybox/json").ok()
    cli("create", "--name", "fresh", busybox, "true")
    for message in ("created", "ended"):
        cli("commit", "-m", message, "fresh", "made:same")
        image = api.get("/images/made:same/json").ok()
        assert image["RootFS"] == base["RootFS"]
        assert image["Size"] == base["Size"]
        document, _ = saved(api, "made:same")
        assert document["history"][-1]["empty_layer"] is True
        assert (document["history"][-1]["created_by"], document["history"][-1]["comment"]) == ("true", message)
        cli("start", "-a", "fresh")


@parity
@pytest.mark.parametrize(
    ("change", "key", "value"),
    [
        ("ENV A=${X}2 B='b c'", "Env", ["X=1", "PATH", "A=12", "B=b c"]),
        ("ENV X=2", "Env", ["X=2", "PATH"]),
        ("LABEL q=$X", "Labels", {"a": "1", "q": "1"}),
        ('CMD ["x", "y"]', "Cmd", ["x", "y"]),
        ("CMD a b", "Cmd", ["/bin/sh", "-c", "a b"]),
        ("ENTRYPOINT a", "Entrypoint", ["/bin/sh", "-c", "a"]),
        ("EXPOSE 80-81/udp", "ExposedPorts", {"80/udp": {}, "81/udp": {}, "90/tcp": {}}),
        ("VOLUME /v", "Volumes", {"/v": {}, "/vol": {}}),
        ("USER bob", "User", "bob"),
        ("WORKDIR deep/er", "WorkingDir", "/tmp/deep/er"),
        ("STOPSIGNAL 9", "StopSignal", "9"),
        ("HEALTHCHECK --retries=2 CMD true", "Healthcheck", {"Test": ["CMD-SHELL", "true"], "Retries": 2}),
        ("ONBUILD RUN x", "OnBuild", ["RUN x"]),
    ],
)
def test_changes(cli: Cli, api: Api, written: str, change: str, key: str, value: object) -> None:
    cli("commit", "-c", change, written, "made:changed")
    config = api.get("/images/made:changed/json").ok()["Config"]
    if key == "Env":
        config["Env"] = [entry.partition("=")[0] if entry.startswith("PATH=") else entry for entry in config["Env"]]
    assert config[key] == value
    if change.startswith("ENTRYPOINT"):
        assert config.get("Cmd") is None


@parity
def test_a_configuration_in_the_body(api: Api, written: str) -> None:
    """It comes first; what it lacks is the container's."""
    body = {"Cmd": ["zz"], "Env": ["Q=1"], "Labels": {"n": "m"}}
    image = api.post("/commit", body, container=written).ok()["Id"]
    config = api.get(f"/images/{image}/json").ok()["Config"]
    assert config["Env"][:2] == ["Q=1", "X=1"]
    assert (config["Cmd"], config["Labels"], config["WorkingDir"]) == (["zz"], {"a": "1", "n": "m"}, "/tmp")
    nothing: dict[str, str] | None
    for nothing in ({}, None):
        image = api.post("/commit", nothing, container=written).ok()["Id"]
        assert api.get(f"/images/{image}/json").ok()["Config"]["Cmd"][0] == "sh"


@parity
@pytest.mark.parametrize(
    ("query", "status", "message"),
    [
        ({"container": "none"}, 404, "No such container: none"),
        ({}, 400, 'invalid name or ID supplied: ""'),
        ({"repo": "UP"}, 400, "invalid reference format: repository name (library/UP) must be lowercase"),
        ({"repo": "a", "tag": "_/"}, 400, "invalid tag format"),
        ({"repo": "a@sha256:" + 64 * "0"}, 400, "cannot import digest reference"),
        *(
            ({"changes": f"{word} x"}, 400, f"{word} is not a valid change command")
            for word in ("RUN", "FROM", "SHELL")
        ),
        *(
            ({"changes": f"{word} x y"}, 400, f"{word} is not a valid change command")
            for word in ("COPY", "ARG", "WHAT")
        ),
        ({"changes": "ENV A"}, 400, "ENV must have two arguments"),
        ({"changes": "USER"}, 400, "USER requires exactly one argument"),
        ({"changes": "STOPSIGNAL FOO"}, 400, "invalid signal: FOO"),
        ({"changes": " "}, 400, "file with no instructions"),
        ({"changes": "EXPOSE 99999"}, 400, "Invalid containerPort: 99999"),
    ],
)
def test_refused(api: Api, busybox: str, query: dict[str, str], status: int, message: str) -> None:
    if "container" not in query and query:
        query = {"container": api.post("/containers/create", {"Image": busybox}).ok()["Id"]} | query
    before = api.get("/images/json", all="1").ok()
    reply = api.post("/commit", **query)
    assert (reply.status, reply.json()["message"]) == (status, message)
    assert len(api.get("/images/json", all="1").ok()) == len(before)


@parity
def test_events_and_the_pause(cli: Cli, api: Api, busybox: str) -> None:
    container = cli("run", "-d", "--name", "runs", busybox, "sleep", "1000").strip()
    since = str(time.time())

    def told(*flags: str) -> list[str]:
        image = cli("commit", *flags, "-m", "m", "runs", "made:two").strip()
        assert api.get(f"/containers/{container}/json").ok()["State"]["Status"] == state
        events = [
            json.loads(line) for line in api.get("/events", since=since, until=str(time.time())).body.splitlines()
        ]
        named = [event for event in events if image in json.dumps(event)]
        assert [(event["Type"], event["Action"]) for event in named] == [
            ("image", "create"),
            ("image", "tag"),
            ("container", "commit"),
        ]
        assert named[0]["Actor"] == {"ID": image, "Attributes": {"name": image}}
        assert named[1]["Actor"] == {"ID": image, "Attributes": {"name": "made:two"}}
        assert named[2]["Actor"]["Attributes"] == {
            "comment": "m",
            "image": busybox,
            "imageID": image,
            "imageRef": "made:two",
            "name": "runs",
        }
        own = [event for event in events if event["Actor"]["ID"] == container]
        return [event["Action"] for event in own if event["Action"] not in ("start", "create")]

    state = "running"
    assert told() == ["pause", "commit", "unpause"]
    assert told("--pause=false")[3:] == ["commit"]
    cli("pause", "runs")
    state = "paused"
    assert told()[4:] == ["pause", "commit"]
    cli("unpause", "runs")


@parity
def test_image_of_an_image_that_is_gone(cli: Cli, api: Api, busybox: str, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text("FROM busybox\nLABEL gone=1\n")
    cli("build", "-q", "-t", "gone", str(tmp_path))
    container = cli("create", "gone", "true").strip()
    cli("rmi", "-f", "gone")
    reply = api.post("/commit", container=container)
    assert reply.status == 404
    assert reply.json()["message"].startswith("failed to get digest sha256:")
    assert reply.json()["message"].endswith("no such file or directory")


# ------------------------------------------------------------------ our own


def test_a_large_layer_is_unpacked_when_it_is_needed(cli: Cli, engine: Engine, busybox: str) -> None:
    """And is saved, diffed and run as any other."""
    assert isinstance(engine, OwnEngine)
    cli("run", "--name", "large", busybox, "sh", "-c", "dd if=/dev/urandom of=/big bs=1M count=9; rm /bin/true")
    cli("commit", "large", "made:large")
    _, layers = saved(engine.api, "made:large")
    assert layers[-1].getnames() == ["big", "bin", "bin/.wh.true"]
    threads = [
        threading.Thread(target=lambda: seen.append(cli("run", "--rm", "made:large", "md5sum", "/big"))) for _ in "ab"
    ]
    seen: list[str] = []
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == 2 * [cli("run", "--rm", "made:large", "sh", "-c", "md5sum /big; ! ls /bin/true 2>/dev/null")]
    cli("rmi", "made:large")


def test_removed_in_the_middle(cli: Cli, api: Api, busybox: str) -> None:
    """Never an image that lacks files: all of them, or a refusal."""
    cli(
        "run",
        "-d",
        "--name",
        "fleeting",
        busybox,
        "sh",
        "-c",
        "for i in $(seq 3000); do echo $i > /f$i; done; sleep 99",
    )
    wait_until(lambda: cli.call("exec", "fleeting", "ls", "/f3000").code == 0, "it has written")
    client = cli.start("commit", "--pause=false", "fleeting", "made:maybe")
    api.delete("/containers/fleeting", force="1").ok()
    out, err = client.communicate(timeout=60)
    if client.returncode == 0:
        _, layers = saved(api, "made:maybe")
        assert len([name for name in layers[-1].getnames() if name.startswith("f")]) == 3000
    else:
        assert b"being removed" in err or b"No such container" in err, (out, err)

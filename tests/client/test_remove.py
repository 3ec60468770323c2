"""The end of containers: rm, prune, rename, and what becomes of volumes and images."""

import json
from urllib.parse import quote

import pytest

from tests.api import Api
from tests.cli import Cli

pytestmark = [pytest.mark.root, pytest.mark.parity]


def told(cli: Cli, *words: str) -> str:
    done = cli.call(*words)
    assert done.code == 1, done
    return done.err.strip()


def test_rm(cli: Cli, api: Api, busybox: str) -> None:
    container = cli("run", "-d", "--name", "runs", busybox, "sleep", "1000").strip()
    head = 'Error response from daemon: cannot remove container "runs": container is'
    advice = "stop the container before removing or force remove"
    assert told(cli, "rm", "runs") == f"{head} running: {advice}"
    cli("pause", "runs")
    assert told(cli, "rm", "runs") == f"{head} paused and must be unpaused first"
    assert api.delete(f"/containers/{container[:10]}").status == 409
    assert cli("rm", "-f", "runs") == "runs\n"
    assert told(cli, "rm", "runs") == "Error response from daemon: No such container: runs"
    assert api.get(f"/containers/{container}/json").status == 404


def test_volumes(cli: Cli, busybox: str) -> None:
    """Only -v removes anonymous volumes, and never a named one."""

    def volumes() -> list[str]:
        return cli("volume", "ls", "-q").split()

    for flag, left in ((), 2), (("-v",), 1):
        cli("create", "--name", "box", "-v", "/anonymous", "-v", "named:/n", busybox, "true")
        assert len(volumes()) == 2
        cli("rm", *flag, "box")
        assert len(volumes()) == left
        assert "named" in volumes()
        cli("volume", "rm", *volumes())
    assert "volume is in use" in volume_in_use(cli, busybox)


def volume_in_use(cli: Cli, image: str) -> str:
    cli("create", "--name", "user", "-v", "used:/n", image, "true")
    return told(cli, "volume", "rm", "used")


def test_rename(cli: Cli, api: Api, busybox: str) -> None:
    first = cli("create", "--name", "first", busybox).strip()
    second = cli("create", "--name", "second", busybox).strip()
    taken = f'The container name "/second" is already in use by container "{second}".'
    rest = "You have to remove (or rename) that container to be able to reuse that name."
    for name, status, message in (
        ("second", 409, f"Error when allocating new name: Conflict. {taken} {rest}"),
        ("first", 400, "Renaming a container with the same name as its current name"),
        ("", 400, "Neither old nor new names may be empty"),
        ("a b", 400, "Error when allocating new name: Invalid container name (/a b)"),
        ("x", 400, "Error when allocating new name: Invalid container name (/x)"),
    ):
        reply = api.post("/containers/first/rename", name=name)
        assert (reply.status, reply.json()["message"][: len(message)]) == (status, message)
    assert api.post("/containers/none/rename", name="other").status == 404
    cli("rename", "first", "/third")
    assert api.get(f"/containers/{first}/json").ok()["Name"] == "/third"
    assert "No such container: first" in told(cli, "rename", "first", "fourth")
    cli("create", "--name", "first", busybox)


def test_prune(cli: Cli, api: Api, busybox: str) -> None:
    cli("run", "-d", "--name", "runs", "-l", "a=1", busybox, "sleep", "1000")
    cli("create", "--name", "made", "-l", "a=2", busybox)
    cli("run", "--name", "ended", "-l", "b=1", busybox, "sh", "-c", "printf 12345 > /five; ln -s xx /y")

    def prune(**filters: list[str]) -> tuple[int, dict[str, object]]:
        reply = api.post("/containers/prune", filters=filters)
        return reply.status, reply.json()

    nothing = (200, {"ContainersDeleted": None, "SpaceReclaimed": 0})
    assert prune(label=["c"]) == nothing
    assert prune(until=["1h"]) == nothing
    assert prune(until=["2001-01-01"]) == nothing
    assert prune(label=["a=3"]) == nothing
    for bad in ({"foo": ["x"]}, {"until": ["1h", "2h"]}, {"until": ["zz"]}):
        assert prune(**bad)[0] == 400
    assert len(cli("ps", "-aq").split()) == 3
    ended = api.get("/containers/ended/json").ok()["Id"]
    assert prune(**{"label!": ["a"]}) == (200, {"ContainersDeleted": [ended], "SpaceReclaimed": 7})
    made = api.get("/containers/made/json").ok()["Id"]
    assert prune() == (200, {"ContainersDeleted": [made], "SpaceReclaimed": 0})
    assert cli("ps", "-a", "--format", "{{.Names}}") == "runs\n"


def test_images_in_use(cli: Cli, api: Api, busybox: str) -> None:
    cli("tag", busybox, "used:1")
    image = api.get("/images/used:1/json").ok()["Id"]
    runs = cli("run", "-d", "--name", "runs", "used:1", "sleep", "1000").strip()
    short = image.removeprefix("sha256:")[:12]
    for force in ("0", "1"):
        reply = api.delete(f"/images/{quote(image)}", force=force)
        assert reply.status == 409, reply.body
        assert reply.json()["message"].startswith(f"conflict: unable to delete {short} (")
    cli("rmi", "used:1")
    assert cli("ps", "-q", "--no-trunc").strip() == runs
    cli("rm", "-f", "runs")


def test_removed_by_the_engine(cli: Cli, api: Api, busybox: str) -> None:
    """--rm: the container and its anonymous volumes go with its end."""
    cli("run", "--rm", "-v", "/anonymous", "--name", "short", busybox, "true")
    assert api.get("/containers/short/json").status == 404
    assert json.loads(api.get("/volumes").body)["Volumes"] in (None, [])

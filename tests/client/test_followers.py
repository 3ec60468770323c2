"""Clients that wait for, are attached to or follow a container that goes away or starts again meanwhile."""

import select
import subprocess

import pytest

from tests.api import Api
from tests.cli import Cli
from tests.registry import wait_until

pytestmark = [pytest.mark.root, pytest.mark.parity]

BUSY = ("busybox", "sh", "-c", 'trap "exit 7" TERM; trap "echo here" USR1; echo hi; while :; do sleep 0.05; done')


@pytest.fixture(autouse=True)
def image(busybox: str) -> str:
    return busybox


def attach(cli: Cli, api: Api, name: str) -> "subprocess.Popen[bytes]":
    """An attached client, which has seen the container write."""
    process = cli.start("attach", "--no-stdin", name)
    out = process.stdout
    assert out is not None

    def seen() -> bool:
        # What is written before the client has looked once more whether the container runs may not reach it.
        api.post(f"/containers/{name}/kill", signal="USR1").ok()
        return bool(select.select([out], [], [], 0.2)[0])

    wait_until(seen, "attached")
    return process


def follow(cli: Cli, name: str) -> "subprocess.Popen[bytes]":
    process = cli.start("logs", "-f", name)
    assert process.stdout is not None
    assert process.stdout.readline() == b"hi\n"
    return process


def end(process: "subprocess.Popen[bytes]") -> tuple[int, str, str]:
    with process:
        out, err = process.communicate(timeout=20)
    return process.returncode, out.decode().replace("here\n", ""), err.decode()


@pytest.mark.parametrize("options", [(), ("--rm",)], ids=["kept", "--rm"])
@pytest.mark.parametrize(
    ("act", "code"),
    [(("rm", "-f"), 137), (("kill",), 137), (("stop",), 7)],
    ids=["rm -f", "kill", "stop"],
)
def test_a_container_that_goes_away(
    cli: Cli, api: Api, options: tuple[str, ...], act: tuple[str, ...], code: int
) -> None:
    cli("run", "-d", "--name", "gone", *options, *BUSY)
    wait_until(lambda: cli("logs", "gone") == "hi\n", "running")
    attached = attach(cli, api, "gone")
    following = follow(cli, "gone")
    waits = [
        api.open("POST", "/containers/gone/wait", timeout_s=20, condition=condition)
        for condition in ("not-running", "next-exit", "removed")
    ]
    replies = [wait.getresponse() for wait in waits]  # the head: from here on they are served
    assert [reply.status for reply in replies] == [200, 200, 200]
    cli(*act, "gone")
    assert end(attached) == (code, "", "")
    assert end(following) == (0, "", "")
    if not options and act[0] != "rm":
        cli("rm", "gone")
    assert [reply.read() for reply in replies] == [b'{"StatusCode":%d}\n' % code] * 3
    for wait in waits:
        wait.close()


def test_a_container_that_is_restarted_has_ended_for_those_who_follow(cli: Cli, api: Api) -> None:
    cli("run", "-d", "--name", "again", *BUSY)
    wait_until(lambda: cli("logs", "again") == "hi\n", "running")
    attached = attach(cli, api, "again")
    following = follow(cli, "again")
    cli("restart", "again")
    assert end(attached) == (7, "", "")
    assert end(following) == (0, "", "")


def test_a_container_is_followed_under_its_new_name(cli: Cli, api: Api) -> None:
    cli("run", "-d", "--name", "old", *BUSY)
    wait_until(lambda: cli("logs", "old") == "hi\n", "running")
    attached = attach(cli, api, "old")
    following = follow(cli, "old")
    cli("rename", "old", "new")
    cli("rm", "-f", "new")
    assert end(attached) == (137, "", "")
    assert end(following) == (0, "", "")


def test_what_does_not_run_cannot_be_attached_to(cli: Cli) -> None:
    cli("create", "--name", "still", *BUSY)
    refused = cli.call("attach", "still")
    assert (refused.code, refused.err) == (1, "You cannot attach to a stopped container, start it first\n")
    assert cli("wait", "still") == "0\n"
    assert cli("logs", "-f", "still") == ""


def test_one_quick_sample_cannot_be_a_stream(api: Api) -> None:
    api.post("/containers/create", {"Image": "busybox"}, name="sampled").ok()
    refused = [
        api.get("/containers/sampled/stats", **{"one-shot": "1", "stream": "1"}),
        api.get("/containers/sampled/stats", **{"one-shot": "1"}),
    ]
    assert [(reply.status, reply.json()["message"]) for reply in refused] == [
        (400, "cannot have stream=true and one-shot=true")
    ] * 2
    assert Api(api.path, "v1.51").get("/containers/none/stats", **{"one-shot": "1"}).status == 404

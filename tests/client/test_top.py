"""``docker top``: the words of ps(1), and what Docker makes of its table.

``tests/golden/top.json`` has what Docker with procps-ng 4 replies to each command line.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.api import Api
from tests.cli import Cli
from tests.registry import wait_until

pytestmark = [pytest.mark.root, pytest.mark.parity]

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parents[1] / "golden/top.json").read_text())
# What differs from run to run, or from machine to machine.
VOLATILE = {
    *("C", "%CPU", "%CUC", "%CUU", "CP", "STIME", "START", "STARTED", "TIME", "ELAPSED", "RSS", "RSZ", "PSR", "CPUID"),
    *("%MEM", "STACKP", "OOM", "PSS", "USS", "AGID", "MAJFL", "MINFL", "MAJFLT", "MINFLT", "PAGEIN", "WCHAN", "NUMA"),
    *("RBYTES", "WBYTES", "RCHARS", "WCHARS", "ROPS", "WOPS", "WCBYTES", "P", "IPCNS", "MNTNS", "NETNS", "PIDNS"),
    *("UTSNS", "USERNS", "CGROUPNS", "TIMENS", "LUID", "UNIT", "SLICE", "PCAP", "PCAPS", "DRS", "VSZ", "SZ", "SIZE"),
    *("FDS", "OOMADJ", "AGNI", "IGNORED", "BLOCKED", "F", "DSIZ", "TRS", "TSIZ", "NI", "PRI", "LABEL", "CONTEXT"),
}
DIFFERENT = {"IGNORED", "DOCKER", "CGROUP", "CGNAME", "UNIT", "SLICE"}


def start(cli: Cli, api: Api) -> dict[str, str]:
    """Two processes of a user that the host knows by another name; returns what their pids are called."""
    cli(
        "run",
        "-d",
        "--name",
        "two",
        "--hostname",
        "box",
        "--user",
        "1:1",
        "busybox",
        "sh",
        "-c",
        "sleep 1000 & exec sleep 1001",
    )
    both = [["1", "sleep 1001"], ["2", "sleep 1000"]]

    def rows() -> list[list[str]]:
        found: list[list[str]] = api.get("/containers/two/top", ps_args="-eo ppid,pid,args").ok()["Processes"]
        return found

    def settled() -> bool:
        return [row[2] for row in rows()] == [words for _, words in both]

    wait_until(settled, "two processes")
    first, second = rows()
    return {first[0]: "<shim>", first[1]: "<first>", second[1]: "<second>"}


def ask(api: Api, words: str, names: dict[str, str]) -> Any:
    reply = api.get("/containers/two/top", ps_args=words)
    if reply.status == 500 and reply.json()["message"] == "ps: exit status 1":
        return "nothing"  # as below, and nothing of the rest of the machine either
    if reply.status != 200:
        return [reply.status, reply.json()["message"]]
    table = reply.json()
    if table["Processes"] is None:
        return "nothing"
    titles = table["Titles"]

    def steady(title: str, value: str) -> str:
        if title in DIFFERENT or (title in VOLATILE and value not in ("", "-")):
            return "*"
        # Of a forest: how deep the engine itself stands in it is no matter.
        return " ".join(names.get(word, word) for word in value.split(" ") if word != "|")

    return [" ".join(titles), *("  ".join(map(steady, titles, row)) for row in table["Processes"])]


@pytest.fixture
def two(cli: Cli, api: Api, busybox: str) -> dict[str, str]:
    return start(cli, api)


def test_every_way_to_ask_ps(api: Api, two: dict[str, str]) -> None:
    found = {words: ask(api, words, two) for words in GOLDEN}
    assert [(words, reply, GOLDEN[words]) for words, reply in found.items() if reply != GOLDEN[words]] == []


def test_the_client_passes_the_words_on(cli: Cli, two: dict[str, str]) -> None:
    table = [line.split() for line in cli("top", "two", "-o", "pid,comm=NAME").splitlines()]
    assert [[two.get(word, word) for word in line] for line in table] == [
        ["PID", "NAME"],
        ["<first>", "sleep"],
        ["<second>", "sleep"],
    ]
    refused = cli.call("top", "two", "-eo", "pid,nothing")
    assert refused.code == 1
    assert refused.err.strip() == (
        'Error response from daemon: ps: error: unknown user-defined format specifier "nothing"'
    )


def test_only_running_containers_have_processes(cli: Cli, api: Api, two: dict[str, str]) -> None:
    cli("kill", "two")
    container = api.get("/containers/two/json").ok()["Id"]
    assert api.get("/containers/two/top").json() == {"message": f"container {container} is not running"}
    # The words are looked at first.
    refused = api.get("/containers/none/top", ps_args="-o user=PID")
    assert (refused.status, refused.json()["message"]) == (500, 'specifying "user=PID" is not allowed')
    refused = api.get("/containers/none/top", ps_args="-o nothing")
    assert (refused.status, refused.json()["message"]) == (404, "No such container: none")

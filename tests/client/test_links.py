"""Links between containers of the default bridge."""

from typing import Any

import pytest

from tests.api import Api
from tests.cli import Cli
from tests.client.test_networks import joined, run, told

pytestmark = [pytest.mark.root, pytest.mark.parity]


def create(api: Api, name: str, links: list[str], mode: str = "bridge") -> tuple[int, str]:
    body = {"Image": "busybox:latest", "Cmd": ["sleep", "1000"], "HostConfig": {"NetworkMode": mode, "Links": links}}
    return told(api.post("/containers/create", body, name=name))


def environment(cli: Cli, container: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in cli("exec", container, "env").splitlines())


def test_what_a_linked_container_sees(api: Api, cli: Cli, busybox: str) -> None:
    exposed: dict[str, Any] = {"8001/tcp": {}, "8000/tcp": {}, "53/udp": {}}
    run(api, "target", {"bridge": {}}, ExposedPorts=exposed, Env=["A=b", "PATH=/bin"], Hostname="host")
    cli("run", "-d", "--name", "linked", "--link", "target:my-db", "--link", "target", busybox, "sleep", "1000")
    address = joined(api, "target")["bridge"]["IPAddress"]
    seen = {name: value for name, value in environment(cli, "linked").items() if name.startswith("MY_DB")}
    assert seen == {
        "MY_DB_NAME": "/linked/my-db",
        "MY_DB_ENV_A": "b",
        "MY_DB_PORT": f"tcp://{address}:8000",
        "MY_DB_PORT_53_UDP": f"udp://{address}:53",
        "MY_DB_PORT_53_UDP_ADDR": address,
        "MY_DB_PORT_53_UDP_PORT": "53",
        "MY_DB_PORT_53_UDP_PROTO": "udp",
        "MY_DB_PORT_8000_TCP_START": f"tcp://{address}:8000",
        "MY_DB_PORT_8000_TCP_PORT_START": "8000",
        "MY_DB_PORT_8000_TCP_END": f"tcp://{address}:8001",
        "MY_DB_PORT_8000_TCP_PORT_END": "8001",
        **{
            f"MY_DB_PORT_{port}_TCP{suffix}": value
            for port in (8000, 8001)
            for suffix, value in (
                ("", f"tcp://{address}:{port}"),
                ("_ADDR", address),
                ("_PORT", str(port)),
                ("_PROTO", "tcp"),
            )
        },
    }
    hosts = cli("exec", "linked", "cat", "/etc/hosts").splitlines()
    assert hosts[-3:-1] == [f"{address}\tmy-db host target", f"{address}\ttarget host"]
    assert api.get("/containers/linked/json").ok()["HostConfig"]["Links"] == [
        "/target:/linked/my-db",
        "/target:/linked/target",
    ]
    listed = api.get("/containers/json").ok()
    assert [sorted(one["Names"]) for one in listed] == [["/linked"], ["/linked/my-db", "/linked/target", "/target"]]
    assert api.get("/containers/linked/my-db/json").ok()["Name"] == "/target"
    cli("rm", "--link", "linked/my-db")
    assert api.get("/containers/linked/json").ok()["HostConfig"]["Links"] == ["/target:/linked/target"]
    assert told(api.delete("/containers/target", link="1")) == (
        500,
        "Conflict, cannot remove the default link name of the container",
    )


def test_a_target_that_restarts_elsewhere(api: Api, cli: Cli, busybox: str) -> None:
    run(api, "target", {"bridge": {}})
    cli("run", "-d", "--name", "linked", "--link", "target:db", busybox, "sleep", "1000")
    before = joined(api, "target")["bridge"]["IPAddress"]
    api.post("/containers/target/stop", t="0")
    run(api, "squatter", {"bridge": {}})
    assert joined(api, "squatter")["bridge"]["IPAddress"] == before
    api.post("/containers/target/start").ok()
    after = joined(api, "target")["bridge"]["IPAddress"]
    assert after != before
    assert f"{after}\tdb " in cli("exec", "linked", "cat", "/etc/hosts")
    cli("restart", "-t", "0", "linked")
    assert environment(cli, "linked")["DB_NAME"] == "/linked/db"


def test_links_that_cannot_be(api: Api, busybox: str) -> None:
    run(api, "hosted", {}, mode="host")
    nonsense = "This would result in undefined behavior"
    assert [
        create(api, "linked", ["nope:x"]),
        create(api, "linked", ["a:b:c"]),
        create(api, "linked", ["hosted:x"]),
        create(api, "linked", ["hosted:x"], "host"),
        create(api, "linked", ["hosted:x"], "container:hosted"),
    ] == [
        (400, "could not get container for nope: No such container: nope"),
        (500, "bad format for links: a:b:c"),
        (400, f"conflicting options: host type networking can't be used with links. {nonsense}"),
        (400, f"conflicting options: host type networking can't be used with links. {nonsense}"),
        (400, f"conflicting options: container type network can't be used with links. {nonsense}"),
    ]
    body = {"Image": "busybox:latest", "Cmd": ["sleep", "1000"]}
    api.post("/containers/create", body, name="target").ok()
    assert create(api, "linked", ["target:x"]) == (201, "")
    assert told(api.post("/containers/linked/start")) == (
        500,
        "Cannot link to a non running container: /target AS /linked/x",
    )

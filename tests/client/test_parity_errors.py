"""What Docker answers to requests that are wrong, or odd: status and text, request by request."""

import json
import re
from typing import Any

import pytest

from tests.api import Api, Reply

pytestmark = [pytest.mark.root, pytest.mark.parity]

ARM = {"os": "linux", "architecture": "arm64"}


def told(reply: Reply) -> tuple[int, str]:
    """Status and message; the message is empty where the body is no error."""
    return reply.status, reply.json()["message"] if reply.body and reply.status >= 400 else ""


@pytest.fixture
def sleeper(api: Api, busybox: str) -> str:
    """A running container named ``odd``."""
    made = api.post("/containers/create", {"Image": busybox, "Cmd": ["sleep", "1000"]}, name="odd").ok()
    api.post("/containers/odd/start").ok()
    return str(made["Id"])


@pytest.mark.parametrize(
    ("path", "filters", "status", "text"),
    [
        ("/images/json", {"dangling": ["x"]}, 400, "invalid filter 'dangling=[x]'"),
        (
            "/containers/json",
            {"status": ["bogus"]},
            400,
            "invalid filter 'status=bogus': invalid value for state (bogus):"
            " must be one of created, running, paused, restarting, removing, exited, dead",
        ),
        (
            "/containers/json",
            {"exited": ["bogus"]},
            400,
            "invalid filter 'exited=bogus': strconv.Atoi: parsing \"bogus\": invalid syntax",
        ),
        (
            "/containers/json",
            {"health": ["bogus"]},
            400,
            "invalid filter 'health=bogus': invalid value for health (bogus):"
            " must be one of none, starting, healthy, unhealthy",
        ),
        ("/containers/json", {"is-task": ["bogus"]}, 400, "invalid filter 'is-task=[bogus]'"),
        (
            "/containers/json",
            {"publish": ["bogus"]},
            500,
            'error while looking up for publish bogus: strconv.ParseUint: parsing "bogus": invalid syntax',
        ),
        (
            "/containers/json",
            {"expose": ["99999"]},
            500,
            'error while looking up for expose 99999: strconv.ParseUint: parsing "99999": value out of range',
        ),
        (
            "/containers/json",
            {"publish": ["80-70"]},
            500,
            "error while looking up for publish 80-70: Invalid range specified for the Port: 80-70",
        ),
        (
            "/containers/json",
            {"publish": [""]},
            500,
            "error while looking up for publish : Empty string specified for ports.",
        ),
        (
            "/networks",
            {"dangling": ["x"]},
            400,
            'invalid value for filter \'dangling\', must be "true" (or "1"), or "false" (or "0")',
        ),
        ("/networks", {"type": ["x"]}, 500, "invalid filter: 'type'='x'"),
    ],
)
def test_bad_filters(api: Api, path: str, filters: dict[str, Any], status: int, text: str) -> None:
    assert told(api.get(path, filters=filters)) == (status, text)


def test_bad_filters_of_prunes(api: Api) -> None:
    assert told(api.post("/volumes/prune", filters={"all": ["x"]})) == (
        400,
        "invalid filter 'all': strconv.ParseBool: parsing \"x\": invalid syntax",
    )
    assert told(api.post("/build/prune", filters={"foo": ["x"]})) == (
        400,
        "failed to prune build cache: invalid filter 'foo'",
    )


def test_events_take_no_notice_of_unknown_filters(api: Api) -> None:
    assert told(api.get("/events", until="1", filters={"foo": ["x"]})) == (200, "")


def test_nothing_is_a_task(api: Api, sleeper: str) -> None:
    assert api.get("/containers/json", filters={"is-task": ["true"]}).ok() == []


def test_networks_can_be_pruned(api: Api) -> None:
    assert api.post("/networks/prune").ok() == {"NetworksDeleted": None}


@pytest.mark.parametrize("signal", ["99", "-1"])
def test_signals_that_linux_does_not_have(api: Api, sleeper: str, signal: str) -> None:
    assert told(api.post("/containers/odd/kill", signal=signal)) == (
        400,
        f"cannot kill container: odd: the linux daemon does not support signal {signal}",
    )
    assert told(api.post("/containers/odd/stop", signal=signal, t="1")) == (204, "")
    assert told(api.post("/containers/odd/stop", signal="FOO")) == (304, "")


def test_kill_of_what_is_not_there(api: Api) -> None:
    assert told(api.post("/containers/nope/kill")) == (404, "cannot kill container: nope: No such container: nope")


def test_bad_new_names(api: Api, sleeper: str) -> None:
    for name, shown in (("a b", "/a b"), ("/a b", "/a b"), ("/", "/")):
        assert told(api.post("/containers/odd/rename", name=name)) == (
            400,
            f"Error when allocating new name: Invalid container name ({shown}),"
            " only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed",
        )


def test_an_exec_by_an_unknown_user(api: Api, sleeper: str) -> None:
    for user, text in (
        ("foo", "unable to find user foo: no matching entries in passwd file"),
        ("root:foo", "unable to find group foo: no matching entries in group file"),
    ):
        assert told(api.post("/containers/odd/exec", {"Cmd": ["true"], "User": user})) == (400, text)
    assert told(api.post("/containers/odd/exec", {"Cmd": ["true"], "User": "root"})) == (201, "")


def test_images_that_are_not_there(api: Api) -> None:
    assert told(api.get("/images/nope/get")) == (404, "No such image: nope")
    assert told(api.get("/images/get", names="nope")) == (404, "No such image: nope")


def test_a_tag_without_a_name(api: Api, busybox: str) -> None:
    assert told(api.post(f"/images/{busybox}/tag")) == (200, "")


def test_another_platform(api: Api, busybox: str) -> None:
    text = (
        f"image with reference {busybox} was found but its platform (linux/amd64) does not match the specified"
        " platform (linux/arm64)"
    )
    assert told(api.get(f"/images/{busybox}/json", platform=ARM)) == (404, text)
    assert told(api.get(f"/images/{busybox}/history", platform=ARM)) == (404, text)
    # The platform is looked at before the name.
    assert told(api.post("/containers/create", {"Image": busybox}, platform="linux/arm64", name="a b")) == (404, text)
    assert told(api.get(f"/images/{busybox}/get", platform=ARM)) == (
        500,
        "no suitable export target found for platform linux/arm64",
    )


def test_an_image_in_use_keeps_its_only_name(api: Api, busybox: str, sleeper: str) -> None:
    image = api.get(f"/images/{busybox}/json").ok()["Id"]
    assert told(api.delete(f"/images/{busybox}")) == (
        409,
        f'conflict: unable to remove repository reference "{busybox}" (must force) - container {sleeper[:12]} is using'
        f" its referenced image {image[7:19]}",
    )


def test_a_container_of_nothing(api: Api) -> None:
    assert told(api.post("/containers/create", {"HostConfig": {}})) == (
        400,
        "config cannot be empty in order to create a container",
    )


@pytest.mark.parametrize(
    ("options", "status", "text"),
    [
        ({"LogConfig": {"Type": "nope"}}, 400, 'error looking up logging plugin nope: plugin "nope" not found'),
        ({"LogConfig": {"Config": {"foo": "x"}}}, 400, "unknown log opt 'foo' for json-file log driver"),
        ({"SecurityOpt": ["x"]}, 500, 'invalid --security-opt 1: "x"'),
        ({"SecurityOpt": ["x=y"]}, 500, 'invalid --security-opt 2: "x=y"'),
        ({"Binds": ["xx:/a:foo"]}, 500, "invalid mode: foo"),
        ({"Mounts": [{"Type": "x"}]}, 400, 'invalid mount config for type "x": field Target must not be empty'),
        ({"ShmSize": -1}, 400, "SHM size can not be less than 0"),
    ],
)
def test_bad_options(api: Api, busybox: str, options: dict[str, Any], status: int, text: str) -> None:
    assert told(api.post("/containers/create", {"Image": busybox, "HostConfig": options})) == (status, text)


def test_the_host_has_its_own_name(api: Api, busybox: str) -> None:
    asked = {"Image": busybox, "Hostname": "x", "HostConfig": {"UTSMode": "host"}}
    assert told(api.post("/containers/create", asked)) == (400, "conflicting options: hostname and the UTS mode")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"LogConfig": {"Type": "json-file", "Config": {"max-size": "x"}}}, "invalid size: 'x'"),
        (
            {"LogConfig": {"Type": "json-file", "Config": {"max-file": "x"}}},
            'strconv.Atoi: parsing "x": invalid syntax',
        ),
    ],
)
def test_what_is_found_out_at_the_start(api: Api, busybox: str, options: dict[str, Any], text: str) -> None:
    made = api.post("/containers/create", {"Image": busybox, "HostConfig": options}).ok()
    assert told(api.post(f"/containers/{made['Id']}/start")) == (
        500,
        f"failed to create task for container: failed to initialize logging driver: {text}",
    )


def test_the_host_s_domain_cannot_be_set(api: Api, busybox: str) -> None:
    """Not by the container's own configuration, nor by that of the one whose network it shares."""
    named = {"Image": busybox, "Cmd": ["sleep", "1000"], "Domainname": "domain"}
    api.post("/containers/create", named, name="owner").ok()
    api.post("/containers/owner/start").ok()
    shared = {"Image": busybox, "HostConfig": {"UTSMode": "host", "NetworkMode": "container:owner"}}
    for body in (shared, {**named, "HostConfig": {"UTSMode": "host"}}):
        made = api.post("/containers/create", body).ok()
        reply = api.post(f"/containers/{made['Id']}/start")
        assert reply.status == 500
        assert reply.json()["message"].endswith(
            'runc create failed: sysctl "kernel.domainname" is not in a separate kernel namespace'
        )


def test_line_breaks_in_names(api: Api, busybox: str) -> None:
    lines = {
        "Hostname": "a\nb",
        "Domainname": "c\nd",
        "Cmd": ["sh", "-c", "hostname; cat /etc/hostname; tail -n 4 /etc/hosts"],
    }
    api.post("/containers/create", {"Image": busybox, "Tty": True, **lines}, name="lines").ok()
    api.post("/containers/lines/start").ok()
    api.post("/containers/lines/wait").ok()
    address, printed = (
        api.get("/containers/lines/json").ok(),
        api.get("/containers/lines/logs", stdout="1").body.decode(),
    )
    assert address["Config"]["Hostname"] == "a\nb"
    assert re.sub(r"[0-9]+(\.[0-9]+){3}", "IP", printed.replace("\r", "")) == "a\nb\na\nb\nIP\ta\nb.c\nd a\nb\n"
    made = api.post("/containers/create", {"Image": busybox, "User": "a\nb"}, name="stranger").ok()
    reply = api.post(f"/containers/{made['Id']}/start")
    assert told(reply) == (500, "unable to find user a\nb: no matching entries in passwd file")


@pytest.mark.parametrize(("address", "at"), [(" 1.2.3.4", " 1.2.3.4"), ("1.2.3.4 ", " "), ("\t1.2.3.4", "\\t1.2.3.4")])
def test_blanks_around_an_address(api: Api, busybox: str, address: str, at: str) -> None:
    made = api.post("/containers/create", {"Image": busybox, "HostConfig": {"ExtraHosts": [f"a:{address}"]}}).ok()
    reply = api.post(f"/containers/{made['Id']}/start")
    shown = json.dumps(address)
    text = f'could not parse extra host IP {address}: ParseAddr({shown}): unexpected character (at "{at}")'
    assert (reply.status, reply.json()["message"]) == (400, text)


def test_a_tmpfs_with_unknown_options(api: Api, busybox: str) -> None:
    made = api.post("/containers/create", {"Image": busybox, "HostConfig": {"Tmpfs": {"/x": "foo"}}}).ok()
    assert told(api.post(f"/containers/{made['Id']}/start")) == (500, 'invalid tmpfs option "foo"')


def test_a_running_container_is_named_as_the_client_did(api: Api, sleeper: str) -> None:
    assert told(api.delete(f"/containers/{sleeper}")) == (
        409,
        f'cannot remove container "{sleeper}": container is running:'
        " stop the container before removing or force remove",
    )


def test_builds_refuse_what_linux_does_not_have(api: Api) -> None:
    for option, value, text in (
        ("isolation", "foo", 'unsupported isolation: "foo"'),
        ("securityopt", ["foo"], "security options are not supported on linux"),
    ):
        assert told(api.post("/build", b"", **{option: value})) == (400, text)

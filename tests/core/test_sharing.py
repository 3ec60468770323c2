"""Namespaces shared with the host and with other containers."""

import os
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from compatd.core.container import ContainerRecord, MountPoint
from compatd.core.lifecycle import State
from compatd.core.sharing import check_modes, check_network, donors, open_network, open_shared, resolve
from compatd.errors import Conflict, EngineError, InvalidParameter, NotFound, SystemFailure
from compatd.wire.types.containers import ContainerConfig, HostConfig

pytestmark = pytest.mark.unit

ID = "d" * 64


def host(field: str, mode: str) -> HostConfig:
    given: dict[str, Any] = {field: mode}
    return HostConfig(**given)


def record(state: State = State.RUNNING, id: str = ID, **host_config: Any) -> ContainerRecord:
    return ContainerRecord(
        id=id,
        name="donor",
        created_ns=0,
        image_id="",
        image="",
        layers=(),
        config=ContainerConfig(),
        host_config=HostConfig(**host_config),
        networks={},
        state=state,
        pid=os.getpid(),
    )


def finder(*known: ContainerRecord) -> Callable[[str], ContainerRecord]:
    def find(reference: str) -> ContainerRecord:
        for one in known:
            if reference in (one.id, one.name):
                return one
        raise NotFound(f"No such container: {reference}")

    return find


@pytest.mark.parametrize(
    ("field", "mode", "text"),
    [
        ("ipc_mode", "container", "invalid IPC mode: container"),
        ("ipc_mode", "bogus", "invalid IPC mode: bogus"),
        ("pid_mode", "container:", "invalid PID mode: container:"),
        ("pid_mode", "private", "invalid PID mode: private"),
        ("uts_mode", "container:a", "invalid UTS mode: container:a"),
        ("cgroupns_mode", "bogus", "invalid cgroup namespace mode: bogus"),
    ],
)
def test_modes_that_are_none(field: str, mode: str, text: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        check_modes(host(field, mode))
    assert str(caught.value) == text


def test_modes() -> None:
    for field, modes in (
        ("ipc_mode", ("", "none", "private", "shareable", "host", "container:", "container:a")),
        ("pid_mode", ("", "host", "container:a")),
        ("uts_mode", ("", "host")),
        ("userns_mode", ("", "host", "bogus")),
        ("cgroupns_mode", ("", "private", "host")),
    ):
        for mode in modes:
            check_modes(host(field, mode))


def test_names_become_ids() -> None:
    asked = HostConfig(pid_mode="container:donor", ipc_mode="container:donor", network_mode="container:donor")
    found = resolve(asked, finder(record()))
    assert {found.pid_mode, found.ipc_mode, found.network_mode} == {f"container:{ID}"}
    assert donors(found) == [ID, ID, ID]
    assert donors(HostConfig(pid_mode="host", network_mode="bridge")) == []
    with pytest.raises(InvalidParameter, match=r"^No such container: x$"):
        resolve(HostConfig(pid_mode="container:x"), finder())
    assert resolve(HostConfig(network_mode="container:x"), finder()).network_mode == "container:x"


def test_labels_are_off_where_much_is_shared() -> None:
    for shared in (HostConfig(privileged=True), HostConfig(pid_mode="host"), HostConfig(ipc_mode="host")):
        assert resolve(shared, finder()).security_opt == ["label=disable"]
    assert resolve(HostConfig(privileged=True, security_opt=["label=type:x"]), finder()).security_opt == [
        "label=type:x"
    ]
    assert resolve(HostConfig(uts_mode="host"), finder()).security_opt is None


@pytest.mark.parametrize(
    ("host_config", "config", "what"),
    [
        ({}, {"hostname": "a"}, "hostname and the network mode"),
        ({"dns": ["1.1.1.1"]}, {}, "dns and the network mode"),
        ({"extra_hosts": ["a:1.1.1.1"]}, {}, "custom host-to-IP mapping and the network mode"),
        ({"publish_all_ports": True}, {}, "port publishing and the container type network mode"),
        ({}, {"exposed_ports": {"80/tcp": {}}}, "port exposing and the container type network mode"),
    ],
)
def test_what_a_shared_network_excludes(host_config: dict[str, Any], config: dict[str, Any], what: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        check_network(HostConfig(network_mode="container:a", **host_config), ContainerConfig(**config))
    assert str(caught.value) == f"conflicting options: {what}"
    check_network(HostConfig(network_mode="bridge", **host_config), ContainerConfig(**config))
    with pytest.raises(InvalidParameter, match=r"invalid container format container:<name.id>"):
        check_network(HostConfig(network_mode="container:"), ContainerConfig())


@pytest.mark.parametrize(
    ("donor", "kind", "text"),
    [
        (record(State.EXITED), Conflict, f"container {ID} is not running"),
        (record(State.RESTARTING), Conflict, f"Container {ID} is restarting, wait until the container is running"),
        (record(ipc_mode="private"), InvalidParameter, f"container {ID}: non-shareable IPC (hint:"),
        (record(ipc_mode="shareable", tmpfs={"/dev/shm": ""}), InvalidParameter, f"container {ID}: non-shareable IPC"),
        # A process id that is somebody else's by now, as this test's own is.
        (record(ipc_mode="shareable"), Conflict, f"container {ID} is not running"),
    ],
)
def test_memory_that_cannot_be_shared(donor: ContainerRecord, kind: type[EngineError], text: str) -> None:
    fds: list[int] = []
    with pytest.raises(kind) as caught:
        open_shared(record(id="e" * 64, ipc_mode=f"container:{ID}"), finder(donor), fds)
    assert str(caught.value).startswith(f"failed to join IPC namespace: {text}")
    assert fds == []


def test_own_mounts_of_shared_memory_are_not_shared() -> None:
    own = MountPoint(type="bind", source="/x", target="/dev/shm")
    donor = msgspec.structs.replace(record(ipc_mode="shareable"), mounts=(own,))
    with pytest.raises(InvalidParameter, match=r"non-shareable IPC"):
        open_shared(record(id="e" * 64, ipc_mode=f"container:{ID}"), finder(donor), [])


def test_processes_and_networks_that_cannot_be_shared() -> None:
    joiner = record(id="e" * 64, pid_mode=f"container:{ID}", network_mode=f"container:{ID}")
    for donor in (record(State.CREATED), record()):
        with pytest.raises(SystemFailure, match=r"^failed to join PID namespace: container d+ is not running$"):
            open_shared(joiner, finder(donor), [])
    with pytest.raises(SystemFailure, match=r"^joining network namespace of container: No such container: d+$"):
        open_network(joiner, finder())
    with pytest.raises(Conflict, match=r"non running container: container donor is created$"):
        open_network(joiner, finder(record(State.CREATED)))
    with pytest.raises(SystemFailure, match=r"^cannot join own network namespace$"):
        open_network(record(network_mode=f"container:{ID}"), finder(record()))

"""Requests and replies of older API versions. The differences were seen on Docker 28.5.2."""

from typing import Any, cast

import pytest

from compatd.wire.operations import OPERATIONS
from compatd.wire.types.containers import (
    BindOptions,
    ContainerCreateRequest,
    HostConfig,
    Mount,
    TmpfsOptions,
    VolumeOptions,
)
from compatd.wire.types.images import GraphDriver, ImageInspect, ImageSummary
from compatd.wire.types.system import FirewallInfo, Info, RegistryConfig, Runtime
from compatd.wire.versions import DOWNGRADES, MAXIMUM, UPGRADES, downgrade, upgrade

pytestmark = pytest.mark.unit

SUMMARY = ImageSummary(containers=2, created=1, id="sha256:0", size=7, repo_tags=["a:1"], repo_digests=[])


def plain(operation: str, version: tuple[int, int], value: object) -> Any:
    return cast(Any, downgrade(operation, version, value))


def test_every_change_names_an_operation() -> None:
    known = {operation.id for operation in OPERATIONS}
    assert {change.operation for change in DOWNGRADES} | {change.operation for change in UPGRADES} <= known


def test_the_newest_version_gets_the_value_itself() -> None:
    assert downgrade("ImageList", MAXIMUM, [SUMMARY]) == [SUMMARY]


def test_image_list() -> None:
    assert plain("ImageList", (1, 50), [SUMMARY])[0]["Containers"] == -1
    assert "VirtualSize" not in plain("ImageList", (1, 44), [SUMMARY])[0]
    old = plain("ImageList", (1, 42), [SUMMARY, ImageSummary(created=1, id="sha256:1", size=1, repo_tags=[])])
    assert old[0]["VirtualSize"] == 7
    assert old[0]["RepoDigests"] is None
    assert (old[1]["RepoTags"], old[1]["RepoDigests"]) == (["<none>:<none>"], ["<none>@<none>"])


def test_image_inspect() -> None:
    image = ImageInspect(id="sha256:0", size=9, graph_driver=GraphDriver(name="overlay2"))
    assert "Hostname" not in plain("ImageInspect", (1, 51), image).config.working_dir
    assert plain("ImageInspect", (1, 49), image)["Config"]["Hostname"] == ""
    old = plain("ImageInspect", (1, 43), image)
    assert old["VirtualSize"] == 9
    assert old["ContainerConfig"]["Cmd"] is None


def test_info() -> None:
    info = Info(
        firewall_backend=FirewallInfo(driver="nftables"),
        registry_config=RegistryConfig(),
        runtimes={"runc": Runtime(path="x", status={"a": "b"})},
        security_options=["name=seccomp,profile=builtin"],
    )
    newer = plain("SystemInfo", (1, 49), info)
    assert newer["FirewallBackend"] == {"Driver": "nftables"}
    assert newer["BridgeNfIptables"] is False
    oldest = plain("SystemInfo", (1, 24), info)
    assert "FirewallBackend" not in oldest
    assert oldest["RegistryConfig"]["AllowNondistributableArtifactsCIDRs"] is None
    assert oldest["Runtimes"] == {"runc": {"path": "x"}}
    assert oldest["SecurityOptions"] == ["seccomp"]
    assert oldest["KernelMemory"] is True


def asked(**host: Any) -> ContainerCreateRequest:
    return ContainerCreateRequest(image="a", host_config=HostConfig(**host))


def upgraded(version: tuple[int, int], request: ContainerCreateRequest) -> HostConfig:
    config = upgrade("ContainerCreate", version, request).host_config
    assert config is not None
    return config


def test_defaults_that_were_others() -> None:
    assert upgraded((1, 39), ContainerCreateRequest(image="a")).ipc_mode == "shareable"
    assert upgraded((1, 40), asked()).ipc_mode == ""
    assert upgraded((1, 40), asked()).cgroupns_mode == "host"
    assert upgraded((1, 40), asked(cgroupns_mode="private")).cgroupns_mode == "private"


def test_fields_that_did_not_exist() -> None:
    assert upgraded((1, 24), asked(auto_remove=True)).auto_remove is False
    assert upgraded((1, 39), asked(kernel_memory_tcp=5)).kernel_memory_tcp == 0
    assert upgraded((1, 41), asked(console_size=(1, 2))).console_size == (0, 0)
    assert upgraded((1, 42), asked(annotations={"a": "b"})).annotations == {}
    assert upgraded((1, 51), asked(annotations={"a": "b"})).annotations == {"a": "b"}


def test_mounts() -> None:
    mount = Mount(
        type="bind",
        source="/a",
        target="/b",
        read_only=True,
        bind_options=BindOptions(create_mountpoint=True, non_recursive=True),
        tmpfs_options=TmpfsOptions(size_bytes=1),
    )
    volume = Mount(type="volume", target="/c", volume_options=VolumeOptions(subpath="d", no_copy=True))
    old = upgraded((1, 39), asked(mounts=[mount, volume])).mounts
    assert old[0].tmpfs_options is None
    assert old[0].bind_options == BindOptions()
    assert old[1].volume_options == VolumeOptions(subpath="d", no_copy=True)
    assert upgraded((1, 51), asked(mounts=[mount, volume])).mounts == [mount, volume]

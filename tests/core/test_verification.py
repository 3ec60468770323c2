"""What is checked of a create request before anything else, and in which words it is refused."""

import posixpath
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compatd.core import verification
from compatd.errors import EngineError
from compatd.runtime.host import Host
from compatd.wire.types.containers import ContainerConfig, HostConfig, PortBinding, RestartPolicy
from tests.runtime.hosts import FULL_SUPPORT, UNIFIED, make_host

pytestmark = pytest.mark.unit

V2_LIKE = make_host(
    cgroup=UNIFIED,
    cgroup_support=FULL_SUPPORT.__class__(
        **{
            name: name not in ("cpu_realtime", "memory_swappiness", "oom_kill_disable")
            for name in FULL_SUPPORT.__slots__
        }
    ),
)


def verify(config: ContainerConfig | None = None, host: Host | None = None, **options: Any) -> list[str]:
    """The warnings."""
    config, host_config, host = config or ContainerConfig(), HostConfig(**options), host or make_host()
    verification.check_request(config, host_config, host)
    verification.check_config(config)
    return verification.check_host_config(host_config, host)[1]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"shm_size": -1}, "SHM size can not be less than 0"),
        ({"oom_score_adj": -2000}, "Invalid value -2000, range for oom score adj is [-1000, 1000]"),
        ({"runtime": "foo"}, "unknown or invalid runtime name: foo"),
        ({"runtime": "io.containerd.foo"}, "unknown or invalid runtime name: io.containerd.foo"),
        ({"ipc_mode": "foo"}, "invalid IPC mode: foo"),
        ({"pid_mode": "foo"}, "invalid PID mode: foo"),
        ({"uts_mode": "foo"}, "invalid UTS mode: foo"),
        ({"cgroupns_mode": "foo"}, "invalid cgroup namespace mode: foo"),
        ({"extra_hosts": ["bad"]}, 'bad format for add-host: "bad"'),
        ({"extra_hosts": ["a:fe80::1%eth0"]}, 'invalid IP address in add-host: "fe80::1%eth0"'),
        (
            {"restart_policy": RestartPolicy(name="bogus")},
            "invalid restart policy: unknown policy 'bogus';"
            " use one of 'no', 'always', 'on-failure', or 'unless-stopped'",
        ),
        (
            {"auto_remove": True, "restart_policy": RestartPolicy(name="always")},
            "can't create 'AutoRemove' container with restart policy",
        ),
        ({"port_bindings": {"80/tcp": [PortBinding(host_port="abc")]}}, 'invalid port specification: "abc"'),
        ({"cap_add": ["FOO"]}, 'invalid CapAdd: unknown capability: "CAP_FOO"'),
        ({"isolation": "hyperv"}, "invalid isolation (hyperv): linux only supports 'default'"),
        (
            {"annotations": {"": "x"}},
            "invalid Annotations: the empty string is not permitted as an annotation key",
        ),
        ({"cpu_shares": -1}, "invalid CPU shares (-1): value must be a positive integer"),
        (
            {"cpu_realtime_period": 1, "cpu_realtime_runtime": 2},
            "cpu real-time runtime cannot be higher than cpu real-time period",
        ),
        ({"network_mode": "container:"}, "invalid network mode: invalid container format container:<name|id>"),
        ({"network_mode": "container:x", "dns": ["1.1.1.1"]}, "conflicting options: dns and the network mode"),
        ({"kernel_memory": 1}, "Minimum kernel memory limit allowed is 6MB"),
    ],
)
def test_bad_options_have_dockers_words(options: dict[str, Any], text: str) -> None:
    with pytest.raises(EngineError) as caught:
        verify(**options)
    assert str(caught.value) == text


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (ContainerConfig(env=["=x"]), "invalid environment variable: =x"),
        (ContainerConfig(working_dir="rel"), "the working directory 'rel' is invalid, it needs to be an absolute path"),
        (ContainerConfig(stop_signal="foo"), "invalid signal: foo"),
    ],
)
def test_bad_configurations_have_dockers_words(config: ContainerConfig, text: str) -> None:
    with pytest.raises(EngineError) as caught:
        verify(config)
    assert str(caught.value) == text


def test_the_first_mistake_is_told() -> None:
    """Docker's order: contradictions, then the configuration, then the host's, limits before namespaces."""
    wrong: dict[str, Any] = {"isolation": "x", "shm_size": -1, "extra_hosts": ["x"], "memory": 1, "ipc_mode": "x"}
    told: list[str] = []
    config = ContainerConfig(stop_signal="foo")
    while wrong:
        with pytest.raises(EngineError) as caught:
            verify(config, **wrong)
        told.append(str(caught.value).split()[-1])
        if "signal" in str(caught.value):
            config = ContainerConfig()
            continue
        wrong.pop(
            next(iter(key for key in ("isolation", "extra_hosts", "memory", "ipc_mode", "shm_size") if key in wrong))
        )
    assert told == ["'default'", "foo", '"x"', "6MB", "x", "0"]


def test_realtime_limits_need_version_1() -> None:
    with pytest.raises(EngineError, match="kernel does not support CPU real-time scheduler"):
        verify(host=V2_LIKE, cpu_realtime_period=1000)
    assert verify(cpu_realtime_period=1000) == []


def test_warnings() -> None:
    assert verify(cpu_percent=5, network_mode="host", port_bindings={"80/tcp": []}) == [
        "linux does not support CPU percent. Percent discarded.",
        "Published ports are discarded when using host network mode",
    ]


@given(st.text(st.sampled_from("/.ab"), max_size=12).map(lambda text: f"/{text}"))
def test_working_directories_are_normalised(path: str) -> None:
    checked = verification.check_config(ContainerConfig(working_dir=path)).working_dir
    assert checked == "/" + posixpath.normpath(path).lstrip("/")
    assert ".." not in checked.split("/")
    assert verification.check_config(ContainerConfig(working_dir=checked)).working_dir == checked


@pytest.mark.parametrize(
    ("option", "text"),
    [
        ("size", "--storage-opt is supported only for overlay over xfs with 'pquota' mount option"),
        ("foo", "Unknown option foo"),
    ],
)
def test_writable_layers_have_no_quota(option: str, text: str) -> None:
    with pytest.raises(EngineError) as caught:
        verification.check_storage(HostConfig(storage_opt={option: "1g"}))
    assert str(caught.value) == text
    verification.check_storage(HostConfig())

"""What a create request becomes, and what of it is refused in which words."""

from typing import Any

import pytest

from compatd.core.creation import complete_config, complete_host_config
from compatd.core.defaults import Defaults
from compatd.errors import EngineError, InvalidParameter
from compatd.images.manifest import Healthcheck, ImageConfig, RunConfig
from compatd.wire.types.containers import (
    ContainerConfig,
    HostConfig,
    LogConfig,
    RestartPolicy,
)
from compatd.wire.types.images import HealthConfig

pytestmark = pytest.mark.unit

ID = "0123456789ab" + "0" * 52
LOG = LogConfig(type="json-file", config={})


def complete(config: ContainerConfig, **image: Any) -> ContainerConfig:
    return complete_config(config, ImageConfig(config=RunConfig(**image)), ID, None)


def host(**options: Any) -> HostConfig:
    return complete_host_config(HostConfig(**options), cgroup_version=1, defaults=Defaults(log=LOG))


def test_the_image_gives_defaults() -> None:
    merged = complete(
        ContainerConfig(env=["A=own"], labels={"x": "own"}),
        cmd=["sh"],
        env=["A=image", "PATH=/bin"],
        labels={"x": "image", "y": "image"},
        user="nobody",
        working_dir="/srv",
        stop_signal="SIGUSR1",
    )
    assert merged.cmd == ["sh"]
    assert merged.env == ["A=own", "PATH=/bin"]
    assert merged.labels == {"x": "own", "y": "image"}
    assert (merged.user, merged.working_dir, merged.stop_signal) == ("nobody", "/srv", "SIGUSR1")
    assert merged.hostname == ID[:12]


def test_an_entrypoint_of_ones_own_drops_the_images_command() -> None:
    merged = complete(ContainerConfig(entrypoint=["echo"]), cmd=["sh"], entrypoint=["/init"])
    assert (merged.entrypoint, merged.cmd) == (["echo"], None)


def test_a_command_keeps_the_images_entrypoint() -> None:
    merged = complete(ContainerConfig(cmd=["ls"]), cmd=["sh"], entrypoint=["/init"])
    assert (merged.entrypoint, merged.cmd) == (["/init"], ["ls"])


def test_an_empty_entrypoint_resets_the_images() -> None:
    assert complete(ContainerConfig(entrypoint=[""], cmd=["ls"]), entrypoint=["/init"]).entrypoint is None


def test_healthchecks_merge_field_by_field() -> None:
    merged = complete(
        ContainerConfig(healthcheck=HealthConfig(retries=7)),
        cmd=["sh"],
        healthcheck=Healthcheck(test=["CMD", "true"], interval=10**9),
    )
    assert merged.healthcheck == HealthConfig(test=["CMD", "true"], interval=10**9, retries=7)


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (ContainerConfig(), "no command specified"),
    ],
)
def test_bad_configurations_have_dockers_words(config: ContainerConfig, text: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        complete(config)
    assert str(caught.value) == text


def test_host_defaults() -> None:
    config = host()
    assert (config.network_mode, config.ipc_mode, config.cgroupns_mode) == ("bridge", "private", "host")
    assert (config.shm_size, config.restart_policy.name, config.log_config.type) == (64 << 20, "no", "json-file")
    assert complete_host_config(HostConfig(), cgroup_version=2, defaults=Defaults(log=LOG)).cgroupns_mode == "private"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"restart_policy": RestartPolicy(name="bogus")},
            "invalid restart policy: unknown policy 'bogus';"
            " use one of 'no', 'always', 'on-failure', or 'unless-stopped'",
        ),
        (
            {"log_config": LogConfig(type="foo", config={})},
            'error looking up logging plugin foo: plugin "foo" not found',
        ),
        (
            {"log_config": LogConfig(config={"x": "1"})},
            "unknown log opt 'x' for json-file log driver",
        ),
        ({"security_opt": ["x=y"]}, 'invalid --security-opt 2: "x=y"'),
        (
            {"log_config": LogConfig(type="json-file", config={"x": "1"})},
            "unknown log opt 'x' for json-file log driver",
        ),
    ],
)
def test_bad_host_options_have_dockers_words(options: dict[str, Any], text: str) -> None:
    with pytest.raises(EngineError) as caught:
        host(**options)
    assert str(caught.value) == text

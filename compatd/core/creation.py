"""From a create request to a record: defaults, what the image gives, and every check that needs nothing but both."""

from typing import Any

import msgspec

from compatd.core.defaults import Defaults, complete
from compatd.core.logs import check_log
from compatd.core.translation import read_security
from compatd.errors import InvalidParameter
from compatd.images.manifest import Healthcheck, ImageConfig
from compatd.wire.types.containers import (
    ContainerConfig,
    HostConfig,
    RestartPolicy,
)
from compatd.wire.types.images import HealthConfig

RESTART_POLICIES = ("no", "always", "on-failure", "unless-stopped")


def merge_image_config(config: ContainerConfig, image: ImageConfig) -> ContainerConfig:
    """``config`` with what the image sets and the user does not (moby daemon/commit.go, merge)."""
    given = image.config
    if given is None:
        return config
    changes: dict[str, Any] = {}
    if not config.user:
        changes["user"] = given.user
    changes["exposed_ports"] = {**(given.exposed_ports or {}), **(config.exposed_ports or {})}
    env = list(config.env or ())
    names = {entry.partition("=")[0] for entry in env}
    changes["env"] = env + [entry for entry in given.env or () if entry.partition("=")[0] not in names]
    changes["labels"] = {**(given.labels or {}), **(config.labels or {})}
    if not config.entrypoint:
        if not config.cmd:
            changes["cmd"] = given.cmd
        if config.entrypoint is None:
            changes["entrypoint"] = given.entrypoint
    if given.healthcheck is not None:
        changes["healthcheck"] = _merge_healthcheck(config.healthcheck, given.healthcheck)
    if not config.working_dir:
        changes["working_dir"] = given.working_dir
    changes["volumes"] = {**(given.volumes or {}), **config.volumes} if config.volumes else given.volumes
    if not config.stop_signal:
        changes["stop_signal"] = given.stop_signal
    if not config.shell:
        changes["shell"] = given.shell or []
    return msgspec.structs.replace(config, **changes)


def _merge_healthcheck(own: HealthConfig | None, given: Healthcheck) -> HealthConfig:
    own = own or HealthConfig()
    return HealthConfig(
        test=own.test or given.test or [],
        interval=own.interval or given.interval,
        timeout=own.timeout or given.timeout,
        start_period=own.start_period or given.start_period,
        start_interval=own.start_interval or given.start_interval,
        retries=own.retries or given.retries,
    )


def complete_config(
    config: ContainerConfig, image: ImageConfig, container_id: str, hostname: str | None
) -> ContainerConfig:
    """The configuration that is stored: merged, checked, with its hostname. ``InvalidParameter`` in Docker's words.

    ``hostname``: the host's, where the container shares its network namespace.
    """
    merged = merge_image_config(config, image)
    # --entrypoint "" reaches us as [""]: it resets the image's entrypoint.
    entrypoint = None if merged.entrypoint == [""] else merged.entrypoint
    if not entrypoint and not merged.cmd:
        raise InvalidParameter("no command specified")
    for text in (merged.hostname, merged.domainname):
        if "\0" in text:
            raise InvalidParameter(f"invalid value: {text!r}")
    _check_healthcheck(merged.healthcheck)
    name = merged.hostname or hostname or container_id[:12]
    return msgspec.structs.replace(merged, hostname=name, entrypoint=entrypoint)


def _check_healthcheck(health: HealthConfig | None) -> None:
    if health is None:
        return
    for name, value in (
        ("Interval", health.interval),
        ("Timeout", health.timeout),
        ("StartPeriod", health.start_period),
        ("StartInterval", health.start_interval),
    ):
        if value and value < 1_000_000:
            raise InvalidParameter(f"{name} in Healthcheck cannot be less than 1ms")
    if health.retries < 0:
        raise InvalidParameter("Retries in Healthcheck cannot be negative")


def complete_host_config(host_config: HostConfig, *, cgroup_version: int, defaults: Defaults) -> HostConfig:
    """The host configuration that is stored. ``InvalidParameter`` in Docker's words."""
    read_security(host_config.security_opt or ())
    log_config = check_log(host_config.log_config, defaults.log)
    return msgspec.structs.replace(
        complete(host_config, defaults, cgroup_version=cgroup_version),
        network_mode="bridge" if host_config.network_mode in ("", "default") else host_config.network_mode,
        restart_policy=check_restart_policy(host_config.restart_policy),
        log_config=log_config,
        runtime=host_config.runtime or "runc",
        oom_kill_disable=bool(host_config.oom_kill_disable),
    )


def check_restart_policy(policy: RestartPolicy) -> RestartPolicy:
    """The policy as it is stored. ``InvalidParameter`` in the words of moby's container.ValidateRestartPolicy."""
    if not policy.name:  # with any count, as clients have always sent it
        return RestartPolicy(name="no")
    if policy.name not in RESTART_POLICIES:
        raise InvalidParameter(
            f"invalid restart policy: unknown policy '{policy.name}';"
            " use one of 'no', 'always', 'on-failure', or 'unless-stopped'"
        )
    if policy.maximum_retry_count and policy.name != "on-failure":
        negative = " and cannot be negative" if policy.maximum_retry_count < 0 else ""
        raise InvalidParameter(
            f"invalid restart policy: maximum retry count can only be used with 'on-failure'{negative}"
        )
    if policy.maximum_retry_count < 0:
        raise InvalidParameter("invalid restart policy: maximum retry count cannot be negative")
    return policy

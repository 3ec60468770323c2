"""The parameters of operations that have many, decoded: values between the routes and the services behind them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from compatd.wire.types.system import AuthConfig

# Every key with the values it was given; the service checks that it knows the keys.
Filters = Mapping[str, Sequence[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class PullParameters:
    """What to pull: ``image`` with or without its tag or digest, which ``tag`` may give as well."""

    image: str
    tag: str = ""
    platform: str = ""  # os/arch/variant
    auth: AuthConfig | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportParameters:
    """How to make an image of a file system; ``source`` is ``-`` for the request's body, otherwise a URL."""

    source: str
    repo: str = ""
    tag: str = ""
    message: str = ""
    changes: Sequence[str] = ()
    platform: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitParameters:
    """How to make an image of a container; ``pause``: freeze it while its files are read."""

    container: str
    repo: str = ""
    tag: str = ""
    author: str = ""
    comment: str = ""
    pause: bool = True
    changes: Sequence[str] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildParameters:
    """How to build. Sizes in bytes, quota and period in microseconds; ``None`` in ``args`` is an argument
    whose value comes from the client's environment and is not set there."""

    dockerfile: str = ""
    tags: Sequence[str] = ()
    remote: str = ""
    quiet: bool = False
    no_cache: bool = False
    cache_from: Sequence[str] = ()
    pull: bool = False
    remove: bool = True
    force_remove: bool = False
    memory: int = 0
    memory_swap: int = 0
    cpu_shares: int = 0
    cpu_period: int = 0
    cpu_quota: int = 0
    cpuset_cpus: str = ""
    cpuset_mems: str = ""
    cgroup_parent: str = ""
    shm_size: int = 0
    ulimits: Sequence[tuple[str, int, int]] = ()  # (name, soft, hard)
    args: Mapping[str, str | None] = field(default_factory=dict[str, str | None])
    labels: Mapping[str, str] = field(default_factory=dict[str, str])
    network_mode: str = ""
    extra_hosts: Sequence[str] = ()
    security_opt: Sequence[str] = ()
    isolation: str = ""
    squash: bool = False
    platform: str = ""
    target: str = ""
    outputs: str = ""
    version: str = ""  # "" or "1": classic; "2": BuildKit
    auths: Mapping[str, AuthConfig] = field(default_factory=dict[str, AuthConfig])


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildPruneParameters:
    """How much of the build cache may stay, in bytes; 0: no such limit."""

    all: bool = False
    filters: Filters = field(default_factory=dict[str, Sequence[str]])
    reserved_space: int = 0
    max_used_space: int = 0
    min_free_space: int = 0

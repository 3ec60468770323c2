"""The engine's defaults for containers, as Docker 28.5.2 with the same flags shows them."""

from pathlib import Path

import pytest

from compatd import config
from compatd.core import defaults
from compatd.core.translation import Security
from compatd.wire.types.containers import HostConfig, Ulimit

pytestmark = pytest.mark.unit


def given(*flags: str) -> config.Config:
    return config.load(config.parse_arguments(["--config-file", "/dev/null", *flags]))


def test_what_is_not_said_is_filled_in() -> None:
    chosen = defaults.of(
        given(
            *("--default-ulimit", "nproc=1000", "--default-ulimit", "nofile=100:200", "--default-shm-size", "32M"),
            *("--default-ipc-mode", "shareable", "--default-cgroupns-mode", "private"),
        )
    )
    plain = defaults.complete(HostConfig(), chosen, cgroup_version=1)
    nofile, nproc = Ulimit(name="nofile", soft=100, hard=200), Ulimit(name="nproc", soft=1000, hard=1000)
    assert plain.ulimits == [nofile, nproc]
    assert (plain.shm_size, plain.ipc_mode, plain.cgroupns_mode) == (32 << 20, "shareable", "private")
    own = Ulimit(name="nofile", soft=1, hard=2)
    said = HostConfig(ulimits=[own], shm_size=4096, ipc_mode="none", cgroupns_mode="host")
    completed = defaults.complete(said, chosen, cgroup_version=2)
    assert completed.ulimits == [own, nproc]
    assert (completed.shm_size, completed.ipc_mode, completed.cgroupns_mode) == (4096, "none", "host")
    assert defaults.complete(HostConfig(privileged=True), chosen, cgroup_version=2).cgroupns_mode == "host"


def test_without_flags() -> None:
    plain = defaults.complete(HostConfig(), defaults.of(given()), cgroup_version=1)
    assert (plain.ulimits, plain.shm_size, plain.ipc_mode, plain.cgroupns_mode) == (None, 64 << 20, "private", "host")
    assert defaults.complete(HostConfig(), defaults.of(given()), cgroup_version=2).cgroupns_mode == "private"
    assert defaults.security(given()) == Security()


def test_security(tmp_path: Path) -> None:
    profile = tmp_path / "profile.json"
    profile.write_text("{}")
    assert defaults.security(given("--no-new-privileges", "--seccomp-profile", str(profile))) == Security(
        seccomp="{}", no_new_privileges=True
    )
    assert defaults.security(given("--seccomp-profile", "unconfined")).seccomp == "unconfined"
    assert defaults.security(given("--seccomp-profile", "builtin")).seccomp is None


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        (("--default-ulimit", "foo=1"), "invalid ulimit type: foo"),
        (("--default-ulimit", "nofile=5:1"), "ulimit soft limit must be less than or equal to hard limit: 5 > 1"),
        (("--default-ulimit", "nofile=x"), 'strconv.ParseInt: parsing "x": invalid syntax'),
        (("--default-shm-size", "foo"), "invalid size: 'foo'"),
        (("--default-ipc-mode", "host"), 'IPC mode setting (host) is invalid; use "shareable" or "private"'),
        (("--default-cgroupns-mode", "x"), 'invalid default cgroup namespace (x): use "host" or "private"'),
        (("--seccomp-profile", "/nosuch"), "opening seccomp profile (/nosuch) failed: open /nosuch: no such file"),
        (("--userns-remap", "default"), "the option --userns-remap is not supported by compatd"),
    ],
)
def test_refusals(flags: tuple[str, ...], text: str) -> None:
    with pytest.raises(config.ConfigError) as refused:
        given(*flags)
    assert text in str(refused.value)


def test_the_file_has_ulimits_and_sizes(tmp_path: Path) -> None:
    file = tmp_path / "daemon.json"
    file.write_text(
        '{"default-ulimits": {"nofile": {"Name": "nofile", "Soft": 10, "Hard": 20}}, "default-shm-size": 4096}'
    )
    chosen = config.load(config.parse_arguments(["--config-file", str(file)]))
    assert (chosen.default_ulimits, chosen.default_shm_size_bytes) == ((("nofile", 10, 20),), 4096)

"""Flags and daemon.json. The messages are those of dockerd 28.5.2, asked with the same words."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compatd.config import (
    OPTIONS,
    Arguments,
    Config,
    ConfigError,
    load,
    parse_address_pool,
    parse_arguments,
    parse_host,
    read_file,
    usage,
)

pytestmark = pytest.mark.unit


def configured(*argv: str, file: object = None, tmp_path: Path) -> Config:
    path = tmp_path / "daemon.json"
    path.write_text(file if isinstance(file, str) else json.dumps(file or {}))
    return load(parse_arguments(["--config-file", str(path), *argv]))


def refused(*argv: str, file: object = None, tmp_path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        configured(*argv, file=file, tmp_path=tmp_path)
    return str(caught.value)


def test_defaults(tmp_path: Path) -> None:
    config = configured(tmp_path=tmp_path)
    assert config == Config()
    assert config.hosts == ("unix:///var/run/docker.sock",)
    assert config.log_driver == "json-file"


def test_flags(tmp_path: Path) -> None:
    words = (
        "-D -H unix:///a.sock -Hfd:// --host=tcp://1.2.3.4 --label a=b --label=c=d --log-opt max-size=3m"
        " --log-opt=max-file=2 --icc=false -lwarn --dns 1.1.1.1 --mtu 1400"
        " --registry-mirror=http://127.0.0.1:5000/ --data-root=x/../y"
    )
    config = configured(*words.split(), tmp_path=tmp_path)
    assert config.debug
    assert config.hosts == ("unix:///a.sock", "fd://", "tcp://1.2.3.4:2375")
    assert config.labels == ("a=b", "c=d")
    assert config.log_opts == {"max-size": "3m", "max-file": "2"}
    assert not config.icc
    assert config.log_level == "warn"
    assert config.dns == ("1.1.1.1",)
    assert config.mtu == 1400
    assert config.registry_mirrors == ("http://127.0.0.1:5000/",)
    assert config.data_root == str(Path.cwd() / "y")


def test_file(tmp_path: Path) -> None:
    config = configured(
        file={
            "debug": True,
            "hosts": ["unix:///b.sock"],
            "log-driver": "none",
            "log-opts": {"a": "b"},
            "insecure-registries": ["r:5000"],
            "dns": ["::1"],
            "mtu": 9000,
            "live-restore": True,
            "exec-opts": ["native.cgroupdriver=cgroupfs"],
            "features": {"containerd-snapshotter": False},
            "bip": None,
        },
        tmp_path=tmp_path,
    )
    assert config.debug
    assert config.hosts == ("unix:///b.sock",)
    assert (config.log_driver, config.log_opts) == ("none", {"a": "b"})
    assert config.insecure_registries == ("r:5000",)
    assert (config.dns, config.mtu) == (("::1",), 9000)


@pytest.mark.parametrize("text", ["", "  \n", "{}", '\ufeff{"debug": false}'])
def test_files_that_say_nothing(text: str, tmp_path: Path) -> None:
    assert configured(file=text, tmp_path=tmp_path) == Config()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--bogus"], "unknown flag: --bogus"),
        (["-x"], "unknown shorthand flag: 'x' in -x"),
        (["--data-root"], "flag needs an argument: --data-root"),
        (["--log-level", "nope"], "invalid logging level: nope"),
        (["--mtu=-1"], "invalid default MTU: -1"),
        (["--max-concurrent-downloads=-1"], "invalid max concurrent downloads: -1"),
        (["--containerd", "/x"], "the option --containerd is not supported by compatd"),
        (["--userns-remap=default"], "the option --userns-remap is not supported by compatd"),
        (["--storage-driver", "btrfs"], "error initializing graphdriver: driver not supported: btrfs"),
        (["serve"], "\"compatd\" accepts no arguments.\nSee 'compatd --help'."),
    ],
)
def test_refused_flags(argv: list[str], message: str, tmp_path: Path) -> None:
    assert refused(*argv, tmp_path=tmp_path) == message


@pytest.mark.parametrize(
    ("flag", "value", "shown", "reason"),
    [
        ("--mtu", "x", "--mtu", 'strconv.ParseInt: parsing "x": invalid syntax'),
        ("--mtu", "1_0", "--mtu", 'strconv.ParseInt: parsing "1_0": invalid syntax'),
        ("--debug", "maybe", "-D, --debug", 'strconv.ParseBool: parsing "maybe": invalid syntax'),
        ("--label", "foo", "--label", "bad attribute format: foo"),
        ("--dns", "300.1.1.1", "--dns", "invalid string being converted to IP address: 300.1.1.1"),
        ("-H", "foo://bar", "-H, --host", "invalid bind address (foo://bar): unsupported proto 'foo'"),
        (
            "--registry-mirror",
            "foo",
            "--registry-mirror",
            "invalid mirror: no scheme specified for \"foo\": must use either 'https://' or 'http://'",
        ),
    ],
)
def test_refused_values(flag: str, value: str, shown: str, reason: str, tmp_path: Path) -> None:
    expected = f'invalid argument "{value}" for "{shown}" flag: {reason}'
    assert refused(f"{flag}={value}", tmp_path=tmp_path) == expected


@pytest.mark.parametrize(
    ("argv", "file", "message"),
    [
        ([], {"bogus": 1, "debug": True}, "the following directives don't match any configuration option: bogus"),
        (
            ["--debug=false", "--label=x=y"],
            {"debug": True, "labels": ["a=b"]},
            "the following directives are specified both as a flag and in the configuration file:"
            " debug: (from flag: false, from file: true), labels: (from flag: [x=y], from file: [a=b])",
        ),
        (
            ["--log-opt", "max-size=3"],
            {"log-opts": {"max-size": "3"}},
            "the following directives are specified both as a flag and in the configuration file:"
            " log-opts: (from flag: map[max-size:3], from file: map[max-size:3])",
        ),
        (
            [],
            {"debug": "x"},
            "invalid JSON: json: cannot unmarshal string into Go struct field Config.debug of type bool",
        ),
        ([], [1], "invalid JSON: json: cannot unmarshal array into Go value of type map[string]interface {}"),
        ([], {"dns": ["x"]}, "invalid string being converted to IP address: x"),
    ],
)
def test_refused_files(argv: list[str], file: object, message: str, tmp_path: Path) -> None:
    expected = f"unable to configure the Docker daemon with file {tmp_path / 'daemon.json'}: {message}"
    assert refused(*argv, file=file, tmp_path=tmp_path) == expected


def test_a_file_that_is_named_has_to_be_there(tmp_path: Path) -> None:
    path = tmp_path / "no"
    with pytest.raises(ConfigError, match=f"open {path}: no such file or directory"):
        load(parse_arguments(["--config-file", str(path)]))


def test_options_that_are_missing_may_be_named_without_effect(tmp_path: Path) -> None:
    assert configured("--iptables", "--userland-proxy=false", "--init=false", tmp_path=tmp_path) == Config()
    assert "--init is not supported" in refused("--init", tmp_path=tmp_path)
    assert "--iptables is not supported" in refused(file={"iptables": False}, tmp_path=tmp_path)
    assert "--userns-remap is not supported" in refused(file={"userns-remap": "default"}, tmp_path=tmp_path)


def test_every_option_leads_somewhere() -> None:
    fields = Config.__dataclass_fields__
    for option in OPTIONS:
        assert option.attribute in fields if option.attribute else option.harmless, option.flag
        assert option.attribute is None or f"--{option.flag}" in usage()


def test_what_is_no_configuration() -> None:
    assert parse_arguments(["-v"]) == Arguments(values={}, config_file=None, validate=False, version=True, help=False)
    assert parse_arguments(["-Dv"]).version
    assert parse_arguments(["--help"]).help
    assert parse_arguments(["--validate"]).validate


@pytest.mark.parametrize(
    ("text", "tls", "host"),
    [
        ("unix://", False, "unix:///var/run/docker.sock"),
        ("unix:///x", False, "unix:///x"),
        ("fd://", False, "fd://"),
        ("fd://docker.socket", False, "fd://docker.socket"),
        ("tcp://", False, "tcp://localhost:2375"),
        ("tcp://", True, "tcp://localhost:2376"),
        ("tcp://0.0.0.0:1", True, "tcp://0.0.0.0:1"),
        ("tcp://[::1]:80", False, "tcp://[::1]:80"),
        ("tcp://[::1]", False, "tcp://[::1]:2375"),
        (":4000", False, "tcp://localhost:4000"),
    ],
)
def test_hosts(text: str, tls: bool, host: str) -> None:
    assert parse_host(text, tls=tls) == host


@pytest.mark.parametrize("text", ["http://a", "tcp://a:x", "tcp://a:99999", "tcp://a:٣", "npipe://x"])
def test_no_hosts(text: str) -> None:
    with pytest.raises(ValueError, match="invalid bind address"):
        parse_host(text)


def test_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_CERT_PATH", "/c")
    config = configured("--tlsverify", "--tlskey=/k", "-H", "tcp://a", tmp_path=tmp_path)
    assert config.tls
    assert (config.tls_ca_cert, config.tls_cert, config.tls_key) == ("/c/ca.pem", "/c/cert.pem", "/k")
    assert config.hosts == ("tcp://a:2376",)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from([option.key or option.flag for option in OPTIONS]), JSON, max_size=4))
@settings(max_examples=100, deadline=None)
def test_any_file_is_read_or_refused(document: dict[str, object]) -> None:
    try:
        values = read_file(json.dumps(document).encode())
    except ConfigError:
        return
    assert len(values) <= len(document)


@pytest.mark.parametrize("text", [b"[" * 100_000, b"\xff\xfe", b'{"debug": NaN}', b"{"])
def test_files_that_are_no_json(text: bytes) -> None:
    with pytest.raises(ConfigError, match="invalid JSON"):
        read_file(text)


def test_address_pools() -> None:
    assert parse_address_pool("base=10.0.0.0/8,size=24") == ("10.0.0.0/8", 24)
    assert parse_address_pool("size=64,base=fd00::/48") == ("fd00::/48", 64)
    for text in ("", "base=10.0.0.0/8", "base=x,size=24", "base=10.0.0.0/8,size=7", "base=10.0.0.0/8,size=x"):
        with pytest.raises(ValueError, match=r".+"):
            parse_address_pool(text)
    document = b'{"default-address-pools": [{"base": "10.0.0.0/8", "size": 24}]}'
    assert read_file(document) == {"default-address-pool": ("base=10.0.0.0/8,size=24",)}

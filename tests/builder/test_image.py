import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compatd.builder.image import (
    Health,
    RunConfig,
    encode,
    format_time,
    present,
    read_image,
    write_child,
)
from compatd.errors import InvalidParameter

pytestmark = pytest.mark.unit

DOCUMENT = {
    "architecture": "arm64",
    "variant": "v8",
    "os": "linux",
    "os.version": "1",
    "author": "not inherited",
    "config": {
        "Env": ["A=1", "B"],
        "Labels": None,
        "Cmd": None,
        "Healthcheck": {"Test": ["CMD"], "Retries": 2},
        "ExposedPorts": {"80/tcp": {}},
        "StopSignal": "SIGINT",
        "ArgsEscaped": True,
        "Unknown": [1],
    },
    "history": [{"created": "2024-01-02T03:04:05Z", "created_by": "x", "comment": "c"}],
    "rootfs": {"type": "layers", "diff_ids": ["sha256:1"]},
}


def test_reads_what_counts() -> None:
    image = read_image("sha256:0", json.dumps(DOCUMENT).encode())
    assert (image.os, image.architecture, image.variant, image.os_version) == ("linux", "arm64", "v8", "1")
    assert image.diff_ids == ("sha256:1",)
    assert image.config.environment() == {"A": "1", "B": ""}
    assert image.config.healthcheck == Health(test=("CMD",), retries=2)
    assert image.config.command_shell() == ("/bin/sh", "-c")


def test_writes_fields_in_dockers_order_and_presence() -> None:
    parent = read_image("sha256:0", json.dumps(DOCUMENT).encode())
    config = RunConfig(
        cmd=("<&>",), labels={"b": "1", "a": "\u2028"}, volumes=present(["/v"]), healthcheck=Health(test=("NONE",))
    )
    written = write_child(
        parent,
        config=config,
        container_config=RunConfig(hostname="h", cmd=("a", "b")),
        container_id="c",
        author="me",
        diff_id="sha256:2",
        created_ns=1_700_000_000_120_000_000,
        engine_version="28",
    )
    assert written.decode() == (
        '{"architecture":"arm64","author":"me","config":{"Hostname":"","Domainname":"","User":"","AttachStdin":false,'
        '"AttachStdout":false,"AttachStderr":false,"Tty":false,"OpenStdin":false,"StdinOnce":false,"Env":null,'
        '"Cmd":["\\u003c\\u0026\\u003e"],"Healthcheck":{"Test":["NONE"]},"Image":"","Volumes":{"/v":{}},'
        '"WorkingDir":"","Entrypoint":null,"OnBuild":null,"Labels":{"a":"\\u2028","b":"1"}},"container":"c",'
        '"container_config":{"Hostname":"h","Domainname":"","User":"","AttachStdin":false,"AttachStdout":false,'
        '"AttachStderr":false,"Tty":false,"OpenStdin":false,"StdinOnce":false,"Env":null,"Cmd":["a","b"],"Image":"",'
        '"Volumes":null,"WorkingDir":"","Entrypoint":null,"OnBuild":null,"Labels":null},'
        '"created":"2023-11-14T22:13:20.12Z","docker_version":"28","history":[{"created":"2024-01-02T03:04:05Z",'
        '"created_by":"x","comment":"c"},{"created":"2023-11-14T22:13:20.12Z","created_by":"a b","author":"me"}],'
        '"os":"linux","os.version":"1","rootfs":{"type":"layers","diff_ids":["sha256:1","sha256:2"]},"variant":"v8"}'
    )
    again = read_image("sha256:3", written)
    assert again.config == config
    assert again.diff_ids == ("sha256:1", "sha256:2")


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=3),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from(["config", "rootfs", "Env", "history", "diff_ids"]), inner)
        ),
    )
)
@settings(max_examples=200, deadline=None)  # fmt: skip
def test_fails_in_one_way_only(document: object) -> None:
    raw = json.dumps(document).encode()
    try:
        read_image("sha256:0", raw)
    except InvalidParameter as error:
        assert "invalid image configuration of sha256:0" in str(error)  # noqa: PT017 - most documents are fine


def test_json_is_gos() -> None:
    assert encode({"b": "<é\n\x01>", "a": None}) == '{"a":null,"b":"\\u003cé\\n\\u0001\\u003e"}'.encode()


def test_times_are_gos() -> None:
    assert format_time(0) == "1970-01-01T00:00:00Z"
    assert format_time(1_700_000_000_000_000_001) == "2023-11-14T22:13:20.000000001Z"

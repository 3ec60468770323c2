"""Manifests, indexes and configs are read strictly and refused in Docker's words; platforms chosen as it does."""

import contextlib
import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compatd.errors import EngineError, InvalidParameter, NotFound, SystemFailure
from compatd.images import manifest as m

pytestmark = pytest.mark.unit

ONE, TWO = "sha256:" + "1" * 64, "sha256:" + "2" * 64


def descriptor(digest: str = ONE, **members: Any) -> dict[str, Any]:
    return {"mediaType": m.DOCKER_LAYER, "size": 1, "digest": digest, **members}


def manifest(**members: Any) -> bytes:
    config = descriptor(mediaType=m.DOCKER_CONFIG)
    document = {"schemaVersion": 2, "mediaType": m.DOCKER_MANIFEST, "config": config, "layers": [descriptor(TWO)]}
    return json.dumps({**document, **members}).encode()


def index(*platforms: str | None) -> m.Index:
    entries: list[dict[str, Any]] = []
    for number, platform in enumerate(platforms):
        entry = descriptor("sha256:" + f"{number:064x}")
        if platform is not None:
            entry["platform"] = dict(zip(("os", "architecture", "variant"), platform.split("/"), strict=False))
        entries.append(entry)
    data = json.dumps({"schemaVersion": 2, "mediaType": m.OCI_INDEX, "manifests": entries}).encode()
    read = m.decode_manifest(data, m.OCI_INDEX, name="x")
    assert isinstance(read, m.Index)
    return read


def test_both_families_are_read() -> None:
    read = m.decode_manifest(manifest(), m.DOCKER_MANIFEST, name="x")
    assert isinstance(read, m.Manifest)
    assert (read.config.digest, read.layers[0].digest) == (ONE, TWO)
    untyped = json.loads(manifest())
    del untyped["mediaType"]
    assert isinstance(m.decode_manifest(json.dumps(untyped).encode(), m.OCI_MANIFEST, name="x"), m.Manifest)
    assert m.decode_manifest(manifest(), "application/json; charset=utf-8", name="x") == read


@pytest.mark.parametrize(
    ("data", "media_type", "error"),
    [
        (b"{}", m.DOCKER_MANIFEST, f"mediaType in manifest should be '{m.DOCKER_MANIFEST}' not ''"),
        (manifest(config=descriptor(mediaType="application/x-foo")), m.DOCKER_MANIFEST, "Encountered remote"),
        (manifest(layers=[descriptor()] * 126), m.DOCKER_MANIFEST, "max depth exceeded"),
        (manifest(layers=[descriptor("sha256:../../etc")]), m.DOCKER_MANIFEST, "invalid checksum digest format"),
        (manifest(layers=[descriptor(size=-1)]), m.DOCKER_MANIFEST, "invalid manifest"),
        (manifest(layers=[descriptor(size=2**63)]), m.DOCKER_MANIFEST, "invalid manifest"),
        (manifest(layers=[descriptor(size="1")]), m.DOCKER_MANIFEST, "invalid manifest"),
        (manifest(config=descriptor(mediaType=m.DOCKER_CONFIG, size=2**40)), m.DOCKER_MANIFEST, "image configuration"),
        (manifest(layers=None), m.DOCKER_MANIFEST, "invalid manifest"),
        (manifest(manifests=[]), m.DOCKER_MANIFEST, "expected manifest but found index"),
        (manifest(mediaType=m.DOCKER_INDEX, manifests=[]), m.DOCKER_INDEX, "expected index but found manifest"),
        (manifest(mediaType=m.OCI_MANIFEST), m.DOCKER_MANIFEST, "mediaType in manifest should be"),
        (b'{"schemaVersion":1,"name":"x"}', "", "[DEPRECATION NOTICE]"),
        (manifest(), "application/x-foo", "unsupported manifest media type"),
        (b"<html>", "text/html", "invalid manifest"),
        (b'{"schemaVersion":2,', m.DOCKER_MANIFEST, "invalid manifest"),
        (b"[" * 100_000, m.DOCKER_MANIFEST, "invalid manifest"),
        (b" " * (m.DOCUMENT_LIMIT_BYTES + 1), m.DOCKER_MANIFEST, "manifest is larger than"),
        (b"\xff{}", m.DOCKER_MANIFEST, "invalid manifest"),
    ],
)
def test_what_is_no_image_is_refused(data: bytes, media_type: str, error: str) -> None:
    with pytest.raises(EngineError) as caught:
        m.decode_manifest(data, media_type, name="x")
    assert error in str(caught.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["config", "layers", "manifests", "schemaVersion", "rootfs", "os", "history", "created"]),
    JSON,
    st.sampled_from(m.MANIFEST_TYPES),
)
def test_any_document_is_read_or_refused_by_us(member: str, value: Any, media_type: str) -> None:
    data = manifest(**{"mediaType": media_type, member: value})
    for read in (lambda: m.decode_manifest(data, media_type, name="x"), lambda: m.decode_config(data)):
        with contextlib.suppress(EngineError):
            read()


def test_config_keeps_its_members() -> None:
    document: dict[str, Any] = {
        "architecture": "arm64",
        "config": {
            "Cmd": ["sh"],
            "Entrypoint": [],
            "Env": None,
            "ExposedPorts": {"80/tcp": {}},
            "Healthcheck": {"Test": ["CMD", "true"], "Interval": 30_000_000_000, "Retries": 3},
            "Labels": {"a": "b"},
            "OnBuild": ["RUN true"],
            "Shell": ["/bin/bash", "-c"],
            "StopTimeout": 0,
            "User": None,
        },
        "created": "2024-01-02T03:04:05.678Z",
        "history": [{"created_by": "x", "empty_layer": True}],
        "os": "linux",
        "os.version": "1",
        "rootfs": {"type": "layers", "diff_ids": [ONE]},
        "variant": "v8",
        "x-unknown": 1,
    }
    read = m.decode_config(json.dumps(document).encode())
    assert read.config is not None
    assert read.config.healthcheck is not None
    assert (read.config.cmd, read.config.entrypoint, read.config.env, read.config.user) == (["sh"], [], None, "")
    assert read.config.healthcheck.interval == 30_000_000_000
    assert (read.rootfs.diff_ids, read.os_version, read.history[0].empty_layer) == ([ONE], "1", True)
    encoded = m.encode_config(read)
    assert m.decode_config(encoded) == read
    assert m.encode_config(m.decode_config(encoded)) == encoded
    assert list(msgspec.json.decode(encoded)) == sorted(msgspec.json.decode(encoded))
    assert "MacAddress" not in json.loads(encoded)["config"]


def test_config_with_a_hostile_diff_id_is_refused() -> None:
    with pytest.raises(InvalidParameter):
        m.decode_config(b'{"rootfs":{"type":"layers","diff_ids":["../../etc"]}}')
    with pytest.raises(SystemFailure):
        m.decode_config(b'{"rootfs":"x"}')


@pytest.mark.parametrize(
    ("wanted", "offered", "chosen"),
    [
        ("linux/amd64", ["linux/arm64", "linux/amd64"], [1]),
        ("linux/x86_64", ["linux/386", "linux/amd64"], [1, 0]),
        ("linux/amd64", ["linux/amd64/v2"], []),
        ("linux/amd64/v3", ["linux/amd64", "linux/amd64/v2", "linux/amd64/v4"], [1, 0]),
        ("linux/arm/v7", ["linux/arm/v5", "linux/arm/v6", "linux/arm/v8", "linux/arm64"], [1, 0]),
        ("linux/arm", ["linux/arm/v7"], [0]),
        ("linux/arm64", ["linux/arm/v7", "linux/arm64/v8"], [1, 0]),
        ("linux/aarch64", ["linux/amd64", "windows/arm64"], []),
        ("linux/amd64", ["unknown/unknown", None, "linux/amd64"], [2, 1]),
        ("linux/amd64", [], []),
    ],
)
def test_the_best_fitting_entries_come_first(wanted: str, offered: list[str | None], chosen: list[int]) -> None:
    offers = index(*offered)
    platform = m.parse_platform(wanted)
    if chosen:
        assert m.select(offers, platform) == [offers.manifests[number] for number in chosen]
    else:
        with pytest.raises(NotFound) as caught:
            m.select(offers, platform)
        assert str(caught.value) == f"no matching manifest for {platform} in the manifest list entries"


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("foo", '"foo": unknown operating system or architecture: invalid argument'),
        ("bogus/x/y/z", '"bogus/x/y/z": cannot parse platform specifier: invalid argument'),
        ("li*/amd64", '"li*/amd64": wildcards not yet supported: invalid argument'),
        (
            "linux/a b",
            '"a b" is an invalid component of "linux/a b": platform specifier component must match '
            '"^[A-Za-z0-9_.-]+$": invalid argument',
        ),
    ],
)
def test_platform_refusals(text: str, error: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        m.parse_platform(text)
    assert str(caught.value) == error


def test_platform_spellings() -> None:
    assert str(m.parse_platform("x86_64")) == "linux/amd64"
    assert str(m.parse_platform("Linux/ARM64/v8")) == "linux/arm64"
    assert str(m.parse_platform("armhf")) == "linux/arm/v7"
    assert m.parse_platform("windows").os == "windows"
    assert m.host_platform().os == "linux"

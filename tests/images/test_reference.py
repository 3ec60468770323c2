"""References are read, normalised and refused as Docker 28.5.2 does (texts and cases asked of it)."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compatd.errors import EngineError, Forbidden, InvalidParameter
from compatd.images.reference import Reference, parse_normalized, parse_pull

pytestmark = pytest.mark.unit

ZEROS = "sha256:" + "0" * 64


@pytest.mark.parametrize(
    ("text", "full", "familiar"),
    [
        ("ubuntu", "docker.io/library/ubuntu", "ubuntu"),
        ("ubuntu:16.04", "docker.io/library/ubuntu:16.04", "ubuntu:16.04"),
        ("library/ubuntu", "docker.io/library/ubuntu", "ubuntu"),
        ("docker.io/a", "docker.io/library/a", "a"),
        ("index.docker.io/a/b", "docker.io/a/b", "a/b"),
        ("docker.io/library/a/b", "docker.io/library/a/b", "library/a/b"),
        ("docker.io", "docker.io/library/docker.io", "docker.io"),
        ("a.b:80", "docker.io/library/a.b:80", "a.b:80"),
        ("localhost/x", "localhost/x", "localhost/x"),
        ("Foo/x", "Foo/x", "Foo/x"),
        ("A.com/x", "A.com/x", "A.com/x"),
        ("[::1]:5060/x", "[::1]:5060/x", "[::1]:5060/x"),
        ("127.0.0.1:5000/a/b:T", "127.0.0.1:5000/a/b:T", "127.0.0.1:5000/a/b:T"),
        ("a__b", "docker.io/library/a__b", "a__b"),
        ("a--b", "docker.io/library/a--b", "a--b"),
        ("foo_bar.x/y", "foo_bar.x/y", "foo_bar.x/y"),
        (f"a:t@{ZEROS}", f"docker.io/library/a:t@{ZEROS}", f"a:t@{ZEROS}"),
    ],
)
def test_normal_forms(text: str, full: str, familiar: str) -> None:
    reference = parse_normalized(text)
    assert (str(reference), reference.familiar) == (full, familiar)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        *[
            (text, "invalid reference format")
            for text in (
                *("", "a:b:c", "a//b", "a/", "/a", "a.b/", "a___b", "a..b", "a.-b", "-a", "a:", "a:.x", "a b", "é"),
                *("a\n", "a:b\n", "127.0.0.1:x/a", "a@sha256:00", "a:" + "t" * 129, "a:१", "a\x00", "a/../b"),
            )
        ],
        ("UPPER", "invalid reference format: repository name (library/UPPER) must be lowercase"),
        ("a.com/X", "invalid reference format: repository name (X) must be lowercase"),
        ("É", "invalid reference format: repository name (library/É) must be lowercase"),
        ("a" * 256, "repository name must not be more than 255 characters"),
        ("a" * 64, f"invalid repository name ({'a' * 64}), cannot specify 64-byte hexadecimal strings"),
        ("a@md5:" + "0" * 32, "unsupported digest algorithm"),
        ("a@sha256:" + "A" * 64, "invalid checksum digest format"),
        ("a@sha256:" + "0" * 63, "invalid checksum digest length"),
    ],
)
def test_refusals(text: str, error: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        parse_normalized(text)
    assert str(caught.value) == error


def test_what_pull_is_asked_for() -> None:
    assert parse_pull("busybox", "").is_name_only
    assert parse_pull("busybox:", "").is_name_only
    assert parse_pull("busybox:1", "2").familiar == "busybox:2"
    assert parse_pull("busybox:1", ZEROS).familiar == f"busybox@{ZEROS}"
    with pytest.raises(InvalidParameter, match="invalid tag format"):
        parse_pull("busybox", "bad tag")
    with pytest.raises(Forbidden, match="'scratch' is a reserved name"):
        parse_pull("scratch", "")


def test_default_tag_is_only_for_bare_names() -> None:
    assert parse_normalized("a").with_default_tag().tag == "latest"
    assert parse_normalized(f"a@{ZEROS}").with_default_tag().tag is None


PARTS = st.from_regex(r"[a-z0-9]+((\.|_|__|-{1,3})[a-z0-9]+){0,3}", fullmatch=True)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["", "docker.io/", "localhost:1/", "r.example/"]),
    st.lists(PARTS, min_size=1, max_size=3),
    st.none() | st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,9}", fullmatch=True),
)
def test_normal_forms_are_stable(domain: str, parts: list[str], tag: str | None) -> None:
    text = domain + "/".join(parts) + (f":{tag}" if tag else "")
    reference = parse_normalized(text)
    assert parse_normalized(str(reference)) == reference
    assert reference.tag == tag
    # docker.io/a.b/c is shown as a.b/c, which means another registry: so it is in Docker.
    if reference.domain != "docker.io" or "." not in reference.path.partition("/")[0]:
        assert parse_normalized(reference.familiar) == reference


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=60) | st.text("aA0./:@_-[]\n", max_size=40))
def test_any_text_is_a_reference_or_an_error_of_ours(text: str) -> None:
    try:
        reference = parse_normalized(text)
    except EngineError:
        return
    assert isinstance(reference, Reference)
    assert str(reference).isascii()
    assert not set(str(reference)) & set(" \n\x00")


@pytest.mark.parametrize("part", ["a-", "a.", "a", "-", "a__", "a/", "a.b/", "A", "a:", "a@"])
def test_long_nonsense_is_refused_in_linear_time(part: str) -> None:
    started = time.process_time()
    with pytest.raises(InvalidParameter):
        parse_normalized(part * 50_000 + "!")
    assert time.process_time() - started < 1

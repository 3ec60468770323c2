"""Decoding as Go does. The expected messages were those of Docker 28.5.2, asked with the same bodies."""

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compatd.wire.json import DecodeError, EmptyError, TrailingError, decode, encode, parse, syntax_error
from compatd.wire.types.containers import ContainerConfig, ContainerCreateRequest, ExecCreateRequest

pytestmark = pytest.mark.unit

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**62), 2**62) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)


def refusal(body: str) -> str:
    with pytest.raises(DecodeError) as caught:
        decode(ContainerCreateRequest, body.encode())
    return str(caught.value)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ('{"Image":"busybox"', "unexpected EOF"),
        ("{i", "invalid character 'i' looking for beginning of object key string"),
        ("nul", "unexpected EOF"),
        ('{"Image":"a\nb"}', "invalid character '\\n' in string"),
        ('{"Image":"\\x"}', "invalid escape sequence `\\x` in string"),
        ('{"Image":"x",}', "invalid character '}' looking for beginning of object key string"),
        ('{"Image" "x"}', "invalid character '\"' after object key"),
        ('{"Image":tru}', "invalid character '}' in literal true (expecting 'e')"),
        ('{"Image":01}', "invalid character '1' after object key:value pair"),
        ('{"Image":-}', "invalid character '}' in numeric literal"),
        ('{"Env":["a" "b"]}', "invalid character '\"' after array element"),
        ('{"Image":NaN}', "invalid character 'N' looking for beginning of value"),
        ("[1,]", "invalid character ']' looking for beginning of value"),
    ],
)
def test_syntax(body: str, message: str) -> None:
    assert refusal(body) == message


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("[]", "array into Go value of type container.CreateRequest"),
        ('{"Image":1}', "number into Go struct field .Image of type string"),
        ('{"tTy":"x"}', "string into Go struct field .tTy of type bool"),
        ('{"HostConfig":{"Memory":1.5}}', "number 1.5 into Go struct field .HostConfig.Memory of type int64"),
        ('{"HostConfig":{"Memory":"x"}}', "string into Go struct field .HostConfig.Memory of type int64"),
        (
            '{"HostConfig":{"Memory":99999999999999999999}}',
            "number 99999999999999999999 into Go struct field .HostConfig.Memory of type int64",
        ),
        (
            '{"HostConfig":{"BlkioWeight":-1}}',
            "number -1 into Go struct field .HostConfig.BlkioWeight of type uint16",
        ),
        ('{"Env":"x"}', "string into Go struct field .Env of type []string"),
        ('{"Cmd":5}', "number into Go value of type string"),
        ('{"Cmd":[1]}', "array into Go value of type string"),
        ('{"Labels":{"a":1}}', "number into Go struct field .Labels.a of type string"),
        ('{"ExposedPorts":{"x":1}}', "number into Go struct field .ExposedPorts.x of type struct {}"),
        (
            '{"HostConfig":{"PortBindings":{"80/tcp":{}}}}',
            "object into Go struct field .HostConfig.PortBindings.80~1tcp of type []nat.PortBinding",
        ),
        ('{"Env":[1]}', "number into .Env.0 of type string"),
        ('{"ExposedPorts":[]}', "array into Go struct field .ExposedPorts of type nat.PortSet"),
        (
            '{"HostConfig":{"PortBindings":1}}',
            "number into Go struct field .HostConfig.PortBindings of type nat.PortMap",
        ),
        ('{"HostConfig":{"Ulimits":"x"}}', "string into Go struct field .HostConfig.Ulimits of type []*units.Ulimit"),
        ('{"HostConfig":{"Ulimits":[1]}}', "number into .HostConfig.Ulimits.0 of type units.Ulimit"),
        ('{"HostConfig":{"ConsoleSize":[0,-1]}}', "number -1 into .HostConfig.ConsoleSize.1 of type uint"),
        ('{"HostConfig":{"ConsoleSize":"x"}}', "string into Go struct field .HostConfig.ConsoleSize of type [2]uint"),
        (
            '{"HostConfig":{"Mounts":[{"Target":3}]}}',
            "number into Go struct field .HostConfig.Mounts.0.Target of type string",
        ),
    ],
)
def test_shape(body: str, message: str) -> None:
    assert refusal(body) == f"json: cannot unmarshal {message}"


def test_null_is_the_default_everywhere() -> None:
    body = json.dumps(dict.fromkeys(("Image", "Env", "Tty", "HostConfig", "Healthcheck", "Cmd", "Volumes")))
    assert decode(ContainerCreateRequest, body.encode()) == ContainerCreateRequest()
    host = json.dumps({"HostConfig": {"Memory": None, "Mounts": None, "PortBindings": {"80/tcp": None}}})
    read = decode(ContainerCreateRequest, host.encode()).host_config
    assert read is not None
    assert (read.memory, read.mounts, read.port_bindings) == (0, [], {"80/tcp": None})
    assert decode(ContainerCreateRequest, b"null") == ContainerCreateRequest()


def test_keys_match_whatever_their_case_and_unknown_ones_are_ignored() -> None:
    read = decode(ContainerCreateRequest, b'{"image":"a","ENV":["b"],"Unknown":{"x":[1]}}')
    assert (read.image, read.env) == ("a", ["b"])


def test_a_word_is_a_list_of_one() -> None:
    assert decode(ContainerConfig, b'{"Cmd":"true"}').cmd == ["true"]
    with pytest.raises(DecodeError, match=r"string into Go struct field ExecOptions\.Cmd of type"):
        decode(ExecCreateRequest, b'{"Cmd":"true"}')


def test_arrays_of_fixed_length() -> None:
    assert decode(ExecCreateRequest, b'{"ConsoleSize":[1]}').console_size == (1, 0)
    assert decode(ExecCreateRequest, b'{"ConsoleSize":[1,2,3]}').console_size == (1, 2)


def test_odd_texts() -> None:
    assert decode(ExecCreateRequest, b'{"User":"\\ud800"}').user == "\ufffd"
    assert decode(ExecCreateRequest, b'{"User":"\xff"}').user == "\ufffd"
    assert decode(ExecCreateRequest, b'{"User":"a","User":"b"}').user == "b"


def test_ends() -> None:
    with pytest.raises(EmptyError):
        decode(ExecCreateRequest, b" \n")
    with pytest.raises(TrailingError, match="unexpected content after JSON"):
        decode(ExecCreateRequest, b"{} {}")
    # Go's Decoder.More takes a closing bracket for an end.
    assert decode(ExecCreateRequest, b"{}}") == ExecCreateRequest()


@pytest.mark.parametrize("opening", ["[", '{"a":', '[{"a":'])
def test_deep_nesting_is_refused_and_does_not_end_the_process(opening: str) -> None:
    with pytest.raises(DecodeError):
        parse(opening.encode() * 200_000)


@given(JSON)
@settings(max_examples=60, deadline=None)
def test_plain_values_survive(value: Any) -> None:
    assert parse(encode(value)) == value


@given(st.text(alphabet='{}[]":,\\u0019.eE+-truefalsn \n\x00é', max_size=24))
@settings(max_examples=300, deadline=None)
def test_whatever_is_sent_is_read_or_refused(text: str) -> None:
    with contextlib.suppress(DecodeError):
        decode(ContainerCreateRequest, text.encode())
    assert syntax_error(text)


@given(
    st.dictionaries(st.text(max_size=4), st.text(st.characters(categories=("L", "N", "Cs")), max_size=6), max_size=3)
)
def test_whatever_is_said_can_be_sent(value: dict[str, str]) -> None:
    """A path or a header can hold bytes that are no UTF-8."""
    assert len(json.loads(encode({"message": list(value.values())}))["message"]) == len(value)


def test_bytes_that_are_no_utf_8_are_replaced() -> None:
    assert (
        encode({"message": b"a\xff\xc3".decode(errors="surrogateescape")}) == '{"message":"a\ufffd\ufffd"}\n'.encode()
    )
    assert encode(ContainerConfig(user="\udcff")).startswith(b'{"')
    assert json.loads(encode(ContainerConfig(user="\udcff")))["User"] == "\ufffd"

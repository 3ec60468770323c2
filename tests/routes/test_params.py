"""Parameters, headers and bodies. Texts are those of Docker 28.5.2."""

import base64
import contextlib
import json
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from multidict import CIMultiDict, MultiDict

from compatd.errors import InvalidParameter, NotFound, SystemFailure
from compatd.routes import params
from compatd.routes.call import Call
from tests.routes.conftest import Client, Services

pytestmark = pytest.mark.unit


def call(query: dict[str, str] | None = None, headers: dict[str, str] | None = None) -> Call:
    return cast(
        Call,
        SimpleNamespace(
            query=MultiDict(query or {}),
            request=SimpleNamespace(headers=CIMultiDict(headers or {})),
            version=(1, 51),
        ),
    )


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", True),
        ("true", True),
        ("yes", True),
        ("maybe", True),
        ("", False),
        ("0", False),
        ("no", False),
        ("False", False),
        (" none ", False),
    ],
)
def test_boolean(text: str, value: bool) -> None:
    assert params.boolean(call({"a": text}), "a") is value


def test_boolean_default() -> None:
    assert params.boolean(call(), "a") is False
    assert params.boolean(call(), "a", default=True) is True
    assert params.boolean(call({"a": "0"}), "a", default=True) is False


@pytest.mark.parametrize("text", ["x", "1.5", "1_0", "٣", "", "0x1", " 1", "1\n"])
def test_not_a_number(text: str) -> None:
    with pytest.raises(SystemFailure, match="invalid syntax"):
        params.integer(text)


def test_numbers() -> None:
    assert params.integer("-3") == -3
    with pytest.raises(SystemFailure, match="value out of range"):
        params.integer("9" * 30)
    assert params.number_or_zero(call({"a": "x"}), "a") == 0
    assert params.number(call({"a": ""}), "a") == 0


@pytest.mark.parametrize(
    ("text", "problem"), [("", "invalid syntax"), ("x", "invalid syntax"), ("-100", "value out of range"),
                          ("4294967296", "value out of range"), ("9" * 40, "value out of range")]
)  # fmt: skip
def test_terminal_size(text: str, problem: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        params.terminal_size(call({"h": text}), "h", "height")
    assert str(caught.value) == f'invalid resize height "{text}": {problem}'


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("0", 0),
        ("1700000000", 1_700_000_000_000_000_000),
        ("1700000000.5", 1_700_000_000_500_000_000),
        ("1700000000.000000001", 1_700_000_000_000_000_001),
        ("1700000000.1234567899", 1_700_000_000_123_456_789),
        ("-1", -1_000_000_000),
    ],
)
def test_timestamps(text: str, value: int | None) -> None:
    assert params.timestamp_ns(text) == value


@pytest.mark.parametrize("text", ["x", "1.5x", "2020-01-01T00:00:00Z", "1..2"])
def test_not_a_timestamp(text: str) -> None:
    with pytest.raises(SystemFailure, match="invalid syntax"):
        params.timestamp_ns(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", {}),
        ("null", {}),
        ("{}", {}),
        ('{"status":["running","exited"]}', {"status": ["running", "exited"]}),
        ('{"status":{"running":true,"exited":false}}', {"status": ["running", "exited"]}),
        ('{"a":[]}', {"a": []}),
    ],
)
def test_filters(text: str, value: dict[str, list[str]]) -> None:
    assert params.filters(call({"filters": text})) == value


@pytest.mark.parametrize(
    "text", ["x", "[]", '"x"', '{"a":"b"}', '{"a":[1]}', '{"a":{"b":1}}', '{"a":null}', "{", "[" * 100_000]
)
def test_no_filters(text: str) -> None:
    with pytest.raises(InvalidParameter, match=r"^invalid filter$"):
        params.filters(call({"filters": text}))


@given(st.dictionaries(st.text(max_size=5), st.lists(st.text(max_size=5), unique=True, max_size=4), max_size=4))
@settings(max_examples=50, deadline=None)
def test_both_forms_of_filters_mean_the_same(wanted: dict[str, list[str]]) -> None:
    legacy = {key: dict.fromkeys(values, True) for key, values in wanted.items()}
    assert params.filters(call({"filters": json.dumps(wanted)})) == wanted
    assert params.filters(call({"filters": json.dumps(legacy)})) == wanted


def encoded(document: Any, *, alphabet: str = "url", padded: bool = True) -> str:
    raw = json.dumps(document).encode()
    text = (base64.urlsafe_b64encode(raw) if alphabet == "url" else base64.b64encode(raw)).decode()
    return text if padded else text.rstrip("=")


@pytest.mark.parametrize("alphabet", ["url", "plain"])
@pytest.mark.parametrize("padded", [True, False])
def test_auth(alphabet: str, padded: bool) -> None:
    header = encoded({"username": "a", "password": "??>>~~"}, alphabet=alphabet, padded=padded)
    read = params.auth(call(headers={"X-Registry-Auth": header}))
    assert read is not None
    assert (read.username, read.password) == ("a", "??>>~~")


@pytest.mark.parametrize("header", ["", "!!!", "e", encoded([1]), encoded("x"), "A" * 5])
def test_auth_that_cannot_be_read_is_none(header: str) -> None:
    read = params.auth(call(headers={"X-Registry-Auth": header}))
    assert read is None
    assert params.auths(call(headers={"X-Registry-Config": header})) == {}


def test_auths() -> None:
    header = encoded({"localhost:5000": {"username": "a"}, "broken": 7})
    read = params.auths(call(headers={"X-Registry-Config": header}))
    assert list(read) == ["localhost:5000"]
    assert read["localhost:5000"].username == "a"


@pytest.mark.parametrize(
    ("content_type", "message"),
    [
        ("text/plain", "unsupported Content-Type header (text/plain): must be 'application/json'"),
        ("application/jsonx", "unsupported Content-Type header (application/jsonx): must be 'application/json'"),
        ("/", "malformed Content-Type header (/): mime: no media type"),
        ("application/json;;", "malformed Content-Type header (application/json;;): mime: invalid media parameter"),
    ],
)
async def test_content_types(client: Client, content_type: str, message: str) -> None:
    reply = await client("POST", "/containers/create", "{}", headers={"Content-Type": content_type})
    assert (reply.status, reply.message) == (400, message)


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br"])
async def test_bodies_are_taken_as_they_are(client: Client, encoding: str) -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": encoding}
    reply = await client("POST", "/containers/create", "abcde", headers=headers)
    assert (reply.status, reply.message) == (
        400,
        "invalid JSON: invalid character 'a' looking for beginning of value",
    )


async def test_a_name_may_be_no_utf_8(client: Client, services: Services) -> None:
    services.containers.later("inspect", NotFound(b"No such container: \xff".decode(errors="surrogateescape")))
    reply = await client("GET", "/containers/%FF/json", check=False)
    assert (reply.status, reply.message) == (404, "No such container: \ufffd")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("", "invalid JSON: got EOF while reading request body"),
        ("{i", "invalid JSON: invalid character 'i' looking for beginning of object key string"),
        ("{} {}", "unexpected content after JSON"),
        ("[]", "invalid JSON: json: cannot unmarshal array into Go value of type container.CreateRequest"),
    ],
)
async def test_bodies(client: Client, body: str, message: str) -> None:
    reply = await client(
        "POST", "/containers/create", body, headers={"Content-Type": "application/json; charset=utf-8"}
    )
    assert (reply.status, reply.message) == (400, message)


async def test_an_absent_body_is_a_value_with_every_default(client: Client, services: Services) -> None:
    services.execs.later("create", lambda reference, request, keys: SimpleNamespace(id=repr(request.cmd)))
    reply = await client("POST", "/containers/a/exec")
    assert (reply.status, reply.json()) == (201, {"Id": "None"})


async def test_a_body_has_an_end(client: Client) -> None:
    body = b'{"Image":"' + b"x" * params.JSON_LIMIT_BYTES + b'"}'
    reply = await client("POST", "/containers/create", body, headers={"Content-Type": "application/json"})
    assert reply.status == 400
    assert "larger than" in reply.message


@given(st.text(st.sampled_from("0123456789+-_. ٣\n"), max_size=24) | st.integers(-(2**64), 2**64).map(str))
def test_numbers_are_those_of_64_bits(text: str) -> None:
    plain = text.lstrip("+-") if text[:1] in "+-" and text[1:2] not in ("+", "-") else text
    number = int(text) if plain.isascii() and plain.isdecimal() else None
    if number is not None and -(2**63) <= number < 2**63:
        assert params.integer(text) == number == params.number_or_zero(call({"a": text}), "a")
        return
    with pytest.raises(SystemFailure, match="invalid syntax$" if number is None else "value out of range$"):
        params.integer(text)
    assert params.number_or_zero(call({"a": text}), "a") == 0


def test_zeros_before_a_number_do_not_count() -> None:
    assert params.integer("-" + "0" * 30 + "12") == -12


@given(st.text(max_size=12) | st.text(st.sampled_from('{}[]":,a1 true'), max_size=24))
def test_any_filters_and_times_are_read_or_refused(text: str) -> None:
    with contextlib.suppress(InvalidParameter):
        params.filters(call({"filters": text}))
    with contextlib.suppress(SystemFailure):
        params.timestamp_ns(text)


@given(st.text(st.characters(max_codepoint=255), max_size=20), st.binary(max_size=20))
def test_any_credentials_are_read_or_none(text: str, document: bytes) -> None:
    for value in (text, base64.urlsafe_b64encode(document).decode()):
        params.auth(call(headers={"X-Registry-Auth": value}))
        assert isinstance(params.auths(call(headers={"X-Registry-Config": value})), dict)

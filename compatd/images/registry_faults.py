"""What registries say when something is wrong, and what becomes of it: texts and kinds as Docker has them."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from compatd.errors import (
    EngineError,
    Forbidden,
    InvalidParameter,
    NotFound,
    SystemFailure,
    TooManyRequests,
    Unauthorized,
    Unavailable,
    Unsupported,
)
from compatd.images.reference import Reference


class RegistryFault(SystemFailure):
    """What a registry answered or the network did instead of giving what was asked for.

    ``code`` is the registry's own word for it (``MANIFEST_UNKNOWN``), empty when it gave none; ``reached`` says
    whether there was an answer at all; ``temporary`` whether the same request may succeed later.
    """

    def __init__(self, text: str, *, code: str = "", reached: bool = True, temporary: bool = False) -> None:
        super().__init__(text)
        self.code = code
        self.reached = reached
        self.temporary = temporary


# Texts which registries repeat when they have nothing to add; then Docker shows the code alone
# (distribution registry/api/errcode: register.go, errors.go).
STANDARD_TEXTS = {
    "UNKNOWN": "unknown error",
    "UNSUPPORTED": "The operation is unsupported.",
    "UNAUTHORIZED": "authentication required",
    "DENIED": "requested access to the resource is denied",
    "UNAVAILABLE": "service unavailable",
    "TOOMANYREQUESTS": "too many requests",
    "DIGEST_INVALID": "provided digest did not match uploaded content",
    "SIZE_INVALID": "provided length did not match content length",
    "NAME_INVALID": "invalid repository name",
    "TAG_INVALID": "manifest tag did not match URI",
    "NAME_UNKNOWN": "repository name not known to registry",
    "MANIFEST_UNKNOWN": "manifest unknown",
    "MANIFEST_INVALID": "manifest invalid",
    "MANIFEST_UNVERIFIED": "manifest failed signature verification",
    "MANIFEST_BLOB_UNKNOWN": "blob unknown to registry",
    "BLOB_UNKNOWN": "blob unknown to registry",
    "BLOB_UPLOAD_UNKNOWN": "blob upload unknown to registry",
    "BLOB_UPLOAD_INVALID": "blob upload invalid",
}
_KINDS: dict[str, type[EngineError]] = {
    "UNSUPPORTED": Unsupported,
    "UNAUTHORIZED": Unauthorized,
    "DENIED": Forbidden,
    "UNAVAILABLE": Unavailable,
    "TOOMANYREQUESTS": TooManyRequests,
    **{code: NotFound for code in STANDARD_TEXTS if code.endswith("_UNKNOWN")},
    **{code: InvalidParameter for code in STANDARD_TEXTS if code.endswith("_INVALID")},
}


def inspect_error(fault: EngineError) -> EngineError:
    """The fault as its kind, for requests which pass on what the registry said."""
    if isinstance(fault, RegistryFault) and fault.code in _KINDS:
        return _KINDS[fault.code](str(fault))
    return fault


def pull_error(fault: EngineError, reference: Reference) -> EngineError:
    """The fault as a pull reports it (translatePullError in moby's distribution/errors.go)."""
    bare = isinstance(fault, RegistryFault) and str(fault) == code_text(fault.code)
    match fault.code if isinstance(fault, RegistryFault) and not bare else "":
        case "DENIED":
            return NotFound(
                f"pull access denied for {reference.familiar_name}, repository does not exist or may require "
                f"'docker login': {fault}"
            )
        case "MANIFEST_UNKNOWN":
            return NotFound(f"manifest for {reference.familiar} not found: {fault}")
        case "NAME_UNKNOWN":
            return NotFound(f"repository {reference.familiar_name} not found: {fault}")
        case _:
            return inspect_error(fault)


class _ErrorItem(msgspec.Struct):
    code: str = "UNKNOWN"
    message: str = ""
    detail: Any = None


class _ErrorBody(msgspec.Struct):
    errors: list[_ErrorItem] | None = None
    details: Any = None


def read_error(status: int, media_type: str, body: bytes) -> RegistryFault:
    """What the body of an error reply says, as distribution's registry/client/errors.go reads it."""
    shown = body[:4096].decode(errors="replace")
    by_status = {401: "UNAUTHORIZED", 403: "DENIED", 429: "TOOMANYREQUESTS"}.get(status, "UNKNOWN")
    if media_type not in ("application/json", "application/vnd.api+json"):
        return RegistryFault(f"{code_text(by_status)}: {shown}" if shown else code_text(by_status), code=by_status)
    try:
        reply = msgspec.json.decode(body, type=_ErrorBody)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        if status == 401:
            return RegistryFault(code_text("UNAUTHORIZED"), code="UNAUTHORIZED")
        return RegistryFault(f"error parsing HTTP {status} response body: {error}: {_quoted(shown)}")
    if isinstance(reply.details, str) and reply.details:
        return RegistryFault(f"{code_text(by_status)}: {reply.details}", code=by_status)
    if not reply.errors:
        if status == 401:
            return RegistryFault(code_text("UNAUTHORIZED"), code="UNAUTHORIZED")
        return RegistryFault(
            f"error parsing HTTP {status} response body: no error details found in HTTP response body: {_quoted(shown)}"
        )
    texts: list[str] = []
    codes: list[str] = []
    for item in reply.errors[:20]:
        code = item.code if item.code in STANDARD_TEXTS else "UNKNOWN"
        codes.append(code)
        bare = item.detail is None and item.message in ("", STANDARD_TEXTS[code])
        texts.append(code_text(code) if bare else f"{code_text(code)}: {item.message}")
    text = texts[0] if len(texts) == 1 else "errors:\n" + "".join(f"{text}\n" for text in texts)
    return RegistryFault(text, code=codes[0])


def code_text(code: str) -> str:
    """A registry's word for what is wrong, as Docker shows it."""
    return code.lower().replace("_", " ")


def _quoted(text: str) -> str:
    return msgspec.json.encode(text).decode()


@dataclass(frozen=True, slots=True, kw_only=True)
class Challenge:
    """One way in which a registry wants to be authorised."""

    scheme: str
    parameters: Mapping[str, str]


_CHALLENGE = re.compile(r'\s*,?\s*(?:([A-Za-z]+)\s+)?([A-Za-z_]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))')


def parse_challenges(headers: Iterable[str]) -> list[Challenge]:
    """Every challenge of every WWW-Authenticate header (RFC 7235, section 4.1), as far as they can be read."""
    found: list[Challenge] = []
    for header in headers:
        position, scheme, parameters = 0, "", dict[str, str]()
        while (match := _CHALLENGE.match(header, position)) is not None:
            if match[1]:
                scheme, parameters = match[1].lower(), dict[str, str]()
                found.append(Challenge(scheme=scheme, parameters=parameters))
            parameters[match[2].lower()] = match[4] or re.sub(r"\\(.)", r"\1", match[3] or "")
            position = match.end()
        if not scheme and (word := re.match(r"\s*([A-Za-z]+)", header)) is not None:
            found.append(Challenge(scheme=word[1].lower(), parameters={}))
    return found

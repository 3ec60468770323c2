"""DNS messages, as far as a resolver needs that answers for a few names and forwards the rest untouched (RFC 1035).

Pure: bytes in, values out. Whatever is not a plain query with one question is not parsed, and so not answered.
"""

import ipaddress
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from compatd.linux.netlink import Address

A, PTR, MX, AAAA, SRV, OPT = 1, 12, 15, 28, 33, 41
NOERROR, SERVFAIL, NXDOMAIN, REFUSED = 0, 2, 3, 5
IN = 1
TTL_S = 600  # moby daemon/libnetwork/resolver.go, respTTL
MAX_UDP_BYTES = 512
MAX_BYTES = 65_535

_HEADER = struct.Struct("!HHHHHH")
_RECORD = struct.Struct("!HHIH")
_QR, _TC, _RD, _RA = 0x8000, 0x0200, 0x0100, 0x0080
_OPCODE = 0x7800
_NAME_POINTER = b"\xc0\x0c"  # to the question's name, which follows the header


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """A query. ``name`` without the final dot, as sent; ``raw`` its question as it came; ``udp_bytes``: how long an
    answer by UDP may be."""

    id: int
    flags: int
    name: str
    type: int
    cls: int
    raw: bytes
    udp_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What is known of a name: addresses, or for PTR names; none of them: it exists, but has no such record."""

    addresses: Sequence[Address] = ()
    names: Sequence[str] = ()


def parse(message: bytes) -> Question | None:
    """The query in ``message``, or None when it is none."""
    if not _HEADER.size < len(message) <= MAX_BYTES:
        return None
    identity, flags, questions, answers, authorities, additional = _HEADER.unpack_from(message)
    if flags & (_QR | _OPCODE) or questions != 1 or answers or authorities:
        return None
    labels: list[str] = []
    offset = _HEADER.size
    while offset < len(message) and (size := message[offset]):
        if size > 63 or offset + 1 + size > len(message):
            return None
        # A dot within a label is no separator.
        labels.append(message[offset + 1 : offset + 1 + size].decode("latin-1").replace(".", "\\."))
        offset += 1 + size
    offset += 1
    if offset + 4 > len(message) or offset - _HEADER.size > 255:
        return None
    kind, cls = struct.unpack_from("!HH", message, offset)
    offset += 4
    return Question(
        id=identity,
        flags=flags,
        name=".".join(labels),
        type=kind,
        cls=cls,
        raw=message[_HEADER.size : offset],
        udp_bytes=_udp_bytes(message, offset) if additional else MAX_UDP_BYTES,
    )


def _udp_bytes(message: bytes, offset: int) -> int:
    """What an OPT record right after the question allows (RFC 6891)."""
    if message[offset : offset + 3] != b"\0" + OPT.to_bytes(2, "big") or offset + 5 > len(message):
        return MAX_UDP_BYTES
    return max(MAX_UDP_BYTES, int.from_bytes(message[offset + 3 : offset + 5], "big"))


def reply(question: Question, rcode: int, answer: Answer | None = None, *, limit: int = MAX_BYTES) -> bytes:
    """The message that answers ``question``; what passes ``limit`` bytes is left out, and the message says so."""
    records: list[bytes] = []
    if answer is not None:
        records += [
            _record(A if address.version == 4 else AAAA, address.packed)
            for address in answer.addresses
            if question.type == (A if address.version == 4 else AAAA)
        ]
        if question.type == PTR:
            records += [_record(PTR, encode_name(name)) for name in answer.names]
    flags = _QR | _RA | (question.flags & _RD) | rcode
    size = _HEADER.size + len(question.raw)
    fitting: list[bytes] = []
    for record in records:
        size += len(record)
        if size > limit:
            flags |= _TC
            break
        fitting.append(record)
    return _HEADER.pack(question.id, flags, 1, len(fitting), 0, 0) + question.raw + b"".join(fitting)


def rcode(message: bytes) -> int:
    """The result code of a reply; SERVFAIL of what is too short to be one."""
    return int(message[3] & 0xF) if len(message) >= _HEADER.size else SERVFAIL


def answers(message: bytes, question: Question) -> bool:
    """Whether a message is a reply to ``question`` (and not one that somebody else has made up)."""
    if len(message) < _HEADER.size:
        return False
    identity, flags, questions, *_ = _HEADER.unpack_from(message)
    sent = message[_HEADER.size : _HEADER.size + len(question.raw)]
    return (
        identity == question.id
        and bool(flags & _QR)
        and (questions == 0 or (questions == 1 and sent.lower() == question.raw.lower()))
    )


def truncated(message: bytes) -> bytes:
    """``message`` without its records, marked so that the client asks again by TCP."""
    identity, flags, *_ = _HEADER.unpack_from(message)
    end = _HEADER.size
    while end < len(message) and message[end]:
        end += 1 + message[end]
    return _HEADER.pack(identity, flags | _TC, 1, 0, 0, 0) + message[_HEADER.size : end + 5]


def encode_name(name: str) -> bytes:
    """A name as length-prefixed labels; a label that is too long is cut."""
    labels = [label.encode()[:63] for label in name.split(".") if label]
    return b"".join(bytes((len(label),)) + label for label in labels) + b"\0"


def reverse_address(name: str) -> Address | None:
    """The address that a PTR name (``2.0.17.172.in-addr.arpa``) asks for, or None if it asks for none."""
    labels = name.lower().split(".")
    if labels[-2:] == ["in-addr", "arpa"] and len(labels) == 6:
        text = ".".join(reversed(labels[:4]))
    elif labels[-2:] == ["ip6", "arpa"] and len(labels) == 34 and all(len(label) == 1 for label in labels[:32]):
        digits = "".join(reversed(labels[:32]))
        text = ":".join(digits[index : index + 4] for index in range(0, 32, 4))
    else:
        return None
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


def _record(kind: int, data: bytes) -> bytes:
    return _NAME_POINTER + _RECORD.pack(kind, IN, TTL_S, len(data)) + data

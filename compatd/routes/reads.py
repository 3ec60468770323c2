"""Reads that wait for nothing, answered when they arrive: without a task, and without turns of the event loop.

What clients ask most often and wait for most impatiently. aiohttp answers the same requests in the same words, and all
others; it takes two to three times as long, most of it between the arrival and the handler.
"""

import asyncio
import re
from collections.abc import Coroutine
from http import HTTPStatus
from typing import Any, cast

from aiohttp import web
from aiohttp.helpers import rfc822_formatted_time
from aiohttp.http import HttpVersion11, RawRequestMessage, StreamWriter
from aiohttp.streams import EMPTY_PAYLOAD
from multidict import CIMultiDict, CIMultiDictProxy
from yarl import URL

# One whole request without a body. What is not written the usual way is left to the real parser, as is every header
# that says something about the connection or the body.
_READ = re.compile(
    rb"(?:HEAD (/_ping)|GET ("
    rb"/_ping|(?:/v[0-9.]{3,9})?(?:/_ping|/version|/info|/images/json|/containers/json(?:\?all=1)?"
    rb"|/(?:containers|exec)/[a-zA-Z0-9][a-zA-Z0-9_.-]{0,127}/json)"
    rb")) HTTP/1\.1\r\n"
    rb"(?:(?:Host|User-Agent|Accept|Accept-Encoding|Content-Type|Traceparent):[ -~]*\r\n|Connection: keep-alive\r\n)+"
    rb"\r\n"
)
_LONGEST_BYTES = 4096


def parse(data: bytes) -> tuple[str, str] | None:
    """Method and target, if ``data`` is one of these requests."""
    if len(data) > _LONGEST_BYTES or b"\r\nHost:" not in data or (read := _READ.fullmatch(data)) is None:
        return None
    pinged, target = read.groups()
    return ("HEAD", pinged.decode()) if pinged else ("GET", target.decode())


def request_of(protocol: web.RequestHandler, method: str, target: str) -> web.BaseRequest:
    """As handlers know it. It has no task of its own, and nothing is to be written to it."""
    path, _, query = target.partition("?")
    message = RawRequestMessage(
        method=method,
        path=target,
        version=HttpVersion11,
        headers=CIMultiDictProxy(CIMultiDict[str]()),
        raw_headers=(),
        should_close=False,
        compression=None,
        upgrade=False,
        chunked=False,
        url=URL.build(path=path, query_string=query, encoded=True),
    )
    loop = asyncio.get_running_loop()
    return web.BaseRequest(message, EMPTY_PAYLOAD, protocol, StreamWriter(protocol, loop), cast(Any, None), loop)


def run(work: Coroutine[Any, Any, web.StreamResponse], method: str) -> bytes | None:
    """The answer that ``work`` comes to, head and body; ``None`` when it has to wait: then it has been given up."""
    try:
        work.send(None)
    except StopIteration as end:
        response = end.value
    else:
        work.close()
        return None
    if type(response) is not web.Response or not isinstance(body := response.body or b"", bytes):
        return None
    lines = [f"HTTP/1.1 {response.status} {HTTPStatus(response.status).phrase}"]
    lines += [f"{name}: {value}" for name, value in response.headers.items() if name != "Content-Length"]
    if method != "HEAD":
        lines.append(f"Content-Length: {len(body)}")
    lines.append(f"Date: {rfc822_formatted_time()}\r\n\r\n")
    return "\r\n".join(lines).encode() + body

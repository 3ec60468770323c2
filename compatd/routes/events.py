"""The events stream."""

from aiohttp import web

from compatd.core.events import Event
from compatd.errors import InvalidParameter
from compatd.routes import params
from compatd.routes.backends import Backends
from compatd.routes.call import Call, Handler
from compatd.wire import json
from compatd.wire.types.system import EventActor, EventMessage


async def events(backends: Backends, call: Call) -> web.StreamResponse:
    since, until = params.text(call, "since"), params.text(call, "until")
    since_ns, until_ns = params.timestamp_ns(since), params.timestamp_ns(until)
    if since_ns is not None and until_ns is not None and since_ns > until_ns:
        raise InvalidParameter(f"`since` time ({since}) cannot be after `until` time ({until})")
    stream = backends.events.listen(since_ns=since_ns, until_ns=until_ns, filters=params.filters(call))
    response = await call.stream("application/json")
    async for event in stream:
        await response.write(json.encode(message(event)))
    await response.write_eof()
    return response


def message(event: Event) -> EventMessage:
    """An event on the wire; containers and images also in the form of old (moby daemon/events/events.go)."""
    old = event.type in ("container", "image")
    return EventMessage(
        status=event.action if old else "",
        id=event.actor_id if old else "",
        from_=event.attributes.get("image", "") if event.type == "container" else "",
        type=event.type,
        action=event.action,
        actor=EventActor(id=event.actor_id, attributes=dict(sorted(event.attributes.items()))),
        scope="local",
        time=event.time_ns // 1_000_000_000,
        time_nano=event.time_ns,
    )


HANDLERS: dict[str, Handler] = {"SystemEvents": events}

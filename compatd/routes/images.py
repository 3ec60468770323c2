"""Images: lists, names, and the way in and out."""

from aiohttp import web

from compatd.errors import Unsupported
from compatd.routes import params
from compatd.routes.backends import Backends
from compatd.routes.call import Call, Handler, finish
from compatd.wire.parameters import ImportParameters, PullParameters


async def listing(backends: Backends, call: Call) -> web.StreamResponse:
    found = await backends.images.listing(
        params.filters(call), all=params.boolean(call, "all"), shared_size=params.boolean(call, "shared-size")
    )
    return call.json(found)


async def inspect(backends: Backends, call: Call) -> web.StreamResponse:
    return call.json(await backends.images.inspect(call.reference, params.platform(call, (1, 49))))


async def history(backends: Backends, call: Call) -> web.StreamResponse:
    return call.json(await backends.images.history(call.reference, params.platform(call, (1, 48))))


async def tag(backends: Backends, call: Call) -> web.StreamResponse:
    repo, tag = params.text(call, "repo"), params.text(call, "tag")
    if not repo:
        return call.empty(200)  # nor does Docker look for the image then
    await finish(call, backends.images.tag(call.reference, repo, tag))
    return call.empty(201)


async def remove(backends: Backends, call: Call) -> web.StreamResponse:
    if params.text(call, "platforms"):
        raise Unsupported("removing an image by platform is not supported by this engine")
    force, prune = params.boolean(call, "force"), not params.boolean(call, "noprune")
    return call.json(await finish(call, backends.images.remove(call.reference, force=force, prune=prune)))


async def prune(backends: Backends, call: Call) -> web.StreamResponse:
    return call.json(await finish(call, backends.images.prune(params.filters(call))))


async def create(backends: Backends, call: Call) -> web.StreamResponse:
    """Pull, or import: they share a path."""
    platform = params.text(call, "platform") if call.version >= (1, 32) else ""
    image = params.text(call, "fromImage")
    if image:
        return await call.stream_progress(
            backends.transfers.pull(
                PullParameters(image=image, tag=params.text(call, "tag"), platform=platform, auth=params.auth(call))
            )
        )
    return await call.stream_progress(
        backends.transfers.import_(
            ImportParameters(
                source=params.text(call, "fromSrc"),
                repo=params.text(call, "repo"),
                tag=params.text(call, "tag"),
                message=params.text(call, "message"),
                changes=call.query.getall("changes", []),
                platform=platform,
            ),
            params.chunks(call),
        )
    )


async def load(backends: Backends, call: Call) -> web.StreamResponse:
    quiet = params.boolean(call, "quiet", default=True)
    records = backends.transfers.load(params.chunks(call), quiet=quiet, platform=params.platform(call, (1, 48)))
    return await call.stream_progress(records, at_once=True)


async def save(backends: Backends, call: Call) -> web.StreamResponse:
    chunks = backends.transfers.save([call.reference], params.platform(call, (1, 48)))
    return await call.stream_bytes(chunks, "application/x-tar")


async def save_all(backends: Backends, call: Call) -> web.StreamResponse:
    names = [name for value in call.query.getall("names", []) for name in value.split(",") if name]
    chunks = backends.transfers.save(names, params.platform(call, (1, 48)))
    return await call.stream_bytes(chunks, "application/x-tar")


HANDLERS: dict[str, Handler] = {
    "ImageList": listing,
    "ImageInspect": inspect,
    "ImageHistory": history,
    "ImageTag": tag,
    "ImageDelete": remove,
    "ImagePrune": prune,
    "ImageCreate": create,
    "ImageLoad": load,
    "ImageGet": save,
    "ImageGetAll": save_all,
}

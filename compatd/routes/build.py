"""The classic builder's two operations."""

from typing import cast

from aiohttp import web

from compatd.errors import InvalidParameter
from compatd.routes import params
from compatd.routes.backends import Backends
from compatd.routes.call import Call, Handler, finish
from compatd.wire import json
from compatd.wire.parameters import BuildParameters, BuildPruneParameters
from compatd.wire.types.containers import Ulimit


async def build(backends: Backends, call: Call) -> web.StreamResponse:
    return await call.stream_progress(backends.builds.build(_parameters(call), params.chunks(call)))


def _parameters(call: Call) -> BuildParameters:
    """moby daemon/server/router/build/build_routes.go, newImageBuildOptions."""
    version = params.text(call, "version")
    if version not in ("", "1", "2"):
        raise InvalidParameter(f'invalid version "{version}"')
    # rm is on unless it is turned off; a client older than 1.12 would be the exception.
    return BuildParameters(
        dockerfile=params.text(call, "dockerfile"),
        tags=tuple(call.query.getall("t", [])),
        remote=params.text(call, "remote"),
        quiet=params.boolean(call, "q"),
        no_cache=params.boolean(call, "nocache"),
        cache_from=tuple(params.json_parameter(call, "cachefrom", list[str], "error reading cache-from") or ()),
        pull=params.boolean(call, "pull"),
        remove=params.boolean(call, "rm", default=True),
        force_remove=params.boolean(call, "forcerm"),
        memory=params.number_or_zero(call, "memory"),
        memory_swap=params.number_or_zero(call, "memswap"),
        cpu_shares=params.number_or_zero(call, "cpushares"),
        cpu_period=params.number_or_zero(call, "cpuperiod"),
        cpu_quota=params.number_or_zero(call, "cpuquota"),
        cpuset_cpus=params.text(call, "cpusetcpus"),
        cpuset_mems=params.text(call, "cpusetmems"),
        cgroup_parent=params.text(call, "cgroupparent"),
        shm_size=params.integer(params.text(call, "shmsize") or "0"),
        ulimits=tuple(
            (limit.name, limit.soft, limit.hard)
            for limit in params.json_parameter(call, "ulimits", list[Ulimit], "error reading ulimit settings") or ()
        ),
        args=_arguments(call),
        labels=params.json_parameter(call, "labels", dict[str, str], "error reading labels") or {},
        network_mode=params.text(call, "networkmode"),
        extra_hosts=tuple(_extra_hosts(call)),
        security_opt=tuple(call.query.getall("securityopt", [])),
        isolation=params.text(call, "isolation"),
        squash=params.boolean(call, "squash"),
        platform=params.text(call, "platform") if call.version >= (1, 32) else "",
        target=params.text(call, "target"),
        outputs=params.text(call, "outputs") if call.version >= (1, 40) else "",
        version=version,
        auths=params.auths(call),
    )


def _arguments(call: Call) -> dict[str, str | None]:
    """Null stands for an argument that has no value, which msgspec's plain types cannot say in a map of Go's."""
    value = params.text(call, "buildargs")
    if not value:
        return {}
    what = "error reading build args"
    try:
        document = json.parse(value.encode())
    except json.DecodeError as error:
        raise InvalidParameter(f"{what}: {error}") from None
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise InvalidParameter(f"{what}: json: cannot unmarshal into Go value of type map[string]*string")
    for key, item in cast(dict[str, object], document).items():
        if item is not None and type(item) is not str:
            raise InvalidParameter(f"{what}: json: cannot unmarshal into Go value .{key} of type string")
    return cast(dict[str, str | None], document)


def _extra_hosts(call: Call) -> list[str]:
    """``host:address,…``, or a JSON list of such, as some clients send it."""
    value = params.text(call, "extrahosts")
    if value.startswith("["):
        return params.json_parameter(call, "extrahosts", list[str], "error reading extra hosts") or []
    return [host for host in value.split(",") if host]


async def prune(backends: Backends, call: Call) -> web.StreamResponse:
    keep = "reserved-space" if call.version >= (1, 48) and "reserved-space" in call.query else "keep-storage"
    return call.json(
        await finish(
            call,
            backends.builds.prune(
                BuildPruneParameters(
                    all=params.boolean(call, "all"),
                    filters=params.filters(call),
                    reserved_space=_space(call, keep),
                    max_used_space=_space(call, "max-used-space"),
                    min_free_space=_space(call, "min-free-space"),
                )
            ),
        )
    )


def _space(call: Call, name: str) -> int:
    value = params.text(call, name)
    return params.integer(value) if value else 0


HANDLERS: dict[str, Handler] = {"ImageBuild": build, "BuildPrune": prune}

"""A container's log: what its shim is told to write, and what is read of it.

containers/<id>/<id>-json.log             the json-file driver's
containers/<id>/local-logs/container.log  the local driver's
containers/<id>/container-cached.log      the other drivers': a copy for ``docker logs``, in the local driver's form
"""

import os
import posixpath
import socket
from collections.abc import AsyncIterator, Mapping

from compatd.core.container import ContainerRecord
from compatd.core.inspection import ContainerPaths
from compatd.errors import InvalidParameter, SystemFailure
from compatd.logs import drivers, syslog, tag
from compatd.logs.files import Codec, Follow, Selection, stream
from compatd.logs.format import Rendering, error_frame
from compatd.logs.info import Info, extra_attributes
from compatd.logs.json_file import JsonFile
from compatd.logs.local import Local
from compatd.runtime.client import start_failure
from compatd.shim import spec as shim
from compatd.shim.failures import words
from compatd.tasks import Workers
from compatd.wire.types.containers import LogConfig

JOURNAL_SOCKET = "/run/systemd/journal/socket"
LOCAL_SIZE_BYTES, LOCAL_FILES = 20 << 20, 5  # moby daemon/logger/local/local.go


def check_log(log: LogConfig, default: LogConfig) -> LogConfig:
    """The log configuration that is stored. ``InvalidParameter`` in Docker's words."""
    driver = log.type or default.type
    options = drivers.merge(driver, log.config or {}, default.type, default.config or {})
    drivers.check(driver, options)
    return LogConfig(type=driver, config=options)


def check_default(driver: str, options: Mapping[str, str]) -> None:
    """``InvalidParameter`` when the engine's own log configuration is no good."""
    try:
        drivers.check(driver, options)
    except InvalidParameter as error:
        raise InvalidParameter(f"failed to set log opts: {error}") from None


def check_options(record: ContainerRecord, paths: ContainerPaths) -> None:
    """``SystemFailure`` for options with which the container does not start: so Docker's reader, who needs the writer's
    to be good when it does not run."""
    try:
        plan(record, paths)
    except ValueError as error:
        raise SystemFailure(str(error)) from None


async def open_log(
    record: ContainerRecord, paths: ContainerPaths, workers: Workers
) -> tuple[shim.Log, socket.socket | None]:
    """What the shim is told of the log, and the connection to hand to it, which the caller owns.

    ``StartFailed`` in Docker's words (each driver's New in moby daemon/logger).
    """
    try:
        return await _open(record, paths, workers)
    except ValueError as error:
        text = f"failed to create task for container: failed to initialize logging driver: {error}"
        raise start_failure(text, _exit_code(text)) from None


def _exit_code(text: str) -> int:
    """By what the text says (moby daemon/errors.go, setExitCodeFromError)."""
    return 126 if "permission denied" in text else 127 if "no such file or directory" in text else 128


async def _open(
    record: ContainerRecord, paths: ContainerPaths, workers: Workers
) -> tuple[shim.Log, socket.socket | None]:
    log, connection = plan(record, paths), None
    if "syslog" in log:
        options = record.host_config.log_config.config or {}
        log["syslog"], connection = await syslog.connect(options, log["syslog"], workers)
    elif "journal" in log:
        connection = _connect_journal()
    if "path" in log:
        await workers.run(os.makedirs, posixpath.dirname(log["path"]), 0o700, True)
    return log, connection


def plan(record: ContainerRecord, paths: ContainerPaths) -> shim.Log:
    """What the shim is told of the log, but for what only a connection tells. ``ValueError``, as at a start."""
    driver, options = record.host_config.log_config.type, record.host_config.log_config.config or {}
    info = describe(record, paths)
    log: shim.Log
    if driver == drivers.NONE:
        return shim.Log(driver="none")
    if driver == "json-file":
        log = _json_file(options)
        attributes = extra_attributes(info)
        if name := tag.render(info, default=""):
            attributes["tag"] = name
        if attributes:
            log["attrs"] = attributes
    elif driver == "local":
        log = _local(options)
    else:
        log = _copy(options)
        if driver == "syslog":
            log["driver"], log["syslog"] = "syslog", syslog.describe(options, tag.render(info))
        else:
            log["driver"], log["journal"] = "journald", _journal(info)
    if (path := log_path(record, paths)) is not None:
        log["path"] = path
    if (waiting := drivers.buffer_bytes(options)) is not None:
        log["buffer"] = waiting
    return log


def describe(record: ContainerRecord, paths: ContainerPaths) -> Info:
    """What a driver knows of the container."""
    program = record.args
    driver = record.host_config.log_config.type
    return Info(
        config=record.host_config.log_config.config or {},
        container_id=record.id,
        name=f"/{record.name}",
        entrypoint=program[0] if program else "",
        args=program[1:],
        image_id=record.image_id,
        image_name=record.config.image,
        created_ns=record.created_ns,
        env=record.config.env or (),
        labels=record.config.labels or {},
        log_path=(log_path(record, paths) or "") if driver in drivers.READABLE else "",
    )


def _json_file(options: dict[str, str]) -> shim.Log:
    log = shim.Log(driver="json-file")
    if "max-size" in options:
        log["max_size"] = drivers.parse_size(options["max-size"])
        if log["max_size"] <= 0:
            raise ValueError("max-size must be a positive number")
    if "max-file" in options:
        log["max_file"] = drivers.parse_count(options["max-file"])
        if log["max_file"] < 1:
            raise ValueError("max-file cannot be less than 1")
    if "compress" in options:
        log["compress"] = drivers.parse_bool(options["compress"])
        if log["compress"] and (log.get("max_file", 1) == 1 or "max_size" not in log):
            raise ValueError("compress cannot be true when max-file is less than 2 or max-size is not set")
    return log


def _local(options: dict[str, str]) -> shim.Log:
    size_bytes, files, compress = LOCAL_SIZE_BYTES, LOCAL_FILES, True
    for option, told in (("max-size", "invalid value for max-size: "), ("max-file", "invalid value for max-file: ")):
        if (text := options.get(option)) is not None:
            try:
                if option == "max-size":
                    size_bytes = drivers.parse_size(text)
                else:
                    files = drivers.parse_count(text)
            except ValueError as error:
                raise ValueError(f"{told}{text}: {error}") from None
    if (text := options.get("compress")) is not None:
        try:
            compress = drivers.parse_bool(text)
        except ValueError as error:
            raise ValueError(f"error reading compress log option: {error}") from None
    if size_bytes < 0:
        raise ValueError("max size should be a positive number")
    if files < 0:
        raise ValueError("max file count cannot be less than 0")
    if compress and files <= 1:
        raise ValueError("compression cannot be enabled when max file count is 1")
    # No size at all is a file for each message.
    return shim.Log(driver="local", max_size=max(1, size_bytes), max_file=max(1, files), compress=compress)


def _copy(options: dict[str, str]) -> shim.Log:
    """The copy's size, files and compression; what of the cache-… options makes no sense is as if it were not there,
    since Docker looks at none of them."""
    prefix = "cache-"
    chosen = {key.removeprefix(prefix): value for key, value in options.items() if key.startswith(prefix)}
    for kept in (chosen, {}):
        try:
            log = _local({key: value for key, value in kept.items() if key != "disabled"})
        except ValueError:
            continue
        return log
    raise AssertionError("the defaults are good")


def _connect_journal() -> socket.socket:
    journal = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        journal.connect(JOURNAL_SOCKET)
    except OSError:
        journal.close()
        raise ValueError("journald is not enabled on this host") from None
    return journal


def _journal(info: Info) -> shim.Journal:
    """moby daemon/logger/journald, New."""
    name = tag.render(info)
    fields = {
        "CONTAINER_ID": info.container_id[:12],
        "CONTAINER_ID_FULL": info.container_id,
        "CONTAINER_NAME": info.name.removeprefix("/"),
        "CONTAINER_TAG": name,
        "IMAGE_NAME": info.image_name,
        "SYSLOG_IDENTIFIER": name,
    }
    extra = {key: value for key, value in extra_attributes(info, field_name).items() if key}
    return shim.Journal(path=JOURNAL_SOCKET, fields=fields | extra)


def field_name(key: str) -> str:
    """What journald takes for a field's name: upper case, digits, and no underscore first."""
    upper = "".join(c.upper() if "a" <= c <= "z" else c if "A" <= c <= "Z" or "0" <= c <= "9" else "_" for c in key)
    return upper.lstrip("_")


# ---------------------------------------------------------------- reading


def log_path(record: ContainerRecord, paths: ContainerPaths) -> str | None:
    """The file that can be read, and its older parts beside it; None when the driver keeps none."""
    log = record.host_config.log_config
    if not drivers.is_readable(log.type, log.config or {}):
        return None
    if log.type == "json-file":
        return paths.log
    return posixpath.join(
        paths.directory, "local-logs/container.log" if log.type == "local" else "container-cached.log"
    )


async def read(
    path: str,
    driver: str,
    selection: Selection,
    rendering: Rendering,
    *,
    workers: Workers,
    running: bool,
    follow: Follow | None,
) -> AsyncIterator[bytes]:
    """The log as the API sends it; one of a container that is ``running`` is there, unless somebody took it away. What
    goes wrong is said in the stream, whose head has been sent."""
    codec: Codec = JsonFile() if driver == "json-file" else Local()
    try:
        pieces = stream(path, selection, rendering, codec=codec, workers=workers, required=running, follow=follow)
        async for piece in pieces:
            yield piece
    except OSError as error:
        yield error_frame(f"Error grabbing logs: open {path}: {words(error)}\n", framed=rendering.framed)

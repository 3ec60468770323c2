"""The composition root: builds every service, in order, and knows all of them. Nothing else does.

Start: the data root is locked and read, the kernel side is restored from it (``core.recovery``), then requests are
served. The sockets were bound before, so clients that come early wait instead of being refused. End: the sockets are
closed, tasks are cancelled, the store is closed; containers go on, and the next engine adopts them.
"""

import asyncio
import logging
import os
import signal
import sys
from contextlib import AsyncExitStack
from pathlib import Path

from compatd import tasks
from compatd.config import Config
from compatd.core.archives import Archives
from compatd.core.builds import Builds
from compatd.core.catalog import Catalog
from compatd.core.commits import Commits
from compatd.core.connections import Connections
from compatd.core.containers import Containers
from compatd.core.events import Events
from compatd.core.execs import Execs
from compatd.core.images import Images
from compatd.core.logs import check_default
from compatd.core.networks import Networks
from compatd.core.oom import OomKills
from compatd.core.preparation import Preparation
from compatd.core.probes import Probes
from compatd.core.recovery import Recovery
from compatd.core.statistics import Statistics
from compatd.core.store import Store
from compatd.core.supervisor import Supervisor
from compatd.core.system import System
from compatd.core.transfers import Transfers
from compatd.core.updates import Updates
from compatd.core.volumes import Volumes
from compatd.errors import SystemFailure
from compatd.images.content import ContentStore
from compatd.images.directories import DirectoryStore, why_unpacked
from compatd.linux.inotify import Watches
from compatd.linux.placement import spread
from compatd.listeners import Listeners, notify
from compatd.network.driver import BridgeDriver
from compatd.network.relay import Relays
from compatd.routes.backends import Backends
from compatd.routes.server import serve
from compatd.runtime import cgroups
from compatd.runtime.client import Spawner
from compatd.runtime.host import probe_host
from compatd.tasks import Workers
from compatd.volumes.local import LocalVolumes

log = logging.getLogger(__name__)

WORKER_THREADS = 16
STOP_TIMEOUT_S = 5.0


async def start(config: Config, stack: AsyncExitStack) -> Backends:
    """Bring up every service; ``stack`` takes them down again. ``EngineError``: this machine or its data refuse."""
    check_default(config.log_driver, config.log_opts)
    for root, mode in ((config.data_root, 0o710), (config.exec_root, 0o700)):
        os.makedirs(root, mode=mode, exist_ok=True)
    for part in ("containers", "build"):
        directory = Path(config.data_root) / part
        directory.mkdir(mode=0o710, exist_ok=True)
        spread(directory)
    spawner = Spawner()
    stack.push_async_callback(spawner.close)
    # A launch waits for it, nothing else does: an interpreter starts while we read our state, and longer.
    spawner_start = tasks.spawn(spawner.start(), name="spawner start")
    stack.push_async_callback(asyncio.wait, {spawner_start})
    workers = Workers(WORKER_THREADS)
    stack.callback(workers.close)
    store = Store(Path(config.data_root))
    stack.callback(store.close)
    host = probe_host(cgroup_parent=config.cgroup_parent or "/docker")
    await workers.run(cgroups.prepare, host)
    events = Events()
    watches = Watches()
    stack.callback(watches.close)
    data = Path(config.data_root)
    content = ContentStore(data)
    layers, layer_form = await workers.run(_open_layers, config, data)
    stack.callback(layers.close)
    images = Images(store=store, events=events, content=content, layers=layers, workers=workers)
    volumes = Volumes(store=store, events=events, local=LocalVolumes(data / "volumes"), workers=workers)
    driver = BridgeDriver(host_ip=config.ip if config.ip != "0.0.0.0" else "", relays=Relays())
    stack.callback(driver.close)
    networks = Networks(config=config, store=store, events=events, driver=driver, workers=workers)
    stack.callback(networks.discovery.close_all)
    preparation = Preparation(
        config=config, host=host, layers=layers, networks=networks, volumes=volumes, workers=workers
    )
    supervisor = Supervisor(store=store, events=events, networks=networks, preparation=preparation, spawner=spawner)
    containers = Containers(
        config=config,
        store=store,
        images=images,
        networks=networks,
        volumes=volumes,
        supervisor=supervisor,
        preparation=preparation,
        host=host,
        workers=workers,
        watches=watches,
    )
    networks.find_container = lambda reference: containers.get(reference).record
    networks.running = lambda: [container.record for container in containers]
    execs = Execs(containers=containers, supervisor=supervisor, preparation=preparation)
    containers.exec_ids = execs.ids_of
    OomKills(supervisor=supervisor, preparation=preparation, workers=workers, watches=watches)
    Probes(supervisor=supervisor, execs=execs)
    transfers = Transfers(config=config, images=images, content=content, layers=layers, workers=workers)
    stack.push_async_callback(transfers.close)
    builds = Builds(
        config=config,
        store=store,
        host=host,
        images=images,
        transfers=transfers,
        layers=layers,
        preparation=preparation,
        networks=networks,
        volumes=volumes,
        spawner=spawner,
        workers=workers,
    )
    system = System(
        config=config,
        host=host,
        events=events,
        containers=containers,
        images=images,
        volumes=volumes,
        builds=builds,
        layer_form=layer_form,
    )
    await networks.ensure_predefined()
    await workers.run(volumes.sweep)
    recovery = Recovery(
        containers=containers,
        supervisor=supervisor,
        preparation=preparation,
        networks=networks,
        images=images,
        volumes=volumes,
        builds=builds,
        workers=workers,
    )
    await recovery.run()
    stack.push_async_callback(tasks.cancel_all, timeout_s=STOP_TIMEOUT_S)
    stack.push_async_callback(asyncio.wait, {spawner_start})  # cut off, it would leave a process behind
    stack.push_async_callback(preparation.settle)
    stack.callback(supervisor.stop_watching)
    return Backends(
        containers=containers,
        archives=Archives(containers=containers, supervisor=supervisor, preparation=preparation, workers=workers),
        updates=Updates(containers=containers, supervisor=supervisor, preparation=preparation, host=host),
        commits=Commits(
            containers=containers,
            supervisor=supervisor,
            preparation=preparation,
            images=images,
            layers=layers,
            workers=workers,
        ),
        statistics=Statistics(containers=containers, networks=networks, preparation=preparation, workers=workers),
        execs=execs,
        images=Catalog(images=images, users=lambda: [container.record.image_id for container in containers]),
        transfers=transfers,
        builds=builds,
        networks=networks,
        connections=Connections(
            containers=containers, networks=networks, supervisor=supervisor, preparation=preparation, workers=workers
        ),
        volumes=volumes,
        system=system,
        logins=transfers,
        events=events,
    )


def _open_layers(config: Config, data: Path) -> tuple[DirectoryStore, str]:
    """The layer store, and what it makes of a layer. ``SystemFailure``: not the form that was demanded."""
    if config.storage_driver == "directories":
        return DirectoryStore(data), "directories"
    reason = why_unpacked(data)
    if reason and config.storage_driver == "erofs":
        raise SystemFailure(f"error initializing graphdriver: driver not supported: erofs: {reason}")
    if reason:
        log.info("image layers are unpacked: %s", reason)
    return DirectoryStore(data, indexed=not reason), "directories" if reason else "erofs"


def run(config: Config, listeners: Listeners) -> int:
    """Serve until SIGTERM or SIGINT; the exit status. ``EngineError``: the engine could not start."""
    logging.basicConfig(
        level={"trace": "DEBUG", "debug": "DEBUG", "info": "INFO", "warn": "WARNING"}.get(config.log_level, "ERROR")
        if not config.debug
        else "DEBUG",
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    # Threads that hold the interpreter lock give it up within a millisecond, so that requests are answered in time.
    sys.setswitchinterval(0.001)
    return asyncio.run(_run(config, listeners))


async def _run(config: Config, listeners: Listeners) -> int:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with AsyncExitStack() as stack:
        backends = await start(config, stack)
        server = await serve(backends, listeners.sockets)
        stack.push_async_callback(server.close)
        notify("READY=1")
        log.info("API listen on %s", ", ".join(config.hosts))
        await stop.wait()
        notify("STOPPING=1")
        log.info("shutting down: running containers go on")
    return 0

"""What a container needs on the host: files, volumes, network, and the document its shim is launched with.

    <data-root>/containers/<id>/
        upper, work               the writable layer
        hosts, hostname, resolv.conf   made anew at each start, bound into the container
        <id>-json.log             its output, written by the shim
    <exec-root>/containers/<id>/  the shim's: its socket, the exit status

Everything acquired for a start goes on the caller's stack. Removal happens off the reply's path; what a killed engine
leaves here is swept at the next start (``core.recovery``), since no record mentions it any more.
"""

import asyncio
import contextlib
import logging
import os
import shutil
import socket
import stat
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import msgspec

from compatd import tasks
from compatd.config import Config
from compatd.core import defaults, endpoints, sharing
from compatd.core.container import ContainerRecord, MountPoint, PendingAttach, PendingWait
from compatd.core.inspection import ContainerPaths, directory_paths
from compatd.core.logs import open_log
from compatd.core.mounting import Mounting
from compatd.core.networks import Networks
from compatd.core.translation import container_spec, environment, resources
from compatd.core.volumes import Volumes
from compatd.errors import InvalidParameter, NotFound, SystemFailure
from compatd.images import diff
from compatd.images.content import DiffId
from compatd.images.layers import LayerStore
from compatd.linux.assembly import Assembly, Bind, clone_root
from compatd.linux.rootdir import Rootdir
from compatd.network import files
from compatd.network.driver import Endpoint
from compatd.network.files import DnsConfig, resolve_extra_hosts
from compatd.runtime import cgroups, stats, top
from compatd.runtime.host import Host
from compatd.runtime.spec import build_exec, build_launch
from compatd.shim import process, users
from compatd.shim import spec as shim
from compatd.shim.failures import Failed
from compatd.shim.spec import Attach, Exec, Launch, Wait
from compatd.tasks import Workers
from compatd.wire.types.containers import ExecCreateRequest, TopResponse
from compatd.wire.types.networks import EndpointSettings

log = logging.getLogger(__name__)

SETTLE_S = 5.0


@dataclass(slots=True, kw_only=True)
class Prepared:
    """What a start has acquired. ``netns_fd``, ``fds`` and ``log_connection`` are owned until ``release``.

    ``shared``: what comes from other containers, by kind; ``sources``: detached mounts, by target; both are among
    ``fds``. ``mounts``: the record's, as they will be.
    """

    networks: dict[str, EndpointSettings]
    endpoints: dict[str, Endpoint] = field(default_factory=dict[str, Endpoint])
    lowers: Sequence[str] = ()
    mounts: tuple[MountPoint, ...] = ()
    netns_fd: int | None = None
    fds: list[int] = field(default_factory=list[int])
    shared: dict[str, int] = field(default_factory=dict[str, int])
    sources: dict[str, int] = field(default_factory=dict[str, int])
    extra_hosts: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    log: shim.Log = field(default_factory=lambda: shim.Log(driver="none"))
    log_connection: socket.socket | None = None

    def release(self) -> None:
        """Close what only the start needed; the container keeps the namespace alive itself."""
        if self.netns_fd is not None:
            os.close(self.netns_fd)
            self.netns_fd = None
        if self.log_connection is not None:
            self.log_connection.close()
            self.log_connection = None
        while self.fds:
            os.close(self.fds.pop())


class Preparation:
    """Owns the containers' directories."""

    def __init__(
        self,
        *,
        config: Config,
        host: Host,
        layers: LayerStore,
        networks: Networks,
        volumes: Volumes,
        workers: Workers,
    ) -> None:
        self._data = Path(config.data_root) / "containers"
        self._state = Path(config.exec_root) / "containers"
        self._host = host
        self._layers = layers
        self._networks = networks
        self._config = config
        self._security = defaults.security(config)
        self._workers = workers
        self._discards: dict[str, asyncio.Task[None]] = {}
        self._removals: set[asyncio.Task[None]] = set()
        self._mounting = Mounting(
            layers=layers,
            volumes=volumes,
            running=lambda: networks.running(),
            recursive_readonly=host.recursive_readonly,
        )

    def paths(self, container_id: str) -> ContainerPaths:
        """Where a container's files are, whether or not they are there."""
        return directory_paths(f"{self._data}/{container_id}", container_id)

    def state_dir(self, container_id: str) -> Path:
        """Where its shim is found."""
        return self._state / container_id

    def _network_owner(self, record: ContainerRecord) -> ContainerRecord:
        """Whose hostname, hosts and resolv.conf a container has: those of the one whose network it shares, if any."""
        mode = record.host_config.network_mode
        return (
            self._networks.find_container(mode.removeprefix("container:")) if mode.startswith("container:") else record
        )

    def check(self, record: ContainerRecord) -> None:
        """Try to build the launch document without touching anything; what is wrong with the options raises."""
        netns_fd = None if record.host_config.network_mode == "host" else 0
        with contextlib.suppress(SystemFailure):  # what Docker finds out at the start only is told then
            spec = container_spec(
                record,
                paths=self.paths(record.id),
                state_dir=str(self._state),
                lowers=(),
                netns_fd=netns_fd,
                defaults=self._security,
            )
            build_launch(spec, self._host)

    # ------------------------------------------------------------------- start

    async def prepare(self, record: ContainerRecord, undo: AsyncExitStack) -> Prepared:
        """Make everything ready for the shim; each acquisition is undone by ``undo`` unless the start succeeds."""
        self._networks.links.check(record)
        if (discard := self._discards.get(record.id)) is not None:
            await asyncio.wait({discard})  # it would take away what is made now
        undo.callback(self._discard_cgroups, record)  # of a shim that was killed while it started
        joined = await self._networks.connect(record)
        prepared = Prepared(networks=joined.settings, endpoints=joined.endpoints, netns_fd=joined.namespace_fd)
        undo.callback(prepared.release)
        undo.callback(self._networks.discovery.close, record.id)
        undo.callback(self._mounting.release, record)
        for endpoint in prepared.endpoints.values():
            undo.push_async_callback(self._networks.disconnect, endpoint)
        prepared.shared = await self._workers.run(
            sharing.open_shared, record, self._networks.find_container, prepared.fds
        )
        prepared.extra_hosts = resolve_extra_hosts(record.host_config.extra_hosts or (), self._gateways())
        prepared.extra_hosts += self._networks.links.hosts(record)
        prepared.lowers = await self._workers.run(self._prepare_files, record, prepared)
        prepared.log, prepared.log_connection = await open_log(record, self.paths(record.id), self._workers)
        return prepared

    def _prepare_files(self, record: ContainerRecord, prepared: Prepared) -> Sequence[str]:
        paths = self.paths(record.id)
        os.makedirs(paths.directory, mode=0o710, exist_ok=True)
        for directory in (paths.upper, paths.work):
            os.makedirs(directory, exist_ok=True)
        state = self.state_dir(record.id)
        shutil.rmtree(state, ignore_errors=True)
        state.mkdir(mode=0o700, parents=True)
        cgroups.clear(self._cgroup(record))
        if record.host_config.cgroup_parent or not self._cgroup(record).has_parent:
            cgroups.prepare(self._host, record.host_config.cgroup_parent)
        if not record.host_config.network_mode.startswith("container:") and not record.config.network_disabled:
            self._write_files(record, paths, prepared)
        lowers = self._layers.lowers([DiffId(layer) for layer in record.layers])
        prepared.mounts, prepared.sources = self._mounting.prepare(record, prepared.fds)
        return lowers

    def _write_files(self, record: ContainerRecord, paths: ContainerPaths, prepared: Prepared) -> None:
        config = record.config
        on_host = record.host_config.network_mode == "host"
        hosts = files.hosts(
            addresses=endpoints.addresses(prepared.endpoints),
            hostname=config.hostname,
            domainname=config.domainname,
            extra=prepared.extra_hosts,
        )
        if on_host:
            hosts = _host_file("/etc/hosts") + "".join(f"{ip}\t{name}\n" for name, ip in prepared.extra_hosts)
        for path, text in (
            (paths.resolv_conf, self._resolv_conf(record, on_host, self._networks.has_dns(prepared.networks))),
            (paths.hosts, hosts),
            (paths.hostname, files.hostname(config.hostname)),
        ):
            with open(path, "w", encoding="utf-8") as file:
                file.write(text)
            os.chmod(path, 0o644)

    def _resolv_conf(self, record: ContainerRecord, on_host: bool, own_resolver: bool) -> str:
        host_config = record.host_config
        dns = DnsConfig(
            nameservers=host_config.dns or self._config.dns,
            search=host_config.dns_search or self._config.dns_search,
            options=host_config.dns_options or self._config.dns_opts,
        )
        host = files.host_resolv_conf(host_network=on_host)
        return files.resolv_conf(host, dns, host_network=on_host, own_resolver=own_resolver)

    def update_files(self, record: ContainerRecord, before: ContainerRecord) -> None:
        """Have a running container's hosts file and resolver follow the networks it is in; what it has written into
        the files itself stays. Blocks."""
        paths = self.paths(record.id)
        _rewrite(paths.hosts, lambda text: self._change_hosts(text, record, before))
        if self._networks.has_dns(record.networks) and not self._networks.has_dns(before.networks):
            resolver = self._resolv_conf(record, False, True)
            _rewrite(paths.resolv_conf, lambda text: resolver if files.is_generated(text) else text)

    async def tell_parents(self, record: ContainerRecord) -> None:
        """Have containers that are linked to one that has started know its address."""
        for parent in self._networks.links.parents(record):
            pairs = self._networks.links.hosts(parent)
            path = self.paths(parent.id).hosts
            await self._workers.run(_rewrite, path, partial(files.relink_hosts, links=pairs))

    def _change_hosts(self, text: str, record: ContainerRecord, before: ContainerRecord) -> str:
        old, new = endpoints.addresses(before.endpoints), endpoints.addresses(record.endpoints)
        config = record.config
        return files.change_hosts(
            text,
            removed=[address for address in old if address not in new],
            added=[address for address in new if address not in old],
            hostname=config.hostname,
            domainname=config.domainname,
        )

    def _gateways(self) -> list[str]:
        if self._config.host_gateway_ips:
            return list(self._config.host_gateway_ips)
        return self._networks.gateways

    def build(
        self,
        record: ContainerRecord,
        prepared: Prepared,
        attaches: Sequence[PendingAttach],
        waits: Sequence[PendingWait],
    ) -> tuple[Launch, list[int]]:
        """The launch document, and the descriptors that go with it (all still owned by their owners)."""
        fds = list(prepared.fds)
        index = {fd: number for number, fd in enumerate(fds)}
        if prepared.netns_fd is not None:
            index[prepared.netns_fd] = len(fds)
            fds.append(prepared.netns_fd)
        handed: list[Attach] = []
        for pending in attaches:
            handed.append({**pending.attach, "fd": len(fds)})
            fds.append(pending.socket.fd)
        waiting: list[Wait] = []
        for wait in waits:
            waiting.append({"fd": len(fds), "condition": "removed" if wait.condition == "removed" else "exit"})
            fds.append(wait.socket.fd)
        log = prepared.log
        if prepared.log_connection is not None:
            log = log.copy()
            log["fd"] = len(fds)
            fds.append(prepared.log_connection.fileno())
        owner = self._network_owner(record)
        named = msgspec.structs.replace(
            record.config, hostname=owner.config.hostname, domainname=owner.config.domainname
        )
        spec = container_spec(
            msgspec.structs.replace(record, config=named, mounts=prepared.mounts),
            paths=self.paths(record.id),
            state_dir=str(self.state_dir(record.id)),
            lowers=prepared.lowers,
            network_files=self.paths(owner.id),
            linked=self._networks.links.environment(record),
            defaults=self._security,
            netns_fd=None if prepared.netns_fd is None else index[prepared.netns_fd],
            shared={kind: index[fd] for kind, fd in prepared.shared.items()},
            sources={target: index[fd] for target, fd in prepared.sources.items()},
            log=log,
        )
        return build_launch(spec, self._host, attaches=handed, waits=waiting), fds

    def build_exec(
        self,
        record: ContainerRecord,
        exec_id: str,
        request: ExecCreateRequest,
        attach: Attach | None,
        console_size: tuple[int, int] | None,
    ) -> Exec:
        """The document for one more process in a running container."""
        spec = container_spec(
            record,
            paths=self.paths(record.id),
            state_dir=str(self.state_dir(record.id)),
            lowers=(),
            defaults=self._security,
        )
        own = {entry.partition("=")[0] for entry in request.env or ()}
        linked = self._networks.links.environment(record)
        inherited = [entry for entry in environment(record, linked) if entry.partition("=")[0] not in own]
        return build_exec(
            spec,
            self._host,
            exec_id=exec_id,
            args=request.cmd or (),
            env=[*inherited, *(entry for entry in request.env or () if "=" in entry)],
            cwd=request.working_dir or record.config.working_dir,
            user=request.user or record.config.user,
            tty=request.tty,
            privileged=request.privileged,
            console_size=console_size,
            attach=attach,
        )

    def assemble(self, record: ContainerRecord, pid: int, *, mounts: bool = True) -> Assembly:
        """A container's root, with its binds and volumes if ``mounts``, for looking and copying.

        ``pid`` 0: it does not run. The caller closes it. Blocks.
        """
        paths = self.paths(record.id)
        root_fd = -1
        if pid:
            # It may end meanwhile; then what it has left is shown.
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                root_fd = clone_root(pid)
        if root_fd < 0:
            for directory in (paths.upper, paths.work):
                os.makedirs(directory, exist_ok=True)
            root_fd = self._layers.mount(
                [DiffId(layer) for layer in record.layers], Path(paths.upper), Path(paths.work)
            )
        wanted = record if mounts else msgspec.structs.replace(record, mounts=())
        try:
            with self._mounting.binds(wanted) as binds:
                binds = [*binds, *self._network_files(record)] if mounts else binds
                return Assembly(root_fd, binds, readonly=record.host_config.readonly_rootfs)
        except OSError as error:  # what the container has at a mount's target is no place for it
            raise SystemFailure(f"error mounting the container's files: {(error.strerror or '').lower()}") from error
        finally:
            os.close(root_fd)

    def populate(self, record: ContainerRecord) -> None:
        """Make a new container's working directory, and fill its empty volumes from its image. Blocks.

        ``SystemFailure`` in Docker's words: something else is in the place of either.
        """
        if record.config.working_dir not in ("", "/"):
            self._make_working_directory(record)
        self._mounting.populate(record)

    def _network_files(self, record: ContainerRecord) -> list[Bind]:
        """What is bound into it at each start, once that has been (moby container_unix.go, NetworkMounts)."""
        try:
            paths = self.paths(self._network_owner(record).id)
        except NotFound:
            return []
        files = {"/etc/resolv.conf": paths.resolv_conf, "/etc/hostname": paths.hostname, "/etc/hosts": paths.hosts}
        covered = {point.target for point in record.mounts}
        return [
            Bind(source=source, target=target)
            for target, source in files.items()
            if target not in covered and os.path.exists(source)
        ]

    def _make_working_directory(self, record: ContainerRecord) -> None:
        """In the writable layer, so for diff and cp as well (moby daemon/container, SetupWorkingDirectory)."""
        path, layers = record.config.working_dir, [DiffId(layer) for layer in record.layers]
        with Rootdir(self._layers.mount(layers)) as root:
            try:
                os.close(root.open(path, os.O_PATH | os.O_DIRECTORY))
                return
            except FileNotFoundError:
                pass
            except NotADirectoryError as error:
                raise SystemFailure(f"Cannot mkdir: {path} is not a directory") from error
            except OSError:
                return  # a link into the container's own /proc: the start will tell
        paths = self.paths(record.id)
        for directory in (paths.upper, paths.work):
            os.makedirs(directory, exist_ok=True)
        try:
            with Rootdir(self._layers.mount(layers, Path(paths.upper), Path(paths.work))) as root:
                root.makedirs(path)
        except OSError as error:
            raise SystemFailure(f"mkdir {path}: {(error.strerror or str(error)).lower()}") from error

    def changes(self, record: ContainerRecord) -> list[diff.Change]:
        """What the writable layer changes in the image. Blocks."""
        upper = self.paths(record.id).upper
        if not os.path.isdir(upper):
            return []
        lower = Rootdir(self._layers.mount([DiffId(layer) for layer in record.layers], init=True))
        with Rootdir.of(upper) as own, lower:
            return diff.changes(own, lower)

    def copy_upper(self, record: ContainerRecord) -> DiffId | None:
        """What the container has written as a layer, ``None`` if that is nothing. Blocks."""
        upper = self.paths(record.id).upper
        return self._layers.commit(Path(upper), keep=True) if os.path.isdir(upper) else None

    def owner_of(self, record: ContainerRecord) -> tuple[int, int]:
        """(uid, gid) of the user a container runs as, for copies that are to belong to it."""
        identity = self._identify(record, record.config.user)
        return identity.uid, identity.gid

    async def check_user(self, record: ContainerRecord, user: str) -> None:
        """``InvalidParameter`` in Docker's words for a ``user[:group]`` that a container does not know."""
        await self._workers.run(self._identify, record, user)

    def _identify(self, record: ContainerRecord, user: str) -> users.Identity:
        try:
            with self.assemble(record, record.pid) as tree:
                passwd, group = (process.account_file(tree.root, name) for name in ("passwd", "group"))
            return users.resolve(user, (), passwd, group)
        except Failed as error:
            raise InvalidParameter(str(error)) from error
        except OSError as error:
            raise SystemFailure(f"unable to find user {user}: {(error.strerror or '').lower()}") from error

    # --------------------------------------------------------------------- end

    async def end_orphans(self, record: ContainerRecord) -> None:
        """End what a killed shim has left alive: an init that is paused does not hear that its parent has died."""
        await self._workers.run(cgroups.clear, self._cgroup(record))

    def discard(self, record: ContainerRecord) -> None:
        """Let go of what only a running container needs. Its shim removes its own cgroup; this catches the rest."""
        self._mounting.release(record)
        self._discard_cgroups(record)

    def _discard_cgroups(self, record: ContainerRecord) -> None:
        self._discards[record.id] = tasks.spawn(self._discard(record), name=f"cgroups of {record.id[:12]}")

    async def _discard(self, record: ContainerRecord) -> None:
        try:
            await self._workers.run(cgroups.remove, self._cgroup(record))
        except SystemFailure as error:
            log.warning("container %s: %s", record.id[:12], error)
        finally:
            self._discards.pop(record.id, None)

    def remove_later(self, record: ContainerRecord) -> None:
        """Remove a container's directories, off the caller's path."""
        removal = tasks.spawn(self._workers.run(self.remove, record.id), name=f"files of {record.id[:12]}")
        self._removals.add(removal)
        removal.add_done_callback(self._removals.discard)

    async def settle(self) -> None:
        """Before an orderly end of the engine: let what is being taken away go."""
        if pending := {*self._removals, *self._discards.values()}:
            await asyncio.wait(pending, timeout=SETTLE_S)

    def remove(self, container_id: str) -> None:
        """Remove a container's directories and cgroups now. Nothing that others can reach is followed."""
        place = cgroups.locate(self._host, container_id)
        with contextlib.suppress(SystemFailure):  # busy: the next start will see to it
            if cgroups.pids(place):
                cgroups.kill_all(place)
            cgroups.remove(place)
        for directory in (self._data / container_id, self._state / container_id):
            shutil.rmtree(directory, ignore_errors=True)

    def left_cgroups(self) -> set[str]:
        """Every id that has a cgroup. Blocks."""
        return cgroups.containers(self._host)

    def known_ids(self) -> set[str]:
        """Every id that has a directory or a cgroup, whether or not a record mentions it. Blocks."""
        found = cgroups.containers(self._host)
        for root in (self._data, self._state):
            if root.is_dir():
                found |= {entry.name for entry in os.scandir(root)}
        return found

    # ----------------------------------------------------------------- cgroups

    def cgroup(self, record: ContainerRecord) -> cgroups.ContainerCgroup:
        """Where a running container's cgroups are."""
        return self._cgroup(record)

    def _cgroup(self, record: ContainerRecord) -> cgroups.ContainerCgroup:
        return cgroups.locate(self._host, record.id, record.host_config.cgroup_parent)

    async def freeze(self, record: ContainerRecord) -> None:
        """Stop every process of a container where it is."""
        await self._workers.run(cgroups.freeze, self._cgroup(record))

    async def thaw(self, record: ContainerRecord) -> None:
        """Let them go on."""
        await self._workers.run(cgroups.thaw, self._cgroup(record))

    async def change_limits(self, record: ContainerRecord, changes: cgroups.Resources) -> None:
        """Bring a running container's limits from those of ``record`` to ``changes``. ``SystemFailure``: refused."""
        await self._workers.run(cgroups.update, self._cgroup(record), resources(record.host_config), changes)

    async def kill_all(self, record: ContainerRecord) -> None:
        """SIGKILL everything in a container's cgroup, whoever its parent is."""
        await self._workers.run(cgroups.kill_all, self._cgroup(record))

    def stats(self, record: ContainerRecord) -> stats.Stats:
        """What a running container uses. Blocks."""
        return stats.read(self._cgroup(record), self._host)

    def top(self, record: ContainerRecord, ps_args: str) -> TopResponse:
        """The processes of a container in the columns of ``ps``."""
        titles, rows = top.list_processes(sorted(cgroups.pids(self._cgroup(record))), ps_args)
        return TopResponse(titles=titles, processes=rows or None)

    def upper_size_bytes(self, container_id: str) -> int:
        """Bytes of what is in the writable layer, directories apart; hard links count once."""
        total = 0
        seen: set[tuple[int, int]] = set()
        try:
            upper = Rootdir.of(self.paths(container_id).upper)
        except FileNotFoundError:
            return 0
        with upper:
            pending = [b"."]
            while pending:
                directory = pending.pop()
                try:
                    entries = upper.entries(directory)
                except OSError:  # gone meanwhile
                    continue
                for name, status in entries:
                    if stat.S_ISDIR(status.st_mode):
                        pending.append(directory + b"/" + name)
                    elif (status.st_dev, status.st_ino) not in seen:
                        seen.add((status.st_dev, status.st_ino))
                        total += status.st_size
        return total


def _host_file(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


def _rewrite(path: str, change: Callable[[str], str]) -> None:
    """Change a file in place: the container has this very file mounted."""
    with contextlib.suppress(FileNotFoundError), open(path, "r+", encoding="utf-8", errors="replace") as file:
        text = file.read(files.LIMIT_BYTES)
        changed = change(text)
        if changed != text:
            file.seek(0)
            file.truncate()
            file.write(changed)

"""The engine's memory on disk: one SQLite file, written by one thread, read once at start.

    engine.db
      meta        key, value                     schema: the number of migrations applied
      containers  key = id                       core.containers.ContainerRecord
      images      key = image id                 core.images.ImageRecord
      names       key = canonical reference      the image id that it points to
      networks    key = id                       core.networks.NetworkRecord
      volumes     key = name                     core.volumes.VolumeRecord
      builds      key = cache key                core.builds.CacheRecord

Every table but ``meta`` is (key TEXT PRIMARY KEY, document BLOB): a document is the JSON of one record, whose
type is the schema. Services keep their records in memory and write through; nothing is read again while the
engine runs.

A commit is acknowledged when SQLite has it in its write-ahead log: it survives the engine being killed at any
instant. A crash leaves the state before or after a whole commit, never between. Directories and blobs are not
mentioned here: what no record refers to is swept at start (``core.recovery``).

The file is locked for as long as the engine runs, so a data root serves one engine at a time.
"""

import asyncio
import fcntl
import os
import queue
import sqlite3
import threading
from dataclasses import dataclass
from pathlib import Path

from compatd.errors import SystemFailure

TABLES = ("containers", "images", "names", "networks", "volumes", "builds")

# One entry per schema change, oldest first; never edited once released. Each has a test that migrates old data.
MIGRATIONS: tuple[str, ...] = (
    "".join(f"CREATE TABLE {table} (key TEXT PRIMARY KEY, document BLOB NOT NULL) WITHOUT ROWID;" for table in TABLES),
)


@dataclass(frozen=True, slots=True)
class Put:
    """Write ``document`` under ``key``, whether or not it is there."""

    table: str
    key: str
    document: bytes


@dataclass(frozen=True, slots=True)
class Delete:
    """Remove ``key``; nothing happens when it is not there."""

    table: str
    key: str


Change = Put | Delete


class Store:
    """Owns the database, its writer thread and the data root's lock, until ``close``."""

    def __init__(self, data_root: Path) -> None:
        """Lock the data root, open the database and bring its schema up to date.

        ``SystemFailure``: another engine has the data root, or the file is damaged or from a newer engine.
        """
        self._lock_fd = _lock(data_root)
        path = data_root / "engine.db"
        try:
            self._database = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=NORMAL")
            self._migrate()
        except sqlite3.DatabaseError as error:
            os.close(self._lock_fd)
            raise SystemFailure(f"the engine's database {path} cannot be used: {error}") from error
        self._pending: queue.SimpleQueue[tuple[tuple[Change, ...], asyncio.Future[None]] | None] = queue.SimpleQueue()
        self._writer = threading.Thread(target=self._write, name="store", daemon=True)
        self._writer.start()

    def load(self, table: str) -> list[tuple[str, bytes]]:
        """Every (key, document) of ``table``. For start-up, before anything is committed."""
        if table not in TABLES:
            raise ValueError(table)
        return list(self._database.execute(f"SELECT key, document FROM {table} ORDER BY key"))

    async def commit(self, *changes: Change) -> None:
        """Make ``changes`` durable together. ``SystemFailure`` (and no change) when the disk refuses."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pending.put((changes, done))
        # A commit once queued happens; a cancelled request must not make its caller believe otherwise.
        await asyncio.shield(done)

    def close(self) -> None:
        """Write what is queued and give the data root back."""
        self._pending.put(None)
        self._writer.join()
        self._database.close()
        os.close(self._lock_fd)

    def _migrate(self) -> None:
        self._database.execute("CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value TEXT NOT NULL)")
        row = self._database.execute("SELECT value FROM meta WHERE key = 'schema'").fetchone()
        applied = int(row[0]) if row else 0
        if applied > len(MIGRATIONS):
            raise SystemFailure(f"the data root was written by a newer engine (schema {applied})")
        for number, script in enumerate(MIGRATIONS[applied:], applied + 1):
            self._database.executescript(
                f"BEGIN; {script} INSERT OR REPLACE INTO meta VALUES ('schema', '{number}'); COMMIT;"
            )

    def _write(self) -> None:
        running = True
        while running:
            batch = [self._pending.get()]
            # Whatever else is waiting shares the transaction.
            while not self._pending.empty():
                batch.append(self._pending.get())
            running = None not in batch
            work = [entry for entry in batch if entry is not None]
            if not work:
                continue
            error: Exception | None = None
            try:
                self._database.execute("BEGIN IMMEDIATE")
                for changes, _ in work:
                    for change in changes:
                        self._apply(change)
                self._database.execute("COMMIT")
            except sqlite3.Error as failure:
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")
                error = SystemFailure(f"the engine's database refuses to write: {failure}")
            for _, done in work:
                done.get_loop().call_soon_threadsafe(_settle, done, error)

    def _apply(self, change: Change) -> None:
        match change:
            case Put(table, key, document):
                self._database.execute(f"INSERT OR REPLACE INTO {table} VALUES (?, ?)", (key, document))
            case Delete(table, key):
                self._database.execute(f"DELETE FROM {table} WHERE key = ?", (key,))


def _settle(done: asyncio.Future[None], error: Exception | None) -> None:
    if done.done():
        return
    if error is None:
        done.set_result(None)
    else:
        done.set_exception(error)


def _lock(data_root: Path) -> int:
    fd = os.open(data_root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(fd)
        raise SystemFailure(f"the data root {data_root} is in use by another engine") from error
    return fd

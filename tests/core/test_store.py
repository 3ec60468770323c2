"""The store: what is acknowledged is there after a kill, and a data root serves one engine at a time."""

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from compatd.core.store import MIGRATIONS, Delete, Put, Store
from compatd.errors import SystemFailure

pytestmark = pytest.mark.unit


async def test_commit_is_seen_by_the_next_engine(tmp_path: Path) -> None:
    store = Store(tmp_path)
    await store.commit(Put("containers", "a", b"1"), Put("names", "n", b"2"))
    await store.commit(Delete("containers", "a"), Put("containers", "b", b"3"))
    store.close()
    again = Store(tmp_path)
    assert again.load("containers") == [("b", b"3")]
    assert again.load("names") == [("n", b"2")]
    again.close()


async def test_second_engine_is_refused(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(SystemFailure, match="in use by another engine"):
        Store(tmp_path)
    store.close()
    Store(tmp_path).close()


def test_acknowledged_commits_survive_sigkill(tmp_path: Path) -> None:
    program = (
        "import asyncio, sys\n"
        "from pathlib import Path\n"
        "from compatd.core.store import Put, Store\n"
        "async def main():\n"
        "    store = Store(Path(sys.argv[1]))\n"
        "    number = 0\n"
        "    while True:\n"
        "        await store.commit(Put('containers', str(number), b'x'))\n"
        "        print(number, flush=True)\n"
        "        number += 1\n"
        "asyncio.run(main())\n"
    )
    writer = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert writer.stdout is not None
    acknowledged = [int(writer.stdout.readline()) for _ in range(50)]
    os.kill(writer.pid, signal.SIGKILL)
    acknowledged += [int(line) for line in writer.stdout.read().split()]
    writer.wait()
    writer.stdout.close()
    store = Store(tmp_path)
    assert {int(key) for key, _ in store.load("containers")} >= set(acknowledged)
    store.close()


def test_damaged_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / "engine.db").write_bytes(b"garbage" * 1000)
    with pytest.raises(SystemFailure, match=r"engine\.db cannot be used"):
        Store(tmp_path)


def test_newer_schema_is_refused(tmp_path: Path) -> None:
    Store(tmp_path).close()
    database = sqlite3.connect(tmp_path / "engine.db")
    with database:
        database.execute("UPDATE meta SET value = ? WHERE key = 'schema'", (str(len(MIGRATIONS) + 1),))
    database.close()
    with pytest.raises(SystemFailure, match="newer engine"):
        Store(tmp_path)

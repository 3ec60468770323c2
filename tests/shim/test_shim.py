"""The shim at its edges: a busy engine, a full log disk, small limits, and where the time of a start goes."""

import asyncio
import base64
import gzip
import json
import os
import signal
import socket
import statistics
import struct
import time
from pathlib import Path

import pytest

from compatd.runtime.client import Spawner
from compatd.shim import protocol
from tests.shim.containers import WAIT_S, Nursery, Peer, attach, end, exec_of, output, run, streams

pytestmark = pytest.mark.root


async def test_an_engine_that_does_not_read_misses_nothing(nursery: Nursery, spawner: Spawner) -> None:
    """More events than its socket holds: they wait for it, the container goes on."""
    launch = nursery.launch("sleep", "1000")
    shim = await spawner.launch(launch)
    shim.close()
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    await asyncio.to_thread(_connect, sock, Path(launch["state_dir"]))
    with sock:
        received = protocol.receive(sock)
        assert received is not None
        count = 500
        for number in range(count):
            spec = {**exec_of(launch, "no-such-program"), "exec_id": f"{number}-{'x' * 2000}"}
            await asyncio.to_thread(protocol.send, sock, {"type": "exec", "exec": spec})
        failed = 0
        while failed < count:
            received = await asyncio.to_thread(protocol.receive, sock)
            assert received is not None
            failed += received[0]["type"] == "exec_failed"
        protocol.send(sock, {"type": "signal", "number": signal.SIGKILL})
        while True:
            received = await asyncio.to_thread(protocol.receive, sock)
            assert received is not None
            if received[0]["type"] == "exited":
                break
        protocol.send(sock, {"type": "release"})


def _connect(sock: socket.socket, state_dir: Path) -> None:

    directory = os.open(state_dir, os.O_PATH | os.O_DIRECTORY)
    try:
        sock.connect(f"/proc/self/fd/{directory}/{protocol.SOCKET_NAME}")
    finally:
        os.close(directory)


async def test_a_log_that_cannot_be_opened_fails_the_start(nursery: Nursery, spawner: Spawner) -> None:
    launch = nursery.launch("true", log={"driver": "json-file", "path": "/no/such/place"})
    with pytest.raises(Exception, match="no such file or directory"):
        await run(spawner, launch)


async def test_a_full_log_disk_does_not_stop_the_container(nursery: Nursery, spawner: Spawner) -> None:
    launch = nursery.launch("sh", "-c", "seq 100000; echo done >&2", log={"driver": "json-file", "path": "/dev/full"})
    peer = Peer()
    launch["attaches"] = [attach()]
    shim = await spawner.launch(launch, [peer.give()])
    peer.given()
    received = streams(await peer.rest())
    assert received[1].endswith(b"\n100000\n")
    assert received[2] == b"done\n"
    assert (await end(shim))["code"] == 0


async def test_rotation_and_compression_while_output_goes_on(nursery: Nursery, spawner: Spawner) -> None:
    launch = nursery.launch("sh", "-c", "seq 60000")
    launch["log"] = {**launch["log"], "max_size": 1_000_000, "max_file": 20, "compress": True}
    assert (await run(spawner, launch))["code"] == 0
    path = Path(launch["log"]["path"])
    deadline = time.monotonic() + WAIT_S
    while not path.with_name("log.1.gz").exists():  # the shim ends when the last one is done
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)
    rotated = sorted(path.parent.glob("log.*.gz"), key=lambda file: -int(file.name.split(".")[1]))
    records = b"".join(gzip.decompress(file.read_bytes()) for file in rotated) + path.read_bytes()
    assert [int(json.loads(record)["log"]) for record in records.splitlines()] == list(range(1, 60001))


async def test_docker_s_smallest_memory_limit_is_enough(nursery: Nursery, spawner: Spawner) -> None:
    launch = nursery.launch("echo", "fits", cgroups=True)
    for file in launch["cgroup"]["joins"]:
        directory = Path(file).parent
        if (directory.parent.parent / "memory.limit_in_bytes").exists():
            launch["cgroup"]["writes"].append((f"{directory}/memory.limit_in_bytes", str(6 << 20)))
    assert (await run(spawner, launch))["code"] == 0
    assert output(launch) == "fits\n"


async def test_device_rules_as_a_program(nursery: Nursery, spawner: Spawner) -> None:
    """cgroup v2: a program that lets device nodes be made and nothing but /dev/null be opened."""
    launch = nursery.launch("sh", "-c", "head -c1 /dev/zero", cgroups=True)
    unified = Path(launch["cgroup"]["joins"][-1]).parent
    if not (unified.parent.parent / "cgroup.controllers").exists():
        pytest.skip("no cgroup v2 here")
    program = [
        (0x61, 0x12, 0, 0),  # r2 = context.access_type
        (0x77, 0x02, 0, 16),  # the kind of access: its upper half
        (0x61, 0x13, 8, 0),  # r3 = context.minor
        (0xB7, 0x00, 0, 1),
        (0x15, 0x02, 2, 1),  # BPF_DEVCG_ACC_MKNOD: allowed
        (0x15, 0x03, 1, 3),
        (0xB7, 0x00, 0, 0),
        (0x95, 0x00, 0, 0),
    ]
    code = b"".join(struct.pack("=BBhi", *instruction) for instruction in program)
    launch["cgroup"]["device_program"] = base64.b64encode(code).decode()
    launch["cgroup"]["device_cgroup"] = str(unified)
    assert (await run(spawner, launch))["code"] != 0
    assert "Operation not permitted" in output(launch, "stderr")


async def test_an_init_gives_its_program_the_terminal(nursery: Nursery, spawner: Spawner) -> None:
    """A background process that reads from its terminal is stopped."""
    launch = nursery.launch("sh", "-c", "read line; echo got $line", tty=True, open_stdin=True, init=True)
    peer = Peer()
    launch["attaches"] = [attach(stdin=True)]
    shim = await spawner.launch(launch, [peer.give()])
    peer.given()
    await peer.send(b"x\r")
    assert b"got x\r\n" in await peer.rest()
    assert (await end(shim))["code"] == 0


async def test_where_the_time_goes(nursery: Nursery, spawner: Spawner) -> None:
    """For reading, with -s; loose bounds keep it from rotting."""
    starts: list[float] = []
    execs: list[float] = []
    phases: dict[str, list[int]] = {}
    for _ in range(20):
        launch = nursery.launch("true", cgroups=True)
        begin = time.perf_counter()
        shim = await spawner.launch(launch)
        starts.append((time.perf_counter() - begin) * 1000)
        await end(shim)
        for name, us in shim.phases.items():
            phases.setdefault(name, []).append(us)
    launch = nursery.launch("sleep", "1000", cgroups=True)
    shim = await spawner.launch(launch)
    for _ in range(20):
        begin = time.perf_counter()
        process = await shim.exec(exec_of(launch, "true"))
        execs.append((time.perf_counter() - begin) * 1000)
        await process.exited
    await shim.signal(signal.SIGKILL)
    await end(shim)
    print(f"\nstart {statistics.median(starts):.1f} ms, exec {statistics.median(execs):.1f} ms")
    for name, values in phases.items():
        print(f"  {name:18}{statistics.median(values) / 1000:7.2f} ms")
    assert statistics.median(starts) < 200
    assert statistics.median(execs) < 200

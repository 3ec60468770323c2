"""Streams between a container and its clients: framing, ends, back-pressure, detaching."""

import asyncio
import json
import os
import signal
import socket
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compatd.runtime.client import Shim, Spawner
from compatd.shim.spec import Launch, MountOp
from compatd.shim.stdio import CLIENT_BUFFER_BYTES, DetachKeys
from tests.shim.containers import WAIT_S, Nursery, Peer, attach, end, output, streams


@pytest.mark.unit
class TestDetachKeys:
    @given(st.lists(st.binary(max_size=5)), st.binary(min_size=1, max_size=3))
    @settings(max_examples=100)
    def test_input_passes_until_the_keys_and_nothing_after(self, chunks: list[bytes], keys: bytes) -> None:
        matcher, passed, found = DetachKeys(keys), b"", False
        for chunk in chunks:
            more, found = matcher.feed(chunk)
            passed += more
            if found:
                break
        everything = b"".join(chunks)
        assert found == (keys in everything)
        if found:
            assert passed == everything[: everything.index(keys)]
        else:
            assert everything.startswith(passed)
            assert keys.startswith(everything[len(passed) :])  # no more than a part of the keys is held back

    def test_without_keys_all_passes(self) -> None:
        assert DetachKeys(b"").feed(b"\x10\x11") == (b"\x10\x11", False)


pytestmark: list[pytest.MarkDecorator] = []


async def attached(spawner: Spawner, launch: Launch, *, stdin: bool = False, **changes: object) -> tuple[Shim, Peer]:
    """Start with a client attached."""
    peer = Peer()
    launch["attaches"].append(attach(0, stdin=stdin, **changes))
    shim = await asyncio.wait_for(spawner.launch(launch, [peer.give()]), WAIT_S)
    peer.given()
    return shim, peer


@pytest.mark.root
async def test_frames_and_log(nursery: Nursery, spawner: Spawner) -> None:
    launch = nursery.launch("sh", "-c", "echo out; echo err >&2; printf end")
    shim, peer = await attached(spawner, launch)
    assert streams(await peer.rest()) == {1: b"out\nend", 2: b"err\n"}
    assert (await end(shim))["code"] == 0
    assert (output(launch), output(launch, "stderr")) == ("out\nend", "err\n")


@pytest.mark.root
async def test_output_waits_until_the_head_has_been_read(nursery: Nursery, spawner: Spawner) -> None:
    launch = nursery.launch("echo", "output")
    launch["attaches"].append(attach(0))
    engine, client = socket.socketpair()
    with engine, client:
        engine.send(b"head")
        shim = await asyncio.wait_for(spawner.launch(launch, [engine.fileno()]), WAIT_S)
        engine.close()
        while not output(launch):
            await asyncio.sleep(0)
        assert client.recv(100) == b"head"
        client.settimeout(WAIT_S)
        assert await asyncio.to_thread(client.recv, 100) == b"\1\0\0\0\0\0\0\7output\n"
    await end(shim)


@pytest.mark.root
async def test_only_the_streams_that_were_asked_for(nursery: Nursery, spawner: Spawner) -> None:
    shim, peer = await attached(spawner, nursery.launch("sh", "-c", "echo out; echo err >&2"), stdout=False)
    assert streams(await peer.rest()) == {2: b"err\n"}
    await end(shim)


@pytest.mark.root
async def test_input_with_what_was_read_already_and_its_end(nursery: Nursery, spawner: Spawner) -> None:
    launch = nursery.launch("cat", open_stdin=True, stdin_once=True)
    shim, peer = await attached(spawner, launch, stdin=True, head=b"first ")
    await peer.send(b"second")
    peer.finish()
    assert streams(await peer.rest()) == {1: b"first second"}
    assert (await end(shim))["code"] == 0


@pytest.mark.root
async def test_input_is_not_ended_by_a_client_that_gives_none(nursery: Nursery, spawner: Spawner) -> None:
    launch = nursery.launch("sh", "-c", "sleep 0.3; echo done")
    shim, peer = await attached(spawner, launch)
    peer.finish()  # as the CLI does at once without -i
    assert streams(await peer.rest()) == {1: b"done\n"}
    await end(shim)


@pytest.mark.root
async def test_without_stdin_once_the_clients_end_is_not_the_containers(nursery: Nursery, spawner: Spawner) -> None:
    """moby attach.go: then the client's output ends, and the container goes on for the next client."""
    launch = nursery.launch("cat", open_stdin=True, stdin_once=False)
    shim, first = await attached(spawner, launch, stdin=True)
    await first.send(b"one\n")
    await first.until(b"one\n")
    first.finish()
    assert await first.rest() == b""
    second = Peer()
    await shim.attach(attach(stdin=True), second.give())
    second.given()
    await second.send(b"two\n")
    await second.until(b"two\n")
    await shim.signal(signal.SIGKILL)
    assert await second.rest() == b""
    assert (await end(shim))["code"] == 137
    assert output(launch) == "one\ntwo\n"


@pytest.mark.root
async def test_a_client_that_vanishes_harms_nobody(nursery: Nursery, spawner: Spawner) -> None:
    launch = nursery.launch("sh", "-c", "while ! [ -e /go ]; do echo x; sleep 0.01; done; echo last")
    shim, gone = await attached(spawner, launch)
    stays = Peer()
    await shim.attach(attach(), stays.give())
    stays.given()
    await gone.until(b"x\n")
    gone.close()
    await stays.until(b"x\n")
    (Path(f"/proc/{shim.pid}/root") / "go").touch()
    assert (await stays.rest()).endswith(b"last\n")
    assert (await end(shim))["code"] == 0


@pytest.mark.root
async def test_stdin_closes_with_the_vanished_client(nursery: Nursery, spawner: Spawner) -> None:
    launch = nursery.launch("cat", open_stdin=True, stdin_once=True)
    shim, peer = await attached(spawner, launch, stdin=True)
    await peer.send(b"all of it")
    peer.close()
    assert (await end(shim))["code"] == 0
    assert output(launch) == "all of it"


@pytest.mark.root
async def test_a_slow_client_blocks_the_container_and_loses_nothing(nursery: Nursery, spawner: Spawner) -> None:
    size = 8 * CLIENT_BUFFER_BYTES
    script = f"head -c {size} /dev/zero; echo written >&2; touch /written"
    launch = nursery.launch("sh", "-c", script, log={"driver": "none"})
    shim, peer = await attached(spawner, launch)
    written = Path(f"/proc/{shim.pid}/root/written")
    deadline = time.monotonic() + 1
    while time.monotonic() < deadline:
        assert not written.exists()
        await asyncio.sleep(0.05)
    received = streams(await peer.rest())
    assert (len(received[1]), received[2]) == (size, b"written\n")
    await end(shim)


@pytest.mark.root
async def test_input_waits_for_the_process(nursery: Nursery, spawner: Spawner) -> None:
    launch = nursery.launch(
        "sh", "-c", "while ! [ -e /go ]; do sleep 0.01; done; wc -c", open_stdin=True, stdin_once=True
    )
    shim, peer = await attached(spawner, launch, stdin=True)
    size = 4 << 20
    sending = asyncio.ensure_future(peer.send(bytes(size)))
    done, _ = await asyncio.wait({sending}, timeout=0.5)
    assert not done
    (Path(f"/proc/{shim.pid}/root") / "go").touch()
    await sending
    peer.finish()
    assert streams(await peer.rest()) == {1: b"%d\n" % size}
    await end(shim)


@pytest.mark.root
async def test_unread_input_does_not_cost_output(nursery: Nursery, spawner: Spawner) -> None:
    """Closing a connection with input unread would reset it, and the client would lose what it has not read yet."""
    launch = nursery.launch(
        "sh", "-c", "while ! [ -e /go ]; do sleep 0.01; done; echo bye", open_stdin=True, stdin_once=True
    )
    shim, peer = await attached(spawner, launch, stdin=True)
    sending = asyncio.ensure_future(peer.send(bytes(4 << 20)))
    await asyncio.wait({sending}, timeout=0.2)
    (Path(f"/proc/{shim.pid}/root") / "go").touch()
    assert (await asyncio.wait_for(shim.exited, WAIT_S))["code"] == 0
    assert streams(await peer.rest()) == {1: b"bye\n"}
    sending.cancel()
    await asyncio.wait({sending})
    peer.close()
    await end(shim)


@pytest.mark.root
async def test_a_late_client_gets_the_end(nursery: Nursery, spawner: Spawner) -> None:
    shim, peer = await attached(spawner, nursery.launch("true"))
    await asyncio.wait_for(shim.exited, WAIT_S)
    assert await peer.rest() == b""
    late = Peer()
    await shim.attach(attach(stdin=True), late.give())
    late.given()
    assert await late.rest() == b""
    await end(shim)


@pytest.mark.root
class TestTerminal:
    async def test_it_is_one(self, nursery: Nursery, spawner: Spawner) -> None:
        script = "tty; stty size; ls -l /dev/console | cut -c1-10; echo $TERM; cut -d' ' -f7 /proc/self/stat"
        launch = nursery.launch("sh", "-c", script, tty=True, console_size=(33, 77))
        shim, peer = await attached(spawner, launch)
        lines = (await peer.rest()).decode().split("\r\n")
        assert lines[:4] == ["/dev/pts/0", "33 77", "crw--w----", "xterm"]
        assert int(lines[4]) == 136 << 8  # the controlling terminal's device number, pts/0
        await end(shim)

    async def test_resize_input_and_interrupt(self, nursery: Nursery, spawner: Spawner) -> None:
        script = (
            "trap 'stty size' WINCH; trap 'echo interrupted; exit 3' INT; echo ready; while true; do sleep 0.02; done"
        )
        launch = nursery.launch("sh", "-c", script, tty=True, open_stdin=True)
        shim, peer = await attached(spawner, launch, stdin=True)
        await peer.until(b"ready\r\n")
        await shim.resize(40, 132)
        await peer.until(b"40 132\r\n")
        await peer.send(b"\x03")
        assert b"interrupted\r\n" in await peer.rest()
        assert (await end(shim))["code"] == 3

    async def test_detach_keys(self, nursery: Nursery, spawner: Spawner) -> None:
        launch = nursery.launch("cat", tty=True, open_stdin=True)
        shim, peer = await attached(spawner, launch, stdin=True, detach_keys=[0x10, 0x11])
        heard: list[str | None] = []
        shim.detached = heard.append
        await peer.send(b"hello\r\x10")
        await peer.until(b"hello")
        await peer.send(b"\x11ignored")
        await peer.rest()
        again = Peer()
        await shim.attach(attach(stdin=True), again.give())
        again.given()
        await again.send(b"again\r")
        await again.until(b"again")
        assert heard == [None]
        await shim.signal(signal.SIGKILL)
        await again.rest()
        await end(shim)
        assert "ignored" not in output(launch)

    async def test_it_survives_having_no_opener(self, nursery: Nursery, spawner: Spawner) -> None:
        """As with init systems, which close and open the console as they like."""
        script = (
            "exec </dev/null >/dev/null 2>&1; sleep 0.1; echo back >/dev/console; sleep 0.1; echo last >/dev/console"
        )
        launch = nursery.launch("sh", "-c", script, tty=True)
        shim, peer = await attached(spawner, launch)
        assert await peer.rest() == b"back\r\nlast\r\n"
        await end(shim)


@pytest.mark.root
async def test_all_output_is_logged_before_the_exit_is_told(nursery: Nursery, spawner: Spawner) -> None:
    for _ in range(5):
        launch = nursery.launch("sh", "-c", "seq 20000")
        shim = await spawner.launch(launch)
        await asyncio.wait_for(shim.exited, WAIT_S)
        assert output(launch).splitlines()[-1] == "20000"
        await end(shim)


@pytest.mark.root
async def test_children_that_keep_the_streams_do_not_keep_the_exit(nursery: Nursery, spawner: Spawner) -> None:
    """With the host's pid namespace they outlive the init, unless they are in its cgroup; here there is none."""
    launch = nursery.launch("sh", "-c", "sleep 1000 & echo $!; exit 5")
    launch["namespaces"]["pid"] = {"mode": "host"}
    begin = time.monotonic()
    shim = await spawner.launch(launch)
    assert (await end(shim))["code"] == 5
    assert 1.5 < time.monotonic() - begin < 10
    os.kill(int(output(launch)), signal.SIGKILL)


@pytest.mark.root
async def test_throughput(nursery: Nursery, spawner: Spawner) -> None:
    """Loose bounds; the figures are for reading (-s)."""
    size = 200 << 20
    line = b"x" * 99 + b"\n"
    source = nursery.folder / "lines"
    source.write_bytes(line * (size // 100))
    mounts = [MountOp(kind="bind", source=str(source), target="/lines")]
    launch = nursery.launch("cat", "/lines", mounts=mounts, log={"driver": "none"})
    begin = time.monotonic()
    shim, peer = await attached(spawner, launch)
    received = 0
    while chunk := await peer.read(1 << 20):
        received += len(chunk)
    took_s = time.monotonic() - begin
    peer.close()
    await end(shim)
    assert received >= size
    launch = nursery.launch("cat", "/lines", mounts=mounts)
    begin = time.monotonic()
    shim = await spawner.launch(launch)
    await asyncio.wait_for(shim.exited, 60)
    logged_s = time.monotonic() - begin
    await end(shim)
    with Path(launch["log"]["path"]).open("rb") as log:
        assert json.loads(log.readline())["log"] == line.decode()
        assert sum(1 for _ in log) + 1 == size // 100
    Path(launch["log"]["path"]).unlink()
    source.unlink()
    print(f"\nattach {size / took_s / 1e6:.0f} MB/s, log {size / logged_s / 1e6:.0f} MB/s")
    assert size / took_s > 50e6
    assert size / logged_s > 20e6


@pytest.mark.root
async def test_the_first_clients_hear_everything(nursery: Nursery, spawner: Spawner) -> None:
    """A program may have ended before the shim sees that it has begun."""

    async def one() -> None:
        shim, peer = await attached(spawner, nursery.launch("echo", "x"))
        assert streams(await peer.rest()) == {1: b"x\n"}
        await end(shim)

    for _ in range(8):
        await asyncio.gather(*(one() for _ in range(6)))

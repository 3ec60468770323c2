"""Spawner, shims and their connections: starting, losing, adopting, execs, waiters."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from compatd.runtime.client import Shim, Spawner, StartFailed, StartRefused, connect, read_exit
from compatd.shim import protocol
from compatd.shim.spec import Launch
from tests.conftest import have
from tests.engine import ROOT
from tests.shim.containers import WAIT_S, Nursery, Peer, attach, end, exec_of, output, run, streams

pytestmark = pytest.mark.root

EXEC = "OCI runtime exec failed: exec failed: unable to start container process: "


@pytest.fixture(scope="module")
def nursery() -> Iterator[Nursery]:
    made = have(Nursery)
    yield made
    made.close()


@pytest.fixture
async def spawner() -> AsyncIterator[Spawner]:
    made = Spawner()
    await made.start()
    yield made
    await made.close()


async def until(condition: object, what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.01)


def shim_pid(shim: Shim) -> int:
    return int(Path(f"/proc/{shim.pid}/stat").read_text().rpartition(")")[2].split()[1])


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


async def family(spawner: Spawner) -> list[int]:
    """The spawner, and the shim that it has ready."""
    children = Path(f"/proc/{spawner.pid}/task/{spawner.pid}/children")
    await until(children.read_text, "no shim is ready")
    return [spawner.pid, *map(int, children.read_text().split())]


def tell(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


class TestStart:
    async def test_exit_codes_and_times(self, nursery: Nursery, spawner: Spawner) -> None:
        begin = time.time_ns()
        shim = await spawner.launch(nursery.launch("sh", "-c", "exit 7"))
        assert begin < shim.started_ns < time.time_ns()
        exit_ = await end(shim)
        assert (exit_["code"], exit_["oom_killed"], "error" in exit_) == (7, False, False)
        assert shim.started_ns <= exit_["exited_ns"] < time.time_ns()
        assert set(shim.phases) >= {"fork", "cgroups", "init namespaces", "init overlay", "init mounts", "init pivot"}

    @pytest.mark.parametrize("init", [False, True])
    async def test_signals(self, nursery: Nursery, spawner: Spawner, init: bool) -> None:
        script = "trap 'exit 9' TERM; echo ready; while true; do sleep 0.02; done"
        launch = nursery.launch("sh", "-c", script, init=init)
        shim = await spawner.launch(launch)
        await until(lambda: output(launch), "not ready")
        await shim.signal(signal.SIGTERM)
        assert (await end(shim))["code"] == 9
        launch = nursery.launch("sh", "-c", "kill -9 $$; sleep 5", init=True)
        assert (await run(spawner, launch))["code"] == 137

    async def test_the_init_reaps(self, nursery: Nursery, spawner: Spawner) -> None:
        script = "(sleep 0.01 &) ; sleep 0.3; ps -o stat,comm | grep -c ^Z"
        launch = nursery.launch("sh", "-c", script, init=True)
        await run(spawner, launch)
        assert output(launch) == "0\n"

    async def test_a_failed_start_leaves_nothing(self, nursery: Nursery, spawner: Spawner) -> None:
        launch = nursery.launch("nosuch", cgroups=True)
        peer = Peer()
        launch["attaches"] = [attach()]
        with pytest.raises(StartRefused):
            await spawner.launch(launch, [peer.give()])
        assert not any(
            Path(directory).exists() for directory in launch["cgroup"]["directories"] if launch["id"] in directory
        )
        assert not (Path(launch["state_dir"]) / protocol.SOCKET_NAME).exists()
        exit_ = read_exit(Path(launch["state_dir"]))
        assert exit_ is not None
        assert exit_["code"] == 127
        # The client's connection is still the engine's, to answer on.
        os.write(peer.give(), b"answer")
        peer.given()
        assert await peer.rest() == b"answer"

    async def test_a_launch_too_large_for_a_datagram(self, nursery: Nursery, spawner: Spawner) -> None:
        env = [f"V{number}={'x' * 1000}" for number in range(400)]
        launch = nursery.launch("sh", "-c", "echo $V399 | wc -c", env=[*env, "PATH=/bin:/usr/bin"])
        assert (await run(spawner, launch))["code"] == 0
        assert output(launch) == "1001\n"

    async def test_many_at_once(self, nursery: Nursery, spawner: Spawner) -> None:
        launches = [nursery.launch("sh", "-c", f"exit {number}", cgroups=True) for number in range(12)]
        exits = await asyncio.gather(*(run(spawner, launch) for launch in launches))
        assert [exit_["code"] for exit_ in exits] == list(range(12))

    async def test_cancelling_kills(self, nursery: Nursery, spawner: Spawner) -> None:
        """A start that is given up before it has begun; what begins nevertheless is ended."""
        launch = nursery.launch("sleep", "1000")
        stopped = await family(spawner)
        tell(stopped, signal.SIGSTOP)
        task = asyncio.ensure_future(spawner.launch(launch))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        tell(stopped, signal.SIGCONT)
        state = Path(launch["state_dir"])
        await until(lambda: read_exit(state) is not None, "nothing came of it")
        await until(lambda: not (state / protocol.SOCKET_NAME).exists(), "the shim stays")

    async def test_no_descriptors_leak(self, nursery: Nursery, spawner: Spawner) -> None:
        await run(spawner, nursery.launch("true"))
        before = set(os.listdir("/proc/self/fd"))
        spawners = len(os.listdir(f"/proc/{spawner.pid}/fd"))
        for _ in range(3):
            await run(spawner, nursery.launch("true"))
            with pytest.raises(StartFailed):
                await spawner.launch(nursery.launch("nosuch"))
        assert set(os.listdir("/proc/self/fd")) == before
        assert len(os.listdir(f"/proc/{spawner.pid}/fd")) == spawners


class TestCgroups:
    async def test_they_are_the_root_of_what_is_seen_and_go_with_the_container(
        self, nursery: Nursery, spawner: Spawner
    ) -> None:
        launch = nursery.launch("cat", "/proc/self/cgroup", cgroups=True)
        shim = await spawner.launch(launch)
        await end(shim)
        assert {line.split(":", 2)[2] for line in output(launch).splitlines()} == {"/"}
        for file in launch["cgroup"]["joins"]:
            await until(lambda: not Path(file).parent.exists(), "the cgroup stays")  # noqa: B023

    async def test_everything_of_it_is_inside(self, nursery: Nursery, spawner: Spawner) -> None:
        launch = nursery.launch("sleep", "1000", cgroups=True)
        shim = await spawner.launch(launch)
        process = await shim.exec(exec_of(launch, "sleep", "1000"))
        for file in launch["cgroup"]["joins"]:
            assert set(Path(file).read_text().split()) == {str(shim.pid), str(process.pid)}
        await shim.signal(signal.SIGKILL)
        await end(shim)

    async def test_a_death_for_memory_is_told(self, nursery: Nursery, spawner: Spawner) -> None:
        launch = nursery.launch("sh", "-c", "head -c 100000000 /dev/zero | tail -c 100000000 >/dev/null", cgroups=True)
        for file in launch["cgroup"]["joins"]:
            directory = Path(file).parent
            for name in ("memory.limit_in_bytes", "memory.max"):
                if (directory.parent.parent / name).exists():
                    launch["cgroup"]["writes"].append((f"{directory}/{name}", str(8 << 20)))
        if not any("memory" in name for name, _ in launch["cgroup"]["writes"]):
            pytest.skip("no memory controller here")
        exit_ = await run(spawner, launch)
        assert exit_["oom_killed"]

    async def test_a_limit_that_the_kernel_refuses(self, nursery: Nursery, spawner: Spawner) -> None:
        launch = nursery.launch("true", cgroups=True)
        own = Path(launch["cgroup"]["joins"][0]).parent
        launch["cgroup"]["writes"].append((f"{own}/no.such.knob", "1"))
        with pytest.raises(
            StartFailed, match=r'container init: error setting cgroup .*: failed to write "1": write .*no\.such\.knob: '
        ):
            await spawner.launch(launch)
        assert not own.exists()


class TestExec:
    async def test_attached(self, nursery: Nursery, spawner: Spawner) -> None:
        launch = nursery.launch("sleep", "1000")
        shim = await spawner.launch(launch)
        peer = Peer()
        spec = exec_of(launch, "sh", "-c", "cat; echo err >&2; exit 4", attached=attach(stdin=True))
        process = await shim.exec(spec, [peer.give()])
        peer.given()
        assert Path(f"/proc/{process.pid}/ns/pid").readlink() == Path(f"/proc/{shim.pid}/ns/pid").readlink()
        await peer.send(b"input")
        peer.finish()
        assert streams(await peer.rest()) == {1: b"input", 2: b"err\n"}
        assert (await process.exited)["code"] == 4
        assert output(launch) == ""
        await shim.signal(signal.SIGKILL)
        await end(shim)

    async def test_its_end_is_known_before_its_client_sees_it(self, nursery: Nursery, spawner: Spawner) -> None:
        """The CLI asks for the exit code as soon as the stream ends."""
        launch = nursery.launch("sleep", "1000")
        shim = await spawner.launch(launch)
        for _ in range(10):
            peer = Peer()
            process = await shim.exec(exec_of(launch, "true", attached=attach()), [peer.give()])
            peer.given()
            await peer.rest()
            assert process.exit.done()
        await shim.signal(signal.SIGKILL)
        await end(shim)

    async def test_nothing_leaks_in(self, nursery: Nursery, spawner: Spawner) -> None:
        launch = nursery.launch("sleep", "1000")
        shim = await spawner.launch(launch)
        peer = Peer()
        script = """
            for fd in /proc/self/fd/*; do readlink $fd; done | grep -v -e ^/proc/ -e ^pipe:
            tr '\\0' '\\n' </proc/self/environ; umask
            grep -E '^Sig(Ign|Blk)' /proc/self/status | cut -f2; pwd; hostname
        """
        process = await shim.exec(exec_of(launch, "sh", "-c", script, attached=attach()), [peer.give()])
        peer.given()
        told = streams(await peer.rest())[1].decode().split()
        assert told == [
            "/dev/null",
            launch["process"]["env"][0],
            "HOME=/root",
            "0022",
            "0" * 16,
            "0" * 16,
            "/",
            "shim-test",
        ]
        assert (await process.exited)["code"] == 0
        await shim.signal(signal.SIGKILL)
        await end(shim)

    @pytest.mark.parametrize("detached", [False, True])
    async def test_failures(self, nursery: Nursery, spawner: Spawner, detached: bool) -> None:
        launch = nursery.launch("sleep", "1000")
        shim = await spawner.launch(launch)
        for args, changes, text, code in (
            (["nosuch"], {}, EXEC + 'exec: "nosuch": executable file not found in $PATH', 127),
            (["/etc"], {}, EXEC + 'exec: "/etc": is a directory: permission denied', 126),
            (["true"], {"user": "who"}, "unable to find user who: no matching entries in passwd file", 128),
            (["true"], {"cwd": "rel"}, "OCI runtime exec failed: exec failed: Cwd must be an absolute path", 128),
            (
                ["true"],
                {"cwd": "/no/such"},
                EXEC + 'chdir to cwd ("/no/such") set in config.json failed: no such file or directory',
                127,
            ),
            (["/proc/1/exe/x"], {}, None, 127),
        ):
            peer = Peer()
            spec = exec_of(launch, *args, attached=None if detached else attach(), **changes)
            with pytest.raises(StartFailed) as caught:
                await shim.exec(spec, [] if detached else [peer.give()])
            peer.given()
            assert caught.value.exit_code == code
            assert text is None or str(caught.value) == text
            if not detached:
                assert streams(await peer.rest()) == {1: str(caught.value).encode() + b"\r\n"}
            peer.close()
        await shim.signal(signal.SIGKILL)
        await end(shim)

    async def test_on_a_terminal(self, nursery: Nursery, spawner: Spawner) -> None:
        launch = nursery.launch("sleep", "1000")
        shim = await spawner.launch(launch)
        peer = Peer()
        script = "stty size; read line; stty size; echo got $line"
        client = attach(stdin=True)
        spec = exec_of(launch, "sh", "-c", script, attached=client, tty=True, console_size=(10, 20))
        process = await shim.exec(spec, [peer.give()])
        peer.given()
        await peer.until(b"10 20\r\n")
        await shim.exec_resize(spec["exec_id"], 30, 40)
        await peer.send(b"x\r")
        assert b"30 40\r\ngot x\r\n" in await peer.rest()
        assert (await process.exited)["code"] == 0
        await shim.signal(signal.SIGKILL)
        await end(shim)

    async def test_children_that_keep_its_streams(self, nursery: Nursery, spawner: Spawner) -> None:
        """Docker waits two seconds for the end of a pipe, and not at all with a terminal."""
        launch = nursery.launch("sleep", "1000")
        shim = await spawner.launch(launch)
        for tty, least_s, most_s in ((False, 1.8, 8), (True, 0, 1.8)):
            begin = time.monotonic()
            peer = Peer()
            spec = exec_of(launch, "sh", "-c", "sleep 1000 & echo hi", attached=attach(), tty=tty)
            process = await shim.exec(spec, [peer.give()])
            peer.given()
            assert b"hi" in await peer.rest()
            assert (await process.exited)["code"] == 0
            assert least_s <= time.monotonic() - begin < most_s
        await shim.signal(signal.SIGKILL)
        await end(shim)

    async def test_it_goes_with_the_container(self, nursery: Nursery, spawner: Spawner) -> None:
        launch = nursery.launch("sleep", "1000")
        shim = await spawner.launch(launch)
        process = await shim.exec(exec_of(launch, "sleep", "1000"))
        await shim.signal(signal.SIGKILL)
        assert (await asyncio.wait_for(process.exited, WAIT_S))["code"] == 137
        assert (await end(shim))["code"] == 137


class TestWaiters:
    @staticmethod
    async def waiting(shim: Shim, condition: str) -> Peer:
        peer = Peer()
        await shim.wait({"fd": 0, "condition": condition}, peer.give())  # type: ignore[typeddict-item]
        peer.given()
        return peer

    @staticmethod
    def status(body: bytes) -> object:
        size, _, rest = body.partition(b"\r\n")
        chunk, end_ = rest[: int(size, 16)], rest[int(size, 16) :]
        assert end_ == b"\r\n0\r\n\r\n"
        assert chunk.endswith(b"\n")
        return json.loads(chunk)

    async def test_each_is_told_when_it_is_so(self, nursery: Nursery, spawner: Spawner) -> None:
        shim = await spawner.launch(nursery.launch("sh", "-c", "sleep 0.1; exit 3"))
        at_exit, at_removal = await self.waiting(shim, "exit"), await self.waiting(shim, "removed")
        await asyncio.wait_for(shim.exited, WAIT_S)
        with pytest.raises(BlockingIOError):
            at_exit.sock.recv(1)  # the engine has not said that it knows
        await shim.release()
        assert self.status(await at_exit.rest()) == {"StatusCode": 3}
        late = await self.waiting(shim, "exit")
        assert self.status(await late.rest()) == {"StatusCode": 3}
        with pytest.raises(BlockingIOError):
            at_removal.sock.recv(1)
        await shim.removed()
        assert self.status(await at_removal.rest()) == {"StatusCode": 3}
        shim.close()

    async def test_without_an_engine_they_are_told_too(self, nursery: Nursery, spawner: Spawner) -> None:
        launch = nursery.launch("sh", "-c", "sleep 0.2; exit 3")
        shim = await spawner.launch(launch)
        at_exit, at_removal = await self.waiting(shim, "exit"), await self.waiting(shim, "removed")
        shim.close()
        assert self.status(await at_exit.rest()) == {"StatusCode": 3}
        again = await connect(Path(launch["state_dir"]))
        await again.removed()
        assert self.status(await at_removal.rest()) == {"StatusCode": 3}
        await end(again)

    async def test_one_who_has_left_keeps_nobody(self, nursery: Nursery, spawner: Spawner) -> None:
        launch = nursery.launch("true")
        shim = await spawner.launch(launch)
        (await self.waiting(shim, "removed")).close()
        pid = None
        await asyncio.wait_for(shim.exited, WAIT_S)
        await shim.release()
        await until(lambda: not (Path(launch["state_dir"]) / protocol.SOCKET_NAME).exists(), f"the shim {pid} stays")
        shim.close()


class TestSurvival:
    async def test_an_engine_is_killed_and_the_next_carries_on(self, nursery: Nursery, tmp_path: Path) -> None:
        """Output goes on, no line is lost, and the exit is there, whether it comes before or after the new engine."""
        script = "i=0; while [ $i -lt 200 ]; do echo line $i; i=$((i+1)); sleep 0.005; done; exit 6"
        launches = [nursery.launch("sh", "-c", script), nursery.launch("sh", "-c", "sleep 0.3; exit 8")]
        peer = Peer()
        launches[0]["attaches"] = [attach()]
        (tmp_path / "launches").write_text(json.dumps(launches))
        program = (
            "import asyncio, json, os, signal, sys\n"
            "from compatd.runtime.client import Spawner\n"
            "async def main():\n"
            "    spawner = Spawner(); await spawner.start()\n"
            "    for launch in json.load(open(sys.argv[1])):\n"
            "        await spawner.launch(launch, [int(sys.argv[2])])\n"
            "    os.kill(os.getpid(), signal.SIGKILL)\n"
            "asyncio.run(main())\n"
        )
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-c", program, str(tmp_path / "launches"), str(peer.give())],
            pass_fds=[peer.give()],
            cwd=ROOT,
        )
        peer.given()
        assert done.returncode == -signal.SIGKILL
        state = Path(launches[1]["state_dir"])
        await until(lambda: read_exit(state) is not None, "no exit")
        late = await connect(state)
        assert (await end(late))["code"] == 8
        running = await connect(Path(launches[0]["state_dir"]))
        assert alive(running.pid)
        expected = "".join(f"line {number}\n" for number in range(200))
        assert streams(await peer.rest()) == {1: expected.encode()}
        assert (await end(running))["code"] == 6
        assert output(launches[0]) == expected

    async def test_the_next_engine_finds_execs(self, nursery: Nursery, spawner: Spawner) -> None:
        launch = nursery.launch("sleep", "1000")
        first = await spawner.launch(launch)
        spec = exec_of(launch, "sh", "-c", "while ! [ -e /go ]; do sleep 0.01; done; exit 2")
        started = await first.exec(spec)
        first.close()
        second = await connect(Path(launch["state_dir"]))
        process = second.execs[spec["exec_id"]]
        assert process.pid == started.pid
        (Path(f"/proc/{second.pid}/root") / "go").touch()
        assert (await asyncio.wait_for(process.exited, WAIT_S))["code"] == 2
        await second.signal(signal.SIGKILL)
        await end(second)

    async def test_events_go_to_the_newest_connection(self, nursery: Nursery, spawner: Spawner) -> None:
        launch = nursery.launch("sleep", "1000")
        first = await spawner.launch(launch)
        second = await connect(Path(launch["state_dir"]))
        assert (second.id, second.pid, second.started_ns) == (first.id, first.pid, first.started_ns)
        await first.signal(signal.SIGKILL)  # an older one may still ask
        assert (await end(second))["code"] == 137
        first.close()

    async def test_the_spawner_is_killed(self, nursery: Nursery, spawner: Spawner) -> None:
        launch = nursery.launch("sleep", "1000")
        shim = await spawner.launch(launch)
        old = spawner.pid
        os.kill(old, signal.SIGKILL)
        await until(lambda: spawner.pid not in (0, old), "no new spawner")
        assert (await run(spawner, nursery.launch("true")))["code"] == 0
        assert alive(shim.pid)
        await shim.signal(signal.SIGKILL)
        assert (await end(shim))["code"] == 137

    async def test_launches_survive_the_spawners_death(self, nursery: Nursery, spawner: Spawner) -> None:
        """Each is started exactly once, or fails; here the spawner is stopped with launches in its queue."""
        stopped = await family(spawner)
        tell(stopped, signal.SIGSTOP)
        launches = [nursery.launch("true") for _ in range(3)]
        tasks = [asyncio.ensure_future(run(spawner, launch)) for launch in launches]
        await asyncio.sleep(0.05)
        tell(stopped, signal.SIGKILL)
        assert [exit_["code"] for exit_ in await asyncio.gather(*tasks)] == [0, 0, 0]

    async def test_the_init_dies_with_its_shim(self, nursery: Nursery, spawner: Spawner) -> None:
        for changes in ({}, {"user": "65534"}, {"init": True}):
            shim = await spawner.launch(nursery.launch("sleep", "1000", **changes))
            os.kill(shim_pid(shim), signal.SIGKILL)
            exit_ = await asyncio.wait_for(shim.exited, WAIT_S)
            assert (exit_["code"], "error" in exit_) == (137, True)
            await until(lambda: not alive(shim.pid), "the init stays")  # noqa: B023

    async def test_shims_ignore_the_terminals_signals_and_leave_no_zombies(
        self, nursery: Nursery, spawner: Spawner
    ) -> None:
        launch = nursery.launch("sleep", "1000")
        shim = await spawner.launch(launch)
        pid = shim_pid(shim)
        await until(lambda: Path(f"/proc/{pid}/comm").read_text() == "compatd-shim\n", "it does not settle")
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
            os.kill(pid, number)
        assert launch["id"] in Path(f"/proc/{pid}/cmdline").read_text()
        assert os.getsid(pid) == pid
        await shim.signal(signal.SIGKILL)
        assert (await end(shim))["code"] == 137
        await until(lambda: not Path(f"/proc/{pid}").exists(), "the shim stays")

    async def test_a_shim_that_is_stuck_in_its_start(self, tmp_path: Path) -> None:
        program = (
            "import socket, sys, time; s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); "
            "s.bind(sys.argv[1]); s.listen(); print(flush=True); time.sleep(100)"
        )
        words = [sys.executable, "-c", program, str(tmp_path / protocol.SOCKET_NAME)]
        with subprocess.Popen(words, stdout=subprocess.PIPE) as stuck:
            assert stuck.stdout
            stuck.stdout.readline()
            with pytest.raises(ConnectionRefusedError):
                await connect(tmp_path, patience_s=0.05)
            assert stuck.wait(WAIT_S) == -signal.SIGKILL

    async def test_nothing_to_connect_to(self, nursery: Nursery, spawner: Spawner, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError):
            await connect(tmp_path)
        stale = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        stale.bind(str(tmp_path / protocol.SOCKET_NAME))
        stale.close()
        with pytest.raises(ConnectionRefusedError):
            await connect(tmp_path)
        assert read_exit(tmp_path) is None
        (tmp_path / protocol.EXIT_NAME).write_text("garbage")
        assert read_exit(tmp_path) is None

    async def test_a_restart_in_the_same_place(self, nursery: Nursery, spawner: Spawner) -> None:
        """The first life's shim is still answering a waiter when the second one begins."""
        launch = nursery.launch("sh", "-c", "exit 1")
        first = await spawner.launch(launch)
        waiter = await TestWaiters.waiting(first, "removed")
        await asyncio.wait_for(first.exited, WAIT_S)
        await first.release()
        again: Launch = {**launch, "process": {**launch["process"], "args": ["sleep", "1000"]}}
        second = await spawner.launch(again)
        assert read_exit(Path(launch["state_dir"])) is None
        await first.removed()
        assert TestWaiters.status(await waiter.rest()) == {"StatusCode": 1}
        adopted = await connect(Path(launch["state_dir"]))
        assert adopted.pid == second.pid
        await adopted.signal(signal.SIGKILL)
        assert (await end(adopted))["code"] == 137
        first.close()
        second.close()

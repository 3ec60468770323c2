"""docker cp, both ways: what is copied where, what is refused and in which words, and who tries to get out."""

import contextlib
import gzip
import io
import os
import re
import socket
import stat
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard

from tests.api import Api
from tests.cli import Cli, Done
from tests.engine import Engine, OwnEngine
from tests.fixtures.tars import Entry, hard_link, link, pack
from tests.registry import wait_until

pytestmark = pytest.mark.root
parity = pytest.mark.parity
TAR = {"Content-Type": "application/x-tar"}

SCENE = (
    "mkdir -p /d/sub /d/empty; echo 1 > /d/f; echo 22 > /d/sub/g; ln -s f /d/rel; ln -s /d/f /d/abs;"
    " ln -s /nope /d/dang; ln -s /vol /d/tovol; ln -s ../../../../etc/passwd /esc; mkfifo /d/fifo; ln /d/f /d/hard;"
    " chmod 4755 /d/f;"
    " chown 7:8 /d/sub/g; touch -d '2001-02-03 04:05:06' /d/f; echo v > /vol/v; echo t > /tmpfs/t;"
    " dd if=/dev/zero of=/sparse bs=1 count=1 seek=10M; echo ready; exec sleep 1000"
)


@pytest.fixture
def box(cli: Cli, busybox: str) -> str:
    """A running container with files of many kinds, a volume and a tmpfs."""
    cli("run", "-d", "--name", "box", "-v", "/vol", "--tmpfs", "/tmpfs", busybox, "sh", "-c", SCENE)
    wait_until(lambda: "ready" in cli.call("logs", "box").out, "the scene is set")
    return "box"


@pytest.fixture
def here(tmp_path: Path) -> Path:
    """A folder of the client's, with as many kinds of files."""
    folder = tmp_path / "here"
    (folder / "L/sub").mkdir(parents=True)
    (folder / "L/empty").mkdir()
    (folder / "F").write_text("file\n")
    (folder / "L/a").write_text("a\n")
    os.link(folder / "L/a", folder / "L/hard")
    (folder / "L/sub/b").write_text("b\n")
    (folder / "L/rel").symlink_to("a")
    (folder / "L/dang").symlink_to("/nowhere")
    os.mkfifo(folder / "L/fifo")
    os.chown(folder / "L/a", 99, 98)
    (folder / "L/a").chmod(0o4750)
    (folder / "L/sub").chmod(0o2750)
    return folder


def tree(folder: Path) -> dict[str, str]:
    """Every path with its kind and mode."""
    found: dict[str, str] = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        found[str(path.relative_to(folder))] = stat.filemode(status.st_mode)
    return found


def inside(cli: Cli, path: str) -> dict[str, str]:
    """The same of a path in the box, with owners and numbers of links."""
    lines = cli("exec", "box", "sh", "-c", f"cd {path} && find . | sort | xargs stat -c '%n %A %u:%g %h'").splitlines()
    return {name.removeprefix("./"): rest for name, _, rest in (line.partition(" ") for line in lines)}


def message(done: Done) -> str:
    """The last line of a failure; the client may complain of a broken pipe before it."""
    assert done.code == 1, done
    return done.err.splitlines()[-1]


# ------------------------------------------------------------------------ out


@parity
def test_a_folder_out(cli: Cli, box: str, here: Path) -> None:
    cli("cp", f"{box}:/d", "out", cwd=here)
    wanted = {
        "abs": "lrwxrwxrwx",
        "dang": "lrwxrwxrwx",
        "empty": "drwxr-xr-x",
        "f": "-rwsr-xr-x",
        "fifo": "prw-r--r--",
        "hard": "-rwsr-xr-x",
        "rel": "lrwxrwxrwx",
        "sub": "drwxr-xr-x",
        "sub/g": "-rw-r--r--",
        "tovol": "lrwxrwxrwx",
    }
    assert tree(here / "out") == wanted
    assert (here / "out/hard").stat().st_ino == (here / "out/f").stat().st_ino
    assert int((here / "out/f").stat().st_mtime) == 981173106
    cli("cp", f"{box}:/d/.", "contents", cwd=here)
    assert tree(here / "contents") == wanted
    cli("cp", f"{box}:/d", "out", cwd=here)  # it exists now, so into it
    assert (here / "out/d/sub/g").read_text() == "22\n"


@parity
@pytest.mark.parametrize(
    ("flags", "source", "content"),
    [
        ((), "/d/f", "1\n"),
        (("-L",), "/d/rel", "1\n"),
        (("-L",), "/d/abs", "1\n"),
        ((), "/d/../d/f", "1\n"),
        ((), "/../../d/f", "1\n"),
        ((), "//d//f", "1\n"),
        ((), "d/f", "1\n"),
        ((), "/vol/v", "v\n"),
        (("-L",), "/d/tovol/v", "v\n"),
        (("-q",), "/d/sub/g", "22\n"),
    ],
)
def test_a_file_out(cli: Cli, box: str, here: Path, flags: tuple[str, ...], source: str, content: str) -> None:
    cli("cp", *flags, f"{box}:{source}", "out", cwd=here)
    assert (here / "out").read_text() == content


@parity
def test_links_out(cli: Cli, box: str, here: Path) -> None:
    cli("cp", f"{box}:/d/tovol", "link", cwd=here)
    assert os.readlink(here / "link") == "/vol"
    for number, (flags, source) in enumerate(((("-L",), "/d/tovol"), ((), "/d/tovol/"), ((), "/d/tovol/."))):
        cli("cp", *flags, f"{box}:{source}", f"o{number}", cwd=here)
        assert tree(here / f"o{number}") == {"v": "-rw-r--r--"}
    cli("cp", f"{box}:/d/dang", "dang", cwd=here)
    assert os.readlink(here / "dang") == "/nope"
    cli("cp", "-L", f"{box}:/esc", "escaped", cwd=here)
    assert (here / "escaped").read_text() == cli("exec", box, "cat", "/etc/passwd")


@parity
def test_what_is_mounted_at_a_start_is_not_there(cli: Cli, box: str, here: Path) -> None:
    """But for volumes and what makes the network."""
    for path in ("proc", "sys", "tmpfs"):
        cli("cp", f"{box}:/{path}", path, cwd=here)
        assert tree(here / path) == {}
    cli("cp", f"{box}:/dev", "out", cwd=here)
    assert tree(here / "out") == {"console": "-rwxr-xr-x", "pts": "drwxr-xr-x", "shm": "drwxr-xr-x"}
    for name in ("hosts", "hostname", "resolv.conf"):
        cli("cp", f"{box}:/etc/{name}", name, cwd=here)
        assert (here / name).read_text() == cli("exec", box, "cat", f"/etc/{name}")
    cli("cp", f"{box}:/etc/mtab", "mtab", cwd=here)
    assert os.readlink(here / "mtab") == "/proc/mounts"
    cli("cp", f"{box}:/.dockerenv", "env", cwd=here)
    assert (here / "env").stat().st_size == 0


@parity
def test_the_stream_out(cli: Cli, box: str) -> None:
    def members(path: str) -> list[tarfile.TarInfo]:
        reply = cli.start("cp", f"{box}:{path}", "-")
        out, err = reply.communicate(timeout=60)
        assert (reply.returncode, err) == (0, b"")
        with tarfile.open(fileobj=io.BytesIO(out)) as archive:
            return archive.getmembers()

    found = members("/d")
    assert [entry.name for entry in found] == [
        *(
            "d",
            "d/abs",
            "d/dang",
            "d/empty",
            "d/f",
            "d/fifo",
            "d/hard",
            "d/rel",
            "d/sub",
            "d/sub/g",
            "d/tovol",
        ),
    ]
    assert [entry.name for entry in members("/d/.")][:3] == [".", "./abs", "./dang"]
    (one,) = members("/d/sub/g")
    assert (one.name, one.uid, one.gid, one.mode, one.uname) == ("g", 7, 8, 0o644, "")
    (one,) = members("/sparse")
    assert (one.name, one.size) == ("sparse", (10 << 20) + 1)


@parity
@pytest.mark.parametrize(
    ("source", "target", "error"),
    [
        ("/nope", "x", "Error response from daemon: Could not find the file /nope in container box"),
        ("/d/f/x", "x", "Error response from daemon: lstat /d/f/x: not a directory"),
        ("/d/f/", "x", "Error response from daemon: lstat /d/f/: not a directory"),
        ("/d/dang/", "x", "Error response from daemon: Could not find the file /d/dang/ in container box"),
        ("/d", "F", "cannot copy directory"),
        ("/d/f", "none/", "no such directory"),
    ],
)
def test_refused_out(cli: Cli, box: str, here: Path, source: str, target: str, error: str) -> None:
    assert message(cli.call("cp", f"{box}:{source}", target, cwd=here)) == error
    assert not (here / "x").exists()


# ------------------------------------------------------------------------- in


@parity
def test_a_folder_in(cli: Cli, box: str, here: Path) -> None:
    wanted = {
        ".": "drwxr-xr-x 0:0 4",
        "a": "-rwsr-x--- 0:0 2",
        "dang": "lrwxrwxrwx 0:0 1",
        "empty": "drwxr-xr-x 0:0 2",
        "fifo": "prw-r--r-- 0:0 1",
        "hard": "-rwsr-x--- 0:0 2",
        "rel": "lrwxrwxrwx 0:0 1",
        "sub": "drwxr-s--- 0:0 2",
        "sub/b": "-rw-r--r-- 0:0 1",
    }
    owned = wanted | {name: wanted[name].replace("0:0", "99:98") for name in ("a", "hard")}
    cli("cp", "L", f"{box}:/new", cwd=here)
    assert inside(cli, "/new") in (wanted, owned)
    cli("cp", "-a", "L/.", f"{box}:/archived", cwd=here)
    assert inside(cli, "/archived") == owned
    cli("cp", "L", f"{box}:/d/sub", cwd=here)  # exists, so into it
    assert inside(cli, "/d/sub/L").keys() == wanted.keys()
    cli("cp", "L", f"{box}:/d/tovol", cwd=here)
    assert "a" in inside(cli, "/vol/L")


@parity
def test_a_file_in(cli: Cli, box: str, here: Path) -> None:
    for target, written in (
        ("/new", "/new"),
        ("/d", "/d/F"),
        ("/d/sub/", "/d/sub/F"),
        ("/d/f", "/d/f"),
        ("/d/rel", "/d/f"),
        ("/d/dang", "/nope"),
        ("/d/tovol", "/vol/F"),
        ("/esc", "/etc/passwd"),
        ("/", "/F"),
        (".", "/F"),
    ):
        cli("exec", box, "rm", "-rf", written)
        cli("cp", "F", f"{box}:{target}", cwd=here)
        assert cli("exec", box, "cat", written) == "file\n", target
    assert cli("exec", box, "readlink", "/d/rel") == "f\n"
    cli("cp", "F", f"{box}:/tmpfs/", cwd=here)  # below the tmpfs, where nobody sees it
    assert cli("exec", box, "ls", "/tmpfs") == "t\n"


@parity
@pytest.mark.parametrize(
    ("source", "target", "error"),
    [
        ("F", "box:/nope/", "no such directory"),
        ("F", "box:/nope/x", "Error response from daemon: Could not find the file /nope in container box"),
        ("F", "box:/d/f/x", "Error response from daemon: extraction point is not a directory"),
        ("L", "box:/d/f", "cannot copy directory"),
        ("L/.", "box:/nope/x", "Error response from daemon: Could not find the file /nope in container box"),
        ("F", "box:/etc/hosts", "Error response from daemon: RemoveAll hosts: device or resource busy"),
        ("none", "box:/", "no such file or directory"),
        ("F", "none:/", "no such directory"),
    ],
)
def test_refused_in(cli: Cli, box: str, here: Path, source: str, target: str, error: str) -> None:
    before = inside(cli, "/d")
    done = cli.call("cp", source, target, cwd=here)
    assert done.code == 1
    assert error in done.err, done.err
    assert inside(cli, "/d") == before


@parity
def test_read_only(cli: Cli, busybox: str, here: Path) -> None:
    words = ("--read-only", "--tmpfs", "/tm", "-v", "/vol", "--mount", "type=volume,src=rocks,dst=/volro,readonly")
    cli("create", "--name", "ro", *words, busybox, "true")
    root = "Error response from daemon: container rootfs is marked read-only"
    for target, error in (
        ("/", root),
        ("/etc", root),
        ("/volro", "Error response from daemon: mounted volume is marked read-only"),
    ):
        assert message(cli.call("cp", "F", f"ro:{target}", cwd=here)) == error
    cli("cp", "F", "ro:/vol", cwd=here)
    cli("cp", "ro:/vol/F", "back", cwd=here)
    assert (here / "back").read_text() == "file\n"


@parity
def test_created_and_ended(cli: Cli, busybox: str, here: Path) -> None:
    """A container that does not run is as good, and shows its files when it starts."""
    cli("create", "--name", "still", "-v", "/vol", busybox, "cat", "/F", "/vol/F")
    cli("cp", "F", "still:/", cwd=here)
    cli("cp", "F", "still:/vol", cwd=here)
    assert cli("start", "-a", "still") == "file\nfile\n"
    (here / "F").write_text("two\n")
    cli("cp", "F", "still:/vol", cwd=here)
    assert cli("start", "-a", "still") == "file\ntwo\n"


@parity
def test_the_stream_in(cli: Cli, box: str) -> None:
    cli("cp", "-", f"{box}:/d", stdin=pack(Entry("new/x", b"x")))
    assert cli("exec", box, "cat", "/d/new/x") == "x"


@parity
def test_the_owner(cli: Cli, api: Api, busybox: str) -> None:
    """With copyUIDGID everything belongs to the container's user, if it names one."""
    for user, owner in (("12:34", "12:34"), ("", "5:6")):
        made = api.post("/containers/create", {"Image": busybox, "User": user, "Cmd": ["sleep", "99"]}).ok()["Id"]
        api.post(f"/containers/{made}/start").ok()
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as archive:
            info = tarfile.TarInfo("x")
            info.uid, info.gid = 5, 6
            archive.addfile(info)
        reply = api.call(
            "PUT", f"/containers/{made}/archive", buffer.getvalue(), headers=TAR, path="/tmp", copyUIDGID="1"
        )
        assert reply.status == 200
        assert cli("exec", made, "stat", "-c", "%u:%g", "/tmp/x").strip() == owner


@parity
def test_overwriting_another_kind(cli: Cli, api: Api, box: str) -> None:
    def put(path: str, archive: bytes, keep: str) -> tuple[int, str]:
        reply = api.call(
            "PUT", f"/containers/{box}/archive", archive, headers=TAR, path=path, noOverwriteDirNonDir=keep
        )
        return reply.status, reply.json()["message"] if reply.body else ""

    folder, file = pack(Entry("f", kind=tarfile.DIRTYPE)), pack(Entry("sub", b"x"))
    assert put("/d", file, "1")[1] == 'cannot overwrite directory "sub" with non-directory "/d"'
    assert put("/d", folder, "1")[1] == 'cannot overwrite non-directory "f" with directory "/d"'
    assert (put("/d", folder, "0"), put("/d", file, "0")) == ((200, ""), (200, ""))
    assert inside(cli, "/d")["f"].startswith("d")
    assert inside(cli, "/d")["sub"].startswith("-")
    # What is mounted stays, whatever the archive has in its place.
    for name in ("vol", "etc"):
        status, told = put("/", pack(Entry(name, b"x")), "0")
        assert (status, told.endswith("device or resource busy")) == (500, True), told
    assert cli("exec", box, "sh", "-c", "grep -c -e ' /vol ' -e ' /etc/hosts ' /proc/mounts") == "2\n"


@parity
@pytest.mark.parametrize("compress", [gzip.compress, zstandard.ZstdCompressor().compress], ids=["gzip", "zstd"])
def test_compressed(cli: Cli, api: Api, box: str, compress: object) -> None:
    assert callable(compress)
    whole = compress(pack(Entry("x", os.urandom(5000)), Entry("y", b"y")))
    for body, status in ((whole, 200), (whole[:-900], 500)):
        reply = api.call("PUT", f"/containers/{box}/archive", body, headers=TAR, path="/d")
        assert reply.status == status
        if status == 500:
            assert reply.json()["message"] == "unexpected EOF"
    assert cli("exec", box, "cat", "/d/y") == "y"


@parity
@pytest.mark.parametrize(
    ("entries", "status", "error"),
    [
        ([Entry("../evil", b"x")], 500, 'invalid entry name "../evil"'),
        ([Entry("a/../../evil", b"x")], 500, 'invalid entry name "a/../../evil"'),
        ([Entry("/evil", b"x")], 200, ""),
        ([link("l", "/etc"), Entry("l/evil", b"x")], 200, ""),
        ([hard_link("h", "/etc/passwd")], 404, "Could not find the file /d in container box"),
        ([hard_link("h", "../etc/passwd")], 500, 'invalid hardlink target "../etc/passwd"'),
        ([hard_link("h", "none")], 404, "Could not find the file /d in container box"),
        ([hard_link("h", "abs"), Entry("h", b"x")], 200, ""),
        ([link("e", "")], 404, "Could not find the file /d in container box"),
        ([Entry("n", kind=b"Z")], 500, "unhandled tar header type 90"),
        ([Entry("g", b"x"), Entry("g/x", b"x")], 500, ": not a directory"),
        ([link("s", "s"), Entry("s/x", b"x")], 500, ": too many levels of symbolic links"),
        ([Entry("a" * 300, b"x")], 500, ": file name too long"),
    ],
)
def test_hostile_archives(cli: Cli, api: Api, box: str, entries: list[Entry], status: int, error: str) -> None:
    kept = cli("exec", box, "sh", "-c", "ls /etc /vol; md5sum /etc/passwd")
    reply = api.call("PUT", f"/containers/{box}/archive", pack(*entries), headers=TAR, path="/d")
    assert reply.status == status, reply.body
    if error:
        assert reply.json()["message"].endswith(error)
    assert cli("exec", box, "sh", "-c", "ls /etc /vol; md5sum /etc/passwd") == kept
    assert cli.call("exec", box, "ls", "/evil").code != 0


@parity
def test_a_path_of_nul(api: Api, box: str) -> None:
    for method in ("GET", "PUT"):
        reply = api.call(
            method, f"/containers/{box}/archive", b"" if method == "PUT" else None, headers=TAR, path="/d/\0"
        )
        assert (reply.status, reply.json()) == (500, {"message": "lstat /d/\0: invalid argument"})
    assert api.call("HEAD", f"/containers/{box}/archive", path="/d/\0").status == 500


# ------------------------------------------------------------------- our own


@contextlib.contextmanager
def watched(engine: Engine) -> Iterator[None]:
    """The engine has as many threads, descriptors and mounts afterwards as before."""
    assert isinstance(engine, OwnEngine)
    pid = engine.pid

    def state() -> tuple[int, int]:
        mounts = Path(f"/proc/{pid}/mountinfo").read_text().count("\n")
        return len(os.listdir(f"/proc/{pid}/fd")), mounts

    before = state()
    yield
    wait_until(lambda: state()[0] <= before[0] + 2 and state()[1] == before[1], "everything is given back")


def test_clients_that_hang_up(engine: Engine, api: Api, box: str) -> None:
    with watched(engine):
        for method in ("PUT", "GET") * 3:
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(engine.socket)
                head = f"{method} /containers/{box}/archive?path=/ HTTP/1.1\r\nHost: x\r\n"
                head += "Content-Type: application/x-tar\r\n"
                if method == "PUT":
                    body = pack(Entry("half", b"x" * 1_000_000))[:300_000]
                    client.sendall(head.encode() + b"Content-Length: 9000000\r\n\r\n" + body)
                else:
                    client.sendall(head.encode() + b"\r\n")
                    client.recv(4096)
        assert api.get("/_ping").status == 200


def test_many_at_once(cli: Cli, engine: Engine, box: str, here: Path) -> None:
    errors: list[str] = []

    def copy(number: int) -> None:
        with contextlib.suppress(AssertionError):
            cli("cp", "L", f"{box}:/many{number}", cwd=here)
            cli("cp", f"{box}:/many{number}", f"back{number}", cwd=here)
            if tree(here / f"back{number}") == tree(here / "L"):
                return
        errors.append(str(number))

    with watched(engine):
        threads = [threading.Thread(target=copy, args=(number,)) for number in range(12)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert errors == []


def test_a_container_that_exchanges_a_folder_for_a_link(cli: Cli, api: Api, busybox: str, tmp_path: Path) -> None:
    """CVE-2018-15664: whatever is at the path when the kernel looks, it is inside."""
    secret = tmp_path / "outside"
    (secret / "sub").mkdir(parents=True)
    (secret / "sub/secret").write_text("of the host")
    swap = (
        f"mkdir -p /a/sub /in/{secret}/sub; echo mine > /a/sub/secret; ln -s {secret} /b; echo ready;"
        " while :; do mv /a /t; mv -T /b /a; mv -T /a /b; mv /t /a; done"
    )
    cli("run", "-d", "--name", "swap", busybox, "sh", "-c", swap)
    wait_until(lambda: "ready" in cli.call("logs", "swap").out, "it swaps")
    archive = pack(Entry("written", b"by cp"))
    seen: set[int] = set()
    end = time.monotonic() + 1.5
    while time.monotonic() < end:
        for path in ("/a/sub", "/a", "/b/sub"):
            reply = api.call("GET", "/containers/swap/archive", path=path)
            assert b"of the host" not in reply.body
            seen.add(reply.status)
            seen.add(api.call("PUT", "/containers/swap/archive", archive, headers=TAR, path=path).status)
    assert 200 in seen
    assert {str(path.relative_to(secret)) for path in secret.rglob("*")} == {"sub", "sub/secret"}


def test_a_library_of_the_container_is_never_loaded(cli: Cli, engine: Engine, busybox: str, here: Path) -> None:
    """CVE-2019-14271: the engine works with the container's files, but lives among its own."""
    assert isinstance(engine, OwnEngine)
    cli("create", "--name", "libs", busybox, "true")
    for name in ("libnss_files.so.2", "encodings", "libc.so.6"):
        (here / name).write_text("not a library")
    for name in ("libnss_files.so.2", "libc.so.6"):
        for folder in ("/lib", "/usr/lib", "/"):
            cli.call("cp", name, f"libs:{folder}/", cwd=here)
    cli("cp", "libs:/etc/passwd", "passwd", cwd=here)
    cli("cp", "-a", "passwd", "libs:/etc/passwd", cwd=here)
    maps = Path(f"/proc/{engine.pid}/maps").read_text()
    assert not re.findall(r"\S+\(deleted\)$", maps, re.M)
    assert str(engine.folder) not in "\n".join(line for line in maps.splitlines() if "engine.db" not in line)

"""Sockets: who may use them, what happens to old ones, and those that systemd passes."""

import os
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from compatd.config import Config, ConfigError
from compatd.listeners import Listeners, listen, notify

pytestmark = pytest.mark.unit


def test_unix(tmp_path: Path) -> None:
    path = tmp_path / "a" / "s"
    listeners = listen(Config(hosts=(f"unix://{path}",)))
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    listeners.close()
    assert not path.exists()


def test_a_stale_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "s"
    with socket.socket(socket.AF_UNIX) as old:
        old.bind(str(path))
    listen(Config(hosts=(f"unix://{path}",))).close()


def test_a_live_socket_is_not(tmp_path: Path) -> None:
    first = listen(Config(hosts=(f"unix://{tmp_path}/s",)))
    with pytest.raises(ConfigError, match="another daemon listens there"):
        listen(Config(hosts=(f"unix://{tmp_path}/s",)))
    # What the second one left is the first one's.
    assert (tmp_path / "s").exists()
    first.close()


def test_a_file_in_the_way_stays(tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_text("precious")
    with pytest.raises(ConfigError, match="is in the way"):
        listen(Config(hosts=(f"unix://{path}",)))
    assert path.read_text() == "precious"


def test_the_socket_of_a_successor_stays(tmp_path: Path) -> None:
    path = tmp_path / "s"
    listeners = listen(Config(hosts=(f"unix://{path}",)))
    path.unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        listeners.close()
        assert path.exists()


def test_the_first_are_closed_when_a_later_one_fails(tmp_path: Path) -> None:
    (tmp_path / "b").write_text("")
    with pytest.raises(ConfigError):
        listen(Config(hosts=(f"unix://{tmp_path}/a", f"unix://{tmp_path}/b")))
    assert not (tmp_path / "a").exists()


def test_a_group_that_was_asked_for_has_to_be_there(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    with pytest.raises(ConfigError, match="group nonesuch-group not found"):
        listen(Config(hosts=(f"unix://{tmp_path}/s",), group="nonesuch-group"))
    listeners = listen(Config(hosts=(f"unix://{tmp_path}/s",), group="12345"))
    assert (tmp_path / "s").stat().st_gid == 12345
    listeners.close()


def test_tcp() -> None:
    listeners = listen(Config(hosts=("tcp://127.0.0.1:0",)))
    (bound, tls), = listeners.sockets  # fmt: skip
    assert tls is None
    with socket.create_connection(bound.getsockname(), timeout=5):
        pass
    with pytest.raises(ConfigError, match="failed to load listeners: listen tcp"):
        listen(Config(hosts=(f"tcp://127.0.0.1:{bound.getsockname()[1]}",)))
    listeners.close()


def test_tls_needs_its_files(tmp_path: Path) -> None:
    config = Config(hosts=("tcp://127.0.0.1:0",), tls=True, tls_cert=str(tmp_path / "c"), tls_key=str(tmp_path / "k"))
    with pytest.raises(ConfigError, match="invalid TLS configuration: Could not load X509 key pair"):
        listen(config)


ACTIVATED = """
import os, sys
from compatd.config import Config, ConfigError
from compatd.listeners import listen
os.environ["LISTEN_PID"] = str(os.getpid())
try:
    sockets = listen(Config(hosts=(sys.argv[1],))).sockets
except ConfigError as error:
    sys.exit(str(error))
print(*(sock.getsockname() for sock, _ in sockets), *(os.get_inheritable(sock.fileno()) for sock, _ in sockets))
"""


def activated(host: str, tmp_path: Path, names: str = "") -> subprocess.CompletedProcess[str]:
    with socket.socket(socket.AF_UNIX) as first, socket.socket(socket.AF_UNIX) as second:
        for number, sock in enumerate((first, second)):
            sock.bind(f"{tmp_path}/{number}")
            sock.listen()

        def place() -> None:
            # The descriptors have to be 3 and 4; neither source may be overwritten by the other's target.
            copies = [os.dup2(sock.fileno(), 100 + number) for number, sock in enumerate((first, second))]
            for number, copy in enumerate(copies):
                os.dup2(copy, 3 + number)

        return subprocess.run(
            [sys.executable, "-c", ACTIVATED, host],
            env={**os.environ, "LISTEN_FDS": "2", "LISTEN_FDNAMES": names, "PYTHONPATH": os.getcwd()},
            pass_fds=(3, 4),
            preexec_fn=place,
            capture_output=True,
            text=True,
            timeout=30,
        )


def test_sockets_from_systemd(tmp_path: Path) -> None:
    done = activated("fd://", tmp_path)
    assert done.stdout.split() == [f"{tmp_path}/0", f"{tmp_path}/1", "False", "False"], done.stderr


@pytest.mark.parametrize("host", ["fd://4", "fd://api"])
def test_one_socket_from_systemd(host: str, tmp_path: Path) -> None:
    done = activated(host, tmp_path, "other:api")
    assert done.stdout.split() == [f"{tmp_path}/1", "False"], done.stderr


def test_no_sockets_from_systemd(tmp_path: Path) -> None:
    assert "failed to find systemd activated socket x" in activated("fd://x", tmp_path).stderr
    with pytest.raises(ConfigError, match="no sockets found via socket activation"):
        listen(Config(hosts=("fd://",)), {})


@pytest.mark.parametrize("address", [lambda path: f"{path}/n", lambda path: f"@{path}/n"], ids=["path", "abstract"])
def test_notify(address: Callable[[Path], str], tmp_path: Path) -> None:
    name = address(tmp_path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(name.replace("@", "\0"))
        manager.settimeout(5)
        notify("READY=1", {"NOTIFY_SOCKET": name})
        assert manager.recv(100) == b"READY=1"
    notify("READY=1", {"NOTIFY_SOCKET": name})
    notify("READY=1", {})


def test_nothing_is_left_by_close() -> None:
    listeners = Listeners([], [])
    listeners.close()

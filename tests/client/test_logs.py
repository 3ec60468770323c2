"""docker logs, and the drivers that write what it shows."""

import json
import os
import re
import subprocess
from typing import Any

import pytest

from tests.api import Api, Reply
from tests.cli import Cli
from tests.engine import Engine, OwnEngine
from tests.registry import wait_until

pytestmark = [pytest.mark.root, pytest.mark.parity]

ROTATED = ("--log-opt", "max-size=20k", "--log-opt", "max-file=4")
COMPRESSED = (*ROTATED, "--log-opt", "compress=true")
STAMP = r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{9}Z"


def told(reply: Reply) -> tuple[int, str]:
    return reply.status, json.loads(reply.body)["message"]


def lines(begin: int, end: int) -> str:
    return "".join(f"{number}\n" for number in range(begin, end + 1))


def create(api: Api, image: str, driver: str, options: dict[str, str], *command: str, **config: Any) -> Reply:
    log = {"Type": driver, "Config": options}
    body = {"Image": image, "Cmd": list(command or ("echo", "hi")), "HostConfig": {"LogConfig": log}, **config}
    return api.post("/containers/create", body)


# ---------------------------------------------------------------- what may be asked for


@pytest.mark.parametrize(
    ("driver", "options", "message"),
    [
        ("nonsense", {}, 'error looking up logging plugin nonsense: plugin "nonsense" not found'),
        ("json-file", {"foo": "1"}, "unknown log opt 'foo' for json-file log driver"),
        ("local", {"tag": "1"}, "unknown log opt 'tag' for log driver local"),
        ("syslog", {"max-size": "1"}, "unknown log opt 'max-size' for syslog log driver"),
        ("journald", {"foo": "1"}, "unknown log opt 'foo' for journald log driver"),
        ("json-file", {"mode": "x"}, "logger: logging mode not supported: x"),
        (
            "local",
            {"max-buffer-size": "1m"},
            "logger: max-buffer-size option is only supported with 'mode=non-blocking'",
        ),
        (
            "local",
            {"mode": "non-blocking", "max-buffer-size": "x"},
            "error parsing option max-buffer-size: invalid size: 'x'",
        ),
        ("json-file", {"cache-disabled": "x"}, "invalid value for option cache-disabled: x"),
        ("syslog", {"syslog-address": "http://x"}, "unsupported scheme: 'http'"),
        ("syslog", {"syslog-address": "unix:///none"}, "stat /none: no such file or directory"),
        ("syslog", {"syslog-address": "tcp://h:x"}, 'parse "tcp://h:x": invalid port ":x" after host'),
        ("syslog", {"syslog-address": "tcp://::1"}, "address ::1: too many colons in address"),
        ("syslog", {"syslog-facility": "24"}, "invalid syslog facility"),
        ("syslog", {"syslog-format": "x"}, "Invalid syslog format"),
    ],
)
def test_refused_at_create(api: Api, busybox: str, driver: str, options: dict[str, str], message: str) -> None:
    assert told(create(api, busybox, driver, options)) == (400, message)


@pytest.mark.parametrize(
    ("driver", "options", "message"),
    [
        ("json-file", {"max-size": "0"}, "max-size must be a positive number"),
        ("json-file", {"max-size": "1x"}, "invalid suffix: 'x'"),
        ("json-file", {"max-size": "1.5.5m"}, 'strconv.ParseFloat: parsing "1.5.5": invalid syntax'),
        ("json-file", {"max-file": "0"}, "max-file cannot be less than 1"),
        ("json-file", {"max-file": "x"}, 'strconv.Atoi: parsing "x": invalid syntax'),
        (
            "json-file",
            {"compress": "true", "max-size": "1m"},
            "compress cannot be true when max-file is less than 2 or max-size is not set",
        ),
        ("json-file", {"labels-regex": "("}, "error parsing regexp: missing closing ): `(`"),
        (
            "json-file",
            {"tag": "ab\n{{.ID}} {{.Foo}}"},
            'template: log-tag:2:10: executing "log-tag" at <.Foo>: can\'t evaluate field Foo in type *logger.Info',
        ),
        ("json-file", {"tag": "{{foo}}"}, 'template: log-tag:1: function "foo" not defined'),
        ("local", {"max-size": "x"}, "invalid value for max-size: x: invalid size: 'x'"),
        ("local", {"max-file": "1"}, "compression cannot be enabled when max file count is 1"),
        (
            "local",
            {"compress": "x"},
            'error reading compress log option: strconv.ParseBool: parsing "x": invalid syntax',
        ),
        ("syslog", {"syslog-address": "tcp://127.0.0.1"}, "dial tcp 127.0.0.1:514: connect: connection refused"),
        ("syslog", {"syslog-address": "tcp://[::1]:9"}, "dial tcp [::1]:9: connect: connection refused"),
        (
            "syslog",
            {"syslog-address": "unixgram:///etc/passwd"},
            "dial unixgram /etc/passwd: connect: connection refused",
        ),
    ],
)
def test_refused_at_start(api: Api, busybox: str, driver: str, options: dict[str, str], message: str) -> None:
    container = create(api, busybox, driver, options).ok()["Id"]
    status, text = told(api.post(f"/containers/{container}/start"))
    assert (status, text) == (
        500,
        f"failed to create task for container: failed to initialize logging driver: {message}",
    )
    state = api.get(f"/containers/{container}/json").ok()["State"]
    assert (state["Status"], state["ExitCode"], state["Error"]) == ("created", 128, text)


def test_options_are_shown(api: Api, busybox: str) -> None:
    container = create(api, busybox, "json-file", {"mode": "non-blocking", "max-file": "3", "max-size": "1m"}).ok()[
        "Id"
    ]
    shown = api.get(f"/containers/{container}/json").ok()["HostConfig"]["LogConfig"]
    assert shown == {"Type": "json-file", "Config": {"max-file": "3", "max-size": "1m", "mode": "non-blocking"}}
    assert {"journald", "json-file", "local", "syslog"} <= set(api.get("/info").ok()["Plugins"]["Log"])


# ---------------------------------------------------------------- reading


@pytest.mark.parametrize(
    "log",
    [
        ("--log-driver", "json-file"),
        ("--log-driver", "local"),
        ("--log-driver", "local", "--log-opt", "mode=non-blocking"),
        ("--log-driver", "syslog", "--log-opt", "syslog-address=udp://127.0.0.1:9"),
    ],
)
def test_what_was_said_can_be_read(cli: Cli, busybox: str, log: tuple[str, ...]) -> None:
    script = "echo two >&2; sleep 0.1; echo one; echo; printf 'three\\xff\\n'"
    script += "; head -c 40000 /dev/zero | tr '\\0' x; echo; printf end"
    cli("run", "-d", "--name", "talker", *log, busybox, "sh", "-c", script)
    cli("wait", "talker")
    done = subprocess.run([cli.program, "logs", "talker"], capture_output=True, env=cli.environment)
    replaced = "\ufffd".encode() if log[1] == "json-file" else b"\xff"
    assert done.stdout == b"one\n\nthree" + replaced + b"\n" + b"x" * 40000 + b"\nend"
    assert done.stderr == b"two\n"
    assert cli("logs", "-n", "2", "talker") == "x" * (40000 - 2 * 16384) + "\nend"
    parts = re.findall(f"({STAMP}) (x+)", cli("logs", "-t", "-n", "4", "talker"))
    assert [len(text) for _, text in parts] == [16384, 16384, 40000 - 2 * 16384]
    assert len({stamp for stamp, _ in parts}) == 1  # the parts of a line are of one time


@pytest.mark.parametrize("driver", ["json-file", "local"])
@pytest.mark.parametrize("options", [ROTATED, COMPRESSED])
def test_after_rotation(cli: Cli, busybox: str, driver: str, options: tuple[str, ...]) -> None:
    flags = ("--log-driver", driver, *options, *(() if "compress=true" in options else ("--log-opt", "compress=false")))
    cli("run", "--name", "talker", *flags, busybox, "sh", "-c", "seq 1 4000")
    kept = cli("logs", "talker").splitlines()
    assert 700 < len(kept) < 4000
    assert "\n".join(kept) + "\n" == lines(4001 - len(kept), 4000)
    for count in (0, 1, 5, len(kept) - 1, len(kept) + 5):
        wanted = min(count, len(kept))
        assert cli("logs", "-n", str(count), "talker") == lines(4001 - wanted, 4000)
    stamped = cli("logs", "-t", "talker").splitlines()
    since = stamped[len(stamped) // 3].split()[0]
    later = cli("logs", "--since", since, "talker").splitlines()
    first = next(index for index, line in enumerate(stamped) if line.split()[0] >= since)
    assert later == kept[first:]


@pytest.mark.parametrize("driver", ["json-file", "local"])
def test_following_through_rotations(cli: Cli, busybox: str, driver: str) -> None:
    script = "read go; for i in $(seq 1 40); do seq $((i * 100 - 99)) $((i * 100)); sleep 0.02; done"
    cli("create", "-i", "--name", "talker", "--log-driver", driver, *COMPRESSED, busybox, "sh", "-c", script)
    talker = cli.start("start", "-ai", "talker")
    wait_until(lambda: cli("inspect", "-f", "{{.State.Running}}", "talker") == "true\n", "it runs")
    follower = cli.start("logs", "-f", "talker")
    _, errors = talker.communicate(b"go\n", timeout=60)
    assert talker.returncode == 0, errors
    out, _ = follower.communicate(timeout=60)
    assert out.decode() == lines(1, 4000)


def test_details(cli: Cli, busybox: str) -> None:
    chosen = {
        "labels": "a,missing",
        "labels-regex": "^b[0-9]+$",
        "env": "X",
        "env-regex": "^Y",
        "tag": '{{.Name}}/{{.ImageName | upper}}/{{index .ContainerLabels "a"}}/{{truncate .FullID 3}}',
    }
    flags = [word for name, value in chosen.items() for word in ("--log-opt", f"{name}={value}")]
    labels = [word for label in ("a=1", "b2=2 &", "bb=3") for word in ("--label", label)]
    env = [word for entry in ("X=x=y", "Y1=1", "Z=0") for word in ("-e", entry)]
    cli("run", "--name", "talker", *flags, *labels, *env, busybox, "echo", "hi")
    container = cli("inspect", "-f", "{{.Id}}", "talker").strip()
    tag = f"talker%2F{busybox.upper().replace(':', '%3A')}%2F1%2F{container[:3]}"
    assert cli("logs", "--details", "talker") == f"X=x%3Dy,Y1=1,a=1,b2=2+%26,tag={tag} hi\n"
    assert re.fullmatch(f"{STAMP} X=.* hi\n", cli("logs", "-t", "--details", "talker"))


def test_on_a_terminal(cli: Cli, busybox: str) -> None:
    cli("run", "-dt", "--name", "talker", "--log-driver", "local", busybox, "sh", "-c", "echo one; echo two >&2")
    cli("wait", "talker")
    assert cli("logs", "talker") == "one\r\ntwo\r\n"


def test_nothing_to_read(cli: Cli, api: Api, busybox: str) -> None:
    for driver in ("json-file", "local"):
        container = create(api, busybox, driver, {}).ok()["Id"]
        assert api.get(f"/containers/{container}/logs", stdout="1").body == b""
        assert api.get(f"/containers/{container}/logs", stdout="1", follow="1").body == b""
    for driver, options in (("none", {"any": "thing"}), ("syslog", {"cache-disabled": "true"})):
        address = {"syslog-address": "udp://127.0.0.1:9"} if driver == "syslog" else {}
        container = create(api, busybox, driver, options | address).ok()["Id"]
        assert told(api.get(f"/containers/{container}/logs", stdout="1")) == (
            501,
            "configured logging driver does not support reading",
        )


def test_a_log_that_somebody_took_away(cli: Cli, engine: Engine, busybox: str) -> None:
    """It is said in the stream, since its head has been sent."""
    cli("run", "-d", "--name", "talker", busybox, "sleep", "1000")
    path = cli("inspect", "-f", "{{.LogPath}}", "talker").strip()
    if not isinstance(engine, OwnEngine):
        pytest.skip("its files are not ours")
    os.unlink(path)
    for flags in ((), ("-f",)):
        done = cli.call("logs", *flags, "talker", timeout_s=20)
        expected = f"error from daemon in stream: Error grabbing logs: open {path}: no such file or directory"
        assert (done.code, done.out, done.err.strip()) == (1, "", expected)


def test_a_log_goes_on_at_the_next_start(cli: Cli, busybox: str) -> None:
    for driver in ("json-file", "local"):
        cli("run", "--name", driver, "--log-driver", driver, busybox, "echo", "once")
        cli("start", "-a", driver)
        assert cli("logs", driver) == "once\nonce\n"


# ---------------------------------------------------------------- syslog


def test_syslog(cli: Cli, busybox: str) -> None:
    """The server is a container in the engine's own network."""
    cli("run", "-d", "--network", "host", "--name", "server", busybox, "nc", "-l", "-p", "5514")
    options = {
        "syslog-address": "tcp://127.0.0.1:5514",
        "syslog-facility": "local3",
        "syslog-format": "rfc5424",
        "tag": "{{.Name}}",
    }
    flags = [word for name, value in options.items() for word in ("--log-opt", f"{name}={value}")]

    def listens() -> bool:
        return ":158A " in cli("exec", "server", "cat", "/proc/net/tcp", "/proc/net/tcp6")

    wait_until(listens, "the server listens")
    cli(
        "run",
        "--name",
        "talker",
        "--log-driver",
        "syslog",
        *flags,
        busybox,
        "sh",
        "-c",
        "echo one; sleep 0.1; echo two >&2",
    )
    wait_until(lambda: cli("logs", "server").count("\n") == 2, "the messages")
    instant = r"[0-9-]{10}T[0-9:]{8}(Z|[+-][0-9:]{5})"
    first, second = cli("logs", "server").splitlines()
    assert re.fullmatch(rf"<158>1 {instant} \S+ talker [0-9]+ talker - one", first)
    assert re.fullmatch(rf"<155>1 {instant} \S+ talker [0-9]+ talker - two", second)

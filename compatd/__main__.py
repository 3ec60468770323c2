"""The command line: ``compatd`` (the daemon), ``compatd doctor``, ``compatd demo``.

The daemon's sockets are bound before anything large is imported: a client that comes at once waits a moment instead of
being refused.
"""

import contextlib
import os
import sys
from collections.abc import Generator, Sequence

import compatd
import compatd.config


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; the exit status."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["doctor"]:
        from compatd import doctor

        return doctor.main(arguments[1:])
    if arguments[:1] == ["demo"]:
        from compatd import demo

        return demo.main(arguments[1:])
    return _daemon(arguments)


def _daemon(argv: Sequence[str]) -> int:
    from compatd import config as configuration

    try:
        arguments = configuration.parse_arguments(argv)
        if arguments.help:
            print(configuration.usage())
            return 0
        if arguments.version:
            print(f"compatd version {compatd.__version__}")
            return 0
        config = configuration.load(arguments)
        if arguments.validate:
            print("configuration OK")
            return 0
        if os.geteuid() != 0:
            raise configuration.ConfigError(
                "compatd needs to be started with root privileges: containers need namespaces, mounts and cgroups."
                "\n'compatd doctor' says what this machine can do."
            )
        return _serve(config)
    except configuration.ConfigError as error:
        print(error, file=sys.stderr)
        if str(error).startswith(("unknown ", "invalid argument", "flag needs")):
            print("See 'compatd --help'.", file=sys.stderr)
            return 125
        return 1


def _serve(config: "compatd.config.Config") -> int:
    from compatd import listeners

    with pidfile(config.pidfile):
        bound = listeners.listen(config)
        try:
            from compatd import app
            from compatd.errors import EngineError

            try:
                return app.run(config, bound)
            except EngineError as error:
                print(f"compatd: failed to start: {error}", file=sys.stderr)
                return 1
        finally:
            bound.close()


@contextlib.contextmanager
def pidfile(path: str) -> Generator[None]:
    """Hold the pid file. ``ConfigError`` when the process that it names is alive (moby pkg/pidfile)."""
    from compatd.config import ConfigError

    if not path:
        yield
        return
    try:
        with open(path) as file:
            text = file.read(32).strip()
    except FileNotFoundError:
        text = ""
    except OSError as error:
        raise ConfigError(f"failed to start daemon: {error}") from error
    if text.isascii() and text.isdecimal() and int(text) != os.getpid() and os.path.exists(f"/proc/{int(text)}"):
        raise ConfigError(
            f"failed to start daemon, ensure docker is not running or delete {path}: process with PID {text} is still"
            " running"
        )
    try:
        os.makedirs(os.path.dirname(path) or "/", mode=0o755, exist_ok=True)
        staged = f"{path}.{os.getpid()}"
        with open(staged, "w") as file:
            file.write(str(os.getpid()))
        os.replace(staged, path)
    except OSError as error:
        raise ConfigError(f"failed to start daemon: {error}") from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.unlink(path)


if __name__ == "__main__":
    sys.exit(main())

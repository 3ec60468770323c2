"""The command line: ``compatd`` (the daemon), ``compatd doctor``, ``compatd demo``.

The daemon's sockets are bound before anything large is imported: a client that comes at once waits a moment instead of
being refused.
"""

import contextlib
import fcntl
import gc
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
            # Imports make many objects and no garbage: without collections they take a fifth less time, and none of
            # them needs to be looked at ever again.
            gc.disable()
            with _no_certificates():
                from compatd import app
            from compatd.errors import EngineError

            gc.freeze()
            gc.enable()
            try:
                return app.run(config, bound)
            except EngineError as error:
                print(f"compatd: failed to start: {error}", file=sys.stderr)
                return 1
        finally:
            bound.close()


@contextlib.contextmanager
def _no_certificates() -> Generator[None]:
    """Spare the import of aiohttp the reading of all the certificates that the machine trusts, 40 ms and two megabytes.

    It makes a TLS context for clients that bring none; ours bring their own (``images.registry``), made later from what
    the environment says. A client that forgot to would trust nobody.
    """
    given = os.environ.get("SSL_CERT_FILE")
    os.environ["SSL_CERT_FILE"] = os.devnull
    try:
        yield
    finally:
        if given is None:
            del os.environ["SSL_CERT_FILE"]
        else:
            os.environ["SSL_CERT_FILE"] = given


@contextlib.contextmanager
def pidfile(path: str) -> Generator[None]:
    """Hold the pid file. ``ConfigError`` while another engine holds it, in dockerd's words.

    A lock decides, not the number: the number of an engine that was killed may belong to anybody by now, or to what
    is left of it.
    """
    from compatd.config import ConfigError

    if not path:
        yield
        return
    try:
        os.makedirs(os.path.dirname(path) or "/", mode=0o755, exist_ok=True)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    except OSError as error:
        raise ConfigError(f"failed to start daemon: {error}") from error
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            other = os.pread(fd, 32, 0).decode(errors="replace").strip()
            raise ConfigError(
                f"failed to start daemon, ensure docker is not running or delete {path}: process with PID {other} is"
                " still running"
            ) from None
        os.ftruncate(fd, 0)
        os.pwrite(fd, str(os.getpid()).encode(), 0)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                os.unlink(path)
    finally:
        os.close(fd)


if __name__ == "__main__":
    sys.exit(main())

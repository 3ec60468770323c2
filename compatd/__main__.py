"""The ``compatd`` command: the engine itself, or one of its helpers (``doctor``, ``demo``).

Start-up is imports, so sockets are bound first and everything large is imported after that: a client that connects
early waits for a moment instead of being refused.
"""

import sys


def main() -> int:
    """Run the command; the exit status."""
    arguments = sys.argv[1:]
    if arguments[:1] == ["doctor"]:
        from compatd import doctor

        return doctor.main(arguments[1:])
    if arguments[:1] == ["demo"]:
        from compatd import demo

        return demo.main(arguments[1:])
    return _serve(arguments)


def _serve(arguments: list[str]) -> int:
    from compatd import config as configuration
    from compatd.errors import EngineError

    try:
        config, given = configuration.parse(arguments)
    except EngineError as error:
        print(f"compatd: {error}", file=sys.stderr)
        return 1
    if given.version:
        from compatd import __version__

        print(f"compatd version {__version__}")
        return 0
    if given.validate:
        print("configuration OK")
        return 0
    from compatd import listeners

    try:
        with listeners.pidfile(config.pidfile), listeners.bind(config) as sockets:
            from compatd import app

            return app.run(config, sockets)
    except (EngineError, OSError) as error:
        print(f"compatd: failed to start daemon: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())

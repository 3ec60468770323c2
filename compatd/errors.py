"""The kinds of failure the engine distinguishes.

A kind says what went wrong, never which HTTP status it becomes: ``routes.middleware`` maps kinds to
statuses once (the kinds follow moby's errdefs/defs.go). The message is wire contract, since clients
match on it: build it in a named function beside the noun it speaks of.
"""


class EngineError(Exception):
    """Base of every error that may reach a client. ``str(error)`` is the text the client sees."""


class NotFound(EngineError):
    """The named object does not exist."""


class InvalidParameter(EngineError):
    """The request itself is wrong, whatever the engine's state."""


class Conflict(EngineError):
    """The request contradicts the state the object is in."""


class NotModified(EngineError):
    """The object already is in the requested state; carries no body on the wire."""


class Unauthorized(EngineError):
    """Credentials are missing or wrong."""


class Forbidden(EngineError):
    """The caller may not do this, with any credentials."""


class Unavailable(EngineError):
    """Something the engine depends on (a registry, the spawner) cannot be reached now."""


class TooManyRequests(EngineError):
    """Something the engine depends on wants to be asked less often."""


class Unsupported(EngineError):
    """A known request or option that this engine does not have."""


class Cancelled(EngineError):
    """The work was given up because its client went away or the engine stops."""


class SystemFailure(EngineError):
    """The engine or the kernel failed; the request was fine."""


def reword(error: EngineError, text: str) -> EngineError:
    """An error of the same kind that says ``text``: for the words that an operation puts before a reason."""
    for kind in type(error).__mro__:
        if kind.__module__ == __name__ and issubclass(kind, EngineError):
            return kind(text)
    raise AssertionError("unreachable: EngineError is a base of every error")

"""Why a process did not start, in the words of runc and dockerd, and the exit code that goes with them.

Clients match on these texts; they are Docker 28.5.2's, asked on that engine.
"""

import errno
import os

MIN_ID, MAX_ID = 0, (1 << 31) - 1

_OF_RUNC = "unable to start container process: "
_CREATE = (
    "failed to create task for container: failed to create shim task: OCI runtime create failed: runc create failed: "
)
_IN_CONTAINER = "error during container init: "
_EXEC = "OCI runtime exec failed: exec failed: "
_MISMATCH = (
    ": Are you trying to mount a directory onto a file (or vice-versa)? "
    "Check if the specified host path exists and is the expected type"
)


class Failed(Exception):
    """The process cannot be started; ``str()`` is the innermost cause.

    ``stage`` is who would notice under Docker: ``engine`` is dockerd, whose text stands alone; ``runtime`` is runc
    before it sets out; ``parent`` is runc outside of the container, ``process`` is runc inside.
    """

    def __init__(self, text: str, stage: str = "process") -> None:
        super().__init__(text)
        self.stage = stage


def words(error: OSError) -> str:
    """The error's text as Go spells it: that of strerror(3), not capitalised."""
    text = os.strerror(error.errno or 0)
    return text[:1].lower() + text[1:]


def describe(error: Exception, doing: str) -> Failed:
    """Any error of a setup step as the failure that the client is told."""
    if isinstance(error, Failed):
        return error
    if isinstance(error, OSError) and error.errno is not None:
        where = error.filename if isinstance(error.filename, str) else doing
        return Failed(f"{where}: {words(error)}")
    return Failed(f"{doing}: {type(error).__name__}: {error}")


def told(failure: Failed, *, of_exec: bool) -> tuple[str, int]:
    """The client's text, and the exit code that is recorded (moby daemon/start.go and errors.go,
    translateContainerdStartErr: decided by what the text says)."""
    text = str(failure)
    if failure.stage == "engine":
        return text, 128
    if failure.stage == "process" and not of_exec:
        text = _IN_CONTAINER + text
    text = (_EXEC if of_exec else _CREATE) + (_OF_RUNC if failure.stage != "runtime" else "") + text
    lowered = text.lower()
    if os.strerror(errno.ENOTDIR).lower() in lowered:
        return text + _MISMATCH, 127
    if os.strerror(errno.EACCES).lower() in lowered:
        return text, 126
    if "executable file not found" in lowered or os.strerror(errno.ENOENT).lower() in lowered:
        return text, 127
    return text, 128


def unknown_user(name: str) -> Failed:
    return Failed(f"unable to find user {name}: no matching entries in passwd file", "engine")


def unknown_group(name: str) -> Failed:
    return Failed(f"unable to find group {name}: no matching entries in group file", "engine")


def id_out_of_range() -> Failed:
    return Failed(f"uids and gids must be in range {MIN_ID}-{MAX_ID}", "engine")

"""Refusals in the words in which Docker passes runc's on: clients and tests match on them."""

from compatd.errors import SystemFailure

_CREATE = (
    "failed to create task for container: failed to create shim task: OCI runtime create failed: runc create failed: "
)
_INIT = "unable to start container process: error during container init: "


def create_failed(text: str) -> SystemFailure:
    """What runc finds wrong with a container before it makes one."""
    return SystemFailure(f"{_CREATE}{text}")


def init_failed(text: str) -> SystemFailure:
    """What runc finds wrong while the container's first process sets itself up."""
    return SystemFailure(f"{_CREATE}{_INIT}{text}")

"""What a container's output is logged to, as the streams see it."""

from collections.abc import Callable, Sequence
from typing import Protocol

from compatd.shim.logfile import LogFile
from compatd.shim.loop import Loop
from compatd.shim.spec import Log


class Sink(Protocol):
    """Takes output and never blocks for long, nor raises."""

    @property
    def blocked(self) -> bool:
        """Whether no more should be written until the sink says that it has drained."""
        ...

    def write(self, stream: str, data: bytes) -> None: ...

    def end(self, stream: str) -> None:
        """The stream has ended: what it left without a newline counts."""
        ...

    def lingers(self) -> bool:
        """Whether something is still to be delivered, now that all output has come. For a while only."""
        ...

    def close(self) -> None: ...


def open_sink(log: Log, descriptors: Sequence[int], loop: Loop, drained: Callable[[], None]) -> Sink | None:
    """The sink that ``log`` describes; copies what it needs of ``descriptors``. ``OSError`` when there can be none.

    ``drained`` is called when the sink is blocked no more.
    """
    if log["driver"] == "none":
        return None
    if log["driver"] in ("json-file", "local"):
        return LogFile(log, loop, drained)
    from compatd.shim.delivery import Delivery  # most containers do without

    return Delivery(log, descriptors, loop, drained)

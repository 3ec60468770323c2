"""Times as Go's encoding/json writes them."""

import time

ZERO = "0001-01-01T00:00:00Z"


def rfc3339(time_ns: int | None) -> str:
    """Nanoseconds since the epoch as RFC 3339 in UTC, trailing zeros of the fraction dropped; ``None`` is Go's zero."""
    if time_ns is None:
        return ZERO
    seconds, nanoseconds = divmod(time_ns, 1_000_000_000)
    fraction = f".{nanoseconds:09}".rstrip("0").rstrip(".")
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + fraction + "Z"

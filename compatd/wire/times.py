"""Times as Go's encoding/json writes them."""

from datetime import UTC, datetime
from functools import lru_cache

ZERO = "0001-01-01T00:00:00Z"


@lru_cache(maxsize=1024)  # the same few are shown again and again
def format_time(time_ns: int) -> str:
    """Nanoseconds since the epoch as RFC 3339 in UTC, with as many digits as needed; 0 is Go's zero time."""
    if not time_ns:
        return ZERO
    seconds, nanoseconds = divmod(time_ns, 1_000_000_000)
    fraction = f".{nanoseconds:09d}".rstrip("0").rstrip(".")
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S") + fraction + "Z"

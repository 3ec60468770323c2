"""Moments as clients write them in ``until`` filters (moby api/types/time, GetTimestamp; Go's time.Parse)."""

import re
import time
from datetime import UTC, datetime, timedelta

from compatd.errors import InvalidParameter

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# The parts of a layout: what each takes, and what its range is called.
_PARTS = {
    "2006": ("[0-9]{4}", "year", 0, 9999),
    "01": ("[0-9]{2}", "month", 1, 12),
    "02": ("[0-9]{2}", "day", 1, 31),
    "15": ("[0-9]{1,2}", "hour", 0, 23),
    "04": ("[0-9]{2}", "minute", 0, 59),
    "05": ("[0-9]{2}", "second", 0, 59),
}
_LAYOUT = re.compile(r"2006|01|02|15|04|05|Z07:00|.")
_ZONE = re.compile("Z|([+-])([0-9]{2}):([0-9]{2})")


def parse_time_ns(text: str) -> int:
    """Seconds since 1970 with a fraction, RFC 3339 in full or part (UTC where no zone is said), or a Go duration before
    now; nanoseconds since 1970. ``InvalidParameter``."""
    from compatd.builder.durations import BadDuration, parse_duration  # most engines never build

    if text != "0":
        try:
            return time.time_ns() - parse_duration(text)
        except BadDuration:
            pass
    try:
        return _parse(text, _layout(text))
    except ValueError as error:
        if "-" in text:
            raise InvalidParameter(str(error)) from None
    match = re.fullmatch(r"\+?([0-9]{1,19})(?:\.([+]?[0-9]+))?", text)
    # 2**63 and above do not fit, of seconds or of the fraction.
    if match is None or int(match[1]) >= 1 << 63:
        raise InvalidParameter(f'failed to parse value as time or duration: "{text}"')
    return int(match[1]) * 10**9 + int((match[2] or "").lstrip("+")[:9].ljust(9, "0"))


def _layout(text: str) -> str:
    zone = "Z07:00" if re.search("[zZ+]", text) or text.count("-") == 3 else ""
    if "." in text:
        return "2006-01-02T15:04:05" + zone
    if "T" not in text:
        return "2006-01-02" + zone
    colons = text.count(":") - (1 if zone and not re.search("[zZ]", text) and ":" in text else 0)
    return "2006-01-02T" + {0: "15", 1: "15:04"}.get(colons, "15:04:05") + zone


def _parse(text: str, layout: str) -> int:
    """``ValueError`` in the words of Go's time.Parse."""
    rest, found, nanoseconds, offset = text, {"2006": 0}, 0, timedelta()

    def out_of_range(what: str) -> ValueError:
        return ValueError(f'parsing time "{text}": {what} out of range')

    # Go's message shows the fraction that moby's layouts have.
    shown = layout.replace("05", "05.999999999") if "." in text else layout
    for part in _LAYOUT.findall(layout):
        pattern, what, least, most = _PARTS.get(part, (re.escape(part), "", 0, 0))
        match = (_ZONE if part == "Z07:00" else re.compile(pattern)).match(rest)
        if match is None:
            raise ValueError(f'parsing time "{text}" as "{shown}": cannot parse "{rest}" as "{part}"')
        rest = rest[match.end() :]
        if part == "Z07:00" and match[1]:
            if int(match[2]) > 24:
                raise out_of_range("time zone offset hour")
            if int(match[3]) > 60:
                raise out_of_range("time zone offset minute")
            offset = timedelta(hours=int(match[2]), minutes=int(match[3])) * (-1 if match[1] == "-" else 1)
        elif what:
            found[part] = int(match[0])
            if not least <= found[part] <= most:
                raise out_of_range(what)
        if part == "05" and (fraction := re.match("[.,]([0-9]+)", rest)):
            nanoseconds = int(fraction[1][:9].ljust(9, "0"))
            rest = rest[fraction.end() :]
    if rest:
        raise ValueError(f'parsing time "{text}": extra text: "{rest}"')
    year = found["2006"]
    try:
        # Years before the first are those of a cycle later: the calendar repeats after 400.
        moment = datetime(year or 400, found["01"], found["02"], tzinfo=UTC)
    except ValueError:
        raise out_of_range("day") from None
    days = (moment - _EPOCH).days - (0 if year else 146097)
    clock = (
        timedelta(days=days, hours=found.get("15", 0), minutes=found.get("04", 0), seconds=found.get("05", 0)) - offset
    )
    return (clock // timedelta(seconds=1)) * 10**9 + nanoseconds

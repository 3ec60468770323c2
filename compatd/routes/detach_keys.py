"""The keys that leave an attached terminal: ``ctrl-p,ctrl-q`` (moby/term, ToBytes)."""

from compatd.errors import InvalidParameter

DEFAULT = [16, 17]  # ctrl-p, ctrl-q

_CONTROL = {"@": 0, "[": 27, "\\": 28, "]": 29, "^": 30, "_": 31}


def parse(text: str) -> list[int]:
    """The bytes of a key sequence; the default when empty. ``InvalidParameter``."""
    if not text:
        return DEFAULT
    codes: list[int] = []
    for key in text.split(","):
        control = key.removeprefix("ctrl-")
        if len(key) == 1 and key.isascii():
            codes.append(ord(key))
        elif key.startswith("ctrl-") and len(control) == 1 and "a" <= control <= "z":
            codes.append(ord(control) - ord("a") + 1)
        elif key.startswith("ctrl-") and control in _CONTROL:
            codes.append(_CONTROL[control])
        else:
            raise InvalidParameter(f"Invalid detach keys ({text}) provided")
    return codes

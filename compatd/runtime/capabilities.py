"""Linux capabilities: names, Docker's default set, and what ``--cap-add`` and ``--cap-drop`` make of it.

A set of capabilities is an int, bit n standing for number n, as in the kernel's own interfaces.

What this process may not hold cannot be given away: every result lies within ``available``, the bounding set
of the engine. So ``--privileged`` means *all that there is here*, and asking by name for a capability that is
missing (CAP_SYS_RESOURCE in many sandboxes) is refused, as Docker does.
"""

from collections.abc import Iterable, Sequence

from compatd.errors import InvalidParameter

# include/uapi/linux/capability.h, in the order of their numbers.
NAMES = tuple(
    f"CAP_{name}"
    for name in """
    CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE
    NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN
    SYS_BOOT SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE
    MAC_ADMIN SYSLOG WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE
    """.split()
)
_BITS = {name: 1 << number for number, name in enumerate(NAMES)}
_ALL = "ALL"


def mask(names: Iterable[str]) -> int:
    """The set of the named capabilities; full names only, ``KeyError`` otherwise."""
    bits = 0
    for name in names:
        bits |= _BITS[name]
    return bits


def names(capabilities: int) -> tuple[str, ...]:
    """The members' names, by number. Bits that have no name here are left out."""
    return tuple(name for name, bit in _BITS.items() if capabilities & bit)


# moby oci/caps/defaults.go
DEFAULT = mask(
    f"CAP_{name}"
    for name in """
    CHOWN DAC_OVERRIDE FSETID FOWNER MKNOD NET_RAW SETGID SETUID SETFCAP SETPCAP NET_BIND_SERVICE SYS_CHROOT KILL
    AUDIT_WRITE
    """.split()
)


def unknown(option: str, name: str) -> InvalidParameter:
    """moby oci/caps/utils.go, NormalizeLegacyCapabilities; ``option`` is CapAdd or CapDrop."""
    return InvalidParameter(f'invalid {option}: unknown capability: "{name}"')


def unavailable(option: str, name: str) -> InvalidParameter:
    return InvalidParameter(
        f"invalid {option}: capability not supported by your kernel or not available in the current environment: "
        f'"{name}"'
    )


def effective(*, add: Sequence[str], drop: Sequence[str], privileged: bool, available: int) -> int:
    """The set that a container's root user gets. ``InvalidParameter``: a name that is unknown or not ``available``.

    Names are taken with or without ``CAP_``, in any case. An ALL in ``add`` starts from all, without those
    dropped; an ALL in ``drop`` leaves exactly those added; otherwise the default set, less dropped, plus added.
    """
    added, add_all = _parse("CapAdd", add, available)
    dropped, drop_all = _parse("CapDrop", drop, available)
    if privileged:
        return available
    if add_all:
        return available & ~dropped
    if drop_all:
        return added
    return (DEFAULT & available & ~dropped) | added


def _parse(option: str, given: Sequence[str], available: int) -> tuple[int, bool]:
    bits, everything = 0, False
    for spelling in given:
        name = spelling.upper()
        if name == _ALL:
            everything = True
            continue
        if not name.startswith("CAP_"):
            name = f"CAP_{name}"
        bit = _BITS.get(name)
        if bit is None:
            raise unknown(option, name)
        if not bit & available:
            raise unavailable(option, name)
        bits |= bit
    return bits, everything

"""Pseudo-terminals: made in a container's own devpts, held by the shim (pts(4), ioctl_tty(2))."""

import fcntl
import os
import stat
import struct
import termios

from compatd.linux.rootdir import Rootdir
from compatd.shim.failures import Failed

# include/uapi/asm-generic/ioctls.h
_TIOCSPTLCK = 0x40045431
_TIOCGPTPEER = 0x5441
_PTMX = os.makedev(5, 2)


def create(root: Rootdir, size: tuple[int, int] | None) -> tuple[int, int]:
    """A new terminal, sized (height, width): master and slave, both the caller's."""
    master = root.open("/dev/pts/ptmx", os.O_RDWR)
    info = os.fstat(master)
    if not stat.S_ISCHR(info.st_mode) or info.st_rdev != _PTMX:
        raise Failed("/dev/pts/ptmx is not a terminal multiplexer")
    fcntl.ioctl(master, _TIOCSPTLCK, struct.pack("i", 0))
    if size is not None:
        resize(master, *size)
    return master, slave(master)


def slave(master: int) -> int:
    """Open the slave from its master, not by a path that the container could have changed. The caller owns it."""
    fd = fcntl.ioctl(master, _TIOCGPTPEER, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    assert isinstance(fd, int)
    return fd


def resize(master: int, height: int, width: int) -> None:
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", height & 0xFFFF, width & 0xFFFF, 0, 0))


def control(fd: int) -> None:
    """Make it the controlling terminal of the calling session leader."""
    fcntl.ioctl(fd, termios.TIOCSCTTY, 0)

"""inotify(7) for the event loop: who waits for a directory to change is woken, without polling.

One kernel instance serves every watcher (their number per user is small: fs.inotify.max_user_instances).
"""

import asyncio
import contextlib
import ctypes
import os
import struct
from collections.abc import Generator

# include/uapi/linux/inotify.h
IN_MODIFY = 0x2
IN_MOVED_FROM = 0x40
IN_MOVED_TO = 0x80
IN_CREATE = 0x100
IN_DELETE = 0x200
IN_Q_OVERFLOW = 0x4000
IN_IGNORED = 0x8000
IN_ONLYDIR = 0x1000000

_EVENT = struct.Struct("iIII")
_READ_BYTES = 64 * 1024

_libc = ctypes.CDLL(None, use_errno=True)
_libc.inotify_add_watch.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_uint32)


def _failed(call: str, path: str = "") -> OSError:
    errno = ctypes.get_errno()
    return OSError(errno, os.strerror(errno), f"{call} {path}".rstrip())


class Watches:
    """Directories being watched on behalf of anyone who waits. Owns the inotify descriptor and its reader on the loop.

    Opened at the first ``watch``; used from the loop's thread only.
    """

    def __init__(self) -> None:
        self._fd = -1
        self._loop: asyncio.AbstractEventLoop | None = None
        self._wakes: dict[int, list[asyncio.Event]] = {}

    @contextlib.contextmanager
    def watch(self, directory: str, wake: asyncio.Event) -> Generator[None, None, None]:
        """Set ``wake`` at every change of a file in ``directory``, while the context lasts.

        ``OSError`` as inotify_add_watch(2). A spurious wake is possible, a missed one is not.
        """
        self._open()
        mask = IN_MODIFY | IN_CREATE | IN_MOVED_FROM | IN_MOVED_TO | IN_DELETE | IN_ONLYDIR
        # The same directory gives the same descriptor again, whoever asks.
        descriptor = _libc.inotify_add_watch(self._fd, os.fsencode(directory), mask)
        if descriptor < 0:
            raise _failed("inotify_add_watch", directory)
        self._wakes.setdefault(descriptor, []).append(wake)
        try:
            yield
        finally:
            waiting = self._wakes.get(descriptor, [])
            with contextlib.suppress(ValueError):
                waiting.remove(wake)
            if not waiting and self._wakes.pop(descriptor, None) is not None and self._fd >= 0:
                _libc.inotify_rm_watch(self._fd, descriptor)

    def close(self) -> None:
        """Give back the descriptor; waiters are woken a last time."""
        if self._fd >= 0:
            if self._loop is not None:
                self._loop.remove_reader(self._fd)
            os.close(self._fd)
            self._fd = -1
        self._wake_all()
        self._wakes.clear()

    def _open(self) -> None:
        if self._fd >= 0:
            return
        fd = _libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        if fd < 0:
            raise _failed("inotify_init1")
        self._fd = fd
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(fd, self._readable)

    def _readable(self) -> None:
        try:
            events = os.read(self._fd, _READ_BYTES)
        except BlockingIOError:
            return
        offset = 0
        while offset < len(events):
            descriptor, mask, _, name_bytes = _EVENT.unpack_from(events, offset)
            offset += _EVENT.size + name_bytes
            if mask & IN_Q_OVERFLOW:
                self._wake_all()
            # IN_IGNORED after our own removal speaks of a descriptor that is no longer in the table; when the
            # directory itself has gone, its waiters look for themselves, and leave.
            for wake in self._wakes.get(descriptor, ()):
                wake.set()

    def _wake_all(self) -> None:
        for waiting in self._wakes.values():
            for wake in waiting:
                wake.set()

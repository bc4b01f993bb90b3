"""Gives a connection to another worker, with what has been read from it. The client notices nothing: it is the same
open socket, which the kernel hands from one process to the other (unix(7), SCM_RIGHTS)."""

import array
import asyncio
import socket
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

LARGEST = 256 * 1024  # bytes, which go with it in one datagram: no event loop reads more at a time
_FD = array.array("i").itemsize


class Handover:
    """Worker number ``index``'s mailbox in ``folder``, and the way to those of the others.

    ``take`` gets what comes: a connection, and what was read from it. Lives in one event loop. Raises ``OSError``
    where the folder's name is too long for a socket, which takes 107 bytes on Linux.
    """

    def __init__(self, folder: Path, index: int, take: Callable[[socket.socket, bytes], None]) -> None:
        self._folder, self._take = folder, take
        self._inbox, self._outbox = (socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(2))
        self._inbox.setblocking(False)
        self._outbox.setblocking(False)
        self._outbox.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * LARGEST)
        try:
            self._path(index).unlink(missing_ok=True)  # of a worker that died
            self._inbox.bind(str(self._path(index)))
        except OSError:
            self._inbox.close()
            self._outbox.close()
            raise
        asyncio.get_running_loop().add_reader(self._inbox, self._read)

    def give(self, index: int, connection: int, received: bytes) -> bool:
        """Whether worker ``index`` has them now; the caller then closes its own file descriptor, and nothing more."""
        if len(received) > LARGEST:
            return False
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [connection]))]
        try:
            self._outbox.sendmsg([received], rights, 0, str(self._path(index)))
        except OSError:  # it is not there, or has its hands full
            return False
        return True

    def _read(self) -> None:
        with suppress(BlockingIOError):
            while True:
                received, rights, _, _ = self._inbox.recvmsg(LARGEST, socket.CMSG_LEN(_FD))
                for _, _, descriptors in rights:
                    self._take(socket.socket(fileno=array.array("i", descriptors)[0]), received)

    def close(self) -> None:
        """Takes nothing more."""
        asyncio.get_running_loop().remove_reader(self._inbox)
        self._inbox.close()
        self._outbox.close()

    def _path(self, index: int) -> Path:
        return self._folder / f"worker-{index}"

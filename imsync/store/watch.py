"""Whether the file that SQLite has open is still the one that everybody else finds at its path.

A process goes on writing into a file that was deleted, moved or replaced, and what it writes there is lost. SQLite
does not look (https://www.sqlite.org/howtocorrupt.html, section 4), so a store does, for one system call.
"""

from __future__ import annotations

import os
from typing import NamedTuple


class Identity(NamedTuple):
    """What tells a file from another one that has its name."""

    device: int
    inode: int


def identity(path: str) -> Identity:
    """Of the file at a path.

    Raises:
        OSError: there is none, or it cannot be looked at.
    """
    status = os.stat(path)
    return Identity(status.st_dev, status.st_ino)


class FileWatch:
    """A store's file, and the write-ahead log beside it, as they were when they were opened.

    Args:
        path: the file, absolute.

    Raises:
        OSError: there is no file.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        status = os.stat(path)
        self.identity = Identity(status.st_dev, status.st_ino)
        self._size = status.st_size
        # SQLite puts the log beside the file itself, wherever a symbolic link to it may be
        self._log_path = os.path.realpath(path) + "-wal"
        self._log: Identity | None = None

    def change(self) -> str:
        """What has become of the file; empty when it is in place."""
        try:
            status = os.stat(self._path)
        except FileNotFoundError:
            return "was deleted or moved away while in use"
        except OSError as error:
            return f"cannot be looked at any more: {error.strerror}"
        if status.st_ino != self.identity.inode or status.st_dev != self.identity.device:
            return "was replaced while in use"
        if status.st_size < self._size:
            return "was cut short while in use"
        self._size = status.st_size
        return ""

    def note_log(self) -> None:
        """Remembers the write-ahead log, which must exist by now: it lives as long as anybody has the file open."""
        self._log = identity(self._log_path)

    def log_is_lost(self) -> bool:
        """Whether the log was deleted or replaced: what was committed since is in no file that has a name."""
        try:
            status = os.stat(self._log_path)
        except OSError:
            return True
        return self._log is None or status.st_ino != self._log.inode or status.st_dev != self._log.device

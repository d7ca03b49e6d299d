"""The locks beside a user store: the one of the active relay, and the one of whoever wants to be alone with the outbox.

Each file names the process that holds the lock, for people who look for one that hangs. The lock itself is the
kernel's, and ends with the process (https://man7.org/linux/man-pages/man2/flock.2.html).
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import IO, Any

from imsync.errors import StoreUnusable

LOCK = ".relay-lock"
"""What the active relay holds, a file beside the store."""
PAUSE = ".relay-pause"
"""What somebody holds who wants to be alone with the outbox."""

_MAX_BYTES = 1000


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that holds a lock. None: it has not said.

    Args:
        here: whether it is on this host.
        stopped: whether it is known to be stopped, by SIGSTOP or a debugger.
    """

    pid: int | None = None
    host: str | None = None
    here: bool = False
    stopped: bool = False

    def __str__(self) -> str:
        if self.pid is None:
            return "an unknown process"
        return f"pid {self.pid}" if self.here else f"pid {self.pid} on {self.host}"


@contextmanager
def locked(path: Path | str, kind: int = fcntl.LOCK_EX) -> Iterator[bool]:
    """A lock for as long as the block runs; whether this process has it, and no other does. One that nobody else may
    hold is given this process's name.

    Raises:
        StoreUnusable: the file cannot be locked.
    """
    try:
        # a bare descriptor: an edit waits for this between its commit and its XADD
        file = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _unusable(path, error) from error
    try:
        try:
            fcntl.flock(file, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            held = False
        except OSError as error:
            raise _unusable(path, error) from error
        else:
            held = True
        if held and kind == fcntl.LOCK_EX:
            with suppress(OSError):  # a full disk keeps no relay from its work
                _sign(file)
        yield held
    finally:
        os.close(file)


def _sign(file: int) -> None:
    """Writes this process's name, unless it stands there: to cut a file short is what takes longest of all."""
    name = _name_of(os.getpid())
    if os.pread(file, _MAX_BYTES, 0) != name:
        os.ftruncate(file, 0)
        os.pwrite(file, name, 0)


@lru_cache(maxsize=1)
def _name_of(pid: int) -> bytes:
    return json.dumps({"host": socket.gethostname(), "pid": pid}).encode()


def holder(path: Path | str) -> Holder | None:
    """Who holds a lock at this moment; None when nobody does, or nobody may look.

    Looks by trying a shared lock. A relay that comes in this very moment waits a round for it: to be asked only when
    there is a reason.
    """
    try:
        file = os.fdopen(os.open(path, os.O_RDONLY | os.O_CLOEXEC), "rb", buffering=0)
    except OSError:
        return None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _named_in(file)
        except OSError:
            return None
    return None


def _named_in(file: IO[bytes]) -> Holder:
    told: Any = None
    with suppress(OSError, ValueError, RecursionError):
        told = json.loads(file.read(_MAX_BYTES) or b"null")
    if not isinstance(told, dict):
        return Holder()
    pid, host = told.get("pid"), told.get("host")
    if type(pid) is not int or not 1 <= pid < 2**31 or not isinstance(host, str):
        return Holder()
    here = host == socket.gethostname()
    return Holder(pid, host[:64], here, here and is_stopped(pid))


def is_stopped(pid: int) -> bool:
    """Whether a process of this host is stopped; False where the system does not tell (it does on Linux)."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[:1]
    except OSError:
        return False
    return state in (["T"], ["t"])


def _unusable(path: Path | str, error: OSError) -> StoreUnusable:
    return StoreUnusable(
        f"cannot lock {path}: {error.strerror}", "it must be a file that you may write, on a disk that has locks"
    )

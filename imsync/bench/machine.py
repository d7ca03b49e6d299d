"""The machine: how busy it is, what its disk is, what one fsync costs."""

from __future__ import annotations

import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

from imsync.bench.figures import percentile
from imsync.bench.results import Sync

PAGE = b"\x5a" * 4096
MOST_SYNCS = 500


def load_average() -> float:
    """Processes that wanted to run in the last minute; 0 where nobody counts them."""
    try:
        return os.getloadavg()[0]
    except OSError:
        return 0.0


def filesystem(path: Path) -> str:
    """The kind of the filesystem that a path is on, such as `ext4`; empty when nobody tells."""
    try:
        mounts = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    real, found, longest = os.path.realpath(path), "", -1
    for line in mounts:
        place, _, kind = line.partition(" - ")
        mounted = place.split(" ")[4].encode().decode("unicode_escape")  # a blank is \040
        inside = real == mounted or real.startswith(mounted.rstrip("/") + "/")
        if inside and len(mounted) >= longest:
            found, longest = kind.split(" ")[0], len(mounted)
    return found


def fsync_cost(folder: Path, seconds: float, go_on: Callable[[], None] = lambda: None) -> Sync:
    """What it costs to have one page on the disk, as at the end of a transaction: measured for so long.

    Raises:
        OSError: the folder cannot be written.
    """
    path = folder / "fsync"
    taken: list[float] = []
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        until = time.perf_counter() + seconds
        while len(taken) < 5 or (time.perf_counter() < until and len(taken) < MOST_SYNCS):
            go_on()
            os.write(file, PAGE)
            began = time.perf_counter()
            os.fsync(file)
            taken.append((time.perf_counter() - began) * 1000)
    finally:
        os.close(file)
        path.unlink()
    taken.sort()
    return Sync(len(taken), percentile(taken, 0.5), percentile(taken, 0.99), taken[-1])


def peak_mib() -> float:
    """The most memory that this process ever had, in MiB. (Linux counts in ru_maxrss what the process that it was
    forked from had.)
    """
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii", errors="replace")
        return next(int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most / 2**20 if sys.platform == "darwin" else most / 1024

"""When an edit is due, and what a piece of work took."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from imsync.bench.machine import peak_mib

WARM_SECONDS = 0.01
"""Between two edits that are not measured yet."""


class Watch:
    """Runs while a block does."""

    def __init__(self) -> None:
        self._progress: list[tuple[float, int]] = []
        self._cpu = time.process_time()
        self._began = time.perf_counter()
        self._ended = self._began

    def done(self, events: int) -> None:
        """So many events are done by now."""
        self._progress.append((time.perf_counter() - self._began, events))

    def stop(self) -> None:
        """The work has ended."""
        self._ended = time.perf_counter()
        self._cpu = time.process_time() - self._cpu

    def work(self, events: int) -> dict[str, Any]:
        """What it took: the fields of `Work`. It ended when the last event was done, if that was told."""
        return {
            "events": events,
            "seconds": self._progress[-1][0] if self._progress else self._ended - self._began,
            "cpu_seconds": self._cpu,
            "peak_mib": peak_mib(),
            "progress": self._progress,
        }


@contextmanager
def watch() -> Iterator[Watch]:
    """Times a block."""
    watched = Watch()
    yield watched
    watched.stop()


def paced(warm: int, count: int, rate: float) -> Iterator[tuple[int, int]]:
    """Waits until edits are due; from which to below which. Whoever is late gets all that are due by then at once, so
    that slow edits do not hide behind edits that were never made.

    Args:
        warm: how many come first, at a pace of their own.
        count: how many come then, `rate` per second.
    """
    for first in range(warm):
        yield first, first + 1
        time.sleep(WARM_SECONDS)
    began, first = time.monotonic(), 0
    while first < count:
        wait = began + first / rate - time.monotonic()
        if wait > 0:
            time.sleep(wait)
        due = min(count, max(first + 1, int((time.monotonic() - began) * rate) + 1))
        yield warm + first, warm + due
        first = due

"""Entries on which the handler has failed: each is tried again alone, when its time comes."""

from __future__ import annotations

import logging
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from imsync.bus.entry import Entry
from imsync.bus.processor import Failure
from imsync.bus.retry import Delays

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Waiting:
    entry: Entry
    due: float


class Failing:
    """The failing entries that one consumer holds.

    Args:
        delays: how long each waits after which failure.
        clock: seconds, monotonic.
        log: where failures are told.
    """

    def __init__(
        self,
        delays: Delays,
        clock: Callable[[], float],
        rng: random.Random,
        log: logging.LoggerAdapter[logging.Logger] | logging.Logger = log,
    ) -> None:
        self._delays = delays
        self._clock = clock
        self._rng = rng
        self._log = log
        self._waiting: dict[str, _Waiting] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, entry_id: str) -> bool:
        return entry_id in self._waiting

    def add(self, failures: Sequence[Failure]) -> None:
        """Takes entries on which the handler failed just now."""
        for failure in failures:
            entry = failure.entry
            delay = self._delays.delay(failure.failures, self._rng)
            self._waiting[entry.id] = _Waiting(entry, self._clock() + delay)
            what = "entry %s failed %d times, again in %.1f s"
            self._log.debug(what, entry.id, failure.failures, delay, extra={"entry_id": entry.id})
        first = [each for each in failures if each.failures == 1]
        for (error, where), number in Counter((each.error, each.where) for each in first).items():
            what = "the handler failed on %d events, and will be given them again: %s (%s)"
            self._log.warning(what, number, error, where, extra={"entries": number, "entry_id": first[0].entry.id})

    def forget(self, ids: Iterable[str]) -> None:
        """Forgets entries that were processed, or that are somebody else's by now."""
        if self._waiting:
            for entry_id in ids:
                self._waiting.pop(entry_id, None)

    def due(self) -> Iterator[Entry]:
        """The entries whose time has come."""
        now = self._clock()
        yield from [each.entry for each in self._waiting.values() if each.due <= now]

    def seconds_left(self) -> float:
        """Until the time of the next one comes; infinite when there is none."""
        return min((each.due for each in self._waiting.values()), default=float("inf")) - self._clock()

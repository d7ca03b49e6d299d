"""The telemetry of one batch: how long its steps took, and what came of it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from imsync.bus.handler import Received
from imsync.bus.outcome import Outcome
from imsync.bus.telemetry import BatchApplied, BatchFailed, BatchStarted, Telemetry
from imsync.errors import ImsyncError


class Stopwatch:
    """Stops the steps of one batch, and tells its events. Made only when somebody listens.

    Args:
        whose: group, consumer and stream.
        entries: how many entries the batch has.
    """

    def __init__(self, telemetry: Telemetry, whose: tuple[str, str, str], entries: int) -> None:
        self._telemetry = telemetry
        self._whose = whose
        self._entries = entries
        self._deliveries: Sequence[Received[Any]] = ()
        self._laps = [time.perf_counter()]

    def decoded(self, deliveries: Sequence[Received[Any]]) -> None:
        """The events are given to the handler next."""
        self._deliveries = deliveries
        self.lap()
        self._telemetry.emit(BatchStarted(*self._whose, self._entries, deliveries))
        self.lap()  # what the listeners take is no step

    def lap(self) -> None:
        """A step begins or has ended."""
        self._laps.append(time.perf_counter())

    def applied(self, outcomes: Sequence[Outcome], counts: Sequence[int]) -> None:
        """The batch was acknowledged.

        Args:
            counts: applied, superseded, duplicates, ignored, dead, lost, retries.
        """
        began, decoded, handed_over, handled = self._laps
        now = time.perf_counter()
        applied, superseded, duplicates, ignored, dead, lost, retries = counts
        self._telemetry.emit(
            BatchApplied(
                *self._whose,
                entries=self._entries,
                applied=applied,
                superseded=superseded,
                duplicates=duplicates,
                ignored=ignored,
                dead=dead,
                lost=lost,
                retries=retries,
                decode_seconds=decoded - began,
                apply_seconds=handled - handed_over,
                acknowledge_seconds=now - handled,
                seconds=now - began,
                deliveries=self._deliveries,
                outcomes=outcomes,
            )
        )

    def failed(self, error: BaseException) -> None:
        """The batch was given up."""
        kind = error.kind if isinstance(error, ImsyncError) else type(error).__name__
        seconds = time.perf_counter() - self._laps[0]
        self._telemetry.emit(BatchFailed(*self._whose, self._entries, kind, seconds, self._deliveries))

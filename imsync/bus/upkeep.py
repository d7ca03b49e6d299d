"""What a consumer does about once a minute beside its entries: trimming the stream and pruning its settled log."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable

from imsync.bus.handler import PrunedLog
from imsync.bus.retention import Retention, trim
from imsync.bus.stream import Stream

log = logging.getLogger(__name__)

INTERVAL_SECONDS = 60.0
BETWEEN_STEPS_SECONDS = 1.0
PRUNING_SECONDS = 0.05
"""How long one step may prune before the next batch has its turn."""


class Upkeep:
    """Trims and prunes, a step at a time so that no batch waits for long.

    Args:
        retention: what may be trimmed; None trims nothing. What somebody else trimmed is pruned all the same.
        handler: the consumer's; pruned when it keeps a log that can be.
    """

    def __init__(
        self,
        stream: Stream,
        retention: Retention | None,
        handler: object,
        *,
        clock: Callable[[], float] = time.monotonic,
        rng: random.Random | None = None,
    ) -> None:
        self._stream = stream
        self._retention = retention
        self._log = handler if isinstance(handler, PrunedLog) else None
        self._clock = clock
        # spread over the minute, so that many consumers do not come at once
        self._next = clock() + INTERVAL_SECONDS * (rng or random.Random()).random()

    def step(self) -> None:
        """Does what is due.

        Raises:
            InfrastructureError: Redis or the store is in trouble.
        """
        now = self._clock()
        if now < self._next:
            return
        self._next = now + INTERVAL_SECONDS
        more = self._trim()
        if self._log is not None and (info := self._stream.info()):
            more |= self._prune(self._log, info.first_id or info.last_generated_id)
        if more:
            self._next = now + BETWEEN_STEPS_SECONDS

    def _trim(self) -> bool:
        if self._retention is None:
            return False
        trimmed = trim(self._stream, self._retention)
        if trimmed.removed:
            log.info("%d entries of %s trimmed, up to %s", trimmed.removed, self._stream.key, trimmed.up_to)
        if trimmed.pinned_by:
            log.warning("group %s holds up the trimming of %s", trimmed.pinned_by, self._stream.key)
        return trimmed.more

    def _prune(self, settled: PrunedLog, first_id: str) -> bool:
        until = self._clock() + PRUNING_SECONDS
        while settled.prune(first_id):
            if self._clock() > until:
                return True
        return False

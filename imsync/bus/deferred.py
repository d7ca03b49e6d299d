"""What a handler has put off: its turns between the batches, and its end where nobody comes after."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from threading import Event as Flag

from imsync.bus.handler import Deferring
from imsync.bus.outcome import Retry
from imsync.errors import InfrastructureError, StoreMismatch

log = logging.getLogger(__name__)

LONGEST_PAUSE_SECONDS = 0.005


class Deferred:
    """What a handler has put off; true as long as some of it may be left. For a handler that puts nothing off it never
    is.

    Between two pieces it leaves the store to others for as long as the last one took: who waits for SQLite's lock asks
    for it now and then, and would hardly ever find it free.

    Args:
        stop: ends a pause.
        log: told of pieces that failed.
    """

    def __init__(
        self,
        handler: object,
        stop: Flag | None = None,
        log: logging.Logger | logging.LoggerAdapter[logging.Logger] = log,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._handler = handler if isinstance(handler, Deferring) else None
        self._stop = stop or Flag()
        self._log = log
        self._clock = clock
        self._left = False
        self._failed = False
        self._pause = 0.0
        self.look()

    def __bool__(self) -> bool:
        return self._left

    def look(self) -> None:
        """Has the handler asked again: whoever has put something off may be gone."""
        self._left = self._handler is not None

    def go_on(self) -> None:
        """Does a piece.

        Raises:
            InfrastructureError: the store is in trouble.
        """
        if self._handler is None or not self._left:
            return
        began = self._clock()
        try:
            self._left = self._handler.go_on()
            self._failed = False
        except (InfrastructureError, StoreMismatch):
            raise
        except Exception as error:
            # the handler turns to another piece; one that fails at whatever it does is asked again later
            self._left, self._failed = not self._failed, True
            cause = Retry.after(error)
            self._log.error("what was put off failed, and will be tried again: %s (%s)", cause.error, cause.where)
            self._log.debug("what was put off failed", exc_info=True)
        self._pause = min(self._clock() - began, LONGEST_PAUSE_SECONDS)

    def pause(self) -> None:
        """Leaves the store to others, where something is left and nothing else is to be done."""
        if self._left and self._pause > 0:
            self._stop.wait(self._pause)


def finish(handler: object, stop: Flag | None = None) -> None:
    """Does all that a handler has put off, piece by piece, or all until told to stop. What fails stays put off.

    Raises:
        InfrastructureError: the store is in trouble; what is left, the next one who uses the store goes on with.
    """
    deferred = Deferred(handler, stop)
    while deferred and not (stop and stop.is_set()):
        deferred.go_on()
        deferred.pause()

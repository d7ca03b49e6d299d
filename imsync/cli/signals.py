"""SIGINT and SIGTERM: the first asks to finish what is at hand, the second ends the process at once.

Ending at once is harmless: what was not committed was not acknowledged either.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def stopping(stop: Callable[[], None], *, deadline_seconds: float) -> Iterator[None]:
    """Calls `stop` on the first signal; ends the process on the second, or when the deadline has passed."""

    def end(status: int) -> None:
        sys.stderr.flush()
        os._exit(status)

    def first(number: int, frame: FrameType | None) -> None:
        stop()
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, lambda again, _: end(128 + again))
        timer = threading.Timer(deadline_seconds, end, (1,))
        timer.daemon = True
        timer.start()

    before = {each: signal.signal(each, first) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)

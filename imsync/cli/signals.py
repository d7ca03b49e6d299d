"""SIGINT and SIGTERM: the first asks to finish what is at hand, the second ends the process at once.

Ending at once is harmless: what was not committed was not acknowledged either.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from imsync.cli.logs import tell

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def stopping(stop: Callable[[], None], *, deadline_seconds: float) -> Iterator[None]:
    """Calls `stop` on the first signal; ends the process on the second, or when the deadline has passed.

    `stop` is called on a thread of its own. Python runs signal handlers on the main thread, between two of its
    instructions, and that thread may be inside SQLite until a busy timeout ends; the number of a signal is
    written to a pipe at once (https://docs.python.org/3/library/signal.html#signal.set_wakeup_fd).
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    watcher = threading.Thread(target=_watch, args=(reader, stop, deadline_seconds), name="imsync-signals", daemon=True)
    woken_before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    before = {each: signal.signal(each, _noted) for each in _SIGNALS}
    watcher.start()
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
        signal.set_wakeup_fd(woken_before)
        os.close(writer)  # ends the watcher
        watcher.join()
        os.close(reader)


@contextmanager
def ending_at_once() -> Iterator[None]:
    """For commands that only look: the first signal ends the block, wherever it is."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {each: signal.signal(each, interrupt) for each in _SIGNALS}
    try:
        yield
    except KeyboardInterrupt:
        pass
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


@contextmanager
def noting() -> Iterator[Callable[[], bool]]:
    """For commands that clean up after themselves: in the block, Ctrl-C, SIGTERM and the end of the terminal are noted
    only, however many come, so that none cuts the cleaning up short. Yields what tells whether one came. If so the
    process is deaf to them afterwards, up to its very end: its exit code is the command's own.
    """
    signals: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        signals.append(number)

    # nohup ignores one
    heeded = [each for each in (*_SIGNALS, signal.SIGHUP) if signal.getsignal(each) is not signal.SIG_IGN]
    before = {each: signal.signal(each, note) for each in heeded}
    try:
        yield lambda: bool(signals)
    finally:
        # not in the handler: Python complains of a signal that came, and whose handler it no longer finds
        for each, handler in before.items():
            signal.signal(each, signal.SIG_IGN if signals else handler)


def _noted(number: int, frame: FrameType | None) -> None:
    """A handler must be there for the number to be written; the watcher does the rest."""


def _watch(reader: int, stop: Callable[[], None], deadline_seconds: float) -> None:
    if _next_signal(reader) is None:
        return
    stop()
    finished_or_again, _, _ = select.select([reader], [], [], deadline_seconds)
    if not finished_or_again:
        what = f"not finished within {deadline_seconds:g} s: what was not committed is delivered again"
        tell(what, logging.ERROR)
        _end(1)
    if number := _next_signal(reader):
        _end(128 + number)


def _next_signal(reader: int) -> int | None:
    """Waits for one of the signals; None when there will be none."""
    while written := os.read(reader, 1):
        if written[0] in _SIGNALS:
            return written[0]
    return None


def _end(status: int) -> None:
    sys.stderr.flush()
    os._exit(status)

"""`imsync status --watch`: one look after the other, also while Redis is away."""

from __future__ import annotations

import os
import queue
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from imsync.bus.clock import timestamp
from imsync.cli.looking import described, described_error, described_rates, look_again
from imsync.cli.render import Block, Grid, Line, milliseconds, number, seconds, sparkline

if TYPE_CHECKING:
    from imsync.cli.run import Run
    from imsync.im.overview import Overview
    from imsync.im.rates import Rates

SHORTEST_MS = 100
"""The shortest interval, in milliseconds."""
KEPT_SECONDS = 300.0
"""How far back the lines of bars go."""

_LABELS = 34
"""Columns beside a line of bars."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One look.

    Args:
        rates: compared with the look before.
        away_ms: since when Redis is away, in unix milliseconds; None when it answers.
    """

    overview: Overview
    rates: Rates
    away_ms: int | None

    def described(self) -> dict[str, Any]:
        """As one object of NDJSON."""
        away = self.overview.redis
        return described(self.overview) | {
            "rates": described_rates(self.rates),
            "redis": None if away is None else {**described_error(away), "since": timestamp(self.away_ms)},
        }


def watch_status(run: Run, interval_seconds: float, record: Path | None, count: int | None) -> None:
    """Shows what every look finds until told to stop.

    Raises:
        UsageError: the file to record to cannot be opened.
        StoreUnusable: no URL is configured, and the data folder has no stores.
        ImsyncError: the embedded server does not start. Afterwards it is not started again.
    """
    from imsync.cli.signals import stopping

    run.expect_stores()
    _ = run.bus
    stop = threading.Event()
    with _recording(record) as write, stopping(stop.set, deadline_seconds=run.settings.consumer.stop_deadline_seconds):
        found = samples(lambda: look_again(run), interval_seconds, stop, count)
        if run.out.on_a_terminal:
            where = str(run.bus.endpoint)
            view = View(where, interval_seconds, run.workspace.data_dir, embedded=not run.settings.url)
            with run.out.dashboard() as draw:
                for sample in found:
                    view.add(sample, write(sample))
                    draw(view.blocks(run.out.width))
        else:
            failing = ""
            for sample in found:
                run.out.row(sample.described())
                sys.stdout.flush()
                failed = write(sample)
                if failed and not failing:
                    run.out.note(f"the recording fails: {failed}")
                failing = failed


def samples(
    look: Callable[[], Overview], interval_seconds: float, stop: threading.Event, count: int | None = None
) -> Iterator[Sample]:
    """Looks once per interval, until told to stop or after so many looks.

    The looks are made on a thread of their own: a server that does not answer holds up a look for seconds, and must
    not hold up whoever wants to leave.
    """
    found: queue.Queue[Overview | Exception | None] = queue.Queue(maxsize=1)

    def work() -> None:
        due, left = time.monotonic(), count
        try:
            while not stop.wait(max(0.0, due - time.monotonic())) and left != 0:
                left = None if left is None else left - 1
                found.put(look())
                due = max(due + interval_seconds, time.monotonic() + interval_seconds / 2)
            found.put(None)
        except Exception as error:
            found.put(error)

    threading.Thread(target=work, name="imsync-look", daemon=True).start()
    before: Overview | None = None
    away_ms: int | None = None
    while not stop.is_set():
        try:
            overview = found.get(timeout=0.1)
        except queue.Empty:
            continue
        if overview is None:
            return
        if isinstance(overview, Exception):
            raise overview
        away_ms = None if overview.redis is None else away_ms or overview.at_ms
        yield Sample(overview, _rates(before, overview), away_ms)
        before = overview


def _rates(before: Overview | None, after: Overview) -> Rates:
    from imsync.im.rates import rates

    return rates(before, after)


@contextmanager
def _recording(path: Path | None) -> Iterator[Callable[[Sample], str]]:
    """A function that appends a sample to the file, and returns why it could not; empty when it could."""
    if path is None:
        yield lambda sample: ""
        return
    import json

    from imsync.errors import UsageError

    try:
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise UsageError(f"cannot record to {path}: {error.strerror}", "give a file that you may write") from error
    begun = False

    def write(sample: Sample) -> str:
        nonlocal begun
        # what an attempt has left behind is no sample; the next one begins on a line of its own
        line = ("\n" if begun else "") + json.dumps(sample.described(), ensure_ascii=True) + "\n"
        try:
            begun = os.write(file, line.encode()) < len(line)
        except OSError as error:
            return error.strerror or "unknown trouble"
        return "no space left" if begun else ""

    try:
        yield write
    finally:
        os.close(file)


@dataclass(frozen=True, slots=True)
class _Point:
    """What is drawn of a sample: for each line of bars its value."""

    at_ms: int
    values: dict[str, float | None]


class View:
    """The live view: what is now, and how it came about.

    Args:
        where: the server, without a password.
        embedded: whether it is imsync's own: nobody has given a URL that could be wrong.
    """

    def __init__(self, where: str, interval_seconds: float, data_dir: Path, *, embedded: bool = False) -> None:
        self._where = where
        self._embedded = embedded
        self._interval = interval_seconds
        self._data_dir = data_dir
        self._points: deque[_Point] = deque(maxlen=max(2, int(KEPT_SECONDS / interval_seconds) + 1))
        self._sample: Sample | None = None
        self._failing = ""

    def add(self, sample: Sample, recording_fails: str = "") -> None:
        """The next sample."""
        self._sample = sample
        self._failing = recording_fails
        values: dict[str, float | None] = {"edits/s": sample.rates.edits_per_second}
        for group in sample.overview.groups:
            name, each = group.view.group, sample.rates.groups.get(group.view.group)
            values[f"{name} events/s"] = each.events_per_second if each else None
            values[f"{name} lag"] = group.view.lag
            values[f"{name} staleness"] = each.staleness.p99_ms if each else None
        self._points.append(_Point(sample.overview.at_ms, values))

    def blocks(self, width: int) -> list[Block]:
        """All of it; what matters most comes first, for a terminal with few lines."""
        from imsync.cli import picture

        sample = self._sample
        if sample is None:
            return []
        overview = sample.overview
        now = datetime.fromtimestamp(overview.at_ms / 1000)
        found: list[Block] = [Line(f"{self._where}  {now:%H:%M:%S}, every {seconds(self._interval)}", "quiet")]
        if overview.redis and sample.away_ms is not None:
            since = datetime.fromtimestamp(sample.away_ms / 1000)
            lasted = seconds((overview.at_ms - sample.away_ms) / 1000)
            found.append(Line(f"! Redis is away since {since:%H:%M:%S} ({lasted}): {overview.redis.message}", "bad"))
            hint = "try: imsync server start" if self._embedded else overview.redis.hint
            found += [Line(f"  {hint}")] if hint else []
        if self._failing:
            found.append(Line(f"! the recording fails: {self._failing}", "bad"))
        found += picture.problems(overview)
        found += picture.numbers(overview)
        found += picture.places(overview, self._data_dir)
        found.append(self._bars(width))
        found += picture.members(overview)
        return found + picture.accounts(overview)

    def _bars(self, width: int) -> Grid:
        """A line of bars for each number that changes quickly."""
        columns = max(10, min(60, width - _LABELS))
        labels = list(dict.fromkeys(label for point in self._points for label in point.values))
        span = (self._points[-1].at_ms - self._points[0].at_ms) / 1000
        rows = []
        for label in labels:
            values = [point.values.get(label) for point in self._points]
            rows.append((label, _value(label, values[-1]), sparkline(values, columns).ljust(columns)))
        return Grid(("", "#now", f"last {seconds(span)}"), rows)


def _value(label: str, value: float | None) -> str:
    if label.endswith("staleness"):
        return milliseconds(value)
    if value is None:
        return "unknown"
    return number(int(value)) if label.endswith("lag") else f"{value:,.1f}"

"""From what was measured to figures. Pure."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence
from itertools import chain
from statistics import median

from imsync.bench.results import Bar, Figure, Limit, Phases, Spread, Tick, Work

EDGES_MS = tuple(round(step * 10.0**power, 3) for power in range(-2, 5) for step in (1, 1.5, 2, 3, 5, 7))
"""Where the bars of a histogram end, in milliseconds."""
TICKS = 40
"""Intervals of a timeline."""
DISK_SHARE = 0.2
"""A disk that takes less of the time does not explain why nobody is at work."""
BUSY_SHARE = 0.7
"""Who works for so much of the time holds up the others."""


def percentile(ordered: Sequence[float], share: float) -> float:
    """The smallest of the values that is not below so large a share of them (nearest rank).

    Args:
        ordered: at least one value, in rising order.
        share: above 0, at most 1.
    """
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def spread(values: Sequence[float]) -> Spread:
    """The median, and the ends."""
    return Spread(median(values), min(values), max(values))


def compared(imsync: Sequence[float], by_hand: Sequence[float]) -> Figure:
    """A figure of several rounds, of which each has a ratio of its own. One that is nothing at all has ratio 1."""
    ratios = [a / b if b else 1.0 for a, b in zip(imsync, by_hand, strict=True)]
    return Figure(spread(imsync), spread(by_hand), spread(ratios))


def works(what: str, imsync: Sequence[Work], by_hand: Sequence[Work]) -> dict[str, Figure]:
    """The figures of what was done in several rounds.

    Args:
        what: `publish` or `consume`.
    """
    found = {
        f"{what}_per_second": compared([w.rate for w in imsync], [w.rate for w in by_hand]),
        f"{what}_cpu_seconds_per_100k": compared(
            [w.cpu_seconds / w.events * 1e5 for w in imsync], [w.cpu_seconds / w.events * 1e5 for w in by_hand]
        ),
    }
    if what == "consume":
        found["consume_peak_mib"] = compared([w.peak_mib for w in imsync], [w.peak_mib for w in by_hand])
        ours = [w.server_cpu_seconds / w.events * 1e5 for w in imsync if w.server_cpu_seconds is not None]
        theirs = [w.server_cpu_seconds / w.events * 1e5 for w in by_hand if w.server_cpu_seconds is not None]
        if ours and len(ours) == len(theirs):
            found["server_cpu_seconds_per_100k"] = compared(ours, theirs)
    return found


def latencies(imsync: Sequence[Sequence[float]], by_hand: Sequence[Sequence[float]]) -> dict[str, Figure]:
    """The figures of latencies in milliseconds, of which there is a list for each round: percentiles of all edits, and
    between which values they were from round to round.
    """
    found = {}
    for name, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("max", 1.0)):
        rounds = [[percentile(sorted(each), share) for each in side] for side in (imsync, by_hand)]
        ours, theirs = (percentile(sorted(chain.from_iterable(side)), share) for side in (imsync, by_hand))
        ratios = [a / b if b else 1.0 for a, b in zip(*rounds, strict=True)]
        found[f"latency_{name}_ms"] = Figure(
            _among(ours, rounds[0]), _among(theirs, rounds[1]), _among(ours / theirs if theirs else 1.0, ratios)
        )
    return found


def _among(value: float, rounds: Sequence[float]) -> Spread:
    """A value of all rounds together, and the ends. Of few edits its rank may lie outside those of all rounds."""
    return Spread(value, min(value, *rounds), max(value, *rounds))


def histogram(imsync: Sequence[float], by_hand: Sequence[float]) -> list[Bar]:
    """How many latencies are in each interval, from the first interval with any to the last."""
    ours, theirs = _counted(imsync), _counted(by_hand)
    known = [i for i, n in enumerate(map(sum, zip(ours, theirs, strict=True))) if n]
    if not known:
        return []
    highest = max([*imsync, *by_hand])
    edges = [*EDGES_MS, highest]
    return [Bar(edges[i], ours[i], theirs[i]) for i in range(known[0], known[-1] + 1)]


def _counted(values: Sequence[float]) -> list[int]:
    found = [0] * (len(EDGES_MS) + 1)
    for value in values:
        found[bisect_left(EDGES_MS, value)] += 1
    return found


def timeline(imsync: Sequence[tuple[float, int]], by_hand: Sequence[tuple[float, int]]) -> list[Tick]:
    """The rates over time, from how many events were done when. The longer of the two fills all intervals."""
    step = max(_end(imsync), _end(by_hand)) / TICKS
    if step <= 0:
        return []
    starts = [i * step for i in range(TICKS)]
    return [Tick(at, _rate(imsync, at, at + step), _rate(by_hand, at, at + step)) for at in starts]


def _end(progress: Sequence[tuple[float, int]]) -> float:
    return progress[-1][0] if progress else 0.0


def _rate(progress: Sequence[tuple[float, int]], since: float, until: float) -> float | None:
    """Events per second in an interval. Between two looks the events came evenly."""
    if since >= (end := _end(progress)):
        return None
    until = min(until, end)
    return (_done(progress, until) - _done(progress, since)) / (until - since)


def _done(progress: Sequence[tuple[float, int]], at: float) -> float:
    i = bisect_left(progress, at, key=lambda each: each[0])
    if i == len(progress):
        return float(progress[-1][1])
    before, n = progress[i - 1] if i else (0.0, 0)
    after, m = progress[i]
    return m if after <= before else n + (m - n) * (at - before) / (after - before)


def phases(seconds: float, batches: Sequence[tuple[float, float, float, float]]) -> Phases | None:
    """Shares of a consumer's time.

    Args:
        seconds: all of it.
        batches: for each the seconds of decoding, of the transaction, of the acknowledgement, and of all of it.
    """
    if not batches:
        return None
    decode, store, acknowledge, in_batches = (sum(each[i] for each in batches) for i in range(4))
    whole = max(seconds, in_batches, decode + store + acknowledge)
    rest = max(0.0, in_batches - decode - store - acknowledge)
    read = max(0.0, whole - decode - store - acknowledge - rest)
    return Phases(read / whole, decode / whole, store / whole, acknowledge / whole, rest / whole, len(batches))


def shares(rounds: Sequence[Work]) -> tuple[float, float | None]:
    """For how much of the time a consumer was at work on a processor, and its server; medians. The server is None when
    it does not tell.
    """
    own = median(w.cpu_seconds / w.seconds for w in rounds)
    servers = [w.server_cpu_seconds / w.seconds for w in rounds if w.server_cpu_seconds is not None]
    return own, median(servers) if servers else None


def limit(own: float, server: float | None, disk: float | None) -> Limit:
    """What holds up a consumer, of whose time each has such a share."""
    if max(own, server or 0.0) < BUSY_SHARE:
        return "disk" if disk is not None and disk >= DISK_SHARE else "waiting"
    return "consumer" if own >= (server or 0.0) else "server"

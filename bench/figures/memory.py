"""Peak memory of a consumer, however long the backlog."""

from __future__ import annotations

from bench.figure import AT_MOST, Figure, Goal, Result, Row, Side
from bench.figures.store import consume_group, expert
from bench.run import Bench
from bench.stats import Spread

FLAT = 1.2
"""What counts as flat: SQLite's page cache and a first full batch are in it."""


def measure(bench: Bench) -> Result:
    """Drains backlogs of rising length with each."""
    largest = bench.size(1_000_000, 100_000, 10_000_000)
    sizes = [n for n in (10_000, 100_000, 1_000_000, 10_000_000) if n <= largest]
    ours: list[float] = []
    theirs: list[float] = []
    sides = []
    for events in sizes:
        rounds = 1 if events > 100_000 else bench.rounds(3)
        job = bench.job(events)
        found = bench.interleaved(
            rounds,
            {"expert": lambda job=job: expert(bench, job), "imsync": lambda job=job: consume_group(bench, job)},  # type: ignore[misc]
        )
        peaks = {name: Spread.of(ran.peak_mib for ran in runs) for name, runs in found.items()}
        ours.append(peaks["imsync"].median)
        theirs.append(peaks["expert"].median)
        sides += [
            Side(f"expert loop, {events:,} events", peaks["expert"]),
            Side(f"imsync consume group, {events:,} events", peaks["imsync"], peaks["imsync"].against(peaks["expert"])),
        ]
    ratios = Spread.of(mine / other for mine, other in zip(ours, theirs, strict=True))
    growth = Spread.of(mine / ours[0] for mine in ours)
    return Result(
        [
            Row("peak memory, worst of all sizes", Goal(AT_MOST, 1.3, worst=True), ratios),
            Row(f"peak memory, {sizes[-1]:,} to {sizes[0]:,}", Goal(AT_MOST, FLAT, worst=True), growth),
        ],
        sides,
        "MiB",
        ["VmHWM of the whole process. The last row of the table is the peak against that at the smallest size."],
    )


FIGURE = Figure("memory", "Peak memory of a consumer", measure)

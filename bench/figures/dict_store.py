"""Consuming with a dict instead of a store: the bus alone, through the library."""

from __future__ import annotations

from bench.figure import AT_LEAST, Figure, Goal, Result, Row, Side
from bench.figures.consumers import EXPERT, SHARE, others, verify_dict
from bench.processes import Ran, loop, run
from bench.run import Bench
from bench.stats import Spread

IMSYNC = "imsync, Bus.consumer"


def measure(bench: Bench) -> Result:
    """Drains the backlog with each, in turn."""
    events = bench.size(100_000, 20_000)
    job = bench.job(events)

    def ours() -> Ran:
        job.rewind("group")
        ran = run(loop("imsync_loop", "dict", job.url))
        verify_dict("imsync", job, ran)
        return ran

    sides = others(bench, events, into_dict=True)
    found = bench.interleaved(bench.rounds(5), {EXPERT: sides.pop(EXPERT), IMSYNC: ours}, sides)
    rates = {name: Spread.of(ran.rate for ran in runs) for name, runs in found.items()}
    return Result(
        [Row("consume into a dict", Goal(AT_LEAST, 1.0), rates[IMSYNC].against(rates[EXPERT]))],
        [Side(name, rate, rate.against(rates[EXPERT])) for name, rate in rates.items()],
        "events/s",
        [
            f"{events:,} events; those that take one message at a time {events // SHARE:,}. Every dict was compared "
            "with the user store after every round.",
        ],
    )


FIGURE = Figure("dict", "Consuming into a dict", measure, checked=True)

"""The rate at which a backlog drains, short or long."""

from __future__ import annotations

from collections.abc import Callable
from itertools import islice, pairwise
from time import monotonic, sleep

from bench.figure import AT_LEAST, Figure, Goal, Result, Row, Side
from bench.job import KEYS, Job, demo_job, verify
from bench.processes import Started, loop, run
from bench.run import Bench
from bench.stats import Spread
from bench.traffic import add_at_once, bodies, read_states, write_states
from imsync.im.simulator import simulate_edits

SHORT = 10_000
SHORT_BACKLOGS = 10
PATIENCE_SECONDS = 120.0

Points = list[tuple[float, int]]
"""When each batch ended, and how many events there had been by then."""


def measure(bench: Bench) -> Result:
    """Drains the long backlog once, and before and after it short ones, one after the other."""
    events = bench.size(3_000_000, 100_000)
    bench.say(f"  {SHORT_BACKLOGS} backlogs of {SHORT:,} events")
    before = _drain_short(bench)
    bench.say(f"  a backlog of {events:,} events")
    long = demo_job(bench.server, bench.database(), bench.folder, events)
    tenths = _drain_long(bench, long)
    long.drop()
    after = _drain_short(bench)
    # a checkpoint falls into some of the short ones only, so they count as a whole
    short = 2 / sum(1 / _mean(rates) for rates in (before, after))
    return Result(
        [Row(f"drain rate, {events:,} to {SHORT:,}", Goal(AT_LEAST, 0.9), Spread.of(t / short for t in tenths))],
        [
            Side(f"{SHORT:,} entries", Spread.of(before + after), more={"as a whole": f"{short:,.0f}"}),
            Side(f"{events:,} entries, by tenths", Spread.of(tenths), more={"as a whole": f"{_mean(tenths):,.0f}"}),
        ],
        "events/s",
        [
            f"Into the group store. Short: a consumer that waits gets {SHORT:,} entries at once, {SHORT_BACKLOGS} "
            "times, before the long one and after it. Rates are from the end of a first batch to that of the last one. "
            "Judged is the median of the long backlog's tenths against the short ones as a whole. All member rows were "
            "right at the end of each.",
        ],
    )


def _drain_long(bench: Bench, job: Job) -> list[float]:
    """The rates of ten parts."""
    workspace = job.begin("group", bench.folder / "round")
    points: Points = run(loop("imsync_loop", "store", job.url, workspace.path_of("group"))).result["points"]
    verify("the group store", workspace, workspace.path_of("group"))
    marks = [points[round(share / 10 * (len(points) - 1))] for share in range(11)]
    return [(n - m) / (t - s) for (s, m), (t, n) in pairwise(marks) if n > m]


def _drain_short(bench: Bench) -> list[float]:
    """The rates of so many backlogs, each given when the one before it was done."""
    total = SHORT * SHORT_BACKLOGS
    job = demo_job(bench.server, bench.database(), bench.folder, 0)
    workspace = job.begin("group", bench.folder / "round")
    states = read_states(workspace.path_of("user"))
    made = bodies(simulate_edits(list(states), count=total, seed=7), states, "urn:imsync:user-store:bench", total)
    consumer = Started(loop("imsync_loop", "store", job.url, workspace.path_of("group"), total))
    try:
        _wait(lambda: bool(job.client.info("clients")["blocked_clients"]))
        while chunk := list(islice(made, SHORT)):
            add_at_once(job.client, KEYS.stream, chunk)
            _wait(lambda: not job.left("group"))
    except BaseException:
        consumer.kill()
        raise
    points: Points = consumer.wait().result["points"]
    write_states(workspace.path_of("user"), states)
    verify("the group store", workspace, workspace.path_of("group"))
    job.drop()
    rates = []
    for number in range(SHORT_BACKLOGS):
        ends = [(at, n) for at, n in points if number * SHORT < n <= (number + 1) * SHORT]
        (began, first), (ended, last) = ends[0], ends[-1]
        if last > first:
            rates.append((last - first) / (ended - began))
    return rates


def _wait(condition: Callable[[], bool]) -> None:
    deadline = monotonic() + PATIENCE_SECONDS
    while not condition():
        if monotonic() > deadline:
            raise SystemExit("the consumer does not get on")
        sleep(0.02)


def _mean(rates: list[float]) -> float:
    """Of as many events each."""
    return len(rates) / sum(1 / rate for rate in rates)


FIGURE = Figure("backlog", "Draining a backlog", measure)

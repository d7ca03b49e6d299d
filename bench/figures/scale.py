"""The store's cost per event as it grows a hundredfold, five rows per user."""

from __future__ import annotations

import shutil

from bench.bigstores import build
from bench.figure import AT_MOST, Figure, Goal, Result, Row, Side
from bench.job import Job, uniform_job, verify
from bench.processes import Ran, loop, run
from bench.run import Bench
from bench.stats import Spread
from imsync.im.workspace import Workspace

ROWS_PER_USER = 5


def measure(bench: Bench) -> Result:
    """Applies the same number of events, of all users alike, to both stores in turn."""
    events = bench.size(50_000, 20_000)
    small, large = 40_000, bench.size(4_000_000, 400_000)
    jobs = {rows: _job(bench, rows, events) for rows in (small, large)}

    def side(rows: int) -> Ran:
        job = jobs[rows]
        workspace = job.begin("group", bench.folder / "round")
        ran = run(loop("imsync_loop", "store", job.url, workspace.path_of("group")))
        verify("the group store", workspace, workspace.path_of("group"))
        return ran

    found = bench.interleaved(bench.rounds(5), {str(rows): lambda rows=rows: side(rows) for rows in jobs})  # type: ignore[misc]
    costs = {rows: Spread.of(1e6 * ran.result["apply_seconds"] / events for ran in found[str(rows)]) for rows in jobs}
    for job in jobs.values():
        job.drop()
    shutil.rmtree(bench.folder / "round")
    return Result(
        [Row(f"store, {large:,} to {small:,} rows", Goal(AT_MOST, 2.0), costs[large].against(costs[small]))],
        [Side(f"{rows:,} member rows", costs[rows]) for rows in jobs],
        "µs per event",
        [
            f"{events:,} events of users chosen alike, {ROWS_PER_USER} rows each, through the library's consumer; the "
            "time is the handler's alone (`apply_seconds` of its telemetry). The file was copied just before, so it is "
            "in the page cache. All member rows were right after every round.",
        ],
    )


def _job(bench: Bench, rows: int, events: int) -> Job:
    bench.say(f"  a store of {rows:,} member rows")
    template = Workspace(bench.folder / f"scale-{rows}")
    build(template, rows // ROWS_PER_USER, memberships=ROWS_PER_USER, friendships=0)
    return uniform_job(bench.server, bench.database(), template, events)


FIGURE = Figure("scale", "The store as it grows", measure)

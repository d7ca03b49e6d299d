"""Consuming into a SQLite store: imsync's own, and the expert's tables through the library. And what CPU it takes."""

from __future__ import annotations

from bench.figure import AT_LEAST, AT_MOST, Figure, Goal, Result, Row, Side
from bench.figures.consumers import EXPERT, SHARE, others
from bench.job import Job, expert_store, verify
from bench.processes import Ran, imsync, loop, run
from bench.run import Bench
from bench.stats import Spread

IMSYNC, LAYOUT = "imsync consume group", "imsync's bus, the expert's tables"
IMSYNC_SHORT, EXPERT_SHORT = "imsync, a tenth", "expert, a tenth"
PER = 100_000


def consume_group(bench: Bench, job: Job) -> Ran:
    """The command, from the start of the backlog to its end, and its end state verified."""
    workspace = job.begin("group", bench.folder / "round")
    command = imsync("consume", "group", "--until-empty", "--url", job.url, "--data-dir", workspace.data_dir)
    ran = run(command)
    _complete("imsync consume group", job, ran)
    verify("imsync consume group", workspace, workspace.path_of("group"))
    return ran


def expert(bench: Bench, job: Job) -> Ran:
    """The expert loop, likewise."""
    workspace = job.begin("expert", bench.folder / "round")
    path = expert_store(workspace)
    ran = run(loop("expert", "consume", job.url, path))
    _complete("the expert loop", job, ran)
    verify("the expert loop", workspace, path)
    return ran


def measure(bench: Bench) -> Result:
    """Drains the backlog with each, in turn."""
    events = bench.size(100_000, 20_000)
    job, small = bench.job(events), bench.job(events // SHARE)

    def layout() -> Ran:
        workspace = job.begin("group", bench.folder / "round")
        path = expert_store(workspace)
        ran = run(loop("imsync_loop", "layout", job.url, path))
        _complete(LAYOUT, job, ran)
        verify(LAYOUT, workspace, path)
        return ran

    sides = others(bench, events, into_dict=False)
    found = bench.interleaved(
        bench.rounds(5),
        {
            EXPERT: sides.pop(EXPERT),
            IMSYNC: lambda: consume_group(bench, job),
            LAYOUT: layout,
            EXPERT_SHORT: lambda: expert(bench, small),
            IMSYNC_SHORT: lambda: consume_group(bench, small),
        },
        sides,
    )
    short = {EXPERT: found.pop(EXPERT_SHORT), IMSYNC: found.pop(IMSYNC_SHORT)}
    rates = {name: Spread.of(ran.rate for ran in runs) for name, runs in found.items()}
    whole = {name: _cpu(found[name]) for name in found}
    # per round the noise of both would add up, so the short runs count with their median
    per_event = {name: _cpu_without_start(found[name], short[name]) for name in short}
    return Result(
        [
            Row("consume into the group store", Goal(AT_LEAST, 3.0), rates[IMSYNC].against(rates[EXPERT])),
            Row("consume into the expert's tables", Goal(AT_LEAST, 1.0), rates[LAYOUT].against(rates[EXPERT])),
            Row("CPU, whole process", Goal(AT_MOST, 0.5), whole[IMSYNC].against(whole[EXPERT])),
            Row("CPU, without start-up", Goal(AT_MOST, 0.5), per_event[IMSYNC].against(per_event[EXPERT])),
        ],
        [
            Side(
                name,
                rate,
                rate.against(rates[EXPERT]),
                {
                    f"CPU s per {PER:,}": f"{whole[name].median:.2f}",
                    "without start-up": f"{per_event[name].median:.2f}" if name in per_event else "",
                },
            )
            for name, rate in rates.items()
        ],
        "events/s",
        [
            f"{events:,} events into 40,690 member rows; those that take one message at a time {events // SHARE:,}. "
            f"Without start-up: the difference to {events // SHARE:,} events. imsync commits with synchronous=FULL and "
            "writes a replica, a settlement log and tallies besides; the others commit with NORMAL. Every member row "
            "was compared with the user store after every round, for all.",
        ],
    )


def _complete(who: str, job: Job, ran: Ran) -> None:
    if ran.result["events"] != job.events:
        raise SystemExit(f"{who} took {ran.result['events']:,} of {job.events:,} events")


def _cpu(runs: list[Ran]) -> Spread:
    """CPU seconds of whole processes, per 100,000 events."""
    return Spread.of(ran.cpu_seconds / ran.result["events"] * PER for ran in runs)


def _cpu_without_start(runs: list[Ran], short: list[Ran]) -> Spread:
    base = Spread.of(ran.cpu_seconds for ran in short).median
    fewer = short[0].result["events"]
    return Spread.of((ran.cpu_seconds - base) / (ran.result["events"] - fewer) * PER for ran in runs)


FIGURE = Figure("store", "Consuming into SQLite", measure, checked=True)

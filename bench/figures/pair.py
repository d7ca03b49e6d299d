"""Two consumer processes beside the server, on two cores, against what the CPU that they need allows."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass

from bench.figure import AT_LEAST, Figure, Goal, Result, Row, Side
from bench.job import Job, demo_job
from bench.processes import Started, loop
from bench.run import Bench
from bench.server import Server
from bench.stats import Spread

CORES = 2


@dataclass(frozen=True, slots=True)
class Shared:
    """One run of so many consumers on one backlog: events per second, and CPU seconds per event of each party."""

    rate: float
    consumer_cpu: float
    server_cpu: float


def measure(bench: Bench) -> Result:
    """One consumer and two in turn, on a server of their own, all on two cores."""
    events = bench.size(300_000, 100_000)
    if sys.platform != "linux" or len(cores := sorted(os.sched_getaffinity(0))) < CORES:
        raise SystemExit("two consumers beside a server need Linux and two cores")
    os.sched_setaffinity(0, cores[:CORES])
    try:
        server = Server(bench.folder / "pair")
        try:
            job = demo_job(server, 0, bench.folder / "pair", events)
            found = bench.interleaved(
                bench.rounds(5),
                {"one": lambda: _together(server, job, 1), "two": lambda: _together(server, job, 2)},
            )
        finally:
            server.stop()
    finally:
        os.sched_setaffinity(0, cores)
    # per event, of one consumer that has a core to itself
    c = Spread.of(one.consumer_cpu for one in found["one"]).median
    s = Spread.of(one.server_cpu for one in found["one"]).median
    bound = 2 * c / (c + s)
    rates = {name: Spread.of(run.rate for run in runs) for name, runs in found.items()}
    speedup = rates["two"].against(rates["one"])
    return Result(
        [
            Row("two consumers: speed-up to 2c/(c+s)", Goal(AT_LEAST, 0.85), speedup.times(1 / bound)),
            Row("two consumers: rate to 2/(c+s)", Goal(AT_LEAST, 0.85), rates["two"].times((c + s) / 2)),
        ],
        [
            Side("one consumer", rates["one"]),
            Side("two consumers", rates["two"], more={"speed-up": f"{speedup.median:.2f}"}),
        ],
        "events/s",
        [
            f"{events:,} events into dicts, on two cores with nothing else. A consumer takes c = {1e6 * c:.1f} µs of "
            f"CPU per event and the server s = {1e6 * s:.1f} µs, so two could be {bound:.2f} times as fast as one that "
            "never waits, and take 2/(c+s) events per second. What others do on the machine counts against both.",
        ],
    )


def _together(server: Server, job: Job, consumers: int) -> Shared:
    job.rewind("group")
    go = "bench:go"
    running = [Started(loop("imsync_loop", "dict", job.url, "--go", go)) for _ in range(consumers)]
    try:
        while job.client.info("clients")["blocked_clients"] < consumers:
            pass
        before = server.cpu_seconds()
        job.client.rpush(go, *range(consumers))
        ended = [each.wait().result for each in running]
    except BaseException:
        for each in running:
            each.kill()
        raise
    server_cpu = server.cpu_seconds() - before
    events = sum(result["events"] for result in ended)
    if events != job.events:
        raise SystemExit(f"{consumers} consumers took {events:,} of {job.events:,} events")
    seconds = max(result["points"][-1][0] for result in ended) - min(result["began"] for result in ended)
    return Shared(events / seconds, sum(result["cpu"] for result in ended) / events, server_cpu / events)


FIGURE = Figure("pair", "Two consumers on two cores", measure)

"""Publishing many events: all are in Redis when it is over."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from typing import Any

from bench.figure import AT_LEAST, Figure, Goal, Result, Row, Side
from bench.job import KEYS
from bench.loops.shared import cloud_events
from bench.processes import loop, peers, run
from bench.run import Bench
from bench.stats import Spread

EXPERT, IMSYNC, NAIVE = "expert loop", "imsync, Bus.publish_many", "naive loop"
SHARE = 10
"""Who goes one by one publishes a tenth: the rate does not depend on it."""


def measure(bench: Bench) -> Result:
    """Publishes with each, in turn, into an empty database."""
    events = bench.size(100_000, 20_000)
    url, client = bench.scratch()

    def side(command: list[str], count: int) -> Callable[[], float]:
        def one_round() -> float:
            client.flushdb()
            rate = run(command).rate
            _verify(client, command, count)
            return rate

        return one_round

    sides = {
        EXPERT: side(loop("expert", "publish", url, events), events),
        IMSYNC: side(loop("imsync_loop", "publish", url, events), events),
    }
    others = {NAIVE: side(loop("naive", "publish", url, events // SHARE), events // SHARE)}
    if python := peers():
        others["walrus"] = side(loop("walrus_loop", "publish", url, events, python=python), events)
        others["FastStream"] = side(loop("faststream_loop", "publish", url, events, python=python), -events)
    if binary := shutil.which("redis-benchmark"):
        others["redis-benchmark, 1 connection"] = lambda: _redis_benchmark(bench, binary, client, events)
    found = {name: Spread.of(values) for name, values in bench.interleaved(bench.rounds(5), sides, others).items()}
    client.flushdb()
    return Result(
        [Row("publish_many", Goal(AT_LEAST, 1.5), found[IMSYNC].against(found[EXPERT]))],
        [Side(name, spread, spread.against(found[EXPERT])) for name, spread in found.items()],
        "events/s",
        [
            f"{events:,} events of about 400 bytes, as objects before the clock starts, and in Redis when it stops; "
            f"the naive loop {events // SHARE:,}. XLEN and the last event were looked at after every round.",
        ],
    )


def _verify(client: Any, command: list[str], count: int) -> None:
    """Whether all are there. FastStream (a negative count) wraps the event in a format of its own."""
    length = client.xlen(KEYS.stream)
    ((_, fields),) = client.xrevrange(KEYS.stream, count=1)
    sequence = f"{abs(count) + 1:019d}"
    last_is_right = count < 0 or json.loads(fields[b"event"])["sequence"] == sequence
    if length != abs(count) or not last_is_right:
        raise SystemExit(f"{' '.join(command)} left {length:,} entries, or the last one is not the last event")


def _redis_benchmark(bench: Bench, binary: str, client: Any, events: int) -> float:
    client.flushdb()
    body = cloud_events(1)[0].model_dump_json()
    number = str(client.connection_pool.connection_kwargs["db"])
    done = subprocess.run(
        [binary, "-s", str(bench.server.socket), "--dbnum", number, "-n", str(events), "-c", "1", "-P", "1000",
         "--csv", "XADD", KEYS.stream, "*", "event", body],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return float(done.stdout.splitlines()[-1].rsplit(",", 7)[1].strip('"'))


FIGURE = Figure("publish", "Publishing many events", measure, checked=True)

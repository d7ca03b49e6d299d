"""Latency at a low rate: from the edit's commit to the copies' commit."""

from __future__ import annotations

import shutil

from bench.figure import AT_MOST, Figure, Goal, Result, Row, Side
from bench.figures.live import RATE, Lateness, live
from bench.run import Bench
from bench.stats import Spread
from imsync.im.demo_data import generate
from imsync.im.setup import make_stores
from imsync.im.workspace import Workspace

EXPERT, IMSYNC = "expert loop", "imsync"


def measure(bench: Bench) -> Result:
    """Edits with each, in turn."""
    edits = RATE * bench.size(8, 4)
    template = Workspace(bench.folder / "latency-template")
    make_stores(template, generate())

    def side(who: str) -> Lateness:
        folder = bench.folder / "round"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(template.data_dir, folder)
        return live(bench, who, Workspace(folder), edits)

    found = bench.interleaved(bench.rounds(5), {EXPERT: lambda: side("expert"), IMSYNC: lambda: side("imsync")})
    p50 = {name: Spread.of(late.p50 for late in runs) for name, runs in found.items()}
    p99 = {name: Spread.of(late.p99 for late in runs) for name, runs in found.items()}
    return Result(
        [
            Row(f"latency at {RATE} edits/s, p50", Goal(AT_MOST, 2.0), p50[IMSYNC].against(p50[EXPERT])),
            Row(f"latency at {RATE} edits/s, p99", Goal(AT_MOST, 1.0), p99[IMSYNC].against(p99[EXPERT])),
        ],
        [
            Side(f"{name}, {what}", spreads[name], spreads[name].against(spreads[EXPERT]))
            for what, spreads in (("p50", p50), ("p99", p99))
            for name in (EXPERT, IMSYNC)
        ],
        "ms",
        [
            f"{edits:,} edits at {RATE} per second and round. imsync: user store, outbox, a relay in the same process, "
            "a consumer in another, both stores with synchronous=FULL. Expert: commit, XADD; a blocking XREADGROUP, "
            "commit; both with NORMAL. All member rows were right after every round.",
        ],
    )


FIGURE = Figure("latency", "Latency at a low rate", measure)

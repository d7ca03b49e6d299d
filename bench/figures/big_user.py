"""A user in 100,000 groups is edited while others are."""

from __future__ import annotations

import shutil

from bench.bigstores import join_many
from bench.figure import AT_MOST, Figure, Goal, Result, Row, Side
from bench.figures.live import RATE, Lateness, live
from bench.run import Bench
from bench.stats import Spread
from imsync.im.demo_data import generate
from imsync.im.setup import make_stores
from imsync.im.workspace import Workspace

WITHOUT, WITH = "without", "with"
LOCK_MS = 50.0


def measure(bench: Bench) -> Result:
    """Edits others with and without it, in turn."""
    edits = RATE * bench.size(8, 4)
    groups = bench.size(100_000, 20_000)
    template = Workspace(bench.folder / "big-user-template")
    make_stores(template, generate())
    users = template.user_store()
    big = users.active_ids()[-1]
    users.close()
    join_many(template, big, groups)

    def side(big_user: int) -> Lateness:
        folder = bench.folder / "round"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(template.data_dir, folder)
        return live(bench, "imsync", Workspace(folder), edits, big_user=big_user)

    found = bench.interleaved(bench.rounds(3), {WITHOUT: lambda: side(0), WITH: lambda: side(big)})
    p99 = {name: Spread.of(late.p99 for late in runs) for name, runs in found.items()}
    locks = {name: Spread.of(late.longest_lock_ms for late in runs) for name, runs in found.items()}
    if not locks[WITH].low:
        raise SystemExit("no transaction was seen: bench/locks.py does not see how the store commits")
    return Result(
        [
            Row(f"a user in {groups:,} groups, p99 of others", Goal(AT_MOST, 3.0), p99[WITH].against(p99[WITHOUT])),
            Row("the write lock at its longest", Goal(AT_MOST, LOCK_MS, worst=True), locks[WITH], "ms"),
        ],
        [
            Side(f"others, {name}", p99[name], more={"write lock at its longest, ms": f"{locks[name].high:.1f}"})
            for name in (WITHOUT, WITH)
        ],
        "ms, p99",
        [
            f"{edits:,} edits of others at {RATE} per second and round; the user in {groups:,} groups is edited once "
            "a second besides. The lock: from the end of BEGIN IMMEDIATE to the end of COMMIT. All member rows were "
            "right after every round.",
        ],
    )


FIGURE = Figure("big_user", "A user in very many groups", measure)

"""What `imsync verify` costs: CPU on the stores of `imsync init`, and peak memory on a large store."""

from __future__ import annotations

from bench.bigstores import build
from bench.figure import Figure, Result, Side
from bench.processes import Ran, imsync, run
from bench.run import Bench
from bench.stats import Spread
from imsync.im.demo_data import generate
from imsync.im.setup import make_stores
from imsync.im.workspace import Workspace


def measure(bench: Bench) -> Result:
    """Verifies both."""
    demo, large = Workspace(bench.folder / "verify-demo"), Workspace(bench.folder / "verify-large")
    make_stores(demo, generate())
    build(large, bench.size(1_000_000, 100_000), memberships=3, friendships=2)
    runs = {
        workspace.data_dir.name: [_verify(bench, workspace) for _ in range(rounds)]
        for workspace, rounds in ((demo, bench.rounds(5)), (large, 1))
    }
    return Result(
        [],
        [
            Side(
                f"{found[0].result['users']:,} users, {found[0].result['rows']:,} rows that copy them",
                Spread.of(ran.cpu_seconds for ran in found),
                more={"peak MiB": f"{max(ran.peak_mib for ran in found):.0f}"},
            )
            for found in runs.values()
        ],
        "CPU s",
        ["CPU of the whole process, start-up included. Both sides are read in short pages."],
    )


def _verify(bench: Bench, workspace: Workspace) -> Ran:
    ran = run(imsync("verify", "--url", bench.server.url, "--data-dir", workspace.data_dir))
    if ran.result["drift"]:
        raise SystemExit(f"imsync verify found drift: {ran.result}")
    return ran


FIGURE = Figure("verify", "`imsync verify`", measure)

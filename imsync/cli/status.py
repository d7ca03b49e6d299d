"""`imsync status`: does it work, and if not, why, and what helps."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from imsync.cli.looking import described, described_error, look, trouble
from imsync.cli.run import Run, command


def register(app: typer.Typer) -> None:
    """Adds the command."""
    command(app, "status")(status)


def status(
    run: Run,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Go on, with rates, until Ctrl-C.")] = False,
    interval: Annotated[str, typer.Option(help="With --watch: time between two looks (500ms, 2s, 1m).")] = "2s",
    record: Annotated[
        Path | None,
        typer.Option(help="With --watch: append every look to this file, for imsync report.", show_default=False),
    ] = None,
    count: Annotated[
        int | None, typer.Option(min=1, help="With --watch: end after so many looks.", show_default=False)
    ] = None,
) -> None:
    """Show how every group is doing, and what needs attention.

    That is its lag, pending entries, dead letters and the accounting of its events; who consumes, and where; what
    waits in the outbox; and what the stream holds. Exits with 3 when something needs somebody.

    With --watch it goes on, also while Redis is away. To a file, a pipe, or with --json it then writes one object
    per look.
    """
    from imsync.cli.durations import milliseconds
    from imsync.errors import UsageError

    if watch:
        from imsync.cli.watch import SHORTEST_MS, watch_status

        interval_ms = milliseconds(interval)
        if interval_ms < SHORTEST_MS:
            raise UsageError(f"bad interval {interval[:40]!a}", f"at least {SHORTEST_MS}ms")
        watch_status(run, interval_ms / 1000, record, count)
        return
    if record or count:
        raise UsageError("--record and --count are for --watch", "imsync status --watch")
    overview = look(run)
    if overview.redis:
        raise overview.redis
    failed = trouble(overview)
    if run.as_json:
        run.out.row(described(overview) | ({"error": described_error(failed)} if failed else {}))
    else:
        from imsync.cli.picture import blocks

        run.out.show(blocks(overview, run.workspace.data_dir))
    if failed:
        raise typer.Exit(failed.exit_code)
    raise typer.Exit(0 if overview.healthy else 3)

"""`imsync replay pending|dead|from`: applying events again. One file per verb."""

from __future__ import annotations

import typer

from imsync.cli.replay import dead, history, pending
from imsync.cli.run import command


def register(app: typer.Typer) -> None:
    """Adds the commands."""
    replay = typer.Typer(help="Apply events again.", no_args_is_help=True)
    command(replay, "pending")(pending.pending)
    command(replay, "dead")(dead.dead)
    command(replay, "from")(history.from_)
    app.add_typer(replay, name="replay")

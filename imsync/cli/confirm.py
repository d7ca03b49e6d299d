"""Asking before something is done that cannot be undone."""

from __future__ import annotations

import sys

import typer

from imsync.cli.run import Run


def confirm(run: Run, question: str, *, yes: bool) -> None:
    """Goes on only when somebody says so: with --yes, or on a terminal.

    Args:
        question: what would be done, as a question. Asked on stderr.

    Raises:
        UsageError: there is nobody to ask: no terminal, or --json.
        typer.Exit: the answer was not yes.
    """
    from imsync.cli.render import safe
    from imsync.errors import UsageError

    if yes:
        return
    if run.as_json or not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise UsageError(f"nobody to ask: {question}", "add --yes")
    print(safe(f"imsync: {question} [y/N]"), end=" ", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in ("y", "yes"):
        run.out.note("nothing was changed")
        raise typer.Exit(1)

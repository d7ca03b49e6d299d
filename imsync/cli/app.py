"""The tree of commands."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from imsync import __version__
from imsync.cli import (
    bench,
    check,
    config,
    consume,
    consumer,
    dead,
    demo,
    doctor,
    group,
    init,
    publish,
    rebuild,
    relay,
    replay,
    report,
    server,
    status,
    tail,
    trace,
    verify,
)


def build() -> typer.Typer:
    """The tree, for the standard output of this moment: its help has colours on a terminal only."""
    app = typer.Typer(
        name="imsync",
        no_args_is_help=True,
        # help in colours costs 0.1 s of imports, and a pipe has no use for it
        rich_markup_mode="rich" if sys.stdout.isatty() else None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    for verb in (
        demo, init, publish, relay, consume, replay, rebuild, group, consumer, dead, tail, trace, status, check, report,
        verify, doctor, bench, server, config,
    ):  # fmt: skip
        verb.register(app)
    return app


def _version(wanted: bool) -> None:
    if wanted:
        print(f"imsync {__version__}")
        raise typer.Exit


def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_version, is_eager=True)
    ] = False,
) -> None:
    """Keeps denormalised copies of user profiles in step over Redis Streams, and proves that they are.

    Results go to stdout, messages to stderr. Exit codes: 0 fine, 1 failed, 2 usage or configuration, 3 the check
    found something, 4 Redis unreachable, 5 store unusable.
    """

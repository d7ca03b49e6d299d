"""The tree of commands."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated

import typer

from imsync import __version__

VERBS = (
    "demo", "init", "publish", "relay", "consume", "replay", "rebuild", "group", "consumer", "dead", "tail", "trace",
    "status", "check", "report", "verify", "doctor", "bench", "server", "config",
)  # fmt: skip
"""In the order of `--help`. Each is a module of this package."""


def build(args: Sequence[str] = ()) -> typer.Typer:
    """The tree, for the standard output of this moment: its help has colours on a terminal only.

    Args:
        args: the arguments that it is for. When they begin with a verb, the tree has that one alone: to load them all
            takes a tenth of a consumer's start and 2 MiB.
    """
    app = typer.Typer(
        name="imsync",
        no_args_is_help=True,
        # help in colours costs 0.1 s of imports, and a pipe has no use for it
        rich_markup_mode="rich" if sys.stdout.isatty() else None,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_root)
    for verb in args[:1] if args and args[0] in VERBS else VERBS:
        import_module(f"imsync.cli.{verb}").register(app)
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

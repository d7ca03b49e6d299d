"""`imsync bench`: how fast it is here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from imsync.cli.run import Run, command

if TYPE_CHECKING:
    from imsync.bench.measuring import Bench
    from imsync.bench.plan import Plan
    from imsync.bench.results import Result
    from imsync.bus import Endpoint

MARK = "<!-- imsync bench -->"
"""How pictures of ours begin."""


def register(app: typer.Typer) -> None:
    """Adds the command."""
    command(app, "bench")(bench)


def bench(
    run: Run,
    seconds: Annotated[float, typer.Option(min=1, max=3600, help="About how long it takes.")] = 45.0,
    rate: Annotated[
        float, typer.Option(min=1, max=100_000, help="Edits per second when latency is measured.")
    ] = 500.0,
    events: Annotated[
        int | None,
        typer.Option(min=100, max=2_000_000, help="Events per round. As many as the time allows without.",
                     show_default=False),
    ] = None,
    users: Annotated[
        int, typer.Option(min=10, max=1_000_000, help="How many users; with four member rows each.")
    ] = 10_000,
    svg: Annotated[
        Path | None, typer.Option(help="Draw a picture of it into this file.", show_default=False, dir_okay=False)
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file, whatever it is.")] = False,
    seed: Annotated[int, typer.Option(help="The same seed makes the same users and edits.")] = 7,
) -> None:  # fmt: skip
    """Measure this machine: events per second, latency, and the ratio to a loop written by hand.

    Publishes and consumes in processes of their own, in rounds, beside the loop that one would write oneself, and
    checks every row afterwards. On a server of its own, or with a URL on that one, under keys of its own; in a
    temporary folder, on the disk of the data folder if one is configured. Nothing is left when it ends.
    """
    from imsync.bench.plan import Plan
    from imsync.bus import Endpoint
    from imsync.cli.files import write_whole

    if svg is not None:
        _check_target(svg, force)
    settings, endpoint = run.settings, None
    if settings.url:
        endpoint = Endpoint(
            settings.url,
            username=settings.username,
            password=settings.password.get_secret_value(),
            tls_ca_file=settings.tls_ca_file,
        )
    result = _measured(run, Plan(seconds, users, rate, events, seed), endpoint)
    if svg is not None:
        from imsync.cli.bench_drawing import drawing

        write_whole(svg, f"{MARK}\n{drawing(result)}")
    _tell(run, result, svg)


def _measured(run: Run, plan: Plan, endpoint: Endpoint | None) -> Result:
    """Measures; an interrupted run has what was measured until then.

    Raises:
        ImsyncError: something failed.
        KeyboardInterrupt: it was interrupted before there was anything.
    """
    from imsync.bench.measuring import Bench
    from imsync.cli.signals import noting

    has_disk = run.loaded.origins["data_dir"] != "default" and run.settings.data_dir.is_dir()
    parent = run.settings.data_dir if has_disk else None
    with noting() as interrupted:
        measurement = Bench(plan, endpoint, parent, interrupted=interrupted)
        was_interrupted = False
        try:
            with run.out.stages() as show, measurement:
                _announce(run, measurement, plan)
                try:
                    measurement.measure(show)
                except KeyboardInterrupt:
                    was_interrupted = True
                result = measurement.result(interrupted=was_interrupted)
        finally:
            if (error := measurement.left_behind) is not None:
                run.out.note(f"keys {measurement.prefix}:* are left on the server, to be deleted: {error.message}")
        if was_interrupted and not result.figures:
            raise KeyboardInterrupt
    return result


def _announce(run: Run, measurement: Bench, plan: Plan) -> None:
    """Says what comes next, and where."""
    from imsync.bench.doubts import before

    machine = measurement.machine
    where = (
        f"{machine.server} of its own" if machine.embedded
        else f"{machine.server} at {machine.where}, keys {measurement.prefix}:*"
    )  # fmt: skip
    disk = f" ({machine.filesystem})" if machine.filesystem else ""
    run.out.note(f"about {plan.seconds:,.0f} s on {where}, in {machine.folder}{disk}; all of it is removed at the end")
    for doubt in before(machine):
        run.out.note(doubt.what)


def _check_target(path: Path, force: bool) -> None:
    """Refuses, before anything is measured, what cannot or must not be written.

    Raises:
        UsageError: it is no file, its folder is not there, or somebody else's file is.
    """
    from imsync.errors import UsageError

    if path.exists() and not path.is_file():
        raise UsageError(f"{path} is not a file", "give a file to write")
    if not path.parent.is_dir():
        raise UsageError(f"cannot write {path}: its folder is not there", "give a file in a folder that you may write")
    if path.exists() and not force:
        try:
            with path.open("rb") as file:
                ours = file.read(len(MARK)) == MARK.encode()
        except OSError as error:
            raise UsageError(f"cannot read {path}: {error.strerror}", "give another file") from None
        if not ours:
            raise UsageError(f"{path} is there, and no picture of imsync's", "--force overwrites it")


def _tell(run: Run, result: Result, svg: Path | None) -> None:
    from imsync.cli.bench_picture import blocks, described

    if run.out.as_json:
        run.out.row(described(result) | {"svg": None if svg is None else str(svg)})
        return
    run.out.show(blocks(result, run.out.width))
    if svg is not None:
        run.out.text(f"wrote {svg}")

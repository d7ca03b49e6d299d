"""`imsync demo`: the whole story, in under a minute."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from imsync.cli.run import Run, command

if TYPE_CHECKING:
    from imsync.cli.story import Ending, Glance, Scale


def register(app: typer.Typer) -> None:
    """Adds the command."""
    command(app, "demo")(demo)


def demo(
    run: Run,
    seed: Annotated[int, typer.Option(help="The same seed makes the same users and edits.")] = 7,
) -> None:
    """Watch edits flow, a consumer die, and the copies proved right.

    Profile edits go through a real server to two services; one of the consumers is killed with SIGKILL in the
    middle of a batch, another takes over, and every copy is compared with its source. Everything happens in a
    temporary folder, on a server of its own; nothing is left when it ends.
    """
    from imsync.cli.story import Scale

    ending = tell(run, Scale(seed=seed))
    _summary(run, ending)
    if not ending.proved:
        raise typer.Exit(3)


def tell(run: Run, scale: Scale) -> Ending:
    """Tells the story. Ctrl-C, SIGTERM and the end of the terminal end it early, and are noted only: however many
    signals come, none cuts the cleaning up short.

    Raises:
        ImsyncError: a process failed, or something did not happen in time.
        KeyboardInterrupt: it was interrupted. From then on the process is deaf to these signals.
    """
    from imsync.cli.signals import noting
    from imsync.cli.story import Story

    with noting() as interrupted, run.out.live() as screen:

        def show(glance: Glance) -> None:
            screen.table(*_numbers(glance))

        with Story(scale, screen.line, show, interrupted) as story:
            ending = story.tell()
        screen.clear()
    return ending


def _numbers(glance: Glance) -> tuple[tuple[str, ...], list[tuple[object, ...]]]:
    from imsync.cli.render import number

    columns = ("service", "#published", "#settled", "#undelivered", "#pending", "consumers")
    rows: list[tuple[object, ...]] = []
    for service, settled in glance.settled.items():
        alive = ", ".join(name for name in sorted(glance.alive) if name.startswith(service))
        rows.append(
            (
                service,
                number(glance.published),
                number(settled),
                number(glance.undelivered[service]),
                number(glance.pending[service]),
                alive or "none",
            )
        )
    return columns, rows


def _summary(run: Run, ending: Ending) -> None:
    verdict, staleness = ending.verdict, ending.staleness
    data: dict[str, object] = {
        "users": verdict.users,
        "rows": verdict.rows,
        "events": ending.events,
        "applied": ending.applied,
        "superseded": ending.superseded,
        "held_by_victim": ending.held_by_victim,
        "taken_over": ending.taken_over,
        "staleness": asdict(staleness),
        "events_per_second": ending.events_per_second,
        "drift": verdict.drift,
        "in_flight": verdict.in_flight,
        "unexplained": ending.unexplained,
        "proved": ending.proved,
        "seconds": ending.seconds,
    }
    from imsync.cli.render import milliseconds

    verdict_line = (
        f"proved: {verdict.rows:,} copies of {verdict.users:,} users compared with their source, no drift"
        if ending.proved
        else f"NOT proved: {verdict.drift} drifted, {verdict.in_flight} in flight, {ending.unexplained} unexplained"
    )
    with suppress(BrokenPipeError):
        run.out.result(
            data,
            "",
            f"  events       {ending.events:>10,}   = {ending.applied:,} applied + {ending.superseded:,} superseded"
            f" by a newer edit",
            f"  taken over   {ending.taken_over:>10,}   of the {ending.held_by_victim:,} that the killed consumer held"
            " (the others it had applied: repeats change nothing)"
            if ending.taken_over != ending.held_by_victim
            else f"  taken over   {ending.taken_over:>10,}   all that the killed consumer held",
            f"  staleness    {milliseconds(staleness.p50_ms):>10}   p50, p99 {milliseconds(staleness.p99_ms)},"
            " from edit to copy, the kill included",
            f"  throughput   {ending.events_per_second:>10,.0f}   events per second in the burst, edit to both copies",
            "",
            verdict_line,
            f"done in {ending.seconds:.0f} s; no process and no file is left",
        )
